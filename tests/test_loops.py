"""What a `repeat` does, lap by lap; how gates wait; and the verdict that ends a lap."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from pop.events import GATE_DECIDED, GATE_OPENED, LAP_ENDED
from pop.expressions import Expression
from pop.history import Lap, Loop, RunHistory
from pop.instances import Instance as InstanceHistory
from pop.loops import Ruling, verdict
from pop.moves import Expire, Judge, Moves, Open, Skip
from pop.plan import Settled, next_moves
from pop.reading import inputs_of, instances_in, laps_of
from pop.steps import ROOT, At, Block, Each, Gate, Parallel, Pipeline, Repeat, Sequence, Task
from tests.planning import Instance, Run, moves, reads, starts


def pipeline(*blocks: Block | str) -> Pipeline:
    """A name stands for the task of that name."""
    return Pipeline("loops", "", Sequence(ROOT, tuple(map(task, blocks))))


def task(block: Block | str) -> Block:
    return Task(block, block) if isinstance(block, str) else block


def repeat(*body: Block | str, until: Expression, name: str = "loop", at_most: int = 5, **more: Any) -> Repeat:
    return Repeat(name, Sequence(f"{name}-body", tuple(map(task, body))), until, at_most, **more)


def reviewed() -> Pipeline:
    return pipeline("draft", repeat("review", "revise", until=reads("review")), "publish")


# ---- laps -------------------------------------------------------------------------------------------------------


def test_a_lap_is_judged_as_soon_as_what_the_condition_reads_has_ended() -> None:
    """`revise` is held back until then, and runs on the way to the next lap."""
    of, run = reviewed(), Run()
    run.done("draft")
    assert starts(moves(of, run)) == ["review@1"]
    run.done("review@1")
    assert moves(of, run) == Moves(judge=(Judge("loop", "loop", 1, At((), (1,))),))
    run.lap("loop", "again")
    assert starts(moves(of, run)) == ["revise@1"]
    run.done("revise@1")
    assert starts(moves(of, run)) == ["review@2"]


def test_when_a_loop_has_ended_the_rest_of_its_last_lap_is_skipped() -> None:
    """So `[review, revise]` at most 5 times reviews 5 times and revises 4 times."""
    of, run = reviewed(), Run()
    run.done("draft", "review@1")
    run.lap("loop", "converged", kept=1)
    assert moves(of, run) == Moves(skip=(Skip("revise@1", "revise", "the loop loop has ended"),))
    run.apply("state", "revise@1", "skipped")
    (publish,) = moves(of, run).start
    assert inputs_of(of, run, publish) == {"draft": "draft", "review": "review@1", "revise": None}


def test_a_loop_that_fails_fails_the_run() -> None:
    """What is at work may end; a person who grants further laps takes it up again."""
    of, run, cache = pipeline(Parallel("p", (reviewed().blocks["loop"], Task("a", "t")))), Run(), Settled()
    run.done("review@1")
    run.apply("state", "a", "running")
    run.lap("loop", "failed")
    assert next_moves(of, run, 0.0, settled=cache) == Moves()
    run.done("a")
    assert next_moves(of, run, 0.0, settled=cache) == Moves(outcome="failed")
    run.apply("verdict", "loop", ("again", 1, None))
    assert starts(next_moves(of, run, 0.0, settled=cache)) == ["revise@1"]


def test_a_loop_that_asks_opens_a_gate() -> None:
    """It is called after the loop and its last lap; the run waits."""
    of, run = reviewed(), Run()
    run.done("draft", "review@1")
    run.lap("loop", "ask")
    assert moves(of, run) == Moves(open=(Open("loop@1", "loop", At((), (1,))),))
    run.apply("opened", "loop@1", None)
    assert moves(of, run) == Moves(outcome="waiting")


@pytest.mark.parametrize(
    ("word", "since", "kept", "next_one"), [("accepted", None, 1, "publish"), ("again", 1, None, "revise@1")]
)
def test_the_answer_to_a_loops_gate_decides_how_it_goes_on(
    word: str, since: int | None, kept: int | None, next_one: str
) -> None:
    """Approve: the newest lap stands. Request changes: further laps, counted afresh."""
    of, run = reviewed(), Run()
    run.done("draft", "review@1")
    run.lap("loop", "ask")
    run.apply("opened", "loop@1", None)
    run.apply("answered", "loop", ("loop@1", word, since, kept))
    if word == "accepted":
        run.apply("state", "revise@1", "skipped")
    assert starts(moves(of, run)) == [next_one]


@pytest.mark.parametrize("decision", ["approve", "request-changes"])
def test_wherever_a_daemon_is_killed_a_loops_gate_is_open_or_answered(decision: str) -> None:
    """The journal's own reading: `gate.decided` alone ends the gate and says how the loop goes on."""
    of, run = reviewed(), RunHistory(instances={name: InstanceHistory("done") for name in ("draft", "review@1")})
    gate = {
        "instance": "loop@1",
        "kind": "loop",
        "key": "loop",
        "at": "",
        "opening": 1,
        "shown": [],
        "expires_at": None,
    }
    run.apply({"event": LAP_ENDED, "key": "loop", "lap": 1, "verdict": "ask", "sha256": ""})
    assert next_moves(of, run, 0.0).open
    run.apply({"event": GATE_OPENED, **gate})
    assert next_moves(of, run, 0.0).outcome == "waiting"
    run.apply({"event": GATE_DECIDED, **gate, "decision": decision, "text": ""})
    answer = next_moves(of, run, 0.0)
    assert starts(answer) == (["revise@1"] if decision == "request-changes" else [])
    assert [skip.instance for skip in answer.skip] == (["revise@1"] if decision == "approve" else [])


