"""A run taken up again from one of its steps: what an order says, and what the supervisor journals for it.

``orders/rerun.json``: ``{"from": ["STEP[:STAGE]", ...], "set": {PATH: value}, "models": {ROLE: NAME}, "by", "reason"}``.
The originals stay: changed documents are ``seed.rerun-<n>.json`` and ``pipeline.rerun-<n>.json``, and
``provenance.rerun-<n>.json`` says with which tasks it went on (and ``provenance.resumed-<n>.json`` after a retry or a resume).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop import events
from pop.control import additions, extended
from pop.errors import ConfigError, ConfigErrors, PopError, UsageError
from pop.history import RunHistory
from pop.pipeline import load_pipeline
from pop.records import BadJson, dump_json, objects_in, read_json
from pop.seedcheck import refuse_misfit
from pop.sets import UnknownPath, apply_set, read_sets
from pop.settings import Root
from pop.stale import RerunRefused, Stale, place_of, stale_of
from pop.steps import Pipeline
from pop.store import NotAFile, lines_of, read_file, read_regular
from pop.tasks import hash_task, list_tasks

__all__ = [
    "Documents", "RerunRefused", "Stale", "UnknownPath", "apply_set", "changed_tasks", "changes_since", "documents_of",
    "place_of", "read_order", "read_sets", "rerun_event", "stale_of",
]  # fmt: skip

AT_REST = ("failed", "cancelled", "waiting", "paused")
MAX_DOCUMENT = 64 * 2**20
MAX_FORKS = 50  # of forks of forks


@dataclass(frozen=True)
class Documents:
    """The newest seed and pipeline of a run, by their names in its folder, and how often it was re-run."""

    seed: str = "seed.json"
    pipeline: str = "pipeline.json"
    reruns: int = 0


def documents_of(run_dir: Path) -> Documents:
    """What the journal of a run says about its documents."""
    found = Documents()
    for event in journaled(run_dir, events.RUN_RERUN):
        seed, pipeline = (event.get(key) or {} for key in ("seed", "pipeline"))
        found = Documents(seed.get("path") or found.seed, pipeline.get("path") or found.pipeline, found.reruns + 1)
    return found


def pipeline_of(run_dir: Path, history: RunHistory) -> Pipeline:
    """The pipeline of a run as it is now: its newest document, and the steps that tasks have added.

    Raises:
        ConfigError: Somebody broke the run's own copy.
    """
    path = run_dir / pipeline_file(history)
    where = f"{run_dir.parent.name}/{run_dir.name}/{path.name}"
    data = read_regular(path, max_bytes=MAX_DOCUMENT)
    return extended(data, additions(history), where=where, name=pipeline_name(history))


def pipeline_file(history: RunHistory) -> str:
    """The newest document of a run's pipeline, in its folder."""
    return history.pipeline["path"] if history.pipeline else "pipeline.json"


def pipeline_name(history: RunHistory) -> str:
    return str(history.created.get("pipeline") or "default")


def journaled(run_dir: Path, *names: str) -> Iterator[dict[str, Any]]:
    """The events of these names in a run's journal; a torn line is passed over."""
    marks = [f'"{name}"'.encode() for name in names]
    marked = (line for line in lines_of(run_dir / "events.jsonl") if any(mark in line for mark in marks))
    return (event for event in objects_in(marked) if event.get("event") in names)


def read_order(order: Mapping[str, Any]) -> tuple[list[str], dict[str, Any], dict[str, str]]:
    """The steps, the sets and the models of an order, which a person may have written.

    Raises:
        RerunRefused: It is no such order.
    """
    from_, sets, models = order.get("from"), order.get("set") or {}, order.get("models") or {}
    from_ = [from_] if isinstance(from_, str) else from_
    if not isinstance(from_, list) or not from_ or not all(isinstance(text, str) for text in from_):
        raise RerunRefused("an order to re-run names steps", where="from", hint='{"from": ["draft"]}')
    if not isinstance(sets, dict):
        raise RerunRefused("must be an object", where="set", hint='{"seed.topic": "tides"}')
    if not isinstance(models, dict) or not all(isinstance(name, str) for name in models.values()):
        raise RerunRefused("must be an object of texts", where="models", hint='{"*": "large"}')
    return from_, sets, models


