"""Options that several of the `pop iterate` commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def with_targets(function: F) -> F:
    """Give a command what a folder is generated from: ``--targets``, ``--output``, ``--base`` and ``--sample``."""
    for option in (
        click.option("--sample", is_flag=True, help="Work on the sample that comes with a workflow of the catalogue."),
        click.option("--base", metavar="DIR", help="Where the globs look for targets; else here."),
        click.option("--output", "-o", metavar="DIR", help="The folder to write; else one of the workflow's name."),
        click.option(
            "--targets", "-t", metavar="GLOB", multiple=True, help="What to work on; else the workflow's own globs."
        ),
    ):
        function = option(function)
    return function


def with_agents_models(function: F) -> F:
    """Give a command ``-m``: which models the agents are to ask."""
    words = "Ask this model whatever an agent asks for, or where it asks for ROLE. Repeatable."
    return click.option("--model", "-m", "models", metavar="[ROLE=]NAME", multiple=True, help=words)(function)
