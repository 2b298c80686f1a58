"""Re-runs and forks of runs with gates, loops, items and added steps, with a real daemon."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_openai import FakeOpenAI
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
STOP = "def infer(prompt, ctx):\n    if ctx.seed['stop']: raise ValueError('stop')\n    return sorted(name for name, made in ctx.inputs.items() if made is not None)\n"
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
    (fork,) = living.current()  # `last` may be either of two that were made in the same second
    said(living, "approve", fork.name, "again")
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


@pytest.mark.parametrize(("word", "state"), [("approve", "waiting"), ("reject", "failed")])
def test_a_fork_of_a_run_that_is_not_complete_asks_what_was_open(make_living: Make, word: str, state: str) -> None:
    """At a gate: it opens anew in the fork, also where the answer had been no; the other run stays where it was."""
    living = living_with(make_living, echo("made"), {"approve": "look"}, echo("last"))
    living.drop("a.json", {"x": 1})
    living.wait_state("waiting")
    (old,) = living.current()
    if word == "reject":
        said(living, "reject", "last", "look", "-m", "no")
        living.wait_state("failed")
    rerun(living, "--from", "look", "--fork", run=old.name)
    living.wait(lambda: len(living.current()) == 2, "the fork")
    (new,) = (path for path in living.current() if path != old)
    living.wait_state("waiting", new)
    said(living, "approve", new.name, "look")
    (record,) = living.wait_complete(1)
    assert record["run_id"] == new.name and made_by(living, record, "made", "last") == {"made": "old", "last": "new"}
    assert living.status(old)["state"] == state


def test_what_was_said_to_a_failed_step_or_an_order_is_over_in_a_fork(make_living: Make) -> None:
    """Both gates were answered; the fork knows the outputs only."""
    order = {"task": "orders", "name": "first"}
    asks = {"task": "stop", "name": "asks", "recover": {"bug": ["ask"]}}
    living = living_with(make_living, order, asks, echo("last"))
    living.drop("a.json", {"first": [["add", {"task": "nobody"}]], "stop": True})
    living.wait_state("waiting")
    said(living, "approve", "last", "first+control")
    living.wait(lambda: "asks" in str(living.status().get("waiting_for")), "the second question")
    (run_dir,) = living.current()
    living.task("stop.py", STOP.replace("ctx.seed['stop']", "False"))
    said(living, "approve", "last", "asks")
    (first,) = living.wait_complete(1)
    rerun(living, "--from", "last", run=run_dir.name)
    *_, second = living.wait_complete(2)
    assert second["outputs"]["asks"] == first["outputs"]["asks"] and second["attempts"] == 1
    assert made_by(living, second, "first", "last") == {"first": "old", "last": "new"}


# -- forks: loops and items --------------------------------------------------------------------------------------------

LOOP: dict[str, Any] = {"repeat": ["score", echo("revise")], "name": "loop", "at_most": 5}


@pytest.mark.parametrize(
    ("from_", "old", "new"),
    [
        ("revise@1", ["score@1"], ["revise@1", "score@2"]),
        ("score@2", ["score@1", "revise@1"], ["score@2", "revise@2", "score@3"]),
        ("revise@2", ["score@1", "revise@1", "score@2"], ["revise@2", "score@3"]),
        ("last", ["score@1", "revise@1", "score@2", "revise@2", "score@3"], []),
        ("score", [], ["score@1", "revise@1", "score@2", "revise@2", "score@3"]),
    ],
)
def test_a_fork_begins_in_the_middle_of_a_loop(make_living: Make, from_: str, old: list[str], new: list[str]) -> None:
    """Laps before are kept with their verdicts; and a fork of the fork from the end keeps all."""
    living = living_with(make_living, {**LOOP, "until": "inputs.score.score >= 8"}, echo("last"))
    living.drop("a.json", {"scores": [1, 2, 9]})
    (first,) = living.wait_complete(1)
    rerun(living, "--from", from_, run=first["run_id"])
    *_, second = living.wait_complete(2)
    found = made_by(living, second, *old, *new, "last")
    assert found == {**dict.fromkeys(old, "old"), **dict.fromkeys([*new, "last"], "new")}
    rerun(living, "--from", "last", run=second["run_id"])
    *_, third = living.wait_complete(3)
    laps = [
        [(lap["lap"], lap["verdict"]) for lap in journal(folder_of(living, one), "lap.ended")]
        for one in (second, third)
    ]
    assert laps[0][-1] == laps[1][-1] == (3, "converged") and len(laps[1]) == 3
    assert set(made_by(living, third, *old, *new).values()) <= {"old"}


def test_a_fork_of_a_run_that_failed_in_the_middle_of_a_lap(make_living: Make) -> None:
    """The laps that ended are kept, and what the open one had done."""
    steps = ["score", {"task": "stop", "name": "check", "when": "lap == 2"}, echo("revise")]
    living = living_with(
        make_living, {"repeat": steps, "name": "loop", "at_most": 5, "until": "inputs.score.score >= 8"}
    )
    living.drop("a.json", {"scores": [1, 2, 9], "stop": True})
    living.wait_state("failed")
    (old,) = living.current()
    rerun(living, "--from", "check@2", "--fork", "--set", "seed.stop=false", run=old.name)
    (record,) = living.wait_complete(1)
    assert made_by(living, record, "score@1", "revise@1", "score@2", "revise@2", "score@3") == {
        "score@1": "old", "revise@1": "old", "score@2": "old", "revise@2": "new", "score@3": "new",
    }  # fmt: skip


def test_a_fork_keeps_what_a_person_said_at_the_end_of_a_loop(make_living: Make) -> None:
    """Granted laps are granted in the fork, and its words hold for the laps that it makes."""
    loop = {**LOOP, "at_most": 2, "otherwise": "ask", "until": "inputs.score.score >= 8"}
    living = living_with(make_living, loop, echo("last"))
    living.drop("a.json", {"scores": [1, 2, 3, 9]})
    living.wait_state("waiting")
    said(living, "request-changes", "last", "loop@2", "-m", "try harder")
    (first,) = living.wait_complete(1)
    rerun(living, "--from", "revise@3", run=first["run_id"])
    *_, second = living.wait_complete(2)
    assert made_by(living, second, "revise@2", "score@3", "revise@3", "score@4") == {
        "revise@2": "old", "score@3": "old", "revise@3": "new", "score@4": "new",
    }  # fmt: skip
    assert living.output(second, "revise@3")["changes"] == ["try harder"]


EACH: dict[str, Any] = {"each": "seed.parts", "name": "parts", "do": [echo("draft"), echo("check")]}


def test_a_fork_of_one_item_keeps_the_others(make_living: Make) -> None:
    """And a fork of the fork from another item keeps that one."""
    living = living_with(make_living, EACH, echo("join"))
    living.drop("a.json", {"parts": ["x", "y", "z"]})
    (first,) = living.wait_complete(1)
    rerun(living, "--from", "draft.1", run=first["run_id"])
    *_, second = living.wait_complete(2)
    everything = [f"{step}.{n}" for step in ("draft", "check") for n in range(3)]
    found = made_by(living, second, *everything, "join")
    assert {name for name, where in found.items() if where == "new"} == {"draft.1", "check.1", "join"}
    rerun(living, "--from", "check.2", run=second["run_id"])
    *_, third = living.wait_complete(3)
    found = made_by(living, third, *everything, "join")
    assert {name for name, where in found.items() if where == "new"} == {"check.2", "join"}


def test_a_fork_asks_another_model(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """With -m: in what runs again; the pipeline's own names are told too."""
    url = fake_openai.base_url
    models = "".join(
        f'[models.{name}]\nprovider = "openai"\nmodel = "{name}-1"\nbase_url = "{url}"\n'
        for name in ("default", "large")
    )
    living = living_with(
        make_living, {"task": "say", "name": "first"}, {"task": "say", "name": "second"}, settings=models
    )
    living.task("say.md", "Say something about {{ seed.topic }}.")
    living.drop("a.json", {"topic": "tides"})
    (first,) = living.wait_complete(1)
    asked = fake_openai.total
    rerun(living, "--from", "second", "-m", "large", "--fork", run=first["run_id"])
    *_, second = living.wait_complete(2)
    assert fake_openai.total == asked + 1 and fake_openai.bodies[-1]["model"] == "large-1"
    assert second["outputs"]["first"] == first["outputs"]["first"]
    row = rerun(living, "--from", "second", "-m", "default", run=second["run_id"])
    assert row["fork"]
    living.wait_complete(3)
    assert fake_openai.bodies[-1]["model"] == "default-1"


