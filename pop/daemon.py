"""The supervisor: watches the queue, claims, seals, drives, promotes; one per root.

``run_daemon`` is the whole life of a daemon. It holds the root's lock, repairs what a crash left, starts the gateway
and the executor, and then goes round: look at the queue (a hint from the kernel wakes it, a scan finds what the hint
missed), fill the free places, take orders, promote what is finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import stat
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from pop import admission, events
from pop.admission import Claimed
from pop.attempts import MIN_FREE_BYTES
from pop.diskwork import DiskWork
from pop.errors import PopError, RootError, SeedRejected
from pop.executors import open_executor
from pop.gatekeeper import GatewayProcess
from pop.history import read_history
from pop.ledger import Ledger
from pop.letters import LetterWriter
from pop.orchestrator import ActiveRun, Orchestrator
from pop.orders import Order, Orders
from pop.pipelines import BrokenPipeline, PipelineShelf
from pop.queue import Incomplete, PendingQueue, Ready, ignore_lease_breaks, peek
from pop.records import dump_json
from pop.settings import Root, Settings, load_settings
from pop.store import Disk, DiskFailed, hold_root, mend_tail
from pop.watch import Watch

log = structlog.get_logger()

CLAIM_AT_ONCE = 32


@dataclass(frozen=True)
class Only:
    """Serve just one thing and end: a seed by its name in pipeline-pending/, or a run by its id."""

    seed: str | None = None
    run: str | None = None


def prepare_root(root: Root) -> None:
    """Make the folders POP needs.

    Raises:
        RootError: The root is writable by others, not writable by us, or no POP root.
    """
    if not root.pipeline_file.is_file():
        raise RootError("no pipeline.json here", where=root.path, hint="create one: pop init")
    for folder in (root.path, root.tasks):
        if folder.is_dir() and stat.S_IMODE(folder.stat().st_mode) & stat.S_IWOTH:
            hint = f"chmod o-w {folder}"
            raise RootError("anybody on this machine may write here and so run code", where=folder, hint=hint)
    try:
        for folder in (root.pending, root.rejected, root.current, root.complete):
            folder.mkdir(exist_ok=True)
        for folder in (root.machine_room, root.machine_room / "log"):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RootError(f"cannot work here: {error.strerror}", where=error.filename) from None


class Daemon:
    """One life of the supervisor on one root."""

    def __init__(self, root: Root, settings: Settings, *, only: Only | None = None) -> None:
        self.root = root
        self.settings = settings
        self.only = only
        self.disk = Disk(durable=settings.daemon.durability == "safe")
        self.queue = PendingQueue(root, settings.seeds)
        self.ledger = Ledger(root, self.disk)
        self.shelf = PipelineShelf(root)
        self.gateway = GatewayProcess(root, settings)
        self.executor = open_executor(root, settings)
        self.work = DiskWork(self.disk, self._on_trouble)
        self.orchestrator = Orchestrator(
            root,
            settings,
            self.work,
            self.executor,
            notes=self.gateway.notes,
            gateway=lambda: self.gateway.address,
        )
        self.orders = Orders(root, self.disk)
        self._trouble: RootError | None = None
        self._wake = asyncio.Event()
        self._hints: set[str] = set()
        self._backlog: deque[Path] = deque()
        self._unsealed: deque[Claimed] = deque()
        self._held: dict[str, list[str]] = {}  # seeds that wait for a broken pipeline to be mended
        self._busy = 0
        self._finished: list[ActiveRun] = []
        self._promoting = False
        self._stopping = False
        self._error: BaseException | None = None
        self._served_once = False
        self._rng = random.Random()

    async def run(self) -> None:
        """Work until a signal, or until `only` is done.

        Raises:
            DiskFailed: Data may be lost; the daemon stopped at once.
        """
        self._listen_for_signals()
        self.orchestrator.on_fatal = self._on_fatal
        await self.work.in_thread(self._repair)
        self.gateway.start(asyncio.get_running_loop())
        await self.executor.start()
        watch = None
        if self.settings.daemon.inotify and self.only is None:
            watch = Watch(self.root.pending, self._hint)
        self._say_started()
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
            claimed = {claim.run_dir for claim in self._unsealed}
            self._backlog.extend(path for path in unfinished_runs(self.root) if path not in claimed)
        elif self.only.run:
            self._backlog.append(self.root.current / self.only.run)

    async def _go_round(self, watch: Watch | None) -> None:
        next_scan = 0.0
        while not self._over():
            self._wake.clear()
            now = time.monotonic()
            if now >= next_scan:
                if watch:
                    watch.check()
                next_scan = now + await self._scan()
            elif self._hints:
                await self._look_at_hints()
            await self._fill()
            pause = max(0.0, next_scan - time.monotonic())
            if self.queue.next_due_s is not None:
                pause = min(pause, max(0.0, self.queue.next_due_s - time.time()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)

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
        if self._trouble:
            await self.work.in_thread(self._probe)
        elif shutil.disk_usage(self.root.path).free < MIN_FREE_BYTES:
            self._on_trouble(
                RootError("the disk is full", where=self.root.path, hint="free some space; POP goes on by itself")
            )
        if self.only is None and not self._stopping:
            try:
                refusals = await self.work.in_thread(self.queue.scan)
                await self._refuse(refusals)
            except OSError as error:
                self._on_trouble(RootError(f"cannot read the queue: {error.strerror}", where=error.filename))
        await self._obey()
        self._release_held()
        self.orchestrator.look_at_trails()
        return max(self.settings.daemon.scan_s, 20 * (time.monotonic() - began))

    async def _look_at_hints(self) -> None:
        names, self._hints = self._hints, set()
        if not self._stopping:
            await self._refuse(await self.work.in_thread(self.queue.look_at, names))

    async def _refuse(self, refusals: list[Any]) -> None:
        for refusal in refusals:
            log.warning("seed.rejected", seed=refusal.file_name, code=refusal.error.code, error=refusal.error.message)
            source = self.root.pending / refusal.file_name
            await self._reject(source, refusal.file_name, refusal.error)
            self.queue.forget(refusal.file_name)

    async def _reject(self, source: Path, file_name: str, error: PopError) -> None:
        with contextlib.suppress(FileNotFoundError):
            await self.work.surely(
                admission.reject, self.root, self.disk, source, file_name, error, time.time()
            )

    # -- filling the places ------------------------------------------------------------------------------------

    async def _fill(self) -> None:
        """Take on work while there is room: first what is under way, then the queue."""
        if self._trouble:
            return
        while self._room() and self._unsealed:
            self._take(self._seal_and_drive(self._unsealed.popleft()))
        while self._room() and self._backlog:
            self._take(self._resume(self._backlog.popleft()))
        if self.only is not None:
            await self._fill_only()
            return
        while self._room() and (names := self._next_names()):
            claimed = await self.work.surely(
                admission.claim, self.root, self.disk, names, time.time(), self._rng
            )
            for name in names:
                self.queue.forget(name)
            for one in claimed:
                self._take(self._seal_and_drive(one))

    async def _fill_only(self) -> None:
        assert self.only is not None
        if self.only.run:
            self._served_once = True
        elif not self._served_once and self.only.seed:
            await self._claim_only(self.only.seed)

    async def _claim_only(self, name: str) -> None:
        try:
            found = await self.work.in_thread(peek, self.root.pending / name, self.settings.seeds)
        except SeedRejected as error:
            self._served_once = True
            await self._reject(self.root.pending / name, name, error)
            return
        except FileNotFoundError:
            self._served_once = True
            return
        if isinstance(found, Incomplete):
            return
        assert isinstance(found, Ready)
        claimed = await self.work.surely(admission.claim, self.root, self.disk, [name], time.time(), self._rng)
        self._served_once = True
        for one in claimed:
            self._take(self._seal_and_drive(one))

    def _room(self) -> int:
        return 0 if self._stopping else max(0, self.settings.concurrency.runs - self._busy)

    def _next_names(self) -> list[str]:
        names: list[str] = []
        while len(names) < min(self._room(), CLAIM_AT_ONCE):
            name = self.queue.next_name(time.time())
            if name is None:
                break
            names.append(name)
        return names

    def _take(self, work: Any) -> None:
        self._busy += 1
        self.orchestrator.spawn(self._counted(work))

    async def _counted(self, work: Any) -> None:
        try:
            await work
        finally:
            self._busy -= 1
            self._wake.set()

    # -- one run -----------------------------------------------------------------------------------------------

    async def _seal_and_drive(self, claimed: Claimed) -> None:
        try:
            run = await self.work.surely(self._seal, claimed)
        except SeedRejected as error:
            log.warning("seed.rejected", seed=claimed.file_name, code=error.code, error=error.message)
            await self._reject(claimed.run_dir / admission.CLAIM, claimed.file_name, error)
            await self.work.in_thread(admission.drop_run_dir, claimed.run_dir)
            return
        except BrokenPipeline as error:
            await self._hold(claimed, error)
            return
        log.info("run.created", run=run.run_id, pipeline=run.history.created["pipeline"])
        await self._drive(run)

    def _seal(self, claimed: Claimed) -> ActiveRun:
        seed, data = admission.read_claim(claimed, self.settings.seeds)
        name = seed.pipeline or "default"
        shelved = self.shelf.take(name)
        event = admission.seal(
            self.root,
            self.disk,
            claimed,
            seed,
            data,
            pipeline_name=name,
            pipeline_bytes=shelved.data,
            provenance=self.shelf.provenance(shelved.pipeline),
            now=time.time(),
        )
        run = self._open(claimed.run_dir, seed_data=data)
        assert run.history.created == event
        return run

    async def _hold(self, claimed: Claimed, error: BrokenPipeline) -> None:
        """The pipeline is broken, which is not the seed's fault: put the seed back until the file changes."""
        log.error("pipeline.broken", seed=claimed.file_name, error=str(error))
        name = await self.work.surely(admission.put_back, self.root, self.disk, claimed)
        self.queue.remember(name)
        if self.only is not None:
            self._error = error
        self._held.setdefault(error.pipeline_name, []).append(name)

    def _release_held(self) -> None:
        for pipeline_name in [name for name in self._held if self.shelf.changed(name)]:
            for file_name in self._held.pop(pipeline_name):
                self.queue.forget(file_name)
            self.queue.rescan()

    def _open(self, run_dir: Path, *, seed_data: bytes | None = None) -> ActiveRun:
        mend_tail(run_dir / "events.jsonl")
        history = read_history(run_dir)
        pipeline = self.shelf.frozen(run_dir, history.created.get("pipeline", "default"))
        letters = LetterWriter(self.root, self.settings, run_dir, pipeline, history.created, seed_data=seed_data)
        return ActiveRun(run_dir, history, pipeline, letters)

    async def _resume(self, run_dir: Path) -> None:
        """Take up a run that an earlier daemon left; what it was doing is journaled as interrupted."""
        try:
            run = await self.work.in_thread(self._open, run_dir)
        except (OSError, KeyError, PopError) as error:
            log.error("run.unreadable", run=run_dir.name, error=str(error))
            return
        await self.orchestrator.interrupt_leftovers(run)
        log.info("run.resumed", run=run.run_id)
        await self._drive(run)

    async def _drive(self, run: ActiveRun) -> None:
        if run.history.state not in ("complete", "failed", "cancelled"):
            await self.orchestrator.drive(run)
        if run.history.state == "complete":
            if not run.record:  # a daemon before us journaled the end
                await self.work.surely(self.orchestrator.write_record, self.disk, run)
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
                await self.work.surely(self.ledger.promote, lines)
                for run in runs:
                    log.info("run.complete", run=run.run_id, seconds=run.record["seconds"])
        finally:
            self._promoting = False
            self._wake.set()

    # -- orders, trouble, signals ------------------------------------------------------------------------------

    async def _obey(self) -> None:
        active = self.orchestrator.runs
        for order in await self.work.in_thread(self.orders.find, set(active)):
            run = active.get(order.run_id)
            if run and order.verb == "cancel":
                await self.orchestrator.cancel(run, order.by, order.reason)
            elif not run and await self._again(order):
                self._backlog.append(order.run_dir)
            await self.work.surely(self.orders.file_away, order)

    async def _again(self, order: Order) -> bool:
        """Carry out an order to a run at rest; whether the run is to be taken up again."""
        if self.only is not None or order.run_dir in self._backlog:
            return False
        return await self.work.surely(self.orders.apply_to_resting, order)

    def _on_trouble(self, error: RootError) -> None:
        if self._trouble is None or self._trouble.message != error.message:
            log.error("root.trouble", error=error.message, where=error.where, hint=error.hint)
            print(str(error), file=sys.stderr, flush=True)
        self._trouble = error
        self.orchestrator.trouble()

    def _probe(self) -> None:
        """Whether the root takes files again."""
        probes = [self.root.machine_room / ".probe", self.root.current / ".probe", self.root.complete / ".probe"]
        try:
            for probe in probes:
                probe.write_bytes(b"\0" * 4096)
            os.listdir(self.root.pending)
            if shutil.disk_usage(self.root.path).free < 2 * MIN_FREE_BYTES:
                return
        except OSError:
            return
        finally:
            for probe in probes:
                with contextlib.suppress(OSError):
                    probe.unlink(missing_ok=True)
        log.info("root.recovered")
        self._trouble = None
        self.orchestrator.recovered()
        self.orchestrator.wake_all()
        self.queue.rescan()

    def _on_fatal(self, error: BaseException | None) -> None:
        self._error = self._error or error
        self._stopping = True
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
        log.info("daemon.stopping", drain_s=drain_s)
        self._stopping = self.orchestrator.draining = True
        self.orchestrator.recovered()
        self.orchestrator.wake_all()
        self._wake.set()
        asyncio.get_running_loop().call_later(drain_s, self.orchestrator.interrupt_all)

    async def _shut_down(self) -> None:
        for task in self.orchestrator.background():
            task.cancel()
        await self.executor.stop()
        self.gateway.stop()
        if not isinstance(self._error, DiskFailed):
            with contextlib.suppress(OSError):
                self.ledger.settle()
                (self.root.machine_room / "daemon.json").unlink(missing_ok=True)
        log.info("daemon.stopped")

    def _say_started(self) -> None:
        about = {
            "pid": os.getpid(),
            "started_at": events.rfc3339(time.time()),
            "durability": self.settings.daemon.durability,
            "gateway": self.gateway.address,
            "notes": self.gateway.notes(),
            "watching": "inotify and scan" if self.settings.daemon.inotify else "scan",
        }
        self.disk.put(self.root.machine_room / "daemon.json", dump_json(about), durable=False)
        log.info("daemon.started", **about)


def unfinished_runs(root: Root) -> list[Path]:
    """Runs in pipeline-current/ that are not at rest (failed, cancelled), oldest first."""
    found = []
    for run_dir in sorted(root.current.iterdir()):
        if run_dir.name.startswith(".") or not (run_dir / "events.jsonl").is_file():
            continue
        if admission.last_event(run_dir) not in (events.RUN_FAILED, events.RUN_CANCELLED):
            found.append(run_dir)
    return found


def run_daemon(root: Root, *, only: Only | None = None, command: str = "pop up") -> None:
    """Hold the root and serve it until a signal, or until `only` is done.

    Raises:
        RootError: The folder cannot be worked in, or another daemon holds it.
        ConfigError: pop.toml is wrong; or, with `only`, the pipeline is.
    """
    os.umask(0o077)
    prepare_root(root)
    settings = load_settings(root)
    _raise_file_limit()
    with hold_root(root.machine_room, command):
        from pop.executors.process import end_orphans

        end_orphans(root.path)
        asyncio.run(_serve(root, settings, only))


async def _serve(root: Root, settings: Settings, only: Only | None) -> None:
    await Daemon(root, settings, only=only).run()


def _raise_file_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
