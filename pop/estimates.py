"""What a run, or a part of one, is likely to cost: what its steps used before. Nothing is asked, nothing is spent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from pop.records import Usage
from pop.runs import Run, ledger_tail
from pop.settings import Root
from pop.stale import place_of

RUNS = 20  # the newest finished ones of a pipeline that are averaged
LOOKED_THROUGH = 500  # lines of the ledger


@dataclass(frozen=True)
class Estimate:
    """Calls, tokens and USD; None where nobody knows. `source` says from what: this run, or how many others."""

    calls: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    cost_usd: float | None = None
    source: str = "unknown"

    @classmethod
    def of(cls, usages: Iterable[Usage], over: int, source: str) -> Estimate:
        """The sum of some usages, divided by the number of runs that it comes from."""
        total = Usage()
        for usage in usages:
            total = total.plus(usage)
        cost = None if total.unpriced_calls else total.cost_usd / over
        asked = total.calls + total.cached_calls
        return cls(asked / over, total.input_tokens / over, total.output_tokens / over, cost, source)

    def plus(self, other: Estimate) -> Estimate:
        """Together; unknown as soon as one of them is."""
        calls, tokens_in, tokens_out, usd = (
            None if one is None or two is None else one + two
            for one, two in zip(self.figures(), other.figures(), strict=True)
        )
        return Estimate(calls, tokens_in, tokens_out, usd, "sum")

    def figures(self) -> tuple[float | None, ...]:
        return (self.calls, self.input_tokens, self.output_tokens, self.cost_usd)

    def to_json(self) -> dict[str, Any]:
        """Rounded as a person reads it."""
        digits = {"calls": 2, "input_tokens": 0, "output_tokens": 0, "cost_usd": 6}
        values = {name: getattr(self, name) for name in digits}
        return {
            **{name: None if value is None else round(value, digits[name]) for name, value in values.items()},
            "source": self.source,
        }


NOTHING = Estimate(0, 0, 0, 0.0, "nothing to ask")


@dataclass
class Past:
    """What the newest finished runs of a pipeline used, by step: in all laps and items together."""

    runs: int = 0
    usages: dict[str, list[Usage]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)  # in how many runs a step had begun

    def of_step(self, step: str) -> Estimate:
        """What a step uses in one run on the average."""
        if not self.seen.get(step):
            return Estimate()
        count = self.seen[step]
        return Estimate.of(self.usages[step], self.runs, f"{count} of the last {self.runs} run(s)")


def past_of(root: Root, pipeline: str) -> Past:
    """Read the statuses of the last finished runs of a pipeline."""
    past = Past()
    for run in finished_runs(root, pipeline):
        used = usage_by_step(run.status())
        if not used:
            continue
        past.runs += 1
        for step, usages in used.items():
            past.usages.setdefault(step, []).extend(usages.values())
            past.seen[step] = past.seen.get(step, 0) + 1
    return past


def finished_runs(root: Root, pipeline: str) -> list[Run]:
    """The newest finished runs of a pipeline whose folders are still there, newest first."""
    found: list[Run] = []
    for line in reversed(ledger_tail(root, LOOKED_THROUGH)):
        try:
            row = orjson.loads(line)
        except ValueError:
            continue
        run = Run(root.complete / str(row.get("run_id")), "complete")
        if row.get("pipeline") == pipeline and run.path.is_dir():
            found.append(run)
        if len(found) == RUNS:
            break
    return found


def usage_by_step(status: Mapping[str, Any]) -> dict[str, dict[str, Usage]]:
    """``{step: {instance: usage}}`` of what began, from a tasks-status.json."""
    found: dict[str, dict[str, Usage]] = {}
    for name, task in (status.get("tasks") or {}).items():
        if not task.get("attempt") and task.get("state") != "done":
            continue
        try:
            usage = Usage.model_validate(task.get("usage") or {})
        except ValueError:
            continue
        found.setdefault(place_of(name)[0], {})[name] = usage
    return found
