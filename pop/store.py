"""File primitives: every file appears whole, has one writer, and is durable where the protocol says so.

The fault model is SIGKILL at any instant and a power cut on a journaling file system, where a rename is atomic and
nothing else is ordered unless it was fsynced. docs/architecture.md shows the order of operations built from these.

A failed fsync is never tried again (the second may succeed with the data gone): ``DiskFailed`` stops the daemon.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pop.errors import PopError, RootError
from pop.records import dump_json

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)

# What an OSError means for the whole root rather than for one file.
ROOT_TROUBLE = {
    errno.ENOSPC: ("the disk is full", "free some space; POP goes on by itself"),
    errno.EDQUOT: ("the disk quota is used up", "free some space; POP goes on by itself"),
    errno.EROFS: ("the file system is read-only", "remount it writable; POP goes on by itself"),
    errno.EACCES: ("no permission to write", "check the owner and mode of the folder; POP goes on by itself"),
    errno.EPERM: ("no permission to write", "check the owner and mode of the folder; POP goes on by itself"),
    errno.EMFILE: ("too many open files", "raise `ulimit -n`, or lower [concurrency] in pop.toml"),
    errno.ENFILE: ("too many open files on this machine", "end other programs; POP goes on by itself"),
}


class DiskFailed(PopError):
    """The kernel could not make data durable (fsync failed): nothing may be trusted until a restart."""

    code = "disk-failed"


class NotAFile(PopError):
    """Something that should be a regular file is a link, a pipe, a folder, or too big."""

    code = "not-a-file"


def root_trouble(error: OSError) -> RootError | None:
    """The OSError as a sentence about the root, when waiting or a person can cure it; else None."""
    known = ROOT_TROUBLE.get(error.errno or 0)
    if known is None:
        return None
    return RootError(known[0], where=error.filename, hint=known[1])


class Disk:
    """The writing side of the file protocol.

    Args:
        durable: False leaves it to the kernel when data reaches the disk (`durability = "fast"`).
    """

    def __init__(self, *, durable: bool = True) -> None:
        self.durable = durable

    def sync(self, fd: int) -> None:
        """Make a file's data and size durable.

        Raises:
            DiskFailed: The kernel reports lost data.
        """
        if not self.durable:
            return
        try:
            os.fdatasync(fd) if sys.platform == "linux" else os.fsync(fd)
        except OSError as error:
            if error.errno in ROOT_TROUBLE:
                raise
            raise DiskFailed(f"fsync failed: {error.strerror}", hint="check the disk, then start POP again") from error

    def sync_folder(self, folder: Path | str) -> None:
        """Make the names inside `folder` durable."""
        if not self.durable:
            return
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(fd)
        finally:
            os.close(fd)

    def sync_tree(self, folder: Path) -> None:
        """Make every regular file below `folder` durable, with the names; links and special files are removed."""
        for parent, folders, files in os.walk(folder, followlinks=False):
            for name in [*files, *(name for name in folders if Path(parent, name).is_symlink())]:
                path = Path(parent, name)
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    path.unlink()
                    continue
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    self.sync(fd)
                finally:
                    os.close(fd)
            self.sync_folder(Path(parent))

    def put(self, path: Path, data: bytes, *, durable: bool = True, folder: bool = True) -> None:
        """Write `data` under `path` so that a reader sees the old content or the new, never a part.

        Args:
            durable: False skips both fsyncs (a view that can be derived again).
            folder: False leaves the fsync of the folder to the caller, who does it once for several files.
        """
        draft = path.with_name(f".{path.name[:200]}.{os.getpid()}.{threading.get_native_id()}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(draft, flags, 0o600)
        except FileExistsError:  # left by a crash of a thread that had our number
            draft.unlink()
            fd = os.open(draft, flags, 0o600)
        try:
            try:
                write_all(fd, data)
                if durable:
                    self.sync(fd)
            finally:
                os.close(fd)
            os.rename(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        if durable and folder:
            self.sync_folder(path.parent)

    def append(self, path: Path, line: bytes, *, durable: bool = True) -> None:
        """Append whole lines by one write; a torn tail left by a crash is closed first by `mend_tail`.

        A short write (full disk) is taken back, so that the file still ends in a whole line.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, "no regular file", str(path))
            before = info.st_size
            try:
                write_all(fd, line)
                if durable:
                    self.sync(fd)
            except OSError:
                os.ftruncate(fd, before)
                raise
        finally:
            os.close(fd)


