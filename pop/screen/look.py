"""Looks at the files for the screen: runs by the index, one run by its status, the last lines of its logs, what today cost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pop.daycost import DayCost
from pop.diaries import beginning
from pop.display import again_line, by_whom, dollars, next_move, open_gates, paused_by, usage_line
from pop.errors import PopError, safe
from pop.events import rfc3339, unix_s
from pop.gates import answer_of, opened
from pop.models.calls import usd
from pop.runindex import Asked, Row, RunIndex
from pop.runs import Run
from pop.screen.scene import (
    PARTS,
    Entry,
    Opened,
    Scene,
    Step,
    Wish,
    clock,
    line,
    money,
    number,
    since,
    span,
    step_from,
)
from pop.settings import Root, load_settings
from pop.store import NotAFile, lock_holder, read_regular

SERVED_EVERY_S = 2.0
LOG_BYTES = 16_384
LOG_LINES = 100
MOST_LOGS = 30  # instances whose last lines are looked at, unless LOG_LINES came from fewer
PAGE_BYTES = 2**20


class Reader:
    """Makes scenes, one at a time."""

    def __init__(self, root: Root, run: Run | None = None) -> None:
        self._root = root
        self._run = run
        self._index = None if run else RunIndex(root)
        self._today = DayCost(root)
        self._served: tuple[float, str | None] = (-1e9, None)
        self._kept: tuple[Any, Run | None, dict[str, Any]] = (None, None, {})
        self._board: tuple[Any, dict[str, Any]] = (None, {})
        self._steps: tuple[Any, tuple[Step, ...]] = (None, ())
        self._logs: tuple[Any, tuple[str, ...]] = (None, ())
        try:
            self._day_usd = load_settings(root).budget.day_usd
        except PopError:  # pop check tells
            self._day_usd = None

    def close(self) -> None:
        if self._index:
            self._index.close()

    def look(self, wish: Wish) -> Scene:
        """What is there now."""
        now = time.time()
        run = self.run_of(wish.run_id)
        return Scene(
            path=safe(self._root.path, one_line=True),
            wish=wish,
            today=self._cost(now),
            served=self._holder(),
            opened=self._opened(run, wish, now) if run else None,
            **(self._runs(wish, now) if self._index else {}),
        )

    def run_of(self, run_id: str | None) -> Run | None:
        """The run where it lies now; None where there is none."""
        if self._run is not None:
            self._run = self._run.here()
            return self._run
        if run_id is None:
            return None
        run = Run(self._root.current / run_id, "current").here()
        return run if run.path.is_dir() else None

    def status(self, run: Run) -> dict[str, Any]:
        """Its status, read again when the file changed."""
        try:
            info = os.stat(run.path / "tasks-status.json")
            version = (run.path, info.st_mtime_ns, info.st_size, info.st_ino)
        except OSError:
            version = None
        if version is None or version != self._kept[0]:
            self._kept = (version, run, run.status())
        return self._kept[2]

    # -- the board -------------------------------------------------------------------------------------------------

    def _runs(self, wish: Wish, now: float) -> dict[str, Any]:
        assert self._index is not None
        mark = self._index.refresh(0.2)
        asked = (mark, wish.words, int(now) if self._board[1].get("moves") else 0)
        if asked != self._board[0] or self._index.behind_bytes:
            self._board = (asked, self._listed(wish.words, now))
        listed = {key: value for key, value in self._board[1].items() if key != "moves"}
        behind = self._index.behind_bytes
        troubles = [f"the ledger is being read: {behind / 1e6:.1f} MB are left"] if behind else []
        troubles += [line(self._index.trouble)] if self._index.trouble else []
        return {**listed, "troubles": tuple(troubles), "behind": behind > 0}

    def _listed(self, text: str, now: float) -> dict[str, Any]:
        """The runs and seeds that fit some words; a word that is the name of a part asks for that part alone."""
        assert self._index is not None
        words = text.casefold().split()
        parts = [part for part in PARTS if part in words] or list(PARTS)
        words = [word for word in words if word not in PARTS]
        states, found, entries = self._index.counts(), dict[str, int](), list[Entry]()
        for part in parts:
            most = PARTS[part][1]
            if part == "pending":
                names = [name for name in self._index.pending_names() if all(word in name.casefold() for word in words)]
                found[part] = len(names)
                entries += [Entry(f"seed {name}", part, "pending", line(name, 120)) for name in names[:most]]
                continue
            page = self._index.query(Asked(state=part, text=" ".join(words)), size=most)
            found[part] = page.total
            entries += [_entry(row, part, now) for row in page.rows]
        counts = {"pending": states["pending"], "rejected": states["rejected"]}
        groups = {"active": ("running", "queued", "paused"), "failed": ("failed", "cancelled", "unreadable")}
        for part in ("waiting", "active", "failed", "complete"):
            counts[part] = sum(states.get(state, 0) for state in groups.get(part, (part,)))
        moves = any(entry.state == "running" for entry in entries)
        return {"counts": counts, "found": found, "entries": tuple(entries), "moves": moves}

    def _cost(self, now: float) -> str:
        spent = self._today.sum(rfc3339(now)[:10])
        text = f"today {dollars(usd(spent.nano_usd))}"
        text += f" of ${self._day_usd:g}" if self._day_usd is not None else ""
        return text + (f", {spent.unpriced} calls of unknown price" if spent.unpriced else "")

    def _holder(self) -> str | None:
        looked_at, served = self._served
        if time.monotonic() - looked_at >= SERVED_EVERY_S:
            holder = lock_holder(self._root.machine_room)
            served = line(holder.get("command") or "a daemon", 60) if holder else None
            self._served = (time.monotonic(), served)
        return served

    # -- one run ---------------------------------------------------------------------------------------------------

    def _opened(self, run: Run, wish: Wish, now: float) -> Opened:
        status = self.status(run)
        state, usage = line(status.get("state"), 20), status.get("usage")
        began, ended = status.get("started_at") or status.get("created_at"), status.get("finished_at")
        tasks = status.get("tasks") or {}
        gates = tuple(line(gate, 200) for gate in open_gates(status))
        return Opened(
            run_id=run.run_id,
            title=f"{line(run.run_id, 200)}   {line(status.get('name') or '', 120)}   {line(status.get('pipeline') or '', 120)}",
            state=state,
            share=f"{100 * number(status.get('progress')):.0f} %",
            took=span(since(began, _at(ended, now)) if ended or state in ("running", "queued") else None),
            usage=usage_line(usage) if isinstance(usage, dict) and usage.get("calls") else "",
            notes=tuple(line(note, 600) for note in self._notes(run, status, gates)),
            gates=gates,
            steps=self._steps_of(tasks, now),
            logs=self._logs_of(run, tasks),
            page=tuple(page_of(run, wish.step, tasks.get(wish.step) or {})) if wish.step else (),
        )

    def _steps_of(self, tasks: dict[str, Any], now: float) -> tuple[Step, ...]:
        moves = any(task.get("state") == "running" for task in tasks.values())
        version = (self._kept[0], int(now) if moves else 0)
        if version[0] is None or version != self._steps[0]:
            self._steps = (version, tuple(step_from(name, task, now) for name, task in tasks.items()))
        return self._steps[1]

    def _logs_of(self, run: Run, tasks: dict[str, Any]) -> tuple[str, ...]:
        """Read again while something runs, else where the status changed."""
        moves = any(task.get("state") == "running" for task in tasks.values())
        if moves or self._kept[0] is None or self._logs[0] != self._kept[0]:
            self._logs = (self._kept[0], tuple(last_lines(run, _talkers(tasks), named=True)))
        return self._logs[1]

    def _notes(self, run: Run, status: dict[str, Any], gates: tuple[str, ...]) -> Iterator[str]:
        """What a person should know of it now."""
        state, error = status.get("state"), status.get("error")
        if isinstance(error, dict):
            place = f"{error.get('instance')}: " if error.get("instance") else ""
            yield f"{place}{error.get('error_class')}: {error.get('message')}"
            if error.get("where"):
                yield f"where: {error['where']}"
            yield f"hint: {error.get('hint') or next_move(self._root, run, status)}"
        for gate in gates[:3]:
            answer = answer_of(run.step_dir(gate))
            yield f"{gate}: {answer.decision} by {answer.by}" if answer else f"waits for your answer: {gate}"
        if state == "paused":
            yield f"paused {paused_by(run)}"
        if state == "cancelled":
            about = run.cancelled_by()
            yield f"cancelled {by_whom(about.get('by'), about.get('reason'))}"
        for order in run.waiting_orders():
            yield f"the order to {order} waits to be carried out"
        if state == "complete":
            yield str(run.path.relative_to(self._root.path))
            yield (again_line(run, status) or "").replace("      ", " ")
        notes = status.get("notes")
        for note in notes if isinstance(notes, list) else []:
            if " waits for an answer" not in str(note):
                yield str(note)


def _at(ended: Any, now: float) -> float:
    try:
        return unix_s(str(ended)) if ended else now
    except ValueError:
        return now


def _entry(row: Row, part: str, now: float) -> Entry:
    running = row.state in ("running", "queued")
    about = row.error or row.doing or ""
    return Entry(
        key=row.run_id,
        part=part,
        state=line(row.state, 20),
        name=line(row.name, 120),
        run_id=row.run_id,
        at=clock(row.at, now),
        share="" if row.state == "complete" else f"{100 * row.progress:.0f} %",
        took=span(since(row.started_at or row.created_at, now) if running else row.seconds),
        cost=(f"{money(row.cost_usd)}+?" if row.cost_usd else "unpriced")
        if row.unpriced_calls
        else money(row.cost_usd),
        about=line(about),
    )


# -- logs and pages ------------------------------------------------------------------------------------------------


def _talkers(tasks: dict[str, Any]) -> list[str]:
    """The instances that are at work, then those that were last."""

    def newest(name: str) -> tuple[bool, str]:
        task = tasks[name]
        return task.get("state") == "running", str(task.get("finished_at") or task.get("started_at") or "")

    begun = [name for name, task in tasks.items() if task.get("started_at")]
    return sorted(begun, key=newest, reverse=True)[:MOST_LOGS]


def last_lines(run: Run, names: list[str], *, named: bool) -> list[str]:
    """The newest lines that some instances logged and printed in their newest attempts, oldest first."""
    rows: list[tuple[str, str]] = []
    for name in names:
        try:
            attempts = run.attempts(name)
        except OSError:
            continue
        if len(rows) >= LOG_LINES:
            break
        for attempt in attempts[-1:]:
            before = f"{line(name, 60)}  " if named else ""
            for file_name in ("log.jsonl", "stdout.txt"):
                rows += [(at, f"{before}{text}") for at, text in _tail(attempt / file_name)]
    rows.sort(key=lambda row: row[0])
    return [text for _, text in rows[-LOG_LINES:]]


def _tail(path: Path) -> Iterator[tuple[str, str]]:
    """The last lines of a file, each with its time: its own, else the file's."""
    data, size = beginning(path, LOG_BYTES, end=True)
    if size <= 0:
        return
    try:
        written = rfc3339(os.lstat(path).st_mtime)
    except OSError:
        return
    lines = data.split(b"\n")
    if size > LOG_BYTES and len(lines) > 1:
        del lines[0]  # its beginning is cut
    for raw in lines[-LOG_LINES:]:
        text = raw.decode("utf-8", "replace")
        row: Any = None
        with suppress(ValueError, RecursionError):
            row = json.loads(text) if path.suffix == ".jsonl" else None
        if isinstance(row, dict) and isinstance(row.get("at"), str):
            yield row["at"], line(f"{row['at'][11:19]} {row.get('level', '')} {row.get('text', '')}", 500)
        elif text.strip():
            yield written, line(text, 500)


