"""What stands before every request, and what every answer carries.

| what                     | how                                                                                |
|--------------------------|------------------------------------------------------------------------------------|
| DNS rebinding            | ``Host`` must name this machine by loopback, or be the address that was asked for  |
| another user, another page | a token in the address once, then a cookie (SameSite=Strict, HttpOnly); ``Bearer`` for the API |
| forged writes            | ``Origin`` is this server, and the form's first field or ``X-CSRF-Token`` is the browser's own |
| reading by other origins | cross-site requests that are no navigation are refused; CORP, COOP                 |
| scripts in what is shown | a Content-Security-Policy without inline scripts or styles                         |
| smuggling                | a request with both lengths, or any but one ``Host``, is refused                   |
| size and patience        | bodies have a limit, and a deadline for each piece; answers too                    |
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pop.web.keys import Keys, cookie_of, csrf_of
from pop.web.render import rendered

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer browsers send `Origin: null`
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-store",
}
PUBLIC = ("/static/", "/favicon.ico")
READING = ("GET", "HEAD", "OPTIONS")
HEAD_BYTES = 32768
BODY_BYTES = 2**20
PIECE_S = 20.0  # for the next piece of a body
SEND_S = 30.0  # until a reader took what was sent
FORM_BYTES = 4096  # in which the first field of a form must stand
COOKIE_S = 90 * 86400


@dataclass(frozen=True)
class Policy:
    """Who is let in.

    Args:
        keys: None: everybody who can connect.
        cookie: Its name; cookies know no ports, so that each root needs its own.
        hosts: Further names that ``Host`` may have, beside those of loopback.
        any_address: Any IP address as ``Host``: for a server that listens beyond loopback.
        large: Paths (their beginning) that take larger bodies, with their bytes.
    """

    keys: Keys | None
    cookie: str = "pop"
    hosts: frozenset[str] = frozenset()
    any_address: bool = False
    large: Mapping[str, int] = field(default_factory=dict)

    def knows_host(self, host: str) -> bool:
        """Whether a ``Host`` header names us."""
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::\d{1,5})?", host)
        if not match:
            return False
        name = match[1].strip("[]").lower().rstrip(".")
        if name == "localhost" or name in self.hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self.any_address

    def most_bytes(self, path: str) -> int:
        return next((most for start, most in self.large.items() if path.startswith(start)), BODY_BYTES)


class Refused(HTTPException):
    """A request that goes no further."""

    def __init__(self, status: int, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(status, message, {"connection": "close"} if status in (400, 408, 413, 431) else None)
        self.code, self.message, self.hint = code, message, hint


class Gone(Exception):
    """The other side does not read any more."""


class Guard:
    """ASGI middleware; the outermost."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        send = _Sender(send, scope).send
        request = _Request(scope)
        try:
            answer = self._let_in(request)
            if answer is None:
                receive = await self._checked_body(request, receive)
                await self._app(scope, receive, send)
                return
        except Refused as error:
            answer = _refusal(request, error)
        except Gone:
            return
        await answer(scope, receive, send)

    def _let_in(self, request: _Request) -> Response | None:
        """None: it may go on. An answer: instead of going on.

        Raises:
            Refused: It may not.
        """
        policy = self._policy
        if request.head_bytes() > HEAD_BYTES:
            raise Refused(431, "too-large", "the head of this request is too long")
        hosts = request.all("host")
        if len(hosts) != 1 or not policy.knows_host(hosts[0]):
            hint = "open it as http://127.0.0.1 with its port, or as localhost"
            raise Refused(421, "wrong-host", "this server does not answer to that name", hint)
        if request.all("transfer-encoding") and request.all("content-length"):
            raise Refused(400, "two-lengths", "a request has one length")
        if request.one("sec-fetch-site") in ("cross-site", "same-site") and request.one("sec-fetch-mode") != "navigate":
            raise Refused(403, "other-origin", "another site asked for this")
        if request.path.startswith(PUBLIC):
            request.scope["pop.cookie"] = ""
            return None
        given = dict(parse_qsl(request.query, keep_blank_values=True)).get("token")
        if given is not None and request.method == "GET" and not request.is_api:
            return self._sign_in(request, given)
        bearer = request.bearer()
        cookie = self._cookie_of(request)
        if bearer is not None:
            if policy.keys is not None and not policy.keys.knows_token(bearer):
                raise Refused(401, "wrong-token", "this token opens nothing here", "pop web --url makes a new one")
            request.scope["pop.cookie"] = ""
            return None  # no browser sends it by itself
        if policy.keys is not None and cookie is None:
            raise Refused(401, "no-token", "this browser is not signed in", "open the link that `pop web --url` prints")
        if request.method not in READING:
            self._check_origin(request)
            request.csrf = csrf_of(cookie) if cookie else "none that a form could bring"
        elif not cookie:
            cookie = self._give_cookie(request)
        request.scope["pop.cookie"] = cookie or ""
        return None

    def _sign_in(self, request: _Request, token: str) -> Response:
        """The token leaves the address bar at once; a link that came from another site is followed by our own page."""
        rest = [pair for pair in parse_qsl(request.query, keep_blank_values=True) if pair[0] != "token"]
        target = request.address + ("?" + urlencode(rest) if rest else "")
        keys, cookie = self._policy.keys, self._cookie_of(request)
        if cookie is not None:
            return self._going_on(target, cookie)  # whatever has become of the link
        if keys is None:
            return self._going_on(target, secrets.token_hex(32))  # a token of somebody's choice says nothing
        if not keys.knows_token(token):
            raise Refused(401, "wrong-token", "this link is over", "open a new one: pop web --url")
        return self._going_on(target, cookie_of(token))

    def _cookie_of(self, request: _Request) -> str | None:
        """The browser's cookie that counts: other programs of this host may have set one of the same name."""
        keys = self._policy.keys
        return next(
            (one for one in request.cookies(self._policy.cookie) if keys is None or keys.knows_cookie(one)), None
        )

    def _give_cookie(self, request: _Request) -> str:
        """Without tokens a browser still gets a cookie, for the forms it sends."""
        cookie = secrets.token_hex(32)
        request.scope["pop.set-cookie"] = self._cookie_line(cookie)
        return cookie

    def _going_on(self, target: str, cookie: str) -> Response:
        answer = HTMLResponse(rendered("signed_in.html", target=target))
        answer.headers["set-cookie"] = self._cookie_line(cookie)
        return answer

    def _cookie_line(self, cookie: str) -> str:
        return f"{self._policy.cookie}={cookie}; Path=/; Max-Age={COOKIE_S}; HttpOnly; SameSite=Strict"

    def _check_origin(self, request: _Request) -> None:
        origin = request.one("origin")
        host = request.all("host")[0]
        if origin not in (f"http://{host}", f"https://{host}"):  # with TLS: of a proxy before us
            raise Refused(403, "other-origin", "a write must come from a page of this server", "reload the page")

    async def _checked_body(self, request: _Request, receive: Receive) -> Receive:
        """A `receive` with the limits; where a form must bring its field, after having seen that."""
        most = self._policy.most_bytes(request.path)
        length = request.one("content-length")
        if length is not None and (not length.isdigit() or int(length) > most):
            raise Refused(413, "too-large", f"more than the {most / 2**20:g} MB that are taken here")
        body = _Body(receive, most)
        if request.csrf is None:
            return body.receive
        given = request.one("x-csrf-token")
        if given is None:
            given = await _first_field(body, request.one("content-type") or "")
        if given is None or not secrets.compare_digest(given.encode(), request.csrf.encode()):
            raise Refused(403, "no-csrf-token", "this form is not from this browser's page", "reload the page")
        return body.receive


