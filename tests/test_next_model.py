"""`first = [a, b]` over real sockets: what the next model cures, what was paid for the first one, and what both say when none can.

The other rows of "next model" in docs/models.md stand in tests/test_review3.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_openai import FakeOpenAI, Fault
from tests.test_review3 import Desk, fails

HTML = Fault(body=b"<html>Just a moment...</html>", headers={"content-type": "text/html"})
CUT = Fault(body=b'{"choices": [{"message": {"content": "Hal')
LATE = Fault(delay_s=1.5)


@pytest.fixture
def desk(tmp_path: Path, fake_openai: FakeOpenAI) -> Iterator[Desk]:
    found = Desk(tmp_path, fake_openai)
    yield found
    found.store.close()


@pytest.mark.parametrize(
    ("fault", "paid"),
    [
        (Fault(body=b"[]"), False),
        (Fault(body=b"no JSON"), False),
        (HTML, False),
        (CUT, True),
        (Fault(status=503), False),
        (Fault(status=504), True),
        (LATE, True),
    ],
    ids=["list", "text", "html", "cut", "503", "504", "deadline"],
)
def test_the_next_model_answers_and_the_first_ones_costs_stay(desk: Desk, fault: Fault, paid: bool) -> None:
    """One answer; in the ledger what the first model may bill, by estimate, beside what the second one counted."""
    desk.route(price={"input": 1.0, "output": 1.0}, timeout_s=0.6)
    desk.fake.faults = [fault]
    answer = asyncio.run(desk.ask("either"))
    assert desk.asked() == ["a-1", "b-1"] and answer.model == "b"
    assert [(one.model, one.error_class, one.billed) for one in answer.tries] == [("a", "unavailable", paid)]
    told = {line.model: line for line in desk.lines()}
    assert (told["a"].billed, told["a"].estimated, told["a"].outcome) == (paid, paid, "unavailable")
    assert told["b"].outcome == "answer" and not told["b"].estimated
    assert desk.store.totals(("run", "r")).calls == 1 + paid


def test_all_tries_of_the_first_model_come_before_the_next(desk: Desk) -> None:
    """A body that is no JSON may be a passing trouble."""
    desk.route(tries=2)
    desk.fake.faults = [HTML]
    assert asyncio.run(desk.ask("either")).model == "a" and desk.asked() == ["a-1", "a-1"]


def test_a_first_model_without_its_key_is_passed_over(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent to its server and nothing is counted; the answer tells that it was to be asked."""
    monkeypatch.setenv("B_KEY", "sk-of-b-0123456789")
    monkeypatch.delenv("A_KEY", raising=False)
    desk.route(api_key_env="A_KEY", b={"api_key_env": "B_KEY"}, price={"input": 1.0, "output": 1.0})
    answer = asyncio.run(desk.ask("either"))
    assert desk.asked() == ["b-1"] and desk.fake.keys_seen == {"sk-of-b-0123456789"}
    assert [(one.model, one.error_class) for one in answer.tries] == [("a", "auth")] and "A_KEY" in answer.tries[
        0
    ].message
    assert desk.store.totals(("run", "r")).calls == 1


def test_each_model_has_a_deadline_of_its_own(desk: Desk) -> None:
    """What the first one took is not taken from the second; the answer holds what both took."""
    desk.route(timeout_s=0.6)
    desk.fake.faults = [LATE, Fault(delay_s=0.4)]
    assert asyncio.run(desk.ask("either")).model == "b"


def test_where_none_can_answer_the_last_one_s_error_tells_of_all(desk: Desk) -> None:
    """`tries` holds both; the class is the last one's."""
    desk.route(price={"input": 1.0, "output": 1.0}, timeout_s=0.6)
    desk.fake.faults = [LATE, Fault(status=504)]
    error = fails(desk, "either")
    assert error.error_class == "unavailable" and "504" in error.message
    assert [(one.model, one.billed) for one in error.tries] == [("a", True), ("b", True)]
    assert desk.store.totals(("run", "r")).calls == 2


def test_a_budget_that_the_first_model_used_up_holds_for_the_next(desk: Desk) -> None:
    """A 504 may be billed: with one call allowed, the next model is not asked, and the error says what stood in the way."""
    desk.route(budget={"run_calls": 1}, price={"input": 1.0, "output": 1.0})
    desk.fake.faults = [Fault(status=504)]
    error = fails(desk, "either")
    assert (error.error_class, error.code) == ("budget", "budget") and desk.asked() == ["a-1"]
    assert [one.model for one in error.tries] == ["a"]
