"""Statuses of runs with very many instances, read in pieces: as much of them as a page shows, in bounded memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from pop.runs import MOST_STATUS_BYTES, Run
from pop.store import NotAFile, open_regular

LARGE_BYTES = 16 * 2**20  # about 20,000 instances
MOST_QUIET, MOST_PRESSING = 5_000, 1_000
_QUIET = (b"done", b"skipped", b"pending")
_TASK = re.compile(rb'^    "(?:[^"\\\n]|\\.)*": \{\n      "state": "(\w+)"', re.MULTILINE)
_END = b"\n    },\n"


def thinned(run: Run) -> dict[str, Any] | None:
    """The status with its first instances and those that failed, wait or run; `left_out` says how many more there are.

    None where the file is not large, or not as the daemon writes it: then it is read whole.
    """
    try:
        with os.fdopen(open_regular(run.path / "tasks-status.json", max_bytes=MOST_STATUS_BYTES), "rb") as file:
            return _thinned(file) if os.fstat(file.fileno()).st_size > LARGE_BYTES else None
    except (OSError, NotAFile, ValueError):
        return None


def _thinned(file: BinaryIO) -> dict[str, Any] | None:
    first = file.read(2**20)
    head, mark, rest = first.partition(b',\n  "tasks": {\n')
    if not mark:
        return None
    status: dict[str, Any] = orjson.loads(head + b"}")
    tasks: dict[str, Any] = {}
    quiet = pressing = count = 0
    for state, block in _blocks(file, rest):
        count += 1
        if state in _QUIET:
            quiet += 1
            if quiet > MOST_QUIET:
                continue
        else:
            pressing += 1
            if pressing > MOST_PRESSING:
                continue
        tasks |= orjson.loads(b"{" + block + b"}")
    return {**status, "tasks": tasks, "left_out": count - len(tasks)} if isinstance(status.get("state"), str) else None


def _blocks(file: BinaryIO, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The instances, each with its state."""
    while True:
        piece = file.read(2**20)
        whole = data.rfind(_END) + len(_END) - 1 if piece and _END in data else 0 if piece else len(data)
        found = list(_TASK.finditer(data, 0, whole))
        for one, after in zip(found, [*found[1:], None], strict=True):
            end = after.start() if after else whole
            end = data.index(b"\n    }", one.start(), end + 1) + len(b"\n    }")
            yield one[1], data[one.start() : end]
        if not piece:
            return
        data = data[whole:] + piece
