"""All of a run that one page shows, read from its folder: journal, pipeline, times, costs. It only reads, within limits.

What cannot be read is left out, and `RunLook.troubles` says so: a page about a broken run is what a person needs most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pop import events
from pop.diaries import Diaries, ModelSum, beginning, json_lines, real, whole
from pop.durations import in_words
from pop.errors import PopError
from pop.history import RunHistory
from pop.largeruns import thinned
from pop.records import Usage
from pop.rerun import pipeline_of
from pop.runs import Run
from pop.stale import place_of
from pop.steps import Each, Pipeline, Repeat, step_of
from pop.timeline import Diary, Timeline, timeline

MAX_JOURNAL = 8 * 2**20
MAX_DIARIES = 256 * 2**20  # of all attempts together
MOST_DIARIES = 5_000  # no more than are remembered, or each look would read them all again


@dataclass(frozen=True)
class Lap:
    """How one lap of a loop was judged."""

    key: str
    lap: int
    verdict: str
    reason: str
    score: float | None


@dataclass(frozen=True)
class Trouble:
    """An error as a person reads it; what is not told is empty."""

    error_class: str
    message: str
    where: str = ""
    hint: str = ""
    stage: str = ""
    instance: str = ""
    problems: tuple[str, ...] = ()
    traceback: str = ""

    @classmethod
    def of(cls, value: object) -> Trouble | None:
        """From a status, an event or an error.json."""
        if not isinstance(value, dict):
            return None
        words = {
            key: str(value.get(key) or "") for key in ("message", "where", "hint", "stage", "instance", "traceback")
        }
        problems = value.get("problems")
        told = tuple(str(one) for one in problems[:100]) if isinstance(problems, list) else ()
        return cls(str(value.get("error_class") or "error"), **words, problems=told)


@dataclass(frozen=True)
class Decision:
    """An answer to a gate."""

    instance: str
    decision: str
    by: str
    how: str
    at: str
    text: str
    edits: int

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Decision:
        """From gate.decided, or a gate's output."""
        edited = value.get("edited")
        words = {key: str(value.get(key) or "") for key in ("instance", "decision", "by", "how", "at", "text")}
        return cls(**words, edits=len(edited) if isinstance(edited, list) else 0)


@dataclass
class RunLook:
    """A run as a page shows it; `states` is by instance; `notes` are words for the boxes of the graph."""

    run: Run
    status: dict[str, Any]
    journal: list[dict[str, Any]] = field(default_factory=list)
    pipeline: Pipeline | None = None
    line: Timeline = field(default_factory=lambda: Timeline(0.0, 0.0))
    models: dict[str, ModelSum] = field(default_factory=dict)
    laps: list[Lap] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.status.get("tasks") or {}
        return found

    @property
    def states(self) -> dict[str, str]:
        return {name: str(task.get("state")) for name, task in self.tasks.items()}

    @property
    def error(self) -> Trouble | None:
        return Trouble.of(self.status.get("error"))

    @property
    def origin(self) -> dict[str, Any] | None:
        """Of a fork: ``{"run", "from"}``."""
        fork = self.journal[0].get("forked_from") if self.journal else None
        return fork if isinstance(fork, dict) and fork.get("run") else None

    @property
    def replayed(self) -> list[str]:
        """The models that only repeated recorded answers."""
        return [name for name in self.models if name.startswith("replay:")]

    @property
    def reruns(self) -> list[dict[str, Any]]:
        return [event for event in self.journal if event.get("event") == events.RUN_RERUN]

    def by_step(self) -> dict[str, Usage]:
        """What each step cost, by the ledger."""
        parts: dict[str, list[object]] = {}
        for name, task in self.tasks.items():
            parts.setdefault(step_name(name), []).append(task.get("usage"))
        found = {step: added(usages) for step, usages in parts.items()}
        return {step: used for step, used in found.items() if used.calls or used.cached_calls}

    def counts(self) -> dict[str, int]:
        """How many instances are in each state."""
        found: dict[str, int] = {}
        for state in self.states.values():
            found[state] = found.get(state, 0) + 1
        return found


def step_name(instance: str) -> str:
    """The step of an instance, also of its control gate."""
    return step_of(instance.removesuffix("+control"))


def added(usages: Iterable[object]) -> Usage:
    """The sum of many usages as a status tells them."""
    sums: dict[str, float] = dict.fromkeys(Usage.model_fields, 0)
    for usage in usages:
        for name, value in usage.items() if isinstance(usage, dict) else ():
            if name in sums and isinstance(value, int | float):
                sums[name] += value
    try:
        return Usage.model_validate({**sums, "cost_usd": round(sums["cost_usd"], 9)})
    except ValueError:
        return Usage()


