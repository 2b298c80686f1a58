"""``pop pause``."""

from __future__ import annotations

import click

from pop.acts import plan_pause
from pop.commands._ordering import choose, give, in_current, with_runs
from pop.commands._shared import as_json, chosen_root, with_root


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
        plan_pause,
        reason=reason,
        as_json=as_json,
        later=later,
    )
