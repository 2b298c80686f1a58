"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pop.settings import Root, find_root

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


def with_root(function: F) -> F:
    """Give a command ``--root`` of its own too: ``pop ls --root DIR`` reads as well as ``pop --root DIR ls``."""
    option = click.option("--root", metavar="DIR", help="The folder to work in.")
    return option(function)


def chosen_root(given: str | None) -> Root:
    """The root of this call.

    Raises:
        UsageError: None can be found.
    """
    context = click.get_current_context()
    return find_root(given or (context.find_root().obj or {}).get("root"))


def print_json(value: Any) -> None:
    from pop.records import dump_json

    click.echo(dump_json(value).decode(), nl=False)
