"""The state of a root in plain words, and what to do about it: `pop doctor`, and the dashboard's page of health."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pop.display import error_of, next_move
from pop.errors import ConfigError, PopError
from pop.hooks import hook_line, hook_row
from pop.rootcheck import RootCheck
from pop.runs import Run, current_runs, pending, pending_names, rejected, safe, seed_limits
from pop.settings import Root

if TYPE_CHECKING:
    from pop.models.keys import Keys
    from pop.settings import Settings

GATEWAY_PATIENCE_S = 3.0


@dataclass(frozen=True)
class Finding:
    """One thing about a root.

    `ok` is False when a person should look, `next_move` says what to do then. `blocks` is False where POP works on all
    the same: a run that failed and a seed that was refused are history.
    """

    ok: bool
    about: str
    says: str
    next_move: str | None = None
    blocks: bool = True


def examine(root: Root, *, with_keys: bool = True) -> Iterator[Finding]:
    """Everything there is to say about a root.

    Args:
        with_keys: Whether this process has the keys that a daemon would have; else nothing is said about them.
    """
    yield from _settings(root, with_keys)
    yield from _daemon(root)
    yield from _queue(root)
    yield from _runs(root)
    yield from _disk(root)


def _settings(root: Root, with_keys: bool) -> Iterator[Finding]:
    from pop.confine import landlock_version
    from pop.settings import load_settings

    problems = RootCheck(root).problems()
    for problem in {str(problem): problem for problem in problems}.values():
        place = f" ({problem.where})" if problem.where else ""
        says = f"{problem.code}: {problem.message}{place}"
        yield Finding(False, "check", says, problem.hint or "mend the file, then pop check")
    if not problems:
        yield Finding(True, "check", "settings, pipelines and tasks have no mistakes")
    try:
        settings = load_settings(root)
    except PopError:
        return
    if with_keys:
        yield from _models(root, settings)
    if landlock_version() and settings.worker.confine:
        yield Finding(True, "workers", "write only into their own folders and read no keys (Landlock)")
    else:
        why = "[worker] confine is false" if landlock_version() else "this kernel has no Landlock"
        yield Finding(True, "workers", f"may write wherever you may, and read your keys file: {why}")
    yield from _notifications(root, settings)


def _models(root: Root, settings: Settings) -> Iterator[Finding]:
    """The default model and the API keys: whether they are there, never what they are."""
    from pop.models.catalogue import describe_default
    from pop.models.keys import Keys
    from pop.models.keysfile import find_keys_file

    keys, is_whole = Keys(os.environ), False
    with contextlib.suppress(PopError):  # pop check has told it; which keys the file holds nobody knows
        about_file = list(_keys_file(root, settings))
        keys, is_whole = Keys(os.environ, find_keys_file(settings)), True
        yield from about_file
    says = describe_default(settings, keys.environ)
    yield Finding("cannot be used" not in says, "model", keys.redact(says), "mend [models] in pop.toml")
    if is_whole:
        yield from _keys_of_models(settings, keys)


def _keys_of_models(settings: Settings, keys: Keys) -> Iterator[Finding]:
    from pop.models.catalogue import Catalogue
    from pop.models.keys import is_redacted

    catalogue = Catalogue(settings, keys.environ)
    file = settings.gateway.keys_file or "~/.config/pop/keys.env"
    needed: dict[str, list[str]] = {}
    for name in catalogue:
        with contextlib.suppress(ConfigError):  # pop check has told it
            for entry in catalogue.resolve(name):
                if entry.key_env and entry.name not in needed.setdefault(entry.key_env, []):
                    needed[entry.key_env].append(entry.name)
    for variable, models in needed.items():
        value = keys.environ.get(variable)
        whom = f"{'model' if len(models) == 1 else 'models'} {', '.join(models)}"
        if not value:
            hint = f"export {variable}=... before pop up, or write {variable}=... into {file} (mode 0600)"
            yield Finding(False, "keys", f"{variable} is not set; {whom}", hint, False)
        elif is_redacted(value):
            yield Finding(True, "keys", f"{variable} comes from {keys.source(variable)}; {whom}")
        else:
            says = f"{variable} is too short or too plain to be taken out of logs and records; {whom}"
            yield Finding(False, "keys", says, "a key has 8 characters or more, and is no word, number or path", False)


def _keys_file(root: Root, settings: Settings) -> Iterator[Finding]:
    from pop.executors.local import writable
    from pop.models.keysfile import find_keys_file, paths_to_hide

    path = find_keys_file(settings)
    hidden = paths_to_hide(root, settings, writable(settings))
    if path and hidden:
        yield Finding(
            True, "keys", f"{path}, mode {stat.S_IMODE(path.stat().st_mode):04o}; tasks cannot read it (Landlock)"
        )
    elif path:
        says = f"{path}: tasks run as you and can read it, since workers are not confined here"
        yield Finding(False, "keys", says, "run only tasks you trust with it", False)


def _daemon(root: Root) -> Iterator[Finding]:
    from pop.store import lock_holder

    holder = lock_holder(root.machine_room)
    if holder is None:
        waits = bool(pending_names(root)) or any(
            run.status()["state"] in ("queued", "running") for run in current_runs(root)
        )
        yield Finding(not waits, "daemon", "none is running here", "start it: pop up" if waits else None)
        return
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("started_at") or 0))
    yield Finding(True, "daemon", f"`{holder['command']}`, process {holder['pid']} on {holder['host']}, since {since}")
    if holder.get("command") in ("pop up", "pop run"):
        yield from _gateway(root)
    if holder.get("command") == "pop up":
        yield _dashboard(root)


def _dashboard(root: Root) -> Finding:
    """Where it is. It is not knocked at: that would start it."""
    from pop.webkeeper import address_told

    address = address_told(root)
    if address is None:
        says = "none: --no-web, or its port was taken when the daemon began; pop web --port N serves it beside"
        return Finding(True, "dashboard", says)
    return Finding(True, "dashboard", f"{address}; pop web --url prints a link that opens it")


def _notifications(root: Root, settings: Settings) -> Iterator[Finding]:
    for name, hook in settings.notify.items():
        row = hook_row(root, name, hook)
        failed = bool(row["last"] and row["last"]["error"])
        yield Finding(not failed, "notify", hook_line(row), f"pop notify {name} --test tries it", False)


def _gateway(root: Root) -> Iterator[Finding]:
    """Whether anybody is at its door; else its last words."""
    from pop.gatekeeper import socket_path

    give_up = time.monotonic() + GATEWAY_PATIENCE_S  # it may be starting
    while time.monotonic() < give_up:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door, contextlib.suppress(OSError):
            door.connect(str(socket_path(root)))
            return
        time.sleep(0.1)
    log = root.machine_room / "log" / "gateway.err"
    words: list[str] = []
    with contextlib.suppress(OSError):
        words = [line for line in log.read_text(errors="replace")[-4000:].splitlines() if line and line[0] not in " {"]
    says = f"it does not answer, so no model can be asked: {safe(words[-1], 300) if words else 'it said nothing'}"
    yield Finding(False, "gateway", says, f"mend that; all it said stands in {log}")


def _queue(root: Root) -> Iterator[Finding]:
    rows, count = pending(root, seed_limits(root)), len(pending_names(root))
    ready = sum(1 for row in rows if row["state"] == "ready")
    first = f" of the first {len(rows)}" if count > len(rows) else ""
    yield Finding(True, "queue", f"{count} in the queue, {ready}{first} ready")
    for row in rows:
        if row["state"] == "incomplete":
            says = f"{safe(row['name'])} is not whole yet: {safe(row['reason'])}"
            yield Finding(False, "queue", says, "finish writing it, or take it away")
        elif row["state"] == "ignored":
            yield Finding(False, "queue", f"{safe(row['name'])} is left alone: {row['reason']}", "rename it to .json")
    for reason in rejected(root)[-20:]:
        says = f"{safe(reason.get('name'))} was rejected: {safe(reason.get('message'))}"
        yield Finding(False, "rejected", says, safe(reason.get("hint") or "mend it and drop it again"), False)


def _runs(root: Root) -> Iterator[Finding]:
    for run in current_runs(root):
        status = run.status()
        error = error_of(status)
        if status["state"] in ("queued", "running") and (trouble := _broken_copy(run, status)):
            yield trouble
            continue
        if status["state"] == "failed":
            says = f"{run.run_id} failed: {safe(error.get('error_class'), 40)}: {safe(error.get('message'), 200)}"
            yield Finding(False, "runs", says, f"pop show {run.run_id}; {next_move(root, run, status)}", False)
        elif status["state"] == "unreadable":
            says = f"{run.run_id} cannot be read: {safe(error.get('message'), 200)}"
            yield Finding(False, "runs", says, error.get("hint"))
        elif status["state"] == "running":
            yield Finding(
                True,
                "runs",
                f"{run.run_id} is at work: {', '.join(safe(name, 80) for name in status.get('current') or [])}",
            )
        else:
            yield Finding(True, "runs", f"{run.run_id} is {status['state']}")


def _broken_copy(run: Run, status: dict[str, Any]) -> Finding | None:
    """A run whose own pipeline.json somebody broke is not taken up again."""
    from pop.pipeline import load_pipeline
    from pop.store import read_file

    try:
        where = f"pipeline-current/{run.run_id}/pipeline.json"
        load_pipeline(read_file(run.path / "pipeline.json"), where=where, name=str(status.get("pipeline")))
    except FileNotFoundError:
        return None if run.here() != run else Finding(False, "runs", f"{run.run_id} has lost its pipeline.json")
    except (OSError, PopError) as error:
        says = f"{run.run_id} cannot be read: {safe(' '.join(str(error).split()), 300)}"
        return Finding(False, "runs", says, f"mend {where}; it is taken up by the next pop up")
    return None


def _disk(root: Root) -> Iterator[Finding]:
    free_mb = shutil.disk_usage(root.path).free / 2**20
    yield Finding(
        free_mb > 200, "disk", f"{free_mb:.0f} MB free", "pop gc --older-than 30d" if free_mb <= 200 else None
    )
    for folder in (root.path, root.tasks, root.pending, root.current, root.complete):
        if not folder.is_dir():
            says = f"{folder.name} is missing; pop run and pop up make it"
            yield Finding(True, "folders", says)
        elif not os.access(folder, os.W_OK):
            yield Finding(False, "folders", f"{folder.name} is not writable", f"chmod u+w {folder}")
        elif folder in (root.path, root.tasks) and stat.S_IMODE(folder.stat().st_mode) & stat.S_IWOTH:
            yield Finding(False, "folders", f"anybody may write into {folder.name}", f"chmod o-w {folder}")
