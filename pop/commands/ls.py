"""``pop ls``."""

from __future__ import annotations

import os
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.display import MARKS
from pop.runs import Run, current_runs, newest_complete, pending, pending_names, rejected, safe


@click.command()
@click.option("-n", "count", default=20, show_default=True, help="How many finished runs, the newest first.")
@as_json
@with_root
def command(count: int, as_json: bool, root: str | None) -> None:
    """List what is pending, rejected, current and complete."""
    from pop.models.catalogue import describe_default
    from pop.queue import ignore_lease_breaks
    from pop.settings import load_settings
    from pop.store import lock_holder

    ignore_lease_breaks()
    chosen = chosen_root(root)
    settings = load_settings(chosen)
    value: dict[str, Any] = {
        "root": str(chosen.path),
        "daemon": lock_holder(chosen.machine_room),
        "model": describe_default(settings, os.environ),
        "pending_count": len(pending_names(chosen)),
        "pending": pending(chosen, settings.seeds),
        "rejected": rejected(chosen),
        "current": [_row(run) for run in current_runs(chosen)],
        "complete": [_row(run) for run in reversed(newest_complete(chosen, count))],
    }
    if as_json:
        print_json(value)
    else:
        _tell(value)


def _row(run: Run) -> dict[str, Any]:
    status = run.status()
    keys = ("run_id", "name", "pipeline", "state", "progress", "current", "error", "usage", "finished_at")
    return {**{key: status.get(key) for key in keys}, "orders": run.waiting_orders(), "path": str(run.path)}


def _tell(value: dict[str, Any]) -> None:
    holder = value["daemon"]
    served = f"served by process {holder['pid']}" if holder else "no daemon: pop up serves it"
    click.echo(f"{value['root']}  ({served})", err=True)
    click.echo(value["model"], err=True)
    for title in ("pending", "rejected", "current", "complete"):
        rows = value[title]
        click.echo(f"{title} ({value['pending_count'] if title == 'pending' else len(rows)})")
        for row in rows:
            click.echo("  " + (_waiting(title, row) if title in ("pending", "rejected") else _run(row)))
        if title == "pending" and value["pending_count"] > len(rows):
            click.echo(f"  ... and {value['pending_count'] - len(rows)} more")


def _waiting(title: str, row: dict[str, Any]) -> str:
    if title == "rejected":
        return f"✗ {safe(row.get('name'))}  {safe(row.get('code'))}: {safe(row.get('message'))}"
    about = "" if row["state"] == "ready" else f"  {row['state']}: {safe(row['reason'])}"
    priority = f"  priority {row['priority']}" if row["priority"] else ""
    return f"· {safe(row['name'])}{priority}{about}"


def _run(row: dict[str, Any]) -> str:
    about = f"{safe(row['name'], 60)}, {safe(row['pipeline'] or '?')}"
    text = f"{MARKS.get(row['state'], ' ')} {row['run_id']}  {row['state']:<9}  ({about})"
    if row["state"] == "running":
        text += f"  {100 * (row['progress'] or 0):.0f} %  {', '.join((row['current'] or [])[:3])}"
    if row["orders"]:
        text += f"  ({', '.join(row['orders'])} waits to be carried out)"
    if row.get("error"):
        text += f"  {row['error'].get('error_class')}: {safe(row['error'].get('message'), 120)}"
    return text