def rerun_event(
    root: Root, run_dir: Path, pipeline: Pipeline, history: RunHistory, order: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What is to be journaled for an order, and the files of the run's folder that must stand durably before it.

    Args:
        pipeline: The run's, steps that were added included.
        order: The content of orders/rerun.json.

    Raises:
        PopError: It cannot be carried out; nothing is done.
    """
    if history.state not in AT_REST:
        hint = (
            "pop pause it first" if history.state in ("running", "queued") else "pop rerun --fork makes a new run of it"
        )
        raise RerunRefused(f"{run_dir.name} is {history.state}", hint=hint)
    from_, sets, models = read_order(order)
    stale = stale_of(pipeline, history, from_)
    if models and stale.replay:
        raise RerunRefused("recorded answers are parsed again: no model is asked", where="models")
    documents = documents_of(run_dir)
    changed = changed_documents(run_dir, documents, sets, pipeline.name)
    number = documents.reruns + 1
    files = {f"{name}.rerun-{number}.json": data for name, data in changed.items()}
    files[f"provenance.rerun-{number}.json"] = provenance_now(root, pipeline)
    event = {
        "at": events.rfc3339(time.time()),
        "event": events.RUN_RERUN,
        "by": order.get("by") or "a file",
        "reason": order.get("reason"),
        "from": from_,
        "instances": list(stale.instances),
        "gone": list(stale.gone),
        "again": list(stale.again),
        "replay": list(stale.replay),
        "asked": {name: asked_of(run_dir, name) for name in stale.replay},
        "keys": list(stale.keys),
        "loops": dict(stale.loops),
        "reset": _to_reset(history, stale),
        "set": sets,
        "seed": _about(files, f"seed.rerun-{number}.json"),
        "pipeline": _about(files, f"pipeline.rerun-{number}.json"),
        "models": _every_name(run_dir, documents, pipeline, models),
        "changes": {},
    }
    return event, files


def _every_name(run_dir: Path, documents: Documents, pipeline: Pipeline, models: Mapping[str, str]) -> dict[str, str]:
    """Where one model stands for all, the names that seed and pipeline give another meaning are told too."""
    if "*" not in models:
        return dict(models)
    seed = read_json(read_regular(run_dir / documents.seed, max_bytes=MAX_DOCUMENT), where=documents.seed)
    own = seed.get("models") if isinstance(seed, dict) and "data" in seed else None
    return {**dict.fromkeys([*pipeline.models, *(own or {})], models["*"]), **models}


def _about(files: Mapping[str, bytes], name: str) -> dict[str, str] | None:
    return {"path": name, "sha256": hashlib.sha256(files[name]).hexdigest()} if name in files else None


def _to_reset(history: RunHistory, stale: Stale) -> list[str]:
    """What would end the run at once though it is not to run again: it gets fresh attempts, as by ``pop retry``."""
    failed = [name for name, instance in history.instances.items() if instance.state == "failed"]
    loops = [key for key, loop in history.loops.items() if loop.laps and loop.laps[-1].verdict == "failed"]
    return [name for name in failed if name not in set(stale.instances)] + [k for k in loops if k not in stale.loops]


def asked_of(run_dir: Path, instance: str, *, run: str | None = None) -> dict[str, Any]:
    """How the newest attempt of an instance asked: its answers are known by its run, generation and prompts.

    ``{"generation": int, "problems": [str], "model": str | None}``, with ``"run"`` where another run than this one asked.
    """
    for _ in range(MAX_FORKS):
        try:
            letter = read_json(read_regular(run_dir / "tasks" / instance / "letter.json", max_bytes=MAX_DOCUMENT))
            about: dict[str, Any] = {key: letter.get(key) for key in ("generation", "problems", "model")}
            return {**about, "run": run} if run else about
        except (OSError, BadJson, NotAFile, LookupError, TypeError, ValueError, AttributeError):
            origin = origin_of(run_dir, instance)
        if origin is None:
            break
        run_dir, run = origin, origin.name
    return {"run": run} if run else {}


def origin_of(run_dir: Path, instance: str) -> Path | None:
    """The folder of the run from which a fork took an instance over; None when it ran here, or that run is gone."""
    name = next(
        (
            str(event.get("from"))
            for event in journaled(run_dir, events.STEP_REUSED)
            if event.get("instance") == instance
        ),
        "",
    )
    root = run_dir.parent.parent
    places = [root / folder / name.partition("/")[0] for folder in ("pipeline-complete", "pipeline-current")]
    return next((place for place in places if name and (place / "events.jsonl").is_file()), None)


def changed_documents(run_dir: Path, documents: Documents, sets: Mapping[str, Any], name: str) -> dict[str, bytes]:
    """``seed`` and ``pipeline`` as they are with other values in them, those that differ.

    Raises:
        PopError: A path leads nowhere, or the pipeline would not be one.
    """
    if not sets:
        return {}
    seed = read_json(read_regular(run_dir / documents.seed, max_bytes=MAX_DOCUMENT), where=documents.seed)
    envelope = isinstance(seed, dict) and "data" in seed
    pipeline = read_json(read_regular(run_dir / documents.pipeline, max_bytes=MAX_DOCUMENT), where=documents.pipeline)
    data, changed = apply_set(seed["data"] if envelope else seed, pipeline, sets)
    found: dict[str, bytes] = {}
    if any(path.startswith("seed.") for path in sets):
        _refuse_misfit(data, pipeline, sets, documents)
        found["seed"] = dump_json({**seed, "data": data} if envelope else data)
    if any(not path.startswith("seed.") for path in sets):
        found["pipeline"] = dump_json(changed)
        try:
            load_pipeline(found["pipeline"], where=documents.pipeline, name=name)
        except ConfigError as error:
            raise _at_fault(pipeline, sets, name) or error from None
    return found


def _refuse_misfit(data: Any, pipeline: Any, sets: Mapping[str, Any], documents: Documents) -> None:
    """Raises: SeedMismatch: With these values it is no seed for the run's own pipeline."""
    schema = pipeline.get("seed") if isinstance(pipeline, dict) else None
    if isinstance(schema, dict):
        where = "--set " + ", ".join(path for path in sets if path.startswith("seed."))[:200]
        refuse_misfit(schema, data, where=where, file=f"the run's {documents.pipeline}")


def _at_fault(pipeline: Any, sets: Mapping[str, Any], name: str) -> UsageError | None:
    """What the first setting that makes no pipeline, alone, is told; None where only several together do."""
    for path, value in sets.items():
        if path.startswith("seed."):
            continue
        try:
            load_pipeline(dump_json(apply_set({}, pipeline, {path: value})[1]), where="pipeline.json", name=name)
        except ConfigError as error:
            first = error.problems[0] if isinstance(error, ConfigErrors) else error
            text = value if isinstance(value, str) else dump_json(value, pretty=False).decode().strip()
            return UsageError(first.message, where=f"--set {path}={text}", hint=first.hint, code=error.code)
    return None


# -- tasks that changed ------------------------------------------------------------------------------------------------


def changed_tasks(root: Root, run_dir: Path) -> list[str]:
    """Sentences about tasks whose files are not those that the run began, or was last re-run, with."""
    known = documents_of(run_dir).reruns
    before = provenance_of(run_dir, f"provenance.rerun-{known}.json") if known else {}
    before = before or provenance_of(run_dir, "provenance.json")
    changed = changes_since(root, before)
    modules = changed.pop("", [])
    told = [f"task {task!r} changed since this run began: {', '.join(what)}" for task, what in changed.items()]
    return told + ([f"modules beside the tasks changed since this run began: {', '.join(modules)}"] if modules else [])


def provenance_now(root: Root, pipeline: Pipeline) -> bytes:
    """The content of a provenance file: the sha256 of the files as they are."""
    tasks = sorted({step.task for step in pipeline.tasks.values()})
    return dump_json({"tasks": hashes_of(root, tasks), "helpers": helpers_of(root)})


def resumed_with(root: Root, run_dir: Path, history: RunHistory) -> tuple[str, bytes] | None:
    """The provenance file that a run gets when it is to go on; None when somebody broke its own pipeline."""
    try:
        pipeline = pipeline_of(run_dir, history)
    except (PopError, OSError):
        return None
    number = 1 + sum(1 for _ in journaled(run_dir, events.RUN_RESUMED))
    return f"provenance.resumed-{number}.json", provenance_now(root, pipeline)


def provenances(run_dir: Path) -> dict[str, str]:
    """By instance, the file with the tasks that its newest attempt (or the one to come) began with.

    Tasks that were edited between two attempts with no order between them are not told apart.
    """
    found: dict[str, str] = {}
    newest, reruns = "provenance.json", 0
    for event in journaled(run_dir, events.RUN_RERUN, events.RUN_RESUMED, events.STEP_RESET, events.STEP_STARTED):
        if event["event"] == events.RUN_RERUN:
            reruns += 1
            newest = f"provenance.rerun-{reruns}.json"
            found.update(dict.fromkeys(event.get("instances") or (), newest))
        elif event["event"] == events.RUN_RESUMED:
            newest = str(event.get("provenance") or newest)
        else:
            found[str(event.get("instance"))] = newest
    return found


def provenance_of(run_dir: Path, name: str) -> dict[str, Any]:
    """A provenance file of a run; empty where it cannot be read."""
    try:
        value = read_json(read_regular(run_dir / name, max_bytes=MAX_DOCUMENT))
    except (OSError, BadJson, NotAFile):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("tasks"), dict) else {}


