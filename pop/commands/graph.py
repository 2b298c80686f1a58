"""``pop graph``."""

from __future__ import annotations

import os

import click

from pop.commands._shared import as_json, chosen_root, pipeline_file, print_json, with_root
from pop.errors import UsageError, did_you_mean


@click.command()
@click.argument("what", required=False, metavar="[PIPELINE|RUN]")
@as_json
@with_root
def command(what: str | None, as_json: bool, root: str | None) -> None:
    """Print a pipeline as a Mermaid graph; of a RUN, with the states of its steps."""
    from pop.graph import mermaid
    from pop.pipeline import load_pipeline
    from pop.runs import find_run

    chosen = chosen_root(root)
    if what is None or what in chosen.pipeline_names():
        path = pipeline_file(chosen, what)
        where = os.path.relpath(path, chosen.path)
        _tell(
            what or "default", mermaid(load_pipeline(path.read_bytes(), where=where, name=what or "default")), as_json
        )
        return
    try:
        run = find_run(chosen, what)
    except UsageError as error:
        if error.code != "unknown-run":  # it fits several, or one that was removed
            raise
        hint = did_you_mean(what, chosen.pipeline_names())
        raise UsageError(f"no pipeline and no run {what!r}", hint=hint) from None
    status = run.status()
    own = run.path / "pipeline.json"
    where = os.path.relpath(own, chosen.path)
    pipeline = load_pipeline(own.read_bytes(), where=where, name=str(status.get("pipeline")))
    states = {name: task["state"] for name, task in status["tasks"].items()}
    _tell(run.run_id, mermaid(pipeline, states), as_json)


def _tell(name: str, graph: str, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "mermaid": graph})
    else:
        click.echo(graph)
