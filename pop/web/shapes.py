"""The answers of the API, as /api/openapi.json describes them. Paths are relative to the root, unless said otherwise."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pop.gateanswers import Decision
from pop.gateshow import Shown
from pop.records import CallRecord, ErrorRecord, RunRecord, Status, TaskStatus, TrailLine


class Shape(BaseModel):
    """Base of all answers: every key is named, none is added."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class ErrorAbout(Shape):
    """What went wrong: `class` is the kind, `code` says it exactly and is permanent, `hint` is one next move."""

    class_: str = Field(alias="class")
    code: str
    message: str
    where: str | None
    hint: str | None


class Error(Shape):
    """The body of every answer from 400 on."""

    error: ErrorAbout


class Problem(Shape):
    """A mistake that was found."""

    code: str
    message: str
    where: str | None
    hint: str | None


# -- the root ----------------------------------------------------------------------------------------------------------


class Daemon(Shape):
    """Who serves this root."""

    pid: int | None
    host: str | None
    started_at: float | None
    command: str | None


class Figures(Shape):
    """What some calls came to; `cost_usd` leaves out the `unpriced_calls`."""

    calls: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: float
    estimated_calls: int
    unpriced_calls: int


class Pending(Shape):
    """Something in pipeline-pending/."""

    name: str
    state: Literal["ready", "later", "incomplete", "refused", "ignored"]
    reason: str | None
    priority: int


class Counts(Shape):
    """How many runs are in each state, and what is pending and rejected."""

    counts: dict[str, int]


class Lane(Shape):
    """What one model, or all models of one provider, may be asked, and is asked now; per minute."""

    name: str
    in_flight: int
    waiting: int
    window: int | None
    requests: float
    most_requests: float | None
    tokens: float
    most_tokens: float | None
    paused_s: float


class Now(Shape):
    """`hours`: finished runs by hour, the newest last; `usd_today` of the UTC day; `day_usd` is its budget."""

    hours: list[int]
    last_hour: int
    usd_today: float
    calls_today: int
    tokens_today: int
    unpriced_today: int
    day_usd: float | None
    lanes: list[Lane]
    open_circuits: list[str]
    serving: str | None
    notes: list[str]


class Board(Shape):
    """Where the root stands. `behind_bytes` of the ledger are not counted yet: the index is being made."""

    root: str
    daemon: Daemon | None
    default: str
    counts: dict[str, int]
    now: Now
    waiting: list[RunRow]
    active: list[RunRow]
    behind_bytes: int


class PendingList(Shape):
    """The first of them; `count` is of all."""

    count: int
    pending: list[Pending]


class Rejected(Shape):
    """Something in pipeline-pending/rejected/."""

    name: str | None
    code: str | None
    message: str | None
    where: str | None
    hint: str | None
    at: str | None


class RejectedList(Shape):
    rejected: list[Rejected]


class Model(Shape):
    """A name that a step may ask for. One that leads to other names has a `meaning` and a `route`, and no more."""

    name: str
    meaning: str | None
    route: list[list[str]] | None
    provider: str | None
    model: str | None
    at: str | None
    key: dict[str, Any] | None
    limits: dict[str, float | None] | None
    shared: dict[str, Any] | None
    price: dict[str, float] | None
    error: Problem | None


class Models(Shape):
    """`lanes`: what each is doing now, as the daemon's gateway tells."""

    default: str
    models: list[Model]
    lanes: list[Lane]


class CostRow(Figures):
    key: str


class Costs(Shape):
    """From the ledger of calls; `passed_over` are lines of it that could not be read."""

    by: str
    rows: list[CostRow]
    total: Figures
    passed_over: int


class LedgerPage(Shape):
    """Lines of runs.jsonl from `offset` (bytes) on; `next_offset` is where to go on; `passed_over` lines are none."""

    offset: int
    next_offset: int
    size: int
    records: list[RunRecord]
    passed_over: int


# -- pipelines -----------------------------------------------------------------------------------------------------------


class PipelineRow(Shape):
    name: str
    file: str
    description: str | None
    steps: list[str]
    problems: int


class PipelineList(Shape):
    pipelines: list[PipelineRow]


