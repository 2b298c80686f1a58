"""The published workflow patterns, each as a scenario on a real daemon, named and numbered as its authors do.

Source: van der Aalst, ter Hofstede, Kiepuszewski, Barros, "Workflow Patterns", Distributed and Parallel Databases 14, 2003;
Russell, ter Hofstede, van der Aalst, Mulyar, "Workflow Control-Flow Patterns: A Revised View", BPM Center Report BPM-06-22.
What POP has no word for stands in docs/pipelines.md, under "Patterns".
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.living import LivingRoot, living_root

# One task for all: it gives what its step's `with` says, else tells what it saw; `sleep`, `order` and `fail` do what they say.
DO = """
import time

def infer(prompt, ctx):
    config = ctx.config
    time.sleep(config.get("sleep", 0))
    for step in config.get("add", []):
        ctx.control.add(step)
    for step in config.get("skip", []):
        ctx.control.skip(step, "as ordered")
    if config.get("pause"):
        ctx.control.pause("as ordered")
    if "by_lap" in config:
        return config["by_lap"][ctx.lap - 1]
    if "recurse" in config and config["recurse"] > 0:
        deeper = config["recurse"] - 1
        ctx.control.add({"task": "do", "name": f"level-{deeper}", "with": {"recurse": deeper}})
    if "gives" in config:
        return config["gives"]
    saw = {name: ctx.inputs[name] for name in ctx.inputs}
    return {"step": ctx.step, "item": ctx.item, "lap": ctx.lap, "saw": sorted(n for n, v in saw.items() if v is not None)}
