"""What a worker may write, held by the kernel (Landlock, Linux 5.13 and later).

A confined process, and everything it starts, may read what its user may read, but write only below the folders named
here; it cannot look into processes outside (their memory, their environment, where keys are) and, from Linux 6.12 on,
not send them signals. It can never undo this. See landlock(7).
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable
from functools import cache

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

_WRITE_FILE, _TRUNCATE, _REFER = 1 << 1, 1 << 14, 1 << 13
_REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
_SCOPE_SIGNAL = 1 << 1
_CAPABILITY_VERSION = 0x20080522
_OVER_OTHERS = (
    0,
    3,
    9,
    19,
    21,
    23,
    24,
    27,
    38,
)  # chown, fowner, immutable, ptrace, admin, nice, resource, mknod, perfmon

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
    rights = _WRITE_FILE | _REMOVE_AND_MAKE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("QQQ", rights, 0, _SCOPE_SIGNAL if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0))
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


def _allow(ruleset: int, path: str, rights: int) -> None:
    assert _libc is not None
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _WRITE_FILE | _TRUNCATE
        _checked(_libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, fd), 0))
    finally:
        os.close(fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def protect_keys(*, workers_confined: bool) -> None:
    """Keep tasks from reading this process's environment. Confined ones cannot; others only when they run as root."""
    if _libc is not None and not (workers_confined and landlock_version()):
        _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
