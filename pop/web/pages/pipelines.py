"""The pipelines of a root: a catalogue, and each with its graph, tasks, problems, and how its runs went."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from pop.drawing import draw
from pop.errors import PopError
from pop.pipeline import Gate, Pipeline, Task
from pop.records import STAGES, BadJson, read_json
from pop.report import FILTERS
from pop.rootcheck import Read, RootCheck
from pop.runindex import Asked, Tally
from pop.safehtml import json_tree, left_out, text
from pop.seedform import seed_schema
from pop.store import NotAFile, read_regular
from pop.tasks import TaskFiles, bound_names, find_task
from pop.web.app import Site
from pop.web.render import page, templates

router = APIRouter()
templates().filters.update(FILTERS)

LOOK_S = 0.3
NEWEST = 10
GRAPH_BYTES = 90_000  # of a graph inside the page; a larger one has an address of its own
TEXT = 20_000  # characters of one file
TEXTS = 150_000  # of all files on one page
MOST_STEPS = 300
MAX_BYTES = 2_000_000
ALONE = "default-src 'none'; style-src 'unsafe-inline'; sandbox allow-popups"
NOTHING = Tally({}, "", None, None)
STAGE_WORDS = {  # what a stage is where a task does not bring it (docs/tasks.md)
    "ingest": "nothing", "preprocess": "as it is", "prompt": "none", "infer": "asks the model",
    "parse": "the text", "validate_structure": "none", "validate_quality": "none", "critique": "the list of problems",
    "refine": "the talk goes on", "finalize": "as it is",
}  # fmt: skip
TITLES = {
    ".schema.json": "Schema of the output",
    ".critique.md": "Critique",
    ".refine.md": "Refinement",
    ".md": "Prompt",
    ".py": "Python",
}


# -- how its runs went ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """The runs of a pipeline; `success` of those that ended by themselves, 0 to 1."""

    tally: Tally

    @property
    def complete(self) -> int:
        return self.tally.states.get("complete", 0)

    @property
    def failed(self) -> int:
        return self.tally.states.get("failed", 0)

    @property
    def under_way(self) -> int:
        return sum(self.tally.states.get(state, 0) for state in ("running", "queued", "paused", "waiting"))

    @property
    def success(self) -> float | None:
        ended = self.complete + self.failed
        return self.complete / ended if ended else None


# -- the catalogue -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A pipeline in the catalogue; `file` None: only runs are left of it."""

    name: str
    title: str
    file: str | None
    description: str
    steps: int | None
    gates: int
    problems: int
    standing: Standing


def entries_of(site: Site, look: RootCheck, problems: list[PopError]) -> list[Entry]:
    tallies = site.index.tallies()
    found = [
        Entry(
            name=name,
            title=read.pipeline.name if read.pipeline else name,
            file=read.file,
            description=read.pipeline.description if read.pipeline else "",
            steps=len(read.pipeline.steps) if read.pipeline else None,
            gates=sum(isinstance(step, Gate) for step in read.pipeline.steps.values()) if read.pipeline else 0,
            problems=len(problems_of(look, name, read, problems)),
            standing=Standing(tallies.get(name, NOTHING)),
        )
        for name, read in look.pipelines.items()
    ]
    gone = sorted(tallies.keys() - look.pipelines.keys() - {""})
    return found + [Entry(name, name, None, "", None, 0, 0, Standing(tallies[name])) for name in gone]


def files_of(look: RootCheck, read: Read) -> set[str]:
    """The pipeline's file and those of its tasks, as problems name them."""
    found = {read.file}
    for task in {step.task for step in read.pipeline.tasks.values()} if read.pipeline else ():
        for path in _paths(look, task):
            found.add(f"{look.root.tasks.name}/{path.name}")
    return found


def file_of(problem: PopError) -> str:
    """The file in which a problem stands."""
    return str(problem.where or "").partition("  ")[0].partition(":")[0]


def _paths(look: RootCheck, task: str) -> list[Path]:
    try:
        return find_task(look.root.tasks, task).all()
    except PopError:
        return []


def problems_of(look: RootCheck, name: str, read: Read, problems: list[PopError]) -> list[PopError]:
    """What `pop check` finds in a pipeline's file, in the files of its tasks, and in the models it asks for."""
    files = files_of(look, read)
    own = [one for one in problems if file_of(one) in files]
    return list({str(one): one for one in (*read.problems, *own, *look.asked_problems(name))}.values())


# -- one of them ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepRow:
    """A step and where it stands."""

    name: str
    task: str | None
    about: str
    model: str | None
    when: str | None
    needs: tuple[str, ...] | None


def steps_of(pipeline: Pipeline) -> Iterator[StepRow]:
    for name, step in pipeline.steps.items():
        around = [
            f"{type(block).__name__.lower()} {'' if block.name.startswith('tasks') else block.name}".strip()
            for block in pipeline.around[name]
        ]
        task = step if isinstance(step, Task) else None
        yield StepRow(
            name=name,
            task=task.task if task else None,
            about=", in ".join(reversed(around)),
            model=task.model if task else None,
            when=step.when.text if step.when else None,
            needs=step.needs,
        )


@dataclass(frozen=True)
class TaskFile:
    """A file of a task; `shown` None: there is no room for it on the page."""

    path: str
    title: str
    size: int
    shown: Markup | None


@dataclass(frozen=True)
class TaskLook:
    """A task: which steps are made of it, its files, and where each of the ten stages comes from."""

    name: str
    kind: str
    steps: list[str]
    files: list[TaskFile]
    stages: list[tuple[str, str, bool]]
    problems: list[PopError]
    module: str | None


