"""What somebody new is told about runs that wait, rest, go round or were answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from pop.cli import pop as pop_group
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]
TASKS = {
    "one.py": "def infer(prompt, ctx):\n    return {'n': 1}\n",
    "count.py": "def infer(prompt, ctx):\n    return {'score': ctx.lap}\n",
    "rest.py": "def infer(prompt, ctx):\n    ctx.control.pause('have a look first')\n    return 1\n",
    "lost.py": "def infer(prompt, ctx):\n    ctx.control.add({'task': 'nowhere'})\n    return 1\n",
    "bug.py": "def infer(prompt, ctx):\n    raise KeyError('mine')\n",
}
GATE = ["one", {"approve": "fine", "text": "Is it?"}, {"task": "one", "name": "two"}]


def pop(living: LivingRoot, *arguments: str) -> str:
    return CliRunner().invoke(pop_group, ["--root", str(living.path), *arguments], obj={}).stdout


def at_rest(make_living: Make, tasks: list[Any], state: str, **about: Any) -> tuple[LivingRoot, Path]:
    """A daemon with one run that has come to this state."""
    living = make_living(pipeline={"tasks": tasks, **about}, tasks=TASKS)
    living.drop("a.json", {"n": 1})
    living.up()
    living.wait(living.current, "a run")
    living.wait_state(state)
    return living, living.current()[0]


def test_show_tells_who_answered_a_gate_and_in_which_words(make_living: Make) -> None:
    living, _ = at_rest(make_living, GATE, "waiting")
    pop(living, "approve", "last", "-m", "well done")
    living.wait_complete(1)
    assert "(command): well done" in pop(living, "show", "last")


def test_the_words_that_gave_a_failed_step_up_are_shown(make_living: Make) -> None:
    living, _ = at_rest(make_living, [{"task": "bug", "recover": {"bug": "ask"}}], "waiting")
    pop(living, "reject", "last", "-m", "give it up")
    living.wait_state("failed")
    assert "reject by" in (said := pop(living, "show", "last")) and "give it up" in said


def test_an_answer_that_waits_for_a_daemon_is_not_asked_for_again(make_living: Make) -> None:
    living, run_dir = at_rest(make_living, GATE, "waiting")
    living.stop(living.daemons[0])
    assert "no daemon is running here" in pop(living, "show", "last")
    pop(living, "approve", "last")
    said = pop(living, "show", "last")
    assert "answered   fine: approve by" in said and "with the next pop up" in said
    assert f"pop approve {run_dir.name}" not in said


def test_what_looks_like_an_answer_and_is_none_is_told(make_living: Make) -> None:
    living, run_dir = at_rest(make_living, GATE, "waiting")
    (run_dir / "tasks" / "fine" / "approved").touch()
    living.wait(lambda: "rename it to APPROVE" in pop(living, "show", "last"), "the problem")


def test_watch_goes_on_where_the_answer_was_just_given(make_living: Make) -> None:
    """`pop approve last; pop watch last` does not ask for the answer once more."""
    living, run_dir = at_rest(make_living, GATE, "waiting")
    assert "answer     pop approve" in pop(living, "watch", "last")  # nobody has answered yet
    (run_dir / "tasks" / "fine" / "APPROVE").touch()
    assert "✓ complete" in pop(living, "watch", "last")


def test_a_rejected_gate_is_not_looked_for_among_attempts(make_living: Make) -> None:
    living, run_dir = at_rest(make_living, GATE, "waiting")
    pop(living, "reject", "last")
    living.wait_state("failed")
    said = pop(living, "show", "last")
    assert f"look at    pipeline-current/{run_dir.name}/tasks/fine/\n" in said


def test_why_a_run_rests_is_told(make_living: Make) -> None:
    living, run_dir = at_rest(make_living, ["rest", "one"], "paused")
    for arguments in (["show", "last"], ["ls"], ["watch", "--once"]):
        assert "by step rest: have a look first" in pop(living, *arguments)
    living.stop(living.daemons[0])
    event = {"at": "2026-11-21T10:00:00.000Z", "event": "run.paused", "by": "uid 0", "reason": "lunch"}
    with open(run_dir / "events.jsonl", "a") as journal:
        journal.write(json.dumps(event) + "\n")
    assert "paused     by root: lunch" in pop(living, "show", "last")


def test_watch_without_a_run_tells_what_each_waits_for(make_living: Make) -> None:
    living, _ = at_rest(make_living, GATE, "waiting")
    assert "waiting  for an answer: fine" in pop(living, "watch", "--once")
    assert json.loads(pop(living, "watch", "--once", "--json"))["waiting_for"] == "fine"


def test_show_tells_what_each_lap_came_to(make_living: Make) -> None:
    """As the hint of a loop that failed promises."""
    loop = {"repeat": "count", "until": "inputs.count.score > 9", "at_most": 2, "name": "up"}
    living, _ = at_rest(make_living, [{**loop, "score": "inputs.count.score"}], "failed")
    said = pop(living, "show", "last")
    assert "up   again       lap 1   score 1.0" in said and "up   failed      lap 2   score 2.0" in said


def test_show_tells_of_a_fork_where_it_came_from(make_living: Make) -> None:
    living = make_living(pipeline={"tasks": ["one", {"task": "one", "name": "two"}]}, tasks=TASKS)
    living.drop("a.json", {"n": 1})
    living.up()
    parent = living.wait_complete(1)[0]["run_id"]
    pop(living, "rerun", "last", "--from", "two")
    fork = living.wait_complete(2)[1]["run_id"]
    assert f"forked from {parent} at two" in pop(living, "show", fork)
    assert "forked from" not in pop(living, "show", parent)


def test_the_page_of_a_refused_order_is_for_people(make_living: Make) -> None:
    _, run_dir = at_rest(make_living, ["lost", "one"], "waiting")
    page = (run_dir / "tasks" / "lost+control" / "request.md").read_text()
    assert "bad_input: the added steps do not fit: no task 'nowhere'" in page
    assert "{'error_class'" not in page
