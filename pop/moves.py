"""What the planner is told of a run, `Facts`, and what it answers, `Moves`. The rules that lead from one to the other: `plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from pop.expressions import Expression
from pop.loops import LoopFacts
from pop.steps import At

Outcome = Literal["complete", "failed", "waiting", "paused", "cancelled"]


class InstanceFacts(Protocol):
    """One instance of a step; `state` is ``running``, ``done``, ``failed``, ``skipped``, ``retry``, ``waiting`` (for a
    person) or ``stale`` (it is to run again, when its turn comes)."""

    @property
    def state(self) -> str: ...

    @property
    def not_before(self) -> float | None:
        """Unix time in seconds before which a ``retry`` must not start."""

    @property
    def expires_at(self) -> float | None:
        """Unix time in seconds at which a ``waiting`` one is answered by its timeout."""


class Facts(Protocol):
    """What is known about a run. An instance that is ``done`` or ``skipped`` stays so, and a loop that has ended, until
    a rerun: then the facts belong to a new `Settled`."""

    @property
    def instances(self) -> Mapping[str, InstanceFacts]:
        """By name; a dict in the order they came, which none ever leaves."""

    @property
    def decisions(self) -> Mapping[str, bool]:
        """By key of a `Decide`."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of items by key of an `Expand`."""

    @property
    def loops(self) -> Mapping[str, LoopFacts]:
        """By key of a `Judge`."""

    @property
    def skips(self) -> Mapping[str, str]:
        """Steps that a task ordered not to run, with its reason."""

    @property
    def held(self) -> bool:
        """Whether nothing may start until a person has answered a gate that is open."""

    @property
    def paused(self) -> bool: ...

    @property
    def cancelled(self) -> bool: ...


@dataclass(frozen=True)
class Start:
    """Begin an attempt of `step`."""

    instance: str
    step: str
    at: At


@dataclass(frozen=True)
class Decide:
    """Evaluate the `when` of the step or block `step` and record it under `key`."""

    key: str
    step: str
    expression: Expression
    at: At


@dataclass(frozen=True)
class Expand:
    """Evaluate the list of the `each` called `step` and record its length under `key`."""

    key: str
    step: str
    expression: Expression
    at: At


@dataclass(frozen=True)
class Skip:
    """Record that an instance will not run."""

    instance: str
    step: str
    reason: str


@dataclass(frozen=True)
class Open:
    """Open a gate; `step` is a `Gate`, or the `Repeat` whose end a person is asked about."""

    instance: str
    step: str
    at: At


@dataclass(frozen=True)
class Expire:
    """A gate's time is over: record this answer."""

    instance: str
    answer: Literal["approve", "reject"]


@dataclass(frozen=True)
class Judge:
    """Evaluate the condition of the `repeat` called `step` for a lap, and record the verdict under `key`; `at` is the
    lap's."""

    key: str
    step: str
    lap: int
    at: At


Move: TypeAlias = Start | Decide | Expand | Open | Judge


@dataclass(frozen=True)
class Moves:
    """What may happen now; starts and skips are to be taken from the front.

    `outcome` is None as long as something can happen by itself; `wake_at` is the Unix time in seconds at which a retry
    becomes due or a gate's time is over.
    """

    start: tuple[Start, ...] = ()
    decide: tuple[Decide, ...] = ()
    expand: tuple[Expand, ...] = ()
    skip: tuple[Skip, ...] = ()
    open: tuple[Open, ...] = ()
    expire: tuple[Expire, ...] = ()
    judge: tuple[Judge, ...] = ()
    outcome: Outcome | None = None
    wake_at: float | None = None
