"""What the API does: seeds, orders, answers, reruns. Each act tells which file it wrote."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, cast

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from pop import acts
from pop.answering import answer_gate, open_gate_of
from pop.changes import Changes, changes_of, refuse_without_models
from pop.drops import CERTAIN, Upload, drop, seed_of, submit_alone
from pop.errors import PopError, SeedRejected, UsageError, did_you_mean
from pop.gateshow import MAX_OUTPUT_BYTES, diff
from pop.outlook import Outlook, of_seed
from pop.pipeline_values import budget as budgets
from pop.records import BadJson, read_json
from pop.rootcheck import RootCheck
from pop.runs import Run
from pop.seeds import parse_seed
from pop.seedtext import seed_at
from pop.settings import Root, load_settings
from pop.store import contained, lock_holder, read_regular
from pop.web import shapes
from pop.web.api_runs import plan_shape
from pop.web.ordering import order_all
from pop.web.reading import ARun, ASite, problem, relative

router = APIRouter(tags=["acts"])
Verb = Literal["cancel", "pause", "resume", "retry"]
SEED_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object", "description": "The seed: its data, or an envelope."}},
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["file"],
                }
            },
        },
    }
}
IN_MEMORY_BYTES = 2**20


def written(root: Root, path: Path | None, note: str | None = None) -> dict[str, Any]:
    """The keys of a `Written`."""
    served = lock_holder(root.machine_room) is not None
    return {"file": relative(root, path) if path else None, "note": note, "served": served}


# -- seeds -----------------------------------------------------------------------------------------------------------


@router.post("/seeds", status_code=201, openapi_extra=SEED_BODY)
async def seeds(
    request: Request,
    site: ASite,
    name: Annotated[str, Query(max_length=150, description="What its file is called.")] = "seed",
    pipeline: Annotated[str | None, Query(max_length=100)] = None,
    model: Annotated[list[str] | None, Query(max_length=50, description="[ROLE=]NAME")] = None,
) -> shapes.Written:
    """Drop a seed: JSON, a zip archive, or files of which one is seed.json. It is held to [seeds] of pop.toml."""
    async with sent(request, name) as uploads:
        path = await run_in_threadpool(put, site.root, uploads, name, pipeline, model or [])
    return shapes.Written(**written(site.root, path))


def put(
    root: Root,
    uploads: list[Upload],
    name: str,
    pipeline: str | None,
    models: list[str],
    *,
    look: Callable[[Path], None] | None = None,
) -> Path:
    """Into the queue, as `pop submit` does it.

    Args:
        look: Raises where it is not to appear; else that is what its models lack for certain.

    Raises:
        PopError: It is no seed for this root.
    """
    if pipeline is not None and pipeline not in root.pipeline_names():
        hint = did_you_mean(pipeline, root.pipeline_names())
        raise SeedRejected(f"no pipeline {pipeline[:80]!r}", where="pipeline", hint=hint, code="unknown-pipeline")
    changes = changes_of(root, models, None, pipeline)
    return drop(root, uploads, changes, name=name, look=look or partial(refuse_without_models, root, codes=CERTAIN))


@asynccontextmanager
async def sent(request: Request, name: str) -> AsyncIterator[list[Upload]]:
    """The files of a request, on the disk where they are large; gone afterwards.

    Raises:
        SeedRejected: It brings none, or more than [seeds] allows.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limits = load_settings(request.app.state.site.root).seeds
    if kind == "multipart/form-data":
        body = _Body(request.receive)
        try:
            form = await Request(request.scope, body).form(max_files=limits.max_files + 1, max_fields=20)
        except HTTPException as error:
            await body.read_away()
            code = "seed-too-large" if "Too many" in str(error.detail) else None
            raise SeedRejected(f"the parts of the request: {error.detail}", code=code) from None
        try:
            files = [value for key, value in form.multi_items() if key == "file" and isinstance(value, UploadFile)]
            yield [Upload(file.filename or "", file.file) for file in files if file.filename]
        finally:
            await form.close()
        return
    suffix = {"application/zip": ".zip", "application/x-zip-compressed": ".zip"}.get(kind, ".json")
    most = int((limits.max_files_mb if suffix == ".zip" else limits.max_mb) * 2**20)
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as file:
        taken = 0
        async for piece in request.stream():
            taken += len(piece)
            if taken <= most:  # what is more is read all the same, or who sends it would never read our answer
                file.write(piece)
        if taken > most:
            hint = f"raise [seeds] {'max_files_mb' if suffix == '.zip' else 'max_mb'} in pop.toml"
            raise SeedRejected(f"more than the limit of {most / 2**20:g} MB", hint=hint, code="seed-too-large")
        file.seek(0)
        yield [Upload(f"{name}{suffix}", cast(BinaryIO, file))]


class _Body:
    """A request's body, which can be read to its end after somebody gave up on it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._over = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._over = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def read_away(self) -> None:
        """The rest: who sends it would never read our answer. The guard knows how much that may be."""
        while not self._over:
            await self()


@router.post(
    "/seeds/plan",
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def plan_seed(request: Request, site: ASite) -> shapes.PlanShape:
    """What a seed would do, and what it may cost; and what is wrong with it. Nothing is dropped."""
    data = await request.body()
    return await run_in_threadpool(plan_of_seed, site.root, data)


def plan_of_seed(root: Root, data: bytes) -> shapes.PlanShape:
    """An outlook of a seed's bytes, with the mistakes that `pop check` would find in it."""
    parse_seed(data, where="the seed")
    with tempfile.TemporaryDirectory(prefix="pop-plan-") as folder:
        path = Path(folder, "seed.json")
        path.write_bytes(data)
        return plan_at(root, path, called="seed.json")


