"""What calls cost, who limits them, who answers them: through a real daemon, the real SDK and a real HTTP server.

Promise 9: status, ledger of runs, ledger of calls and `pop cost` say the same, and it is what the server served.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pop.orders import write_order
from pop.store import Disk
from tests import warm
from tests.fake_openai import FakeOpenAI, Fault
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]
KEY = "sk-fake-0123456789abcdef"
GATHER = "def infer(prompt, ctx):\n    return [r.text for r in ctx.gather([f'part {{n}}' for n in range({count})])]\n"
USD = "price = { input = 1000.0, output = 2000.0 }\n"


def settings_for(fake: FakeOpenAI, more: str = "", tables: str = "") -> str:
    return f"""
{tables}
[models]
default = "fake"
[models.fake]
provider = "openai"
model = "fake-1"
base_url = "{fake.base_url}"
api_key_env = "FAKE_KEY"
tries = 3
timeout_s = 10
{more}
"""


def up(make: Make, fake: FakeOpenAI, tasks: dict[str, str], steps: list[Any] | None = None, **about: str) -> LivingRoot:
    """A daemon on a root whose default model is the fake server's."""
    pipeline = {"name": "p", "tasks": steps or ["ask"]}
    living = make(pipeline=pipeline, tasks=tasks, settings=settings_for(fake, **about))
    living.up(env={"FAKE_KEY": KEY})
    return living


def pop(living: LivingRoot, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "POP_"))}
    return warm.pop(["--root", living.path, *arguments], env={**environment, "FAKE_KEY": KEY})


def lines(living: LivingRoot) -> list[dict[str, Any]]:
    """The ledger of calls, all days."""
    found = []
    for path in sorted((living.root.complete / "calls").glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_bytes().splitlines()]
    return found


def billed(living: LivingRoot) -> dict[str, float]:
    rows = [line for line in lines(living) if line["billed"]]
    return {
        "calls": len(rows),
        "input_tokens": sum(row["input_tokens"] for row in rows),
        "output_tokens": sum(row["output_tokens"] for row in rows),
        "cost_usd": pytest.approx(sum(row["cost_usd"] for row in rows)),
    }


def served(fake: FakeOpenAI) -> dict[str, int]:
    """What the fake server counted, by the words of what it was asked and what it said."""
    asked = [body for body in fake.bodies if body["messages"]]
    assert len(asked) == fake.total
    return {
        "calls": fake.total,
        "input_tokens": sum(len(str(m["content"]).split()) for body in asked for m in body["messages"]),
        "output_tokens": sum(len(one.text.split()) for one in fake.served),
    }


def agrees(usage: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: usage[name] for name in expected} == expected


def gateway_of(daemon: subprocess.Popen[bytes]) -> psutil.Process:
    children = psutil.Process(daemon.pid).children()
    return next(child for child in children if "pop.models.gateway" in " ".join(child.cmdline()))


# -- promise 9 -------------------------------------------------------------------------------------------------


