"""What a monitor of iterations reads and tells: a `Sight` is all that was read for one look, a `Snapshot` where the run stands.

An agent has a state of its own, made of the states of its deliverables in the newest lap of its iteration:

| agent state | meaning                                                              |
|-------------|----------------------------------------------------------------------|
| pending     | nothing of it has begun                                              |
| running     | something of it has begun, and it is not over                        |
| waiting     | a person is asked about one of its deliverables                      |
| done        | every deliverable has been made                                      |
| failed      | a deliverable failed for good                                        |
| stopped     | the run ended while something of it was under way                    |

`stalled` stands beside the state: the agent is running, and since `stall_s` it has shown no sign of progress, that is
no new deliverable, no line in a trail, no model call that ended, no line in a log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pop.recipes.iterate.manifest import Agent, Deliverable, Manifest
from pop.stale import place_of

AgentState = Literal["pending", "running", "waiting", "done", "failed", "stopped"]
OVER = ("complete", "failed", "cancelled", "unreadable")  # states of a run in which nothing of it happens any more
ENDED = ("done", "failed", "stopped")  # states of an agent, likewise


@dataclass(frozen=True)
class Signs:
    """What the folder of an instance that is under way tells beyond the status: `at` in Unix seconds."""

    at: float | None = None
    calls: int = 0
    tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True)
class Found:
    """A deliverable that lies in the iteration's folder: its criteria that are not met, and whether a person edited it."""

    bytes: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sight:
    """All that was read for one snapshot. `checks`: the newest output of each iteration's check; `signs` by instance;
    `found` by iteration and path; `failed_loops`: those whose criteria were not met in the end."""

    status: Mapping[str, Any]
    daemon: bool = True
    signs: Mapping[str, Signs] = field(default_factory=dict)
    found: Mapping[tuple[str, str], Found] = field(default_factory=dict)
    checks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failed_loops: Collection[str] = ()


@dataclass(frozen=True)
class AgentView:
    """One agent. `bytes` are those of the files found, `eta_s` None where nobody can tell."""

    step: str
    role: str
    state: AgentState
    lap: int
    done: int
    total: int
    bytes: int
    calls: int
    tokens: int
    cost_usd: float
    stage: str | None
    seconds: float
    eta_s: float | None
    last_progress_at: str | None
    stalled: bool
    problems: list[str]
    error: str | None
    ended_at: str | None


@dataclass(frozen=True)
class IterationView:
    """One iteration. `met` of `criteria` were met in the newest check (None: none yet)."""

    name: str
    state: AgentState
    lap: int
    rounds: int
    met: int | None
    criteria: int | None
    agents: list[AgentView]


@dataclass(frozen=True)
class Alert:
    """Something a person may want to hear of. `key` is the same as long as it is the same thing.

    `event`: agent.ended, agent.stalled, iteration.ended, run.waiting, run.stalled, run.ended.
    """

    event: str
    key: str
    state: str
    text: str
    iteration: str | None = None
    step: str | None = None
    role: str | None = None
    lap: int | None = None
    done: int | None = None
    total: int | None = None
    problems: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """Where the run stands. `daemon`: whether one serves the root; `stalled`: nothing moves in the whole run."""

    run_id: str
    name: str
    state: str
    at: str
    daemon: bool
    stalled: bool
    progress: float
    eta_s: float | None
    waiting_for: str | None
    error: str | None
    iterations: list[IterationView]
    alerts: list[Alert] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def agents(self) -> list[tuple[IterationView, AgentView]]:
        return [(iteration, agent) for iteration in self.iterations for agent in iteration.agents]


@dataclass(frozen=True)
class Work:
    """One deliverable in one lap: the `index`-th of the agent `step`, and its part of the status."""

    step: str
    index: int
    lap: int
    instance: str
    task: Mapping[str, Any]

    @property
    def state(self) -> str:
        return str(self.task.get("state"))


def works_of(status: Mapping[str, Any]) -> dict[str, dict[int, dict[int, Work]]]:
    """``{step: {lap: {index: work}}}`` of all steps of a run; a step outside `each` and `repeat` counts as 0 of lap 1."""
    found: dict[str, dict[int, dict[int, Work]]] = {}
    for instance, task in (status.get("tasks") or {}).items():
        try:
            step, at = place_of(instance)
        except AssertionError:  # a name that an editor made up
            continue
        lap, index = (at.laps[0] if at.laps else 1), (at.items[0] if at.items else 0)
        if not at.laps and task.get("state") == "pending":  # the step as such, which the planner expects
            continue
        found.setdefault(step, {}).setdefault(lap, {})[index] = Work(step, index, lap, instance, task)
    return found


def deliverables_of(manifests: Iterable[Manifest]) -> list[tuple[str, Agent, int, Deliverable]]:
    """Every deliverable with its iteration, its agent and its place among the agent's."""
    return [
        (manifest.iteration, agent, index, deliverable)
        for manifest in manifests
        for agent in manifest.agents
        for index, deliverable in enumerate(agent.deliverables)
    ]
