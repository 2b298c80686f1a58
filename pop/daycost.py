"""What one day cost so far: the gateway's sums as far as they go, and the ledger of calls behind that."""

from __future__ import annotations

import sqlite3
from contextlib import suppress

from pop.models.calls import Sum, calls_in
from pop.models.spent import spent_in, sum_of
from pop.settings import Root
from pop.store import NotAFile


class DayCost:
    """What one day cost; what was read of the ledger is not read again."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._day = ""
        self._from = self._offset = 0
        self._added = Sum()

    def sum(self, day: str) -> Sum:
        base, start = self._folded(day)
        if (day, start) != (self._day, self._from) or not self._still_there(day):
            self._day, self._from, self._offset, self._added = day, start, start, Sum()
        with suppress(OSError, NotAFile):  # nothing was asked today
            for at, line in calls_in(self._root.calls / f"{day}.jsonl", self._offset):
                self._offset = at
                if line is not None:
                    self._added.add(line)
        base.plus(self._added)
        return base

    def _still_there(self, day: str) -> bool:
        try:
            return (self._root.calls / f"{day}.jsonl").stat().st_size >= self._offset
        except OSError:
            return self._offset == 0

    def _folded(self, day: str) -> tuple[Sum, int]:
        """What answers.db has added up, and to which byte of the day's file."""
        path = self._root.machine_room / "answers.db"
        if not path.exists():
            return Sum(), 0
        try:
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.5)
            try:
                connection.execute("BEGIN")  # both from one state of the file
                row = connection.execute("SELECT bytes FROM ledger WHERE file = ?", (f"{day}.jsonl",)).fetchone()
                sums = connection.execute(spent_in(("day", day)), (day,)).fetchone()
                return sum_of(sums), int(row[0]) if row else 0
            finally:
                connection.close()
        except sqlite3.Error:
            return Sum(), 0
