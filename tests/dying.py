"""`pop up` that kills itself before the n-th change it makes to the files of one run.

POP_DYING is ``{"run": "-s3-", "after": "\\"lap.ended\\"", "number": 7}``: changes are counted from the first one on whose
path or bytes hold `after`. A write that is due is torn: its beginning is written, or its first line (`lines`). Drafts
(*.tmp), the status and fsyncs do not count: a kill there leaves what a kill at the next change leaves. `count` in the
root's ``dying.log`` tells what was counted.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from pop import admission, gateanswers, gates, ledger, store
from pop.cli import main

ORDER = json.loads(os.environ["POP_DYING"])
LOG = os.open(os.environ["POP_DYING_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
REAL = {name: getattr(os, name) for name in ("write", "rename", "replace", "link", "unlink", "mkdir", "rmdir")}
REAL["remove"] = os.unlink
NOREPLACE = store.rename_noreplace
_lock = threading.Lock()
_counted = 0
_begun = not ORDER["after"]


def _path(path: Any, dir_fd: int | None = None) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    return text if dir_fd is None else os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)


def note(call: str, paths: list[str], fd: int | None = None, data: bytes = b"") -> None:
    """One change is about to be made."""
    global _counted, _begun
    text = " ".join(paths)
    if ORDER["run"] not in text and ORDER["run"].encode() not in data:
        return
    if (call == "write" and ".tmp" in text) or "tasks-status.json" in text or "/log/" in text or "answers.db" in text:
        return
    with _lock:
        _begun = _begun or ORDER["after"] in text or ORDER["after"].encode() in data
        if not _begun:
            return
        _counted += 1
        REAL["write"](LOG, f"{_counted} {call} {text}\n".encode())
        if _counted != ORDER["number"]:
            return
        if fd is not None:
            first = data.find(b"\n") + 1
            REAL["write"](fd, data[:first] if ORDER["lines"] and 0 < first < len(data) else data[:20])
        os.kill(os.getpid(), signal.SIGKILL)


def write(fd: int, data: Any) -> int:
    path = _path(fd)
    if path.startswith("/"):
        note("write", [path], fd, bytes(data))
    written: int = REAL["write"](fd, data)
    return written


def on_one(name: str) -> Any:
    def call(path: Any, *rest: Any, dir_fd: int | None = None, **more: Any) -> Any:
        note(name, [_path(path, dir_fd)])
        return REAL[name](path, *rest, dir_fd=dir_fd, **more)

    return call


def on_two(name: str) -> Any:
    def call(source: Any, target: Any, **more: Any) -> Any:
        note(name, [_path(source, more.get("src_dir_fd")), _path(target, more.get("dst_dir_fd"))])
        return REAL[name](source, target, **more)

    return call


def rename_noreplace(source: Path, target: Path) -> None:
    note("rename_noreplace", [str(source), str(target)])
    NOREPLACE(source, target)


def arm() -> None:
    os.write = write
    for name in ("unlink", "mkdir", "rmdir", "remove"):
        setattr(os, name, on_one(name))
    for name in ("rename", "replace", "link"):
        setattr(os, name, on_two(name))
    for module in (admission, gateanswers, gates, ledger, store):
        module.rename_noreplace = rename_noreplace  # type: ignore[attr-defined]


if __name__ == "__main__":
    arm()
    main()
