"""When each attempt of a run waited, asked a model and worked: pure, from the journal and the attempts' own diaries.

| kind   | what the time went to                                                | from                                  |
|--------|----------------------------------------------------------------------|---------------------------------------|
| queue  | the run, or the step, was ready and had no place                     | events.jsonl, and the pipeline's order |
| permit | a call was not with a provider yet: permits, retries, the gateway    | call.begin to call.end, less `model`  |
| model  | a provider worked on an answer                                       | the calls' own milliseconds           |
| own    | everything else between the attempt's beginning and its end          |                                       |
| person | a gate was open                                                      | gate.opened to gate.decided           |

All times are Unix seconds. A line that cannot be read is passed over: a picture with a hole is better than none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from pop import events as names
from pop.stale import place_of
from pop.steps import At, Block, Each, Gate, Parallel, Pipeline, Repeat, Task, instance_name
from pop.steps import Sequence as Steps

Kind = Literal["queue", "permit", "model", "own", "person"]
KINDS: tuple[Kind, ...] = ("queue", "permit", "model", "own", "person")
MAX_EVENTS = 200_000


class Span(NamedTuple):
    """A stretch of time of one kind."""

    kind: Kind
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class Stage(NamedTuple):
    """One stage of an attempt; `end` None while it goes on."""

    name: str
    round: int
    begin: float
    end: float | None
    file: str | None = None
    problems: int = 0
    score: float | None = None


@dataclass(frozen=True)
class Diary:
    """What one attempt wrote down: its stages, and when it waited for answers, and when a provider worked on them."""

    stages: tuple[Stage, ...] = ()
    asked: tuple[tuple[float, float | None], ...] = ()
    answered: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Attempt:
    """One process that tried a step, or one opening of a gate; `end` None while it goes on.

    `ready` is when it could have begun, None where nobody knows. `outcome`: ``done``, ``running``, ``waiting``, an error
    class, or a decision.
    """

    number: int
    ready: float | None
    begin: float
    end: float | None
    outcome: str
    spans: tuple[Span, ...] = ()
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Row:
    """One instance with its attempts, oldest first."""

    instance: str
    step: str
    attempts: tuple[Attempt, ...]

    def seconds(self) -> dict[Kind, float]:
        """By kind, over all attempts."""
        return _added(span for attempt in self.attempts for span in attempt.spans)


@dataclass(frozen=True)
class Timeline:
    """A run's rows in the order they first began; `rests` are the run's own spans: queued, and waiting for people."""

    begin: float
    end: float
    rows: tuple[Row, ...] = ()
    rests: tuple[Span, ...] = ()
    cut: bool = False

    def seconds(self) -> dict[Kind, float]:
        """By kind, over all rows: more than has passed, where steps ran side by side."""
        return _added(span for row in self.rows for attempt in row.attempts for span in attempt.spans)


def _added(spans: Iterable[Span]) -> dict[Kind, float]:
    sums: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    for span in spans:
        sums[span.kind] += span.seconds
    return sums


_RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def moment(value: object) -> float | None:
    """The Unix time of a text as POP writes it; None where it is none."""
    if not isinstance(value, str) or not _RFC3339_UTC.fullmatch(value):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None


# -- one attempt ---------------------------------------------------------------------------------------------------


def diary_of(trail: Iterable[Mapping[str, Any]], calls: Iterable[Mapping[str, Any]]) -> Diary:
    """From the lines of trail.jsonl and calls.jsonl."""
    stages, asked, open_stage, open_call = list[Stage](), list[tuple[float, float | None]](), None, None
    for line in trail:
        at, event = moment(line.get("at")), line.get("event")
        if at is None:
            continue
        if event == "stage.begin":
            open_stage = (at, str(line.get("stage")), _number(line.get("round")))
        elif event == "stage.end":
            stages.append(_stage(line, at))
            open_stage = None
        elif event == "call.begin":
            open_call = at
        elif event == "call.end" and open_call is not None:
            asked.append((open_call, at))
            open_call = None
    if open_call is not None:
        asked.append((open_call, None))
    if open_stage is not None:
        stages.append(Stage(open_stage[1], open_stage[2], open_stage[0], None))
    return Diary(tuple(stages), tuple(asked), tuple(_answered(calls)))


def _stage(line: Mapping[str, Any], at: float) -> Stage:
    problems, score, file = line.get("problems"), line.get("score"), line.get("file")
    return Stage(
        str(line.get("stage")),
        _number(line.get("round")),
        at - _seconds(line.get("seconds")),
        at,
        file if isinstance(file, str) else None,
        len(problems) if isinstance(problems, list) else 0,
        float(score) if isinstance(score, int | float) else None,
    )


def _answered(calls: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, float]]:
    """When a provider was at work; an answer from the store took none of its time."""
    for line in calls:
        at = moment(line.get("at"))
        if at is None or line.get("cached"):
            continue
        tries = line.get("tries")
        tried = [_seconds(one.get("ms")) for one in tries if isinstance(one, dict)] if isinstance(tries, list) else []
        milliseconds = _seconds(line.get("ms")) + sum(tried)
        if milliseconds:
            yield at - milliseconds / 1000, at


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e10 else 0.0


def spans_of(diary: Diary, begin: float, end: float) -> tuple[Span, ...]:
    """An attempt's time, whole and without overlap, in order."""
    if not diary.asked:
        return (Span("own", begin, end),) if end > begin else ()
    model = _union((max(a, begin), min(b, end)) for a, b in diary.answered)
    asking = _union((max(a, begin), min(b if b is not None else end, end)) for a, b in diary.asked)
    found, place = list[Span](), begin
    for a, b in asking:
        _add(found, "own", place, a)
        inner = a
        for c, d in model:
            if d <= a or c >= b:
                continue
            _add(found, "permit", inner, max(a, c))
            _add(found, "model", max(a, c), min(b, d))
            inner = min(b, d)
        _add(found, "permit", inner, b)
        place = b
    _add(found, "own", place, end)
    return tuple(found)


