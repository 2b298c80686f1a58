"""Sums of the ledger of calls, kept while a day's file only grows, so that a page reads what is new."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pop.costs import KEYS
from pop.models.calls import CallLine, Sum, calls_in, day_files
from pop.settings import Root
from pop.store import NotAFile

KEPT_ROWS = 100_000  # sums that are kept for the next page
Key = tuple[str, str, str, str]
PLACES = {"day": 0, "pipeline": 1, "step": 2, "run": 2, "model": 3}  # in a key


@dataclass
class DaySums:
    """The sums of one file of the ledger, as far as it was read."""

    inode: int
    offset: int = 0
    rows: dict[Key, Sum] = field(default_factory=dict)
    passed_over: int = 0

    def read(self, path: Path, third: Callable[[CallLine], str]) -> None:
        """Take in what was added to the file."""
        for end, line in calls_in(path, self.offset):
            self.offset = end
            if line is None:
                self.passed_over += 1
            elif line.billed:
                key = (KEYS["day"](line), KEYS["pipeline"](line), third(line), KEYS["model"](line))
                self.rows.setdefault(key, Sum()).add(line)


class CostBook:
    """The sums of a root's days; at most `KEPT_ROWS` of them stay in memory. Whoever asks holds the `lock`.

    Args:
        third: What the sums are told apart by beside day, pipeline and model: ``step`` or ``run``.
    """

    def __init__(self, root: Root, third: str) -> None:
        self._root = root
        self._third = KEYS[third]
        self.lock = threading.Lock()
        self._days: OrderedDict[str, DaySums] = OrderedDict()

    def days(self, since: str, until: str) -> Iterator[DaySums]:
        """The days of a time, the oldest first, as their files stand now."""
        for path in day_files(self._root.calls, since=since, until=until or "9"):
            try:
                found = self._taken(path)
                found.read(path, self._third)
            except (OSError, NotAFile):  # removed meanwhile, or not ours to read
                continue
            self._keep(path.name, found)
            yield found

    def _taken(self, path: Path) -> DaySums:
        """What is known of a file; nothing, where it is another one now."""
        info, known = os.stat(path), self._days.pop(path.name, None)
        if known is None or info.st_ino != known.inode or info.st_size < known.offset:
            return DaySums(info.st_ino)
        return known

    def _keep(self, name: str, day: DaySums) -> None:
        """Instead of the day before it, where there is no room for all: days are read in their order, again and again."""
        held = sum(len(one.rows) for one in self._days.values()) + len(day.rows)
        while held > KEPT_ROWS and self._days:
            held -= len(self._days.popitem()[1].rows)
        self._days[name] = day


_BOOKS: dict[tuple[Path, str], CostBook] = {}


def book_of(root: Root, by: str) -> CostBook:
    """The one book of a root in this process that knows this."""
    third = "run" if by == "run" else "step"
    return _BOOKS.setdefault((root.path, third), CostBook(root, third))


@dataclass
class Added:
    """What a page shows: sums by key, all together, the models nobody knows a price of, and lines that are none."""

    rows: dict[str, Sum] = field(default_factory=dict)
    total: Sum = field(default_factory=Sum)
    unpriced: set[str] = field(default_factory=set)
    pipelines: set[str] = field(default_factory=set)
    passed_over: int = 0


def add_up(book: CostBook, since: str, until: str, by: str, pipeline: str = "") -> Added:
    """The sums of a time; `pipeline` narrows."""
    found = Added()
    with book.lock:
        for day in book.days(since, until):
            found.passed_over += day.passed_over
            for key, part in day.rows.items():
                found.pipelines.add(key[1])
                if pipeline in ("", key[1]):
                    found.total.plus(part)
                    found.rows.setdefault(key[PLACES[by]], Sum()).plus(part)
                    if part.unpriced:
                        found.unpriced.add(key[3])
    return found
