"""The queue: what lies in pipeline-pending/, whether it is ready, and what is next.

A seed is taken when its writer is done. The kernel says so by a read lease, which is refused while anybody has the
file open for writing; where leases are missing, and for folders, size and times must stand still for `settle_s`.

| what lies there                         | judged as  | then                                             |
|-----------------------------------------|------------|--------------------------------------------------|
| whole JSON object, nobody writes it     | Ready      | claimed by priority, then arrival                |
| being written, empty, ends in the middle| Incomplete | waits, however long: half a file is never refused |
| can never be right                      | SeedRejected | moved to rejected/ with a reason               |
| dot-names, and names that end in neither .json nor .zip | ignored | left alone                             |

In memory a waiting seed costs about 200 bytes; at most `HEAP_LIMIT` are held, the rest wait on disk for room.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import io
import lzma
import os
import signal
import stat
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pop.errors import PopError, SeedRejected
from pop.events import unix_s
from pop.records import BadJson, Seed
from pop.seeds import is_a_beginning, parse_seed
from pop.settings import Root, SeedSettings
from pop.store import NotAFile, open_regular

HEAP_LIMIT = 200_000
FOLDER_WITHOUT_SEED_S = 10.0
MB = 2**20
ZIP_PIECE_BYTES = 2**16  # of an archive that are unpacked at once
MOST_LIST_BYTES = 16 * MB  # of an archive's list of entries; in memory it is about ten times as much


@dataclass(frozen=True)
class Ready:
    """A seed that may be claimed. `not_before_s` is a Unix time or None; `arrived_ns` orders equal priorities."""

    file_name: str
    seed: Seed
    arrived_ns: int

    @property
    def name(self) -> str:
        """What people call it: its own name, else the file's."""
        return self.seed.name or Path(self.file_name).stem

    @property
    def not_before_s(self) -> float | None:
        return unix_s(self.seed.not_before) if self.seed.not_before else None


@dataclass(frozen=True)
class Incomplete:
    """Not yet a seed: `reason` says what it waits for. `signature` changes when somebody works on it."""

    reason: str
    signature: tuple[Any, ...]
    cut_off: bool = False  # its content ends in the middle: not worth a look until it changes


Peek = Ready | Incomplete


class NotYet(PopError):
    """A seed that was ready has been changed since, and is no longer whole."""


BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError)


def is_candidate(name: str) -> bool:
    """Whether a name in pipeline-pending/ can be a seed (folders are looked at by their content)."""
    return not name.startswith(".") and name != "rejected"


def ignore_lease_breaks() -> None:
    """Somebody opening a file while its lease is asked for sends SIGIO, which would end the process.

    Only the main thread can say so; what works in others begins with it.
    """
    if hasattr(signal, "SIGIO") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGIO, signal.SIG_IGN)


def peek(path: Path, limits: SeedSettings) -> Peek:
    """Look at one entry of pipeline-pending/ without changing it.

    Raises:
        SeedRejected: It can never become a run.
        FileNotFoundError: It has gone meanwhile.
    """
    info = os.lstat(path)
    if stat.S_ISDIR(info.st_mode):
        return _peek_folder(path, info, limits)
    if stat.S_ISLNK(info.st_mode):
        raise SeedRejected("a symbolic link is no seed", where=path.name, hint="copy the file itself")
    if not stat.S_ISREG(info.st_mode):
        raise SeedRejected("a pipe, socket or device is no seed", where=path.name)
    if path.suffix.lower() == ".zip":
        return _peek_zip(path, info, limits)
    return _peek_json(path, info, limits)


def _signature(info: os.stat_result) -> tuple[Any, ...]:
    return (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)


def _read_settled(path: Path, info: os.stat_result, max_mb: float) -> bytes | Incomplete:
    """The file's bytes, once nobody has it open for writing."""
    try:
        fd = open_regular(path, max_bytes=1 << 62)
    except NotAFile as error:
        raise SeedRejected(error.message, where=path.name) from None
    with os.fdopen(fd, "rb") as file:
        if is_written(file.fileno(), info):
            return Incomplete("somebody is still writing it", _signature(info))
        if info.st_size > max_mb * MB:
            hint = "raise [seeds] max_mb in pop.toml, or drop a folder with the large files beside seed.json"
            message = f"{info.st_size / MB:.1f} MB is more than the limit of {max_mb:g} MB"
            raise SeedRejected(message, where=path.name, hint=hint, code="seed-too-large")
        return file.read()


