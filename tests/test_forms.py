"""How a model is asked for JSON: found out once per model over real sockets, and remembered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pop.models import forms
from pop.models.entries import ModelEntry
from pop.models.forms import FORMS, ask
from pop.models.providers import Setup, open_provider
from pop.models.request import Answer, Message, ModelError, ModelRequest, Origin
from pop.models.strict import without_nulls
from pop.parsing import schema_problems
from tests.fake_openai import FakeOpenAI, Fault, form_of

ORIGIN = Origin(run_id="r", instance="ask", generation=1, attempt=1)
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "note": {"type": "string", "minLength": 3}},
    "required": ["n"],
}
LOOSE = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": {"type": "integer"}}


class Memory:
    """What an AnswerStore keeps of learnt facts."""

    def __init__(self) -> None:
        self.facts: dict[tuple[str, str], Any] = {}

    def recall(self, topic: str, name: str) -> Any | None:
        return self.facts.get((topic, name))

    def remember(self, topic: str, name: str, value: Any) -> None:
        self.facts[topic, name] = json.loads(json.dumps(value))


class Asking:
    """A server, a memory, and a provider between them."""

    def __init__(self, fake: FakeOpenAI) -> None:
        self.fake, self.memory = fake, Memory()
        self.entry = ModelEntry("mine", "openai", "model-1", base_url=fake.base_url)
        self.provider = open_provider("openai", Setup({}, Path("/nonexistent")))

    async def ask(self, schema: dict[str, Any] | None = SCHEMA, **settings: Any) -> Answer:
        entry = ModelEntry(**{**vars(self.entry), **settings})
        request = ModelRequest(model="mine", messages=[Message(role="user", content="?")], schema=schema)
        return await ask(self.provider, request, entry, ORIGIN, self.memory)

    def forms(self) -> list[str]:
        """The forms that were sent, in order; forgets them."""
        sent = [form_of(body) for body in self.fake.bodies]
        self.fake.bodies.clear()
        return sent


@pytest.fixture
def asking(fake_openai: FakeOpenAI) -> Iterator[Asking]:
    forms._all_failed_at.clear()
    yield Asking(fake_openai)
    assert forms._finding == {}


@pytest.mark.parametrize("status", [400, 422, 500, 501])
@pytest.mark.parametrize("takes", FORMS)
def test_the_first_form_that_a_server_takes_is_kept(asking: Asking, takes: str, status: int) -> None:
    """Whether it says no with 400 or, as llama-cpp-python does, with 500; the next call asks in that form at once."""
    asking.fake.takes, asking.fake.wrong_form.status = {takes}, status
    asking.fake.wrong_form.body = b'{"error": {"message": "Input should be \'text\': response_format"}}'

    async def work() -> None:
        answer = await asking.ask()
        assert answer.form == takes and [one.billed for one in answer.tries] == [False] * FORMS.index(takes)
        assert asking.forms() == list(FORMS[: FORMS.index(takes) + 1])
        value = json.loads(answer.text)
        assert schema_problems(without_nulls(value, SCHEMA) if answer.extra else value, SCHEMA) == []
        again = await asking.ask()
        assert asking.forms() == [takes] and again.form == takes and again.tries == []

    asyncio.run(work())


def test_a_strict_schema_is_reduced_and_the_answer_says_so(asking: Asking) -> None:
    """Over the wire every property is required; the answer's text is the model's own, with `nulls` beside it."""
    answer = asyncio.run(asking.ask())
    sent = asking.fake.bodies[0]["response_format"]["json_schema"]
    assert sent["strict"] is True and sent["schema"]["required"] == ["n", "note"]
    assert sent["schema"]["properties"]["note"]["type"] == ["string", "null"]
    assert answer.form == "strict" and answer.extra["nulls"] is True


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_is_set_is_used_and_nothing_is_learnt(asking: Asking, form: str) -> None:
    """`structured` of pop.toml decides, also when the server says no."""

    async def work() -> None:
        answer = await asking.ask(structured=form)
        assert asking.forms() == [form] and answer.form == form and asking.memory.facts == {}
        if form != "prompt":
            asking.fake.takes = set()
            with pytest.raises(ModelError, match="response_format") as caught:
                await asking.ask(structured=form)
            assert caught.value.error_class == "bad_input" and "structured" in (caught.value.hint or "")

    asyncio.run(work())


def test_a_schema_that_strict_cannot_say_is_sent_as_it_is(asking: Asking) -> None:
    """It spoils nothing of what is remembered for the others, and `structured = "strict"` cannot help it."""

    async def work() -> None:
        assert (await asking.ask(LOOSE)).form == "schema"
        assert (await asking.ask()).form == "strict"
        assert (await asking.ask(LOOSE)).form == "schema"
        assert (await asking.ask(LOOSE, structured="strict")).form == "schema"
        assert asking.forms() == ["schema", "strict", "schema", "schema"]

    asyncio.run(work())


def test_a_schema_that_a_server_refuses_spoils_nothing(asking: Asking) -> None:
    """The next form is taken and kept for this very schema; others are asked for as before."""
    refused = Fault(status=400, body=b'{"error": {"message": "Invalid schema for response_format \'output\': no"}}')
    other = {**SCHEMA, "required": ["n", "note"]}

    async def work() -> None:
        assert (await asking.ask()).form == "strict"
        asking.fake.faults = [refused]
        assert (await asking.ask(other)).form == "schema"
        assert (await asking.ask(other)).form == "schema"
        assert (await asking.ask()).form == "strict"
        assert asking.forms() == ["strict", "strict", "schema", "schema", "strict"]

    asyncio.run(work())


def test_a_form_that_is_no_longer_taken_is_unlearnt(asking: Asking) -> None:
    """The server was changed: 400 about the form, and the others are tried."""

    async def work() -> None:
        await asking.ask()
        asking.fake.takes = {"object"}
        answer = await asking.ask()
        assert answer.form == "object"
        assert [answer.error_class for answer in answer.tries] == ["bad_input"] * 3
        assert asking.forms() == ["strict", "strict", "schema", "object+schema", "object"]
        await asking.ask()
        assert asking.forms() == ["object"]

    asyncio.run(work())


def test_what_is_older_than_seven_days_is_found_out_anew(asking: Asking) -> None:
    """A server may have learnt strict meanwhile; a clock that was set back counts as older."""

    async def work() -> None:
        await asking.ask()
        for at in (time.time() - 7 * 86400 - 1, time.time() + 3600, "yesterday"):
            for key in asking.memory.facts:
                asking.memory.facts[key] = {"form": "prompt", "at": at}
            assert (await asking.ask()).form == "strict"

    asyncio.run(work())


@pytest.mark.parametrize("fact", [None, "strict", {}, {"form": "psychic", "at": 1}, {"form": "schema"}, [1]])
def test_a_memory_of_nonsense_is_no_memory(asking: Asking, fact: Any) -> None:
    """It is found out anew."""

    async def work() -> None:
        await asking.ask()
        for key in asking.memory.facts:
            asking.memory.facts[key] = fact
        assert (await asking.ask()).form == "strict"

    asyncio.run(work())


def test_of_many_first_calls_one_finds_out(asking: Asking) -> None:
    """The others wait for it, and then ask in the form that works."""
    asking.fake.takes, asking.fake.delay_s = {"object+schema"}, 0.05

    async def work() -> None:
        answers = await asyncio.gather(*(asking.ask() for _ in range(30)))
        assert {answer.form for answer in answers} == {"object+schema"}

    asyncio.run(work())
    sent = asking.forms()
    assert sent.count("strict") == sent.count("schema") == 1 and sent.count("object+schema") == 30


def test_who_waits_is_freed_when_the_finder_is_cancelled_or_slow(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting is bounded, and a finder that goes leaves the field to the others."""
    asking.fake.delay_s = 0.4

    async def work() -> None:
        finder = asyncio.create_task(asking.ask())
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(asking.ask())
        await asyncio.sleep(0.05)
        finder.cancel()
        assert (await waiting).form == "strict"
        asking.memory.facts.clear()
        monkeypatch.setattr(forms, "WAIT_S", 0.05)
        began = time.perf_counter()
        slow = asyncio.create_task(asking.ask())
        await asyncio.sleep(0.01)
        await asking.ask()
        assert time.perf_counter() - began < 0.75
        await slow

    asyncio.run(work())


