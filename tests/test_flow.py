"""Loops, gates, recovery and pauses, with a real daemon: what a person sees in the run's folder."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]

# Scores its lap by a list in the seed; the reviser tells what it was told.
CHECK = "def infer(prompt, ctx):\n    scores = ctx.seed['scores']\n    return {'score': scores[ctx.lap - 1], 'lap': ctx.lap}\n"
REVISE = (
    "def infer(prompt, ctx):\n"
    "    return {'lap': ctx.lap, 'saw': ctx.inputs['check']['score'], 'changes': list(ctx.letter.changes)}\n"
)
ECHO = "def infer(prompt, ctx):\n    return {'made': ctx.step, 'changes': list(ctx.letter.changes)}\n"
LAST = "def infer(prompt, ctx):\n    return {name: ctx.inputs[name] for name in ctx.inputs}\n"
TASKS = {"check.py": CHECK, "revise.py": REVISE, "echo.py": ECHO, "last.py": LAST}
LOOP = {"repeat": ["check", "revise"], "until": "inputs.check.score >= 8", "at_most": 4, "name": "loop"}


def flow(**more: Any) -> dict[str, Any]:
    return {"name": "flow", "tasks": [{**LOOP, **more}, "last"]}


def gate(**more: Any) -> dict[str, Any]:
    made = {"task": "echo", "name": "made"}
    return {"name": "gated", "tasks": [made, {"approve": "look", **more}, "last"]}


def journal(run_dir: Path, name: str | None = None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "events.jsonl").read_bytes().splitlines()]
    return [row for row in rows if name is None or row["event"] == name]


def started(living: LivingRoot, pipeline: Any, seed: Any, **about: Any) -> None:
    living.up()
    living.drop("a.json", seed)


def pop(living: LivingRoot, *words: str) -> subprocess.CompletedProcess[str]:
    return warm.pop(["--root", living.path, *words])


def ledger_dir(living: LivingRoot, row: dict[str, Any]) -> Path:
    return living.path / str(row["path"])


# -- loops -----------------------------------------------------------------------------------------------------------


def test_a_loop_goes_on_until_its_condition_holds(make_living: Make) -> None:
    """Each lap sees the one before; the lap that converged stands for the loop, and what was held back is skipped."""
    living = make_living(pipeline=flow(), tasks=TASKS)
    living.up()
    living.drop("a.json", {"scores": [5, 6.5, 9, 1]})
    (row,) = living.wait_complete(1)
    run_dir = ledger_dir(living, row)
    laps = journal(run_dir, "lap.ended")
    assert [(lap["lap"], lap["verdict"], lap["values"]) for lap in laps] == [
        (1, "again", {"inputs.check.score": 5}),
        (2, "again", {"inputs.check.score": 6.5}),
        (3, "converged", {"inputs.check.score": 9}),
    ]
    assert living.output(row, "last")["check"] == {"score": 9, "lap": 3}
    assert living.output(row, "last")["revise"] == {"lap": 2, "saw": 6.5, "changes": []}
    assert not (run_dir / "tasks" / "revise@3").exists()
    assert "check@2" in row["tasks"] and "revise@3" not in row["tasks"]


def test_a_loop_that_does_not_converge_fails_the_run_and_retry_grants_laps(make_living: Make) -> None:
    """The error says why; `pop retry` gives at_most further laps."""
    living = make_living(pipeline=flow(at_most=2), tasks=TASKS)
    living.up()
    living.drop("a.json", {"scores": [1, 2, 3, 9]})
    status = living.wait_state("failed")
    assert status["error"]["code"] == "no-convergence" and "2 laps are over" in status["error"]["message"]
    pop(living, "retry", "last")
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["check"]["lap"] == 4


def test_keep_best_keeps_the_best_lap(make_living: Make) -> None:
    """No gain for two laps ends it early; the outputs of the best lap go on."""
    pipeline = flow(otherwise="keep-best", score="inputs.check.score")
    living = make_living(pipeline=pipeline, tasks=TASKS)
    living.up()
    living.drop("a.json", {"scores": [5, 7, 6, 6.5]})
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["check"] == {"score": 7, "lap": 2}
    (end,) = [lap for lap in journal(ledger_dir(living, row), "lap.ended") if lap["verdict"] != "again"]
    assert (end["verdict"], end["kept"], end["lap"]) == ("kept", 2, 4) and "no gain" in end["reason"]


def test_a_lap_like_an_earlier_one_is_a_standstill(make_living: Make) -> None:
    """The same outputs again: further laps would give nothing else."""
    tasks = {"same.py": "def infer(prompt, ctx):\n    return {'score': 1}\n"}
    pipeline = {"name": "p", "tasks": [{"repeat": ["same"], "until": "inputs.same.score > 1", "at_most": 9}]}
    living = make_living(pipeline=pipeline, tasks=tasks)
    living.up()
    living.drop("a.json", {})
    status = living.wait_state("failed")
    assert "lap 2 gave the same as lap 1" in status["error"]["message"]


@pytest.mark.parametrize("decision", ["approve", "request-changes", "reject"])
def test_a_loop_may_ask_a_person(make_living: Make, decision: str) -> None:
    """approve takes the newest lap, request-changes grants laps and its words reach the letters, reject ends the run."""
    living = make_living(pipeline=flow(at_most=1, otherwise="ask"), tasks=TASKS)
    living.up()
    living.drop("a.json", {"scores": [1, 9]})
    status = living.wait_state("waiting")
    assert status["waiting_for"] == "loop@1" and "pop approve" in " ".join(status["notes"])
    told = pop(living, decision, "last", "loop@1", "-m", "shorter, please")
    assert told.returncode == 0, told.stderr
    if decision == "reject":
        status = living.wait_state("failed")
        assert status["error"]["error_class"] == "rejected" and "shorter, please" in status["error"]["message"]
        return
    (row,) = living.wait_complete(1)
    laps = 1 if decision == "approve" else 2
    assert living.output(row, "last")["check"]["lap"] == laps
    if decision == "request-changes":
        assert living.output(row, "last")["revise"]["changes"] == ["shorter, please"]


# -- gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["command", "file", "decision.json"])
def test_a_gate_is_answered_in_any_of_three_ways(make_living: Make, how: str) -> None:
    """By a command, an empty file, a document; who and how stand in its output."""
    living = make_living(pipeline=gate(text="Is it good?"), tasks=TASKS)
    living.up()
    living.drop("a.json", {})
    living.wait_state("waiting")
    (run_dir,) = living.current()
    folder = run_dir / "tasks" / "look"
    assert "Is it good?" in (folder / "request.md").read_text()
    if how == "command":
        assert pop(living, "approve", run_dir.name).returncode == 0
    elif how == "file":
        (folder / "APPROVE").touch()
    else:
        (folder / "decision.json").write_text('{"decision": "approve", "by": "Ada"}')
    (row,) = living.wait_complete(1)
    answer = living.output(row, "last")["look"]
    assert answer["decision"] == "approve" and answer["how"].endswith({"file": "APPROVE"}.get(how, how))


def test_changes_asked_for_outside_of_loops_run_what_was_shown_again(make_living: Make) -> None:
    """With the words in its letter; the gate opens once more; both openings are kept."""
    living = make_living(pipeline=gate(), tasks=TASKS)
    living.up()
    living.drop("a.json", {})
    living.wait_state("waiting")
    (run_dir,) = living.current()
    assert pop(living, "request-changes", run_dir.name, "look", "-m", "bolder").returncode == 0
    living.wait(lambda: len(journal(run_dir, "run.waiting")) == 2, "the gate to open again")
    assert pop(living, "approve", run_dir.name).returncode == 0
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["made"]["changes"] == ["bolder"]
    assert (ledger_dir(living, row) / "tasks" / "look" / "answers" / "1" / "decision.json").exists()


def test_a_rejected_gate_fails_the_run_and_retry_asks_again(make_living: Make) -> None:
    """With the person's words."""
    living = make_living(pipeline=gate(), tasks=TASKS)
    living.up()
    living.drop("a.json", {})
    living.wait_state("waiting")
    pop(living, "reject", "last", "look", "-m", "never")
    status = living.wait_state("failed")
    assert status["error"]["error_class"] == "rejected" and "never" in status["error"]["message"]
    pop(living, "retry", "last")
    living.wait_state("waiting")
    assert pop(living, "approve", "last").returncode == 0
    living.wait_complete(1)


