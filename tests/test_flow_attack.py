"""Gates, loops, reruns and orders of tasks under attack: what people and tasks do to them that nobody meant, with a real daemon."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_openai import FakeOpenAI
from tests.living import LivingRoot
from tests.test_flow import ORDERS, TASKS, flow, gate, journal, ledger_dir, pop

Make = Callable[..., LivingRoot]

QUICK = "[daemon]\nscan_s = 0.1\n[seeds]\nsettle_s = 0.0\n"


def waiting(living: LivingRoot, name: str, seed: Any) -> Path:
    """A run by this name that waits for a person."""
    living.drop(f"{name}.json", {"name": name, "data": seed})
    living.wait(lambda: states(living).get(name) == "waiting", f"{name} to wait")
    return folder(living, name)


def folder(living: LivingRoot, name: str) -> Path:
    places = (living.root.current, living.root.complete)
    found = [path for place in places for path in place.glob(f"*-{name}-*") if (path / "tasks-status.json").exists()]
    return found[0]


def states(living: LivingRoot) -> dict[str, str]:
    found = [living.status(path) for path in living.current()]
    return {status["name"]: status["state"] for status in found}


def told(living: LivingRoot, *words: str) -> dict[str, Any]:
    """What a command that is refused says."""
    answer = pop(living, *words)
    assert answer.returncode not in (0, 1) or "Traceback" not in answer.stderr, answer.stderr
    return {"code": answer.returncode, "text": answer.stdout + answer.stderr}


def order(run_dir: Path, verb: str, content: Any = None) -> None:
    (run_dir / "orders").mkdir(exist_ok=True)
    draft = run_dir / "orders" / f".{verb}"
    draft.write_text(json.dumps(content if content is not None else {}))
    draft.rename(run_dir / "orders" / f"{verb}.json")


def obeyed(living: LivingRoot, run_dir: Path, verb: str) -> Path | None:
    """Until an order was filed away; the reason why it was refused, if it was."""
    living.wait(lambda: not (run_dir / "orders" / f"{verb}.json").exists(), f"{verb} to be obeyed")
    problems = list((run_dir / "orders" / "done").glob(f"*-{verb}.problem.json"))
    return problems[-1] if problems else None


# -- answers ---------------------------------------------------------------------------------------------------------


def test_answers_that_are_none(make_living: Make) -> None:
    """An unknown run, gate or decision, a second answer, an answer to a run that is over: each is told so."""
    living = make_living(pipeline=gate(), tasks=TASKS, settings=QUICK)
    living.up()
    run_dir = waiting(living, "one", {})
    for words in (["approve", "nobody"], ["approve", "one", "nowhere"], ["approve", "one", "made"]):
        assert told(living, *words)["code"] == 2, words
    assert told(living, "request-changes", "one", "-m", " ")["code"] == 2
    (run_dir / "tasks" / "look" / "decision.json").write_text('{"decision": "aprove"}')
    living.wait(lambda: (run_dir / "tasks" / "look" / "decision.invalid-1.json").exists(), "it to be set aside")
    assert pop(living, "approve", "one").returncode == 0
    living.wait_complete(1)
    over = told(living, "approve", "one", "look")
    assert over["code"] == 2 and "Ada" not in over["text"], over


def test_answers_before_the_gate_opens_do_not_count_before(make_living: Make) -> None:
    """The folder is there, with an answer, before the step it is about has ended: it counts when the gate opens."""
    slow = "import time\ndef infer(prompt, ctx):\n    time.sleep(1.5)\n    return {'made': 1}\n"
    living = make_living(pipeline=gate(), tasks={**TASKS, "echo.py": slow}, settings=QUICK)
    living.up()
    living.drop("a.json", {"name": "early", "data": {}})
    living.wait(lambda: living.status()["current"], "work")
    (run_dir,) = living.current()
    (run_dir / "tasks" / "look").mkdir()
    (run_dir / "tasks" / "look" / "APPROVE").touch()
    (row,) = living.wait_complete(1)
    assert [one["event"] for one in journal(ledger_dir(living, row)) if "gate" in one["event"]] == [
        "gate.opened",
        "gate.decided",
    ]


def test_what_becomes_of_a_gates_folder(make_living: Make) -> None:
    """Huge words, a folder that is gone, a link, a file, copies that are pipes or links: the run can be ended all the same."""
    living = make_living(pipeline=gate(), tasks=TASKS, settings=QUICK)
    living.up()
    for name in ("huge", "gone", "file", "link", "request", "deleted", "pipe", "passwd", "bare"):
        living.drop(f"{name}.json", {"name": name, "data": {}})
    living.wait(lambda: list(states(living).values()) == ["waiting"] * 9, "nine that wait")
    gates = {name: folder(living, name) / "tasks" / "look" for name in states(living)}
    (gates["huge"] / "CHANGES.md").write_text("x" * 10_000_000)
    os.rename(gates["gone"], living.path / "gone")
    os.rename(gates["file"], living.path / "file")
    gates["file"].write_text("no folder")
    os.rename(gates["link"], living.path / "link")
    gates["link"].symlink_to(living.path / "link")
    (gates["request"] / "request.md").unlink()
    copies = {name: gates[name] / "show" / "made.json" for name in ("deleted", "pipe", "passwd")}
    for copy in copies.values():
        copy.unlink()
    os.mkfifo(copies["pipe"])
    copies["passwd"].symlink_to("/etc/passwd")
    (gates["bare"] / "gate.json").unlink()
    for name in ("pipe", "passwd", "deleted", "request", "bare"):
        (gates[name] / "APPROVE").touch()
    living.wait(lambda: (gates["huge"] / "decision.problem.json").exists(), "huge words to be refused")
    (gates["huge"] / "CHANGES.md").unlink()
    (gates["huge"] / "APPROVE").touch()
    for name in ("pipe", "passwd"):
        living.wait(lambda: (gates[name] / "decision.invalid-1.json").exists(), f"{name} to be refused")  # noqa: B023
        assert states(living)[name] == "waiting" and (gates[name] / "decision.problem.json").exists()
        copies[name].unlink()
        (gates[name] / "APPROVE").touch()
    living.wait(lambda: {"gone", "file", "link"} == set(states(living)), "six that are complete")
    for name in ("gone", "file"):
        if os.path.lexists(gates[name]):
            gates[name].unlink()
        os.rename(living.path / name, gates[name])
        (gates[name] / "APPROVE").touch()
    living.wait(lambda: {"link"} >= set(states(living)), "eight that are complete")
    if states(living):
        gates["link"].unlink()
        os.rename(living.path / "link", gates["link"])
        assert pop(living, "approve", "link").returncode == 0
    rows = living.wait_complete(9)
    assert all("root:" not in json.dumps(living.output(row, "last")) for row in rows)


@pytest.mark.parametrize("harm", ["gone", "gate.json", "bad edit", "half edit"])
def test_a_gate_that_answers_itself_after_somebody_harmed_it(make_living: Make, harm: str) -> None:
    """Its time is over all the same; the copies are not looked at, and no loop of refusals begins."""
    living = make_living(pipeline=gate(timeout="3s", on_timeout="approve"), tasks=TASKS, settings=QUICK)
    living.up()
    run_dir = waiting(living, "it", {})
    look = run_dir / "tasks" / "look"
    if harm == "gone":
        os.rename(look, living.path / "gone")
    elif harm == "gate.json":
        (look / "gate.json").unlink()
    else:
        (look / "show" / "made.json").write_text('{"made": ' if harm == "bad edit" else '{"made": "half"}')
    time.sleep(4.0)
    found = len(list(look.glob("decision.invalid-*")))
    assert found < 3, f"{found} answers were set aside"
    (row,) = living.wait_complete(1, patience_s=20)
    assert living.output(row, "last")["made"]["made"] == "made"


def test_a_timeout_that_came_while_no_daemon_was_there(make_living: Make) -> None:
    """It counts at the next start; an answer in time would have counted first."""
    living = make_living(pipeline=gate(timeout="3s", on_timeout="reject"), tasks=TASKS, settings=QUICK)
    daemon = living.up()
    waiting(living, "late", {})
    first = waiting(living, "intime", {})
    living.stop(daemon)
    (first / "tasks" / "look" / "APPROVE").touch()
    time.sleep(4.0)
    living.up()
    (row,) = living.wait_complete(1)
    assert row["name"] == "intime"
    living.wait(lambda: states(living) == {"late": "failed"}, "the other to fail")


def test_ten_gates_at_once(make_living: Make) -> None:
    """One in each item, answered from the last to the first; a rejected one fails the run, retry asks that one again."""
    pipeline = {
        "name": "p",
        "tasks": [{"each": "seed.items", "do": [{"task": "echo", "name": "made"}, {"approve": "look"}]}, "last"],
    }
    living = make_living(pipeline=pipeline, tasks=TASKS, settings=QUICK)
    living.up()
    run_dir = waiting(living, "ten", {"items": list(range(10))})
    living.wait(lambda: len(living.status(run_dir)["waiting_for"].split(", ")) == 10, "ten gates")
    for number in reversed(range(1, 10)):
        assert pop(living, "approve", "ten", f"look.{number}").returncode == 0
    pop(living, "request-changes", "ten", "look.0", "-m", "bolder")
    living.wait(lambda: len(journal(run_dir, "gate.opened")) == 11, "it to open again")
    living.wait(lambda: states(living)["ten"] == "waiting", "the run to wait")
    pop(living, "reject", "ten", "-m", "no")
    living.wait(lambda: states(living)["ten"] == "failed", "the run to fail")
    pop(living, "retry", "ten")
    living.wait(lambda: states(living)["ten"] == "waiting", "the run to wait")
    assert living.status(run_dir)["waiting_for"] == "look.0"
    pop(living, "approve", "ten")
    (row,) = living.wait_complete(1)
    output = living.output(row, "last")
    assert [one["decision"] for one in output["look"]] == ["approve"] * 10
    assert [one["changes"] for one in output["made"]] == [["bolder"], *[[]] * 9]


def test_changes_at_a_gate_behind_a_loop(make_living: Make) -> None:
    """What was shown stands in a loop that has ended: it goes on from there, and the gate opens again."""
    loop = {"repeat": ["check", "revise"], "until": "inputs.check.score >= 8", "at_most": 4, "name": "loop"}
    pipeline = {"name": "p", "tasks": [loop, {"approve": "look", "show": ["revise"]}, "last"]}
    living = make_living(pipeline=pipeline, tasks=TASKS, settings=QUICK)
    living.up()
    run_dir = waiting(living, "it", {"scores": [1, 9, 9]})
    assert pop(living, "request-changes", "it", "-m", "bolder").returncode == 0
    living.wait(lambda: len(journal(run_dir, "gate.opened")) == 2, "the gate to open again")
    living.wait(lambda: states(living)["it"] == "waiting", "it to wait")
    assert pop(living, "approve", "it").returncode == 0
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["revise"] == {"lap": 1, "saw": 1, "changes": ["bolder"]}


SIDES = {"parallel": [{"approve": "one"}, {"approve": "two"}]}
TWO = {"name": "p", "tasks": [{"task": "echo", "name": "made"}, SIDES, "last"]}


def test_two_gates_about_one_step(make_living: Make) -> None:
    """Both are edited: the second edit is refused until its copy is gone."""
    living = make_living(pipeline=TWO, tasks=TASKS, settings=QUICK)
    living.up()
    run_dir = waiting(living, "it", {})
    for number, name in enumerate(("one", "two")):
        (run_dir / "tasks" / name / "show" / "made.json").write_text(json.dumps({"made": number}))
    assert pop(living, "approve", "it", "one").returncode == 0
    living.wait(lambda: len(journal(run_dir, "gate.decided")) == 1, "the first answer")
    living.wait(lambda: states(living)["it"] == "waiting", "it to wait")
    assert "changed since" in told(living, "approve", "it", "two")["text"]
    (run_dir / "tasks" / "two" / "show" / "made.json").unlink()
    assert pop(living, "approve", "it", "two").returncode == 0
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["made"] == {"made": 0}


def test_changes_at_one_gate_end_the_question_of_the_other(make_living: Make) -> None:
    """Both are answered while no daemon is there: the approval was of what is made anew, so it is asked for again."""
    living = make_living(pipeline=TWO, tasks=TASKS, settings=QUICK)
    daemon = living.up()
    run_dir = waiting(living, "it", {})
    living.stop(daemon)
    assert pop(living, "request-changes", "it", "one", "-m", "bolder").returncode == 0
    assert pop(living, "approve", "it", "two").returncode == 0
    living.up()
    living.wait(lambda: len(journal(run_dir, "gate.opened")) > 2, "a gate to open again")
    living.wait(lambda: states(living)["it"] == "waiting", "it to wait")
    assert living.status(run_dir)["waiting_for"] == "one, two"


def test_changes_while_another_branch_is_at_work(make_living: Make) -> None:
    """What depends on the shown step and runs just now is ended and runs again; nothing else is."""
    slow = "import time\ndef infer(prompt, ctx):\n    time.sleep(2)\n    return ctx.inputs['made']['changes']\n"
    other = {"task": "echo", "name": "other", "needs": []}
    sides = {"parallel": [{"approve": "look"}, "slow"]}
    pipeline = {
        "name": "p",
        "tasks": [{"task": "echo", "name": "made"}, sides, other, {"task": "last", "needs": ["slow", "look"]}],
    }
    living = make_living(pipeline=pipeline, tasks={**TASKS, "slow.py": slow}, settings=QUICK)
    living.up()
    living.drop("a.json", {"name": "it", "data": {}})
    living.wait(lambda: "look" in (living.status()["waiting_for"] or ""), "the gate")
    (run_dir,) = living.current()
    living.wait(lambda: "slow" in living.status()["current"], "work")
    assert pop(living, "request-changes", "it", "-m", "bolder").returncode == 0
    living.wait(lambda: len(journal(run_dir, "gate.opened")) == 2, "the gate to open again")
    assert pop(living, "approve", "it").returncode == 0
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["slow"] == ["bolder"]
    rows = journal(ledger_dir(living, row), "step.done")
    assert [one["instance"] for one in rows if one["instance"] == "other"] == ["other"]


# -- loops -----------------------------------------------------------------------------------------------------------


def test_a_condition_that_raises_in_one_lap(make_living: Make) -> None:
    """The run fails in its place, and says where; with the run's own pipeline mended it goes on."""
    living = make_living(pipeline=flow(until="inputs.check.score >= 8"), tasks=TASKS, settings=QUICK)
    living.up()
    living.drop("a.json", {"name": "it", "data": {"scores": [1, "many", 9]}})
    status = living.wait_state("failed")
    assert status["error"]["error_class"] == "bad_input" and "until" in json.dumps(status["error"]), status["error"]
    (run_dir,) = living.current()
    document = json.loads((run_dir / "pipeline.json").read_bytes())
    document["tasks"][0]["until"] = "inputs.check.score is number and inputs.check.score >= 8"
    (run_dir / "pipeline.json").write_text(json.dumps(document))
    assert pop(living, "retry", "it").returncode == 0
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["check"]["lap"] == 3


