"""What the API tells of a root: board, queue, ledger, costs, models, pipelines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import Response

from pop.costs import KEYS, Calls, add_up, figures, ordered, read_day
from pop.costsheet import csv_of
from pop.errors import PopError
from pop.graph import edges, mermaid
from pop.models.catalogue import Catalogue, describe_default
from pop.models.described import LIMITS, model_row
from pop.models.keys import keys_of
from pop.pipeline import Each, Gate, Parallel, Pipeline, Repeat, Task
from pop.queue import ignore_lease_breaks
from pop.records import BadJson, RunRecord, printable, read_json
from pop.refusals import reason_of, refusal, refusal_keys
from pop.rootcheck import Read, RootCheck
from pop.runindex import GROUPS, Asked
from pop.runs import pending, pending_names, seed_limits
from pop.seedform import own_schema, seed_schema
from pop.settings import Root, load_settings
from pop.store import lock_holder
from pop.tasks import find_task
from pop.web import shapes
from pop.web.reading import MOST_ROWS, ASite, lines, problem, records, relative, text_in
from pop.web.site import Site

router = APIRouter(tags=["root"])
MOST_TEXT_BYTES = 256 * 1024
MOST_PENDING = 1000
SHOWN = 50
LOOK_S = 1.0
STATE_WORDS = "A state, or a group: " + "; ".join(f"{name} ({', '.join(states)})" for name, states in GROUPS.items())
Day = Annotated[str | None, Query(pattern=r"^\d{4}-\d\d-\d\d$", examples=["2026-11-21"])]
Time = Annotated[str, Query(max_length=40, pattern=r"^(\d{4}-\d\d-\d\d(T[0-9:.]{5,20}Z?)?)?$")]
Name = Annotated[str, Query(max_length=200)]


# -- the board -----------------------------------------------------------------------------------------------------------


@router.get("/board")
def board(site: ASite) -> shapes.Board:
    """Where the root stands: counts, throughput, spend today, limits in use, what waits for a person, what is at work."""
    site.look(LOOK_S)
    settings = load_settings(site.root)
    return shapes.Board(
        root=str(site.root.path),
        daemon=daemon_of(site.root),
        default=describe_default(settings, keys_of(settings)),
        counts=site.index.counts(),
        now=site.figures.newest,
        waiting=site.index.query(Asked(state="waiting"), size=SHOWN).rows,
        active=site.index.query(Asked(state="active"), size=SHOWN).rows,
        behind_bytes=site.index.behind_bytes,
    )


def daemon_of(root: Root) -> shapes.Daemon | None:
    """Who serves a root."""
    holder = lock_holder(root.machine_room)
    return shapes.Daemon(**{key: holder.get(key) for key in shapes.Daemon.model_fields}) if holder else None


@router.get("/counts")
def counts(site: ASite) -> shapes.Counts:
    """How many runs are in each state."""
    site.look(LOOK_S)
    return shapes.Counts(counts=site.index.counts())


@router.get("/runs")
def runs(
    site: ASite,
    state: Annotated[str, Query(max_length=40, description=STATE_WORDS)] = "",
    text: Annotated[str, Query(max_length=200, description="Words that must all occur.")] = "",
    pipeline: Name = "",
    since: Time = "",
    page: Annotated[int, Query(ge=1, le=10_000_000)] = 1,
    size: Annotated[int, Query(ge=1, le=200)] = 50,
) -> shapes.RunPage:
    """Runs, the newest first; all parameters narrow."""
    site.look(LOOK_S)
    found = site.index.query(Asked(state, text, pipeline, since), page, size)
    return shapes.RunPage(total=found.total, page=found.page, pages=found.pages, size=size, runs=found.rows)


# -- the queue -----------------------------------------------------------------------------------------------------------


@router.get("/pending")
def pending_list(site: ASite) -> shapes.PendingList:
    """What lies in pipeline-pending/, and why it waits."""
    ignore_lease_breaks()
    rows = pending(site.root, seed_limits(site.root), MOST_PENDING)
    return shapes.PendingList(
        count=len(pending_names(site.root)),
        pending=[shapes.Pending.model_validate({**row, "name": printable(row["name"])}) for row in rows],
    )


@router.get("/rejected")
def rejected_list(site: ASite) -> shapes.RejectedList:
    """What could not be accepted, with its reason."""
    keys = refusal_keys(site.root)
    return shapes.RejectedList(
        rejected=[shapes.Rejected(key=printable(key), **reason_of(site.root, key)) for key in keys]
    )


@router.get("/rejected/{key}")
def rejected_seed(site: ASite, key: str) -> shapes.RejectedSeed:
    """A refused seed: why, and its text. To mend it, POST a new one to /api/seeds; this one stays where it lies."""
    seed = refusal(site.root, key)
    if seed is None:
        raise HTTPException(404, f"no refused seed {key[:80]!r}")
    return shapes.RejectedSeed(
        key=seed.key,
        **seed.reason,
        kind=seed.kind,
        file=relative(site.root, seed.path),
        size=seed.size,
        text=seed.text,
        files=seed.files,
    )


@router.get("/ledger")
def ledger(
    site: ASite,
    offset: Annotated[int, Query(ge=-(2**53), le=2**53, description="Bytes; negative: so many before the end.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 100,
) -> shapes.LedgerPage:
    """Lines of runs.jsonl."""
    try:
        size = os.stat(site.root.ledger).st_size
    except OSError:
        size = 0
    begin = max(0, size + offset) if offset < 0 else offset
    rows, after, size = lines(site.root.ledger, begin, limit)
    found = records(rows, RunRecord)
    return shapes.LedgerPage(
        offset=min(begin, size), next_offset=after, size=size, records=found, passed_over=len(rows) - len(found)
    )


@router.get("/costs")
def costs(
    site: ASite,
    by: Literal["model", "step", "run", "pipeline", "day"] = "model",
    since: Day = None,
    until: Day = None,
    run: Annotated[str | None, Query(max_length=200)] = None,
) -> shapes.Costs:
    """What model calls cost, from the ledger of calls: every request that a provider counts."""
    calls = Calls(site.root, read_day(since, "since"), read_day(until, "until"), run)
    rows, total = add_up(calls, KEYS[by])
    calls.check()
    told = [shapes.CostRow(key=name, **figures(part)) for name, part in ordered(by, rows)]
    return shapes.Costs(by=by, rows=told, total=shapes.Figures(**figures(total)), passed_over=calls.passed_over)


@router.get(
    "/costs.csv",
    response_class=Response,
    responses={
        200: {"description": "Comma-separated values.", "content": {"text/csv": {"schema": {"type": "string"}}}}
    },
)
def costs_csv(
    site: ASite,
    by: Literal["model", "step", "run", "pipeline", "day"] = "model",
    since: Day = None,
    until: Day = None,
    run: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """The same as a table, as `pop cost --csv`: a cell that a spreadsheet would take for a formula begins with an apostrophe."""
    calls = Calls(site.root, read_day(since, "since"), read_day(until, "until"), run)
    rows, _ = add_up(calls, KEYS[by])
    calls.check()
    return Response(csv_of(by, ordered(by, rows)).encode("utf-8", "replace"), media_type="text/csv; charset=utf-8")


# -- models and pipelines ------------------------------------------------------------------------------------------------


@router.get("/models")
def models(site: ASite) -> shapes.Models:
    """The models a step may ask for: what they stand for, limits, prices, whether their keys are there."""
    settings = load_settings(site.root)
    environ = keys_of(settings)
    catalogue = Catalogue(settings, environ)
    rows = [_model(model_row(catalogue, name, environ, site.root, settings)) for name in catalogue.names]
    return shapes.Models(default=describe_default(settings, environ), models=rows, lanes=_lanes(site))


def _lanes(site: Site) -> list[shapes.Lane]:
    site.look(LOOK_S)
    return site.figures.newest.lanes


def _model(row: dict[str, Any]) -> shapes.Model:
    known = {key: row.get(key) for key in shapes.Model.model_fields}
    if row["error"]:
        known["error"] = shapes.Problem(code="invalid-config", **row["error"])
    if row.get("provider"):
        known["limits"] = {name: row.get(name) for name in LIMITS}
    return shapes.Model(**known)


@router.get("/check")
def check(site: ASite) -> shapes.Check:
    """Every mistake in pop.toml, pipelines, tasks, templates, schemas and expressions."""
    look = RootCheck(site.root)
    found = look.problems()
    return shapes.Check(ok=not found, problems=[problem(one) for one in found], notes=look.notes())


@router.get("/pipelines")
def pipelines(site: ASite) -> shapes.PipelineList:
    """The pipelines that a seed may ask for."""
    look = RootCheck(site.root)
    rows = [
        shapes.PipelineRow(
            name=name,
            file=read.file,
            description=_description(read),
            steps=list(read.pipeline.steps) if read.pipeline else [],
            problems=len(read.problems),
        )
        for name, read in look.pipelines.items()
    ]
    return shapes.PipelineList(pipelines=rows)


def _document(read: Read) -> Any:
    try:
        return read_json(read.data)
    except BadJson:
        return None


def _description(read: Read) -> str | None:
    document = _document(read)
    text = document.get("description") if isinstance(document, dict) else None
    return text if isinstance(text, str) else None


@router.get("/pipelines/{name}")
def pipeline(site: ASite, name: str) -> shapes.PipelineDetail:
    """A pipeline: its graph, its tasks with prompts and schemas, what its seed holds, and what is wrong with it."""
    look = RootCheck(site.root)
    read = look.pipelines.get(name)
    if read is None:
        raise HTTPException(404, f"no pipeline {name[:80]!r}")
    found = read.pipeline
    return shapes.PipelineDetail(
        name=name,
        file=read.file,
        document=_document(read),
        description=_description(read),
        steps=list(_steps(found)) if found else [],
        blocks=list(_blocks(found)) if found else [],
        graph=mermaid(found) if found else None,
        tasks=[_task(site, look, task) for task in sorted({step.task for step in found.tasks.values()})]
        if found
        else [],
        seed=seed_schema(look, name),
        seed_guessed=own_schema(look, name) is None,
        problems=[problem(one) for one in [*read.problems, *look.asked_problems(name)]],
    )


def _steps(pipeline: Pipeline) -> Iterator[shapes.Step]:
    after: dict[str, list[str]] = {}
    for before, later in edges(pipeline):
        after.setdefault(later, []).append(before)
    for name, step in pipeline.steps.items():
        task = step if isinstance(step, Task) else None
        yield shapes.Step(
            name=name,
            kind="gate" if isinstance(step, Gate) else "task",
            task=task.task if task else None,
            model=task.model if task else None,
            when=step.when.text if step.when else None,
            inside=[block.name for block in pipeline.around[name]],
            after=after.get(name, []),
        )


def _blocks(pipeline: Pipeline) -> Iterator[shapes.Block]:
    for name, block in pipeline.blocks.items():
        if isinstance(block, Task | Gate):
            continue
        parent = pipeline.parents.get(name)
        loop = block if isinstance(block, Repeat) else None
        kind: Any = (
            "each" if isinstance(block, Each) else "repeat" if loop
            else "parallel" if isinstance(block, Parallel) else "sequence"
        )  # fmt: skip
        yield shapes.Block(
            name=name,
            kind=kind,
            inside=parent.name if parent else None,
            when=block.when.text if block.when else None,
            over=block.over.text if isinstance(block, Each) else None,
            until=loop.until.text if loop else None,
            at_most=loop.at_most if loop else None,
        )


def _task(site: Site, look: RootCheck, name: str) -> shapes.Task:
    try:
        paths = find_task(site.root.tasks, name).all()
    except PopError:
        paths = []
    files = [shapes.TaskFile(path=relative(site.root, path), text=text_in(path, MOST_TEXT_BYTES)) for path in paths]
    return shapes.Task(name=name, kind=look.tasks.get(name, "missing"), files=files)
