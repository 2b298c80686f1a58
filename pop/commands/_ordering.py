"""Orders to one run, several, or all: which runs are meant, and what is written for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pop.commands._shared import F, print_json
from pop.errors import UsageError, did_you_mean
from pop.runs import Run, current_runs, find_run
from pop.settings import Root


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


@dataclass(frozen=True)
class Plan:
    """What an order comes to for one run: `verb` None when there is nothing to order, and why."""

    run: Run
    verb: str | None
    note: str | None = None
    withdraws: tuple[str, ...] = ()


class DoesNotFit(UsageError):
    """An order that makes no sense for a run in its state; passed over where the run was not named."""


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
    from pop.orders import write_order
    from pop.store import Disk, lock_holder

    plans = []
    for run in chosen.runs:
        try:
            plans.append(plan(run))
        except DoesNotFit:
            if chosen.named:
                raise
    rows: list[dict[str, Any]] = []
    for one in plans:
        for verb in one.withdraws:
            withdraw(one.run, verb)
        path = write_order(Disk(), one.run.path, one.verb, reason) if one.verb else None
        rows.append({"run_id": one.run.run_id, "order": str(path) if path else None, "note": one.note})
    if as_json:
        print_json(rows[0] if chosen.named and len(rows) == 1 else {"runs": rows})
        return
    for row in rows:
        if row["note"]:
            click.echo(row["note"], err=True)
        if row["order"]:
            click.echo(row["order"])
    given = sum(1 for row in rows if row["order"])
    if not chosen.named:
        click.echo(f"{given} order(s), {len(chosen.runs) - given} run(s) left as they are", err=True)
    if given and lock_holder(root.machine_room) is None:
        click.echo(f"no daemon is running here: {later}", err=True)


def waits(run: Run, verb: str) -> bool:
    """Whether an order was given and not carried out yet."""
    return (run.path / "orders" / f"{verb}.json").exists() or (run.path / "orders" / verb).exists()


def withdraw(run: Run, verb: str) -> None:
    """Take an order back: else it would be carried out after the newer one."""
    for name in (f"{verb}.json", verb):
        path: Path = run.path / "orders" / name
        if path.is_file():
            path.unlink(missing_ok=True)