def usage_of(value: Mapping[str, Any]) -> Usage:
    """Its `usage`; none where that cannot be read."""
    try:
        return Usage.model_validate(value.get("usage") or {})
    except ValueError:
        return Usage()


def status_for(run: Run) -> dict[str, Any]:
    """Its status with every key a page uses, of the right kind: people have editors, and an unreadable run tells little."""
    status = thinned(run) or run.status()
    notes, progress = status.get("notes"), status.get("progress")
    texts = {key: status[key] if isinstance(status.get(key), str) else None for key in _TEXTS}
    known = {
        "name": texts["name"] or run.run_id,
        "notes": [str(note) for note in notes] if isinstance(notes, list) else [],
        "progress": float(progress) if isinstance(progress, int | float) else 0.0,
        "usage": usage_of(status).model_dump(),
    }
    return {**status, **texts, **known}


_TEXTS = ("name", "pipeline", "created_at", "started_at", "finished_at")


def look_at(run: Run, *, now: float | None = None, diaries: Diaries | None = None) -> RunLook:
    """Read a run.

    Args:
        now: Until when what still goes on is drawn; the present.
        diaries: Remembers what was read before.
    """
    look = RunLook(run, status_for(run))
    if left_out := whole(look.status.get("left_out")):
        look.troubles.append(f"{left_out:,} more instances are not shown, nor in the figures of steps")
    data, size = beginning(run.path / "events.jsonl", MAX_JOURNAL)
    look.journal = list(json_lines(data))
    if size > len(data):
        look.troubles.append(f"only the first {len(data):,} of {size:,} bytes of events.jsonl were read")
    history = _history(look)
    try:
        look.pipeline = pipeline_of(run.path, history)
    except (PopError, OSError, LookupError, TypeError, ValueError) as error:
        look.troubles.append(f"its pipeline cannot be drawn: {error}")
    read = _read_diaries(look, diaries or Diaries())
    moment = time.time() if now is None else now
    over = look.status.get("state") in ("complete", "failed", "cancelled")
    look.line = timeline(
        look.journal, read, pipeline=look.pipeline, now=_last(look.journal, moment) if over else moment
    )
    look.laps = list(_laps(look.journal))
    look.decisions = [Decision.of(event) for event in look.journal if event.get("event") == events.GATE_DECIDED]
    look.notes = _notes(look)
    if run.here() != run:  # it was promoted while we looked
        return look_at(run.here(), now=now, diaries=diaries)
    return look


def _last(journal: list[dict[str, Any]], fallback: float) -> float:
    try:
        return events.unix_s(str(journal[-1]["at"]))
    except (LookupError, ValueError):
        return fallback


def _history(look: RunLook) -> RunHistory:
    """As much of the history as tells which pipeline the run follows now: its newest document, and the steps tasks added."""
    history = RunHistory()
    try:
        for event in look.journal:
            if event.get("event") in (events.RUN_CREATED, events.RUN_RERUN) or event.get("control"):
                history.apply({key: value for key, value in event.items() if key != "usage"})
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        look.troubles.append(f"its journal cannot be followed: {type(error).__name__}: {error}")
    return history


def _read_diaries(look: RunLook, diaries: Diaries) -> dict[tuple[str, int], Diary]:
    """The diaries of all attempts that began, and with them what the models cost."""
    over = {
        (event.get("instance"), event.get("attempt"))
        for event in look.journal
        if event.get("event") in (events.STEP_DONE, events.STEP_ATTEMPT_FAILED)
    }
    found: dict[tuple[str, int], Diary] = {}
    left, missed = MAX_DIARIES, 0
    base = os.fspath(look.run.path)
    for event in look.journal:
        if event.get("event") != events.STEP_STARTED or (instance := _name(event.get("instance"))) is None:
            continue
        attempt = whole(event.get("attempt"))
        if (instance, attempt) in found:
            continue
        if left <= 0 or len(found) == MOST_DIARIES:
            missed += 1
            continue
        folder = f"{base}/tasks/{instance}/attempts/{attempt}"
        wrote = diaries.of(folder, over=(instance, attempt) in over)
        left -= wrote.size
        found[instance, attempt] = wrote.diary
        for name, part in wrote.models.items():
            look.models.setdefault(name, ModelSum()).plus(part)
    if missed:
        look.troubles.append(f"the diaries of {missed:,} attempts were not read: too much for one page")
    return found


