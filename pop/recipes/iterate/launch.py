"""From the folder of `pop iterate generate` to a run of the root around it: tasks and pipeline installed, a seed laid out.

    pipelines/<workflow>.json                of the folder's pipeline.json; <workflow>-<iteration>.json of one iteration's
    pipeline-tasks/iterate-agent.py, iterate-check.py
    the seed                                 seed.json: the workflow, and by agent its deliverables
      targets/<path>                         the inputs, as they are now
      <iteration>/CONTEXT.md ...             what its agents and its check are told
      <iteration>/<path>                     deliverables of iterations that are not part of this run
    DIR/runs.jsonl                           the runs that were made of DIR; DIR/.run.json one that is being submitted

What is installed says so itself, with the sha256 of the rest: a file that somebody else wrote or edited is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop.errors import ConfigError, ConfigErrors, RootError, UsageError, did_you_mean
from pop.events import rfc3339
from pop.pipeline import load_pipeline
from pop.places import find_places
from pop.recipes.iterate.folder import PIPELINE, TARGETS, Folder, missing
from pop.recipes.iterate.manifest import CONTEXT, CRITERIA, PROMPTS, Agent, Manifest, rounds_step, seed_key
from pop.records import BadJson, dump_json, read_json
from pop.runs import Run, pending_names
from pop.settings import Root, enclosing_root, find_root
from pop.store import Disk, NotAFile, contained, mend_tail, read_regular
from pop.tasks import list_tasks

RUNS, STARTED = "runs.jsonl", ".run.json"
MAX_BYTES = 64 * 2**20
MAX_NAME = 64
TASKS: Mapping[str, str] = {
    "iterate-agent": "from pop.recipes.iterate.agent import finalize, infer, parse, prompt, refine, validate_quality\n",
    "iterate-check": "from pop.recipes.iterate.check import infer\n",
}
_MARK = re.compile(r"(?:; )?written by pop iterate, sha256 ([0-9a-f]{12})$")
_RUN_ID = re.compile(r"\d{8}-\d{6}-[a-z0-9-]{1,100}")


def root_of(folder: Path, given: str | None = None) -> Root:
    """The root that runs DIR: `given`, else ``POP_ROOT``, else the one around DIR, else the one around us.

    Raises:
        UsageError: None can be found.
    """
    if given or os.environ.get("POP_ROOT"):
        return find_root(given)
    return enclosing_root(folder) or enclosing_root(Path.cwd()) or _no_root(folder)


def _no_root(folder: Path) -> Root:
    hint = "pop init makes one; put DIR into it, call this from inside, or name it with --root"
    raise UsageError(f"no folder that POP works in around {folder} or here", hint=hint, code="no-root")


def pipeline_name(workflow: str, iteration: str | None = None) -> str:
    """What the pipeline of a workflow, or of one of its iterations, is called in the root."""
    return workflow if iteration is None else f"{workflow[: MAX_NAME - 1 - len(iteration)]}-{iteration}"


# -- installing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """A pipeline as it stands in the root; `kept` are the older files that were moved aside."""

    name: str
    data: bytes
    kept: tuple[Path, ...] = ()


def install(root: Root, folder: Folder, iteration: str | None = None, *, replace: bool = False) -> Installed:
    """Put the pipeline and its two tasks into the root.

    Args:
        replace: Move files that are not ours, or were edited, aside as ``<name>.before-<time>``.

    Raises:
        ConfigError: DIR's pipeline has mistakes, or a file of somebody else's stands there.
        UsageError: A seed in the queue waits for the pipeline that would change.
    """
    name = pipeline_name(folder.workflow, iteration)
    data = compiled(root, folder, iteration)
    path = root.pipeline_path(name)
    files = {root.tasks / f"{task}.py": _marked_code(text) for task, text in TASKS.items()} | {path: data}
    changed = {file: new for file, new in files.items() if _bytes(file) != new}
    foreign = [file for file in changed if os.path.lexists(file) and not is_ours(file)]
    if foreign and not replace:
        where = foreign[0].relative_to(root.path)
        hint = "--replace moves it aside, as .before-<time>; or give the workflow another name"
        raise ConfigError("pop iterate did not write this file, or it was edited", where=where, hint=hint, code="taken")
    if path in changed:
        _refuse_waiting(root, name)
    for one in (root.tasks, root.pipelines):
        one.mkdir(exist_ok=True)
    kept = tuple(_move_aside(file) for file in foreign)
    for file, new in changed.items():
        put(file, new)
    return Installed(name, data, kept)


def compiled(root: Root, folder: Folder, iteration: str | None = None) -> bytes:
    """The pipeline as it is to run: DIR's own, with what the manifests say of models, budgets and rounds.

    Raises:
        ConfigErrors: It has mistakes, or other agents than the manifests.
    """
    place = PIPELINE if iteration is None else f"{iteration}/{PIPELINE}"
    wanted = list(folder.manifests if iteration is None else [iteration])
    name = pipeline_name(folder.workflow, iteration)
    if name == "default":
        raise ConfigError("a workflow cannot be called 'default': that is pipeline.json", where=place)
    try:
        data = read_regular(contained(folder.path, place), max_bytes=MAX_BYTES)
        document = read_json(data, where=place)
    except FileNotFoundError:
        hint = "pop iterate generate writes it"
        raise ConfigError("it is not there", where=place, hint=hint, code="missing-file") from None
    except (BadJson, NotAFile) as error:
        raise ConfigError(error.message, where=error.where or place, hint=error.hint, code=error.code) from None
    known = {**list_tasks(root.tasks), **dict.fromkeys(TASKS, "code")}
    load_pipeline(data, where=place, name=name, known_tasks=known)
    agents = {agent.step: agent for _, agent in folder.agents(wanted)}
    found = _say(document["tasks"], agents, {rounds_step(one): folder.manifests[one] for one in wanted})
    _same_agents(found, agents, data, place)
    result = _marked(document)
    load_pipeline(result, where=place, name=name, known_tasks=known)
    return result


def _say(step: Any, agents: Mapping[str, Agent], loops: Mapping[str, Manifest]) -> set[str]:
    """Write what the manifests say into the steps they speak of; the agents' steps that were met."""
    if isinstance(step, list):
        return set().union(*(_say(one, agents, loops) for one in step))
    if not isinstance(step, dict):
        return set()
    name = str(step.get("name", step.get("task")))
    if "repeat" in step and name in loops:
        step["at_most"], step["otherwise"] = loops[name].rounds, loops[name].otherwise
    if step.get("task") == "iterate-agent":
        if agent := agents.get(name):
            step |= {"budget": {**step.get("budget", {}), "step_tokens": agent.token_budget}}
            step.pop("model", None)
            step |= {"model": agent.model} if agent.model else {}
        return {name}
    return set().union(*(_say(step[key], agents, loops) for key in ("repeat", "parallel", "do") if key in step))