@pytest.mark.parametrize("status", [429, 401, 404, 502, 503])
def test_errors_that_say_nothing_of_the_form_teach_nothing(asking: Asking, status: int) -> None:
    """One request, the error as it is."""
    asking.fake.faults = [Fault(status=status, body=b"{}")]
    with pytest.raises(ModelError):
        asyncio.run(asking.ask())
    assert asking.forms() == ["strict"] and asking.memory.facts == {}


def test_a_500_of_a_form_that_has_worked_is_what_it_says(asking: Asking) -> None:
    """The server is in trouble; the gateway asks again later, in the same form."""

    async def work() -> None:
        await asking.ask()
        asking.forms()
        asking.fake.faults = [Fault(status=500, body=b"{}")]
        with pytest.raises(ModelError) as caught:
            await asking.ask()
        assert caught.value.error_class == "unavailable" and asking.forms() == ["strict"]

    asyncio.run(work())


def test_a_server_that_is_down_with_500_is_not_asked_five_times_each_time(asking: Asking) -> None:
    """Once through the forms, then one request for each call, until it answers again; nothing is learnt meanwhile."""

    async def work() -> None:
        asking.fake.faults = [Fault(status=500, body=b"{}")] * 6
        for sent in (5, 1):
            with pytest.raises(ModelError) as caught:
                await asking.ask()
            assert caught.value.error_class == "unavailable" and caught.value.curable
            assert len(asking.forms()) == sent and len(caught.value.tries) == sent - 1
        assert asking.memory.facts == {}
        assert (await asking.ask()).form == "strict"

    asyncio.run(work())


def test_a_server_that_passes_over_the_form_is_asked_in_the_next_one(asking: Asking) -> None:
    """Prose where JSON was asked for: the answer stands, it was paid for; the next call tells the schema otherwise."""

    async def work() -> None:
        asking.fake.answers = ["Sure! Here is what I think."] * 2 + ['{"n": 1}', "Well."]
        assert [(await asking.ask()).form for _ in range(5)] == ["strict", "schema", *["object+schema"] * 3]

    asyncio.run(work())


def test_without_a_schema_there_is_no_form(asking: Asking) -> None:
    """Nothing is added to the request."""
    answer = asyncio.run(asking.ask(None))
    assert answer.form is None and "response_format" not in asking.fake.bodies[0]


def test_a_provider_of_one_way_only_is_asked_that_way() -> None:
    """`builtin` reads the schema itself."""
    provider = open_provider("builtin", Setup({}, Path("/nonexistent")))
    entry = ModelEntry("builtin", "builtin", "extractive-1")
    message = Message(role="user", content="Find n.\n\nRivers carry water to the great sea.\nn: 7\n")
    request = ModelRequest(model="builtin", messages=[message], schema=SCHEMA)
    answer = asyncio.run(ask(provider, request, entry, ORIGIN, Memory()))
    assert answer.form is None and json.loads(answer.text)["n"] == 7
