"""``pop cost``: from the ledger of calls, so it needs neither a daemon nor ``.pop``."""

from __future__ import annotations

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.costs import KEYS, Calls, add_up, figures, ordered, read_day
from pop.costsheet import all_digits, csv_of
from pop.errors import UsageError, safe
from pop.models.calls import Sum

CACHED = 3  # the column that is left out of the table while it holds zeros


@click.command()
@click.option("--by", type=click.Choice(list(KEYS)), default="model", show_default=True, help="What a row stands for.")
@click.option("--since", metavar="DAY", help="Calls from this day on: YYYY-MM-DD, UTC.")
@click.option("--until", metavar="DAY", help="Calls up to this day, and on it.")
@click.option("--run", "asked", metavar="RUN", help="Calls of one run, also of one that was removed.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values, without the total.")
@as_json
@with_root
def command(
    by: str, since: str | None, until: str | None, asked: str | None, as_csv: bool, as_json: bool, root: str | None
) -> None:
    """Add up what model calls cost, from pipeline-complete/calls/: every request that a provider counts."""
    if as_csv and as_json:
        raise UsageError("--csv and --json at once", hint="choose one")
    calls = Calls(chosen_root(root), read_day(since, "--since"), read_day(until, "--until"), asked)
    rows, total = add_up(calls, KEYS[by])
    calls.check()
    listed = ordered(by, rows)
    if as_json:
        told = [{by: name, **figures(part)} for name, part in listed]
        print_json({"by": by, "rows": told, "total": figures(total), "passed_over": calls.passed_over})
    elif as_csv:
        click.echo(csv_of(by, listed), nl=False)
    else:
        _tell(by, listed, total)
    if calls.passed_over and not as_json:
        click.echo(f"{calls.passed_over} line(s) of the ledger could not be read and are left out", err=True)


def _tell(by: str, rows: list[tuple[str, Sum]], total: Sum) -> None:
    if not rows:
        click.echo("no model calls", err=True)
        return
    table = [[by, "calls", "tok in", "cached", "tok out", "USD", ""]]
    table += [_row(safe(name, 60, one_line=True), part) for name, part in rows]
    table.append(_row("total", total))
    shown = [column for column in range(1, 6) if column != CACHED or total.cached_input_tokens]
    widths = [max(len(row[column]) for row in table) for column in range(6)]
    for row in table:
        cells = [row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in shown), row[6]]
        click.echo("  ".join(cells).rstrip())
    if total.estimated:
        click.echo("est.: calls whose tokens nobody counted for us, so they are estimated", err=True)
    if total.unpriced:
        click.echo("unpriced: in no sum; give their price in [models.NAME] of pop.toml", err=True)


def _row(name: str, part: Sum) -> list[str]:
    counts = (part.calls, part.input_tokens, part.cached_input_tokens, part.output_tokens)
    notes = [f"{part.estimated:,} est."] * bool(part.estimated)
    notes += [f"{part.unpriced:,} unpriced"] * bool(part.unpriced)
    return [name, *(f"{count:,}" for count in counts), all_digits(part.nano_usd), ", ".join(notes)]
