"""A circuit per endpoint: after an outage one call looks whether it is over, before the herd comes back.

| state | a call | leaves it |
|---|---|---|
| closed | goes | after `FAILURES` outages in a row: open |
| open | waits, or is told at once when it has not the patience | after 1 s doubling to 30 s, drawn evenly below: half-open |
| half-open | goes while fewer than `room` are out (at first one), else waits | success makes room for one more: 1, 2, 4, ... |

A round of successes thus doubles the room. With room for `HERD` and nobody waiting it closes; with as many outages in a row
as there is room (at most `FAILURES`) it opens again. An outage is the class ``unavailable`` alone: whoever says no is there.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

from pop.models.request import ModelError

FAILURES = 5
FIRST_S, CAP_S = 1.0, 30.0
HERD = 64

State = Literal["closed", "open", "half-open"]
Caller = asyncio.Task[Any] | None


class Circuit:
    """What an endpoint's calls know of each other. All calls come from one event loop.

    After `before()` has returned, the same task says `succeeded()`, `failed()` or `left()`; a task that ends without a
    word has left.

    Args:
        name: The endpoint, for the message.
        first_s, cap_s: How long it stays open, in seconds: at first, and at most.
    """

    def __init__(
        self,
        name: str = "",
        *,
        failures: int = FAILURES,
        first_s: float = FIRST_S,
        cap_s: float = CAP_S,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.state: State = "closed"
        self._failures, self._first_s, self._cap_s = failures, first_s, cap_s
        self._clock = clock
        self._rng = rng or random.Random()
        self._in_row = 0
        self._opened = 0  # times since it was closed
        self._until = 0.0
        self._room = 1
        self._out: set[Caller] = set()  # who was let through while half-open, and has not said how it went
        self._waiting: OrderedDict[asyncio.Future[None], tuple[Caller, float]] = OrderedDict()

    def check(self, patience_s: float) -> None:
        """Raise what `before` would raise at once."""
        if self.state == "open" and self._until - self._clock() > patience_s:
            raise self._error()

    async def before(self, patience_s: float) -> None:
        """Return when a call may go.

        Args:
            patience_s: Seconds to wait for that at most.

        Raises:
            ModelError: ``unavailable`` with the code ``circuit-open``: at once when it stays open for longer than that.
        """
        caller: Caller = asyncio.current_task()
        if self.state == "closed" or caller in self._out:
            return
        self.check(patience_s)
        now = self._clock()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = (caller, now + patience_s)
        self._admit()
        try:
            async with asyncio.timeout(max(patience_s, 0.0)):
                await turn
        except TimeoutError:
            self._leave(turn, caller)
            raise self._error() from None
        except asyncio.CancelledError:
            self._leave(turn, caller)
            raise

    def succeeded(self) -> None:
        """The endpoint answered."""
        if self._returns():
            self._room += 1
        if self.state != "open":
            self._in_row = 0
        if self.state == "half-open" and self._room >= HERD and not self._waiting:
            self.state, self._opened = "closed", 0
            for caller in list(self._out):
                self._forget(caller)
        self._admit()

    def failed(self, error_class: str = "unavailable") -> None:
        """The call brought an error; one that is no outage is an answer."""
        if error_class != "unavailable":
            return self.succeeded()
        counts = self._returns() or self.state == "closed"  # calls from before the outage say nothing new
        if counts:
            self._in_row += 1
            bound = self._failures if self.state == "closed" else min(self._failures, self._room)
            if self._in_row >= bound:
                return self._open()
        self._admit()

    def left(self) -> None:
        """The call ended before it could show anything: the next one looks."""
        self._returns()
        self._admit()

    def _open(self) -> None:
        """Whoever has not the patience is told at once."""
        stays_s = self._rng.uniform(0, min(self._cap_s, self._first_s * 2.0 ** min(self._opened, 30)))
        self._opened += 1
        self._until = self._clock() + stays_s
        self.state = "open"
        for caller in list(self._out):
            self._forget(caller)
        for turn, (_, deadline) in list(self._waiting.items()):
            if deadline < self._until:
                del self._waiting[turn]
                if not turn.done():
                    turn.set_exception(self._error())
        asyncio.get_running_loop().call_later(stays_s, self._half_open)

    def _half_open(self) -> None:
        self.state, self._room, self._in_row = "half-open", 1, 0
        self._admit()

    def _admit(self) -> None:
        """Let through whom there is room for, in the order they came."""
        while self._waiting and (self.state == "closed" or (self.state == "half-open" and len(self._out) < self._room)):
            turn, (caller, _) = self._waiting.popitem(last=False)
            if turn.done():
                continue
            if self.state == "half-open":
                self._out.add(caller)
                if caller:
                    caller.add_done_callback(self._gone)
            turn.set_result(None)

    def _returns(self) -> bool:
        """Whether the present task is one of those that were let through to look; it no longer is."""
        caller: Caller = asyncio.current_task()
        return self._forget(caller)

    def _forget(self, caller: Caller) -> bool:
        known = caller in self._out
        self._out.discard(caller)
        if known and caller:
            caller.remove_done_callback(self._gone)
        return known

    def _gone(self, caller: asyncio.Task[Any]) -> None:
        self._out.discard(caller)
        self._admit()

    def _leave(self, turn: asyncio.Future[None], caller: Caller) -> None:
        self._waiting.pop(turn, None)
        self._forget(caller)
        self._admit()

    def _error(self) -> ModelError:
        again_s = max(self._until - self._clock(), 0.0) if self.state == "open" else 0.0
        soon = f"asked again in {again_s:.1f} s" if again_s else "being tried with few calls now"
        return ModelError(
            "unavailable",
            f"the endpoint was not there {self._failures} times in a row; it is {soon}",
            where=f"endpoint {self.name!r}" if self.name else None,
            hint="pop models --test shows whether it answers",
            code="circuit-open",
            retry_after_s=again_s or None,
        )
