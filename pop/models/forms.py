"""How a model is asked for JSON of a schema: found out once per model, and remembered.

| form          | who takes it                                             |
|---------------|----------------------------------------------------------|
| strict        | OpenAI and those who follow it; the schema is reduced (pop/models/strict.py) |
| schema        | vLLM, Ollama, llama.cpp: json_schema as it is            |
| object+schema | llama-cpp-python, Together: json_object with the schema  |
| object        | DeepSeek and older servers: json_object, the schema in words |
| prompt        | every server: words alone                                |

The first form that a server takes is kept for 7 days. A form is passed over when the server says that it does not know
it, and on HTTP 500 as long as it has never been seen to work and a later one does: llama-cpp-python answers 500 to
json_schema. Errors that say nothing about the form (no connection, 429, 503 ...) teach nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from typing import Any, Protocol

from pop.models.entries import ModelEntry
from pop.models.providers import Provider, kinds
from pop.models.request import Answer, Form, ModelError, ModelRequest, Origin, Try
from pop.models.strict import strict_schema

FORMS: tuple[Form, ...] = ("strict", "schema", "object+schema", "object", "prompt")
TOPIC = "form"
KEPT_S = 7 * 86400.0
WAIT_S = 30.0  # for another call that finds out; then a call finds out by itself
REST_S = 60.0  # after every form got HTTP 500: until then a 500 is what it says

_finding: dict[tuple[int, str], asyncio.Event] = {}  # by memory and name
_all_failed_at: dict[tuple[int, str], float] = {}


class Memory(Protocol):
    """Small learnt facts that survive a restart."""

    def recall(self, topic: str, name: str) -> Any | None: ...

    def remember(self, topic: str, name: str, value: Any) -> None: ...


async def ask(provider: Provider, request: ModelRequest, entry: ModelEntry, origin: Origin, memory: Memory) -> Answer:
    """Ask in the form that `entry` sets, or that is remembered for this model, or in the first one that works.

    The answer's `form` says which. With `strict` its text is the model's own, and ``extra["nulls"]`` is true: nulls may
    stand for what was left out (`pop.models.strict.without_nulls`). `tries` holds the forms that were not taken.

    Raises:
        ModelError: As the provider's; of several forms, the one that says most.
    """
    kind = kinds().get(entry.provider)
    if request.schema_ is None or kind is None or not kind.forms:
        return await provider.answer(request, entry, origin, None)
    question = _Question(provider, request, entry, origin, memory)
    if entry.structured:
        return await question.ask_as(question.at_most(entry.structured))
    form = question.recalled()
    if form is None and await question.other_found_out():
        form = question.recalled()
    if form is None:
        return await question.find_out()
    try:
        answer = await question.ask_as(form)
    except ModelError as error:
        if not error.wrong_form:
            raise
        return await question.find_out(but=form, why=error)
    if question.unseen is not None:
        question.learn(question.unseen, form, answer)
    return answer


class _Question:
    """One request, and what is known of the forms for it."""

    def __init__(
        self, provider: Provider, request: ModelRequest, entry: ModelEntry, origin: Origin, memory: Memory
    ) -> None:
        assert request.schema_ is not None
        self._provider, self._entry, self._origin, self._memory = provider, entry, origin, memory
        self._request = request
        self._reduced = strict_schema(request.schema_)
        self.unseen: str | None = None  # the name of what is remembered, when it has not been seen to work
        # What is found out with a schema that strict cannot say is kept apart: it says nothing about strict.
        self._name = _place(entry) if self._reduced else f"{entry.identity}\0loose"

    def at_most(self, form: str) -> Form:
        """The form; `schema` where `strict` cannot say this schema."""
        known: Form = next((one for one in FORMS if one == form), "prompt")
        return "schema" if known == "strict" and self._reduced is None else known

    def recalled(self) -> Form | None:
        """What is remembered for this very schema, else for the model; None when it is older than 7 days."""
        for name in (self._own_name, self._name):
            value = self._memory.recall(TOPIC, name)
            if isinstance(value, dict) and value.get("form") in FORMS:
                at = value.get("at")
                if isinstance(at, (int, float)) and 0 <= time.time() - at < KEPT_S:
                    self.unseen = None if value.get("seen") else name
                    return self.at_most(value["form"])
        return None

    @property
    def _own_name(self) -> str:
        text = json.dumps(self._request.schema_, sort_keys=True)
        return f"{_place(self._entry)}\0{hashlib.sha256(text.encode()).hexdigest()}"

    async def other_found_out(self) -> bool:
        """Wait for the call that finds out, if one does; whether there was one."""
        event = _finding.get(self._key)
        if event is None:
            return False
        try:
            async with asyncio.timeout(WAIT_S):
                await event.wait()
        except TimeoutError:
            pass
        return True

    @property
    def _key(self) -> tuple[int, str]:
        return id(self._memory), self._name

    async def find_out(self, *, but: Form | None = None, why: ModelError | None = None) -> Answer:
        """Try the forms one after the other, while the calls that come meanwhile wait."""
        mine = _finding.setdefault(self._key, asyncio.Event()) if self._key not in _finding else None
        try:
            return await self._first_that_works(but, why)
        finally:
            if mine is not None:
                del _finding[self._key]
                mine.set()

    async def _first_that_works(self, but: Form | None, why: ModelError | None) -> Answer:
        tries = [_tried(why, self._entry, 0.0)] if why else []
        best, own_schema = why, why is not None and why.code == "bad-schema"
        forms = [form for form in FORMS if form != but and (form != "strict" or self._reduced)]
        for form in forms:
            began = time.perf_counter()
            try:
                answer = await self.ask_as(form)
            except ModelError as error:
                if not (error.wrong_form or (error.code == "server-error" and not self._rests(best))):
                    error.tries = [*tries, *error.tries]
                    raise
                tries.append(_tried(error, self._entry, (time.perf_counter() - began) * 1000))
                best = best or error
                own_schema = own_schema or error.code == "bad-schema"
                continue
            self.learn(self._own_name if own_schema else self._name, form, answer)
            answer.tries = [*tries, *answer.tries]
            return answer
        assert best is not None
        if best.code == "server-error":
            _all_failed_at[self._key] = time.monotonic()
        best.tries = [*tries[1:], *best.tries]
        raise best

    def learn(self, name: str, form: Form, answer: Answer) -> None:
        """Remember the form that brought JSON; after prose the next one, to be looked at when it is used."""
        seen = answer.finish_reason == "stop" and _looks_like_json(answer.text)
        passed_over = answer.finish_reason == "stop" and not seen and form != "prompt"
        learnt = FORMS[FORMS.index(form) + 1] if passed_over else form
        self._memory.remember(TOPIC, name, {"form": learnt, "at": time.time(), "seen": seen or learnt == "prompt"})

    def _rests(self, best: ModelError | None) -> bool:
        """Whether all forms have just got HTTP 500: the server is down rather than choosy."""
        return best is None and time.monotonic() - _all_failed_at.get(self._key, -REST_S) < REST_S

    async def ask_as(self, form: Form) -> Answer:
        request = self._request
        if form == "strict" and self._reduced:
            request = request.model_copy(update={"schema_": self._reduced.schema})
        answer = await self._provider.answer(request, self._entry, self._origin, form)
        answer.form = form
        if form == "strict":
            answer.extra = {**answer.extra, "nulls": True}
        return answer


def _looks_like_json(text: str) -> bool:
    """Whether the server held the model to JSON; one that passes over response_format brings prose."""
    text = text.strip()
    return text.startswith(("{", "[", '"', "```")) or text[:1].isdigit() or text in ("true", "false", "null")


def _tried(error: ModelError, entry: ModelEntry, ms: float) -> Try:
    return Try(
        model=entry.name,
        error_class=error.error_class,
        message=error.message,
        ms=round(ms, 3),
        billed=error.tokens is not None,
        **({"tokens": error.tokens} if error.tokens else {}),
    )


def _place(entry: ModelEntry) -> str:
    """What is learnt is of one model at one of its server's interfaces."""
    return entry.identity if entry.api == "chat" else f"{entry.api} {entry.identity}"
