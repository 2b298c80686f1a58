"""Further processes that speak to providers: the same answers, errors and totals; their death is survived."""

from __future__ import annotations

import json
from collections.abc import Callable

import psutil
import pytest

from tests.fake_openai import FakeOpenAI, Fault
from tests.living import LivingRoot
from tests.test_spending import GATHER, KEY, USD, billed, gateway_of, lines, served, settings_for, up

Make = Callable[..., LivingRoot]
TWO = "[gateway]\nprocesses = 2\n"


def callers_of(living: LivingRoot) -> list[psutil.Process]:
    return [one for one in gateway_of(living.daemons[-1]).children() if "pop.models.callers" in " ".join(one.cmdline())]


def test_two_processes_speak_to_the_server(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Limits hold over both; schema, usage and cost come back as ever."""
    fake_openai.delay_s = 0.2
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tasks = {"many.py": GATHER.format(count=20), "ask.md": "How many?", "ask.schema.json": json.dumps(schema)}
    more = USD + "concurrency = 6\n"
    living = up(make_living, fake_openai, tasks, steps=["many", "ask"], more=more, tables=TWO)
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert len(callers_of(living)) == 2
    assert fake_openai.total == 21 and 3 <= fake_openai.most_at_once <= 6
    assert living.output(row, "ask") == {"n": 1}
    assert {name: row["usage"][name] for name in served(fake_openai)} == served(fake_openai)
    assert fake_openai.keys_seen == {KEY}


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [(Fault(status=401, body=b"{}"), "auth"), (Fault(status=404, body=b"{}"), "bad_input")],
    ids=["401", "404"],
)
def test_an_error_is_the_same_error(make_living: Make, fake_openai: FakeOpenAI, fault: Fault, error_class: str) -> None:
    """With its class, its place and its next move."""
    fake_openai.faults = [fault] * 5
    living = up(make_living, fake_openai, {"ask.md": "Hello?"}, tables=TWO)
    living.drop("a.json", {})
    error = living.wait_state("failed")["error"]
    assert error["error_class"] == error_class and "'fake'" in error["where"] and error["hint"]


def test_a_caller_that_dies_loses_no_question(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """What it was asked may have been billed, and counts; it is asked again through another one."""
    fake_openai.delay_s = 1.5
    living = up(make_living, fake_openai, {"ask.md": "Hello there?"}, more=USD, tables=TWO)
    living.drop("a.json", {})
    living.wait(lambda: len(fake_openai.bodies) == 1, "the call")
    for caller in callers_of(living):
        caller.kill()
    (row,) = living.wait_complete(1)
    assert row["attempts"] == 1 and fake_openai.total == 2
    assert [line["outcome"] for line in lines(living)] == ["unavailable", "answer"]
    assert row["usage"]["calls"] == billed(living)["calls"] == 2


def test_callers_end_with_the_gateway(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """However it ends."""
    living = up(make_living, fake_openai, {"ask.md": "Hello?"}, tables=TWO)
    living.drop("a.json", {})
    living.wait_complete(1)
    callers = callers_of(living)
    gateway_of(living.daemons[-1]).kill()
    _, alive = psutil.wait_procs(callers, timeout=10)
    assert not alive


def test_the_settings_name_no_number_that_means_nothing(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """0 is the gateway itself."""
    assert "processes" not in settings_for(fake_openai)
    living = up(make_living, fake_openai, {"ask.md": "Hello?"})
    living.drop("a.json", {})
    living.wait_complete(1)
    assert callers_of(living) == []