def _add(found: list[Span], kind: Kind, begin: float, end: float) -> None:
    if end > begin:
        found.append(Span(kind, begin, end))


def _union(parts: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(part for part in parts if part[1] > part[0]):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


# -- the run -------------------------------------------------------------------------------------------------------


@dataclass
class _Told:
    """What the journal tells, gathered in one pass."""

    attempts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)  # by instance, the newest end
    counts: dict[str, tuple[int, float]] = field(default_factory=dict)
    laps: dict[str, dict[int, float]] = field(default_factory=dict)
    again: list[float] = field(default_factory=list)  # the run was started, resumed or rerun
    rests: list[Span] = field(default_factory=list)
    created: float | None = None
    over: float | None = None
    resting: float | None = None
    last: float = 0.0


def timeline(
    journal: Sequence[Mapping[str, Any]],
    diaries: Mapping[tuple[str, int], Diary],
    *,
    pipeline: Pipeline | None,
    now: float,
) -> Timeline:
    """The rows of a run.

    Args:
        journal: The lines of events.jsonl; beyond `MAX_EVENTS` only the newest count.
        diaries: By instance and attempt, those that could be read; an attempt without one is all `own`.
        pipeline: With it waiting for a place is told apart; it is not known otherwise.
        now: The end of what still goes on.
    """
    told = _Told()
    for event in journal[-MAX_EVENTS:]:
        at = moment(event.get("at"))
        if at is not None:
            told.last = max(told.last, at)
            _tell(told, event, at)
    if told.created is None and not told.last:
        return Timeline(now, now)
    begin = told.created if told.created is not None else told.last
    end = told.over if told.over is not None else max(now, told.last)
    if told.resting is not None and told.over is None:
        told.rests.append(Span("person", told.resting, end))
    ready = _Ready(pipeline, told).all() if pipeline else {}
    rows = [_row(told, name, diaries, ready, end) for name in told.attempts]
    rows.sort(key=lambda row: row.attempts[0].begin)
    return Timeline(begin, end, tuple(rows), tuple(told.rests), len(journal) > MAX_EVENTS)


def _tell(told: _Told, event: Mapping[str, Any], at: float) -> None:
    what, instance = event.get("event"), str(event.get("instance"))
    if what in (names.STEP_STARTED, names.GATE_OPENED):
        number = _number(event.get("attempt") if what == names.STEP_STARTED else event.get("opening"))
        outcome = "running" if what == names.STEP_STARTED else "waiting"
        told.attempts.setdefault(instance, []).append({"number": number, "begin": at, "end": None, "outcome": outcome})
    elif what in (names.STEP_DONE, names.STEP_ATTEMPT_FAILED, names.GATE_DECIDED):
        _close(told, instance, at, _outcome(event))
        told.ended[instance] = at
    elif what in (names.STEP_SKIPPED, names.STEP_REUSED):
        told.ended[instance] = at
    elif what == names.EACH_EXPANDED:
        told.counts[str(event.get("key"))] = (_number(event.get("count")), at)
    elif what == names.LAP_ENDED:
        told.laps.setdefault(str(event.get("key")), {})[_number(event.get("lap"))] = at
    else:
        _tell_of_run(told, str(what), at)


def _tell_of_run(told: _Told, what: str, at: float) -> None:
    if what == names.RUN_CREATED:
        told.created = at
    elif what in (names.RUN_STARTED, names.RUN_RESUMED, names.RUN_RERUN):
        if not told.again and told.created is not None:
            told.rests.append(Span("queue", told.created, at))
        if told.resting is not None:
            told.rests.append(Span("person", told.resting, at))
        told.again.append(at)
        told.resting = told.over = None
    elif what in (names.RUN_WAITING, names.RUN_PAUSED):
        told.resting = told.resting or at
    elif what in (names.RUN_COMPLETE, names.RUN_FAILED, names.RUN_CANCELLED):
        told.over, told.resting = at, None


