"""What model calls cost, added up from the ledger of calls: it needs neither a daemon nor ``.pop``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

from pop.errors import UsageError
from pop.models.calls import CallLine, Sum, calls_in, day_files, usd
from pop.runs import find_run
from pop.settings import Root


def _pipeline(line: CallLine) -> str:
    """`pop models --test` asks without one."""
    return line.pipeline or line.run_id


KEYS: dict[str, Callable[[CallLine], str]] = {
    "model": lambda line: line.model,
    "step": lambda line: f"{_pipeline(line)}/{line.step}",
    "run": lambda line: line.run_id,
    "pipeline": _pipeline,
    "day": lambda line: line.day,
}


class Calls:
    """The calls of a ledger that are asked for, read one after the other."""

    def __init__(self, root: Root, since: str | None, until: str | None, asked: str | None) -> None:
        if since and until and since > until:
            raise UsageError(f"--since {since} is after --until {until}")
        self._files = day_files(root.calls, since=since or "", until=until or "9")
        self._unknown: UsageError | None = None
        self._asked = asked
        self._run_ids: set[str] = set()
        self._prefix = ""
        self.passed_over = 0
        if asked is not None:
            self._choose(root, asked)

    def _choose(self, root: Root, asked: str) -> None:
        try:
            self._prefix = find_run(root, asked).run_id
        except UsageError as error:
            if error.code not in ("unknown-run", "removed"):
                raise
            self._prefix, self._unknown = asked, error

    def __iter__(self) -> Iterator[CallLine]:
        for path in self._files:
            for _, line in calls_in(path):
                if line is None:
                    self.passed_over += 1
                elif line.run_id.startswith(self._prefix):
                    if self._unknown is not None:
                        self._run_ids.add(line.run_id)
                    yield line

    def check(self) -> None:
        """Whether what was read is one run, where one was asked for whose folder is gone.

        Raises:
            UsageError: It is none, or several.
        """
        if self._unknown is None or len(self._run_ids) == 1:
            return
        if not self._run_ids:
            raise self._unknown
        shown = ", ".join(sorted(self._run_ids)[-5:])
        message = f"{self._asked!r} fits {len(self._run_ids)} runs that were removed: {shown}"
        raise UsageError(message, hint="give more of the id")


def add_up(calls: Calls, key: Callable[[CallLine], str]) -> tuple[dict[str, Sum], Sum]:
    """The sums by key, and all together. What was not billed counts for nothing and makes no row."""
    rows: dict[str, Sum] = {}
    total = Sum()
    for line in calls:
        if line.billed:
            rows.setdefault(key(line), Sum()).add(line)
            total.add(line)
    return rows, total


def read_day(text: str | None, option: str) -> str | None:
    """A day as a person writes it.

    Raises:
        UsageError: It is none.
    """
    if text is None:
        return None
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UsageError(f"{option} {text!r} is no day", hint="write it as 2026-11-21 (UTC)") from None


def ordered(by: str, rows: dict[str, Sum]) -> list[tuple[str, Sum]]:
    """Days and runs as they came, anything else by what it cost."""
    found = sorted(rows.items(), key=lambda row: row[0])
    if by not in ("day", "run"):
        found.sort(key=lambda row: (-row[1].nano_usd, -row[1].calls))
    return found


def figures(part: Sum) -> dict[str, Any]:
    """A sum as people and programs read it."""
    return {
        "calls": part.calls,
        "input_tokens": part.input_tokens,
        "cached_input_tokens": part.cached_input_tokens,
        "output_tokens": part.output_tokens,
        "reasoning_tokens": part.reasoning_tokens,
        "cost_usd": usd(part.nano_usd),
        "estimated_calls": part.estimated,
        "unpriced_calls": part.unpriced,
    }
