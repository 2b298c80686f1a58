"""Reads run folders for people: finding one by id, prefix, name or ``last``; listing; statuses. It never writes."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from pop import events
from pop.errors import PopError, SeedRejected, UsageError
from pop.errors import safe as safe
from pop.history import read_history
from pop.orders import VERBS
from pop.queue import Incomplete, Ready, is_candidate, peek
from pop.settings import Root, SeedSettings, load_settings
from pop.statuses import status_of
from pop.store import NotAFile, lines_of, open_regular, read_file, read_regular

MOST_STATUS_BYTES = 2**29  # of a run of a million instances
MOST_REASON_BYTES = 2**20
WHOLE_BYTES = 2**21  # of a status that is parsed for one line about its run
HEAD_BYTES = 2**18  # of a larger one, which tells everything but its steps there


@dataclass(frozen=True)
class Run:
    """A run's folder; `place` is ``current`` or ``complete``."""

    path: Path
    place: str

    @property
    def run_id(self) -> str:
        return self.path.name

    def here(self) -> Run:
        """The same run where it lies now: a complete one moves."""
        target = self.path.parent.parent / "pipeline-complete" / self.run_id
        return Run(target, "complete") if self.place == "current" and target.is_dir() else self

    def status(self) -> dict[str, Any]:
        """tasks-status.json; where it is missing or broken, what the journal tells; else the state ``unreadable``."""
        try:
            value = orjson.loads(read_regular(self.path / "tasks-status.json", max_bytes=MOST_STATUS_BYTES))
        except (OSError, NotAFile, ValueError):
            value = None
        return value if _is_status(value) else self._from_journal()

    def summary(self) -> dict[str, Any]:
        """As `status`, for a line in a list: of very many steps it tells only how many there are."""
        try:
            with os.fdopen(open_regular(self.path / "tasks-status.json", max_bytes=MOST_STATUS_BYTES), "rb") as file:
                if os.fstat(file.fileno()).st_size > WHOLE_BYTES:
                    data = file.read(HEAD_BYTES)
                    value = orjson.loads(data[: data.rindex(b",", 0, data.index(b'"tasks":'))] + b"}")
                    steps = data.count(b'"state":') - 1 + _count_states(file, data[-7:])
                    return {**value, "tasks": range(steps)} if _is_status({**value, "tasks": {}}) else self.status()
        except (OSError, NotAFile, ValueError):
            pass
        return self.status()

    def _from_journal(self) -> dict[str, Any]:
        now, trouble = events.rfc3339(time.time()), "its events.jsonl holds no run.created"
        try:
            history = read_history(self.path)
            if history.created:
                return status_of(history, now=now, expected=[], notes=[])
        except FileNotFoundError:
            if self.here() != self:  # it was promoted while we looked
                return self.here().status()
            if not any(self.path.glob("tasks/*")):  # being accepted
                return {**self._nothing_known(), "state": "queued"}
            trouble = "it has no events.jsonl"
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            trouble = f"its events.jsonl cannot be read: {error}"
        hint = "compare it with docs/files.md, or move the folder away"
        told = {"error_class": "unreadable", "message": trouble, "hint": hint}
        return {**self._nothing_known(), "state": "unreadable", "error": told}

    def _nothing_known(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "name": self.run_id, "pipeline": None, "progress": 0.0, "tasks": {}}

    def cancelled_by(self) -> dict[str, Any]:
        """``{"by": str | None, "reason": str | None}`` of the newest cancellation, as far as the journal tells."""
        try:
            lines = read_file(self.path / "events.jsonl").splitlines()
        except OSError:
            return {}
        for line in reversed(lines):
            if events.RUN_CANCELLED.encode() in line:
                try:
                    return dict(orjson.loads(line))
                except (ValueError, TypeError):
                    continue
        return {}

    def waiting_orders(self) -> list[str]:
        """The orders that were given and not carried out yet."""
        try:
            names = os.listdir(self.path / "orders")
        except OSError:
            return []
        return [verb for verb in VERBS if f"{verb}.json" in names or verb in names]

    def step_dir(self, instance: str) -> Path:
        return self.path / "tasks" / instance

    def attempts(self, instance: str) -> list[Path]:
        """The attempt folders of an instance, oldest first."""
        folder = self.step_dir(instance) / "attempts"
        if not folder.is_dir():
            return []
        return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def _count_states(file: BinaryIO, end: bytes) -> int:
    """How often ``"state":`` stands in the rest of a file; inside of texts the quotes would be escaped."""
    found = 0
    while piece := file.read(2**20):
        found += (end + piece).count(b'"state":')
        end = piece[-7:]
    return found


def _is_status(value: Any) -> bool:
    """Whether it can be shown (the file has one writer, but people have editors)."""
    if not isinstance(value, dict) or not isinstance(value.get("state"), str):
        return False
    tasks = value.get("tasks")
    return isinstance(tasks, dict) and all(isinstance(task, dict) and "state" in task for task in tasks.values())


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
    names = sorted(_names(root.complete))
    return [Run(root.complete / name, "complete") for name in names[-count:]] if count else []


