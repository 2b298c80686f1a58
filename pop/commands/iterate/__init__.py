"""``pop iterate``: one module per subcommand, one row each; a module is imported when it is asked for."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from pop.commands._shared import with_root
from pop.errors import UsageError, did_you_mean
from pop.settings import find_root

SUBCOMMANDS: dict[str, str] = {
    "list": "List the workflows that can be named.",
    "roles": "List the roles of the library, or show one.",
    "copy": "Copy a workflow of the catalogue, to make it one's own.",
    "check": "Find every mistake in a workflow before anything is made of it.",
    "generate": "Allocate targets to agents and write their prompts, criteria and pipeline.",
    "plan": "Let a model decompose a task into a workflow, for you to read.",
    "run": "Run what was generated.",
    "monitor": "Show how far each agent is, and who stands still.",
    "validate": "Hold what was made to the completion criteria.",
    "feedback": "Report how each agent did, and propose what to change.",
    "orchestrate": "Generate, run, monitor, validate and give feedback, in one go.",
}


class LazySubcommands(click.Group):
    """Imports a subcommand's module when it is asked for; hints at the nearest one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        found: click.Command = import_module(f"pop.commands.iterate.{cmd_name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            hint = did_you_mean(args[0], SUBCOMMANDS) if args and not args[0].startswith("-") else None
            said = f"{hint[0].upper()}{hint[1:]}" if hint else ""
            raise click.UsageError(f"{error.message} {said}".strip(), ctx) from None


@click.group(cls=LazySubcommands)
@with_root
@click.pass_context
def command(ctx: click.Context, root: str | None) -> None:
    """Split work into iterations, give it to agents by role, and check what they made.

    A workflow in YAML says who works on what: `pop iterate list` shows those that come with POP. `generate` makes a
    folder of it to read and edit, `run` runs that, `validate` checks what was made.
    """
    if root:
        ctx.ensure_object(dict)["root"] = root


def nearest_root(given: str | None) -> Path | None:
    """The root of this call, or None: workflows can be looked at, and generated, without one.

    Raises:
        UsageError: One is named that is not there.
    """
    asked = given or (click.get_current_context().find_root().obj or {}).get("root")
    try:
        return find_root(asked).path
    except UsageError:
        if asked or os.environ.get("POP_ROOT"):
            raise
        return None