def _same_agents(found: set[str], agents: Mapping[str, Agent], data: bytes, place: str) -> None:
    hint = "take it out there too, or pop iterate generate writes both anew"
    where = find_places(data.decode(), place).of(("tasks",))
    problems = [
        ConfigError(f"no step for the agent {name!r}", where=where, hint=hint) for name in agents if name not in found
    ]
    for name in sorted(found - set(agents)):
        hint = did_you_mean(name, agents) or hint
        problems.append(ConfigError(f"no manifest knows the agent {name!r}", where=where, hint=hint))
    if problems:
        raise ConfigErrors(problems)


def _refuse_waiting(root: Root, name: str) -> None:
    """A seed that is not taken yet would run with another pipeline than it was made for."""
    for file in pending_names(root):
        try:
            asked = read_json(read_regular(root.pending / file / "seed.json", max_bytes=MAX_BYTES))
        except (OSError, BadJson, NotAFile):
            continue
        if isinstance(asked, dict) and asked.get("pipeline") == name:
            hint = "wait until it has begun (pop ls), or take it out of pipeline-pending/"
            raise UsageError(
                f"the seed {file!r} waits in the queue for the pipeline {name!r}", hint=hint, code="waiting"
            )


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _marked(document: dict[str, Any]) -> bytes:
    """A pipeline whose description says that we wrote it, and what it was then."""
    own = _MARK.sub("", str(document.get("description") or ""))
    plain = {**document, "description": own}
    mark = f"written by pop iterate, sha256 {_sha(dump_json(plain))}"
    return dump_json({**plain, "description": f"{own}; {mark}" if own else mark})