def is_written(fd: int, info: os.stat_result) -> bool:
    """Whether somebody has the file open for writing, as far as the kernel tells.

    Without leases (other systems, network file systems, a file of another user) it is whether the file changed
    within the last second.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EAGAIN:
            return True
        return 0 <= time.time() - info.st_mtime < 1.0
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _peek_json(path: Path, info: os.stat_result, limits: SeedSettings) -> Peek:
    data = _read_settled(path, info, limits.max_mb)
    if isinstance(data, Incomplete):
        return data
    try:
        seed = parse_seed(data, where=path.name)
    except SeedRejected as error:
        if error.code == BadJson.code and is_a_beginning(data):
            return Incomplete("it ends in the middle: waiting for the rest", _signature(info), cut_off=True)
        raise
    return Ready(path.name, seed, info.st_ctime_ns)


def _peek_folder(path: Path, info: os.stat_result, limits: SeedSettings) -> Peek:
    entries = sorted(folder_entries(path, limits))
    newest = max([info.st_mtime, *(mtime for _, _, mtime in entries)])
    signature = (tuple(entries), info.st_mtime_ns)
    age = time.time() - newest
    if "seed.json" not in (name for name, _, _ in entries):
        if 0 <= age < FOLDER_WITHOUT_SEED_S:
            return Incomplete("a folder that holds no seed.json yet", signature)
        raise SeedRejected("the folder holds no seed.json", where=path.name, hint="put a seed.json into it")
    if 0 <= age < limits.settle_s:
        return Incomplete("its files have just changed", signature)
    inner = path / "seed.json"
    found = _peek_json(inner, os.lstat(inner), limits)
    return Ready(path.name, found.seed, info.st_ctime_ns) if isinstance(found, Ready) else found


def folder_entries(folder: Path, limits: SeedSettings) -> list[tuple[str, int, float]]:
    """Every file below `folder` as (relative path, size in bytes, mtime), links and special files refused.

    Raises:
        SeedRejected: Too many files, too large, or something that is no regular file.
    """
    found: list[tuple[str, int, float]] = []
    total = 0
    for parent, folders, files in os.walk(folder, followlinks=False):
        for name in [*folders, *files]:
            path = Path(parent, name)
            relative = str(path.relative_to(folder))
            info = os.lstat(path)
            if stat.S_ISDIR(info.st_mode):
                continue
            if not stat.S_ISREG(info.st_mode):
                raise SeedRejected(f"{relative!r} is no regular file", where=folder.name, hint="copy the file itself")
            total += info.st_size
            found.append((relative, info.st_size, info.st_mtime))
            _check_totals(len(found), total, limits, folder.name)
    return found


def _check_totals(count: int, total_bytes: int, limits: SeedSettings, where: str) -> None:
    if count > limits.max_files:
        hint = "raise [seeds] max_files in pop.toml"
        raise SeedRejected(f"more than {limits.max_files} files", where=where, hint=hint, code="seed-too-large")
    if total_bytes > limits.max_files_mb * MB:
        hint = "raise [seeds] max_files_mb in pop.toml"
        message = f"more than {limits.max_files_mb:g} MB of files"
        raise SeedRejected(message, where=where, hint=hint, code="seed-too-large")


def _peek_zip(path: Path, info: os.stat_result, limits: SeedSettings) -> Peek:
    with open_archive(path) as file:
        if is_written(file.fileno(), info):
            return Incomplete("somebody is still writing it", _signature(info))
        head = file.read(4)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = zip_entries(archive, limits, path.name)
                data = read_entry(archive, entries["seed.json"])
        except (*BROKEN_ZIP, OSError, ValueError) as error:
            if "File is not a zip file" in str(error) and b"PK\x03\x04".startswith(head):  # its end is missing
                return Incomplete("it ends in the middle: waiting for the rest", _signature(info), cut_off=True)
            raise SeedRejected(f"it cannot be unpacked: {error}", where=path.name) from None
    return Ready(path.name, parse_seed(data, where=f"{path.name}/seed.json"), info.st_ctime_ns)


class _Archive(io.BufferedReader):
    """A zip file whose list of entries is read only when it is not too long: each costs memory, whatever its size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MOST_LIST_BYTES:
            raise zipfile.BadZipFile("its list of entries is too long")
        return super().read(size)


