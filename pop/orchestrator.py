"""Drives the active runs: asks the planner what may happen, makes it happen, journals it, asks again.

All decisions are taken on one event loop. A run's history changes one event after the other: here, when an attempt is
committed or the run is cancelled; by `Journal` for everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from pop import attempts, events
from pop.active import AT_REST, ActiveRun, Slots
from pop.attempts import Outcome
from pop.attending import SICK_WAIT_S, Attendant
from pop.board import StatusBoard
from pop.controlwork import orders_of
from pop.diskwork import MIN_FREE_BYTES, DiskWork
from pop.ends import Ends
from pop.errors import PopError, RootError
from pop.executors import Attempt, Executor, Result
from pop.journal import Journal
from pop.loopwork import judge
from pop.moves import Moves, Start
from pop.plan import next_moves
from pop.records import ErrorRecord, Letter, dump_json
from pop.remedies import recovery
from pop.rerun import pipeline_of
from pop.settings import Root, Settings
from pop.store import DiskFailed, Later
from pop.tally import Tally

log = structlog.get_logger()


class Orchestrator:
    """Runs the active runs; `drive` returns when one has left the stage, or rests."""

    def __init__(
        self,
        root: Root,
        settings: Settings,
        work: DiskWork,
        executor: Executor,
        *,
        notes: Callable[[], list[str]],
        gateway: Callable[[], str | None],
        tally: Tally,
        gateway_life: Callable[[], int] = lambda: 0,
    ) -> None:
        self.root = root
        self.settings = settings
        self.work = work
        self.disk = work.disk
        self.executor = executor
        self.slots = Slots(settings.concurrency.workers)
        self.runs: dict[str, ActiveRun] = {}
        self.draining = False
        self.interrupting = False
        self.board = StatusBoard(work, self.runs, notes=notes, spawn=self.spawn)
        self.journal = Journal(work, self.board.show)
        self.attendant = Attendant(work, executor, self.journal)
        self.ends = Ends(
            work,
            self.journal,
            self.board,
            tally,
            gateway=gateway,
            gateway_life=gateway_life,
            draining=lambda: self.draining,
        )
        self._gateway = gateway
        self._gateway_life = gateway_life
        self._tally = tally
        self._rng = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()

    async def drive(self, run: ActiveRun) -> None:
        """Take one run as far as it goes: complete, failed, cancelled, or (draining) as it stands."""
        self.runs[run.run_id] = run
        run.gateway_life = self._gateway_life()
        try:
            await self.journal.write(run, {"event": events.RUN_STARTED}, durable=False)
            while outcome := await self._play(run):
                await self.ends.end(run, outcome)
                if outcome not in AT_REST or run.history.state == outcome:  # else an order came at the last instant
                    break
        except (RootError, DiskFailed, asyncio.CancelledError):
            raise
        except Exception as error:  # somebody damaged its files, or a mistake of ours: no other run suffers
            await self._break_off(run, error)
        finally:
            self.slots.leave(run)
            del self.runs[run.run_id]

    async def _break_off(self, run: ActiveRun, error: Exception) -> None:
        for attempt in list(run.live.values()):
            self.executor.cancel(attempt.attempt_id, "interrupted")
        while run.launching:
            await asyncio.sleep(0.05)
        if not run.run_dir.is_dir():
            log.error("run.gone", run=run.run_id, error="somebody removed its folder")
            run.history.state = "failed"
            return
        log.error("run.broken", run=run.run_id, exc_info=error)
        message = f"POP cannot go on with it: {type(error).__name__}: {error}"
        hint = "look at its files and at .pop/log/supervisor.jsonl; then: pop retry"
        record = ErrorRecord(error_class="bug", code="broken-run", message=message[:2000], hint=hint)
        try:
            await self.journal.write(run, {"event": events.RUN_FAILED, "error": record.model_dump()})
            await self.ends.end(run, "failed")
        except OSError as trouble:  # the next start, or pop retry, goes on from the journal
            log.error("run.left", run=run.run_id, error=str(trouble))
            run.history.state, run.history.error = "failed", record.model_dump()
            with contextlib.suppress(OSError):
                self.disk.put(run.run_dir / "tasks-status.json", dump_json(self.board.status(run)), durable=False)

    async def _play(self, run: ActiveRun) -> str | None:
        while True:
            run.changed.clear()
            if run.broken:
                raise run.broken
            if (run.look or run.history.unopened) and not self.draining and await self.attendant.attend(run):
                continue
            moves = next_moves(run.pipeline, run.history, time.time(), limit=max(1, run.granted), settled=run.settled)
            run.wake_at = moves.wake_at
            if moves.outcome and not (moves.outcome in AT_REST and run.launching):
                return moves.outcome
            if run.history.state == "failed":  # an expression failed; what runs may end
                if not run.launching:
                    return "failed"
            elif self.draining:
                if not run.launching:
                    return None
            elif moves.decide or moves.expand or moves.skip or moves.judge:
                await self._decide(run, moves)
                continue
            elif moves.open or moves.expire:
                await self.attendant.ask(run, moves)
                continue
            elif moves.start and self.work.is_well:
                if not run.granted:
                    self.slots.ask(run)
                if run.granted:
                    await self._launch(run, moves.start[0])
                    continue
            await self._wait(run, moves.wake_at)

    async def _wait(self, run: ActiveRun, wake_at: float | None) -> None:
        timeouts = [SICK_WAIT_S] if not self.work.is_well else []
        if wake_at is not None:
            timeouts.append(max(0.0, wake_at - time.time()))
        await run.wait(min(timeouts) if timeouts else None)

    async def _decide(self, run: ActiveRun, moves: Moves) -> None:
        """Evaluate conditions and lists, and journal what came out; a mistake in one fails the run in its place."""
        try:
            decided = await self.work.in_thread(run.letters.decide, run.history, moves)
            for lap in moves.judge:
                decided.append(await self.work.in_thread(judge, run.pipeline, run.history, run.letters, lap))
        except PopError as error:
            await self._fail_expression(run, error)
            return
        for event in decided:
            await self.journal.write(run, event, durable=event["event"] != events.STEP_SKIPPED)

    async def _fail_expression(self, run: ActiveRun, error: PopError | OSError) -> None:
        about = error.to_json() if isinstance(error, PopError) else {"message": str(error)}
        record = ErrorRecord.model_validate({"error_class": "bad_input", **about})
        await self.journal.write(run, {"event": events.RUN_FAILED, "error": record.model_dump()})

    async def _launch(self, run: ActiveRun, start: Start) -> None:
        try:
            letter = run.letters.write(run.history, start, gateway=self._gateway(), now=time.time())
        except (PopError, OSError) as error:
            await self._fail_expression(run, error)
            return
        run.granted -= 1
        run.launching += 1
        run.history.apply(
            {
                "event": events.STEP_STARTED,
                "at": events.rfc3339(time.time()),
                "instance": letter.instance,
                "attempt": letter.attempt,
                "generation": letter.generation,
            }
        )
        self.spawn(self._attempt(run, letter))

    def spawn(self, work: Any) -> None:
        """Run a coroutine beside the others; a bug in it stops the daemon with its traceback."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self.fatal = task.exception()
            if self.on_fatal:
                self.on_fatal(task.exception())

    fatal: BaseException | None = None
    on_fatal: Callable[[BaseException | None], None] | None = None
    on_news: Callable[[str], None] | None = None

    async def _attempt(self, run: ActiveRun, letter: Letter) -> None:
        try:
            letter, attempt, _ = await self.work.at_once(attempts.begin, self.disk, run.run_dir, letter)
            run.history.instances[letter.instance].started = letter.attempt
            run.live[letter.instance] = attempt
            self.board.show(run)
            began = time.monotonic()
            if run.history.cancelled or self.interrupting:
                result = Result(attempt.attempt_id, "cancelled" if run.history.cancelled else "interrupted")
            else:
                result = await self.executor.run(attempt)
            run.strayed |= result.how != "exited"
            await self._commit(run, letter, attempt, result, time.monotonic() - began)
        except RootError:  # the root is sick and the daemon is to end: the next start judges what lies there
            pass
        except DiskFailed:
            raise
        except Exception as error:
            run.broken = error
        finally:
            run.live.pop(letter.instance, None)
            run.launching -= 1
            self.slots.give_back()
            run.changed.set()

    async def _commit(self, run: ActiveRun, letter: Letter, attempt: Attempt, result: Result, seconds: float) -> None:
        """Judge what the attempt left; a good output is placed and committed, a failure is decided about."""
        do = self.work.at_once if attempts.is_small(attempt) else self.work.surely
        with Later(self.disk) as files:
            outcome = await do(attempts.judge_and_place, files, run.run_dir, attempt, letter, result)
            outcome = self._counted(run, letter.instance, outcome)
            if outcome.error is None:
                event = attempts.done_event(letter, outcome, seconds)
                if os.path.lexists(os.path.join(attempt.attempt_dir, "control.json")):
                    about = (self.root, run.run_dir, run.history, letter.instance, Path(attempt.attempt_dir))
                    event |= await self.work.in_thread(orders_of, *about)
                await self.work.commit(files, run.journal, dump_json(event, pretty=False))
            else:
                event = await self._fail_attempt(run, letter, outcome, seconds)
        run.history.apply(event)
        if (event.get("control") or {}).get("add"):
            run.follow(pipeline_of(run.run_dir, run.history))
        if outcome.usage.calls:
            for warning in self._tally.warnings(run.history):
                await self.journal.write(run, warning, durable=False)
                if self.on_news:
                    self.on_news(run.run_id)
        self.board.show(run)

    def _counted(self, run: ActiveRun, instance: str, outcome: Outcome) -> Outcome:
        return replace(outcome, usage=self._tally.since(run.history, instance, outcome.usage.cached_calls))

    async def _fail_attempt(self, run: ActiveRun, letter: Letter, outcome: Outcome, seconds: float) -> dict[str, Any]:
        assert outcome.error is not None
        error = outcome.error
        if shutil.disk_usage(self.root.path).free < MIN_FREE_BYTES:
            full = {"error_class": "interrupted", "message": f"the disk is full; the worker said: {error.message}"}
            error = error.model_copy(update=full)
        instance = run.history.instances[letter.instance]
        again = recovery(
            error.error_class,
            table={**run.pipeline.recover, **run.pipeline.tasks[letter.step].recover},
            failures=instance.failures + 1,
            interruptions=instance.interruptions + 1,
            attempts_allowed=run.letters.attempts_allowed(letter.step),
            rng=self._rng,
        )
        event = attempts.failed_event(letter, outcome, error, again, more_time=instance.more_time, seconds=seconds)
        with Later(self.disk) as files:
            if event["action"] == "fail":
                path = run.run_dir / "tasks" / letter.instance / "error.json"
                await self.work.at_once(files.put, path, dump_json(event["error"]))
            await self.work.commit(files, run.journal, dump_json(event, pretty=False))
        return event

    async def pause(self, run: ActiveRun, by: str, reason: str | None) -> None:
        """Start nothing more; what runs may end."""
        if run.history.state in ("running", "waiting") and not run.history.paused:
            await self.journal.write(run, {"event": events.RUN_PAUSED, "by": by, "reason": reason})
            run.changed.set()

    async def resume(self, run: ActiveRun, by: str, reason: str | None) -> None:
        if run.history.paused:
            await self.journal.write(run, {"event": events.RUN_RESUMED, "by": by, "reason": reason})
            run.changed.set()

    async def cancel(self, run: ActiveRun, by: str, reason: str | None) -> None:
        """End a run: journal it, end its workers, start nothing more. One that is over stays as it is."""
        if run.history.state in ("complete", "failed", "cancelled"):
            return
        event = {"at": events.rfc3339(time.time()), "event": events.RUN_CANCELLED, "by": by, "reason": reason}
        run.history.apply(event)  # at once: while the journal is written, the run must not come to another end
        for attempt in list(run.live.values()):
            self.executor.cancel(attempt.attempt_id, "cancelled")
        await self.work.commit(Later(self.disk), run.journal, dump_json(event, pretty=False))
        self.board.show(run)
        run.changed.set()

    def interrupt_all(self) -> None:
        """End every worker without using up an attempt."""
        self.interrupting = True
        for run in self.runs.values():
            for attempt in run.live.values():
                self.executor.cancel(attempt.attempt_id, "interrupted")

    def wake_all(self) -> None:
        for run in self.runs.values():
            run.changed.set()

    def background(self) -> list[asyncio.Task[None]]:
        """What still runs beside the loop (status writes), to be ended at the very end."""
        self.board.stop()
        return list(self._tasks)
