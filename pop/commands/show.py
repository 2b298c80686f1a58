"""``pop show``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.display import again_line, closing_lines, task_line, usage_line
from pop.events import LAP_ENDED
from pop.runs import Run, find_run, safe

MOST_CALLS = 1000  # lines of calls.jsonl that are looked through
MOST_LAPS = 20


@click.command()
@click.argument("run", default="last")
@as_json
@with_root
def command(run: str, as_json: bool, root: str | None) -> None:
    """Explain RUN (an id, a prefix, a name, or `last`): steps, times, costs, errors and the next move."""
    chosen = chosen_root(root)
    found = find_run(chosen, run)
    status = found.status()
    if as_json:
        print_json({**status, "path": str(found.path)})
        return
    click.echo(f"{found.run_id}   {safe(status.get('name'))}   pipeline {safe(status.get('pipeline') or '?')}")
    times = ", ".join(f"{key[:-3]} {status[key]}" for key in ("created_at", "finished_at") if status.get(key))
    if times:
        click.echo(times)
    for line in _origin(found):
        click.echo(line)
    answered: dict[str, None] = {}
    for name, task in status.get("tasks", {}).items():
        click.echo(f"  {task_line(name, task)}")
        asked = asked_models(found.step_dir(name), task)
        answered |= asked.answered
        if asked.in_vain and asked.answered:
            click.echo(f"      answered by {_listed(asked.answered)}, after {_listed(asked.in_vain)}")
        for problem in _open_problems(found.step_dir(name), task):
            click.echo(f"      ! {safe(problem, 300)}")
        for line in _said_by_a_person(found.step_dir(name), task):
            click.echo(f"      {line}")
    for line in _laps(found):
        click.echo(line)
    usage = status.get("usage") or {}
    if usage.get("calls") or usage.get("cached_calls"):
        click.echo(usage_line(usage) + (f"; answered by {_listed(answered)}" if answered else ""))
    for line in filter(None, [*closing_lines(chosen, found, status), again_line(found, status)]):
        click.echo(line)


@dataclass
class Asked:
    """Which models answered an attempt, ``fast (qwen3:8b)``, and which were asked in vain, ``large: unavailable``."""

    answered: dict[str, None] = field(default_factory=dict)
    in_vain: dict[str, None] = field(default_factory=dict)


def asked_models(step_dir: Path, task: dict[str, Any]) -> Asked:
    """From the calls of the attempt that counts; what cannot be read is left out."""
    from pop.records import BadJson, read_json
    from pop.store import lines_of

    found = Asked()
    try:
        for line in islice(lines_of(step_dir / "attempts" / str(task.get("attempt")) / "calls.jsonl"), MOST_CALLS):
            call = read_json(line)
            found.in_vain |= {f"{one['model']}: {one['error_class']}": None for one in call.get("tries", [])}
            if not call.get("error_class"):
                found.answered[f"{call['model']} ({call['provider_model']})"] = None
    except (OSError, BadJson, KeyError, TypeError, AttributeError):
        pass
    return found


def _listed(names: dict[str, None]) -> str:
    return safe(", ".join(names), 300, one_line=True)


def _origin(run: Run) -> Iterator[str]:
    """Of a fork: which run it took its beginning from."""
    from pop.records import BadJson, read_json
    from pop.store import lines_of

    try:
        fork = read_json(next(lines_of(run.path / "events.jsonl"), b"{}")).get("forked_from")
        if fork:
            steps = safe(", ".join(map(str, fork["from"])), 200, one_line=True)
            yield f"forked from {safe(fork['run'], 200, one_line=True)} at {steps}; what is done without a time was taken over"
    except (OSError, BadJson, LookupError, TypeError, AttributeError):
        pass


def _said_by_a_person(step_dir: Path, task: dict[str, Any]) -> Iterator[str]:
    """The answer to the gate in this folder, once it counts."""
    from pop.gateanswers import answer_of

    given = answer_of(step_dir) if task.get("state") in ("done", "failed") else None
    if given:
        words = f": {safe(given.text, 300, one_line=True)}" if given.text else ""
        yield f"{given.decision} by {safe(given.by, 80, one_line=True)} ({safe(given.how, 40)}){words}"


def _laps(run: Run) -> Iterator[str]:
    """What each lap of the loops came to, the newest last."""
    from pop.gatepage import lap_line
    from pop.records import BadJson, read_json
    from pop.store import lines_of

    loops: dict[str, list[dict[str, Any]]] = {}
    try:
        for line in lines_of(run.path / "events.jsonl"):
            if LAP_ENDED.encode() in line and (row := read_json(line))["event"] == LAP_ENDED:
                before = [lap for lap in loops.get(row["key"], []) if lap["lap"] < row["lap"]]  # a rerun counts anew
                loops[row["key"]] = [*before, row]
    except (OSError, BadJson, LookupError, TypeError):
        return
    rows = [row for laps in loops.values() for row in laps]
    if len(rows) > MOST_LAPS:
        yield f"  ({len(rows) - MOST_LAPS} laps before these: events.jsonl)"
    for row in rows[-MOST_LAPS:]:
        yield f"  {safe(row['key'], 80)}   {row.get('verdict') or '?':<9}   {safe(lap_line(row), 160)}"


def _open_problems(step_dir: Path, task: dict[str, Any]) -> list[str]:
    """Problems of quality that remained in the output that was kept."""
    from pop.records import BadJson, read_json
    from pop.store import read_file

    if task.get("state") != "done":
        return [str(problem) for problem in ((task.get("error") or {}).get("problems") or [])[:10]]
    try:
        return list(read_json(read_file(step_dir / "attempts" / str(task["attempt"]) / "problems.json")))[:10]
    except (OSError, BadJson, TypeError):
        return []
