"""Facts as the supervisor keeps them, random pipelines of all words, and a driver that makes the planner's moves happen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from hypothesis import assume
from hypothesis import strategies as st

from pop.expressions import Expression
from pop.history import Lap, Loop
from pop.loops import verdict
from pop.moves import Decide, Expand, Expire, Judge, Move, Moves, Open, Skip, Start
from pop.plan import Settled, next_moves
from pop.reading import inputs_of, laps_of
from pop.steps import (
    ROOT,
    At,
    Block,
    CyclicNeeds,
    Each,
    Gate,
    Parallel,
    Pipeline,
    Repeat,
    Sequence,
    Task,
    instance_name,
    step_of,
)

ENDED = ("done", "skipped")
TIMEOUT_S = 100.0


@dataclass
class Instance:
    state: str
    not_before: float | None = None
    expires_at: float | None = None


@dataclass
class Run:
    """Facts as the supervisor keeps them, changed by one event after the other."""

    instances: dict[str, Instance] = field(default_factory=dict)
    decisions: dict[str, bool] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    loops: dict[str, Loop] = field(default_factory=dict)
    skips: dict[str, str] = field(default_factory=dict)
    held: bool = False
    paused: bool = False
    cancelled: bool = False

    def apply(self, what: str, key: str, value: Any) -> None:
        match what:
            case "state":
                self.instances.setdefault(key, Instance("")).state = value
            case "opened":
                self.instances.setdefault(key, Instance("")).state = "waiting"
                self.instances[key].expires_at = value
            case "lap":
                lap, kept = value
                loop = self.loops.setdefault(key, Loop())
                loop.laps.append(lap)
                loop.kept = kept
            case "verdict":
                word, since, kept = value
                loop = self.loops[key]
                last = loop.laps[-1]
                loop.laps[-1] = Lap(word, last.score, last.checks, last.sha256)
                loop.since, loop.kept = loop.since if since is None else since, kept
            case "answered":  # one event ends the gate of a loop and says how the loop goes on
                gate, *ruling = value
                self.apply("state", gate, "done")
                self.apply("verdict", key, ruling)
            case "paused" | "held" | "cancelled":
                setattr(self, what, value)
            case _:
                getattr(self, what)[key] = value

    def lap(self, key: str, word: Any, *, kept: int | None = None, score: float | None = None) -> None:
        """The next lap of a loop has ended with this verdict."""
        self.apply("lap", key, (Lap(word, score, True, ""), kept))

    def done(self, *names: str) -> None:
        for name in names:
            self.apply("state", name, "done")


def moves(of: Pipeline, run: Run, now: float = 0.0, **options: Any) -> Moves:
    """The answer, which the cache, asked in the same breath, must not change."""
    answer = next_moves(of, run, now, **options)
    cache = Settled()
    assert next_moves(of, run, now, settled=cache, **options) == answer
    assert next_moves(of, run, now, settled=cache, **options) == answer
    return answer


def starts(answer: Moves) -> list[str]:
    return [start.instance for start in answer.start]


# ---- random pipelines -------------------------------------------------------------------------------------------

_SHAPES = st.recursive(
    st.sampled_from(["task", "task", "task", "gate"]),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["do", "parallel", "repeat"]), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("each"), inner),
    ),
    max_leaves=6,
)


def reads(*names: str) -> Expression:
    """A condition that reads the outputs of these steps."""
    return Expression(" and ".join(f"inputs.{name}" for name in names) or "seed.yes", "", "any", frozenset(names))


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """All words of the language, nested at random, with needs and conditions at random."""
    steps: list[str] = []
    blocks = iter(range(1000))

    def order() -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if draw(st.integers(0, 4)) == 0:
            extra["when"] = reads()
        if draw(st.integers(0, 3)) == 0:
            known = [*steps, "s0", "s1", "s2"] if draw(st.integers(0, 4)) == 0 else steps
            extra["needs"] = tuple(draw(st.lists(st.sampled_from(known), max_size=2, unique=True))) if known else ()
        return extra

    def step(kind: str) -> Block:
        name = f"s{len(steps)}"
        more = order()
        steps.append(name)
        if kind == "task":
            return Task(name, "t", **more)
        return Gate(name, on_timeout=draw(st.sampled_from(["wait", "approve", "reject"])), **more)

    def block(shape: Any) -> Block:
        if isinstance(shape, str):
            return step(shape)
        (kind, inner), name, more = shape, f"b{next(blocks)}", order()
        if kind == "each":
            return Each(name, reads(), block(inner), **more)
        if kind == "repeat":
            return repeat(name, inner, more)
        return (Sequence if kind == "do" else Parallel)(name, tuple(block(one) for one in inner), **more)

    def repeat(name: str, inner: Any, more: dict[str, Any]) -> Repeat:
        first = len(steps)
        body = Sequence(f"{name}-body", tuple(block(one) for one in inner))
        read = draw(st.lists(st.sampled_from(steps[first:]), max_size=2, unique=True))
        ends: list[Literal["fail", "ask", "keep-best"]] = ["fail", "ask", "keep-best"]
        otherwise = draw(st.sampled_from(ends))
        score = reads(*read) if otherwise == "keep-best" or draw(st.booleans()) else None
        checks = reads() if draw(st.booleans()) else None
        at_most = draw(st.integers(1, 3))
        return Repeat(name, body, reads(*read), at_most, otherwise, score=score, checks=checks, **more)

    root = Sequence(ROOT, tuple(block(shape) for shape in draw(st.lists(_SHAPES, min_size=1, max_size=4))))
    of = Pipeline("random", "", root, concurrency=draw(st.sampled_from([None, None, 2])))
    try:
        assume(all(name in of.blocks for one in of.blocks.values() for name in one.needs or ()))
        of.ancestors(ROOT)
    except CyclicNeeds:
        assume(False)
    return of


# ---- what must be there in the end ------------------------------------------------------------------------------


def expected(of: Pipeline, run: Run, block: Block, at: At) -> Iterator[str]:
    """The instances a block has when it has ended, worked out from decisions, counts and laps alone."""
    key = instance_name(block.name, at)
    unread = isinstance(block, Task | Gate) and block.name in run.skips
    if not unread and block.when and not run.decisions[key]:
        yield from all_skipped(of, block, at)
    elif isinstance(block, Each):
        if run.counts[key] == 0:
            yield from all_skipped(of, block, at)
        for n in range(run.counts[key]):
            yield from expected(of, run, block.do, at.item(n))
    elif isinstance(block, Repeat):
        laps = len(run.loops[key].laps)
        for lap in range(1, laps):
            yield from expected(of, run, block.body, at.lap(lap))
        held_back = of.held_back[block.name]
        yield from last_lap(of, run, block.body, at.lap(laps), held_back)
    elif not block.inner:
        yield key
    else:
        for child in block.inner:
            yield from expected(of, run, child, at)


def last_lap(of: Pipeline, run: Run, block: Block, at: At, held_back: frozenset[str]) -> Iterator[str]:
    if block.name in held_back:
        yield from all_skipped(of, block, at)
    elif isinstance(block, Sequence | Parallel) and not (
        block.when and not run.decisions[instance_name(block.name, at)]
    ):
        for child in block.inner:
            yield from last_lap(of, run, child, at, held_back)
    else:
        yield from expected(of, run, block, at)


def all_skipped(of: Pipeline, block: Block, at: At) -> Iterator[str]:
    yield from (instance_name(leaf.name, at) for leaf in of.leaves[block.name])


# ---- the driver -------------------------------------------------------------------------------------------------


class Driver:
    """Makes moves happen in an order drawn by hypothesis, and checks each answer on the way.

    What an expression, a task or a person says is drawn once for each key: a second driver with the same `answers`
    is told the same.
    """

    def __init__(self, of: Pipeline, rng: random.Random, *, failures: bool = False, pauses: bool = False) -> None:
        self.pipeline = of
        self.rng = rng
        self.failures = failures
        self.pauses = pauses
        self.run = Run()
        self.settled = Settled()
        self.now = 0.0
        self.journal: list[tuple[str, str, Any]] = []
        self.answers: dict[tuple[str, str], Any] = {}
        self.asked_for: dict[str, set[int]] = {}

    def record(self, what: str, key: str, value: Any) -> None:
        self.journal.append((what, key, value))
        self.run.apply(what, key, value)

    def answer(self, what: str, key: str, choices: list[Any]) -> Any:
        """The answer to a question, the same whenever it is asked."""
        return self.answers.setdefault((what, key), self.rng.choice(choices))

    def states(self, state: str) -> list[str]:
        return [name for name, instance in self.run.instances.items() if instance.state == state]

    def play(self) -> Moves:
        """Until an outcome that nothing of what the driver does takes back."""
        for _ in range(5000):
            limit = self.rng.choice([None, 1, 2, 5])
            answer = next_moves(self.pipeline, self.run, self.now, limit=limit, settled=self.settled)
            self.check(answer, limit)
            if answer.outcome in ("complete", "failed", "cancelled"):
                return answer
            self.step(answer)
        raise AssertionError("the run does not end")

    # -- checks ------------------------------------------------------------------------------------------------

    def check(self, answer: Moves, limit: int | None) -> None:
        assert answer == next_moves(self.pipeline, self.run, self.now, limit=limit)
        assert limit is None or answer.start == next_moves(self.pipeline, self.run, self.now).start[:limit]
        self.check_outcome(answer)
        for start in answer.start:
            known = self.run.instances.get(start.instance)
            assert known is None or known.state in ("retry", "stale"), "started twice"
            assert start.step not in self.run.skips
        for gate in answer.open:
            known = self.run.instances.get(gate.instance)
            assert known is None or known.state in ("retry", "stale"), "opened twice"
        for decision in answer.decide:
            assert decision.key not in self.run.decisions
        for expansion in answer.expand:
            assert expansion.key not in self.run.counts
        for judge in answer.judge:
            known_laps = self.run.loops[judge.key].laps if judge.key in self.run.loops else []
            assert judge.lap == len(known_laps) + 1, "judged twice"
        asked: list[Move] = [*answer.start, *answer.open, *answer.decide, *answer.expand, *answer.judge]
        for move in asked:
            self.check_ready(move)

    def check_outcome(self, answer: Moves) -> None:
        anything = any(
            (answer.start, answer.decide, answer.expand, answer.skip, answer.open, answer.judge, answer.expire)
        )
        assert anything or self.states("running") or answer.outcome, "the run is stuck"
        if answer.outcome:
            assert not anything
            assert not self.states("running")
        if answer.outcome == "waiting":
            assert self.states("waiting")
        assert (answer.outcome == "paused") <= self.run.paused
        if self.run.paused or self.run.held:
            assert not answer.start
            assert not answer.open

    def check_ready(self, move: Move) -> None:
        inner = len(self.pipeline.repeats[move.step]) + (move.step in self.pipeline.deciding)
        assert len(move.at.items) == len(self.pipeline.eaches[move.step])
        assert len(move.at.laps) in (len(self.pipeline.repeats[move.step]), inner)
        asking = move.step
        before = self.pipeline.ancestors(asking)
        if len(move.at.laps) > len(self.pipeline.repeats[asking]):
            before, asking = before | self.pipeline.deciding[asking], self.pipeline.blocks[asking].inner[0].name
        for name in before:
            for instance in self.instances_seen(name, asking, move.at):
                assert self.run.instances[instance].state in ENDED, "started before what it needs"
        for reference in flat(list(inputs_of(self.pipeline, self.run, move).values())):
            assert reference is None or self.run.instances[reference].state == "done"
        for reference in flat(list(laps_of(self.pipeline, self.run, move).values())):
            assert reference is None or self.run.instances[reference].state == "done"

    def instances_seen(self, name: str, asking: str, at: At) -> list[str]:
        """All instances of the step `name` that a move of `asking` must find ended."""
        unit = self.pipeline.seen_from(asking, self.pipeline.blocks[name])
        at = self.pipeline.at(unit.name, at)
        if self.skipped_above(unit, at):
            return [instance_name(name, at)]
        return [one for one in expected(self.pipeline, self.run, unit, at) if step_of(one) == name]

    def skipped_above(self, block: Block, at: At) -> bool:
        parent = self.pipeline.parents.get(block.name)
        if parent is None or isinstance(parent, Each | Repeat):
            return False
        return self.run.decisions.get(instance_name(parent.name, at)) is False or self.skipped_above(parent, at)

    # -- what happens ------------------------------------------------------------------------------------------

    def step(self, answer: Moves) -> None:
        """One thing happens: a move of the answer, the end of an attempt, a person's word, or time goes by."""
        asked = [*answer.decide, *answer.expand, *answer.judge, *answer.open, *answer.expire]
        choices = [*asked, *answer.skip[:1], *answer.start[:1], *self.states("running"), *self.states("waiting")]
        if self.pauses and (self.run.paused or self.rng.random() < 0.1):
            self.record("paused", "", not self.run.paused)
        elif choices:
            self.happen(self.rng.choice(choices))

    def happen(self, what: Any) -> None:
        match what:
            case Decide(key=key):
                self.record("decisions", key, self.answer("when", key, [True, True, False]))
            case Expand(key=key):
                self.record("counts", key, self.answer("count", key, [0, 1, 2, 3]))
            case Skip(instance=name):
                self.record("state", name, "skipped")
            case Start(instance=name):
                self.record("state", name, "running")
            case Open(instance=name):
                self.record("opened", name, TIMEOUT_S)
            case Expire(instance=name, answer=word):
                self.decide_gate(name, word)
            case Judge():
                self.judge(what)
            case str() as name if self.run.instances[name].state == "running":
                bad = ["retry", "retry", "failed"] if self.failures else ["retry"]
                self.record("state", name, self.rng.choice(["done"] * 6 + bad))
            case str() as name:
                if self.rng.random() < 0.2:
                    self.now += TIMEOUT_S
                words = ["approve", "approve", "request-changes", *(["reject"] if self.failures else [])]
                self.decide_gate(name, self.answer("gate", name, words))

    def judge(self, move: Judge) -> None:
        repeat, key = self.pipeline.blocks[move.step], f"{move.key}@{move.lap}"
        assert isinstance(repeat, Repeat)
        checks = self.answer("checks", key, [True, False]) if repeat.checks else None
        ruling = verdict(
            repeat,
            self.run.loops.get(move.key),
            until=self.answer("until", key, [True, False, False]),
            checks=checks,
            score=(score := self.answer("score", key, [1.0, 2.0, 3.0]) if repeat.score else None),
            sha256=(made := sha256(str(self.answer("made", key, list(range(9)))).encode()).hexdigest()),
        )
        word = ruling.verdict
        if word == "failed" and not self.failures:  # somebody grants one more lap
            word = "accepted"
        kept = move.lap if word == "accepted" else ruling.kept
        self.record("lap", move.key, (Lap(word, score, checks is not False, made), kept))

    def decide_gate(self, name: str, word: str) -> None:
        step, _, laps = name.partition("@")
        if step_of(name) in self.pipeline.steps:
            refused = word == "reject" and self.failures
            self.record("state", name, "failed" if refused else "done")
            return
        key = step + ("@" + laps.rpartition(".")[0] if "." in laps else "")
        number = len(self.run.loops[key].laps)
        assert int(laps.rpartition(".")[2]) == number
        if word == "reject":
            self.record("state", name, "failed")
            return
        again = word == "request-changes" and number < 5
        self.record("answered", key, (name, "again", number, None) if again else (name, "accepted", None, number))


def flat(references: Any) -> Iterator[str | None]:
    for reference in references:
        if isinstance(reference, list):
            yield from flat(reference)
        else:
            yield reference
