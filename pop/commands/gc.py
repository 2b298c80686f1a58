"""``pop gc``."""

from __future__ import annotations

import math

import click

from pop.cleaning import old_runs, prune_answers, remove_all, seconds_of, size_bytes
from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import UsageError


@click.command()
@click.option("--older-than", "age", metavar="AGE", help="Runs; 30d, 12h, 2w: counted from the run's end.")
@click.option("--answers-older-than", "answers_age", metavar="AGE", help="Stored answers, while no daemon runs.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--archive", is_flag=True, help="Keep each run as pipeline-complete/archive/<run>.tar.gz.")
@click.option("--failed", is_flag=True, help="Also failed and cancelled runs in pipeline-current/.")
@as_json
@with_root
def command(
    age: str | None,
    answers_age: str | None,
    dry_run: bool,
    archive: bool,
    failed: bool,
    as_json: bool,
    root: str | None,
) -> None:
    """Remove finished runs that ended longer than AGE ago, or stored answers of that age. Both ledgers keep their lines."""
    if age is None and answers_age is None:
        raise UsageError("nothing to remove", hint="say how old: --older-than 30d, or --answers-older-than 30d")
    chosen = chosen_root(root)
    least_s = seconds_of(age) if age is not None else math.inf
    answers = prune_answers(chosen, seconds_of(answers_age), dry_run) if answers_age is not None else None
    old = old_runs(chosen, least_s, failed)
    if age is not None and not dry_run:
        old, freed = remove_all(chosen, old, archive=archive)
    else:
        freed = sum(size_bytes(run.path) for run in old)
    if as_json:
        value = {"runs": [run.run_id for run in old], "freed_bytes": freed, "dry_run": dry_run}
        print_json(value if answers is None else {**value, "answers": answers})
        return
    if answers is not None:
        click.echo(f"{'would remove' if dry_run else 'removed'} {answers} stored answers", err=True)
    if age is not None:
        for run in old:
            click.echo(run.run_id)
        click.echo(f"{'would free' if dry_run else 'freed'} {freed / 2**20:.1f} MB in {len(old)} runs", err=True)
