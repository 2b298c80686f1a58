"""``pop rerun``: a run once more from one of its steps; in place, or as a new run that shares the finished part."""

from __future__ import annotations

from typing import Any

import click

from pop.acts import Rerun, Wish, rerun_all
from pop.commands._ordering import choose, in_current, with_runs
from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import PopError, UsageError
from pop.runs import Run, newest_complete
from pop.settings import Root

MOST_FORKED = 1_000_000
MOST_SHOWN = 5  # reasons for which runs were passed over


@click.command()
@with_runs
@click.option("--from", "from_", metavar="STEP[:STAGE]", multiple=True, help="Where to begin (required). Repeatable.")
@click.option("--set", "sets", metavar="PATH=VALUE", multiple=True, help="seed.a.b=, STEP.with.k=, STEP.model= ...")
@click.option("-m", "--model", "models", metavar="[ROLE=]NAME", multiple=True, help="Ask this model from now on.")
@click.option("--fork", is_flag=True, help="Make a new run; this one stays as it is.")
@click.option("-r", "--reason", help="Why, for the record.")
@as_json
@with_root
def command(
    runs: tuple[str, ...],
    pipeline: str | None,
    everything: bool,
    from_: tuple[str, ...],
    sets: tuple[str, ...],
    models: tuple[str, ...],
    fork: bool,
    reason: str | None,
    as_json: bool,
    root: str | None,
) -> None:
    """Run RUN... again from a step on: what lies before is kept, what depends on it runs again.

    From `STEP:parse` on, the recorded answers are parsed again, without a call. A complete run is never opened again: a
    new run is made of it, as with --fork. With --pipeline or --all, every run at rest in which the step ran.
    """
    from pop.changes import changes_of
    from pop.rerun import read_sets
    from pop.store import lock_holder

    if not from_:
        raise UsageError(
            "from which step?", where="--from", hint="--from STEP; pop plan RUN says what changed or failed"
        )
    here = chosen_root(root)
    wish = Wish(list(from_), read_sets(sets), changes_of(here, models).models, fork, reason)
    chosen = choose(here, runs, pipeline, everything, _with_complete if fork else in_current)
    rows = [_row(run, found) for run, found in rerun_all(here, chosen.runs, wish, named=chosen.named)]
    done = [row for row in rows if "error" not in row]
    if as_json:
        print_json(rows[0] if chosen.named and len(rows) == 1 else {"runs": rows})
        return
    for row in done:
        if row["fork"] and not fork:
            click.echo(f"{row['run_id']} is complete: a new run is made of it", err=True)
        click.echo(row["order"] or row["seed"])
    if not chosen.named:
        for row in [row for row in rows if "error" in row][:MOST_SHOWN]:
            click.echo(f"{row['run_id']}: {row['error']['message']}", err=True)
        click.echo(f"{len(done)} run(s) run again, {len(rows) - len(done)} left as they are", err=True)
        if rows and not done:
            raise UsageError("no run was run again", where=f"--from {', '.join(from_)}", hint=_why_none(rows))
    if done and lock_holder(here.machine_room) is None:
        click.echo("no daemon is running here: it goes on with the next pop up", err=True)


def _why_none(rows: list[dict[str, Any]]) -> str | None:
    """What the first run that was passed over is told."""
    return next((row["error"]["hint"] for row in rows if row["error"].get("hint")), "pop ls shows the runs")


def _with_complete(root: Root) -> list[Run]:
    return [*newest_complete(root, MOST_FORKED), *in_current(root)]


def _row(run: Run, found: Rerun | PopError) -> dict[str, Any]:
    if isinstance(found, PopError):
        return {"run_id": run.run_id, "error": found.to_json()}
    file = str(found.file)
    about = {"run_id": run.run_id, "stale": list(found.stale), "fork": found.fork}
    return {**about, "order": None, "seed": file} if found.fork else {**about, "order": file, "seed": None}
