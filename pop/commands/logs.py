"""``pop logs``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import click

from pop.commands._shared import chosen_root, with_root
from pop.errors import UsageError, did_you_mean
from pop.runs import Run, find_run, safe

FILES = ("log.jsonl", "stdout.txt", "trail.jsonl")


@click.command()
@click.argument("run", default="last")
@click.argument("step", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.option("--trail", is_flag=True, help="Also the stages as they began and ended.")
@with_root
def command(run: str, step: str | None, follow: bool, trail: bool, root: str | None) -> None:
    """Print what the steps of RUN logged and printed, or only STEP, with every attempt."""
    found = find_run(chosen_root(root), run)
    places: dict[Path, int] = {}
    while True:
        for name in _steps(found, step):
            for attempt in found.attempts(name):
                for file_name in FILES if trail else FILES[:2]:
                    for line in _new_lines(attempt / file_name, places):
                        click.echo(f"{name}#{attempt.name}  {_readable(line)}")
        if not follow or found.status().get("state") not in ("queued", "running"):
            return
        time.sleep(0.3)
        found = _moved(found)


def _moved(run: Run) -> Run:
    target = run.path.parent.parent / "pipeline-complete" / run.run_id
    return Run(target, "complete") if target.is_dir() else run


def _steps(run: Run, step: str | None) -> list[str]:
    folder = run.path / "tasks"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if step is None:
        return names
    wanted = [name for name in names if name == step or name.partition(".")[0].partition("@")[0] == step]
    if not wanted:
        raise UsageError(f"no step {step!r} in {run.run_id}", hint=did_you_mean(step, names))
    return wanted


def _new_lines(path: Path, places: dict[Path, int]) -> Iterator[str]:
    """Lines that were not printed yet; a run that moved keeps its place by the file's tail."""
    key = Path(*path.parts[-5:])
    try:
        with open(path, "rb") as file:
            file.seek(places.get(key, 0))
            data = file.read()
    except OSError:
        return
    places[key] = places.get(key, 0) + len(data)
    yield from data.decode("utf-8", "replace").splitlines()


def _readable(line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        return safe(line)
    if not isinstance(row, dict) or "at" not in row:
        return safe(line)
    text = row.pop("text", None) or row.pop("event", "")
    rest = {key: value for key, value in row.items() if key not in ("at", "level") and value not in (None, 0)}
    more = "  ".join(f"{key}={value}" for key, value in rest.items())
    return safe(f"{row['at'][11:23]} {row.get('level', '')} {text}  {more}")