class Later(Disk):
    """A Disk that notes what is to be made durable; `settle` does that, once, for all of it.

    What it has put or appended stands in its place at once, so its order on the disk is open until `settle` returns.
    """

    def __init__(self, disk: Disk) -> None:
        super().__init__(durable=disk.durable)
        self.disk = disk
        self._noted: list[int] = []

    def __enter__(self) -> Later:
        return self

    def __exit__(self, *_: object) -> None:
        while self._noted:
            os.close(self._noted.pop())

    def sync(self, fd: int) -> None:
        """Note a file or folder."""
        if self.durable:
            self._noted.append(os.dup(fd))

    def settle(self) -> None:
        """Make everything durable that was noted. Whoever wrote it has gone on, so nothing can be written again.

        Raises:
            DiskFailed: The kernel could not.
        """
        for fd in self._noted:
            try:
                super().sync(fd)
            except OSError as error:
                raise DiskFailed(f"fsync failed: {error.strerror}", hint="free some space, start POP again") from error
        self.__exit__()


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, however many writes it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def mend_tail(path: Path) -> bytes:
    """Cut what follows the last newline (a torn append) and return it; a missing file has no tail."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        size = os.fstat(fd).st_size
        tail = b""
        while len(tail) < size and b"\n" not in tail:
            start = max(0, size - len(tail) - 65536)
            tail = os.pread(fd, size - len(tail) - start, start) + tail
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn:
            os.ftruncate(fd, size - len(torn))
            os.fsync(fd)
        return torn
    finally:
        os.close(fd)


def rename_noreplace(source: Path, target: Path) -> None:
    """Rename, but never onto something that exists (a folder onto an empty folder would succeed silently).

    Raises:
        FileExistsError: `target` exists.
        FileNotFoundError: `source` is gone, so somebody else was first.
    """
    if sys.platform == "linux":
        done = _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
        if done == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(number, os.strerror(number), str(source), None, str(target))
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)


def open_regular(path: Path | str, *, max_bytes: int) -> int:
    """A descriptor of a regular file, opened without following a link and without blocking on a pipe.

    Raises:
        NotAFile: It is no regular file, or larger than `max_bytes`.
        FileNotFoundError: It does not exist.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotAFile("a symbolic link or special file", where=path) from None
        raise
    info = os.fstat(fd)
    problem = None
    if not stat.S_ISREG(info.st_mode):
        problem = "not a regular file"
    elif info.st_size > max_bytes:
        problem = f"{info.st_size / 2**20:.1f} MB is more than the limit of {max_bytes / 2**20:.1f} MB"
    if problem:
        os.close(fd)
        raise NotAFile(problem, where=path)
    return fd