class TaskReader:
    """Reads the tasks of one page, which has room for so much text."""

    def __init__(self, look: RootCheck, problems: list[PopError]) -> None:
        self._look = look
        self._problems = problems
        self._room = TEXTS

    def read(self, name: str, steps: list[str]) -> TaskLook:
        kind = self._look.tasks.get(name, "missing")
        try:
            files = find_task(self._look.root.tasks, name)
        except PopError:
            return TaskLook(name, kind, steps, [], [], [], None)
        folder = self._look.root.tasks.name
        paths = {f"{folder}/{path.name}" for path in files.all()}
        mine = [one for one in self._problems if file_of(one) in paths]
        read = [self._file(f"{folder}/{path.name}", path) for path in files.all()]
        return TaskLook(name, kind, steps, read, list(stages_of(files)), mine, files.module)

    def _file(self, path: str, at: Path) -> TaskFile:
        suffix = next(one for one in TITLES if at.name.endswith(one))
        try:
            data = read_regular(at, max_bytes=MAX_BYTES)
        except (OSError, NotAFile):
            return TaskFile(path, TITLES[suffix], 0, Markup('<p class="faint">cannot be read</p>'))
        if self._room <= 0:
            return TaskFile(path, TITLES[suffix], len(data), None)
        shown = _schema(data) if suffix == ".schema.json" else text(data.decode("utf-8", "replace"), TEXT)
        self._room -= len(shown)
        return TaskFile(path, TITLES[suffix], len(data), shown)


def _schema(data: bytes) -> Markup:
    try:
        return json_tree(read_json(data), 400)
    except (BadJson, PopError):
        return text(data.decode("utf-8", "replace"), TEXT)


def stages_of(files: TaskFiles) -> Iterator[tuple[str, str, bool]]:
    """Each of the ten stages, where it comes from, and whether the task brings it. Nothing is run for it."""
    bound = _bound(files)
    brought = {
        "prompt": files.path(".md"),
        "validate_structure": files.path(".schema.json"),
        "critique": files.path(".critique.md"),
        "refine": files.path(".refine.md"),
    }
    for stage in STAGES:
        if stage in bound:
            yield stage, f"{files.stem}.py", True
        elif path := brought.get(stage):
            yield stage, path.name, True
        elif stage == "validate_structure" and "Output" in bound:
            yield stage, f"Output in {files.stem}.py", True
        elif stage == "parse" and (brought["validate_structure"] or "Output" in bound):
            yield stage, "JSON", False
        else:
            yield stage, "see the package" if files.module else STAGE_WORDS[stage], False


def _bound(files: TaskFiles) -> set[str]:
    path = files.path(".py")
    try:
        return bound_names(ast.parse(read_regular(path, max_bytes=MAX_BYTES))) if path else set()
    except (OSError, NotAFile, SyntaxError, ValueError, RecursionError, MemoryError):
        return set()


# -- the pages -----------------------------------------------------------------------------------------------------


def address(name: str) -> str:
    return f"/pipelines/{quote(name, safe='')}"


@router.get("/pipelines")
def pipelines(request: Request) -> HTMLResponse:
    site: Site = request.app.state.site
    site.look(LOOK_S)
    look = RootCheck(site.root)
    problems = look.problems()
    entries = entries_of(site, look, problems)
    told = {str(one) for name, read in look.pipelines.items() for one in problems_of(look, name, read, problems)}
    return page(
        request,
        "pipelines.html",
        entries=entries,
        address=address,
        elsewhere=[one for one in problems if str(one) not in told],
        notes=look.notes(),
    )


@router.get("/pipelines/{name}")
def pipeline_page(request: Request, name: str) -> HTMLResponse:
    site: Site = request.app.state.site
    site.look(LOOK_S)
    look = RootCheck(site.root)
    read = look.pipelines.get(name)
    standing = Standing(site.index.tallies().get(name, NOTHING))
    if read is None and not standing.tally.total:
        raise HTTPException(404, f"no pipeline {name[:80]!r}")
    problems = problems_of(look, name, read, look.problems()) if read else []
    found = read.pipeline if read else None
    drawn = _drawn(found) if found else None
    return page(
        request,
        "pipeline.html",
        called=name,
        read=read,
        pipeline=found,
        address=address,
        problems=problems,
        standing=standing,
        newest=site.index.query(Asked(pipeline=name), size=NEWEST).rows,
        graph=drawn if drawn and len(drawn) <= GRAPH_BYTES else None,
        too_large=drawn is not None and len(drawn) > GRAPH_BYTES,
        steps=list(steps_of(found))[:MOST_STEPS] if found else [],
        more_steps=max(0, len(found.steps) - MOST_STEPS) if found else 0,
        tasks=list(_tasks(look, found, problems)) if found else [],
        seed=seed_schema(look, name) if found else None,
        document=text(read.data.decode("utf-8", "replace"), TEXT) if read else None,
        left_out=left_out,
    )


def _drawn(pipeline: Pipeline) -> Markup:
    return Markup(draw(pipeline, link=lambda name: f"#step-{quote(name)}"))


def _tasks(look: RootCheck, pipeline: Pipeline, problems: list[PopError]) -> Iterator[TaskLook]:
    steps: dict[str, list[str]] = {}
    for name, step in pipeline.tasks.items():
        steps.setdefault(step.task, []).append(name)
    reader = TaskReader(look, problems)
    for task, used in steps.items():
        yield reader.read(task, used)


@router.get("/pipelines/{name}/graph.svg")
def graph_file(request: Request, name: str) -> Response:
    """The graph alone."""
    read = RootCheck(request.app.state.site.root).pipelines.get(name)
    if read is None or read.pipeline is None:
        raise HTTPException(404, f"no pipeline {name[:80]!r} that can be drawn")
    drawn = draw(read.pipeline, alone=True)
    return Response(drawn, media_type="image/svg+xml", headers={"content-security-policy": ALONE})
