"""The health of a root: what `pop doctor` finds, who serves it, models with limits and circuits, who is told of runs; old runs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response

from pop import __version__
from pop.errors import PopError, UsageError
from pop.events import rfc3339
from pop.store import lock_holder
from pop.web.errors import status_of
from pop.web.once import Done, DoneRow, Fields, done_once, new_mark, posted
from pop.web.render import page
from pop.web.site import Site
from pop.web.upkeep import findings, hooks, models, older_than, remove_old, tested

router = APIRouter()
MOST_SHOWN = 500


# -- the page ----------------------------------------------------------------------------------------------------------


@router.get("/health")
def health(request: Request) -> HTMLResponse:
    return _page(request)


def _page(request: Request, *, status: int = 200, **more: Any) -> HTMLResponse:
    site: Site = request.app.state.site
    root, holder = site.root, lock_holder(site.root.machine_room)
    context: dict[str, Any] = {
        "version": __version__,
        "findings": findings(root),
        "holder": holder,
        "since": rfc3339(float(holder["started_at"])) if holder and holder.get("started_at") else None,
        "models": [],
        "hooks": [],
        "once": new_mark(),
        "error": None,
    }
    try:
        context |= {"models": models(root), "hooks": hooks(root)}
    except PopError:  # the findings tell it
        pass
    return page(request, "health.html", status=status, **{**context, **more})


@router.post("/health/models")
def test(request: Request, fields: Annotated[Fields, Depends(posted)]) -> Response:
    """Ask the chosen models one tiny question each."""
    try:
        return done_once(request, fields, partial(_test, request.app.state.site, fields.all("model")))
    except PopError as error:
        return _page(request, error=error, status=status_of(error))


def _test(site: Site, names: list[str]) -> Done:
    found = tested(site.root, names)
    rows = [DoneRow(name, None, None, "; ".join(lines), failed) for name, lines, failed in found]
    note = "Each question is a line of pipeline-complete/calls/, as every other."
    return Done(
        f"Asked {len(found)} model{'' if len(found) == 1 else 's'}", None, note, (("Health", "/health"),), tuple(rows)
    )


# -- what can be removed -------------------------------------------------------------------------------------------------


@router.get("/health/gc")
def preview(
    request: Request,
    age: Annotated[str, Query(max_length=20)] = "",
    failed: bool = False,
    archive: bool = False,
) -> HTMLResponse:
    """The finished runs that ended longer ago than an age; nothing is removed."""
    return _gc_page(request, age, failed, archive)


def _gc_page(
    request: Request, age: str, failed: bool, archive: bool, error: PopError | None = None, status: int = 200
) -> HTMLResponse:
    site: Site = request.app.state.site
    old = None
    if age:
        try:
            old = older_than(site.root, age, failed=failed)
        except UsageError as wrong:
            error, status = wrong, status_of(wrong)
    context = {"age": age, "failed": failed, "archive": archive, "old": old, "most": MOST_SHOWN}
    about = {"once": new_mark(), "error": error}
    return page(request, "gc.html", status=status, **context, **about)


@router.post("/health/gc")
def clean(request: Request, fields: Annotated[Fields, Depends(posted)]) -> Response:
    """Remove what was shown."""
    failed, archive = bool(fields.one("failed")), bool(fields.one("archive"))
    try:
        return done_once(request, fields, partial(_clean, request.app.state.site, fields, failed, archive))
    except PopError as error:
        return _gc_page(request, fields.one("age"), failed, archive, error, status_of(error))


def _clean(site: Site, fields: Fields, failed: bool, archive: bool) -> Done:
    """Of the runs that ended before the look, those that are as they were: none that ended since."""
    if not fields.one("sure"):
        raise UsageError("tick that they are to be removed", where="sure")
    try:
        before = float(fields.one("before"))
    except ValueError:
        before = -1.0
    old = remove_old(site.root, before, failed=failed, archive=archive)
    kept = " Each is kept as pipeline-complete/archive/RUN.tar.gz." if archive else ""
    rows = tuple(DoneRow(run_id, None, None) for run_id in old.run_ids[:MOST_SHOWN])
    count = len(old.run_ids)
    title = f"Removed {count} run{'' if count == 1 else 's'}, {old.size_bytes / 2**20:.1f} MB"
    return Done(
        title, None, f"Their lines in the ledgers stay.{kept}", (("Health", "/health"), ("To the board", "/")), rows
    )
