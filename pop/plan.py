"""What may happen next in a run: a pure function of the pipeline, the facts and the time.

``next_moves`` reads no clock, no disk and no values. An expression is handed out as a `Decide` or an `Expand`; whoever
evaluates it records the result among the facts and asks again. So a restart that replays the recorded facts is told
what the daemon was told before. What the facts are, and each move, stands in `moves`.

| facts say of a block                    | the answer                                            |
|-----------------------------------------|-------------------------------------------------------|
| what it waits for has not ended         | nothing                                               |
| its `when` is not decided               | Decide                                                |
| its `when` is false                     | Skip for every step in it                             |
| an `each` without a count               | Expand                                                |
| an `each` with a count of 0             | Skip for every step in it                             |
| a step that was ordered not to run      | Skip                                                  |
| a task without an instance, or stale    | Start                                                 |
| a gate without an instance, or stale    | Open                                                  |
| an instance in ``retry``                | the same once `not_before` has come, else `wake_at`   |
| a gate that is ``waiting``              | Expire once `expires_at` has come, else `wake_at`     |
| an instance that has failed             | no further moves; ``failed`` once nothing is running  |
| a `repeat` whose deciding steps ended   | Judge                                                 |
| - whose last lap said ``again``         | the rest of that lap, then the next lap               |
| - whose last lap said ``ask``           | Open                                                  |
| - whose last lap said ``failed``        | no further moves; ``failed`` once nothing is running  |
| - whose last lap ended it               | Skip for the rest of that lap                         |
| cancelled, paused                       | no further moves; that outcome once nothing is running |
| held                                    | Expire; ``waiting`` once nothing is running           |
| nothing to do but waiting for a person  | ``waiting``                                           |
| everything done or skipped              | ``complete``                                          |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import islice
from typing import assert_never, cast

from pop.moves import Decide, Expand, Expire, Facts, Judge, Moves, Open, Outcome, Skip, Start
from pop.remedies import MAX_WAIT_S
from pop.steps import At, Block, Each, Gate, Parallel, Pipeline, Repeat, Sequence, Task, instance_name, step_of

BATCH = 256  # moves in one answer, starts and expired gates not counted


@dataclass
class _ItemsSeen:
    """The items of one `each`: all before `fresh_from` have begun, and those not in `open` of them have ended."""

    fresh_from: int = 0
    open: list[int] = field(default_factory=list)
    turn: int = 0


_OVER = frozenset({"converged", "kept", "accepted"})  # verdicts that end a loop


@dataclass
class Settled:
    """What need not be looked at again, because a step that is done or skipped stays so, and a loop that has ended.

    A cache beside one facts object: it makes an answer cost what is open, not what has ended, and never changes it.
    """

    turn: int = 0
    open: dict[str, None] = field(default_factory=dict)
    loops: dict[str, None] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    eaches: dict[str, _ItemsSeen] = field(default_factory=dict)

    def look(self, facts: Facts) -> None:
        """Take in what is new in the facts: `open` and `loops` then name the instances and loops that have not ended."""
        self.turn += 1
        self._take_in("instances", facts.instances, self.open)
        self._take_in("loops", facts.loops, self.loops)
        self.open = {name: None for name in self.open if facts.instances[name].state not in _ENDED}
        self.loops = {key: None for key in self.loops if _last_verdict(facts, key) not in _OVER}

    def _take_in(self, kind: str, facts: Mapping[str, object], into: dict[str, None]) -> None:
        new = len(facts) - self.known.get(kind, 0)
        if new:
            newest_first = list(islice(reversed(cast(dict[str, object], facts)), new))
            into.update(dict.fromkeys(reversed(newest_first)))
            self.known[kind] = len(facts)


_ENDED = frozenset({"done", "skipped"})
_DUE = frozenset({"retry", "stale"})  # states of instances that are to run again


class _State(IntEnum):
    FRESH = 0  # nothing of it has begun
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
    settled.look(facts)
    states = {facts.instances[name].state for name in settled.open}
    if stopped := _stopped(facts, states, settled):
        return Moves(outcome=None if "running" in states else stopped)
    walk = _Walk(pipeline, facts, now, _places(pipeline, facts, settled, limit), settled)
    if "waiting" in states:
        walk.expire_gates()
    if not facts.held:
        if walk.state(pipeline.root, At()) is _State.ENDED:
            return Moves(outcome="complete")
        walk.offer(pipeline.root, At())
    return walk.moves(waiting="running" not in states and (facts.held or "waiting" in states))


def _stopped(facts: Facts, states: set[str], settled: Settled) -> Outcome | None:
    if facts.cancelled:
        return "cancelled"
    if "failed" in states or any(_last_verdict(facts, key) == "failed" for key in settled.loops):
        return "failed"
    return "paused" if facts.paused else None


def _last_verdict(facts: Facts, key: str) -> str | None:
    loop = facts.loops.get(key)
    return loop.laps[-1].verdict if loop and loop.laps else None


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
        self.open: list[Open] = []
        self.expire: list[Expire] = []
        self.judge: list[Judge] = []
        self.wake_at: float | None = None
        self.by_itself = False  # something will be done without a person: a retry is due later, or there is no place
        self.held_back: frozenset[str] = frozenset()  # blocks that wait for the verdict of the lap we are in

    def moves(self, *, waiting: bool) -> Moves:
        """What was collected; `waiting`: a gate is open and nothing is running."""
        found = Moves(
            start=tuple(self.start),
            decide=tuple(self.decide),
            expand=tuple(self.expand),
            skip=tuple(self.skip),
            open=tuple(self.open),
            expire=tuple(self.expire),
            judge=tuple(self.judge),
            wake_at=self.wake_at,
        )
        return replace(found, outcome="waiting") if waiting and not self._any() else found

    def _any(self) -> bool:
        """Whether anything may happen without a person."""
        return bool(self._offered() or self.expire or self.by_itself)

    def expire_gates(self) -> None:
        """Collect the answers of gates whose time is over."""
        for name in self.settled.open:
            instance, gate = self.facts.instances[name], self.pipeline.steps.get(step_of(name))
            due = instance.expires_at if instance.state == "waiting" else None
            if due is None or not isinstance(gate, Gate) or gate.on_timeout == "wait":
                continue
            if self.now < due:
                self._wake(due)
            else:
                self.expire.append(Expire(name, gate.on_timeout))

    def state(self, block: Block, at: At) -> _State:
        """Whether the block has ended, has begun, or is untouched by the facts."""
        if isinstance(block, Task | Gate):
            return self._step_state(block, at)
        decided = self.facts.decisions.get(instance_name(block.name, at)) if block.when else None
        if decided is False:
            return _State.ENDED if self._all_skipped(block, at) else _State.BEGUN
        match block:
            case Each():
                state = self._each_state(block, at)
            case Repeat():
                state = self._repeat_state(block, at)
            case Sequence() | Parallel():
                state = self._inner_state(block, at)
        return _State.BEGUN if decided and state is _State.FRESH else state

    def _step_state(self, step: Task | Gate, at: At) -> _State:
        name = instance_name(step.name, at)
        instance = self.facts.instances.get(name)
        if instance is None or instance.state == "stale":
            return _State.BEGUN if step.when and name in self.facts.decisions else _State.FRESH
        return _State.ENDED if instance.state in _ENDED else _State.BEGUN

    def _inner_state(self, block: Block, at: At) -> _State:
        states = {self.state(child, at) for child in block.inner}
        return states.pop() if len(states) == 1 else _State.BEGUN

    def _repeat_state(self, repeat: Repeat, at: At) -> _State:
        loop = self.facts.loops.get(instance_name(repeat.name, at))
        if loop is None or not loop.laps:
            if self._all_skipped(repeat, at):  # with a block around it
                return _State.ENDED
            fresh = self.state(repeat.body, at.lap(1)) is _State.FRESH
            return _State.FRESH if fresh else _State.BEGUN
        over = loop.laps[-1].verdict in _OVER and self.state(repeat.body, at.lap(len(loop.laps))) is _State.ENDED
        return _State.ENDED if over else _State.BEGUN

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
        skipped = (self.facts.instances.get(instance_name(leaf.name, at)) for leaf in self.pipeline.leaves[block.name])
        return all(instance is not None and instance.state in _ENDED for instance in skipped)

    def offer(self, block: Block, at: At) -> None:
        """Collect the moves of a block that has not ended and waits for nothing."""
        key = instance_name(block.name, at)
        if isinstance(block, Task | Gate) and block.name in self.facts.skips:
            self._offer_skip(block, at, self.facts.skips[block.name])
            return
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
            case Gate():
                self._offer_gate(key, block.name, at)
            case Each():
                self._offer_items(block, at, key)
            case Repeat():
                self._offer_lap(block, at, key)
            case Sequence() | Parallel():
                self._offer_entries(block, at)
            case _:
                assert_never(block)

    def _offer_start(self, task: Task, at: At, name: str) -> None:
        instance = self.facts.instances.get(name)
        if instance is not None and instance.state not in _DUE:
            return
        due = instance.not_before if instance is not None and instance.state == "retry" else None
        if due is not None and self.now < due <= self.now + MAX_WAIT_S:
            self.by_itself = True
            self._wake(due)
        elif self._full():
            self.by_itself = True
        else:
            self.start.append(Start(name, task.name, at))

    def _wake(self, due: float) -> None:
        self.wake_at = due if self.wake_at is None else min(due, self.wake_at)

    def _offer_gate(self, name: str, step: str, at: At) -> None:
        instance = self.facts.instances.get(name)
        if (instance is None or instance.state in _DUE) and not self._many():
            self.open.append(Open(name, step, at))

    def _offer_lap(self, repeat: Repeat, at: At, key: str) -> None:
        loop = self.facts.loops.get(key)
        laps = len(loop.laps) if loop else 0
        verdict, lap = _last_verdict(self.facts, key), at.lap(laps)
        if verdict in _OVER:
            self._offer_skips(repeat.body, lap, f"the loop {repeat.name} has ended")
        elif verdict == "ask":
            self._offer_gate(instance_name(repeat.name, lap), repeat.name, lap)
        elif laps and self.state(repeat.body, lap) is not _State.ENDED:
            self.offer(repeat.body, lap)
        else:
            self._offer_deciding(repeat, at.lap(laps + 1), key)

    def _offer_deciding(self, repeat: Repeat, lap: At, key: str) -> None:
        """What leads to the verdict of a lap, or the verdict; the rest of the body is held back until then."""
        if any(self.state(unit, lap) is not _State.ENDED for unit in self.pipeline.units[repeat.name]):
            around, self.held_back = self.held_back, self.pipeline.held_back[repeat.name]
            self.offer(repeat.body, lap)
            self.held_back = around
        elif not self._many():
            self.judge.append(Judge(key, repeat.name, lap.laps[-1], lap))

    def _offer_entries(self, block: Sequence | Parallel, at: At) -> None:
        all_before = True
        for child in block.inner:
            ended = self.state(child, at) is _State.ENDED
            in_turn = all_before or isinstance(block, Parallel)
            if not ended and child.name not in self.held_back and self._may_begin(child, at, in_turn):
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
                self.by_itself = True
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
        if isinstance(block, Task | Gate):
            return self._offer_skip(block, at, reason)
        if self.state(block, at) is _State.ENDED:
            return True
        all_before = True
        for child in block.inner:
            in_turn = all_before or isinstance(block, Parallel)
            skipped = self._may_begin(child, at, in_turn) and self._offer_skips(child, at, reason)
            all_before = all_before and skipped
        return all_before

    def _offer_skip(self, step: Task | Gate, at: At, reason: str) -> bool:
        name = instance_name(step.name, at)
        instance = self.facts.instances.get(name)
        if instance is not None and instance.state not in _DUE:
            return instance.state in _ENDED
        if not self._many():
            self.skip.append(Skip(name, step.name, reason))
        return not self._many()

    def _full(self) -> bool:
        return self.limit is not None and len(self.start) >= self.limit

    def _many(self) -> bool:
        return self._offered() - len(self.start) >= BATCH

    def _offered(self) -> int:
        offered = len(self.start) + len(self.decide) + len(self.expand) + len(self.skip)
        return offered + len(self.open) + len(self.judge)
