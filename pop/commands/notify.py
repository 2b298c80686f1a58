"""``pop notify``."""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from contextlib import closing
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.diaries import beginning, json_lines
from pop.errors import EXIT_OK, EXIT_RUN_FAILED, UsageError, did_you_mean, safe
from pop.settings import NotifySettings, Root

LOOKED_AT_BYTES = 2**20  # of the log of tries, from its end


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--test", is_flag=True, help="Tell each of them something now, once.")
@as_json
@with_root
def command(names: tuple[str, ...], test: bool, as_json: bool, root: str | None) -> int:
    """List who is told about runs ([notify.NAME] in pop.toml), what waits to be told, and how the last try went."""
    from pop.settings import load_settings

    chosen = chosen_root(root)
    hooks = load_settings(chosen).notify
    for name in names:
        if name not in hooks:
            hint = did_you_mean(name, hooks) or f"write a [notify.{name}] into pop.toml"
            raise UsageError(f"no [notify.{safe(name, 80)}]", hint=hint, code="unknown-hook")
    asked = {name: hooks[name] for name in names or hooks}
    rows = [{**hook_row(chosen, name, hook), **(_tried(name, hook) if test else {})} for name, hook in asked.items()]
    if as_json:
        print_json({"hooks": rows})
    elif not rows:
        click.echo("nobody is told: write a [notify.NAME] into pop.toml (docs/notifications.md)", err=True)
    for row in [] if as_json else rows:
        click.echo(hook_line(row))
    return EXIT_RUN_FAILED if any(row.get("test", "ok") != "ok" for row in rows) else EXIT_OK


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


def _tried(name: str, hook: NotifySettings) -> dict[str, str]:
    from pop.events import rfc3339
    from pop.notices import Notice
    from pop.notifier import NotTold, tell

    now = time.time()
    notice = Notice(
        id=f"test:{int(now * 1000)}", kinds=hook.on, at=rfc3339(now), text="This is a test by pop notify --test",
        run_id="test", name="test", pipeline="default", path="",
    )  # fmt: skip
    try:
        tell(name, hook, notice)
    except NotTold as error:
        return {"test": str(error)}
    return {"test": "ok"}


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
