"""The router with a real store, the real SDK and a real server: where a mistake would cost money or lose an answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pop.models.answers import AnswerStore
from pop.models.calls import CallLine, calls_in, day_files
from pop.models.catalogue import Catalogue
from pop.models.providers import Provider, Setup, open_provider
from pop.models.request import Answer, Message, ModelError, ModelRequest, Origin
from pop.models.router import Router
from pop.records import BudgetLimit
from pop.settings import Settings
from tests.fake_openai import FakeOpenAI, Fault

CONTEXT = b'{"error": {"code": "context_length_exceeded", "message": "too long"}}'


class Desk:
    """A router of its own on a fake server. `a` and `b` are models, `either` is both of them in this order."""

    def __init__(self, root: Path, fake: FakeOpenAI) -> None:
        self.fake, self._root = fake, root
        self.store = AnswerStore(root / ".pop" / "answers.db", calls=root / "calls", durable=False)
        self.router = self.route()

    def route(self, **about: Any) -> Router:
        """A router over the same store; keys of both models, those of `b` alone, and `providers`, `budget`."""
        tables = {name: about.pop(name) for name in ("providers", "budget") if name in about}
        b = about.pop("b", {})
        model: dict[str, Any] = {"provider": "fake", "tries": 1, "timeout_s": 10, **about}
        models = {"a": {**model, "model": "a-1"}, "b": {**model, "model": "b-1", **b}, "either": {"first": ["a", "b"]}}
        providers: dict[str, Any] = {"fake": {"base_url": self.fake.base_url, **tables.pop("providers", {})}}
        settings = Settings.model_validate({"models": models, "providers": providers, **tables})
        opened: dict[str, Provider] = {}

        async def provider(kind: str) -> Provider:
            if kind not in opened:
                opened[kind] = open_provider(kind, Setup(os.environ, self._root))
            return opened[kind]

        self.router = Router(
            self.store,
            catalogue=lambda: Catalogue(settings, {}),
            budget=lambda: settings.budget,
            provider=provider,
            clean=lambda answer: answer,
        )
        return self.router

    async def ask(self, model: str = "a", text: str = "Hello?", *, run: str = "r", **about: Any) -> Answer:
        where = {name: about.pop(name) for name in ("n", "budgets") if name in about}
        generation = about.pop("generation", 1)
        request = ModelRequest(model=model, messages=[Message(role="user", content=text)], **about)
        origin = Origin(run_id=run, instance="s", step="s", pipeline="p", attempt=1, generation=generation, **where)
        return await self.router.ask(request, origin)

    def asked(self) -> list[str]:
        return [body["model"] for body in self.fake.bodies]

    def lane(self) -> dict[str, Any]:
        found: dict[str, Any] = self.router.figures()["lanes"]["model a"]
        return found

    def lines(self) -> list[CallLine]:
        return [line for path in day_files(self._root / "calls") for _, line in calls_in(path) if line]


@pytest.fixture
def desk(tmp_path: Path, fake_openai: FakeOpenAI) -> Iterator[Desk]:
    found = Desk(tmp_path, fake_openai)
    yield found
    found.store.close()


def fails(desk: Desk, *about: Any, **more: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        asyncio.run(desk.ask(*about, **more))
    return caught.value


@pytest.mark.parametrize(
    ("fault", "cured"),
    [
        (Fault(status=429, headers={"retry-after": "0"}), True),
        (Fault(status=401, body=b"{}"), True),
        (Fault(status=402, body=b"{}"), True),
        (Fault(status=404, body=b"{}"), True),
        (Fault(status=400, body=CONTEXT), True),
        (Fault(close=True), True),
        (Fault(finish_reason="content_filter"), True),
        (Fault(status=400, body=b"{}"), False),
        (Fault(finish_reason="length"), False),
    ],
    ids=["429", "401", "402", "404", "context", "cut", "filter", "400", "length"],
)
def test_the_next_model_is_asked_for_what_it_may_cure(desk: Desk, fault: Fault, cured: bool) -> None:
    """The column "next model" of docs/models.md."""
    desk.fake.faults = [fault]
    try:
        asyncio.run(desk.ask("either"))
    except ModelError:
        assert not cured
    assert desk.asked() == (["a-1", "b-1"] if cured else ["a-1"])


def test_our_own_budget_is_cured_by_no_other_model(desk: Desk) -> None:
    """Not even by one that is cheap enough."""
    desk.route(price={"input": 1e6, "output": 1e6}, b={"price": {"input": 0.0, "output": 0.0}})
    error = fails(desk, "either", budgets=[BudgetLimit(name="run_usd", limit=1.0, source="seed")])
    assert error.error_class == "budget" and desk.asked() == []


def test_a_failed_call_that_may_be_billed_counts(desk: Desk) -> None:
    """In the ledger by its estimate, and against the budget."""
    desk.route(price={"input": 1.0, "output": 1.0}, budget={"run_calls": 1})
    desk.fake.faults = [Fault(close=True)]

    async def twice() -> str:
        with pytest.raises(ModelError):
            await desk.ask()
        with pytest.raises(ModelError) as caught:
            await desk.ask(text="Again?")
        return caught.value.error_class

    assert asyncio.run(twice()) == "budget" and len(desk.asked()) == 1
    (line,) = desk.lines()
    assert line.billed and line.estimated and line.input_tokens > 0 and line.cost_usd


def test_an_estimate_holds_the_answer_too(desk: Desk) -> None:
    """As long as the request allows it to become."""
    limit = BudgetLimit(name="run_tokens", limit=900, source="seed")
    assert fails(desk, max_output_tokens=1000, budgets=[limit]).code == "budget" and desk.asked() == []


def test_all_models_of_an_endpoint_share_its_limits(desk: Desk) -> None:
    """Two models, one call at a time."""
    desk.route(providers={"concurrency": 1})
    desk.fake.delay_s = 0.2

    async def both() -> None:
        await asyncio.gather(desk.ask("a"), desk.ask("b"))

    asyncio.run(both())
    assert desk.fake.most_at_once == 1


def after_one(desk: Desk, fault: Fault) -> dict[str, Any]:
    """What the lane of `a` says after one call, and its circuit."""

    async def one() -> dict[str, Any]:
        try:
            await desk.ask()
        except ModelError:
            pass
        return {**desk.lane(), "circuits": desk.router.figures()["circuits"]}

    desk.fake.faults = [fault]
    return asyncio.run(one())


def test_what_a_server_says_of_its_limits_reaches_the_lane(desk: Desk) -> None:
    """A 429 narrows it, headers pause it, the tokens of an answer take the estimate's place."""
    desk.route(concurrency=8)
    assert after_one(desk, Fault(status=429, headers={"retry-after": "0"}))["window"] == 4
    desk.route()
    left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9s"}
    lane = after_one(desk, Fault(headers=left))
    (answered,) = [line for line in desk.lines() if line.outcome == "answer"]
    assert 8 < lane["paused_s"] <= 9
    assert lane["tokens_per_minute"] == answered.input_tokens + answered.output_tokens


