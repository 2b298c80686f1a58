"""The provider `openai` over real sockets: whatever a server sends ends in an answer or in a ModelError that says what to do."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from pop.models.entries import ModelEntry
from pop.models.providers import Setup, openai, openai_wire
from pop.models.providers.openai import OpenAIProvider
from pop.models.providers.openai_errors import rate_news
from pop.models.request import Answer, Form, Message, ModelError, ModelRequest, Origin, RateNews
from tests.fake_openai import FakeOpenAI, Fault

ORIGIN = Origin(run_id="r", instance="ask", generation=1, attempt=1)
KEY = "sk-mine-0123456789"
ENVIRON = {"A_KEY": KEY, "OPENAI_API_KEY": "sk-openai-own-key"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
QUESTION = "How long is the Rhine, from its spring to the sea?"


def request(schema: dict[str, Any] | None = None, **more: Any) -> ModelRequest:
    return ModelRequest(model="mine", messages=[Message(role="user", content=QUESTION)], schema=schema, **more)


def entry(base_url: str, **more: Any) -> ModelEntry:
    return ModelEntry("mine", "openai", "model-1", base_url=base_url, **{"timeout_s": 10.0, **more})


def ask(
    base_url: str,
    *,
    schema: dict[str, Any] | None = None,
    form: Form | None = None,
    environ: dict[str, str] | None = None,
    asked: dict[str, Any] | None = None,
    **more: Any,
) -> Answer:
    provider = OpenAIProvider(Setup(environ or ENVIRON, Path("/nonexistent")))
    question = request(schema, **(asked or {}))
    return asyncio.run(provider.answer(question, entry(base_url, **more), ORIGIN, form))


def error_of(base_url: str, **about: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        ask(base_url, **about)
    assert base_url in (caught.value.where or "") and caught.value.message
    return caught.value


@contextmanager
def raw_server(reply: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads a request and then does what it is told with the bare connection."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            while len(body) < length:
                body += connection.recv(65536)
            reply(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHAT: dict[str, Any] = {
    "model": "model-1-of-may",
    "choices": [{"message": {"role": "assistant", "content": "1,233 km"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 5},
}
RESPONSES: dict[str, Any] = {
    "model": "model-1-of-may",
    "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "1,233 km"}]}],
    "usage": {"input_tokens": 12, "output_tokens": 5},
}


def told(fake: FakeOpenAI, value: Any, **about: Any) -> Answer:
    """The answer to a body."""
    fake.faults = [Fault(body=json.dumps(value).encode())]
    return ask(fake.base_url, **about)


# -- what is read of an answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_both_ways_of_asking_bring_a_whole_answer(fake_openai: FakeOpenAI, api: str) -> None:
    """The path and the shape differ, the answer does not."""
    answer = ask(fake_openai.base_url, api=api, key_env="A_KEY", asked={"max_output_tokens": 9, "temperature": 0.5})
    assert answer.text == fake_openai.served[0].text and answer.finish_reason == "stop"
    assert (answer.input_tokens, answer.output_tokens, answer.estimated) == (11, 4, False)
    body = fake_openai.bodies[0]
    assert body["temperature"] == 0.5 and fake_openai.keys_seen == {KEY}
    sent = body["messages"] if api == "chat" else body["input"]
    assert sent == [{"role": "user", "content": QUESTION}]
    if api == "responses":
        assert body["max_output_tokens"] == 9 and body["store"] is False and "max_tokens" not in body


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("form", ["strict", "schema", "object+schema", "object", "prompt"])
def test_each_form_brings_json(fake_openai: FakeOpenAI, api: str, form: Form) -> None:
    """As the server knows it; where it is not told the schema to enforce, the model is told it in words."""
    answer = ask(fake_openai.base_url, api=api, schema=SCHEMA, form=form)
    assert json.loads(answer.text) == {"n": 1}
    body = fake_openai.bodies[0]
    words = (body["messages"] if api == "chat" else body["input"])[1:]
    assert len(words) == (0 if form in ("strict", "schema") else 1)
    shape = body.get("response_format") if api == "chat" else body.get("text", {}).get("format")
    kinds = {"strict": "json_schema", "schema": "json_schema", "object+schema": "json_object", "object": "json_object"}
    assert (shape or {}).get("type") == kinds.get(form)


@pytest.mark.parametrize(
    ("choice", "finish", "text"),
    [
        ({"message": {"content": "hi"}, "finish_reason": None}, "stop", "hi"),
        ({"message": {"content": "hi"}}, "stop", "hi"),
        ({"message": {"content": "hi"}, "finish_reason": "some-new-reason"}, "stop", "hi"),
        ({"message": {"content": "hi"}, "finish_reason": 7}, "stop", "hi"),
        ({"message": {"content": None}, "finish_reason": "stop"}, "stop", ""),
        ({"message": {"content": "cut"}, "finish_reason": "length"}, "length", "cut"),
        ({"message": {"content": "cut"}, "finish_reason": "MAX_TOKENS"}, "length", "cut"),
        ({"message": {"content": "half"}, "finish_reason": "content_filter"}, "content_filter", "half"),
        ({"message": {"content": "no"}, "finish_reason": "refusal"}, "refusal", "no"),
        ({"message": {"content": None, "refusal": "I will not."}, "finish_reason": "stop"}, "refusal", "I will not."),
        ({"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}, "stop", "ab"),
        ({"message": {"content": [{"type": "thinking", "thinking": "hm"}, "a", {"type": "text", "text": "b"}]}}, "stop", "ab"),
        ({"message": {"content": [{"type": "refusal", "refusal": "No."}]}}, "refusal", "No."),
        ({"message": {"content": [None, 3, {"type": "text", "text": 4}]}}, "stop", ""),
        ({"message": {"content": {"odd": True}}}, "stop", ""),
    ],
)  # fmt: skip
def test_why_an_answer_ended_goes_before_what_it_says(
    fake_openai: FakeOpenAI, choice: dict[str, Any], finish: str, text: str
) -> None:
    """Chat completions, in the shapes that servers send."""
    answer = told(fake_openai, {**CHAT, "choices": [choice]})
    assert (answer.finish_reason, answer.text) == (finish, text)


@pytest.mark.parametrize(
    ("more", "content", "finish", "text"),
    [
        ({}, [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}], "stop", "ab"),
        ({}, [{"type": "refusal", "refusal": "No."}], "refusal", "No."),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, [{"type": "output_text", "text": "cut"}], "length", "cut"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, [{"type": "output_text", "text": "half"}], "content_filter", "half"),
        ({"status": "incomplete", "incomplete_details": None}, [{"type": "output_text", "text": "cut"}], "length", "cut"),
        ({"status": None}, "plain", "stop", "plain"),
    ],
)  # fmt: skip
def test_the_responses_api_says_it_in_its_own_way(
    fake_openai: FakeOpenAI, more: dict[str, Any], content: Any, finish: str, text: str
) -> None:
    """`status` and `incomplete_details`, and refusals among the parts."""
    value = {**RESPONSES, **more, "output": [{"type": "reasoning"}, None, {"type": "message", "content": content}]}
    answer = told(fake_openai, value, api="responses")
    assert (answer.finish_reason, answer.text) == (finish, text)


def test_a_response_that_was_cut_before_its_first_word_is_cut(fake_openai: FakeOpenAI) -> None:
    """Reasoning used up the limit: `length`, with its tokens."""
    usage = {"input_tokens": 3, "output_tokens": 50, "output_tokens_details": {"reasoning_tokens": 50}}
    details = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    answer = told(fake_openai, {**RESPONSES, **details, "output": [], "usage": usage}, api="responses")
    assert (answer.finish_reason, answer.text, answer.reasoning_tokens) == ("length", "", 50)


FULL_CHAT = {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140,
             "prompt_tokens_details": {"cached_tokens": 60}, "completion_tokens_details": {"reasoning_tokens": 30}}  # fmt: skip
FULL_RESPONSES = {"input_tokens": 100, "output_tokens": 40,
                  "input_tokens_details": {"cached_tokens": 60}, "output_tokens_details": {"reasoning_tokens": 30}}  # fmt: skip


@pytest.mark.parametrize(
    ("api", "value", "usage"), [("chat", CHAT, FULL_CHAT), ("responses", RESPONSES, FULL_RESPONSES)]
)
def test_tokens_are_counted_by_kind(fake_openai: FakeOpenAI, api: str, value: dict[str, Any], usage: Any) -> None:
    """Cached ones are part of the input, reasoning is part of the output."""
    answer = told(fake_openai, {**value, "usage": usage}, api=api)
    found = (answer.input_tokens, answer.cached_input_tokens, answer.output_tokens, answer.reasoning_tokens)
    assert found == (100, 60, 40, 30) and not answer.estimated
    assert answer.provider_model == "model-1-of-may"


@pytest.mark.parametrize(
    "usage",
    [None, {}, [], 7, {"prompt_tokens": -1, "completion_tokens": 2}, {"prompt_tokens": "12", "completion_tokens": 2},
     {"prompt_tokens": True, "completion_tokens": 2}, {"prompt_tokens": 10**30, "completion_tokens": 2}, {"prompt_tokens": 5}],
    ids=str,
)  # fmt: skip
def test_where_a_server_does_not_count_it_is_estimated(fake_openai: FakeOpenAI, usage: Any) -> None:
    """A token for four characters, and it says so; nonsense is no count."""
    answer = told(fake_openai, {**CHAT, "usage": usage})
    assert answer.estimated and answer.input_tokens == len(QUESTION) // 4 + 1 and answer.output_tokens == 2


def test_an_output_that_is_not_counted_is_the_rest_of_the_total(fake_openai: FakeOpenAI) -> None:
    """Some embedded servers tell the total."""
    answer = told(fake_openai, {**CHAT, "usage": {"prompt_tokens": 5, "total_tokens": 9}})
    assert (answer.output_tokens, answer.estimated) == (4, False)


def test_text_is_kept_to_the_letter(fake_openai: FakeOpenAI) -> None:
    """Big integers stay digits, odd characters stay themselves."""
    text = '{"n": 123456789012345678901234567890, "s": "\u2028 \x00 \U0001f600"}'
    answer = told(fake_openai, {**CHAT, "choices": [{"message": {"content": text}}]})
    assert answer.text == text


# -- bodies that are none -------------------------------------------------------------------------------------------

GOOD = json.dumps(CHAT).encode()
BODIES: dict[str, tuple[bytes, bool]] = {  # and whether the provider may have counted it
    "html": (b"<html><body>Please sign in</body></html>", False),
    "cut": (GOOD[:60], True),
    "cut and nothing": (b"{", True),
    "null": (b"null", False),
    "list": (b"[1]", False),
    "text": (b'"hello"', False),
    "number": (b"17", False),
    "spaces": (b"   ", False),
    "NaN": (b'{"choices": NaN}', True),
    "Infinity": (b'{"choices": [-Infinity]}', True),
    "wrong UTF-8": (b'{"choices": "\xff\xfe"}', True),
    "UTF-16": ("\ufeff{}".encode("utf-16"), False),
    "deep": (b'{"choices":' * 100_000, True),
    "deep lists": (b"[" * 100_000 + b"]" * 100_000, False),
    "two values": (GOOD + GOOD, True),
    "event stream": (b'data: {"choices": []}\n\ndata: [DONE]\n\n', False),
    "empty object": (b"{}", False),
    "choices null": (b'{"choices": null}', False),
    "choices empty": (b'{"choices": []}', False),
    "choices object": (b'{"choices": {"0": {}}}', False),
    "choice null": (b'{"choices": [null]}', False),
    "message null": (b'{"choices": [{"message": null}]}', False),
    "message text": (b'{"choices": [{"message": "hi"}]}', False),
    "huge integers": (b'{"choices": [], "usage": {"prompt_tokens": 1' + b"0" * 5000 + b"}}", True),
    "error in the choice": (b'{"choices": [{"message": {"content": ""}, "finish_reason": "error"}]}', False),
    "error with 200": (b'{"error": {"message": "upstream is down"}}', False),
    "error text": (b'{"error": "model is loading"}', False),
    "error list": (b'{"error": [1]}', False),
}


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_answer_is_unavailable(fake_openai: FakeOpenAI, name: str, api: str) -> None:
    """Asking again may cure it; a body that was cut may have been counted."""
    body, counted = BODIES[name]
    fake_openai.faults = [Fault(body=body)]
    error = error_of(fake_openai.base_url, api=api)
    assert (error.error_class, error.curable) == ("unavailable", True)
    assert (error.tokens is not None and error.tokens.estimated) == counted
    assert len(error.message) < 1000


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "text/event-stream", "application/xml", "image/png"])
def test_another_content_type_is_no_answer(fake_openai: FakeOpenAI, kind: str) -> None:
    """Even when the body reads as one: something else than the API has answered."""
    fake_openai.faults = [Fault(body=GOOD, headers={"content-type": kind})]
    error = error_of(fake_openai.base_url)
    assert (error.error_class, error.curable) == ("unavailable", True)
    assert kind.partition(";")[0] in error.message and "base_url" in (error.hint or "")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "text/plain", "application/problem+json", ""])
def test_sloppy_content_types_are_read(fake_openai: FakeOpenAI, kind: str) -> None:
    """Several servers say text/plain, or nothing."""
    fake_openai.faults = [Fault(body=GOOD, headers={"content-type": kind})]
    assert ask(fake_openai.base_url).text == "1,233 km"


@pytest.mark.parametrize("message", [{"content": None, "tool_calls": [{"id": "1"}]}, {"function_call": {"name": "f"}}])
def test_a_tool_call_alone_is_no_answer(fake_openai: FakeOpenAI, message: dict[str, Any]) -> None:
    """Its tokens count; asking the same again would bring the same."""
    fake_openai.faults = [Fault(body=json.dumps({**CHAT, "choices": [{"message": message}]}).encode())]
    error = error_of(fake_openai.base_url)
    assert (error.error_class, error.curable) == ("invalid_output", False) and "tool" in error.message
    assert error.tokens and error.tokens.input_tokens == 12


@pytest.mark.parametrize(
    ("api", "value"),
    [("chat", {**CHAT, "choices": []}), ("responses", {**RESPONSES, "output": []}),
     ("responses", {**RESPONSES, "status": "failed", "output": []})],
)  # fmt: skip
def test_what_an_empty_answer_counts_is_told(fake_openai: FakeOpenAI, api: str, value: dict[str, Any]) -> None:
    """The provider bills it, so the ledger must know."""
    fake_openai.faults = [Fault(body=json.dumps(value).encode())]
    error = error_of(fake_openai.base_url, api=api)
    assert error.curable and error.tokens and (error.tokens.input_tokens, error.tokens.output_tokens) == (12, 5)
    assert not error.tokens.estimated


# -- connections ----------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_bills_nothing() -> None:
    """No connection, no tokens."""
    error = error_of("http://127.0.0.1:9/v1")
    assert (error.error_class, error.curable, error.tokens) == ("unavailable", True, None)
    assert "no connection" in error.message


def reset(connection: socket.socket) -> None:
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def cut_in_the_body(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"content-length: 5000\r\n\r\n" + GOOD[:100])


def reset_in_the_body(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"content-length: 5000\r\n\r\n" + GOOD[:100])
    time.sleep(0.1)
    reset(connection)


def drip(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"content-length: 5000\r\n\r\n")
    for byte in GOOD * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


BROKEN: dict[str, Callable[[socket.socket], None]] = {
    "closed at once": lambda connection: None,
    "reset at once": reset,
    "cut in the body": cut_in_the_body,
    "reset in the body": reset_in_the_body,
    "cut chunk": lambda connection: connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nab"),
    "no HTTP": lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "silence": lambda connection: time.sleep(5),
    "silence in the body": lambda connection: (cut_in_the_body(connection), time.sleep(5))[0],  # type: ignore[func-returns-value]
    "a slow drip": drip,
    "broken gzip": lambda connection: connection.sendall(HEAD + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd"),
    "headers without end": lambda connection: connection.sendall(HEAD + b"x-a: " + b"a" * 10**6),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_connection_that_breaks_after_the_request_may_be_billed(name: str) -> None:
    """Class `unavailable`, within the time a call has, with what it may have cost."""
    began = time.perf_counter()
    with raw_server(BROKEN[name]) as url:
        error = error_of(url, timeout_s=1.0)
    assert (error.error_class, error.curable) == ("unavailable", True)
    assert error.tokens and error.tokens.estimated and error.tokens.input_tokens == len(QUESTION) // 4 + 1
    assert time.perf_counter() - began < 3


def bomb(connection: socket.socket) -> None:
    """A gigabyte of spaces in a megabyte of gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join(packer.compress(b" " * 2**20) for _ in range(1024)) + packer.flush()
    connection.sendall(HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def endless(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


@pytest.mark.parametrize("flood", [bomb, endless])
def test_a_flood_ends_at_the_cap(flood: Callable[[socket.socket], None]) -> None:
    """Without more memory than the cap takes."""
    tracemalloc.start()
    try:
        with raw_server(flood) as url:
            error = error_of(url, timeout_s=30.0)
        assert tracemalloc.get_traced_memory()[1] < 4 * openai_wire.MAX_BODY_BYTES
    finally:
        tracemalloc.stop()
    assert (error.error_class, error.curable) == ("unavailable", True) and "longer than 32 MB" in error.message


def endless_error(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 503 No\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"busy " * 13107 + b"x\r\n")


def test_an_endless_error_is_the_error_it_says() -> None:
    """Its first words are enough; at most 500 characters are shown."""
    with raw_server(endless_error) as url:
        error = error_of(url)
    assert error.error_class == "unavailable" and error.message.startswith("HTTP 503: busy busy")
    assert len(error.message) <= 520


def test_compressed_answers_are_read(fake_openai: FakeOpenAI) -> None:
    """gzip, as most servers send it."""
    fake_openai.faults = [Fault(body=gzip.compress(GOOD), headers={"content-encoding": "gzip"})]
    assert ask(fake_openai.base_url).text == "1,233 km"


# -- statuses -------------------------------------------------------------------------------------------------------

CONTEXT_WORDS = {
    "openai": {"error": {"message": "Your input exceeds the limit.", "code": "context_length_exceeded"}},
    "openai responses": {"error": {"message": "Your input exceeds the context window of this model.", "code": None}},
    "llama.cpp": {"error": {"code": 400, "message": "the request exceeds the available context size, try increasing it", "type": "exceed_context_size_error"}},
    "llama-cpp-python": {"error": {"message": "Requested tokens (600) exceed context window of 512", "type": "invalid_request_error"}},
    "vllm": {"object": "error", "message": "This model's maximum context length is 4096 tokens. However, you requested 5000", "code": 400},
    "anthropic": {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}},
    "gemini": [{"error": {"code": 400, "message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", "status": "INVALID_ARGUMENT"}}],
    "mistral": {"object": "error", "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length"},
    "xai": {"error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens."},
    "tgi": {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 5000"},
    "bedrock": {"message": "Input is too long for requested model."},
    "ollama": {"error": {"message": "input length exceeds maximum context length"}},
}  # fmt: skip


@pytest.mark.parametrize("name", CONTEXT_WORDS)
def test_a_prompt_that_is_too_long_is_told_in_one_way(fake_openai: FakeOpenAI, name: str) -> None:
    """Whatever words the server has for it, the hint is ctx.compress, and nobody asks again."""
    fake_openai.faults = [Fault(status=400, body=json.dumps(CONTEXT_WORDS[name]).encode())]
    error = error_of(fake_openai.base_url, schema=SCHEMA, form="strict")
    assert (error.error_class, error.code, error.curable, error.wrong_form) == (
        "bad_input",
        "context-length",
        False,
        False,
    )
    assert "ctx.compress" in (error.hint or "")


def body_of(message: str, code: Any = None, param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "code": code, "param": param}}).encode()


