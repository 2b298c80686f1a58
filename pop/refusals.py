"""Seeds that were refused, as they lie in pipeline-pending/rejected/: what they are, and why. It never writes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from pop.admission import reason_path
from pop.records import deeper_than, printable
from pop.settings import Root
from pop.store import NotAFile, read_regular

SUFFIX = ".reason.json"
KEYS = ("code", "message", "where", "hint", "at", "name")
MOST_REASON_BYTES = 2**20
MOST_TEXT_BYTES = 100_000
MOST_FILES = 100

Kind = Literal["file", "folder", "zip", "gone", "other"]


@dataclass(frozen=True)
class Refusal:
    """A seed that was refused.

    `key` is what its reason is called, without ``.reason.json``. `reason` has all of KEYS. `text` is that of its JSON, where
    that is no more than 100 kB of UTF-8; `files` are the paths in a folder.
    """

    key: str
    kind: Kind
    path: Path
    reason: dict[str, str | None]
    text: str | None = None
    size: int | None = None
    files: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it was called in the queue."""
        return self.reason["name"] or self.key


def refusal_keys(root: Root) -> list[str]:
    """Of all that was refused, sorted."""
    try:
        names = os.listdir(root.rejected)
    except OSError:
        return []
    return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX) and not name.startswith("."))


def refusal(root: Root, key: str) -> Refusal | None:
    """The refused seed of this key; None where there is none."""
    if not key or "/" in key or "\0" in key or key.startswith("."):
        return None
    try:
        if not os.path.lexists(root.rejected / f"{key}{SUFFIX}"):
            return None
    except (OSError, ValueError):
        return None
    path = _seed_of(root, key)
    kind, size = _kind(path)
    inner = path / "seed.json" if kind == "folder" else path
    text = _text(inner) if kind in ("file", "folder") else None
    files = _files(path) if kind == "folder" else []
    return Refusal(key, kind, path, reason_of(root, key), text, size, files)


def reason_of(root: Root, key: str) -> dict[str, str | None]:
    """Why, as texts: somebody may have written anything there."""
    unread: dict[str, str | None] = {**dict.fromkeys(KEYS), "message": "its reason cannot be read"}
    try:
        found: Any = orjson.loads(read_regular(root.rejected / f"{key}{SUFFIX}", max_bytes=MOST_REASON_BYTES))
        if not isinstance(found, dict) or deeper_than(found, 5):
            return unread
    except (OSError, NotAFile, ValueError):
        return unread
    return {name: None if found.get(name) is None else str(found[name]) for name in KEYS}


def _seed_of(root: Root, key: str) -> Path:
    """Where it lies: under the key, unless its name was too long for a reason of that name."""
    path = root.rejected / key
    if os.path.lexists(path) or len(key) != 64:
        return path
    try:
        names = [name for name in os.listdir(root.rejected) if len(os.fsencode(name)) + len(SUFFIX) > 255]
    except OSError:
        return path
    return next((path for name in names if reason_path(path := root.rejected / name).name == f"{key}{SUFFIX}"), path)


def _kind(path: Path) -> tuple[Kind, int | None]:
    try:
        info = os.lstat(path)
    except OSError:
        return "gone", None
    if stat.S_ISDIR(info.st_mode):
        return "folder", None
    if not stat.S_ISREG(info.st_mode):
        return "other", None
    return ("zip" if path.suffix.lower() == ".zip" else "file"), info.st_size


def _text(path: Path) -> str | None:
    try:
        return read_regular(path, max_bytes=MOST_TEXT_BYTES).decode()
    except (OSError, NotAFile, ValueError):
        return None


def _files(folder: Path) -> list[str]:
    found: list[str] = []
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        found += [printable(os.path.relpath(os.path.join(parent, name), folder)) for name in sorted(names)]
        if len(found) > MOST_FILES:
            return [*found[:MOST_FILES], "…"]
    return found
