"""``pop ls``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.display import MARKS, paused_by
from pop.runs import Run, current_runs, newest_complete, pending, pending_names, rejected, safe
from pop.settings import Root


@click.command()
@click.option("-n", "count", default=20, show_default=True, help="How many finished runs, the newest first.")
@click.option("--models", is_flag=True, help="Instead: what each model is doing now, as the daemon's gateway tells.")
@as_json
@with_root
def command(count: int, models: bool, as_json: bool, root: str | None) -> None:
    """List what is pending, rejected, current and complete."""
    from pop.models.catalogue import describe_default
    from pop.models.keys import keys_of
    from pop.queue import ignore_lease_breaks
    from pop.settings import load_settings
    from pop.store import lock_holder

    ignore_lease_breaks()
    chosen = chosen_root(root)
    if models:
        return _tell_models(chosen, as_json)
    settings = load_settings(chosen)
    value: dict[str, Any] = {
        "root": str(chosen.path),
        "daemon": lock_holder(chosen.machine_room),
        "model": describe_default(settings, keys_of(settings)),
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
    keys = (
        "run_id",
        "name",
        "pipeline",
        "state",
        "progress",
        "current",
        "waiting_for",
        "error",
        "usage",
        "finished_at",
    )
    paused = paused_by(run) if status.get("state") == "paused" else None
    row = {key: status.get(key) for key in keys}
    return {**row, "paused": paused, "orders": run.waiting_orders(), "path": str(run.path)}


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
    if row.get("waiting_for"):
        text += f"  for an answer: {safe(row['waiting_for'], 120)}"
    if row["paused"]:
        text += f"  {safe(row['paused'], 120)}"
    if row["orders"]:
        text += f"  ({', '.join(row['orders'])} waits to be carried out)"
    if row.get("error"):
        text += f"  {safe(row['error'].get('error_class'), 40)}: {safe(row['error'].get('message'), 120)}"
    return text


def _tell_models(root: Root, as_json: bool) -> None:
    """In flight, waiting, requests and tokens per minute: the gateway's own figures."""
    import asyncio

    from pop.gatekeeper import socket_path
    from pop.models.questions import ask_gateway
    from pop.store import lock_holder

    holder = lock_holder(root.machine_room)
    figures = asyncio.run(ask_gateway(str(socket_path(root)), {"figures": True})) if holder else None
    if as_json:
        print_json({"daemon": holder, **(figures or {"lanes": {}, "circuits": {}, "flights": 0})})
    elif figures is None:
        click.echo("no daemon: there is nothing under way (pop up)" if not holder else "the gateway gives no answer")
    elif not figures["lanes"]:
        click.echo("no model has been asked since the daemon began")
    else:
        _show_lanes(figures)


def _show_lanes(figures: dict[str, Any]) -> None:
    """A line for each model and provider; replays that are over have none."""
    table = [["", "in flight", "waiting", "at once", "requests/min", "tokens/min", "pauses"]]
    for name, lane in figures["lanes"].items():
        if lane["in_flight"] or lane["waiting"] or not name.startswith("model replay:"):
            table.append([safe(name, 40, one_line=True), *_figures(lane)])
    widths = [max(len(row[column]) for row in table) for column in range(7)]
    for row in table:
        cells = [row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in range(1, 7))]
        click.echo("  ".join(cells))
    for name, state in figures["circuits"].items():
        if state != "closed":
            click.echo(f"{safe(name, 80)}: its circuit is {state}: calls wait until it answers again", err=True)


def _figures(lane: dict[str, Any]) -> Iterator[str]:
    yield f"{lane['in_flight']}"
    yield f"{lane['waiting']}"
    yield f"{lane['window'] or 'any'}"
    for name in ("requests_per_minute", "tokens_per_minute"):
        most = lane["limits"][name]
        yield f"{lane[name]:,.0f}" + (f" of {most:,.0f}" if most else "")
    yield f"{lane['paused_s']:.0f} s" if lane["paused_s"] else "-"
