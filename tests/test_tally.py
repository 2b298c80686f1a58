"""What a run has used: by the gateway's ledger, journaled once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pop import events
from pop.history import RunHistory
from pop.models.answers import AnswerStore
from pop.models.calls import CallLine
from pop.models.questions import ask_gateway
from pop.models.spent import Spent
from pop.records import Usage
from pop.tally import Tally

RUN = "20261121-000000-a-abcd"


def line(number: int, instance: str = "draft", **about: Any) -> CallLine:
    plain = {
        "id": str(number), "at": "2026-11-21T10:00:00.000Z", "run_id": RUN, "pipeline": "p", "step": "draft",
        "instance": instance, "attempt": 1, "key": "k", "model": "m", "provider": "openai", "provider_model": "m-1",
        "outcome": "answer", "billed": True, "input_tokens": 10, "output_tokens": 5, "cost_usd": 0.25, "prices": "pop.toml",
        "ms": 1.0,
    }  # fmt: skip
    return CallLine.model_validate({**plain, **about})


class Desk:
    """A run's history beside the gateway's store."""

    def __init__(self, folder: Path) -> None:
        self.store = AnswerStore(folder / "answers.db", calls=folder / "calls", durable=False)
        self.tally = Tally(Spent(folder / "answers.db"))
        self.history = RunHistory(created={"run_id": RUN})
        self.journal({"event": events.STEP_STARTED, "instance": "draft", "attempt": 1, "generation": 1})

    def journal(self, event: dict[str, Any]) -> None:
        self.history.apply({"at": "2026-11-21T10:00:00.000Z", **event})

    def serve(self, *lines: CallLine) -> None:
        asyncio.run(self.store.note(lines))

    def end_attempt(self, cached_calls: int = 0) -> Usage:
        usage = self.tally.since(self.history, "draft", cached_calls)
        error = {"error_class": "timeout"}
        self.journal({"event": events.STEP_ATTEMPT_FAILED, "instance": "draft", "attempt": 1, "error": error,
                      "action": "retry", "usage": usage.model_dump()})  # fmt: skip
        return usage


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_each_end_of_an_attempt_counts_what_is_new(desk: Desk) -> None:
    """Billed failures too; what nobody billed does not; cached answers are the worker's word."""
    desk.serve(line(1), line(2, outcome="unavailable", estimated=True), line(3, outcome="auth", billed=False))
    first = desk.end_attempt(cached_calls=1)
    assert (first.calls, first.cached_calls, first.input_tokens, first.estimated_calls) == (2, 1, 20, 1)
    desk.serve(line(4, cost_usd=None))
    second = desk.end_attempt()
    assert (second.calls, second.cached_calls, second.unpriced_calls) == (1, 0, 1)
    assert desk.history.usage.cost_usd == 0.5 and desk.history.usage.calls == 3


def test_what_comes_after_the_last_attempt_is_journaled_as_late(desk: Desk) -> None:
    """Once; and nothing when there is nothing."""
    desk.serve(line(1))
    desk.end_attempt()
    assert desk.tally.late(desk.history) == []
    desk.serve(line(2))
    (late,) = desk.tally.late(desk.history)
    assert late["event"] == events.USAGE_LATE and late["usage"]["calls"] == 1
    desk.journal(late)
    assert desk.tally.late(desk.history) == [] and desk.history.usage.calls == 2


def test_a_ledger_that_somebody_removed_takes_nothing_back(desk: Desk) -> None:
    """What was journaled stays."""
    desk.serve(line(1))
    desk.end_attempt()
    empty = Tally(Spent(Path("/nonexistent/answers.db")))
    assert empty.since(desk.history, "draft", 0) == Usage() and empty.late(desk.history) == []


def test_a_warning_is_an_event_once(desk: Desk) -> None:
    """However often the gateway tells it."""
    for _ in range(2):
        desk.store.warn(RUN, "draft", "this run goes beyond run_calls = 3", "2026-11-21T10:00:00.000Z")
    desk.serve(line(1))
    (event,) = desk.tally.warnings(desk.history)
    desk.journal(event)
    assert desk.history.warnings == ["this run goes beyond run_calls = 3"] and desk.tally.warnings(desk.history) == []


def test_a_gateway_that_is_not_there_gives_no_answer(tmp_path: Path) -> None:
    """Neither an error nor a long wait."""
    assert asyncio.run(ask_gateway(str(tmp_path / "none.sock"), {"open": RUN})) is None
    assert asyncio.run(ask_gateway(None, {"open": RUN})) is None
