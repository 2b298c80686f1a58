"""What the openai SDK sends through: no redirect, bodies with a cap, and a pool for each connection.

The pool of httpx2 looks at each of its connections twice for every request: with 1,000 calls in flight a call costs 4.4 ms
of CPU in one big pool. Here each has one connection; what is idle waits in a stack, so that the fewest stay open.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

import anyio
import httpx2

MAX_BODY_BYTES = 32 * 2**20
MAX_ERROR_BYTES = 2**20  # of a body that only tells what went wrong; the rest is not read
IDLE_S = 15.0  # after which a connection that nobody needs is closed
_ONE = httpx2.Limits(max_connections=None, max_keepalive_connections=1, keepalive_expiry=IDLE_S)
NOT_SENT = (
    httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.PoolTimeout, httpx2.WriteError,
    httpx2.WriteTimeout,
)  # fmt: skip


class BodyError(Exception):
    """An answer began and did not end well; `received_bytes` of it came. The SDK lets it through."""

    def __init__(self, message: str, received_bytes: int) -> None:
        super().__init__(message)
        self.received_bytes = received_bytes


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response; the names of its headers in lower case, its body decoded."""

    status: int
    headers: dict[str, str]
    body: bytes


@cache
def _trusted() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


class Wire(httpx2.AsyncClient):
    """Sends each request through the connection that was used last, and reads the whole body, decoded, up to the cap."""

    def __init__(self) -> None:
        super().__init__(verify=_trusted(), follow_redirects=False)
        self._idle: deque[tuple[float, httpx2.AsyncClient]] = deque()  # since when, the oldest first
        self.busy = 0

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """The whole response, as the SDK's own methods would have it."""
        found = await self.fetch(request)
        headers = {name: value for name, value in found.headers.items() if name != "content-encoding"}
        return httpx2.Response(found.status, headers=headers, content=found.body, request=request)

    async def fetch(self, request: httpx2.Request) -> Response:
        """The whole response.

        Raises:
            BodyError: The body broke off, is longer than the cap, or cannot be decoded.
            httpx2.RequestError: No response came.
        """
        client = self._idle.pop()[1] if self._idle else httpx2.AsyncClient(verify=_trusted(), limits=_ONE)
        self.busy += 1
        try:
            response = await client.send(request, stream=True, follow_redirects=False)
            try:
                body = await _read(response)
            finally:
                await response.aclose()
        except (ssl.SSLError, anyio.EndOfStream) as error:  # httpx2 lets them through
            raise httpx2.ReadError(str(error) or type(error).__name__) from error
        finally:
            self.busy -= 1
            self._idle.append((now := time.monotonic(), client))
        while self._idle and self._idle[0][0] < now - IDLE_S:
            await self._idle.popleft()[1].aclose()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}
        return Response(response.status_code, headers, body)

    async def aclose(self) -> None:
        while self._idle:
            await self._idle.pop()[1].aclose()
        await super().aclose()

    @property
    def idle(self) -> int:
        """Connections that nobody uses."""
        return len(self._idle)


async def _read(response: httpx2.Response) -> bytes:
    good = response.status_code < 300
    chunks, size = list[bytes](), 0
    try:
        async for chunk in response.aiter_bytes():  # httpx2 decodes at most 1 MiB at a time
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_ERROR_BYTES and not good:
                break
            if size > MAX_BODY_BYTES:
                raise BodyError(f"the answer is longer than {MAX_BODY_BYTES // 2**20} MB", size)
    except httpx2.TimeoutException:
        raise BodyError("the answer began, and then nothing more came", size) from None
    except httpx2.DecodingError:
        raise BodyError("the answer's compression is broken", size) from None
    except (httpx2.RequestError, httpx2.StreamError) as error:
        if not good:
            return b"".join(chunks)
        raise BodyError(f"the answer broke off after {size} bytes ({type(error).__name__})", size) from None
    return b"".join(chunks)
