"""What model calls cost: by day, pipeline, step, model and run, over a time; and today's budgets, and how much is used.

It is `pop cost` (pop/costs.py) on a page. The sums of a day's file are kept while the file only grows, so that a page
reads what is new.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse

from pop.costs import KEYS, read_day
from pop.errors import PopError, UsageError
from pop.models.calls import CallLine, Sum, calls_in, day_files, usd
from pop.rootcheck import RootCheck
from pop.safehtml import plain
from pop.settings import Root, Settings, load_settings
from pop.store import NotAFile
from pop.web.app import Site
from pop.web.render import money, page, templates

router = APIRouter()
templates().filters["plain"] = plain

BY = ("day", "pipeline", "step", "model", "run")
PERIODS = {
    "today": ("today", 1),
    "7d": ("7 days", 7),
    "30d": ("30 days", 30),
    "90d": ("90 days", 90),
    "all": ("all", 0),
}
MEASURES = ("cost", "tokens", "calls")
UNITS = ("usd", "tokens", "calls")
DAYS_DRAWN = 120  # beyond that a bar is a month
BARS = 20
ROWS = 300
KEPT_ROWS = 100_000  # sums that are kept for the next page

Key = tuple[str, str, str, str]
PLACES = {"day": 0, "pipeline": 1, "step": 2, "run": 2, "model": 3}  # in a key


# -- the sums ------------------------------------------------------------------------------------------------------


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


def plus(into: Sum, other: Sum) -> None:
    """Add one sum to another."""
    for name in Sum.__slots__:
        setattr(into, name, getattr(into, name) + getattr(other, name))


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
                    plus(found.total, part)
                    plus(found.rows.setdefault(key[PLACES[by]], Sum()), part)
                    if part.unpriced:
                        found.unpriced.add(key[3])
    return found


# -- what is asked -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What the address asks for; `since` and `until` are days, UTC, both included ('' is: no bound)."""

    by: str
    period: str
    measure: str
    pipeline: str
    since: str
    until: str

    def to(self, **changes: str) -> str:
        """The address of the same with something else."""
        values = {"by": self.by, "period": self.period, "measure": self.measure, "pipeline": self.pipeline}
        if not self.period:
            values |= {"since": self.since, "until": self.until}
        values |= changes
        usual = {"by": "day", "period": "30d", "measure": "cost"}
        kept = {key: value for key, value in values.items() if value and usual.get(key) != value}
        return "/costs?" + urlencode(kept) if kept else "/costs"


def wish_of(
    by: Literal["day", "pipeline", "step", "model", "run"] = "day",
    period: Annotated[str, Query(max_length=10)] = "",
    measure: Literal["cost", "tokens", "calls"] = "cost",
    pipeline: Annotated[str, Query(max_length=200)] = "",
    since: Annotated[str, Query(max_length=10)] = "",
    until: Annotated[str, Query(max_length=10)] = "",
) -> Wish:
    """Two days, where one is given; else a period that ends today.

    Raises:
        UsageError: A day that is none, or no period of that name.
    """
    if since or until:
        first, last = (read_day(text or None, name) or "" for text, name in ((since, "since"), (until, "until")))
        if first and last and first > last:
            raise UsageError(f"since {first} is after until {last}", hint="exchange the two")
        return Wish(by, "", measure, pipeline, first, last)
    if period not in ("", *PERIODS):
        raise UsageError(f"no period {period[:10]!r}", hint=f"one of {', '.join(PERIODS)}")
    period = period or "30d"
    days, today = PERIODS[period][1], datetime.now(UTC).date()
    first = (today - timedelta(days=days - 1)).isoformat() if days else ""
    return Wish(by, period, measure, pipeline, first, "")


# -- the picture ---------------------------------------------------------------------------------------------------

Measured = Callable[[Sum], float]
VALUE: dict[str, Measured] = {
    "cost": lambda part: usd(part.nano_usd),
    "tokens": lambda part: part.tokens,
    "calls": lambda part: part.calls,
}


def paid(part: Sum) -> str:
    """The cost of some calls in words: nobody knows a price of all, or of some of them."""
    if part.unpriced == part.calls and part.calls:
        return "unpriced"
    return money(usd(part.nano_usd)) + (" +?" if part.unpriced else "")


@dataclass(frozen=True)
class Bar:
    """`share` of the longest one, 0 to 100; None where nothing is drawn: what is all the others together."""

    name: str
    part: Sum
    value: float
    share: float | None


def days_between(rows: dict[str, Sum], wish: Wish) -> dict[str, Sum]:
    """Every day of the time, also those on which nothing was asked; months where there are many."""
    if not rows:
        return {}
    today = datetime.now(UTC).date().isoformat()
    first = wish.since or min(rows)
    last = wish.until or max(today, max(rows))
    span = (date.fromisoformat(last) - date.fromisoformat(first)).days + 1
    if span > DAYS_DRAWN:
        months: dict[str, Sum] = {}
        for day, part in sorted(rows.items()):
            plus(months.setdefault(day[:7], Sum()), part)
        return months
    days = [(date.fromisoformat(first) + timedelta(days=more)).isoformat() for more in range(span)]
    return {day: rows.get(day) or Sum() for day in sorted({*days, *rows})}


