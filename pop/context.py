"""``ctx``: everything a stage may know and do. Inputs are read when first looked at."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pop.errors import AttemptFailed
from pop.events import rfc3339
from pop.inputs import Inputs
from pop.models.request import Answer, Message, ModelError, ModelRequest
from pop.parsing import Unparsable, parse_json, schema_problems
from pop.records import Letter
from pop.store import contained
from pop.trail import Trail

CHARS_PER_TOKEN = 4.0
Prompt = str | Sequence[Mapping[str, str]]


class ModelCaller(Protocol):
    """What asks models for us: the gateway's client."""

    def ask(self, request: ModelRequest) -> Answer:
        """One answer.

        Raises:
            ModelError: With its error class.
        """

    def ask_many(self, requests: Sequence[ModelRequest]) -> list[Answer | ModelError]:
        """Answers in the order of the requests, asked at once."""


@dataclass(frozen=True)
class Reply:
    """A model's answer."""

    text: str
    answer: Answer
    schema: dict[str, Any] | None = None

    @property
    def data(self) -> Any:
        """The answer's JSON where a schema was asked for, else None.

        Raises:
            AttemptFailed: ``invalid_output`` when the answer holds no JSON or does not fit the schema.
        """
        if self.schema is None:
            return None
        try:
            value = parse_json(self.text, self.schema).value
            problems = schema_problems(value, self.schema)
        except Unparsable as error:
            problems = [str(error)]
        if problems:
            asked = f"the answer of {self.answer.model!r} does not have the asked form: {problems[0][:500]}"
            raise AttemptFailed("invalid_output", asked, problems=problems)
        return value

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Call:
    """A model call that has not been made yet, for `Context.gather`."""

    prompt: Prompt
    schema: dict[str, Any] | None = None
    model: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None


