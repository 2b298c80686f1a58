"""What may happen next in a run: a pure function of the pipeline, the facts and the time.

``next_moves`` reads no clock, no disk and no values. An expression is handed out as a `Decide` or an `Expand`; whoever
evaluates it records the result among the facts and asks again. So a restart that replays the recorded facts is told
what the daemon was told before.

| facts say of a block                    | the answer                                            |
|-----------------------------------------|-------------------------------------------------------|
| what it waits for has not ended         | nothing                                               |
| its `when` is not decided               | Decide                                                |
| its `when` is false                     | Skip for every step in it                             |
| an `each` without a count               | Expand                                                |
| an `each` with a count of 0             | Skip for every step in it                             |
| a step without an instance              | Start                                                 |
| an instance in ``retry``                | Start once `not_before` has come, else `wake_at`      |
| an instance that has failed             | no further moves; ``failed`` once nothing is running  |
| cancelled                               | no further moves; ``cancelled`` once nothing is running |
| everything done or skipped              | ``complete``                                          |
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import Literal, Protocol, TypeAlias, assert_never, cast

from pop.errors import ErrorClass
from pop.expressions import Expression
from pop.steps import At, Block, Each, Gate, Parallel, Pipeline, Repeat, Sequence, Task, instance_name

Outcome = Literal["complete", "failed", "waiting", "paused", "cancelled"]
Verdict = Literal["again", "converged", "kept", "accepted", "ask", "failed"]
References: TypeAlias = "str | list[References] | None"

BATCH = 256  # decisions, expansions and skips in one answer
MAX_INTERRUPTIONS = 100
MAX_WAIT_S = 150.0  # no wait before an attempt is longer: a time further off means that the clock was put back


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


class LapFacts(Protocol):
    """One lap of a `repeat` whose condition was looked at."""

    @property
    def verdict(self) -> Verdict:
        """``again``: another lap. ``converged``, ``kept`` (the best one) and ``accepted`` (by a person) end the loop,
        ``ask`` opens a gate, ``failed`` ends the run."""

    @property
    def score(self) -> float | None: ...

    @property
    def checks(self) -> bool:
        """False when the deterministic checks said no."""

    @property
    def sha256(self) -> str:
        """Of all that the lap made: two equal ones are a standstill."""


class LoopFacts(Protocol):
    """What is known about one `repeat`."""

    @property
    def laps(self) -> Sequence_[LapFacts]: ...

    @property
    def since(self) -> int:
        """Laps that do not count any more, because a person granted further ones."""

    @property
    def kept(self) -> int | None:
        """The lap whose outputs stand for the loop once it has ended, counted from 1."""


class Facts(Protocol):
    """What is known about a run. Only ``running``, ``retry`` and ``failed`` are ever left for another state."""

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

    `outcome` is None as long as something can happen by itself; `wake_at` is the Unix time in seconds at which a
    waiting retry becomes due.
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


@dataclass
class _ItemsSeen:
    """The items of one `each`: all before `fresh_from` have begun, and those not in `open` of them have ended."""

    fresh_from: int = 0
    open: list[int] = field(default_factory=list)
    turn: int = 0


@dataclass
class Settled:
    """What need not be looked at again, because a step that is done or skipped stays so.

    A cache beside one facts object: it makes an answer cost what is open, not what has ended, and never changes it.
    """

    turn: int = 0
    known: int = 0
    open: dict[str, None] = field(default_factory=dict)
    eaches: dict[str, _ItemsSeen] = field(default_factory=dict)

    def open_states(self, instances: Mapping[str, InstanceFacts]) -> set[str]:
        """The states of the instances that have not ended."""
        self.turn += 1
        new = len(instances) - self.known
        if new:
            newest_first = reversed(cast(dict[str, InstanceFacts], instances))
            self.open.update(dict.fromkeys(islice(newest_first, new)))
            self.known += new
        self.open = {name: None for name in self.open if instances[name].state not in _ENDED}
        return {instances[name].state for name in self.open}


_ENDED = frozenset({"done", "skipped"})


class _State(IntEnum):
    FRESH = 0  # nothing is recorded about it
    BEGUN = 1
    ENDED = 2


def next_moves(
    pipeline: Pipeline, facts: Facts, now: float, *, limit: int | None = None, settled: Settled | None = None
) -> Moves:
    """What may happen next.

    The same pipeline, facts and time give the same answer, and every fact that follows from one answer keeps the other
    answers of the same moment valid.

    Args:
        now: Unix time in seconds.
        limit: At most this many starts.
        settled: A cache that belongs to `facts`; without one, the answer costs time in proportion to all instances.
    """
    settled = settled if settled is not None else Settled()
    states = settled.open_states(facts.instances)
    if facts.cancelled or "failed" in states:
        return Moves(outcome=None if "running" in states else "cancelled" if facts.cancelled else "failed")
    walk = _Walk(pipeline, facts, now, _places(pipeline, facts, settled, limit), settled)
    if walk.state(pipeline.root, At()) is _State.ENDED:
        return Moves(outcome="complete")
    walk.offer(pipeline.root, At())
    return Moves(tuple(walk.start), tuple(walk.decide), tuple(walk.expand), tuple(walk.skip), wake_at=walk.wake_at)


def _places(pipeline: Pipeline, facts: Facts, settled: Settled, limit: int | None) -> int | None:
    if pipeline.concurrency is None:
        return limit
    running = sum(facts.instances[name].state == "running" for name in settled.open)
    free = max(0, pipeline.concurrency - running)
    return free if limit is None else min(limit, free)


class _Walk:
    """One walk over the blocks: `state` looks, `offer` collects the moves of a block that may begin or go on."""

    def __init__(self, pipeline: Pipeline, facts: Facts, now: float, limit: int | None, settled: Settled) -> None:
        self.pipeline = pipeline
        self.facts = facts
        self.now = now
        self.limit = limit
        self.settled = settled
        self.start: list[Start] = []
        self.decide: list[Decide] = []
        self.expand: list[Expand] = []
        self.skip: list[Skip] = []
        self.wake_at: float | None = None

    def state(self, block: Block, at: At) -> _State:
        """Whether the block has ended, has begun, or is untouched by the facts."""
        if isinstance(block, Task):
            return self._task_state(block, at)
        decided = self.facts.decisions.get(instance_name(block.name, at)) if block.when else None
        if decided is False:
            return _State.ENDED if self._all_skipped(block, at) else _State.BEGUN
        state = self._each_state(block, at) if isinstance(block, Each) else self._inner_state(block, at)
        return _State.BEGUN if decided and state is _State.FRESH else state

    def _task_state(self, task: Task, at: At) -> _State:
        name = instance_name(task.name, at)
        instance = self.facts.instances.get(name)
        if instance is None:
            return _State.BEGUN if task.when and name in self.facts.decisions else _State.FRESH
        return _State.ENDED if instance.state in _ENDED else _State.BEGUN

    def _inner_state(self, block: Block, at: At) -> _State:
        states = {self.state(child, at) for child in block.inner}
        return states.pop() if len(states) == 1 else _State.BEGUN

    def _each_state(self, each: Each, at: At) -> _State:
        count = self.facts.counts.get(instance_name(each.name, at))
        if not count:  # skipped with a block around it, empty, or not expanded yet
            skipped = self._all_skipped(each, at)
            return _State.ENDED if skipped else _State.FRESH if count is None else _State.BEGUN
        seen = self._items_seen(each, at, count)
        return _State.ENDED if seen.fresh_from == count and not seen.open else _State.BEGUN

    def _items_seen(self, each: Each, at: At, count: int) -> _ItemsSeen:
        seen = self.settled.eaches.setdefault(instance_name(each.name, at), _ItemsSeen())
        if seen.turn == self.settled.turn:
            return seen
        seen.turn = self.settled.turn
        seen.open = [n for n in seen.open if self.state(each.do, at.item(n)) is not _State.ENDED]
        while seen.fresh_from < count:
            state = self.state(each.do, at.item(seen.fresh_from))
            if state is _State.FRESH:
                break
            if state is _State.BEGUN:
                seen.open.append(seen.fresh_from)
            seen.fresh_from += 1
        return seen

    def _all_skipped(self, block: Block, at: At) -> bool:
        return all(instance_name(leaf.name, at) in self.facts.instances for leaf in self.pipeline.leaves[block.name])

    def offer(self, block: Block, at: At) -> None:
        """Collect the moves of a block that has not ended and waits for nothing."""
        key = instance_name(block.name, at)
        decided = self.facts.decisions.get(key) if block.when else True
        if block.when and decided is None:
            if not self._many():
                self.decide.append(Decide(key, block.name, block.when, at))
        elif block.when and not decided:
            self._offer_skips(block, at, f"`{block.when.text}` is false")
        else:
            self._offer_inside(block, at, key)

    def _offer_inside(self, block: Block, at: At, key: str) -> None:
        match block:
            case Task():
                self._offer_start(block, at, key)
            case Each():
                self._offer_items(block, at, key)
            case Sequence() | Parallel():
                self._offer_entries(block, at)
            case Gate() | Repeat():
                raise NotImplementedError
            case _:
                assert_never(block)

    def _offer_start(self, task: Task, at: At, name: str) -> None:
        instance = self.facts.instances.get(name)
        if instance is not None and instance.state != "retry":
            return
        due = instance.not_before if instance is not None else None
        if due is not None and self.now < due <= self.now + MAX_WAIT_S:
            self.wake_at = due if self.wake_at is None else min(due, self.wake_at)
        elif not self._full():
            self.start.append(Start(name, task.name, at))

    def _offer_entries(self, block: Sequence | Parallel, at: At) -> None:
        all_before = True
        for child in block.inner:
            ended = self.state(child, at) is _State.ENDED
            in_turn = all_before or isinstance(block, Parallel)
            if not ended and self._may_begin(child, at, in_turn):
                self.offer(child, at)
            all_before = all_before and ended

    def _may_begin(self, block: Block, at: At, in_turn: bool) -> bool:
        if block.needs is None:
            return in_turn
        return all(
            self.state(needed, self.pipeline.at(needed.name, at)) is _State.ENDED
            for needed in self.pipeline.waits[block.name]
        )

    def _offer_items(self, each: Each, at: At, key: str) -> None:
        count = self.facts.counts.get(key)
        if count is None:
            if not self._many():
                self.expand.append(Expand(key, each.name, each.over, at))
        elif count == 0:
            self._offer_skips(each, at, f"`{each.over.text}` is empty")
        elif self._may_begin(each.do, at.item(0), in_turn=True):
            seen = self._items_seen(each, at, count)
            for n in seen.open:
                self.offer(each.do, at.item(n))
            self._offer_fresh(each, at, range(seen.fresh_from, count))

    def _offer_fresh(self, each: Each, at: At, fresh: range) -> None:
        """Fresh items are all alike: when one has nothing to offer, none has, and none further on has begun."""
        for n in fresh:
            if self._full() or self._many():
                return
            inner, before = at.item(n), self._offered()
            state = self.state(each.do, inner)
            if state is not _State.ENDED:
                self.offer(each.do, inner)
            if state is _State.FRESH and self._offered() == before:
                return

    def _offer_skips(self, block: Block, at: At, reason: str) -> bool:
        """Skip the steps of a block that will not run, each after what it waits for: so whatever has ended, skipped or
        not, its ancestors have. True when all are skipped, those of this answer included."""
        if isinstance(block, Task):
            return self._offer_skip(block, at, reason)
        all_before = True
        for child in block.inner:
            in_turn = all_before or isinstance(block, Parallel)
            skipped = self._may_begin(child, at, in_turn) and self._offer_skips(child, at, reason)
            all_before = all_before and skipped
        return all_before

    def _offer_skip(self, task: Task, at: At, reason: str) -> bool:
        name = instance_name(task.name, at)
        if name in self.facts.instances:
            return True
        if not self._many():
            self.skip.append(Skip(name, task.name, reason))
        return not self._many()

    def _full(self) -> bool:
        return self.limit is not None and len(self.start) >= self.limit

    def _many(self) -> bool:
        return len(self.decide) + len(self.expand) + len(self.skip) >= BATCH

    def _offered(self) -> int:
        return len(self.start) + len(self.decide) + len(self.expand) + len(self.skip)


def inputs_of(pipeline: Pipeline, facts: Facts, move: Move) -> dict[str, References]:
    """The instances whose outputs a move may read, by step, in the order the steps stand in the pipeline.

    Inside an `each`: the same item's instance of the steps beside it. From outside: a list in item order, nested where
    `each` blocks are. None stands for a skipped step, an empty list for an empty `each`.
    """
    around, before = pipeline.eaches[move.step], pipeline.ancestors(move.step)
    return {name: _reference(pipeline, facts, name, around, move.at) for name in pipeline.tasks if name in before}


def _reference(pipeline: Pipeline, facts: Facts, name: str, around: tuple[Each, ...], at: At) -> References:
    shared = sum(1 for each in pipeline.eaches[name] if each in around)
    path: list[Block] = [pipeline.blocks[name]]
    while (parent := pipeline.parents.get(path[0].name)) and parent not in around:
        path.insert(0, parent)
    return _outputs(facts, path, At(at.items[:shared]))


def _outputs(facts: Facts, path: list[Block], at: At) -> References:
    block, *inside = path
    key = instance_name(block.name, at)
    if block.when and facts.decisions.get(key) is False:
        return None
    if isinstance(block, Each):
        count = facts.counts.get(key)
        return None if count is None else [_outputs(facts, inside, at.item(n)) for n in range(count)]
    if inside:
        return _outputs(facts, inside, at)
    instance = facts.instances.get(key)
    return key if instance is not None and instance.state == "done" else None


def item_expressions(pipeline: Pipeline, move: Move) -> tuple[Expand, ...]:
    """What gives a move its `item`: the lists of the `each` blocks around it, outermost first.

    The item is element ``move.at.items[k]`` of list k; the expression of list k sees the element of list k - 1 as `item`.
    Lists are the same for all moves with the same `Expand.key`.
    """
    return tuple(
        Expand(instance_name(each.name, inside := pipeline.at(each.name, move.at)), each.name, each.over, inside)
        for each in pipeline.eaches[move.step]
    )


@dataclass(frozen=True)
class Recovery:
    """What follows a failed attempt.

    `again` uses up no attempt. The wait before it is drawn evenly below a bound that doubles from `base_s` up to
    `cap_s`; 0 means at once. `more_time` doubles the next attempt's deadline.
    """

    action: Literal["retry", "fail", "again"]
    base_s: float = 0.0
    cap_s: float = 0.0
    more_time: bool = False


RECOVERY: Mapping[ErrorClass, Recovery] = {
    "invalid_output": Recovery("retry"),
    "refused": Recovery("fail"),
    "truncated": Recovery("retry"),
    "timeout": Recovery("retry", more_time=True),
    "stalled": Recovery("retry"),
    "rate_limited": Recovery("retry", base_s=2.0, cap_s=120.0),
    "unavailable": Recovery("retry", base_s=1.0, cap_s=60.0),
    "auth": Recovery("fail"),
    "budget": Recovery("fail"),
    "worker_died": Recovery("retry"),
    "bug": Recovery("fail"),
    "bad_input": Recovery("fail"),
    "rejected": Recovery("fail"),
    "interrupted": Recovery("again", base_s=0.1, cap_s=5.0),
}


@dataclass(frozen=True)
class Next:
    """What to do after a failed attempt, and how many seconds to wait before it."""

    action: Literal["retry", "fail", "again"]
    delay_s: float = 0.0
    more_time: bool = False


def recovery(
    error_class: ErrorClass, *, failures: int, attempts_allowed: int, rng: random.Random, interruptions: int = 0
) -> Next:
    """What follows an attempt that ended with `error_class`.

    Args:
        failures: Attempts that failed so far, this one included, interrupted ones not.
        attempts_allowed: Of the step.
        rng: Draws the wait.
        interruptions: Interrupted attempts so far, this one included.

    Source of the waits: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    rule = RECOVERY[error_class]
    again = rule.action == "again"
    count, most = (interruptions, MAX_INTERRUPTIONS) if again else (failures, attempts_allowed)
    if rule.action == "fail" or count >= most:
        return Next("fail")
    bound_s = min(rule.cap_s, rule.base_s * 2 ** min(max(0, count - 1), 30))
    return Next(rule.action, rng.uniform(0.0, bound_s), rule.more_time)
