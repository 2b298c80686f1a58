"""``pop cost``: from the ledger of calls, so it needs neither a daemon nor ``.pop``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import UsageError, safe
from pop.models.calls import CallLine, Sum, calls_in, day_files, usd
from pop.runs import find_run
from pop.settings import Root


def _pipeline(line: CallLine) -> str:
    """`pop models --test` asks without one."""
    return line.pipeline or line.run_id


KEYS: dict[str, Callable[[CallLine], str]] = {
    "model": lambda line: line.model,
    "step": lambda line: f"{_pipeline(line)}/{line.step}",
    "run": lambda line: line.run_id,
    "pipeline": _pipeline,
    "day": lambda line: line.day,
}
CACHED = 3  # the column that is left out of the table while it holds zeros
COLUMNS = (
    "calls", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cost_usd", "estimated_calls",
    "unpriced_calls",
)  # fmt: skip


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
    calls = Calls(chosen_root(root), _day(since, "--since"), _day(until, "--until"), asked)
    rows, total = add_up(calls, KEYS[by])
    calls.check()
    ordered = sorted(rows.items(), key=lambda row: row[0])
    if by not in ("day", "run"):
        ordered.sort(key=lambda row: (-row[1].nano_usd, -row[1].calls))
    if as_json:
        listed = [{by: name, **_figures(part)} for name, part in ordered]
        print_json({"by": by, "rows": listed, "total": _figures(total), "passed_over": calls.passed_over})
    elif as_csv:
        _write_csv(by, ordered)
    else:
        _tell(by, ordered, total)
    if calls.passed_over and not as_json:
        click.echo(f"{calls.passed_over} line(s) of the ledger could not be read and are left out", err=True)


class Calls:
    """The calls of a ledger that are asked for, read one after the other."""

    def __init__(self, root: Root, since: str | None, until: str | None, asked: str | None) -> None:
        if since and until and since > until:
            raise UsageError(f"--since {since} is after --until {until}")
        self._files = day_files(root.calls, since=since or "", until=until or "9")
        self._unknown: UsageError | None = None
        self._asked = asked
        self._run_ids: set[str] = set()
        self._prefix = ""
        self.passed_over = 0
        if asked is not None:
            self._choose(root, asked)

    def _choose(self, root: Root, asked: str) -> None:
        try:
            self._prefix = find_run(root, asked).run_id
        except UsageError as error:
            if error.code not in ("unknown-run", "removed"):
                raise
            self._prefix, self._unknown = asked, error

    def __iter__(self) -> Iterator[CallLine]:
        for path in self._files:
            for _, line in calls_in(path):
                if line is None:
                    self.passed_over += 1
                elif line.run_id.startswith(self._prefix):
                    if self._unknown is not None:
                        self._run_ids.add(line.run_id)
                    yield line

    def check(self) -> None:
        """Whether what was read is one run, where one was asked for whose folder is gone.

        Raises:
            UsageError: It is none, or several.
        """
        if self._unknown is None or len(self._run_ids) == 1:
            return
        if not self._run_ids:
            raise self._unknown
        shown = ", ".join(sorted(self._run_ids)[-5:])
        message = f"{self._asked!r} fits {len(self._run_ids)} runs that were removed: {shown}"
        raise UsageError(message, hint="give more of the id")


def add_up(calls: Calls, key: Callable[[CallLine], str]) -> tuple[dict[str, Sum], Sum]:
    """The sums by key, and all together. What was not billed counts for nothing and makes no row."""
    rows: dict[str, Sum] = {}
    total = Sum()
    for line in calls:
        if line.billed:
            rows.setdefault(key(line), Sum()).add(line)
            total.add(line)
    return rows, total


def _day(text: str | None, option: str) -> str | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UsageError(f"{option} {text!r} is no day", hint="write it as 2026-11-21 (UTC)") from None


def _figures(part: Sum) -> dict[str, Any]:
    return {
        "calls": part.calls,
        "input_tokens": part.input_tokens,
        "cached_input_tokens": part.cached_input_tokens,
        "output_tokens": part.output_tokens,
        "reasoning_tokens": part.reasoning_tokens,
        "cost_usd": usd(part.nano_usd),
        "estimated_calls": part.estimated,
        "unpriced_calls": part.unpriced,
    }


def _write_csv(by: str, rows: list[tuple[str, Sum]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([by, *COLUMNS])
    for name, part in rows:
        figures = {**_figures(part), "cost_usd": dollars(part.nano_usd)}
        writer.writerow([_harmless(name), *(figures[column] for column in COLUMNS)])


def _harmless(cell: str) -> str:
    """A cell that a spreadsheet would take for a formula begins with an apostrophe instead."""
    shown = safe(cell, one_line=True)
    return f"'{shown}" if shown.lstrip().startswith(("=", "+", "-", "@")) else shown


def dollars(nano_usd: int) -> str:
    """All digits there are, and at least four: ``0.0012``, ``0.000000025``."""
    whole, part = divmod(nano_usd, 10**9)
    digits = f"{part:09d}"
    return f"{whole}.{digits[:4]}{digits[4:].rstrip('0')}"


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
    return [name, *(f"{count:,}" for count in counts), dollars(part.nano_usd), ", ".join(notes)]