def _outcome(event: Mapping[str, Any]) -> str:
    if event.get("event") == names.GATE_DECIDED:
        return str(event.get("decision"))
    error = event.get("error")
    return str(error.get("error_class")) if isinstance(error, dict) else "done"


def _close(told: _Told, instance: str, at: float, outcome: str) -> None:
    for attempt in reversed(told.attempts.get(instance, [])):
        if attempt["end"] is None:
            attempt.update(end=at, outcome=outcome)
            return


def _row(
    told: _Told, name: str, diaries: Mapping[tuple[str, int], Diary], ready: Mapping[str, float], end: float
) -> Row:
    made, before = list[Attempt](), None
    raw = told.attempts[name]
    for place, one in enumerate(raw):
        gate = one["outcome"] in ("waiting", "approve", "reject", "request-changes")
        diary = Diary() if gate else diaries.get((name, one["number"]), Diary())
        cut = raw[place + 1]["begin"] if one["end"] is None and place + 1 < len(raw) else one["end"]
        until = cut if cut is not None else max(end, one["begin"])
        since = None if gate else _since(told, ready.get(name), before, one["begin"])
        waited = (Span("queue", since, one["begin"]),) if since is not None and since < one["begin"] else ()
        spent = (Span("person", one["begin"], until),) if gate else spans_of(diary, one["begin"], until)
        outcome = "interrupted" if one["end"] is None and cut is not None else one["outcome"]
        made.append(Attempt(one["number"], since, one["begin"], cut, outcome, (*waited, *spent), diary.stages))
        before = until
    return Row(name, place_of(name)[0], tuple(made))


def _since(told: _Told, ready: float | None, before: float | None, begin: float) -> float | None:
    """When an attempt could have begun: after what its step waits for, the attempt before, and the run's last rest."""
    if before is None and (ready is None or ready > begin):
        return None  # an attempt from before a rerun
    known = [at for at in (ready, before, *told.again) if at is not None and at <= begin]
    return max(known, default=None)


class _Ready:
    """When each instance could begin: the end of what its block waits for, as `steps` has it."""

    def __init__(self, pipeline: Pipeline, told: _Told) -> None:
        self.pipeline, self.told = pipeline, told
        self.ends: dict[tuple[str, At], float] = {}
        self.found: dict[str, float] = {}
        above = {name: self._above(name) for name in pipeline.blocks}
        for instance, at in told.ended.items():
            name, place = place_of(instance)
            for outer in above.get(name, ()):
                key = (outer, pipeline.at(outer, place))
                self.ends[key] = max(at, self.ends.get(key, at))

    def _above(self, name: str) -> list[str]:
        found = [name]
        while (parent := self.pipeline.parents.get(found[-1])) is not None:
            found.append(parent.name)
        return found

    def all(self) -> dict[str, float]:
        """By instance."""
        self._walk(self.pipeline.root, At(), self.told.again[0] if self.told.again else 0.0)
        return self.found

    def _end(self, block: Block, at: At) -> float:
        return self.ends.get((block.name, self.pipeline.at(block.name, at)), 0.0)

    def _begin(self, block: Block, at: At, ready: float, through: float) -> float:
        if block.needs is None:
            return max(ready, through)
        return max([ready, *(self._end(needed, at) for needed in self.pipeline.waits[block.name])])

    def _walk(self, block: Block, at: At, ready: float) -> None:
        if isinstance(block, Task | Gate):
            self.found[instance_name(block.name, at)] = ready
        elif isinstance(block, Steps):
            self._in_order(block, at, ready, verdict=None, held=frozenset())
        elif isinstance(block, Parallel):
            for child in block.inner:
                self._walk(child, at, self._begin(child, at, ready, ready))
        elif isinstance(block, Each):
            count, expanded = self.told.counts.get(instance_name(block.name, at), (0, ready))
            for number in range(min(count, MAX_EVENTS)):
                self._walk(block.do, at.item(number), max(ready, expanded))
        else:
            self._laps(block, at, ready)

    def _in_order(self, block: Steps, at: At, ready: float, verdict: float | None, held: frozenset[str]) -> None:
        through = ready
        for child in block.inner:
            begin = self._begin(child, at, ready, through)
            waits = verdict if verdict is not None and child.name in held else begin
            self._walk(child, at, max(begin, waits))
            through = max(through, self._end(child, at))

    def _laps(self, block: Repeat, at: At, ready: float) -> None:
        ended = self.told.laps.get(instance_name(block.name, at), {})
        for number in range(1, len(ended) + 2):
            inside = at.lap(number)
            verdict = ended.get(number)
            self._in_order(block.body, inside, ready, verdict, self.pipeline.held_back[block.name])
            ready = max(ready, verdict or ready, self._end(block.body, inside))


__all__ = [
    "KINDS",
    "Attempt",
    "Diary",
    "Row",
    "Span",
    "Stage",
    "Timeline",
    "diary_of",
    "moment",
    "spans_of",
    "timeline",
]
