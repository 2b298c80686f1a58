"""From the folder of `pop iterate generate` to a run of the root around it: the seed that is submitted, and the runs there were.

the seed                                 seed.json: the workflow, and by agent its deliverables
  targets/<path>                         the inputs, as they are now
  <iteration>/CONTEXT.md ...             what its agents and its check are told
  <iteration>/<path>                     deliverables of iterations that are not part of this run
DIR/runs.jsonl                           the runs that were made of DIR; DIR/.run.json one that is being submitted
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pop.errors import ConfigError, ConfigErrors, UsageError
from pop.events import rfc3339
from pop.recipes.iterate.criteria import needed_files, parse
from pop.recipes.iterate.folder import TARGETS, Folder, missing
from pop.recipes.iterate.installing import Compiled, bytes_of
from pop.recipes.iterate.installing import install as install
from pop.recipes.iterate.installing import put as put
from pop.recipes.iterate.manifest import CONTEXT, CRITERIA, PROMPTS, check_step, seed_key
from pop.records import BadJson, dump_json, read_json
from pop.runs import Run
from pop.settings import Root, enclosing_root, find_root
from pop.store import Disk, NotAFile, contained, mend_tail, read_regular

RUNS, STARTED = "runs.jsonl", ".run.json"
MAX_BYTES = 64 * 2**20
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


# -- the seed ----------------------------------------------------------------------------------------------------------


def seed_folder(
    folder: Folder,
    target: Path,
    pipeline: Compiled,
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
    total = hashlib.sha256(pipeline.data + dump_json([data, dict(models or {})]))
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
    envelope = {"pipeline": pipeline.name, "name": pipeline.name, "reuse": not fresh, "data": data}
    (target / "seed.json").write_bytes(dump_json(envelope))
    return total.hexdigest()


def _files(folder: Folder, wanted: list[str]) -> dict[str, tuple[Path, str]]:
    """What a run reads, by its place in the seed: the folder it lies in, and its path there."""
    found: dict[str, tuple[Path, str]] = {}
    for name in wanted:
        inner = folder.path / name
        found |= {f"{name}/{file}": (inner, file) for file in (CONTEXT, CRITERIA)}
        made = {one.path for agent in folder.manifests[name].agents for one in agent.deliverables}
        found |= {f"{name}/{file}": (inner, file) for file in _schemas(inner) if file not in made}
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


def _schemas(folder: Path) -> list[str]:
    """The JSON Schemas that an iteration's criteria name.

    Raises:
        ConfigErrors: The criteria have mistakes.
    """
    text = (bytes_of(folder / CRITERIA) or b"").decode("utf-8-sig", "replace")
    return needed_files(parse(text, f"{folder.name}/{CRITERIA}"))


def _not_there(place: str, base: Path, path: str, problem: str) -> ConfigError:
    if place.startswith(f"{TARGETS}/") or path.startswith(f"{PROMPTS}/") or path in (CONTEXT, CRITERIA):
        return ConfigError(f"{path[:200]!r}: {problem}", where=base, code="missing-file")
    if path.endswith(".json") and place.partition("/")[0] == base.name and path in _schemas(base):
        hint = "put the schema there, or mend the criteria"
        return ConfigError(
            f"{base.name}/{CRITERIA} names the schema {path[:200]!r}: {problem}", hint=hint, code="missing-file"
        )
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
    for line in (bytes_of(folder / RUNS) or b"").splitlines():
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
    waiting_seed(root, folder)
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


def verdicts(run: Run) -> dict[str, dict[str, Any]]:
    """By iteration what its newest check says: ``{"met", "met_count", "unmet_count", "unchecked_count", "lap"}``."""
    found: dict[str, dict[str, Any]] = {}
    for iteration in seed_of(run).get("iterations", []):
        laps = [
            path for path in (run.path / "tasks").glob(f"{check_step(iteration)}@*") if (path / "output.json").exists()
        ]
        if not laps:
            continue
        newest = max(laps, key=lambda path: int(path.name.rpartition("@")[2]))
        value = read_json(bytes_of(newest / "output.json") or b"{}")
        counts = {key: value.get(key) for key in ("met", "met_count", "unmet_count", "unchecked_count")}
        found[iteration] = {**counts, "lap": int(newest.name.rpartition("@")[2])}
    return found


def note_start(folder: Path, seed: str, iterations: Iterable[str]) -> None:
    """Note a seed before it is submitted, so that its run is found again whatever ends this process."""
    put(folder / STARTED, dump_json({"seed": seed, "iterations": list(iterations)}))


def waiting_seed(root: Root, folder: Path) -> str | None:
    """The seed that was submitted for DIR and is not a run yet; a run that was made of it meanwhile is recorded."""
    noted = _noted(folder)
    if noted is None:
        return None
    if (root.pending / noted[0]).exists():
        return noted[0]
    if run := run_of_seed(root, noted[0]):
        record_run(folder, run.run_id, noted[0].partition(".")[0], noted[1])
    elif any(not (path / "events.jsonl").exists() for path in root.current.glob("2*")):
        return noted[0]  # a daemon is taking it, or was killed while it did; the next pop up goes on with that
    (folder / STARTED).unlink(missing_ok=True)  # else it was refused, or never got there
    return None


def _noted(folder: Path) -> tuple[str, list[str]] | None:
    try:
        value = read_json(bytes_of(folder / STARTED) or b"null")
    except BadJson:
        return None
    seed = value.get("seed") if isinstance(value, dict) else None
    if not isinstance(seed, str) or not re.fullmatch(r"[a-z0-9_-]+\.[0-9a-f]{8}", seed):
        return None
    return seed, [str(one) for one in value.get("iterations") or []]


def run_of_seed(root: Root, seed: str) -> Run | None:
    """The run made from the seed of this name, which no other seed has."""
    for base, place in ((root.current, "current"), (root.complete, "complete")):
        for path in sorted(base.glob("2*"), reverse=True)[:200]:
            try:
                with open(path / "events.jsonl", "rb") as file:
                    first = json.loads(file.readline())
            except (OSError, ValueError):
                continue
            if isinstance(first, dict) and first.get("seed_file") == seed:
                return Run(path, place)
    return None
