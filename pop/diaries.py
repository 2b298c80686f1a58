"""What the attempts of a run wrote down, as far as a page needs it: when they waited, what their calls came to.

Files are read within limits and without following links; what is no line of JSON is passed over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pop.records import objects_in
from pop.timeline import Diary, diary_of

MAX_DIARY = 4 * 2**20  # of trail.jsonl, and of calls.jsonl
KEPT = 8_000  # attempts whose diaries are remembered, a few kB each


@dataclass
class ModelSum:
    """What the calls to one model came to, as the workers wrote it down."""

    calls: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0
    failed: int = 0
    ms: float = 0.0

    def plus(self, other: ModelSum) -> None:
        self.calls += other.calls
        self.cached += other.cached
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cost_usd += other.cost_usd
        self.unpriced += other.unpriced
        self.failed += other.failed
        self.ms += other.ms


@dataclass(frozen=True)
class Wrote:
    """What one attempt wrote down, as far as the run's page needs it."""

    diary: Diary = field(default_factory=Diary)
    models: Mapping[str, ModelSum] = field(default_factory=dict)
    size: int = 0


class Diaries:
    """Attempts' diaries, remembered while their files stay as they are."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[int, ...], Wrote]] = {}

    def of(self, attempt: str, *, over: bool = False) -> Wrote:
        """Of the attempt's folder; one that is `over` is not looked at again."""
        known = self._kept.get(attempt)
        names = (f"{attempt}/trail.jsonl", f"{attempt}/calls.jsonl")
        signature = () if over else tuple(part for name in names for part in _signature(name))
        if known and known[0] == signature:
            return known[1]
        trail, calls = (beginning(name, MAX_DIARY)[0] for name in names)
        rows = list(json_lines(calls))
        wrote = Wrote(diary_of(json_lines(trail), rows), sums_of(rows), len(trail) + len(calls))
        if len(self._kept) >= KEPT:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[attempt] = (signature, wrote)
        return wrote


def _signature(path: str) -> tuple[int, int]:
    try:
        info = os.lstat(path)
    except OSError:
        return (0, -1)
    return (info.st_mtime_ns, info.st_size)


def beginning(path: Path | str, most: int, *, end: bool = False) -> tuple[bytes, int]:
    """At most so many bytes from the beginning of a regular file, or from its end, and its size; ``(b"", -1)`` where
    there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b"", -1
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return b"", -1
        return os.pread(fd, min(most, info.st_size + 4096), max(0, info.st_size - most) if end else 0), info.st_size
    except OSError:
        return b"", -1
    finally:
        os.close(fd)


def json_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file; what is none, or torn, is passed over."""
    return objects_in(data.split(b"\n"))


def sums_of(calls: list[dict[str, Any]]) -> dict[str, ModelSum]:
    """By the model that answered: ``fast (qwen3:8b)``."""
    sums: dict[str, ModelSum] = {}
    for call in calls:
        provider_model = call.get("provider_model")
        name = f"{call.get('model')} ({provider_model})" if provider_model else str(call.get("model"))
        one = sums.setdefault(name, ModelSum())
        if call.get("error_class"):
            one.failed += 1
        elif call.get("cached"):
            one.cached += 1
        else:
            one.calls += 1
            one.input_tokens += whole(call.get("input_tokens"))
            one.output_tokens += whole(call.get("output_tokens"))
            one.ms += real(call.get("ms"))
            one.unpriced += call.get("cost_usd") is None
            one.cost_usd += real(call.get("cost_usd"))
    return sums


def whole(value: object) -> int:
    """A count; 0 where it is none."""
    return value if isinstance(value, int) and value > 0 else 0


def real(value: object) -> float:
    """A positive number; 0 where it is none."""
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0
