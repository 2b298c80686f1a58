"""The ledger of model calls: one line per request that went out, in ``pipeline-complete/calls/<YYYY-MM-DD>.jsonl`` (UTC).

It is the truth about what was spent: append-only, durable before an answer is handed out. Everything else that tells a
sum (the store's table, the status of a run, `pop cost`) is folded from these files. A line that is none of ours, or that a
power cut tore, is passed over.

Money is added up in billionths of a USD, as whole numbers, so that all sums agree to the last digit.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BeforeValidator, Field, ValidationError

from pop.records import Record
from pop.store import Disk, open_regular, write_all

ANSWER, LOST = "answer", "lost"
MAX_LINE_BYTES = 65536
_MAX_NANO = 10**15  # a million USD for one call
_DAY_FILE = re.compile(r"(\d{4}-\d\d-\d\d)\.jsonl")


def _plain(value: Any) -> Any:
    """A server may say anything: clipped, and without what no UTF-8 has."""
    if not isinstance(value, str) or (len(value) <= 200 and value.isascii()):
        return value
    return value[:200].encode("utf-8", "replace").decode()


Text = Annotated[str, BeforeValidator(_plain)]
Count = Annotated[int, Field(ge=0, le=10**12)]


class CallLine(Record):
    """One request that went out to a model.

    `id` is its own alone. `outcome` is ``answer``, the class of the error, or ``lost`` (the gateway ended before it knew:
    the tokens are our estimate). `billed` says that the provider counts it, or may. `cost_usd` is None when nobody knows
    the price; `prices` names the table. `at` is the UTC time at which it went out, and its day that of the file and the budget.
    """

    id: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.:-]+$")]
    at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$")]
    run_id: Text
    pipeline: Text = ""
    step: Text = ""
    instance: Text = ""
    attempt: int = 0
    key: Text = ""
    model: Text
    provider: Text = ""
    provider_model: Text = ""
    outcome: Text = ANSWER
    billed: bool = True
    input_tokens: Count = 0
    output_tokens: Count = 0
    cached_input_tokens: Count = 0
    reasoning_tokens: Count = 0
    estimated: bool = False
    cost_usd: Annotated[float, Field(ge=0, le=_MAX_NANO / 10**9, allow_inf_nan=False)] | None = None
    prices: Text | None = None
    ms: float = 0.0

    @property
    def day(self) -> str:
        """``YYYY-MM-DD``, UTC."""
        return self.at[:10]


def nano(usd: float) -> int:
    """USD in billionths, as a whole number."""
    return round(usd * 10**9)


def usd(nanos: int) -> float:
    """Billionths in USD."""
    return nanos / 10**9


@dataclass(slots=True)
class Sum:
    """What some calls came to. `nano_usd` leaves out the `unpriced` ones; `estimated` are those nobody counted for us."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    nano_usd: int = 0
    unpriced: int = 0
    estimated: int = 0

    def add(self, line: CallLine) -> None:
        """Count one line; one that was not billed counts for nothing."""
        if not line.billed:
            return
        self.calls += 1
        self.input_tokens += line.input_tokens
        self.output_tokens += line.output_tokens
        self.cached_input_tokens += line.cached_input_tokens
        self.reasoning_tokens += line.reasoning_tokens
        self.estimated += line.estimated
        if line.cost_usd is None:
            self.unpriced += 1
        else:
            self.nano_usd += nano(line.cost_usd)

    def plus(self, other: Sum) -> None:
        """Add another sum."""
        for name in Sum.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens


# What a budget bounds: ("step", run_id, step), ("run", run_id), ("pipeline", name, day) or ("day", day).
Scope = tuple[str, ...]


# -- the day files -----------------------------------------------------------------------------------------------------


def day_files(folder: Path, *, since: str = "", until: str = "9") -> list[Path]:
    """The ledger's files, oldest first, of the days from `since` to `until`, both included."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    days = (match[1] for name in names if (match := _DAY_FILE.fullmatch(name)))
    return [folder / f"{day}.jsonl" for day in sorted(days) if since <= day <= until]


def calls_in(path: Path, start_bytes: int = 0) -> Iterator[tuple[int, CallLine | None]]:
    """Every whole line of a day file from an offset on: where it ends, and the call (None: it is no line of ours).

    Raises:
        OSError, NotAFile: The file cannot be read.
    """
    end = start_bytes
    for line in _whole_lines(path, start_bytes):
        end += len(line) if isinstance(line, bytes) else line
        try:
            yield end, CallLine.model_validate_json(line) if isinstance(line, bytes) else None
        except ValidationError:
            yield end, None


def ids_in(path: Path) -> Iterator[str]:
    """The ids of a day file's lines (`id` is the first key that `append_calls` writes)."""
    for line in _whole_lines(path, 0):
        if isinstance(line, bytes) and line.startswith(b'{"id":"'):
            yield line[7 : line.index(b'"', 7)].decode("ascii", "replace")


