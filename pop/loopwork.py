"""Judges the laps of loops: evaluates their conditions and puts the verdict into an event.

``lap.ended`` names the lap, so that a lap that was judged twice (a crash before the journal was durable) counts once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from pop import events
from pop.history import Instance, RunHistory
from pop.letters import LetterWriter
from pop.loops import verdict
from pop.moves import Judge
from pop.pipeline import Pipeline
from pop.reading import instances_in
from pop.records import dump_json
from pop.steps import At, Gate, Repeat, instance_name

_NUMBERS = re.compile(r"[^.@]*((?:\.\d+)*)(?:@([\d.]+))?")


def judge(pipeline: Pipeline, history: RunHistory, letters: LetterWriter, move: Judge) -> dict[str, Any]:
    """The event that tells how a lap ended.

    Raises:
        ExpressionError: A condition does not fit the data.
    """
    repeat = pipeline.blocks[move.step]
    assert isinstance(repeat, Repeat)
    scope = letters.scope(history, move)
    until = bool(repeat.until.evaluate(scope))
    checks = bool(repeat.checks.evaluate(scope)) if repeat.checks else None
    score = float(repeat.score.evaluate(scope)) if repeat.score else None
    made = dict(_made_by(pipeline, history, repeat, move))
    ruling = verdict(
        repeat,
        history.loops.get(move.key),
        until=until,
        checks=checks,
        score=score,
        sha256=(sha256 := _sha256_of(made)),
        changes=any(instance.decision == "request-changes" for instance in _gates_in(pipeline, history, move)),
    )
    values: dict[str, Any] = {}
    for condition in (repeat.until, repeat.checks, repeat.score):
        values |= condition.values(scope) if condition else {}
    return {
        "event": events.LAP_ENDED,
        "key": move.key,
        "lap": move.lap,
        "until": until,
        "checks": checks,
        "score": score,
        "values": values,
        "sha256": sha256,
        "verdict": ruling.verdict,
        "reason": ruling.reason,
        "kept": ruling.kept,
        **({"granted": True} if ruling.granted else {}),
    }


def at_of(instance: str) -> At:
    """Where an instance, or a key, stands: its items and laps."""
    found = _NUMBERS.match(instance)
    assert found is not None
    items = tuple(int(item) for item in found[1].split(".")[1:])
    return At(items, tuple(int(lap) for lap in (found[2] or "").split(".") if lap))


def _in_lap(pipeline: Pipeline, history: RunHistory, repeat: Repeat, at: At) -> Iterator[tuple[str, At, Instance]]:
    """The instances of a lap: step, place and what is known of them."""
    for step, place, name in instances_in(pipeline, history, repeat.body, at):
        yield step, place, history.instances[name]


def _made_by(pipeline: Pipeline, history: RunHistory, repeat: Repeat, move: Judge) -> Iterator[tuple[str, str | None]]:
    """What a lap came to: the outputs its verdict rests on, and those of what ran since the verdict before."""
    deciding = pipeline.deciding[repeat.name]
    before = At(move.at.items, (*move.at.laps[:-1], move.lap - 1))
    for at, of_deciding in ((move.at, True), (before, False)):
        for step, place, instance in _in_lap(pipeline, history, repeat, at):
            if (step in deciding) is of_deciding and not isinstance(pipeline.steps[step], Gate):
                inner = At(place.items[len(at.items) :], place.laps[len(at.laps) :])
                yield instance_name(step, inner), instance.sha256


def _sha256_of(made: dict[str, str | None]) -> str:
    return hashlib.sha256(dump_json(sorted(made.items()), pretty=False)).hexdigest()


def _gates_in(pipeline: Pipeline, history: RunHistory, move: Judge) -> Iterator[Instance]:
    repeat = pipeline.blocks[move.step]
    assert isinstance(repeat, Repeat)
    for step, _, instance in _in_lap(pipeline, history, repeat, move.at):
        if isinstance(pipeline.steps[step], Gate):
            yield instance
