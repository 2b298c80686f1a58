"""The writer of the store of answers and of the ledger: one thread, to which everything is handed that is to be written.

Whatever waits goes together: the lines of the ledger first, made durable, then one transaction, then whoever waits is told.
`spent` is always folded from the files, never counted beside them, so a crash between the two leaves nothing to repair but
what the next transaction does anyway. A file that is damaged, or of another version, is moved aside and made anew.

While the disk or the file refuses, what was paid for is kept in memory, tried again every `RETRY_S`, and its askers are
told that it is not stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from pop.errors import PopError
from pop.models.calls import LOST, CallLine, InFlight, append_calls, day_files, ids_in
from pop.models.spent import TABLES, fold
from pop.store import Disk, DiskFailed

log = structlog.get_logger()

MAX_KEPT_BYTES = 128 * 2**20  # of answers that could not be written yet
MAX_KEPT_WARNINGS = 10_000
RETRY_S = 5.0
_VERSION = 2  # of the tables; a file of another version is moved aside
_BATCH = 500
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, request_sha256 TEXT NOT NULL, shared_key TEXT,
    stored_at REAL NOT NULL, answer TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS shared ON answers (shared_key, stored_at) WHERE shared_key IS NOT NULL;
{TABLES}
CREATE TABLE IF NOT EXISTS facts (topic TEXT, name TEXT, value TEXT, PRIMARY KEY (topic, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS warnings (
    run_id TEXT, text TEXT, instance TEXT, at TEXT, PRIMARY KEY (run_id, text)
) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""


class NotStored(PopError):
    """What should be kept could not be; nobody was told otherwise, and the store works again when the cause is gone."""

    code = "not-stored"


Warned = tuple[str, str, str, str]  # run, text, instance, at


@dataclass(frozen=True, slots=True)
class Row:
    """Of `answers`; one that cannot be read is replaced."""

    values: tuple[str, str, str | None, float, str]
    replaces: bool

    @property
    def size_bytes(self) -> int:
        return len(self.values[-1])


@dataclass
class Work:
    """Something for the writer; `done` is None when nobody waits for it."""

    answer: Row | None = None
    lines: Sequence[CallLine] = ()
    warning: Warned | None = None
    done: asyncio.Future[None] | None = None


class AnswerWriter:
    """Opens the file, repairs what a crash left, and writes what it is handed.

    Attributes:
        in_flight: The requests that are under way.
        facts: Small values that are not yet written, by topic and name; the next transaction takes them along.
        is_damaged: Somebody found the file damaged; it is made anew before the next transaction.
        is_behind: The last attempt to write failed.
        life: Counts the files that were made anew: older connections read a file that was moved aside.

    Raises:
        NotStored: The file cannot be opened.
    """

    def __init__(self, path: Path, calls: Path, *, durable: bool) -> None:
        self._path, self._calls = path, calls
        self._disk = Disk(durable=durable)
        self.in_flight = InFlight(path.with_name("in-flight.jsonl"))
        self.facts: dict[tuple[str, str], str] = {}
        self.is_damaged = False
        self.is_behind = False
        self.life = 0
        self._owed: dict[str, CallLine] = {}  # lines that found no room: they come with the next ones
        self._kept: dict[str, Row] = {}  # answers likewise, by key
        self._kept_warnings: dict[tuple[str, str], Warned] = {}  # and warnings
        self._in_ledger: set[str] = set()  # ids whose lines stand though their answers could not be stored
        self._unfolded: set[Path] = set()  # the files of these lines
        self._failed: DiskFailed | None = None  # the kernel lost data: nothing may be trusted until a restart
        self._db = self._begin()
        self._waiting: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="answers", daemon=True)
        self._thread.start()

    def hand(self, work: Work) -> None:
        """Have this written, with what else waits."""
        self._waiting.put(work)

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join(30.0)
        self.in_flight.close()

    def connect(self) -> sqlite3.Connection:
        """A connection of one's own, as durable as the writer's."""
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=30.0, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._disk.durable else 'OFF'}")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        return connection

    def _begin(self) -> sqlite3.Connection:
        """Open the file and fold what a crash left: lines beyond the offset, and requests that nobody ended."""
        try:
            connection = self._open()
            self._catch_up(connection, day_files(self._calls))
            self._end_lost(connection)
            self.in_flight.start()
        except (OSError, sqlite3.Error, PopError) as error:
            raise not_stored(error, where=self._path) from None
        return connection

    def _open(self) -> sqlite3.Connection:
        try:
            connection = self.connect()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if version != _VERSION and tables:
                connection.close()
                self._move_aside("it is of another version of POP")
                connection = self.connect()
            connection.executescript(_SCHEMA)
            for table in ("answers", "spent", "ledger", "facts", "warnings"):
                connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
            return connection
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._move_aside(str(error))
            connection = self.connect()
            connection.executescript(_SCHEMA)
            return connection

    def _move_aside(self, why: str) -> None:
        """Out of the way, for whoever wants to look; only the newest is kept."""
        aside = self._path.with_suffix(".damaged.db")
        log.error("answers.moved_aside", path=str(self._path), to=aside.name, why=why)
        os.replace(self._path, aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _catch_up(self, connection: sqlite3.Connection, files: Sequence[Path]) -> None:
        sizes = {path.name: path.stat().st_size for path in files}
        folded = dict(connection.execute("SELECT file, bytes FROM ledger"))
        connection.execute("BEGIN IMMEDIATE")
        if any(sizes.get(name, 0) < size_bytes for name, size_bytes in folded.items()):
            log.warning("spent.rebuilt", why="somebody changed the ledger")
            connection.execute("DELETE FROM spent")
            connection.execute("DELETE FROM ledger")
            folded = {}
        fold(connection, [path for path in files if sizes[path.name] != folded.get(path.name)])
        connection.execute("COMMIT")

    def _end_lost(self, connection: sqlite3.Connection) -> None:
        """A request that is in no ledger may have been billed: it goes there with the tokens we expected. Repeatable."""
        left = self.in_flight.left()
        if not left:
            return
        for path in day_files(self._calls, since=min(line.day for line in left.values())):
            for call_id in ids_in(path):
                left.pop(call_id, None)
        lines = [
            line.model_copy(update={"outcome": LOST, "billed": line.provider != "replay", "estimated": True})
            for line in left.values()
        ]
        if lines:
            log.warning("calls.lost", count=len(lines))
            self._catch_up(connection, append_calls(self._disk, self._calls, lines) and day_files(self._calls))

    def _write(self) -> None:
        going = True
        while going:
            batch, going = self._batch()
            error = self._commit(batch)
            told = [work.done for work in batch if work.done is not None]
            if told:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    told[0].get_loop().call_soon_threadsafe(_resolve, told, error)
            elif error is not None and batch:
                log.error("answers.not_written", why=error.message)
        if self._kept:
            log.error("answers.lost", why="they could not be written until the end", count=len(self._kept))
        self._db.close()

    def _batch(self) -> tuple[list[Work], bool]:
        """Whatever waits, at least one, or none when it is time to try again; and whether more will come."""
        batch: list[Work] = []
        while not batch or (not self._waiting.empty() and len(batch) < _BATCH):
            try:
                work = self._waiting.get(timeout=RETRY_S if self.is_behind else None)
            except queue.Empty:
                return batch, True
            if work is None:
                return batch, False
            batch.append(work)
        return batch, True

    def _commit(self, batch: list[Work]) -> NotStored | None:
        given = {line.id: line for work in batch for line in work.lines}
        self._owed.update((call_id, line) for call_id, line in given.items() if call_id not in self._in_ledger)
        lines = list(self._owed.values())
        answers = [work.answer for work in batch if work.answer is not None]
        warnings = [work.warning for work in batch if work.warning is not None]
        try:
            if self._failed is not None:
                raise self._failed
            if lines:
                self._unfolded.update(append_calls(self._disk, self._calls, lines))
            self.in_flight.end(self._owed)
            self._in_ledger.update(self._owed)
            self._owed.clear()
            self._transact([*self._kept.values(), *answers], [*self._kept_warnings.values(), *warnings])
            self._in_ledger.difference_update(given)
            for kept in (self._unfolded, self._kept, self._kept_warnings):
                kept.clear()
            self.is_behind = False
            return None
        except (OSError, sqlite3.Error, PopError) as error:
            self._failed = error if isinstance(error, DiskFailed) else self._failed
            self.is_behind = True
            self._keep(answers, warnings)
            return not_stored(error)
        except Exception as error:  # a bug; who waits must not wait for ever
            log.exception("answers.bug")
            self.is_behind = True
            return not_stored(error)

    def _keep(self, answers: Iterable[Row], warnings: Iterable[Warned]) -> None:
        """They were paid for, or told to nobody yet: the next transaction writes them, as far as there is room for them."""
        size_bytes = sum(row.size_bytes for row in self._kept.values())
        for row in answers:
            size_bytes += row.size_bytes
            if size_bytes > MAX_KEPT_BYTES:
                log.error("answers.lost", why="too many could not be written")
                break
            self._kept.setdefault(row.values[0], row)
        for warning in warnings:
            if len(self._kept_warnings) < MAX_KEPT_WARNINGS:
                self._kept_warnings.setdefault(warning[:2], warning)

    def _transact(self, answers: list[Row], warnings: list[Warned]) -> None:
        for is_last in (False, True):
            try:
                if self.is_damaged:
                    self._renew()
                return self._try(answers, warnings)
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                self.is_damaged |= is_damage(error)
                if is_last or not self.is_damaged:
                    raise

    def _try(self, answers: list[Row], warnings: list[Warned]) -> None:
        connection, facts = self._db, dict(self.facts)
        connection.execute("BEGIN IMMEDIATE")
        for row in answers:
            how = "REPLACE" if row.replaces else "IGNORE"
            columns = "(key, request_sha256, shared_key, stored_at, answer)"
            connection.execute(f"INSERT OR {how} INTO answers {columns} VALUES (?, ?, ?, ?, ?)", row.values)
        connection.executemany("INSERT OR IGNORE INTO warnings VALUES (?, ?, ?, ?)", warnings)
        rows = [(topic, name, value) for (topic, name), value in facts.items()]
        connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows)
        fold(connection, sorted(self._unfolded))
        connection.execute("COMMIT")
        for fact, value in facts.items():
            if self.facts.get(fact) == value:
                del self.facts[fact]

    def _renew(self) -> None:
        """The file turned out to be damaged: a new one in its place, with the sums of the ledger."""
        self._db.close()
        self._move_aside("it is damaged")
        self._db = self._open()
        self._catch_up(self._db, day_files(self._calls))
        self.is_damaged = False
        self.life += 1


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, not what was asked of it."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGED


def not_stored(error: Exception, what: str = "written", where: Path | None = None) -> NotStored:
    """The error as one of the store."""
    if isinstance(error, NotStored):
        return error
    code = error.code if isinstance(error, PopError) else None
    said = error.message if isinstance(error, PopError) else getattr(error, "strerror", None) or str(error)
    hint = error.hint if isinstance(error, PopError) else "see pop doctor"
    return NotStored(f"the store of answers cannot be {what}: {said}", where=where, hint=hint, code=code)


def _resolve(told: list[asyncio.Future[None]], error: NotStored | None) -> None:
    for done in told:
        if done.done():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(NotStored(error.message, hint=error.hint, code=error.code))