def _whole_lines(path: Path, start_bytes: int) -> Iterator[bytes | int]:
    """Lines with their newline; of one that is too long to be ours, only its length."""
    with os.fdopen(open_regular(path, max_bytes=1 << 62), "rb", buffering=1 << 18) as file:
        file.seek(start_bytes)
        while part := file.readline(MAX_LINE_BYTES):
            if part.endswith(b"\n"):
                yield part
                continue
            size = len(part)
            while not part.endswith(b"\n"):
                part = file.readline(MAX_LINE_BYTES)
                if not part:
                    return  # the torn end of the file
                size += len(part)
            yield size


def append_calls(disk: Disk, folder: Path, lines: Sequence[CallLine]) -> list[Path]:
    """Append lines to the files of their days, durably; returns the files. All lines stand there, or none.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
        DiskFailed: The kernel lost data.
    """
    by_day: dict[str, list[bytes]] = {}
    for line in lines:
        by_day.setdefault(line.day, []).append(line.model_dump_json().encode() + b"\n")
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk.sync_folder(folder.parent)
    done: list[tuple[Path, int]] = []
    try:
        for day, rows in by_day.items():
            path = folder / f"{day}.jsonl"
            size_bytes, is_torn = _tail(path)
            done.append((path, size_bytes))
            disk.append(path, b"\n" * is_torn + b"".join(rows))
            if size_bytes == 0:
                disk.sync_folder(folder)
    except OSError:
        for path, size_bytes in done:
            with contextlib.suppress(OSError):
                os.truncate(path, size_bytes)
        raise
    return [path for path, _ in done]


def _tail(path: Path) -> tuple[int, bool]:
    """The size, and whether a power cut tore the last line (what remains of it is closed, not cut: this is about money)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0, False
    try:
        size_bytes = os.fstat(fd).st_size
        return size_bytes, size_bytes > 0 and os.pread(fd, 1, size_bytes - 1) != b"\n"
    finally:
        os.close(fd)


# -- what is under way -------------------------------------------------------------------------------------------------


class InFlight:
    """``.pop/in-flight.jsonl``: a line for each request before it goes out, so that a kill loses sight of none.

    It is not fsynced. A request is over when the ledger has a line with its id, or a line ``{"closed": id}`` stands here.
    The file is emptied, or written anew with what is open, whenever it grew beyond `MAX_BYTES`.
    """

    MAX_BYTES = 2**20

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: dict[str, bytes] = {}
        self._fd = -1
        self._size_bytes = 0
        self._room_bytes = self.MAX_BYTES

    def __len__(self) -> int:
        return len(self._open)

    def left(self) -> dict[str, CallLine]:
        """What an earlier life of the gateway left open here, by id; whether the ledger knows of it is not looked at."""
        found: dict[str, CallLine] = {}
        try:
            for line in _whole_lines(self._path, 0):
                if not isinstance(line, bytes):
                    continue
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    value = orjson.loads(line)
                    if "closed" in value:
                        found.pop(value["closed"], None)
                    else:
                        intent = CallLine.model_validate(value)
                        found[intent.id] = intent
        except FileNotFoundError:
            pass
        return found

    def start(self) -> None:
        """Begin with an empty file."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, 0)

    def begin(self, line: CallLine) -> None:
        """Note a request that is about to go out.

        Raises:
            OSError: It cannot be noted.
        """
        data = line.model_dump_json().encode() + b"\n"
        self._append(data)
        self._open[line.id] = data

    def forget(self, call_id: str) -> None:
        """The request never reached anybody who would count it."""
        if self._open.pop(call_id, None) is not None:
            with contextlib.suppress(OSError):
                self._append(orjson.dumps({"closed": call_id}) + b"\n")

    def end(self, call_ids: Iterable[str]) -> None:
        """These stand in the ledger now, durably. Called from the writer's thread."""
        for call_id in call_ids:
            self._open.pop(call_id, None)

    def _append(self, data: bytes) -> None:
        if self._size_bytes > self._room_bytes:
            self._shorten()
        try:
            write_all(self._fd, data)
        except OSError:
            os.ftruncate(self._fd, self._size_bytes)
            raise
        self._size_bytes += len(data)

    def _shorten(self) -> None:
        still = b"".join(list(self._open.values()))
        if not still:
            os.ftruncate(self._fd, 0)
        else:
            Disk(durable=False).put(self._path, still)
            os.close(self._fd)
            self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._size_bytes = len(still)
        self._room_bytes = max(self.MAX_BYTES, 2 * len(still))

    def close(self) -> None:
        """Empty the file when nothing is open."""
        if self._fd >= 0:
            if not self._open:
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1