STATUSES: list[tuple[int, bytes, str, str, bool]] = [
    (400, body_of("no"), "bad_input", "bad-input", False),
    (400, body_of("Your credit balance is too low to access the API."), "budget", "insufficient-quota", False),
    (400, body_of("The model `x` does not exist", "model_not_found"), "bad_input", "not-found", False),
    (401, body_of("Incorrect API key provided"), "auth", "auth", False),
    (402, body_of("Payment Required"), "budget", "insufficient-quota", False),
    (402, b"", "budget", "insufficient-quota", False),
    (403, b"<html>Forbidden</html>", "auth", "auth", False),
    (404, b"", "bad_input", "not-found", False),
    (405, b"", "bad_input", "bad-input", False),
    (408, b"", "unavailable", "unavailable", True),
    (409, body_of("conflict"), "rate_limited", "rate-limited", True),
    (413, b"<html>Request Entity Too Large</html>", "bad_input", "context-length", False),
    (422, b'{"detail": [{"loc": ["body", "seed"], "msg": "not an integer"}]}', "bad_input", "bad-input", False),
    (429, body_of("Rate limit reached for requests", "rate_limit_exceeded"), "rate_limited", "rate-limited", True),
    (429, body_of("You exceeded your current quota", "insufficient_quota"), "budget", "insufficient-quota", False),
    (429, body_of("Request too large for gpt-x on tokens per min"), "bad_input", "context-length", False),
    (
        429,
        b'[{"error": {"code": 429, "message": "You exceeded your current quota.", "status": "RESOURCE_EXHAUSTED"}}]',
        "rate_limited",
        "rate-limited",
        True,
    ),  # Gemini's words for a limit by the minute
    (429, b"[" * 5000, "rate_limited", "rate-limited", True),
    (500, b"\xff\xfe", "unavailable", "server-error", True),
    (502, b"<html>Bad Gateway</html>", "unavailable", "unavailable", True),
    (503, b"null", "unavailable", "unavailable", True),
    (529, body_of("Overloaded"), "unavailable", "unavailable", True),
]


