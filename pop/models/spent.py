"""What was spent: sums in answers.db, folded from the ledger of calls, and who reads them.

| table  | a row is                                                                        |
|--------|---------------------------------------------------------------------------------|
| spent  | what one run's step folder spent on one model on one day; a view of the ledger  |
| ledger | up to which byte a day file of the ledger is folded into `spent`                |
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pop.models.calls import CallLine, Scope, Sum, calls_in, usd
from pop.records import Usage

_FOLD_ROWS = 20_000  # sums kept in memory while the ledger is folded
TABLES = """
CREATE TABLE IF NOT EXISTS spent (
    run_id TEXT, instance TEXT, model TEXT, day TEXT, pipeline TEXT, step TEXT, provider TEXT,
    calls INTEGER, input_tokens INTEGER, output_tokens INTEGER, nano_usd INTEGER, unpriced INTEGER, estimated INTEGER,
    PRIMARY KEY (run_id, instance, model, day)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spent_on ON spent (day, pipeline);
CREATE TABLE IF NOT EXISTS ledger (file TEXT PRIMARY KEY, bytes INTEGER) WITHOUT ROWID;
"""
_ADD = """
INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, input_tokens = input_tokens + excluded.input_tokens,
    output_tokens = output_tokens + excluded.output_tokens, nano_usd = nano_usd + excluded.nano_usd,
    unpriced = unpriced + excluded.unpriced, estimated = estimated + excluded.estimated
"""
_SUMS = "sum(calls), sum(input_tokens), sum(output_tokens), sum(nano_usd), sum(unpriced), sum(estimated)"
_SCOPES = {
    "step": "run_id = ? AND step = ?",
    "run": "run_id = ?",
    "pipeline": "pipeline = ? AND day = ?",
    "day": "day = ?",
}


def spent_in(scope: Scope) -> str:
    """The query for the sums of a scope; its values are those behind the scope's first."""
    return f"SELECT {_SUMS} FROM spent WHERE {_SCOPES[scope[0]]}"


def fold(connection: sqlite3.Connection, files: Iterable[Path]) -> None:
    """Add to `spent` what the day files hold beyond the offsets in `ledger`. The caller has begun a transaction."""
    sums: dict[tuple[str, str, str, str], tuple[CallLine, Sum]] = {}
    for path in files:
        row = connection.execute("SELECT bytes FROM ledger WHERE file = ?", (path.name,)).fetchone()
        start = end = row[0] if row else 0
        for at, line in calls_in(path, start):
            end = at
            if line is None or not line.billed:
                continue
            place = (line.run_id, line.instance, line.model, line.day)
            sums.setdefault(place, (line, Sum()))[1].add(line)
            if len(sums) >= _FOLD_ROWS:
                _flush(connection, sums)
        if end != start:
            connection.execute("INSERT OR REPLACE INTO ledger VALUES (?, ?)", (path.name, end))
    _flush(connection, sums)


def _flush(connection: sqlite3.Connection, sums: dict[tuple[str, str, str, str], tuple[CallLine, Sum]]) -> None:
    rows = (
        (
            *place, line.pipeline, line.step, line.provider, part.calls, part.input_tokens, part.output_tokens,
            part.nano_usd, part.unpriced, part.estimated,
        )
        for place, (line, part) in sums.items()
    )  # fmt: skip
    connection.executemany(_ADD, rows)
    sums.clear()


def sum_of(row: Sequence[Any]) -> Sum:
    """A row of `_SUMS`; () is one of nothing."""
    calls, input_tokens, output_tokens, nano_usd, unpriced, estimated = (value or 0 for value in (row or (0,) * 6))
    return Sum(
        calls=calls, input_tokens=input_tokens, output_tokens=output_tokens, nano_usd=nano_usd, unpriced=unpriced,
        estimated=estimated,
    )  # fmt: skip


def _usage(row: Sequence[Any]) -> Usage:
    part = sum_of(row)
    return Usage(
        calls=part.calls, input_tokens=part.input_tokens, output_tokens=part.output_tokens, cost_usd=usd(part.nano_usd),
        unpriced_calls=part.unpriced, estimated_calls=part.estimated,
    )  # fmt: skip


class Spent:
    """Reads what was spent while the gateway writes it, or while there is none. One thread uses it at a time.

    Where the file is not there (``.pop`` was deleted) or stays locked, nothing seems spent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def usage_of_run(self, run_id: str) -> dict[str, Usage]:
        """By step folder; `cached_calls` is not known here."""
        rows = self._rows(f"SELECT instance, {_SUMS} FROM spent WHERE run_id = ? GROUP BY instance", (run_id,))
        return {row[0]: _usage(row[1:]) for row in rows}

    def usage_of(self, run_id: str, instance: str) -> Usage:
        """Of one step folder."""
        query = f"SELECT {_SUMS} FROM spent WHERE run_id = ? AND instance = ?"
        rows = self._rows(query, (run_id, instance))
        return _usage(rows[0] if rows else ())

    def models_of_run(self, run_id: str) -> list[str]:
        """The names of the models it paid, sorted; ``builtin`` for the embedded engine."""
        query = "SELECT DISTINCT CASE provider WHEN 'builtin' THEN provider ELSE model END FROM spent WHERE run_id = ?"
        return sorted(row[0] for row in self._rows(query, (run_id,)))

    def warnings_of_run(self, run_id: str) -> list[dict[str, str]]:
        """``[{"at", "instance", "text"}, ...]``, oldest first."""
        query = "SELECT at, instance, text FROM warnings WHERE run_id = ? ORDER BY at, text"
        return [{"at": at, "instance": instance, "text": text} for at, instance, text in self._rows(query, (run_id,))]

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        try:
            inode = os.stat(self._path).st_ino
            if self._connection is None or inode != self._inode:
                self.close()
                uri = f"{self._path.absolute().as_uri()}?mode=ro"
                self._connection = sqlite3.connect(uri, uri=True, timeout=2.0, check_same_thread=False)
                self._inode = inode
            return self._connection.execute(query, values).fetchall()
        except (OSError, sqlite3.Error):
            self.close()
            return []

    def close(self) -> None:
        """The next question opens the file again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
