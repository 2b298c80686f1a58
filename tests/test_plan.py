"""The planner against pipelines nobody would write by hand: it never starts too early, never twice, and always ends."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pop.errors import ERROR_CLASSES, ConfigErrors
from pop.history import Loop
from pop.pipeline import Block, Each, Pipeline, instance_name, load_pipeline
from pop.plan import (
    Decide,
    Expand,
    Moves,
    Settled,
    Skip,
    Start,
    inputs_of,
    item_expressions,
    next_moves,
)
from pop.remedies import MAX_INTERRUPTIONS, RECOVERY, recovery
from pop.steps import At

ENDED = ("done", "skipped")


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
        if what == "state":
            self.instances.setdefault(key, Instance("")).state = value
        else:
            getattr(self, what)[key] = value


def pipeline(*steps: Any, **more: Any) -> Pipeline:
    return load_pipeline(json.dumps({"tasks": list(steps), **more}).encode(), where="pipeline.json", name="default")


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
    st.just("task"),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["do", "parallel"]), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("each"), inner),
    ),
    max_leaves=7,
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    names: list[str] = []

    def order() -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if draw(st.integers(0, 3)) == 0:
            extra["when"] = "seed.yes"
        if draw(st.integers(0, 3)) == 0:
            known = [*names, "s0", "s1", "s2"] if draw(st.integers(0, 4)) == 0 else names
            extra["needs"] = draw(st.lists(st.sampled_from(known), max_size=2, unique=True)) if known else []
        return extra

    def block(shape: Any) -> Any:
        if shape == "task":
            name = f"s{len(names)}"
            step = {"task": "t", "name": name, **order()}
            names.append(name)
            return step
        kind, inner = shape
        if kind == "each":
            return {"each": "seed.list", **order(), "do": block(inner)}
        return {kind: [block(one) for one in inner], **order()}

    document = {"steps": [block(shape) for shape in draw(st.lists(_SHAPES, min_size=1, max_size=4))]}
    document |= draw(st.sampled_from([{}, {}, {"concurrency": 2}]))
    try:
        read(document)
    except ConfigErrors as errors:
        assert all(problem.code in ("cyclic-needs", "unknown-step") for problem in errors.problems)
        assume(False)
    return document


def read(document: dict[str, Any]) -> Pipeline:
    return pipeline(*document["steps"], **{key: document[key] for key in document if key != "steps"})


def expected(run: Run, block: Block, at: At) -> Iterator[str]:
    """The instances a block has when it has ended, worked out from the decisions and counts alone."""
    key = instance_name(block.name, at)
    if block.when and not run.decisions[key]:
        yield from (instance_name(leaf, at) for leaf in leaves(block))
    elif isinstance(block, Each):
        if run.counts[key] == 0:
            yield from (instance_name(leaf, at) for leaf in leaves(block))
        for n in range(run.counts[key]):
            yield from expected(run, block.do, at.item(n))
    elif not block.inner:
        yield key
    for child in () if isinstance(block, Each) or (block.when and not run.decisions[key]) else block.inner:
        yield from expected(run, child, at)


def leaves(block: Block) -> Iterator[str]:
    if not block.inner:
        yield block.name
    for child in block.inner:
        yield from leaves(child)


class Driver:
    """Makes moves happen in an order drawn by hypothesis, and checks each answer on the way."""

    def __init__(self, of: Pipeline, rng: random.Random, *, failures: bool = False) -> None:
        self.pipeline = of
        self.rng = rng
        self.failures = failures
        self.run = Run()
        self.settled = Settled()
        self.journal: list[tuple[str, str, Any]] = []

    def record(self, what: str, key: str, value: Any) -> None:
        self.journal.append((what, key, value))
        self.run.apply(what, key, value)

    def running(self) -> list[str]:
        return [name for name, instance in self.run.instances.items() if instance.state == "running"]

    def play(self) -> Moves:
        for _ in range(2000):
            limit = self.rng.choice([None, 1, 2, 5])
            answer = next_moves(self.pipeline, self.run, 0.0, limit=limit, settled=self.settled)
            self.check(answer, limit)
            if answer.outcome:
                return answer
            self.step(answer)
        raise AssertionError("the run does not end")

    def check(self, answer: Moves, limit: int | None) -> None:
        assert answer == next_moves(self.pipeline, self.run, 0.0, limit=limit)
        assert answer.start == next_moves(self.pipeline, self.run, 0.0).start[:limit]
        something = answer.start or answer.decide or answer.expand or answer.skip or self.running()
        assert something or answer.outcome, "the run is stuck"
        for start in answer.start:
            self.check_start(start)
        for decision in answer.decide:
            assert decision.key not in self.run.decisions
            self.check_ready(decision)
        for expansion in answer.expand:
            assert expansion.key not in self.run.counts
            self.check_ready(expansion)

    def check_start(self, start: Start) -> None:
        known = self.run.instances.get(start.instance)
        assert known is None or known.state == "retry", "started twice"
        assert start.instance == instance_name(start.step, start.at)
        self.check_ready(start)

    def check_ready(self, move: Start | Decide | Expand) -> None:
        around = self.pipeline.eaches[move.step]
        assert len(move.at.items) == len(around)
        for name in self.pipeline.ancestors(move.step):
            for instance in self.instances_seen(name, move, around):
                assert self.run.instances[instance].state in ENDED, "started before what it needs"
        for reference in flat(list(inputs_of(self.pipeline, self.run, move).values())):
            assert reference is None or self.run.instances[reference].state == "done"

    def instances_seen(self, name: str, move: Start | Decide | Expand, around: tuple[Each, ...]) -> list[str]:
        """All instances of the step `name` that a move inside `around` must find ended."""
        unit = next((each for each in self.pipeline.eaches[name] if each not in around), self.pipeline.blocks[name])
        at = self.pipeline.at(unit.name, move.at)
        if self.skipped_above(unit, at):
            return [instance_name(name, at)]
        return [one for one in expected(self.run, unit, at) if one.partition(".")[0] == name]

    def skipped_above(self, block: Block, at: At) -> bool:
        parent = self.pipeline.parents.get(block.name)
        if parent is None or isinstance(parent, Each):
            return False
        return self.run.decisions.get(instance_name(parent.name, at)) is False or self.skipped_above(parent, at)

    def step(self, answer: Moves) -> None:
        choices: list[Any] = [*answer.decide, *answer.expand, *answer.skip[:1], *answer.start[:1], *self.running()]
        match self.rng.choice(choices):
            case Decide(key=key):
                self.record("decisions", key, self.rng.random() < 0.6)
            case Expand(key=key):
                self.record("counts", key, self.rng.choice([0, 1, 2, 3]))
            case Skip(instance=name):
                self.record("state", name, "skipped")
            case Start(instance=name):
                self.record("state", name, "running")
            case str() as name:
                bad = ["retry", "failed"] if self.failures else ["retry"]
                self.record("state", name, self.rng.choice(["done", "done", "done", *bad]))


def flat(references: Any) -> Iterator[str | None]:
    for reference in references:
        if isinstance(reference, list):
            yield from flat(reference)
        else:
            yield reference


many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


@many
@given(documents(), st.randoms(use_true_random=False))
def test_every_run_ends_with_each_instance_done_or_skipped_once(document: dict[str, Any], rng: random.Random) -> None:
    """Whatever happens in whatever order: never before its needs, never twice, and in the end everything has ended."""
    of = read(document)
    driver = Driver(of, rng)
    assert driver.play().outcome == "complete"
    assert sorted(driver.run.instances) == sorted(expected(driver.run, of.root, At()))
    assert all(instance.state in ENDED for instance in driver.run.instances.values())
    begun = [name for what, name, state in driver.journal if (what, state) == ("state", "done")]
    assert len(begun) == len(set(begun))


@many
@given(documents(), st.randoms(use_true_random=False))
def test_after_a_failure_nothing_new_starts(document: dict[str, Any], rng: random.Random) -> None:
    """What is at work may end; then the run has failed."""
    of = read(document)
    driver = Driver(of, rng, failures=True)
    outcome = driver.play().outcome
    states = [state for what, _, state in driver.journal if what == "state"]
    assert (outcome == "failed") == ("failed" in states)
    if "failed" in states:
        assert "running" not in states[states.index("failed") :]


@many
@given(documents(), st.randoms(use_true_random=False), st.floats(0, 1))
def test_a_replay_of_any_prefix_reaches_the_same_end(document: dict[str, Any], rng: random.Random, cut: float) -> None:
    """Facts are all there is: the first half of a journal, replayed, is told what the first daemon was told."""
    of = read(document)
    driver = Driver(of, rng)
    driver.play()
    kept = driver.journal[: int(cut * len(driver.journal))]
    decided = {(what, key): value for what, key, value in driver.journal}
    run = Run()
    for event in kept:
        run.apply(*event)
    for instance in run.instances.values():
        if instance.state == "running":  # the daemon was killed
            instance.state = "retry"
    while not (answer := next_moves(of, run, 0.0)).outcome:
        run.decisions.update((move.key, decided["decisions", move.key]) for move in answer.decide)
        run.counts.update((move.key, decided["counts", move.key]) for move in answer.expand)
        run.instances.update((move.instance, Instance("skipped")) for move in answer.skip)
        run.instances.update((move.instance, Instance("done")) for move in answer.start)
    assert answer.outcome == "complete"
    assert run.instances.items() == driver.run.instances.items()
    assert (run.decisions, run.counts) == (driver.run.decisions, driver.run.counts)


@many
@given(documents(), st.randoms(use_true_random=False))
def test_an_answer_changes_nothing(document: dict[str, Any], rng: random.Random) -> None:
    """Asking is free: the facts stay as they were and the same question gets the same answer."""
    of = read(document)
    driver = Driver(of, rng)
    driver.play()
    run = Run()
    for event in driver.journal[: len(driver.journal) // 2]:
        run.apply(*event)
    before = copy.deepcopy(run)
    assert next_moves(of, run, 5.0) == next_moves(of, run, 5.0)
    assert run == before


# ---- the language, by example -----------------------------------------------------------------------------------


def test_steps_run_in_the_order_they_stand() -> None:
    """Without a word about order, a step waits for all before it."""
    of, run = pipeline("a", "b"), Run()
    assert starts(moves(of, run)) == ["a"]
    run.apply("state", "a", "running")
    assert moves(of, run) == Moves()
    run.apply("state", "a", "done")
    assert starts(moves(of, run)) == ["b"]
    run.apply("state", "b", "done")
    assert moves(of, run).outcome == "complete"


def test_needs_replace_the_order() -> None:
    """`needs: []` starts at once; a step after it without needs still waits for everything before."""
    of, run = pipeline("a", {"task": "b", "needs": []}, {"task": "c", "needs": ["b"]}, "d"), Run()
    assert starts(moves(of, run)) == ["a", "b"]
    run.apply("state", "b", "done")
    assert starts(moves(of, run)) == ["a", "c"]
    run.apply("state", "c", "done")
    assert starts(moves(of, run)) == ["a"]
    run.apply("state", "a", "done")
    assert starts(moves(of, run)) == ["d"]


def test_a_step_may_need_a_later_one() -> None:
    """Needs make any acyclic graph, so the order in the file is only the default."""
    of, run = pipeline({"task": "a", "needs": ["b"]}, {"task": "b", "needs": []}), Run()
    assert starts(moves(of, run)) == ["b"]
    run.apply("state", "b", "done")
    assert starts(moves(of, run)) == ["a"]
    assert inputs_of(of, run, moves(of, run).start[0]) == {"b": "b"}


def test_parallel_steps_start_side_by_side() -> None:
    """A list inside `parallel` is a chain of its own."""
    of, run = pipeline({"parallel": ["a", ["b", "c"]]}, "d"), Run()
    assert starts(moves(of, run)) == ["a", "b"]
    run.apply("state", "b", "done")
    assert starts(moves(of, run)) == ["a", "c"]


def test_each_runs_its_step_once_per_item_and_gives_a_list() -> None:
    """The items' outputs come back in item order; inside, a step sees its own item's siblings."""
    of, run = pipeline("a", {"each": "inputs.a.parts", "do": ["b", "c"]}, "d"), Run()
    run.apply("state", "a", "done")
    (expand,) = moves(of, run).expand
    assert (expand.key, expand.at, expand.expression.text) == ("tasks[1]", At(), "inputs.a.parts")
    assert inputs_of(of, run, expand) == {"a": "a"}
    run.apply("counts", expand.key, 2)
    assert starts(moves(of, run)) == ["b.0", "b.1"]
    run.apply("state", "b.1", "done")
    assert starts(moves(of, run)) == ["b.0", "c.1"]
    c1 = moves(of, run).start[1]
    assert (c1.step, c1.at) == ("c", At((1,)))
    assert inputs_of(of, run, c1) == {"a": "a", "b": "b.1"}
    for name in ("b.0", "c.0", "c.1"):
        run.apply("state", name, "done")
    (d,) = moves(of, run).start
    assert inputs_of(of, run, d) == {"a": "a", "b": ["b.0", "b.1"], "c": ["c.0", "c.1"]}


def test_inputs_come_in_the_order_of_the_pipeline() -> None:
    """A prompt that lists its inputs is the same after a restart, and so is the key of its stored answer."""
    names = [f"s{n}" for n in range(50)]
    of, run = pipeline(*names, "end"), Run(instances={name: Instance("done") for name in names})
    (end,) = moves(of, run).start
    assert list(inputs_of(of, run, end)) == names


def test_nested_each_blocks_give_nested_lists() -> None:
    """Items are counted outermost first, and the lists that give an item come in the same order."""
    of, run = pipeline({"each": "seed.books", "do": {"each": "item.pages", "do": "read"}}, "end"), Run()
    run.apply("counts", "tasks[0]", 2)
    assert [move.key for move in moves(of, run).expand] == ["tasks[0].do.0", "tasks[0].do.1"]
    run.apply("counts", "tasks[0].do.0", 2)
    run.apply("counts", "tasks[0].do.1", 0)
    assert starts(moves(of, run)) == ["read.0.0", "read.0.1"]
    outer, inner = item_expressions(of, moves(of, run).start[1])
    assert (outer.expression.text, outer.at) == ("seed.books", At())
    assert (inner.expression.text, inner.at, inner.key) == ("item.pages", At((0,)), "tasks[0].do.0")
    assert [(skip.instance, skip.reason) for skip in moves(of, run).skip] == [("read.1", "`item.pages` is empty")]
    run.apply("state", "read.1", "skipped")
    run.apply("state", "read.0.0", "done")
    run.apply("state", "read.0.1", "done")
    (end,) = moves(of, run).start
    assert inputs_of(of, run, end) == {"read": [["read.0.0", "read.0.1"], []]}


def test_a_false_condition_skips_a_step_and_its_output_is_null() -> None:
    """Steps that need a skipped step run all the same."""
    of, run = pipeline("a", {"task": "b", "when": "inputs.a.ok"}, "c"), Run()
    run.apply("state", "a", "done")
    (decide,) = moves(of, run).decide
    assert (decide.key, decide.step, decide.expression.text) == ("b", "b", "inputs.a.ok")
    run.apply("decisions", "b", False)
    assert moves(of, run).skip == (Skip("b", "b", "`inputs.a.ok` is false"),)
    run.apply("state", "b", "skipped")
    (c,) = moves(of, run).start
    assert inputs_of(of, run, c) == {"a": "a", "b": None}


def test_a_false_condition_on_a_block_skips_all_in_it() -> None:
    """Also what is inside an `each` that was never expanded; its output is null, not an empty list."""
    of = pipeline({"do": ["a", {"each": "seed.list", "do": "b"}], "when": "seed.yes"}, "c")
    run = Run(decisions={"tasks[0]": False})
    assert [skip.instance for skip in moves(of, run).skip] == ["a", "b"]
    for name in ("a", "b"):
        run.apply("state", name, "skipped")
    (c,) = moves(of, run).start
    assert inputs_of(of, run, c) == {"a": None, "b": None}


def test_a_skipped_step_too_ends_after_what_it_needs() -> None:
    """So a step that needs a skipped one finds the outputs of all that stands before the two."""
    group = {"do": [{"task": "b", "needs": ["a"]}], "when": "seed.yes"}
    of, run = pipeline({"parallel": ["a", group, {"task": "c", "needs": ["b"]}]}), Run()
    run.apply("decisions", "tasks[0].parallel[1]", False)
    assert (starts(moves(of, run)), moves(of, run).skip) == (["a"], ())
    run.apply("state", "a", "done")
    assert [skip.instance for skip in moves(of, run).skip] == ["b"]
    run.apply("state", "b", "skipped")
    (c,) = moves(of, run).start
    assert inputs_of(of, run, c) == {"a": "a", "b": None}


def test_a_condition_inside_each_is_decided_item_by_item() -> None:
    """A skipped item stands as null in the list."""
    of, run = pipeline({"each": "seed.list", "do": {"task": "a", "when": "item > 1"}}, "b"), Run()
    run.apply("counts", "tasks[0]", 2)
    assert [move.key for move in moves(of, run).decide] == ["a.0", "a.1"]
    run.apply("decisions", "a.0", False)
    run.apply("decisions", "a.1", True)
    assert [skip.instance for skip in moves(of, run).skip] == ["a.0"]
    assert starts(moves(of, run)) == ["a.1"]
    run.apply("state", "a.0", "skipped")
    run.apply("state", "a.1", "done")
    (b,) = moves(of, run).start
    assert inputs_of(of, run, b) == {"a": [None, "a.1"]}


def test_needing_a_step_inside_each_waits_for_all_items() -> None:
    """From outside, a step inside an `each` stands for the whole `each`."""
    of = pipeline({"each": "seed.list", "do": ["a", "b"]}, {"task": "c", "needs": ["a"]})
    run = Run(counts={"tasks[0]": 1}, instances={"a.0": Instance("done")})
    assert starts(moves(of, run)) == ["b.0"]
    run.apply("state", "b.0", "done")
    assert starts(moves(of, run)) == ["c"]


def test_a_retry_waits_until_it_is_due() -> None:
    """The answer says when to ask again."""
    of, run = pipeline("a"), Run(instances={"a": Instance("retry", not_before=10.0)})
    assert moves(of, run, 9.0) == Moves(wake_at=10.0)
    assert starts(moves(of, run, 10.0)) == ["a"]


def test_a_cancelled_run_waits_for_what_is_at_work() -> None:
    """Nothing new starts; the outcome comes when the last attempt has ended."""
    of, run = pipeline({"parallel": ["a", "b"]}), Run(instances={"a": Instance("running")}, cancelled=True)
    assert moves(of, run) == Moves()
    run.apply("state", "a", "failed")
    assert moves(of, run).outcome == "cancelled"


def test_a_reset_instance_takes_the_run_up_again() -> None:
    """`pop retry` turns failed into retry, and the run goes on from there."""
    of, run, cache = pipeline({"parallel": ["a", "b"]}), Run(instances={"a": Instance("failed")}), Settled()
    assert next_moves(of, run, 0.0, settled=cache).outcome == "failed"
    run.apply("state", "a", "retry")
    assert starts(next_moves(of, run, 0.0, settled=cache)) == ["a", "b"]


def test_concurrency_bounds_the_attempts_of_one_run() -> None:
    """`"concurrency": 2` counts what is at work, whoever asks with whatever limit."""
    of, run = pipeline({"parallel": ["a", "b", "c"]}, concurrency=2), Run()
    assert starts(moves(of, run)) == ["a", "b"]
    run.apply("state", "a", "running")
    assert starts(moves(of, run)) == ["b"]
    run.apply("state", "b", "running")
    assert starts(moves(of, run, limit=5)) == []


def test_each_over_many_items_stays_cheap() -> None:
    """5,000 items, driven one completion at a time, cost well under a millisecond of planning each."""
    of, run, cache = pipeline({"each": "seed.list", "do": "a"}), Run(counts={"tasks[0]": 5000}), Settled()
    at_work: list[str] = []
    began, calls = time.process_time(), 0
    while not (answer := next_moves(of, run, 0.0, limit=1, settled=cache)).outcome:
        calls += 1
        if answer.start and len(at_work) < 32:
            run.apply("state", answer.start[0].instance, "running")
            at_work.append(answer.start[0].instance)
        else:
            run.apply("state", at_work.pop(0), "done")
    assert (answer.outcome, calls) == ("complete", 10_000)
    assert time.process_time() - began < 10


def test_a_gap_in_the_items_is_filled() -> None:
    """After a power cut item 3 may be known while item 2 is not; none is forgotten and none is done twice."""
    of = pipeline({"each": "seed.list", "do": "a"})
    run = Run(counts={"tasks[0]": 5}, instances={"a.3": Instance("retry"), "a.1": Instance("done")})
    assert starts(moves(of, run)) == ["a.0", "a.2", "a.3", "a.4"]
    run.instances["a.4"] = Instance("failed")
    assert moves(of, run, limit=1).outcome == "failed"


# ---- recovery ---------------------------------------------------------------------------------------------------


def test_every_error_class_has_a_recovery() -> None:
    """A new class cannot be forgotten."""
    assert set(RECOVERY) == set(ERROR_CLASSES)


@pytest.mark.parametrize("error_class", ["auth", "bug", "bad_input", "budget", "refused"])
def test_what_would_fail_again_is_not_retried(error_class: Any) -> None:
    """However many attempts are allowed."""
    assert recovery(error_class, table={}, failures=1, attempts_allowed=9, rng=random.Random(1)).action == "fail"


def test_attempts_run_out() -> None:
    """The last allowed failure is final."""
    rng = random.Random(1)
    assert recovery("timeout", table={}, failures=1, attempts_allowed=2, rng=rng).action == "retry"
    assert recovery("timeout", table={}, failures=2, attempts_allowed=2, rng=rng).action == "fail"


def test_a_timeout_gets_more_time() -> None:
    """Asking for the same again within the same time would end the same way."""
    assert recovery("timeout", table={}, failures=1, attempts_allowed=2, rng=random.Random(1)).more_time


def test_interruptions_use_up_no_attempt_but_end_some_day() -> None:
    """A step that takes the daemon down each time must not do so for ever."""
    rng = random.Random(1)
    early = recovery("interrupted", table={}, failures=0, interruptions=1, attempts_allowed=1, rng=rng)
    assert (early.action, early.delay_s <= 0.1) == ("again", True)
    late = recovery("interrupted", table={}, failures=0, interruptions=MAX_INTERRUPTIONS, attempts_allowed=1, rng=rng)
    assert late.action == "fail"


@given(st.integers(1, 10**6), st.integers(0, 2**32))
def test_waits_are_drawn_below_a_growing_bound(failures: int, seed: int) -> None:
    """Full jitter: anywhere from 0 to the bound, which doubles up to its cap."""
    wait = recovery("unavailable", table={}, failures=failures, attempts_allowed=10**7, rng=random.Random(seed)).delay_s
    assert 0 <= wait <= min(60.0, 2.0 ** min(failures - 1, 30))


def test_a_clock_that_was_put_back_delays_no_retry() -> None:
    """A time further off than any wait can be is over."""
    of, run = pipeline("a"), Run(instances={"a": Instance("retry", not_before=5000.0)})
    assert not next_moves(of, run, 4990.0).start
    assert next_moves(of, run, 1000.0).start
