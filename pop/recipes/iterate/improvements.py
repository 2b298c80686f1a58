"""What is proposed after a run: small changes to the workflow.yaml and the templates a person owns, shown as diffs.

| proposal      | when                                                             | changes                                      |
|---------------|------------------------------------------------------------------|----------------------------------------------|
| template      | the same mistake of a role twice (a pattern)                     | a rule at the end of the role's template     |
| role          | scope drift, seen once                                           | one more of the role's `constraints`         |
| budget        | a budget hit that the estimate did not foresee                   | the role's `token_budget`                    |
| allocation    | a budget hit of an agent whose share was above 85 %; agents of one role of which one had twice the work of another | the role's `complexity_threshold`; the agent's `allocation` |
| rounds        | laps ran out while every lap met more criteria than the one before | the iteration's `rounds`                   |
| output_tokens | answers half as long again as expected, or longer                | the agent's `output_tokens`                  |

A workflow of the package is first copied to the root's workflows/<name>/, so that there is a file to change. Nothing is
written before `apply`, which refuses where a file is not what it was when the proposals were made.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pop.errors import ConfigError, UsageError
from pop.recipes.iterate.feedback import AgentReport, Pattern, Proposal, Report
from pop.recipes.iterate.generate import read_generated
from pop.recipes.iterate.library import PACKAGED, SAMPLE, WORKFLOW_FILE, WORKFLOWS, find_workflow
from pop.recipes.iterate.workflow import Loaded, load_workflow, read_template
from pop.recipes.iterate.yamledit import CannotEdit, Keys, append_item, set_value
from pop.settings import Root
from pop.store import Disk, read_regular

LEARNED = "## Learned from earlier runs"
MAX_BYTES = 1_000_000
MEDIUM = 0.85
RULES = {
    "invalid_format": "Answer with the file itself, well-formed from its first line to its last: no fence around it, no word "
    "before or after it.",
    "scope_drift": "Write about the targets you were given and nothing else; leave to others the sections that are theirs.",
    "partial_completion": "Finish the whole file in one answer; what you do not know, say so under its heading, and go on.",
    "silent_stop": "Keep to a length that lets you finish: the last section must stand there whole.",
    "repeated_refinements": "Before you answer, go through what is asked of the file point by point, and mend what is missing.",
    "budget_hit": "Be brief: repeat nothing of the material, and write no more than the file needs.",
}
CONSTRAINT = "Writes about the given targets alone, and leaves to other roles what is theirs."


@dataclass(frozen=True)
class Owned:
    """The workflow that is to be changed. `target`: the folder a person owns; where it is not there yet, the package's
    folder is to be copied to it."""

    loaded: Loaded
    target: Path
    note: str | None = None

    @property
    def source(self) -> Path:
        return self.loaded.path.parent

    @property
    def copied(self) -> bool:
        """Whether the package's workflow is to be copied first."""
        return self.source != self.target

    @property
    def file(self) -> Path:
        return self.target / (WORKFLOW_FILE if self.copied else self.loaded.path.name)

    def text(self) -> str:
        return _read(self.loaded.path)


def owned_workflow(root: Root, folder: Path, name: str) -> Owned:
    """The workflow that a folder was made from: its file, else the one of that name, else the copy in the folder.

    Raises:
        UsageError, ConfigErrors: It has gone, or has mistakes.
    """
    note, generated = None, read_generated(folder)
    given = generated.source if generated else None
    try:
        loaded = load_workflow(
            find_workflow(given if given and Path(given).exists() else name, root.path).path, root.path
        )
    except UsageError:
        loaded = load_workflow(folder / WORKFLOW_FILE, root.path)
        note = f"the file {folder.name}/{WORKFLOW_FILE} itself is to be changed: the one it was made from is not there"
    path = loaded.path.resolve()
    target = root.path / WORKFLOWS / loaded.workflow.name if path.is_relative_to(PACKAGED) else loaded.path.parent
    return Owned(loaded, target, note)


def propose(report: Report, owned: Owned, root: Root) -> list[Proposal]:
    """All proposals about a run, each with its diff against the files as they are now."""
    making = _Making(report, owned, root)
    found = [one for one in making.all() if one is not None]
    return sorted(found, key=lambda one: one.id)


def edited(text: str, edits: Iterable[dict[str, Any]]) -> str:
    """A file's text with edits made.

    Raises:
        CannotEdit: One of them cannot be made.
    """
    for edit in edits:
        match edit["op"]:
            case "set":
                text = set_value(text, edit["keys"], edit["value"])
            case "append":
                text = append_item(text, edit["keys"], edit["value"])
            case "rule":
                text = with_rule(text, str(edit["text"]))
            case other:
                raise CannotEdit(f"no change {str(other)[:40]!r} is known", hint="make the proposals anew")
    return text