def test_a_condition_that_reads_nothing_of_its_loop_waits_for_all_of_it() -> None:
    """And so nothing is held back."""
    of = pipeline("draft", repeat("review", "revise", until=reads("draft")))
    assert of.deciding["loop"] == {"review", "revise"}
    assert of.held_back["loop"] == frozenset()


def test_deciding_steps_bring_in_what_leads_to_them_and_whole_blocks() -> None:
    """Of an `each` in the body one item is not enough."""
    each = Each("parts", reads(), Sequence("part", (Task("check", "t"), Task("rate", "t"))))
    of = pipeline(repeat("plan", each, "revise", until=reads("check")))
    assert of.deciding["loop"] == {"plan", "check", "rate"}
    assert [unit.name for unit in of.units["loop"]] == ["plan", "parts"]
    assert of.held_back["loop"] == {"revise"}


def test_asking_for_a_step_in_a_loop_from_outside_waits_for_the_whole_loop() -> None:
    """As with `each`: not for its first lap."""
    of = pipeline(repeat("review", "revise", until=reads("review")), Task("end", "t", needs=("review",)))
    run = Run(instances={"review@1": Instance("done")})
    assert starts(moves(of, run)) == []
    run.lap("loop", "converged", kept=1)
    run.apply("state", "revise@1", "skipped")
    assert starts(moves(of, run)) == ["end"]


def test_a_false_condition_skips_a_loop() -> None:
    """Its steps are skipped without a lap, and their outputs are null."""
    of, run = pipeline(repeat("review", until=reads("review"), when=reads()), "end"), Run(decisions={"loop": False})
    assert [skip.instance for skip in moves(of, run).skip] == ["review"]
    run.apply("state", "review", "skipped")
    (end,) = moves(of, run).start
    assert inputs_of(of, run, end) == {"review": None}


