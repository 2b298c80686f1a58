"""A fork: a new run that takes over what another one has finished, and goes on from a step.

The seed says ``"fork": {"run": ID, "from": ["STEP[:STAGE]"], "set": {...}, "models": {...}}``. What is kept is copied, and
with it the lines of the journal that tell of it; so the new run stands on its own, whatever becomes of the other.

| of the other run                                   | in the new one                                        |
|----------------------------------------------------|-------------------------------------------------------|
| files/, unless the seed brings files of its own    | files/                                                |
| its newest pipeline, with what is set              | pipeline.json                                         |
| outputs and artifacts of what is not stale, and    | the same; ``step.reused`` with their hash             |
|   what they were before a person edited them       |                                                       |
| gates that were answered, with all their files     | the same; ``gate.opened`` and ``gate.decided``        |
| skips, decisions, counts, laps that still hold     | their lines                                           |
| attempts, usage, errors                            | nothing: they are the other run's                     |
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop import events
from pop.admission import CLAIM, claim_path
from pop.errors import PopError, SeedRejected
from pop.history import RunHistory, read_history
from pop.records import Fork, Seed, objects_in
from pop.rerun import asked_of, changed_documents, documents_of, pipeline_of
from pop.settings import Root
from pop.stale import CONTROL, Stale, place_of, stale_of
from pop.steps import At, Gate, Pipeline, Repeat, instance_name
from pop.store import Disk, NotAFile, lines_of, open_file, open_regular, read_file, remove_tree

_OF_A_STEP = re.compile(r"output(\.before-[^/]*)?\.json|artifacts(\.before-[^/]*)?")
_OF_A_GATE = re.compile(
    r"output\.json|request\.md|gate\.json|show|answers|edits\.(json|diff)|decision(\.[^/]*)?\.json"
    r"|(APPROVE|REJECT|CHANGES\.md)(\.invalid-\d+)?"
)


@dataclass(frozen=True)
class TakenOver:
    """What a fork takes from another run: `lines` of its journal, the instances in `kept` with the hash of their output."""

    parent: Path
    pipeline_name: str
    pipeline: Pipeline
    data: bytes
    kept: dict[str, str | None]
    lines: list[dict[str, Any]]
    about: dict[str, Any]


def take_over(root: Root, seed: Seed) -> TakenOver:
    """Look at the other run as it is now.

    Raises:
        SeedRejected: It is gone, cannot be read, or cannot be taken up from there.
    """
    assert seed.fork is not None
    parent = find_parent(root, seed.fork.run)
    try:
        return _take_over(parent, seed, seed.fork)
    except SeedRejected:
        raise
    except PopError as error:
        hint = error.hint or f"look at it: pop show {seed.fork.run}"
        raise SeedRejected(f"fork: {error.message}", where=error.where, hint=hint, code=error.code) from None
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        message = f"fork: the run {seed.fork.run} cannot be read: {error}"
        raise SeedRejected(message, hint=f"look at it: pop show {seed.fork.run}") from None


def find_parent(root: Root, run_id: str) -> Path:
    """The folder of a run by its whole id.

    Raises:
        SeedRejected: There is none.
    """
    for folder in (root.complete, root.current, root.complete):  # it may move from one to the other
        if (folder / run_id / "events.jsonl").is_file():
            return folder / run_id
    hint = "pop ls shows the runs; a fork names one by its whole id"
    raise SeedRejected(f"fork: no run {run_id[:80]!r}", hint=hint, code="unknown-run")


def _take_over(parent: Path, seed: Seed, fork: Fork) -> TakenOver:
    history = read_history(parent)
    name = str(history.created["pipeline"])
    if seed.pipeline not in (None, name):
        raise SeedRejected(f"fork: the run {parent.name} is of the pipeline {name!r}, not of {seed.pipeline!r}")
    if wrong := [path for path in fork.set if path.partition(".")[0] == "seed"]:
        raise SeedRejected(f"fork: {wrong[0]!r} is the seed's own", hint="write it into `data`")
    documents = documents_of(parent)
    data = changed_documents(parent, documents, fork.set, name).get("pipeline")
    data = data if data is not None else read_file(parent / documents.pipeline)
    pipeline = pipeline_of(parent, history)
    stale = stale_of(pipeline, history, fork.from_)
    lines = list(_kept_lines(parent, pipeline, history, stale))
    kept = {line["instance"]: line.get("sha256") for line in lines if line["event"] == events.STEP_REUSED}
    gates = {line["instance"]: line.get("sha256") for line in lines if line["event"] == events.GATE_DECIDED}
    return TakenOver(
        parent,
        name,
        pipeline,
        data,
        {**kept, **gates},
        [*lines, _rerun_line(parent, fork, stale)],
        {"run": parent.name, "from": fork.from_, "set": fork.set},
    )


def _rerun_line(parent: Path, fork: Fork, stale: Stale) -> dict[str, Any]:
    """What the new run goes on with: whose recorded answers count, and the words of persons that hold on."""
    changes: dict[str, Any] = {}
    for event in _journal(parent):
        if event.get("event") == events.RUN_RERUN:
            changes |= event.get("changes") or {}
    return {
        "event": events.RUN_RERUN,
        "by": f"a fork of {parent.name}",
        "reason": None,
        "from": fork.from_,
        "instances": list(stale.replay),
        "again": [],
        "replay": list(stale.replay),
        "asked": {name: asked_of(parent, name, run=parent.name) for name in stale.replay},
        "keys": [],
        "loops": {},
        "reset": [],
        "set": fork.set,
        "seed": None,
        "pipeline": None,
        "models": fork.models,
        "changes": changes,
    }


def _journal(run_dir: Path) -> Iterator[dict[str, Any]]:
    return (event for event in objects_in(lines_of(run_dir / "events.jsonl")) if "event" in event)


def _kept_lines(parent: Path, pipeline: Pipeline, history: RunHistory, stale: Stale) -> Iterator[dict[str, Any]]:
    """The newest line about each thing that is kept, in their order."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    laps: dict[str, int] = {}
    for event in _journal(parent):
        if event["event"] == events.LAP_ENDED:
            laps[event["key"]] = event["lap"]
        about = _kept_as(event, pipeline, history, stale, laps)
        if about:
            newest.pop(about, None)
            newest[about] = _reused(parent, event, history) if about[0] == "done" else event
    yield from newest.values()