class Step(Shape):
    """A step of a pipeline; a gate has no task. `after` are the steps it directly waits for."""

    name: str
    kind: Literal["task", "gate"]
    task: str | None
    model: str | None
    when: str | None
    inside: list[str]
    after: list[str]


class Block(Shape):
    """What stands around steps."""

    name: str
    kind: Literal["sequence", "parallel", "each", "repeat"]
    inside: str | None
    when: str | None
    over: str | None
    until: str | None
    at_most: int | None


class TaskFile(Shape):
    """A file of a task; `text` null when it is larger than 256 kB or no text."""

    path: str
    text: str | None


class Task(Shape):
    name: str
    kind: str
    files: list[TaskFile]


class PipelineDetail(Shape):
    """`graph` is a Mermaid flowchart; `seed` what a seed's data must or may hold, as far as it can be told."""

    name: str
    file: str
    document: Any
    description: str | None
    steps: list[Step]
    blocks: list[Block]
    graph: str | None
    tasks: list[Task]
    seed: dict[str, Any]
    problems: list[Problem]


class Check(Shape):
    """All mistakes of the root, as `pop check` finds them."""

    ok: bool
    problems: list[Problem]
    notes: list[str]


# -- runs ----------------------------------------------------------------------------------------------------------------


class RunRow(Shape):
    """`at`: when it finished or came to rest, and while it runs when it was made. `doing`: what it does or waits for."""

    run_id: str
    state: str
    at: str
    name: str
    pipeline: str
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    seconds: float | None
    progress: float
    doing: str | None
    error: str | None
    steps: int
    calls: int
    tokens: int
    cost_usd: float
    models: str


class RunPage(Shape):
    """The newest first; `page` is from 1 on, and the last one stands for those beyond it."""

    total: int
    page: int
    pages: int
    size: int
    runs: list[RunRow]


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


# -- acts ----------------------------------------------------------------------------------------------------------------


class Written(Shape):
    """What an act wrote. `file` null: nothing was to be written, and `note` says why. `served`: a daemon carries it out now."""

    file: str | None
    note: str | None = None
    served: bool


class OrderBody(Shape):
    """`budget`, with retry: what the run may use up in all from now on, e.g. ``{"run_usd": 5}``."""

    reason: str | None = Field(default=None, max_length=4000)
    budget: dict[str, float] = Field(default_factory=dict)


class AnswerBody(Shape):
    """`text` is needed to request changes. `edits`: by the path of a copy, what is to stand there instead. With
    `opening`, as the gate told it, the answer to a question that is not asked any more is refused."""

    decision: Decision
    text: str | None = Field(default=None, max_length=65536)
    edits: dict[str, str] = Field(default_factory=dict)
    opening: int | None = Field(default=None, ge=1, le=10**9)


class Answered(Written):
    gate: str
    decision: Decision
    by: str


class EditsBody(Shape):
    edits: dict[str, str]


class Diff(Shape):
    path: str
    diff: str


class Diffs(Shape):
    diffs: list[Diff]


class RerunBody(Shape):
    """`from` names steps (``STEP[:STAGE]``); `set` is by path (``seed.topic``, ``draft.with.tone``), `models` by role."""

    from_: list[str] = Field(alias="from", min_length=1, max_length=100)
    set: dict[str, Any] = Field(default_factory=dict)
    models: dict[str, str] = Field(default_factory=dict)
    fork: bool = False
    reason: str | None = Field(default=None, max_length=4000)


class Rerun(Written):
    """`stale` runs again. A complete run is never opened again: a new run is made, and `fork` is true."""

    stale: list[str]
    fork: bool


class EstimateShape(Shape):
    calls: float | None
    input_tokens: float | None
    output_tokens: float | None
    cost_usd: float | None
    source: str


class PlanRow(Shape):
    step: str
    what: Literal["reuse", "run", "blocked", "done"]
    why: str
    instances: int
    estimate: EstimateShape


class PlanShape(Shape):
    """What would be reused, run or blocked, and what it may cost; nothing is done. `problems`: why a seed is none."""

    steps: list[PlanRow]
    total: EstimateShape
    from_: list[str] = Field(alias="from")
    notes: list[str]
    problems: list[Problem] = Field(default_factory=list)
