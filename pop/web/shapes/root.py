"""What the API tells of a root: daemon, counts, board, queue, ledger, costs, models."""

from __future__ import annotations

from typing import Any, Literal

from pop.records import RunRecord
from pop.runindex import Row
from pop.web.shapes.answers import Problem, Shape


class Daemon(Shape):
    """Who serves this root."""

    pid: int | None
    host: str | None
    started_at: float | None
    command: str | None


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

    @property
    def last_day(self) -> int:
        return sum(self.hours)


class Board(Shape):
    """Where the root stands. `behind_bytes` of the ledger are not counted yet: the index is being made."""

    root: str
    daemon: Daemon | None
    default: str
    counts: dict[str, int]
    now: Now
    waiting: list[Row]
    active: list[Row]
    behind_bytes: int


class Pending(Shape):
    """Something in pipeline-pending/."""

    name: str
    state: Literal["ready", "later", "incomplete", "refused", "ignored"]
    reason: str | None
    priority: int


class PendingList(Shape):
    """The first of them; `count` is of all."""

    count: int
    pending: list[Pending]


class Rejected(Shape):
    """Something in pipeline-pending/rejected/; `key` names it in addresses."""

    key: str
    name: str | None
    code: str | None
    message: str | None
    where: str | None
    hint: str | None
    at: str | None


class RejectedSeed(Rejected):
    """`file` is where it lies; `text` of its JSON, null where that is more than 100 kB or no text; `files` in a folder."""

    kind: Literal["file", "folder", "zip", "gone", "other"]
    file: str
    size: int | None
    text: str | None
    files: list[str]


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
