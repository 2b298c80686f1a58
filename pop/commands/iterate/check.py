"""``pop iterate check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pop.commands._shared import as_json, print_json, with_root
from pop.commands.iterate import nearest_root
from pop.errors import EXIT_CONFIG, EXIT_OK, ConfigErrors, safe

if TYPE_CHECKING:
    from pop.recipes.iterate.workflow import Loaded


@click.command("check")
@click.argument("workflow")
@as_json
@with_root
def command(workflow: str, as_json: bool, root: str | None) -> int:
    """Find every mistake in WORKFLOW, a YAML file or a name, that can be seen without its targets."""
    from pop.recipes.iterate.workflow import load_workflow

    try:
        loaded, problems = load_workflow(workflow, nearest_root(root)), []
    except ConfigErrors as error:
        loaded, problems = None, error.problems
    if as_json:
        about = _about(loaded) if loaded else {}
        print_json({"ok": not problems, "problems": [problem.to_json() for problem in problems], **about})
    elif loaded is None:
        for problem in problems:
            click.echo(str(problem))
        click.echo(f"{len(problems)} problem(s)", err=True)
    else:
        for line in _told(loaded):
            click.echo(line)
        click.echo(f"all is well: {loaded.path}", err=True)
    return EXIT_CONFIG if problems else EXIT_OK


def _about(loaded: Loaded) -> dict[str, Any]:
    return {
        "workflow": loaded.workflow.name,
        "path": str(loaded.path),
        "iterations": [one.name for one in loaded.workflow.order()],
        "roles": sorted(loaded.roles),
        "templates": {role: str(path) for role, path in loaded.templates.items()},
    }


def _told(loaded: Loaded) -> list[str]:
    """What will work on what."""
    lines = [safe(f"{loaded.workflow.name}: {' '.join(loaded.workflow.description.split())}", one_line=True)]
    for iteration in loaded.workflow.order():
        after = f" (after {', '.join(iteration.dependencies)})" if iteration.dependencies else ""
        lines.append(f"{iteration.name}{after}: {' '.join(iteration.goal.split())}")
        for agent in iteration.agents:
            lines.append(f"  {agent.role}: {', '.join(agent.targets)} -> {', '.join(agent.deliverables)}")
    return [safe(line, 1000) for line in lines]
