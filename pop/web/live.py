"""Pages that stay current: fragments of HTML by server-sent events, rendered once for all who look at the same.

A page that is live has a `Source`. While anybody looks, it is asked at most twice a second where it stands (one that is
dear to make once in two seconds, and less often the longer it takes); when that changed, its fragments are rendered once,
and every reader gets those it has not seen. An event's id is where the source stood, so that a reader that comes back says
what it has, to this process or to the next one:

    id: 17f3-4021
    event: fragments
    data: <section id="counts">...</section>
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent

log = structlog.get_logger()

EVERY_S = 0.5  # a page changes at most twice a second
SELDOM_S = 2.0  # and one that is dear to make at most once in two
DEAR = 8  # and then it takes at most the 8th part of the time
SHARE = 2  # between two rounds this many times the processor's time that the last one took
PING_S = 15
STALLED_S = 20.0  # a reader that takes nothing for so long is left
MARKS_KEPT = 64


class Source(Protocol):
    """What a live page shows. Both methods are called in a thread, one at a time."""

    def mark(self) -> str | None:
        """Where it stands: another text when a fragment may have changed, the same after a restart of the server when
        nothing did. None: it is over, and the page should load anew. It is asked often and must be cheap."""

    def fragments(self) -> dict[str, str]:
        """By the id of its one outermost element: HTML."""


@dataclass
class _Channel:
    """One source and its readers. `serial` counts the rounds in which something changed."""

    source: Source
    every_s: float = EVERY_S
    due: float = 0.0
    readers: int = 0
    mark: str | None = None
    serial: int = 0
    over: bool = False
    trouble: str = ""
    fragments: dict[str, tuple[str, int]] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def look(self) -> bool:
        """Ask the source, where it is time to; whether there is anything new. In a thread."""
        began = time.monotonic()
        if began < self.due:
            return False
        try:
            return self._ask()
        finally:
            took = time.monotonic() - began
            self.due = began + max(self.every_s, DEAR * took) if self.every_s > EVERY_S else 0.0

    def _ask(self) -> bool:
        mark = self.source.mark()
        if mark is None or mark == self.mark:
            self.over = mark is None
            return self.over
        fragments = self.source.fragments()
        serial = self.serial + 1
        old = self.fragments
        new = {k: old[k] if k in old and old[k][0] == html else (html, serial) for k, html in fragments.items()}
        self.fragments, self.mark, self.serial = new, mark, serial
        self.marks[mark] = serial
        while len(self.marks) > MARKS_KEPT:
            del self.marks[next(iter(self.marks))]
        return True

    def since(self, serial: int) -> str:
        """What changed after that round, as one text."""
        return "\n".join(html for html, number in self.fragments.values() if number > serial)

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Live:
    """All live pages of a server. Calls come from its event loop."""

    def __init__(self) -> None:
        self._channels: dict[Hashable, _Channel] = {}
        self._thread = ThreadPoolExecutor(1, "live")
        self._round: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def readers(self) -> int:
        return sum(channel.readers for channel in self._channels.values())

    def stream(
        self, request: Request, key: Hashable, source: Callable[[], Source], every_s: float = EVERY_S
    ) -> EventSourceResponse:
        """The answer to a request for events.

        Args:
            key: The same for readers that see the same.
            source: Makes the source when nobody has looked at this key yet.
            every_s: Seconds between two changes of this page, at least.
        """
        told = request.headers.get("last-event-id") or ""
        seen = told or request.query_params.get("after") or ""
        return EventSourceResponse(
            self._events(key, source, seen[:200], every_s, told=bool(told)),
            ping=PING_S,
            send_timeout=STALLED_S,
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _events(
        self, key: Hashable, source: Callable[[], Source], seen: str, every_s: float = EVERY_S, *, told: bool = True
    ) -> AsyncIterator[ServerSentEvent]:
        """Not yet `told`, a reader has a page that was made by itself, and fragments of the same mark may be newer than
        it: what it is told first is all of them."""
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = _Channel(source(), every_s)
        channel.readers += 1
        try:
            yield ServerSentEvent(retry=1000, comment="POP")
            if self._round is None or self._round.done():
                self._round = asyncio.create_task(self._go_round())
            serial = 0
            while not self._closed and not channel.over:
                if channel.mark is not None and channel.serial > serial:
                    known = (serial or channel.marks.get(seen, 0)) if told else 0
                    serial = channel.serial
                    if channel.mark != seen and (html := channel.since(known)):
                        yield ServerSentEvent(html, event="fragments", id=channel.mark)
                        told = True
                    seen = channel.mark
                    continue
                await channel.changed.wait()
            if channel.over:
                yield ServerSentEvent("", event="over")
        finally:
            channel.readers -= 1
            if not channel.readers and self._channels.get(key) is channel:
                del self._channels[key]

    async def _go_round(self) -> None:
        """Ask every source, tell its readers; at most twice a second, and with a third of a processor."""
        loop = asyncio.get_running_loop()
        while self._channels and not self._closed:
            began, used = time.monotonic(), time.process_time()
            for channel in list(self._channels.values()):
                try:
                    if await loop.run_in_executor(self._thread, channel.look):
                        channel.tell()
                except Exception as error:  # one page's trouble; it is asked again
                    if self._closed:
                        return
                    trouble = f"{type(error).__name__}: {error}"
                    if trouble != channel.trouble:
                        log.warning("live.failed", error=trouble)
                    channel.trouble = trouble
            took, used = time.monotonic() - began, time.process_time() - used
            await asyncio.sleep(max(EVERY_S - took, SHARE * used, 0.01))

    def close(self) -> None:
        """End every stream; browsers come back by themselves."""
        self._closed = True
        for channel in self._channels.values():
            channel.tell()
        self._thread.shutdown(wait=False, cancel_futures=True)
