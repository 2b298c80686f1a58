"""``pop run``: one seed, through the daemon's own path, shown as it goes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import (
    EXIT_BUDGET,
    EXIT_CONFIG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_RUN_FAILED,
    PopError,
    UsageError,
    did_you_mean,
)
from pop.events import rfc3339
from pop.runs import Run
from pop.settings import Root


@click.command()
@click.argument("seed", metavar="SEED")
@click.option("--pipeline", "-p", metavar="NAME", help="The pipeline to run (else the seed's own, else pipeline.json).")
@click.option("--quiet", "-q", is_flag=True, help="Only say where the result lies.")
@as_json
@with_root
def command(seed: str, pipeline: str | None, quiet: bool, as_json: bool, root: str | None) -> int:
    """Run SEED (a file, a folder with seed.json, a .zip, or -) to its end.

    Where a daemon serves this folder the seed goes into its queue; otherwise one is started for this seed alone.
    """
    from pop.commands.submit import submit
    from pop.store import lock_holder

    chosen = chosen_root(root)
    _refuse_broken(chosen)
    since = rfc3339(time.time())
    name = submit(chosen, _with_pipeline(chosen, seed, pipeline)).name
    child = None
    if lock_holder(chosen.machine_room) is None:
        child = _start(chosen, name)
    return _follow(chosen, (name, since), child, quiet or as_json, as_json)


def _refuse_broken(root: Root) -> None:
    """Mistakes are told before anything runs."""
    from pop.commands.check import problems_of
    from pop.errors import ConfigError, ConfigErrors

    problems = [problem for problem in problems_of(root)[0] if isinstance(problem, ConfigError)]
    if problems:
        raise ConfigErrors(problems)


def _with_pipeline(root: Root, seed: str, pipeline: str | None) -> Path | str:
    """The seed, in an envelope that names the pipeline when one was asked for."""
    if pipeline is None:
        return seed
    if pipeline not in root.pipeline_names():
        raise UsageError(f"no pipeline {pipeline!r}", hint=did_you_mean(pipeline, root.pipeline_names()))
    import shutil
    import tempfile

    from pop.records import dump_json, read_json

    source = Path(seed)
    folder = Path(tempfile.mkdtemp(prefix="pop-seed-"))
    target = folder / (source.name if seed != "-" else "stdin.json")
    if source.is_dir():
        shutil.copytree(source, target)
        inner = target / "seed.json"
    else:
        target.write_bytes(sys.stdin.buffer.read() if seed == "-" else source.read_bytes())
        inner = target
    value = read_json(inner.read_bytes(), where=seed)
    envelope = value if isinstance(value, dict) and "data" in value else {"data": value}
    inner.write_bytes(dump_json({**envelope, "pipeline": pipeline}))
    return target


def _start(root: Root, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "pop", "--root", str(root.path), "up", "--quiet", "--only", name]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def _follow(
    root: Root, seed: tuple[str, str], child: subprocess.Popen[bytes] | None, quiet: bool, as_json: bool
) -> int:
    from pop.display import Progress

    interrupted = 0
    with Progress(quiet=quiet) as progress:
        while True:
            try:
                ended = _look(root, seed, child, progress)
                if ended is not None:
                    break
                time.sleep(0.1)
            except KeyboardInterrupt:
                interrupted += 1
                if child is None:
                    raise
                child.send_signal(signal.SIGTERM)
                click.echo("stopping; once more to interrupt at once", err=True)
    if child is not None:
        child.wait()
    if isinstance(ended, Run):
        return _tell(root, ended, as_json, bool(interrupted))
    raise ended


def _look(
    root: Root, seed: tuple[str, str], child: subprocess.Popen[bytes] | None, progress: Any
) -> Run | PopError | None:
    """The run when it has ended, an error when it never will, None while it is under way."""
    gone = child is not None and child.poll() is not None
    run = progress.run or _find(root, *seed)
    if run is None:
        refused = root.rejected / f"{seed[0]}.reason.json"
        if refused.exists():
            return _refusal(refused)
        if gone:
            hint = "its words stand above; pop doctor tells more"
            return PopError("the daemon ended before it took the seed", hint=hint, code="not-taken")
        return None
    moved = Run(root.complete / run.run_id, "complete")
    run = moved if moved.path.is_dir() else run
    progress.show(run)
    state = run.status().get("state")
    if run.place == "complete" and _in_ledger(root, run.run_id):
        return run
    return run if state in ("failed", "cancelled", "waiting", "paused") or gone else None


def _find(root: Root, name: str, since: str) -> Run | None:
    """The run made from the seed of this name after it was submitted."""
    for folder, place in ((root.current, "current"), (root.complete, "complete")):
        for path in sorted(folder.glob("2*"), reverse=True)[:200]:
            try:
                with open(path / "events.jsonl", "rb") as file:
                    first = json.loads(file.readline())
            except (OSError, ValueError):
                continue
            if first.get("seed_file") == name and first["at"] >= since:
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
    from pop.display import closing_lines

    status = run.status()
    if as_json:
        print_json({**status, "path": str(run.path)})
    else:
        for line in closing_lines(root, run, status):
            click.echo(line)
    if status.get("state") == "complete":
        return EXIT_OK
    if status.get("state") in ("failed", "cancelled"):
        error = status.get("error") or {}
        return EXIT_BUDGET if error.get("error_class") == "budget" else EXIT_RUN_FAILED
    return EXIT_INTERRUPTED if interrupted else EXIT_RUN_FAILED
