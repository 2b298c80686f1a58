"""``pop run``: one seed, through the daemon's own path, shown as it goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import orjson

from pop.changes import Changes, changes_of, refuse_without_models
from pop.commands._shared import as_json, chosen_root, print_json, with_models, with_root
from pop.errors import (
    EXIT_BUDGET,
    EXIT_CONFIG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_RUN_FAILED,
    EXIT_WAITING,
    PopError,
    UsageError,
    did_you_mean,
)
from pop.runs import Run
from pop.settings import Root
from pop.store import lines_of

OF_MODELS = frozenset({"no-program", "unknown-run", "no-price"})  # counts only for the models that this run asks for


@click.command()
@click.argument("seed", metavar="SEED", required=False)
@click.option("--pipeline", "-p", metavar="NAME", help="The pipeline to run (else the seed's own, else pipeline.json).")
@with_models
@click.option("--quiet", "-q", is_flag=True, help="Only say where the result lies.")
@as_json
@with_root
def command(
    seed: str | None,
    pipeline: str | None,
    models: tuple[str, ...],
    replay: str | None,
    quiet: bool,
    as_json: bool,
    root: str | None,
) -> int:
    """Run SEED (a file, a folder with seed.json, a .zip, or -) to its end, or until it waits for a person (exit code 5).

    Where a daemon serves this folder the seed goes into its queue; otherwise one is started for this seed alone.
    With --replay and without SEED the recorded run's own seed is taken.
    """
    if seed is None and replay is None:
        raise click.MissingParameter(param_hint="'SEED'", param_type="argument")
    chosen = chosen_root(root)
    _refuse_broken(chosen)
    if pipeline is not None and pipeline not in chosen.pipeline_names():
        raise UsageError(f"no pipeline {pipeline!r}", hint=did_you_mean(pipeline, chosen.pipeline_names()))
    changes = changes_of(chosen, models, replay, pipeline)
    _end_as_by_ctrl_c()
    served = _is_served(chosen)
    name = _submit(chosen, seed, changes, keys=not served)
    child = None if served else _start(chosen, name)
    return _follow(chosen, name, child, quiet or as_json, as_json)


def _submit(root: Root, seed: str | None, changes: Changes, *, keys: bool) -> str:
    """The seed's name in the queue, where it only comes when its models lack nothing.

    Args:
        keys: Whether keys that are missing here count, since the daemon will be our own.
    """
    from pop.drops import seed_of, submit_alone

    if seed is not None and changes.recorded is not None:
        return submit_alone(root, seed, changes).name
    if seed is not None:
        return submit_alone(root, seed, changes, look=partial(refuse_without_models, root, keys=keys)).name
    assert changes.recorded is not None
    own = Changes(changes.pipeline or changes.recorded.pipeline, changes.models, changes.recorded)
    with seed_of(changes.recorded) as folder:
        return submit_alone(root, str(folder), own).name


def _end_as_by_ctrl_c() -> None:
    """SIGTERM and a terminal that hangs up end the run's own daemon too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)


def _is_served(root: Root) -> bool:
    """Whether a daemon takes whatever is in the queue; another `pop run`, which takes only its own, is waited for."""
    from pop.store import lock_holder

    said = False
    while holder := lock_holder(root.machine_room):
        if holder.get("command") not in ("pop run", "starting"):
            return True
        if not said and holder["command"] == "pop run":
            said = True
            click.echo("another `pop run` works in this folder; this one comes after it", err=True)
        time.sleep(0.1)
    return False


def _refuse_broken(root: Root) -> None:
    """Mistakes are told before anything runs, each once; those of models only where this run asks for them."""
    from pop.commands.check import problems_of
    from pop.errors import ConfigError, ConfigErrors

    found = [problem for problem in problems_of(root)[0] if isinstance(problem, ConfigError)]
    problems = {str(problem): problem for problem in found if problem.code not in OF_MODELS}
    if problems:
        raise ConfigErrors(problems.values())


