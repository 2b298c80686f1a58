"""What has happened in a run, folded from its journal; and the status file as a view of it.

``RunHistory`` is what the planner reads as its facts. It changes only through `apply`, one event after the other, so
that a restart that replays ``events.jsonl`` knows what the daemon knew.

| instance state | meaning                                      | leaves it by                      |
|----------------|----------------------------------------------|-----------------------------------|
| running        | an attempt was started and has not ended     | step.done, step.attempt_failed    |
| retry          | the attempt failed, another is due           | step.started                      |
| done           | its output stands on disk with this sha256   | -                                 |
| failed         | no further attempt is allowed                | step.reset (a person asked)       |
| skipped        | its condition said no                        | -                                 |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from pop import events
from pop.events import unix_s
from pop.loops import Verdict
from pop.records import Usage

NEW_GENERATION = frozenset({"invalid_output", "refused", "truncated"})  # bad answers: the next attempt asks afresh


@dataclass
class Instance:
    """One instance of a step. `attempts` counts those that used up an attempt, `started` all of them."""

    state: str
    attempts: int = 0
    started: int = 0
    generation: int = 1
    failures: int = 0
    interruptions: int = 0
    not_before: float | None = None
    more_time: float = 1.0
    started_at: str | None = None
    finished_at: str | None = None
    seconds: float | None = None
    refinements: int = 0
    usage: Mapping[str, Any] | None = None
    error: dict[str, Any] | None = None
    sha256: str | None = None
    reason: str | None = None
    expires_at: float | None = None
    live: dict[str, Any] = field(default_factory=dict)  # stage, progress: seen in the trail, not journaled


@dataclass
class Lap:
    """One lap of a `repeat`, as ``lap.ended`` tells it."""

    verdict: Verdict
    score: float | None = None
    checks: bool = True
    sha256: str = ""


@dataclass
class Loop:
    """One `repeat`. `since`: laps before a person granted further ones; `kept`: the lap that stands for the loop."""

    laps: list[Lap] = field(default_factory=list)
    since: int = 0
    kept: int | None = None


@dataclass
class RunHistory:
    """The facts of one run. See the table above; `decisions` and `counts` are the planner's."""

    instances: dict[str, Instance] = field(default_factory=dict)
    decisions: dict[str, bool] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    loops: dict[str, Loop] = field(default_factory=dict)
    skips: dict[str, str] = field(default_factory=dict)
    held: bool = False
    paused: bool = False
    created: dict[str, Any] = field(default_factory=dict)
    started_at: str | None = None
    finished_at: str | None = None
    state: str = "queued"
    cancelled: bool = False
    error: dict[str, Any] | None = None
    usage: Usage = field(default_factory=Usage)
    attempts: int = 0
    models: dict[str, None] = field(default_factory=dict)
    budget: dict[str, float] = field(default_factory=dict)  # raised by a person for this run
    warnings: list[str] = field(default_factory=list)  # soft budgets that were passed

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event of the journal into account; an unknown one (a newer POP's) is passed over."""
        handler = _HANDLERS.get(event["event"])
        if handler:
            handler(self, event)

    def instance(self, name: str) -> Instance:
        return self.instances.setdefault(name, Instance(state="retry"))


def _run_created(run: RunHistory, event: dict[str, Any]) -> None:
    run.created = event


def _run_started(run: RunHistory, event: dict[str, Any]) -> None:
    run.started_at = run.started_at or event["at"]
    run.state = "running"


def _step_started(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    instance.state = "running"
    instance.attempts += 1
    instance.started = event["attempt"]
    instance.generation = event["generation"]
    instance.started_at = instance.started_at or event["at"]
    instance.not_before, instance.live = None, {}
    run.attempts += 1


def _step_done(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    instance.state = "done"
    instance.error = None
    instance.sha256 = event["sha256"]
    instance.refinements = event.get("refinements", 0)
    _end_attempt(run, instance, event)


def _step_attempt_failed(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    instance.error = event["error"]
    instance.state = "failed" if event["action"] == "fail" else "retry"
    instance.not_before = event.get("not_before")
    instance.more_time = event.get("more_time", instance.more_time)
    if event["error"]["error_class"] == "interrupted":
        instance.attempts -= 1
        instance.interruptions += 1
    else:
        instance.failures += 1
    if event["error"]["error_class"] in NEW_GENERATION:
        instance.generation += 1
    _end_attempt(run, instance, event)


def _end_attempt(run: RunHistory, instance: Instance, event: dict[str, Any]) -> None:
    run.models.update(dict.fromkeys(event.get("models") or ()))
    instance.finished_at = event["at"]
    instance.seconds = round((instance.seconds or 0.0) + (event.get("seconds") or 0.0), 6)
    _count(run, instance, event)


def _count(run: RunHistory, instance: Instance, event: dict[str, Any]) -> None:
    if event.get("usage"):
        used = Usage.model_validate(event["usage"])
        before = Usage.model_validate(instance.usage) if instance.usage else Usage()
        instance.usage = before.plus(used).model_dump()
        run.usage = run.usage.plus(used)


def _usage_late(run: RunHistory, event: dict[str, Any]) -> None:
    _count(run, run.instance(event["instance"]), event)


def _budget_warning(run: RunHistory, event: dict[str, Any]) -> None:
    run.warnings.append(event["text"])


def _step_skipped(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    instance.state, instance.reason = "skipped", event["reason"]


def _step_reset(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    if instance.state == "failed":
        instance.state = "retry"
    instance.attempts = instance.failures = instance.interruptions = 0
    instance.not_before = None


def _when_decided(run: RunHistory, event: dict[str, Any]) -> None:
    run.decisions[event["key"]] = event["value"]


def _each_expanded(run: RunHistory, event: dict[str, Any]) -> None:
    run.counts[event["key"]] = event["count"]


def _run_cancelled(run: RunHistory, event: dict[str, Any]) -> None:
    run.cancelled, run.state, run.finished_at = True, "cancelled", event["at"]


def _run_failed(run: RunHistory, event: dict[str, Any]) -> None:
    run.state, run.error, run.finished_at = "failed", event["error"], event["at"]


def _run_resumed(run: RunHistory, event: dict[str, Any]) -> None:
    run.state, run.cancelled, run.error, run.finished_at = "running", False, None, None
    run.budget.update(event.get("budget") or {})


def _run_complete(run: RunHistory, event: dict[str, Any]) -> None:
    run.state, run.finished_at = "complete", event["at"]


_HANDLERS = {
    events.RUN_CREATED: _run_created,
    events.RUN_STARTED: _run_started,
    events.STEP_STARTED: _step_started,
    events.STEP_DONE: _step_done,
    events.STEP_ATTEMPT_FAILED: _step_attempt_failed,
    events.STEP_SKIPPED: _step_skipped,
    events.STEP_RESET: _step_reset,
    events.WHEN_DECIDED: _when_decided,
    events.EACH_EXPANDED: _each_expanded,
    events.USAGE_LATE: _usage_late,
    events.BUDGET_WARNING: _budget_warning,
    events.RUN_CANCELLED: _run_cancelled,
    events.RUN_FAILED: _run_failed,
    events.RUN_RESUMED: _run_resumed,
    events.RUN_COMPLETE: _run_complete,
}


def read_history(run_dir: Path) -> RunHistory:
    """Replay a run's journal; a torn last line (a crash during its append) is passed over.

    Raises:
        FileNotFoundError: The run was never sealed.
    """
    history = RunHistory()
    for line in (run_dir / "events.jsonl").read_bytes().split(b"\n"):
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(event, dict) and "event" in event:
            history.apply(event)
    return history


def seconds_between(start: str | None, end: str | None) -> float:
    """Seconds from one RFC 3339 time to another; 0.0 when one is missing or the clock went back."""
    if not start or not end:
        return 0.0
    return max(0.0, round(unix_s(end) - unix_s(start), 6))


_TASK_STATE = {"retry": "pending", "running": "running", "done": "done", "failed": "failed", "skipped": "skipped"}


def status_of(history: RunHistory, *, now: str, expected: list[str], notes: list[str]) -> dict[str, Any]:
    """tasks-status.json as ``records.Status`` has it.

    Args:
        now: RFC 3339.
        expected: Names of the steps as far as the planner knows them; those not begun show as pending.
        notes: Sentences for the reader, e.g. that the embedded engine is in use.
    """
    tasks = {name: _task_status(instance, history.state) for name, instance in history.instances.items()}
    for name in expected:
        tasks.setdefault(name, {"state": "cancelled" if history.state == "cancelled" else "pending"})
    ended = sum(1 for task in tasks.values() if task["state"] in ("done", "skipped"))
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
        "waiting_for": None,
        "error": history.error,
        "notes": [*notes, *history.warnings],
        "usage": history.usage.model_dump(),
        "tasks": tasks,
    }


def _task_status(instance: Instance, run_state: str) -> dict[str, Any]:
    state = _TASK_STATE[instance.state]
    if run_state == "cancelled" and state in ("pending", "running"):
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
