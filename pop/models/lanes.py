"""The lanes of all models and endpoints, and the connections there is room for: what a call waits for before it goes."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterable, Iterator
from typing import Any

from pop.models.entries import ModelEntry
from pop.models.flights import Deadline, Flight, Wait
from pop.models.limits import Lane, Permit


class Lanes:
    """Made as they are met; a changed limit holds from the next `configure` on. Used from one event loop."""

    def __init__(self) -> None:
        self.somebody_waits = asyncio.Event()  # or did within the last second
        self._lanes: dict[str, Lane] = {}
        self._limits: dict[str, tuple[Any, ...]] = {}  # of the lanes
        self._places = asyncio.Semaphore(max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))  # connections

    async def permits(self, flight: Flight, entry: ModelEntry, deadline: Deadline, tokens: int) -> list[Permit]:
        """The permit of the model, then that of its endpoint, and a connection; `end` gives them back.

        Meanwhile the deadline stands still.

        Args:
            tokens: What the call will use, input and output.
        """
        permits: list[Permit] = []
        try:
            with self.waiting(flight, deadline):
                for lane in self._of(entry):
                    permits.append(await lane.permit(flight.origin.run_id, tokens))
                await self._places.acquire()
            return permits
        except BaseException:
            for permit in permits:
                permit.end()
            raise

    def end(self, permits: list[Permit]) -> None:
        """The call is over, or did not go."""
        self._places.release()
        for permit in permits:
            permit.end()

    def waiting(self, flight: Flight, deadline: Deadline | None = None) -> Wait:
        """What happens inside is nobody's lost time."""
        self.somebody_waits.set()
        return Wait(flight, deadline)

    def configure(self, entries: Iterable[ModelEntry]) -> None:
        """Bound these models by the limits they name now."""
        for entry in entries:
            for name, limits in _limits(entry):
                self._lane(name, limits)

    def figures(self) -> dict[str, Any]:
        """By the lane's name: `Lane.figures`."""
        return {name: lane.figures() for name, lane in self._lanes.items()}

    def _of(self, entry: ModelEntry) -> list[Lane]:
        return [self._lanes.get(name) or self._lane(name, limits) for name, limits in _limits(entry)]

    def _lane(self, name: str, limits: tuple[Any, ...]) -> Lane:
        """The lane, with these limits from now on."""
        concurrency, requests, tokens = limits
        about: dict[str, Any] = {
            "concurrency": concurrency, "requests_per_minute": requests, "tokens_per_minute": tokens
        }  # fmt: skip
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, **about)
        elif self._limits[name] != limits:
            lane.configure(**about)
        self._limits[name] = limits
        return lane


def _limits(entry: ModelEntry) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The lanes that bound a model, and their limits: its own, and its endpoint's where that has any."""
    yield f"model {entry.name}", (entry.concurrency, entry.requests_per_minute, entry.tokens_per_minute)
    shared = entry.shared
    limits = (shared.concurrency, shared.requests_per_minute, shared.tokens_per_minute)
    if any(limits):
        yield f"provider {shared.name}", limits
