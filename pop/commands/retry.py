"""``pop retry``."""

from __future__ import annotations

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import UsageError


@click.command()
@click.argument("run")
@click.option("-m", "reason", help="Why, for the record.")
@as_json
@with_root
def command(run: str, reason: str | None, as_json: bool, root: str | None) -> None:
    """Let a failed or cancelled RUN go on: done steps stay done, failed ones get fresh attempts."""
    from pop.orders import write_order
    from pop.runs import find_run
    from pop.store import Disk, lock_holder

    chosen = chosen_root(root)
    found = find_run(chosen, run)
    state = found.status().get("state")
    if state not in ("failed", "cancelled"):
        raise UsageError(f"{found.run_id} is {state}; only failed and cancelled runs are retried")
    path = write_order(Disk(), found.path, "retry", reason)
    if as_json:
        print_json({"run_id": found.run_id, "order": str(path)})
        return
    click.echo(path)
    if lock_holder(chosen.machine_room) is None:
        click.echo("no daemon is running here: the run goes on with the next pop up", err=True)
