"""The file of the index: opened by whoever comes, made anew when it is gone or damaged, read while it is written."""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SCHEMA = 2
ROOM_BYTES = 32 * 2**20
MOST_JOURNAL_BYTES = 4 * 2**20  # of what SQLite keeps beside the file
TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, place TEXT, state TEXT, at TEXT, name TEXT, pipeline TEXT, created_at TEXT, started_at TEXT,
    finished_at TEXT, seconds REAL, progress REAL, doing TEXT, error TEXT, steps INTEGER, calls INTEGER, tokens INTEGER,
    cost_usd REAL, unpriced_calls INTEGER, models TEXT, words TEXT, version TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_state ON runs (state, at DESC, run_id DESC);
CREATE INDEX IF NOT EXISTS by_time ON runs (at DESC, run_id DESC);
CREATE INDEX IF NOT EXISTS by_pipeline ON runs (pipeline, at DESC, run_id DESC);
CREATE INDEX IF NOT EXISTS by_place ON runs (place, version) WHERE place = 'current';
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


class Database:
    """Two connections: one that a refresh writes with, under a lock of its own, and one for readers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = False
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._reading = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._inode = self._reader_inode = 0

    # -- reading -----------------------------------------------------------------------------------------------

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows as readers see them; none (a count of 0) where the file cannot be read now."""
        with self._reading:
            for _ in range(2):
                try:
                    return self._reading_connection().execute(query, values).fetchall()
                except (OSError, sqlite3.Error) as error:  # deleted or damaged under us; a refresh makes it anew
                    self.damaged = self.damaged or (
                        isinstance(error, sqlite3.Error) and not is_busy(error) and not is_the_disks(error)
                    )
                    self._close_reader()
        return [(0,)] if query.startswith("SELECT count") else []

    def read(self, key: str) -> str:
        """What is noted beside the runs, as readers see it."""
        rows = self.ask("SELECT value FROM meta WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else ""

    def _reading_connection(self) -> sqlite3.Connection:
        inode = os.stat(self.path).st_ino
        if self._reader is None or inode != self._reader_inode:
            self._close_reader()
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            self._reader = sqlite3.connect(uri, uri=True, timeout=2.0, check_same_thread=False, isolation_level=None)
            self._reader_inode = inode
        return self._reader

    # -- writing -----------------------------------------------------------------------------------------------

    def open(self) -> sqlite3.Connection:
        """The writing connection, to the file that stands there now. One thread at a time.

        Raises:
            OSError, sqlite3.Error: Neither the machine room nor the temporary folder takes it; or it is damaged.
        """
        try:
            inode = os.stat(self.path).st_ino
        except OSError:
            inode = 0
        if self._writer is not None and inode == self._inode:
            return self._writer
        self.close_writer()
        self._inode = inode
        try:
            self._writer = self._connect()
        except OSError:
            if self._own is not None:
                raise
            self._writer = self._connect_elsewhere()  # a root that we may only read, or with a full disk
        self._inode = os.stat(self.path).st_ino
        return self._writer

    def _connect_elsewhere(self) -> sqlite3.Connection:
        own, home = tempfile.TemporaryDirectory(prefix="pop-index-"), self.path
        self.path = Path(own.name, "index.db")
        try:
            made = self._connect()
        except BaseException:  # that disk is the same one: there may be room some day
            self.path = home
            own.cleanup()
            raise
        self._own = own
        return made

    def leave_room(self) -> None:
        """What is derived takes nothing from runs.

        Raises:
            OSError: The disk is nearly full.
        """
        if free_bytes(self.path.parent) < ROOM_BYTES:
            raise OSError(errno.ENOSPC, f"the last {ROOM_BYTES >> 20} MB of the disk are left to the runs")

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.leave_room()
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        made = sqlite3.connect(self.path, timeout=5.0, check_same_thread=False, isolation_level=None)
        try:
            made.execute("PRAGMA journal_mode = WAL")
            made.execute(f"PRAGMA journal_size_limit = {MOST_JOURNAL_BYTES}")
            made.execute("PRAGMA synchronous = OFF")  # it is derived: after a power cut it is made anew
            if made.execute("PRAGMA user_version").fetchone()[0] not in (0, SCHEMA):
                raise sqlite3.DatabaseError("of another version")
            made.execute("BEGIN IMMEDIATE")
            for statement in TABLES.split(";\n"):
                made.execute(statement)
            made.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', ?), ('revision', '0')", (secrets.token_hex(4),))
            made.execute(f"PRAGMA user_version = {SCHEMA}")
            made.execute("COMMIT")
        except BaseException:
            made.close()
            raise
        return made

    def let_go(self) -> None:
        """Close the file: what was written and not committed gives its room back."""
        self.close_writer()
        with self._reading:
            self._close_reader()

    def begin_anew(self) -> None:
        """Remove the file that was opened last; the next `open` makes it again."""
        self.let_go()
        with suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._inode:  # else another process was first
                for end in ("-wal", "-shm", ""):
                    Path(f"{self.path}{end}").unlink(missing_ok=True)
        self.damaged = False

    def set(self, key: str, value: str) -> None:
        """Note something beside the runs, in the transaction that is open."""
        assert self._writer is not None
        self._writer.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def get(self, key: str) -> str:
        """What is noted, as the writer sees it."""
        assert self._writer is not None
        row = self._writer.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def close(self) -> None:
        self.close_writer()
        with self._reading:
            self._close_reader()
        if self._own is not None:
            self._own.cleanup()


def free_bytes(folder: Path) -> int:
    """What the disk still takes."""
    info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize


def is_busy(error: sqlite3.Error) -> bool:
    return isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "busy" in str(error))


def is_the_disks(error: sqlite3.Error) -> bool:
    """A full disk, or one that may only be read: what stands in the file is good."""
    return isinstance(error, sqlite3.OperationalError) and any(
        word in str(error) for word in ("disk is full", "readonly", "too many open files")
    )
