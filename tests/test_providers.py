"""One contract for everything that speaks to models: the same promises, over every row of DESKS."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from pop.models.entries import ModelEntry
from pop.models.providers import KINDS, Provider, Setup, open_provider
from pop.models.request import Answer, Message, ModelError, ModelRequest, Origin
from pop.parsing import schema_problems
from tests.fake_openai import FakeOpenAI, Fault

ORIGIN = Origin(run_id="r", instance="ask", generation=1, attempt=1)
KEY = "sk-contract-0123456789"
TEXT = "Summarise.\n\nRivers carry water to the sea. The sea is salt. Many rivers meet it. They are sweet."
SCHEMA = {
    "type": "object",
    "properties": {"summary": {"type": "string"}, "keywords": {"type": "array", "items": {"type": "string"}}},
    "required": ["summary", "keywords"],
}
UNKNOWABLE = {"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"]}


class Desk:
    """A provider with what stands behind it."""

    def __init__(self, name: str, fake: FakeOpenAI | None) -> None:
        self.name, self.fake = name, fake
        self.provider: Provider = open_provider(name, Setup({"A_KEY": KEY}, Path("/nonexistent")))
        base_url = fake.base_url if fake else None
        self.entry = ModelEntry("mine", name, "model-1", base_url=base_url, key_env="A_KEY" if fake else None)

    @property
    def server(self) -> FakeOpenAI:
        assert self.fake
        return self.fake

    def ask(self, text: str = TEXT, schema: dict[str, Any] | None = None, entry: ModelEntry | None = None) -> Answer:
        request = ModelRequest(model="mine", messages=[Message(role="user", content=text)], schema=schema)
        return asyncio.run(
            self.provider.answer(request, entry or self.entry, ORIGIN, "schema" if request.schema_ else None)
        )

    def will_refuse(self) -> None:
        if self.fake:
            self.fake.faults = [Fault(refusal="I will not.")]


@contextmanager
def openai_desk() -> Iterator[Desk]:
    """A server of our own behind a real socket."""
    fake = FakeOpenAI()
    try:
        yield Desk("openai", fake)
    finally:
        fake.close()


@contextmanager
def builtin_desk() -> Iterator[Desk]:
    """Needs nobody."""
    yield Desk("builtin", None)


# What stands behind each kind of provider; a new kind adds its row here.
DESKS: dict[str, Callable[[], AbstractContextManager[Desk]]] = {"openai": openai_desk, "builtin": builtin_desk}
UNDER_WORK = {"command", "replay"}
PROVIDERS = tuple(DESKS)
WIRED = ("openai",)  # those that ask a `FakeOpenAI` over a wire


@pytest.fixture(params=PROVIDERS)
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    with DESKS[request.param]() as found:
        yield found


@pytest.fixture(params=WIRED)
def wired(request: pytest.FixtureRequest) -> Iterator[Desk]:
    """A provider that asks over a wire."""
    with DESKS[request.param]() as found:
        assert found.fake
        yield found


def test_a_text_is_answered_with_a_text(desk: Desk) -> None:
    """Whole, counted, and signed by who gave it."""
    answer = desk.ask()
    assert answer.text and answer.finish_reason == "stop" and answer.provider == desk.name
    assert answer.model and answer.provider_model
    assert answer.input_tokens > 0 and answer.output_tokens > 0 and answer.ms > 0 and not answer.cached


def test_a_schema_is_answered_with_json_that_obeys_it(desk: Desk) -> None:
    """The text is the JSON and nothing else."""
    value = json.loads(desk.ask(schema=SCHEMA).text)
    assert schema_problems(value, SCHEMA) == []


def test_a_refusal_is_an_answer_and_says_why(desk: Desk) -> None:
    """finish_reason tells it, the text is its reason; it is no error of the provider."""
    desk.will_refuse()
    answer = desk.ask(schema=UNKNOWABLE)
    assert answer.finish_reason == "refusal" and answer.text


def test_an_answer_survives_the_wire_and_the_store(desk: Desk) -> None:
    """What a worker reads is what the provider gave."""
    answer = desk.ask(schema=SCHEMA)
    assert Answer.model_validate_json(answer.model_dump_json()) == answer


def test_many_may_ask_at_once(desk: Desk) -> None:
    """One instance serves them all, each with its own answer."""

    async def work() -> list[Answer]:
        requests = [
            ModelRequest(model="mine", messages=[Message(role="user", content=f"{TEXT} Number {n} is here.")])
            for n in range(12)
        ]
        return await asyncio.gather(*(desk.provider.answer(request, desk.entry, ORIGIN, None) for request in requests))

    assert len(asyncio.run(work())) == 12


@pytest.mark.parametrize("text", ["", " ", "\x00", "x" * 300_000, "<document>" * 2000, "```\n" * 2000, "ü\u2028"])
def test_no_prompt_is_too_odd(desk: Desk, text: str) -> None:
    """An answer, a refusal or a ModelError; nothing else comes out."""
    try:
        assert isinstance(desk.ask(text), Answer)
    except ModelError:
        pass


BAD_BODIES = {
    "html": b"<html>busy</html>",
    "cut": b'{"choices": [{"message": {"content": "he',
    "null": b"null",
    "text": b'"hello"',
    "list": b"[1, 2]",
    "empty": b"",
    "no choices": b'{"choices": []}',
    "choices null": b'{"choices": null}',
    "no message": b'{"choices": [{"index": 0}]}',
    "message null": b'{"choices": [{"message": null}]}',
    "deep": b"[" * 100_000,
    "no UTF-8": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("kind", BAD_BODIES)
def test_a_wrong_body_is_an_error_that_asking_again_may_cure(wired: Desk, kind: str) -> None:
    """Class `unavailable`, whatever the SDK makes of it, with the model and the server in its place."""
    wired.server.faults = [Fault(body=BAD_BODIES[kind] or b" ")]
    with pytest.raises(ModelError) as caught:
        wired.ask()
    assert (caught.value.error_class, caught.value.curable) == ("unavailable", True)
    assert wired.server.base_url in (caught.value.where or "")


@pytest.mark.parametrize(
    ("status", "code", "error_class", "curable"),
    [
        (400, None, "bad_input", False),
        (400, "context_length_exceeded", "bad_input", False),
        (401, None, "auth", False),
        (403, None, "auth", False),
        (404, None, "bad_input", False),
        (408, None, "unavailable", True),
        (409, None, "rate_limited", True),
        (422, None, "bad_input", False),
        (429, None, "rate_limited", True),
        (429, "insufficient_quota", "budget", False),
        (500, None, "unavailable", True),
        (503, None, "unavailable", True),
    ],
)
def test_a_status_has_its_class(wired: Desk, status: int, code: str | None, error_class: str, curable: bool) -> None:
    """As the table in docs/models.md has it; asked once, for the gateway alone asks again."""
    body = json.dumps({"error": {"message": "no", "code": code}}).encode()
    wired.server.faults = [Fault(status=status, body=body, headers={"retry-after": "7"})] * 3
    with pytest.raises(ModelError) as caught:
        wired.ask()
    assert (caught.value.error_class, caught.value.curable) == (error_class, curable)
    assert caught.value.retry_after_s == (7.0 if curable else None)
    assert len(wired.server.bodies) == 1


@pytest.mark.parametrize(("ahead_s", "least", "most"), [(30, 20.0, 30.0), (-30, 0.0, 0.0)])
def test_a_server_may_say_when_by_a_date(wired: Desk, ahead_s: int, least: float, most: float) -> None:
    """Seconds from now; a date that is over means at once."""
    headers = {"retry-after": formatdate(time.time() + ahead_s, usegmt=True)}
    wired.server.faults = [Fault(status=429, body=b"{}", headers=headers)]
    with pytest.raises(ModelError) as caught:
        wired.ask()
    assert caught.value.retry_after_s is not None and least <= caught.value.retry_after_s <= most


def test_a_missing_key_is_told_before_anything_is_sent(wired: Desk) -> None:
    """It names the variable."""
    entry = ModelEntry("mine", wired.name, "m", base_url=wired.server.base_url, key_env="NOT_SET")
    with pytest.raises(ModelError, match="NOT_SET") as caught:
        wired.ask(entry=entry)
    assert caught.value.error_class == "auth" and wired.server.bodies == []


def test_a_server_that_is_not_there_is_unavailable(wired: Desk) -> None:
    """Curable: it may come back."""
    entry = ModelEntry("mine", wired.name, "m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ModelError) as caught:
        wired.ask(entry=entry)
    assert (caught.value.error_class, caught.value.curable) == ("unavailable", True)


def test_every_kind_of_provider_is_held_to_the_contract() -> None:
    """A row of KINDS has its row here."""
    assert set(KINDS) - UNDER_WORK == set(DESKS)


def test_every_provider_is_documented() -> None:
    """docs/settings.md names them."""
    text = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `provider`"))
    assert [name for name in PROVIDERS if f"`{name}`" not in row] == []