def test_loops_in_items_and_items_in_loops_have_keys_of_their_own() -> None:
    """Items and laps are told apart in the names of instances: ``<step>.<item>@<lap>``."""
    inside = repeat("review", until=reads("review"))
    run = Run(counts={"parts": 2}, instances={"review.0@1": Instance("done")})
    answer = moves(pipeline(Each("parts", reads(), inside)), run)
    assert [(judge.key, judge.at) for judge in answer.judge] == [("loop.0", At((0,), (1,)))]
    assert starts(answer) == ["review.1@1"]
    of = pipeline(repeat(Each("parts", reads(), Task("review", "t")), until=reads("review")))
    run = Run(loops={"loop": Loop([Lap("again")])}, counts={"parts@1": 1}, instances={"review.0@1": Instance("done")})
    assert [expand.key for expand in moves(of, run).expand] == ["parts@2"]


def test_a_loop_in_a_loop_begins_anew_in_every_lap() -> None:
    """The outer lap stands first."""
    of = pipeline(repeat(repeat("fix", until=reads("fix"), name="inner"), "review", until=reads("review")))
    run = Run()
    run.done("fix@1.1")
    assert [judge.key for judge in moves(of, run).judge] == ["inner@1"]
    run.lap("inner@1", "converged", kept=1)
    run.done("review@1")
    run.lap("loop", "again")
    assert starts(moves(of, run)) == ["fix@2.1"]


def test_the_instances_of_a_lap_are_found_without_a_look_at_all_others() -> None:
    """Those of its items and inner laps too, and what was skipped as a whole."""
    inner = repeat("fix", until=reads("fix"), name="inner")
    of = pipeline(repeat(Each("parts", reads(), inner), "review", until=reads("review")))
    run = Run(counts={"parts@1": 2, "parts@2": 1})
    run.done("fix.0@1.1", "fix.0@1.2", "fix.1@1.1", "review@1", "fix.0@2.1")
    run.lap("inner.0@1", "again")
    run.lap("inner.0@1", "converged", kept=2)
    body = of.blocks["loop-body"]
    names = [name for _, _, name in instances_in(of, run, body, At((), (1,)))]
    assert names == ["fix.0@1.1", "fix.0@1.2", "fix.1@1.1", "review@1"]
    assert list(instances_in(of, run, body, At((), (2,)))) == [("fix", At((0,), (2, 1)), "fix.0@2.1")]
    run.apply("state", "fix@3", "skipped")
    assert [name for _, _, name in instances_in(of, run, body, At((), (3,)))] == ["fix@3"]


# ---- what a step reads ------------------------------------------------------------------------------------------


def in_lap_three() -> tuple[Pipeline, Run]:
    of, run = reviewed(), Run()
    run.done("draft", "review@1", "revise@1", "review@2", "revise@2")
    run.lap("loop", "again")
    run.lap("loop", "again")
    return of, run


def test_a_step_sees_what_went_before_it_in_this_lap_and_the_rest_of_the_lap_before() -> None:
    """In the first lap there is no lap before, and the output is null."""
    of, run = in_lap_three()
    (review,) = moves(of, run).start
    assert inputs_of(of, run, review) == {"draft": "draft", "review": "review@2", "revise": "revise@2"}
    assert laps_of(of, run, review) == {
        "review": ["review@1", "review@2", None],
        "revise": ["revise@1", "revise@2", None],
    }
    first = Run()
    first.done("draft")
    (review,) = moves(of, first).start
    assert inputs_of(of, first, review) == {"draft": "draft", "review": None, "revise": None}
    assert laps_of(of, first, review) == {"review": [None], "revise": [None]}


def test_the_condition_sees_this_lap_of_the_steps_that_lead_to_it() -> None:
    """And of the rest the lap before."""
    of, run = in_lap_three()
    run.done("review@3")
    (judge,) = moves(of, run).judge
    assert inputs_of(of, run, judge) == {"draft": "draft", "review": "review@3", "revise": "revise@2"}
    assert laps_of(of, run, judge)["review"] == ["review@1", "review@2", "review@3"]


