"""What a power cut could take: a record of the system calls that change the disk, and of what is not yet on it.

The model is that of docs/architecture.md: a rename is atomic, and nothing else is ordered unless it was fsynced. So a
file's bytes are safe from its own fsync on, and a name from the fsync of its folder on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pop import admission, ledger, store

CALLS = ("open", "write", "fsync", "fdatasync", "rename", "mkdir", "link", "unlink", "ftruncate")


@dataclass(frozen=True)
class Moment:
    """The instant before a system call: what it is, and what a power cut would take."""

    call: str
    path: str
    data: bytes
    bytes_at_risk: frozenset[str]  # files whose content is not on the disk, by their present path
    names_at_risk: frozenset[str]  # paths that may not stand under their name, or may stand under it still


@dataclass
class Power:
    """The record. `moments` stand in the order of the calls."""

    moments: list[Moment] = field(default_factory=list)
    _bytes: dict[int, str] = field(default_factory=dict)  # by inode
    _names: dict[str, int] = field(default_factory=dict)  # the inode of the folder, by path

    def note(self, call: str, path: str, data: bytes = b"") -> None:
        self.moments.append(Moment(call, path, data, frozenset(self._bytes.values()), frozenset(self._names)))

    def at_risk(self) -> tuple[set[str], set[str]]:
        """What a power cut would take now: contents and names."""
        return set(self._bytes.values()), set(self._names)

    def moment(self, call: str, name: str, data: bytes = b"") -> Moment:
        """The only moment before this call on a path that ends so (and wrote this).

        Raises:
            AssertionError: There was none, or more than one.
        """
        found = [m for m in self.moments if m.call == call and m.path.endswith(name) and data in m.data]
        assert len(found) == 1, f"{len(found)} calls of {call} on {name}: {[m.path for m in found]}"
        return found[0]

    # -- what the calls do ---------------------------------------------------------------------------------------

    def wrote(self, fd: int) -> None:
        self._bytes[os.fstat(fd).st_ino] = _path_of(fd)

    def named(self, path: str) -> None:
        self._names[path] = os.stat(os.path.dirname(path)).st_ino

    def moved(self, source: str, target: str) -> None:
        self.named(source)
        self.named(target)
        for inode, path in list(self._bytes.items()):
            if path == source or path.startswith(source + "/"):
                self._bytes[inode] = target + path.removeprefix(source)
        for path in [name for name in self._names if name.startswith(source + "/")]:
            self._names[target + path.removeprefix(source)] = self._names.pop(path)

    def synced(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        self._bytes.pop(inode, None)
        for path in [name for name, folder in self._names.items() if folder == inode]:
            del self._names[path]


def _path_of(fd: int) -> str:
    path: str = os.readlink(f"/proc/self/fd/{fd}")
    return path


def _absolute(path: Any) -> str:
    folder, name = os.path.split(os.fsdecode(path))
    return os.path.join(os.path.realpath(folder), name)


@contextmanager
def recorded(below: Path) -> Iterator[Power]:
    """Record what this process does below a folder through `os`. The calls are really made.

    What `open` and Path.write_bytes write is not seen; their fsync is.
    """
    power, base = Power(), os.path.realpath(below) + "/"
    real = {name: getattr(os, name) for name in CALLS}

    def ours(path: str) -> bool:
        return path.startswith(base)

    def on_fd(name: str, after: Callable[[int], None]) -> Callable[..., Any]:
        def call(fd: int, *rest: Any) -> Any:
            path = _path_of(fd)
            if ours(path + "/"):
                power.note(name, path, bytes(rest[0]) if name == "write" else b"")
            value = real[name](fd, *rest)
            if ours(path + "/"):
                after(fd)
            return value

        return call

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        fd: int = real["open"](path, flags, *rest, **more)
        if new and ours(_path_of(fd)):
            power.named(_path_of(fd))
            power.wrote(fd)
        return fd

    def on_path(name: str) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **more: Any) -> Any:
            where = _absolute(path)
            if ours(where):
                power.note(name, where)
            value = real[name](path, *rest, **more)
            if ours(where):
                power.named(where)
            return value

        return call

    def on_two(name: str) -> Callable[..., Any]:
        def call(source: Any, target: Any, *rest: Any, **more: Any) -> Any:
            one, other = _absolute(source), _absolute(target)
            if ours(other):
                power.note(name, other)
            value = real[name](source, target, *rest, **more)
            if ours(other):
                power.moved(one, other) if name == "rename" else power.named(other)
            return value

        return call

    def rename_noreplace(source: Path, target: Path) -> None:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists", str(target))
        os.rename(source, target)

    wrapped = {
        "open": opened, "write": on_fd("write", power.wrote), "ftruncate": on_fd("ftruncate", power.wrote),
        "fsync": on_fd("fsync", power.synced), "fdatasync": on_fd("fdatasync", power.synced),
        "mkdir": on_path("mkdir"), "unlink": on_path("unlink"), "rename": on_two("rename"), "link": on_two("link"),
    }  # fmt: skip
    modules = (admission, ledger, store)
    kept = store.rename_noreplace
    try:
        for name, call in wrapped.items():
            setattr(os, name, call)
        for module in modules:
            module.rename_noreplace = rename_noreplace  # type: ignore[attr-defined]
        yield power
    finally:
        for name, original in real.items():
            setattr(os, name, original)
        for module in modules:
            module.rename_noreplace = kept  # type: ignore[attr-defined]