def test_small_loops(make_living: Make) -> None:
    """At most one lap, and a lap that is one `each` over nothing."""
    pipeline = {
        "name": "p",
        "tasks": [
            {"repeat": "check", "until": "inputs.check.score > 0", "at_most": 1},
            {
                "repeat": {"each": "seed.none", "do": {"task": "echo", "name": "one"}},
                "until": "inputs.one | length == 0",
                "at_most": 2,
                "name": "nothing",
            },
            {
                "repeat": {"each": "seed.none", "do": {"task": "echo", "name": "two"}},
                "until": "lap > 5",
                "at_most": 3,
                "otherwise": "ask",
                "name": "still",
            },
            "last",
        ],
    }
    living = make_living(pipeline=pipeline, tasks=TASKS, settings=QUICK)
    living.up()
    living.drop("a.json", {"scores": [1], "none": []})
    status = living.wait_state("waiting")
    assert status["waiting_for"].startswith("still@")
    assert pop(living, "approve", "last").returncode == 0
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["one"] in ([], None) and living.output(row, "last")["check"]["score"] == 1


def test_an_inner_loop_that_asks(make_living: Make) -> None:
    """Its gates are called by both laps; request-changes there goes on in it alone; pause and resume in the middle."""
    inner = {"repeat": ["check"], "until": "inputs.check.score >= 8", "at_most": 1, "otherwise": "ask", "name": "inner"}
    pipeline = {
        "name": "p",
        "tasks": [
            {"repeat": [inner, "revise"], "until": "inputs.revise.lap >= 2", "at_most": 3, "name": "outer"},
            "last",
        ],
    }
    living = make_living(pipeline=pipeline, tasks=TASKS, settings=QUICK)
    living.up()
    run_dir = waiting(living, "it", {"scores": [1, 9]})
    assert living.status(run_dir)["waiting_for"] == "inner@1.1"
    assert pop(living, "pause", "it").returncode == 0
    living.wait(lambda: states(living)["it"] == "paused", "a pause")
    pop(living, "approve", "it", "inner@1.1")
    time.sleep(0.5)
    assert states(living)["it"] == "paused"
    pop(living, "resume", "it")
    living.wait(lambda: "inner@2.1" in (living.status(run_dir)["waiting_for"] or ""), "the next lap's gate")
    assert pop(living, "request-changes", "it", "-m", "once more").returncode == 0
    (row,) = living.wait_complete(1)
    verdicts = [(lap["key"], lap["lap"], lap["verdict"]) for lap in journal(ledger_dir(living, row), "lap.ended")]
    assert verdicts == [
        ("inner@1", 1, "ask"), ("outer", 1, "again"), ("inner@2", 1, "ask"), ("inner@2", 2, "converged"), ("outer", 2, "converged"),
    ]  # fmt: skip