def plan_at(root: Root, path: Path, *, called: str) -> shapes.PlanShape:
    """The same of a file, a folder or an archive.

    Args:
        called: What whoever sent it calls it.
    """
    look = RootCheck(root)
    found = look.seed_problems(path)
    for one in found:
        one.where = one.where.replace(str(path), called) if one.where else None
    problems = [problem(one) for one in found]
    try:
        return plan_shape(of_seed(root, seed_at(path)), problems)
    except PopError as error:
        return plan_shape(Outlook([]), problems or [problem(error)])


# -- orders ----------------------------------------------------------------------------------------------------------


@router.post("/runs/{run_id}/orders/{verb}")
def give(site: ASite, run: ARun, verb: Verb, body: shapes.OrderBody) -> shapes.Written:
    """End a run, let it rest, let it go on."""
    given = acts.order(run, verb, body.reason, budget=_amounts(verb, body))
    return shapes.Written(**written(site.root, given.file, given.note))


@router.post("/orders/{verb}")
def give_many(site: ASite, verb: Verb, body: shapes.OrdersBody) -> shapes.Ordered:
    """The same order to many runs. One that it does not fit is told with its problem, and stops no other."""
    told = order_all(site, body.runs, verb, body.reason, _amounts(verb, body))
    return shapes.Ordered(
        orders=[
            shapes.OrderedRun(
                run_id=one.run_id, file=one.file, note=one.note, problem=problem(one.error) if one.error else None
            )
            for one in told
        ],
        served=lock_holder(site.root.machine_room) is not None,
    )


def _amounts(verb: Verb, body: shapes.OrderBody) -> dict[str, float]:
    if body.budget and verb != "retry":
        raise UsageError("a budget is raised by a retry", where="budget")
    try:
        return budgets("step", "run", "pipeline")(body.budget) if body.budget else {}
    except (TypeError, ValueError) as error:
        raise UsageError(f"budget: {error}", where="budget", hint='{"run_usd": 5}') from None


@router.post("/runs/{run_id}/rerun")
def rerun(site: ASite, run: ARun, body: shapes.RerunBody) -> shapes.Rerun:
    """Run it again from a step on; what lies before is kept. GET its plan with the same `from` first."""
    _refuse_unwritable(body.set)
    changes_of(site.root, [f"{role}={name}" for role, name in body.models.items()])  # refuses models that are not there
    wish = acts.Wish(body.from_, body.set, body.models, body.fork, body.reason)
    done = acts.rerun(site.root, run, wish)
    note = f"{run.run_id} is complete: a new run is made of it" if done.fork and not body.fork else None
    return shapes.Rerun(**written(site.root, done.file, note), stale=list(done.stale), fork=done.fork)


@router.post("/runs/{run_id}/replay", status_code=201)
def replay_run(site: ASite, run: ARun) -> shapes.Written:
    """The whole of a finished run once more by its recorded answers, in a new run, without a call."""
    return shapes.Written(**written(site.root, replay(site.root, run)))


def replay(root: Root, run: Run) -> Path:
    """The run's own seed into the queue, all its models answered from what was recorded.

    Raises:
        UsageError: It is not finished, or kept no answers.
    """
    if run.place != "complete":
        raise acts.DoesNotFit(f"{run.run_id} is {run.status().get('state')}; only a finished run is replayed")
    changes = changes_of(root, replay=run.run_id)
    assert changes.recorded is not None
    own = Changes(changes.recorded.pipeline, changes.models, changes.recorded)
    with seed_of(changes.recorded) as folder:
        return submit_alone(root, str(folder), own)


def _refuse_unwritable(value: Any) -> None:
    """What FastAPI reads as JSON is more than POP does: NaN, any depth.

    Raises:
        UsageError: It would not be read again.
    """
    try:
        read_json(json.dumps(value), where="set")
    except (BadJson, ValueError, RecursionError) as error:
        raise UsageError(f"set: {error}", where="set", code="unknown-path") from None


# -- answers ---------------------------------------------------------------------------------------------------------


@router.post("/runs/{run_id}/gates/{gate}/answer")
def answer(site: ASite, run: ARun, gate: str, body: shapes.AnswerBody) -> shapes.Answered:
    """Answer a gate; the first answer counts."""
    instance = open_gate_of(run, gate)
    edits = {path: text.encode() for path, text in body.edits.items()}
    path, by = answer_gate(
        run, instance, body.decision, text=body.text, how="dashboard", edits=edits, opening=body.opening
    )
    return shapes.Answered(**written(site.root, path), gate=instance, decision=body.decision, by=by)


@router.post("/runs/{run_id}/gates/{gate}/diff")
def difference(run: ARun, gate: str, body: shapes.EditsBody) -> shapes.Diffs:
    """What edits would change; nothing is written."""
    instance = open_gate_of(run, gate)
    return shapes.Diffs(diffs=[shapes.Diff(path=p, diff=d) for p, d in diffs(run, instance, body.edits).items()])


def diffs(run: Run, instance: str, edits: dict[str, str]) -> dict[str, str]:
    """By path of a copy, how its new text differs from what lies there."""
    found: dict[str, str] = {}
    for path, text in edits.items():
        base = run.path / "tasks" / instance / "show"
        prefix = f"tasks/{instance}/show/"
        if not path.startswith(prefix):
            raise UsageError(f"the gate shows no {path[:120]!r}", where=path[:200], code="bad-edit")
        try:
            before = read_regular(contained(base, path.removeprefix(prefix)), max_bytes=MAX_OUTPUT_BYTES)
        except OSError as error:
            raise UsageError(f"the copy cannot be read: {error.strerror}", where=path[:200], code="bad-edit") from None
        if before != text.encode():
            found[path] = diff(path, before, text.encode())
    return found
