"""Orders to one run, several, or all: which runs are meant, and what is said about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from pop.acts import DoesNotFit, Plan, carry_out
from pop.commands._shared import F, print_json
from pop.errors import UsageError, did_you_mean
from pop.runs import Run, current_runs, find_run
from pop.settings import Root
from pop.store import lock_holder


def with_runs(function: F) -> F:
    """Give a command RUN..., ``--pipeline`` and ``--all``."""
    everything = click.option("--all", "everything", is_flag=True, help="Every run that it fits.")
    pipeline = click.option("--pipeline", "-p", metavar="NAME", help="Every run of this pipeline that it fits.")
    return click.argument("runs", metavar="RUN...", nargs=-1)(pipeline(everything(function)))


@dataclass(frozen=True)
class Chosen:
    """The runs that are meant; `named` when each was named, so that one that does not fit is an error."""

    runs: list[Run]
    named: bool


def choose(
    root: Root, names: Sequence[str], pipeline: str | None, everything: bool, among: Callable[[Root], list[Run]]
) -> Chosen:
    """The runs that RUN..., ``--pipeline`` and ``--all`` mean.

    Raises:
        UsageError: None of them is given or more than one, or a run is not there.
    """
    if bool(names) + (pipeline is not None) + everything != 1:
        hint = "name runs (pop ls shows them), or give --pipeline NAME, or --all"
        raise UsageError("which runs?" if not names else "either RUN..., --pipeline or --all", hint=hint)
    if names:
        found = {run.run_id: run for run in (find_run(root, name) for name in names)}
        return Chosen(list(found.values()), named=True)
    runs = among(root)
    if pipeline is not None:
        of = {run.run_id: run.status().get("pipeline") for run in runs}
        known = {*root.pipeline_names(), *(str(name) for name in of.values())}
        if pipeline not in known:
            raise UsageError(f"no pipeline {pipeline!r}", hint=did_you_mean(pipeline, known), code="unknown-pipeline")
        runs = [run for run in runs if of[run.run_id] == pipeline]
    return Chosen(runs, named=False)


def in_current(root: Root) -> list[Run]:
    return current_runs(root)


def give(
    root: Root, chosen: Chosen, plan: Callable[[Run], Plan], *, reason: str | None, as_json: bool, later: str
) -> None:
    """Look at every run first, then write the orders, and say what was done.

    Args:
        later: What is said when no daemon is running: when the order takes effect.
    """
    plans = []
    for run in chosen.runs:
        try:
            plans.append(plan(run))
        except DoesNotFit:
            if chosen.named:
                raise
    done = [carry_out(one, reason) for one in plans]
    if as_json:
        rows = [
            {"run_id": one.run.run_id, "order": str(one.file) if one.file else None, "note": one.note} for one in done
        ]
        print_json(rows[0] if chosen.named and len(rows) == 1 else {"runs": rows})
        return
    for one in done:
        if one.note:
            click.echo(one.note, err=True)
        if one.file:
            click.echo(one.file)
    given = sum(1 for one in done if one.file)
    if not chosen.named:
        click.echo(f"{given} order(s), {len(chosen.runs) - given} run(s) left as they are", err=True)
    if given and lock_holder(root.machine_room) is None:
        click.echo(f"no daemon is running here: {later}", err=True)
