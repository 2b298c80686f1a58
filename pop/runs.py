"""Reads run folders for people: finding one by prefix, name or ``last``; listing; statuses. It never writes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop.errors import SeedRejected, UsageError
from pop.errors import safe as safe
from pop.queue import Incomplete, Ready, is_candidate, peek
from pop.settings import Root, SeedSettings


@dataclass(frozen=True)
class Run:
    """A run's folder; `place` is ``current`` or ``complete``."""

    path: Path
    place: str

    @property
    def run_id(self) -> str:
        return self.path.name

    def status(self) -> dict[str, Any]:
        """tasks-status.json; what can be told without it when it is missing."""
        try:
            value = json.loads((self.path / "tasks-status.json").read_bytes())
        except (OSError, ValueError):
            value = None
        if not isinstance(value, dict):
            return {"run_id": self.run_id, "name": self.run_id, "state": "queued", "tasks": {}, "progress": 0.0}
        return value

    def step_dir(self, instance: str) -> Path:
        return self.path / "tasks" / instance

    def attempts(self, instance: str) -> list[Path]:
        """The attempt folders of an instance, oldest first."""
        folder = self.step_dir(instance) / "attempts"
        if not folder.is_dir():
            return []
        return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def runs_in(folder: Path, place: str) -> Iterator[Run]:
    """The runs of a folder, oldest first."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        if not name.startswith(".") and (folder / name / "events.jsonl").exists():
            yield Run(folder / name, place)


def current_runs(root: Root) -> list[Run]:
    return list(runs_in(root.current, "current"))


def newest_complete(root: Root, count: int) -> list[Run]:
    """The `count` newest finished runs, newest last, without reading the others."""
    try:
        names = [name for name in os.listdir(root.complete) if not name.startswith(".") and name != "runs.jsonl"]
    except FileNotFoundError:
        return []
    return [Run(root.complete / name, "complete") for name in sorted(names)[-count:]] if count else []


def find_run(root: Root, asked: str) -> Run:
    """The run with this id, an unambiguous prefix of it, its name, or ``last`` (the newest).

    Raises:
        UsageError: None, or more than one.
    """
    known = {name: "current" for name in _names(root.current)} | {name: "complete" for name in _names(root.complete)}
    if asked == "last":
        matches = sorted(known)[-1:]
    elif asked in known:
        matches = [asked]
    else:
        matches = [name for name in known if name.startswith(asked)] or [name for name in known if _called(name, asked)]
    if not matches:
        raise UsageError(f"no run {asked!r}", hint="pop ls shows them; `last` is the newest")
    if len(matches) > 1:
        shown = ", ".join(sorted(matches)[-5:])
        raise UsageError(f"{asked!r} fits {len(matches)} runs: {shown}", hint="give more of the id")
    folder = root.current if known[matches[0]] == "current" else root.complete
    return Run(folder / matches[0], known[matches[0]])


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if re.match(r"\d{8}-\d{6}-", name)]
    except FileNotFoundError:
        return []


def _called(run_id: str, asked: str) -> bool:
    parts = run_id.split("-")
    return "-".join(parts[2:-1]) == asked or parts[-1] == asked


def pending(root: Root, limits: SeedSettings, most: int = 1000) -> list[dict[str, Any]]:
    """What lies in pipeline-pending/: ``{"name", "state": ready|later|incomplete|refused, "reason", "priority"}``."""
    try:
        names = sorted(name for name in os.listdir(root.pending) if is_candidate(name))
    except FileNotFoundError:
        return []
    return [_looked_at(root.pending / name, limits) for name in names[:most]]


def _looked_at(path: Path, limits: SeedSettings) -> dict[str, Any]:
    row: dict[str, Any] = {"name": path.name, "state": "ready", "reason": None, "priority": 0}
    if path.suffix.lower() not in (".json", ".zip") and not path.is_dir():
        return {**row, "state": "ignored", "reason": "its name ends in neither .json nor .zip"}
    try:
        found = peek(path, limits)
    except SeedRejected as error:
        return {**row, "state": "refused", "reason": error.message}
    except OSError as error:
        return {**row, "state": "incomplete", "reason": error.strerror}
    if isinstance(found, Incomplete):
        return {**row, "state": "incomplete", "reason": found.reason}
    assert isinstance(found, Ready)
    if found.seed.not_before:
        row = {**row, "state": "later", "reason": f"not before {found.seed.not_before}"}
    return {**row, "priority": found.seed.priority}


def rejected(root: Root) -> list[dict[str, Any]]:
    """What was refused, with its reason."""
    rows = []
    for path in sorted(root.rejected.glob("*.reason.json")) if root.rejected.is_dir() else []:
        try:
            rows.append(json.loads(path.read_bytes()))
        except (OSError, ValueError):
            continue
    return rows


def ledger_tail(root: Root, count: int) -> list[bytes]:
    """The last lines of runs.jsonl."""
    try:
        with open(root.ledger, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096 * count))
            return [line for line in file.read().split(b"\n") if line.startswith(b"{")][-count:]
    except FileNotFoundError:
        return []
