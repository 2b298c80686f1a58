"""What is known of one instance of a step, and of one loop; and what an event makes of them.

| instance state | meaning                                      | leaves it by                      |
|----------------|----------------------------------------------|-----------------------------------|
| running        | an attempt was started and has not ended     | step.done, step.attempt_failed    |
| retry          | the attempt failed, another is due           | step.started                      |
| waiting        | a person is asked                            | gate.decided                      |
| done           | its output stands on disk with this sha256   | run.rerun                         |
| failed         | no further attempt is allowed                | step.reset, run.rerun             |
| skipped        | its condition said no                        | run.rerun                         |
| stale          | it is to run again when its turn comes       | step.started, gate.opened, step.skipped |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pop.durations import written
from pop.loops import Verdict


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
    patience_s: float | None = None  # from the opening of the gate until it expires
    kind: str | None = None  # of the gate that is open, or was last
    key: str | None = None  # of the loop that gate stands in, or at the end of
    opening: int = 0
    shown: list[dict[str, Any]] = field(default_factory=list)
    decision: str | None = None
    model: str | None = None  # asked instead of the step's own, as its recovery says
    models: dict[str, str] = field(default_factory=dict)  # of a rerun: recorded answers
    problems: list[str] | None = None  # what the next attempt is told; None: what remained in the lap before
    live: dict[str, Any] = field(default_factory=dict)  # stage, progress: seen in the trail, not journaled

    def afresh(self) -> None:
        """Fresh attempts, or the gate once more."""
        if self.state in ("failed", "waiting"):
            self.state, self.expires_at = "retry", None
        self.attempts = self.failures = self.interruptions = 0
        self.not_before = None

    def forget(self) -> None:
        """As if it had not begun, but for what it cost and its attempts' numbers."""
        self.state = "stale"
        self.attempts = self.failures = self.interruptions = 0
        self.error, self.not_before, self.expires_at, self.reason = None, None, None, None
        self.decision, self.model, self.more_time, self.models = None, None, 1.0, {}
        self.problems = None

    def be_rejected(self, name: str, event: Mapping[str, Any]) -> None:
        """A person said no, or nobody said anything in time; a failed attempt keeps its own error."""
        self.state = "failed"
        if self.kind == "recovery":
            return
        said = f": {event['text']}" if event.get("text") else ""
        message, hint = (
            f"{name} was rejected by {event['by']}{said}",
            "mend it and let it be asked once more: pop retry",
        )
        if event.get("how") == "timeout":
            within = f" within {written(self.patience_s)}" if self.patience_s else " in time"
            message, hint = (
                f"nobody answered {name}{within}",
                "let it be asked once more, and answer in time: pop retry",
            )
        self.error = {"error_class": "rejected", "code": "rejected", "message": message, "instance": name, "hint": hint}


@dataclass
class Lap:
    """One lap of a `repeat`, as ``lap.ended`` tells it."""

    verdict: Verdict
    score: float | None = None
    checks: bool = True
    sha256: str = ""
    reason: str = ""
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Loop:
    """One `repeat`. `since`: laps before a person granted further ones; `kept`: the lap that stands for the loop."""

    laps: list[Lap] = field(default_factory=list)
    since: int = 0
    kept: int | None = None

    def go_on(self) -> None:
        """A person grants further laps."""
        self.laps[-1].verdict, self.since, self.kept = "again", len(self.laps), None

    def accept(self) -> None:
        """A person takes the newest lap."""
        self.laps[-1].verdict, self.kept = "accepted", len(self.laps)

    def begin_again_after(self, laps: int) -> None:
        """Keep the first of them, at least one; the next one is to come."""
        self.laps, self.since, self.kept = self.laps[:laps], min(self.since, laps), None
        self.laps[-1].verdict = "again"
