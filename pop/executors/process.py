"""Process facts of the operating system: dying with the parent, adopting orphans, limits, finding what is left over."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Collection
from pathlib import Path

LINUX = sys.platform == "linux"
MARK = "POP_FORKSERVER"
LAST_WORDS_BYTES = 32 * 2**20
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends; ends at once when that has happened already.

    The kernel means the thread that forked, so only the parent's main thread may fork.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def limit_memory(memory_mb: int) -> None:
    """Bound the process's own data (not the address space, which threads and maps reserve without using)."""
    size = memory_mb * 2**20
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (size, size + LAST_WORDS_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_last_words() -> None:
    """After a MemoryError: a little more memory, to be able to say so."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def end_group(group: int, number: int) -> None:
    """Send a signal to a process group; one that has ended is passed over."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def children_of(pid: int) -> list[int]:
    """The living direct children of a process."""
    if not LINUX:
        import psutil

        return [child.pid for child in psutil.Process(pid).children()]
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != b"Z":
            found.append(int(name))
    return found


def end_orphans(root: Path) -> int:
    """Kill every process that an earlier daemon's fork server on this root left; returns how many.

    They are known by a mark in the environment that the fork server was started with, which every descendant shows.
    """
    import psutil  # not needed by the fork server, whose memory every worker shares

    mark, count = os.path.realpath(root), 0
    for _ in range(10):  # one that forks while we look is found at the next look
        found = 0
        for process in psutil.process_iter():
            if process.pid == os.getpid():
                continue
            with contextlib.suppress(psutil.Error):
                if process.uids().real == os.getuid() and process.environ().get(MARK) == mark:
                    process.kill()
                    found += process.status() != psutil.STATUS_ZOMBIE
        count += found
        if not found:
            break
    return count


def reap_orphans(keep: Collection[int | None]) -> None:
    """Bury adopted children that have ended; those in `keep` are waited for by whoever started them."""
    with contextlib.suppress(ChildProcessError):
        while info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if info.si_pid in keep:
                return
            os.waitpid(info.si_pid, os.WNOHANG)
