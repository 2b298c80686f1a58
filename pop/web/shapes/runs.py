"""What the API tells of runs: steps, attempts, files, times, gates, and two side by side."""

from __future__ import annotations

from typing import Any, Literal

from pop.gateshow import Shown
from pop.records import CallRecord, ErrorRecord, Status, TaskStatus, TrailLine
from pop.runindex import Row
from pop.web.shapes.answers import Problem, Shape


class RunPage(Shape):
    """The newest first; `page` is from 1 on, and the last one stands for those beyond it."""

    total: int
    page: int
    pages: int
    size: int
    runs: list[Row]


class RunDetail(Shape):
    """A run. `status` is its tasks-status.json; null where the state is ``unreadable``, and `problem` says why."""

    run_id: str
    place: Literal["current", "complete"]
    path: str
    name: str
    pipeline: str | None
    state: str
    status: Status | None
    problem: Problem | None
    orders: list[str]
    gates: list[str]
    paused: str | None


class Events(Shape):
    """Lines of events.jsonl from `offset` (bytes) on; ask again with `next_offset` to follow."""

    offset: int
    next_offset: int
    size: int
    events: list[dict[str, Any]]


class AttemptRow(Shape):
    number: int
    files: list[str]


class StepDetail(Shape):
    """An instance of a step. `output` is output.json, null where there is none or it is larger than 1 MB."""

    instance: str
    step: str
    task: TaskStatus | None
    output: Any
    output_bytes: int | None
    error: ErrorRecord | None
    letter: dict[str, Any] | None
    artifacts: list[str]
    attempts: list[AttemptRow]


class AttemptDetail(Shape):
    """One process that tried. Lists are cut at 1,000 rows; the files hold all."""

    number: int
    files: list[str]
    trail: list[TrailLine]
    calls: list[CallRecord]
    problems: list[Any]
    log: list[dict[str, Any]]
    error: ErrorRecord | None


class File(Shape):
    path: str
    kind: Literal["file", "folder", "other"]
    size: int
    modified_at: float


class FileList(Shape):
    """What lies in a folder of a run, at most 1,000 names. Paths are relative to the run's folder."""

    path: str
    files: list[File]
    cut: bool


class SpanShape(Shape):
    kind: str
    begin: float
    end: float


class StageShape(Shape):
    name: str
    round: int
    begin: float
    end: float | None
    file: str | None
    problems: int
    score: float | None


class AttemptSpan(Shape):
    number: int
    ready: float | None
    begin: float
    end: float | None
    outcome: str
    spans: list[SpanShape]
    stages: list[StageShape]


class TimelineRow(Shape):
    instance: str
    step: str
    seconds: dict[str, float]
    attempts: list[AttemptSpan]


class TimelineShape(Shape):
    """When each attempt waited, asked a model and worked; Unix seconds."""

    begin: float
    end: float
    rows: list[TimelineRow]
    rests: list[SpanShape]
    seconds: dict[str, float]
    cut: bool


class Gate(Shape):
    """An open gate. `request` is Markdown; `shown` are copies that may be edited, by their paths in the run's folder."""

    instance: str
    kind: str
    title: str
    opening: int
    options: list[str]
    expires_at: float | None
    request: str | None
    shown: list[Shown]
    notes: list[str]
    problem: dict[str, Any] | None


class Gates(Shape):
    gates: list[Gate]


class SideShape(Shape):
    state: str
    models: list[str]
    calls: int
    cached_calls: int
    tokens: int
    cost_usd: float
    unpriced_calls: int
    seconds: float | None


class Pair(Shape):
    """An instance in both runs: ``same``, ``different``, ``only in a``, ``only in b`` or ``none``."""

    name: str
    output: str
    prompt: str
    output_diff: list[str]
    prompt_diff: list[str]
    a: SideShape | None
    b: SideShape | None


class Comparison(Shape):
    a: str
    b: str
    pairs: list[Pair]
