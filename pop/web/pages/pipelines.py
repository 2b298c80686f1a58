"""The pipelines of a root: a catalogue, and each with its graph, tasks, problems, and how its runs went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from pop.drawing import draw
from pop.errors import PopError
from pop.pipeline import Gate, Pipeline, Task
from pop.report import FILTERS
from pop.rootcheck import Read, RootCheck
from pop.runindex import Asked, Row, Tally
from pop.safehtml import left_out, text
from pop.seedfields import fields_of, flat
from pop.seedform import own_schema, seed_schema
from pop.settings import Root
from pop.tasks import find_task
from pop.web.live import SELDOM_S
from pop.web.reading import digest, stamp
from pop.web.render import page, rendered, templates
from pop.web.site import Site
from pop.web.tasklook import TEXT, TaskLook, TaskReader, file_of

router = APIRouter()
templates().filters.update(FILTERS)

LOOK_S = 0.3
NEWEST = 10
GRAPH_BYTES = 90_000  # of a graph inside the page; a larger one has an address of its own
MOST_STEPS = 300
ALONE = "default-src 'none'; style-src 'unsafe-inline'; sandbox allow-popups"
NOTHING = Tally({}, "", None, None)


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


# -- the pages -----------------------------------------------------------------------------------------------------


def address(name: str) -> str:
    return f"/pipelines/{quote(name, safe='')}"


class Looked:
    """What `pop check` finds in a root; it is looked at again when a file that it reads has changed."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self.made_of = ""

    def look(self) -> str:
        """Look, where that is needed; returns what the files are like from outside."""
        root = self._root
        made_of = stamp(root.settings_file, root.pipeline_file, root.pipelines, root.tasks)
        if made_of != self.made_of:
            self.check = RootCheck(root)
            self.problems = self.check.problems()
            self.made_of = made_of
        return made_of


class CatalogueSource:
    """The catalogue while runs go on and files are edited."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._looked = Looked(site.root)

    def mark(self) -> str:
        self._site.look_now()
        return self.known_mark()

    def known_mark(self) -> str:
        """By what is known already."""
        return f"{self._looked.look()}-{digest(sorted(self._site.index.tallies().items()))}"

    def fragments(self) -> dict[str, str]:
        return {"pipelines": rendered("pipelines_all.html", **self.context())}

    def context(self) -> dict[str, Any]:
        self._looked.look()
        look, problems = self._looked.check, self._looked.problems
        told = {str(one) for name, read in look.pipelines.items() for one in problems_of(look, name, read, problems)}
        return {
            "entries": entries_of(self._site, look, problems),
            "address": address,
            "elsewhere": [one for one in problems if str(one) not in told],
            "notes": look.notes(),
        }


@router.get("/pipelines")
def pipelines(request: Request) -> HTMLResponse:
    site: Site = request.app.state.site
    site.look(LOOK_S)
    source = CatalogueSource(site)
    mark = source.known_mark()
    return page(request, "pipelines.html", mark=mark, **source.context())


@router.get("/live/pipelines")
async def live_pipelines(request: Request) -> Response:
    site: Site = request.app.state.site
    return site.live.stream(request, "pipelines", lambda: CatalogueSource(site), SELDOM_S)


class PipelineSource:
    """The page of one of them. What is made from its files alone is made again only when one of those changed."""

    def __init__(self, site: Site, name: str) -> None:
        self._site = site
        self._name = name
        self._looked = Looked(site.root)
        self._made: tuple[str, dict[str, str]] = ("", {})

    def mark(self) -> str | None:
        self._site.look_now()
        return self.known_mark()

    def known_mark(self) -> str | None:
        """By what is known already; None: there is no such pipeline, and no run of it."""
        made_of = self._looked.look()
        if self._looked.check.pipelines.get(self._name) is None and not self._standing.tally.total:
            return None
        return f"{made_of}-{digest((self._standing, self._newest))}"

    def fragments(self) -> dict[str, str]:
        made_of, context = self._looked.look(), self._of_runs()
        if self._made[0] != made_of:
            found = {**context, **self._of_files()}
            self._made = (made_of, {f"pipeline-{name}": rendered(f"pipeline_{name}.html", **found) for name in MADE})
        moved = {f"pipeline-{name}": rendered(f"pipeline_{name}.html", **context) for name in MOVED}
        return {**moved, **self._made[1]}

    def context(self) -> dict[str, Any]:
        return {**self._of_runs(), **self._of_files()}

    @property
    def _standing(self) -> Standing:
        return Standing(self._site.index.tallies().get(self._name, NOTHING))

    @property
    def _newest(self) -> list[Row]:
        return self._site.index.query(Asked(pipeline=self._name), size=NEWEST).rows

    def _of_runs(self) -> dict[str, Any]:
        read = self._looked.check.pipelines.get(self._name)
        return {
            "called": self._name,
            "read": read,
            "pipeline": read.pipeline if read else None,
            "address": address,
            "standing": self._standing,
            "newest": self._newest,
        }

    def _of_files(self) -> dict[str, Any]:
        look = self._looked.check
        read = look.pipelines.get(self._name)
        found = read.pipeline if read else None
        problems = problems_of(look, self._name, read, self._looked.problems) if read else []
        drawn = _drawn(found) if found else None
        return {
            "problems": problems,
            "graph": drawn if drawn and len(drawn) <= GRAPH_BYTES else None,
            "too_large": drawn is not None and len(drawn) > GRAPH_BYTES,
            "steps": list(steps_of(found))[:MOST_STEPS] if found else [],
            "more_steps": max(0, len(found.steps) - MOST_STEPS) if found else 0,
            "tasks": list(_tasks(look, found, problems)) if found else [],
            "seed": list(flat(fields_of(seed_schema(look, self._name), guessed=False)))[:MOST_STEPS] if found else None,
            "guessed": own_schema(look, self._name) is None,
            "document": text(read.data.decode("utf-8", "replace"), TEXT) if read else None,
            "left_out": left_out,
        }


MOVED = ("head", "runs")
MADE = ("check", "made")


@router.get("/pipelines/{name}")
def pipeline_page(request: Request, name: str) -> HTMLResponse:
    site: Site = request.app.state.site
    site.look(LOOK_S)
    source = PipelineSource(site, name)
    mark = source.known_mark()
    if mark is None:
        raise HTTPException(404, f"no pipeline {name[:80]!r}")
    return page(request, "pipeline.html", mark=mark, live=f"/live{address(name)}", **source.context())


@router.get("/live/pipelines/{name}")
async def live_pipeline(request: Request, name: str) -> Response:
    site: Site = request.app.state.site
    return site.live.stream(request, ("pipeline", name), lambda: PipelineSource(site, name), SELDOM_S)


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
