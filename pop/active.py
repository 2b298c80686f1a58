"""A run the daemon works on, and the places for workers that all of them share."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pop.executors import Attempt
from pop.history import RunHistory
from pop.letters import LetterWriter
from pop.pipeline import Pipeline
from pop.plan import Settled
from pop.viewwork import RunViews

AT_REST = ("waiting", "paused")  # outcomes that are no ends


class Slots:
    """The places for workers, handed out in turn: every run waits in line once, so none starves another."""

    def __init__(self, size: int) -> None:
        self.free = size
        self._line: deque[ActiveRun] = deque()

    def ask(self, run: ActiveRun) -> None:
        if run not in self._line:
            self._line.append(run)
        self._grant()

    def give_back(self) -> None:
        self.free += 1
        self._grant()

    def leave(self, run: ActiveRun) -> None:
        if run in self._line:
            self._line.remove(run)
        while run.granted:
            run.granted -= 1
            self.give_back()

    def _grant(self) -> None:
        while self.free and self._line:
            run = self._line.popleft()
            self.free -= 1
            run.granted += 1
            run.changed.set()


@dataclass(eq=False)
class ActiveRun:
    """A run the daemon works on."""

    run_dir: Path
    history: RunHistory
    pipeline: Pipeline
    letters: LetterWriter
    settled: Settled = field(default_factory=Settled)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    granted: int = 0
    launching: int = 0  # attempts between their letter and their end
    live: dict[str, Attempt] = field(default_factory=dict)  # by instance
    record: dict[str, Any] = field(default_factory=dict)
    status_due: bool = False
    gateway_life: int = 0  # which one was there when the run began
    strayed: bool = False  # a worker was ended from outside: a call of its may still be under way
    broken: Exception | None = None  # what ended an attempt of it that should never end so
    wake_at: float | None = None
    look: bool = True  # an answer may have come
    notes: list[str] = field(default_factory=list)
    views: RunViews | None = None

    @property
    def run_id(self) -> str:
        return self.run_dir.name

    @property
    def journal(self) -> Path:
        return self.run_dir / "events.jsonl"

    def follow(self, pipeline: Pipeline) -> None:
        """Go on with the pipeline as it is now: steps were added, are gone, or became stale."""
        self.pipeline, self.settled = pipeline, Settled()
        self.letters.follow(pipeline)

    async def wait(self, timeout_s: float | None) -> None:
        """Until something of it has changed, or the time is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), timeout_s)
