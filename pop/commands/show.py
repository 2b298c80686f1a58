"""``pop show``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.display import closing_lines, task_line
from pop.runs import find_run, safe


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
    for name, task in status.get("tasks", {}).items():
        click.echo(f"  {task_line(name, task)}")
        for problem in _open_problems(found.step_dir(name), task):
            click.echo(f"      ! {safe(problem, 300)}")
    usage = status.get("usage") or {}
    if usage.get("calls") or usage.get("cached_calls"):
        click.echo(
            f"{usage['calls']} model calls ({usage['cached_calls']} from the store), {usage['input_tokens']} tokens in, "
            f"{usage['output_tokens']} out, ${usage['cost_usd']:.4f}"
        )
    for line in closing_lines(chosen, found, status):
        click.echo(line)


def _open_problems(step_dir: Path, task: dict[str, Any]) -> list[str]:
    """Problems of quality that remained in the output that was kept."""
    from pop.records import BadJson, read_json

    if task.get("state") != "done":
        return [str(problem) for problem in ((task.get("error") or {}).get("problems") or [])[:10]]
    try:
        return list(read_json((step_dir / "attempts" / str(task["attempt"]) / "problems.json").read_bytes()))[:10]
    except (OSError, BadJson, TypeError):
        return []
