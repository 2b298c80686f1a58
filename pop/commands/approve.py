"""``pop approve``."""

from __future__ import annotations

import click

from pop.commands._answering import answer, answering


@click.command()
@answering("A word for the record.")
def command(run: str, gate: str | None, text: str | None, as_json: bool, root: str | None) -> None:
    """Say yes at GATE of RUN: the run goes on with what the copies in its show/ say. GATE may be left out when one is open."""
    answer("approve", run, gate, text, as_json, root)
