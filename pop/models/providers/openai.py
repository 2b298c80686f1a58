"""Every OpenAI-compatible server, through the openai SDK: chat completions by `base_url`.

The SDK is told not to retry; what a server may answer is checked here, because a body can be anything:

| what comes back                                | class        | asked again |
|------------------------------------------------|--------------|-------------|
| connection refused or reset, timeout, 408, 5xx | unavailable  | yes         |
| 409, 429                                       | rate_limited | yes, after Retry-After |
| 429 insufficient_quota                         | budget       | no          |
| 401, 403                                       | auth         | no          |
| 400, 404, 422                                  | bad_input    | no          |
| context_length_exceeded                        | bad_input    | no: ctx.compress |
| a body that is no JSON, cut, HTML, null, a list, without choices | unavailable | yes |
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import openai

from pop.models.providers import Setup
from pop.models.request import Answer, FinishReason, Form, ModelError, ModelRequest, Origin

if TYPE_CHECKING:
    from pop.models.catalogue import ModelEntry

_FINISH: Mapping[str | None, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    None: "stop",
}
NO_KEY = "none"  # servers on this machine want a header, but no key


class OpenAIProvider:
    """One client per server and key."""

    def __init__(self, setup: Setup) -> None:
        self._environ = setup.environ
        self._clients: dict[tuple[str | None, str], openai.AsyncOpenAI] = {}

    async def answer(self, request: ModelRequest, entry: ModelEntry, origin: Origin, form: Form | None) -> Answer:
        began = time.perf_counter()
        try:
            response: Any = await self._client(entry).chat.completions.create(**_arguments(request, entry, form))
        except openai.APIStatusError as error:
            raise _status_error(error, entry) from None
        except openai.APIConnectionError as error:
            raise ModelError("unavailable", _text(error), where=_place(entry), curable=True) from None
        except (ValueError, RecursionError, openai.OpenAIError) as error:
            message = f"the server's answer cannot be read ({type(error).__name__})"
            raise ModelError("unavailable", message, where=_place(entry), curable=True) from None
        return _answer(response, entry, (time.perf_counter() - began) * 1000)

    def _client(self, entry: ModelEntry) -> openai.AsyncOpenAI:
        key = self._key(entry)
        found = self._clients.get((entry.base_url, key))
        if found is None:
            found = openai.AsyncOpenAI(
                api_key=key, base_url=entry.base_url, max_retries=0, timeout=entry.timeout_s, default_headers=None
            )
            self._clients[entry.base_url, key] = found
        return found

    def _key(self, entry: ModelEntry) -> str:
        if entry.key_env is None:
            return NO_KEY
        key = self._environ.get(entry.key_env)
        if not key:
            hint = f"export {entry.key_env}=... before pop up, or choose another model in pop.toml"
            raise ModelError("auth", f"{entry.key_env} is not set, model {entry.name!r} needs it", hint=hint)
        return key


def _arguments(request: ModelRequest, entry: ModelEntry, form: Form | None) -> dict[str, Any]:
    messages = [message.model_dump() for message in request.messages]
    arguments: dict[str, Any] = {"model": entry.model, "messages": messages}
    temperature = request.temperature if request.temperature is not None else entry.temperature
    limit = request.max_output_tokens or entry.max_output_tokens
    if temperature is not None:
        arguments["temperature"] = temperature
    if limit is not None:
        arguments["max_completion_tokens"] = limit
    if entry.headers:
        arguments["extra_headers"] = dict(entry.headers)
    if request.schema_ is not None:
        if form in ("strict", "schema"):
            wrapped = {"name": request.schema_name, "schema": request.schema_, "strict": False}
            arguments["response_format"] = {"type": "json_schema", "json_schema": wrapped}
        else:
            arguments["messages"] = [*messages, {"role": "user", "content": _schema_words(request.schema_)}]
    return arguments


def _schema_words(schema: dict[str, Any]) -> str:
    import json

    return f"Answer with one JSON value that obeys this JSON Schema, and nothing else:\n{json.dumps(schema)}"


def _answer(response: Any, entry: ModelEntry, ms: float) -> Answer:
    choices: Any = getattr(response, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    if message is None:
        kind = type(response).__name__
        raise ModelError(
            "unavailable", f"the server answered without a choice ({kind})", where=_place(entry), curable=True
        )
    refusal = getattr(message, "refusal", None)
    text = message.content if isinstance(message.content, str) else ""
    finish: FinishReason = "refusal" if refusal else _FINISH.get(choices[0].finish_reason, "stop")
    usage = getattr(response, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    return Answer(
        text=str(refusal) if refusal else text,
        model=entry.name,
        provider="openai",
        provider_model=str(getattr(response, "model", None) or entry.model),
        finish_reason=finish,
        input_tokens=_count(usage, "prompt_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
        cached_input_tokens=_count(details, "cached_tokens"),
        ms=round(ms, 3),
    )


def _count(holder: Any, name: str) -> int:
    value = getattr(holder, name, 0)
    return value if isinstance(value, int) and value >= 0 else 0


def _status_error(error: openai.APIStatusError, entry: ModelEntry) -> ModelError:
    status, code = error.status_code, str(getattr(error, "code", None) or "")
    place = _place(entry)
    text = f"HTTP {status}: {_text(error)}"
    if code == "insufficient_quota":
        return ModelError("budget", text, where=place, hint="the account has no credit left; waiting does not help")
    if status in (401, 403):
        return ModelError("auth", text, where=place, hint=f"check {entry.key_env or 'the key'}")
    if status in (409, 429):
        after = _retry_after_s(error.response.headers)
        return ModelError("rate_limited", text, where=place, retry_after_s=after, curable=True)
    if status == 408 or status >= 500:
        after = _retry_after_s(error.response.headers)
        return ModelError("unavailable", text, where=place, retry_after_s=after, curable=True)
    hint = "shorten the prompt, e.g. with ctx.compress" if code == "context_length_exceeded" else None
    if status == 404:
        hint = f"check `model` and `base_url` of {entry.name!r} in pop.toml"
    return ModelError("bad_input", text, where=place, hint=hint)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _text(error: Exception) -> str:
    return (getattr(error, "message", None) or str(error))[:500]


def _place(entry: ModelEntry) -> str:
    return f"model {entry.name!r} ({entry.model} at {entry.base_url or 'the OpenAI API'})"
