"""``pop pause``."""

from __future__ import annotations

import click

from pop.commands._ordering import DoesNotFit, Plan, choose, give, in_current, waits, with_runs
from pop.commands._shared import as_json, chosen_root, with_root
from pop.runs import Run


@click.command()
@with_runs
@click.option("-m", "reason", help="Why, for the record.")
@as_json
@with_root
def command(
    runs: tuple[str, ...], pipeline: str | None, everything: bool, reason: str | None, as_json: bool, root: str | None
) -> None:
    """Let RUN... rest: attempts at work end, nothing new starts until `pop resume`."""
    chosen = chosen_root(root)
    later = "the order takes effect with the next pop up"
    give(
        chosen,
        choose(chosen, runs, pipeline, everything, in_current),
        plan,
        reason=reason,
        as_json=as_json,
        later=later,
    )


def plan(run: Run) -> Plan:
    """What pausing a run comes to."""
    state = run.status().get("state")
    if run.place == "complete" or state in ("failed", "cancelled", "unreadable"):
        raise DoesNotFit(f"{run.run_id} is {state}; only a run that goes on can be paused")
    if state == "paused":
        if waits(run, "resume"):
            return Plan(run, None, f"{run.run_id} stays paused: the order to resume it is withdrawn", ("resume",))
        return Plan(run, None, f"{run.run_id} is paused already")
    if waits(run, "pause"):
        return Plan(run, None, f"{run.run_id} has that order already; it waits to be carried out")
    return Plan(run, "pause", withdraws=tuple(verb for verb in ("resume",) if waits(run, verb)))
