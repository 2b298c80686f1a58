"""Re-runs and forks of runs with gates, loops, items and added steps, with a real daemon."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.living import LivingRoot
from tests.test_cli import pop
from tests.test_flow import journal

Make = Callable[..., LivingRoot]

# Tells which attempt of which run made it, and what it saw.
ECHO = """
def infer(prompt, ctx):
    told = {'run': ctx.run_id, 'attempt': ctx.attempt, 'lap': ctx.lap, 'item': ctx.item}
    return {**told, 'saw': sorted(ctx.inputs), 'changes': list(ctx.letter.changes)}
"""
ORDERS = """
def infer(prompt, ctx):
    for order in ctx.seed[ctx.step]:
        getattr(ctx.control, order[0])(*order[1:])
    return {'attempt': ctx.attempt, 'run': ctx.run_id}
"""
STOP = "def infer(prompt, ctx):\n    if ctx.seed['stop']: raise ValueError('stop')\n    return sorted(ctx.inputs)\n"
SCORE = "def infer(prompt, ctx):\n    return {'run': ctx.run_id, 'score': ctx.seed['scores'][ctx.lap - 1], 'lap': ctx.lap}\n"
TASKS = {"echo.py": ECHO, "orders.py": ORDERS, "stop.py": STOP, "score.py": SCORE}


def echo(name: str, **more: Any) -> dict[str, Any]:
    return {"task": "echo", "name": name, **more}


def living_with(make_living: Make, *steps: Any, settings: str = "") -> LivingRoot:
    about = "[worker]\nattempts = 1\n[seeds]\nsettle_s = 0.1\n" + settings
    living = make_living(pipeline={"tasks": list(steps)}, tasks=TASKS, settings=about)
    living.up()
    return living


def rerun(living: LivingRoot, *arguments: str, run: str = "last") -> dict[str, Any]:
    result = pop("rerun", run, *arguments, "--json", root=living.path)
    assert result.returncode == 0, result.stdout + result.stderr
    row: dict[str, Any] = json.loads(result.stdout)
    return row


def said(living: LivingRoot, *words: str) -> None:
    result = pop(*words, root=living.path)
    assert result.returncode == 0, result.stdout + result.stderr


def made_by(living: LivingRoot, record: dict[str, Any], *instances: str) -> dict[str, str]:
    """In which run each instance was made: "old" where it was taken over."""
    found = {name: living.output(record, name)["run"] for name in instances}
    return {name: "new" if run == record["run_id"] else "old" for name, run in found.items()}


def folder_of(living: LivingRoot, record: dict[str, Any]) -> Path:
    return living.path / str(record["path"])


# -- orders of tasks ---------------------------------------------------------------------------------------------------

MORE = {"add": [["add", {"task": "orders", "name": "second"}], ["skip", "beside", "no use"]]}
CHAIN = {"first": [*MORE["add"]], "second": [["add", echo("third")]], "scores": [], "stop": True}


def test_a_rerun_withdraws_what_the_step_had_ordered(make_living: Make) -> None:
    """It orders the same once more, and other steps than before where the seed says so."""
    steps = [{"task": "orders", "name": "first"}, echo("beside"), "stop"]
    living = living_with(make_living, *steps)
    living.drop("a.json", CHAIN)
    living.wait_state("failed")
    row = rerun(living, "--from", "first")
    assert set(row["stale"]) == {"first", "second", "third", "beside", "stop"}
    (run_dir,) = living.current()
    living.wait(lambda: len(journal(run_dir, "run.failed")) == 2, "the second failure")
    status = living.status()
    assert status["tasks"]["third"]["state"] == "done" and status["tasks"]["beside"]["state"] == "skipped"
    first = json.dumps([["add", echo("other")]])
    rerun(living, "--from", "first", "--set", f"seed.first={first}", "--set", "seed.stop=false")
    (record,) = living.wait_complete(1)
    assert living.output(record, "stop") == ["beside", "first", "other"]
    assert living.output(record, "first")["attempt"] == 3 and "second" not in record["outputs"]


def test_an_added_step_is_taken_up_again_without_the_one_that_ordered_it(make_living: Make) -> None:
    """What it added itself is withdrawn, what added it holds; also after a restart."""
    living = living_with(make_living, {"task": "orders", "name": "first"}, echo("beside"), "stop")
    living.drop("a.json", CHAIN)
    living.wait_state("failed")
    living.stop(living.daemons[-1])
    row = rerun(living, "--from", "second", "--set", "seed.stop=false")
    assert row["stale"][0] == "second" and "first" not in row["stale"]
    living.up()
    (record,) = living.wait_complete(1)
    assert living.output(record, "first")["attempt"] == 1 and living.output(record, "second")["attempt"] == 2
    assert living.output(record, "stop") == ["first", "second", "third"]


def test_changes_at_a_gate_withdraw_what_the_step_had_ordered(make_living: Make) -> None:
    """The run goes on without the added step until it is ordered again."""
    steps = [{"task": "orders", "name": "first"}, {"approve": "look", "show": ["first"]}, "stop"]
    living = living_with(make_living, *steps)
    living.drop("a.json", {"first": [["add", echo("more")]], "stop": False})
    living.wait_state("waiting")
    said(living, "request-changes", "last", "look", "-m", "once more")
    (run_dir,) = living.current()
    living.wait(lambda: len(journal(run_dir, "gate.opened")) == 2, "the gate to open again")
    said(living, "approve", "last")
    (record,) = living.wait_complete(1)
    assert living.output(record, "stop") == ["first", "look", "more"]


@pytest.mark.parametrize("from_", ["first", "third", "stop"])
def test_a_fork_of_a_run_with_added_steps(make_living: Make, from_: str) -> None:
    """Orders of what is kept are kept with it; a fork of the fork as well."""
    living = living_with(make_living, {"task": "orders", "name": "first"}, echo("beside"), "stop")
    living.drop("a.json", {**CHAIN, "stop": False})
    (first,) = living.wait_complete(1)
    rerun(living, "--from", from_, run=first["run_id"])
    *_, second = living.wait_complete(2)
    rerun(living, "--from", "stop", run=second["run_id"])
    *_, third = living.wait_complete(3)
    for record in (second, third):
        assert living.output(record, "stop") == ["first", "second", "third"]
    kept = {"first": "", "third": "first second", "stop": "first second third"}[from_].split()
    found = made_by(living, second, "first", "second", "third")
    assert {name for name, where in found.items() if where == "old"} == set(kept)
    assert set(made_by(living, third, "first", "second", "third").values()) == {"old"}


# -- forks: gates ------------------------------------------------------------------------------------------------------


def test_a_fork_keeps_answered_gates_with_their_files(make_living: Make) -> None:
    """What was shown, asked, answered and edited, of every opening; and of a fork of the fork."""
    steps = [echo("made"), {"approve": "look", "text": "Is it good?"}, echo("next"), {"approve": "again"}, echo("last")]
    living = living_with(make_living, *steps)
    living.drop("a.json", {"x": 1})
    living.wait_state("waiting")
    (run_dir,) = living.current()
    folder = run_dir / "tasks" / "look"
    said(living, "request-changes", "last", "look", "-m", "shorter")
    living.wait(lambda: len(journal(run_dir, "gate.opened")) == 2, "the gate to open again")
    shown = folder / "show" / "made.json"
    shown.write_text(json.dumps({**json.loads(shown.read_text()), "edited": True}))
    (folder / "APPROVE").write_text("after a look")
    living.wait(lambda: (run_dir / "tasks" / "again" / "gate.json").exists(), "the second gate")
    said(living, "approve", "last", "again")
    (first,) = living.wait_complete(1)
    rerun(living, "--from", "last", run=first["run_id"])
    *_, second = living.wait_complete(2)
    rerun(living, "--from", "next", run=second["run_id"])
    living.wait_state("waiting")
    said(living, "approve", "last", "again")
    *_, third = living.wait_complete(3)
    before = files_in(folder_of(living, first) / "tasks" / "look")
    assert {"gate.json", "request.md", "APPROVE", "decision.json", "edits.json", "edits.diff"} <= set(before)
    for record in (second, third):
        assert files_in(folder_of(living, record) / "tasks" / "look") == before
        assert living.output(record, "made")["edited"] and living.output(record, "look")["text"] == "after a look"
        assert made_by(living, record, "made") == {"made": "old"}
    before = files_in(folder_of(living, first) / "tasks" / "made")
    kept = {name: data for name, data in before.items() if name.startswith("output")}
    assert len(kept) == 2 and files_in(folder_of(living, second) / "tasks" / "made") == kept


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
