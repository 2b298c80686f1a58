"""The daemon's desk for orders: looks for them and for answers, carries them out, and settles accounts of runs at rest.

What the orders are, and what each does to a run at rest, stands in `orders`; to a run at work, in the orchestrator.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import structlog

from pop.active import ActiveRun
from pop.diskwork import DiskWork
from pop.errors import PopError, RootError
from pop.lineup import Lineup
from pop.orchestrator import Orchestrator
from pop.orders import ANSWER, Order, Orders
from pop.settings import Root
from pop.startup import resting_runs
from pop.store import DiskFailed

log = structlog.get_logger()


class OrderDesk:
    """Looks at all active runs and a bounded number of those at rest. Calls come from the event loop."""

    def __init__(
        self, root: Root, work: DiskWork, orchestrator: Orchestrator, lineup: Lineup, *, only_active: bool
    ) -> None:
        """With `only_active` the runs at rest are left to another daemon."""
        self._current = root.current
        self._root = root
        self._work = work
        self._orchestrator = orchestrator
        self._ends = orchestrator.ends
        self._lineup = lineup
        self._only_active = only_active
        self._orders = Orders(root, work.disk, lineup.waiting)

    async def look(self) -> None:
        """Carry out the orders and answers that have come, and take up the runs whose gates' time is over."""
        active = self._orchestrator.runs
        self._orchestrator.attendant.look(active.values())
        for run_id in self._lineup.waiting.expired(time.time()) if not self._only_active else ():
            self._lineup.take_up(self._current / run_id)
        try:
            if not os.listdir(self._current):  # an idle daemon wakes no thread
                return
            found = await self._work.in_thread(self._orders.find, set(active))
        except OSError as error:
            log.warning("orders.unreadable", error=str(error))
            return
        for order in found:
            if (
                order.run_dir in self._lineup.opening
                or order.run_id in self._lineup.ending
                or (self._only_active and order.run_id not in active)
            ):
                continue  # it will be at work in a moment; and the orders of other runs wait for their daemon
            try:
                await self._obey(order)
            except RootError:
                return

    async def _obey(self, order: Order) -> None:
        """Whatever is wrong with an order, only its own run is affected.

        Raises:
            RootError, DiskFailed: See ``DiskWork.surely``.
        """
        try:
            self._lineup.ordered = None if order.run_id in self._orchestrator.runs else order.run_dir
            await self._carry_out(order)
            if order.verb != ANSWER:
                await self._work.surely(self._orders.file_away, order)
        except (RootError, DiskFailed):
            raise
        except PopError as error:
            log.error("order.refused", run=order.run_id, verb=order.verb, error=error.message, hint=error.hint)
            await self._work.surely(self._orders.file_away, order, error)
        except Exception as error:
            log.error("order.failed", run=order.run_id, verb=order.verb, error=f"{type(error).__name__}: {error}")
        finally:
            self._lineup.ordered = None

    async def _carry_out(self, order: Order) -> None:
        run = self._orchestrator.runs.get(order.run_id)
        if run:
            await self._order_active(run, order)
        elif newer := await self._work.in_thread(self._orders.overtaken, order):
            raise PopError(f"{order.verb} was overtaken by {newer}, which came later")
        elif order.verb == ANSWER or await self._work.surely(self._orders.apply_to_resting, order):
            self._lineup.take_up(order.run_dir)
        else:
            self._lineup.waiting.drop(order.run_id)
            await self._work.in_thread(self._lineup.waiting.add_from, order.run_dir)  # the order changed nothing
            self._ends.unsettled.add(order.run_dir)  # it may be cancelled before it was taken up

    async def _order_active(self, run: ActiveRun, order: Order) -> None:
        obey = {
            "cancel": self._orchestrator.cancel,
            "pause": self._orchestrator.pause,
            "resume": self._orchestrator.resume,
        }
        if order.verb in obey:
            await obey[order.verb](run, order.by, order.reason)
        elif order.verb == "rerun":
            raise PopError(f"{run.run_id} is at work", hint=f"pop pause {run.run_id} first, then rerun it")

    # -- accounts of runs at rest ------------------------------------------------------------------------------

    async def begin_accounts(self) -> None:
        """Runs at rest get what was spent after they came there and an earlier daemon did not live to tell."""
        if not self._only_active:
            resting = await self._work.in_thread(resting_runs, self._root)
            await self._ends.settle_resting([*resting, *(self._current / run for run in self._lineup.waiting.gates)])

    async def keep_accounts(self) -> None:
        """Runs at rest get what was spent after they came there: calls that came late."""
        for run_dir in list(self._ends.unsettled):
            if self._work.is_well and await self._ends.may_settle(run_dir):
                self._settle(run_dir)

    def _settle(self, run_dir: Path) -> None:
        if self._lineup.is_taken_up(run_dir):
            return
        self._ends.unsettled.discard(run_dir)
        if not run_dir.is_dir():
            return
        try:
            history = self._ends.settle(run_dir)
            if history:
                self._orders.show(run_dir, history)
        except Exception as error:  # somebody damaged or removed it
            log.error("run.unsettled", run=run_dir.name, error=f"{type(error).__name__}: {error}")
