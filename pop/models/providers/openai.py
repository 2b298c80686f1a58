"""Every OpenAI-compatible server, by `base_url`: chat completions, and the Responses API where `api` says so.

The openai SDK makes the requests and is told not to retry. What comes back is read here, because a body can be anything;
the classes of what a status says stand in openai_errors.py, and of the rest here:

| what comes back                                     | class          | billed       | asked again |
|-----------------------------------------------------|----------------|--------------|-------------|
| no connection                                       | unavailable    | no           | yes |
| a certificate that nobody here trusts (code `bad-certificate`) | unavailable | no   | no  |
| a timeout or a reset after the request was sent, a body that is cut or too long | unavailable | maybe (estimated) | yes |
| a body that is no JSON object, HTML, another content type | unavailable | no       | yes |
| no choices, an error without a status               | unavailable    | what it says | yes |
| a tool call and no text                             | invalid_output | what it says | no: the next attempt asks afresh |
| ``{"error": {"code": 429}}`` with status 200        | as that status |              |     |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx2
import openai
import orjson

from pop import __version__
from pop.models.providers import Setup
from pop.models.providers.openai_body import (
    Reply,
    chat_body,
    encode,
    guessed,
    read_chat,
    read_responses,
    responses_body,
)
from pop.models.providers.openai_errors import place, rate_news, status_error, told, told_by
from pop.models.providers.openai_wire import NOT_SENT, BodyError, Response, Wire
from pop.models.request import Answer, Form, ModelError, ModelRequest, Origin, Tokens

if TYPE_CHECKING:
    from pop.models.entries import ModelEntry

NO_KEY = "none"  # servers on this machine want a header, but no key
OPENAI_URL = "https://api.openai.com/v1"
CONNECT_S = 15.0
PROXY_HINT = "look at HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY in the environment of pop up"
_APIS = {
    "chat": ("chat/completions", chat_body, read_chat),
    "responses": ("responses", responses_body, read_responses),
}
LIMITS = ("max_completion_tokens", "max_tokens")  # what servers call the limit of an answer: the new name, the old
_JSON = ("application/json", "text/plain", "application/octet-stream", "binary/octet-stream", "")


class _Client(openai.AsyncOpenAI):
    """The SDK with none of the headers that it takes from the environment: it talks to other hosts than OpenAI's too.

    Its address, key and connections are used, its `post` is not: options, retries and types cost 0.3 ms of CPU a call.
    """

    def __init__(self, base_url: str, key: str, headers: Mapping[str, str]) -> None:
        self.wire = Wire()
        super().__init__(api_key=key, base_url=base_url, max_retries=0, http_client=self.wire)
        self._patterns: dict[tuple[Any, ...], tuple[httpx2.URL, list[tuple[bytes, bytes]]]] = {}
        self._sent = {
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": f"pop/{__version__}",
            "authorization": f"Bearer {key}",
            **headers,
        }

    @property
    def default_headers(self) -> dict[str, str | openai.Omit]:
        return dict(self._sent)

    async def ask(self, path: str, content: bytes, headers: Mapping[str, str], timeout: httpx2.Timeout) -> Response:
        """The whole response to a body that is posted there.

        Raises:
            BodyError, httpx2.RequestError: None came.
            ValueError, TypeError, httpx2.InvalidURL: It cannot be sent.
        """
        asked = (path, *headers.items())
        pattern = self._patterns.get(asked)
        if pattern is None:
            url = self.base_url.copy_with(raw_path=self.base_url.raw_path + path.encode())
            merged = httpx2.Headers(self._sent)
            merged.update(headers)
            made = self.wire.build_request("POST", url, headers=merged)
            own = [pair for pair in made.headers.raw if pair[0].lower() != b"content-length"]
            pattern = self._patterns[asked] = made.url, own
        url, own = pattern
        request = httpx2.Request(
            "POST",
            url,
            headers=[*own, (b"content-length", b"%d" % len(content))],
            stream=httpx2.ByteStream(content),
            extensions={"timeout": timeout.as_dict()},
        )
        return await self.wire.fetch(request)


class OpenAIProvider:
    """One client per server and key; what a server calls the limit of an answer is learnt per model."""

    def __init__(self, setup: Setup) -> None:
        self._environ = setup.environ
        self._clients: dict[tuple[str, str], _Client] = {}
        self._limit_names: dict[str, tuple[str, ...]] = {}

    async def answer(self, request: ModelRequest, entry: ModelEntry, origin: Origin, form: Form | None) -> Answer:
        """Ask once; with form `strict` the request's schema must be a strict one (pop/models/strict.py)."""
        began = time.perf_counter()
        client = self._client(entry)
        try:
            async with asyncio.timeout(entry.timeout_s):
                response = await self._ask(client, request, entry, form)
        except TimeoutError:
            message = f"no whole answer within {entry.timeout_s:g} s"
            hint = f"raise timeout_s of {entry.name!r} in pop.toml if its answers take that long"
            raise _unavailable(message, entry, guessed(request), hint) from None
        return _answer(response, request, entry, form, (time.perf_counter() - began) * 1000)

    async def _ask(self, client: _Client, request: ModelRequest, entry: ModelEntry, form: Form | None) -> Response:
        """The response; where the server refuses a name of the answer's limit, it is asked again with another at once."""
        names = self._limit_names.get(entry.identity) or _limit_names(entry)
        for last in (False, False, True):
            response = await _post(client, request, entry, form, names)
            if 200 <= response.status < 300:
                return response
            said = told(response.body)
            refused = [name for name in names if said.names(name)]
            if last or not refused or response.status not in (400, 422) or entry.api != "chat":
                break
            names = self._limit_names[entry.identity] = _without(names, refused)
        raise status_error(response.status, response.headers, said, entry, form, guessed(request))

    def _client(self, entry: ModelEntry) -> _Client:
        url, key = entry.base_url or OPENAI_URL, self._key(entry)
        found = self._clients.get((url, key))
        if found is None:
            try:
                found = self._clients[url, key] = _Client(url, key, self._own_headers(url))
            except (ImportError, ValueError) as error:  # what the environment calls a proxy
                message = f"no connection can be made ({str(error)[:200]})"
                raise ModelError(
                    "bad_input", message, where=place(entry), hint=f"{PROXY_HINT}; SOCKS is not known"
                ) from None
        return found

    def _own_headers(self, url: str) -> dict[str, str]:
        """Who pays, for OpenAI's own host alone."""
        if urlsplit(url).hostname != urlsplit(OPENAI_URL).hostname:
            return {}
        names = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}
        return {header: self._environ[name] for header, name in names.items() if self._environ.get(name)}

    def _key(self, entry: ModelEntry) -> str:
        if entry.key_env is None:
            return NO_KEY
        key = self._environ.get(entry.key_env, "").strip()
        if not key:
            hint = f"export {entry.key_env}=... before pop up, write it into the keys file, or choose another model"
            raise ModelError("auth", f"{entry.key_env} is not set, model {entry.name!r} needs it", hint=hint)
        if not key.isascii() or not key.isprintable():
            message = f"{entry.key_env} holds a character that no key has"
            raise ModelError("auth", message, where=place(entry), hint="copy the key again, without quotes and spaces")
        return key


