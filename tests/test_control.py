"""What a task orders about the rest of its run: collected in the worker, checked and worked in by the supervisor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop.control import MAX_ADDED, Addition, Checked, ControlRefused, check, extended
from pop.control_orders import Control
from pop.errors import AttemptFailed
from pop.history import Instance, RunHistory
from pop.pipeline import Pipeline
from tests.test_runner import Run, run  # noqa: F401 - the fixture

TASKS = ["a", "b", "c", "d", "x", "y", "z"]


def document(*tasks: Any) -> bytes:
    return json.dumps({"tasks": tasks}).encode()


def with_added(data: bytes, *added: tuple[str, list[Any]]) -> Pipeline:
    numbered = [Addition(after, steps, number) for number, (after, steps) in enumerate(added)]
    return extended(data, numbered, where="pipeline.json", name="default", known_tasks=TASKS)


def ask(data: bytes, orders: Any, *, by: str = "a", history: RunHistory | None = None, before: Any = ()) -> Checked:
    given = orders if isinstance(orders, bytes) else json.dumps(orders).encode()
    return check(data, before, history or RunHistory(), by, given, name="default", known_tasks=TASKS)


# -- in the worker ---------------------------------------------------------------------------------------------------


def test_orders_are_left_beside_the_output(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """control.json stands in the attempt's folder when the attempt has succeeded."""
    code = (
        "def infer(prompt, ctx):\n"
        "    ctx.control.add('x', {'task': 'y', 'when': 'inputs.x.ok'})\n"
        "    ctx.control.skip('b', ' not needed ')\n"
        "    ctx.control.pause('look at it')\n"
        "    return 1\n"
    )
    run({"t.py": code})
    assert json.loads((tmp_path / "attempt" / "control.json").read_bytes()) == {
        "add": ["x", {"task": "y", "when": "inputs.x.ok"}],
        "skip": {"b": "not needed"},
        "pause": "look at it",
    }


