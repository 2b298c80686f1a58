"""The runs that wait for persons: at rest, without a place, found again by an answer or by the clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pop import events
from pop.admission import newest_of_run


@dataclass
class WaitingRuns:
    """By run id: the gates that are open, and the Unix time at which the first of them is answered by its timeout."""

    gates: dict[str, list[str]] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)

    def add(self, run_id: str, gates: list[str], wake_at: float | None) -> None:
        self.gates[run_id] = gates
        self.due.pop(run_id, None)
        if wake_at is not None:
            self.due[run_id] = wake_at

    def drop(self, run_id: str) -> None:
        self.gates.pop(run_id, None)
        self.due.pop(run_id, None)

    def expired(self, now: float) -> Iterator[str]:
        """Those whose time has come."""
        return iter([run_id for run_id, wake_at in self.due.items() if wake_at <= now])

    def add_from(self, run_dir: Path) -> bool:
        """Take in a run that an earlier daemon left waiting; whether it is one."""
        row = newest_of_run(run_dir)
        if not row or row.get("event") != events.RUN_WAITING:
            return False
        wake_at = row.get("wake_at")
        gates = [str(name) for name in row.get("for") or ()]
        self.add(run_dir.name, gates, float(wake_at) if isinstance(wake_at, (int, float)) else None)
        return True
