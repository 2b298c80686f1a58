"""Links with a token, and the cookies they are exchanged for.

``.pop/web-keys.json`` holds hashes alone: a task that reads it can open nothing, and one that is confined cannot write it.
So a link can be shown once, when it is made; a cookie goes on through restarts of daemon and server. Without the file
every browser is signed out.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from pop.records import dump_json
from pop.store import Disk, NotAFile, read_regular

KEPT = 40  # the newest links that count
_MOST_BYTES = 2**20


class Keys:
    """The links of one root."""

    def __init__(self, machine_room: Path) -> None:
        self._path = machine_room / "web-keys.json"
        self._seen: tuple[int, int, int] | None = None
        self._rows: list[dict[str, Any]] = []

    def mint(self) -> str:
        """A new token. It is written down nowhere.

        Raises:
            OSError: The machine room takes no file.
        """
        token = secrets.token_urlsafe(24)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        room = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(room, fcntl.LOCK_EX)
            rows = self._read()
            rows.append({"token": _hash(token), "cookie": _hash(cookie_of(token)), "at": time.time()})
            Disk(durable=False).put(self._path, dump_json({"keys": rows[-KEPT:]}), durable=False)
        finally:
            os.close(room)
        return token

    def knows_token(self, token: str) -> bool:
        return self._knows("token", token)

    def knows_cookie(self, cookie: str) -> bool:
        return self._knows("cookie", cookie)

    def _knows(self, kind: str, value: str) -> bool:
        hashed = _hash(value)
        return any([hmac.compare_digest(str(row.get(kind)), hashed) for row in self._read()])

    def _read(self) -> list[dict[str, Any]]:
        try:
            info = os.stat(self._path)
            seen = (info.st_ino, info.st_mtime_ns, info.st_size)
            if seen != self._seen:
                rows = json.loads(read_regular(self._path, max_bytes=_MOST_BYTES))["keys"]
                self._rows, self._seen = [row for row in rows if isinstance(row, dict)], seen
        except (OSError, NotAFile, ValueError, LookupError, TypeError):
            self._rows, self._seen = [], None
        return self._rows


def cookie_of(token: str) -> str:
    """What a browser keeps instead of the token."""
    return hashlib.sha256(b"cookie " + token.encode("utf-8", "replace")).hexdigest()


def csrf_of(cookie: str) -> str:
    """What a form must bring, which another site cannot know."""
    return hashlib.sha256(b"csrf " + cookie.encode("utf-8", "replace")).hexdigest()[:32]


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()