def _limit_names(entry: ModelEntry) -> tuple[str, ...]:
    """Elsewhere than at OpenAI both: many servers know the old name alone, and pass over the new one without a word."""
    at_openai = entry.base_url is None or urlsplit(entry.base_url).hostname == urlsplit(OPENAI_URL).hostname
    return LIMITS[:1] if at_openai else LIMITS


def _without(names: tuple[str, ...], refused: list[str]) -> tuple[str, ...]:
    """The names to try after these were refused; who refuses both at once wants the new one."""
    if len(names) == len(refused) == 1:
        return tuple(name for name in LIMITS if name not in names)
    return tuple(name for name in names if name not in refused) or LIMITS[:1]


async def _post(
    client: _Client, request: ModelRequest, entry: ModelEntry, form: Form | None, limit_names: tuple[str, ...]
) -> Response:
    """One request, whatever the status of its response.

    Raises:
        ModelError: Nothing came back that has a status.
    """
    path, make_body, _ = _APIS[entry.api]
    try:
        content = encode(make_body(request, entry, form, limit_names))
    except (TypeError, ValueError, RecursionError) as error:
        hint = f"look at `options` of {entry.name!r} in pop.toml"
        raise ModelError("bad_input", f"the request is no JSON: {error}", where=place(entry), hint=hint) from None
    timeout = httpx2.Timeout(entry.timeout_s, connect=min(CONNECT_S, entry.timeout_s))
    try:
        return await client.ask(path, content, entry.headers, timeout)
    except httpx2.RequestError as error:
        _raise_connection_error(error, request, entry)
    except BodyError as error:
        raise _unavailable(str(error), entry, guessed(request, error.received_bytes)) from None
    except (httpx2.InvalidURL, UnicodeError, ValueError, TypeError) as error:
        message = f"the request cannot be sent ({type(error).__name__}: {error})"
        hint = f"look at base_url and headers of {entry.name!r} in pop.toml"
        raise ModelError("bad_input", message, where=place(entry), hint=hint) from None


