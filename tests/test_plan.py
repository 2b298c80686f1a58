"""The planner against pipelines nobody would write by hand: it never starts too early, never twice, and always ends."""

from __future__ import annotations

import copy
import json
import os
import random
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pop.moves import Moves, Skip
from pop.pipeline import load_pipeline
from pop.plan import Settled, next_moves
from pop.reading import inputs_of, instances_in, item_expressions
from pop.steps import ROOT, At, Gate, Pipeline, Repeat, Sequence, Task, step_of
from tests.planning import ENDED, Driver, Instance, Run, expected, moves, pipelines, reads, starts


def pipeline(*steps: Any, **more: Any) -> Pipeline:
    return load_pipeline(json.dumps({"tasks": list(steps), **more}).encode(), where="pipeline.json", name="default")


# ---- random pipelines -------------------------------------------------------------------------------------------

slow = [HealthCheck.filter_too_much, HealthCheck.too_slow]
many = settings(
    max_examples=int(os.environ.get("POP_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=slow,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),  # to explain a failure takes minutes
)
randoms = st.randoms(use_true_random=False)


@many
@given(pipelines(), randoms, st.booleans())
def test_every_run_ends_with_each_instance_done_or_skipped_once(of: Pipeline, rng: random.Random, pauses: bool) -> None:
    """Whatever happens in whatever order: never before its needs, never twice, and in the end everything has ended."""
    driver = Driver(of, rng, pauses=pauses)
    assert driver.play().outcome == "complete"
    known = {name for name in driver.run.instances if step_of(name) in of.steps}
    assert sorted(known) == sorted(expected(of, driver.run, of.root, At()))
    assert all(instance.state in ENDED for instance in driver.run.instances.values())
    assert known == {name for _, _, name in instances_in(of, driver.run, of.root, At())}
    begun = [name for what, name, state in driver.journal if (what, state) == ("state", "done")]
    assert len(begun) == len(set(begun))


@many
@given(pipelines(), randoms)
def test_after_a_failure_nothing_new_starts(of: Pipeline, rng: random.Random) -> None:
    """A task, a gate or a loop that has failed: what is at work may end; then the run has failed."""
    driver = Driver(of, rng, failures=True)
    outcome = driver.play().outcome
    failed = [
        n
        for n, (what, _, value) in enumerate(driver.journal)
        if value == "failed" or (what == "lap" and value[0].verdict == "failed")
    ]
    assert (outcome == "failed") == bool(failed)
    if failed:
        assert not [value for what, _, value in driver.journal[failed[0] :] if value == "running" or what == "opened"]


@many
@given(pipelines(), randoms, st.floats(0, 1))
def test_a_replay_of_any_prefix_reaches_the_same_end(of: Pipeline, rng: random.Random, cut: float) -> None:
    """Facts are all there is: the first half of a journal, replayed, is told what the first daemon was told."""
    first = Driver(of, rng)
    first.play()
    check_replay(first, int(cut * len(first.journal)))


def check_replay(first: Driver, events: int) -> None:
    """A second daemon, which finds so many events of the first, reaches the same end."""
    second = Driver(first.pipeline, first.rng)
    second.answers = first.answers
    for event in first.journal[:events]:
        second.run.apply(*event)
    for name in second.states("running"):  # the daemon was killed
        second.run.apply("state", name, "retry")
    assert second.play().outcome == "complete"
    assert {n: i.state for n, i in first.run.instances.items()} == {n: i.state for n, i in second.run.instances.items()}
    assert first.run.decisions == second.run.decisions
    assert first.run.counts == second.run.counts
    assert first.run.loops == second.run.loops


@pytest.mark.parametrize("word", ["approve", "request-changes"])
def test_a_replay_that_ends_beside_the_answer_of_a_loop_in_a_loop_goes_on(word: str) -> None:
    """The answer is one event: of a gate that was answered, the verdict is known."""
    inner = Repeat("inner", Sequence("inner-body", (Task("a", "t"), Gate("g"))), reads("a"), 1, "ask")
    outer = Repeat("outer", Sequence("outer-body", (inner,)), reads(), 1, "fail")
    first = Driver(Pipeline("asks", "", Sequence(ROOT, (outer,))), random.Random(0))
    first.answers = {("until", "inner@1@1"): False, ("gate", "inner@1.1"): word}
    first.play()
    assert [key for what, key, _ in first.journal if what == "answered"][:1] == ["inner@1"]
    for events in range(len(first.journal) + 1):
        check_replay(first, events)


@many
@given(pipelines(), randoms, st.sets(st.sampled_from([f"s{n}" for n in range(6)])))
def test_steps_that_were_ordered_not_to_run_are_skipped(of: Pipeline, rng: random.Random, steps: set[str]) -> None:
    """Whatever stands around them; and what waits for them goes on."""
    driver = Driver(of, rng)
    driver.run.skips = dict.fromkeys(steps & set(of.steps), "not today")
    assert driver.play().outcome == "complete"
    for name, instance in driver.run.instances.items():
        if step_of(name) in steps:
            assert instance.state == "skipped"


@many
@given(pipelines(), randoms, randoms)
def test_what_follows_from_one_answer_keeps_the_others_valid(
    of: Pipeline, rng: random.Random, pick: random.Random
) -> None:
    """So an answer may be carried out move by move, in any order, without asking again in between."""
    driver = Driver(of, rng)
    for _ in range(5000):
        answer = next_moves(of, driver.run, driver.now, settled=driver.settled)
        driver.check(answer, None)
        if answer.outcome == "complete":
            return
        batch: list[Any] = [*answer.decide, *answer.expand, *answer.judge, *answer.open, *answer.skip, *answer.start]
        pick.shuffle(batch)
        for move in batch:
            driver.happen(move)
        for name in driver.states("running") + driver.states("waiting"):
            if not batch or pick.random() < 0.5:
                driver.happen(name)
    raise AssertionError("the run does not end")


@many
@given(pipelines(), randoms, st.data())
def test_a_rerun_of_anything_ends_again(of: Pipeline, rng: random.Random, data: st.DataObject) -> None:
    """Instances that became stale run again, once what they wait for has ended; the others keep what they have."""
    driver = Driver(of, rng)
    driver.play()
    again = data.draw(st.sampled_from(sorted(of.steps)))
    later = {name for name in of.steps if again in of.readable(name)} | {again}
    loops = {name for name in of.deciding if later & {leaf.name for leaf in of.leaves[name]}}
    after = {name for name in of.blocks if again in of.readable(name)}
    for known, which in ((driver.run.loops, loops), (driver.run.decisions, after), (driver.run.counts, after)):
        for key in [key for key in known if step_of(key) in which]:
            known.pop(key)
    for name, instance in driver.run.instances.items():
        if step_of(name) in later | loops:
            instance.state = "stale"
    driver.settled, driver.answers = Settled(), {}
    assert driver.play().outcome == "complete"


@many
@given(pipelines(), randoms)
def test_an_answer_changes_nothing(of: Pipeline, rng: random.Random) -> None:
    """Asking is free: the facts stay as they were and the same question gets the same answer."""
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


def test_a_clock_that_was_put_back_delays_no_retry() -> None:
    """A time further off than any wait can be is over."""
    of, run = pipeline("a"), Run(instances={"a": Instance("retry", not_before=5000.0)})
    assert not next_moves(of, run, 4990.0).start
    assert next_moves(of, run, 1000.0).start
