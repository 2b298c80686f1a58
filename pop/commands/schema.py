"""``pop schema``."""

from __future__ import annotations

from typing import Any

import click
from pydantic import BaseModel

from pop.commands._shared import print_json
from pop.errors import UsageError, did_you_mean


def schemas() -> dict[str, Any]:
    """The JSON Schemas by name."""
    from pop import records
    from pop.pipeline_schema import pipeline_schema
    from pop.recipes.agentic_records import workflow_schemas
    from pop.recipes.iterate.manifest import Manifest
    from pop.recipes.iterate.workflow import WorkflowFile
    from pop.recipes.wizard.answers import Answers
    from pop.recipes.wizard.goals import goal_map_schema
    from pop.settings import Settings
    from pop.tasks import FrontMatter

    models: dict[str, type[BaseModel]] = {
        "seed": records.Seed,
        "settings": Settings,
        "front-matter": FrontMatter,
        "status": records.Status,
        "run": records.RunRecord,
        "letter": records.Letter,
        "error": records.ErrorRecord,
        "trail": records.TrailLine,
        "call": records.CallRecord,
        "project": Answers,
        "iterate-workflow": WorkflowFile,
        "iterate-manifest": Manifest,
    }
    found = {name: model.model_json_schema() for name, model in models.items()}
    return {"pipeline": pipeline_schema(), "goal-map": goal_map_schema(), **found, **workflow_schemas()}


@click.command()
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """Print the JSON Schema called NAME; without a name, list them."""
    found = schemas()
    if name is None:
        click.echo("\n".join(found))
    elif name not in found:
        raise UsageError(f"no schema {name!r}", hint=did_you_mean(name, found))
    else:
        print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **found[name]})
