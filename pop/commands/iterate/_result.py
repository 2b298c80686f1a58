"""What came of `pop iterate run`, for programs and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from pop.errors import EXIT_BUDGET, EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_FAILED, EXIT_WAITING, safe
from pop.recipes.iterate import launch
from pop.recipes.iterate.deliver import Delivered
from pop.recipes.iterate.folder import Folder
from pop.runs import Run
from pop.settings import Root

MOST_SHOWN = 20
ENDED = ("failed", "cancelled", "unreadable")
RESTS = ("waiting", "paused")


@dataclass
class Result:
    """What came of it. `run` is None while the seed waits in the queue. `said`: sentences for the person."""

    root: Root
    folder: Folder
    run: Run | None = None
    delivered: Delivered = field(default_factory=Delivered)
    said: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def status(self) -> dict[str, Any]:
        return self.run.here().status() if self.run else {"state": "queued"}

    @property
    def code(self) -> int:
        state, error = self.status.get("state"), self.status.get("error") or {}
        if self.interrupted and state not in ("complete", *ENDED, *RESTS):
            return EXIT_INTERRUPTED
        if state in ENDED:
            return EXIT_BUDGET if error.get("error_class") == "budget" else EXIT_RUN_FAILED
        return EXIT_WAITING if state in RESTS else EXIT_OK

    def next_moves(self) -> list[str]:
        """What a person does next."""
        state, path = self.status.get("state"), shown(self.folder.path)
        again = f"pop iterate run {path}"
        if state == "complete":
            return [f"pop iterate validate {path}", f"pop iterate feedback {path}"]
        if state in RESTS:
            return [f"answer it, then {again} goes on"]
        if state in ENDED:
            return [
                f"mend what the error names, then {again} goes on; pop iterate feedback {path} tells how far it came"
            ]
        return [f"pop iterate monitor {path}", f"{again} follows it"]

    def to_json(self) -> dict[str, Any]:
        """``{"run_id", "state", "path", "folder", "error", "delivered", "criteria": {iteration: counts}, "said", "next"}``."""
        run, status = (self.run.here() if self.run else None), self.status
        return {
            "run_id": run.run_id if run else None,
            "state": status.get("state"),
            "path": str(run.path) if run else None,
            "folder": str(self.folder.path),
            "error": status.get("error"),
            "waiting_for": status.get("waiting_for"),
            "usage": status.get("usage"),
            "delivered": asdict(self.delivered),
            "criteria": launch.verdicts(run) if run else {},
            "said": self.said,
            "next": self.next_moves(),
        }


def shown(path: Path) -> str:
    """Relative to where we stand, where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(path)


def tell(result: Result, *, moves: bool = True) -> None:
    """For people: how it ended, what was delivered, and what comes next."""
    from pop.display import closing_lines

    for sentence in result.said:
        click.echo(safe(sentence, one_line=True), err=True)
    if result.run:
        run = result.run.here()
        for line in closing_lines(result.root, run, result.status):
            if not line.startswith(("output ", "artifact ", "next ")):
                click.echo(line)
        for iteration, counts in launch.verdicts(run).items():
            click.echo(f"{'✓' if counts['met'] else '✗'} {iteration:<18} {_counted(counts)}")
    _tell_delivered(result)
    for move in result.next_moves() if moves else ():
        click.echo(f"next       {move}")


def _counted(counts: Mapping[str, Any]) -> str:
    parts = [f"{counts['met_count']} criteria met"]
    parts += [f"{counts[f'{name}_count']} {name}" for name in ("unmet", "unchecked") if counts.get(f"{name}_count")]
    return ", ".join([*parts, f"round {counts['lap']}"])


def _tell_delivered(result: Result) -> None:
    delivered, base = result.delivered, shown(result.folder.path)
    for place in delivered.written[:MOST_SHOWN]:
        click.echo(safe(f"written    {base}/{place}", one_line=True))
    if len(delivered.written) > MOST_SHOWN:
        click.echo(f"           and {len(delivered.written) - MOST_SHOWN} more files")
    for place, beside in list(delivered.kept.items())[:MOST_SHOWN]:
        new = f"; the new version: {base}/{beside}" if beside else ""
        click.echo(safe(f"kept       {base}/{place}, which was edited{new}", one_line=True))
    for place in delivered.refused[:MOST_SHOWN]:
        click.echo(
            safe(
                f"refused    {place}: its folder has gone, it leads out of it, or something else is there",
                one_line=True,
            )
        )