def page_of(run: Run, instance: str, task: dict[str, Any]) -> Iterator[str]:
    """What is told of one step: of a gate its question, of a task its error, its files and its last lines."""
    folder = run.step_dir(instance)
    yield f"{folder.relative_to(run.path.parent.parent)}"
    error = task.get("error")
    if isinstance(error, dict):
        yield ""
        yield line(f"{error.get('error_class')}: {error.get('message')}", 2000)
        yield from (f"{key}: {line(error[key], 1000)}" for key in ("where", "hint") if error.get(key))
    about = opened(folder)
    if about:
        answer = answer_of(folder)
        if answer:
            yield line(f"answered: {answer.decision} by {answer.by}, {answer.at}: {answer.text or ''}", 2000)
        yield from ("", *_text(folder / "request.md"))
        yield ""
        yield from (f"shown: {line(copy.path)}" for copy in about.shown)
        return
    attempts = run.attempts(instance)
    for attempt in attempts[-1:]:
        names = sorted(os.listdir(attempt)) if attempt.is_dir() else []
        yield ""
        yield f"attempt {attempt.name} of {len(attempts)}: {', '.join(line(name, 100) for name in names[:40])}"
    lines = last_lines(run, [instance], named=False)
    yield ""
    yield from lines or ["nothing was logged or printed"]


def _text(path: Path) -> list[str]:
    try:
        data = read_regular(path, max_bytes=PAGE_BYTES)
    except (OSError, NotAFile):
        return [f"{path.name} cannot be read"]
    return [line(one, 2000) for one in data.decode("utf-8", "replace").split("\n")]