# -- orders ----------------------------------------------------------------------------------------------------------


def test_hostile_orders_to_rerun(make_living: Make) -> None:
    """Each is refused, filed away with the reason, and leaves the run as it was."""
    living = make_living(pipeline=gate(), tasks=TASKS, settings=QUICK)
    living.up()
    run_dir = waiting(living, "it", {"a": 1})
    hostile: list[Any] = [
        {}, [], 7, {"from": []}, {"from": [7]}, {"from": ["nobody"]}, {"from": ["made\n"]}, {"from": ["ma\nde"]},
        {"from": ["made." + "9" * 5000]}, {"from": ["last"]}, {"from": "made:nowhere"}, {"from": "made", "set": 5},
        {"from": "made", "set": {"seed.__class__.x": 1}}, {"from": "made", "set": {"made.task": "../x"}},
        {"from": "made", "set": {"made.timeout": "never"}}, {"from": "made", "models": {"*": "nobody"}, "set": {".": 1}},
        {"from": "made", "by": {"x": 1}, "set": {"x": 1}},
    ]  # fmt: skip
    for number, content in enumerate(hostile, 1):
        order(run_dir, "rerun", content)
        obeyed(living, run_dir, "rerun")
        problems = list((run_dir / "orders" / "done").glob("*.problem.json"))
        assert len(problems) == number, content
    assert states(living) == {"it": "waiting"} and not journal(run_dir, "run.rerun")
    assert pop(living, "approve", "it").returncode == 0
    living.wait_complete(1)


