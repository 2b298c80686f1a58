"""From pipeline-pending/ to a sealed run: look, refuse, claim, seal. Whatever a seed is, only it is affected.

| what a seed turns out to be                      | then                                                        |
|--------------------------------------------------|-------------------------------------------------------------|
| fine                                             | an active run                                               |
| not what the pipeline's seed schema allows       | moved to rejected/ with every wrong key                     |
| can never be right, now or at the second look    | moved to rejected/ with the reason                          |
| changed after the first look, no longer whole    | put back into the queue, where it waits                     |
| for a pipeline that is broken                    | put back, left alone until the pipeline's files change      |
| cannot be moved (not ours, another file system)  | left alone, told in the log                                 |
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from pop import admission, forks
from pop.active import ActiveRun
from pop.admission import Claimed
from pop.diskwork import DiskWork, probe
from pop.errors import PopError, RootError, SeedRejected
from pop.history import read_history
from pop.letters import LetterWriter
from pop.pipeline import Pipeline
from pop.pipelines import BrokenPipeline, PipelineShelf
from pop.queue import Incomplete, NotYet, PendingQueue, Refusal, peek
from pop.records import Seed, printable
from pop.rerun import pipeline_of
from pop.seedcheck import QUICK_BYTES, is_quick, refuse_misfit
from pop.settings import Root, Settings
from pop.store import DiskFailed, mend_tail, root_trouble
from pop.viewwork import RunViews

log = structlog.get_logger()

CLAIM_AT_ONCE = 32
CHECKS_AT_ONCE = 2


@dataclass(frozen=True)
class _Read:
    """A claimed seed and the pipeline that it is to run through."""

    file_name: str
    seed: Seed
    data: bytes
    fork: forks.TakenOver | None
    pipeline_name: str
    pipeline_file: str
    pipeline_bytes: bytes
    pipeline: Pipeline

    @property
    def is_long_to_check(self) -> bool:
        schema = self.pipeline.seed
        return schema is not None and (len(self.data) > QUICK_BYTES or not is_quick(schema))

    def refuse_misfit(self) -> None:
        """Raises: SeedMismatch: Its data are none for the pipeline. NotYet: Nobody could look now."""
        try:
            where = printable(self.file_name)
            refuse_misfit(self.pipeline.seed, self.seed.data, where=where, file=self.pipeline_file)
        except OSError as error:
            raise NotYet(f"it cannot be held against the seed schema now: {error}") from None


class Intake:
    """The daemon's hand at the queue. Calls come from the event loop."""

    def __init__(self, root: Root, settings: Settings, work: DiskWork) -> None:
        self.root = root
        self.settings = settings
        self.work = work
        self.queue = PendingQueue(root, settings.seeds)
        self.shelf = PipelineShelf(root)
        self.broken: BrokenPipeline | None = None  # the newest reason for which a seed was put back
        self._held: dict[str, list[str]] = {}  # seeds that wait for a broken pipeline to be mended
        self._rng = random.Random()
        self._checks = ThreadPoolExecutor(max_workers=CHECKS_AT_ONCE, thread_name_prefix="seeds")
        self._stopped = asyncio.Event()

    # -- looking -----------------------------------------------------------------------------------------------

    async def scan(self) -> None:
        """Look at everything that changed in the queue; refuse what can never be right."""
        try:
            refusals = [] if self.queue.is_quiet else await self.work.in_thread(self.queue.scan)
        except OSError as error:
            self.work.report(RootError(f"cannot read the queue: {error.strerror}", where=error.filename))
            return
        await self._refuse(refusals)
        for pipeline_name in [name for name in self._held if self.shelf.changed(name)]:
            for file_name in self._held.pop(pipeline_name):
                self.queue.forget(file_name)
            self.queue.rescan()

    async def look_at(self, names: set[str]) -> None:
        """Look at what the kernel hinted at."""
        await self._refuse(await self.work.in_thread(self.queue.look_at, names))

    async def _refuse(self, refusals: list[Refusal]) -> None:
        for refusal in refusals:
            if await self._reject(self.root.pending / refusal.file_name, refusal.file_name, refusal.error):
                self.queue.forget(refusal.file_name)
            else:
                self.queue.remember(refusal.file_name)

    async def _reject(self, source: Path, file_name: str, error: PopError) -> bool:
        name = printable(file_name)
        log.warning("seed.rejected", seed=name, code=error.code, error=error.message)
        try:
            with contextlib.suppress(FileNotFoundError):
                await self.work.surely(
                    admission.reject, self.root, self.work.disk, source, file_name, error, time.time()
                )
        except OSError as trouble:
            log.error("seed.stuck", seed=name, error=f"it cannot be moved to rejected/: {trouble.strerror}")
            return False
        return True

    # -- claiming ----------------------------------------------------------------------------------------------

    async def claim_next(self, room: int) -> list[Claimed]:
        """The best seeds that are due, at most `room`, as claims."""
        names: list[str] = []
        while len(names) < min(room, CLAIM_AT_ONCE) and (name := self.queue.next_name(time.time())) is not None:
            names.append(name)
        return await self._claim(names) if names else []

    async def _claim(self, names: list[str]) -> list[Claimed]:
        stuck: dict[str, OSError] = {}
        disk = self.work.disk
        claimed = await self.work.surely(admission.claim, self.root, disk, names, time.time(), self._rng, stuck)
        for name in names:
            self.queue.forget(name)
        for name, error in stuck.items():
            trouble = root_trouble(error)
            if trouble and await self.work.in_thread(probe, self.root):
                self.work.report(trouble)
            else:
                log.error("seed.stuck", seed=printable(name), error=f"it cannot be moved: {error.strerror}")
                self.queue.remember(name)
        return claimed

    async def claim_named(self, name: str) -> list[Claimed]:
        """The seed of that name alone; a half one is refused, since nobody writes on it any more."""
        path = self.root.pending / name
        try:
            found = await self.work.in_thread(peek, path, self.settings.seeds)
            while isinstance(found, Incomplete) and not found.cut_off:
                await self.work.in_thread(time.sleep, 0.1)
                found = await self.work.in_thread(peek, path, self.settings.seeds)
            if isinstance(found, Incomplete):
                raise SeedRejected("it ends in the middle", where=name, hint="drop the whole of it")
        except SeedRejected as error:
            await self._reject(path, name, error)
            return []
        except FileNotFoundError:
            return []
        return await self._claim([name])

    # -- sealing -----------------------------------------------------------------------------------------------

    async def seal(self, claimed: Claimed) -> ActiveRun | None:
        """Make a run of a claim, or bring the seed where it belongs; after `stop` some are left as they lie.

        Raises:
            RootError, DiskFailed: See ``DiskWork.surely``.
        """
        try:
            found = await self.work.surely(self._begin, claimed)
            if isinstance(found, _Read):
                if not await self._looked_closely(found):
                    return None
                found = await self.work.surely(self._seal, claimed, found)
            run = found
        except (BrokenPipeline, NotYet) as error:
            await self._put_back(claimed, error)
            return None
        except (RootError, DiskFailed):
            raise
        except SeedRejected as error:
            await self._reject_claim(claimed, error)
            return None
        except Exception as error:  # no seed may end the daemon
            log.exception("seed.broken", seed=printable(claimed.file_name))
            await self._reject_claim(claimed, SeedRejected(f"no run can be made of it: {error}"))
            return None
        log.info("run.created", run=run.run_id, pipeline=run.history.created["pipeline"])
        return run

    async def _looked_closely(self, read: _Read) -> bool:
        """Hold it against a schema that may take seconds; other work of the disk's threads does not wait behind it.

        Returns:
            Whether that came to its end; else the daemon stops, and the next one finds the claim as it lies.
        """
        check: asyncio.Future[None] = asyncio.get_running_loop().run_in_executor(self._checks, read.refuse_misfit)
        stopped: asyncio.Future[Any] = asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait({check, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not check.done():
            check.cancel()
            return False
        await check
        return True

    def stop(self) -> None:
        """Wait for no check of a seed any more."""
        self._stopped.set()

    def _begin(self, claimed: Claimed) -> ActiveRun | _Read:
        """The run, or what is to be looked at more closely before it is one: nothing of it stands until then."""
        read = self._read(claimed)
        if read.is_long_to_check:
            return read
        read.refuse_misfit()
        return self._seal(claimed, read)

    def _read(self, claimed: Claimed) -> _Read:
        seed, data = admission.read_claim(claimed, self.settings.seeds)
        fork = forks.take_over(self.root, seed) if seed.fork else None
        name = fork.pipeline_name if fork else seed.pipeline or "default"
        shelved = fork or self.shelf.take(name)
        file = os.path.relpath(self.root.pipeline_path(name), self.root.path)
        return _Read(claimed.file_name, seed, data, fork, name, file, shelved.data, shelved.pipeline)

    def _seal(self, claimed: Claimed, read: _Read) -> ActiveRun:
        fork, data = read.fork, read.data
        if fork:
            forks.lay_out(self.work.disk, claimed.run_dir, fork)
        admission.seal(
            self.root,
            self.work.disk,
            claimed,
            read.seed,
            data,
            pipeline_name=read.pipeline_name,
            pipeline_bytes=read.pipeline_bytes,
            provenance=self.shelf.provenance(read.pipeline),
            now=time.time(),
            forked_from=fork.about if fork else None,
            lines=fork.lines if fork else (),
        )
        return self.open(claimed.run_dir, seed_data=data)

    async def _reject_claim(self, claimed: Claimed, error: SeedRejected) -> None:
        source = await self.work.in_thread(admission.claim_path, claimed.run_dir)
        if await self._reject(source, claimed.file_name, error):
            await self.work.in_thread(admission.drop_run_dir, claimed.run_dir)

    async def _put_back(self, claimed: Claimed, error: BrokenPipeline | NotYet) -> None:
        if isinstance(error, BrokenPipeline):  # before it is back, and the kernel hints at it
            self.queue.remember(claimed.file_name)
        name = await self.work.surely(admission.put_back, self.root, self.work.disk, claimed)
        if isinstance(error, NotYet):
            self.queue.forget(name)
            self.queue.rescan()
            return
        log.error("pipeline.broken", seed=printable(name), error=error.message, where=error.where, hint=error.hint)
        self.broken = error
        self.queue.remember(name)
        self._held.setdefault(error.pipeline_name, []).append(name)

    def open(self, run_dir: Path, *, seed_data: bytes | None = None) -> ActiveRun:
        """A sealed run as its files tell it."""
        mend_tail(run_dir / "events.jsonl")
        history = read_history(run_dir)
        pipeline = pipeline_of(run_dir, history)
        about = (self.root, self.settings, run_dir, pipeline, history.created)
        letters = LetterWriter(*about, seed_data=seed_data, seed=history.seed_file())
        views = RunViews(run_dir, pipeline.views) if pipeline.views else None
        return ActiveRun(run_dir, history, pipeline, letters, views=views)
