"""What a run has made so far, as files of DIR: each whole, inside its iteration's folder, never over what a person edited.

| what stands at DIR/<iteration>/<path>        | then                                                          |
|----------------------------------------------|---------------------------------------------------------------|
| nothing                                      | written                                                       |
| the same                                     | unchanged                                                     |
| what a run made                              | replaced by the newer version                                 |
| something a person wrote or edited           | kept; a version not seen before goes beside it: ``x.new.md``  |

DIR/.delivered.json holds the sha256 of what was delivered last, by path; it can be lost: what runs made is known by
their outputs, too.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pop.errors import PopError
from pop.history import RunHistory, read_history
from pop.recipes.iterate.launch import RUNS, put, runs_of, seed_of
from pop.recipes.iterate.manifest import rounds_step, seed_key
from pop.records import BadJson, dump_json, read_json
from pop.runs import Run
from pop.settings import Root
from pop.store import NotAFile, contained, read_regular

RECORD = ".delivered.json"
MAX_BYTES = 64 * 2**20


@dataclass
class Delivered:
    """What a delivery came to; paths are ``<iteration>/<path>``. `kept`: edited files that were left as they are, with
    the place of the new version, or None when there is none. `refused`: paths that lead out of DIR."""

    written: list[str] = field(default_factory=list)
    kept: dict[str, str | None] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Made:
    """One deliverable of a run: `instance` is the step's that made it, in the lap that counts."""

    iteration: str
    step: str
    index: int
    path: str
    instance: str

    @property
    def place(self) -> str:
        return f"{self.iteration}/{self.path}"


def made_by(run: Run, history: RunHistory | None = None) -> Iterator[Made]:
    """The deliverables a run has made so far: of the lap that stands for its loop, or the newest that is done."""
    history = history or read_history(run.path)
    seed = seed_of(run)
    done = _laps_done(history)
    for step, iteration in seed.get("steps", {}).items():
        loop = history.loops.get(rounds_step(iteration))
        for index, deliverable in enumerate(seed["agents"].get(seed_key(step), [])):
            laps = done.get((step, index))
            if laps:
                lap = loop.kept if loop and loop.kept in laps else max(laps)
                yield Made(iteration, step, index, deliverable["path"], laps[lap])


def _laps_done(history: RunHistory) -> dict[tuple[str, int], dict[int, str]]:
    """By step and item: the laps with a result, and their instances."""
    found: dict[tuple[str, int], dict[int, str]] = {}
    for name, instance in history.instances.items():
        stem, _, lap = name.partition("@")
        step, _, index = stem.rpartition(".")
        if instance.state == "done" and index.isdigit() and lap.isdigit():
            found.setdefault((step, int(index)), {})[int(lap)] = name
    return found


