"""What a run left behind that tells how its agents did: failed attempts, answers, files, checks of each lap, alerts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from pop.errors import safe
from pop.events import BUDGET_WARNING, STEP_ATTEMPT_FAILED
from pop.recipes.iterate.alerts import told
from pop.recipes.iterate.criteria import Criterion
from pop.recipes.iterate.manifest import Manifest, check_step
from pop.recipes.iterate.sights import calls_in, criteria_of, failed_loops, output_of
from pop.recipes.iterate.snapshots import Work, works_of
from pop.runs import Run
from pop.store import NotAFile, contained, read_regular

MAX_TEXT_BYTES = 4 * 2**20
MOST_FILES = 1_000


@dataclass(frozen=True)
class Failure:
    """An attempt that failed."""

    instance: str
    attempt: int
    error_class: str
    message: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one deliverable came to in one lap. `given`: the texts it was made from; `extra`: further files it wrote;
    `output_tokens` of its longest answer, None where no model was asked."""

    work: Work
    text: str | None = None
    given: str = ""
    extra: tuple[str, ...] = ()
    output_tokens: int | None = None
    broken_off: bool = False


@dataclass(frozen=True)
class Evidence:
    """All that was read of one run. `pieces` by agent's step; `checks` by iteration and lap; `failures` by instance;
    `alerts`: lines of DIR/alerts.jsonl."""

    run_id: str
    status: Mapping[str, Any]
    pieces: Mapping[str, Sequence[Piece]] = field(default_factory=dict)
    failures: Mapping[str, Sequence[Failure]] = field(default_factory=dict)
    checks: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)
    criteria: Mapping[str, Sequence[Criterion]] = field(default_factory=dict)
    alerts: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()
    failed_loops: Sequence[str] = ()

    @property
    def state(self) -> str:
        return str(self.status.get("state"))


def read_evidence(run: Run, folder: Path, manifests: Sequence[Manifest]) -> Evidence:
    """Read a run that is there; what cannot be read is left out."""
    status = run.status()
    works = works_of(status)
    failures, warnings = _journal(run)
    return Evidence(
        run_id=run.run_id,
        status=status,
        pieces={
            agent.step: [
                _piece(run, manifest, agent.step, work, works)
                for those in works.get(agent.step, {}).values()
                for work in those.values()
                if work.index < len(agent.deliverables)
            ]
            for manifest in manifests
            for agent in manifest.agents
        },
        failures=failures,
        checks={
            manifest.iteration: {
                lap: output_of(run.step_dir(those[0].instance))
                for lap, those in sorted(works.get(check_step(manifest.iteration), {}).items())
                if 0 in those and those[0].state == "done"
            }
            for manifest in manifests
        },
        criteria={manifest.iteration: criteria_of(folder / manifest.iteration) for manifest in manifests},
        alerts=told(folder, run.run_id),
        warnings=warnings,
        failed_loops=failed_loops(run) if status.get("state") == "failed" else (),
    )


def _journal(run: Run) -> tuple[dict[str, list[Failure]], list[str]]:
    """Attempts that failed, by instance, and what soft budgets warned of."""
    failures: dict[str, list[Failure]] = {}
    warnings: list[str] = []
    try:
        lines = (run.path / "events.jsonl").read_bytes().splitlines()
    except OSError:
        return failures, warnings
    for line in lines:
        if STEP_ATTEMPT_FAILED.encode() not in line and BUDGET_WARNING.encode() not in line:
            continue
        try:
            event = orjson.loads(line)
            if event["event"] == BUDGET_WARNING:
                warnings.append(str(event["text"]))
            elif event["event"] == STEP_ATTEMPT_FAILED:
                failure = _failure(event)
                failures.setdefault(failure.instance, []).append(failure)
        except (ValueError, LookupError, TypeError, AttributeError):
            continue
    return failures, warnings


def _failure(event: Mapping[str, Any]) -> Failure:
    error = event["error"]
    return Failure(
        str(event["instance"]),
        int(event["attempt"]),
        str(error["error_class"]),
        safe(error.get("message", ""), 500),
        tuple(safe(problem, 300) for problem in (error.get("problems") or [])[:5]),
    )


def _piece(run: Run, manifest: Manifest, step: str, work: Work, works: Mapping[str, Any]) -> Piece:
    agent = next(one for one in manifest.agents if one.step == step)
    deliverable = agent.deliverables[work.index]
    step_dir = run.step_dir(work.instance)
    calls = calls_in(step_dir / "attempts" / str(work.task.get("attempt")) / "calls.jsonl")
    answered = [int(call.get("output_tokens") or 0) for call in calls if not call.get("error_class")]
    output = output_of(step_dir) if work.state == "done" else {}
    text = output.get("text")
    readings = [
        output_of(run.step_dir(found.instance)).get("text")
        for reading in deliverable.reads
        if (found := _newest(works.get(reading.step, {}), reading.index))
    ]
    targets = [_text(run.path / "files" / "targets", target) for target in deliverable.targets]
    return Piece(
        work,
        text if isinstance(text, str) else None,
        "\n".join(str(one) for one in [*targets, *readings] if one),
        tuple(name for name in _artifacts(step_dir) if name != deliverable.path),
        max(answered, default=None),
        bool(calls) and calls[-1].get("finish_reason") == "length",
    )


def _newest(laps: Mapping[int, Mapping[int, Work]], index: int) -> Work | None:
    found = [those[index] for _, those in sorted(laps.items()) if index in those and those[index].state == "done"]
    return found[-1] if found else None


def _text(base: Path, relative: str) -> str:
    try:
        return read_regular(contained(base, relative), max_bytes=MAX_TEXT_BYTES).decode("utf-8", "replace")
    except (OSError, NotAFile):
        return ""


def _artifacts(step_dir: Path) -> list[str]:
    base, found = step_dir / "artifacts", list[str]()
    for folder, _, names in os.walk(base):
        found += [os.path.relpath(os.path.join(folder, name), base) for name in names]
        if len(found) > MOST_FILES:
            break
    return sorted(found)