def test_outages_open_the_circuit(desk: Desk) -> None:
    """Five in a row; the sixth call is not sent."""
    desk.fake.faults = [Fault(status=503)] * 5

    async def six() -> list[str]:
        codes = []
        for number in range(6):
            try:
                await desk.ask("either" if number == 5 else "a", f"{number}?")
            except ModelError as error:
                codes.append(error.code)
        return [*codes, *desk.router.figures()["circuits"].values()]

    assert asyncio.run(six())[:5] == ["unavailable"] * 5
    assert desk.asked()[:5] == ["a-1"] * 5 and "a-1" not in desk.asked()[5:]


def test_usage_corrects_the_estimate(desk: Desk) -> None:
    """The fake server counts words, of which these are long ones."""
    text = "incomprehensibilities " * 100
    before = desk.router.tokens.count(text, "a-1")[0]
    asyncio.run(desk.ask(text=text))
    assert desk.router.tokens.count(text, "a-1")[0] < before


def served(desk: Desk, *asks: Callable[[], Any]) -> list[str]:
    async def one_by_one() -> list[str]:
        return [(await ask()).text for ask in asks]

    return asyncio.run(one_by_one())


def test_what_is_used_again_and_what_is_not(desk: Desk) -> None:
    """The second sample is another answer; who had a bad one, and who would get half of one, ask afresh."""
    desk.fake.answers = ["one", "two", "three", "half", "whole"]
    desk.fake.faults = [Fault(), Fault(), Fault(), Fault(finish_reason="length")]
    assert served(
        desk,
        lambda: desk.ask(reuse_s=1e9),
        lambda: desk.ask(reuse_s=1e9, n=1),
        lambda: desk.ask(reuse_s=1e9, run="other"),
        lambda: desk.ask(reuse_s=1e9, run="other", n=1),
        lambda: desk.ask(reuse_s=1e9, generation=2),
        lambda: desk.ask(text="Long?", reuse_s=1e9),
        lambda: desk.ask(text="Long?", reuse_s=1e9, run="other"),
    ) == ["one", "two", "one", "two", "three", "half", "whole"]


def test_calls_without_a_price_are_added_up(desk: Desk) -> None:
    """One after the other."""
    served(desk, *(lambda number=number: desk.ask(text=f"{number}?") for number in range(3)))
    assert desk.store.totals(("run", "r")).unpriced == 3
