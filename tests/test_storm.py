"""Storms over the gateway: wild servers, kills, full disks, askers that leave. What was spent is told the same everywhere.

The server's usage names each request (its input tokens are a number of its own), so that a line of the ledger can be
laid beside the very request it stands for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from pop.models.answers import AnswerStore
from pop.models.calls import nano
from pop.models.catalogue import Catalogue
from pop.models.entries import ModelEntry
from pop.models.keys import NOTE, Keys
from pop.models.request import Answer, Form, Message, ModelError, ModelRequest, Origin
from pop.models.router import Router
from pop.records import BudgetLimit
from pop.settings import Settings
from tests.living import LivingRoot
from tests.test_kills import strike
from tests.test_spending import gateway_of, lines, pop

Make = Callable[..., LivingRoot]
KEY = {"FAKE_KEY": "sk-fake-0123456789"}
WEIGHTS = {"ok": 60, "length": 3, "refusal": 3, "429": 5, "500": 5, "cut": 5, "empty": 5, "slow": 2, "prose": 4}
COUNTED = {"ok", "length", "refusal", "empty", "prose"}


class WildServer:
    """Answers by chance; `got` says what the how-manieth request got."""

    def __init__(self, rng: random.Random) -> None:
        self.got: dict[int, str] = {}
        self._rng, self._lock = rng, threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def next(self) -> tuple[int, str, float]:
        with self._lock:
            number = len(self.got) + 1
            self.got[number] = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            return number, self.got[number], self._rng.uniform(0.05, 0.6)

    def body(self, number: int, kind: str, asked: dict[str, Any]) -> tuple[int, bytes]:
        if kind in ("429", "500"):
            return int(kind), b'{"error": {"message": "trouble"}}'
        text = json.dumps({"n": number}) if "response_format" in asked and kind != "prose" else f"answer {number}"
        message = {"role": "assistant", "content": None if kind == "refusal" else text}
        message |= {"refusal": "no"} if kind == "refusal" else {}
        choice = {"index": 0, "message": message, "finish_reason": "length" if kind == "length" else "stop"}
        usage = {"prompt_tokens": 1000 + number, "completion_tokens": 7}
        value = {"id": "x", "model": "wild-1", "choices": [] if kind == "empty" else [choice], "usage": usage}
        return 200, json.dumps(value).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # with few, connections break under load of which the server has seen nothing


def _handler(wild: WildServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            number, kind, delay_s = wild.next()
            time.sleep(4.0 if kind == "slow" else delay_s)
            status, data = wild.body(number, kind, asked)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.close_connection = kind == "cut"
                self.wfile.write(data[: len(data) // 2] if kind == "cut" else data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def wild() -> Iterator[WildServer]:
    server = WildServer(random.Random(20261121))
    yield server
    server.close()


# -- promise 9, under kills ------------------------------------------------------------------------------------

TASKS = {
    "list.py": "def infer(prompt, ctx):\n    return list(range(5))\n",
    "each.md": "Say {{ item }} of {{ seed.n }}.",
    "gather.py": "def infer(prompt, ctx):\n    return [r.text for r in ctx.gather([f'part {n}' for n in range(6)])]\n",
    "careless.py": "def infer(prompt, ctx):\n    try:\n        return ctx.infer('careless').text\n"
    "    except Exception:\n        return 'gave up'\n",
    "form.md": "How many for {{ seed.n }}?",
    "form.schema.json": '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}',
}
STEPS = [
    "list",
    {"parallel": [
        {"each": "inputs.list", "do": {"task": "each", "attempts": 3}},
        {"task": "gather", "attempts": 3, "timeout": "3s"},
        {"task": "form", "attempts": 3, "refinements": 1},
        "careless",
    ]},
]  # fmt: skip
RUNS = 16


def settings_for(wild: WildServer) -> str:
    return f"""
