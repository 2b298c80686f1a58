"""What model calls cost: by day, pipeline, step, model and run, over a time; and today's budgets, and how much is used.

It is `pop cost` (pop/costs.py) on a page.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response

from pop.costs import read_day
from pop.errors import PopError, UsageError
from pop.models.calls import Sum, day_files, usd
from pop.rootcheck import RootCheck
from pop.safehtml import plain
from pop.settings import Root, Settings, load_settings
from pop.web.costbook import add_up, book_of
from pop.web.live import SELDOM_S
from pop.web.reading import stamp
from pop.web.render import money, page, rendered, templates
from pop.web.site import Site

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

    def today(self) -> Wish:
        """The same as asked today: a period ends today, also on a page that was opened yesterday."""
        return replace(self, since=_first_day(self.period)) if self.period else self

    @property
    def live(self) -> str:
        return "/live" + self.to()

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
    return Wish(by, period or "30d", measure, pipeline, "", "").today()


def _first_day(period: str) -> str:
    days = PERIODS[period][1]
    return (datetime.now(UTC).date() - timedelta(days=days - 1)).isoformat() if days else ""


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
    """`share` of the scale, 0 to 100; None where nothing is drawn: what is all the others together."""

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
            months.setdefault(day[:7], Sum()).plus(part)
        return months
    days = [(date.fromisoformat(first) + timedelta(days=more)).isoformat() for more in range(span)]
    return {day: rows.get(day) or Sum() for day in sorted({*days, *rows})}


def scale_of(most: float) -> float:
    """A round number that is not below: while figures grow, a chart keeps its scale, and its bars do not all move."""
    if most <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(most))
    return next((part * power for part in (1, 2, 4, 6, 8) if most <= part * power), 10 * power)


def bars_of(rows: dict[str, Sum], measure: str, most: int) -> list[Bar]:
    """The first of them, and a last line with the sum of the others, which has no bar: it would dwarf the rest."""
    value = VALUE[measure]
    shown, rest = list(rows.items())[:most], list(rows.items())[most:]
    scale = scale_of(max((value(part) for _, part in shown), default=0))
    bars = [Bar(name, part, value(part), 100 * value(part) / scale if scale else 0.0) for name, part in shown]
    if rest:
        others = Sum()
        for _, part in rest:
            others.plus(part)
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


def own_budgets(root: Root) -> dict[str, dict[str, float]]:
    """What pipelines say themselves."""
    return {name: dict(read.pipeline.budget) for name, read in RootCheck(root).pipelines.items() if read.pipeline}


def budgets_of(site: Site, settings: Settings, own: dict[str, dict[str, float]]) -> list[Budget]:
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


def context_of(site: Site, wish: Wish, own: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What the page shows.

    Args:
        own: The budgets that pipelines give themselves.
    """
    try:
        settings, trouble = load_settings(site.root), None
    except PopError as error:
        settings, trouble = site.settings, f"{error.message} ({error.where})"
    found = add_up(book_of(site.root, wish.by), wish.since, wish.until, wish.by, wish.pipeline)
    rows = order_of(wish, found.rows)
    drawn = days_between(rows, wish) if wish.by == "day" else rows
    most = max((VALUE[wish.measure](part) for part in drawn.values()), default=0)
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
        "most": most,
        "scale": scale_of(most),
        "more_rows": max(0, len(listed) - ROWS),
        "to": link_of(site, wish),
        "paid": paid,
        "total_usd": usd(found.total.nano_usd),
        "unpriced": sorted(found.unpriced)[:20],
        "passed_over": found.passed_over,
        "budgets": budgets_of(site, settings, own),
        "of_each": of_each(settings),
        "trouble": trouble,
    }


# -- the page ------------------------------------------------------------------------------------------------------


PARTS = ("totals", "drawn", "notes", "budgets")


class CostsSource:
    """The page while calls are made: the files of the ledger that it adds up grow, or somebody changes a budget."""

    def __init__(self, site: Site, wish: Wish) -> None:
        self._site = site
        self._wish = wish
        self._own: tuple[str, dict[str, dict[str, float]]] | None = None

    def mark(self) -> str:
        """Also by the day, with which a period and the budgets begin anew, and by what today's budgets are told from."""
        root, wish = self._site.root, self._wish.today()
        today = datetime.now(UTC).date().isoformat()
        files = {*day_files(root.calls, since=wish.since, until=wish.until or "9"), root.calls / f"{today}.jsonl"}
        return f"{today}-{stamp(*sorted(files))}-{self._made_of()}"

    def fragments(self) -> dict[str, str]:
        context = self.context()
        return {f"costs-{name}": rendered(f"costs_{name}.html", **context) for name in PARTS}

    def context(self) -> dict[str, Any]:
        made_of = self._made_of()
        if self._own is None or self._own[0] != made_of:
            self._own = (made_of, own_budgets(self._site.root))
        return context_of(self._site, self._wish.today(), self._own[1])

    def _made_of(self) -> str:
        root = self._site.root
        return stamp(root.settings_file, root.pipeline_file, root.pipelines)


@router.get("/costs")
def costs(request: Request, wish: Annotated[Wish, Depends(wish_of)]) -> HTMLResponse:
    source = CostsSource(request.app.state.site, wish)
    mark = source.mark()
    return page(request, "costs.html", mark=mark, **source.context())


@router.get("/live/costs")
async def live_costs(request: Request, wish: Annotated[Wish, Depends(wish_of)]) -> Response:
    site: Site = request.app.state.site
    key = ("costs", replace(wish, since="") if wish.period else wish)
    return site.live.stream(request, key, lambda: CostsSource(site, wish), SELDOM_S)
