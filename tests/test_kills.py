"""kill -9 of every kind of process, at seeded instants, while work is in flight.

After each kill of the supervisor a new one is started; nobody else does anything. In the end every seed has exactly one
folder and one line (promises 1 and 2), outputs are whole and done steps were not run again (3), and no answer that was
stored was asked for again (4): the fake provider keeps the time of every request it served.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import pytest

from tests.fake_openai import FakeOpenAI
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]

KILLS = 66
KINDS = ("worker", "supervisor", "worker", "gateway", "worker", "forkserver")
STEPS = ("first", "second", "third")

# A kill uses up an attempt where it hits the worker itself, and on a busy machine it may hit one step many times.
PIPELINE = {"name": "talk", "tasks": [{"task": step, "attempts": 50} for step in STEPS]}
TASKS = {
    "first.md": "First thoughts on {{ seed.topic }}, please.",
    "second.md": "Second thoughts on {{ seed.topic }} after {{ inputs.first }}",
    "third.md": "Third thoughts on {{ seed.topic }} after {{ inputs.second }}",
}


def victims(living: LivingRoot, kind: str, supervisor: int) -> list[psutil.Process]:
    """The processes of one kind that are alive."""
    if kind == "supervisor":
        return [psutil.Process(supervisor)]
    found = []
    for process in psutil.Process(supervisor).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if kind_of(process, supervisor) == kind:
                found.append(process)
    return found


def kind_of(process: psutil.Process, supervisor: int) -> str:
    line = " ".join(process.cmdline())
    if "pop.models.gateway" in line:
        return "gateway"
    return "forkserver" if process.ppid() == supervisor else "worker"


def strike(living: LivingRoot, supervisor: int, kind: str, rng: random.Random) -> bool:
    """Kill one process of this kind; False when there was none at that instant."""
    try:
        alive = victims(living, kind, supervisor)
        if not alive:
            return False
        rng.choice(alive).kill()
    except psutil.Error:
        return False
    return True


@pytest.mark.timeout(400)
def test_sixty_kills_lose_nothing_and_pay_for_nothing_twice(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Promises 1 to 4, counted at the provider."""
    rng = random.Random(20261121)
    fake_openai.delay_s = 0.15
    settings = f"""
[models]
default = "fake"
[models.fake]
provider = "openai"
model = "fake-1"
base_url = "{fake_openai.base_url}"
api_key_env = "FAKE_KEY"
[concurrency]
workers = 8
"""
    living = make_living(pipeline=PIPELINE, tasks=TASKS, settings=settings)
    env = {"FAKE_KEY": "sk-fake-0123456789"}
    daemon = living.up(env=env)
    dropped = 0
    tally: dict[str, int] = {}
    for number in range(2 * KILLS):
        kind = KINDS[number % len(KINDS)]
        if sum(tally.values()) == KILLS:
            break
        dropped = keep_busy(living, dropped)
        living.wait(partial(victims, living, "worker", daemon.pid), "work in flight")
        time.sleep(rng.uniform(0.0, 0.8))
        if strike(living, daemon.pid, kind, rng):
            tally[kind] = tally.get(kind, 0) + 1
        if kind == "supervisor":
            daemon.wait()
            daemon = living.up(env=env)
    rows = living.wait_complete(dropped, patience_s=120)
    print("kills", sum(tally.values()), tally, "seeds", dropped)
    assert sum(tally.values()) >= 60, tally
    assert len(rows) == dropped
    check_places(living, rows)
    check_outputs(living, rows)
    check_nothing_was_paid_twice(living, fake_openai)


def keep_busy(living: LivingRoot, dropped: int) -> int:
    """Drop seeds until some wait in the queue or are at work; returns how many were dropped in all."""
    while dropped - len(living.ledger()) < 6:
        living.drop(f"seed{dropped}.json", {"topic": f"topic number {dropped}"})
        dropped += 1
    return dropped


def check_places(living: LivingRoot, rows: list[dict[str, Any]]) -> None:
    """One folder and one line for each seed, and nothing anywhere else."""
    topics = []
    for row in rows:
        topics.append(json.loads((living.path / row["path"] / "seed.json").read_bytes())["topic"])
    assert sorted(topics) == sorted(f"topic number {number}" for number in range(len(rows)))
    folders = [path for path in living.root.complete.iterdir() if path.is_dir() and path.name[0] == "2"]
    assert len(folders) == len(rows)
    living.wait(lambda: not [path for path in living.root.current.iterdir() if path.name[0] != "."], "an empty current")
    assert not list(living.root.pending.glob("*.json")) and not list(living.root.rejected.iterdir())


def check_outputs(living: LivingRoot, rows: list[dict[str, Any]]) -> None:
    """Every output is whole, and every done step was committed once."""
    for row in rows:
        run_dir = living.path / row["path"]
        events = [json.loads(line) for line in (run_dir / "events.jsonl").read_bytes().splitlines()]
        done = [event["instance"] for event in events if event["event"] == "step.done"]
        assert sorted(done) == sorted(STEPS)
        for step in STEPS:
            living.output(row, step)


def check_nothing_was_paid_twice(living: LivingRoot, fake_openai: FakeOpenAI) -> None:
    """No request arrived at the provider after an answer to it had been stored."""
    with sqlite3.connect(living.root.machine_room / "answers.db") as store:
        stored = store.execute("SELECT count(*) FROM answers").fetchone()[0]
    assert stored >= len(living.ledger()) * len(STEPS)
    late = fake_openai.served_after_stored(living.root.machine_room / "answers.db")
    assert late == []
