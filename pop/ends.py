"""How active runs come to their end, or to rest: what they used is counted, their last files are left, the end is journaled.

What is counted later (a request that outlived its worker) is journaled for the run at rest: it is `unsettled` until then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from pop import attempts, events
from pop.active import AT_REST, ActiveRun
from pop.board import StatusBoard
from pop.diskwork import DiskWork
from pop.history import Instance, RunHistory, read_history
from pop.journal import Journal
from pop.models.questions import ask_gateway
from pop.records import ErrorRecord, Usage, dump_json
from pop.remedies import MAX_INTERRUPTIONS
from pop.statuses import run_record
from pop.store import Disk, Later, mend_tail
from pop.tally import Tally, calls_landed

log = structlog.get_logger()


class Ends:
    """Calls come from the event loop. `gateway` and `gateway_life` tell its address and which process it is."""

    def __init__(
        self,
        work: DiskWork,
        journal: Journal,
        board: StatusBoard,
        tally: Tally,
        *,
        gateway: Callable[[], str | None],
        gateway_life: Callable[[], int],
        draining: Callable[[], bool],
    ) -> None:
        self.unsettled: set[Path] = set()  # runs at rest whose status may say too little of what they spent
        self._work = work
        self._journal = journal
        self._board = board
        self._tally = tally
        self._gateway = gateway
        self._gateway_life = gateway_life
        self._draining = draining

    async def end(self, run: ActiveRun, outcome: str) -> None:
        """Journal how the run ended, or why it rests, and with the same fsyncs leave its last status and its record."""
        if outcome in AT_REST:  # it holds no place while its last calls land
            if self._may_have_calls(run):
                self.unsettled.add(run.run_dir)
        elif not await self._landed(run):
            if self._draining() and run.history.state == "running":
                return  # the next daemon ends it
            self.unsettled.add(run.run_dir)
        for late in self._tally.late(run.history) if outcome not in AT_REST else ():
            await self._journal.write(run, late)
        event: dict[str, Any] | None = None
        if outcome == "complete":
            event = {"at": events.rfc3339(time.time()), "event": events.RUN_COMPLETE}
        elif outcome == "failed" and run.history.state != "failed":
            event = {"at": events.rfc3339(time.time()), "event": events.RUN_FAILED, "error": _why_failed(run.history)}
        elif outcome == "waiting":
            about = {"for": run.history.waiting(), "wake_at": run.wake_at}
            event = {"at": events.rfc3339(time.time()), "event": events.RUN_WAITING, **about}
        if event:
            run.history.apply(event)
        await self._board.leave_alone(run)
        with Later(self._work.disk) as files:
            await self._work.at_once(self._leave_last_files, files, run)
            line = dump_json(event, pretty=False) if event else b""
            await self._work.commit(files, run.journal, line)
        if outcome in AT_REST:
            log.info(f"run.{outcome}", run=run.run_id, waiting_for=run.history.waiting())
            return
        about = run.history.error or {}
        if run.history.state == "failed":
            reason = f"{about.get('error_class')}: {about.get('message')}"
            log.warning(
                "run.failed", run=run.run_id, step=about.get("instance"), error=reason, next="pop show " + run.run_id
            )
        elif run.history.state == "cancelled":
            log.info("run.cancelled", run=run.run_id)

    async def _landed(self, run: ActiveRun) -> bool:
        """Whether all that the run has asked of models stands in the ledger; it is waited for."""
        if not self._may_have_calls(run):
            return True
        return await calls_landed(self._gateway(), run.run_id, self._draining)

    def _may_have_calls(self, run: ActiveRun) -> bool:
        """Whether something that it asked of models may be under way, or was counted after its steps ended."""
        return bool(run.strayed or run.history.usage.calls or run.gateway_life != self._gateway_life())

    def _leave_last_files(self, disk: Disk, run: ActiveRun) -> None:
        status = self._board.status(run)
        disk.put(run.run_dir / "tasks-status.json", dump_json(status), folder=False)
        if run.views:
            run.views.write(disk, status, durable=True)
        if run.history.state == "complete":
            self.write_record(disk, run)
        disk.sync_folder(run.run_dir)

    def write_record(self, disk: Disk, run: ActiveRun) -> None:
        """Write record.json of a complete run; repeatable."""
        models = list(dict.fromkeys([*run.history.models, *self._tally.models(run.history)]))
        run.record = run_record(run.history, models=models)
        disk.put(run.run_dir / "record.json", dump_json(run.record), folder=False)

    def settle(self, run_dir: Path) -> RunHistory | None:
        """Journal for a run at rest what was counted, or cut off, after it came there; None: it is at work."""
        journal = run_dir / "events.jsonl"
        mend_tail(journal)
        history = read_history(run_dir)
        if history.state not in ("failed", "cancelled", *AT_REST):
            return None
        rows = []
        for name, instance in history.instances.items():
            if instance.state == "running":
                cached, models = attempts.cached_calls(run_dir / "tasks" / name / "attempts" / str(instance.started))
                rows.append(_interruption(name, instance, self._tally.since(history, name, cached), models))
        at = events.rfc3339(time.time())
        for row in rows:
            history.apply({"at": at, **row})
        for row in (late := self._tally.late(history)):
            history.apply({"at": at, **row})
        lines = b"".join(dump_json({"at": at, **row}, pretty=False) for row in [*rows, *late])
        if lines:
            self._work.disk.append(journal, lines)
        return history

    async def settle_resting(self, run_dirs: Sequence[Path]) -> None:
        """Note which of the runs at rest have spent more than their status says, when the gateway knows what it lost."""
        if not await calls_landed(self._gateway(), "", self._draining):
            return
        for run_dir in run_dirs:
            if self._tally.is_behind(run_dir):
                self.unsettled.add(run_dir)
            await asyncio.sleep(0)

    async def may_settle(self, run_dir: Path) -> bool:
        """Whether none of its calls is under way."""
        return bool(await ask_gateway(self._gateway(), {"open": run_dir.name}) == 0)

    async def interrupt_leftovers(self, run: ActiveRun) -> None:
        """Journal what an earlier daemon was doing as interrupted, with what it had spent."""
        for name, instance in list(run.history.instances.items()):
            if instance.state == "running":
                attempt_dir = run.run_dir / "tasks" / name / "attempts" / str(instance.started)
                cached, models = await self._work.in_thread(attempts.cached_calls, attempt_dir)
                usage = self._tally.since(run.history, name, cached)
                await self._journal.write(run, _interruption(name, instance, usage, models))
                run.strayed = True


def _why_failed(history: RunHistory) -> dict[str, Any] | None:
    """The error of a run that comes to its end: that of a step, or of a loop that did not converge."""
    for instance in history.instances.values():
        if instance.state == "failed":
            return instance.error
    for key in history.failed_loops():
        message = f"{key} did not come to its end: {history.loops[key].laps[-1].reason}"
        hint = "pop retry grants it further laps; pop show tells what each lap came to"
        error = ErrorRecord(error_class="invalid_output", code="no-convergence", message=message, hint=hint)
        return error.model_dump(exclude_none=True)
    return None


def _interruption(name: str, instance: Instance, usage: Usage, models: list[str]) -> dict[str, Any]:
    give_up = instance.interruptions + 1 >= MAX_INTERRUPTIONS
    error = ErrorRecord(
        error_class="interrupted",
        code="interrupted",
        message="the daemon ended while it was at work",
        instance=name,
        attempt=instance.started,
    )
    return {
        "event": events.STEP_ATTEMPT_FAILED,
        "instance": name,
        "attempt": instance.started,
        "error": error.model_dump(exclude_none=True),
        "action": "fail" if give_up else "retry",
        "seconds": 0.0,
        "usage": usage.model_dump(),
        "models": models,
    }