def find_run(root: Root, asked: str) -> Run:
    """The run with this id, an unambiguous prefix of it, its name, or ``last`` (the newest).

    Raises:
        UsageError: None (it says when there was one that is removed), or more than one.
    """
    known = {name: Run(root.current / name, "current") for name in _names(root.current)}
    known |= {name: Run(root.complete / name, "complete") for name in _names(root.complete)}
    if asked == "last":
        matches = _newest(known)
    elif asked in known:
        matches = [asked]
    elif not (matches := sorted(name for name in known if name.startswith(asked))):
        rows = [*_ledger_rows(root, asked), *(_row_of(run) for run in known.values() if run.place == "current")]
        called = {str(row["run_id"]) for row in rows if row.get("name") == asked}
        matches = sorted(name for name in known if name in called or _called(name, asked))
        if not matches:
            _refuse_removed(root, asked, rows)
    if not matches:
        raise UsageError(f"no run {asked!r}", hint="pop ls shows them; `last` is the newest", code="unknown-run")
    if len(matches) > 1:
        shown = "".join(f"\n    {name}" for name in matches[-10:])
        more = "" if len(matches) <= 10 else "; the newest are"
        raise UsageError(f"{asked!r} fits {len(matches)} runs{more}:{shown}", hint="give more of the id, or `last`")
    return known[matches[0]]


def _newest(runs: dict[str, Run]) -> list[str]:
    """Ids tell the second; of several of one second their journals tell the millisecond."""
    second = max((name[:15] for name in runs), default="")
    ties = [name for name in runs if name[:15] == second]
    return [max(ties, key=lambda name: (_created_at(runs[name]), name))] if len(ties) > 1 else ties


def _created_at(run: Run) -> str:
    """When it was created, as its journal's first line tells; later than any other where there is none yet."""
    try:
        return str(orjson.loads(next(lines_of(run.here().path / "events.jsonl"), b""))["at"])
    except FileNotFoundError:
        return "accepted just now"
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if re.match(r"\d{8}-\d{6}-", name)]
    except FileNotFoundError:
        return []


def _called(run_id: str, asked: str) -> bool:
    parts = run_id.split("-")
    return "-".join(parts[2:-1]) == asked or parts[-1] == asked


def _row_of(run: Run) -> dict[str, Any]:
    return {"run_id": run.run_id, "name": run.status().get("name")}


def _ledger_rows(root: Root, asked: str) -> list[dict[str, Any]]:
    """The ledger's lines that may speak of a run called so, each with its number as ``line``."""
    words = {json.dumps(asked)[1:-1].encode(), json.dumps(asked, ensure_ascii=False)[1:-1].encode(errors="replace")}
    found = []
    try:
        file = open(root.ledger, "rb")
    except OSError:
        return []
    with file:
        for number, line in enumerate(file, 1):
            if any(word in line for word in words):
                try:
                    found.append({**orjson.loads(line), "line": number})
                except (ValueError, TypeError):
                    continue
    return [row for row in found if isinstance(row.get("run_id"), str)]


def _refuse_removed(root: Root, asked: str, rows: Iterable[dict[str, Any]]) -> None:
    """Of a run whose folder is gone the ledger still tells.

    Raises:
        UsageError: With its line, and its archive where there is one.
    """
    fits = [row for row in rows if "line" in row and (row["run_id"].startswith(asked) or row.get("name") == asked)]
    fits = fits or [row for row in rows if "line" in row and _called(row["run_id"], asked)]
    if not fits:
        return
    run_id, line = fits[-1]["run_id"], fits[-1]["line"]
    archive = root.complete / "archive" / f"{run_id}.tar.gz"
    kept = f"its archive: {archive.relative_to(root.path)}" if archive.exists() else f"sed -n {line}p {root.ledger}"
    raise UsageError(
        f"the run {run_id} was removed; its line in the ledger stays",
        where=f"{root.ledger.relative_to(root.path)}:{line}",
        hint=kept,
        code="removed",
    )


def pending_names(root: Root) -> list[str]:
    """Every name in pipeline-pending/ that may be a seed, sorted."""
    try:
        return sorted(name for name in os.listdir(root.pending) if is_candidate(name))
    except FileNotFoundError:
        return []


def seed_limits(root: Root) -> SeedSettings:
    """[seeds] of pop.toml; the defaults while that cannot be read (`pop check` tells why)."""
    try:
        return load_settings(root).seeds
    except PopError:
        return SeedSettings()


def pending(root: Root, limits: SeedSettings, most: int = 1000) -> list[dict[str, Any]]:
    """What lies in pipeline-pending/: ``{"name", "state": ready|later|incomplete|refused|ignored, "reason",
    "priority"}``. Only the first `most` names are looked at; `pending_names` counts all.
    """
    return [_looked_at(root.pending / name, limits) for name in pending_names(root)[:most]]


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
            row = orjson.loads(read_regular(path, max_bytes=MOST_REASON_BYTES))
        except (OSError, NotAFile, ValueError):
            continue
        rows += [row] if isinstance(row, dict) else []
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
