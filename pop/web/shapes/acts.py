"""What the API takes and answers where something is done."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pop.gateanswers import Decision
from pop.web.shapes.answers import Problem, Shape


class Written(Shape):
    """What an act wrote. `file` null: nothing was to be written, and `note` says why. `served`: a daemon carries it out now."""

    file: str | None
    note: str | None = None
    served: bool


class OrderBody(Shape):
    """`budget`, with retry: what the run may use up in all from now on, e.g. ``{"run_usd": 5}``."""

    reason: str | None = Field(default=None, max_length=4000)
    budget: dict[str, float] = Field(default_factory=dict)


class OrdersBody(OrderBody):
    """`runs` are ids, at most 500."""

    runs: list[Annotated[str, Field(max_length=200)]] = Field(min_length=1, max_length=500)


class OrderedRun(Shape):
    """What an order came to for a run: the file that was written; or null, with a `note` or a `problem`."""

    run_id: str
    file: str | None
    note: str | None
    problem: Problem | None


class Ordered(Shape):
    """A line for every run that was named, each once. `served`: a daemon carries the orders out now."""

    orders: list[OrderedRun]
    served: bool


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
