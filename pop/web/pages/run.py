"""A run: graph, timeline, costs and steps, live while it goes on; its steps with all they kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response

from pop.diaries import Diaries, json_lines
from pop.display import next_move, open_gates, paused_by, usage_line
from pop.report import FILTERS, graph_of, look_of, report, timeline_of
from pop.runlook import look_at, row_of, rows_of, status_for
from pop.runs import Run
from pop.safehtml import plain
from pop.stale import CONTROL, place_of
from pop.steplook import StepLook, instances_of, look_into, readable
from pop.web.pages.files import address, raw_address
from pop.web.reading import mark_of
from pop.web.render import page, rendered, templates

router = APIRouter()

MOST_ROWS = 150  # instances that have a line of their own
MOST_LISTED = 200  # of one step, on one page
MOST_ATTENTION = 40
GRAPH_BYTES, LINE_BYTES = 90_000, 90_000  # of the pictures inside the page; larger ones have an address of their own
TEXT = 12_000  # characters of one text; the file itself is a click away
LOG_LINES = 300

DOCUMENTS = ("seed.json", "pipeline.json", "provenance.json", "events.jsonl", "tasks-status.json")

_DIARIES = Diaries()
ALONE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox allow-popups"

templates().filters.update(FILTERS)


# -- a run ---------------------------------------------------------------------------------------------------------


def step_address(run: Run) -> Any:
    """Where a step, or an instance, is shown; for pictures and tables."""
    return lambda name: address(run.run_id, "steps", name)


def context_of(site: Any, run: Run) -> dict[str, Any]:
    """What the parts of the page need of a run."""
    look = look_at(run, diaries=_DIARIES)
    run = look.run
    status, url = look.status, step_address(run)
    state = str(status.get("state"))
    tasks = look.tasks
    rows = rows_of(tasks, MOST_ROWS)
    grouped = len(tasks) > MOST_ROWS
    pressing = [
        row_of(n, t) for n, t in tasks.items() if grouped and t.get("state") in ("failed", "waiting", "running")
    ]
    return {
        "run": run,
        "look": look,
        "run_status": status,
        "state": state,
        "rows": rows,
        "pressing": pressing[:MOST_ATTENTION],
        "more_pressing": max(0, len(pressing) - MOST_ATTENTION),
        "graph": graph_of(look, url, GRAPH_BYTES),
        "graph_address": address(run.run_id, "graph.svg"),
        "line": timeline_of(look, url, LINE_BYTES),
        "url": url,
        "raw": raw_address(run),
        "documents": [name for name in DOCUMENTS if (run.path / name).is_file()],
        "usage_words": usage_line(status.get("usage") or {}),
        "next_move": next_move(site.root, run, status) if state in ("failed", "cancelled") else None,
        "paused": paused_by(run) if state == "paused" else None,
        "gates": open_gates(status),
        "orders": run.waiting_orders(),
        "wall": look.line.end - look.line.begin,
    }


PARTS = {
    "run-head": "run_head.html",
    "run-graph": "run_graph.html",
    "run-time": "run_time.html",
    "run-steps": "run_steps.html",
    "run-costs": "run_costs.html",
    "run-said": "run_said.html",
}


class RunSource:
    """A run's page while it goes on."""

    def __init__(self, site: Any, run: Run) -> None:
        self._site, self._run = site, run

    def mark(self) -> str | None:
        return mark_of(self._run) if self._run.place == "current" and self._run.path.is_dir() else None

    def fragments(self) -> dict[str, str]:
        context = context_of(self._site, self._run)
        return {key: rendered(name, **context) for key, name in PARTS.items()}


@router.get("/runs/{run_id}")
def run_page(request: Request, run_id: str) -> HTMLResponse:
    site = request.app.state.site
    run = site.run(run_id)
    mark = mark_of(run)
    return page(request, "run.html", mark=mark, **context_of(site, run))


@router.get("/live/run/{run_id}")
async def live_run(request: Request, run_id: str) -> Response:
    site = request.app.state.site
    run = site.run(run_id)
    return site.live.stream(request, ("run", run_id), lambda: RunSource(site, run))  # type: ignore[no-any-return]


@router.get("/runs/{run_id}/graph.svg")
def graph_file(request: Request, run_id: str) -> Response:
    """The graph alone: for a pipeline that is too large to stand in the page."""
    from pop.drawing import draw

    look = look_at(request.app.state.site.run(run_id), diaries=_DIARIES)
    if look.pipeline is None:
        raise HTTPException(404, look.troubles[-1] if look.troubles else "this pipeline cannot be drawn")
    drawn = draw(look.pipeline, look.states, notes=look.notes, alone=True, label=f"graph of {run_id}")
    return Response(drawn, media_type="image/svg+xml", headers={"content-security-policy": ALONE})


@router.get("/runs/{run_id}/report")
def report_file(request: Request, run_id: str) -> Response:
    """What `pop report` writes."""
    from time import time

    site, now = request.app.state.site, time()
    made = report(site.root, look_of(site.run(run_id), now), now=now)
    headers = {"content-security-policy": ALONE, "content-disposition": f'inline; filename="{run_id}.html"'}
    return HTMLResponse(made.encode("utf-8", "replace"), headers=headers)


# -- a step --------------------------------------------------------------------------------------------------------


