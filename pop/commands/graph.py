"""``pop graph``."""

from __future__ import annotations

import click

from pop.commands._shared import chosen_root, with_root
from pop.errors import UsageError, did_you_mean


@click.command()
@click.argument("what", required=False, metavar="[PIPELINE|RUN]")
@with_root
def command(what: str | None, root: str | None) -> None:
    """Print a pipeline as a Mermaid graph; of a RUN, with the states of its steps."""
    from pop.graph import mermaid
    from pop.pipeline import load_pipeline
    from pop.runs import find_run

    chosen = chosen_root(root)
    if what is None or what in chosen.pipeline_names():
        path = chosen.pipeline_path(what)
        click.echo(mermaid(load_pipeline(path.read_bytes(), where=path.name, name=what or "default")))
        return
    try:
        run = find_run(chosen, what)
    except UsageError:
        hint = did_you_mean(what, chosen.pipeline_names())
        raise UsageError(f"no pipeline and no run {what!r}", hint=hint) from None
    status = run.status()
    data = (run.path / "pipeline.json").read_bytes()
    pipeline = load_pipeline(data, where="pipeline.json", name=str(status.get("pipeline")))
    click.echo(mermaid(pipeline, {name: task["state"] for name, task in status.get("tasks", {}).items()}))
