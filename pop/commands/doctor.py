"""``pop doctor``."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import EXIT_CONFIG, EXIT_OK, PopError
from pop.runs import current_runs, pending, rejected, safe
from pop.settings import Root


@dataclass(frozen=True)
class Finding:
    """One thing about a root; `ok` is False when a person should look, `next_move` says what to do then."""

    ok: bool
    about: str
    says: str
    next_move: str | None = None


def examine(root: Root) -> Iterator[Finding]:
    """Everything there is to say about a root."""
    yield from _settings(root)
    yield from _daemon(root)
    yield from _queue(root)
    yield from _runs(root)
    yield from _disk(root)


def _settings(root: Root) -> Iterator[Finding]:
    from pop.commands.check import problems_of
    from pop.models.catalogue import describe_default
    from pop.settings import load_settings

    problems, _ = problems_of(root)
    for problem in problems:
        yield Finding(False, "check", str(problem).replace("\n", " "), problem.hint or "mend the file, then pop check")
    if not problems:
        yield Finding(True, "check", "settings, pipelines and tasks have no mistakes")
    try:
        yield Finding(True, "model", describe_default(load_settings(root), os.environ))
    except PopError:
        return


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


def pending_names(root: Root) -> list[str]:
    """Names in the queue that may be seeds."""
    try:
        return [name for name in os.listdir(root.pending) if not name.startswith(".") and name != "rejected"]
    except FileNotFoundError:
        return []


def _queue(root: Root) -> Iterator[Finding]:
    from pop.settings import SeedSettings

    rows = pending(root, SeedSettings())
    ready = sum(1 for row in rows if row["state"] == "ready")
    yield Finding(True, "queue", f"{len(rows)} in the queue, {ready} ready")
    for row in rows:
        if row["state"] == "incomplete":
            says = f"{safe(row['name'])} is not whole yet: {safe(row['reason'])}"
            yield Finding(False, "queue", says, "finish writing it, or take it away")
        elif row["state"] == "ignored":
            yield Finding(False, "queue", f"{safe(row['name'])} is left alone: {row['reason']}", "rename it to .json")
    for reason in rejected(root)[-20:]:
        says = f"{safe(reason.get('name'))} was rejected: {safe(reason.get('message'))}"
        yield Finding(False, "rejected", says, safe(reason.get("hint") or "mend it and drop it again"))


def _runs(root: Root) -> Iterator[Finding]:
    for run in current_runs(root):
        status = run.status()
        error = status.get("error") or {}
        if status["state"] == "failed":
            says = f"{run.run_id} failed: {error.get('error_class')}: {safe(error.get('message'), 200)}"
            yield Finding(False, "runs", says, f"pop show {run.run_id}; mend it; pop retry {run.run_id}")
        elif status["state"] == "running":
            yield Finding(True, "runs", f"{run.run_id} is at work: {', '.join(status.get('current') or [])}")
        else:
            yield Finding(True, "runs", f"{run.run_id} is {status['state']}")


def _disk(root: Root) -> Iterator[Finding]:
    free_mb = shutil.disk_usage(root.path).free / 2**20
    yield Finding(
        free_mb > 200, "disk", f"{free_mb:.0f} MB free", "pop gc --older-than 30d" if free_mb <= 200 else None
    )
    for folder in (root.path, root.tasks, root.pending, root.current, root.complete):
        if not folder.is_dir():
            yield Finding(False, "folders", f"{folder.name} is missing", "pop init")
        elif not os.access(folder, os.W_OK):
            yield Finding(False, "folders", f"{folder.name} is not writable", f"chmod u+w {folder}")
        elif folder in (root.path, root.tasks) and stat.S_IMODE(folder.stat().st_mode) & stat.S_IWOTH:
            yield Finding(False, "folders", f"anybody may write into {folder.name}", f"chmod o-w {folder}")


@click.command()
@as_json
@with_root
def command(as_json: bool, root: str | None) -> int:
    """Explain the state of this folder in plain words, and what to do about it."""
    from pop.queue import ignore_lease_breaks

    ignore_lease_breaks()
    findings = list(examine(chosen_root(root)))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{'✓' if finding.ok else '!'} {finding.about:<9} {finding.says}")
            if finding.next_move and not finding.ok:
                click.echo(f"            → {finding.next_move}")
    return EXIT_OK if all(finding.ok for finding in findings) else EXIT_CONFIG
