"""Drives the active runs: asks the planner what may happen, makes it happen, journals it, asks again.

All decisions are taken on one event loop. A run's history changes only here, one event after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from pop import attempts, events, gatework
from pop.attempts import Outcome
from pop.controlwork import orders_of, pipeline_of
from pop.diskwork import MIN_FREE_BYTES, DiskWork
from pop.errors import PopError, RootError
from pop.executors import Attempt, Executor, Result
from pop.gates import Answer
from pop.history import Instance, RunHistory, read_history
from pop.letters import LetterWriter
from pop.loopwork import judge
from pop.models.catalogue import EMBEDDED_NOTE
from pop.models.questions import ask_gateway
from pop.pipeline import Pipeline
from pop.plan import Moves, Settled, Start, next_moves
from pop.records import ErrorRecord, Letter, Usage, dump_json
from pop.remedies import MAX_INTERRUPTIONS, recovery
from pop.settings import Root, Settings
from pop.statuses import run_record, status_of
from pop.steps import step_of
from pop.store import Disk, DiskFailed, Later, mend_tail
from pop.tally import Tally, calls_landed
from pop.viewwork import RunViews

log = structlog.get_logger()

STATUS_EVERY_S = 0.1
AT_REST = ("waiting", "paused")  # outcomes that are no ends
MANY_RUNS = 10  # above this, statuses are written less often


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


class Orchestrator:
    """Runs the active runs. `on_end` is called with each run that left the stage, complete or not."""

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
        self._notes = notes
        self._gateway = gateway
        self._gateway_life = gateway_life
        self.unsettled: set[Path] = set()  # runs at rest whose status may say too little of what they spent
        self._tally = tally
        self._rng = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()
        self._status_timer: asyncio.TimerHandle | None = None
        self._flushing: set[ActiveRun] = set()

    async def drive(self, run: ActiveRun) -> None:
        """Take one run as far as it goes: complete, failed, cancelled, or (draining) as it stands."""
        self.runs[run.run_id] = run
        run.gateway_life = self._gateway_life()
        try:
            await self._journal(run, {"event": events.RUN_STARTED}, durable=False)
            while outcome := await self._play(run):
                await self._end(run, outcome)
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
            await self._journal(run, {"event": events.RUN_FAILED, "error": record.model_dump()})
            await self._end(run, "failed")
        except OSError as trouble:  # the next start, or pop retry, goes on from the journal
            log.error("run.left", run=run.run_id, error=str(trouble))
            run.history.state, run.history.error = "failed", record.model_dump()
            with contextlib.suppress(OSError):
                self.disk.put(run.run_dir / "tasks-status.json", dump_json(self.status(run)), durable=False)

    async def _play(self, run: ActiveRun) -> str | None:
        while True:
            run.changed.clear()
            if run.broken:
                raise run.broken
            if (run.look or run.history.unopened) and not self.draining and await self._attend(run):
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
                await self._ask(run, moves)
                continue
            elif moves.start and self.work.is_well:
                if not run.granted:
                    self.slots.ask(run)
                if run.granted:
                    await self._launch(run, moves.start[0])
                    continue
            await self._wait(run, moves.wake_at)

    async def _wait(self, run: ActiveRun, wake_at: float | None) -> None:
        timeouts = [1.0] if not self.work.is_well else []
        if wake_at is not None:
            timeouts.append(max(0.0, wake_at - time.time()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(run.changed.wait(), min(timeouts) if timeouts else None)

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
            await self._journal(run, event, durable=event["event"] != events.STEP_SKIPPED)

    async def _fail_expression(self, run: ActiveRun, error: PopError | OSError) -> None:
        about = error.to_json() if isinstance(error, PopError) else {"message": str(error)}
        record = ErrorRecord.model_validate({"error_class": "bad_input", **about})
        await self._journal(run, {"event": events.RUN_FAILED, "error": record.model_dump()})

    async def _ask(self, run: ActiveRun, moves: Moves) -> None:
        """Open gates, and let those whose time is over be answered by their timeout."""
        for move in moves.open:
            opened = await self.work.surely(gatework.open_gate, self.disk, run.run_dir, run.pipeline, run.history, move)
            await self._journal(run, opened)
        for gate in moves.expire:
            answer = await self.work.surely(gatework.expire, self.disk, run.run_dir, gate)
            if answer:
                await self._answer(run, gate.instance, answer)

    async def _attend(self, run: ActiveRun) -> bool:
        """Open the gates that failures and refused orders ask for; carry out the answers that have come."""
        run.look, changed = False, False
        for name in list(run.history.unopened):
            event = await self.work.surely(gatework.open_beside, self.disk, run.run_dir, run.history, name)
            await self._journal(run, event)
        for name in run.history.waiting():
            answer = await self.work.surely(gatework.find_answer, self.disk, run.run_dir, name)
            if answer and not run.history.cancelled:
                changed |= await self._answer(run, name, answer)
        return changed

    async def _answer(self, run: ActiveRun, gate: str, answer: Answer) -> bool:
        """Carry out an answer; what is to run again and is at work just now is ended first."""
        again = gatework.redone(run.pipeline, run.history, gate, answer)
        stale = set(again[1].instances) if again else set[str]()
        if any(run.history.instances[name].state == "running" for name in stale):
            run.look = True
            for name in stale & set(run.live):
                self.executor.cancel(run.live[name].attempt_id, "interrupted")
            await self._wait(run, None)
            return True
        decided = await self.work.surely(
            gatework.decide, self.disk, run.run_dir, run.pipeline, run.history, gate, answer
        )
        if decided:
            await self._journal_all(run, decided)
            log.info("gate.decided", run=run.run_id, gate=gate, decision=answer.decision, by=answer.by, how=answer.how)
        if len(decided) > 1:  # something became stale
            self._follow(run)
            run.letters.forget_lists()
        return bool(decided)

    def look_at_gates(self) -> None:
        """See whether an answer has come for runs that are at work on something else (called once a second)."""
        for run in self.runs.values():
            for name in run.settled.open:
                waits = name in run.history.instances and run.history.instances[name].state == "waiting"
                if waits and gatework.may_be_answered(gatework.gate_dir(run.run_dir, name)):
                    run.look = True
                    run.changed.set()

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

    async def _attempt(self, run: ActiveRun, letter: Letter) -> None:
        try:
            letter, attempt, _ = await self.work.at_once(attempts.begin, self.disk, run.run_dir, letter)
            run.history.instances[letter.instance].started = letter.attempt
            run.live[letter.instance] = attempt
            self.show(run)
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
                await self.work.commit(files, run.run_dir / "events.jsonl", dump_json(event, pretty=False))
            else:
                event = await self._fail_attempt(run, letter, outcome, seconds)
        run.history.apply(event)
        if (event.get("control") or {}).get("add"):
            self._follow(run)
        if outcome.usage.calls:
            for warning in self._tally.warnings(run.history):
                await self._journal(run, warning, durable=False)
        self.show(run)

    def _follow(self, run: ActiveRun) -> None:
        """Steps were added, or may be gone: go on with the pipeline as it is now."""
        run.pipeline = pipeline_of(self.root, run.run_dir, run.history)
        run.letters.follow(run.pipeline)
        run.settled = Settled()

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
            await self.work.commit(files, run.run_dir / "events.jsonl", dump_json(event, pretty=False))
        return event

    async def _journal(self, run: ActiveRun, event: dict[str, Any], *, durable: bool = True) -> None:
        await self._journal_all(run, [event], durable=durable)

    async def _journal_all(self, run: ActiveRun, rows: Sequence[dict[str, Any]], *, durable: bool = True) -> None:
        """Journal events by one append, and take them into account."""
        rows = [{"at": events.rfc3339(time.time()), **event} for event in rows]
        lines, journal = b"".join(dump_json(row, pretty=False) for row in rows), run.run_dir / "events.jsonl"
        if durable:
            await self.work.commit(Later(self.disk), journal, lines)
        else:
            await self.work.at_once(self.disk.append, journal, lines, durable=False)
        for row in rows:
            run.history.apply(row)
        self.show(run)

    async def pause(self, run: ActiveRun, by: str, reason: str | None) -> None:
        """Start nothing more; what runs may end."""
        if run.history.state in ("running", "waiting") and not run.history.paused:
            await self._journal(run, {"event": events.RUN_PAUSED, "by": by, "reason": reason})
            run.changed.set()

    async def resume(self, run: ActiveRun, by: str, reason: str | None) -> None:
        if run.history.paused:
            await self._journal(run, {"event": events.RUN_RESUMED, "by": by, "reason": reason})
            run.changed.set()

    async def cancel(self, run: ActiveRun, by: str, reason: str | None) -> None:
        """End a run: journal it, end its workers, start nothing more. One that is over stays as it is."""
        if run.history.state in ("complete", "failed", "cancelled"):
            return
        event = {"at": events.rfc3339(time.time()), "event": events.RUN_CANCELLED, "by": by, "reason": reason}
        run.history.apply(event)  # at once: while the journal is written, the run must not come to another end
        for attempt in list(run.live.values()):
            self.executor.cancel(attempt.attempt_id, "cancelled")
        await self.work.commit(Later(self.disk), run.run_dir / "events.jsonl", dump_json(event, pretty=False))
        self.show(run)
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

    async def _end(self, run: ActiveRun, outcome: str) -> None:
        """Journal how the run ended, or why it rests, and with the same fsyncs leave its last status and its record."""
        if outcome not in AT_REST and not await self._landed(run):
            if self.draining and run.history.state == "running":
                return  # the next daemon ends it
            self.unsettled.add(run.run_dir)
        for late in self._tally.late(run.history) if outcome not in AT_REST else ():
            await self._journal(run, late)
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
        run.status_due = False
        while run in self._flushing:  # a status that is being written must not come after the last one
            await asyncio.sleep(0.001)
        with Later(self.disk) as files:
            await self.work.at_once(self._leave_last_files, files, run)
            line = dump_json(event, pretty=False) if event else b""
            await self.work.commit(files, run.run_dir / "events.jsonl", line)
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
        if not (run.strayed or run.history.usage.calls or run.gateway_life != self._gateway_life()):
            return True
        return await calls_landed(self._gateway(), run.run_id, lambda: self.draining)

    def settle(self, run_dir: Path) -> RunHistory | None:
        """Journal for a run at rest what was counted, or cut off, after its end was journaled; None: it is at work."""
        journal = run_dir / "events.jsonl"
        mend_tail(journal)
        history = read_history(run_dir)
        if history.state not in ("failed", "cancelled"):
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
            self.disk.append(journal, lines)
        return history

    async def settle_resting(self, run_dirs: Sequence[Path]) -> None:
        """Note which of the runs at rest have spent more than their status says, when the gateway knows what it lost."""
        if not await calls_landed(self._gateway(), "", lambda: self.draining):
            return
        for run_dir in run_dirs:
            if self._tally.is_behind(run_dir):
                self.unsettled.add(run_dir)
            await asyncio.sleep(0)

    async def may_settle(self, run_dir: Path) -> bool:
        """Whether none of its calls is under way."""
        return bool(await ask_gateway(self._gateway(), {"open": run_dir.name}) == 0)

    def _leave_last_files(self, disk: Disk, run: ActiveRun) -> None:
        status = self.status(run)
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

    async def interrupt_leftovers(self, run: ActiveRun) -> None:
        """Journal what an earlier daemon was doing as interrupted, with what it had spent."""
        for name, instance in list(run.history.instances.items()):
            if instance.state == "running":
                attempt_dir = run.run_dir / "tasks" / name / "attempts" / str(instance.started)
                cached, models = await self.work.in_thread(attempts.cached_calls, attempt_dir)
                usage = self._tally.since(run.history, name, cached)
                await self._journal(run, _interruption(name, instance, usage, models))
                run.strayed = True

    def status(self, run: ActiveRun) -> dict[str, Any]:
        """The run's tasks-status.json as it should read now."""
        begun = {step_of(name) for name in run.history.instances}
        expected = [] if run.history.state == "complete" else [n for n in run.pipeline.steps if n not in begun]
        return status_of(run.history, now=events.rfc3339(time.time()), expected=expected, notes=self._notes_on(run))

    def _notes_on(self, run: ActiveRun) -> list[str]:
        """Which model answers when none is named, while nothing was asked; then whether the embedded engine answered."""
        if not run.history.models:
            return [*run.notes, *self._notes()]
        embedded = [f"made with the embedded engine ({EMBEDDED_NOTE})"] if "builtin" in run.history.models else []
        return [*run.notes, *embedded]

    def background(self) -> list[asyncio.Task[None]]:
        """What still runs beside the loop (status writes), to be ended at the very end."""
        if self._status_timer:
            self._status_timer.cancel()
        return list(self._tasks)

    def show(self, run: ActiveRun) -> None:
        """The run changed: write its status file soon (several changes make one write)."""
        run.status_due = True
        if self._status_timer is None:
            many = len(self.runs) > MANY_RUNS
            delay_s = STATUS_EVERY_S * (5 if many else 1)
            self._status_timer = asyncio.get_running_loop().call_later(delay_s, self._flush_soon)

    def _flush_soon(self) -> None:
        self.spawn(self._flush())

    async def _flush(self) -> None:
        began = time.monotonic()
        due = [run for run in self.runs.values() if run.status_due]
        for run in due:
            run.status_due = False
        self._flushing.update(due)
        try:
            await self.work.in_thread(self._put_statuses, [(run, self.status(run)) for run in due])
        except OSError as error:
            log.warning("status.unwritten", error=str(error))
        finally:
            self._flushing.clear()
        spent = time.monotonic() - began
        more = any(run.status_due for run in self.runs.values())
        loop = asyncio.get_running_loop()
        self._status_timer = loop.call_later(max(STATUS_EVERY_S, 10 * spent), self._flush_soon) if more else None

    def _put_statuses(self, statuses: list[tuple[ActiveRun, dict[str, Any]]]) -> None:
        for run, status in statuses:
            if run.run_dir.is_dir() and status["state"] == "running":
                self.disk.put(run.run_dir / "tasks-status.json", dump_json(status), durable=False)
                if run.views:
                    run.views.write(self.disk, status)

    def look_at_trails(self) -> None:
        """Take the stage and progress of long attempts from their trails (called once a second)."""
        for run in self.runs.values():
            for instance, attempt in run.live.items():
                row = attempts.last_trail_line(Path(attempt.attempt_dir))
                live = _live(row) if row else {}
                if live and live != run.history.instances[instance].live:
                    run.history.instances[instance].live = live
                    self.show(run)


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


def _live(row: dict[str, Any]) -> dict[str, Any]:
    live = {"stage": row.get("stage"), "refinements": row.get("round") or 0}
    done, total = row.get("done"), row.get("total")
    if isinstance(done, (int, float)) and isinstance(total, (int, float)):
        live["progress"] = [done, total]
    return live
