"""``pop reject``."""

from __future__ import annotations

import click

from pop.commands._answering import answer, answering


@click.command()
@answering("Why.")
def command(run: str, gate: str | None, text: str | None, as_json: bool, root: str | None) -> None:
    """Say no at GATE of RUN: the run fails, and `pop retry` can take it up again. GATE may be left out when one is open."""
    answer("reject", run, gate, text, as_json, root)
