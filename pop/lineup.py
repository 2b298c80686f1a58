"""Which run stands where in this daemon. A run stands in one place at a time; orders are carried out at rest or at work.

| place   | what stands there                                 | leaves it                              |
|---------|---------------------------------------------------|----------------------------------------|
| waiting | at rest, for a person or for the time of a gate   | by an answer, an order or the clock    |
| backlog | to go on as soon as there is room                 | when there is room                     |
| opening | being sealed, or read from its folder             | when it is at work, or cannot be read  |
| active  | at work: the orchestrator drives it               | when it rests or ends                  |
| ending  | complete, on its way to pipeline-complete/        | when it has been moved                 |

Other runs at rest (failed, cancelled, paused) stand nowhere: their folders say all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pop.active import ActiveRun
from pop.waiting import WaitingRuns


class Lineup:
    """Calls come from the event loop, but for `take_over` at the daemon's start."""

    def __init__(self, active: Mapping[str, ActiveRun], wake: Callable[[], None]) -> None:
        """`wake` is called when there is something new to take up."""
        self.active = active
        self.waiting = WaitingRuns()
        self.backlog: deque[Path] = deque()
        self.opening: set[Path] = set()
        self.ending: set[str] = set()
        self.ordered: Path | None = None  # an order to this run at rest is being carried out
        self._wake = wake

    def take_over(self, unfinished: Iterable[Path]) -> None:
        """Take in what an earlier daemon left: what waits goes on waiting, the others go on."""
        self.backlog.extend(path for path in unfinished if not self.waiting.add_from(path))

    def is_taken_up(self, run_dir: Path) -> bool:
        """Whether it is at work or soon will be; else it is at rest, or ends."""
        return run_dir.name in self.active or run_dir in self.opening or run_dir in self.backlog

    def take_up(self, run_dir: Path) -> None:
        """A run at rest is to go on."""
        self.waiting.drop(run_dir.name)
        if not self.is_taken_up(run_dir):
            self.backlog.append(run_dir)
            self._wake()

    def next_up(self) -> Path | None:
        """The first of the backlog, which is opened from now on; None while there is none, or its order is not done."""
        if not self.backlog or self.backlog[0] == self.ordered:
            return None
        run_dir = self.backlog.popleft()
        self.opening.add(run_dir)
        return run_dir