# -- in place: items and laps ------------------------------------------------------------------------------------------


def attempts(living: LivingRoot, record: dict[str, Any]) -> dict[str, int]:
    status = json.loads((folder_of(living, record) / "tasks-status.json").read_bytes())
    return {name: task["attempt"] for name, task in status["tasks"].items()}


def test_one_item_runs_again_and_the_others_do_not(make_living: Make) -> None:
    """``--from draft.2`` of four."""
    living = living_with(make_living, EACH, "stop")
    living.drop("a.json", {"parts": [1, 2, 3, 4], "stop": True})
    living.wait_state("failed")
    row = rerun(living, "--from", "draft.2", "--set", "seed.stop=false")
    assert row["stale"] == ["draft.2", "check.2", "stop"]
    (record,) = living.wait_complete(1)
    found = attempts(living, record)
    assert {name for name, count in found.items() if count == 2} == {"draft.2", "check.2", "stop"}


INNER = {"repeat": [echo("x")], "name": "inner", "at_most": 3, "until": "lap >= 2"}


@pytest.mark.parametrize(
    ("from_", "again"),
    [
        ("x@2.1", ["x@2.1", "x@2.2", "end@2"]),
        ("x@2.2", ["x@2.2", "end@2"]),
        ("x@1.2", ["x@1.2", "end@1", "x@2.1", "x@2.2", "end@2"]),
        ("x@2", ["x@2.1", "x@2.2", "end@2"]),
        ("end@1", ["end@1", "x@2.1", "x@2.2", "end@2"]),
        ("x", ["x@1.1", "x@1.2", "end@1", "x@2.1", "x@2.2", "end@2"]),
    ],
)
@pytest.mark.parametrize("fork", [False, True])
def test_a_lap_of_a_nested_loop_runs_again(make_living: Make, from_: str, again: list[str], fork: bool) -> None:
    """From that lap of the inner loop on, and all laps of the outer one after it; in place and as a fork."""
    outer = {"repeat": [INNER, echo("end")], "name": "outer", "at_most": 3, "until": "lap >= 2 and inputs.end.lap >= 2"}
    living = living_with(make_living, outer, "stop")
    living.drop("a.json", {"stop": True})
    living.wait_state("failed")
    row = rerun(living, "--from", from_, "--set", "seed.stop=false", *["--fork"] * fork)
    assert sorted(row["stale"]) == sorted([*again, "stop"])
    (record,) = living.wait_complete(1)
    everything = ["x@1.1", "x@1.2", "end@1", "x@2.1", "x@2.2", "end@2"]
    if fork:
        found = made_by(living, record, *everything)
        assert {name for name, where in found.items() if where == "new"} == set(again)
    else:
        counts = attempts(living, record)
        assert {name for name in everything if counts[name] == 2} == set(again)
    assert set(record["outputs"]) >= set(everything)


def test_a_lap_of_one_item_runs_again(make_living: Make) -> None:
    """A loop in an each: ``--from revise.1@2`` leaves the other items and the laps before alone."""
    loop = {**LOOP, "until": "inputs.score.score >= 8"}
    living = living_with(make_living, {"each": "seed.parts", "do": loop}, "stop")
    living.drop("a.json", {"parts": [1, 2], "scores": [1, 2, 9], "stop": True})
    living.wait_state("failed")
    row = rerun(living, "--from", "revise.1@2", "--set", "seed.stop=false")
    assert set(row["stale"]) == {"revise.1@2", "score.1@3", "revise.1@3", "stop"}
    (record,) = living.wait_complete(1)
    found = attempts(living, record)
    assert {name for name, count in found.items() if count == 2} == {"revise.1@2", "score.1@3", "stop"}
