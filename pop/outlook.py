"""What would be reused, run or blocked if a run were taken up again, or a seed dropped; and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pop import events
from pop.control import block_of
from pop.errors import ConfigError, PopError, did_you_mean
from pop.estimates import NOTHING, Estimate, Past, finished_runs, past_of, usage_by_step
from pop.forks import find_parent
from pop.history import RunHistory, read_history
from pop.pipeline import load_pipeline
from pop.records import Seed
from pop.rerun import (
    MAX_DOCUMENT,
    changes_since,
    documents_of,
    journaled,
    origin_of,
    pipeline_name,
    pipeline_of,
    provenance_of,
    provenances,
)
from pop.runs import Run
from pop.seeds import parse_seed
from pop.settings import Root
from pop.stale import Stale, place_of, stale_of
from pop.steps import Gate, Pipeline, Task
from pop.store import read_file, read_regular
from pop.tasks import list_tasks

What = Literal["reuse", "run", "blocked", "done"]


@dataclass(frozen=True)
class Row:
    """One step: `instances` of it are concerned, as far as they are known."""

    step: str
    what: What
    why: str
    instances: int = 0
    estimate: Estimate = NOTHING

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step, "what": self.what, "why": self.why, "instances": self.instances,
            "estimate": self.estimate.to_json(),
        }  # fmt: skip


@dataclass(frozen=True)
class Outlook:
    """The rows in the order of the pipeline, and from which steps the run would be taken up."""

    rows: list[Row]
    from_: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> Estimate:
        """Of all that would run."""
        total = NOTHING
        for row in self.rows:
            total = total.plus(row.estimate)
        return total


def of_seed(root: Root, seed: Seed) -> Outlook:
    """What a seed would do.

    Raises:
        PopError: Its pipeline is not there, or has mistakes; or it is a fork of a run that is not there.
    """
    if seed.fork:
        parent = find_parent(root, seed.fork.run)
        outlook = of_run(
            root, Run(parent, "complete" if parent.parent == root.complete else "current"), seed.fork.from_
        )
        return Outlook(outlook.rows, notes=[f"it is a fork of {parent.name}", *outlook.notes])
    name = seed.pipeline or "default"
    path = root.pipeline_path(name)
    try:
        document = read_file(path, links=True)
    except OSError:
        hint = did_you_mean(name, root.pipeline_names())
        raise ConfigError(f"no pipeline {name!r}", hint=hint, code="unknown-pipeline") from None
    pipeline = load_pipeline(document, where=path.name, name=name, known_tasks=list_tasks(root.tasks))
    past = past_of(root, name)
    before = _asked_before(root, seed, name, document) if seed.reuse else None
    rows = []
    for step in pipeline.steps.values():
        if before and isinstance(step, Task):
            rows.append(Row(step.name, "reuse", f"asked before: {before} asked the same", 0, NOTHING))
        else:
            rows.append(_to_run(pipeline, step, "it is new", past.of_step(step.name), 0, _gates(pipeline, ())))
    return Outlook(rows)


def _asked_before(root: Root, seed: Seed, pipeline: str, document: bytes) -> str | None:
    """A finished run with the same data, pipeline and tasks: under reuse its answers count."""
    sha256 = hashlib.sha256(document).hexdigest()
    for run in finished_runs(root, pipeline):
        try:
            created = next(journaled(run.path, events.RUN_CREATED), {})
            if created.get("pipeline_sha256") != sha256 or documents_of(run.path).reruns:
                continue
            other = parse_seed(read_regular(run.path / "seed.json", max_bytes=MAX_DOCUMENT))
        except (OSError, PopError):
            continue
        same = other.data == seed.data and (other.models or {}) == (seed.models or {})
        if same and not changes_since(root, provenance_of(run.path, "provenance.json")):
            return run.run_id
    return None


def of_run(root: Root, run: Run, from_: Iterable[str]) -> Outlook:
    """What taking up a run would do; from what has changed or failed, when no step is named.

    Raises:
        PopError: A step is unknown or never ran, or the run's own files are broken.
    """
    history = read_history(run.path)
    pipeline = pipeline_of(run.path, history)
    changed = _changed(root, run, pipeline, history)
    named = list(from_)
    chosen = named or _first(pipeline, history, changed)
    stale = stale_of(pipeline, history, chosen) if chosen else Stale()
    begins = {place_of(text.partition(":")[0])[0] for text in chosen}
    past = past_of(root, pipeline_name(history))
    used = usage_by_step(run.status())
    by_step: dict[str, list[str]] = {}
    for name in history.instances:
        by_step.setdefault(place_of(name)[0], []).append(name)
    to_run = frozenset(stale.instances)  # of many thousands
    gates = _gates(pipeline, [n for n, one in history.instances.items() if one.state == "done" and n not in to_run])
    rows = []
    for step in pipeline.steps.values():
        known = by_step.get(step.name, [])
        again = [name for name in known if name in to_run]
        open_ = [name for name in known if history.instances[name].state not in ("done", "skipped")]
        if not again and not open_ and (known or history.state == "complete"):
            rows.append(
                Row(step.name, "reuse" if chosen else "done", _kept(history, known, changed.get(step.name)), len(known))
            )
            continue
        replayed = bool(again) and set(again) <= set(stale.replay)
        estimate = NOTHING if replayed else _estimate(step.name, again, used, past)
        added_by = _added_by(pipeline, history, step.name) if set(again) & set(stale.gone) else None
        why = _why(
            step.name, begins, bool(named), replayed, changed.get(step.name), bool(again), history, open_, added_by
        )
        rows.append(_to_run(pipeline, step, why, estimate, len(again) or len(open_), gates))
    notes = _notes(root, run, pipeline_name(history))
    return Outlook(rows, chosen, notes)


def _kept(history: RunHistory, known: list[str], changed: list[str] | None) -> str:
    if known and all(history.instances[name].state == "skipped" for name in known):
        return "it was skipped"
    return f"changed, but it is not to run again: {', '.join(changed)}" if changed else "nothing changed"


def _added_by(pipeline: Pipeline, history: RunHistory, step: str) -> str | None:
    """The instance whose order added a step."""
    added = ((order.instance, pipeline.leaves[block_of(order.number)]) for order in history.orders if order.add)
    return next((instance for instance, leaves in added if step in {leaf.name for leaf in leaves}), None)


def _why(
    step: str,
    begins: set[str],
    named: bool,
    replayed: bool,
    changed: list[str] | None,
    again: bool,
    history: RunHistory,
    open_: list[str],
    added_by: str | None,
) -> str:
    if added_by:
        return f"{added_by} added it, and runs again: it may add it anew, or not"
    if replayed:
        return "its recorded answers are parsed again"
    if changed and (step in begins or not named):
        return f"changed: {', '.join(changed)}"
    if step in begins and named:
        return "you said so"
    if any(history.instances[name].state == "failed" for name in open_):
        return "it failed"
    return "what it depends on runs again" if again else "it has not run"


def _to_run(
    pipeline: Pipeline, step: Task | Gate, why: str, estimate: Estimate, instances: int, gates: frozenset[str]
) -> Row:
    if isinstance(step, Gate):
        if step.name in gates:
            return Row(step.name, "blocked", "a person decides", instances)
        return Row(step.name, "reuse", "it was answered", instances)
    waits = [name for name in pipeline.steps if name in gates and name in pipeline.ancestors(step.name)]
    if waits:
        return Row(step.name, "blocked", f"waits for a person at {waits[-1]!r}; {why}", instances, estimate)
    return Row(step.name, "run", why, instances, estimate)


def _gates(pipeline: Pipeline, answered: Iterable[str]) -> frozenset[str]:
    """The gates at which a person would be asked."""
    done = {place_of(name)[0] for name in answered}
    return frozenset(name for name, step in pipeline.steps.items() if isinstance(step, Gate) and name not in done)


def _estimate(step: str, again: list[str], used: Mapping[str, Mapping[str, Any]], past: Past) -> Estimate:
    used_of = used.get(step, {})
    mine = [used_of[name] for name in again if name in used_of]
    if mine:
        return Estimate.of(mine, 1, "this run")
    return past.of_step(step)


def _first(pipeline: Pipeline, history: RunHistory, changed: Mapping[str, list[str]]) -> list[str]:
    """The steps that changed or failed, and have run."""
    found: dict[str, None] = {}
    for name, instance in history.instances.items():
        step, _ = place_of(name)
        if step in changed and instance.state != "skipped" and isinstance(pipeline.blocks.get(step), Task):
            found[step] = None
        elif instance.state == "failed" and step in pipeline.steps:
            found[name] = None
    return [name for name in found if place_of(name)[0] == name or place_of(name)[0] not in found]


def _changed(root: Root, run: Run, pipeline: Pipeline, history: RunHistory) -> dict[str, list[str]]:
    """By step, what of its task is not as it was when its instances ran last."""
    stands = {run.path: provenances(run.path)}
    known: dict[tuple[str, str], dict[str, list[str]]] = {}
    found: dict[str, list[str]] = {}
    for name in history.instances:
        step = pipeline.blocks.get(place_of(name)[0])
        if not isinstance(step, Task):
            continue
        ran_here = name in stands[run.path] or "forked_from" not in history.created
        origin = (None if ran_here else origin_of(run.path, name)) or run.path
        if origin not in stands:
            stands[origin] = provenances(origin)
        place = (origin, stands[origin].get(name, "provenance.json"))
        key = (str(place[0]), place[1])
        if key not in known:
            known[key] = changes_since(root, provenance_of(*place) or provenance_of(place[0], "provenance.json"))
        what = [_kind(file) for file in known[key].get(step.task, ())]
        what += [f"module {file}" for file in known[key].get("", ())] if _has_code(root, step.task) else []
        if what:
            found.setdefault(step.name, what)
    return found


def _kind(file: str) -> str:
    name = file.split()[0]
    kind = "code" if name.endswith(".py") else "schema" if name.endswith(".schema.json") else "prompt"
    return f"{kind} {file}"


def _has_code(root: Root, task: str) -> bool:
    return (root.tasks / f"{task}.py").exists()


def _notes(root: Root, run: Run, pipeline: str) -> list[str]:
    notes = []
    try:
        if read_file(root.pipeline_path(pipeline), links=True) != read_file(run.path / "pipeline.json"):
            notes.append("the pipeline changed since; the run keeps its own (drop the seed again to use the new one)")
    except OSError:
        notes.append(f"the pipeline {pipeline!r} is not here any more; the run keeps its own")
    return notes