def _name(value: object) -> str | None:
    """An instance's name that leaves no folder."""
    return (
        value
        if isinstance(value, str) and "/" not in value and "\x00" not in value and value not in (".", "..")
        else None
    )


def _laps(journal: list[dict[str, Any]]) -> Iterator[Lap]:
    """Each lap's newest verdict, in order."""
    found: dict[tuple[str, int], Lap] = {}
    for event in journal:
        if event.get("event") == events.LAP_ENDED:
            score = event.get("score")
            lap = Lap(
                str(event.get("key")),
                whole(event.get("lap")),
                str(event.get("verdict") or "?"),
                str(event.get("reason") or ""),
                float(score) if isinstance(score, int | float) else None,
            )
            found[lap.key, lap.lap] = lap
    yield from found.values()


def _notes(look: RunLook) -> dict[str, str]:
    """Words for the boxes of the graph: items, laps, and how long a step took that has one instance."""
    notes: dict[str, str] = {}
    if look.pipeline is None:
        return notes
    counts: dict[str, int] = {}
    for event in look.journal:
        if event.get("event") == events.EACH_EXPANDED:
            block = place_of(str(event.get("key")))[0]
            counts[block] = counts.get(block, 0) + whole(event.get("count"))
    laps: dict[str, int] = {}
    for lap in look.laps:
        block = place_of(lap.key)[0]
        laps[block] = max(laps.get(block, 0), lap.lap)
    for name, block_ in look.pipeline.blocks.items():
        if isinstance(block_, Each) and name in counts:
            notes[name] = f"{counts[name]:,} item{'s' * (counts[name] != 1)}"
        elif isinstance(block_, Repeat) and name in laps:
            notes[name] = f"{laps[name]} lap{'s' * (laps[name] != 1)}"
    for row in look.line.rows:
        if row.instance == row.step and row.step in look.pipeline.tasks:
            spent = sum(span.seconds for one in row.attempts for span in one.spans if span.kind != "queue")
            notes[row.step] = in_words(spent)
    return notes


NOTHING = Usage()


@dataclass
class StepRow:
    """One line of a table of steps: an instance, or all instances of a step."""

    name: str
    state: str
    instances: int = 1
    done: int = 0
    attempts: int = 0
    refinements: int = 0
    seconds: float = 0.0
    usage: Usage = field(default_factory=Usage)
    stage: str = ""
    said: str = ""  # why it was skipped, or what went wrong
    progress: tuple[float, float] | None = None


def rows_of(tasks: Mapping[str, Mapping[str, Any]], most: int) -> list[StepRow]:
    """A row per instance in the order of the status; per step where these would be more than `most`."""
    if len(tasks) <= most:
        return [row_of(name, task) for name, task in tasks.items()]
    rows: dict[str, StepRow] = {}
    states: dict[str, set[str]] = {}
    usages: dict[str, list[object]] = {}
    for name, task in tasks.items():
        step, one = step_name(name), row_of(name, {**task, "usage": None})
        states.setdefault(step, set()).add(one.state)
        usages.setdefault(step, []).append(task.get("usage"))
        row = rows.setdefault(step, StepRow(step, "", 0))
        row.instances += 1
        row.done += one.done
        row.attempts += one.attempts
        row.refinements += one.refinements
        row.seconds += one.seconds
        row.said = row.said or one.said
    for step, row in rows.items():
        row.usage = added(usages[step])
        row.state = next((state for state in _FIRST_SEEN if state in states[step]), "pending")
    return list(rows.values())


_FIRST_SEEN = ("failed", "running", "waiting", "cancelled", "stale", "pending", "done", "skipped")


def row_of(name: str, task: Mapping[str, Any]) -> StepRow:
    """One instance as a row."""
    error, progress, state = task.get("error"), task.get("progress"), str(task.get("state"))
    told = f"{error.get('error_class')}: {error.get('message')}" if isinstance(error, dict) and state != "done" else ""
    pair = progress if isinstance(progress, list) and len(progress) == 2 else None
    return StepRow(
        name,
        state,
        1,
        int(state == "done"),
        whole(task.get("attempt")),
        whole(task.get("refinements")),
        real(task.get("seconds")),
        usage_of(task) if task.get("usage") else NOTHING,
        str(task.get("stage") or ""),
        told or str(task.get("reason") or ""),
        (real(pair[0]), real(pair[1])) if pair else None,
    )
