"""Keeps the index current, and answers from it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson

from pop.queue import is_candidate
from pop.runindex.database import Database, is_busy, is_the_disks
from pop.runindex.rows import COLUMNS, Asked, Found, Row, Tally, row_of_record, row_of_status, values_of, where
from pop.runs import Run
from pop.settings import Root
from pop.store import NotAFile, open_regular, read_regular

T = TypeVar("T")
READ_BYTES = 2**20
MOST_LINE_BYTES = 2**26  # a longer line is none of ours: there it ends
PAGE = 50
EVERYTHING = Asked()
_PUT = f"INSERT OR REPLACE INTO runs VALUES ({', '.join('?' * len(COLUMNS))})"
_SHOWN = ", ".join(column for column in COLUMNS if column not in ("words", "version", "place"))


class RunIndex:
    """The index of one root. Any thread may call it."""

    def __init__(self, root: Root, path: Path | None = None) -> None:
        self._root = root
        self._db = Database(path or root.machine_room / "index.db")
        self._writing = threading.Lock()
        self._versions: dict[str, str] = {}
        self._versions_of = ""
        self._pending = _Names(root.pending)
        self._rejected = _Names(root.rejected, ".reason.json")
        self._cached: dict[tuple[Any, ...], Any] = {}
        self.behind_bytes = 0
        self.trouble: str | None = None

    # -- keeping it current ------------------------------------------------------------------------------------

    def refresh(self, patience_s: float = 1.0) -> str:
        """Take in what changed, for about so long; returns the `mark` it stands at then."""
        self._pending.look()
        self._rejected.look()
        self._mend_and_refresh(time.monotonic() + patience_s)
        mark = self.mark()
        if self._db.damaged:  # readers found what the writer did not
            self._mend_and_refresh(time.monotonic() + patience_s)
            mark = self.mark()
        return mark

    def _mend_and_refresh(self, until: float) -> None:
        with self._writing:
            try:
                self._mending(until)
                self.trouble = None
            except (OSError, sqlite3.Error) as error:  # a full disk, say: what is there is shown
                self._db.let_go()
                self.trouble = (
                    f"the index of runs cannot be kept: {error.strerror if isinstance(error, OSError) else error}"
                )

    def mark(self) -> str:
        """Where it stands: another text when any run, or what is pending or rejected, changed; the same in every process."""
        return f"{self._db.read('epoch')}-{self._db.read('revision')}-{self._pending.mark}-{self._rejected.mark}"

    def _refresh(self, until: float) -> None:
        db = self._db.open()
        if not self._is_news(db):
            return
        self._db.leave_room()
        db.execute("BEGIN IMMEDIATE")
        try:
            changed = self._look_at_current(db, until) + self._read_ledger(db, until)
            if changed:
                self._db.set("revision", str(int(self._db.get("revision") or 0) + 1))
            revision = f"{self._db.get('epoch')}-{self._db.get('revision')}"
            db.execute("COMMIT")
            self._versions_of = revision
        except BaseException:
            self._versions_of = ""
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _is_news(self, db: sqlite3.Connection) -> bool:
        """Whether a transaction is worth while; looks at files alone."""
        self._load_versions(db)
        listed = dict(self._listed())
        self._now = listed
        return listed != self._versions or self._ledger_state() != self._db.get("ledger_state")

    def _load_versions(self, db: sqlite3.Connection) -> None:
        revision = f"{self._db.get('epoch')}-{self._db.get('revision')}"
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
            row = row_of_status(name, Run(run_dir, "current").summary())
            if run_dir.is_dir():
                db.execute(_PUT, values_of(row, "current", now[name]))
                known[name] = now[name]
            if time.monotonic() > until:
                break  # the others at the next look
        return len(changed) + len(gone)

    def _left_current(self, db: sqlite3.Connection, run_id: str) -> None:
        """A run that was promoted, or that somebody took away."""
        try:
            record = orjson.loads(read_regular(self._root.complete / run_id / "record.json", max_bytes=MOST_LINE_BYTES))
            db.execute(_PUT, values_of(row_of_record(record), "complete", ""))
        except (OSError, NotAFile, ValueError, LookupError, TypeError, AttributeError):
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
        if state == self._db.get("ledger_state"):
            return 0
        offset, changed = int(self._db.get("ledger_bytes") or 0), 0
        try:
            file = os.fdopen(open_regular(self._root.ledger, max_bytes=1 << 62), "rb")
        except (FileNotFoundError, NotAFile):
            file = None
        if file is None or not self._is_same(file, offset):
            changed += db.execute("DELETE FROM runs WHERE place = 'complete'").rowcount
            offset = 0
        if file is None:
            self._note_ledger(None, 0, state)
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
            self._note_ledger(file, offset, state if done else "behind")
        return changed

    def _add_unwritten(self, db: sqlite3.Connection) -> int:
        """Runs that were moved by a daemon which did not live to write their lines: the next one writes them."""
        try:
            data = read_regular(self._root.machine_room / "promoting", max_bytes=MOST_LINE_BYTES)
            names = data.decode().split()
        except (OSError, NotAFile, ValueError):
            return 0
        before = db.total_changes
        for name in names:
            if "-" in name and "/" not in name and name not in self._now:
                if db.execute("SELECT 1 FROM runs WHERE run_id = ?", (name,)).fetchone() is None:
                    self._left_current(db, name)
        return db.total_changes - before

    def _is_same(self, file: Any, offset: int) -> bool:
        """Whether what was read of the ledger still stands in it, at the same place."""
        info = os.fstat(file.fileno())
        if offset == 0 or str(info.st_ino) != self._db.get("ledger_inode") or info.st_size < offset:
            return False
        return _end_of(file, offset) == self._db.get("ledger_end")

    def _note_ledger(self, file: Any, offset: int, state: str) -> None:
        self._db.set("ledger_bytes", str(offset))
        self._db.set("ledger_state", state)
        self._db.set("ledger_inode", str(os.fstat(file.fileno()).st_ino) if file else "")
        self._db.set("ledger_end", _end_of(file, offset) if file else "")

    # -- asking ------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many runs are in each state; and what is ``pending`` and ``rejected``."""
        found = self._cache(("counts",), lambda: dict(self._db.ask("SELECT state, count(*) FROM runs GROUP BY state")))
        return {**found, "pending": len(self._pending.names), "rejected": len(self._rejected.names)}

    def query(self, asked: Asked = EVERYTHING, page: int = 1, size: int = PAGE) -> Found:
        """A page of what is asked for."""
        narrowed, values = where(asked)
        count = f"SELECT count(*) FROM runs {narrowed}"
        total = self._cache((count, *values), lambda: int(self._db.ask(count, values)[0][0]))
        pages = max(1, -(-total // size))
        page = min(max(1, page), pages)
        start = (page - 1) * size
        few = min(size, total - start)
        backwards = start > total // 2  # the way from the end is shorter
        order, offset = ("ASC", total - start - few) if backwards else ("DESC", start)
        chosen = f"SELECT run_id FROM runs {narrowed} ORDER BY at {order}, run_id {order} LIMIT ? OFFSET ?"
        query = f"SELECT {_SHOWN} FROM runs WHERE run_id IN ({chosen}) ORDER BY at DESC, run_id DESC"
        rows = self._db.ask(query, [*values, few, offset]) if few > 0 else []
        return Found([Row(*row) for row in rows], total, page, pages)

    def pipelines(self) -> list[str]:
        """The names of all pipelines that runs have, sorted."""
        # one step of the index for each name, not one for each run
        query = (
            "WITH RECURSIVE found(one) AS (SELECT min(pipeline) FROM runs UNION ALL "
            "SELECT (SELECT min(pipeline) FROM runs WHERE pipeline > one) FROM found WHERE one IS NOT NULL) "
            "SELECT one FROM found WHERE one > '' LIMIT 500"
        )
        return self._cache(("pipelines",), lambda: [row[0] for row in self._db.ask(query)])

    def tallies(self) -> dict[str, Tally]:
        """What the runs of each pipeline came to, by its name."""
        query = (
            "SELECT pipeline, state, count(*), max(at), avg(seconds), avg(CASE unpriced_calls WHEN 0 THEN cost_usd END) "
            "FROM runs GROUP BY pipeline, state"
        )
        return self._cache(("tallies",), lambda: _tallied(self._db.ask(query)))

    def finished_since(self, times: Sequence[str]) -> list[int]:
        """How many runs finished between each of these times and the next, and after the last."""
        counted = []
        for begin, end in zip(times, [*times[1:], "9"], strict=True):
            query = "SELECT count(*) FROM runs WHERE state = 'complete' AND at >= ? AND at < ?"
            counted.append(int(self._db.ask(query, (begin, end))[0][0]))
        return counted

    def pending_names(self) -> list[str]:
        """Every name in pipeline-pending/ that may be a seed, sorted."""
        return self._pending.names

    def rejected_names(self) -> list[str]:
        """The names of what was refused, sorted."""
        return self._rejected.names

    def _cache(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """The value of a question, kept until the index changes."""
        revision = (self._db.read("epoch"), self._db.read("revision"))
        kept = self._cached.get(key)
        if kept is None or kept[0] != revision:
            if len(self._cached) > 200:
                self._cached.clear()
            kept = self._cached[key] = (revision, make())
        value: T = kept[1]
        return value

    def _mending(self, until: float) -> None:
        """Refresh; where the file is damaged, with a new one."""
        try:
            if self._db.damaged:
                raise sqlite3.DatabaseError("damaged")
            self._refresh(until)
        except sqlite3.Error as error:
            if is_busy(error):
                return  # another process is at it, and we shall see what it finds
            if is_the_disks(error):
                raise
            self._db.begin_anew()
            self._refresh(until)

    def close(self) -> None:
        with self._writing:
            self._db.close()


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


def _tallied(rows: Iterable[Any]) -> dict[str, Tally]:
    found: dict[str, Tally] = {}
    for pipeline, state, count, at, seconds, cost_usd in rows:
        so_far = found.get(pipeline, Tally({}, "", None, None))
        means = (seconds, cost_usd) if state == "complete" else (so_far.seconds, so_far.cost_usd)
        found[pipeline] = Tally({**so_far.states, state: count}, max(so_far.at, at), *means)
    return found


def _whole_lines(file: Any) -> list[bytes]:
    """The next lines that end in a newline; the file then stands behind them."""
    data = file.read(READ_BYTES)
    while b"\n" not in data and len(data) < MOST_LINE_BYTES and (more := file.read(READ_BYTES)):
        data += more
    end = data.rfind(b"\n") + 1
    file.seek(end - len(data), os.SEEK_CUR)
    return [line + b"\n" for line in data[:end].split(b"\n")[:-1]]


def _end_of(file: Any, offset: int) -> str:
    """What stands before an offset, as a hash."""
    start = max(0, offset - 512)
    return hashlib.sha256(os.pread(file.fileno(), offset - start, start)).hexdigest()


def _complete_rows(lines: Iterable[bytes], current: Mapping[str, str]) -> Iterator[Sequence[Any]]:
    for line in lines:
        try:
            row = row_of_record(orjson.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError):  # none of ours: it is passed over
            continue
        if row.run_id not in current:
            yield values_of(row, "complete", "")