"""


def do(name: str, **about: Any) -> dict[str, Any]:
    """A step; `with_` is its `with`."""
    with_ = about.pop("with_", {})
    return {"task": "do", "name": name, **({"with": with_} if with_ else {}), **about}


class Played:
    """A run and what its journal tells."""

    def __init__(self, living: LivingRoot) -> None:
        self.living = living

    @property
    def run_dir(self) -> Path:
        done = [path for path in self.living.root.complete.iterdir() if (path / "record.json").exists()]
        return done[0] if done else self.living.current()[0]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_dir / "events.jsonl").read_bytes().splitlines()]

    def place(self, event: str, instance: str) -> int:
        """Where in the journal it stands first."""
        return next(n for n, row in enumerate(self.events) if row["event"] == event and row.get("instance") == instance)

    def starts(self) -> list[str]:
        return [row["instance"] for row in self.events if row["event"] == "step.started"]

    def in_order(self, *instances: str) -> bool:
        """Whether each began after the one before was done."""
        pairs = itertools.pairwise(instances)
        return all(self.place("step.done", one) < self.place("step.started", two) for one, two in pairs)

    def side_by_side(self, one: str, two: str) -> bool:
        """Whether both had begun before either was done."""
        begun = max(self.place("step.started", one), self.place("step.started", two))
        return begun < min(self.place("step.done", one), self.place("step.done", two))

    def states(self) -> dict[str, str]:
        status = json.loads((self.run_dir / "tasks-status.json").read_bytes())
        return {name: task["state"] for name, task in status["tasks"].items()}

    def output(self, instance: str) -> Any:
        return json.loads((self.run_dir / "tasks" / instance / "output.json").read_bytes())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Any]:
    """Starts a run of these steps on a daemon of its own."""
    opened: list[Any] = []

    def start(*steps: Any, seed: Any = None, **top: Any) -> Played:
        context = living_root(tmp_path, pipeline={"tasks": list(steps), **top}, tasks={"do.py": DO})
        living = context.__enter__()
        opened.append(context)
        living.drop("s.json", {"data": seed if seed is not None else {"x": 1}})
        living.up()
        return Played(living)

    yield start
    for context in opened:
        context.__exit__(None, None, None)


@pytest.fixture
def play(folder: Any) -> Any:
    """Runs these steps to their end."""

    def go(*steps: Any, **about: Any) -> Played:
        played: Played = folder(*steps, **about)
        played.living.wait_complete(1)
        return played

    return go


# -- basic control flow ----------------------------------------------------------------------------------------------


def test_wcp_1_sequence(play: Any) -> None:
    """Steps run in the order they stand."""
    assert play(do("a"), do("b"), do("c")).in_order("a", "b", "c")


def test_wcp_2_parallel_split(play: Any) -> None:
    """After one step, two at once."""
    run = play(do("a"), {"parallel": [do("b", with_={"sleep": 0.5}), do("c", with_={"sleep": 0.5})]})
    assert run.in_order("a", "b") and run.in_order("a", "c") and run.side_by_side("b", "c")


def test_wcp_3_synchronization(play: Any) -> None:
    """The step after a parallel block waits for all in it, and sees their outputs."""
    run = play({"parallel": [do("a", with_={"sleep": 0.3}), do("b")]}, do("c"))
    assert run.in_order("a", "c") and run.in_order("b", "c")
    assert run.output("c")["saw"] == ["a", "b"]


def test_wcp_4_exclusive_choice(play: Any) -> None:
    """One of two branches runs, by a condition."""
    run = play(do("a", with_={"gives": {"n": 3}}), do("b", when="inputs.a.n > 2"), do("c", when="inputs.a.n <= 2"))
    assert run.states() == {"a": "done", "b": "done", "c": "skipped"}


def test_wcp_5_simple_merge(play: Any) -> None:
    """What comes after a choice runs once, whichever branch was taken."""
    run = play(do("a", when="seed.x == 1"), do("b", when="seed.x != 1"), do("c"))
    assert run.starts() == ["a", "c"] and run.output("c")["saw"] == ["a"]


# -- advanced branching and synchronization --------------------------------------------------------------------------


def test_wcp_6_multi_choice(play: Any) -> None:
    """Several of many branches run, each by its own condition."""
    branches = [do(name, when=f"'{name}' in seed.wanted") for name in "abc"]
    run = play({"parallel": branches}, seed={"wanted": ["a", "c"]})
    assert run.states() == {"a": "done", "b": "skipped", "c": "done"}


def test_wcp_7_structured_synchronizing_merge(play: Any) -> None:
    """The step after waits for the branches that were taken, and for no other."""
    branches = [do(name, when=f"'{name}' in seed.wanted", with_={"sleep": 0.2}) for name in "abc"]
    run = play({"parallel": branches}, do("d"), seed={"wanted": ["a", "b"]})
    assert run.in_order("a", "d") and run.in_order("b", "d") and run.output("d")["saw"] == ["a", "b"]


def test_wcp_8_multi_merge(play: Any) -> None:
    """The same step runs once for every branch that reaches it, without waiting for the others."""
    branch = {"each": "seed.branches", "do": [do("branch"), do("after")]}
    run = play(branch, seed={"branches": ["a", "b", "c"]})
    assert sum(name.startswith("after.") for name in run.starts()) == 3
    assert all(run.in_order(f"branch.{n}", f"after.{n}") for n in range(3))


def test_wcp_33_generalized_and_join(play: Any) -> None:
    """A step names what it waits for, wherever that stands."""
    run = play(
        do("a"), do("slow", needs=[], with_={"sleep": 1}), do("b", needs=["a"]), do("c", needs=["a", "b"]), do("d")
    )
    assert run.in_order("a", "b", "c") and run.place("step.done", "c") < run.place("step.done", "slow")
    assert run.in_order("slow", "d")


def test_wcp_37_local_synchronizing_merge(play: Any) -> None:
    """A merge inside one branch looks at that branch alone."""
    inner = {"do": [{"parallel": [do("a"), do("b", when="seed.x == 2")]}, do("c")]}
    run = play({"parallel": [inner, do("slow", with_={"sleep": 1})]}, do("d"))
    assert run.place("step.done", "c") < run.place("step.done", "slow") < run.place("step.started", "d")


def test_wcp_41_thread_merge(play: Any) -> None:
    """All threads of an `each` come together in one step."""
    run = play({"each": "seed.parts", "do": do("part")}, do("all"), seed={"parts": [1, 2, 3]})
    assert all(run.in_order(f"part.{n}", "all") for n in range(3))


def test_wcp_42_thread_split(play: Any) -> None:
    """One thread becomes as many as a list has elements."""
    run = play(do("a", with_={"gives": [7, 8]}), {"each": "inputs.a", "do": do("part")})
    assert [run.output(f"part.{n}")["item"] for n in range(2)] == [7, 8]


# -- structure -------------------------------------------------------------------------------------------------------


def test_wcp_11_implicit_termination(play: Any) -> None:
    """A run ends when nothing is left to do; no last step is needed."""
    run = play(do("a", needs=[]), do("b", needs=[]), do("c", needs=["a"]))
    assert set(run.states().values()) == {"done"}


def test_wcp_43_explicit_termination(play: Any) -> None:
    """A step may order that nothing of the rest runs."""
    run = play(do("a", with_={"skip": ["b", "c"]}), do("b"), do("c"))
    assert run.states() == {"a": "done", "b": "skipped", "c": "skipped"}


def test_wcp_21_structured_loop(play: Any) -> None:
    """Steps run again until a condition holds."""
    marks = [{"score": 3}, {"score": 6}, {"score": 9}]
    run = play(
        {
            "repeat": [do("draft"), do("review", with_={"by_lap": marks})],
            "until": "inputs.review.score >= 8",
            "at_most": 5,
        },
        do("end"),
    )
    assert [name for name in run.starts() if name.startswith("review")] == ["review@1", "review@2", "review@3"]
    assert run.in_order("review@3", "end")
    verdicts = [row["verdict"] for row in run.events if row["event"] == "lap.ended"]
    assert verdicts == ["again", "again", "converged"]


def test_wcp_21_structured_loop_tested_before_its_body(play: Any) -> None:
    """What follows the decision in a lap does not run once the condition holds."""
    marks = [{"ok": False}, {"ok": True}]
    loop = {"repeat": [do("check", with_={"by_lap": marks}), do("mend")], "until": "inputs.check.ok", "at_most": 5}
    run = play(loop)
    assert run.starts() == ["check@1", "mend@1", "check@2"]
    assert run.states()["mend@2"] == "skipped"


def test_wcp_21_loops_in_loops(play: Any) -> None:
    """A loop may stand in a loop."""
    inner = {"repeat": [do("inner")], "until": "lap >= 2", "at_most": 3, "name": "in"}
    run = play({"repeat": [inner, do("outer")], "until": "lap >= 2", "at_most": 3, "name": "out"})
    assert run.starts() == ["inner@1.1", "inner@1.2", "outer@1", "inner@2.1", "inner@2.2", "outer@2"]


def test_wcp_22_recursion(play: Any) -> None:
    """A step may order steps like itself, within a bound."""
    run = play(do("top", with_={"recurse": 3}), do("end"))
    assert run.in_order("top", "level-2", "level-1", "level-0", "end")


# -- several instances -----------------------------------------------------------------------------------------------


def test_wcp_12_multiple_instances_without_synchronization(play: Any) -> None:
    """What does not need them goes on while they run."""
    run = play({"each": "seed.parts", "do": do("part", with_={"sleep": 1})}, do("on", needs=[]), seed={"parts": [1, 2]})
    assert run.place("step.done", "on") < run.place("step.done", "part.0")


def test_wcp_13_multiple_instances_known_at_design_time(play: Any) -> None:
    """The same task several times, side by side."""
    run = play({"parallel": [do(f"n{n}") for n in range(3)]}, do("end"))
    assert all(run.in_order(f"n{n}", "end") for n in range(3))


def test_wcp_14_multiple_instances_known_at_run_time(play: Any) -> None:
    """As many as an earlier step says; none is none."""
    run = play(
        do("a", with_={"gives": [1, 2, 3]}),
        {"each": "inputs.a", "do": do("b")},
        {"each": "seed.none", "do": do("c")},
        seed={"none": []},
    )
    assert sum(name.startswith("b.") for name in run.starts()) == 3
    assert run.states()["c"] == "skipped"


def test_wcp_15_multiple_instances_not_known_before(play: Any) -> None:
    """Further ones are added while they run; what follows waits for all."""
    more = {"each": "inputs.first", "do": do("more")}
    run = play(do("first", with_={"gives": [1, 2], "add": [more]}), do("end"))
    assert run.in_order("more.0", "end") and run.in_order("more.1", "end")


# -- states ----------------------------------------------------------------------------------------------------------


def test_wcp_16_deferred_choice(folder: Any) -> None:
    """The world outside chooses the branch, when it comes to it."""
    run = folder(
        {"approve": "go-on", "on_timeout": "reject", "timeout": "1h"},
        do("a", when="inputs.go_on.decision == 'approve'"),
        do("b", when="inputs.go_on.decision != 'approve'"),
    )
    run.living.wait_state("waiting")
    (run.run_dir / "tasks" / "go-on" / "APPROVE").write_text("go on")
    run.living.wait_complete(1)
    assert run.states() == {"go-on": "done", "a": "done", "b": "skipped"}


def test_wcp_17_interleaved_parallel_routing(play: Any) -> None:
    """In any order, but one at a time."""
    run = play({"parallel": [do(name, with_={"sleep": 0.1}) for name in "abc"]}, concurrency=1)
    order = run.starts()
    assert sorted(order) == ["a", "b", "c"] and run.in_order(*order)


def test_wcp_18_milestone(folder: Any) -> None:
    """A step is open only once a point was reached, here by a person, while others go on."""
    run = folder(
        {"parallel": [do("other"), {"do": [{"approve": "reached"}, do("after")]}]},
    )
    run.living.wait_state("waiting")
    assert run.states()["other"] == "done" and "after" not in run.starts()
    (run.run_dir / "tasks" / "reached" / "APPROVE").touch()
    run.living.wait_complete(1)
    assert "after" in run.starts()


def test_wcp_39_critical_section(play: Any) -> None:
    """Two branches whose steps never run at the same time."""
    branches = [{"do": [do(f"{n}1", with_={"sleep": 0.1}), do(f"{n}2", with_={"sleep": 0.1})]} for n in "ab"]
    run = play({"parallel": branches}, concurrency=1)
    assert run.in_order(*run.starts())


def test_wcp_40_interleaved_routing(play: Any) -> None:
    """All of a set, once each, one at a time, in no order that matters."""
    run = play(*[do(name, needs=[]) for name in "abcd"], concurrency=1)
    assert sorted(run.starts()) == list("abcd") and run.in_order(*run.starts())


# -- cancellation ----------------------------------------------------------------------------------------------------


def test_wcp_19_cancel_task(play: Any) -> None:
    """A step that has not begun is taken back."""
    run = play(do("a", with_={"skip": ["b"]}), do("b"), do("c"))
    assert run.states() == {"a": "done", "b": "skipped", "c": "done"}
    assert run.output("c")["saw"] == ["a"]


def test_wcp_20_cancel_case(folder: Any) -> None:
    """A whole run is ended, its running steps with it."""
    run = folder(do("a", with_={"sleep": 60}), do("b"))
    run.living.wait(lambda: "a" in run.starts(), "the step")
    (run.run_dir / "orders").mkdir(exist_ok=True)
    (run.run_dir / "orders" / "cancel.json").touch()
    run.living.wait_state("cancelled")
    assert run.starts() == ["a"]


def test_wcp_25_cancel_region(play: Any) -> None:
    """Several steps are taken back together; what stands around them runs."""
    region = {"parallel": [do("b"), do("c")]}
    run = play(do("a", with_={"skip": ["b", "c"]}), region, do("d"))
    assert run.states() == {"a": "done", "b": "skipped", "c": "skipped", "d": "done"}


# -- triggers --------------------------------------------------------------------------------------------------------


def test_wcp_24_persistent_trigger(folder: Any) -> None:
    """A sign from outside that comes while the daemon is down counts when it is back."""
    run = folder(do("a"), {"approve": "sign"}, do("b"))
    run.living.wait_state("waiting")
    run.living.stop(run.living.daemons[0])
    draft = run.run_dir / "tasks" / "sign" / ".draft"
    draft.write_text(json.dumps({"decision": "approve", "by": "a system"}))
    os.rename(draft, draft.with_name("decision.json"))
    run.living.up()
    run.living.wait_complete(1)
    assert run.output("sign")["by"] == "a system"
    assert run.in_order("a", "b")


def test_wcp_24_persistent_trigger_by_time(play: Any) -> None:
    """A gate that nobody answers in time goes on, where somebody chose that."""
    run = play({"approve": "sign", "timeout": "1s", "on_timeout": "approve"}, do("b"))
    assert run.output("sign")["how"] == "timeout"


# -- several words together ------------------------------------------------------------------------------------------


def test_a_loop_for_each_item(play: Any) -> None:
    """Items go through their laps independently."""
    loop = {"repeat": [do("try")], "until": "lap >= item", "at_most": 9, "name": "tries"}
    run = play({"each": "seed.laps", "do": loop}, do("end"), seed={"laps": [1, 3]})
    assert sorted(name for name in run.starts() if name.startswith("try")) == [
        "try.0@1",
        "try.1@1",
        "try.1@2",
        "try.1@3",
    ]
    assert run.in_order("try.1@3", "end")


def test_items_in_every_lap(play: Any) -> None:
    """A lap may fan out."""
    each = {"each": "seed.parts", "do": do("part")}
    run = play(
        {"repeat": [each, do("join")], "until": "lap >= 2", "at_most": 2, "name": "twice"}, seed={"parts": [1, 2]}
    )
    assert set(run.starts()) == {"part.0@1", "part.1@1", "join@1", "part.0@2", "part.1@2", "join@2"}
    assert run.in_order("join@1", "part.0@2", "join@2")