def read_regular(path: Path | str, *, max_bytes: int) -> bytes:
    """The bytes of a regular file (see `open_regular`)."""
    fd = open_regular(path, max_bytes=max_bytes)
    with os.fdopen(fd, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise NotAFile("grew beyond the limit while it was read", where=path)
    return data


def open_file(path: Path | str) -> BinaryIO:
    """A regular file to read from, of any size (see `open_regular`), for who looks for OSErrors alone.

    Raises:
        OSError: There is no such file, or it is none.
    """
    try:
        return os.fdopen(open_regular(path, max_bytes=1 << 62), "rb")
    except NotAFile as error:
        raise OSError(errno.EINVAL, error.message, str(path)) from None


def read_file(path: Path | str, *, max_bytes: int = 2**30, links: bool = False) -> bytes:
    """The same for who looks for OSErrors alone: what is no regular file, or too large, is one too.

    Args:
        links: A link is followed: for what a person wrote, not a task.

    Raises:
        OSError: There is no such file, or it is none.
    """
    try:
        return read_regular(os.path.realpath(path) if links else path, max_bytes=max_bytes)
    except NotAFile as error:
        raise OSError(errno.EINVAL, error.message, str(path)) from None


def lines_of(path: Path | str, most: int = 2**26) -> Iterator[bytes]:
    """The lines of a regular file; it ends before a line that is longer than `most`.

    Raises:
        OSError: There is no such file, or it is none.
    """
    with open_file(path) as file:
        while (line := file.readline(most)) and len(line) < most:
            yield line


def open_up(folder: Path) -> None:
    """Give ourselves the permissions to read, move and remove what lies in a folder of ours."""
    os.chmod(folder, 0o700)
    for parent, folders, files in os.walk(folder):
        for name in folders:
            if not Path(parent, name).is_symlink():
                os.chmod(Path(parent, name), 0o700)
        for name in files:
            path = Path(parent, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.chmod(path, 0o600)


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours, whatever permissions somebody gave to what lies in it."""
    try:
        shutil.rmtree(folder)
    except PermissionError:
        open_up(folder)
        shutil.rmtree(folder)


def contained(base: Path, relative: str) -> Path:
    """`base / relative`, when that stays inside `base` by its text and no part of it is a symbolic link.

    Raises:
        NotAFile: The name is empty, absolute, climbs out, holds a control character, or crosses a link.
    """
    parts = relative.replace("\\", "/").split("/")
    bad = not relative or relative.startswith(("/", "\\")) or any(part in ("", ".", "..") for part in parts)
    if bad or any(ord(char) < 32 or ord(char) == 127 for char in relative):
        raise NotAFile(f"{relative[:120]!r} is not a plain relative path")
    path = base
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise NotAFile(f"{relative[:120]!r} crosses a symbolic link")
    return path


AGAIN_PATIENCE_S = 0.5  # `lock_holder` of a command may hold the new file for an instant


class RootHeld(RootError):
    """Another daemon works on this root."""

    code = "root-held"


class HeldRoot:
    """The root's lock in our hands. Its file is never unlinked by us; its text only serves the message to others."""

    def __init__(self, machine_room: Path, command: str, *, patience_s: float) -> None:
        self._path = machine_room / "lock"
        self._about = {"pid": os.getpid(), "host": os.uname().nodename, "started_at": time.time(), "command": command}
        self._fd = self._take(patience_s)

    def _take(self, patience_s: float) -> int:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _lock(fd, patience_s)
            os.ftruncate(fd, 0)
            os.pwrite(fd, dump_json(self._about, pretty=False), 0)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def stands(self) -> bool:
        """Whether the file that a second daemon would try is the one we hold: somebody may have removed it."""
        try:
            there = os.lstat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(there, os.fstat(self._fd))

    def take_again(self) -> None:
        """Hold the file that stands there now; the folder is made again where it is missing.

        Raises:
            RootHeld: Another daemon was first; says who.
        """
        self._path.parent.mkdir(mode=0o700, exist_ok=True)  # with `parents`, a root that was moved would be made anew
        held = self._take(AGAIN_PATIENCE_S)
        os.close(self._fd)
        self._fd = held

    def let_go(self) -> None:
        os.close(self._fd)


@contextmanager
def hold_root(machine_room: Path, command: str, *, patience_s: float = 3.0) -> Iterator[HeldRoot]:
    """Hold the root's lock; the kernel frees it when the process ends, however it ends.

    The lock is tried for `patience_s`, because a child of a dead daemon may share it for an instant.

    Raises:
        RootHeld: Somebody else has it; says who.
    """
    held = HeldRoot(machine_room, command, patience_s=patience_s)
    try:
        yield held
    finally:
        held.let_go()


def _lock(fd: int, patience_s: float) -> None:
    give_up = time.monotonic() + patience_s
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise RootHeld(
                    f"another daemon works here: {_holder(fd)}", hint="drop seeds, or end it first (pop doctor)"
                ) from None
            time.sleep(0.05)


def _holder(fd: int) -> str:
    try:
        about: dict[str, Any] = json.loads(os.pread(fd, 4096, 0))
        return f"`{about['command']}`, process {about['pid']} on {about['host']}"
    except (ValueError, KeyError, TypeError):
        return "it has not said its name"


def lock_holder(machine_room: Path) -> dict[str, Any] | None:
    """Who holds the root: ``{"pid", "host", "started_at", "command"}``, or None when nobody does."""
    try:
        fd = os.open(machine_room / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            about: dict[str, Any] = json.loads(os.pread(fd, 4096, 0))
            return about
        except ValueError:
            return {"pid": None, "host": None, "started_at": None, "command": "starting"}
    finally:
        os.close(fd)
    return None