def with_rule(text: str, rule: str) -> str:
    """A template with one more rule in its section of what was learned, which is made where it is missing."""
    newline = "\r\n" if "\r\n" in text else "\n"
    line = f"- {_quoted(rule)}"
    lines = text.splitlines(keepends=True)
    at = next((n for n, one in enumerate(lines) if one.strip() == LEARNED), None)
    if at is None:
        head = text if not text or text.endswith("\n") else text + newline
        return f"{head}{newline}{LEARNED}{newline}{newline}{line}{newline}"
    behind = at + 1
    for n in range(at + 1, len(lines)):
        if lines[n].startswith("#"):
            break
        if lines[n].startswith("- "):
            behind = n + 1
    if lines[behind - 1] and not lines[behind - 1].endswith("\n"):
        lines[behind - 1] += newline
    return "".join([*lines[:behind], line + newline, *lines[behind:]])


def _quoted(rule: str) -> str:
    return f"{{% raw %}}{rule}{{% endraw %}}" if any(mark in rule for mark in ("{{", "{%", "{#")) else rule


class _Making:
    def __init__(self, report: Report, owned: Owned, root: Root) -> None:
        self.report, self.owned, self.root = report, owned, root
        self.roles = sorted({agent.role for agent in report.agents} & set(owned.loaded.roles))

    def all(self) -> Iterator[Proposal | None]:
        for role in self.roles:
            yield self._template(role)
            yield self._role(role)
            yield from self._budget(role)
        for iteration in self.owned.loaded.workflow.iterations:
            yield self._rounds(iteration.name)
            for role in {agent.role for agent in iteration.agents}:
                agents = [one for one in self.report.agents if one.iteration == iteration.name and one.role == role]
                if agents:
                    yield self._balance(iteration.name, agents)
                    yield self._output_tokens(iteration.name, agents)

    def _template(self, role: str) -> Proposal | None:
        """A rule for each pattern that the template does not state yet."""
        current = self.owned.loaded.templates[role]
        text = read_template(current)
        rules = {rule: pattern for pattern in self.report.patterns if pattern.role == role and (rule := _rule(pattern))}
        new = {rule: pattern for rule, pattern in rules.items() if _quoted(rule) not in text}
        if not new:
            return None
        own = not current.resolve().is_relative_to(PACKAGED)
        inside = own and current.is_relative_to(self.owned.source)
        relative = current.relative_to(self.owned.source) if inside else Path("templates") / f"{role}.md.j2"
        why = "; ".join(
            f"{pattern.kind.replace('_', ' ')}{f' ({pattern.rule})' if pattern.rule else ''} {pattern.times} times, "
            f"in {_places(pattern)}"
            for pattern in new.values()
        )
        edits = [{"op": "rule", "text": rule} for rule in new]
        target = self.owned.target / relative
        return self._made(
            f"template-{role}", "template", role, f"tell {role} what went wrong twice", why, target, current, edits
        )

    def _role(self, role: str) -> Proposal | None:
        """One more constraint at the first drift; the second one is the template's."""
        drifted = [issue for agent in self._of(role) for issue in agent.issues if issue.kind == "scope_drift"]
        patterns = {pattern.kind for pattern in self.report.patterns if pattern.role == role}
        held = self.owned.loaded.roles[role].constraints
        if not drifted or "scope_drift" in patterns or CONSTRAINT in held:
            return None
        written = self.owned.loaded.file.agent_roles.get(role)
        keys = ["agent_roles", role, "constraints"]
        edit: dict[str, Any] = {"op": "append", "keys": keys, "value": CONSTRAINT}
        if written is None or not written.constraints:
            edit = {"op": "set", "keys": keys, "value": [*held, CONSTRAINT]}
        why = f"{drifted[0].step}: {drifted[0].evidence}"
        return self._of_file(f"role-{role}", "role", role, f"keep {role} to its targets", why, [edit])

    def _budget(self, role: str) -> Iterator[Proposal | None]:
        """More tokens where the estimate was too low; more agents where one had too much by the estimate already."""
        spec = self.owned.loaded.roles[role]
        hit = [agent for agent in self._of(role) if any(issue.kind == "budget_hit" for issue in agent.issues)]
        if not hit:
            return
        worst = max(hit, key=lambda agent: max(agent.tokens, agent.estimated_tokens) / agent.token_budget)
        evidence = next(issue.evidence for issue in worst.issues if issue.kind == "budget_hit")
        if worst.estimated_tokens / worst.token_budget > MEDIUM and worst.deliverables > 1:
            agents = [agent for agent in self._of(role) if agent.iteration == worst.iteration]
            share = spec.complexity_threshold * len(agents) / (len(agents) + 1)
            threshold = math.floor(share * 100) / 100
            title = f"give {role} {len(agents) + 1} agents instead of {len(agents)}"
            why = (
                f"{worst.step}: {evidence}; it was to take {worst.estimated_tokens:,} of {worst.token_budget:,} tokens"
            )
            edit = {"op": "set", "keys": ["agent_roles", role, "complexity_threshold"], "value": threshold}
            if 0 < threshold < spec.complexity_threshold:
                yield self._of_file(f"allocation-{role}", "allocation", role, title, why, [edit])
            return
        needed = max(worst.tokens, worst.estimated_tokens, worst.token_budget) * 1.5
        budget = math.ceil(needed / 1000) * 1000
        if budget > spec.token_budget:
            edit = {"op": "set", "keys": ["agent_roles", role, "token_budget"], "value": budget}
            title = f"raise the token budget of {role} from {spec.token_budget:,} to {budget:,}"
            yield self._of_file(f"budget-{role}", "budget", role, title, f"{worst.step}: {evidence}", [edit])

    def _rounds(self, name: str) -> Proposal | None:
        iterations = self.owned.loaded.workflow.iterations
        index = next(n for n, one in enumerate(iterations) if one.name == name)
        found = next((one for one in self.report.iterations if one.name == name), None)
        if found is None or found.met is not False or found.laps < found.rounds or iterations[index].rounds >= 10:
            return None
        laps = found.met_by_lap
        grows = len(laps) >= 2 and all(one < two for one, two in pairwise(laps))
        if not grows or iterations[index].rounds > found.rounds:
            return None
        value = iterations[index].rounds + 1
        edit = {"op": "set", "keys": ["workflow", "iterations", index, "rounds"], "value": value}
        why = f"criteria met by lap: {', '.join(map(str, laps))} of {found.criteria}; every lap came closer"
        return self._of_file(f"rounds-{name}", "rounds", None, f"give {name} {value} laps", why, [edit])

    def _balance(self, name: str, agents: Sequence[AgentReport]) -> Proposal | None:
        keys = self._keys_of(name, agents[0].role)
        if keys is None or len(agents) < 2:
            return None
        spec = self.owned.loaded.workflow.iterations[int(keys[2])].agents[int(keys[4])]
        most = max(agents, key=lambda agent: agent.estimated_tokens)
        least = min(agents, key=lambda agent: agent.estimated_tokens)
        if spec.allocation == "balanced" or most.estimated_tokens < 2 * max(1, least.estimated_tokens):
            return None
        why = (
            f"{most.step} had {most.estimated_tokens:,} tokens, {least.step} {least.estimated_tokens:,} "
            f"(allocation: {spec.allocation})"
        )
        edit = {"op": "set", "keys": [*keys, "allocation"], "value": "balanced"}
        title = f"share the work of {agents[0].role} in {name} evenly"
        return self._of_file(f"allocation-{name}-{agents[0].role}", "allocation", agents[0].role, title, why, [edit])

    def _output_tokens(self, name: str, agents: Sequence[AgentReport]) -> Proposal | None:
        keys = self._keys_of(name, agents[0].role)
        known = [agent for agent in agents if agent.output_tokens]
        if keys is None or sum(agent.completed for agent in known) < 2:
            return None
        expected = self.owned.loaded.workflow.iterations[int(keys[2])].agents[int(keys[4])].output_tokens
        mean = sum(agent.output_tokens or 0 for agent in known) / len(known)
        if mean < 1.5 * expected:
            return None
        value = math.ceil(mean * 1.1 / 50) * 50
        edit = {"op": "set", "keys": [*keys, "output_tokens"], "value": value}
        why = f"its answers have {mean:,.0f} tokens on the average; {expected:,} were expected"
        title = f"expect {value:,} tokens of an answer of {agents[0].role} in {name}"
        return self._of_file(f"output-{name}-{agents[0].role}", "output_tokens", agents[0].role, title, why, [edit])

    def _of(self, role: str) -> list[AgentReport]:
        return [agent for agent in self.report.agents if agent.role == role]

    def _keys_of(self, name: str, role: str) -> Keys | None:
        """Where the agents of a role stand in the file; None where they stand twice in one iteration."""
        for i, iteration in enumerate(self.owned.loaded.workflow.iterations):
            places = [a for a, agent in enumerate(iteration.agents) if agent.role == role]
            if iteration.name == name and len(places) == 1:
                return ["workflow", "iterations", i, "agents", places[0]]
        return None

    def _of_file(
        self, name: str, kind: Any, role: str | None, title: str, why: str, edits: list[dict[str, Any]]
    ) -> Proposal | None:
        return self._made(name, kind, role, title, why, self.owned.file, self.owned.loaded.path, edits)

    def _made(
        self, name: str, kind: Any, role: str | None, title: str, why: str, target: Path, source: Path, edits: list[Any]
    ) -> Proposal:
        before = _read(source)
        by_hand = None
        try:
            after = edited(before, edits)
        except CannotEdit as error:
            after, by_hand = before, f"{error.message}; wanted: {edits}"
        shown = _shown(target, self.root.path)
        diff = difflib.unified_diff(
            before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{shown}", f"b/{shown}"
        )
        return Proposal(
            id=name,
            kind=kind,
            role=role,
            title=title,
            why=why,
            file=str(target),
            base_sha256=sha256_of(target),
            edits=[] if by_hand else edits,
            diff="".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in diff),
            by_hand=by_hand,
        )