def _kept_as(
    event: dict[str, Any], pipeline: Pipeline, history: RunHistory, stale: Stale, laps: dict[str, int]
) -> tuple[Any, ...] | None:
    """What a line tells of that is kept; None when it tells of nothing that is."""
    what, key = event["event"], event.get("key")
    name = event.get("instance") or ""
    if what in (events.WHEN_DECIDED, events.EACH_EXPANDED):
        known = history.decisions if what == events.WHEN_DECIDED else history.counts
        return (what, key) if key in known and key not in stale.keys else None
    if what == events.LAP_ENDED:
        return (what, key, event["lap"]) if event["lap"] <= _laps_kept(str(key), history, stale) else None
    if what == events.STEP_RESET and name in history.loops:
        return (what, name, laps.get(name)) if laps.get(name, 0) <= _laps_kept(name, history, stale) else None
    if what in (events.STEP_DONE, events.STEP_REUSED):
        return ("done", name) if _is_kept(name, "done", history, stale) else None
    if what == events.STEP_SKIPPED:
        return ("skipped", name) if _is_kept(name, "skipped", history, stale) else None
    if what in (events.GATE_OPENED, events.GATE_DECIDED):
        return (what, name) if _gate_is_kept(name, pipeline, history, stale) else None
    return None


def _is_kept(name: str, state: str, history: RunHistory, stale: Stale) -> bool:
    instance = history.instances.get(name)
    return instance is not None and instance.state == state and name not in set(stale.instances)


def _gate_is_kept(name: str, pipeline: Pipeline, history: RunHistory, stale: Stale) -> bool:
    """Those of steps and loops; what a person said to a failed step, or to an order, is over when the step is done."""
    block, at = place_of(name)
    found = pipeline.blocks.get(block)
    if name.endswith(CONTROL) or not isinstance(found, Gate | Repeat):
        return False
    if isinstance(found, Repeat):
        key = instance_name(block, At(at.items, at.laps[:-1]))
        return at.laps[-1] <= _laps_kept(key, history, stale) and _is_kept(name, "done", history, stale)
    return _is_kept(name, "done", history, stale)