@pytest.mark.parametrize("answer", ["approve", "reject"])
def test_a_gate_may_answer_itself_when_its_time_is_over(make_living: Make, answer: str) -> None:
    """At rest, without a place, it wakes up when it is due."""
    living = make_living(pipeline=gate(timeout="2s", on_timeout=answer), tasks=TASKS)
    living.up()
    living.drop("a.json", {})
    living.wait_state("waiting")
    if answer == "reject":
        assert living.wait_state("failed")["error"]["message"] == "nobody answered look within 2s"
    else:
        (row,) = living.wait_complete(1)
        assert living.output(row, "last")["look"]["by"] == "timeout"


@pytest.mark.parametrize("trouble", ["a half-made edit", "no gate.json"])
def test_a_timeout_is_carried_out_whatever_lies_in_the_folder(make_living: Make, trouble: str) -> None:
    """The copies are not looked at then; and a gate whose gate.json somebody removed is laid out once more."""
    living = make_living(pipeline=gate(timeout="3s", on_timeout="approve"), tasks=TASKS)
    living.up()
    living.drop("a.json", {})
    living.wait_state("waiting")
    (run_dir,) = living.current()
    if trouble == "no gate.json":
        (run_dir / "tasks" / "look" / "gate.json").unlink()
    else:
        (run_dir / "tasks" / "look" / "show" / "made.json").write_text('{"made": ')
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["made"]["made"] == "made"
    answer = living.output(row, "last")["look"]
    assert (answer["decision"], answer["how"], answer["edited"]) == ("approve", "timeout", [])
    assert (ledger_dir(living, row) / "tasks" / "look" / "gate.json").is_file()


