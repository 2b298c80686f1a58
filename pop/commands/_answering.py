"""What ``pop approve``, ``pop reject`` and ``pop request-changes`` have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import UsageError

if TYPE_CHECKING:
    from pop.gates import Decision
    from pop.runs import Run

F = Callable[..., Any]


def answering(text_help: str) -> Callable[[F], F]:
    """The arguments and options of a command that answers a gate."""

    def decorate(function: F) -> F:
        text = click.option("-m", "text", metavar="TEXT", help=f"{text_help} `-` reads it from stdin.")
        for option in (with_root, as_json, text, click.argument("gate", required=False), click.argument("run")):
            function = option(function)
        return function

    return decorate


def answer(decision: Decision, run: str, gate: str | None, text: str | None, as_json: bool, root: str | None) -> None:
    """Answer a gate of a run, and say which file that is.

    Raises:
        UsageError: No such gate is open, or somebody was first.
    """
    from pop.answering import answer_gate, open_gate_of
    from pop.runs import find_run
    from pop.store import lock_holder

    chosen = chosen_root(root)
    found = find_run(chosen, run)
    instance = open_gate_of(found, gate)
    path, by = answer_gate(found, instance, decision, text=words_of(decision, found, instance, text))
    if as_json:
        print_json({"run_id": found.run_id, "gate": instance, "decision": decision, "by": by, "file": str(path)})
        return
    click.echo(path)
    if lock_holder(chosen.machine_room) is None:
        click.echo("no daemon is running here: the answer takes effect with the next pop up", err=True)


# -- the words -----------------------------------------------------------------------------------------------------


def words_of(decision: Decision, run: Run, instance: str, text: str | None) -> str | None:
    """What the person says: `text`, stdin, or for changes what they write in their editor.

    Raises:
        UsageError: Changes are asked for without a word.
    """
    from pop.gateanswers import MAX_TEXT_BYTES

    if text == "-":
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
        text = data.decode("utf-8", "replace")
    elif text is None and decision == "request-changes" and sys.stdin.isatty() and sys.stdout.isatty():
        text = _edited(run, instance)
    if decision == "request-changes" and not (text and text.strip()):
        hint = 'say what is to be done otherwise: -m "...", or -m - to read it from stdin'
        raise UsageError("request-changes without a text", where="-m", hint=hint)
    return text


_BELOW = "<!-- Write above this line what is to be done otherwise. What stands below is not sent. -->"


def _edited(run: Run, instance: str) -> str | None:
    from pop.store import read_file

    request = run.path / "tasks" / instance / "request.md"
    try:
        about = read_file(request, max_bytes=2**24).decode("utf-8", "replace")
    except OSError:
        about = ""
    text = click.edit(f"\n\n{_BELOW}\n\n{about}", extension=".md")
    return text.partition(_BELOW)[0] if text else None
