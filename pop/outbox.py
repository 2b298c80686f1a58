"""``.pop/notify.db``: how far the journals of runs were read, and what was not told yet. The notifier alone fills it."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from pop import events
from pop.notices import Notice, notices_in
from pop.settings import NotifySettings, Root

MOST_KEPT = 10_000  # notices of one hook that were not told yet; the oldest go first
_TABLES = """
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, bytes INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (bytes INTEGER, since TEXT);
CREATE TABLE IF NOT EXISTS outbox (number INTEGER PRIMARY KEY, hook TEXT, notice TEXT);
CREATE INDEX IF NOT EXISTS outbox_of ON outbox (hook, number);
"""


class Outbox:
    """Opened for the first time it begins where the ledger ends now: what happened before is not told."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._db = sqlite3.connect(root.machine_room / "notify.db", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.executescript(_TABLES)
        if not self._db.execute("SELECT 1 FROM ledger").fetchone():
            begun = (_size(root.ledger), events.rfc3339(time.time()))
            self._db.execute("INSERT INTO ledger VALUES (?, ?)", begun)
        (self._since,) = self._db.execute("SELECT since FROM ledger").fetchone()

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _set(self, run_id: str, offset: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (run_id, offset))

    def look_at_all(self, hooks: Mapping[str, NotifySettings]) -> None:
        """Runs under way, and those that the ledger names beyond where it was read."""
        known = dict(self._db.execute("SELECT run_id, bytes FROM runs").fetchall())
        for name in _names(self._root.current):
            if _size(self._root.current / name / "events.jsonl") != known.get(name, 0):
                self.look_at(name, hooks)
        (start,) = self._db.execute("SELECT bytes FROM ledger").fetchone()
        with suppress(FileNotFoundError), open(self._root.ledger, "rb") as file:
            at = file.seek(start if _size(self._root.ledger) >= start else 0)
            while (line := file.readline()).endswith(b"\n"):
                with suppress(ValueError, KeyError, TypeError):
                    self.look_at(str(orjson.loads(line)["run_id"]), hooks)
                at += len(line)
            with self._change():
                self._db.execute("UPDATE ledger SET bytes = ?", (at,))
                under_way = set(_names(self._root.current))
                gone = [name for name in known if name not in under_way]  # the ledger was read beyond them
                self._db.executemany("DELETE FROM runs WHERE run_id = ?", [(name,) for name in gone])

    def look_at(self, run_id: str, hooks: Mapping[str, NotifySettings]) -> None:
        """Keep what a run's journal tells that was not read yet."""
        row = self._db.execute("SELECT bytes FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        found: list[Notice] = []
        end = -1
        for folder in (self._root.current, self._root.complete):  # in this order: that is how it moves
            with suppress(OSError):
                found, end = notices_in(folder / run_id, row[0] if row else 0)
                break
        if end < 0 or (row and end == row[0]):
            return
        with self._change():
            self._set(run_id, end)
            for notice in [one for one in found if one.at >= self._since]:
                for name, hook in hooks.items():
                    if set(hook.on) & set(notice.kinds) and (not hook.pipelines or notice.pipeline in hook.pipelines):
                        self._keep(name, notice)

    def _keep(self, hook: str, notice: Notice) -> None:
        self._db.execute("INSERT INTO outbox (hook, notice) VALUES (?, ?)", (hook, notice.model_dump_json()))
        last = "SELECT number FROM outbox WHERE hook = ? ORDER BY number DESC LIMIT 1 OFFSET ?"
        self._db.execute(f"DELETE FROM outbox WHERE hook = ? AND number <= ({last})", (hook, hook, MOST_KEPT))

    def close(self) -> None:
        self._db.close()

    def next_of(self, hook: str) -> tuple[int, Notice] | None:
        """The oldest notice that a hook was not told."""
        with self._lock:
            query = "SELECT number, notice FROM outbox WHERE hook = ? ORDER BY number LIMIT 1"
            row = self._db.execute(query, (hook,)).fetchone()
        return (row[0], Notice.model_validate_json(row[1])) if row else None

    def drop(self, number: int) -> None:
        with self._change():
            self._db.execute("DELETE FROM outbox WHERE number = ?", (number,))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
