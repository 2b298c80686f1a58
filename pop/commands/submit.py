"""``pop submit``: a seed into the queue, whole, under a name of its own."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import UsageError
from pop.settings import Root


def submit(root: Root, seed: Path | str) -> Path:
    """Copy a file, folder or ``-`` (standard input) into pipeline-pending/; it appears there whole.

    Raises:
        UsageError: There is no such file.
    """
    root.pending.mkdir(parents=True, exist_ok=True)
    source = None if str(seed) == "-" else Path(seed)
    if source is not None and not source.exists():
        raise UsageError(f"no file {str(seed)!r}")
    name = source.resolve().name if source else f"stdin-{time.time_ns()}.json"
    draft = root.pending / f".{os.getpid()}-{time.time_ns()}.draft"
    if source is None:
        draft.write_bytes(sys.stdin.buffer.read())
    elif source.is_dir():
        shutil.copytree(source, draft)
        for path in [draft, *draft.rglob("*")]:
            os.utime(path, (time.time() - 60, time.time() - 60))  # whole, so nobody needs to wait for it to settle
    else:
        shutil.copyfile(source, draft)
    return _appear(draft, root.pending, name)


def _appear(draft: Path, folder: Path, name: str) -> Path:
    from pop.store import rename_noreplace

    stem, suffix = os.path.splitext(name)
    for number in range(1, 100_000):
        target = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
        try:
            rename_noreplace(draft, target)
            return target
        except FileExistsError:
            continue
    raise UsageError("the queue holds 100,000 seeds of this name")


@click.command()
@click.argument("seed", metavar="FILE|-")
@as_json
@with_root
def command(seed: str, as_json: bool, root: str | None) -> None:
    """Put FILE (a .json, a .zip, or a folder with seed.json; - for standard input) into the queue."""
    chosen = chosen_root(root)
    path = submit(chosen, seed)
    if as_json:
        print_json({"path": str(path)})
    else:
        click.echo(path)
        from pop.store import lock_holder

        if lock_holder(chosen.machine_room) is None:
            click.echo("no daemon is running here: pop up serves the queue", err=True)