def test_what_was_meant_as_an_answer_is_told(make_living: Make) -> None:
    """In the notes of a run at rest, once; it goes when the run does."""
    living = make_living(pipeline=gate(), tasks=TASKS)
    living.up()
    living.drop("a.json", {})
    living.wait_state("waiting")
    (run_dir,) = living.current()
    folder = run_dir / "tasks" / "look"
    (folder / "decision.json").write_text('{"decision": "aprove"}')
    told = living.wait(lambda: [note for note in living.status()["notes"] if "is none" in note], "a note")
    assert told == ["look got an answer that is none: decision.json: no decision 'aprove'; did you mean 'approve'?"]
    assert len(living.status()["notes"]) == 3, living.status()["notes"]  # which model answers, how to, and this
    assert "'aprove'" in pop(living, "show", "last").stdout
    (folder / "APPROVE").touch()
    (row,) = living.wait_complete(1)
    assert "is none" not in (ledger_dir(living, row) / "tasks-status.json").read_text()


def test_an_edited_output_goes_on_as_edited(make_living: Make) -> None:
    """The copy that was shown, changed by a person; the old version stays."""
    living = make_living(pipeline=gate(), tasks=TASKS)
    living.up()
    living.drop("a.json", {})
    living.wait_state("waiting")
    (run_dir,) = living.current()
    (copy,) = (run_dir / "tasks" / "look" / "show").iterdir()
    copy.write_text('{"made": "by hand"}')
    pop(living, "approve", run_dir.name)
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["made"] == {"made": "by hand"}
    assert list((ledger_dir(living, row) / "tasks" / "made").glob("output.before-*.json"))


def test_a_waiting_run_holds_no_place(make_living: Make) -> None:
    """With room for one run, a second one is served while the first waits."""
    living = make_living(pipeline=gate(), tasks=TASKS, settings="[concurrency]\nruns = 1\n")
    living.up()
    living.drop("a.json", {})
    living.drop("b.json", {})
    living.wait(lambda: [living.status(path)["state"] for path in living.current()] == ["waiting"] * 2, "two that wait")
    for run_dir in living.current():
        (run_dir / "tasks" / "look" / "APPROVE").touch()
    living.wait_complete(2)


def test_answers_count_that_came_while_no_daemon_was_there(make_living: Make) -> None:
    """The next one finds the run waiting, and the answer."""
    living = make_living(pipeline=gate(), tasks=TASKS)
    daemon = living.up()
    living.drop("a.json", {})
    living.wait_state("waiting")
    living.stop(daemon)
    pop(living, "approve", "last")
    living.up()
    living.wait_complete(1)


