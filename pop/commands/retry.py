"""``pop retry``."""

from __future__ import annotations

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root


@click.command()
@click.argument("run")
@click.option("-m", "reason", help="Why, for the record.")
@click.option(
    "--budget",
    "budget",
    metavar="NAME=AMOUNT",
    multiple=True,
    help="What it may use up in all, instead of what it was given: run_usd=5.",
)
@as_json
@with_root
def command(run: str, reason: str | None, budget: tuple[str, ...], as_json: bool, root: str | None) -> None:
    """Let a failed or cancelled RUN go on: done steps stay done, failed ones get fresh attempts."""
    from pop.acts import order, read_amounts
    from pop.runs import find_run
    from pop.store import lock_holder

    amounts = read_amounts(budget)
    chosen = chosen_root(root)
    given = order(find_run(chosen, run), "retry", reason, budget=amounts)
    if as_json:
        print_json({"run_id": given.run.run_id, "order": str(given.file)})
        return
    click.echo(given.file)
    if lock_holder(chosen.machine_room) is None:
        click.echo("no daemon is running here: the run goes on with the next pop up", err=True)
