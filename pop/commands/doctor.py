"""``pop doctor``."""

from __future__ import annotations

from dataclasses import asdict

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import EXIT_CONFIG, EXIT_OK


@click.command()
@as_json
@with_root
def command(as_json: bool, root: str | None) -> int:
    """Explain the state of this folder in plain words, and what to do about it.

    Exits with 3 when something keeps POP from its work here; failed runs and refused seeds are told and change nothing.
    """
    from pop.health import examine
    from pop.queue import ignore_lease_breaks

    ignore_lease_breaks()
    findings = list(examine(chosen_root(root)))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{'✓' if finding.ok else '!'} {finding.about:<9} {finding.says}")
            if finding.next_move and not finding.ok:
                click.echo(f"            → {finding.next_move}")
    return EXIT_OK if all(finding.ok or not finding.blocks for finding in findings) else EXIT_CONFIG