def open_archive(path: Path) -> BinaryIO:
    """A zip file to read from; `zip_entries` looks at what it says, `entry_pieces` reads it.

    Raises:
        NotAFile: It is no regular file.
    """
    return _Archive(io.FileIO(open_regular(path, max_bytes=1 << 62)))


def entry_pieces(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """What an entry holds, in small pieces: whatever its header tells, no more of it is ever in memory.

    Raises:
        SeedRejected: It is more than its header tells.
    """
    left = entry.file_size
    with archive.open(entry) as reader:
        while piece := reader.read(min(ZIP_PIECE_BYTES, left + 1)):
            left -= len(piece)
            if left < 0:
                raise SeedRejected(f"the entry {entry.filename[:120]!r} is larger than it says")
            yield piece


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The whole of an entry; its size was looked at by `zip_entries`."""
    return b"".join(entry_pieces(archive, entry))


def zip_entries(archive: zipfile.ZipFile, limits: SeedSettings, where: str) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by their safe relative name; names, sizes, ratios and kinds are checked before any byte.

    Raises:
        SeedRejected: Anything that leaves the folder, is no plain file, is encrypted, or expands too much.
    """
    entries: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for entry in archive.infolist():
        name = entry.filename
        if name.endswith("/"):
            continue
        mode = entry.external_attr >> 16
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in name or not name.isprintable() or ":" in parts[0]:
            raise SeedRejected(f"the entry {name[:120]!r} is not a plain relative path", where=where)
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise SeedRejected(f"the entry {name[:120]!r} is no regular file", where=where)
        if entry.flag_bits & 1:
            raise SeedRejected(f"the entry {name[:120]!r} is encrypted", where=where)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others expand without bounds
            hint = "pack it with deflate, as `zip` does by itself"
            raise SeedRejected(f"the entry {name[:120]!r} is not packed with deflate", where=where, hint=hint)
        if name in entries:
            raise SeedRejected(f"the entry {name[:120]!r} stands twice", where=where)
        if any(len(part.encode()) > 255 for part in parts):
            raise SeedRejected(f"the entry {name[:40]!r}... has too long a name", where=where)
        total += entry.file_size
        if entry.file_size > MB and entry.file_size > limits.max_ratio * max(1, entry.compress_size):
            raise SeedRejected(f"the entry {name[:120]!r} expands more than {limits.max_ratio:g} times", where=where)
        entries[name] = entry
        _check_totals(len(entries), total, limits, where)
    if "seed.json" not in entries:
        raise SeedRejected("the archive holds no seed.json", where=where, hint="put seed.json at its top")
    if entries["seed.json"].file_size > limits.max_mb * MB:
        raise SeedRejected(f"seed.json is larger than {limits.max_mb:g} MB", where=where, code="seed-too-large")
    return entries


@dataclass(frozen=True)
class Refusal:
    """An entry of pipeline-pending/ that must move to rejected/."""

    file_name: str
    error: SeedRejected


class PendingQueue:
    """Remembers what was seen in pipeline-pending/ and hands out the best seed first."""

    def __init__(self, root: Root, limits: SeedSettings) -> None:
        self._folder = root.pending
        self._limits = limits
        self._heap: list[tuple[int, int, str]] = []
        self._later: list[tuple[float, int, int, str]] = []
        self._known: set[str] = set()
        self._incomplete: dict[str, Incomplete] = {}
        self._folder_mtime_ns = -1
        self._overflow = False

    def __len__(self) -> int:
        return len(self._heap) + len(self._later)

    @property
    def next_due_s(self) -> float | None:
        """Unix time at which the next `not_before` is over."""
        return self._later[0][0] if self._later else None

    def scan(self, *, forced: bool = False) -> list[Refusal]:
        """Look for new and changed entries; returns those to be refused.

        Costs one stat of the folder when nothing changed and nothing is incomplete.
        """
        names = self._changed_names(forced)
        refusals = []
        for name in names:
            refusal = self._look(name)
            if refusal:
                refusals.append(refusal)
        return refusals

    @property
    def is_quiet(self) -> bool:
        """Whether `scan` would find nothing to look at. Costs one stat."""
        return not self._incomplete and self._is_unchanged(os.stat(self._folder).st_mtime_ns)

    def _is_unchanged(self, mtime_ns: int) -> bool:
        room = self._overflow and len(self._heap) < HEAP_LIMIT // 2
        return mtime_ns == self._folder_mtime_ns and time.time_ns() - mtime_ns > 2_000_000_000 and not room

    def _changed_names(self, forced: bool) -> list[str]:
        mtime_ns = os.stat(self._folder).st_mtime_ns
        if self._is_unchanged(mtime_ns) and not forced:
            return list(self._incomplete)
        self._folder_mtime_ns = mtime_ns
        self._overflow = False
        present = {name for name in os.listdir(self._folder) if is_candidate(name)}
        self._known &= present
        for gone in self._incomplete.keys() - present:
            del self._incomplete[gone]
        return [name for name in present if name not in self._known]

    def _look(self, name: str) -> Refusal | None:
        path = self._folder / name
        if len(self) >= HEAP_LIMIT:
            self._overflow = True
            return None
        try:
            info = os.lstat(path)
            known = self._incomplete.get(name)
            if not _may_be_seed(path, info) or (known and known.cut_off and known.signature == _signature(info)):
                return None
            _check_file_name(name)
            found = peek(path, self._limits)
        except SeedRejected as error:
            self._incomplete.pop(name, None)
            return Refusal(name, error)
        except FileNotFoundError:
            self._incomplete.pop(name, None)
            return None
        except OSError as error:
            found = Incomplete(f"cannot be read: {error.strerror}", ())
        except Exception as error:  # no seed may end the daemon
            return Refusal(name, SeedRejected(f"it cannot be read: {type(error).__name__}: {error}", where=name))
        if isinstance(found, Incomplete):
            self._incomplete[name] = found
            return None
        self._incomplete.pop(name, None)
        self._add(found)
        return None

    def _add(self, ready: Ready) -> None:
        self._known.add(ready.file_name)
        due = ready.not_before_s
        if due is not None and due > time.time():
            heapq.heappush(self._later, (due, -ready.seed.priority, ready.arrived_ns, ready.file_name))
        else:
            heapq.heappush(self._heap, (-ready.seed.priority, ready.arrived_ns, ready.file_name))

    def next_name(self, now: float) -> str | None:
        """The name of the best seed that is due; it is handed out once."""
        while self._later and self._later[0][0] <= now:
            _, priority, arrived, name = heapq.heappop(self._later)
            heapq.heappush(self._heap, (priority, arrived, name))
        return heapq.heappop(self._heap)[2] if self._heap else None

    def forget(self, name: str) -> None:
        """The entry was claimed, refused or is gone: the same name may come again."""
        self._known.discard(name)

    def remember(self, name: str) -> None:
        """Leave this entry alone until `forget` (it waits for something else than its writer)."""
        self._known.add(name)

    def rescan(self) -> None:
        """Take the next scan for a change of the whole folder."""
        self._folder_mtime_ns = -1

    def look_at(self, names: Iterable[str]) -> list[Refusal]:
        """Look at entries the kernel hinted at, without listing the folder."""
        found = (self._look(name) for name in names if is_candidate(name) and name not in self._known)
        return [refusal for refusal in found if refusal]


def _may_be_seed(path: Path, info: os.stat_result) -> bool:
    """Regular files must end in .json or .zip; others (editors' and copiers' temporary names) are left alone."""
    return path.suffix.lower() in (".json", ".zip") or not stat.S_ISREG(info.st_mode)


def _check_file_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SeedRejected("its file name is not UTF-8", hint="rename it", code="bad-name") from None
