"""A question under way: who waits for its answer, for how long, and the time that is left for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pop.models.request import Answer, ModelRequest, Origin, Try


@dataclass(eq=False)
class Waited:
    """How long an attempt has waited for permits: `total_s` in all, `open` calls that wait now, since `began`."""

    total_s: float = 0.0
    open: int = 0
    began: float = 0.0
    ended: float = float("-inf")

    def begin(self, now: float) -> None:
        if not self.open:
            self.began = now
        self.open += 1

    def end(self, now: float) -> None:
        self.open -= 1
        if not self.open:
            self.total_s += now - self.began
            self.ended = now


@dataclass(eq=False)
class Flight:
    """A question under way. `askers` wait for it; `sent` while a provider works on it, `waiting` while it has no permit."""

    origin: Origin
    request: ModelRequest
    key: str
    asked_sha256: str
    shared_key: str
    askers: list[Waited] = field(default_factory=list)
    sent: bool = False
    waiting: bool = False
    model: str = ""  # the entry that is being asked
    tries: list[Try] = field(default_factory=list)
    notes: list[asyncio.Task[None]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    task: asyncio.Task[Answer] | None = None


class Deadline:
    """The end of all tries of one model. It stands still until `go`, and again from each `stop` on.

    Args:
        timeout: Entered, and without an end of its own.
    """

    def __init__(self, timeout: asyncio.Timeout, timeout_s: float) -> None:
        self._timeout = timeout
        self._left_s = timeout_s

    @property
    def left_s(self) -> float:
        """Seconds, not below 0."""
        ends_at = self._timeout.when()
        return self._left_s if ends_at is None else max(0.0, ends_at - _now())

    def stop(self) -> None:
        self._left_s = self.left_s
        self._timeout.reschedule(None)

    def go(self) -> None:
        self._timeout.reschedule(_now() + self._left_s)


class Wait:
    """What happens inside does not count against the time of any attempt that asks; nor against the deadline, if given."""

    __slots__ = ("_deadline", "_flight")

    def __init__(self, flight: Flight, deadline: Deadline | None = None) -> None:
        self._flight = flight
        self._deadline = deadline

    def __enter__(self) -> None:
        if self._deadline is not None:
            self._deadline.stop()
        self._flight.waiting = True
        now = _now()
        for waited in self._flight.askers:
            waited.begin(now)

    def __exit__(self, *_: object) -> None:
        self._flight.waiting = False
        now = _now()
        for waited in self._flight.askers:
            waited.end(now)
        if self._deadline is not None:
            self._deadline.go()


def _now() -> float:
    return asyncio.get_running_loop().time()
