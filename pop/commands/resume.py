"""``pop resume``."""

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
    """Let paused RUN... go on where they stand."""
    chosen = chosen_root(root)
    later = "the run goes on with the next pop up"
    give(
        chosen,
        choose(chosen, runs, pipeline, everything, in_current),
        plan,
        reason=reason,
        as_json=as_json,
        later=later,
    )


def plan(run: Run) -> Plan:
    """What resuming a run comes to."""
    state = run.status().get("state")
    if run.place == "complete" or state == "unreadable":
        raise DoesNotFit(f"{run.run_id} is {state}; only a paused run is resumed")
    if state in ("failed", "cancelled"):
        hint = f"pop retry {run.run_id} lets it go on from what failed"
        raise DoesNotFit(f"{run.run_id} is {state}; only a paused run is resumed", hint=hint)
    if waits(run, "pause"):
        if state == "paused":  # the newer order counts
            return Plan(run, "resume", withdraws=("pause",))
        return Plan(run, None, f"{run.run_id} is not paused: the order to pause it is withdrawn", ("pause",))
    if state != "paused":
        return Plan(run, None, f"{run.run_id} is not paused: it is {state}")
    if waits(run, "resume"):
        return Plan(run, None, f"{run.run_id} has that order already; it waits to be carried out")
    return Plan(run, "resume")