def test_every_place_says_what_the_server_served(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Also of answers that were no use: cut off, or of the wrong form."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    fake_openai.answers = ['{"n": "many"}', '{"n": 7}', "not this", "enough"]
    fake_openai.faults = [Fault(), Fault(), Fault(finish_reason="length"), Fault()]
    tasks = {"ask.md": "How many?", "ask.schema.json": json.dumps(schema), "more.md": "More, please?"}
    living = up(make_living, fake_openai, tasks, steps=["ask", {"task": "more", "attempts": 3}], more=USD)
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert fake_openai.total == 4
    expected = served(fake_openai)
    agrees(row["usage"], expected)
    agrees(billed(living), expected)
    status = json.loads((living.path / row["path"] / "tasks-status.json").read_bytes())
    agrees(status["usage"], expected)
    assert sum(task["usage"]["calls"] for task in status["tasks"].values()) == 4
    cost = json.loads(pop(living, "cost", "--by", "run", "--json").stdout)
    agrees(cost["total"], expected)
    assert cost["total"]["cost_usd"] == row["usage"]["cost_usd"] == billed(living)["cost_usd"]


def test_a_gateway_that_is_killed_loses_no_call(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """What was under way is counted by its estimate; the next attempt asks again, and both are in every total."""
    fake_openai.delay_s = 1.0
    living = up(make_living, fake_openai, {"ask.md": "Hello there?"}, more=USD)
    living.drop("a.json", {})
    living.wait(lambda: len(fake_openai.bodies) == 1, "the call")
    gateway_of(living.daemons[0]).kill()
    (row,) = living.wait_complete(1)
    assert fake_openai.total == 2
    outcomes = [line["outcome"] for line in lines(living)]
    assert sorted(outcomes) == ["answer", "lost"]
    assert row["usage"]["calls"] == 2 and row["usage"]["estimated_calls"] == 1
    assert row["usage"]["cost_usd"] == billed(living)["cost_usd"]


def test_a_call_that_outlives_its_worker_is_counted(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The attempt's time is over, the request is not; its answer is stored and is the next attempt's."""
    steps = [{"task": "ask", "timeout": "1s", "attempts": 1}]
    living = up(make_living, fake_openai, {"ask.md": "Hello {{ seed.n }}?"}, steps=steps, more=USD)
    living.drop("warm.json", {"n": 0})
    living.wait_complete(1)
    fake_openai.delay_s = 3.0
    living.drop("a.json", {"n": 1})
    status = living.wait_state("failed")
    assert status["error"]["error_class"] == "timeout" and fake_openai.total == 2
    assert living.status()["usage"]["calls"] == 1
    assert billed(living)["calls"] == 2
    fake_openai.delay_s = 0.0
    pop(living, "retry", living.current()[0].name)
    row = living.wait_complete(2)[-1]
    assert fake_openai.total == 2 and row["usage"]["calls"] == 1 and row["usage"]["cached_calls"] == 1


@pytest.mark.parametrize("state", ["waiting", "paused"])
def test_a_call_that_ends_while_its_run_rests_is_counted(
    make_living: Make, fake_openai: FakeOpenAI, state: str
) -> None:
    """Nobody takes the run up: its status and its journal say what it cost all the same, and it still rests."""
    step = {"task": "ask", "timeout": "3s", "recover": {"timeout": "ask" if state == "waiting" else "retry"}}
    living = up(make_living, fake_openai, {"ask.md": "Hello {{ seed.n }}?"}, steps=[step], more=USD)
    living.drop("warm.json", {"n": 0})
    living.wait_complete(1)
    fake_openai.delay_s = 8.0
    living.drop("a.json", {"n": 1})
    living.wait(lambda: len(fake_openai.bodies) == 2, "the call")
    if state == "paused":
        write_order(Disk(), living.wait(living.current, "its status")[0], "pause")
    assert living.wait_state(state)["usage"]["calls"] == 0
    living.wait(lambda: living.status()["usage"]["calls"] == 1, "the late call")
    assert living.status()["state"] == state
    (run_dir,) = living.current()
    assert b'"usage.late"' in (run_dir / "events.jsonl").read_bytes().splitlines()[-1]
    fake_openai.delay_s = 0.0
    pop(living, *(("approve", run_dir.name) if state == "waiting" else ("resume", run_dir.name)))
    row = living.wait_complete(2)[-1]
    assert row["usage"]["calls"] == 1 and row["usage"]["cached_calls"] == 1


def test_the_ledger_outlives_the_machine_room(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """.pop may be deleted while the daemon is off: what was spent today still counts."""
    living = up(make_living, fake_openai, {"ask.md": "Hi?"}, tables="[budget]\nday_calls = 2\n")
    living.drop("a.json", {})
    living.wait_complete(1)
    living.stop(living.daemons[0])
    subprocess.run(["rm", "-rf", living.root.machine_room], check=True)
    living.up(env={"FAKE_KEY": KEY})
    living.drop("b.json", {})
    living.wait_complete(2)
    living.drop("c.json", {})
    assert "day_calls = 2" in living.wait_state("failed")["error"]["message"]
    assert fake_openai.total == 2


# -- budgets ---------------------------------------------------------------------------------------------------


def test_a_replay_uses_up_no_budget(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Neither in the ledger nor in what the gateway has in mind: the second call of the day is still allowed."""
    living = up(make_living, fake_openai, {"ask.md": "Hi {{ seed.n }}?"}, tables="[budget]\nday_calls = 2\n")
    living.drop("a.json", {"n": 1})
    run_id = living.wait_complete(1)[0]["run_id"]
    for _ in range(2):
        assert pop(living, "run", "--replay", run_id, "-q").returncode == 0
    living.drop("b.json", {"n": 2})
    living.wait_complete(4)
    assert fake_openai.total == 2 and sum(line["billed"] for line in lines(living)) == 2


@pytest.mark.parametrize("where", ["seed", "pipeline", "step", "settings"])
def test_a_budget_stops_the_run_and_a_larger_one_lets_it_go_on(
    make_living: Make, fake_openai: FakeOpenAI, where: str
) -> None:
    """Whoever sets it. Not one call more than it allows; what was answered is not paid for again."""
    budget = {"step_calls" if where == "step" else "run_calls": 4}
    name = next(iter(budget))
    step: dict[str, Any] = {"task": "ask", **({"budget": budget} if where == "step" else {})}
    pipeline: dict[str, Any] = {"name": "p", "tasks": [step], **({"budget": budget} if where == "pipeline" else {})}
    tables = "[budget]\nrun_calls = 4\n" if where == "settings" else ""
    tasks = {"ask.py": GATHER.format(count=10)}
    living = make_living(pipeline=pipeline, tasks=tasks, settings=settings_for(fake_openai, tables=tables))
    living.up(env={"FAKE_KEY": KEY})
    living.drop("a.json", {"data": {}, **({"budget": budget} if where == "seed" else {})})
    error = living.wait_state("failed")["error"]
    assert error["error_class"] == "budget" and f"{name} = 4" in error["message"] and error["hint"]
    assert fake_openai.total == 4
    if where == "settings":
        text = living.root.settings_file.read_text()
        living.root.settings_file.write_text(text.replace("run_calls = 4", "run_calls = 10"))
        pop(living, "retry", "last")
    else:
        assert pop(living, "retry", "last", "--budget", f"{name}=10").returncode == 0
    (row,) = living.wait_complete(1)
    assert fake_openai.total == 10 and row["usage"]["calls"] == 10


def test_many_workers_do_not_overshoot(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Each call is reserved before it is made."""
    fake_openai.delay_s = 0.2
    tasks = {"list.py": "def infer(prompt, ctx):\n    return list(range(40))\n", "ask.md": "Say {{ item }}."}
    steps = ["list", {"each": "inputs.list", "do": {"task": "ask", "attempts": 1}}]
    living = up(make_living, fake_openai, tasks, steps=steps, tables="[budget]\nday_calls = 7\n")
    living.drop("a.json", {})
    assert living.wait_state("failed")["error"]["error_class"] == "budget"
    assert fake_openai.total == 7


def test_a_cautious_estimate_refuses_nobody(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Where only what is under way stands in the way, a call waits until that is settled; its time stands still."""
    fake_openai.delay_s = 0.3
    steps = [{"task": "ask", "budget": {"step_tokens": 900}, "timeout": "2s"}]
    tasks = {"ask.py": GATHER.format(count=12)}
    living = up(make_living, fake_openai, tasks, steps=steps)
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert row["attempts"] == 1 and fake_openai.total == 12 and fake_openai.most_at_once == 1


def test_a_usd_budget_wants_a_price(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Before anything is spent; the error names the model."""
    living = up(make_living, fake_openai, {"ask.md": "Hi?"}, tables="[budget]\nrun_usd = 5\n")
    living.drop("a.json", {})
    error = living.wait_state("failed")["error"]
    assert error["code"] == "no-price" and "'fake'" in error["message"]
    assert fake_openai.bodies == []


def test_a_budget_below_one_call_says_so(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Nothing is sent."""
    living = up(make_living, fake_openai, {"ask.md": "Hi?"}, more=USD, tables="[budget]\nrun_usd = 0.001\n")
    living.drop("a.json", {})
    error = living.wait_state("failed")["error"]
    assert "one call" in error["message"] and "run_usd" in error["message"]
    assert fake_openai.bodies == []


def test_a_soft_budget_warns_once_and_goes_on(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """An event, and a note in the status."""
    tasks = {"ask.py": GATHER.format(count=6)}
    living = up(make_living, fake_openai, tasks, tables="[budget.warn]\nrun_calls = 3\n")
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    run_dir = living.path / row["path"]
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_bytes().splitlines()]
    told = [event["text"] for event in events if event["event"] == "budget.warning"]
    assert len(told) == 1 and "run_calls = 3" in told[0]
    assert told[0] in json.loads((run_dir / "tasks-status.json").read_bytes())["notes"]


# -- routing ---------------------------------------------------------------------------------------------------


def more_models(fake: FakeOpenAI, *names: str) -> str:
    """Further models of the same server."""
    return "".join(
        f'[models.{name}]\nprovider = "openai"\nmodel = "{name}-1"\nbase_url = "{fake.base_url}"\ntries = 2\n'
        for name in names
    )


def test_a_ladder_moves_up_with_each_round_and_each_new_attempt(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The cheap model tries first."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    fake_openai.answers = ["no", "never", "nothing", '{"n": 7}']
    more = more_models(fake_openai, "small", "middle", "large")
    more += '[models.climb]\nladder = ["small", "middle", "large"]\n'
    tasks = {"ask.md": "How many?", "ask.schema.json": json.dumps(schema)}
    steps = [{"task": "ask", "model": "climb", "refinements": 1, "attempts": 2}]
    living = up(make_living, fake_openai, tasks, steps=steps, more=more)
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert [body["model"] for body in fake_openai.bodies] == ["small-1", "middle-1", "middle-1", "large-1"]
    assert row["models"] == ["small", "middle", "large"]


def test_a_refusal_may_be_cured_by_the_next_model(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Both answers are paid for, and counted."""
    fake_openai.faults = [Fault(refusal="I will not.")]
    more = more_models(fake_openai, "prim") + '[models.both]\nfirst = ["prim", "fake"]\n'
    steps = [{"task": "ask", "model": "both"}]
    living = up(make_living, fake_openai, {"ask.md": "Hello?"}, steps=steps, more=more)
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert [body["model"] for body in fake_openai.bodies] == ["prim-1", "fake-1"]
    assert row["attempts"] == 1 and row["usage"]["calls"] == 2


def test_an_overload_goes_to_the_next_model(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """After the tries of the first one; the failed ones stand in calls.jsonl."""
    fake_openai.faults = [
        Fault(status=503, headers={"retry-after": "0"}),
        Fault(status=503, headers={"retry-after": "0"}),
    ]
    more = more_models(fake_openai, "weak") + '[models.both]\nfirst = ["weak", "fake"]\n'
    living = up(make_living, fake_openai, {"ask.md": "Hello?"}, steps=[{"task": "ask", "model": "both"}], more=more)
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    (call,) = [
        json.loads(line)
        for line in (living.path / row["path"] / "tasks/ask/attempts/1/calls.jsonl").read_bytes().splitlines()
    ]
    assert [(one["model"], one["error_class"], one["billed"]) for one in call["tries"]] == [
        ("weak", "unavailable", False), ("weak", "unavailable", False),
    ]  # fmt: skip
    assert call["model"] == "fake" and row["usage"]["calls"] == 1


# -- reuse -----------------------------------------------------------------------------------------------------


def test_an_answer_is_used_again_where_reuse_allows_it(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Across runs; without it, or when the model behind the name changed, the question is asked again."""
    living = up(make_living, fake_openai, {"ask.md": "Hello?"})
    for number, seed in enumerate(
        [{"data": {}}, {"data": {}, "reuse": True}, {"data": {}}, {"data": {}, "reuse": "1h"}]
    ):
        living.drop(f"{number}.json", seed)
        living.wait_complete(number + 1)
    assert fake_openai.total == 2
    assert [row["usage"]["cached_calls"] for row in living.ledger()] == [0, 1, 0, 1]
    text = living.root.settings_file.read_text()
    living.root.settings_file.write_text(text.replace('"fake-1"', '"fake-2"'))
    living.drop("5.json", {"data": {}, "reuse": True})
    living.wait_complete(5)
    assert fake_openai.total == 3


def test_two_who_ask_the_same_at_once_cause_one_call(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Under reuse."""
    fake_openai.delay_s = 1.0
    steps = [{"parallel": [{"task": "ask", "name": f"ask{n}", "reuse": True} for n in range(4)]}]
    living = up(make_living, fake_openai, {"ask.md": "Hello?"}, steps=steps, tables="[concurrency]\nworkers = 8\n")
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert fake_openai.total == 1
    assert (row["usage"]["calls"], row["usage"]["cached_calls"]) == (1, 3)


def test_an_answer_that_was_no_good_is_not_used_again(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Neither one that was cut off, by anybody; nor a bad one by the attempt that follows it."""
    fake_openai.faults = [Fault(finish_reason="length")]
    living = up(make_living, fake_openai, {"ask.md": "Hello?"}, more="reuse = true\n")
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert row["attempts"] == 2 and fake_openai.total == 2


# -- limits ----------------------------------------------------------------------------------------------------


def test_waiting_for_a_permit_counts_neither_as_a_stall_nor_against_the_time(
    make_living: Make, fake_openai: FakeOpenAI
) -> None:
    """Two at once, then one in three seconds; the attempts have a second and a half each, and the call has one."""
    fake_openai.delay_s = 0.1
    steps = [{"parallel": [
        {"task": "ask", "name": f"ask{n}", "timeout": "1.5s", "stall": "1s", "attempts": 1} for n in range(4)
    ]}]  # fmt: skip
    living = up(
        make_living, fake_openai, {"ask.md": "Hello {{ step }}?"}, steps=steps,
        more="requests_per_minute = 20\n", tables="[concurrency]\nworkers = 8\n",
    )  # fmt: skip
    living.root.settings_file.write_text(
        living.root.settings_file.read_text().replace("timeout_s = 10", "timeout_s = 1")
    )
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert row["attempts"] == 4 and fake_openai.total == 4
    assert fake_openai.arrivals[-1] - fake_openai.arrivals[0] > 3.0


def test_a_large_run_does_not_starve_a_small_one(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Two hundred questions wait; one that comes later is answered in its turn, not after them."""
    fake_openai.delay_s = 0.05
    tasks = {"many.py": GATHER.format(count=200), "ask.md": "Hello {{ seed.n }}?"}
    settings = settings_for(fake_openai, more="concurrency = 2\n")
    living = make_living(pipeline={"name": "p", "tasks": ["many"]}, tasks=tasks, settings=settings)
    (living.path / "pipelines").mkdir()
    (living.path / "pipelines" / "small.json").write_text(json.dumps({"tasks": ["ask"]}))
    living.up(env={"FAKE_KEY": KEY})
    living.drop("a.json", {})
    living.wait(lambda: fake_openai.total > 4, "the large run")
    living.drop("b.json", {"data": {"n": 1}, "pipeline": "small"})
    (row,) = living.wait_complete(1)
    assert row["pipeline"] == "small" and fake_openai.total < 100


def test_a_call_that_nobody_waits_for_is_not_made(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """A cancelled run spends nothing more than what was on its way."""
    fake_openai.delay_s = 0.5
    living = up(make_living, fake_openai, {"ask.py": GATHER.format(count=50)}, more="concurrency = 2\n")
    living.drop("a.json", {})
    living.wait(lambda: fake_openai.total >= 2, "the first answers")
    pop(living, "cancel", "last")
    status = living.wait_state("cancelled")
    time.sleep(1.0)
    assert fake_openai.total == len(fake_openai.bodies) < 40
    living.wait(lambda: living.status()["usage"]["calls"] == fake_openai.total, "the totals")
    assert status["state"] == "cancelled"


def test_what_models_do_now_can_be_seen(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """`pop ls --models`: in flight, waiting."""
    fake_openai.delay_s = 8.0
    living = up(make_living, fake_openai, {"ask.py": GATHER.format(count=5)}, more="concurrency = 2\n")
    living.drop("a.json", {})
    living.wait(lambda: len(fake_openai.bodies) >= 2, "two calls")
    figures = json.loads(pop(living, "ls", "--models", "--json").stdout)["lanes"]["model fake"]
    assert (figures["in_flight"], figures["waiting"], figures["window"]) == (2, 3, 2)
    assert "model fake" in pop(living, "ls", "--models").stdout


# -- pop models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("served_by_daemon", [True, False])
def test_models_are_listed_and_tested(make_living: Make, fake_openai: FakeOpenAI, served_by_daemon: bool) -> None:
    """Limits, price, key; with --test latency, schema support and errors, by the daemon's gateway or one of its own."""
    more = USD + '[models.dead]\nprovider = "openai"\nmodel = "x"\nbase_url = "http://127.0.0.1:9/v1"\ntries = 1\n'
    living = up(make_living, fake_openai, {"ask.md": "?"}, more=more)
    if not served_by_daemon:
        living.stop(living.daemons[0])
    else:
        living.wait(lambda: "daemon.started" in living.log(), "the daemon")
    listed = {row["name"]: row for row in json.loads(pop(living, "models", "--json").stdout)["models"]}
    assert listed["fake"]["key"] == {"variable": "FAKE_KEY", "set": True}
    assert listed["fake"]["price"]["input"] == 1000.0 and listed["default"]["meaning"] == "alias of fake"
    done = pop(living, "models", "--test", "--json")
    tested = {row["name"]: row["test"] for row in json.loads(done.stdout)["models"]}
    assert done.returncode == 4
    assert tested["fake"]["error"] is None and tested["fake"]["ms"] > 0 and tested["fake"]["form"]
    assert tested["dead"]["error"]["error_class"] == "unavailable"
    assert "ms, schema:" in pop(living, "models", "fake", "--test").stdout
    assert pop(living, "models", "fakee").returncode == 2


def test_the_daemon_ends_while_a_call_is_under_way(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The request was paid for: its answer is stored before the gateway goes."""
    fake_openai.delay_s = 2.0
    living = up(make_living, fake_openai, {"ask.md": "Hello?"}, tables="[daemon]\ndrain_s = 0.2\n")
    living.drop("a.json", {})
    living.wait(lambda: len(fake_openai.bodies) == 1, "the call")
    living.daemons[0].send_signal(signal.SIGTERM)
    living.daemons[0].wait(20)
    living.up(env={"FAKE_KEY": KEY})
    (row,) = living.wait_complete(1)
    assert fake_openai.total == 1 and row["usage"]["calls"] == 1


def test_the_path_of_the_ledger_is_private(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Nobody else reads what was asked of whom."""
    living = up(make_living, fake_openai, {"ask.md": "Hello?"})
    living.drop("a.json", {})
    living.wait_complete(1)
    modes = {oct(Path(path).stat().st_mode & 0o077) for path in (living.root.complete / "calls").rglob("*")}
    assert modes == {"0o0"}
