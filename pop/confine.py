"""What a worker may write, held by the kernel (Landlock, Linux 5.13 and later).

A confined process, and everything it starts, may read what its user may read, but write only below the folders named
here; it cannot look into processes outside (their memory, their environment, where keys are) and, from Linux 6.12 on,
not send them signals. It can never undo this. See landlock(7).

A file can also be hidden from it. Landlock only knows what is allowed, so everything else is: level by level on the way
down from / to the hidden file, each neighbour of that way. What appears beside the way later is readable for who is
confined after that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import stat
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

_WRITE_FILE, _READ_FILE, _TRUNCATE, _REFER = 1 << 1, 1 << 2, 1 << 14, 1 << 13
_REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
_SCOPE_SIGNAL = 1 << 1
_CAPABILITY_VERSION = 0x20080522
_OVER_OTHERS = (
    0,
    3,
    9,
    16,
    17,
    19,
    21,
    23,
    24,
    27,
    38,
    39,
)  # chown, fowner, immutable, module, rawio, ptrace, admin, nice, resource, mknod, perfmon, bpf

MAX_NEIGHBOURS = 2000
KEEP_S = 1.0  # a file system mounted meanwhile does not show in the times of folders
TIMES_TELL_S = 0.05  # two changes within the same tick of the file system's clock look like one

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@cache
def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    if _libc is None:
        return 0
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def prepare(write: Iterable[str]) -> int:
    """A ruleset that lets who enters it write only below the paths in `write` (missing ones are passed over).

    Made before the fork, where the code is warm; the child enters it with three system calls.

    Returns:
        A descriptor for `enter`; the caller closes it.

    Raises:
        OSError: The kernel refuses.
    """
    assert _libc is not None
    version = landlock_version()
    rights = _WRITE_FILE | _REMOVE_AND_MAKE | _refer() | (_TRUNCATE if version >= 3 else 0)
    ruleset = _ruleset(rights, _SCOPE_SIGNAL if version >= 6 else 0)
    try:
        for path in write:
            _allow(ruleset, path, rights)
        _allow(ruleset, "/dev", _WRITE_FILE | (rights & _TRUNCATE))  # /dev/null and the like
        _fewer_rights()
    except OSError:
        os.close(ruleset)
        raise
    return ruleset


def enter(ruleset: int) -> None:
    """From now on be bound by a ruleset, with everything this process starts.

    Raises:
        OSError: The kernel refuses.
    """
    assert _libc is not None
    header, rights = _fewer_rights()
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_libc.capset(header, rights))
    _checked(_libc.syscall(_RESTRICT_SELF, ruleset, 0))


@cache
def _fewer_rights() -> tuple[bytes, bytes]:
    """capset's arguments for ours without what lets root look into any process, or change what is not its own."""
    assert _libc is not None
    header, rights = struct.pack("=Ii", _CAPABILITY_VERSION, 0), ctypes.create_string_buffer(24)
    _checked(_libc.capget(header, rights))
    masks = list(struct.unpack("=6I", rights.raw))  # effective, permitted, inheritable; low words, then high words
    for capability in _OVER_OTHERS:
        word, bit = divmod(capability, 32)
        for place in range(3):
            masks[3 * word + place] &= ~(1 << bit)
    return header, struct.pack("=6I", *masks)


class Hiding:
    """Rulesets that let who enters them read everything but some files. The last one is kept while it is true."""

    def __init__(self) -> None:
        self._ruleset = -1
        self._stands_for: object = None
        self._made_at = 0.0

    def ruleset(self, hidden: Iterable[str]) -> int:
        """A descriptor for `enter`, which stays ours and open until the next call.

        Args:
            hidden: Paths without symbolic links (`names_of`). Copies beside them that editors leave are hidden too.

        Raises:
            OSError: The kernel refuses.
        """
        now = time.time()
        paths = tuple(hidden)
        above = _folders_above(paths)
        versions = [_version_of(folder) for folder in above]
        stands_for = (paths, versions)
        if stands_for != self._stands_for or not 0 <= now - self._made_at < KEEP_S:
            self.close()
            self._ruleset = _all_but(paths, above)
            self._made_at = now
            changed_at = max(version[2] for version in versions)
            self._stands_for = stands_for if changed_at / 1e9 < now - TIMES_TELL_S else None
        return self._ruleset

    def close(self) -> None:
        if self._ruleset >= 0:
            os.close(self._ruleset)
        self._ruleset, self._stands_for = -1, None