def changes_since(root: Root, before: Mapping[str, Any]) -> dict[str, list[str]]:
    """What changed since a provenance was written: the files by task, and under ``""`` modules that are no task's."""
    known: Mapping[str, Any] = before.get("tasks") or {}
    now = hashes_of(root, known)
    found = {task: _differing(files if isinstance(files, dict) else {}, now[task]) for task, files in known.items()}
    if isinstance(before.get("helpers"), dict):
        try:
            of_tasks = {f"{name}.py" for name in list_tasks(root.tasks)}
        except PopError:
            of_tasks = set()
        found[""] = [
            name for name in _differing(before["helpers"], helpers_of(root)) if name.split()[0] not in of_tasks
        ]
    return {task: what for task, what in found.items() if what}


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        name if name in before and name in now else f"{name} is {'gone' if name in before else 'new'}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def hashes_of(root: Root, tasks: Collection[str]) -> dict[str, dict[str, str]]:
    """The sha256 of every file of the tasks as they are now; none for a task that is not there."""
    found: dict[str, dict[str, str]] = {}
    for name in tasks:
        try:
            found[name] = hash_task(root.tasks, name)
        except (PopError, OSError):
            found[name] = {}
    return found


def helpers_of(root: Root) -> dict[str, str]:
    """The sha256 of every Python file below pipeline-tasks/."""
    found: dict[str, str] = {}
    for path in sorted(root.tasks.rglob("*.py")):
        try:
            found[str(path.relative_to(root.tasks))] = hashlib.sha256(read_file(path, links=True)).hexdigest()
        except OSError:
            continue
    return found
