"""The health of a root: what `pop doctor` finds, who serves it, models with limits and circuits, who is told of runs.

Keys of the daemon's environment are not seen from here, so nothing is said about those that seem to be missing; what a
notification's address holds beside its host is not shown.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response

from pop import __version__
from pop.cleaning import old_runs, remove_all, seconds_of, size_bytes
from pop.errors import PopError, UsageError
from pop.events import rfc3339
from pop.gatekeeper import socket_path
from pop.health import Finding, examine
from pop.hooks import hook_row
from pop.models.catalogue import Catalogue
from pop.models.described import LIMITS, model_row
from pop.models.keys import keys_of
from pop.models.questions import ask_gateway
from pop.modeltest import TEST_PROMPT, TEST_TOKENS, ask_each, distinct, in_lines
from pop.settings import NotifySettings, Root, load_settings
from pop.store import lock_holder
from pop.web.app import Site
from pop.web.errors import status_of
from pop.web.once import Done, DoneRow, Fields, done_once, new_mark, posted
from pop.web.render import page

router = APIRouter()
PROMPT_TOKENS = len(TEST_PROMPT)  # far more than it can be
MOST_FINDINGS = 300
MOST_SHOWN = 500


# -- what is told ------------------------------------------------------------------------------------------------------


def findings(root: Root) -> list[Finding]:
    """As `pop doctor` tells them, without what is said of keys, and of addresses (`hooks` tells who is told)."""
    return [found for found in examine(root, with_keys=False) if found.about != "notify"][:MOST_FINDINGS]


def models(root: Root) -> list[dict[str, Any]]:
    """As `pop models` lists them, with what the daemon's gateway says goes on now."""
    settings = load_settings(root)
    environ = keys_of(settings)
    catalogue = Catalogue(settings, environ)
    holder = lock_holder(root.machine_room)
    told = (asyncio.run(ask_gateway(str(socket_path(root)), {"figures": True}, 0.5)) if holder else None) or {}
    lanes, circuits = told.get("lanes") or {}, told.get("circuits") or {}
    rows = []
    for name in catalogue.names:
        row = model_row(catalogue, name, environ, root, settings)
        limits = {limit: row.get(limit) for limit in LIMITS}
        about = {"limits": limits, "lane": lanes.get(f"model {name}"), "circuit": circuits.get(name)}
        rows.append({**row, **about, "most_usd": most_usd(row)})
    return rows


def most_usd(row: dict[str, Any]) -> float | None:
    """What testing a model may cost at most; None where nobody knows, 0 where it is free."""
    if row.get("provider") in ("builtin", "replay"):
        return 0.0
    price = row.get("price")
    return (PROMPT_TOKENS * price["input"] + TEST_TOKENS * price["output"]) / 1e6 if price else None


def hooks(root: Root) -> list[dict[str, Any]]:
    """As `pop notify` tells them, without what may be a secret in an address or in a command's arguments."""
    return [hidden(hook_row(root, name, hook), hook) for name, hook in load_settings(root).notify.items()]


def hidden(row: dict[str, Any], hook: NotifySettings) -> dict[str, Any]:
    """A row of a hook with the host of its address, or the first word of its command."""
    if hook.url:
        target = f"{urlsplit(hook.url).scheme}://{urlsplit(hook.url).hostname or ''}/…"
    else:
        target = f"{hook.command[0]}{' …' if len(hook.command) > 1 else ''}" if hook.command else ""
    last = row["last"]
    if last and last.get("error"):
        error = str(last["error"])
        for secret in (hook.url, *(hook.command or [])[1:]):
            error = error.replace(secret, "…") if secret else error
        last = {**last, "error": error}
    return {**{key: row[key] for key in ("name", "on", "signed", "waiting")}, "target": target, "last": last}


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


def tested(root: Root, names: list[str]) -> list[tuple[str, list[str], bool]]:
    """By name how a test went, and whether it failed.

    Raises:
        UsageError: There is no daemon whose gateway could ask, or no such model.
    """
    if lock_holder(root.machine_room) is None:
        hint = "pop up serves it; pop models --test does without"
        raise UsageError("no daemon serves this folder, and the dashboard has no keys to ask with", hint=hint)
    rows = [row for row in models(root) if row["name"] in names]
    if not rows or len(rows) < len(set(names)):
        raise UsageError("which models?", where="model", hint="tick some of those that are listed")
    results = ask_each(root, rows) if distinct(rows) else {}
    found = []
    for row in rows:
        result = results.get(row["name"])
        if result is None:
            why = row["error"]["message"] if row["error"] else f"stands for {row['meaning']}: test those"
            found.append((row["name"], [why], bool(row["error"])))
        else:
            found.append((row["name"], list(in_lines(result, row["provider"])), bool(result["error"])))
    return found


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
    runs, freed, before = [], 0, time.time()
    if age:
        try:
            least_s = seconds_of(age)
            runs = old_runs(site.root, least_s, failed)
            before -= least_s
            freed = sum(size_bytes(run.path) for run in runs)
        except UsageError as wrong:
            error, age, status = wrong, "", status_of(wrong)
    context = {"age": age, "failed": failed, "archive": archive, "count": len(runs), "runs": runs[:MOST_SHOWN]}
    about = {"freed": freed, "before": before, "once": new_mark(), "error": error}
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
    try:
        before = float(fields.one("before"))
    except ValueError:
        raise UsageError("before when?", where="before", hint="reload the page, then send it again") from None
    if not 0 <= before <= time.time() or not fields.one("sure"):
        raise UsageError("tick that they are to be removed", where="sure")
    runs = old_runs(site.root, time.time() - before, failed)
    freed = sum(size_bytes(run.path) for run in runs)
    remove_all(site.root, runs, archive=archive)
    kept = " Each is kept as pipeline-complete/archive/RUN.tar.gz." if archive else ""
    rows = tuple(DoneRow(run.run_id, None, None) for run in runs[:MOST_SHOWN])
    title = f"Removed {len(runs)} run{'' if len(runs) == 1 else 's'}, {freed / 2**20:.1f} MB"
    return Done(
        title, None, f"Their lines in the ledgers stay.{kept}", (("Health", "/health"), ("To the board", "/")), rows
    )
