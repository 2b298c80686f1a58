"""``pop report``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from pop.commands._shared import chosen_root, with_root
from pop.errors import UsageError


@click.command()
@click.argument("run", default="last")
@click.option("--output", "-o", metavar="FILE", help="Where to write it; - is stdout. Without it: RUN.html here.")
@click.option("--md", is_flag=True, help="A short Markdown text instead, to stdout unless -o names a file.")
@with_root
def command(run: str, output: str | None, md: bool, root: str | None) -> None:
    """Write RUN (an id, a prefix, a name, or `last`) as one HTML file that needs no network and no POP."""
    from pop.report import look_of, report, short_text
    from pop.runs import find_run

    chosen = chosen_root(root)
    found, now = find_run(chosen, run), time.time()
    made = (short_text if md else report)(chosen, look_of(found, now), now=now)
    target = output or ("-" if md else f"{found.run_id}.html")
    if target == "-":
        click.echo(made, nl=False)
        return
    _write(Path(target), made)
    click.echo(target)


def _write(path: Path, text: str) -> None:
    """Whole, or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8", errors="replace")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write the report: {error.strerror}", where=path, hint="-o FILE names another place"
        ) from None
