"""One run as the index holds it: made from a line of the ledger or a status, and asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pop import events

TEXT_MOST = 300
GROUPS: Mapping[str, tuple[str, ...]] = {
    "active": ("running", "queued", "paused"),
    "waiting": ("waiting",),
    "failed": ("failed", "cancelled", "unreadable"),
    "complete": ("complete",),
}
COLUMNS = (
    "run_id", "place", "state", "at", "name", "pipeline", "created_at", "started_at", "finished_at", "seconds", "progress",
    "doing", "error", "steps", "calls", "tokens", "cost_usd", "unpriced_calls",
    "models", "words", "version",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One run. `at` is when it finished or came to rest, and while it runs when it was made; `doing` what it does or
    waits for. Times RFC 3339, `seconds` between start and finish; `cost_usd` leaves out the `unpriced_calls`."""

    run_id: str
    state: str
    at: str
    name: str
    pipeline: str
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    seconds: float | None
    progress: float
    doing: str | None
    error: str | None
    steps: int
    calls: int
    tokens: int
    cost_usd: float
    unpriced_calls: int
    models: str


@dataclass(frozen=True)
class Asked:
    """Which runs: all fields narrow. `state` is a state, or one of GROUPS; `text` are words that must all occur in id,
    name, pipeline, models or error; `since` an RFC 3339 time or day."""

    state: str = ""
    text: str = ""
    pipeline: str = ""
    since: str = ""


@dataclass(frozen=True)
class Found:
    """A page of runs, the newest first; pages are counted from 1, and the last one stands for those beyond it."""

    rows: list[Row]
    total: int
    page: int
    pages: int


@dataclass(frozen=True)
class Tally:
    """What the runs of one pipeline came to: how many are in each state, the newest's `at`; and of the complete ones the
    mean time and cost, None where there is none; runs with calls that nobody knows a price of are in no mean cost."""

    states: Mapping[str, int]
    at: str
    seconds: float | None
    cost_usd: float | None

    @property
    def total(self) -> int:
        return sum(self.states.values())


def row_of_record(record: dict[str, Any]) -> Row:
    """Of a line of runs.jsonl.

    Raises:
        LookupError, TypeError, AttributeError: It is none.
    """
    usage = record.get("usage") or {}
    finished = _text(record.get("finished_at"))
    return Row(
        run_id=_text(record["run_id"]) or "",
        state="complete",
        at=finished or _text(record.get("created_at")) or "",
        name=_text(record.get("name")) or _text(record["run_id"]) or "",
        pipeline=_text(record.get("pipeline")) or "",
        created_at=_text(record.get("created_at")),
        started_at=_text(record.get("started_at")),
        finished_at=finished,
        seconds=_number(record.get("seconds")),
        progress=1.0,
        doing=None,
        error=None,
        steps=len(record.get("tasks") or ()),
        calls=int(_number(usage.get("calls"))),
        tokens=int(_number(usage.get("input_tokens")) + _number(usage.get("output_tokens"))),
        cost_usd=_number(usage.get("cost_usd")),
        unpriced_calls=int(_number(usage.get("unpriced_calls"))),
        models=_text(", ".join(map(str, record.get("models") or ()))) or "",
    )


def row_of_status(run_id: str, status: dict[str, Any]) -> Row:
    """Of a tasks-status.json, or the summary of one, which may hold anything."""
    usage = status.get("usage") if isinstance(status.get("usage"), dict) else {}
    error = status.get("error")
    told = f"{error.get('error_class')}: {error.get('message')}" if isinstance(error, dict) else None
    state = _text(status.get("state")) or "unreadable"
    current = status.get("current")
    doing = status.get("waiting_for") or ", ".join(map(str, (current if isinstance(current, list) else [])[:4]))
    created, finished = _text(status.get("created_at")), _text(status.get("finished_at"))
    row = row_of_record({**status, "run_id": run_id, "tasks": status.get("tasks") or {}, "usage": usage, "models": []})
    at = created if state in ("running", "queued") else finished or _text(status.get("updated_at")) or created
    return replace(
        row,
        state=state,
        at=at or events.rfc3339(0),
        seconds=None,
        progress=_number(status.get("progress")),
        doing=_text(doing) or None,
        error=_text(told),
    )


def values_of(row: Row, place: str, version: str) -> Sequence[Any]:
    """As COLUMNS names them; `version` is what its status file looked like from outside."""
    words = f"{row.run_id} {row.name} {row.pipeline} {row.models} {row.error or ''} {row.doing or ''}".casefold()
    return (
        row.run_id, place, row.state, row.at, row.name, row.pipeline, row.created_at, row.started_at, row.finished_at,
        row.seconds, row.progress, row.doing, row.error, row.steps, row.calls, row.tokens, row.cost_usd,
        row.unpriced_calls, row.models, words, version,
    )  # fmt: skip


def _text(value: Any) -> str | None:
    """What people or models wrote: cut, and without what no UTF-8 has."""
    return None if value is None else str(value)[:TEXT_MOST].encode("utf-8", "replace").decode()


def _number(value: Any) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15
    return float(value) if fits else 0.0


def where(asked: Asked) -> tuple[str, list[Any]]:
    """What is asked for in SQL, with its values."""
    parts: list[str] = []
    values: list[Any] = []
    if asked.state:
        states = GROUPS.get(asked.state, (asked.state,))
        parts.append(f"state IN ({', '.join('?' * len(states))})")
        values += states
    if asked.pipeline:
        parts.append("pipeline = ?")
        values.append(asked.pipeline)
    if asked.since:
        parts.append("at >= ?")
        values.append(asked.since)
    for word in asked.text.casefold().split()[:8]:
        parts.append("instr(words, ?) > 0")
        values.append(word)
    return ("WHERE " + " AND ".join(parts) if parts else ""), values
