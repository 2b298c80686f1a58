"""``pop request-changes``."""

from __future__ import annotations

import click

from pop.commands._answering import answer, answering


@click.command()
@answering("What is to be done otherwise; on a terminal your editor opens without it.")
def command(run: str, gate: str | None, text: str | None, as_json: bool, root: str | None) -> None:
    """Ask at GATE of RUN for the work to be done again, with your words. GATE may be left out when one is open."""
    answer("request-changes", run, gate, text, as_json, root)
