"""The command line. Data goes to stdout, talk to stderr; every command takes ``--root``."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, NoReturn

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
        command: click.Command = import_module(f"pop.commands.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1) if args else []
            hint = f"Did you mean {near[0]!r}?" if near else f"The commands are {', '.join(COMMANDS)}."
            raise click.UsageError(f"{error.message} {hint}", ctx) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", metavar="DIR", help="The folder to work in (else POP_ROOT, else the nearest pipeline.json).")
@click.version_option(__version__, prog_name="pop")
@click.pass_context
def pop(ctx: click.Context, root: str | None) -> None:
    """Run chains of LLM tasks: drop a seed, inspect the run, tail the ledger."""
    ctx.ensure_object(dict)["root"] = root


def main() -> None:
    """Entry point: turns a user's mistakes into their message and exit code; a bug flies with its traceback."""
    asked: dict[str, Any] = {}
    try:
        code = _called(asked)
    except BrokenPipeError:  # `pop show last | head -1`: nobody reads any more
        _leave_quietly()
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # the terminal is gone; Python would make an exit code of its own of that
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    sys.exit(code)


def _called(asked: dict[str, Any]) -> int:
    """Run the command and flush what it said; returns the exit code."""
    from pop.errors import EXIT_INTERRUPTED, EXIT_OK, PopError

    try:
        code = pop.main(standalone_mode=False, obj=asked)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except SystemExit:  # the one case in which click exits by itself: nobody reads any more
        raise BrokenPipeError from None
    except PopError as error:
        return _told(error, asked)
    except OSError as error:
        return _told(_about_files(error), asked)


def _told(error: Any, asked: dict[str, Any]) -> int:
    """Say what is wrong; where JSON was asked for, to stdout as ``{"error": {...}, "problems": [{...}]}`` too."""
    click.echo(str(error), err=True)
    if asked.get("json"):
        from pop.commands._shared import print_json

        problems = getattr(error, "problems", None)
        listed = [problem.to_json() for problem in problems] if problems else []
        print_json({"error": error.to_json(), "problems": listed})
    return int(error.exit_code)


def _about_files(error: OSError) -> Any:
    """What the kernel said about a file, as one of our errors."""
    from pop.errors import RootError

    said = error.strerror or str(error) or type(error).__name__
    hint = "look at its owner and mode: ls -ld" if isinstance(error, PermissionError) else None
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return RootError(said[:1].lower() + said[1:], where=names or None, hint=hint, code="os-error")


def _leave_quietly() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(0)
