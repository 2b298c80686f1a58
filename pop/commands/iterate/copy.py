"""``pop iterate copy``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from secrets import token_hex

import click

from pop.commands._shared import as_json, print_json, with_root
from pop.commands.iterate import nearest_root
from pop.errors import EXIT_OK, RootError, UsageError


@click.command("copy")
@click.argument("name")
@click.argument("folder", metavar="[DIR]", required=False)
@as_json
@with_root
def command(name: str, folder: str | None, as_json: bool, root: str | None) -> int:
    """Copy the workflow NAME with its templates and sample to DIR, to make it your own.

    Without DIR it goes to workflows/NAME of the root, where its name then means your copy; without a root, to ./NAME.
    """
    from pop.recipes.iterate.library import catalogue, find_workflow

    top = nearest_root(root)
    named = {entry.name: entry for entry in catalogue(None)}
    entry = named[name] if name in named else find_workflow(name, top)
    target = Path(folder) if folder else (top / "workflows" / entry.name if top else Path(entry.name))
    if os.path.lexists(target):
        hint = "name a folder that is not there yet: pop iterate copy NAME DIR"
        raise UsageError("something of that name is there already", where=target, hint=hint, code="is-there")
    _copy(entry.path.parent, target)
    if as_json:
        print_json({"name": entry.name, "from": str(entry.path.parent), "to": str(target)})
    else:
        click.echo(str(target / "workflow.yaml"))
        click.echo(f"edit it, then: pop iterate check {target}", err=True)
    return EXIT_OK


def _copy(source: Path, target: Path) -> None:
    """The folder appears whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name[:40]}.{token_hex(4)}.new"
    try:
        shutil.copytree(source, draft, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for path in (draft, *draft.rglob("*")):  # an installed package may be read-only
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.rename(draft, target)
    except OSError as error:
        raise RootError(f"cannot be copied: {(error.strerror or str(error)).lower()}", where=target) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
