"""What the openai SDK sends through: no redirect, bodies with a cap, and many small pools of connections.

The pool of httpx2 looks at each of its connections for every request: with 1,000 calls in flight a call costs 4.4 ms of
CPU in one big pool and 0.5 ms here, where no pool has more than `PER_POOL` of them.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2

MAX_BODY_BYTES = 32 * 2**20
MAX_ERROR_BYTES = 2**20  # of a body that only tells what went wrong; the rest is not read
PER_POOL = 32
IDLE_S = 30.0  # after which a pool that nobody needs is closed; the first one stays
KEEP_ALIVE_S = 15.0
NOT_SENT = (
    httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.PoolTimeout, httpx2.WriteError,
    httpx2.WriteTimeout,
)  # fmt: skip


class BodyError(Exception):
    """An answer began and did not end well; `received_bytes` of it came. The SDK lets it through."""

    def __init__(self, message: str, received_bytes: int) -> None:
        super().__init__(message)
        self.received_bytes = received_bytes


@dataclass
class _Pool:
    client: httpx2.AsyncClient
    busy: int = 0
    used_at: float = 0.0


@cache
def _trusted() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


class Wire(httpx2.AsyncClient):
    """Sends each request through the first pool that has room, and reads the whole body, decoded, up to the cap."""

    def __init__(self) -> None:
        super().__init__(verify=_trusted(), follow_redirects=False)
        self._pools: list[_Pool] = []

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """The whole response.

        Raises:
            BodyError: The body broke off, is longer than the cap, or cannot be decoded.
            httpx2.RequestError: No response came.
        """
        pool = self._with_room()
        pool.busy += 1
        try:
            response = await pool.client.send(request, stream=True, follow_redirects=False)
            try:
                body = await _read(response)
            finally:
                await response.aclose()
        finally:
            pool.busy -= 1
            pool.used_at = time.monotonic()
        if len(self._pools) > 1:
            await self._close_idle(pool.used_at - IDLE_S)
        headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.client.aclose()
        await super().aclose()

    def _with_room(self) -> _Pool:
        for pool in self._pools:
            if pool.busy < PER_POOL:
                return pool
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=PER_POOL, keepalive_expiry=KEEP_ALIVE_S)
        self._pools.append(_Pool(httpx2.AsyncClient(verify=_trusted(), limits=limits)))
        return self._pools[-1]

    async def _close_idle(self, before: float) -> None:
        while len(self._pools) > 1 and not self._pools[-1].busy and self._pools[-1].used_at < before:
            await self._pools.pop().client.aclose()


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