def test_two_orders_at_once(make_living: Make) -> None:
    """By age; of two that take the run up the later one. Each is filed away once."""
    living = make_living(pipeline=gate(), tasks=TASKS, settings=QUICK)
    living.up()
    both = waiting(living, "both", {})
    order(both, "resume")
    order(both, "cancel")
    living.wait(lambda: len(os.listdir(both / "orders" / "done")) == 2, "two orders")
    assert states(living)["both"] == "cancelled"
    order(both, "retry")
    order(both, "rerun", {"from": ["made"]})
    living.wait(lambda: len(journal(both, "gate.opened")) == 2, "the gate to open again")
    living.wait(lambda: states(living)["both"] == "waiting", "it to wait")
    assert len(journal(both, "run.rerun")) == 1
    again = waiting(living, "again", {})
    order(again, "pause")
    order(again, "rerun", {"from": ["made"]})
    living.wait(lambda: len(journal(again, "gate.opened")) == 2, "the gate to open again")
    living.wait(lambda: not list((again / "orders").glob("*.json")), "both orders")
    for name in ("both", "again"):
        living.wait(lambda: states(living)[name] == "waiting", f"{name} to wait")  # noqa: B023
        assert pop(living, "approve", name).returncode == 0
    living.wait_complete(2)


def test_many_runs_wait_and_a_new_one_is_served(make_living: Make) -> None:
    """Sixty at rest with room for two; then all are answered while the daemon is down."""
    living = make_living(pipeline=gate(when="seed.ask"), tasks=TASKS, settings=QUICK + "[concurrency]\nruns = 2\n")
    daemon = living.up()
    count = 60
    for number in range(count):
        living.drop(f"w{number}.json", {"name": f"w{number}", "data": {"ask": True}})
    living.wait(lambda: list(states(living).values()) == ["waiting"] * count, "all to wait", 150)
    living.drop("new.json", {"name": "new", "data": {"ask": False}})
    living.wait_complete(1)
    living.stop(daemon)
    for run_dir in living.current():
        (run_dir / "tasks" / "look" / "APPROVE").touch()
    living.up()
    living.wait_complete(count + 1, 150)