def names_of(path: str) -> list[str]:
    """Every path under which this machine shows a file: its own, those of other mounts, and bare disks we may read."""
    own = os.path.realpath(path)
    return [own, *(name for name in _in_other_mounts(own) if name != own), *_readable_disks()]


def neighbours(hidden: Iterable[str]) -> dict[str, int]:
    """How many entries the folders on the way to these paths have: ``{folder: entries}``."""
    counts = {}
    for folder in _folders_above(hidden):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            counts[folder] = sum(1 for _ in entries)
    return counts


def _in_other_mounts(path: str) -> Iterator[str]:
    """Where else the file can be met: every mount of its file system that shows a folder above it."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        about = open(f"/proc/self/fdinfo/{fd}").read().split()
        mounts = [line.split() for line in open("/proc/self/mountinfo")]
        info = os.fstat(fd)
    except OSError:
        return
    finally:
        os.close(fd)
    own = [mount for mount in mounts if mount[0] == about[about.index("mnt_id:") + 1]]
    for _, _, device, root, point, *_ in own:
        inside = os.path.normpath(os.path.join(_unescaped(root), os.path.relpath(path, _unescaped(point))))
        for mount in mounts:
            top = _unescaped(mount[3])
            if mount[2] != device or os.path.commonpath([inside, top]) != top:
                continue
            name = os.path.normpath(os.path.join(_unescaped(mount[4]), os.path.relpath(inside, top)))
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(name), info):
                    yield name


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _readable_disks() -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir("/dev") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if stat.S_ISBLK(entry.stat(follow_symlinks=False).st_mode) and os.access(entry.path, os.R_OK):
                    yield entry.path


def _folders_above(paths: Iterable[str]) -> list[str]:
    found = {"/"}
    for path in paths:
        while (path := os.path.dirname(path)) not in found:
            found.add(path)
    return sorted(found)


def _version_of(folder: str) -> tuple[int, int, int]:
    try:
        info = os.stat(folder)
    except OSError:
        return 0, 0, 0
    return info.st_dev, info.st_ino, info.st_mtime_ns


def _all_but(hidden: tuple[str, ...], above: list[str]) -> int:
    rights = _READ_FILE | _refer()  # moving is refused by every ruleset that does not allow it
    ruleset = _ruleset(rights, 0)
    for path in _beside(hidden, above):
        with contextlib.suppress(OSError):  # what cannot be allowed is hidden too
            _allow(ruleset, path, rights, os.O_NOFOLLOW)
    return ruleset


def _beside(hidden: tuple[str, ...], above: list[str]) -> Iterator[str]:
    """The entries of these folders, without the way to what is hidden, copies of that, and symbolic links."""
    kept = {*hidden, *above}
    for folder in above:
        names = [os.path.basename(path) for path in hidden if os.path.dirname(path) == folder]
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                copy = any(name in entry.name for name in names) and not entry.is_dir(follow_symlinks=False)
                if entry.path not in kept and not copy and not entry.is_symlink():
                    yield entry.path


def _refer() -> int:
    return _REFER if landlock_version() >= 2 else 0


def _ruleset(rights: int, scope: int) -> int:
    assert _libc is not None
    version = landlock_version()
    attributes = struct.pack("QQQ", rights, 0, scope)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    return _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0))


def _allow(ruleset: int, path: str, rights: int, flags: int = 0) -> None:
    assert _libc is not None
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _WRITE_FILE | _READ_FILE | _TRUNCATE
        _checked(_libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, fd), 0))
    finally:
        os.close(fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def protect_keys() -> None:
    """Keep tasks and programs of the same user from reading this process's environment; root's they cannot be kept."""
    if _libc is not None:
        _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