def step_context(run: Run, status: dict[str, Any], instance: str, attempt: int | None) -> dict[str, Any]:
    """What the parts of a step's page need."""
    task = (status.get("tasks") or {}).get(instance) or {"state": "pending"}
    step = look_into(run, instance, task, attempt)
    return {
        "run": run,
        "run_status": status,
        "step": step,
        "row": row_of(instance, task),
        "url": step_address(run),
        "raw": raw_address(run),
        "files_address": address(run.run_id, "files", "tasks", instance) if instance in instances_of(run) else None,
        "gate_address": address(run.run_id, "gates", instance) if task.get("state") == "waiting" else None,
        "rerun_address": _rerun_address(run, instance, task),
        "log": list(_log_lines(step)),
        "stdout": plain(step.stdout[-20_000:], 20_000),
        "most": TEXT,
        "lap_before": _lap_before(run, instance),
    }


def _rerun_address(run: Run, instance: str, task: dict[str, Any]) -> str | None:
    """Where it is run again; None of what has not run."""
    if task.get("state") in ("pending", "waiting") or instance.endswith(CONTROL):
        return None
    return address(run.run_id, "rerun") + "?from=" + quote(instance)


def _log_lines(step: StepLook) -> Iterator[tuple[str, str, str]]:
    """``(time, level, words)`` of the newest lines."""
    for row in list(json_lines(step.log.encode("utf-8", "replace")))[-LOG_LINES:]:
        known = {"at", "level", "stage", "text"}
        more = "  ".join(f"{key}={value}" for key, value in row.items() if key not in known)
        level = str(row.get("level"))
        words = plain(f"{row.get('text', '')}  {more}".rstrip(), 2000)
        yield str(row.get("at"))[11:23], level if level in ("warning", "error") else "info", words


def _lap_before(run: Run, instance: str) -> tuple[str, str, str] | None:
    """What the lap before put out, beside this one's: ``(words, before, after)``."""
    name, place = place_of(instance)
    if not place.laps or place.laps[-1] < 2 or instance.endswith(CONTROL):
        return None
    laps = ".".join(map(str, (*place.laps[:-1], place.laps[-1] - 1)))
    before = ".".join([name, *map(str, place.items)]) + f"@{laps}"
    known = instances_of(run)
    if before not in known or instance not in known:
        return None
    old, new = (look_into(run, one, {}).output for one in (before, instance))
    return (f"{before} to {instance}", readable(old), readable(new)) if old and new else None


STEP_PARTS = {"step-head": "step_head.html", "step-body": "step_body.html", "step-log": "step_log.html"}


class StepSource:
    """A step's page while its run goes on."""

    def __init__(self, run: Run, instance: str, attempt: int | None) -> None:
        self._run, self._instance, self._attempt = run, instance, attempt

    def mark(self) -> str | None:
        if self._run.place != "current" or not self._run.path.is_dir():
            return None
        return step_mark(self._run, self._instance)

    def fragments(self) -> dict[str, str]:
        context = step_context(self._run, status_for(self._run), self._instance, self._attempt)
        return {key: rendered(name, **context) for key, name in STEP_PARTS.items()}


def step_mark(run: Run, instance: str) -> str:
    """The sizes of what the newest attempt writes, and where the run stands."""
    attempts = run.attempts(instance)
    parts = [mark_of(run), attempts[-1].name if attempts else "-"]
    for name in ("trail.jsonl", "calls.jsonl", "log.jsonl", "stdout.txt") if attempts else ():
        try:
            parts.append(f"{os.lstat(attempts[-1] / name).st_size:x}")
        except OSError:
            parts.append("")
    return "-".join(parts)


@router.get("/runs/{run_id}/steps/{instance}")
def step_page(request: Request, run_id: str, instance: str, attempt: int | None = None, show: int = 1) -> HTMLResponse:
    """An instance, or the instances of a step."""
    run = request.app.state.site.run(run_id).here()
    status = status_for(run)
    names = list(status.get("tasks") or {})
    here = instances_of(run)
    family = [name for name in names if place_of(name)[0] == instance and name != instance]
    if instance not in here and instance not in names:
        if not family:
            raise HTTPException(404, f"no step {instance[:120]!r} in this run")
        return _instances_page(request, run, status, instance, family, show)
    mark = step_mark(run, instance)
    place = names.index(instance) if instance in names else -1
    return page(
        request,
        "step.html",
        mark=mark,
        live=f"/live/run/{run_id}/steps/{quote(instance, '@.,~', errors='surrogateescape')}"
        + (f"?attempt={attempt}" if attempt else ""),
        before=names[place - 1] if place > 0 else None,
        after=names[place + 1] if 0 <= place < len(names) - 1 else None,
        **step_context(run, status, instance, attempt),
    )


def _instances_page(
    request: Request, run: Run, status: dict[str, Any], step: str, family: list[str], show: int
) -> HTMLResponse:
    pages = max(1, -(-len(family) // MOST_LISTED))
    shown = min(max(show, 1), pages)
    rows = [row_of(name, status["tasks"][name]) for name in family[(shown - 1) * MOST_LISTED : shown * MOST_LISTED]]
    return page(
        request,
        "run_instances.html",
        run=run,
        run_status=status,
        step=step,
        rows=rows,
        total=len(family),
        shown=shown,
        pages=pages,
        url=step_address(run),
    )


@router.get("/live/run/{run_id}/steps/{instance}")
async def live_step(request: Request, run_id: str, instance: str, attempt: int | None = None) -> Response:
    site = request.app.state.site
    run = site.run(run_id)
    if not await run_in_threadpool(_knows, run, instance):
        raise HTTPException(404, f"no step {instance[:120]!r} in this run")
    key = ("step", run_id, instance, attempt)
    return site.live.stream(request, key, lambda: StepSource(run, instance, attempt))  # type: ignore[no-any-return]


def _knows(run: Run, instance: str) -> bool:
    return instance in instances_of(run) or instance in (run.status().get("tasks") or {})
