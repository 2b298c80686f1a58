"""The store of answers, in one SQLite file; and the writer of the ledger, whose sums are folded into the same file.

| table    | a row is                                                                                          |
|----------|---------------------------------------------------------------------------------------------------|
| answers  | an answer by `request.answer_key` and, where it may serve others too, by `shared_key`              |
| spent    | sums, with `ledger`: see pop/models/spent.py                                                       |
| facts    | something small that was learnt and survives a restart                                             |
| warnings | a budget's warning to a run                                                                        |

One thread writes; whatever waits goes together: the lines of the ledger first, made durable, then one transaction, then
whoever waits is told. `spent` is always folded from the files, never counted beside them, so a crash between the two leaves
nothing to repair but what the next transaction does anyway. Answers, facts and warnings are lost with ``.pop``; sums are not.

While the disk or the file refuses, what was paid for is kept in memory, tried again every `RETRY_S`, and handed out once it
is written; `ready` keeps the next calls from being made meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import structlog
from pydantic import ValidationError

from pop.errors import PopError
from pop.models.calls import ANSWER, LOST, CallLine, InFlight, Scope, Sum, append_calls, day_files, ids_in
from pop.models.request import Answer, ModelError
from pop.models.spent import TABLES, fold, spent_in, sum_of
from pop.store import Disk, DiskFailed

log = structlog.get_logger()

MAX_ANSWER_BYTES = 32 * 2**20
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


@dataclass(frozen=True, slots=True)
class _Row:
    """Of `answers`; one that cannot be read is replaced."""

    values: tuple[str, str, str | None, float, str]
    replaces: bool

    @property
    def size_bytes(self) -> int:
        return len(self.values[-1])


@dataclass
class _Work:
    """Something for the writer; `done` is None when nobody waits for it."""

    answer: _Row | None = None
    lines: Sequence[CallLine] = ()
    warning: tuple[str, str, str, str] | None = None
    done: asyncio.Future[None] | None = None


@dataclass
class _State:
    """What the two threads share."""

    facts: dict[tuple[str, str], str] = field(default_factory=dict)  # not yet written
    owed: dict[str, CallLine] = field(default_factory=dict)  # lines that found no room: they come with the next ones
    kept: dict[str, _Row] = field(default_factory=dict)  # answers likewise, by key
    kept_warnings: dict[tuple[str, str], tuple[str, str, str, str]] = field(default_factory=dict)  # and warnings
    in_ledger: set[str] = field(default_factory=set)  # ids whose lines stand though their answers could not be stored
    unfolded: set[Path] = field(default_factory=set)  # the files of these lines
    is_damaged: bool = False
    is_behind: bool = False  # the last attempt to write failed
    life: int = 0  # counts the files that were made anew
    failed: DiskFailed | None = None  # the kernel lost data: nothing may be trusted until a restart


class AnswerStore:
    """Owned by the gateway; all methods are called from its event loop. One at a time on a file.

    Args:
        calls: The folder of the ledger.
        durable: False lets the kernel decide when something reaches the disk.
        patience_s: How long to wait for an earlier gateway that is still ending.

    Raises:
        NotStored: The disk is full, or another gateway holds the store.
    """

    def __init__(self, path: Path, *, calls: Path, durable: bool = True, patience_s: float = 10.0) -> None:
        self._path, self._calls = path, calls
        self._disk = Disk(durable=durable)
        self._state = _State()
        self._unreadable: set[str] = set()
        self._lock = _hold(path.with_suffix(".lock"), patience_s)
        self.in_flight = InFlight(path.with_name("in-flight.jsonl"))
        self._writer_db = self._begin()
        self._reader, self._reader_life = self._connect(), self._state.life
        self._facts = {
            (topic, name): orjson.loads(value)
            for topic, name, value in self._reader.execute("SELECT topic, name, value FROM facts")
        }
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="answers", daemon=True)
        self._thread.start()

    # -- answers -------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Answer | None:
        """The stored answer, or None.

        Raises:
            NotStored: The file cannot be read.
        """
        row = self._ask("SELECT answer FROM answers WHERE key = ?", (key,))
        return self._answer(key, row[0]) if row else None

    def reusable(self, shared_key: str, younger_than_s: float) -> Answer | None:
        """The newest answer under this shared key, when it is not older than that; `key` is the one it was stored by.

        Raises:
            NotStored: The file cannot be read.
        """
        row = self._ask(
            "SELECT key, answer FROM answers WHERE shared_key = ? AND stored_at >= ? ORDER BY stored_at DESC LIMIT 1",
            (shared_key, time.time() - younger_than_s),
        )
        return self._answer(row[0], row[1]) if row else None

    async def put(
        self, key: str, request_sha256: str, shared_key: str | None, answer: Answer, lines: Sequence[CallLine] = ()
    ) -> None:
        """Returns when the answer and the lines of the ledger are durable. The first answer under a key stays.

        Args:
            shared_key: Under which others may reuse it; None: nobody (so it is for what was itself reused, which would
                otherwise seem young again).

        Raises:
            NotStored: They are not. Lines of the same calls may be given again; they are never written twice.
            ModelError: The answer cannot be stored whoever tries (too large, no text); its lines are in the ledger.
        """
        problem = None
        try:
            data = answer.model_dump_json()
            if len(data) > MAX_ANSWER_BYTES:
                problem = f"the answer has {len(data) / 2**20:.0f} MB, more than {MAX_ANSWER_BYTES / 2**20:.0f}"
        except ValueError:  # half a surrogate pair
            problem = "the answer holds what no text can"
        if problem is not None:
            await self.note([line.model_copy(update={"outcome": "invalid_output"}) if line.outcome == ANSWER else line
                             for line in lines])  # fmt: skip
            raise ModelError("invalid_output", problem, where=f"model {answer.model!r}", code="unstorable")
        row = _Row((key, request_sha256, shared_key, time.time(), data), replaces=key in self._unreadable)
        await self._hand_over(_Work(answer=row, lines=lines))

    async def note(self, lines: Sequence[CallLine]) -> None:
        """Write calls that brought no answer into the ledger; returns when they are durable.

        Raises:
            NotStored: They are not.
        """
        if lines:
            await self._hand_over(_Work(lines=lines))

    @property
    def is_behind(self) -> bool:
        """Whether something could not be written and is kept in memory."""
        return self._state.is_behind

    async def ready(self) -> None:
        """Return when what could not be written before is.

        Raises:
            NotStored: It still cannot be: nothing more may be spent.
        """
        if self.is_behind:
            await self._hand_over(_Work())

    def begin(self, line: CallLine) -> None:
        """Note that a request is about to go out, with the tokens we expect. A line with its `id` ends it, or `forget`.

        Raises:
            NotStored: It cannot be noted, so the request must not go out.
        """
        try:
            self.in_flight.begin(line)
        except OSError as error:
            raise _not_stored(error) from None

    def forget(self, call_id: str) -> None:
        """The request that `begin` noted reached nobody who would count it; the ledger needs no line of it."""
        self.in_flight.forget(call_id)

    # -- facts and warnings --------------------------------------------------------------------------------------------

    def recall(self, topic: str, name: str) -> Any | None:
        """What `remember` was given last, or None."""
        return self._facts.get((topic, name))

    def remember(self, topic: str, name: str, value: Any) -> None:
        """Keep a small JSON value; it reaches the disk with the next answer, at the latest when the store is closed."""
        if self._facts.get((topic, name)) != value:
            self._facts[topic, name] = value
            self._state.facts[topic, name] = orjson.dumps(value).decode()

    def warn(self, run_id: str, instance: str, text: str, at: str) -> None:
        """Leave a warning for a run; the same text to the same run is kept once."""
        self._waiting.put(_Work(warning=(run_id, text, instance, at)))

    # -- sums ----------------------------------------------------------------------------------------------------------

    def totals(self, scope: Scope) -> Sum:
        """What was spent within a budget's scope.

        Raises:
            NotStored: The file cannot be read.
        """
        return sum_of(self._ask(spent_in(scope), scope[1:]) or ())

    # -- the reader's side ---------------------------------------------------------------------------------------------

    def _ask(self, query: str, values: Sequence[Any]) -> Any:
        try:
            if self._reader_life != self._state.life:
                self._reader.close()
                self._reader, self._reader_life = self._connect(), self._state.life
            return self._reader.execute(query, values).fetchone()
        except sqlite3.Error as error:
            self._state.is_damaged |= _is_damage(error)  # the writer makes it anew before it writes again
            raise _not_stored(error, "read") from None

    def _answer(self, key: str, data: str) -> Answer | None:
        try:
            return Answer.model_validate_json(data)
        except ValidationError:
            log.warning("answer.unreadable", key=key)
            self._unreadable.add(key)
            return None

    async def _hand_over(self, work: _Work) -> None:
        if self._lock < 0:  # what is under way stands in in-flight.jsonl
            raise NotStored("the store of answers is closed")
        work.done = asyncio.get_running_loop().create_future()
        self._waiting.put(work)
        await work.done

    def close(self) -> None:
        """Write what waits, and end."""
        if self._lock < 0:
            return
        lock, self._lock = self._lock, -1
        self._waiting.put(None)
        self._thread.join(30.0)
        self._reader.close()
        self.in_flight.close()
        os.close(lock)

    # -- the writer's side ---------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
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
            raise _not_stored(error, where=self._path) from None
        return connection

    def _open(self) -> sqlite3.Connection:
        try:
            connection = self._connect()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if version != _VERSION and tables:
                connection.close()
                self._move_aside("it is of another version of POP")
                connection = self._connect()
            connection.executescript(_SCHEMA)
            for table in ("answers", "spent", "ledger", "facts", "warnings"):
                connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
            return connection
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
            self._move_aside(str(error))
            connection = self._connect()
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
        if self._state.kept:
            log.error("answers.lost", why="they could not be written until the end", count=len(self._state.kept))
        self._writer_db.close()

    def _batch(self) -> tuple[list[_Work], bool]:
        """Whatever waits, at least one, or none when it is time to try again; and whether more will come."""
        batch: list[_Work] = []
        while not batch or (not self._waiting.empty() and len(batch) < _BATCH):
            try:
                work = self._waiting.get(timeout=RETRY_S if self.is_behind else None)
            except queue.Empty:
                return batch, True
            if work is None:
                return batch, False
            batch.append(work)
        return batch, True

    def _commit(self, batch: list[_Work]) -> NotStored | None:
        state = self._state
        given = {line.id: line for work in batch for line in work.lines}
        state.owed.update((call_id, line) for call_id, line in given.items() if call_id not in state.in_ledger)
        lines = list(state.owed.values())
        answers = [work.answer for work in batch if work.answer is not None]
        warnings = [work.warning for work in batch if work.warning is not None]
        try:
            if state.failed is not None:
                raise state.failed
            if lines:
                state.unfolded.update(append_calls(self._disk, self._calls, lines))
            self.in_flight.end(state.owed)
            state.in_ledger.update(state.owed)
            state.owed.clear()
            self._transact([*state.kept.values(), *answers], [*state.kept_warnings.values(), *warnings])
            state.in_ledger.difference_update(given)
            for kept in (state.unfolded, state.kept, state.kept_warnings):
                kept.clear()
            state.is_behind = False
            return None
        except (OSError, sqlite3.Error, PopError) as error:
            state.failed = error if isinstance(error, DiskFailed) else state.failed
            state.is_behind = True
            self._keep(answers, warnings)
            return _not_stored(error)
        except Exception as error:  # a bug; who waits must not wait for ever
            log.exception("answers.bug")
            state.is_behind = True
            return _not_stored(error)

    def _keep(self, answers: Iterable[_Row], warnings: Iterable[tuple[str, str, str, str]]) -> None:
        """They were paid for, or told to nobody yet: the next transaction writes them, as far as there is room for them."""
        state = self._state
        size_bytes = sum(row.size_bytes for row in state.kept.values())
        for row in answers:
            size_bytes += row.size_bytes
            if size_bytes > MAX_KEPT_BYTES:
                log.error("answers.lost", why="too many could not be written")
                break
            state.kept.setdefault(row.values[0], row)
        for warning in warnings:
            if len(state.kept_warnings) < MAX_KEPT_WARNINGS:
                state.kept_warnings.setdefault(warning[:2], warning)

    def _transact(self, answers: list[_Row], warnings: list[tuple[str, str, str, str]]) -> None:
        for is_last in (False, True):
            try:
                if self._state.is_damaged:
                    self._renew()
                return self._try(answers, warnings)
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    if self._writer_db.in_transaction:
                        self._writer_db.execute("ROLLBACK")
                self._state.is_damaged |= _is_damage(error)
                if is_last or not self._state.is_damaged:
                    raise

    def _try(self, answers: list[_Row], warnings: list[tuple[str, str, str, str]]) -> None:
        connection, facts = self._writer_db, dict(self._state.facts)
        connection.execute("BEGIN IMMEDIATE")
        for row in answers:
            how = "REPLACE" if row.replaces else "IGNORE"
            columns = "(key, request_sha256, shared_key, stored_at, answer)"
            connection.execute(f"INSERT OR {how} INTO answers {columns} VALUES (?, ?, ?, ?, ?)", row.values)
        connection.executemany("INSERT OR IGNORE INTO warnings VALUES (?, ?, ?, ?)", warnings)
        rows = [(topic, name, value) for (topic, name), value in facts.items()]
        connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows)
        fold(connection, sorted(self._state.unfolded))
        connection.execute("COMMIT")
        for fact, value in facts.items():
            if self._state.facts.get(fact) == value:
                del self._state.facts[fact]

    def _renew(self) -> None:
        """The file turned out to be damaged: a new one in its place, with the sums of the ledger."""
        self._writer_db.close()
        self._move_aside("it is damaged")
        self._writer_db = self._open()
        self._catch_up(self._writer_db, day_files(self._calls))
        self._state.is_damaged = False
        self._state.life += 1


def _hold(path: Path, patience_s: float) -> int:
    """An earlier gateway may still be ending; the kernel frees its lock when it has.

    Raises:
        NotStored: It does not end.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > give_up:
                os.close(fd)
                raise NotStored("another gateway holds the store of answers", where=path, hint="pop doctor") from None
            time.sleep(0.02)


def _is_damage(error: sqlite3.Error) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGED


def _not_stored(error: Exception, what: str = "written", where: Path | None = None) -> NotStored:
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


def prune(path: Path, older_than_s: float, *, dry_run: bool = False) -> int:
    """Remove answers that were stored longer ago than that and give their room back; returns how many.

    No gateway may run on the file. Sums stay.

    Raises:
        NotStored: The file cannot be read or written.
    """
    if not path.is_file():
        return 0
    before = time.time() - older_than_s
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5.0)) as connection:
            row = connection.execute("SELECT count(*) FROM answers WHERE stored_at < ?", (before,)).fetchone()
            if row[0] and not dry_run:
                connection.execute("DELETE FROM answers WHERE stored_at < ?", (before,))
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return int(row[0])
    except sqlite3.Error as error:
        raise _not_stored(error) from None
