"""``pop plan``: what would happen, before anything is spent."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from pop.acts import Wish, rerun
from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.display import dollars
from pop.drops import put_seed, submit
from pop.errors import SeedRejected, UsageError, safe
from pop.estimates import Estimate
from pop.outlook import Outlook, of_run, of_seed
from pop.queue import Incomplete, ignore_lease_breaks, peek
from pop.records import Seed
from pop.rootcheck import RootCheck
from pop.runs import Run, find_run
from pop.seedcheck import refuse_misfit
from pop.seeds import parse_seed
from pop.settings import Root, load_settings


@click.command()
@click.argument("what", metavar="SEED|RUN|-")
@click.option("--from", "from_", metavar="STEP[:STAGE]", multiple=True, help="Of a run: where to begin. Repeatable.")
@click.option("--apply", "apply", is_flag=True, help="Do it: rerun the run from there, or submit the seed.")
@as_json
@with_root
def command(what: str, from_: tuple[str, ...], apply: bool, as_json: bool, root: str | None) -> None:
    """Show what SEED (a file, a folder, a zip, - for standard input) or RUN would reuse, run or wait for, why, and what it may cost."""
    here = chosen_root(root)
    data = sys.stdin.buffer.read() if what == "-" else b""
    seed = parse_seed(data, where="standard input") if what == "-" else _seed_of(here, what)
    if seed is not None and from_:
        raise UsageError("--from is for a run; a seed begins at the beginning", where=what)
    run = None if seed is not None else _run_of(here, what)
    if seed is not None:
        _refuse_misfit(here, seed, what)
    outlook = of_seed(here, seed) if seed is not None else of_run(here, _there(run), from_)
    given = _apply(here, what, run, outlook, data) if apply else None
    if as_json:
        rows = [row.to_json() for row in outlook.rows]
        about = {"steps": rows, "total": outlook.total.to_json(), "from": outlook.from_, "notes": outlook.notes}
        print_json({**about, "applied": given})
        return
    _show(outlook)
    for note in outlook.notes:
        click.echo(f"note: {note}", err=True)
    if given:
        click.echo(given)
    elif apply:
        click.echo("there is nothing to run", err=True)


def _seed_of(root: Root, what: str) -> Seed | None:
    """The seed in a file, a folder or a zip, looked at as the queue will; None when it is a run that is meant.

    Raises:
        SeedRejected: It can become no run.
    """
    path = Path(what)
    if path.is_file() and path.suffix.lower() != ".zip":
        return parse_seed(path.read_bytes(), where=what)
    if not path.is_file() and not ((path / "seed.json").is_file() and not (path / "events.jsonl").exists()):
        return None
    ignore_lease_breaks()
    found = peek(path.resolve(), load_settings(root).seeds.model_copy(update={"settle_s": 0.0}))
    if isinstance(found, Incomplete):
        raise SeedRejected(f"not yet a seed: {found.reason}", where=what)
    return found.seed


def _refuse_misfit(root: Root, seed: Seed, what: str) -> None:
    """Raises: SeedMismatch: It would be refused, so it would do nothing."""
    look = RootCheck(root)
    if what != "-":
        look.refuse_misfit(Path(what), what)
    elif (read := look.read_for(seed)) and read.pipeline:
        refuse_misfit(read.pipeline.seed, seed.data, where="standard input", file=read.file)


def _run_of(root: Root, what: str) -> Run:
    if os.sep in what or what.endswith(".json"):
        raise UsageError(f"no file {what!r}", hint="a seed's file, or a run: pop ls shows them")
    return find_run(root, what)


def _there(run: Run | None) -> Run:
    assert run is not None
    return run


def _apply(root: Root, what: str, run: Run | None, outlook: Outlook, data: bytes) -> str | None:
    """Exactly what was shown."""
    if run is None:
        return str(submit(root, what) if what != "-" else put_seed(root, data, "stdin.json"))
    if not outlook.from_:
        return None
    return str(rerun(root, run, Wish(outlook.from_, reason="pop plan --apply")).file)


HEADINGS = ("step", "", "calls", "tokens", "USD", "why")


def _show(outlook: Outlook) -> None:
    rows: list[tuple[str, ...]] = [
        (row.step, row.what, *_figures(row.estimate), safe(row.why, 200)) for row in outlook.rows
    ]
    rows.append(("total", "", *_figures(outlook.total), ""))
    widths = [max(len(line[column]) for line in [HEADINGS, *rows]) for column in range(len(HEADINGS))]
    for line in [HEADINGS, *rows]:
        cells: list[Any] = [
            cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _figures(estimate: Estimate) -> tuple[str, str, str]:
    if estimate.calls is None:
        return ("unknown", "unknown", "unknown")
    tokens = (estimate.input_tokens or 0) + (estimate.output_tokens or 0)
    usd = "unknown" if estimate.cost_usd is None else dollars(estimate.cost_usd)
    return (f"{estimate.calls:.3g}", f"{tokens:,.0f}", usd)