def _raise_connection_error(cause: BaseException, request: ModelRequest, entry: ModelEntry) -> NoReturn:
    words = str(cause)[:300] or type(cause).__name__
    if isinstance(cause, (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol)):
        hint = f"look at base_url and headers of {entry.name!r} in pop.toml"
        raise ModelError("bad_input", f"the request cannot be sent: {words}", where=place(entry), hint=hint) from None
    if isinstance(cause, NOT_SENT):
        raise _no_connection(cause, words, entry) from None
    if isinstance(cause, httpx2.TimeoutException):
        raise _unavailable(f"no answer within {entry.timeout_s:g} s", entry, guessed(request)) from None
    raise _unavailable(f"the connection broke before an answer came: {words}", entry, guessed(request)) from None


def _no_connection(cause: BaseException, words: str, entry: ModelEntry) -> ModelError:
    """Nothing was sent, so nothing is billed. A certificate that is not trusted will not be in a second either."""
    message = f"no connection: {words}"
    if "CERTIFICATE_VERIFY_FAILED" in words:
        hint = "if it is your own server, start POP with SSL_CERT_FILE=... that holds its certificate or that of its CA"
        return ModelError("unavailable", message, where=place(entry), hint=hint, code="bad-certificate")
    if isinstance(cause, httpx2.ProxyError):
        return _unavailable(f"the proxy gave no connection: {words}", entry, None, PROXY_HINT)
    if "[SSL" in words:
        return _unavailable(message, entry, None, "does this port speak https, or is base_url to begin with http://?")
    hint = "is the server up, and base_url right?"
    return _unavailable(message, entry, None, f"{hint} if so, {PROXY_HINT}" if getproxies() else hint)


def _answer(response: Response, request: ModelRequest, entry: ModelEntry, form: Form | None, ms: float) -> Answer:
    headers = response.headers
    value = _object(response.body, headers.get("content-type", ""), request, entry)
    if value.get("error"):
        _raise_told_error(value, headers, request, entry, form)
    reply: Reply = _APIS[entry.api][2](value)
    if reply.problem is not None:
        raise _unavailable(reply.problem, entry, reply.tokens)
    if reply.only_tools:
        message = "the server answered with a tool call and no text, though no tool was offered"
        hint = "is there a tool in `options`, or a template in the server that brings one?"
        raise ModelError("invalid_output", message, where=place(entry), hint=hint, tokens=reply.tokens)
    tokens = reply.tokens or guessed(request, len(reply.text))
    return Answer(
        text=reply.text,
        model=entry.name,
        provider="openai",
        provider_model=reply.model or entry.model,
        finish_reason=reply.finish,
        input_tokens=tokens.input_tokens,
        output_tokens=tokens.output_tokens,
        cached_input_tokens=tokens.cached_input_tokens,
        reasoning_tokens=tokens.reasoning_tokens,
        estimated=tokens.estimated,
        ms=round(ms, 3),
        rate=rate_news(headers),
    )


def _object(body: bytes, content_type: str, request: ModelRequest, entry: ModelEntry) -> dict[str, Any]:
    """The JSON object of a body with status 2xx."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in _JSON and not kind.endswith("+json"):
        message = f"the server answered with {kind[:100]} instead of JSON: {told(body[:2000]).message[:200]}"
        raise _unavailable(message, entry, None, f"does base_url of {entry.name!r} lead to the API itself?")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"the server's answer is no JSON ({str(error)[:200]}): {told(body[:2000]).message[:200] or 'empty'}"
        tokens = guessed(request, len(body)) if body.lstrip()[:1] == b"{" else None  # cut: the model had worked
        raise _unavailable(message, entry, tokens) from None
    if not isinstance(value, dict):
        raise _unavailable(f"the server answered with a {type(value).__name__} instead of an object", entry, None)
    return value


def _raise_told_error(
    value: dict[str, Any], headers: Mapping[str, str], request: ModelRequest, entry: ModelEntry, form: Form | None
) -> NoReturn:
    """An error that came with status 200, as some brokers send it: its code may be the status it should have had."""
    said = told_by(value)
    status = int(said.code) if said.code.isdigit() and len(said.code) == 3 else 0
    if not 400 <= status < 600:
        known = {"rate_limit_exceeded": 429, "invalid_request_error": 400, "context_length_exceeded": 400}
        status = known.get(said.code, 500)
    raise status_error(status, headers, said, entry, form, guessed(request))


def _unavailable(message: str, entry: ModelEntry, tokens: Tokens | None, hint: str | None = None) -> ModelError:
    return ModelError("unavailable", message, where=place(entry), hint=hint, tokens=tokens, curable=True)