def _start(root: Root, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "pop", "--root", str(root.path), "up", "--quiet", "--only", name]
    command += ["--parent", str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def _follow(root: Root, name: str, child: subprocess.Popen[bytes] | None, quiet: bool, as_json: bool) -> int:
    """Show the run to its end; a daemon of our own never outlives this."""
    try:
        return _watch(root, name, child, quiet, as_json)
    finally:
        if child is not None and child.poll() is None:  # nobody reads our words any more, say
            child.terminate()
            child.wait()


def _watch(root: Root, name: str, child: subprocess.Popen[bytes] | None, quiet: bool, as_json: bool) -> int:
    from pop.display import Progress

    interrupted, ended = 0, None
    with Progress(quiet=quiet) as progress:
        while True:
            try:
                ended = _look(root, name, child, progress)
                if ended is not None:
                    break
                time.sleep(0.1)
            except KeyboardInterrupt:
                interrupted += 1
                if child is None:
                    break
                child.send_signal(signal.SIGTERM)
                click.echo("stopping; once more to interrupt at once", err=True)
    if child is not None:
        child.wait()
    if interrupted and (child is None or not isinstance(ended, Run)):
        return _leave(name, progress.run, as_json)
    if isinstance(ended, Run):
        return _tell(root, ended, as_json, bool(interrupted))
    assert ended is not None
    raise ended


def _leave(name: str, run: Run | None, as_json: bool) -> int:
    """The queue, or the daemon, has it; we go."""
    if as_json and run is not None:
        print_json({**run.status(), "path": str(run.path)})
    if run is None:
        click.echo(f"the seed stays in the queue as {name}: pop ls shows it", err=True)
    else:
        click.echo(f"the run goes on: pop watch {run.run_id}; pop cancel {run.run_id} ends it", err=True)
    return EXIT_INTERRUPTED


def _look(root: Root, name: str, child: subprocess.Popen[bytes] | None, progress: Any) -> Run | PopError | None:
    """The run when it has ended, an error when it never will, None while it is under way."""
    gone = child is not None and child.poll() is not None
    run = progress.run or _find(root, name)
    if run is None:
        refused = root.rejected / f"{name}.reason.json"
        if refused.exists():
            return _refusal(refused)
        if gone:
            hint = f"its words stand above; the seed is in the queue as {name} until a pop up takes it"
            return PopError("the daemon ended before it took the seed", hint=hint, code="not-taken")
        return None
    run = run.here()
    progress.show(run)
    state = run.status().get("state")
    if run.place == "complete" and _in_ledger(root, run.run_id):
        return run
    return run if state in ("failed", "cancelled", "waiting", "paused", "unreadable") or gone else None


def _find(root: Root, name: str) -> Run | None:
    """The run made from the seed of this name, which no other seed has."""
    for folder, place in ((root.current, "current"), (root.complete, "complete")):
        for path in sorted(folder.glob("2*"), reverse=True)[:200]:
            try:
                first = orjson.loads(next(lines_of(path / "events.jsonl"), b""))
            except (OSError, ValueError):
                continue
            if isinstance(first, dict) and first.get("seed_file") == name:
                return Run(path, place)
    return None


def _in_ledger(root: Root, run_id: str) -> bool:
    from pop.runs import ledger_tail

    return any(run_id.encode() in line for line in ledger_tail(root, 200))


def _refusal(path: Path) -> PopError:
    reason = json.loads(path.read_bytes())
    error = UsageError(reason["message"], where=reason.get("where"), hint=reason.get("hint"), code=reason.get("code"))
    error.exit_code = EXIT_CONFIG
    return error


def _tell(root: Root, run: Run, as_json: bool, interrupted: bool) -> int:
    from pop.display import closing_lines, error_of

    status = run.status()
    if as_json:
        print_json({**status, "path": str(run.path)})
    else:
        for line in closing_lines(root, run, status):
            click.echo(line)
    if status.get("state") == "complete":
        return EXIT_OK
    if status.get("state") in ("failed", "cancelled"):
        error = error_of(status)
        return EXIT_BUDGET if error.get("error_class") == "budget" else EXIT_RUN_FAILED
    if status.get("state") in ("waiting", "paused"):
        return EXIT_WAITING
    if status.get("state") in ("queued", "running"):
        click.echo("it goes on with the next pop up", err=True)
    return EXIT_INTERRUPTED if interrupted else EXIT_RUN_FAILED