@pytest.mark.parametrize(("status", "body", "error_class", "code", "curable"), STATUSES)
def test_a_status_has_its_class_and_code(
    fake_openai: FakeOpenAI, status: int, body: bytes, error_class: str, code: str, curable: bool
) -> None:
    """As the table of openai_errors.py has it; one request, nothing billed."""
    fake_openai.faults = [Fault(status=status, body=body or b" ")] * 2
    error = error_of(fake_openai.base_url)
    assert (error.error_class, error.code, error.curable) == (error_class, code, curable)
    assert error.tokens is None and len(fake_openai.bodies) == 1
    assert error.message.startswith(f"HTTP {status}: ") and "\n" not in error.message


@pytest.mark.parametrize("status", [504, 524])
def test_a_gateway_that_gave_up_waiting_may_have_been_billed(fake_openai: FakeOpenAI, status: int) -> None:
    """The model behind it went on."""
    fake_openai.faults = [Fault(status=status, body=b"{}")]
    error = error_of(fake_openai.base_url)
    assert error.curable and error.tokens and error.tokens.estimated


@pytest.mark.parametrize(
    ("value", "error_class", "code"),
    [
        ({"error": {"code": 429, "message": "slow down"}}, "rate_limited", "rate-limited"),
        ({"error": {"code": "502", "message": "provider"}}, "unavailable", "unavailable"),
        ({"error": {"code": 402, "message": "Insufficient credits"}}, "budget", "insufficient-quota"),
        ({"error": {"code": "context_length_exceeded", "message": "long"}}, "bad_input", "context-length"),
        ({"error": {"code": 400, "message": "wrap", "metadata": {"raw": "prompt is too long"}}}, "bad_input", "context-length"),
        ({"status": "failed", "error": {"code": "server_error", "message": "sorry"}}, "unavailable", "server-error"),
    ],
)  # fmt: skip
def test_an_error_that_comes_with_200_is_the_error_it_says(
    fake_openai: FakeOpenAI, value: dict[str, Any], error_class: str, code: str
) -> None:
    """As brokers send it, and the Responses API."""
    fake_openai.faults = [Fault(body=json.dumps(value).encode())]
    error = error_of(fake_openai.base_url)
    assert (error.error_class, error.code) == (error_class, code)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (body_of("'response_format' of type 'json_schema' is not supported with this model"), "wrong-form"),
        (body_of("Invalid parameter", param="response_format"), "wrong-form"),
        (
            b'{"detail": [{"loc": ["body", "response_format", "type"], "msg": "Input should be \'text\'"}]}',
            "wrong-form",
        ),
        (body_of("This model does not support structured outputs"), "wrong-form"),
        (body_of("failed to parse grammar"), "wrong-form"),
        (body_of("Invalid schema for response_format 'output'", "invalid_json_schema"), "bad-schema"),
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_a_server_may_not_know_the_form(fake_openai: FakeOpenAI, status: int, body: bytes, code: str) -> None:
    """`wrong_form` where a form was asked for; without one the same words are only bad input."""
    fake_openai.faults = [Fault(status=status, body=body)] * 2
    error = error_of(fake_openai.base_url, schema=SCHEMA, form="strict")
    assert (error.error_class, error.wrong_form, error.code) == ("bad_input", True, code)
    assert not error_of(fake_openai.base_url).wrong_form


