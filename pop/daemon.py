"""The supervisor: watches the queue, claims, seals, drives, promotes; one per root.

``run_daemon`` is the whole life of a daemon. It holds the root's lock, repairs what a crash left, starts the gateway
and the executor, and then goes round: look at the queue (a hint from the kernel wakes it, a scan finds what the hint
missed), fill the free places, promote what is finished. The `OrderDesk` looks for orders beside that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from pop import admission, events
from pop.active import ActiveRun
from pop.admission import Claimed
from pop.confine import landlock_version, protect_keys
from pop.diskwork import MIN_FREE_BYTES, DiskWork
from pop.errors import RootError
from pop.executors import open_executor
from pop.executors.process import end_orphans, reap_orphans
from pop.gatekeeper import GatewayProcess
from pop.intake import Intake
from pop.ledger import Ledger
from pop.lineup import Lineup
from pop.models.spent import Spent
from pop.notifying import NotifierProcess
from pop.orchestrator import Orchestrator
from pop.orderdesk import OrderDesk
from pop.queue import ignore_lease_breaks
from pop.records import dump_json
from pop.rerun import changed_tasks
from pop.settings import Root, Settings, load_settings
from pop.startup import prepare_root, unfinished_runs
from pop.store import Disk, DiskFailed, HeldRoot, RootHeld, hold_root
from pop.tally import Tally
from pop.watch import Watch
from pop.webkeeper import WebKeeper

log = structlog.get_logger()


WATCH_CHECK_S = 1.0
ONLY_PATIENCE_S = 86400.0


@dataclass(frozen=True)
class Only:
    """Serve just one thing and end: a seed by its name in pipeline-pending/, or a run by its id."""

    seed: str | None = None
    run: str | None = None


class Daemon:
    """One life of the supervisor on one root."""

    def __init__(
        self, root: Root, settings: Settings, held: HeldRoot, *, only: Only | None = None, web: bool = False
    ) -> None:
        self.root = root
        self._held = held
        self.settings = settings
        self.only = only
        self.disk = Disk(durable=settings.daemon.durability == "safe")
        self.work = DiskWork(root, self.disk, self._on_recovery)
        self.intake = Intake(root, settings, self.work)
        self.ledger = Ledger(root, self.disk)
        self.gateway = GatewayProcess(root, settings)
        self.executor = open_executor(root, settings)
        self.notifier = NotifierProcess(root, settings)
        self.web = WebKeeper(root, settings) if web and only is None else None
        self.orchestrator = Orchestrator(
            root,
            settings,
            self.work,
            self.executor,
            notes=self.gateway.notes,
            gateway=lambda: self.gateway.address,
            tally=Tally(Spent(root.machine_room / "answers.db")),
            gateway_life=lambda: self.gateway.life,
        )
        self._ends = self.orchestrator.ends
        self._wake = asyncio.Event()
        self.lineup = Lineup(self.orchestrator.runs, self._wake.set)
        self.desk = OrderDesk(root, self.work, self.orchestrator, self.lineup, only_active=only is not None)
        self._hints: set[str] = set()
        self._unsealed: deque[Claimed] = deque()
        self._busy = 0
        self._finished: list[ActiveRun] = []
        self._promoting = False
        self._stopping = False
        self._error: BaseException | None = None
        self._served_once = False

    async def run(self) -> None:
        """Work until a signal, or until `only` is done.

        Raises:
            DiskFailed: Data may be lost; the daemon stopped at once.
        """
        self._listen_for_signals()
        self.orchestrator.on_fatal = self._on_fatal
        self.orchestrator.on_news = self.notifier.hint
        await self.work.in_thread(self._repair)
        self.gateway.start(asyncio.get_running_loop())
        await self.executor.start()
        self.notifier.start()
        if self.web:
            self.web.open(asyncio.get_running_loop())
        watch = None
        if self.settings.daemon.inotify and self.only is None:
            watch = Watch(self.root.pending, self._hint)
        self._say_started()
        self.orchestrator.spawn(self._keep_orders())
        self.orchestrator.spawn(self.desk.begin_accounts())
        try:
            await self._go_round(watch)
        finally:
            if watch:
                watch.stop()
            await self._shut_down()
        if self._error:
            raise self._error

    def _repair(self) -> None:
        added = self.ledger.repair()
        if added:
            log.info("ledger.repaired", lines=added)
        if self.only is None:
            self._unsealed.extend(admission.unfinished_claims(self.root))
            admission.remove_old_drafts(self.root, time.time())
            claimed = {claim.run_dir for claim in self._unsealed}
            self.lineup.take_over(path for path in unfinished_runs(self.root) if path not in claimed)
        elif self.only.run:
            self.lineup.backlog.append(self.root.current / self.only.run)

    async def _go_round(self, watch: Watch | None) -> None:
        next_scan = 0.0
        while not self._over():
            self._wake.clear()
            self._keep_root()
            now = time.monotonic()
            if (watch and watch.check()) or now >= next_scan:
                next_scan = now + await self._scan()
            elif self._hints and not self._stopping:
                names, self._hints = self._hints, set()
                await self.intake.look_at(names)
            await self._fill()
            pause = max(0.0, next_scan - time.monotonic())
            if watch:
                pause = min(pause, WATCH_CHECK_S)
            due_s = self.intake.queue.next_due_s
            if due_s is not None and self._room() and self.work.is_well:
                pause = min(pause, max(0.0, due_s - time.time()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)

    def _keep_root(self) -> None:
        """The lock goes with its file: where somebody removed .pop, take it again, before a second daemon does.

        Raises:
            RootHeld: It did. Nothing more is written here; it goes on from what stands on the disk.
        """
        if self._held.stands():
            return
        try:
            self._held.take_again()
        except RootHeld as error:
            self._error = error
            raise
        except OSError as error:  # somebody took the whole root away, or the disk is full: it is tried again
            log.error("root.unheld", error=f"the lock cannot be taken again: {error.strerror}")
            return
        log.warning("root.held_again", why="somebody removed .pop/lock, or the whole of .pop")
        (self.root.machine_room / "log").mkdir(mode=0o700, exist_ok=True)  # the gateway finds out by itself
        self._say_started()

    def _over(self) -> bool:
        if self._error:
            return True
        idle = self._busy == 0 and not self._finished and not self._promoting
        if self.only is not None and self._served_once:
            return idle
        return self._stopping and idle

    async def _scan(self) -> float:
        """Look at everything that may have changed; returns the seconds until the next look."""
        began = time.monotonic()
        if self.work.is_well and shutil.disk_usage(self.root.path).free < MIN_FREE_BYTES:
            hint = "free some space; POP goes on by itself"
            self.work.report(RootError("the disk is full", where=self.root.path, hint=hint))
        if self.only is None and not self._stopping and self.work.is_well:
            await self.intake.scan()
        self.orchestrator.board.look_at_trails()
        self.notifier.watch()
        web = self.web.pid if self.web else None
        reap_orphans(keep={self.gateway.pid, self.executor.pid, self.notifier.pid, web})
        return max(self.settings.daemon.scan_s, 20 * (time.monotonic() - began))

    # -- filling the places ------------------------------------------------------------------------------------

    async def _fill(self) -> None:
        """Take on work while there is room: first what is under way, then the queue."""
        if not self.work.is_well:
            return
        while self._room() and self._unsealed:
            self._take(self._seal_and_drive(self._unsealed.popleft()))
        while self._room() and (run_dir := self.lineup.next_up()):
            self._take(self._resume(run_dir))
        if self.only is not None:
            await self._fill_only()
            return
        while self._room() and self.work.is_well:
            claimed = await self.intake.claim_next(self._room())
            for one in claimed:
                self._take(self._seal_and_drive(one))
            if not claimed:
                break

    async def _fill_only(self) -> None:
        assert self.only is not None
        if self.only.seed and not self._served_once:
            for one in await self.intake.claim_named(self.only.seed):
                self._take(self._seal_and_drive(one))
        self._served_once = True

    def _room(self) -> int:
        return 0 if self._stopping else max(0, self.settings.concurrency.runs - self._busy)

    def _take(self, work: Any) -> None:
        self._busy += 1
        self.orchestrator.spawn(self._counted(work))

    async def _counted(self, work: Any) -> None:
        try:
            await work
        except RootError:  # the root stays sick and the daemon is to end: the next start goes on from the disk
            if not self._stopping:
                raise
        except DiskFailed:
            raise
        except Exception as error:  # what lies there is taken up by the next start; the others go on
            log.exception("work.broken")
            if self.only is not None:
                self._error = error
        finally:
            self._busy -= 1
            self._wake.set()

    # -- one run -----------------------------------------------------------------------------------------------

    async def _seal_and_drive(self, claimed: Claimed) -> None:
        self.lineup.opening.add(claimed.run_dir)
        try:
            run = await self.intake.seal(claimed)
        finally:
            self.lineup.opening.discard(claimed.run_dir)
        if run:
            await self._drive(run)
        elif self.only is not None:
            self._error = self.intake.broken

    async def _resume(self, run_dir: Path) -> None:
        """Take up a run that an earlier daemon left; what it was doing is journaled as interrupted."""
        try:
            run = await self.work.in_thread(self.intake.open, run_dir)
            await self._ends.interrupt_leftovers(run)
            run.notes = await self.work.in_thread(changed_tasks, self.root, run_dir)
        except (RootError, DiskFailed):
            raise
        except Exception as error:  # a run somebody damaged is left as it lies, and stops no other
            log.error("run.unreadable", run=run_dir.name, error=f"{type(error).__name__}: {error}")
            return
        finally:
            self.lineup.opening.discard(run_dir)
        self.lineup.waiting.drop(run.run_id)
        log.info("run.resumed", run=run.run_id)
        await self._drive(run)

    async def _drive(self, run: ActiveRun) -> None:
        if run.history.state not in ("complete", "failed", "cancelled", "paused"):
            await self.orchestrator.drive(run)
            self.notifier.hint(run.run_id)
        if run.history.state == "waiting":
            self.lineup.waiting.add(run.run_id, run.history.waiting(), run.wake_at)
        if run.history.state == "paused":
            self._ends.unsettled.add(run.run_dir)  # an earlier daemon may not have lived to tell all it cost
        if run.history.state == "complete":
            self.lineup.ending.add(run.run_id)
            if not run.record:  # a daemon before us journaled the end
                await self.work.surely(self._ends.write_record, self.disk, run)
            self._finished.append(run)
            if not self._promoting:
                self._promoting = True
                self.orchestrator.spawn(self._promote())

    async def _promote(self) -> None:
        """Move finished runs; those that finish meanwhile go together in the next round."""
        try:
            while self._finished:
                runs, self._finished = self._finished, []
                lines = {run.run_id: dump_json(run.record, pretty=False) for run in runs}
                stuck = await self.work.surely(self.ledger.promote, lines)
                self.lineup.ending.difference_update(lines)
                for run_id in stuck:
                    log.error("run.stuck", run=run_id, error="it cannot be moved to pipeline-complete/")
                for run in (run for run in runs if run.run_id not in stuck):
                    log.info("run.complete", run=run.run_id, seconds=run.record["seconds"])
                    self.notifier.hint(run.run_id)
        except RootError:  # the daemon is to end; the next start promotes them
            self._finished.clear()
        finally:
            self._promoting = False
            self._wake.set()

    # -- orders, trouble, signals ------------------------------------------------------------------------------

    async def _keep_orders(self) -> None:
        """Look for orders once a second, whatever the queue is busy with; and for runs whose accounts are open."""
        while not self._over():
            if self.work.is_well:
                await self.desk.look()
            await self.desk.keep_accounts()
            await asyncio.sleep(self.settings.daemon.scan_s)

    def _on_recovery(self) -> None:
        self.orchestrator.wake_all()
        self.intake.queue.rescan()
        self._wake.set()

    def _on_fatal(self, error: BaseException | None) -> None:
        self._error = self._error or error
        self._stopping = True
        self.intake.stop()
        self._wake.set()

    def _hint(self, name: str) -> None:
        self._hints.add(name)
        self._wake.set()

    def _listen_for_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN) if self.only is None else None
        ignore_lease_breaks()

    def _on_signal(self) -> None:
        """First time: start nothing new and let attempts end for drain_s. Second time: interrupt them now."""
        drain_s = 0.0 if self._stopping else self.settings.daemon.drain_s
        self._stopping = self.orchestrator.draining = True
        self.intake.stop()
        self.work.give_up()
        self.orchestrator.wake_all()
        self._wake.set()
        asyncio.get_running_loop().call_later(drain_s, self.orchestrator.interrupt_all)
        log.info("daemon.stopping", drain_s=drain_s)

    async def _shut_down(self) -> None:
        for task in self.orchestrator.background():
            task.cancel()
        self.work.close()
        if self.web:
            self.web.stop()
        await self.executor.stop()
        self.gateway.stop()
        self.notifier.stop()
        if not isinstance(self._error, (DiskFailed, RootHeld)):
            with contextlib.suppress(OSError):
                self.ledger.settle()
                (self.root.machine_room / "daemon.json").unlink(missing_ok=True)
        log.info("daemon.stopped")

    def _say_started(self) -> None:
        about = {
            "pid": os.getpid(),
            "started_at": events.rfc3339(time.time()),
            "workers": "confined" if self.settings.worker.confine and landlock_version() else "not confined",
            "durability": self.settings.daemon.durability,
            "gateway": self.gateway.address,
            "notes": self.gateway.notes(),
            "web": self.web.address if self.web else None,
            "watching": "inotify and scan" if self.settings.daemon.inotify else "scan",
        }
        self.disk.put(self.root.machine_room / "daemon.json", dump_json(about), durable=False)
        log.info("daemon.started", **about)


def run_daemon(root: Root, *, only: Only | None = None, command: str = "pop up", web: bool = False) -> None:
    """Hold the root and serve it until a signal, or until `only` is done.

    Args:
        web: With the dashboard; never with `only`.

    Raises:
        RootError: The folder cannot be worked in, or another daemon holds it.
        ConfigError: pop.toml is wrong; or, with `only`, the pipeline is.
    """
    os.umask(0o077)
    prepare_root(root)
    settings = load_settings(root)
    protect_keys()
    _raise_file_limit()
    patience_s = 3.0 if only is None else ONLY_PATIENCE_S  # of several `pop run` one comes after the other
    with hold_root(root.machine_room, command, patience_s=patience_s) as held:
        end_orphans(root.path)
        asyncio.run(_serve(root, settings, held, only, web))


async def _serve(root: Root, settings: Settings, held: HeldRoot, only: Only | None, web: bool) -> None:
    await Daemon(root, settings, held, only=only, web=web).run()


def _raise_file_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
