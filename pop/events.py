"""The history of a run: one line per event in ``events.jsonl``, written by the supervisor alone.

The journal is the truth about a run; ``tasks-status.json`` is a view of it (see ``history.fold``). A line is
``{"at": RFC 3339 UTC with milliseconds, "event": NAME, ...fields}``. Names read `noun.happened`.

| event               | fields                                                             | durable before going on |
|---------------------|--------------------------------------------------------------------|-------------------------|
| run.created         | run_id name pipeline priority seed_sha256 pipeline_sha256          | yes |
| run.started         |                                                                    | no  |
| step.started        | instance step attempt generation                                   | no: a cut ends the worker |
| step.done           | instance attempt sha256 size_bytes seconds refinements usage       | yes: the commit of a step |
| step.attempt_failed | instance attempt error action not_before seconds refinements usage | yes |
| step.skipped        | instance reason                                                    | no: decided again alike |
| step.reset          | instance (a person asked for another try)                          | yes |
| when.decided        | key value                                                          | yes |
| each.expanded       | key count                                                          | yes |
| gate.opened         | instance kind key opening expires_at shown                         | yes |
| gate.decided        | instance decision by how text edited sha256 size_bytes             | yes: the commit of an answer |
| lap.ended           | key lap until checks score values sha256 verdict reason kept       | yes |
| run.waiting         | for (the gates that are open; nothing else can happen)             | yes |
| run.paused          | by reason                                                          | yes |
| run.rerun           | by reason from instances again replay keys loops seed pipeline models | yes |
| step.reused         | instance sha256 from (a fork took it over)                         | yes |
| usage.late          | instance usage (of calls that outlived their worker)               | yes |
| budget.warning      | text                                                               | no  |
| run.cancelled       | by reason                                                          | yes |
| run.failed          | error                                                              | yes |
| run.resumed         | by reason budget provenance                                        | yes |
| run.complete        |                                                                    | yes |

`instance` is the folder name under ``tasks/``: ``<step>[.<item>...][@<lap>]``. `usage` has the shape of
``records.Usage``. `error` has the shape of ``records.ErrorRecord``. `action` is ``retry`` or ``fail``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

RUN_CREATED = "run.created"
RUN_STARTED = "run.started"
STEP_STARTED = "step.started"
STEP_DONE = "step.done"
STEP_ATTEMPT_FAILED = "step.attempt_failed"
STEP_SKIPPED = "step.skipped"
STEP_RESET = "step.reset"
WHEN_DECIDED = "when.decided"
EACH_EXPANDED = "each.expanded"
GATE_OPENED = "gate.opened"
GATE_DECIDED = "gate.decided"
LAP_ENDED = "lap.ended"
STEP_REUSED = "step.reused"
USAGE_LATE = "usage.late"
BUDGET_WARNING = "budget.warning"
RUN_CANCELLED = "run.cancelled"
RUN_FAILED = "run.failed"
RUN_WAITING = "run.waiting"
RUN_PAUSED = "run.paused"
RUN_RERUN = "run.rerun"
RUN_RESUMED = "run.resumed"
RUN_COMPLETE = "run.complete"

EVENTS = frozenset(
    {
        RUN_CREATED, RUN_STARTED, STEP_STARTED, STEP_DONE, STEP_ATTEMPT_FAILED, STEP_SKIPPED, STEP_RESET,
        STEP_REUSED, WHEN_DECIDED, EACH_EXPANDED, LAP_ENDED, GATE_OPENED, GATE_DECIDED, USAGE_LATE, BUDGET_WARNING,
        RUN_WAITING, RUN_PAUSED, RUN_RERUN, RUN_CANCELLED, RUN_FAILED, RUN_RESUMED, RUN_COMPLETE,
    }
)  # fmt: skip


def rfc3339(unix_s: float) -> str:
    """A Unix time in seconds as ``2026-11-21T03:15:02.123Z``."""
    moment = datetime.fromtimestamp(unix_s, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def unix_s(text: str) -> float:
    """The Unix time in seconds of an RFC 3339 text.

    Raises:
        ValueError: `text` is no RFC 3339 time (one without a zone is none).
    """
    if not _RFC3339.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no time as RFC 3339 has it")
    return datetime.fromisoformat(text).timestamp()