def _rule(pattern: Pattern) -> str | None:
    """The rule that a pattern states to the agent."""
    if pattern.kind == "unmet_criterion" and pattern.rule:
        return f"Your file must meet this, which was missed before: {' '.join(pattern.rule.split())}."
    return RULES.get(pattern.kind)


def _places(pattern: Pattern) -> str:
    runs = {one.run_id for one in pattern.seen}
    places = [f"{one.iteration}, lap {one.lap}" for one in pattern.seen]
    if len(runs) == 1:
        return "; ".join(places[:4])
    return f"{len(runs)} runs"


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path).lstrip("/")


def _read(path: Path) -> str:
    """A file's text, line ends as they are.

    Raises:
        ConfigError: It is not UTF-8.
    """
    try:
        return read_regular(path.resolve(), max_bytes=MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}", where=path) from None


def sha256_of(path: Path) -> str | None:
    """What a file holds; None where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def apply(proposals: Sequence[Proposal], owned: Owned) -> list[Path]:
    """Make the changes, all or none, and return the files that were written.

    Raises:
        UsageError: A file is not what it was when the proposals were made.
        CannotEdit, ConfigErrors: What would come out is no workflow.
    """
    chosen = [one for one in proposals if one.edits]
    for one in chosen:
        if sha256_of(Path(one.file)) != one.base_sha256:
            message = f"{Path(one.file).name} has changed since the proposal {one.id} was made"
            hint = "look at the proposals as they are now: pop iterate feedback DIR"
            raise UsageError(message, where=one.file, hint=hint, code="changed-since")
    with tempfile.TemporaryDirectory(prefix="pop-feedback-") as scratch:
        draft = Path(scratch) / "workflow"
        shutil.copytree(owned.source, draft, ignore=shutil.ignore_patterns(SAMPLE, ".*", "*.before-*"))
        written = _draft(chosen, owned, draft)
        load_workflow(draft / owned.loaded.path.name)  # what comes out must pass every check
        return _placed(written, owned)


def _draft(chosen: Sequence[Proposal], owned: Owned, draft: Path) -> dict[Path, bytes]:
    """What the files are to hold, written into a copy of the workflow too."""
    texts: dict[Path, str] = {}
    for one in chosen:
        path = Path(one.file)
        if path not in texts:
            texts[path] = _read(owned.loaded.path if path == owned.file else _template_source(path, one, owned))
        texts[path] = edited(texts[path], one.edits)
    for path, text in texts.items():
        inside = draft / (owned.loaded.path.name if path == owned.file else path.relative_to(owned.target))
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_bytes(text.encode())
    return {path: text.encode() for path, text in texts.items()}


def _template_source(path: Path, proposal: Proposal, owned: Owned) -> Path:
    """The template that stands there; where there is none, the one that makes the role's prompt now."""
    assert proposal.role is not None
    return path if path.exists() else owned.loaded.templates[proposal.role]


def _placed(written: dict[Path, bytes], owned: Owned) -> list[Path]:
    if owned.copied:
        if owned.target.exists():
            hint = f"it may hold these changes already: pop iterate generate {owned.target.name} --output DIR uses it"
            raise UsageError(f"the folder {owned.target} is there already", hint=hint)
        draft = owned.target.with_name(f".{owned.target.name}.{os.getpid()}.tmp")
        draft.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(owned.source, draft, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for path in (draft, *draft.rglob("*")):  # an installed package may be read-only
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.rename(draft, owned.target)
    disk = Disk()
    for path, data in written.items():
        real = path.resolve()
        real.parent.mkdir(parents=True, exist_ok=True)
        mode = real.stat().st_mode if real.exists() else None
        disk.put(real, data)
        os.chmod(real, mode & 0o7777 if mode else 0o644)
    return list(written)
