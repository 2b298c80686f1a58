"""Taking a run up again from a step: which part of it is stale, what may be set, and what is journaled."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pop.control import additions, extended
from pop.errors import UsageError
from pop.expressions import compile_expression
from pop.history import Instance, Lap, Loop, RunHistory
from pop.moves import Moves
from pop.pipeline import load_pipeline
from pop.plan import next_moves
from pop.reading import inputs_of, laps_of
from pop.rerun import (
    RerunRefused,
    Stale,
    UnknownPath,
    apply_set,
    changed_tasks,
    documents_of,
    place_of,
    read_sets,
    rerun_event,
    stale_of,
)
from pop.settings import Root
from pop.steps import ROOT, At, Block, Each, Gate, Parallel, Pipeline, Repeat, Sequence, Task, below, instance_name

T = "2026-11-21T03:15:02.000Z"


def pipeline(*steps: Any) -> Pipeline:
    return load_pipeline(json.dumps({"tasks": list(steps)}).encode(), where="pipeline.json", name="default")


def condition(text: str, expects: Any = "bool") -> Any:
    names = ("seed", "inputs", "item", "lap", "laps")
    return compile_expression(text, "pipeline.json", expects=expects, names=names)


def blocks(*inner: Block) -> Pipeline:
    return Pipeline("default", "", Sequence(ROOT, inner))


def repeat(name: str, until: str, *body: Block) -> Repeat:
    return Repeat(name, Sequence(f"{name}.body", body), condition(until), 5)


def task(name: str) -> Task:
    return Task(name, name)


def done(*names: str, **more: Any) -> RunHistory:
    return RunHistory(instances={name: Instance("done", started=1) for name in names}, state="failed", **more)


def laps(*verdicts: Any) -> Loop:
    return Loop([Lap(verdict) for verdict in verdicts])


# -- what is stale -----------------------------------------------------------------------------------------------------


def test_everything_after_the_step_is_stale_and_nothing_beside_or_before_it() -> None:
    """In a chain with a branch beside it."""
    of = pipeline("a", {"parallel": [{"do": ["b", "c"]}, "d"]}, "e")
    found = stale_of(of, done("a", "b", "c", "d", "e"), ["b"])
    assert found.instances == ("b", "c", "e")
    assert found.again == ("b",) and not found.replay


def test_a_step_that_had_not_begun_is_not_made_up() -> None:
    """Only what the history knows can be stale; the rest runs anyhow."""
    assert stale_of(pipeline("a", "b", "c"), done("a", "b"), ["b"]).instances == ("b",)


def test_from_a_parsing_stage_on_recorded_answers_are_worked_on() -> None:
    """The step replays; what follows it asks as before."""
    found = stale_of(pipeline("a", "b"), done("a", "b"), ["a:validate_quality"])
    assert found.replay == ("a",) and not found.again and found.instances == ("a", "b")


def test_an_item_makes_its_own_item_and_what_follows_stale() -> None:
    """Other items do not depend on it; what stands after the `each` does."""
    of = pipeline({"each": "seed.parts", "name": "parts", "do": ["draft", "check"]}, "join")
    names = [f"{step}.{n}" for step in ("draft", "check") for n in range(3)]
    found = stale_of(of, done(*names, "join", counts={"parts": 3}), ["draft.1"])
    assert found.instances == ("draft.1", "check.1", "join") and found.again == ("draft.1",)
    assert not found.keys
    assert stale_of(of, done(*names, "join", counts={"parts": 3}), ["draft"]).instances == (*names, "join")


def test_decisions_and_counts_that_depend_on_it_are_dropped_and_others_kept() -> None:
    """With what they skipped or spread out."""
    of = pipeline(
        {"task": "a", "when": "seed.yes"},
        {"task": "b", "when": "inputs.a.yes"},
        {"each": "inputs.b.parts", "name": "parts", "do": {"task": "c", "when": "item.yes"}},
    )
    history = done("a", "b", "c.0", "c.1", decisions={"a": True, "b": True, "c.0": True, "c.1": False})
    history.instances["c.1"].state, history.counts = "skipped", {"parts": 2}
    found = stale_of(of, history, ["b"])
    assert found.instances == ("b", "c.0", "c.1") and set(found.keys) == {"b", "c.0", "c.1", "parts"}


def test_a_block_with_a_name_begins_with_all_that_is_in_it() -> None:
    """And is counted again."""
    of = pipeline("a", {"each": "seed.parts", "name": "parts", "do": "draft"}, "z")
    found = stale_of(of, done("a", "draft.0", "z", counts={"parts": 1}), ["parts"])
    assert found.instances == ("draft.0", "z") and found.again == ("draft.0",) and found.keys == ("parts",)


def loop() -> Pipeline:
    """validate decides; revise runs between the laps."""
    body = task("validate"), task("revise")
    return blocks(task("plan"), repeat("review", "inputs.validate.good", *body), task("build"))


def two_laps() -> RunHistory:
    names = ("plan", "validate@1", "revise@1", "validate@2", "revise@2", "build")
    history = done(*names, loops={"review": laps("again", "converged")})
    history.instances["revise@2"].state = "skipped"
    history.loops["review"].kept = 2
    return history


def test_a_step_of_a_loop_begins_with_the_first_lap() -> None:
    """No verdict that depends on it is kept."""
    found = stale_of(loop(), two_laps(), ["validate"])
    assert found.instances == ("validate@1", "revise@1", "validate@2", "revise@2", "build")
    assert found.loops == {"review": 0} and found.again == ("validate@1", "validate@2")


def test_a_step_of_a_lap_begins_with_that_lap() -> None:
    """The laps before it are kept with their verdicts, and so is what that lap had done before it."""
    found = stale_of(loop(), two_laps(), ["validate@2"])
    assert found.instances == ("validate@2", "revise@2", "build")
    assert found.loops == {"review": 1} and found.again == ("validate@2",)


def test_what_lies_before_a_loop_drops_all_its_laps() -> None:
    """They depend on it."""
    found = stale_of(loop(), two_laps(), ["plan"])
    assert len(found.instances) == 6 and found.loops == {"review": 0}


def test_what_lies_behind_a_loop_keeps_all_its_laps() -> None:
    """The loop does not depend on it."""
    assert stale_of(loop(), two_laps(), ["build"]).loops == {}


def test_loops_of_other_items_are_left_alone() -> None:
    """A loop inside an `each` is one loop per item; an `each` inside a loop belongs to its lap."""
    of = blocks(Each("parts", condition("seed.parts", "list"), repeat("loop", "inputs.a.good", task("a"))), task("z"))
    history = done("a.0@1", "a.0@2", "a.1@1", "z", loops={"loop.0": laps("again", "kept"), "loop.1": laps("kept")})
    found = stale_of(of, history, ["a.0@2"])
    assert found.instances == ("a.0@2", "z") and found.loops == {"loop.0": 1}
    assert stale_of(of, history, ["a.0"]).loops == {"loop.0": 0}
    of = blocks(repeat("loop", "inputs.z.good", Each("parts", condition("seed.parts", "list"), task("a")), task("z")))
    names = [f"{step}@{lap}" for lap in (1, 2) for step in ("a.0", "a.1", "z")]
    found = stale_of(of, done(*names, loops={"loop": laps("again", "converged")}), ["a.1@1"])
    assert found.instances == ("a.1@1", "z@1", "a.0@2", "a.1@2", "z@2") and found.loops == {"loop": 0}


def test_gates_are_stale_like_steps_and_those_of_loops_like_verdicts() -> None:
    """So they open again."""
    of = blocks(task("a"), repeat("loop", "inputs.b.good", task("b")), Gate("sign-off"), task("z"))
    history = done("a", "b@1", "b@2", "loop@2", "sign-off", "z", loops={"loop": laps("again", "accepted")})
    assert "loop@2" in stale_of(of, history, ["b@2"]).instances
    assert stale_of(of, history, ["sign-off"]).instances == ("sign-off", "z")
    assert stale_of(of, history, ["sign-off"]).again == ()
    assert stale_of(of, history, ["sign-off"]).loops == {}
    history = done("a", "b@1", loops={"loop": laps("ask")})
    history.instances["a+control"] = Instance("done")
    assert stale_of(of, history, ["a"]).instances == ("a", "b@1", "a+control")


def test_a_verdict_that_depends_on_a_step_beside_the_loop_is_dropped() -> None:
    """With what was held back until then; where only that depends on it, the first verdict stays."""
    deciding, late = Task("check", "check", needs=("beside",)), Task("mend", "mend", needs=())
    of = blocks(Parallel("both", (task("beside"), repeat("loop", "inputs.check.good", deciding, late))))
    history = done("beside", "check@1", "mend@1", "check@2", loops={"loop": laps("again", "converged")})
    found = stale_of(of, history, ["beside"])
    assert found.loops == {"loop": 0} and found.instances == ("beside", "check@1", "mend@1", "check@2")
    deciding, late = Task("check", "check", needs=()), Task("mend", "mend", needs=("beside",))
    of = blocks(Parallel("both", (task("beside"), repeat("loop", "inputs.check.good", deciding, late))))
    found = stale_of(of, history, ["beside"])
    assert found.loops == {"loop": 1} and found.instances == ("beside", "mend@1", "check@2")


def ordered(of: list[Any], *orders: tuple[str, dict[str, Any]], ran: tuple[str, ...]) -> tuple[Pipeline, RunHistory]:
    """A run that failed after these orders of its tasks, and its pipeline as they made it."""
    history = RunHistory(state="failed")
    for instance, control in orders:
        history.apply({"event": "step.done", "at": T, "instance": instance, "sha256": "x", "control": control})
    for name in ran:
        history.apply({"event": "step.done", "at": T, "instance": name, "sha256": "x"})
    for step, reason in history.skips.items():
        history.apply({"event": "step.skipped", "at": T, "instance": step, "reason": reason})
    data = json.dumps({"tasks": of}).encode()
    return extended(data, additions(history), where="pipeline.json", name="default"), history


def rerun(history: RunHistory, stale: Stale) -> RunHistory:
    about = {key: value for key, value in asdict(stale).items()}
    history.apply({"event": "run.rerun", "at": T, **about})
    return history


def test_the_additions_of_what_is_stale_are_gone_with_all_they_added_themselves() -> None:
    """And what came after them runs again."""
    beside: Any = {"task": "y", "needs": []}
    orders = (("a", {"add": ["more", {"each": "seed.n", "name": "many", "do": "one"}]}), ("more", {"add": ["deep"]}))
    of, history = ordered(["start", "a", "x", beside], *orders, ran=("start", "one.0", "one.1", "deep", "x", "y"))
    history.counts["many"] = 2
    found = stale_of(of, history, ["a"])
    assert found.gone == ("more", "one.0", "one.1", "deep") and found.keys == ("many",)
    assert found.instances == ("a", "more", "one.0", "one.1", "deep", "x") and found.again == ("a",)
    after = rerun(history, found)
    assert set(after.instances) == {"start", "a", "x", "y"} and not after.orders
    after.apply({"event": "step.done", "at": T, "instance": "a", "sha256": "x", "control": {"add": ["more"]}})
    assert [(order.instance, order.add) for order in after.orders] == [("a", ["more"])]


def test_an_order_of_what_is_kept_holds() -> None:
    """And its blocks keep their names, though the one before it is gone."""
    orders = (("b", {"add": ["x"]}), ("a", {"add": [{"each": "seed.n", "do": "y"}]}))
    of, history = ordered(["a", {"task": "b", "needs": []}], *orders, ran=("x", "y.0"))
    history.counts["added[1].do[0]"] = 1
    found = stale_of(of, history, ["b"])
    assert found.instances == ("b", "x") and found.gone == ("x",) and not found.keys
    after = rerun(history, found)
    assert [(order.instance, order.number) for order in after.orders] == [("a", 1)]
    after.apply({"event": "step.done", "at": T, "instance": "b", "sha256": "x", "control": {"add": ["x"]}})
    assert [(order.instance, order.number) for order in after.orders] == [("a", 1), ("b", 2)]


def test_an_addition_that_speaks_of_what_is_gone_is_ordered_anew() -> None:
    """It would not fit into the pipeline without it."""
    orders = (("a", {"add": ["x"]}), ("b", {"add": [{"task": "y", "needs": ["x"]}]}))
    of, history = ordered(["a", {"task": "b", "needs": []}], *orders, ran=("x", "y"))
    found = stale_of(of, history, ["a"])
    assert found.instances == ("a", "b", "x", "y") and found.gone == ("x", "y") and found.again == ("a",)


def test_what_was_skipped_on_the_word_of_what_is_stale_has_its_turn() -> None:
    """And what depends on it; the word of another holds."""
    of: list[Any] = [{"parallel": ["a", "b", {"do": ["c", "d"]}, "e"]}]
    orders = (("a", {"skip": {"c": "no use"}}), ("b", {"skip": {"e": "nor that"}}))
    pipe, history = ordered(of, *orders, ran=("d",))
    found = stale_of(pipe, history, ["a"])
    assert found.instances == ("a", "d", "c") and found.again == ("a",) and not found.gone
    assert rerun(history, found).skips == {"e": "nor that"}


def test_blocks_that_were_skipped_as_a_whole_have_instances_without_item_and_lap() -> None:
    """They are stale with what skipped them."""
    of = blocks(task("a"), Each("parts", condition("seed.parts", "list"), repeat("loop", "inputs.b.good", task("b"))))
    history = done("a", "b", counts={"parts": 0})
    history.instances["b"].state = "skipped"
    assert stale_of(of, history, ["a"]).instances == ("a", "b")


@pytest.mark.parametrize(
    ("asked", "code", "hint"),
    [
        ("drafft", "unknown-step", "did you mean 'draft'?"),
        ("draft:pares", "unknown-stage", "did you mean 'parse'?"),
        ("draft.7", "unknown-instance", "did you mean 'draft.0'?"),
        ("late", "never-ran", "what ran: draft.0"),
        ("off", "never-ran", "it was skipped: `seed.x` is false"),
        ("tasks[0]", "unknown-step", None),
        ("", "unknown-step", None),
    ],
)
def test_what_cannot_be_begun_with_is_refused_with_the_nearest(asked: str, code: str, hint: str | None) -> None:
    """Nothing is guessed."""
    of = pipeline({"each": "seed.parts", "name": "parts", "do": "draft"}, "off", "late")
    history = done("draft.0", counts={"parts": 1})
    history.instances["off"] = Instance("skipped", reason="`seed.x` is false")
    with pytest.raises(RerunRefused) as caught:
        stale_of(of, history, [asked])
    assert caught.value.code == code
    assert hint is None or caught.value.hint == hint


@pytest.mark.parametrize("name", ["a", "a-b_c", "tasks[2]", "tasks[0].do[1].parallel[2]", ROOT])
@pytest.mark.parametrize("at", [At(), At((3,)), At((3, 0)), At((), (2,)), At((1, 2), (3, 4))])
def test_the_name_of_an_instance_tells_where_it_stands(name: str, at: At) -> None:
    """Also of blocks that are called by their place."""
    assert place_of(instance_name(name, at)) == (name, at)


# -- against the planner -----------------------------------------------------------------------------------------------


class Simulated:
    """Plays a run in which every output is a hash of all that its step may read, and of the salt of its name."""

    def __init__(
        self, of: Pipeline, history: RunHistory, facts: dict[str, Any], salt: dict[str, str], rng: random.Random
    ) -> None:
        self.rng = rng
        self.of, self.history, self.facts, self.salt = of, history, facts, salt
        self.outputs: dict[str, str] = {}

    def play(self, before: dict[str, str] | None = None) -> dict[str, str]:
        self.outputs = dict(before or {})
        for _ in range(2000):
            moves = next_moves(self.of, self.history, 0.0)
            if moves.outcome:
                assert moves.outcome == "complete"
                return self.outputs
            self._step(moves)
        raise AssertionError("it does not end")

    def _step(self, moves: Moves) -> None:
        for decide in moves.decide:
            self.history.decisions[decide.key] = self.facts.setdefault(decide.key, self.rng.random() < 0.7)
        for expand in moves.expand:
            self.history.counts[expand.key] = self.facts.setdefault(f"#{expand.key}", self.rng.randrange(3))
        for judge in moves.judge:
            again = judge.lap < 3 and self.facts.setdefault(f"{judge.key}@{judge.lap}", self.rng.random() < 0.5)
            loop = self.history.loops.setdefault(judge.key, Loop())
            loop.laps.append(Lap("again" if again else "converged"))
            loop.kept = None if again else judge.lap
        for skip in moves.skip:
            self.history.instances[skip.instance] = Instance("skipped")
            self.outputs.pop(skip.instance, None)
        for start in moves.start[:1]:
            reads = {name: self._read(which) for name, which in inputs_of(self.of, self.history, start).items()}
            laps = {name: self._read(which) for name, which in laps_of(self.of, self.history, start).items()}
            text = json.dumps(
                [start.instance, reads, laps, self._verdicts(start.step, start.at), self.salt.get(start.instance)]
            )
            self.outputs[start.instance] = hashlib.sha256(text.encode()).hexdigest()
            self.history.instances[start.instance] = Instance("done", started=1)

    def _verdicts(self, step: str, at: At) -> list[str]:
        """What must have ended before a step begins, read or not: all of earlier laps, and what the verdict of this
        one came from, if the step is held back until then."""
        found = []
        for repeat in self.of.repeats[step]:
            held_back = step not in self.of.deciding[repeat.name]
            here = self.of.at(repeat.body.name, at)
            for name, output in sorted(self.outputs.items()):
                other, inside = place_of(name)
                if repeat not in self.of.repeats[other]:
                    continue
                there = self.of.at(repeat.body.name, inside)
                earlier = there.laps[-1] < here.laps[-1]
                deciding = held_back and there == here and other in self.of.deciding[repeat.name]
                if (there.items, there.laps[:-1]) == (here.items, here.laps[:-1]) and (earlier or deciding):
                    found.append(output)
        return found

    def _read(self, which: Any) -> Any:
        return [self._read(one) for one in which] if isinstance(which, list) else which and self.outputs[which]


SHAPES = st.recursive(
    st.just("task"),
    lambda inner: st.tuples(
        st.sampled_from(["do", "parallel", "each", "repeat"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def random_pipelines(draw: st.DrawFn) -> Pipeline:
    """Blocks in blocks; `needs` only of steps that stand before."""
    names: list[str] = []
    count = iter(range(1000))

    def order() -> dict[str, Any]:
        needs = draw(st.lists(st.sampled_from(names), max_size=2, unique=True)) if names else []
        return {
            "when": condition("seed.yes") if draw(st.integers(0, 3)) == 0 else None,
            "needs": tuple(needs) if draw(st.integers(0, 3)) == 0 else None,
        }

    def block(shape: Any) -> Block:
        if shape == "task":
            made = Task(f"s{len(names)}", "t", **order())
            names.append(made.name)
            return made
        name, about = f"b{next(count)}", order()
        inner = tuple(block(one) for one in shape[1])
        if shape[0] == "each":
            return Each(name, condition("seed.parts", "list"), Sequence(f"{name}.do", inner), **about)
        if shape[0] == "repeat":
            reads = [leaf.name for one in inner for leaf in below(one) if isinstance(leaf, Task)]
            until = condition(f"inputs.{draw(st.sampled_from(reads))}.good")
            return Repeat(name, Sequence(f"{name}.body", inner), until, 5, **about)
        return (Sequence if shape[0] == "do" else Parallel)(name, inner, **about)

    return blocks(*(block(shape) for shape in draw(st.lists(SHAPES, min_size=1, max_size=4))))


@pytest.mark.parametrize("name", ["a\n", "ma\nde", "a." + "9" * 5000, "a@" + "9" * 5000, "a\u0661", "a.\u0661"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    """With a sentence, whatever stands in it."""
    with pytest.raises(RerunRefused):
        stale_of(pipeline("a", "b"), done("a", "b"), [name])


@settings(max_examples=150, deadline=None)
@given(random_pipelines(), st.randoms(use_true_random=False))
def test_stale_is_what_would_come_out_otherwise_and_nothing_else(of: Pipeline, rng: random.Random) -> None:
    """Salt the outputs of a step: what changes in a run from the start is what is stale, to the instance; and what is
    stale, run again, gives just that."""
    facts, history = dict[str, Any](), RunHistory()
    before = Simulated(of, history, facts, {}, rng).play()
    if not before:
        return
    begin = rng.choice([*before, *{place_of(name)[0] for name in before}])
    salt = {name: "salt" for name in before if begin in (name, place_of(name)[0])}
    after = Simulated(of, RunHistory(), facts, salt, rng).play()
    stale = stale_of(of, history, [begin])
    ran = {name for name in stale.instances if history.instances[name].state == "done"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= ran
    skipped = [name for name, one in history.instances.items() if one.state == "skipped" and place_of(name)[0] == begin]
    conditions = skipped or any(isinstance(block, Repeat) for block in of.blocks.values())
    assert changed == ran or conditions  # they are looked at again, and may say otherwise
    assert set(salt) <= set(stale.again) <= {*salt, *skipped}
    for name in stale.instances:
        del history.instances[name]
    for key in stale.keys:
        history.decisions.pop(key, None), history.counts.pop(key, None)
    for key, kept in stale.loops.items():
        history.loops[key] = Loop(history.loops[key].laps[:kept])
    assert Simulated(of, history, facts, salt, rng).play(before) == after


# -- what is set -------------------------------------------------------------------------------------------------------

SEED = {"topic": "tides", "parts": [{"n": 1}, {"n": 2}]}
DOCUMENT = {
    "tasks": [
        "plan",
        {"task": "write", "name": "draft", "with": {"tone": "dry", "deep": {"a": 1}}},
        {"each": "seed.parts", "do": {"task": "check", "timeout": "5m"}},
        {"repeat": ["review", {"parallel": ["revise"]}], "until": "inputs.review.good"},
    ]
}


def test_what_is_set_stands_there_and_the_given_ones_are_left_alone() -> None:
    """In the seed, and in steps wherever they stand."""
    sets = {
        "seed.parts.1.n": 5, "seed.topic": ["x"], "draft.with.deep.a": None, "plan.model": "large", "check.timeout": "1h",
        "revise.attempts": 4, "draft.with.length": 3, "review.with.strict": True,
    }  # fmt: skip
    seed, document = apply_set(SEED, DOCUMENT, sets)
    assert seed == {"topic": ["x"], "parts": [{"n": 1}, {"n": 5}]}
    assert document["tasks"][0] == {"task": "plan", "model": "large"}
    assert document["tasks"][1]["with"] == {"tone": "dry", "deep": {"a": None}, "length": 3}
    assert document["tasks"][3]["repeat"][0] == {"task": "review", "with": {"strict": True}}
    assert document["tasks"][2]["do"]["timeout"] == "1h"
    assert document["tasks"][3]["repeat"][1]["parallel"] == [{"task": "revise", "attempts": 4}]
    assert SEED["topic"] == "tides" and DOCUMENT["tasks"][0] == "plan"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("seed.topik", "did you mean 'topic'?"),
        ("seed", "known: parts, topic"),
        ("seed.topic.x", "it is a single value"),
        ("seed.parts.2", "its items are 0 to 1"),
        ("seed.parts.x", "its items are 0 to 1"),
        ("seed.parts.-1", "its items are 0 to 1"),
        ("draft.with.deep.b", "known: a"),
        ("draft.with.ton.x", "did you mean 'tone'?"),
        ("plan.with.tone.x", "it is empty"),
        ("drafts.model", "did you mean 'draft'?"),
        ("draft.with", "draft.with.KEY, or draft.model, draft.timeout, draft.attempts, draft.refinements"),
        ("draft.modle", "draft.with.KEY, or draft.model, draft.timeout, draft.attempts, draft.refinements"),
        ("draft.model.x", "draft.with.KEY, or draft.model, draft.timeout, draft.attempts, draft.refinements"),
        ("write.model", "known: check, draft, plan, review, revise, seed"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_the_nearest_key(path: str, hint: str) -> None:
    """A new key would be read by nobody."""
    with pytest.raises(UnknownPath) as caught:
        apply_set(SEED, DOCUMENT, {path: 1})
    assert caught.value.hint == hint


def test_a_value_that_is_no_json_is_a_text() -> None:
    """So that nobody has to quote twice."""
    given = ("seed.a=1", 'seed.b="1"', "seed.c=two words", "seed.d=", "seed.e=a=b", "draft.timeout=5m")
    assert list(read_sets(given).values()) == [1, "1", "two words", "", "a=b", "5m"]
    for wrong in [("seed.a",), ("=1",), ("seed.a=1", "seed.a=2")]:
        with pytest.raises(Exception, match="set"):
            read_sets(wrong)


# -- what is journaled -------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pipeline-tasks").mkdir()
    return tmp_path


@pytest.fixture
def run_dir(root: Path) -> Path:
    (root / "pipeline-tasks" / "plan.md").write_text("Plan.")
    (root / "pipeline-tasks" / "write.md").write_text("Write.")
    folder = root / "pipeline-current" / "20261121-031502-x-abcd"
    (folder / "tasks").mkdir(parents=True)
    (folder / "seed.json").write_text('{"data": {"topic": "tides"}, "name": "x"}')
    steps = ["plan", {"task": "write", "name": "draft", "with": {"tone": "dry"}}]
    (folder / "pipeline.json").write_text(json.dumps({"tasks": steps}))
    (folder / "events.jsonl").write_text('{"event": "run.created", "run_id": "x"}\n')
    return folder


def event_of(root: Path, run_dir: Path, history: RunHistory, **order: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    of = load_pipeline((run_dir / "pipeline.json").read_bytes(), where="pipeline.json", name="default")
    return rerun_event(Root(root), run_dir, of, history, order)


def test_the_event_names_the_changed_documents_by_their_hash(root: Path, run_dir: Path) -> None:
    """The files stand first, the originals stay, and the next re-run goes on from them."""
    sets = {"seed.topic": "moon", "draft.with.tone": "warm"}
    event, files = event_of(root, run_dir, done("plan", "draft"), **{"from": ["draft"], "set": sets, "by": "ann"})
    assert event["from"] == ["draft"] and event["by"] == "ann" and event["instances"] == ["draft"]
    assert event["seed"]["path"] == "seed.rerun-1.json"
    assert event["seed"]["sha256"] == hashlib.sha256(files["seed.rerun-1.json"]).hexdigest()
    assert json.loads(files["seed.rerun-1.json"]) == {"data": {"topic": "moon"}, "name": "x"}
    assert json.loads(files["pipeline.rerun-1.json"])["tasks"][1]["with"] == {"tone": "warm"}
    assert set(json.loads(files["provenance.rerun-1.json"])["tasks"]) == {"plan", "write"}
    for name, data in files.items():
        (run_dir / name).write_bytes(data)
    with open(run_dir / "events.jsonl", "a") as journal:
        journal.write(json.dumps(event) + "\n" + '{"event": "run.rerun", "torn')
    assert documents_of(run_dir).seed == "seed.rerun-1.json" and documents_of(run_dir).reruns == 1
    event, files = event_of(root, run_dir, done("plan", "draft"), **{"from": "plan", "set": {"seed.topic": 3}})
    assert json.loads(files["seed.rerun-2.json"])["data"] == {"topic": 3}
    assert event["pipeline"] is None


def test_a_replay_asks_as_the_newest_attempt_asked(root: Path, run_dir: Path) -> None:
    """Recorded answers are known by the generation and the words of that attempt."""
    (run_dir / "tasks" / "plan").mkdir()
    (run_dir / "tasks" / "plan" / "letter.json").write_text('{"generation": 3, "problems": ["too long"]}')
    event, _ = event_of(root, run_dir, done("plan", "draft"), **{"from": ["plan:parse"]})
    assert event["replay"] == ["plan"] and event["asked"]["plan"] == {
        "generation": 3,
        "problems": ["too long"],
        "model": None,
    }


def test_what_failed_elsewhere_gets_fresh_attempts_too(root: Path, run_dir: Path) -> None:
    """Else the run would end again at once."""
    history = done("plan", "draft")
    history.instances["draft"].state = "failed"
    (run_dir / "pipeline.json").write_text('{"tasks": [{"parallel": ["plan", {"task": "write", "name": "draft"}]}]}')
    event, _ = event_of(root, run_dir, history, **{"from": ["plan"]})
    assert event["instances"] == ["plan"] and event["reset"] == ["draft"]


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"from": []},
        {"from": [1]},
        {"from": {"a": 1}},
        {"from": ["plan"], "set": [1]},
        {"from": ["plan"], "models": {"*": 1}},
        {"from": ["plan:parse"], "models": {"*": "large"}},
    ],
)
def test_an_order_that_cannot_be_meant_is_refused(root: Path, run_dir: Path, order: dict[str, Any]) -> None:
    """A person may have written it."""
    with pytest.raises(RerunRefused):
        event_of(root, run_dir, done("plan"), **order)


def test_a_run_at_work_and_a_complete_one_are_refused(root: Path, run_dir: Path) -> None:
    """The one is to be paused, of the other a new run is made."""
    for state, word in (("running", "pause"), ("complete", "--fork")):
        history = done("plan")
        history.state = state
        with pytest.raises(RerunRefused) as caught:
            event_of(root, run_dir, history, **{"from": ["plan"]})
        assert word in str(caught.value.hint)


def test_a_setting_that_makes_no_pipeline_is_refused(root: Path, run_dir: Path) -> None:
    """It is the command line that is wrong, and the setting at fault is named."""
    for path, value, text in [("plan.attempts", 0, "0"), ("plan.timeout", "9x", "9x")]:
        with pytest.raises(UsageError) as caught:
            event_of(root, run_dir, done("plan"), **{"from": ["plan"], "set": {"plan.model": "large", path: value}})
        assert (caught.value.where, caught.value.exit_code) == (f"--set {path}={text}", 2)
        assert "must be" in caught.value.message


# -- tasks that changed ------------------------------------------------------------------------------------------------


def test_a_run_whose_tasks_changed_says_so(root: Path, run_dir: Path) -> None:
    """Which task and which files; and what a re-run went on with is no change any more."""
    event, files = event_of(root, run_dir, done("plan"), **{"from": ["plan"]})
    (run_dir / "provenance.json").write_bytes(files["provenance.rerun-1.json"])
    assert changed_tasks(Root(root), run_dir) == []
    (root / "pipeline-tasks" / "plan.md").write_text("Plan well.")
    (root / "pipeline-tasks" / "plan.py").write_text("def parse(text, ctx): return text\n")
    (root / "pipeline-tasks" / "_shared.py").write_text("x = 1\n")
    (root / "pipeline-tasks" / "write.md").unlink()
    assert changed_tasks(Root(root), run_dir) == [
        "task 'plan' changed since this run began: plan.md, plan.py is new",
        "task 'write' changed since this run began: write.md is gone",
        "modules beside the tasks changed since this run began: _shared.py is new",
    ]
    event, files = event_of(root, run_dir, done("plan"), **{"from": ["plan"]})
    (run_dir / "provenance.rerun-1.json").write_bytes(files["provenance.rerun-1.json"])
    with open(run_dir / "events.jsonl", "a") as journal:
        journal.write(json.dumps(event) + "\n")
    assert changed_tasks(Root(root), run_dir) == []


def test_a_run_without_provenance_says_nothing(root: Path, run_dir: Path) -> None:
    """It is of an older version, or somebody removed the file."""
    assert changed_tasks(Root(root), run_dir) == []