# -- pauses ----------------------------------------------------------------------------------------------------------


def test_a_paused_run_rests_until_it_is_resumed(make_living: Make) -> None:
    """What runs may end; nothing further starts, over a restart too."""
    slow = "import time\ndef infer(prompt, ctx):\n    time.sleep(1)\n    return 1\n"
    living = make_living(pipeline={"name": "p", "tasks": ["slow", "last"]}, tasks={"slow.py": slow, "last.py": LAST})
    daemon = living.up()
    living.drop("a.json", {})
    living.wait(lambda: living.status()["current"], "work")
    (run_dir,) = living.current()
    (run_dir / "orders").mkdir(exist_ok=True)
    (run_dir / "orders" / "pause.json").write_text("{}")
    status = living.wait_state("paused")
    assert status["tasks"]["slow"]["state"] == "done"
    living.stop(daemon)
    living.up()
    time.sleep(1.5)
    assert living.status()["state"] == "paused"
    (run_dir / "orders" / "resume").touch()
    living.wait_complete(1)


def test_a_run_says_that_it_is_being_paused_and_may_still_go_on(make_living: Make) -> None:
    """Its step goes on meanwhile; nobody needs to wait for the end of it to resume."""
    slow = "import os, time\ndef infer(prompt, ctx):\n    while not os.path.exists(ctx.seed['until']):\n        time.sleep(0.05)\n    return 1\n"
    living = make_living(pipeline={"name": "p", "tasks": ["slow", "last"]}, tasks={"slow.py": slow, "last.py": LAST})
    living.up()
    until = living.root.path / "enough"
    living.drop("a.json", {"until": str(until)})
    living.wait(lambda: living.status()["current"], "work")
    pop(living, "pause", "last")
    living.wait(lambda: living.status()["pausing"], "the order")
    status = living.status()
    assert status["state"] == "running" and any("being paused" in note for note in status["notes"])
    pop(living, "resume", "last")
    living.wait(lambda: not living.status()["pausing"], "the second order")
    assert not any("being paused" in note for note in living.status()["notes"])
    until.touch()
    living.wait_complete(1)


def test_waiting_and_paused_runs_can_be_cancelled_and_taken_up_again(make_living: Make) -> None:
    """The gate is still there afterwards, and told once, as long as it can be answered."""
    living = make_living(pipeline=gate(), tasks=TASKS)
    living.up()
    living.drop("a.json", {})
    living.wait_state("waiting")
    (run_dir,) = living.current()
    (run_dir / "orders").mkdir(exist_ok=True)
    for order, state in (("pause", "paused"), ("resume", "waiting"), ("cancel", "cancelled"), ("retry", "waiting")):
        (run_dir / "orders" / order).touch()
        notes = living.wait_state(state)["notes"]
        assert sum("waits for an answer" in note for note in notes) == (state != "cancelled")
    (run_dir / "tasks" / "look" / "APPROVE").touch()
    living.wait_complete(1)


# -- recovery --------------------------------------------------------------------------------------------------------

MODEL = """
def infer(prompt, ctx):
    if ctx.letter.model != 'other':
        from pop.errors import AttemptFailed
        raise AttemptFailed('refused', 'I will not')
    return ctx.letter.model
"""


def test_another_model_is_asked_where_the_table_says_so(make_living: Make) -> None:
    """And the journal says why."""
    step = {"task": "m", "recover": {"refused": "model:other"}}
    settings = '[models.other]\nprovider = "builtin"\nmodel = "builtin"\n'
    living = make_living(pipeline={"name": "p", "tasks": [step]}, tasks={"m.py": MODEL}, settings=settings)
    living.up()
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert living.output(row, "m") == "other"
    (failure,) = journal(ledger_dir(living, row), "step.attempt_failed")
    assert failure["model"] == "other" and "refused" in failure["reason"]


