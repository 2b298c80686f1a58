"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pop.errors import RootError
from pop.settings import Root, find_root

F = TypeVar("F", bound=Callable[..., Any])


def _note_json(context: click.Context, _: click.Parameter, given: bool) -> bool:
    """`pop.cli.main` prints an error as JSON too, when that was asked for."""
    if given and isinstance(context.find_root().obj, dict):
        context.find_root().obj["json"] = True
    return given


as_json = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_note_json, help="Machine-readable output."
)


def with_root(function: F) -> F:
    """Give a command ``--root`` of its own too: ``pop ls --root DIR`` reads as well as ``pop --root DIR ls``."""
    option = click.option("--root", metavar="DIR", help="The folder to work in.")
    return option(function)


def with_models(function: F) -> F:
    """Give a command ``-m`` and ``--replay``: which models a seed is to ask, whatever it and its pipeline say."""
    replay = click.option("--replay", metavar="RUN", help="Answer every model call from a finished RUN, offline.")
    words = "Ask this model whatever a step asks for, or where it asks for ROLE. Repeatable."
    return replay(click.option("--model", "-m", "models", metavar="[ROLE=]NAME", multiple=True, help=words)(function))


def chosen_root(given: str | None) -> Root:
    """The root of this call.

    Raises:
        UsageError: None can be found.
    """
    context = click.get_current_context()
    return find_root(given or (context.find_root().obj or {}).get("root"))


def pipeline_file(root: Root, name: str | None) -> Path:
    """The file of a pipeline that is there.

    Raises:
        RootError: It is not.
    """
    path = root.pipeline_path(name)
    if not path.is_file():
        raise RootError(f"no {path.name} here", where=root.path, hint="create one: pop init")
    return path


def print_json(value: Any) -> None:
    from pop.errors import safe_json
    from pop.records import dump_json

    click.echo(safe_json(dump_json(value).decode()), nl=False)