class _Request:
    """The head of a request, as the guard reads it."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: str = scope["query_string"].decode("latin-1")
        self.csrf: str | None = None
        self._headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]

    @property
    def is_api(self) -> bool:
        return self.path.startswith("/api/")

    def head_bytes(self) -> int:
        size = sum(len(name) + len(value) + 4 for name, value in self.scope["headers"])
        return size + len(self.scope.get("raw_path") or b"") + len(self.query)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._headers if key == name]

    def one(self, name: str) -> str | None:
        found = self.all(name)
        return found[0] if found else None

    def bearer(self) -> str | None:
        kind, _, token = (self.one("authorization") or "").partition(" ")
        return token.strip() if kind.lower() == "bearer" else None

    @property
    def address(self) -> str:
        """Its path as a link to it, which leads to no other host however browsers read it."""
        return "/" + quote(self.path.lstrip("/\\"), safe="/@.,~:")

    def cookies(self, name: str) -> list[str]:
        """The values of that name which can be ours; other programs' cookies stand beside them in any shape."""
        pairs = (part.strip().partition("=") for line in self.all("cookie") for part in line.split(";"))
        return [value for key, _, value in pairs if key == name and re.fullmatch("[0-9a-f]{64}", value)][:10]


class _Body:
    """Reads a request's body with a limit and a deadline for each piece."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._left = most
        self._over = False
        self._kept: list[Message] = []

    async def receive(self) -> Message:
        return self._kept.pop(0) if self._kept else await self._next()

    async def _next(self) -> Message:
        if self._over:
            return await self._receive()  # until the other side leaves
        try:
            async with asyncio.timeout(PIECE_S):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, "too-slow", "the rest of the request did not come") from None
        if message["type"] == "http.disconnect":
            self._over = True
            return message
        self._left -= len(message.get("body", b""))
        self._over = not message.get("more_body", False)
        if self._left < 0:
            raise Refused(413, "too-large", "more than is taken here")
        return message

    async def beginning(self, most: int) -> bytes:
        """Up to so many bytes, which `receive` gives again."""
        read: list[Message] = []
        while not self._over and sum(len(message.get("body", b"")) for message in read) < most:
            read.append(await self._next())
        self._kept = read
        return b"".join(message.get("body", b"") for message in read)


_URLENCODED = re.compile(rb"csrf=([0-9a-f]{32})(?:&|$)")
_MULTIPART = re.compile(
    rb'--[^\r\n]{1,200}\r\ncontent-disposition: *form-data; *name="csrf"\r\n(?:[^\r\n]+\r\n)*\r\n([0-9a-f]{32})\r\n',
    re.IGNORECASE,
)


async def _first_field(body: _Body, content_type: str) -> str | None:
    kind = content_type.partition(";")[0].strip().lower()
    pattern = {"application/x-www-form-urlencoded": _URLENCODED, "multipart/form-data": _MULTIPART}.get(kind)
    if pattern is None:
        return None
    match = pattern.match(await body.beginning(FORM_BYTES))
    return match[1].decode() if match else None


class _Sender:
    """Sends with the headers every answer has, and a deadline for each piece."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send = send
        self._scope = scope

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = self._headers(message.get("headers", ()))
        try:
            async with asyncio.timeout(SEND_S):
                await self._send(message)
        except TimeoutError:
            raise Gone from None

    def _headers(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        headers = list(given)
        present = {name.lower() for name, _ in headers}
        headers += [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in present]
        cookie = self._scope.get("pop.set-cookie")
        if cookie:
            headers.append((b"set-cookie", cookie.encode()))
        return headers


def _refusal(request: _Request, error: Refused) -> Response:
    about: dict[str, Any] = {"class": "refused", "code": error.code, "message": error.message}
    about |= {"where": None, "hint": error.hint}
    site, mode = request.one("sec-fetch-site"), request.one("sec-fetch-mode")
    if error.code == "no-token" and site == "cross-site" and mode == "navigate" and request.method == "GET":
        target = request.address + ("?" + request.query if request.query else "")
        return HTMLResponse(rendered("signed_in.html", target=target))  # a strict cookie comes only with our own pages
    if request.is_api or "text/html" not in (request.one("accept") or ""):
        return JSONResponse({"error": about}, error.status_code, error.headers)
    return HTMLResponse(rendered("refused.html", status=error.status_code, **about), error.status_code, error.headers)
