"""``pop graph``."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from pop.commands._shared import as_json, chosen_root, pipeline_file, print_json, with_root
from pop.errors import UsageError, did_you_mean
from pop.steps import Pipeline


@click.command()
@click.argument("what", required=False, metavar="[PIPELINE|RUN]")
@click.option("--svg", is_flag=True, help="As a picture: SVG.")
@as_json
@with_root
def command(what: str | None, svg: bool, as_json: bool, root: str | None) -> None:
    """Print a pipeline as a Mermaid graph, or as an SVG; of a RUN, with the states of its steps."""
    from pop.pipeline import load_pipeline
    from pop.runs import find_run
    from pop.store import read_file

    if svg and as_json:
        raise UsageError("--svg and --json do not go together", hint="--svg prints the picture itself")
    chosen = chosen_root(root)
    if what is None or what in chosen.pipeline_names():
        path = pipeline_file(chosen, what)
        where = os.path.relpath(path, chosen.path)
        pipeline = load_pipeline(read_file(path, links=True), where=where, name=what or "default")
        _tell(what or "default", pipeline, None, svg, as_json)
        return
    try:
        run = find_run(chosen, what)
    except UsageError as error:
        if error.code != "unknown-run":  # it fits several, or one that was removed
            raise
        hint = did_you_mean(what, chosen.pipeline_names())
        raise UsageError(f"no pipeline and no run {what!r}", hint=hint) from None
    if svg:
        from pop.runlook import look_at

        look = look_at(run)
        if look.pipeline is not None:
            _tell(run.run_id, look.pipeline, look.states, svg, as_json, look.notes)
            return
    status = run.status()
    own = run.path / "pipeline.json"
    where = os.path.relpath(own, chosen.path)
    pipeline = load_pipeline(read_file(own), where=where, name=str(status.get("pipeline")))
    states = {name: task["state"] for name, task in status["tasks"].items()}
    _tell(run.run_id, pipeline, states, svg, as_json)


def _tell(
    name: str,
    pipeline: Pipeline,
    states: Mapping[str, str] | None,
    svg: bool,
    as_json: bool,
    notes: Mapping[str, str] | None = None,
) -> None:
    from pop.drawing import draw
    from pop.graph import mermaid

    if svg:
        click.echo(
            draw(pipeline, states, notes=notes, alone=True, label=f"{name}: {len(pipeline.steps)} steps"), nl=False
        )
    elif as_json:
        print_json({"name": name, "mermaid": mermaid(pipeline, states)})
    else:
        click.echo(mermaid(pipeline, states))