@pytest.mark.parametrize("decision", ["approve", "request-changes", "reject"])
def test_a_person_is_asked_where_the_table_says_so(make_living: Make, decision: str) -> None:
    """The failed instance itself waits; approve gives it fresh attempts, with the words if there are some."""
    code = (
        "from pathlib import Path\ndef infer(prompt, ctx):\n"
        "    if not (Path(ctx.letter.tasks_dir).parent / 'cured').exists():\n        raise KeyError('no')\n"
        "    return ctx.letter.changes\n"
    )
    pipeline = {"name": "p", "recover": {"bug": "ask"}, "tasks": ["m"]}
    living = make_living(pipeline=pipeline, tasks={"m.py": code})
    living.up()
    living.drop("a.json", {})
    status = living.wait_state("waiting")
    assert status["waiting_for"] == "m" and status["tasks"]["m"]["state"] == "waiting"
    (living.path / "cured").touch()
    assert pop(living, decision, "last", "m", "-m", "mind the key").returncode == 0
    if decision == "reject":
        assert living.wait_state("failed")["error"]["error_class"] == "bug"
        return
    (row,) = living.wait_complete(1)
    assert living.output(row, "m") == (["mind the key"] if decision == "request-changes" else [])


# -- what commands tell ----------------------------------------------------------------------------------------------


def test_pop_run_ends_with_5_and_says_how_to_answer(make_living: Make) -> None:
    """Its own daemon does not wait for the person; the next one goes on."""
    living = make_living(pipeline=gate(), tasks=TASKS)
    (living.path / "seed.json").write_text("{}")
    told = pop(living, "run", str(living.path / "seed.json"))
    assert told.returncode == 5, told.stderr
    assert "pop approve" in told.stdout and "request.md" in told.stdout
    shown, listed = pop(living, "show", "last"), pop(living, "ls")
    assert "look" in shown.stdout and "pop approve" in shown.stdout and "for an answer: look" in listed.stdout
    assert pop(living, "watch", "last").returncode == 5
    pop(living, "approve", "last")
    living.up()
    living.wait_complete(1)


# -- orders of tasks -------------------------------------------------------------------------------------------------

ORDERS = """
def infer(prompt, ctx):
    for order in ctx.seed['orders']:
        getattr(ctx.control, order[0])(*order[1:])
    return 1
"""


def test_a_task_adds_skips_and_pauses(make_living: Make) -> None:
    """Added steps run behind it, the skipped one tells its reason, and the pause survives a restart."""
    pipeline = {"name": "p", "tasks": [{"task": "orders", "name": "first"}, {"task": "echo", "name": "gone"}, "last"]}
    living = make_living(pipeline=pipeline, tasks={**TASKS, "orders.py": ORDERS})
    daemon = living.up()
    added = {"task": "echo", "name": "more"}
    living.drop("a.json", {"orders": [["add", added], ["skip", "gone", "not needed"], ["pause", "look at it"]]})
    living.wait_state("paused")
    living.stop(daemon)
    living.up()
    pop(living, "resume", "last")
    (row,) = living.wait_complete(1)
    assert living.output(row, "more")["made"] == "more"
    (skip,) = journal(ledger_dir(living, row), "step.skipped")
    assert (skip["instance"], skip["reason"]) == ("gone", "not needed")


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_an_order_that_cannot_be_carried_out_asks_a_person(make_living: Make, decision: str) -> None:
    """Nothing of it is done; approve goes on without it."""
    pipeline = {"name": "p", "tasks": [{"task": "orders", "name": "first"}, "last"]}
    living = make_living(pipeline=pipeline, tasks={**TASKS, "orders.py": ORDERS})
    living.up()
    living.drop("a.json", {"orders": [["add", {"task": "nobody"}], ["skip", "last", "no"]]})
    status = living.wait_state("waiting")
    assert status["waiting_for"] == "first+control"
    (run_dir,) = living.current()
    assert "nobody" in (run_dir / "tasks" / "first+control" / "request.md").read_text()
    assert pop(living, decision, "last", "first+control").returncode == 0
    if decision == "approve":
        (row,) = living.wait_complete(1)
        assert living.output(row, "last")["first"] == 1
    else:
        assert living.wait_state("failed")["error"]["error_class"] == "rejected"


# -- reruns ----------------------------------------------------------------------------------------------------------


