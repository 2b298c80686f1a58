"""The two ways of asking an OpenAI-compatible server, as bodies of JSON: chat completions and the Responses API.

| `form`        | the schema goes as                                                        |
|---------------|---------------------------------------------------------------------------|
| strict        | response_format json_schema, ``strict: true``; already reduced by pop/models/forms.py |
| schema        | response_format json_schema, as it is                                     |
| object+schema | response_format json_object with the schema in it, and in words           |
| object        | response_format json_object, and in words                                 |
| prompt        | words alone                                                               |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from pop.models.providers import KINDS
from pop.models.request import FinishReason, Form, ModelRequest, Tokens

if TYPE_CHECKING:
    from pop.models.entries import ModelEntry

MAX_COUNT = 10**9  # tokens; above it a count is nonsense

_FINISH: Mapping[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "max_output_tokens": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "refusal": "refusal",
}


@dataclass(frozen=True)
class Reply:
    """What a body says. `tokens` None: it does not count; `problem`: why there is no answer in it."""

    text: str = ""
    finish: FinishReason = "stop"
    model: str = ""
    tokens: Tokens | None = None
    problem: str | None = None
    only_tools: bool = False


def encode(body: dict[str, Any]) -> bytes:
    """The body as JSON.

    Raises:
        TypeError, ValueError: `options` holds what JSON cannot say.
    """
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # integers beyond 64 bits, lone surrogates, a schema of many levels
        return json.dumps(body, allow_nan=False).encode()


def chat_body(
    request: ModelRequest, entry: ModelEntry, form: Form | None, limit_names: tuple[str, ...]
) -> dict[str, Any]:
    """For ``/chat/completions``. `limit_names` is what this server calls the limit of an answer."""
    body = _common(request, entry, form, "messages", limit_names)
    if request.schema_ is not None and form in ("strict", "schema"):
        wrapped = {"name": _name(request), "schema": request.schema_, "strict": form == "strict"}
        body["response_format"] = {"type": "json_schema", "json_schema": wrapped}
    elif request.schema_ is not None and form == "object+schema":
        body["response_format"] = {"type": "json_object", "schema": request.schema_}
    elif request.schema_ is not None and form == "object":
        body["response_format"] = {"type": "json_object"}
    return body


def responses_body(
    request: ModelRequest, entry: ModelEntry, form: Form | None, limit_names: tuple[str, ...]
) -> dict[str, Any]:
    """For ``/responses``; nothing is kept there unless `options` say ``store = true``."""
    body = {"store": False, **_common(request, entry, form, "input", ("max_output_tokens",))}
    if request.schema_ is not None and form in ("strict", "schema"):
        named = {"name": _name(request), "schema": request.schema_, "strict": form == "strict"}
        body["text"] = {**body.get("text", {}), "format": {"type": "json_schema", **named}}
    elif request.schema_ is not None and form in ("object", "object+schema"):
        more = {"schema": request.schema_} if form == "object+schema" else {}
        body["text"] = {**body.get("text", {}), "format": {"type": "json_object", **more}}
    return body


def _common(
    request: ModelRequest, entry: ModelEntry, form: Form | None, messages_name: str, limit_names: tuple[str, ...]
) -> dict[str, Any]:
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    if request.schema_ is not None and form not in ("strict", "schema"):
        messages.append({"role": "user", "content": _in_words(request.schema_)})
    body: dict[str, Any] = {name: value for name, value in entry.options.items() if name not in KINDS["openai"].ours}
    body |= {"model": entry.model, messages_name: messages}
    temperature = request.temperature if request.temperature is not None else entry.temperature
    limit = request.max_output_tokens or entry.max_output_tokens
    if temperature is not None:
        body["temperature"] = temperature
    if limit is not None:
        body |= dict.fromkeys(limit_names, limit)
    return body


def _name(request: ModelRequest) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", request.schema_name)[:64] or "output"


def _in_words(schema: dict[str, Any]) -> str:
    return f"Answer with one JSON value that obeys this JSON Schema, and nothing else:\n{json.dumps(schema)}"


def guessed(request: ModelRequest, output_chars: int = 0) -> Tokens:
    """What a request may count when nobody says: a token for four characters."""
    chars = sum(len(message.content) for message in request.messages)
    return Tokens(input_tokens=chars // 4 + 1, output_tokens=-(-output_chars // 4), estimated=True)


# -- reading ---------------------------------------------------------------------------------------------------


def read_chat(value: dict[str, Any]) -> Reply:
    """Of ``{"choices": [{"message": {"content"}, "finish_reason"}], "usage": {...}, "model": ...}``."""
    tokens = _tokens(value.get("usage"), ("prompt_tokens", "completion_tokens"))
    model = _text(value.get("model"))[:200]
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Reply(model=model, tokens=tokens, problem=f"the server answered without a choice ({_shape(value)})")
    reason = _text(choice.get("finish_reason")).lower()
    if reason == "error":
        return Reply(model=model, tokens=tokens, problem="the server says that the model broke off with an error")
    text, refusal = _parts(message.get("content"), "text")
    refusal = _text(message.get("refusal")) or refusal
    tools = bool(message.get("tool_calls") or message.get("function_call")) and not text
    return _reply(text, refusal, _FINISH.get(reason, "stop"), model, tokens, tools)


def read_responses(value: dict[str, Any]) -> Reply:
    """Of ``{"status", "incomplete_details", "output": [{"type": "message", "content": [...]}], "usage": {...}}``."""
    tokens = _tokens(value.get("usage"), ("input_tokens", "output_tokens"))
    model = _text(value.get("model"))[:200]
    output = value.get("output")
    items = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    status = value.get("status")
    found = [_parts(item.get("content"), "output_text") for item in items if item.get("type") == "message"]
    text, refusal = "".join(text for text, _ in found), "".join(refusal for _, refusal in found)
    details = value.get("incomplete_details")
    reason = _text(details.get("reason")) if isinstance(details, dict) else ""
    finish = _FINISH.get(reason.lower(), "stop")
    if status == "incomplete" and finish == "stop":
        finish = "length"
    tools = any(_text(item.get("type")).endswith("_call") for item in items)
    if status in ("failed", "cancelled", "queued", "in_progress"):
        return Reply(model=model, tokens=tokens, problem=f"the server answered with status {status!r}")
    if not found and finish == "stop" and not tools:
        return Reply(model=model, tokens=tokens, problem=f"the server answered without a message ({_shape(value)})")
    return _reply(text, refusal, finish, model, tokens, tools and not found)


def _reply(text: str, refusal: str, finish: FinishReason, model: str, tokens: Tokens | None, only_tools: bool) -> Reply:
    """What cut an answer short goes before what is left of it."""
    if finish == "content_filter" and not text:
        text = refusal or "The server's content filter kept the answer back."
    elif refusal and finish != "length":
        return Reply(refusal, "refusal", model, tokens)
    return Reply(text, finish, model, tokens, only_tools=only_tools and finish == "stop")


def _parts(content: Any, kind: str) -> tuple[str, str]:
    """Text and refusal of a content: a text, or a list of parts."""
    if isinstance(content, str):
        return content, ""
    parts = list(_dicts(content))
    texts = [_text(part.get("text")) for part in parts if part.get("type") in (kind, "text", None)]
    return "".join(texts), "".join(_text(part.get("refusal")) for part in parts)


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (part if isinstance(part, dict) else {"text": part} for part in value)


def _tokens(usage: Any, names: tuple[str, str]) -> Tokens | None:
    """None where the server does not count, or counts nonsense."""
    if not isinstance(usage, dict):
        return None
    put_in, put_out = (_count(usage.get(name)) for name in names)
    total = _count(usage.get("total_tokens"))
    if put_in is None or (put_out is None and total is None):
        return None
    more_in, more_out = (usage.get(f"{name}_details") for name in names)
    output = put_out if put_out is not None else max(0, (total or 0) - put_in)
    return Tokens(
        input_tokens=put_in,
        output_tokens=output,
        cached_input_tokens=min(_of(more_in, "cached_tokens"), put_in),
        reasoning_tokens=min(_of(more_out, "reasoning_tokens"), output),
    )


def _of(details: Any, name: str) -> int:
    return (_count(details.get(name)) or 0) if isinstance(details, dict) else 0


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _shape(value: dict[str, Any]) -> str:
    return "it has " + (", ".join(repr(str(key)[:40]) for key in list(value)[:6]) or "nothing")
