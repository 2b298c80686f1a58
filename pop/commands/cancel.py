"""``pop cancel``."""

from __future__ import annotations

import sys
from functools import partial

import click

from pop.acts import DoesNotFit, plan_cancel
from pop.commands._ordering import choose, give, in_current, with_runs
from pop.commands._shared import as_json, chosen_root, with_root
from pop.errors import UsageError
from pop.runs import Run


@click.command()
@with_runs
@click.option("-m", "reason", help="Why, for the record.")
@click.option("--yes", is_flag=True, help="Do not ask before all runs are cancelled.")
@as_json
@with_root
def command(
    runs: tuple[str, ...],
    pipeline: str | None,
    everything: bool,
    reason: str | None,
    yes: bool,
    as_json: bool,
    root: str | None,
) -> None:
    """End RUN...: their workers are stopped, what they did stays, and `pop retry` can take them up again."""
    chosen_here = chosen_root(root)
    chosen = choose(chosen_here, runs, pipeline, everything, in_current)
    if everything and not yes and (count := sum(map(_fits, chosen.runs))):
        if not sys.stdin.isatty():
            raise UsageError("--all cancels every run that has not ended", hint="pop cancel --all --yes")
        click.confirm(f"cancel {count} run(s)?", abort=True, err=True)
    later = "the order takes effect with the next pop up"
    give(chosen_here, chosen, partial(plan_cancel, named=chosen.named), reason=reason, as_json=as_json, later=later)


def _fits(run: Run) -> bool:
    try:
        return plan_cancel(run, named=False).verb is not None
    except DoesNotFit:
        return False
