"""``pop submit``: a seed into the queue, whole, under a name of its own."""

from __future__ import annotations

from functools import partial

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_models, with_root


@click.command()
@click.argument("seed", metavar="FILE|-")
@with_models
@as_json
@with_root
def command(seed: str, models: tuple[str, ...], replay: str | None, as_json: bool, root: str | None) -> None:
    """Put FILE (a .json, a .zip, or a folder with seed.json; - for standard input) into the queue."""
    from pop.changes import changes_of, refuse_without_models
    from pop.drops import CERTAIN, submit
    from pop.store import lock_holder

    chosen = chosen_root(root)
    changes = changes_of(chosen, models, replay)
    certain = partial(refuse_without_models, chosen, codes=CERTAIN)
    path = submit(chosen, seed, changes, look=None if changes.recorded else certain)
    if as_json:
        print_json({"path": str(path)})
    else:
        click.echo(path)
        if lock_holder(chosen.machine_room) is None:
            click.echo("no daemon is running here: pop up serves the queue", err=True)
