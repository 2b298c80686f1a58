"""tasks-status.json and record.json: what people and programs read of a history."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pop.events import unix_s
from pop.history import Instance, RunHistory
from pop.records import Usage

PAUSING = "it is being paused: what is at work ends first, and nothing new starts"
MOST_TOLD = 20  # gates of one run whose note says how to answer them


def seconds_between(start: str | None, end: str | None) -> float:
    """Seconds from one RFC 3339 time to another; 0.0 when one is missing or the clock went back."""
    if not start or not end:
        return 0.0
    return max(0.0, round(unix_s(end) - unix_s(start), 6))


_PENDING = {"retry": "pending"}


def status_of(history: RunHistory, *, now: str, expected: list[str], notes: list[str]) -> dict[str, Any]:
    """tasks-status.json as ``records.Status`` has it.

    Args:
        now: RFC 3339.
        expected: Names of the steps as far as the planner knows them; those not begun show as pending.
        notes: Sentences for the reader, e.g. that the embedded engine is in use.
    """
    waiting = history.waiting() if history.state in ("running", "waiting", "paused") else []
    tasks = {name: _task_status(instance, history.state) for name, instance in history.instances.items()}
    for name in expected:
        tasks.setdefault(name, {"state": "cancelled" if history.state == "cancelled" else "pending"})
    ended = sum(1 for task in tasks.values() if task["state"] in ("done", "skipped"))
    pausing = history.paused and history.state == "running"
    progress = 1.0 if history.state == "complete" else min(0.99, ended / len(tasks)) if tasks else 0.0
    return {
        "schema_version": 1,
        "run_id": history.created.get("run_id", ""),
        "name": history.created.get("name", ""),
        "pipeline": history.created.get("pipeline", ""),
        "state": history.state,
        "created_at": history.created.get("at", now),
        "started_at": history.started_at,
        "updated_at": now,
        "finished_at": history.finished_at,
        "progress": round(progress, 4),
        "current": [name for name, instance in history.instances.items() if instance.state == "running"],
        "waiting_for": ", ".join(waiting) or None,
        "pausing": pausing,
        "error": history.error,
        "notes": list(
            dict.fromkeys(
                [*notes, *([PAUSING] if pausing else []), *_how_to_answer(history, waiting), *history.warnings]
            )
        ),
        "usage": history.usage.model_dump(),
        "tasks": tasks,
    }


def _task_status(instance: Instance, run_state: str) -> dict[str, Any]:
    state = _PENDING.get(instance.state, instance.state)
    if run_state == "cancelled" and state in ("pending", "running", "waiting", "stale"):
        state = "cancelled"
    return {
        "state": state,
        "stage": instance.live.get("stage") if state == "running" else None,
        "attempt": instance.started,
        "refinements": instance.live.get("refinements", instance.refinements),
        "started_at": instance.started_at,
        "finished_at": None if state == "running" else instance.finished_at,
        "seconds": instance.seconds,
        "usage": instance.usage or _NO_USAGE,
        "error": instance.error,
        "progress": instance.live.get("progress") if state == "running" else None,
        "reason": instance.reason,
    }


_NO_USAGE = Usage().model_dump()


def _how_to_answer(history: RunHistory, waiting: list[str]) -> list[str]:
    run_id = history.created.get("run_id", "")
    return [
        f"{name} waits for an answer: pop approve {run_id} {name}, or touch tasks/{name}/APPROVE; "
        f"tasks/{name}/request.md tells what is asked and what else can be said"
        for name in waiting[:MOST_TOLD]
    ]


_OF_A_GATE = re.compile(r"\S+ (waits for|got) an answer")


def lasting(notes: Iterable[Any], history: RunHistory) -> list[str]:
    """Of the notes in an earlier status those that `status_of` does not make anew, or that are over."""
    told = [str(note) for note in notes]
    return [note for note in told if note not in (PAUSING, *history.warnings) and not _OF_A_GATE.match(note)]


def run_record(history: RunHistory, *, models: list[str]) -> dict[str, Any]:
    """The line of runs.jsonl as ``records.RunRecord`` has it, for a history that is complete."""
    created, done = history.created, {n: i for n, i in history.instances.items() if i.state == "done"}
    return {
        "run_id": created["run_id"],
        "name": created["name"],
        "pipeline": created["pipeline"],
        "state": "complete",
        "created_at": created["at"],
        "started_at": history.started_at or created["at"],
        "finished_at": history.finished_at,
        "seconds": seconds_between(history.started_at, history.finished_at),
        "tasks": list(done),
        "attempts": history.attempts,
        "refinements": sum(instance.refinements for instance in done.values()),
        "usage": history.usage.model_dump(),
        "models": models,
        "seed_sha256": created["seed_sha256"],
        "pipeline_sha256": created["pipeline_sha256"],
        "outputs": {name: instance.sha256 for name, instance in done.items()},
        "path": f"pipeline-complete/{created['run_id']}",
    }
