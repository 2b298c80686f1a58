"""What monitor and feedback read: the iterations of a folder, the runs made of it, and what a run and its files show."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pop.errors import ConfigError, UsageError, did_you_mean
from pop.history import read_history
from pop.recipes.iterate.criteria import Criterion, check_text, for_path, parse, problem
from pop.recipes.iterate.launch import RUNS, recorded, seed_of
from pop.recipes.iterate.manifest import CRITERIA, Deliverable, Manifest, check_step, seed_key
from pop.recipes.iterate.snapshots import Found, Sight, Signs, deliverables_of, works_of
from pop.records import BadJson, objects_in, read_json
from pop.runs import Run, find_run
from pop.settings import Root
from pop.store import NotAFile, lock_holder, read_regular

LIFE = ("trail.jsonl", "calls.jsonl", "log.jsonl", "stdout.txt")  # of an attempt: what grows while it works
MAX_OUTPUT_BYTES = 64 * 2**20
MAX_CALLS_BYTES = 64 * 2**20
Judge = Callable[[Path, str], tuple[str, ...]]  # an iteration's folder, a path in it: the criteria it does not meet


def chosen_row(folder: Path, asked: str | None) -> dict[str, Any]:
    """The line of the newest run made of this folder, or of the one with this id, prefix or number from the end.

    Raises:
        UsageError: It has not been run, or not so.
    """
    rows = recorded(folder)
    if not rows:
        raise UsageError(f"{str(folder)!r} has not been run yet", hint=f"pop iterate run {folder}", code="not-run")
    if asked in (None, "last"):
        return rows[-1]
    fits = [row for row in rows if row["run_id"] == asked] or [row for row in rows if row["run_id"].startswith(asked)]
    if len({row["run_id"] for row in fits}) > 1:
        raise UsageError(f"{asked!r} fits {len(fits)} runs of {str(folder)!r}", hint="give more of the id")
    if not fits:
        hint = did_you_mean(str(asked), [row["run_id"] for row in rows])
        raise UsageError(f"no run {asked!r} was made of {str(folder)!r}", hint=hint, code="unknown-run")
    return fits[-1]


def run_of(root: Root, folder: Path, row: Mapping[str, Any]) -> Run:
    """The run itself.

    Raises:
        UsageError: It is not there any more.
    """
    try:
        return find_run(root, str(row["run_id"]))
    except UsageError as error:
        if error.code == "removed":
            error.hint = f"{error.hint}; pop iterate run {folder} makes another, pop iterate feedback {folder} tells what is known"
            raise
        message = f"the run {row['run_id']} that was made of {str(folder)!r} is not in {root.path}"
        hint = f"--root names the root it ran in; pop iterate run {folder} makes another"
        raise UsageError(message, where=folder / RUNS, hint=hint, code="unknown-run") from None


def of_run(manifests: Iterable[Manifest], run: Run) -> list[Manifest]:
    """The iterations that a run was made of, with the deliverables it was given: DIR may have been edited since."""
    seed = seed_of(run)
    named = seed.get("iterations")
    chosen = [one for one in manifests if not isinstance(named, list) or one.iteration in named]
    return [_as_given(one, seed.get("agents") or {}) for one in chosen]


def _as_given(manifest: Manifest, given: Mapping[str, Any]) -> Manifest:
    agents = []
    for agent in manifest.agents:
        try:
            listed = [Deliverable.model_validate(one) for one in given[seed_key(agent.step)]]
        except (LookupError, TypeError, ValidationError):
            listed = agent.deliverables
        agents.append(agent.model_copy(update={"deliverables": listed}))
    return manifest.model_copy(update={"agents": agents})


@dataclass
class Looker:
    """Looks at one run again and again, and reads only what has changed since.

    `judge` tells which criteria a file does not meet; without it nothing is judged.
    """

    root: Root
    folder: Path
    manifests: Sequence[Manifest]
    judge: Judge | None = None
    _found: dict[tuple[str, str], tuple[tuple[int, int], Found]] = field(default_factory=dict)
    _signs: dict[str, tuple[tuple[int, int], Signs]] = field(default_factory=dict)
    _checks: dict[tuple[Path, int], dict[str, Any]] = field(default_factory=dict)

    def look(self, run: Run, status: Mapping[str, Any]) -> Sight:
        """What is there now."""
        signs = {
            name: self._signs_of(run.step_dir(name), name, task)
            for name, task in (status.get("tasks") or {}).items()
            if task.get("state") == "running"
        }
        return Sight(
            status=status,
            daemon=lock_holder(self.root.machine_room) is not None,
            signs=signs,
            found=self._files(),
            checks=self._check_outputs(run, status),
            failed_loops=failed_loops(run) if status.get("state") == "failed" else (),
        )

    def _files(self) -> dict[tuple[str, str], Found]:
        seen: dict[tuple[str, str], Found] = {}
        for iteration, _, _, deliverable in deliverables_of(self.manifests):
            key, path = (iteration, deliverable.path), self.folder / iteration / deliverable.path
            try:
                info = os.lstat(path)
            except OSError:
                continue
            if not stat.S_ISREG(info.st_mode):
                continue
            mark = (info.st_mtime_ns, info.st_size)
            known = self._found.get(key)
            if known is None or known[0] != mark:
                problems = self.judge(self.folder / iteration, deliverable.path) if self.judge else ()
                known = self._found[key] = (mark, Found(info.st_size, problems))
            seen[key] = known[1]
        return seen

    def _signs_of(self, step_dir: Path, instance: str, task: Mapping[str, Any]) -> Signs:
        attempt = step_dir / "attempts" / str(task.get("attempt"))
        times, size = [], 0
        for name in LIFE:
            try:
                info = os.lstat(attempt / name)
            except OSError:
                continue
            times.append(info.st_mtime_ns)
            size += info.st_size if name == "calls.jsonl" else 0
        mark = (int(task.get("attempt") or 0), size)
        known = self._signs.get(instance)
        calls = known[1] if known and known[0] == mark else _calls_of(attempt / "calls.jsonl")
        self._signs[instance] = (mark, calls)
        at = max(times) / 1e9 if times else None
        return Signs(at, calls.calls, calls.tokens, calls.cost_usd)

    def _check_outputs(self, run: Run, status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        works, found = works_of(status), {}
        for manifest in self.manifests:
            laps = works.get(check_step(manifest.iteration), {})
            done = [lap for lap, those in laps.items() if 0 in those and those[0].state == "done"]
            if done and (output := self._output(run.step_dir(laps[max(done)][0].instance))):
                found[manifest.iteration] = output
        return found

    def _output(self, step_dir: Path) -> dict[str, Any]:
        try:
            written = os.lstat(step_dir / "output.json").st_mtime_ns
        except OSError:
            return {}
        if (step_dir, written) not in self._checks:
            self._checks[step_dir, written] = output_of(step_dir)
        return self._checks[step_dir, written]


def failed_loops(run: Run) -> list[str]:
    """The loops of a run that did not come to their end."""
    try:
        return read_history(run.path).failed_loops()
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        return []


def output_of(step_dir: Path) -> dict[str, Any]:
    """output.json of an instance; ``{}`` where there is none that can be read."""
    try:
        with open(step_dir / "output.json", "rb") as file:
            value = read_json(file.read(MAX_OUTPUT_BYTES))
    except (OSError, BadJson):
        return {}
    return value if isinstance(value, dict) else {}


def calls_in(path: Path) -> list[dict[str, Any]]:
    """The lines of a calls.jsonl; what is no line is left out."""
    try:
        with open(path, "rb") as file:
            lines = file.read(MAX_CALLS_BYTES).splitlines()
    except OSError:
        return []
    return list(objects_in(lines))


def _calls_of(path: Path) -> Signs:
    rows = calls_in(path)
    tokens = sum(int(row.get("input_tokens") or 0) + int(row.get("output_tokens") or 0) for row in rows)
    return Signs(
        None, len(rows), tokens, sum(float(row.get("cost_usd") or 0.0) for row in rows if not row.get("cached"))
    )


def judge_of(folder: Path, manifests: Iterable[Manifest]) -> Judge:
    """Judges single files by the criteria of their iterations, without commands; a COMPLETION_CRITERIA.md that cannot be
    read, which `pop iterate validate` tells, judges nothing."""
    read = {folder / one.iteration: criteria_of(folder / one.iteration) for one in manifests}

    def judge(iteration: Path, path: str) -> tuple[str, ...]:
        held = for_path(read.get(iteration, []), path)
        if not held:
            return ()
        try:
            text = read_regular(iteration / path, max_bytes=MAX_OUTPUT_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            return (f"not UTF-8 at byte {error.start}",)
        except (NotAFile, OSError):  # it has just gone, or is about to come
            return ()
        return tuple(problem(one) for one in check_text(held, path, text, schemas=iteration) if one.status == "unmet")

    return judge


def criteria_of(iteration: Path) -> list[Criterion]:
    """The criteria of an iteration's folder; none, where they cannot be read."""
    try:
        return parse((iteration / CRITERIA).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ConfigError):
        return []
