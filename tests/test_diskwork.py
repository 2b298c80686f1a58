"""Group commit: one wait for the disk serves all that wait; a full disk is waited for; a failed fsync stops everything."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pop.diskwork import ROUNDS, DiskWork
from pop.errors import RootError
from pop.settings import Root
from pop.store import Disk, DiskFailed, Later


class SlowDisk(Disk):
    """A disk that takes its time for each journal, and says how many waited for it at once."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.seconds)
        with self._lock:
            self.at_once -= 1


class Slowly(Later):
    """Files whose way to the disk is slow."""

    def settle(self) -> None:
        assert isinstance(self.disk, SlowDisk)
        self.disk.wait()
        super().settle()


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path / "root")
    for folder in (root.rejected, root.current, root.complete, root.machine_room):
        folder.mkdir(parents=True)
    return root


def run(root: Root, work: Callable[[DiskWork], Coroutine[Any, Any, Any]], disk: Disk | None = None) -> Any:
    """What `work` gives."""

    async def whole() -> Any:
        disk_work = DiskWork(root, disk or Disk(), lambda: None)
        try:
            return await asyncio.wait_for(work(disk_work), 20)
        finally:
            disk_work.close()

    return asyncio.run(whole())


def test_a_commit_appends_its_line_and_returns_when_it_is_durable(root: Root, tmp_path: Path) -> None:
    """Files first, then the line."""
    journal = tmp_path / "events.jsonl"

    async def work(disk_work: DiskWork) -> None:
        with Later(disk_work.disk) as files:
            files.put(tmp_path / "output.json", b"1")
            await disk_work.commit(files, journal, b"done\n")

    run(root, work)
    assert journal.read_bytes() == b"done\n" and (tmp_path / "output.json").read_bytes() == b"1"


