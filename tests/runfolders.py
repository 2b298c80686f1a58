"""Run folders as a daemon leaves them, made by hand: of any size, in any state, in a moment."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pop.events import rfc3339
from pop.history import RunHistory
from pop.settings import Root
from pop.statuses import status_of

T0 = 1_795_280_000.0
NO_USAGE = {"calls": 0, "cached_calls": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0}
USAGE = {**NO_USAGE, "calls": 1, "input_tokens": 1000, "output_tokens": 100, "cost_usd": 0.002}


@dataclass
class MadeRun:
    """A run that is written down event by event; `end` writes its status."""

    path: Path
    journal: list[dict[str, Any]] = field(default_factory=list)
    now: float = T0

    def tell(self, event: str, /, *, after: float = 0.01, **fields: Any) -> None:
        self.now += after
        self.journal.append({"at": rfc3339(self.now), "event": event, **fields})

    def step(
        self,
        instance: str,
        output: Any = "done",
        *,
        prompt: str = "Write it.",
        answer: str = "Here it is.",
        error: dict[str, Any] | None = None,
        attempt: int = 1,
        usage: dict[str, Any] = USAGE,
        artifacts: dict[str, bytes] | None = None,
    ) -> None:
        """One attempt from its beginning to its end, with a call of a second."""
        step = instance.partition("@")[0].partition(".")[0]
        self.tell("step.started", instance=instance, step=step, attempt=attempt, generation=1)
        folder = self.path / "tasks" / instance
        tried = folder / "attempts" / str(attempt)
        tried.mkdir(parents=True)
        begun = self.now
        rows: list[dict[str, Any]] = [
            {"event": "stage.end", "stage": "prompt", "seconds": 0.001, "file": "03-prompt.md"},
            {"event": "stage.begin", "stage": "infer"},
            {"event": "call.begin", "stage": "infer", "text": "default"},
            {"event": "call.end", "stage": "infer", "after": 1.2},
            {"event": "stage.end", "stage": "infer", "seconds": 1.2, "file": "04-infer.md"},
            {"event": "stage.end", "stage": "parse", "seconds": 0.001, "file": "05-parse.json"},
        ]
        lines = []
        for row in rows:
            begun += float(row.pop("after", 0.001))
            lines.append(json.dumps({"at": rfc3339(begun), "round": 0, **row}))
        (tried / "trail.jsonl").write_text("\n".join(lines) + "\n")
        (tried / "03-prompt.md").write_text(prompt)
        (tried / "04-infer.md").write_text(answer)
        (tried / "05-parse.json").write_text(json.dumps(output))
        call = {"at": rfc3339(begun), "stage": "infer", "asked": "default", "model": "fast", "provider_model": "m-1",
                "input_tokens": 1000, "output_tokens": 100, "cost_usd": 0.002, "ms": 1000.0, "cached": False,
                "finish_reason": "stop", "tries": [], "text": answer}  # fmt: skip
        if usage["calls"]:
            (tried / "calls.jsonl").write_text(json.dumps(call) + "\n")
        (folder / "letter.json").write_text(json.dumps({"instance": instance, "step": step}))
        self.now = begun
        if error:
            (tried / "error.json").write_text(json.dumps(error))
            (folder / "error.json").write_text(json.dumps(error))
            self.tell(
                "step.attempt_failed",
                instance=instance,
                attempt=attempt,
                error=error,
                action="fail",
                usage=usage,
                seconds=1.3,
            )
            return
        (folder / "output.json").write_text(json.dumps(output))
        for name, data in (artifacts or {}).items():
            (folder / "artifacts" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "artifacts" / name).write_bytes(data)
        self.tell(
            "step.done", instance=instance, attempt=attempt, sha256="0" * 64, usage=usage, seconds=1.3, refinements=0
        )

    def end(self, event: str | None = None, /, **fields: Any) -> Path:
        """The last event, the journal and the status; returns the run's folder."""
        if event:
            self.tell(event, **fields)
        (self.path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.journal))
        history = RunHistory()
        for line in self.journal:
            history.apply(line)
        status = status_of(history, now=rfc3339(self.now), expected=[], notes=[])
        (self.path / "tasks-status.json").write_text(json.dumps(status))
        return self.path


def begin_run(
    root: Root,
    tasks: Iterable[Any],
    *,
    run_id: str = "20261121-165320-made-ab12",
    name: str = "made",
    place: str = "complete",
    **created: Any,
) -> MadeRun:
    """A run that was created and started, with this pipeline."""
    path = (root.complete if place == "complete" else root.current) / run_id
    (path / "tasks").mkdir(parents=True)
    (path / "seed.json").write_text("{}")
    (path / "pipeline.json").write_text(json.dumps({"name": "default", "tasks": list(tasks)}))
    if not (root.path / "pipeline.json").exists():
        (root.path / "pipeline.json").write_text('{"tasks": ["a"]}')
    run = MadeRun(path)
    run.tell(
        "run.created",
        run_id=run_id,
        name=name,
        pipeline="default",
        priority=0,
        seed_sha256="0",
        pipeline_sha256="0",
        **created,
    )
    run.tell("run.started")
    return run
