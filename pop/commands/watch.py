"""``pop watch``."""

from __future__ import annotations

import time
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, with_root
from pop.display import MARKS, Progress, closing_lines, is_answered, paused_by
from pop.errors import EXIT_OK, EXIT_RUN_FAILED, EXIT_WAITING
from pop.runs import Run, current_runs, find_run, newest_complete, pending_names, safe
from pop.settings import Root


@click.command()
@click.argument("run", required=False)
@click.option("--once", is_flag=True, help="Print what is there and end.")
@as_json
@with_root
def command(run: str | None, once: bool, as_json: bool, root: str | None) -> int:
    """Follow RUN until it ends, or waits for a person (exit code 5); without RUN, everything in this folder until you stop it.

    With --json: of RUN its status whenever that changes, of everything a line whenever a run changes its state.
    """
    chosen = chosen_root(root)
    if run is None:
        _follow_all(chosen, once, as_json)
        return EXIT_OK
    return _follow_one(chosen, find_run(chosen, run), once, as_json)


def _follow_one(root: Root, run: Run, once: bool, as_json: bool) -> int:
    said: dict[str, Any] = {}
    with Progress(quiet=as_json) as progress:
        while True:
            run = run.here()
            progress.show(run)
            status = run.status()
            if as_json and status != said:
                said = status
                _say_json(status, run)
            if once or not (status.get("state") in ("queued", "running") or is_answered(root, run, status)):
                break
            time.sleep(0.2)
    for line in [] if as_json else closing_lines(root, run, status):
        click.echo(line)
    if status.get("state") in ("waiting", "paused") and not once:
        return EXIT_WAITING
    return EXIT_RUN_FAILED if status.get("state") in ("failed", "cancelled", "unreadable") else EXIT_OK


def _say_json(value: dict[str, Any], run: Run) -> None:
    from pop.records import dump_json

    click.echo(dump_json({**value, "path": str(run.path)}, pretty=False).decode(), nl=False)


def _follow_all(root: Root, once: bool, as_json: bool) -> None:
    import sys

    from rich.console import Console
    from rich.live import Live

    if once or as_json or not sys.stdout.isatty():
        return _plain(root, once, as_json)
    with Live(console=Console(), refresh_per_second=4, screen=False) as live:
        while True:
            live.update(_board(root))
            time.sleep(0.5)


def _board(root: Root) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{root.path}   {_counts(root)}", title_justify="left", box=None)
    for heading in ("", "run", "state", "progress", "at work"):
        table.add_column(heading)
    runs = [*current_runs(root)[:25], *reversed(newest_complete(root, 8))]
    for run in runs:
        status = run.status()
        state = str(status.get("state"))
        share = f"{100 * (status.get('progress') or 0):.0f} %"
        table.add_row(MARKS.get(state, " "), run.run_id, state, share, Text(safe(_at_work(run, status), 80)))
    return table


def _at_work(run: Run, status: dict[str, Any]) -> str:
    """What a run does, waits for, or broke at."""
    if status.get("error"):
        return str(status["error"].get("message"))
    if status.get("state") == "paused":
        return paused_by(run)
    if status.get("waiting_for"):
        return f"for an answer: {status['waiting_for']}"
    return ", ".join((status.get("current") or [])[:4])


def _counts(root: Root) -> str:
    return f"{len(pending_names(root))} pending, {len(current_runs(root))} current"


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
