"""What a run has used of models: told by the gateway's ledger, journaled step by step.

The worker's calls.jsonl is for readers. What counts is what the gateway wrote down before it handed an answer out: it
also knows the calls of a worker that was killed, the requests that failed and were billed, and those of a gateway that
died. Each end of an attempt is journaled with what the ledger says of its step beyond what was journaled before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pop import events
from pop.history import RunHistory
from pop.models.questions import ask_gateway
from pop.models.spent import Spent
from pop.records import BadJson, Usage, read_json
from pop.store import NotAFile, read_regular

LANDING_S = 150.0  # how long a run's end waits for requests that a killed worker left behind


class Tally:
    """The ledger as the supervisor reads it."""

    def __init__(self, spent: Spent) -> None:
        self._spent = spent

    def since(self, history: RunHistory, instance: str, cached_calls: int) -> Usage:
        """What a step has used since it was last journaled.

        Args:
            cached_calls: How many answers of the attempt came from the store.
        """
        usage = self._spent.usage_of(history.created.get("run_id", ""), instance)
        return _beyond(usage, history, instance).plus(Usage(cached_calls=cached_calls))

    def models(self, history: RunHistory) -> list[str]:
        """The models that the run has paid, ``builtin`` for the embedded engine."""
        return self._spent.models_of_run(history.created.get("run_id", ""))

    def late(self, history: RunHistory) -> list[dict[str, Any]]:
        """Events for what came after the last attempt of a step was journaled: calls that outlived their worker."""
        found = []
        for instance, usage in self._spent.usage_of_run(history.created.get("run_id", "")).items():
            late = _beyond(usage, history, instance)
            if instance in history.instances and late != Usage():
                found.append({"event": events.USAGE_LATE, "instance": instance, "usage": late.model_dump()})
        return found

    def is_behind(self, run_dir: Path) -> bool:
        """Whether the status of a run at rest says less than the ledger, or that the run is still at work."""
        try:
            status = read_json(read_regular(run_dir / "tasks-status.json", max_bytes=64 * 2**20))
            told = Usage.model_validate(status["usage"])
            if status["state"] == "running":
                return True
        except (BadJson, NotAFile, OSError, ValueError, KeyError, TypeError):
            return True
        spent = sum_of(self._spent.usage_of_run(run_dir.name).values())
        return spent.minus(told) != Usage()

    def warnings(self, history: RunHistory) -> list[dict[str, Any]]:
        """Events for soft budgets that were passed and not journaled yet."""
        rows = self._spent.warnings_of_run(history.created.get("run_id", ""))
        return [
            {"event": events.BUDGET_WARNING, "text": row["text"]} for row in rows if row["text"] not in history.warnings
        ]


def sum_of(parts: Iterable[Usage]) -> Usage:
    """All together."""
    total = Usage()
    for part in parts:
        total = total.plus(part)
    return total


def _beyond(usage: Usage, history: RunHistory, instance: str) -> Usage:
    known = history.instances.get(instance)
    before = Usage.model_validate(known.usage) if known and known.usage else Usage()
    return usage.minus(before)


async def calls_landed(address: str | None, run_id: str, give_up: Callable[[], bool] = lambda: False) -> bool:
    """Wait until no request of the run is under way; False when that takes too long, or `give_up` says so.

    A gateway that died is waited for: when it answers again, what it had under way stands in the ledger as lost.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LANDING_S):
            while await ask_gateway(address, {"open": run_id}) != 0:
                if give_up():
                    return False
                await asyncio.sleep(0.05)
            return True
    return False
