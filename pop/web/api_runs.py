"""What the API tells of a run: where it stands, its journal, steps, attempts, files, gates, and how two compare."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from pop.acts import outlook
from pop.compare import Pair, compare, unified
from pop.display import paused_by
from pop.gates import opened, problem_of
from pop.outlook import Outlook
from pop.records import CallRecord, ErrorRecord, Status, TaskStatus, TrailLine
from pop.runlook import look_at
from pop.runs import Run
from pop.stale import place_of
from pop.store import NotAFile, open_regular
from pop.timeline import Attempt
from pop.web import shapes
from pop.web.reading import (
    MOST_ROWS,
    ARun,
    ASite,
    files_below,
    inside,
    lines,
    listed,
    pieces,
    record_in,
    records,
    relative,
    text_in,
    value_in,
)

router = APIRouter(tags=["runs"])
MOST_REQUEST_BYTES = 2**20
FILE_HEADERS = {
    "content-disposition": "attachment",
    "content-security-policy": "sandbox; default-src 'none'",
    "x-content-type-options": "nosniff",
}
Offset = Annotated[int, Query(ge=0, le=2**53, description="Bytes from the beginning.")]


@router.get("/runs/{run_id}")
def run(site: ASite, run: ARun) -> shapes.RunDetail:
    """Where a run stands."""
    status = run.status()
    problem: shapes.Problem | None = None
    found: Status | None = None
    try:
        found = Status.model_validate(status)
    except ValidationError as error:
        told = status.get("error") if isinstance(status.get("error"), dict) else {}
        problem = shapes.Problem(
            code="unreadable",
            message=str((told or {}).get("message") or f"tasks-status.json: {error.errors()[0]['msg'].lower()}"),
            where=relative(site.root, run.path),
            hint=str((told or {}).get("hint") or "compare it with docs/files.md"),
        )
    return shapes.RunDetail(
        run_id=run.run_id,
        place=cast(Literal["current", "complete"], run.place),
        path=relative(site.root, run.path),
        name=str(status.get("name") or run.run_id),
        pipeline=str(status["pipeline"]) if status.get("pipeline") else None,
        state=str(status.get("state")),
        status=found,
        problem=problem,
        orders=run.waiting_orders(),
        gates=open_gates(run, status),
        paused=paused_by(run) if status.get("state") == "paused" else None,
    )


def open_gates(run: Run, status: dict[str, Any] | None = None) -> list[str]:
    """The instances of a run that wait for a person."""
    status = run.status() if status is None else status
    if run.place == "complete" or status.get("state") not in ("running", "waiting", "paused"):
        return []
    tasks = status.get("tasks") or {}
    waiting = [str(name) for name, task in tasks.items() if task.get("state") == "waiting"]
    return [name for name in waiting if opened(run.path / "tasks" / name)]


@router.get("/runs/{run_id}/events")
def events(run: ARun, offset: Offset = 0, limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 200) -> shapes.Events:
    """The journal from an offset on. A run that is promoted keeps its journal, and so the offsets."""
    rows, after, size = lines(run.path / "events.jsonl", offset, limit)
    return shapes.Events(offset=min(offset, size), next_offset=after, size=size, events=rows)


@router.get("/runs/{run_id}/timeline")
def timeline(run: ARun) -> shapes.TimelineShape:
    """When each attempt waited, asked a model and worked."""
    line = look_at(run).line
    rows = [shapes.TimelineRow(
        instance=row.instance, step=row.step, seconds={**row.seconds()}, attempts=[_attempt(one) for one in row.attempts],
    ) for row in line.rows]  # fmt: skip
    rests = [shapes.SpanShape(**span._asdict()) for span in line.rests]
    return shapes.TimelineShape(
        begin=line.begin, end=line.end, rows=rows, rests=rests, seconds={**line.seconds()}, cut=line.cut
    )


def _attempt(one: Attempt) -> shapes.AttemptSpan:
    return shapes.AttemptSpan(
        number=one.number,
        ready=one.ready,
        begin=one.begin,
        end=one.end,
        outcome=one.outcome,
        spans=[shapes.SpanShape(**span._asdict()) for span in one.spans],
        stages=[shapes.StageShape(**stage._asdict()) for stage in one.stages],
    )


# -- steps and attempts ----------------------------------------------------------------------------------------------


@router.get("/runs/{run_id}/steps/{instance}")
def step(run: ARun, instance: str) -> shapes.StepDetail:
    """An instance of a step: its output, its error, its letter, its attempts."""
    task = (run.status().get("tasks") or {}).get(instance)
    try:
        folder = inside(run.path / "tasks", instance)
    except HTTPException:
        if task is None or "/" in instance:
            raise HTTPException(404, f"no step {instance[:120]!r}") from None
        folder = run.path / "tasks" / instance
    try:
        known = TaskStatus.model_validate(task) if task else None
    except ValidationError:
        known = None
    output = folder / "output.json"
    return shapes.StepDetail(
        instance=instance,
        step=place_of(instance)[0],
        task=known,
        output=value_in(output),
        output_bytes=output.stat().st_size if output.is_file() else None,
        error=record_in(folder / "error.json", ErrorRecord),
        letter=_object(value_in(folder / "letter.json")),
        artifacts=files_below(folder / "artifacts"),
        attempts=[
            shapes.AttemptRow(number=int(path.name), files=files_below(path)) for path in run.attempts(instance)[-100:]
        ],
    )


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


@router.get("/runs/{run_id}/steps/{instance}/attempts/{number}")
def attempt(run: ARun, instance: str, number: int) -> shapes.AttemptDetail:
    """One process that tried: its trail, its model calls, its problems, its log."""
    folder = inside(run.path / "tasks", f"{instance}/attempts/{number}")
    problems = value_in(folder / "problems.json")
    return shapes.AttemptDetail(
        number=number,
        files=files_below(folder),
        trail=records(lines(folder / "trail.jsonl")[0], TrailLine),
        calls=records(lines(folder / "calls.jsonl")[0], CallRecord),
        problems=problems if isinstance(problems, list) else [],
        log=lines(folder / "log.jsonl")[0],
        error=record_in(folder / "error.json", ErrorRecord),
    )


# -- files -----------------------------------------------------------------------------------------------------------


@router.get("/runs/{run_id}/files")
def files(
    run: ARun, path: Annotated[str, Query(max_length=2000, description="A folder of the run; its own without.")] = ""
) -> shapes.FileList:
    """What lies in a folder of a run."""
    folder = inside(run.path, path) if path else run.path
    if not folder.is_dir():
        raise HTTPException(404, f"no folder {path[:120]!r}")
    found, cut = listed(run.path, folder)
    return shapes.FileList(path=path, files=found, cut=cut)


@router.get(
    "/runs/{run_id}/file",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "Its bytes from `offset` on."}},
)
def one_file(
    run: ARun,
    path: Annotated[str, Query(min_length=1, max_length=2000)],
    offset: Offset = 0,
    limit: Annotated[int, Query(ge=1, le=2**53)] = 2**53,
) -> StreamingResponse:
    """A file of a run, as it is; `X-Size` tells how large it is now."""
    try:
        file = os.fdopen(open_regular(inside(run.path, path), max_bytes=1 << 62), "rb")
    except (OSError, NotAFile):
        raise HTTPException(404, f"no file {path[:120]!r}") from None
    size = os.fstat(file.fileno()).st_size
    length = max(0, min(limit, size - offset))
    headers = {**FILE_HEADERS, "content-length": str(length), "x-size": str(size)}
    return StreamingResponse(pieces(file, offset, length), media_type="application/octet-stream", headers=headers)


# -- gates, outlook, comparison --------------------------------------------------------------------------------------


@router.get("/runs/{run_id}/gates")
def gates(run: ARun) -> shapes.Gates:
    """The gates at which a person is asked now."""
    return shapes.Gates(gates=[gate for name in open_gates(run) if (gate := gate_of(run, name))])


def gate_of(run: Run, name: str) -> shapes.Gate | None:
    """What is asked at a gate; None when it is not open."""
    folder = run.path / "tasks" / name
    about = opened(folder)
    if about is None:
        return None
    return shapes.Gate(
        instance=name,
        kind=about.kind,
        title=about.title,
        opening=about.opening,
        options=about.options,
        expires_at=about.expires_at,
        request=text_in(folder / "request.md", MOST_REQUEST_BYTES),
        shown=about.shown,
        notes=about.notes,
        problem=problem_of(folder),
    )


@router.get("/runs/{run_id}/plan")
def plan(
    site: ASite,
    run: ARun,
    from_: Annotated[list[str] | None, Query(alias="from", max_length=100, description="STEP[:STAGE]")] = None,
) -> shapes.PlanShape:
    """What would be reused, run or blocked if the run were taken up again from there, and what it may cost."""
    return plan_shape(outlook(site.root, run, from_ or []))


def plan_shape(found: Outlook, problems: list[shapes.Problem] | None = None) -> shapes.PlanShape:
    """An outlook as the API tells it."""
    rows = [shapes.PlanRow.model_validate(row.to_json()) for row in found.rows]
    total = shapes.EstimateShape.model_validate(found.total.to_json())
    return shapes.PlanShape(steps=rows, total=total, from_=found.from_, notes=found.notes, problems=problems or [])


@router.get("/compare")
def comparison(
    site: ASite,
    a: Annotated[str, Query(max_length=200)],
    b: Annotated[str, Query(max_length=200)],
    step: Annotated[str | None, Query(max_length=200)] = None,
) -> shapes.Comparison:
    """Two runs side by side: what each step put out, was asked, cost and took."""
    one, two = site.run(a), site.run(b)
    pairs = [
        shapes.Pair(
            name=pair.name,
            output=pair.output,
            prompt=pair.prompt,
            output_diff=_differences(pair, "output", (a, b)),
            prompt_diff=_differences(pair, "prompt", (a, b)),
            a=shapes.SideShape.model_validate(pair.a.to_json()) if pair.a else None,
            b=shapes.SideShape.model_validate(pair.b.to_json()) if pair.b else None,
        )
        for pair in compare(one, two, step)[:MOST_ROWS]
    ]
    return shapes.Comparison(a=a, b=b, pairs=pairs)


def _differences(pair: Pair, what: Literal["output", "prompt"], names: tuple[str, str]) -> list[str]:
    if pair.a is None or pair.b is None or getattr(pair, what) != "different":
        return []
    return unified(getattr(pair.a, what), getattr(pair.b, what), names)