def _laps_kept(key: str, history: RunHistory, stale: Stale) -> int:
    loop = history.loops.get(key)
    return min(len(loop.laps), stale.loops.get(key, len(loop.laps))) if loop else 0


def _reused(parent: Path, event: dict[str, Any], history: RunHistory) -> dict[str, Any]:
    """``step.reused`` for the end of a step; the orders a task gave to its run go with it."""
    name = event["instance"]
    found = {
        "event": events.STEP_REUSED,
        "instance": name,
        "sha256": history.instances[name].sha256,
        "size_bytes": event.get("size_bytes"),
        "from": f"{parent.name}/{name}",
    }
    number = next((order.number for order in history.orders if order.instance == name), None)
    return found if number is None else {**found, "control": {**event["control"], "number": number}}


# -- laying out --------------------------------------------------------------------------------------------------------


def lay_out(disk: Disk, run_dir: Path, taken: TakenOver) -> None:
    """Copy what is kept, durably. Repeatable: what an earlier try left is removed first.

    Raises:
        SeedRejected: The other run has changed meanwhile, or is gone.
    """
    if (run_dir / "tasks").is_dir():
        remove_tree(run_dir / "tasks")
    (run_dir / "tasks").mkdir(mode=0o700)
    try:
        for name, sha256 in taken.kept.items():
            _copy_instance(taken, run_dir, name, sha256)
        if not _brings_files(run_dir):
            shutil.rmtree(run_dir / "files", ignore_errors=True)
            if (taken.parent / "files").is_dir():
                _copy_tree(taken.parent / "files", run_dir / "files")
    except (FileNotFoundError, NotAFile) as error:
        raise _changed(taken, str(error)) from None
    disk.sync_tree(run_dir / "tasks")
    disk.sync_folder(run_dir)


def _brings_files(run_dir: Path) -> bool:
    """Whether the claimed seed is a folder or an archive, whose files were laid out already."""
    path = claim_path(run_dir)
    if path.name != CLAIM:
        return False
    if path.is_dir():
        return True
    with open_file(path) as file:
        return file.read(4) == b"PK\x03\x04"


def _copy_instance(taken: TakenOver, run_dir: Path, name: str, sha256: str | None) -> None:
    source, target = taken.parent / "tasks" / name, run_dir / "tasks" / name
    block, _ = place_of(name)
    pattern = _OF_A_GATE if isinstance(taken.pipeline.blocks.get(block), Gate | Repeat) else _OF_A_STEP
    target.mkdir(mode=0o700)
    for entry in sorted(os.listdir(source)):
        if not pattern.fullmatch(entry):
            continue
        if (source / entry).is_dir() and not (source / entry).is_symlink():
            _copy_tree(source / entry, target / entry)
        elif entry == "output.json" or stat.S_ISREG(os.lstat(source / entry).st_mode):
            _copy_file(source / entry, target / entry)
    if sha256 and hashlib.sha256(read_file(target / "output.json")).hexdigest() != sha256:
        raise _changed(taken, f"the output of {name!r} is not what its journal says")


def _copy_tree(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for entry in sorted(os.listdir(source)):
        path = source / entry
        if path.is_dir() and not path.is_symlink():
            _copy_tree(path, target / entry)
        elif path.is_file() and not path.is_symlink():
            _copy_file(path, target / entry)


def _copy_file(source: Path, target: Path) -> None:
    with os.fdopen(open_regular(source, max_bytes=1 << 62), "rb") as reader, open(target, "xb") as writer:
        shutil.copyfileobj(reader, writer)


def _changed(taken: TakenOver, what: str) -> SeedRejected:
    message = f"fork: the run {taken.parent.name} changed meanwhile: {what}"
    return SeedRejected(message, hint=f"pop rerun {taken.parent.name} --fork once more", code="run-changed")