[models]
default = "wild"
[models.wild]
provider = "openai"
model = "wild-1"
base_url = "{wild.base_url}"
api_key_env = "FAKE_KEY"
tries = 3
timeout_s = 2
structured = "schema"
price = {{ input = 0.333333, output = 1.777777 }}
[concurrency]
workers = 12
runs = 6
[daemon]
drain_s = 0.5
"""


def order(run_dir: Path, verb: str) -> None:
    with contextlib.suppress(OSError):
        (run_dir / "orders").mkdir(exist_ok=True)
        (run_dir / "orders" / f"{verb}.json").write_text("{}")


def strike_anything(living: LivingRoot, rng: random.Random) -> None:
    """A kill, a cancel or a retry."""
    daemon = living.daemons[-1]
    kind = rng.choice(["worker", "gateway", "supervisor", "cancel", "retry", "retry"])
    if kind in ("worker", "gateway"):
        strike(living, daemon.pid, kind, rng)
    elif kind == "supervisor":
        daemon.kill()
        daemon.wait()
        living.up(env=KEY)
    else:
        for run_dir in living.current():
            if kind == "retry" or rng.random() < 0.3:
                order(run_dir, kind)


def at_rest(living: LivingRoot) -> bool:
    states = [living.status(run_dir)["state"] for run_dir in living.current()]
    waiting = list(living.root.pending.glob("*.json")) or [p for p in living.root.current.glob("*/orders/*.json")]
    return not waiting and "running" not in states and len(states) + len(living.ledger()) == RUNS


def sums(parts: list[dict[str, Any]]) -> dict[str, int]:
    names = ("calls", "input_tokens", "output_tokens")
    return {name: sum(part[name] for part in parts) for name in names} | {
        "nano_usd": sum(nano(part["cost_usd"]) for part in parts)
    }


@pytest.mark.timeout(240)
def test_after_a_storm_of_kills_every_place_tells_the_same(make_living: Make, wild: WildServer) -> None:
    """Each request that came stands in the ledger once; status, runs.jsonl and `pop cost` are its sums to the last digit."""
    rng = random.Random(7)
    living = make_living(pipeline={"name": "p", "tasks": STEPS}, tasks=TASKS, settings=settings_for(wild))
    living.up(env=KEY)
    for number in range(RUNS):
        living.drop(f"s{number:02}.json", {"n": number})
    end = time.monotonic() + 15.0
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.05, 0.8))
        with contextlib.suppress(psutil.Error):
            strike_anything(living, rng)
    living.wait(lambda: at_rest(living), "all runs at rest", patience_s=120)

    def told() -> dict[str, int]:
        return sums([row["usage"] for row in living.ledger()] + [living.status(d)["usage"] for d in living.current()])

    def ledger() -> dict[str, int]:
        return sums([{**line, "calls": 1} for line in lines(living) if line["billed"]])

    living.wait(lambda: told() == ledger(), f"the totals: {told()} is not {ledger()}", patience_s=10)
    cost = json.loads(pop(living, "cost", "--json").stdout)["total"]
    assert sums([cost]) == ledger()
    check_each_request_once(lines(living), wild)


def check_each_request_once(ledger: list[dict[str, Any]], wild: WildServer) -> None:
    assert len({line["id"] for line in ledger}) == len(ledger)
    numbers = Counter(line["input_tokens"] - 1000 for line in ledger if line["billed"] and not line["estimated"])
    assert set(numbers.values()) == {1}
    assert {wild.got[number] for number in numbers} <= COUNTED
    lost = sum(line["outcome"] == "lost" for line in ledger)
    assert len(ledger) - lost <= len(wild.got) <= len(ledger)


def test_a_cancelled_run_whose_daemon_is_killed_is_settled_by_the_next(make_living: Make, wild: WildServer) -> None:
    """Its status says so, and what it has spent: the call that was lost with the gateway too."""
    wild.next = lambda: (1, "slow", 0.0)  # type: ignore[method-assign]
    tasks = {"ask.md": "Hello?"}
    living = make_living(pipeline={"name": "p", "tasks": ["ask"]}, tasks=tasks, settings=settings_for(wild))
    daemon = living.up(env=KEY)
    living.drop("a.json", {})
    in_flight = living.root.machine_room / "in-flight.jsonl"
    living.wait(lambda: in_flight.stat().st_size, "the call")
    run_dir = living.current()[0]
    gateway_of(daemon).kill()
    order(run_dir, "cancel")
    journal = run_dir / "events.jsonl"
    living.wait(lambda: "run.cancelled" in journal.read_text(), "the cancel")
    daemon.kill()
    daemon.wait()
    living.up(env=KEY)
    status = living.wait_state("cancelled", run_dir)
    living.wait(lambda: living.status(run_dir)["usage"]["calls"] == len(lines(living)) >= 1, "the totals")
    assert status["state"] == "cancelled"


def test_a_gateway_whose_daemon_is_gone_ends(make_living: Make, wild: WildServer) -> None:
    """Also with a call under way that takes longer than its patience."""
    wild.next = lambda: (1, "slow", 0.0)  # type: ignore[method-assign]
    settings = settings_for(wild).replace("timeout_s = 2", "timeout_s = 60")
    living = make_living(pipeline={"name": "p", "tasks": ["ask"]}, tasks={"ask.md": "Hello?"}, settings=settings)
    daemon = living.up(env=KEY)
    living.drop("a.json", {})
    living.wait(lambda: (living.root.machine_room / "in-flight.jsonl").stat().st_size, "the call")
    gateway = gateway_of(daemon)
    daemon.kill()
    gateway.wait(8)


# -- the router alone ------------------------------------------------------------------------------------------


class Desk:
    """A router whose provider answers when `gate` is open."""

    def __init__(self, folder: Path, tables: dict[str, Any] | None = None, **model: Any) -> None:
        self.calls = 0
        self.text = "x"
        self.gate = asyncio.Event()
        self.configure(tables, **model)
        self.store = AnswerStore(folder / "answers.db", calls=folder / "calls", durable=False)
        self.router = Router(
            self.store,
            catalogue=lambda: Catalogue(self.settings, {}),
            budget=lambda: self.settings.budget,
            provider=self._provider,
            clean=lambda answer: answer,
        )

    def configure(self, tables: dict[str, Any] | None = None, **model: Any) -> None:
        entry = {"provider": "openai", "model": "m-1", "base_url": "http://localhost:1/v1", **model}
        self.settings = Settings.model_validate({"models": {"default": "m", "m": entry}, **(tables or {})})

    async def _provider(self, kind: str) -> Desk:
        return self

    async def answer(self, request: ModelRequest, entry: ModelEntry, origin: Origin, form: Form | None) -> Answer:
        self.calls += 1
        await self.gate.wait()
        return Answer(
            text=self.text, model="m", provider="openai", provider_model="m-1", input_tokens=9, output_tokens=1
        )

    def ask(self, text: str, run_id: str, *, budgets: list[BudgetLimit] | None = None) -> asyncio.Task[Answer]:
        request = ModelRequest(model="m", messages=[Message(role="user", content=text)], reuse_s=60.0)
        origin = Origin(run_id=run_id, instance="i", generation=1, attempt=1, step="i", budgets=budgets or [])
        return asyncio.create_task(self.router.ask(request, origin))


def test_a_note_that_an_answer_held_a_key_stays_beside_other_warnings(tmp_path: Path) -> None:
    """The answer is cleaned before its flight adds what the budgets say."""

    async def work() -> None:
        desk = Desk(tmp_path, {"budget": {"warn": {"run_calls": 0}}})
        keys = Keys({"A_KEY": "sk-0123456789abcdef"})
        desk.router._clean = desk.router._tries._clean = keys.redact_answer
        desk.text = "It is sk-0123456789abcdef."
        desk.gate.set()
        answer = await desk.ask("one", "r")
        assert answer.text == "It is [redacted]."
        assert NOTE in answer.warnings and any("run_calls" in text for text in answer.warnings)
        desk.store.close()

    play(work())


async def soon(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def play(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def test_who_joins_a_question_that_is_just_given_up_gets_an_answer(tmp_path: Path) -> None:
    """The asker before it left in that very moment; two who join it later share one call."""

    async def work() -> None:
        desk = Desk(tmp_path, concurrency=1)
        first = desk.ask("first", "z")
        await soon(lambda: desk.calls)
        leaver = desk.ask("same", "a")
        await asyncio.sleep(0.02)
        leaver.cancel()
        joiners = [desk.ask("same", "b"), desk.ask("same", "c")]
        await asyncio.sleep(0.02)
        assert all(desk.router.waited(run, "i", 1)["waiting"] for run in "bc")
        desk.gate.set()
        await asyncio.gather(first, *joiners)
        assert desk.calls == 2 and desk.router.figures()["flights"] == 0
        assert desk.router.figures()["lanes"]["model m"]["requests_per_minute"] == 2
        desk.store.close()

    play(work())


def test_the_budget_of_who_asked_first_is_not_that_of_the_others(tmp_path: Path) -> None:
    """Who waits for the same answer asks itself."""

    async def work() -> None:
        desk = Desk(tmp_path)
        desk.gate.set()
        poor = desk.ask("same", "poor", budgets=[BudgetLimit(name="run_calls", limit=0, source="the seed")])
        rich = desk.ask("same", "rich")
        found = await asyncio.gather(poor, rich, return_exceptions=True)
        assert isinstance(found[0], ModelError) and found[0].error_class == "budget" and isinstance(found[1], Answer)
        desk.store.close()

    play(work())


def test_limits_that_are_raised_let_those_go_on_who_wait(tmp_path: Path) -> None:
    """Though nobody asks anything new."""

    async def work() -> None:
        desk = Desk(tmp_path, requests_per_minute=1)
        desk.gate.set()
        asked = [desk.ask(f"q{number}", "r") for number in range(20)]
        await soon(lambda: any(one.done() for one in asked))
        desk.configure(requests_per_minute=60_000)
        desk.router.refresh()
        async with asyncio.timeout(5):
            await asyncio.gather(*asked)
        desk.store.close()

    play(work())


def test_a_call_that_a_budget_refuses_takes_no_place_in_the_lane(tmp_path: Path) -> None:
    """A hundred refusals at one request per minute are told at once."""

    async def work() -> None:
        desk = Desk(tmp_path, {"budget": {"day_calls": 1}}, requests_per_minute=20)
        desk.gate.set()
        found = await asyncio.gather(*[desk.ask(f"q{number}", "r") for number in range(100)], return_exceptions=True)
        assert sum(isinstance(one, Answer) for one in found) == desk.calls == 1
        assert desk.router.figures()["lanes"]["model m"]["requests_per_minute"] == 1
        desk.store.close()

    play(work())


def test_a_thousand_who_ask_and_leave_are_forgotten(tmp_path: Path) -> None:
    """No flight, no wait and no place in a lane is left of them, and nothing was asked."""

    async def work() -> None:
        desk = Desk(tmp_path, concurrency=1)
        first = desk.ask("first", "z")
        await soon(lambda: desk.calls)
        for number in range(1000):
            asked = desk.ask(f"q{number}", f"r{number}")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            asked.cancel()
            desk.router.forget_waits(Origin(run_id=f"r{number}", instance="i", generation=1, attempt=1))
        await soon(lambda: desk.router.figures()["flights"] == 1)
        assert desk.router.figures()["lanes"]["model m"]["waiting"] == 0 and len(desk.router._waited) == 1
        desk.gate.set()
        await first
        assert desk.calls == 1
        desk.store.close()

    play(work())


def test_nothing_is_spent_while_the_ledger_finds_no_room_and_nothing_is_forgotten(tmp_path: Path) -> None:
    """The call that was under way when the disk became full comes into the ledger when there is room again."""

    async def work() -> None:
        desk = Desk(tmp_path)
        desk.gate.set()
        (tmp_path / "calls").mkdir()
        full = tmp_path / "calls" / f"{time.strftime('%Y-%m-%d', time.gmtime())}.jsonl"
        full.symlink_to("/dev/full")
        for number in range(3):
            with pytest.raises(ModelError) as caught:
                await desk.ask(f"q{number}", "r")
            assert caught.value.error_class == "unavailable"
        assert desk.calls == 1
        os.unlink(full)
        await desk.ask("after", "r")
        assert desk.calls == 2 and desk.store.totals(("run", "r")).calls == 2
        desk.store.close()

    play(work())