def test_a_step_skipped_in_this_lap_shows_its_newest_output() -> None:
    """`laps` tells the laps apart."""
    check = Task("check", "t", when=reads())
    of, run = (
        pipeline(repeat(check, "review", until=reads("review"))),
        Run(decisions={"check@1": True, "check@2": False}),
    )
    run.done("check@1", "review@1")
    run.apply("state", "check@2", "skipped")
    run.lap("loop", "again")
    (review,) = moves(of, run).start
    assert inputs_of(of, run, review) == {"check": "check@1", "review": "review@1"}
    assert laps_of(of, run, review) == {"check": ["check@1", None], "review": ["review@1", None]}


def test_from_outside_the_lap_that_was_kept_is_seen() -> None:
    """With the revision that was reviewed in it, which is that of the lap before."""
    of, run = in_lap_three()
    run.done("review@3")
    run.lap("loop", "kept", kept=2)
    run.apply("state", "revise@3", "skipped")
    (publish,) = moves(of, run).start
    assert inputs_of(of, run, publish) == {"draft": "draft", "review": "review@2", "revise": "revise@1"}
    assert laps_of(of, run, publish) == {}


def test_an_item_sees_its_own_output_of_the_lap_before() -> None:
    """Not the list of all items."""
    of = pipeline(repeat(Each("parts", reads(), Task("write", "t")), "review", until=reads("review")))
    run = Run(counts={"parts@1": 2, "parts@2": 2})
    run.done("write.0@1", "write.1@1", "review@1", "write.0@2")
    run.lap("loop", "again")
    (write,) = moves(of, run).start
    assert write.instance == "write.1@2"
    assert inputs_of(of, run, write) == {"write": "write.1@1", "review": "review@1"}
    run.done("write.1@2")
    (review,) = moves(of, run).start
    assert inputs_of(of, run, review)["write"] == ["write.0@2", "write.1@2"]


# ---- gates, pauses and orders -----------------------------------------------------------------------------------


def test_a_gate_opens_and_the_run_waits_while_nothing_else_is_to_be_done() -> None:
    """What stands beside it goes on."""
    of, run = pipeline(Parallel("p", (Gate("ok"), Task("a", "t"))), "b"), Run()
    assert moves(of, run).open == (Open("ok", "ok", At()),)
    run.apply("opened", "ok", None)
    assert moves(of, run).outcome is None
    run.apply("state", "a", "running")
    assert moves(of, run) == Moves()
    run.done("a")
    assert moves(of, run) == Moves(outcome="waiting")
    run.done("ok")
    assert starts(moves(of, run)) == ["b"]


def test_a_retry_that_is_due_later_is_no_waiting_for_a_person() -> None:
    """The run stays at work until then."""
    of, run = pipeline(Parallel("p", (Gate("ok"), Task("a", "t")))), Run(instances={"a": Instance("retry", 5.0)})
    run.apply("opened", "ok", None)
    assert moves(of, run) == Moves(wake_at=5.0)


@pytest.mark.parametrize("answer", ["approve", "reject"])
def test_a_gates_time_may_run_out(answer: Any) -> None:
    """The answer says when to ask again, also while the run waits."""
    of, run = pipeline(Gate("ok", timeout_s=60.0, on_timeout=answer)), Run()
    run.apply("opened", "ok", 60.0)
    assert moves(of, run, 59.0) == Moves(outcome="waiting", wake_at=60.0)
    assert moves(of, run, 60.0) == Moves(expire=(Expire("ok", answer),))


def test_a_gate_that_waits_for_ever_does_not_expire() -> None:
    """Its time may be shown, but nothing follows from it."""
    of, run = pipeline(Gate("ok", timeout_s=60.0)), Run()
    run.apply("opened", "ok", 60.0)
    assert moves(of, run, 99.0) == Moves(outcome="waiting")