class Deliverer:
    """Delivers a run again and again while it goes; what was looked at once is not read again."""

    def __init__(self, root: Root, folder: Path) -> None:
        self._root = root
        self._folder = folder
        self._seen: set[tuple[str, str]] = set()  # run and instance
        self._known: dict[str, str] = _record(folder)
        self._of_runs: dict[str, set[str]] | None = None

    def deliver(self, run: Run) -> Delivered:
        """Write what is new."""
        with _alone(self._folder):  # of two that deliver, the slower one would bring back what it read before
            self._known |= _record(self._folder)
            here = run.here()
            try:
                return self._deliver(here)
            except FileNotFoundError:
                if run.here() == here:
                    raise
                return self._deliver(run.here())  # it was promoted while it was read

    def _deliver(self, run: Run) -> Delivered:
        result, before = Delivered(), dict(self._known)
        history = read_history(run.path)
        for one in made_by(run, history):
            mark = (run.run_id, f"{one.instance} {history.instances[one.instance].sha256}")
            if mark in self._seen:
                result.unchanged.append(one.place)
                continue
            output = _output(run, one)
            if output is not None:
                self._one(one, output, result)
                self._seen.add(mark)
        if self._known != before and self._folder.is_dir():
            _replace(self._folder / RECORD, dump_json(self._known))
        return result

    def _one(self, one: Made, data: bytes, result: Delivered) -> None:
        try:
            path = contained(self._folder, one.place)
            if not (self._folder / one.iteration).is_dir():
                raise NotAFile("its iteration has no folder")
            there = _sha_of(path)
        except (NotAFile, OSError):
            result.refused.append(one.place)
            return
        new = hashlib.sha256(data).hexdigest()
        known, self._known[one.place] = self._known.get(one.place), new
        if there == new:
            result.unchanged.append(one.place)
        elif there is None or there == known or there in self._made_before(one.place):
            _write(path, data)
            result.written.append(one.place)
        else:
            beside = None if known == new else self._beside(one.place, new)
            if beside:
                _write(contained(self._folder, beside), data)
                self._known[beside] = new
            result.kept[one.place] = beside

    def _beside(self, place: str, new: str) -> str:
        """Where a new version of an edited file goes."""
        stem, suffix = os.path.splitext(place)
        for number in range(1, 1000):
            name = f"{stem}.new{number if number > 1 else ''}{suffix}"
            if _sha_of(contained(self._folder, name)) in (None, new, self._known.get(name)):
                return name
        raise PopError(f"{place} has 999 new versions beside it", where=self._folder, hint="remove some")

    def _made_before(self, place: str) -> set[str]:
        """The sha256 of everything that runs of DIR made for this place."""
        if self._of_runs is None:
            self._of_runs = {}
            for run in runs_of(self._root, self._folder):
                for where, sha in _versions(run):
                    self._of_runs.setdefault(where, set()).add(sha)
        return self._of_runs.get(place, set())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One delivery at a time; where nothing ran yet, or DIR has gone, there is nothing to wait for."""
    try:
        fd = os.open(folder / RUNS, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def deliver(root: Root, folder: Path, run: Run) -> Delivered:
    """Copy what the run has made so far into DIR."""
    return Deliverer(root, folder).deliver(run)


def _versions(run: Run) -> Iterator[tuple[str, str]]:
    """Every version of every deliverable that a run made, in all laps."""
    try:
        done, seed = _laps_done(read_history(run.path)), seed_of(run)
    except OSError:
        return
    for (step, _), laps in done.items():
        iteration = seed.get("steps", {}).get(step)
        for instance in laps.values() if iteration else ():
            value = _value(run, instance)
            if value:
                yield (
                    f"{iteration}/{value['path']}",
                    hashlib.sha256(value["text"].encode("utf-8", "replace")).hexdigest(),
                )


def _output(run: Run, one: Made) -> bytes | None:
    """The bytes of a deliverable; None while its output is not the one that was promised."""
    value = _value(run, one.instance)
    if value is None or value["path"] != one.path:
        return None
    return str(value["text"]).encode("utf-8", "replace")


def _value(run: Run, instance: str) -> dict[str, Any] | None:
    try:
        path = contained(run.here().path, f"tasks/{instance}/output.json")
        value = read_json(read_regular(path, max_bytes=MAX_BYTES))
    except (OSError, NotAFile, BadJson):
        return None
    fits = isinstance(value, dict) and isinstance(value.get("text"), str) and isinstance(value.get("path"), str)
    return value if fits else None


def _sha_of(path: Path) -> str | None:
    """Of a regular file; None when there is nothing.

    Raises:
        NotAFile: Something else is there.
    """
    try:
        return hashlib.sha256(read_regular(path, max_bytes=MAX_BYTES)).hexdigest()
    except FileNotFoundError:
        return None


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, data)


def _replace(path: Path, data: bytes) -> None:
    """Also takes away what a delivery that was killed left half written: two never go at once (`_alone`)."""
    drafts = re.compile(rf"\.{re.escape(path.name[:200])}\.\d+\.tmp")
    for name in os.listdir(path.parent):
        if drafts.fullmatch(name):
            (path.parent / name).unlink(missing_ok=True)
    put(path, data)


def _record(folder: Path) -> dict[str, str]:
    try:
        value = read_json(read_regular(folder / RECORD, max_bytes=MAX_BYTES))
    except (OSError, NotAFile, BadJson):
        return {}
    return {str(place): str(sha) for place, sha in value.items()} if isinstance(value, dict) else {}