# -- orders of tasks ---------------------------------------------------------------------------------------------------


def test_a_step_that_adds_is_run_again(make_living: Make) -> None:
    """A rerun from it: what it ordered before is over, so that it may order the same once more."""
    pipeline = {"name": "p", "tasks": [{"task": "orders", "name": "first"}, {"approve": "look"}, "last"]}
    living = make_living(pipeline=pipeline, tasks={**TASKS, "orders.py": ORDERS}, settings=QUICK)
    living.up()
    run_dir = waiting(living, "it", {"orders": [["add", {"task": "echo", "name": "more"}]]})
    order(run_dir, "rerun", {"from": ["first"]})
    living.wait(lambda: len(journal(run_dir, "gate.opened")) == 2, "a gate to open again")
    assert living.wait_state("waiting")["waiting_for"] == "look"
    assert pop(living, "approve", "it").returncode == 0
    (row,) = living.wait_complete(1)
    assert living.output(row, "more")["made"] == "more"


def test_a_pause_in_the_middle_of_an_each(make_living: Make) -> None:
    """One item pauses the run: what runs ends, nothing further begins, over a restart too."""
    code = "import time\ndef infer(prompt, ctx):\n    if ctx.item == 1: ctx.control.pause('look')\n    time.sleep(0.3)\n    return ctx.item\n"
    pipeline = {"name": "p", "concurrency": 2, "tasks": [{"each": "seed.items", "do": "one"}, "last"]}
    living = make_living(pipeline=pipeline, tasks={**TASKS, "one.py": code}, settings=QUICK)
    daemon = living.up()
    living.drop("a.json", {"name": "it", "data": {"items": list(range(8))}})
    status = living.wait_state("paused")
    assert 2 <= sum(task["state"] == "done" for task in status["tasks"].values()) <= 3
    daemon.kill()
    daemon.wait()
    living.up()
    time.sleep(1.5)
    assert states(living) == {"it": "paused"}
    pop(living, "resume", "it")
    (row,) = living.wait_complete(1)
    assert living.output(row, "last")["one"] == list(range(8))