def test_a_paused_run_starts_nothing() -> None:
    """What is at work may end."""
    of, run = pipeline("a", Gate("ok")), Run(instances={"a": Instance("running")}, paused=True)
    assert moves(of, run) == Moves()
    run.done("a")
    assert moves(of, run) == Moves(outcome="paused")
    run.apply("paused", "", False)
    assert moves(of, run).open == (Open("ok", "ok", At()),)


def test_a_run_that_is_held_waits_for_a_person() -> None:
    """Until the gate about a task's invalid order was answered, nothing begins."""
    of, run = pipeline(Parallel("p", (Task("a", "t"), Task("b", "t")))), Run(held=True)
    run.done("a")
    run.apply("opened", "a+control", None)
    assert moves(of, run) == Moves(outcome="waiting")
    run.done("a+control")
    run.apply("held", "", False)
    assert starts(moves(of, run)) == ["b"]


def test_a_step_that_was_ordered_not_to_run_is_skipped_when_its_turn_comes() -> None:
    """Its condition is not asked."""
    of, run = pipeline("a", Task("b", "t", when=reads("a")), "c"), Run(skips={"b": "nothing to polish"})
    assert moves(of, run).skip == ()
    run.done("a")
    assert moves(of, run) == Moves(skip=(Skip("b", "b", "nothing to polish"),))


def test_a_stale_instance_runs_again_when_its_turn_comes() -> None:
    """After what it waits for, and a gate opens again."""
    of, run = pipeline("a", "b", Gate("ok")), Run()
    for name in ("a", "b", "ok"):
        run.apply("state", name, "stale")
    assert starts(moves(of, run)) == ["a"]
    run.done("a", "b")
    assert moves(of, run).open == (Open("ok", "ok", At()),)


def test_a_stale_instance_is_skipped_where_the_condition_now_says_no() -> None:
    """Or the loop has ended before it."""
    of, run = pipeline(Task("a", "t", when=reads())), Run(decisions={"a": False}, instances={"a": Instance("stale")})
    assert [skip.instance for skip in moves(of, run).skip] == ["a"]


# ---- verdicts ---------------------------------------------------------------------------------------------------

SCORED = Repeat("loop", Sequence("body", ()), Expression("score >= 8", ""), 5, "fail", score=reads())


def judged(
    *scores: float,
    of: Repeat = SCORED,
    since: int = 0,
    checks: bool | None = None,
    before: tuple[Lap, ...] = (),
    **more: Any,
) -> Ruling:
    """The verdict over the last of these laps, where the condition does not hold."""
    laps = [*before, *(Lap("again", score, True, f"lap {n}") for n, score in enumerate(scores[:-1]))]
    said: dict[str, Any] = {"until": False, "sha256": "new", **more}
    return verdict(of, Loop(laps, since), checks=checks, score=scores[-1], **said)


def otherwise(word: Any, **more: Any) -> Repeat:
    return Repeat("loop", Sequence("body", ()), SCORED.until, 3, word, score=reads(), **more)


def test_a_condition_that_holds_converges() -> None:
    """The lap is the one that is kept."""
    assert judged(5.0, 9.0, until=True) == Ruling(2, "converged", "`score >= 8` holds", 2)


def test_checks_outrank_the_condition() -> None:
    """A model may like what does not compile."""
    of = Repeat("loop", Sequence("body", ()), SCORED.until, 5, checks=Expression("tests.passed", ""))
    assert judged(9.0, of=of, until=True, checks=False) == Ruling(1, "again", "`tests.passed` does not hold")


def test_a_lap_in_which_a_person_asked_for_changes_cannot_converge() -> None:
    """Whatever the scores."""
    assert judged(9.0, until=True, changes=True) == Ruling(1, "again", "a person asked for changes")


