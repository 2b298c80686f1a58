"""Token counts as inputs of an instance: what was counted once is not counted otherwise later.

The gateway corrects its estimates while it works. So each number is written down by the attempt that asked for it, and
what it decided (whether a text is condensed, where it is cut) comes out alike in the next attempt and in a replay:

    attempts/<n>/counts.jsonl: {"asked", "model", "sha256", "tokens", "exact"}    the sha256 is that of the text
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from pop.errors import PopError
from pop.models.tokens import estimate_tokens
from pop.store import open_regular

FILE = "counts.jsonl"
MOST_COUNTS = 10_000  # of an instance, in less than 4 MB; what it counts after them is not written down
MAX_LINE_BYTES = 2_000

Ask = Callable[[str, str, str], tuple[int, bool] | None]


class Count(BaseModel):
    """One line of counts.jsonl. `asked` is the model's name as the task said it, `model` what the run means by it."""

    asked: str
    model: str
    sha256: str
    tokens: int
    exact: bool = False


class Counts:
    """What an attempt and those before it have counted.

    Args:
        folder: Of the attempt.
        write: Appends a line to one of its files.
        full: Called once, when there are more counts than are written down.
    """

    def __init__(self, folder: Path, write: Callable[[str, dict[str, Any]], None], full: Callable[[], None]) -> None:
        self._write = write
        self._full: Callable[[], None] | None = full
        self._known: dict[tuple[str, str, str], int] = {}
        number = int(folder.name) if folder.name.isdecimal() else 0
        for row in read_counts(folder.parent, before=number):
            self._known.setdefault((row.asked, row.model, row.sha256), row.tokens)

    def count(self, text: str, asked: str, model: str, ask: Ask | None) -> int:
        """Tokens of a text: as they were counted before, else as `ask` counts them, else by the plain estimate."""
        key = (asked, model, text_sha256(text))
        if key in self._known:
            return self._known[key]
        found = ask(text, model, asked) if ask else None
        tokens, exact = found or (estimate_tokens(text), False)
        if len(self._known) >= MOST_COUNTS:
            if self._full:
                self._full()
                self._full = None
            return tokens if exact else estimate_tokens(text)  # neither of which the next attempt finds changed
        self._known[key] = tokens
        self._write(FILE, {"asked": asked, "model": model, "sha256": key[2], "tokens": tokens, "exact": exact})
        return tokens


def text_sha256(text: str) -> str:
    """What a text is known by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_counts(attempts: Path, *, before: int | None = None) -> Iterator[Count]:
    """The counts of an instance's attempts, oldest first, at most `MOST_COUNTS`; torn and odd lines are passed over.

    Args:
        attempts: The folder of the attempts.
        before: Only the attempts below this number.
    """
    left = MOST_COUNTS
    for folder in _numbered(attempts):
        if before is not None and int(folder.name) >= before:
            return
        for line in _lines(folder / FILE, left):
            left -= 1
            try:
                yield Count.model_validate(orjson.loads(line))
            except (ValueError, ValidationError):
                continue


def counts_signature(attempts: Path) -> tuple[Any, ...]:
    """Changes when a count is added."""
    found = []
    for folder in _numbered(attempts):
        try:
            info = os.stat(folder / FILE)
        except OSError:
            continue
        found.append((folder.name, info.st_mtime_ns, info.st_size, info.st_ino))
    return tuple(found)


def _numbered(attempts: Path) -> list[Path]:
    try:
        numbers = sorted(int(name) for name in os.listdir(attempts) if name.isascii() and name.isdecimal())
    except OSError:
        return []
    return [attempts / str(number) for number in numbers]


def _lines(path: Path, most: int) -> Iterator[bytes]:
    try:
        file = os.fdopen(open_regular(path, max_bytes=1 << 62), "rb")
    except (OSError, PopError):
        return
    with file:
        for _ in range(most):
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            yield line
