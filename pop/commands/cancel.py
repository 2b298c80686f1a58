"""``pop cancel``."""

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
    """End RUN: its workers are stopped, what it did stays, and `pop retry` can take it up again."""
    from pop.orders import write_order
    from pop.runs import find_run
    from pop.store import Disk, lock_holder

    chosen = chosen_root(root)
    found = find_run(chosen, run)
    if found.place == "complete":
        raise UsageError(f"{found.run_id} is complete; there is nothing to end")
    withdrawn = found.path / "orders" / "retry.json"
    if found.status().get("state") == "cancelled" and not withdrawn.exists():
        if as_json:
            print_json({"run_id": found.run_id, "order": None})
        else:
            click.echo(f"{found.run_id} is cancelled already: pop show {found.run_id} tells why", err=True)
        return
    withdrawn.unlink(missing_ok=True)  # else it would be carried out after this one
    path = write_order(Disk(), found.path, "cancel", reason)
    if as_json:
        print_json({"run_id": found.run_id, "order": str(path)})
        return
    click.echo(path)
    if lock_holder(chosen.machine_room) is None:
        click.echo("no daemon is running here: the order takes effect with the next pop up", err=True)
