"""Who is told about runs ([notify.NAME] in pop.toml), what waits to be told, and how the last try went."""

from __future__ import annotations

import sqlite3
from collections import deque
from contextlib import closing
from typing import Any

from pop.diaries import beginning, json_lines
from pop.errors import safe
from pop.settings import NotifySettings, Root

LOOKED_AT_BYTES = 2**20  # of the log of tries, from its end


def hook_row(root: Root, name: str, hook: NotifySettings) -> dict[str, Any]:
    """A hook, how many notices wait for it, and its last try: ``{"at", "id", "tries", "error"}`` or None."""
    about = {"name": name, "on": hook.on, "command": hook.command, "url": hook.url, "signed": bool(hook.secret_env)}
    return {**about, "waiting": _waiting(root, name), "last": _last(root, name)}


def _waiting(root: Root, name: str) -> int:
    """How many notices it was not told yet."""
    path = root.machine_room / "notify.db"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            (count,) = database.execute("SELECT count(*) FROM outbox WHERE hook = ?", (name,)).fetchone()
            return int(count)
    except sqlite3.Error:
        return 0


def _last(root: Root, name: str) -> dict[str, Any] | None:
    tries = json_lines(beginning(root.machine_room / "log" / "notify.jsonl", LOOKED_AT_BYTES, end=True)[0])
    newest = deque((row for row in tries if row.get("hook") == name), maxlen=1)
    return {key: newest[0].get(key) for key in ("at", "id", "tries", "error")} if newest else None


def hook_line(row: dict[str, Any]) -> str:
    """The same as one line of text."""
    target = row["url"] or " ".join(row["command"])
    parts = [f"{row['name']}: {', '.join(row['on'])} -> {safe(target, 200, one_line=True)}"]
    parts += ["signed"] if row["signed"] else []
    parts += [f"{row['waiting']} wait to be told"] if row["waiting"] else []
    if row["last"]:
        how = f"failed: {row['last']['error']}" if row["last"]["error"] else "told"
        parts.append(f"last: {how} at {row['last']['at']}")
    parts += [f"test: {row['test']}"] if "test" in row else []
    return "; ".join(parts)
