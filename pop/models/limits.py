"""TEMP."""

from __future__ import annotations

import asyncio
from typing import Any

from pop.models.request import RateNews


class Permit:
    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.done = False

    def settle(self, tokens: int | None) -> None: ...
    def heard(self, rate: RateNews | None, *, limited: bool) -> None: ...
    def release(self) -> None:
        if not self.done:
            self.done = True
            self.lane.in_flight -= 1
            self.lane.sem.release()


class Lane:
    def __init__(
        self, name: str, *, concurrency: int | None, requests_per_minute: float | None, tokens_per_minute: float | None
    ) -> None:
        self.sem = asyncio.Semaphore(concurrency or 100000)
        self.in_flight = 0
        self.waiting = 0
        self.c = concurrency

    def configure(self, **_: Any) -> None: ...
    async def permit(self, run_id: str, tokens: int) -> Permit:
        self.waiting += 1
        try:
            await self.sem.acquire()
        finally:
            self.waiting -= 1
        self.in_flight += 1
        return Permit(self)

    def figures(self) -> dict[str, Any]:
        return {
            "in_flight": self.in_flight,
            "waiting": self.waiting,
            "window": self.c,
            "requests_per_minute": 0,
            "tokens_per_minute": 0,
            "paused_s": 0,
        }
