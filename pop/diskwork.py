"""File work for the event loop: long work goes to a thread, durable work goes there together, and a full disk is waited for.

Threads do little more than wait for the disk. File work that ends in the page cache is shorter than the way to a thread
and back, so it is done right on the loop; what must reach the disk is collected there (``Later``) and made durable in
rounds, each of which takes along everything that waits (group commit).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from pop.errors import RootError
from pop.store import Disk, Later, root_trouble

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4
ROUNDS = 3  # group commits under way at once; what comes while all are busy goes together in the next


@dataclass(eq=False)
class _Commit:
    """Files to be made durable, then a journal's line that says so."""

    files: Later
    journal: Path
    line: bytes
    ended: asyncio.Future[None]


class DiskWork:
    """All calls come from the event loop's thread."""

    def __init__(self, disk: Disk, on_trouble: Callable[[RootError], None]) -> None:
        self.disk = disk
        self.healthy = asyncio.Event()
        self.healthy.set()
        self._on_trouble = on_trouble
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="disk")
        self._waiting: list[_Commit] = []
        self._rounds: set[asyncio.Task[None]] = set()

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do file work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    async def surely(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do repeatable file work in a thread; while the disk is full or read-only, wait and do it again.

        Raises:
            DiskFailed: Data may have been lost; the daemon must stop.
        """
        while True:
            try:
                return await self.in_thread(work, *args, **kwargs)
            except OSError as error:
                trouble = root_trouble(error)
                if trouble is None:
                    raise
                self.healthy.clear()
                self._on_trouble(trouble)
                await self.healthy.wait()

    async def at_once(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do short, repeatable file work right here, and like `surely` when that fails. Nothing in it may fsync."""
        try:
            return work(*args, **kwargs)
        except OSError:
            return await self.surely(work, *args, **kwargs)

    async def commit(self, files: Later, journal: Path, line: bytes) -> None:
        """Make `files` durable, then append `line` to `journal` and make that durable too.

        Raises:
            DiskFailed: Data may have been lost; the daemon must stop.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Commit(files, journal, line, ended))
        if len(self._rounds) < ROUNDS:
            task = asyncio.create_task(self._round())
            self._rounds.add(task)
            task.add_done_callback(self._rounds.discard)
        await ended

    async def _round(self) -> None:
        while self._waiting:
            commits, self._waiting = self._waiting, []
            try:
                await self.surely(_make_durable, self.disk, commits)
            except Exception as error:
                for commit in commits:
                    commit.ended.set_exception(error)
                continue
            for commit in commits:
                commit.ended.set_result(None)


def _make_durable(disk: Disk, commits: list[_Commit]) -> None:
    """In a thread: all the files, then all the lines. A line that a full disk refused is tried again, the others not."""
    for commit in commits:
        commit.files.settle()
    with Later(disk) as journals:
        for commit in commits:
            if commit.line:
                journals.append(commit.journal, commit.line)
                commit.line = b""
        journals.settle()
