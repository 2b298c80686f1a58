"""``pop tail``."""

from __future__ import annotations

import json
import time

import click

from pop.commands._shared import as_json, chosen_root, with_root
from pop.errors import safe_json
from pop.runs import ledger_tail, safe


@click.command()
@click.option("-n", "count", default=10, show_default=True, help="How many lines to begin with.")
@click.option("-f", "--follow", is_flag=True, help="Wait for more.")
@as_json
@with_root
def command(count: int, follow: bool, as_json: bool, root: str | None) -> None:
    """Print the newest lines of pipeline-complete/runs.jsonl, readable, or as they are with --json."""
    ledger = chosen_root(root).ledger
    for line in ledger_tail(chosen_root(root), count):
        _say(line, as_json)
    place = ledger.stat().st_size if ledger.exists() else 0
    while follow:
        time.sleep(0.3)
        if not ledger.exists() or ledger.stat().st_size <= place:
            continue
        with open(ledger, "rb") as file:
            file.seek(place)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        place += len(whole)
        for line in whole.splitlines():
            _say(line, as_json)


def _say(line: bytes, as_json: bool) -> None:
    if as_json:
        click.echo(safe_json(line.decode("utf-8", "replace")))
        return
    try:
        row = json.loads(line)
        usage = row["usage"]
        click.echo(
            f"{row['finished_at'][:19]}  {row['run_id']}  {row['seconds']:.2f} s  {len(row['tasks'])} steps  "
            f"{usage['calls']} calls  ${usage['cost_usd']:.4f}  {safe(', '.join(row['models']))}"
        )
    except (ValueError, KeyError, TypeError):
        click.echo(safe(line.decode("utf-8", "replace")))
