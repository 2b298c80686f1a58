"""An index of all runs, so that a page of them costs the same with a hundred and with a hundred thousand.

It is derived: ``.pop/index.db`` may be deleted at any time, also under a server that works with it, and several processes
may use it at once. What it is made from:

| what                            | how it is noticed                                             |
|---------------------------------|---------------------------------------------------------------|
| ``pipeline-complete/runs.jsonl``  | read from where the last look ended; a file that is another one, or shorter, is read anew |
| ``pipeline-current/<run>/``       | one stat of ``tasks-status.json`` for each; read when it changed |
| a run that left pipeline-current | the ledger's line, else its record.json, else it is gone       |
| ``pipeline-pending/``, ``rejected/`` | the names, listed anew when the folder changed; kept in memory |

`refresh` works for a while and comes back, so that a page can be shown while a long ledger is read for the first time:
`behind_bytes` says how much is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import orjson

from pop import events
from pop.queue import is_candidate
from pop.runs import Run
from pop.settings import Root

T = TypeVar("T")
SCHEMA = 1
ROWS_AT_ONCE = 1000
READ_BYTES = 2**20
PAGE = 50
TEXT_MOST = 300
GROUPS: Mapping[str, tuple[str, ...]] = {
    "active": ("running", "queued", "paused"),
    "waiting": ("waiting",),
    "failed": ("failed", "cancelled", "unreadable"),
    "complete": ("complete",),
}
COLUMNS = (
    "run_id", "place", "state", "at", "name", "pipeline", "created_at", "started_at", "finished_at", "seconds", "progress",
    "doing", "error", "steps", "calls", "tokens", "cost_usd", "models", "words", "version",
)  # fmt: skip
TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, place TEXT, state TEXT, at TEXT, name TEXT, pipeline TEXT, created_at TEXT, started_at TEXT,
    finished_at TEXT, seconds REAL, progress REAL, doing TEXT, error TEXT, steps INTEGER, calls INTEGER, tokens INTEGER,
    cost_usd REAL, models TEXT, words TEXT, version TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_state ON runs (state, at DESC, run_id DESC);
CREATE INDEX IF NOT EXISTS by_time ON runs (at DESC, run_id DESC);
CREATE INDEX IF NOT EXISTS by_pipeline ON runs (pipeline, at DESC, run_id DESC);
CREATE INDEX IF NOT EXISTS by_place ON runs (place, version) WHERE place = 'current';
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""
_PUT = f"INSERT OR REPLACE INTO runs VALUES ({', '.join('?' * len(COLUMNS))})"
_SHOWN = ", ".join(column for column in COLUMNS if column not in ("words", "version", "place"))


@dataclass(frozen=True)
class Row:
    """One run. `at` is when it finished or came to rest, and while it runs when it was made; `doing` what it does or
    waits for. Times RFC 3339, `seconds` between start and finish."""

    run_id: str
    state: str
    at: str
    name: str
    pipeline: str
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    seconds: float | None
    progress: float
    doing: str | None
    error: str | None
    steps: int
    calls: int
    tokens: int
    cost_usd: float
    models: str


@dataclass(frozen=True)
class Asked:
    """Which runs: all fields narrow. `state` is a state, or one of GROUPS; `text` are words that must all occur in id,
    name, pipeline, models or error; `since` an RFC 3339 time or day."""

    state: str = ""
    text: str = ""
    pipeline: str = ""
    since: str = ""


@dataclass(frozen=True)
class Found:
    """A page of runs, the newest first; pages are counted from 1, and the last one stands for those beyond it."""

    rows: list[Row]
    total: int
    page: int
    pages: int


class RunIndex:
    """The index of one root. Any thread may call it."""

    def __init__(self, root: Root, path: Path | None = None) -> None:
        self._root = root
        self._path = path or root.machine_room / "index.db"
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._inode = self._reader_inode = 0
        self._versions: dict[str, str] = {}
        self._versions_of = ""
        self._pending = _Names(root.pending)
        self._rejected = _Names(root.rejected, ".reason.json")
        self._cached: dict[tuple[Any, ...], Any] = {}
        self._damaged = False
        self.behind_bytes = 0
        self.trouble: str | None = None

    # -- keeping it current ------------------------------------------------------------------------------------

    def refresh(self, patience_s: float = 1.0) -> str:
        """Take in what changed, for about so long; returns the `mark` it stands at then."""
        self._pending.look()
        self._rejected.look()
        self._mend_and_refresh(time.monotonic() + patience_s)
        mark = self.mark()
        if self._damaged:  # readers found what the writer did not
            self._mend_and_refresh(time.monotonic() + patience_s)
            mark = self.mark()
        return mark

    def _mend_and_refresh(self, until: float) -> None:
        with self._writing:
            try:
                self._mending(until)
                self.trouble = None
            except (OSError, sqlite3.Error) as error:  # a full disk, say: what is there is shown
                self._close_writer()
                self.trouble = f"the index of runs cannot be kept: {error}"

    def mark(self) -> str:
        """Where it stands: another text when any run, or what is pending or rejected, changed; the same in every process."""
        return f"{self._meta_read('epoch')}-{self._meta_read('revision')}-{self._pending.mark}-{self._rejected.mark}"

    def _refresh(self, until: float) -> None:
        db = self._open()
        if not self._is_news(db):
            return
        db.execute("BEGIN IMMEDIATE")
        try:
            changed = self._look_at_current(db, until) + self._read_ledger(db, until)
            if changed:
                self._set(db, "revision", str(int(self._get(db, "revision") or 0) + 1))
            revision = f"{self._get(db, 'epoch')}-{self._get(db, 'revision')}"
            db.execute("COMMIT")
            self._versions_of = revision
        except BaseException:
            self._versions_of = ""
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _is_news(self, db: sqlite3.Connection) -> bool:
        """Whether a transaction is worth while; looks at files alone."""
        self._load_versions(db)
        listed = dict(self._listed())
        self._now = listed
        return listed != self._versions or self._ledger_state() != self._get(db, "ledger_state")

    def _load_versions(self, db: sqlite3.Connection) -> None:
        revision = f"{self._get(db, 'epoch')}-{self._get(db, 'revision')}"
        if revision != self._versions_of:  # another process wrote, or the file is new
            self._versions = dict(db.execute("SELECT run_id, version FROM runs WHERE place = 'current'"))
            self._versions_of = revision

    _now: Mapping[str, str] = {}

    def _listed(self) -> Iterator[tuple[str, str]]:
        """The runs of pipeline-current/, each with what its status file looks like from outside."""
        base = os.fspath(self._root.current)
        try:
            names = os.listdir(base)
        except OSError:
            return
        for name in names:
            if name[:1] == ".":
                continue
            for inner in ("tasks-status.json", "events.jsonl", "."):
                try:
                    info = os.stat(f"{base}/{name}/{inner}")
                except OSError:
                    continue
                yield name, f"{inner[0]}{info.st_mtime_ns}.{info.st_size}.{info.st_ino}"
                break

    def _look_at_current(self, db: sqlite3.Connection, until: float) -> int:
        now, known = self._now, self._versions
        changed = [name for name, version in now.items() if known.get(name) != version]
        gone = [name for name in known if name not in now]
        for name in gone:
            self._left_current(db, name)
            del known[name]
        for name in changed:
            run_dir = self._root.current / name
            row = _row_of_status(name, Run(run_dir, "current").status())
            if run_dir.is_dir():
                db.execute(_PUT, _values(row, "current", now[name]))
                known[name] = now[name]
            if time.monotonic() > until:
                break  # the others at the next look
        return len(changed) + len(gone)

    def _left_current(self, db: sqlite3.Connection, run_id: str) -> None:
        """A run that was promoted, or that somebody took away."""
        try:
            record = orjson.loads((self._root.complete / run_id / "record.json").read_bytes())
            db.execute(_PUT, _values(_row_of_record(record), "complete", ""))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            db.execute("DELETE FROM runs WHERE run_id = ? AND place = 'current'", (run_id,))

    # -- the ledger --------------------------------------------------------------------------------------------

    def _ledger_state(self) -> str:
        try:
            info = os.stat(self._root.ledger)
        except OSError:
            return ""
        return f"{info.st_ino}.{info.st_size}.{info.st_mtime_ns}"

    def _read_ledger(self, db: sqlite3.Connection, until: float) -> int:
        state = self._ledger_state()
        if state == self._get(db, "ledger_state"):
            return 0
        offset, changed = int(self._get(db, "ledger_bytes") or 0), 0
        try:
            file = open(self._root.ledger, "rb")
        except FileNotFoundError:
            file = None
        if file is None or not self._is_same(db, file, offset):
            changed += db.execute("DELETE FROM runs WHERE place = 'complete'").rowcount
            offset = 0
        if file is None:
            self._note_ledger(db, None, 0, state)
            return changed or 1
        with file:
            file.seek(offset)
            size = os.fstat(file.fileno()).st_size
            while offset < size:
                lines = _whole_lines(file)
                if not lines:
                    break  # a torn end: it is mended or goes on
                db.executemany(_PUT, _complete_rows(lines, self._now))
                offset += sum(map(len, lines))
                changed += len(lines)
                if time.monotonic() > until:
                    break
            self.behind_bytes = max(0, size - offset)
            done = self.behind_bytes == 0 or not lines
            if done:
                self.behind_bytes = 0
                changed += self._add_unwritten(db)
            self._note_ledger(db, file, offset, state if done else "behind")
        return changed

    def _add_unwritten(self, db: sqlite3.Connection) -> int:
        """Runs that were moved by a daemon which did not live to write their lines: the next one writes them."""
        try:
            names = (self._root.machine_room / "promoting").read_text().split()
        except (OSError, ValueError):
            return 0
        before = db.total_changes
        for name in names:
            if "-" in name and "/" not in name and name not in self._now:
                if db.execute("SELECT 1 FROM runs WHERE run_id = ?", (name,)).fetchone() is None:
                    self._left_current(db, name)
        return db.total_changes - before

    def _is_same(self, db: sqlite3.Connection, file: Any, offset: int) -> bool:
        """Whether what was read of the ledger still stands in it, at the same place."""
        info = os.fstat(file.fileno())
        if offset == 0 or str(info.st_ino) != self._get(db, "ledger_inode") or info.st_size < offset:
            return False
        return _end_of(file, offset) == self._get(db, "ledger_end")

    def _note_ledger(self, db: sqlite3.Connection, file: Any, offset: int, state: str) -> None:
        self._set(db, "ledger_bytes", str(offset))
        self._set(db, "ledger_state", state)
        self._set(db, "ledger_inode", str(os.fstat(file.fileno()).st_ino) if file else "")
        self._set(db, "ledger_end", _end_of(file, offset) if file else "")

    # -- asking ------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many runs are in each state; and what is ``pending`` and ``rejected``."""
        found = self._cache(("counts",), lambda: dict(self._ask("SELECT state, count(*) FROM runs GROUP BY state")))
        return {**found, "pending": len(self._pending.names), "rejected": len(self._rejected.names)}

    def query(self, asked: Asked = Asked(), page: int = 1, size: int = PAGE) -> Found:
        """A page of what is asked for."""
        where, values = _where(asked)
        count = f"SELECT count(*) FROM runs {where}"
        total = self._cache((count, *values), lambda: int(self._ask(count, values)[0][0]))
        pages = max(1, -(-total // size))
        page = min(max(1, page), pages)
        order = "ORDER BY at DESC, run_id DESC"
        chosen = (
            f"SELECT run_id FROM runs {where} {order} LIMIT ? OFFSET ?"  # from an index, where no words are asked for
        )
        query = f"SELECT {_SHOWN} FROM runs WHERE run_id IN ({chosen}) {order}"
        rows = self._ask(query, [*values, size, (page - 1) * size])
        return Found([Row(*row) for row in rows], total, page, pages)

    def pipelines(self) -> list[str]:
        """The names of all pipelines that runs have, sorted."""
        # one step of the index for each name, not one for each run
        query = (
            "WITH RECURSIVE found(one) AS (SELECT min(pipeline) FROM runs UNION ALL "
            "SELECT (SELECT min(pipeline) FROM runs WHERE pipeline > one) FROM found WHERE one IS NOT NULL) "
            "SELECT one FROM found WHERE one > '' LIMIT 500"
        )
        return self._cache(("pipelines",), lambda: [row[0] for row in self._ask(query)])

    def finished_since(self, times: Sequence[str]) -> list[int]:
        """How many runs finished between each of these times and the next, and after the last."""
        counted = []
        for begin, end in zip(times, [*times[1:], "9"], strict=True):
            query = "SELECT count(*) FROM runs WHERE state = 'complete' AND at >= ? AND at < ?"
            counted.append(int(self._ask(query, (begin, end))[0][0]))
        return counted

    def pending_names(self) -> list[str]:
        """Every name in pipeline-pending/ that may be a seed, sorted."""
        return self._pending.names

    def rejected_names(self) -> list[str]:
        """The names of what was refused, sorted."""
        return self._rejected.names

    def _cache(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """The value of a question, kept until the index changes."""
        revision = (self._meta_read("epoch"), self._meta_read("revision"))
        kept = self._cached.get(key)
        if kept is None or kept[0] != revision:
            if len(self._cached) > 200:
                self._cached.clear()
            kept = self._cached[key] = (revision, make())
        value: T = kept[1]
        return value

    # -- the file ----------------------------------------------------------------------------------------------

    def _ask(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._reading:
            for _ in range(2):
                try:
                    return self._reading_connection().execute(query, values).fetchall()
                except (OSError, sqlite3.Error) as error:  # deleted or damaged under us; a refresh makes it anew
                    self._damaged = self._damaged or (isinstance(error, sqlite3.Error) and not _is_busy(error))
                    self._close_reader()
        return [(0,)] if query.startswith("SELECT count") else []

    def _meta_read(self, key: str) -> str:
        rows = self._ask("SELECT value FROM meta WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else ""

    def _reading_connection(self) -> sqlite3.Connection:
        inode = os.stat(self._path).st_ino
        if self._reader is None or inode != self._reader_inode:
            self._close_reader()
            uri = f"{self._path.absolute().as_uri()}?mode=ro"
            self._reader = sqlite3.connect(uri, uri=True, timeout=2.0, check_same_thread=False, isolation_level=None)
            self._reader_inode = inode
        return self._reader

    def _mending(self, until: float) -> None:
        """Refresh; where the file is damaged, with a new one."""
        try:
            if self._damaged:
                raise sqlite3.DatabaseError("damaged")
            self._refresh(until)
        except sqlite3.Error as error:
            if not _is_busy(error):
                self._begin_anew()
                self._refresh(until)
            # else another process is at it, and we shall see what it finds

    def _open(self) -> sqlite3.Connection:
        try:
            inode = os.stat(self._path).st_ino
        except OSError:
            inode = 0
        if self._writer is not None and inode == self._inode:
            return self._writer
        self._close_writer()
        self._inode = inode
        try:
            self._writer = self._connect()
        except OSError:
            if self._own is not None:
                raise
            self._own = tempfile.TemporaryDirectory(prefix="pop-index-")  # a root that we may only read
            self._path = Path(self._own.name, "index.db")
            self._writer = self._connect()
        self._inode = os.stat(self._path).st_ino
        return self._writer

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        made = sqlite3.connect(self._path, timeout=5.0, check_same_thread=False, isolation_level=None)
        try:
            made.execute("PRAGMA journal_mode = WAL")
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

    def _begin_anew(self) -> None:
        self._close_writer()
        with self._reading:
            self._close_reader()
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self._path).st_ino == self._inode:  # else another process was first
                for end in ("-wal", "-shm", ""):
                    Path(f"{self._path}{end}").unlink(missing_ok=True)
        self._damaged = False

    def _get(self, db: sqlite3.Connection, key: str) -> str | None:
        row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _set(self, db: sqlite3.Connection, key: str, value: str) -> None:
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._versions, self._versions_of = None, {}, ""

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def close(self) -> None:
        with self._writing:
            self._close_writer()
        with self._reading:
            self._close_reader()
        if self._own is not None:
            self._own.cleanup()


def _is_busy(error: sqlite3.Error) -> bool:
    return isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "busy" in str(error))


class _Names:
    """The names in a folder, listed anew when it changed."""

    def __init__(self, folder: Path, suffix: str = "") -> None:
        self._folder = folder
        self._suffix = suffix
        self._seen_at = 0.0
        self.mark = 0
        self.names: list[str] = []

    def look(self) -> None:
        try:
            mtime_ns = os.stat(self._folder).st_mtime_ns
        except OSError:
            self.names, self.mark = [], 0
            return
        settled = (
            mtime_ns / 1e9 < self._seen_at - 2.0
        )  # two changes within one tick of the file system's clock look alike
        if mtime_ns == self.mark and settled:
            return
        self._seen_at = time.time()
        try:
            names = os.listdir(self._folder)
        except OSError:
            return
        if self._suffix:
            self.names = sorted(name.removesuffix(self._suffix) for name in names if name.endswith(self._suffix))
        else:
            self.names = sorted(name for name in names if is_candidate(name))
        self.mark = mtime_ns


def _whole_lines(file: Any) -> list[bytes]:
    """The next lines that end in a newline; the file then stands behind them."""
    lines: list[bytes] = file.readlines(READ_BYTES)
    if lines and not lines[-1].endswith(b"\n"):
        file.seek(-len(lines.pop()), os.SEEK_CUR)
    return lines[: 50 * ROWS_AT_ONCE]


def _end_of(file: Any, offset: int) -> str:
    """What stands before an offset, as a hash."""
    start = max(0, offset - 512)
    return hashlib.sha256(os.pread(file.fileno(), offset - start, start)).hexdigest()


def _complete_rows(lines: Iterable[bytes], current: Mapping[str, str]) -> Iterator[Sequence[Any]]:
    for line in lines:
        try:
            row = _row_of_record(orjson.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError):  # none of ours: it is passed over
            continue
        if row.run_id not in current:
            yield _values(row, "complete", "")


def _row_of_record(record: dict[str, Any]) -> Row:
    usage = record.get("usage") or {}
    finished = _text(record.get("finished_at"))
    return Row(
        run_id=_text(record["run_id"]) or "",
        state="complete",
        at=finished or _text(record.get("created_at")) or "",
        name=_text(record.get("name")) or _text(record["run_id"]) or "",
        pipeline=_text(record.get("pipeline")) or "",
        created_at=_text(record.get("created_at")),
        started_at=_text(record.get("started_at")),
        finished_at=finished,
        seconds=_number(record.get("seconds")),
        progress=1.0,
        doing=None,
        error=None,
        steps=len(record.get("tasks") or ()),
        calls=int(_number(usage.get("calls"))),
        tokens=int(_number(usage.get("input_tokens")) + _number(usage.get("output_tokens"))),
        cost_usd=_number(usage.get("cost_usd")),
        models=_text(", ".join(map(str, record.get("models") or ()))) or "",
    )


def _row_of_status(run_id: str, status: dict[str, Any]) -> Row:
    usage = status.get("usage") if isinstance(status.get("usage"), dict) else {}
    error = status.get("error")
    told = f"{error.get('error_class')}: {error.get('message')}" if isinstance(error, dict) else None
    state = _text(status.get("state")) or "unreadable"
    current = status.get("current")
    doing = status.get("waiting_for") or ", ".join(map(str, (current if isinstance(current, list) else [])[:4]))
    created, finished = _text(status.get("created_at")), _text(status.get("finished_at"))
    row = _row_of_record({**status, "run_id": run_id, "tasks": status.get("tasks") or {}, "usage": usage, "models": []})
    at = created if state in ("running", "queued") else finished or _text(status.get("updated_at")) or created
    return replace(
        row,
        state=state,
        at=at or events.rfc3339(0),
        seconds=None,
        progress=_number(status.get("progress")),
        doing=_text(doing) or None,
        error=_text(told),
    )


def _values(row: Row, place: str, version: str) -> Sequence[Any]:
    words = f"{row.run_id} {row.name} {row.pipeline} {row.models} {row.error or ''} {row.doing or ''}".casefold()
    return (
        row.run_id, place, row.state, row.at, row.name, row.pipeline, row.created_at, row.started_at, row.finished_at,
        row.seconds, row.progress, row.doing, row.error, row.steps, row.calls, row.tokens, row.cost_usd, row.models, words,
        version,
    )  # fmt: skip


def _text(value: Any) -> str | None:
    """What people or models wrote: cut, and without what no UTF-8 has."""
    return None if value is None else str(value)[:TEXT_MOST].encode("utf-8", "replace").decode()


def _number(value: Any) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15
    return float(value) if fits else 0.0


def _where(asked: Asked) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    if asked.state:
        states = GROUPS.get(asked.state, (asked.state,))
        parts.append(f"state IN ({', '.join('?' * len(states))})")
        values += states
    if asked.pipeline:
        parts.append("pipeline = ?")
        values.append(asked.pipeline)
    if asked.since:
        parts.append("at >= ?")
        values.append(asked.since)
    for word in asked.text.casefold().split()[:8]:
        parts.append("instr(words, ?) > 0")
        values.append(word)
    return ("WHERE " + " AND ".join(parts) if parts else ""), values
