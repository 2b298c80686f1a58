"""File work for the event loop: long work goes to a thread, durable work goes there together, and a sick root is waited for.

Threads do little more than wait for the disk. File work that ends in the page cache is shorter than the way to a thread
and back, so it is done right on the loop; what must reach the disk is collected there (``Later``) and made durable in
rounds, each of which takes along everything that waits (group commit).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import structlog

from pop.errors import RootError
from pop.settings import Root
from pop.store import Disk, Later, root_trouble

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

THREADS = 4
ROUNDS = 3  # group commits under way at once; what comes while all are busy goes together in the next
PROBE_EVERY_S = 1.0
MIN_FREE_BYTES = 4 * 2**20
ONE_FILES = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)  # one file's trouble, unless a probe says else


@dataclass(eq=False)
class _Commit:
    """Files to be made durable, then a journal's line that says so."""

    files: Later
    journal: Path
    line: bytes
    ended: asyncio.Future[None]
    error: OSError | None = None


class DiskWork:
    """All calls come from the event loop's thread.

    Args:
        on_recovery: Called when the root takes files again.
    """

    def __init__(self, root: Root, disk: Disk, on_recovery: Callable[[], None]) -> None:
        self.disk = disk
        self.trouble: RootError | None = None
        self._root = root
        self._on_recovery = on_recovery
        self._well = asyncio.Event()
        self._well.set()
        self._giving_up = False
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="disk")
        self._waiting: list[_Commit] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._rounds = 0

    # -- doing it ----------------------------------------------------------------------------------------------

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do file work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    async def surely(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do repeatable file work in a thread; while the disk is full or read-only, wait and do it again.

        Raises:
            OSError: The trouble is that of one file.
            RootError: The trouble lasts and the daemon is to end; what was not done is repaired at the next start.
            DiskFailed: Data may have been lost; the daemon must stop.
        """
        judged_well = False
        while True:
            try:
                return await self.in_thread(work, *args, **kwargs)
            except OSError as error:
                trouble = await self.in_thread(self._judge, error)
                if trouble is None and (judged_well or error.errno not in ONE_FILES):
                    raise
            if trouble is None:  # the probe may have made a missing folder
                judged_well = True
                continue
            if self._giving_up:
                raise trouble
            self.report(trouble)
            await self._well.wait()

    def _judge(self, error: OSError) -> RootError | None:
        return probe(self._root) if error.errno in ONE_FILES else root_trouble(error)

    async def at_once(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do short, repeatable file work right here, and like `surely` when that fails. Nothing in it may fsync."""
        try:
            return work(*args, **kwargs)
        except OSError:
            return await self.surely(work, *args, **kwargs)

    async def commit(self, files: Later, journal: Path, line: bytes) -> None:
        """Make `files` durable, then append `line` to `journal` and make that durable too.

        Raises:
            OSError: The journal cannot be written to, which is its own trouble.
            RootError, DiskFailed: See `surely`.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Commit(files, journal, line, ended))
        if self._rounds < ROUNDS:
            self._rounds += 1
            self._spawn(self._go_rounds())
        await ended

    async def _go_rounds(self) -> None:
        try:
            while self._waiting:
                commits, self._waiting = self._waiting, []
                error: Exception | None = None
                try:
                    await self.surely(_make_durable, self.disk, commits)
                except Exception as whole:
                    error = whole
                for commit in commits:
                    _end(commit, error or commit.error)
        finally:
            self._rounds -= 1

    # -- trouble -----------------------------------------------------------------------------------------------

    @property
    def is_well(self) -> bool:
        return self._well.is_set()

    def report(self, trouble: RootError) -> None:
        """The root takes no files: everything waits until it does again."""
        if self.trouble is None or self.trouble.message != trouble.message:
            log.error("root.trouble", error=trouble.message, where=trouble.where, hint=trouble.hint)
            print(str(trouble), file=sys.stderr, flush=True)
        if self.trouble is None and not self._giving_up:
            self._well.clear()
            self._spawn(self._wait_for_recovery())
        self.trouble = trouble

    async def _wait_for_recovery(self) -> None:
        while not self._giving_up:
            await asyncio.sleep(PROBE_EVERY_S)
            if await self.in_thread(probe, self._root) is None:
                break
        else:
            return
        log.info("root.recovered")
        self.trouble = None
        self._well.set()
        self._on_recovery()

    def give_up(self) -> None:
        """From now on nothing waits for a sick root: the daemon is to end."""
        self._giving_up = True
        self._well.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


def _end(commit: _Commit, error: Exception | None) -> None:
    if commit.ended.done():
        return
    if error:
        commit.ended.set_exception(error)
    else:
        commit.ended.set_result(None)


def _make_durable(disk: Disk, commits: list[_Commit]) -> None:
    """In a thread: all the files, then all the lines. A full disk stops it; what was appended is not appended again."""
    for commit in commits:
        commit.files.settle()
    with Later(disk) as journals:
        try:
            for commit in commits:
                if commit.line and commit.error is None:
                    _append(journals, commit)
        finally:
            journals.settle()


def _append(journals: Later, commit: _Commit) -> None:
    try:
        journals.append(commit.journal, commit.line)
        commit.line = b""
    except OSError as error:
        if root_trouble(error) and error.errno not in ONE_FILES:
            raise
        commit.error = error


def probe(root: Root) -> RootError | None:
    """Whether the root takes files: None, or what is wrong with it. A folder that somebody removed is made again."""
    probes = [folder / ".probe" for folder in (root.machine_room, root.pending, root.current, root.complete)]
    try:
        for path in probes:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"\0" * 4096)
        os.listdir(root.pending)
        if shutil.disk_usage(root.path).free < 2 * MIN_FREE_BYTES:
            return RootError("the disk is full", where=root.path, hint="free some space; POP goes on by itself")
    except OSError as error:
        return root_trouble(error) or RootError(f"cannot work here: {error.strerror}", where=error.filename)
    finally:
        for path in probes:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return None