def test_a_person_who_has_just_asked_for_changes_is_not_asked_the_same_again() -> None:
    """Their words grant further laps, where the loop would ask; a bound that asks nobody stays one."""
    of = replace(SCORED, otherwise="ask", at_most=2)
    assert judged(5.0, 6.0, of=of).verdict == "ask"
    ruling = judged(5.0, 6.0, of=of, changes=True)
    assert (ruling.verdict, ruling.granted) == ("again", True) and "2 laps are over" in ruling.reason
    assert judged(5.0, 6.0, of=replace(of, otherwise="fail"), changes=True).verdict == "failed"


def test_the_same_again_is_a_standstill() -> None:
    """However many laps would be left."""
    assert judged(5.0, 6.0, 7.0, sha256="lap 1") == Ruling(3, "failed", "lap 3 gave the same as lap 2")


def test_two_laps_without_gain_are_a_standstill() -> None:
    """One may be bad luck."""
    assert judged(6.5, 6.0).verdict == "again"
    assert judged(6.5, 6.0, 7.0, 6.5).verdict == "again"
    assert judged(6.5, 6.5, 6.0) == Ruling(3, "failed", "no gain for two laps: 6.5, 6.5, 6")


def test_checks_that_hold_at_last_are_a_gain() -> None:
    """Whatever the scores say meanwhile."""
    before = (Lap("again", 9.0, False, "a"), Lap("again", 8.0, False, "b"))
    assert judged(7.0, of=SCORED, checks=True, before=before).verdict == "again"
    assert judged(7.0, of=SCORED, checks=False, before=before).verdict == "failed"


@pytest.mark.parametrize(
    ("word", "ruling"),
    [
        ("fail", Ruling(3, "failed", "3 laps are over")),
        ("ask", Ruling(3, "ask", "3 laps are over")),
        ("keep-best", Ruling(3, "kept", "3 laps are over; lap 3 is the best", 3)),
    ],
)
def test_when_the_laps_are_over_otherwise_says_what_follows(word: str, ruling: Ruling) -> None:
    """`at_most` counts the laps that were judged."""
    assert judged(5.0, 6.0, of=otherwise(word)).verdict == "again"
    assert judged(5.0, 6.0, 7.0, of=otherwise(word)) == ruling


def test_the_best_lap_is_the_first_of_those_with_the_best_score_whose_checks_hold() -> None:
    """A higher score does not make up for checks that failed."""
    before = (Lap("again", 9.0, False, "a"), Lap("again", 7.0, True, "b"))
    assert judged(7.0, of=otherwise("keep-best"), before=before).kept == 2


def test_granted_laps_are_counted_afresh() -> None:
    """And not compared with those before."""
    before = tuple(Lap("again", 9.0, True, "old") for _ in range(3))
    assert judged(1.0, of=otherwise("ask"), since=3, before=before, sha256="old").verdict == "again"
    assert judged(1.0, 2.0, 3.0, of=otherwise("ask"), since=3, before=before).reason == "3 laps are over"


# ---- cost -------------------------------------------------------------------------------------------------------


def test_loops_over_many_items_stay_cheap() -> None:
    """2,000 items with two laps each: an answer costs what is open, so twice the items take twice the time."""
    of = pipeline(Each("parts", reads(), repeat("review", "revise", until=reads("review"))))
    run, cache = Run(counts={"parts": 2000}), Settled()
    at_work: list[str] = []
    began = time.process_time()
    while not (answer := next_moves(of, run, 0.0, limit=1, settled=cache)).outcome:
        for judge in answer.judge:
            run.lap(judge.key, "again" if judge.lap == 1 else "converged", kept=None if judge.lap == 1 else 2)
        for skip in answer.skip:
            run.apply("state", skip.instance, "skipped")
        if answer.start and len(at_work) < 8:
            run.apply("state", answer.start[0].instance, "running")
            at_work.append(answer.start[0].instance)
        elif at_work:
            run.done(at_work.pop(0))
    assert answer.outcome == "complete"
    assert time.process_time() - began < 20