class Log:
    """Lines in the attempt's log.jsonl."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    def _line(self, level: str, text: str, fields: dict[str, Any]) -> None:
        row = {"at": rfc3339(time.time()), "level": level, "stage": self._trail.stage, "text": str(text), **fields}
        self._trail.append("log.jsonl", row)

    def info(self, text: str, **fields: Any) -> None:
        self._line("info", text, fields)

    def warning(self, text: str, **fields: Any) -> None:
        self._line("warning", text, fields)

    def error(self, text: str, **fields: Any) -> None:
        self._line("error", text, fields)


@dataclass
class Context:
    """What a stage gets last. See docs/tasks.md."""

    letter: Letter
    seed: Any
    inputs: Inputs
    trail: Trail
    caller: ModelCaller | None
    default_model: str = "default"
    max_output_tokens: int | None = None
    temperature: float | None = None
    log: Log = field(init=False)

    def __post_init__(self) -> None:
        self.log = Log(self.trail)

    @property
    def item(self) -> Any:
        return self.letter.item

    @property
    def config(self) -> dict[str, Any]:
        return self.letter.config

    @property
    def lap(self) -> int | None:
        return self.letter.lap

    @property
    def run_id(self) -> str:
        return self.letter.run_id

    @property
    def step(self) -> str:
        return self.letter.step

    @property
    def attempt(self) -> int:
        return self.letter.attempt

    @property
    def files(self) -> Path | None:
        """The folder of what came with the seed, or None when it came alone. Read only."""
        return Path(self.letter.files_dir) if self.letter.files_dir else None

    def artifact(self, name: str) -> Path:
        """A path for a file the step produces; its folders are made, and it stays inside the step's artifacts/.

        Raises:
            NotAFile: The name is no plain relative path.
        """
        base = self.trail.folder / "artifacts"
        base.mkdir(exist_ok=True)
        path = contained(base, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def progress(self, done: float, total: float) -> None:
        """Say how far the work is; also tells the daemon that the attempt is alive."""
        self.trail.note("progress", done=done, total=total)

    def model(self, name: str | None = None) -> _Model:
        """A model to call: ``ctx.model("large")("Say hello")``."""
        return _Model(self, name)

    def gather(self, calls: Sequence[Prompt | Call], *, model: str | None = None, schema: Any = None) -> list[Reply]:
        """Ask for many answers at once, in order; the gateway bounds how many are under way.

        Raises:
            AttemptFailed: The first call that failed, after all have ended.
        """
        replies = []
        for reply in self.gather_each(calls, model=model, schema=schema):
            if isinstance(reply, AttemptFailed):
                raise reply
            replies.append(reply)
        return replies

    def gather_each(
        self, calls: Sequence[Prompt | Call], *, model: str | None = None, schema: Any = None
    ) -> list[Reply | AttemptFailed]:
        """Like `gather`, with the failure in the place of every call that failed."""
        asked = [call if isinstance(call, Call) else Call(call, schema, model) for call in calls]
        requests = [self._request(call) for call in asked]
        self.trail.note("call.begin", text=f"{len(requests)} calls")
        answers = self._caller().ask_many(requests) if requests else []
        self.trail.note("call.end")
        return [self._reply_or_failure(answer, call) for answer, call in zip(answers, asked, strict=True)]

    def _reply_or_failure(self, answer: Answer | ModelError, call: Call) -> Reply | AttemptFailed:
        if isinstance(answer, ModelError):
            return _as_failure(answer)
        self._record(answer)
        try:
            return self._reply(answer, call)
        except AttemptFailed as error:
            return error

    def ask(self, call: Call) -> Reply:
        """One model call.

        Raises:
            AttemptFailed: The model could not be asked, refused, or was cut off.
        """
        request = self._request(call)
        self.trail.note("call.begin", text=request.model)
        try:
            answer = self._caller().ask(request)
        except ModelError as error:
            raise _as_failure(error) from None
        finally:
            self.trail.note("call.end")
        self._record(answer)
        return self._reply(answer, call)

    def _caller(self) -> ModelCaller:
        if self.caller is None:
            raise AttemptFailed("unavailable", "there is no gateway to ask models through")
        return self.caller

    def _request(self, call: Call) -> ModelRequest:
        name = call.model or self.default_model
        messages: Any = call.prompt
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
            raise TypeError('a prompt is a text or a list of {"role": ..., "content": ...}')
        return ModelRequest(
            model=self.letter.models.get(name, name),
            messages=[Message.model_validate(dict(message)) for message in messages],
            schema=call.schema,
            schema_name=self.letter.task,
            temperature=call.temperature if call.temperature is not None else self.temperature,
            max_output_tokens=call.max_output_tokens or self.max_output_tokens,
        )

    def _record(self, answer: Answer) -> None:
        row = {
            "at": rfc3339(time.time()),
            "stage": self.trail.stage,
            "key": answer.key,
            "model": answer.model,
            "provider": answer.provider,
            "provider_model": answer.provider_model,
            "input_tokens": answer.input_tokens,
            "output_tokens": answer.output_tokens,
            "cached_input_tokens": answer.cached_input_tokens,
            "cost_usd": answer.cost_usd,
            "ms": answer.ms,
            "cached": answer.cached,
            "finish_reason": answer.finish_reason,
            "note": answer.note,
        }
        if answer.extra.get("evidence"):  # what the embedded engine found, and where
            row["evidence"] = answer.extra["evidence"]
        self.trail.append("calls.jsonl", row)

    def _reply(self, answer: Answer, call: Call) -> Reply:
        if answer.finish_reason == "length":
            raise AttemptFailed(
                "truncated",
                f"the answer of {answer.model!r} was cut off at its output limit",
                hint="raise max_output_tokens, or ask for less",
            )
        if answer.finish_reason in ("refusal", "content_filter"):
            raise AttemptFailed("refused", f"{answer.model!r} declined: {answer.text[:500]}", problems=[answer.text])
        return Reply(answer.text, answer, call.schema)

    def compress(self, text: str, max_tokens: int, *, model: str | None = None) -> str:
        """Condense a text to about `max_tokens` tokens: parts side by side, then the parts' digests together.

        Tokens are estimated at four characters each. A text that fits comes back as it is.
        """
        for _ in range(6):
            if estimate_tokens(text) <= max_tokens:
                return text
            parts = split_text(text, 12_000)
            share = max(40, int(max_tokens / len(parts)))
            calls = [Call(_COMPRESS.format(words=int(share * 0.75), text=part), model=model) for part in parts]
            shorter = "\n\n".join(reply.text.strip() for reply in self.gather(calls))
            if len(shorter) >= len(text):
                break
            text = shorter
        return text[: int(max_tokens * CHARS_PER_TOKEN)]

    @property
    def control(self) -> Any:
        """Orders to the own run (add, skip, pause)."""
        raise AttemptFailed("bug", "ctx.control is not part of this version of POP")


_COMPRESS = """Condense the document to at most {words} words. Keep names, numbers and claims; invent nothing.

<document>
{text}
</document>"""


@dataclass(frozen=True)
class _Model:
    """A model by its name, callable."""

    ctx: Context
    name: str | None

    def __call__(
        self,
        prompt: Prompt,
        schema: dict[str, Any] | None = None,
        *,
        temperature: float | None = None,
        max_output_tokens: int | None = None,
    ) -> Reply:
        return self.ctx.ask(Call(prompt, schema, self.name, temperature, max_output_tokens))


def _as_failure(error: ModelError) -> AttemptFailed:
    return AttemptFailed(error.error_class, error.message, where=error.where, hint=error.hint)


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has: a quarter of its characters."""
    return int(len(text) / CHARS_PER_TOKEN) + 1


def split_text(text: str, size_chars: int) -> list[str]:
    """Cut a text at blank lines into parts of at most `size_chars` characters; a longer paragraph is cut inside."""
    parts, current = [], ""
    for paragraph in text.split("\n\n"):
        for piece in [paragraph[at : at + size_chars] for at in range(0, len(paragraph), size_chars)] or [""]:
            if current and len(current) + len(piece) + 2 > size_chars:
                parts.append(current)
                current = ""
            current = f"{current}\n\n{piece}" if current else piece
    return [*parts, current] if current.strip() else parts


def json_text(value: Any) -> str:
    """A value as a person reads it in a prompt."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
