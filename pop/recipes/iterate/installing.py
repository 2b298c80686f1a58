"""The pipeline and the two tasks of a workflow, in the root that runs it.

    pipelines/<workflow>.json                of DIR/pipeline.json; <workflow>-<iteration>.json of an iteration's
    pipeline-tasks/iterate-agent.py, iterate-check.py

DIR's pipeline.json says the order, gates and whatever else a person adds; the manifests say models, budgets and rounds. What is
installed says so itself, with the sha256 of the rest: a file that somebody else wrote or edited is left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop.errors import ConfigError, ConfigErrors, UsageError, did_you_mean
from pop.models.catalogue import Catalogue, UnknownModel
from pop.pipeline import load_pipeline
from pop.places import find_places
from pop.recipes.iterate.folder import PIPELINE, Folder
from pop.recipes.iterate.manifest import FILE, PROMPTS, Agent, Manifest, rounds_step
from pop.records import BadJson, dump_json, read_json
from pop.runs import pending_names
from pop.settings import Root, load_settings
from pop.store import Disk, NotAFile, contained, read_regular
from pop.tasks import list_tasks

MAX_BYTES = 64 * 2**20
MAX_NAME = 64
TASKS: Mapping[str, str] = {
    "iterate-agent": "from pop.recipes.iterate.agent import finalize, infer, parse, prompt, refine, validate_quality\n",
    "iterate-check": "from pop.recipes.iterate.check import infer\n",
}
_MARK = re.compile(r"(?:; )?written by pop iterate, sha256 ([0-9a-f]{12})$")


SEED: dict[str, Any] = {  # what `launch` writes
    "type": "object",
    "description": "Written by pop iterate run, together with copies of all that the agents read.",
    "properties": {
        "workflow": {"type": "string"},
        "source": {"type": "string", "description": "the workflow's folder"},
        "iterations": {"type": "array", "items": {"type": "string"}},
        "steps": {"type": "object", "description": "by agent, its iteration"},
        "agents": {"type": "object", "description": "by agent, what it is to deliver"},
        "fingerprint": {"type": "string"},
    },
    "required": ["steps", "agents"],
}


def pipeline_name(workflow: str, iteration: str | None = None) -> str:
    """What the pipeline of a workflow, or of one of its iterations, is called in the root."""
    return workflow if iteration is None else f"{workflow[: MAX_NAME - 1 - len(iteration)]}-{iteration}"


@dataclass(frozen=True)
class Compiled:
    """A pipeline as it is to stand in the root."""

    name: str
    data: bytes


def install(root: Root, folder: Folder, iteration: str | None = None, *, replace: bool = False) -> list[Path]:
    """Put the pipeline and its two tasks into the root.

    Args:
        replace: Move files that are not ours, or were edited, aside as ``<name>.before-<time>``.

    Returns:
        Where the files lie that were moved.

    Raises:
        ConfigError: DIR's pipeline has mistakes, or a file of somebody else's stands there.
        UsageError: A seed in the queue waits for the pipeline that would change.
    """
    pipeline = compiled(root, folder, iteration)
    path = root.pipeline_path(pipeline.name)
    files = {root.tasks / f"{task}.py": _marked_code(text) for task, text in TASKS.items()} | {path: pipeline.data}
    changed = {file: new for file, new in files.items() if bytes_of(file) != new}
    foreign = [file for file in changed if os.path.lexists(file) and not is_ours(file)]
    if foreign and not replace:
        where = foreign[0].relative_to(root.path)
        hint = "--replace moves it aside, as .before-<time>; or give the workflow another name"
        raise ConfigError("pop iterate did not write this file, or it was edited", where=where, hint=hint, code="taken")
    if path in changed:
        _refuse_waiting(root, pipeline.name)
    for one in (root.tasks, root.pipelines):
        one.mkdir(exist_ok=True)
    aside = [_move_aside(file) for file in foreign]
    for file, new in changed.items():
        put(file, new)
    return aside


def compiled(root: Root, folder: Folder, iteration: str | None = None) -> Compiled:
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
    agents = {agent.step: (manifest.iteration, agent) for manifest, agent in folder.agents(wanted)}
    found = _say(document["tasks"], agents, {rounds_step(one): folder.manifests[one] for one in wanted})
    _same_agents(found, agents, data, place)
    result = _marked({"seed": SEED, **document})
    load_pipeline(result, where=place, name=name, known_tasks=known)
    return Compiled(name, result)


def _say(step: Any, agents: Mapping[str, tuple[str, Agent]], loops: Mapping[str, Manifest]) -> set[str]:
    """Write what the manifests say into the steps they speak of; the agents' steps that were met."""
    if isinstance(step, list):
        return set().union(*(_say(one, agents, loops) for one in step))
    if not isinstance(step, dict):
        return set()
    name = str(step.get("name", step.get("task")))
    if "repeat" in step and name in loops:
        step["at_most"], step["otherwise"] = loops[name].rounds, loops[name].otherwise
    if step.get("task") == "iterate-agent":
        if name in agents:
            iteration, agent = agents[name]
            step["budget"] = {**step.get("budget", {}), "step_tokens": agent.token_budget}
            step["with"] = {**step.get("with", {}), "iteration": iteration, "prompt": f"{PROMPTS}/{agent.prompt}"}
            step.pop("model", None)
            step |= {"model": agent.model} if agent.model else {}
        return {name}
    return set().union(*(_say(step[key], agents, loops) for key in ("repeat", "parallel", "do") if key in step))


def refuse_unknown_models(root: Root, folder: Folder, iterations: Iterable[str]) -> None:
    """Models that manifests ask for must be in the root's pop.toml.

    Raises:
        ConfigErrors: Each that is not there.
    """
    catalogue, problems = Catalogue(load_settings(root), os.environ), list[ConfigError]()
    for manifest, agent in folder.agents(iterations):
        try:
            catalogue.route(agent.model or "default")
        except UnknownModel as error:
            where = f"{manifest.iteration}/{FILE}  agents[{manifest.agents.index(agent)}].model"
            problems.append(ConfigError(error.message, where=where, hint=error.hint, code=error.code))
    if problems:
        raise ConfigErrors(problems)


def _same_agents(found: set[str], agents: Mapping[str, tuple[str, Agent]], data: bytes, place: str) -> None:
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
    data = bytes_of(file)
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


def bytes_of(file: Path) -> bytes | None:
    """Of a regular file; None where there is none."""
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
    """A file for people: whole or not at all, readable by all. An OSError names the file."""
    try:
        Disk().put(path, data)
        path.chmod(0o644)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk is told without one
        raise
