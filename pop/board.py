"""Keeps tasks-status.json of the active runs current: soon after each change, and not more often than can be read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import structlog

from pop import attempts, events, gatework
from pop.active import ActiveRun
from pop.diskwork import DiskWork
from pop.models.catalogue import EMBEDDED_NOTE
from pop.records import dump_json
from pop.statuses import status_of
from pop.steps import step_of

log = structlog.get_logger()

STATUS_EVERY_S = 0.1
MANY_RUNS = 10  # above this, statuses are written less often


class StatusBoard:
    """Calls come from the event loop. `notes` are sentences about the whole root; `spawn` runs a coroutine beside it."""

    def __init__(
        self,
        work: DiskWork,
        runs: Mapping[str, ActiveRun],
        *,
        notes: Callable[[], list[str]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._work = work
        self._runs = runs
        self._notes = notes
        self._spawn = spawn
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: set[ActiveRun] = set()

    def show(self, run: ActiveRun) -> None:
        """The run changed: write its status file soon (several changes make one write)."""
        run.status_due = True
        if self._timer is None:
            many = len(self._runs) > MANY_RUNS
            delay_s = STATUS_EVERY_S * (5 if many else 1)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._flush_soon)

    async def leave_alone(self, run: ActiveRun) -> None:
        """Write nothing more of a run: a status that is being written must not come after the last one."""
        run.status_due = False
        while run in self._flushing:
            await asyncio.sleep(0.001)

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()

    def status(self, run: ActiveRun) -> dict[str, Any]:
        """The run's tasks-status.json as it should read now."""
        begun = {step_of(name) for name in run.history.instances}
        expected = [] if run.history.state == "complete" else [n for n in run.pipeline.steps if n not in begun]
        notes = [*self._notes_on(run), *gatework.problems(run.run_dir, run.history.waiting())]
        return status_of(run.history, now=events.rfc3339(time.time()), expected=expected, notes=notes)

    def _notes_on(self, run: ActiveRun) -> list[str]:
        """Which model answers when none is named, while nothing was asked; then whether the embedded engine answered."""
        if not run.history.models:
            return [*run.notes, *self._notes()]
        embedded = [f"made with the embedded engine ({EMBEDDED_NOTE})"] if "builtin" in run.history.models else []
        return [*run.notes, *embedded]

    def look_at_trails(self) -> None:
        """Take the stage and progress of long attempts from their trails (called once a second)."""
        for run in self._runs.values():
            for instance, attempt in run.live.items():
                row = attempts.last_trail_line(Path(attempt.attempt_dir))
                live = _live(row) if row else {}
                if live and live != run.history.instances[instance].live:
                    run.history.instances[instance].live = live
                    self.show(run)

    def _flush_soon(self) -> None:
        self._spawn(self._flush())

    async def _flush(self) -> None:
        began = time.monotonic()
        due = [run for run in self._runs.values() if run.status_due]
        for run in due:
            run.status_due = False
        self._flushing.update(due)
        try:
            await self._work.in_thread(self._put_statuses, [(run, self.status(run)) for run in due])
        except OSError as error:
            log.warning("status.unwritten", error=str(error))
        finally:
            self._flushing.clear()
        spent = time.monotonic() - began
        more = any(run.status_due for run in self._runs.values())
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(STATUS_EVERY_S, 10 * spent), self._flush_soon) if more else None

    def _put_statuses(self, statuses: list[tuple[ActiveRun, dict[str, Any]]]) -> None:
        for run, status in statuses:
            if run.run_dir.is_dir() and status["state"] == "running":
                self._work.disk.put(run.run_dir / "tasks-status.json", dump_json(status), durable=False)
                if run.views:
                    run.views.write(self._work.disk, status)


def _live(row: dict[str, Any]) -> dict[str, Any]:
    live = {"stage": row.get("stage"), "refinements": row.get("round") or 0}
    done, total = row.get("done"), row.get("total")
    if isinstance(done, (int, float)) and isinstance(total, (int, float)):
        live["progress"] = [done, total]
    return live
