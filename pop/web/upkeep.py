"""What the page of health and the API tell and do to keep a root well: what the command line's doctor, models, notify, gc do.

Keys of the daemon's environment are not seen from here, so nothing is said about those that seem to be missing; what a
notification's address holds beside its host is not shown.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pop.cleaning import old_runs, remove_all, seconds_of, size_bytes
from pop.errors import UsageError
from pop.gatekeeper import socket_path
from pop.health import Finding, examine
from pop.hooks import hook_row
from pop.models.catalogue import Catalogue
from pop.models.described import LIMITS, model_row
from pop.models.keys import keys_of
from pop.models.questions import ask_gateway
from pop.modeltest import TEST_PROMPT, TEST_TOKENS, ask_each, distinct, in_lines
from pop.settings import NotifySettings, Root, load_settings
from pop.store import lock_holder

PROMPT_TOKENS = len(TEST_PROMPT)  # far more than it can be
MOST_FINDINGS = 300


def findings(root: Root) -> list[Finding]:
    """As `pop doctor` tells them, without what is said of keys, and of addresses (`hooks` tells who is told)."""
    return [found for found in examine(root, with_keys=False) if found.about != "notify"][:MOST_FINDINGS]


def models(root: Root) -> list[dict[str, Any]]:
    """As `pop models` lists them, with what the daemon's gateway says goes on now."""
    settings = load_settings(root)
    environ = keys_of(settings)
    catalogue = Catalogue(settings, environ)
    holder = lock_holder(root.machine_room)
    told = (asyncio.run(ask_gateway(str(socket_path(root)), {"figures": True}, 0.5)) if holder else None) or {}
    lanes, circuits = told.get("lanes") or {}, told.get("circuits") or {}
    rows = []
    for name in catalogue.names:
        row = model_row(catalogue, name, environ, root, settings)
        limits = {limit: row.get(limit) for limit in LIMITS}
        about = {"limits": limits, "lane": lanes.get(f"model {name}"), "circuit": circuits.get(name)}
        rows.append({**row, **about, "most_usd": most_usd(row)})
    return rows


def most_usd(row: dict[str, Any]) -> float | None:
    """What testing a model may cost at most; None where nobody knows, 0 where it is free."""
    if row.get("provider") in ("builtin", "replay"):
        return 0.0
    price = row.get("price")
    return (PROMPT_TOKENS * price["input"] + TEST_TOKENS * price["output"]) / 1e6 if price else None


def hooks(root: Root) -> list[dict[str, Any]]:
    """As `pop notify` tells them, without what may be a secret in an address or in a command's arguments."""
    return [hidden(hook_row(root, name, hook), hook) for name, hook in load_settings(root).notify.items()]


def hidden(row: dict[str, Any], hook: NotifySettings) -> dict[str, Any]:
    """A row of a hook with the host of its address, or the first word of its command."""
    if hook.url:
        target = f"{urlsplit(hook.url).scheme}://{urlsplit(hook.url).hostname or ''}/…"
    else:
        target = f"{hook.command[0]}{' …' if len(hook.command) > 1 else ''}" if hook.command else ""
    last = row["last"]
    if last and last.get("error"):
        error = str(last["error"])
        for secret in (hook.url, *(hook.command or [])[1:]):
            error = error.replace(secret, "…") if secret else error
        last = {**last, "error": error}
    return {**{key: row[key] for key in ("name", "on", "signed", "waiting")}, "target": target, "last": last}


def tested(root: Root, names: list[str]) -> list[tuple[str, list[str], bool]]:
    """By name how a test went, and whether it failed.

    Raises:
        UsageError: There is no daemon whose gateway could ask, or no such model.
    """
    if lock_holder(root.machine_room) is None:
        hint = "pop up serves it; pop models --test does without"
        raise UsageError("no daemon serves this folder, and the dashboard has no keys to ask with", hint=hint)
    rows = [row for row in models(root) if row["name"] in names]
    if not rows or len(rows) < len(set(names)):
        raise UsageError("which models?", where="model", hint="tick some of those that are listed")
    results = ask_each(root, rows) if distinct(rows) else {}
    found = []
    for row in rows:
        result = results.get(row["name"])
        if result is None:
            why = row["error"]["message"] if row["error"] else f"stands for {row['meaning']}: test those"
            found.append((row["name"], [why], bool(row["error"])))
        else:
            found.append((row["name"], list(in_lines(result, row["provider"])), bool(result["error"])))
    return found


@dataclass(frozen=True)
class Old:
    """Runs that ended before a time (Unix seconds), and how much their folders hold."""

    before: float
    run_ids: list[str]
    size_bytes: int


def old_before(root: Root, before: float, *, failed: bool) -> Old:
    """The finished runs at rest that ended before that; with `failed` also failed and cancelled ones."""
    runs = old_runs(root, time.time() - before, failed)
    return Old(before, [run.run_id for run in runs], sum(size_bytes(run.path) for run in runs))


def older_than(root: Root, age: str, *, failed: bool) -> Old:
    """The same for an age: ``30d``.

    Raises:
        UsageError: It is none.
    """
    return old_before(root, time.time() - seconds_of(age), failed=failed)


def remove_old(root: Root, before: float, *, failed: bool, archive: bool) -> Old:
    """Remove what ended before a time that was looked at, and none that ended since; tells what is gone by it.

    Raises:
        UsageError: That time is none, or has not come.
    """
    if not 0 <= before <= time.time():
        raise UsageError("before when?", where="before", hint="look at what would go; that tells it")
    runs = old_runs(root, time.time() - before, failed)
    removed, freed = remove_all(root, runs, archive=archive)
    return Old(before, [run.run_id for run in removed], freed)
