"""``pop iterate list``."""

from __future__ import annotations

from typing import Any

import click

from pop.commands._shared import as_json, print_json, with_root
from pop.commands.iterate import nearest_root
from pop.errors import EXIT_OK, PopError, safe


@click.command("list")
@as_json
@with_root
def command(as_json: bool, root: str | None) -> int:
    """List the workflows that can be named: those of the root's workflows/, and those that come with POP."""
    from pop.recipes.iterate.library import catalogue

    rows = [_row(entry) for entry in catalogue(nearest_root(root))]
    if as_json:
        print_json(rows)
        return EXIT_OK
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        told = row["description"] or f"broken: pop iterate check {row['name']}"
        click.echo(f"{row['name'].ljust(width)}  {safe(' '.join(told.split()), 400, one_line=True)}")
        if row["iterations"]:
            sample = "; with a sample (--sample)" if row["sample"] else ""
            click.echo(f"{' ' * width}  {' -> '.join(row['iterations'])}{sample}")
    click.echo("pop iterate copy NAME makes one your own", err=True)
    return EXIT_OK


def _row(entry: Any) -> dict[str, Any]:
    from pop.recipes.iterate.workflow import load_workflow

    about: dict[str, Any]
    try:
        workflow = load_workflow(entry.path).workflow
        about = {"description": workflow.description.strip(), "iterations": [one.name for one in workflow.order()]}
    except PopError as error:
        about = {"description": None, "iterations": [], "error": str(error)}
    sample = str(entry.sample) if entry.sample else None
    return {"name": entry.name, "source": entry.source, "path": str(entry.path), "sample": sample, **about}
