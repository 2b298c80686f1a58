"""Two runs side by side, as `pop diff` has it: seed, pipeline, and step by step outputs, prompts, models, costs, time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from pop.compare import Pair, Side, comparable, pairs, tasks_of
from pop.events import unix_s
from pop.records import Usage
from pop.report import FILTERS
from pop.runindex import Asked
from pop.runlook import usage_of
from pop.runs import Run
from pop.safehtml import difference, left_out, plain, text
from pop.web.live import SELDOM_S
from pop.web.reading import digest, mark_of
from pop.web.render import page, rendered, templates
from pop.web.site import Site

router = APIRouter()
templates().filters.update(FILTERS)

NEWEST = 30  # runs a picker offers
ROWS = 60  # instances on one page
LOOKED_AT = 400  # instances that are read for one page, where only those that differ are asked for
DIFFS = 120_000  # characters of differences on one page; the others are a click away
WHOLE = 40_000  # characters of one text, where one step is asked for
LOOK_S = 0.3


# -- what is asked -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What the address asks for. `a` and `b` are ids of runs, or words to find one by."""

    a: str
    b: str
    step: str
    only: str
    start: int

    def to(self, **changes: Any) -> str:
        """The address of the same with something else; from the first instance on where `start` is not given."""
        values = {"a": self.a, "b": self.b, "step": self.step, "only": self.only, **changes}
        kept = {key: value for key, value in values.items() if value}
        return "/compare?" + urlencode(kept) if kept else "/compare"


def wish_of(
    a: Annotated[str, Query(max_length=200)] = "",
    b: Annotated[str, Query(max_length=200)] = "",
    step: Annotated[str, Query(max_length=200)] = "",
    only: Literal["", "different"] = "",
    start: Annotated[int, Query(ge=0, le=10**7)] = 0,
) -> Wish:
    return Wish(a.strip(), b.strip(), step, only, start)


def run_of(site: Site, words: str) -> Run | None:
    """The run with exactly this id."""
    try:
        return site.run(words) if words else None
    except HTTPException:
        return None


# -- the picker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A side that is still to be chosen: `rows` are runs that fit what was written."""

    side: str
    words: str
    total: int
    rows: list[Any]


def choices_of(site: Site, wish: Wish, runs: Sequence[Run | None]) -> list[Choice]:
    """What may be chosen for the sides that name no run; without words, of the other side's pipeline first."""
    found = []
    for side, words, run, other in (("a", wish.a, runs[0], runs[1]), ("b", wish.b, runs[1], runs[0])):
        if run is None:
            beside = str(other.status().get("pipeline") or "") if other and not words else ""
            result = site.index.query(Asked(text=words, pipeline=beside), size=NEWEST)
            kept = [
                row
                for row in result.rows
                if is_here(site, row.run_id) and (other is None or row.run_id != other.run_id)
            ]
            found.append(Choice(side, words, result.total, kept))
    return found


def is_here(site: Site, run_id: str) -> bool:
    return any(os.path.isdir(folder / run_id) for folder in (site.root.current, site.root.complete))


# -- the two -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """A run as a whole; `seconds` from its start to its end, or till now."""

    run: Run
    name: str
    state: str
    pipeline: str
    created_at: str | None
    seconds: float | None
    usage: Usage
    steps: int
    failed: int
    error: str


def whole_of(run: Run) -> Whole:
    status = run.status()
    tasks = tasks_of(run)
    error = status.get("error")
    return Whole(
        run=run,
        name=str(status.get("name") or run.run_id),
        state=str(status.get("state")),
        pipeline=str(status.get("pipeline") or ""),
        created_at=status.get("created_at"),
        seconds=_lasted(status),
        usage=usage_of(status),
        steps=len(tasks),
        failed=sum(task.get("state") == "failed" for task in tasks.values()),
        error=f"{error.get('error_class')}: {error.get('message')}" if isinstance(error, dict) else "",
    )


def _lasted(status: dict[str, Any]) -> float | None:
    try:
        return unix_s(str(status.get("finished_at") or status.get("updated_at"))) - unix_s(
            str(status.get("started_at"))
        )
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class Line:
    """One instance in both. A difference is None where there is none, and where it would be too much for this page."""

    name: str
    a: Side | None
    b: Side | None
    output: str
    prompt: str
    output_diff: Markup | None = None
    prompt_diff: Markup | None = None

    @property
    def differs(self) -> bool:
        one, two = (side.state if side else None for side in (self.a, self.b))
        return one != two or any(word not in ("same", "none") for word in (self.output, self.prompt))

    @property
    def left_out(self) -> bool:
        """Whether something differs that is not shown here."""
        pieces = ((self.output, self.output_diff), (self.prompt, self.prompt_diff))
        return any(word == "different" and diff is None for word, diff in pieces)


def _bare(side: Side | None) -> Side | None:
    """Without its texts: a page holds many."""
    return Side(side.state, side.usage, side.seconds, side.models) if side else None


def lines_of(found: Iterator[Pair], wish: Wish) -> tuple[list[Line], int, int]:
    """The lines of a page, how many instances were looked at for it, and how many of them are the same and left out."""
    lines: list[Line] = []
    looked_at = same = 0
    room = DIFFS
    for pair in found:
        looked_at += 1
        line = Line(pair.name, _bare(pair.a), _bare(pair.b), pair.output, pair.prompt)
        if wish.only and not line.differs:
            same += 1
        else:
            diffs = {what: _diff(pair, what) if room > 0 else None for what in ("output", "prompt")}
            room -= sum(len(diff or "") for diff in diffs.values())
            lines.append(Line(line.name, line.a, line.b, line.output, line.prompt, diffs["output"], diffs["prompt"]))
        if len(lines) == ROWS or looked_at == LOOKED_AT:
            break
    return lines, looked_at, same