def _marked_code(text: str) -> bytes:
    mark = f"written by pop iterate, sha256 {_sha(text.encode())}"
    return f"# The stages of pop.recipes.iterate; {mark}\n{text}".encode()


def is_ours(file: Path) -> bool:
    """Whether a pipeline or task is what some `pop iterate` wrote."""
    data = _bytes(file)
    if data is None:
        return False
    if file.suffix == ".json":
        try:
            document = read_json(data)
        except BadJson:
            return False
        return isinstance(document, dict) and _marked(document) == data
    head, _, rest = data.partition(b"\n")
    mark = _MARK.search(head.decode(errors="replace"))
    return mark is not None and mark[1] == _sha(rest)


def _bytes(file: Path) -> bytes | None:
    try:
        return read_regular(file, max_bytes=MAX_BYTES)
    except (OSError, NotAFile):
        return None


def _move_aside(file: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    free = next(n for n in range(1, 1000) if not os.path.lexists(_aside(file, stamp, n)))
    return file.rename(_aside(file, stamp, free))


def _aside(file: Path, stamp: str, number: int) -> Path:
    return file.with_name(f"{file.name}.before-{stamp}{'' if number == 1 else f'-{number}'}")


def put(path: Path, data: bytes) -> None:
    """A file for people: whole or not at all, readable by all."""
    Disk().put(path, data)
    path.chmod(0o644)


# -- the seed ----------------------------------------------------------------------------------------------------------


def seed_folder(
    folder: Folder,
    target: Path,
    installed: Installed,
    iteration: str | None = None,
    *,
    models: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> str:
    """Lay the seed of a run out in `target`, which is made; returns the sha256 of all that the run is made of.

    Args:
        models: What ``-m`` says; it counts for the sha256 alone.
        fresh: Ask anew also where an earlier run has asked the same.

    Raises:
        ConfigErrors: Files that the run would read are not there.
    """
    wanted = list(folder.manifests if iteration is None else [iteration])
    data: dict[str, Any] = {
        "workflow": folder.workflow,
        "source": str(folder.path),
        "iterations": wanted,
        "steps": {agent.step: manifest.iteration for manifest, agent in folder.agents(wanted)},
        "agents": {
            seed_key(agent.step): [one.model_dump() for one in agent.deliverables] for _, agent in folder.agents(wanted)
        },
    }
    target.mkdir()
    total = hashlib.sha256(installed.data + dump_json([data, dict(models or {})]))
    problems = []
    for place, source in sorted(_files(folder, wanted).items()):
        if problem := missing(*source):
            problems.append(_not_there(place, *source, problem))
            continue
        content = contained(*source).read_bytes()
        copy = contained(target, place)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        total.update(f"{place}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    if problems:
        raise ConfigErrors(problems)
    data["fingerprint"] = total.hexdigest()
    envelope = {"pipeline": installed.name, "name": installed.name, "reuse": not fresh, "data": data}
    (target / "seed.json").write_bytes(dump_json(envelope))
    return total.hexdigest()


def _files(folder: Folder, wanted: list[str]) -> dict[str, tuple[Path, str]]:
    """What a run reads, by its place in the seed: the folder it lies in, and its path there."""
    found: dict[str, tuple[Path, str]] = {}
    for name in wanted:
        inner = folder.path / name
        found |= {f"{name}/{file}": (inner, file) for file in (CONTEXT, CRITERIA)}
    for manifest, agent in folder.agents(wanted):
        name, base = manifest.iteration, folder.base(manifest.iteration)
        prompt = f"{PROMPTS}/{agent.prompt}"
        found[f"{name}/{prompt}"] = (folder.path / name, prompt)
        for one in agent.deliverables:
            found |= {f"{TARGETS}/{path}": (base, path) for path in one.targets}
            for reading in one.reads:
                if reading.iteration not in wanted:
                    found[f"{reading.iteration}/{reading.path}"] = (folder.path / reading.iteration, reading.path)
    return found


def _not_there(place: str, base: Path, path: str, problem: str) -> ConfigError:
    if place.startswith(f"{TARGETS}/") or path.startswith(f"{PROMPTS}/") or path in (CONTEXT, CRITERIA):
        return ConfigError(f"{path[:200]!r}: {problem}", where=base, code="missing-file")
    hint = f"pop iterate run {base.parent} --iteration {base.name} makes it"
    return ConfigError(
        f"{path[:200]!r} of {base.name!r} is needed: {problem}", where=base, hint=hint, code="missing-file"
    )


# -- the runs of DIR ---------------------------------------------------------------------------------------------------


def record_run(folder: Path, run_id: str, name: str, iterations: Iterable[str]) -> None:
    """Note in DIR that a run was made of it; once."""
    if any(row["run_id"] == run_id for row in recorded(folder)):
        return
    mend_tail(folder / RUNS)
    row = {"run_id": run_id, "name": name, "at": rfc3339(time.time()), "iterations": list(iterations)}
    Disk().append(folder / RUNS, dump_json(row, pretty=False))


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The lines of DIR/runs.jsonl, oldest first; what cannot be one is passed over."""
    rows = []
    for line in (_bytes(folder / RUNS) or b"").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and _RUN_ID.fullmatch(str(row.get("run_id"))):
            rows.append(row)
    return rows


def runs_of(root: Root, folder: Path, iteration: str | None = None) -> list[Run]:
    """The runs of DIR that are still there, newest last; with an iteration those that it was part of."""
    found = []
    for row in recorded(folder):
        if iteration is not None and iteration not in (row.get("iterations") or []):
            continue
        places = ((root.current, "current"), (root.complete, "complete"))
        found += [Run(base / row["run_id"], place) for base, place in places if (base / row["run_id"]).is_dir()][-1:]
    return found


def newest_run(root: Root, folder: Path, iteration: str | None = None) -> Run | None:
    """The newest run of DIR that is still there."""
    return next(reversed(runs_of(root, folder, iteration)), None)


def seed_of(run: Run) -> dict[str, Any]:
    """The data of the seed a run was made from; empty where it is not one of ours.

    ``{"workflow", "source", "iterations": [name], "steps": {step: iteration}, "agents": {seed_key: [Deliverable]},
    "fingerprint"}``
    """
    try:
        value = read_json(read_regular(run.path / "seed.json", max_bytes=MAX_BYTES))
        data = value["data"]
        return data if isinstance(data["steps"], dict) and isinstance(data["agents"], dict) else {}
    except (OSError, BadJson, NotAFile, LookupError, TypeError):
        return {}


def note_start(folder: Path, seed: str, iterations: Iterable[str]) -> None:
    """Note a seed before it is submitted, so that its run is found again whatever ends this process."""
    put(folder / STARTED, dump_json({"seed": seed, "iterations": list(iterations)}))


def started(folder: Path) -> str | None:
    """The seed that was noted and not recorded as a run yet."""
    try:
        value = read_json(_bytes(folder / STARTED) or b"null")
    except BadJson:
        return None
    seed = value.get("seed") if isinstance(value, dict) else None
    return seed if isinstance(seed, str) and re.fullmatch(r"[a-z0-9_-]+\.[0-9a-f]{8}", seed) else None


def forget_start(folder: Path) -> None:
    (folder / STARTED).unlink(missing_ok=True)


__all__ = ["Installed", "RootError", "install", "newest_run", "put", "record_run", "root_of", "runs_of", "seed_folder"]
