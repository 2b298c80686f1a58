"""The command line. Data goes to stdout, talk to stderr; every command takes ``--root``."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from pop import __version__
from pop.commands import COMMANDS


class LazyGroup(click.Group):
    """Imports a command's module when it is asked for, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"pop.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from pop.errors import did_you_mean

            hint = did_you_mean(args[0], COMMANDS) if args else None
            raise click.UsageError(f"{error.message} {hint or ''}".strip(), ctx) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", metavar="DIR", help="The folder to work in (else POP_ROOT, else the nearest pipeline.json).")
@click.version_option(__version__, prog_name="pop")
@click.pass_context
def pop(ctx: click.Context, root: str | None) -> None:
    """Run chains of LLM tasks: drop a seed, inspect the run, tail the ledger."""
    ctx.obj = {"root": root}


def main() -> None:
    """Entry point: turns a user's mistakes into their message and exit code; a bug flies with its traceback."""
    from pop.errors import EXIT_INTERRUPTED, EXIT_OK, PopError

    try:
        code = pop.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else EXIT_OK)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except PopError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `pop ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(EXIT_OK)
