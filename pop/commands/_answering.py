"""What ``pop approve``, ``pop reject`` and ``pop request-changes`` have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import UsageError, did_you_mean, safe

if TYPE_CHECKING:
    from pop.gates import Decision
    from pop.history import RunHistory
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
    from pop.gates import check_edits, give_answer, opened, owner
    from pop.runs import find_run
    from pop.store import Disk, lock_holder

    chosen = chosen_root(root)
    found = find_run(chosen, run)
    instance = open_gate_of(found, gate)
    words = words_of(decision, found, instance, text)
    gate_dir, by = found.path / "tasks" / instance, owner(os.getuid())
    about = opened(gate_dir)
    if about and decision != "reject" and not os.path.lexists(gate_dir / "decision.json"):
        check_edits(found.path, gate_dir, about.shown)
    path = give_answer(Disk(), gate_dir, decision, by=by, how="command", text=words)
    if as_json:
        print_json({"run_id": found.run_id, "gate": instance, "decision": decision, "by": by, "file": str(path)})
        return
    click.echo(path)
    if lock_holder(chosen.machine_room) is None:
        click.echo("no daemon is running here: the answer takes effect with the next pop up", err=True)


# -- which gate ----------------------------------------------------------------------------------------------------


def open_gate_of(run: Run, asked: str | None) -> str:
    """The instance that is meant: the only one that is open, or the one that is named.

    Raises:
        UsageError: None is open, several are, or this one is not; says who answered it.
    """
    history = _history(run)
    waiting = [name for name, instance in history.instances.items() if instance.state == "waiting"]
    if asked is not None:
        meant = [name for name in waiting if name == asked] or [name for name in waiting if _called(name, asked)]
        if len(meant) == 1:
            return _of_a_living_run(run, history, meant[0])
        if not meant:
            _refuse_answered(run, asked)
        waiting = meant or waiting
    _of_a_living_run(run, history, "")
    if not waiting:
        hint = f"pop show {run.run_id} tells where it stands"
        raise UsageError(f"{run.run_id} is {history.state}; no gate of it is open", hint=hint, code="gate-not-open")
    if asked is not None and asked not in map(_step_of, waiting):
        state = history.instances[asked].state if asked in history.instances else None
        message = f"{safe(asked, 80)!r} is not open: it is {state}" if state else f"no gate {safe(asked, 80)!r} is open"
        raise UsageError(message, where=run.run_id, hint=did_you_mean(asked, waiting), code="gate-not-open")
    if asked is None and len(waiting) == 1:
        return waiting[0]
    shown = "".join(f"\n    {name}" for name in waiting[:30])
    more = f"\n    and {len(waiting) - 30} more" if len(waiting) > 30 else ""
    raise UsageError(f"{len(waiting)} gates of {run.run_id} are open:{shown}{more}", hint="name the one you mean")


def _history(run: Run) -> RunHistory:
    from pop.history import read_history

    try:
        return read_history(run.path)
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        if run.here() != run:  # it was promoted while we looked
            return _history(run.here())
        state = run.status().get("state")
        raise UsageError(f"{run.run_id} is {state}; no gate of it is open", code="gate-not-open") from None


def _of_a_living_run(run: Run, history: RunHistory, instance: str) -> str:
    if history.state == "complete":
        raise UsageError(f"{run.run_id} is complete; it waits for nobody", code="gate-not-open")
    if history.state in ("failed", "cancelled"):
        message = f"{run.run_id} is {history.state}; it waits for nobody"
        raise UsageError(message, hint=f"to take it up again: pop retry {run.run_id}", code="gate-not-open")
    return instance


def _step_of(instance: str) -> str:
    from pop.steps import step_of

    return step_of(instance).removesuffix("+control")


def _called(instance: str, asked: str) -> bool:
    return asked in (_step_of(instance), instance.removesuffix("+control"))


def _refuse_answered(run: Run, asked: str) -> None:
    """Of a gate that is no longer open its folder still tells.

    Raises:
        AlreadyAnswered: Says who, when and how.
    """
    from pop.errors import PopError
    from pop.gates import AlreadyAnswered, answer_of, opened
    from pop.store import contained

    try:
        gate_dir: Path = contained(run.path / "tasks", asked)
    except PopError:
        return
    given = answer_of(gate_dir) if opened(gate_dir) else None
    if given:
        raise AlreadyAnswered(asked, given)


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
    request = run.path / "tasks" / instance / "request.md"
    try:
        about = request.read_text(encoding="utf-8", errors="replace")
    except OSError:
        about = ""
    text = click.edit(f"\n\n{_BELOW}\n\n{about}", extension=".md")
    return text.partition(_BELOW)[0] if text else None