def bars_of(rows: dict[str, Sum], measure: str, most: int) -> list[Bar]:
    """The first of them, and a last line with the sum of the others, which has no bar: it would dwarf the rest."""
    value = VALUE[measure]
    shown, rest = list(rows.items())[:most], list(rows.items())[most:]
    longest = max((value(part) for _, part in shown), default=0)
    bars = [Bar(name, part, value(part), 100 * value(part) / longest if longest else 0.0) for name, part in shown]
    if rest:
        others = Sum()
        for _, part in rest:
            plus(others, part)
        bars.append(Bar(f"{len(rest):,} others", others, value(others), None))
    return bars


# -- budgets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """One budget of today. `pipeline` '' is that of the day; `soft` warns alone."""

    pipeline: str
    unit: str
    limit: float
    used: float
    source: str
    soft: bool

    @property
    def share(self) -> float:
        return self.used / self.limit if self.limit else 1.0


def _amount(part: Sum, unit: str) -> float:
    return {"usd": usd(part.nano_usd), "tokens": part.tokens, "calls": part.calls}[unit]


def budgets_of(site: Site, settings: Settings) -> list[Budget]:
    """Today's budgets of the day and of the pipelines that were at work or have one of their own."""
    today = datetime.now(UTC).date().isoformat()
    spent = add_up(book_of(site.root, "pipeline"), today, today, "pipeline")
    tables = [("pop.toml", settings.budget, False), ("pop.toml, warning", settings.budget.warn, True)]
    found = []
    for source, table, soft in tables:
        for unit in UNITS:
            limit = getattr(table, f"day_{unit}")
            if limit is not None:
                found.append(Budget("", unit, limit, _amount(spent.total, unit), source, soft))
    own = {name: read.pipeline.budget for name, read in RootCheck(site.root).pipelines.items() if read.pipeline}
    for name in sorted({*spent.rows, *(name for name, budget in own.items() if budget)}):
        part = spent.rows.get(name, Sum())
        given = [
            (source, {unit: getattr(table, f"pipeline_{unit}") for unit in UNITS}, soft)
            for source, table, soft in tables
        ]
        file = "pipeline.json" if name == "default" else f"pipelines/{name}.json"
        given.append((file, {unit: own.get(name, {}).get(f"pipeline_{unit}") for unit in UNITS}, False))
        for source, limits, soft in given:
            for unit, limit in limits.items():
                if limit is not None:
                    found.append(Budget(name, unit, limit, _amount(part, unit), source, soft))
    return found


def of_each(settings: Settings) -> list[tuple[str, str, float]]:
    """The budgets of pop.toml for every run and every step: scope, unit, limit."""
    return [
        (scope, unit, limit)
        for scope in ("run", "step")
        for unit in UNITS
        if (limit := getattr(settings.budget, f"{scope}_{unit}")) is not None
    ]


# -- the page ------------------------------------------------------------------------------------------------------


def order_of(wish: Wish, rows: dict[str, Sum]) -> dict[str, Sum]:
    """Days as they came; anything else by what is measured."""
    if wish.by == "day":
        return dict(sorted(rows.items()))
    value = VALUE[wish.measure]
    return dict(sorted(rows.items(), key=lambda row: (-value(row[1]), -row[1].calls, row[0])))


def link_of(site: Site, wish: Wish) -> Callable[[str], str | None]:
    """Where a row leads: a day to its pipelines, a pipeline to its steps, a run to its page."""

    def day(name: str) -> str:
        return wish.to(by="pipeline", period="", since=name, until=name)

    def run(name: str) -> str | None:
        here = any(os.path.isdir(folder / name) for folder in (site.root.current, site.root.complete))
        return f"/runs/{quote(name)}" if here and "/" not in name and not name.startswith(".") else None

    def pipeline(name: str) -> str:
        return wish.to(by="step", pipeline=name)

    return {"day": day, "run": run, "pipeline": pipeline}.get(wish.by, lambda name: None)


def context_of(site: Site, wish: Wish) -> dict[str, Any]:
    try:
        settings, trouble = load_settings(site.root), None
    except PopError as error:
        settings, trouble = site.settings, f"{error.message} ({error.where})"
    found = add_up(book_of(site.root, wish.by), wish.since, wish.until, wish.by, wish.pipeline)
    rows = order_of(wish, found.rows)
    drawn = days_between(rows, wish) if wish.by == "day" else rows
    listed = list(reversed(rows.items())) if wish.by == "day" else list(rows.items())
    return {
        "wish": wish,
        "by": BY,
        "periods": PERIODS,
        "measures": MEASURES,
        "pipelines": sorted(found.pipelines | ({wish.pipeline} if wish.pipeline else set())),
        "total": found.total,
        "bars": bars_of(drawn, wish.measure, len(drawn) if wish.by == "day" else BARS),
        "rows": listed[:ROWS],
        "most": max((VALUE[wish.measure](part) for part in drawn.values()), default=0),
        "more_rows": max(0, len(listed) - ROWS),
        "to": link_of(site, wish),
        "paid": paid,
        "total_usd": usd(found.total.nano_usd),
        "unpriced": sorted(found.unpriced)[:20],
        "passed_over": found.passed_over,
        "budgets": budgets_of(site, settings),
        "of_each": of_each(settings),
        "trouble": trouble,
    }


@router.get("/costs")
def costs(request: Request, wish: Annotated[Wish, Depends(wish_of)]) -> HTMLResponse:
    return page(request, "costs.html", **context_of(request.app.state.site, wish))
