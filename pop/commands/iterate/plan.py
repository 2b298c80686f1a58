"""``pop iterate plan``: the Master Orchestrator decomposes a task into a workflow, for a person to read."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pop.changes import Changes, changes_of, refuse_without_models
from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import (
    EXIT_BUDGET,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_RUN_FAILED,
    EXIT_WAITING,
    ConfigError,
    UsageError,
    safe,
)

if TYPE_CHECKING:
    from pop.recipes.iterate.proposals import Proposal
    from pop.runs import Run
    from pop.settings import Root


TIMES = 4


class CannotReason(ConfigError):
    """Only the embedded engine is there."""

    code = "cannot-reason"


@click.command()
@click.argument("task", metavar="[TASK|-]", required=False)
@click.option(
    "--targets", "-t", metavar="GLOB", multiple=True, help="Files the task is about, below --base. Repeatable."
)
@click.option(
    "--base", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Where they lie (else this folder)."
)
@click.option("--model", "-m", "models", metavar="[ROLE=]NAME", multiple=True, help="The model that plans. Repeatable.")
@click.option("--continue", "run", metavar="RUN", help="Go on with a run that waited for your answers.")
@click.option("--start", is_flag=True, help="Copy the nearest workflow instead, marked as a start; no model is asked.")
@click.option("--quiet", "-q", is_flag=True, help="Do not show how it goes.")
@as_json
@with_root
def command(
    task: str | None,
    targets: tuple[str, ...],
    base: Path | None,
    models: tuple[str, ...],
    run: str | None,
    start: bool,
    quiet: bool,
    as_json: bool,
    root: str | None,
) -> int:
    """Let a model decompose TASK (in plain words; - for standard input) into iterations, roles and criteria.

    It assesses the task, asks where something is open (exit code 5; `pop approve RUN -m ...` answers, --continue goes on),
    and writes workflows/NAME/workflow.yaml, a proposal for you to read. Nothing of it runs.
    """
    chosen = chosen_root(root)
    if (task is None) == (run is None):
        raise UsageError("give a task, or --continue RUN", hint='pop iterate plan "Write a migration guide for ..."')
    if run is not None:
        return _continue(chosen, run, quiet or as_json, as_json)
    words = sys.stdin.read() if task == "-" else str(task)
    if start:
        return _start(chosen, words, as_json)
    return _begin(chosen, words, targets, base or Path.cwd(), models, quiet or as_json, as_json)


def _begin(
    root: Root, task: str, targets: tuple[str, ...], base: Path, models: tuple[str, ...], quiet: bool, as_json: bool
) -> int:
    from pop.commands.run import _is_served, _refuse_broken
    from pop.recipes.iterate.proposals import PIPELINE, install, seed_data
    from pop.records import dump_json

    data = seed_data(root, task, targets, base.resolve())
    changes = changes_of(root, models, pipeline=PIPELINE if models else None)
    _refuse_embedded(root, task, changes)
    for path in install(root):
        click.echo(f"note: {path.relative_to(root.path)} was edited; it is used as it is", err=True)
    _refuse_broken(root)
    served = _is_served(root)
    with tempfile.TemporaryDirectory(prefix="pop-plan-") as around:
        seed = Path(around, "plan.json")
        seed.write_bytes(dump_json({"pipeline": PIPELINE, "name": "plan", "data": data}))
        name = _submit(root, seed, changes, keys=not served)
    return _end(root, _follow(root, name, None, quiet), as_json)


def _submit(root: Root, seed: Path, changes: Changes, *, keys: bool) -> str:
    from pop.drops import submit_alone

    return submit_alone(root, str(seed), changes or None, look=partial(refuse_without_models, root, keys=keys)).name


def _refuse_embedded(root: Root, task: str, changes: Changes) -> None:
    """The embedded engine copies sentences: a workflow of its making would be a pretence.

    Raises:
        CannotReason: Says which workflow would do as a start.
    """
    from pop.recipes.iterate.proposals import is_embedded, nearest

    model = changes.models.get("default") or changes.models.get("*") or "default"
    if not is_embedded(root, model):
        return
    offered = f"; --start copies the nearest workflow, {nearest(root, task).name!r}, marked as a start"
    message = (
        f"the model {model!r} is the embedded engine: extractive, not a language model; it cannot decompose a task"
    )
    raise CannotReason(message, hint=f"set OPENAI_API_KEY or name a model with -m{offered}")


def _start(root: Root, task: str, as_json: bool) -> int:
    from pop.recipes.iterate.proposals import nearest, write_start

    entry = nearest(root, task)
    path = write_start(root, entry, task)
    name = path.parent.name
    moves = [f"edit {path}", f"pop iterate check {name}"]
    if as_json:
        print_json({"state": "start", "nearest": entry.name, "workflow": str(path), "name": name, "next": moves})
        return EXIT_OK
    click.echo(f"a start, no plan: nobody has decomposed the task; a copy of {entry.name!r}", err=True)
    click.echo(f"start      {path}")
    for move in moves:
        click.echo(f"next       {move}")
    return EXIT_OK


def _continue(root: Root, asked: str, quiet: bool, as_json: bool) -> int:
    """Go on where it waits for an answer that is there by now; of one that is complete write the workflow."""
    from pop.commands.iterate._serving import answered
    from pop.recipes.iterate.proposals import seed_of
    from pop.runs import find_run

    run = find_run(root, asked)
    seed_of(run)
    for _ in range(
        TIMES
    ):  # a file that answers counts when it has stood still for a second: a daemon of our own may end before
        status = run.status()
        if status.get("state") not in ("queued", "running") and not (
            status.get("state") == "waiting" and answered(run, status)
        ):
            break
        run = _follow(root, None, run, quiet)
    return _end(root, run, as_json)


def _follow(root: Root, seed: str | None, run: Run | None, quiet: bool) -> Run:
    """See the run through, by the daemon that serves the root or one of our own, until it ends or waits for a person."""
    from pop.commands.iterate._serving import Server
    from pop.commands.run import _end_as_by_ctrl_c, _find
    from pop.display import Progress

    _end_as_by_ctrl_c()
    with Progress(quiet=quiet) as progress, Server(root) as server:
        while True:
            try:
                server.serve(seed, run)
                run = run.here() if run else _find(root, str(seed))
                if run is not None:
                    progress.show(run)
                    if _rests(root, run, server):
                        return run.here()
                else:
                    server.refuse_gone(str(seed))
                time.sleep(0.1)
            except KeyboardInterrupt:
                if not server.stop():
                    return _interrupted(run, seed)


def _rests(root: Root, run: Run, server: Any) -> bool:
    """Whether it has ended, or waits for a person."""
    from pop.commands.run import _in_ledger
    from pop.display import is_answered

    if run.place == "complete":
        return _in_ledger(root, run.run_id)
    if server.is_own:
        return bool(server.is_gone)
    status = run.status()
    if status.get("state") in ("waiting", "paused"):
        return not is_answered(root, run, status)
    return status.get("state") in ("failed", "cancelled", "unreadable") and not run.waiting_orders()


def _interrupted(run: Run | None, seed: str | None) -> Run:
    from pop.errors import PopError

    where = f"pop iterate plan --continue {run.run_id} goes on" if run else f"the seed stays in the queue as {seed}"
    error = PopError("interrupted", hint=where, code="interrupted")
    error.exit_code = EXIT_INTERRUPTED
    raise error


def _end(root: Root, run: Run, as_json: bool) -> int:
    """Write the workflow of a run that is complete; else say what is open, and the next move."""
    from pop.recipes.iterate.proposals import write_proposal

    status = run.status()
    state = status.get("state")
    if state == "complete":
        return _proposed(run, write_proposal(root, run), as_json)
    if state == "waiting":
        return _ask(root, run, status, as_json)
    if as_json:
        print_json({"state": state, "run_id": run.run_id, "path": str(run.path), "error": status.get("error")})
    else:
        _tell_ended(root, run, status)
    if state in ("queued", "running"):
        return EXIT_INTERRUPTED
    if state == "paused":
        return EXIT_WAITING
    return EXIT_BUDGET if (status.get("error") or {}).get("error_class") == "budget" else EXIT_RUN_FAILED


def _tell_ended(root: Root, run: Run, status: dict[str, Any]) -> None:
    from pop.display import closing_lines

    for line in closing_lines(root, run, status):
        click.echo(line)


def _proposed(run: Run, proposal: Proposal, as_json: bool) -> int:
    moves = proposal.next_moves()
    if as_json:
        about = {"workflow": str(proposal.path), "name": proposal.name, "again": proposal.again}
        print_json({"state": "complete", "run_id": run.run_id, **about, "next": moves})
        return EXIT_OK
    click.echo("a proposal of a model: nothing has run; it passes pop iterate check", err=True)
    click.echo(f"{'written before ' if proposal.again else 'workflow  '} {proposal.path}")
    for move in moves:
        click.echo(f"next       {move}")
    return EXIT_OK


def _ask(root: Root, run: Run, status: dict[str, Any], as_json: bool) -> int:
    """The questions that are open, and how to answer them."""
    from pop.display import open_gates

    gates = open_gates(status)
    questions = _questions(run) if "questions" in gates else []
    folder = run.step_dir("questions")
    answer = f'pop approve {run.run_id} -m "1. ..."'
    moves = [answer, f"pop iterate plan --continue {run.run_id}"]
    if as_json:
        about = {"run_id": run.run_id, "path": str(run.path), "gates": gates, "questions": questions}
        print_json({"state": "waiting", **about, "request": str(folder / "request.md"), "next": moves})
        return EXIT_WAITING
    if not questions:  # a gate that POP opened
        _tell_ended(root, run, status)
        click.echo(f"next       {moves[1]}, when it is answered")
        return EXIT_WAITING
    click.echo(
        f"{len(questions)} question{'s are' if len(questions) > 1 else ' is'} open before the task is decomposed:"
    )
    for number, one in enumerate(questions, 1):
        click.echo(f"  {number}. {safe(one['question'], 1000)}")
        if one["why"]:
            click.echo(f"     {safe(one['why'], 1000)}")
        if one["options"]:
            click.echo(f"     {' | '.join(safe(option, 200, one_line=True) for option in one['options'])}")
    click.echo(f"answer     {answer}")
    click.echo(
        f"           or write each `answer` into {os.path.relpath(folder / 'show' / 'assess.json')}, then pop approve {run.run_id}"
    )
    click.echo(f"           pop request-changes {run.run_id} -m ... has the task assessed anew")
    click.echo(f"then       {moves[1]}")
    return EXIT_WAITING


def _questions(run: Run) -> list[dict[str, Any]]:
    from pop.records import read_json

    try:
        found = read_json((run.step_dir("assess") / "output.json").read_bytes())
        return list(found["questions"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
