"""When the attempts of a run waited, asked and worked, and the picture of that."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop.durations import in_words
from pop.events import rfc3339
from pop.gantt import WORDS, gantt
from pop.pipeline import Pipeline, load_pipeline
from pop.timeline import Diary, Span, diary_of, moment, spans_of, timeline

T0 = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


def at(seconds: float) -> str:
    return rfc3339(T0 + seconds)


def pipeline(*steps: Any) -> Pipeline:
    return load_pipeline(json.dumps({"tasks": list(steps)}).encode(), where="pipeline.json", name="default")


def event(seconds: float, name: str, **fields: Any) -> dict[str, Any]:
    return {"at": at(seconds), "event": name, **fields}


def begun(*events: dict[str, Any]) -> list[dict[str, Any]]:
    return [event(0, "run.created"), event(1, "run.started"), *events]


def started(seconds: float, instance: str, attempt: int = 1) -> dict[str, Any]:
    return event(seconds, "step.started", instance=instance, attempt=attempt)


def done(seconds: float, instance: str, attempt: int = 1) -> dict[str, Any]:
    return event(seconds, "step.done", instance=instance, attempt=attempt)


def spent(journal: list[dict[str, Any]], of: Pipeline | None, instance: str, **options: Any) -> dict[str, float]:
    """Seconds by kind, without those that are none."""
    line = timeline(journal, options.get("diaries", {}), pipeline=of, now=T0 + options.get("now", 100))
    row = next(row for row in line.rows if row.instance == instance)
    return {kind: round(seconds, 3) for kind, seconds in row.seconds().items() if seconds}


def test_waiting_for_a_permit_the_model_and_own_time_are_told_apart() -> None:
    """A call from 2 to 8 s whose answer took 4 s, in an attempt from 0 to 10 s."""
    diary = diary_of(
        [{"at": at(2), "event": "call.begin"}, {"at": at(8), "event": "call.end"}],
        [{"at": at(8), "ms": 4000.0, "cached": False, "tries": []}],
    )
    kinds = [(span.kind, span.begin - T0, span.end - T0) for span in spans_of(diary, T0, T0 + 10)]
    assert kinds == [("own", 0, 2), ("permit", 2, 4), ("model", 4, 8), ("own", 8, 10)]


def test_an_answer_from_the_store_takes_no_model_time_and_a_failed_try_does() -> None:
    """The milliseconds of a stored answer are those of long ago."""
    stored = {"at": at(8), "ms": 4000.0, "cached": True}
    tried = {"at": at(8), "ms": 1000.0, "tries": [{"ms": 2000.0}, {"ms": "?"}]}
    assert diary_of([], [stored]).answered == ()
    assert diary_of([], [tried]).answered == ((T0 + 5, T0 + 8),)


def test_a_call_that_goes_on_is_waited_for_until_now() -> None:
    """The diary of an attempt at work ends with call.begin."""
    diary = diary_of([{"at": at(2), "event": "call.begin"}], [])
    assert [span.kind for span in spans_of(diary, T0, T0 + 5)] == ["own", "permit"]


@given(
    st.lists(st.tuples(st.floats(-5, 15), st.one_of(st.none(), st.floats(-5, 15)))),
    st.lists(st.tuples(st.floats(-5, 15), st.floats(-5, 15))),
)
def test_the_parts_of_an_attempt_are_the_whole_of_it(asked: Any, answered: Any) -> None:
    """In order, without holes or overlap, whatever a diary says."""
    spans = spans_of(Diary(asked=tuple(asked), answered=tuple(answered)), 0.0, 10.0)
    assert spans[0].begin == 0.0 and spans[-1].end == 10.0
    assert all(a.end == b.begin for a, b in pairwise(spans))


def test_a_step_waits_for_a_place_from_when_what_it_waits_for_has_ended() -> None:
    """Not from the beginning of the run; without the pipeline nobody knows."""
    journal = begun(started(1, "a"), done(3, "a"), started(5, "b"), done(6, "b"))
    assert spent(journal, pipeline("a", "b"), "b") == {"queue": 2, "own": 1}
    assert spent(journal, None, "b") == {"own": 1}
    assert spent(journal, pipeline("a", {"task": "b", "needs": []}), "b") == {"queue": 4, "own": 1}


def test_items_wait_from_the_count_and_laps_from_the_verdict() -> None:
    """An each begins when its list is known, a second lap when the first was judged."""
    of = pipeline(
        {"each": "seed.parts", "do": "a"}, {"repeat": ["b"], "until": "inputs.b.ok", "at_most": 3, "name": "l"}
    )
    journal = begun(
        event(2, "each.expanded", key="tasks[0]", count=2), started(2, "a.0"), done(3, "a.0"), started(4, "a.1"),
        done(5, "a.1"), started(5, "b@1"), done(6, "b@1"), event(7, "lap.ended", key="l", lap=1), started(9, "b@2"),
    )  # fmt: skip
    assert spent(journal, of, "a.1") == {"queue": 2, "own": 1}
    assert spent(journal, of, "b@2", now=10) == {"queue": 2, "own": 1}


def test_a_second_attempt_waits_from_the_end_of_the_first() -> None:
    """Both are shown, the failed one with its error class."""
    failed = event(3, "step.attempt_failed", instance="a", attempt=1, error={"error_class": "timeout"}, action="retry")
    journal = begun(started(1, "a"), failed, started(5, "a", 2), done(6, "a", 2))
    line = timeline(journal, {}, pipeline=pipeline("a"), now=T0 + 9)
    assert [(one.number, one.outcome) for one in line.rows[0].attempts] == [(1, "timeout"), (2, "done")]
    assert spent(journal, pipeline("a"), "a") == {"queue": 2, "own": 3}


def test_an_attempt_that_a_crash_took_ends_with_the_next_one() -> None:
    """Nobody journaled its end."""
    line = timeline(begun(started(1, "a"), started(5, "a", 2)), {}, pipeline=pipeline("a"), now=T0 + 9)
    assert [(one.outcome, one.end and one.end - T0) for one in line.rows[0].attempts] == [
        ("interrupted", 5),
        ("running", None),
    ]


def test_a_gate_is_a_persons_time_and_the_run_rests() -> None:
    """From gate.opened to gate.decided; a rest that goes on ends now."""
    of = pipeline("a", {"approve": "ok"})
    opened = begun(
        started(1, "a"), done(2, "a"), event(3, "gate.opened", instance="ok", opening=1), event(3, "run.waiting")
    )
    assert spent(opened, of, "ok", now=10) == {"person": 7}
    decided = [*opened, event(8, "run.started"), event(8, "gate.decided", instance="ok", decision="approve")]
    line = timeline(decided, {}, pipeline=of, now=T0 + 9)
    assert line.rests == (Span("queue", T0, T0 + 1), Span("person", T0 + 3, T0 + 8))
    assert line.rows[1].attempts[0].outcome == "approve"


def test_attempts_from_before_a_rerun_have_waited_nobody_knows_how_long() -> None:
    """What they waited for has ended again since."""
    journal = begun(
        started(1, "a"), done(2, "a"), started(2, "b"), done(3, "b"), event(9, "run.rerun", instances=["a", "b"]),
        started(10, "a", 2), done(11, "a", 2), started(12, "b", 2), done(13, "b", 2),
    )  # fmt: skip
    line = timeline(journal, {}, pipeline=pipeline("a", "b"), now=T0 + 20)
    assert [one.ready and one.ready - T0 for one in line.rows[1].attempts] == [None, 11]


def test_lines_that_cannot_be_read_are_passed_over() -> None:
    """A newer POP's events, a torn line, a person's edits."""
    journal = begun(
        {}, {"at": 7}, {"at": at(2), "event": "new.kind"}, started(3, "x.y"), {"at": "2026-99-99T00:00:00Z"}
    )
    line = timeline(journal, {}, pipeline=pipeline("a"), now=T0 + 4)
    assert [row.instance for row in line.rows] == ["x.y"]
    assert timeline([], {}, pipeline=None, now=T0).rows == ()
    assert moment("2026-11-21T12:00:00") is None and moment(5) is None


@pytest.mark.parametrize("most", [120, 1])
def test_the_picture_tells_each_kind_in_words(most: int) -> None:
    """Well-formed, by instance and by step, with links, and nothing of a name that could be more than text."""
    journal = begun(started(1, "a.0"), started(1, "a.1"), done(3, "a.0"), done(4, "a.1"))
    line = timeline(journal, {}, pipeline=pipeline({"each": "seed.p", "do": "a"}), now=T0 + 5)
    drawn = gantt(line, {"a.0": "done"}, link=lambda name: f'/x?"<{name}>', most=most, alone=True)
    tree = ET.fromstring(drawn)
    texts = "".join(tree.itertext())
    assert all(words in texts for words in WORDS.values())
    assert ("a (2)" if most == 1 else "a.1") in texts
    assert "<a.0>" not in drawn and 'x?"' not in drawn


def test_long_rests_are_drawn_shorter_and_it_says_so() -> None:
    """Three days for a person must not hide three seconds of work."""
    journal = begun(
        started(1, "a"), done(4, "a"), event(4, "gate.opened", instance="ok", opening=1), event(4, "run.waiting"),
        event(259200, "run.started"), event(259200, "gate.decided", instance="ok", decision="approve"),
        event(259201, "run.complete"),
    )  # fmt: skip
    drawn = gantt(timeline(journal, {}, pipeline=None, now=T0 + 300000), {})
    work = [float(w) for w in re.findall(r't-own"[^>]* width="([\d.]+)"', drawn)]
    assert sum(work) > 200 and "shorter than it was" in drawn and "2 d 23 h" in drawn


def test_two_thousand_steps_are_one_small_picture() -> None:
    """Its size depends on the number of steps of the pipeline, not of their items."""
    journal = begun(*(one for n in range(2000) for one in (started(n / 100, f"a.{n}"), done(n / 100 + 2, f"a.{n}"))))
    drawn = gantt(timeline(journal, {}, pipeline=None, now=T0 + 30), {})
    assert len(drawn) < 60_000


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 ms"), (0.012, "12 ms"), (1, "1 s"), (3.21, "3.2 s"), (245, "4 m 05 s"), (300, "5 m"), (7800, "2 h 10 m"),
     (273600, "3 d 4 h")],
)  # fmt: skip
def test_durations_in_words(seconds: float, words: str) -> None:
    """Two figures are enough for a person."""
    assert in_words(seconds) == words