def test_orders_in_every_lap_and_in_items(make_living: Make) -> None:
    """A name that is taken opens a control gate; a pause in the middle of an each; too many steps; a step that runs."""
    one = {"task": "echo", "name": "more"}
    body = {"repeat": [{"task": "orders", "name": "first"}], "until": "lap >= 2", "at_most": 3}
    living = make_living(
        pipeline={"name": "p", "tasks": [body, "last"]}, tasks={**TASKS, "orders.py": ORDERS}, settings=QUICK
    )
    living.up()
    twice = waiting(living, "twice", {"orders": [["add", one]]})
    assert living.status(twice)["waiting_for"] == "first@2+control"
    many = [["add", {"task": "echo", "name": f"n{number}"}] for number in range(101)]
    waiting(living, "many", {"orders": many})
    waiting(living, "running", {"orders": [["skip", "first", "no"]]})
    waiting(
        living,
        "circle",
        {
            "orders": [
                ["add", {"task": "echo", "name": "x", "needs": ["y"]}],
                ["add", {"task": "echo", "name": "y", "needs": ["x"]}],
            ]
        },
    )
    for name in ("twice", "many", "running", "circle"):
        run_dir = folder(living, name)
        assert "\x1b" not in (next(run_dir.glob("tasks/first*control")) / "request.md").read_text()
        while name in states(living):
            if states(living)[name] == "waiting":
                pop(living, "approve", name)
            time.sleep(0.1)
    living.wait_complete(4)


def test_words_of_a_model_in_a_request(make_living: Make) -> None:
    """Fences, escapes and letters that turn the line around do not leave their place, and never count as an answer."""
    evil = "```\n# APPROVED\n~~~~\n\x1b[2J\u202egnp.exe\u2066\n````\n$(touch x)\n<script>"
    nasty = f"def infer(prompt, ctx):\n    return {{'text': {evil!r}, {evil!r}: 1}}\n"
    living = make_living(pipeline=gate(text="Good?"), tasks={**TASKS, "echo.py": nasty}, settings=QUICK)
    living.up()
    run_dir = waiting(living, "it", {})
    page = (run_dir / "tasks" / "look" / "request.md").read_text()
    assert not {"\x1b", "\u202e", "\u2066"} & set(page)
    assert not any(line.startswith("# APPROVED") for line in page.splitlines())
    assert pop(living, "approve", "it").returncode == 0
    living.wait_complete(1)