def test_a_temperature_that_a_model_does_not_take_is_told(fake_openai: FakeOpenAI) -> None:
    """It is ours to leave out, or the user's: changing it in silence would change the answers."""
    message = "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is supported."
    fake_openai.faults = [Fault(status=400, body=body_of(message, "unsupported_value", "temperature"))]
    error = error_of(fake_openai.base_url, asked={"temperature": 0.2})
    assert error.error_class == "bad_input" and "leave it out" in (error.hint or "")


OLD_ONLY = body_of("Unrecognized request argument supplied: max_completion_tokens")
FORBIDDEN = b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted"}]}'
NEW_ONLY = body_of(
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "unsupported_parameter",
    "max_tokens",
)
NOT_BOTH = body_of("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
BOTH, NEW, OLD = {"max_completion_tokens", "max_tokens"}, {"max_completion_tokens"}, {"max_tokens"}


@pytest.mark.parametrize(
    ("refusals", "sent"),
    [
        ([], [BOTH, BOTH]),
        ([OLD_ONLY], [BOTH, OLD, OLD]),
        ([FORBIDDEN], [BOTH, OLD, OLD]),
        ([NEW_ONLY], [BOTH, NEW, NEW]),
        ([NOT_BOTH], [BOTH, NEW, NEW]),
        ([NOT_BOTH, OLD_ONLY], [BOTH, NEW, OLD, OLD]),
    ],
)
def test_the_limit_of_an_answer_goes_by_the_name_that_the_server_knows(
    fake_openai: FakeOpenAI, refusals: list[bytes], sent: list[set[str]]
) -> None:
    """Both names at first: who knows only the old one passes over the new one in silence. What is refused is not sent again."""
    fake_openai.faults = [Fault(status=400, body=body) for body in refusals]

    async def work() -> None:
        provider = OpenAIProvider(Setup({}, Path("/nonexistent")))
        for _ in range(2):
            await provider.answer(request(max_output_tokens=7), entry(fake_openai.base_url), ORIGIN, None)

    asyncio.run(work())
    assert [{name for name in BOTH if body.get(name) == 7} for body in fake_openai.bodies] == sent


def test_openai_itself_is_sent_the_new_name(fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses both at once; its own host also hears who pays."""
    monkeypatch.setattr(openai, "OPENAI_URL", fake_openai.base_url)
    environ = {**ENVIRON, "OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": "proj-1"}
    provider = OpenAIProvider(Setup(environ, Path("/nonexistent")))
    own = ModelEntry("mine", "openai", "gpt-5", key_env="OPENAI_API_KEY")
    asyncio.run(provider.answer(request(max_output_tokens=7), own, ORIGIN, None))
    assert set(fake_openai.bodies[0]) == {"model", "messages", "max_completion_tokens"}
    assert fake_openai.keys_seen == {ENVIRON["OPENAI_API_KEY"]}
    assert fake_openai.headers[0]["openai-organization"] == "org-1"
    assert fake_openai.headers[0]["openai-project"] == "proj-1"


def test_a_limit_that_a_server_refuses_by_every_name_is_an_error(fake_openai: FakeOpenAI) -> None:
    """Three requests at most."""
    fake_openai.faults = [Fault(status=400, body=NOT_BOTH)] * 9
    error = error_of(fake_openai.base_url, asked={"max_output_tokens": 7})
    assert error.error_class == "bad_input" and len(fake_openai.bodies) == 3


def test_options_go_into_the_body_but_cannot_change_what_is_asked(fake_openai: FakeOpenAI) -> None:
    """Model, messages and stream are ours: the answer would be another one, or could not be read."""
    options = {"top_p": 0.5, "model": "other", "messages": [], "stream": True, "reasoning": {"effort": "low"}}
    ask(fake_openai.base_url, options=options)
    body = fake_openai.bodies[0]
    assert body == {"model": "model-1", "messages": [{"role": "user", "content": QUESTION}],
                    "top_p": 0.5, "reasoning": {"effort": "low"}}  # fmt: skip


def test_options_that_json_cannot_say_are_bad_input(fake_openai: FakeOpenAI) -> None:
    """TOML has values that JSON has not."""
    error = error_of(fake_openai.base_url, options={"x": float("nan"), "y": object()})
    assert error.error_class == "bad_input" and "options" in (error.hint or "") and fake_openai.bodies == []


# -- headers --------------------------------------------------------------------------------------------------------


def later(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("headers", "news"),
    [
        ({}, None),
        (
            {"x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "499", "x-ratelimit-reset-requests": "120ms",
             "x-ratelimit-limit-tokens": "30000", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"},
            RateNews(500, 499, 0.12, 30000, 0, 62.5),
        ),
        ({"x-ratelimit-reset-tokens": "6h0m1s"}, RateNews(tokens_reset_s=21601.0)),
        ({"x-ratelimit-reset-requests": "7"}, RateNews(requests_reset_s=7.0)),
        ({"ratelimit-limit": "100", "ratelimit-remaining": "3", "ratelimit-reset": "30"}, RateNews(100, 3, 30)),
        ({"x-ratelimit-limit": "20", "x-ratelimit-remaining": "0"}, RateNews(20, 0)),
        ({"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-tokens-remaining": "9000"},
         RateNews(requests_limit=50, tokens_left=9000)),
        ({"retry-after-ms": "1500", "retry-after": "9"}, RateNews(retry_after_s=1.5)),
        ({"retry-after": "2.5"}, RateNews(retry_after_s=2.5)),
        ({"retry-after": "1m30s"}, RateNews(retry_after_s=90.0)),
        *[({"x-ratelimit-limit-requests": nonsense, "x-ratelimit-remaining-tokens": nonsense, "x-ratelimit-reset-requests": nonsense,
            "retry-after": nonsense, "retry-after-ms": nonsense}, None)
          for nonsense in ("", "-1", "nan", "inf", "1e999", "soon", "-5s", "1" * 40, "²", "None", "Wed, 99 Xyz 2026", "1m" * 4000)],
    ],
)  # fmt: skip
def test_what_headers_say_of_limits(headers: dict[str, str], news: RateNews | None) -> None:
    """Go durations, seconds, dates; nonsense says nothing."""
    assert rate_news(headers) == news


@pytest.mark.parametrize("name", ["anthropic-ratelimit-tokens-reset", "x-ratelimit-reset-tokens"])
def test_a_reset_may_be_a_point_in_time(name: str) -> None:
    """RFC 3339 (Anthropic), seconds or milliseconds since 1970 (brokers)."""
    for text in (later(60), str(time.time() + 60), str(int((time.time() + 60) * 1000))):
        news = rate_news({name: text})
        assert news and news.tokens_reset_s is not None and 20 < news.tokens_reset_s < 61


def test_limits_are_heard_from_answers_and_from_errors(fake_openai: FakeOpenAI) -> None:
    """The gateway slows down before it is told to."""
    headers = {"X-RateLimit-Remaining-Requests": "0", "X-RateLimit-Reset-Requests": "2s", "Retry-After": "3"}
    fake_openai.faults = [Fault(body=GOOD, headers=headers), Fault(status=429, body=b"{}", headers=headers)]
    news = RateNews(requests_left=0, requests_reset_s=2.0, retry_after_s=3.0)
    assert ask(fake_openai.base_url).rate == news
    error = error_of(fake_openai.base_url)
    assert error.rate == news and error.retry_after_s == 3.0


def test_a_retry_after_without_end_is_bounded(fake_openai: FakeOpenAI) -> None:
    """Thirty days at most."""
    for value in ("99999999999", formatdate(time.time() + 10**9, usegmt=True)):
        fake_openai.faults = [Fault(status=429, body=b"{}", headers={"retry-after": value})]
        assert error_of(fake_openai.base_url).retry_after_s == 30 * 86400.0


# -- keys -----------------------------------------------------------------------------------------------------------

AMBIENT = {
    "OPENAI_API_KEY": "sk-ambient-key-1",
    "OPENAI_ADMIN_KEY": "sk-ambient-admin",
    "OPENAI_ORG_ID": "org-ambient",
    "OPENAI_PROJECT_ID": "proj-ambient",
    "OPENAI_CUSTOM_HEADERS": "x-ambient: secret-ambient\nauthorization: Bearer sk-ambient-header",
    "OPENAI_WEBHOOK_SECRET": "ambient-hook",
}


@pytest.mark.parametrize(("key_env", "sent"), [(None, "none"), ("A_KEY", KEY)])
def test_nothing_of_the_environment_goes_to_another_host(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, key_env: str | None, sent: str
) -> None:
    """The key of `api_key_env` and no other; the SDK's own variables stay at home."""
    for name, value in AMBIENT.items():
        monkeypatch.setenv(name, value)
    ask(fake_openai.base_url, key_env=key_env, environ={**AMBIENT, "A_KEY": KEY}, headers={"x-mine": "yes"})
    headers = fake_openai.headers[0]
    assert headers["authorization"] == f"Bearer {sent}" and headers["x-mine"] == "yes"
    assert "ambient" not in json.dumps(headers) and "x-stainless-os" not in headers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_the_key_nowhere(fake_openai: FakeOpenAI, status: int) -> None:
    """It is an error that says where to; the other server hears nothing at all."""
    other = FakeOpenAI()
    try:
        location = f"{other.base_url}/chat/completions"
        fake_openai.faults = [Fault(status=status, body=b" ", headers={"location": location})]
        error = error_of(fake_openai.base_url, key_env="A_KEY", headers={"api-key": KEY})
        assert other.bodies == [] and other.headers == []
    finally:
        other.close()
    assert (error.error_class, error.curable) == ("bad_input", False)
    assert location in error.message and "base_url" in (error.hint or "")


def test_two_models_of_one_server_have_each_their_key(fake_openai: FakeOpenAI) -> None:
    """A client per server and key; the same pair shares its connections."""
    provider = OpenAIProvider(Setup({"ONE": "key-one", "TWO": "key-two"}, Path("/nonexistent")))

    async def work() -> None:
        for key_env in ("ONE", "TWO", "ONE"):
            await provider.answer(request(), entry(fake_openai.base_url, key_env=key_env), ORIGIN, None)

    asyncio.run(work())
    assert [headers["authorization"] for headers in fake_openai.headers] == [
        "Bearer key-one", "Bearer key-two", "Bearer key-one"]  # fmt: skip
    assert len(provider._clients) == 2


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-ä", "“sk-a”", "sk\x00a"])
def test_a_key_that_no_header_can_carry_is_told_without_showing_it(fake_openai: FakeOpenAI, key: str) -> None:
    """It names the variable; spaces around a key are cut off."""
    error = error_of(fake_openai.base_url, key_env="A_KEY", environ={"A_KEY": key})
    assert error.error_class == "auth" and "A_KEY" in error.message and key not in str(vars(error))
    ask(fake_openai.base_url, key_env="A_KEY", environ={"A_KEY": f" {KEY}\n"})
    assert fake_openai.keys_seen == {KEY}


@pytest.mark.parametrize("headers", [{"x-a": "b\r\nx-evil: 1"}, {"x a": "b"}, {"x-ä": "b"}, {"x-a": "ü€"}])
def test_headers_that_cannot_be_sent_are_bad_input(fake_openai: FakeOpenAI, headers: dict[str, str]) -> None:
    """Nothing is smuggled."""
    try:
        ask(fake_openai.base_url, headers=headers)
    except ModelError as error:
        assert error.error_class == "bad_input" and "headers" in (error.hint or "")
    assert all("x-evil" not in sent for sent in fake_openai.headers)


def test_a_password_in_base_url_is_not_shown(fake_openai: FakeOpenAI) -> None:
    """`where` names the server without it."""
    url = fake_openai.base_url.replace("http://", "http://me:hunter2@")
    fake_openai.faults = [Fault(status=500, body=b"{}")]
    with pytest.raises(ModelError) as caught:
        ask(url)
    assert "hunter2" not in str(vars(caught.value)) and fake_openai.base_url in (caught.value.where or "")


# -- many at once ---------------------------------------------------------------------------------------------------


def test_hundreds_are_in_flight_and_their_connections_are_given_back(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call waits for another, and what is idle is closed."""
    fake_openai.delay_s = 2.0
    provider = OpenAIProvider(Setup({}, Path("/nonexistent")))
    one = entry(fake_openai.base_url)

    async def work() -> None:
        await asyncio.gather(*(provider.answer(request(), one, ORIGIN, None) for _ in range(300)))
        wire = next(iter(provider._clients.values()))._client
        assert isinstance(wire, openai_wire.Wire) and (wire.busy, wire.idle) == (0, 300)
        fake_openai.delay_s = 0.0
        monkeypatch.setattr(openai_wire, "IDLE_S", 0.0)
        await provider.answer(request(), one, ORIGIN, None)
        assert (wire.busy, wire.idle) == (0, 1)

    asyncio.run(work())
    assert fake_openai.most_at_once >= 200 and fake_openai.total == 301


def test_a_call_that_is_cancelled_gives_its_place_back(fake_openai: FakeOpenAI) -> None:
    """The gateway's deadline may end it at any time."""
    fake_openai.delay_s = 0.3
    provider = OpenAIProvider(Setup({}, Path("/nonexistent")))

    async def work() -> None:
        for _ in range(3):
            task = asyncio.create_task(provider.answer(request(), entry(fake_openai.base_url), ORIGIN, None))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        wire = next(iter(provider._clients.values()))._client
        assert isinstance(wire, openai_wire.Wire) and (wire.busy, wire.idle) == (0, 1)

    asyncio.run(work())