def test_a_step_without_orders_leaves_none(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """Nor does one that fails after it gave some."""
    run({"t.py": "def infer(prompt, ctx):\n    return 1\n"})
    assert not (tmp_path / "attempt" / "control.json").exists()
    code = "def infer(prompt, ctx):\n    ctx.control.pause('x')\n    return 1\ndef validate_quality(output, ctx):\n"
    code += "    from pop.stages import Problem\n    return [Problem('bad', fatal=True)]\n"
    with pytest.raises(AttemptFailed):
        run({"t.py": code})
    assert not (tmp_path / "attempt" / "control.json").exists()


@pytest.mark.parametrize("step", [3, None, {"task": object()}, {"task": {1}}])
def test_a_step_that_is_none_is_a_mistake_of_the_task(step: Any) -> None:
    """It fails where it was written, with a traceback."""
    control = Control()
    with pytest.raises(TypeError):
        control.add("x", step)
    assert not control


def test_a_reason_is_asked_for() -> None:
    """Whoever reads the run wants to know why."""
    with pytest.raises(ValueError, match="say why"):
        Control().skip("b", " ")
    with pytest.raises(ValueError, match="say why"):
        Control().pause("")


# -- added steps -----------------------------------------------------------------------------------------------------


def test_added_steps_stand_behind_the_one_that_ordered_them() -> None:
    """And before the next, which waits for them."""
    pipeline = with_added(document("a", "b", "c"), ("a", ["x", "y"]))
    assert list(pipeline.steps) == ["a", "x", "y", "b", "c"]
    assert pipeline.ancestors("b") == {"a", "x", "y"}


def test_added_steps_stand_behind_a_whole_block() -> None:
    """Of an each or a parallel that holds the ordering step."""
    data = document("a", {"each": "inputs.a", "do": ["b", "c"]}, "d")
    pipeline = with_added(data, ("b", ["x"]))
    assert pipeline.ancestors("x") == {"a", "b", "c"}
    assert "x" in pipeline.ancestors("d")


def test_several_additions_stand_in_the_order_they_came() -> None:
    """Also when an added step adds further ones."""
    data = document("a", "b")
    pipeline = with_added(data, ("a", ["x"]), ("x", ["z"]), ("a", ["y"]))
    assert list(pipeline.steps) == ["a", "x", "z", "y", "b"]


def test_all_words_of_the_language_can_be_added() -> None:
    """Blocks, conditions and needs."""
    steps = [{"parallel": ["x", "y"]}, {"each": "inputs.x", "do": {"task": "z", "when": "item.ok"}}]
    pipeline = with_added(document("a", "b"), ("a", steps))
    assert pipeline.ancestors("z") == {"a", "x", "y"}


def test_blocks_without_a_name_keep_theirs() -> None:
    """The journal knows decisions about them by their place in the frozen file."""
    data = document("a", {"parallel": ["b"], "when": "seed.x"}, {"each": "inputs.a", "do": ["c", "d"]})
    frozen = with_added(data)
    pipeline = with_added(data, ("a", [{"each": "inputs.a", "do": {"do": ["x", "y"]}}, "z"]))
    assert frozen.blocks.keys() <= pipeline.blocks.keys()
    assert {"added[0]", "added[0].do[0]", "added[0].do[0].do"} <= pipeline.blocks.keys()
    assert len(set(pipeline.blocks)) == len(pipeline.blocks)


_STEP = st.sampled_from(["a", "b", "c", "d"])


@given(st.lists(st.tuples(_STEP, st.integers(1, 3)), max_size=6))
def test_the_frozen_steps_keep_their_order_whatever_is_added(orders: list[tuple[str, int]]) -> None:
    """Every frozen block has its name, and waits at least for what it waited for."""
    data = document("a", {"parallel": ["b", "c"]}, {"each": "seed.x", "do": ["d"]})
    added, count = [], 0
    for after, many in orders:
        added.append((after, [{"task": "x", "name": f"n{count + n}"} for n in range(many)]))
        count += many
    frozen, pipeline = with_added(data), with_added(data, *added)
    assert [name for name in pipeline.blocks if name in frozen.blocks] == list(frozen.blocks)
    assert all(frozen.ancestors(name) <= pipeline.ancestors(name) for name in frozen.steps)
    assert len(pipeline.steps) == len(frozen.steps) + count


def test_an_addition_keeps_the_names_of_its_blocks_when_another_is_withdrawn() -> None:
    """The journal knows decisions about them by these."""
    two = [Addition("a", ["x"], 0), Addition("b", [{"each": "inputs.b", "do": "y"}], 1)]
    whole, left = (
        extended(document("a", "b"), added, where="pipeline.json", name="default", known_tasks=TASKS)
        for added in (two, two[1:])
    )
    assert set(whole.blocks) - set(left.blocks) == {"added[0]", "x"} and "added[1].do[0]" in left.blocks
    assert ask(document("a", "b"), {"add": ["z"]}, before=two[1:]).added == ["z"]


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orders", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "has not the form"),
        ({"jump": "c"}, "has not the form"),
        ({"add": ["nosuch"]}, "no task 'nosuch'"),
        ({"add": ["b"]}, "name 'b' is taken"),
        ({"add": [{"task": "x", "needs": ["nosuch"]}]}, "no step 'nosuch'"),
        ({"add": [{"task": "x", "needs": ["b"]}]}, "wait for each other"),
        ({"add": [{"task": "x", "when": "inputs.b.ok"}]}, "does not come before"),
        ({"add": [{"task": "x", "attempts": 0}]}, "whole number"),
        ({"add": [{"task": "x", "name": f"n{n}"} for n in range(MAX_ADDED + 1)]}, "too many"),
        ({"skip": {"nosuch": "r"}}, "unknown step"),
        ({"skip": {"a": "r"}}, "has begun"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_out_is_refused_whole(orders: Any, says: str) -> None:
    """With its reason; what else was ordered with it is not done either."""
    history = RunHistory(instances={"a": Instance("running")})
    with pytest.raises(ControlRefused, match=says):
        ask(document("a", "b", "c"), orders, history=history)
    if isinstance(orders, dict):
        with pytest.raises(ControlRefused, match=says):
            ask(document("a", "b", "c"), {"skip": {"c": "r"}, **orders, "pause": "p"} | orders, history=history)


def test_the_bound_counts_what_was_added_before() -> None:
    """By all tasks of the run together."""
    before = [Addition("a", [{"task": "x", "name": f"n{n}"} for n in range(MAX_ADDED)], 0)]
    data = document("a", "b")
    assert ask(data, {"pause": "p"}, before=before) == Checked(pause="p")
    with pytest.raises(ControlRefused, match=f"{MAX_ADDED + 1} steps"):
        ask(data, {"add": ["y"]}, before=before)


def test_a_step_added_before_can_be_skipped() -> None:
    """As long as it has not begun."""
    before = [Addition("a", ["x"], 0)]
    assert ask(document("a"), {"skip": {"x": "r"}}, before=before).skips == {"x": "r"}


def test_what_is_taken_reads_as_it_is_journaled() -> None:
    """`step.done` carries it."""
    taken = ask(document("a", "b"), {"add": ["x"], "skip": {"b": "r"}, "pause": "p"})
    assert taken.to_json() == {"add": ["x"], "skip": {"b": "r"}, "pause": "p"}