def test_a_run_is_taken_up_again_from_a_step(make_living: Make) -> None:
    """In place, with another value: what is stale runs again, the original seed stays."""
    tasks = {
        "echo.py": "def infer(prompt, ctx):\n    return {'topic': ctx.seed['topic']}\n",
        "last.py": "def infer(prompt, ctx):\n    return ctx.inputs['made']\n",
    }
    living = make_living(pipeline=gate(), tasks=tasks)
    living.up()
    living.drop("a.json", {"topic": "tides"})
    living.wait_state("waiting")
    (run_dir,) = living.current()
    (run_dir / "orders").mkdir(exist_ok=True)
    (run_dir / "orders" / "rerun.json").write_text('{"from": ["made"], "set": {"seed.topic": "moons"}}')
    living.wait(lambda: len(journal(run_dir, "run.waiting")) == 2, "the gate to open again")
    pop(living, "approve", "last")
    (row,) = living.wait_complete(1)
    assert living.output(row, "last") == {"topic": "moons"}
    assert json.loads((ledger_dir(living, row) / "seed.json").read_bytes()) == {"topic": "tides"}


# -- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_a_run_whose_tasks_changed_says_so(make_living: Make) -> None:
    """From when it is taken up again on: in its notes, and so in `pop show`."""
    living = make_living(pipeline=gate(), tasks=TASKS)
    living.up()
    living.drop("a.json", {})
    living.wait_state("waiting")
    living.task("last.py", LAST + "\n")
    (run_dir,) = living.current()
    (run_dir / "tasks" / "look" / "APPROVE").touch()
    (row,) = living.wait_complete(1)
    note = "task 'last' changed since this run began: last.py"
    assert note in json.loads((ledger_dir(living, row) / "tasks-status.json").read_bytes())["notes"]
    assert note in pop(living, "show", "last").stdout


def test_a_fork_tells_what_it_took_over(make_living: Make) -> None:
    """Status and `pop show` name the run that an output was made in."""
    living = make_living(pipeline={"name": "p", "tasks": [{"task": "echo", "name": "made"}, "last"]}, tasks=TASKS)
    living.up()
    living.drop("a.json", {})
    (parent,) = living.wait_complete(1)
    assert pop(living, "rerun", "last", "--from", "last").returncode == 0
    fork = living.wait_complete(2)[-1]
    status = json.loads((ledger_dir(living, fork) / "tasks-status.json").read_bytes())
    assert status["tasks"]["made"]["reason"] == f"reused from {parent['run_id']}"
    assert status["tasks"]["last"]["reason"] is None
    assert f"reused from {parent['run_id']}" in pop(living, "show", "last").stdout


def test_a_killed_daemon_loses_no_lap_and_no_answer(make_living: Make) -> None:
    """At seeded instants in a loop with a gate: every lap is judged once, every step done once, the answer counts."""
    rng = random.Random(4)
    loop = {"repeat": ["check", {"approve": "look", "when": "lap == 2"}, "revise"], "name": "loop", "at_most": 5}
    pipeline = {"name": "p", "tasks": [{**loop, "until": "inputs.check.score >= 8"}, "last"]}
    living = make_living(pipeline=pipeline, tasks=TASKS)
    daemon = living.up()
    living.drop("a.json", {"scores": [1, 2, 3, 9]})
    for _ in range(12):
        time.sleep(rng.uniform(0.1, 2.5))
        daemon.kill()
        daemon.wait()
        for run_dir in living.root.current.glob("2*"):
            folder = run_dir / "tasks" / "look@2"
            if (folder / "gate.json").exists() and not (folder / "APPROVE").exists():
                (folder / "APPROVE").touch()
        daemon = living.up()

    def answered() -> bool:
        for run_dir in living.root.current.glob("2*"):
            if (run_dir / "tasks" / "look@2" / "gate.json").exists():
                (run_dir / "tasks" / "look@2" / "APPROVE").touch()
                return True
        return bool(living.ledger())

    living.wait(answered, "the gate")
    (row,) = living.wait_complete(1, patience_s=120)
    run_dir = ledger_dir(living, row)
    assert [(lap["lap"], lap["verdict"]) for lap in journal(run_dir, "lap.ended")] == [
        (1, "again"), (2, "again"), (3, "again"), (4, "converged"),
    ]  # fmt: skip
    done = [event["instance"] for event in journal(run_dir, "step.done")]
    assert len(done) == len(set(done)) == 4 + 3 + 1
    assert len(journal(run_dir, "gate.decided")) == 1
    assert living.output(row, "last")["check"]["lap"] == 4
