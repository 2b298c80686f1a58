"""``pop retry``."""

from __future__ import annotations

import click

from pop.commands._ordering import withdraw
from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import UsageError


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
    from pop.orders import write_order
    from pop.runs import find_run
    from pop.store import Disk, lock_holder

    amounts = _amounts(budget)
    chosen = chosen_root(root)
    found = find_run(chosen, run)
    state = found.status().get("state")
    if state not in ("failed", "cancelled"):
        raise UsageError(f"{found.run_id} is {state}; only failed and cancelled runs are retried")
    for verb in ("cancel", "pause"):  # else the older order would be carried out after this one
        withdraw(found, verb)
    path = write_order(Disk(), found.path, "retry", reason, amounts)
    if as_json:
        print_json({"run_id": found.run_id, "order": str(path)})
        return
    click.echo(path)
    if lock_holder(chosen.machine_room) is None:
        click.echo("no daemon is running here: the run goes on with the next pop up", err=True)


def _amounts(given: tuple[str, ...]) -> dict[str, float]:
    from pop.pipeline_values import budget

    amounts: dict[str, float] = {}
    for text in given:
        name, _, amount = text.partition("=")
        if name.strip().startswith("day_"):
            raise UsageError(f"--budget {text}: a day's budget is no run's", hint="raise it in [budget] of pop.toml")
        if not amount.strip():
            raise UsageError(f"--budget {text}: how much?", hint=f"e.g. --budget {name.strip() or 'run_usd'}=5")
        try:
            amounts |= budget("step", "run", "pipeline")({name.strip(): float(amount)})
        except (TypeError, ValueError) as error:
            raise UsageError(f"--budget {text}: {error}", hint="e.g. --budget run_usd=5") from None
    return amounts
