"""Attends to the gates of active runs: opens them, finds their answers, carries these out, and journals it."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from pop import gatework
from pop.active import ActiveRun
from pop.diskwork import DiskWork
from pop.executors import Executor
from pop.gates import Answer
from pop.journal import Journal
from pop.moves import Moves
from pop.rerun import pipeline_of

log = structlog.get_logger()

LOOK_EVERY_S = 0.2
SICK_WAIT_S = 1.0  # while the root takes no files


class Attendant:
    """Calls come from the event loop."""

    def __init__(self, work: DiskWork, executor: Executor, journal: Journal) -> None:
        self._work = work
        self._executor = executor
        self._journal = journal

    async def ask(self, run: ActiveRun, moves: Moves) -> None:
        """Open gates, and let those whose time is over be answered by their timeout."""
        for move in moves.open:
            opened = await self._work.surely(
                gatework.open_gate, self._work.disk, run.run_dir, run.pipeline, run.history, move
            )
            await self._journal.write(run, opened)
        for gate in moves.expire:
            answer = await self._work.surely(
                gatework.expire, self._work.disk, run.run_dir, run.pipeline, run.history, gate
            )
            if answer:
                await self._answer(run, gate.instance, answer)
            else:  # somebody may be writing a decision.json
                await run.wait(LOOK_EVERY_S)

    async def attend(self, run: ActiveRun) -> bool:
        """Open the gates that failures and refused orders ask for; carry out the answers that have come."""
        run.look, changed = False, False
        for name in list(run.history.unopened):
            event = await self._work.surely(gatework.open_beside, self._work.disk, run.run_dir, run.history, name)
            await self._journal.write(run, event)
        for name in run.history.waiting():
            known = run.history.instances.get(name)
            if known is None or known.state != "waiting":  # an answer before made it stale
                continue
            answer = await self._work.surely(gatework.find_answer, self._work.disk, run.run_dir, name)
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
                self._executor.cancel(run.live[name].attempt_id, "interrupted")
            await run.wait(None if self._work.is_well else SICK_WAIT_S)
            return True
        decided = await self._work.surely(
            gatework.decide, self._work.disk, run.run_dir, run.pipeline, run.history, gate, answer
        )
        if decided:
            await self._journal.write(run, *decided)
            log.info("gate.decided", run=run.run_id, gate=gate, decision=answer.decision, by=answer.by, how=answer.how)
        if again:  # something became stale
            run.follow(pipeline_of(run.run_dir, run.history))
            run.letters.forget_lists()
        return bool(decided)

    def look(self, runs: Iterable[ActiveRun]) -> None:
        """See whether an answer has come for runs that are at work on something else (called once a second)."""
        for run in runs:
            for name in run.settled.open:
                waits = name in run.history.instances and run.history.instances[name].state == "waiting"
                if waits and gatework.may_be_answered(gatework.gate_dir(run.run_dir, name)):
                    run.look = True
                    run.changed.set()