def _diff(pair: Pair, what: str) -> Markup | None:
    if pair.a is None or pair.b is None or getattr(pair, what) != "different":
        return None
    return difference(f"{pair.name}/{what}", getattr(pair.a, what), getattr(pair.b, what))


@dataclass(frozen=True)
class Both:
    """What one step put out and was asked, whole, in both."""

    name: str
    parts: list[tuple[str, Markup | None, Markup | None]]


def both_of(pair: Pair) -> Both:
    def shown(side: Side | None, what: str) -> Markup | None:
        value = getattr(side, what) if side else None
        return None if value is None else text(value, WHOLE)

    return Both(pair.name, [(what, shown(pair.a, what), shown(pair.b, what)) for what in ("output", "prompt")])


def given_of(a: Run, b: Run) -> list[tuple[str, str, Markup | None]]:
    """Seed and pipeline, as the runs began with them: whether they are the same, and how they differ."""
    found: list[tuple[str, str, Markup | None]] = []
    for name in ("seed.json", "pipeline.json"):
        one, two = (comparable(run.path / name) for run in (a, b))
        if one is None or two is None:
            found.append((name, "not in both" if one is not two else "none", None))
        else:
            found.append(
                (name, "same" if one == two else "different", None if one == two else difference(name, one, two))
            )
    return found


# -- the page ------------------------------------------------------------------------------------------------------


def context_of(wish: Wish, a: Run, b: Run) -> dict[str, Any]:
    """What the page needs of two runs.

    Raises:
        HTTPException: 404: neither has the step that is asked for.
    """
    known = dict.fromkeys([*tasks_of(a), *tasks_of(b)])
    lines, looked_at, same = lines_of(pairs(a, b, wish.step or None, wish.start), wish)
    if wish.step and not lines and not same:
        raise HTTPException(404, f"neither run has a step {plain(wish.step, 80)!r}")
    whole = [both_of(pair) for pair in pairs(a, b, wish.step)][:1] if wish.step in known else []
    here = [whole_of(a), whole_of(b)]
    ended = wish.start + looked_at
    more = len(lines) == ROWS or looked_at == LOOKED_AT
    return {
        "wholes": here,
        "given": given_of(a, b) if not wish.step else [],
        "lines": lines,
        "same": same,
        "both": whole,
        "after": ended if more else None,
        "known": len(known),
        "ended": ended,
        "moving": [one.run.run_id for one in here if one.state in ("running", "queued")],
        "href": lambda run, *parts: "/".join(["/runs", run.run_id, *(quote(part, safe="@.,~") for part in parts)]),
    }


PARTS = ("whole", "given", "steps", "differences", "texts")


class CompareSource:
    """The page while one of the two is at work; or while sides are chosen, what may be chosen."""

    def __init__(self, site: Site, wish: Wish) -> None:
        self._site = site
        self._wish = wish
        self._known = len(self._runs())

    def mark(self) -> str | None:
        """None: a run is gone that was there, or there that was not; that is another page."""
        known = len(self._runs())
        if known < 2:
            self._site.look_now()
        return self.known_mark() if known == self._known else None

    def known_mark(self) -> str:
        """By what is known already."""
        runs = self._runs()
        return "-".join(map(mark_of, runs)) if len(runs) == 2 else digest(self._choices())

    def fragments(self) -> dict[str, str]:
        context = self.context()
        names = PARTS if context["wholes"] else ("choices",)
        return {f"compare-{name}": rendered(f"compare_{name}.html", **context) for name in names}

    def context(self) -> dict[str, Any]:
        wish, runs = self._wish, self._runs()
        found = {"wish": wish, "wholes": [], "choices": self._choices(), "left_out": left_out, "parts": PARTS}
        return found | (context_of(wish, *runs) if len(runs) == 2 else {})

    def _runs(self) -> list[Run]:
        """Those of the two that there are."""
        return [run for words in (self._wish.a, self._wish.b) if (run := run_of(self._site, words))]

    def _choices(self) -> list[Choice]:
        return choices_of(self._site, self._wish, [run_of(self._site, words) for words in (self._wish.a, self._wish.b)])

    @property
    def moves(self) -> bool:
        """Whether anything here may change."""
        runs = self._runs()
        return len(runs) < 2 or any(run.place == "current" for run in runs)


AWish = Annotated[Wish, Depends(wish_of)]


@router.get("/compare")
def compare_page(request: Request, wish: AWish) -> HTMLResponse:
    site: Site = request.app.state.site
    site.look(LOOK_S)
    source = CompareSource(site, wish)
    moves, mark = source.moves, source.known_mark()
    newest = site.index.query(size=NEWEST).rows
    live = "/live" + wish.to(start=wish.start) if moves else None
    return page(request, "compare.html", mark=mark, live=live, newest=newest, **source.context())


@router.get("/live/compare")
async def live_compare(request: Request, wish: AWish) -> Response:
    site: Site = request.app.state.site
    return site.live.stream(request, ("compare", wish), lambda: CompareSource(site, wish), SELDOM_S)