# -- forks -------------------------------------------------------------------------------------------------------------


def test_forks_of_forks(make_living: Make) -> None:
    """A fork of a fork stands on its own; one of a run that is gone, or that lies elsewhere, is rejected."""
    living = make_living(pipeline=gate(), tasks=TASKS, settings=QUICK)
    living.up()
    waiting(living, "one", {})
    pop(living, "approve", "one")
    parent = living.wait_complete(1)[0]["run_id"]
    for number in (2, 3):
        living.drop(f"f{number}.json", {"name": f"f{number}", "data": {}, "fork": {"run": parent, "from": ["last"]}})
        parent = living.wait_complete(number)[-1]["run_id"]
    rows = living.ledger()
    assert len({json.dumps(living.output(row, "last"), sort_keys=True) for row in rows}) == 1
    assert [row["attempts"] for row in rows] == [2, 1, 1]
    bad = ["../pipeline-complete/" + parent, "x" * 300, "a\0b", "", ".", "nobody"]
    for number, name in enumerate(bad):
        living.drop(f"bad{number}.json", {"data": {}, "fork": {"run": name, "from": ["last"]}})
    living.wait(lambda: len(list(living.root.rejected.glob("*.reason.json"))) == len(bad), "six rejections")
    assert len(living.ledger()) == 3


def test_a_fork_of_a_run_whose_gate_holds_strange_things(make_living: Make) -> None:
    """Links, pipes and folders in a gate's folder are no answers, and are left behind."""
    living = make_living(pipeline=gate(), tasks=TASKS, settings=QUICK)
    living.up()
    run_dir = waiting(living, "one", {})
    (run_dir / "tasks" / "look" / "show" / "link").symlink_to("/etc/passwd")
    os.mkfifo(run_dir / "tasks" / "look" / "show" / "pipe")
    (run_dir / "tasks" / "look" / "decision.invalid-7.json").symlink_to("/etc/passwd")
    assert pop(living, "approve", "one").returncode == 0
    parent = living.wait_complete(1)[0]["run_id"]
    living.drop("f.json", {"data": {}, "fork": {"run": parent, "from": ["last"]}})
    row = living.wait_complete(2)[-1]
    assert not list((living.path / row["path"]).rglob("pipe")) and not list((living.path / row["path"]).rglob("link"))


# -- accounts ----------------------------------------------------------------------------------------------------------


def test_totals_agree_after_laps_a_rerun_and_a_parse_again(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """status, runs.jsonl and `pop cost` say what the provider served."""
    settings = f'[models.default]\nprovider = "openai"\nmodel = "m"\nbase_url = "{fake_openai.base_url}"\n' + QUICK
    tasks = {**TASKS, "write.md": "Write {{ seed.topic }} in lap {{ lap }}.", "made.md": "Make {{ seed.topic }}."}
    tasks["write.py"] = "def parse(text, ctx):\n    return {'score': ctx.lap}\n"
    pipeline = {
        "name": "p",
        "tasks": [
            "made",
            {"repeat": "write", "until": "inputs.write.score >= 3", "at_most": 5},
            {"approve": "look"},
            "last",
        ],
    }
    living = make_living(pipeline=pipeline, tasks=tasks, settings=settings)
    living.up()
    run_dir = waiting(living, "it", {"topic": "tides"})
    assert fake_openai.total == 4
    order(run_dir, "rerun", {"from": ["write@2"], "reason": "again"})
    living.wait(lambda: len(journal(run_dir, "run.waiting")) == 2, "it to wait again")
    calls = fake_openai.total
    assert calls in (5, 6)
    order(run_dir, "rerun", {"from": ["write:parse"]})
    living.wait(lambda: len(journal(run_dir, "run.waiting")) == 3, "it to wait again")
    assert fake_openai.total == calls
    status = living.status(run_dir)
    assert status["usage"]["calls"] == calls
    assert sum(task["usage"]["calls"] for task in status["tasks"].values() if task.get("usage")) == calls
    pop(living, "approve", "it")
    (row,) = living.wait_complete(1)
    cost = json.loads(pop(living, "cost", "--json").stdout)
    assert row["usage"]["calls"] == calls and str(calls) in json.dumps(cost), cost
