"""``pop watch``."""

from __future__ import annotations

import time
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, with_root
from pop.display import MARKS, Progress, closing_lines, is_answered, paused_by
from pop.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_FAILED, EXIT_WAITING
from pop.runs import Run, current_runs, find_run, newest_complete, safe
from pop.screen import is_terminal, watch
from pop.settings import Root


@click.command()
@click.argument("run", required=False)
@click.option("--once", is_flag=True, help="Print what is there and end.")
@as_json
@with_root
def command(run: str | None, once: bool, as_json: bool, root: str | None) -> int:
    """Follow RUN until it ends, or waits for a person (exit code 5); without RUN, everything in this folder until you stop it.

    On a terminal as a full screen with keys, of which ? tells; elsewhere, and with --once, as plain lines. With --json: of RUN its
    status whenever that changes, of everything a line whenever a run changes its state.
    """
    chosen = chosen_root(root)
    if run is None:
        if once or as_json or not is_terminal():
            _plain(chosen, once, as_json)
        else:
            watch(chosen)
        return EXIT_OK
    return _follow_one(chosen, find_run(chosen, run), once, as_json)


def _follow_one(root: Root, run: Run, once: bool, as_json: bool) -> int:
    full_screen = not (once or as_json) and is_terminal() and _goes_on(root, run, run.status())
    if full_screen and not watch(root, run):
        return EXIT_INTERRUPTED
    said: dict[str, Any] = {}
    with Progress(quiet=as_json or full_screen) as progress:
        while True:
            run = run.here()
            progress.show(run)
            status = run.status()
            if as_json and status != said:
                said = status
                _say_json(status, run)
            if once or not _goes_on(root, run, status):
                break
            time.sleep(0.2)
    for line in [] if as_json else closing_lines(root, run, status):
        click.echo(line)
    if status.get("state") in ("waiting", "paused") and not once:
        return EXIT_WAITING
    return EXIT_RUN_FAILED if status.get("state") in ("failed", "cancelled", "unreadable") else EXIT_OK


def _goes_on(root: Root, run: Run, status: dict[str, Any]) -> bool:
    return status.get("state") in ("queued", "running") or is_answered(root, run, status)


def _say_json(value: dict[str, Any], run: Run) -> None:
    from pop.records import dump_json

    click.echo(dump_json({**value, "path": str(run.path)}, pretty=False).decode(), nl=False)


def _at_work(run: Run, status: dict[str, Any]) -> str:
    """What a run does, waits for, or broke at."""
    if status.get("error"):
        return str(status["error"].get("message"))
    if status.get("state") == "paused":
        return paused_by(run)
    if status.get("waiting_for"):
        return f"for an answer: {status['waiting_for']}"
    return ", ".join((status.get("current") or [])[:4])


def _plain(root: Root, once: bool, as_json: bool) -> None:
    """One line whenever a run changes its state."""
    said: dict[str, str] = {}
    while True:
        for run in [*current_runs(root), *newest_complete(root, 50)]:
            status = run.status()
            state = str(status.get("state"))
            if said.get(run.run_id) == state:
                continue
            said[run.run_id] = state
            if as_json:
                keys = ("run_id", "name", "state", "progress", "waiting_for", "error")
                _say_json({key: status.get(key) for key in keys}, run)
            else:
                about = "" if state == "running" else safe(_at_work(run, status), 160)
                click.echo(f"{MARKS.get(state, ' ')} {run.run_id}  {state}  {about}".rstrip())
        if once:
            return
        time.sleep(0.5)
