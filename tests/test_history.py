"""The journal is the truth: the same events give the same facts, and the status is a view of them."""

from __future__ import annotations

from pathlib import Path

import orjson

from pop.display import task_line
from pop.durations import written
from pop.events import unix_s
from pop.history import read_history
from pop.records import RunRecord, Status
from pop.statuses import run_record, seconds_between, status_of

T = "2026-11-21T03:15:0{}.000Z"


def event(second: int, event_name: str, **fields: object) -> bytes:
    return orjson.dumps({"at": T.format(second), "event": event_name, **fields}) + b"\n"


USAGE = {"calls": 1, "cached_calls": 0, "input_tokens": 10, "output_tokens": 5, "cost_usd": 0.5}
LINES = [
    event(
        0, "run.created", run_id="r", name="R", pipeline="default", priority=0, seed_sha256="s", pipeline_sha256="p"
    ),
    event(1, "run.started"),
    event(1, "step.started", instance="a", step="a", attempt=1, generation=1),
    event(
        2, "step.attempt_failed", instance="a", attempt=1, action="retry", not_before=None, seconds=1.0, usage=USAGE,
        error={"error_class": "invalid_output", "message": "no"},
    ),
    event(2, "step.started", instance="a", step="a", attempt=2, generation=2),
    event(4, "step.done", instance="a", attempt=2, sha256="x", seconds=2.0, refinements=1, usage=USAGE, models=["m"]),
    event(4, "step.skipped", instance="b", reason="when said no"),
    event(5, "run.complete"),
]  # fmt: skip


def history_of(tmp_path: Path, lines: list[bytes]):  # type: ignore[no-untyped-def]
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines))
    return read_history(tmp_path)


def test_a_finished_history_gives_a_record_and_a_status(tmp_path: Path) -> None:
    """Both have their documented shapes; usage is the sum over all attempts."""
    history = history_of(tmp_path, LINES)
    record = RunRecord.model_validate(run_record(history, models=list(history.models)))
    assert (record.attempts, record.refinements, record.seconds, record.models) == (2, 1, 4.0, ["m"])
    assert record.usage.calls == 2 and record.usage.cost_usd == 1.0
    status = Status.model_validate(status_of(history, now=T.format(5), expected=[], notes=[]))
    assert (status.state, status.progress, status.tasks["b"].state) == ("complete", 1.0, "skipped")


def test_progress_is_one_only_when_the_run_is_complete(tmp_path: Path) -> None:
    """All steps done is not yet a finished run."""
    history = history_of(tmp_path, LINES[:-1])
    assert status_of(history, now=T.format(5), expected=[], notes=[])["progress"] == 0.99


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    """A crash during an append leaves the facts as they were before it."""
    torn = history_of(tmp_path, [*LINES[:5], LINES[5][:20]])
    assert torn.instances["a"].state == "running"


def test_bad_answers_begin_a_new_generation_and_interruptions_use_up_nothing(tmp_path: Path) -> None:
    """So that a retry after bad answers asks afresh, and a retry after a crash is answered from the store."""
    again = event(
        3, "step.attempt_failed", instance="a", attempt=2, action="retry",
        error={"error_class": "interrupted", "message": "stop"},
    )  # fmt: skip
    instance = history_of(tmp_path, [*LINES[:5], again]).instances["a"]
    assert (instance.generation, instance.attempts, instance.started, instance.state) == (2, 1, 2, "retry")


def test_a_clock_that_goes_back_gives_no_negative_time() -> None:
    """Durations of a run are never below zero."""
    assert seconds_between(T.format(5), T.format(1)) == 0.0


def test_a_gate_that_nobody_answered_in_time_says_so(tmp_path: Path) -> None:
    """It was rejected by nobody; a person who says no is named."""
    due = unix_s(T.format(2)) + 89.98
    opened = event(2, "gate.opened", instance="g", kind="step", opening=1, expires_at=due, shown=[])
    decided = {"instance": "g", "decision": "reject", "by": "timeout", "how": "timeout", "text": None}
    (error,) = [history_of(tmp_path, [opened, event(3, "gate.decided", **decided)]).instances["g"].error]
    assert error["message"] == "nobody answered g within 90s"
    assert error["hint"] == "let it be asked once more, and answer in time: pop retry"
    decided |= {"by": "ada", "how": "file", "text": "too dry"}
    (error,) = [history_of(tmp_path, [opened, event(3, "gate.decided", **decided)]).instances["g"].error]
    assert error["message"] == "g was rejected by ada: too dry"
    assert [written(s) for s in (0.25, 4.98, 90, 5400, 172800)] == ["250ms", "5s", "90s", "90m", "2d"]


def test_no_note_stands_twice_and_a_cut_reason_is_marked(tmp_path: Path) -> None:
    """However often a gate was told of."""
    opened = {"instance": "a+control", "kind": "control", "opening": 1, "expires_at": None, "shown": []}
    history = history_of(tmp_path, [*LINES[:2], event(2, "gate.opened", **opened)])
    (note,) = status_of(history, now=T.format(3), expected=[], notes=[])["notes"]
    assert status_of(history, now=T.format(3), expected=[], notes=[note, "x"])["notes"] == [note, "x"]
    line = task_line("b", {"state": "skipped", "reason": "r" * 150})
    assert line.endswith(" " + "r" * 99 + "…")
    assert task_line("b", {"state": "skipped", "reason": "r" * 100}).endswith("r" * 100)
