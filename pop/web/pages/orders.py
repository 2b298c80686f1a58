"""One order to many runs: those that were ticked on the board, or all that fit its filters; each can be taken out again."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response

from pop import acts
from pop.errors import PopError, UsageError
from pop.runs import Run
from pop.store import lock_holder
from pop.web.errors import status_of
from pop.web.once import Done, DoneRow, Fields, done_once, new_mark, posted
from pop.web.ordering import MOST_RUNS, NoRun, Told, order_all, possible, run_called
from pop.web.pages.act import WORDS
from pop.web.pages.board import AWish, Wish
from pop.web.render import page
from pop.web.site import Site

router = APIRouter()
LOOK_S = 1.0


@router.get("/orders")
def choose(
    request: Request, wish: AWish, run: Annotated[list[str] | None, Query(max_length=MOST_RUNS)] = None
) -> HTMLResponse:
    """What can be ordered of the runs that were chosen."""
    if run is not None or not wish.narrows:
        return _page(request, run or [])
    site: Site = request.app.state.site
    site.look(LOOK_S)
    names, more = _fitting(site, wish)
    return _page(request, names, more=more)


def _fitting(site: Site, wish: Wish) -> tuple[list[str], int]:
    """The runs that fit a wish and are not complete, the newest first; and how many more there are than can be named."""
    found = site.index.query(wish.asked, 1, MOST_RUNS)
    return [row.run_id for row in found.rows if row.state != "complete"], found.total - len(found.rows)


def _page(request: Request, names: list[str], *, status: int = 200, more: int = 0, **about: Any) -> HTMLResponse:
    site: Site = request.app.state.site
    rows, gone = [], []
    for name in dict.fromkeys(names):
        try:
            rows.append(_row(run_called(site, name)))
        except NoRun:
            gone.append(name)
    context = {
        "rows": rows,
        "gone": gone,
        "more": more,
        "most": MOST_RUNS,
        "verbs": [(verb, *WORDS[verb], sum(1 for row in rows if row["fits"][verb])) for verb in acts.PLANS],
        "served": lock_holder(site.root.machine_room) is not None,
        "once": new_mark(),
        "reason": "",
        "budget": "",
        "error": None,
    }
    return page(request, "orders.html", status=status, **{**context, **about})


def _row(run: Run) -> dict[str, Any]:
    status = run.status()
    return {
        "run_id": run.run_id,
        "name": str(status.get("name") or run.run_id),
        "state": str(status.get("state")),
        "pipeline": str(status.get("pipeline") or ""),
        "waiting": run.waiting_orders(),
        "fits": {verb: possible(run, verb)[0] for verb in acts.PLANS},
    }


@router.post("/orders")
def give(request: Request, fields: Annotated[Fields, Depends(posted)]) -> Response:
    """Write an order for each of them."""
    names = fields.all("run")
    try:
        if fields.one("verb") not in acts.PLANS:
            raise UsageError("which order?", where="verb", hint=f"one of {', '.join(acts.PLANS)}")
        if not 0 < len(names) <= MOST_RUNS:
            raise UsageError("which runs?" if not names else f"more than {MOST_RUNS} runs at once", where="run")
        return done_once(request, fields, partial(_give, request.app.state.site, fields))
    except PopError as error:
        given: dict[str, Any] = {"reason": fields.one("reason"), "budget": fields.one("budget"), "error": error}
        return _page(request, names[:MOST_RUNS], status=status_of(error), **given)


def _give(site: Site, fields: Fields) -> Done:
    verb = fields.one("verb")
    budget = acts.read_amounts(fields.one("budget").split()) if verb == "retry" else None
    told = order_all(site, fields.all("run"), verb, fields.one("reason").strip() or None, budget)
    given = sum(1 for one in told if one.file)
    left = len(told) - given
    title = f"{WORDS[verb][0]}: {given or 'no'} order{'' if given == 1 else 's'} given"
    title += f", {left} run{'' if left == 1 else 's'} left as {'it is' if left == 1 else 'they are'}" if left else ""
    return Done(title, None, links=(("To the board", "/"),), rows=tuple(_done_row(one) for one in told))


def _done_row(told: Told) -> DoneRow:
    error = told.error
    why = told.note if error is None else f"{error.message}{f' ({error.hint})' if error.hint else ''}"
    address = None if isinstance(error, NoRun) else f"/runs/{told.run_id}"
    return DoneRow(told.run_id, address, told.file, why, failed=error is not None)