class Counting(DiskWork):
    """Says how many rounds there were."""

    rounds = 0

    async def surely(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        self.rounds += 1
        return await super().surely(work, *args, **kwargs)


def test_commits_that_come_while_the_disk_is_busy_share_the_next_round(root: Root, tmp_path: Path) -> None:
    """A hundred commits wait for few rounds, not for a hundred; every line is written once."""
    disk = SlowDisk(0.2)

    async def work() -> int:
        disk_work = Counting(root, disk, lambda: None)
        busy = [asyncio.create_task(disk_work.commit(Slowly(disk), tmp_path / "busy", b"x\n")) for _ in range(ROUNDS)]
        await asyncio.sleep(0.05)
        later = [
            disk_work.commit(Later(disk), tmp_path / f"{number % 7}", f"{number}\n".encode()) for number in range(100)
        ]
        await asyncio.gather(*busy, *later)
        return disk_work.rounds

    assert asyncio.run(asyncio.wait_for(work(), 20)) <= 2 * ROUNDS
    lines = [line for number in range(7) for line in (tmp_path / str(number)).read_text().split()]
    assert sorted(map(int, lines)) == list(range(100))


def test_a_slow_commit_does_not_hold_up_one_that_comes_later(root: Root, tmp_path: Path) -> None:
    """Rounds go side by side, at most ROUNDS of them."""
    disk = SlowDisk(0.6)

    async def work(disk_work: DiskWork) -> float:
        slow = asyncio.create_task(disk_work.commit(Slowly(disk), tmp_path / "slow", b"x\n"))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await disk_work.commit(Later(disk), tmp_path / "quick", b"x\n")
        took = time.monotonic() - began
        many = [disk_work.commit(Slowly(disk), tmp_path / "many", b"x\n") for _ in range(3)]
        await asyncio.gather(slow, *many)
        return took

    took = run(root, work, disk)
    assert took < 0.4 and disk.most_at_once <= ROUNDS


def without_room(path: Path) -> Callable[[], None]:
    """A folder on a file system of its own, filled up; returns what makes room again."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let the tests mount a small file system")
    with open(path / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    return (path / "ballast").unlink


def test_a_full_disk_is_waited_for_and_no_line_is_written_twice(
    root: Root, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of two commits in one round the one with room is not repeated; the trouble is told."""
    small = tmp_path / "small"
    make_room = without_room(small)

    async def work(disk_work: DiskWork) -> None:
        async def mend() -> None:
            while disk_work.is_well:
                await asyncio.sleep(0.01)
            make_room()

        one = disk_work.commit(Later(disk_work.disk), tmp_path / "one", b"one\n")
        other = disk_work.commit(Later(disk_work.disk), small / "other", b"other\n" * 100)
        await asyncio.gather(one, other, mend())
        assert disk_work.is_well and disk_work.trouble is None

    try:
        run(root, work)
        assert (tmp_path / "one").read_bytes() == b"one\n"
        assert (small / "other").read_bytes() == b"other\n" * 100
        assert capfd.readouterr().err.count("the disk is full") == 1
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize(("way", "times"), [("surely", 1), ("at_once", 2)])
def test_repeatable_work_is_done_again_when_the_trouble_is_over(root: Root, way: str, times: int) -> None:
    """`surely` and `at_once` alike."""
    tries = [0]

    def work() -> str:
        tries[0] += 1
        if tries[0] <= times:
            raise OSError(errno.ENOSPC, "full")
        return "done"

    assert run(root, lambda disk_work: getattr(disk_work, way)(work)) == "done" and tries == [times + 1]


def test_the_trouble_of_one_file_is_not_waited_for(root: Root) -> None:
    """The root takes files, so the caller is told."""

    def wrong() -> None:
        raise PermissionError(errno.EACCES, "not this one")

    with pytest.raises(PermissionError):
        run(root, lambda disk_work: disk_work.surely(wrong))


def test_a_daemon_that_is_to_end_waits_for_no_disk(root: Root) -> None:
    """Whoever waits is told what the trouble is."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "full")

    async def work(disk_work: DiskWork) -> None:
        asyncio.get_running_loop().call_later(0.2, disk_work.give_up)
        await disk_work.surely(full)

    with pytest.raises(RootError, match="the disk is full"):
        run(root, work)


class Broken(Later):
    """The kernel lost what was written."""

    def settle(self) -> None:
        raise DiskFailed("fsync failed: Input/output error")


def test_lost_data_reaches_everybody_who_waited_and_is_never_tried_again(root: Root, tmp_path: Path) -> None:
    """The round's callers get DiskFailed, no line of it is written; nobody hangs."""

    async def work(disk_work: DiskWork) -> list[Any]:
        files = [Later(disk_work.disk), Broken(disk_work.disk), Later(disk_work.disk)]
        waiting = [disk_work.commit(one, tmp_path / "journal", b"x\n") for one in files]
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    outcomes = run(root, work)
    assert [type(outcome) for outcome in outcomes] == [DiskFailed] * 3
    assert not (tmp_path / "journal").exists()


def test_a_real_failed_fsync_is_disk_failed(root: Root, tmp_path: Path) -> None:
    """A pipe cannot be synced: the kernel's refusal stops the daemon, it is not retried."""
    read_end, write_end = os.pipe()
    with Later(Disk()) as files:
        files.sync(write_end)
        with pytest.raises(DiskFailed, match="fsync failed"):
            files.settle()
    os.close(read_end)
    os.close(write_end)


def test_what_was_noted_is_closed_whatever_happens(root: Root, tmp_path: Path) -> None:
    """No descriptor stays open, settled or not."""
    before = len(os.listdir("/proc/self/fd"))
    with Later(Disk()) as files:
        for number in range(10):
            files.put(tmp_path / f"{number}", b"x")
    with Later(Disk()) as files:
        files.append(tmp_path / "log", b"x\n")
        files.settle()
    assert len(os.listdir("/proc/self/fd")) == before
