"""How each agent of a run did, by rules alone: what it made, what that took, and what went wrong, each with its evidence.

| issue                | when                                                                                           |
|----------------------|------------------------------------------------------------------------------------------------|
| partial_completion   | the agent had begun, the run is over, and deliverables are missing                              |
| budget_hit           | a call did not fit into a budget, or the agent used more than its token budget                  |
| scope_drift          | its text names an input of another agent that nothing it was given names; has a heading that    |
|                      | the criteria ask of another role and not of it; is longer than its whole call was expected to   |
|                      | be; or it wrote files beside its deliverable                                                    |
| invalid_format       | an attempt failed as invalid_output, or the check found the file not well-formed                |
| silent_stop          | the worker died, the answer broke off or is empty, or the run ended while it was at work         |
| repeated_refinements | a deliverable was refined, or made again in a further lap, at least twice                       |
| stall                | an attempt timed out or stalled, or the monitor saw the agent stand still                       |
| unmet_criterion      | the check of a lap found a criterion of a deliverable not met                                   |
| failed               | an attempt failed in another way (refused, unavailable ...), but for interruptions              |

The same issue of the same role in two iterations, laps or runs is a pattern. What is proposed about it stands in improvements.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field

from pop.errors import safe
from pop.recipes.iterate.criteria import Criterion
from pop.recipes.iterate.evidence import Evidence, Failure, Piece
from pop.recipes.iterate.manifest import Agent, Manifest, rounds_step
from pop.recipes.iterate.rules import Heading
from pop.recipes.iterate.snapshots import OVER
from pop.records import Record

FOLDER = "feedback"
Kind = Literal[
    "partial_completion", "budget_hit", "scope_drift", "invalid_format", "silent_stop", "repeated_refinements", "stall",
    "unmet_criterion", "failed",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)
FORMAT_RULES = re.compile(r"markdown|yaml|json|well-formed|schema\b.*", re.IGNORECASE)
SILENT = frozenset({"worker_died", "truncated"})
STANDING = frozenset({"timeout", "stalled"})
MOST_SHOWN = 10


class Issue(Record):
    """Something that went wrong. `rule`: which criterion, or error class, where the kind does not say it all."""

    kind: Kind
    role: str
    step: str
    iteration: str
    lap: int = 1
    path: str | None = None
    rule: str | None = None
    evidence: str
    where: str | None = Field(default=None, description="In the run's folder.")
    stored: bool = Field(
        default=False, description="No model was asked: the answer is one that an earlier run was given."
    )

    @property
    def key(self) -> tuple[str, str, str | None]:
        return self.role, self.kind, self.rule


class AgentReport(Record):
    """One agent. `estimated_tokens` is what its deliverables were expected to take once."""

    step: str
    role: str
    iteration: str
    state: str
    targets: int
    deliverables: int
    completed: int
    rate: float
    laps: int
    calls: int
    tokens: int
    estimated_tokens: int
    token_budget: int
    cost_usd: float | None
    seconds: float
    refinements: int
    output_tokens: float | None = Field(default=None, description="Of one answer, on the average.")
    missing: list[str] = Field(default_factory=list)
    issues: list[Issue] = Field(default_factory=list)


class IterationReport(Record):
    """One iteration. `met_by_lap`: how many criteria each check found met."""

    name: str
    state: str
    laps: int
    rounds: int
    met: bool | None
    met_by_lap: list[int] = Field(default_factory=list)
    criteria: int | None = None


class Occurrence(Record):
    """Where an issue was seen."""

    run_id: str
    iteration: str
    lap: int


class Pattern(Record):
    """The same mistake of the same role, at least twice."""

    role: str
    kind: Kind
    rule: str | None
    times: int
    seen: list[Occurrence]
    evidence: str


class Proposal(Record):
    """A change that a person may apply. `edits` make it, `diff` shows it; `by_hand` says why it cannot be applied.

    `file` is the one that is changed, `base_sha256` what it held when this was made (None: it was not there).
    """

    id: str
    kind: Literal["template", "role", "budget", "allocation", "rounds", "output_tokens"]
    role: str | None
    title: str
    why: str
    file: str
    base_sha256: str | None
    edits: list[dict[str, Any]]
    diff: str
    by_hand: str | None = None


class Report(Record):
    """DIR/feedback/<run_id>.json."""

    schema_version: int = 1
    run_id: str
    name: str
    workflow: str
    state: str
    at: str
    iterations: list[IterationReport]
    agents: list[AgentReport]
    patterns: list[Pattern] = Field(default_factory=list)
    proposals: list[Proposal] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    earlier_runs: list[str] = Field(default_factory=list)

    @property
    def issues(self) -> list[Issue]:
        return [issue for agent in self.agents for issue in agent.issues]


def assess(manifests: Sequence[Manifest], evidence: Evidence, *, at: str) -> Report:
    """The report of one run, without patterns over others and without proposals."""
    headings = _headings_by_role(manifests, evidence.criteria)
    everything = {target for one in manifests for agent in one.agents for target in _targets(agent)}
    return Report(
        run_id=evidence.run_id,
        name=str(evidence.status.get("name")),
        workflow=manifests[0].workflow,
        state=evidence.state,
        at=at,
        iterations=[_iteration(manifest, evidence) for manifest in manifests],
        agents=[
            _agent(manifest, agent, evidence, headings, everything - _targets(agent))
            for manifest in manifests
            for agent in manifest.agents
        ],
        notes=[f"a budget warned: {safe(text, 300)}" for text in evidence.warnings],
    )


def _targets(agent: Agent) -> set[str]:
    return {target for deliverable in agent.deliverables for target in deliverable.targets}


def _iteration(manifest: Manifest, evidence: Evidence) -> IterationReport:
    checks = evidence.checks.get(manifest.iteration) or {}
    last = checks[max(checks)] if checks else {}
    pieces = [piece for agent in manifest.agents for piece in evidence.pieces.get(agent.step, ())]
    laps = max([*checks, *(piece.work.lap for piece in pieces)], default=0)
    begun = any(piece.work.state != "pending" for piece in pieces)
    met = last.get("met") if last else None
    if rounds_step(manifest.iteration) in evidence.failed_loops or any(
        piece.work.state == "failed" for piece in pieces
    ):
        state = "failed"
    elif not begun:
        state = "not begun"
    elif met or (checks and (laps >= manifest.rounds or evidence.state == "complete")):
        state = "done"
    else:
        state = "stopped" if evidence.state in OVER else "running"
    listed = last.get("criteria")
    return IterationReport(
        name=manifest.iteration,
        state=state,
        laps=laps,
        rounds=manifest.rounds,
        met=met,
        met_by_lap=[int(check.get("met_count") or 0) for _, check in sorted(checks.items())],
        criteria=len(listed) if isinstance(listed, list) else None,
    )


def _agent(
    manifest: Manifest,
    agent: Agent,
    evidence: Evidence,
    headings: Mapping[str, Mapping[str, str]],
    others: set[str],
) -> AgentReport:
    pieces = list(evidence.pieces.get(agent.step, ()))
    made = {piece.work.index for piece in pieces if piece.work.state == "done"}
    begun = any(piece.work.state not in ("pending", "cancelled") or piece.work.task.get("attempt") for piece in pieces)
    usages = [piece.work.task.get("usage") or {} for piece in pieces]
    missing = [one.path for index, one in enumerate(agent.deliverables) if index not in made]
    lengths = [piece.output_tokens for piece in pieces if piece.output_tokens]
    told = _Agent(manifest, agent, evidence, pieces, headings, others)
    unpriced = sum(one.get("unpriced_calls", 0) for one in usages)
    over = evidence.state in OVER
    return AgentReport(
        step=agent.step,
        role=agent.role,
        iteration=manifest.iteration,
        state="done" if not missing else "not begun" if not begun else "partial" if over else "running",
        targets=len(_targets(agent)),
        deliverables=len(agent.deliverables),
        completed=len(made),
        rate=round(len(made) / len(agent.deliverables), 4) if agent.deliverables else 1.0,
        laps=max((piece.work.lap for piece in pieces), default=0),
        calls=sum(one.get("calls", 0) for one in usages),
        tokens=sum(one.get("input_tokens", 0) + one.get("output_tokens", 0) for one in usages),
        estimated_tokens=agent.tokens,
        token_budget=agent.token_budget,
        cost_usd=None if unpriced else round(sum(one.get("cost_usd", 0.0) for one in usages), 9),
        seconds=round(sum(piece.work.task.get("seconds") or 0.0 for piece in pieces), 3),
        refinements=sum(piece.work.task.get("refinements") or 0 for piece in pieces),
        output_tokens=round(sum(lengths) / len(lengths), 1) if lengths else None,
        missing=missing,
        issues=list(told.issues(begun, missing)),
    )


class _Agent:
    """One agent while its issues are looked for."""

    def __init__(
        self,
        manifest: Manifest,
        agent: Agent,
        evidence: Evidence,
        pieces: Sequence[Piece],
        headings: Mapping[str, Mapping[str, str]],
        others: set[str],
    ) -> None:
        self.manifest, self.agent, self.evidence, self.pieces = manifest, agent, evidence, pieces
        self.headings, self.others = headings, others

    def issues(self, begun: bool, missing: list[str]) -> Iterator[Issue]:
        over = self.evidence.state in OVER
        if over and begun and missing:
            made, all_of = len(self.agent.deliverables) - len(missing), len(self.agent.deliverables)
            more = f" and {len(missing) - MOST_SHOWN} more" if len(missing) > MOST_SHOWN else ""
            told = f"{made} of {all_of} deliverables were made; missing: {', '.join(missing[:MOST_SHOWN])}{more}"
            yield self._issue("partial_completion", told, lap=max(piece.work.lap for piece in self.pieces))
        yield from self._budget()
        for piece in self.pieces:
            yield from self._of_failures(piece)
            yield from self._of_piece(piece, over)
        yield from self._refinements()
        yield from self._seen_standing()
        yield from self._unmet()

    def _issue(self, kind: Kind, evidence: str, *, piece: Piece | None = None, **more: Any) -> Issue:
        about: dict[str, Any] = {"role": self.agent.role, "step": self.agent.step, "iteration": self.manifest.iteration}
        if piece:
            path = self.agent.deliverables[piece.work.index].path
            about |= {"lap": piece.work.lap, "path": path, "where": f"tasks/{piece.work.instance}"}
            about["stored"] = _from_store(piece)
        return Issue(kind=kind, evidence=evidence, **{**about, **more})

    def _budget(self) -> Iterator[Issue]:
        usages = [piece.work.task.get("usage") or {} for piece in self.pieces]
        used = sum(one.get("input_tokens", 0) + one.get("output_tokens", 0) for one in usages)
        if used > self.agent.token_budget:
            lap = max(piece.work.lap for piece in self.pieces)
            told = (
                f"used {used:,} tokens, its budget is {self.agent.token_budget:,}, {self.agent.tokens:,} were expected"
            )
            yield self._issue("budget_hit", told, lap=lap)

    def _of_failures(self, piece: Piece) -> Iterator[Issue]:
        for failure in self.evidence.failures.get(piece.work.instance, ()):
            kind, rule = _kind_of(failure)
            if kind is None:
                continue
            said = f"attempt {failure.attempt} failed, {failure.error_class}: {failure.message}"
            problems = f" ({'; '.join(failure.problems)})" if failure.problems else ""
            where = f"tasks/{piece.work.instance}/attempts/{failure.attempt}"
            yield self._issue(kind, said + problems, piece=piece, rule=rule, where=where)

    def _of_piece(self, piece: Piece, over: bool) -> Iterator[Issue]:
        state = piece.work.state
        if over and state in ("running", "cancelled") and piece.work.task.get("attempt"):
            yield self._issue("silent_stop", f"it was {state} when the run ended ({self.evidence.state})", piece=piece)
        if state == "done" and piece.text is not None and not piece.text.strip():
            yield self._issue("silent_stop", "its answer is empty", piece=piece)
        elif state == "done" and piece.broken_off:
            tokens = piece.output_tokens or 0
            yield self._issue("silent_stop", f"its answer broke off after {tokens:,} tokens", piece=piece)
        if state == "done" and piece.text:
            yield from (self._issue("scope_drift", said, piece=piece) for said in self._drift(piece))

    def _drift(self, piece: Piece) -> Iterator[str]:
        deliverable, text = self.agent.deliverables[piece.work.index], piece.text or ""
        named = [one for one in sorted(self.others) if _names(text, one) and not _names(piece.given, one)]
        if named:
            yield f"it names {', '.join(named[:5])}, which it was not given"
        own = self.headings.get(self.agent.role, {})
        found = {line for line in map(_heading, text.splitlines()) if line}
        for role, asked in self.headings.items():
            foreign = [shown for words, shown in asked.items() if words in found and words not in own]
            if role != self.agent.role and foreign:
                yield f"it has the section {foreign[0]!r}, which is asked of {role}"
        tokens = piece.output_tokens or 0
        if deliverable.tokens and tokens > deliverable.tokens:
            yield f"its answer has {tokens:,} tokens; {deliverable.tokens:,} were expected with the prompt"
        if piece.extra:
            yield f"it wrote {len(piece.extra)} more file(s): {', '.join(piece.extra[:5])}"

    def _refinements(self) -> Iterator[Issue]:
        by_index: dict[int, list[Piece]] = {}
        for piece in self.pieces:
            by_index.setdefault(piece.work.index, []).append(piece)
        for pieces in by_index.values():
            refined = sum(piece.work.task.get("refinements") or 0 for piece in pieces)
            again = sum(1 for piece in pieces if piece.work.lap > 1 and _was_asked(piece))
            if refined + again >= 2:
                told = f"refined {refined} time(s), made again in {again} further lap(s)"
                yield self._issue("repeated_refinements", told, piece=max(pieces, key=lambda piece: piece.work.lap))

    def _seen_standing(self) -> Iterator[Issue]:
        for row in self.evidence.alerts:
            if row.get("event") == "agent.stalled" and row.get("step") == self.agent.step:
                told = safe(row.get("text") or "", 300, one_line=True)
                yield self._issue("stall", told, lap=int(row.get("lap") or 1), where="alerts.jsonl")

    def _unmet(self) -> Iterator[Issue]:
        """One issue for each criterion and lap, with the paths that do not meet it."""
        own = {deliverable.path for deliverable in self.agent.deliverables}
        asked = {
            (piece.work.lap, self.agent.deliverables[piece.work.index].path)
            for piece in self.pieces
            if not _from_store(piece)
        }
        for lap, check in (self.evidence.checks.get(self.manifest.iteration) or {}).items():
            found: dict[str, dict[str, list[str]]] = {}  # by rule and path
            for entry in check.get("criteria") or []:
                if isinstance(entry, dict) and entry.get("status") == "unmet" and entry.get("path") in own:
                    rule = str(entry.get("rule") or entry.get("text"))
                    said = found.setdefault(rule, {}).setdefault(str(entry["path"]), [])
                    said.append(str(entry.get("evidence") or ""))
            for rule, unmet in found.items():
                path, first = next(iter(unmet.items()))
                words = "; ".join(dict.fromkeys(first))
                more = f"; {len(unmet) - 1} more deliverable(s) likewise" if len(unmet) > 1 else ""
                kind: Kind = "invalid_format" if FORMAT_RULES.fullmatch(rule.strip("`")) else "unmet_criterion"
                told = f"{rule}: {safe(words, 200, one_line=True)}{more}"
                yield self._issue(
                    kind, told, lap=lap, path=path, rule=rule if kind == "unmet_criterion" else None,
                    stored=not any((lap, one) in asked for one in unmet),
                )  # fmt: skip


def _kind_of(failure: Failure) -> tuple[Kind | None, str | None]:
    match failure.error_class:
        case "interrupted":
            return None, None
        case "budget":
            return "budget_hit", None
        case "invalid_output":
            return "invalid_format", None
        case error if error in SILENT:
            return "silent_stop", None
        case error if error in STANDING:
            return "stall", None
        case error:
            return "failed", error


def _from_store(piece: Piece) -> bool:
    usage = piece.work.task.get("usage") or {}
    return bool(usage.get("cached_calls")) and not usage.get("calls")


def _was_asked(piece: Piece) -> bool:
    usage = piece.work.task.get("usage") or {}
    return bool(usage.get("calls") or usage.get("cached_calls"))


def _names(text: str, target: str) -> bool:
    """Whether a text names a file, by its path or by a name that is long enough to be its own."""
    name = target.rpartition("/")[2]
    words = [target, name] if len(name) >= 5 and "." in name else [target]
    return any(re.search(rf"(?<![\w./-]){re.escape(word)}(?![\w-])", text) for word in words)


def _heading(line: str) -> str | None:
    """The words of a Markdown heading, in lower case."""
    match = re.fullmatch(r"#{1,6}\s+(.*?)\s*#*\s*", line)
    return match[1].strip("*_ ").casefold() if match else None


def _headings_by_role(
    manifests: Sequence[Manifest], criteria: Mapping[str, Sequence[Criterion]]
) -> dict[str, dict[str, str]]:
    """What headings the criteria ask of the deliverables of each role: ``{role: {in lower case: as written}}``."""
    found: dict[str, dict[str, str]] = {}
    for manifest in manifests:
        for agent in manifest.agents:
            asked = found.setdefault(agent.role, {})
            for criterion in criteria.get(manifest.iteration, ()):
                rules = [rule for rule in criterion.rules if isinstance(rule, Heading)]
                if rules and any(criterion.concerns(deliverable.path) for deliverable in agent.deliverables):
                    asked.update({rule.words.casefold(): rule.words for rule in rules})
    return found


def patterns_of(report: Report, earlier: Iterable[Report]) -> list[Pattern]:
    """What this run did that was seen at least twice: in two iterations, two laps or two runs.

    An answer that a run took from the store is not a second mistake.
    """
    seen: dict[tuple[str, str, str | None], dict[tuple[str, str, int], Issue]] = {}
    for one in [*earlier, report]:
        for issue in one.issues:
            places = seen.setdefault(issue.key, {})
            if not (issue.stored and any(place[1:] == (issue.iteration, issue.lap) for place in places)):
                places.setdefault((one.run_id, issue.iteration, issue.lap), issue)
    present = {issue.key for issue in report.issues}
    return [
        Pattern(
            role=role,
            kind=next(iter(places.values())).kind,
            rule=rule,
            times=len(places),
            seen=[Occurrence(run_id=run, iteration=iteration, lap=lap) for run, iteration, lap in places],
            evidence=list(places.values())[-1].evidence,
        )
        for (role, kind, rule), places in sorted(seen.items(), key=lambda entry: (-len(entry[1]), str(entry[0])))
        if len(places) >= 2 and (role, kind, rule) in present
    ]
