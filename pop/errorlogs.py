"""Where the processes of a daemon write their errors: ``.pop/log/<name>.err``, for a person to read when one died."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

MOST_BYTES = 10_000_000  # then it begins anew with the next life


def open_error_log(machine_room: Path, name: str) -> BinaryIO:
    """``<name>.err``, open at its end. A process that cannot keep its last words still has to live: where the folder was
    removed it is made again, and where the file takes nothing (a full disk, no file at all) they go nowhere.

    Raises:
        OSError: The machine room itself is gone, or there are too many open files.
    """
    folder = machine_room / "log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(folder / f"{name}.err", flags, 0o600)
    except FileNotFoundError:
        raise
    except OSError:
        fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.set_blocking(fd, True)
    if os.fstat(fd).st_size > MOST_BYTES:
        os.ftruncate(fd, 0)
    return os.fdopen(fd, "ab")
