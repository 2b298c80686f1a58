"""``pop logs``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, with_root
from pop.errors import UsageError, did_you_mean, safe_json
from pop.runs import Run, find_run, safe
from pop.store import open_file

FILES = ("log.jsonl", "stdout.txt", "trail.jsonl")
MOST_LINE_BYTES = 2**24


@click.command()
@click.argument("run", default="last")
@click.argument("step", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.option("--trail", is_flag=True, help="Also the stages as they began and ended.")
@as_json
@with_root
def command(run: str, step: str | None, follow: bool, trail: bool, as_json: bool, root: str | None) -> None:
    """Print what the steps of RUN logged and printed, with every attempt.

    STEP is one of them (`draft.3`), or all items of one (`draft`).
    """
    found = find_run(chosen_root(root), run)
    places: dict[Path, int] = {}
    while True:
        for name in _steps(found, step):
            for attempt in found.attempts(name):
                for file_name in FILES if trail else FILES[:2]:
                    for line in _new_lines(attempt / file_name, places):
                        _say(name, attempt.name, file_name, line, as_json)
        if not follow or found.status().get("state") not in ("queued", "running"):
            break
        time.sleep(0.3)
        found = found.here()
    if not any(places.values()):
        hint = "" if trail else "; --trail shows its stages"
        click.echo(f"{step or found.run_id} has logged and printed nothing{hint}", err=True)


def _say(step: str, attempt: str, file_name: str, line: str, as_json: bool) -> None:
    if not as_json:
        click.echo(f"{step}#{attempt}  {_readable(line)}")
        return
    row = _row(line)
    about = {"step": step, "attempt": int(attempt), "file": file_name}
    click.echo(safe_json(json.dumps({**about, **(row if row else {"text": line})}, ensure_ascii=False)))


def _steps(run: Run, step: str | None) -> list[str]:
    """The folders of a run's steps, items by their number; all those of `step` when one is named."""
    folder = run.path / "tasks"
    names = sorted((path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else [], key=_by_number)
    if step is None:
        return names
    wanted = [name for name in names if name == step or _family(name) == step]
    planned = run.status()["tasks"]
    if not wanted and step not in planned:
        family = [name for name in names if _family(name) == _family(step)]
        near = did_you_mean(step, [*names, *planned])
        hint = f"{_family(step)} has the items {family[0]} to {family[-1]}" if len(family) > 1 else near
        raise UsageError(f"no step {step!r} in {run.run_id}", hint=hint)
    return wanted


def _family(name: str) -> str:
    return name.partition(".")[0].partition("@")[0]


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.@]", name)]


def _new_lines(path: Path, places: dict[Path, int]) -> Iterator[str]:
    """Lines that were not printed yet; a run that moved keeps its place by the file's tail."""
    key = Path(*path.parts[-5:])
    try:
        with open_file(path) as file:
            file.seek(places.get(key, 0))
            while line := file.readline(MOST_LINE_BYTES):  # a task may write gigabytes, or a hole of that size
                places[key] = places.get(key, 0) + len(line)
                yield from line.decode("utf-8", "replace").splitlines()
    except OSError:
        return


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "at" in row else None


def _readable(line: str) -> str:
    row = _row(line)
    if row is None:
        return safe(line)
    text = row.pop("text", None) or row.pop("event", "")
    rest = {key: value for key, value in row.items() if key not in ("at", "level") and value not in (None, 0)}
    more = "  ".join(f"{key}={value}" for key, value in rest.items())
    return safe(f"{str(row['at'])[11:23]} {row.get('level', '')} {text}  {more}")
