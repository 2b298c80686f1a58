"""``pop iterate roles``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from pop.commands._shared import as_json, print_json, with_root
from pop.errors import EXIT_OK

if TYPE_CHECKING:
    from pop.recipes.iterate.library import Role


@click.command("roles")
@click.argument("role", required=False)
@as_json
@with_root
def command(role: str | None, as_json: bool, root: str | None) -> int:
    """List the roles of the library, or show ROLE with all it brings."""
    from pop.recipes.iterate.library import load_role, role_names

    if role is not None:
        _show(load_role(role), as_json)
        return EXIT_OK
    roles = [load_role(name) for name in role_names()]
    if as_json:
        print_json([_row(one) for one in roles])
        return EXIT_OK
    width = max((len(one.name) for one in roles), default=0)
    for one in roles:
        click.echo(f"{one.name.ljust(width)}  {_first_sentence(one.perspective)}")
    click.echo("pop iterate roles NAME shows one whole", err=True)
    return EXIT_OK


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]


def _row(role: Role) -> dict[str, Any]:
    from pop.recipes.iterate.library import ROLES, library_template

    file, template = ROLES / f"{role.name}.yaml", library_template(role.name)
    return {**role.model_dump(mode="json"), "path": str(file), "template": str(template)}


def _show(role: Role, as_json: bool) -> None:
    row = _row(role)
    if as_json:
        print_json(row)
        return
    click.echo(f"{role.name}: {' '.join(role.perspective.split())}")
    for heading in ("responsibilities", "capabilities", "constraints"):
        click.echo(f"\n{heading}:")
        for line in row[heading]:
            click.echo(f"  - {line}")
    model = role.model or "default"
    click.echo(f"\ntoken_budget: {role.token_budget}   complexity_threshold: {role.complexity_threshold:g}")
    click.echo(f"output_format: {role.output_format}   model: {model}")
    click.echo(f"written in {row['path']}; its prompt is made of {row['template']}", err=True)
