"""The screen of `pop watch` without a terminal: what is laid out, where the choice goes, what is summed up."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.utils import get_cwidth

from pop.errors import PopError
from pop.runs import Run
from pop.screen.doing import do, question_of
from pop.screen.look import Reader, last_lines
from pop.screen.paint import fit, paint, wrapped
from pop.screen.scene import Entry, Opened, Scene, Step, Wish, clock, span, step_from, summed_up
from pop.screen.view import BOARD, RUN, STEP, View
from pop.settings import Root
from tests.test_gate_commands import opened as open_a_gate
from tests.test_gate_commands import root as gated_root
from tests.test_gates import RUN as GATED_RUN
from tests.test_screen_live import pretended

__all__ = ["gated_root"]  # a fixture

EVIL = "\x1b]0;evil\x07\x1b[31m\u202e\n\r日本語 e\u0301 " + "x" * 400
NOW = 1_795_000_000.0


def a_step(name: str, **about: Any) -> Step:
    return step_from(name, {"state": "done", **about}, NOW)


def a_scene(run_id: str = "20261121-031502-a-x7k2") -> Scene:
    """Everything is there, and all that people write is hostile."""
    steps = tuple(a_step(f"draft.{n}", state="running", stage=EVIL, reason=EVIL) for n in range(40))
    error = {"error_class": "bug", "message": EVIL}
    steps += (a_step("review@1"), a_step("review@2", state="failed", error=error), a_step(EVIL))
    evil = steps[-1].name
    entries = [
        Entry(f"{part} {n}", part, part, evil, run_id, "03:15:02", "50 %", "3 s", "$0.1000", evil)
        for part in ("waiting", "active", "pending", "failed", "complete")
        for n in range(30)
    ]
    opened = Opened(
        run_id, evil, "running", "50 %", "3 s", "1 model call", (evil,) * 9, (evil,), steps, (evil,) * 99, (evil,) * 99
    )
    counts = dict.fromkeys(("waiting", "active", "pending", "failed", "complete", "rejected"), 30)
    wish = Wish(run_id=run_id, step=evil)
    return Scene(evil, wish, counts, counts, tuple(entries), "today $0.1", None, (evil,), opened)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (12, 5), (40, 12), (75, 15), (80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("place", [BOARD, RUN, STEP, "help"])
def test_every_screen_fits_its_terminal(size: tuple[int, int], place: str) -> None:
    """As many lines as there are, none wider; nothing in them that could steer the terminal."""
    columns, rows = size
    scene = a_scene()
    view = View(place=BOARD if place == "help" else place, run_id=scene.wish.run_id, step=scene.wish.step)
    view.help, view.message, view.words = place == "help", scene.path, scene.path
    view.unfolded = frozenset({"draft"})
    for number in (0, 7, 10**9):
        view.move(scene, number)
        lines = paint(scene, view, columns, rows)
        assert len(lines) == rows
        for line in lines:
            text = "".join(part for _, part in line)
            assert get_cwidth(text) <= columns
            assert not any(sign < " " or sign in "\x7f\u202e" for sign in text)


@pytest.mark.parametrize("columns", [40, 80])
def test_keys_are_offered_whole_and_those_of_the_run_first(columns: int) -> None:
    """What does not fit is left out, and stands in the help."""
    entry = Entry("a", "waiting", "waiting", "a name", "20261121-031502-a-x7k2")
    last = "".join(part for _, part in paint(Scene("/", entries=(entry,)), View(), columns, 12)[-1])
    assert last.startswith("? help  q quit  a approve") and "…" not in last
    assert ("c request changes" in last) == (columns == 80)


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_runs_of_one_long_name_are_told_apart(columns: int) -> None:
    """By the end of their ids, also where their names do not fit."""
    name = "a-name-that-goes-on-and-on-and-on-and-on"
    runs = [Entry(end, "active", "running", name, f"20261121-031502-{name}-{end}") for end in ("x7k2", "87xk")]
    shown = str(paint(Scene("/", entries=tuple(runs)), View(), columns, 20))
    assert "… x7k2" in shown and "… 87xk" in shown


def test_the_choice_stays_with_its_run() -> None:
    """Whatever comes before it; when it is gone, the one in its place is chosen."""
    scene = a_scene()
    view = View()
    view.move(scene, 40)
    chosen = view.row(scene)
    assert chosen is scene.entries[40]
    fewer = replace(scene, entries=scene.entries[7:])
    assert view.row(fewer) is chosen
    without = replace(scene, entries=tuple(entry for entry in fewer.entries if entry is not chosen))
    assert view.row(without) is scene.entries[41]
    assert view.row(replace(scene, entries=())) is None
    view.next_part(scene)
    row = view.row(scene)
    assert isinstance(row, Entry) and row.part == "pending"


def test_an_order_is_for_the_run_that_is_looked_at_and_never_for_one_still_being_read() -> None:
    """Steps of the run before are not shown, nor its gates meant."""
    scene = a_scene()
    view = View()
    view.open(scene)
    assert view.place == RUN and view.meant_run(scene) == scene.entries[0].run_id
    view.run_id = "another"
    assert view.rows(scene) == [] and view.meant_gate(scene) is None
    assert "draft" not in str(paint(scene, view, 120, 40))


def test_items_and_laps_stand_in_one_line_each() -> None:
    """Of the newest lap, with what is not done; unfolded they follow."""
    steps = [a_step("one"), *(a_step(f"part.{n}") for n in range(8)), a_step("part.8", state="failed")]
    steps += [a_step("part.9", state="running"), *(a_step(f"review@{lap}") for lap in range(1, 11))]
    steps += [a_step("deep.0@1.9"), a_step("deep.0@1.10", state="running")]
    rows = summed_up(steps, frozenset())
    told = [(row.name, row.state, row.lap, row.count, row.about) for row in rows]
    assert told == [
        ("one", "done", "", 1, ""),
        ("part", "failed", "", 10, "8 of 10 done, 1 failed, 1 running"),
        ("review", "done", "10", 10, ""),
        ("deep", "running", "1.10", 2, ""),
    ]
    assert len(summed_up(steps, frozenset({"part"}))) == 14
    assert [row.name for row in summed_up(steps, frozenset(), "RUNNING")] == ["part.9", "deep.0@1.10"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), ("x", ""), (0.04, "40 ms"), (9.96, "10.0 s"), (59, "59 s"), (65, "1 m 05 s"), (7800, "2 h 10 m"), (-1, "0 ms")],
)  # fmt: skip
def test_times_are_short(seconds: Any, text: str) -> None:
    """And what is none is nothing."""
    assert span(seconds) == text


def test_texts_are_cut_by_what_they_take_on_a_terminal() -> None:
    """Not by their number of signs."""
    assert (
        fit("日本語日本語", 7) == "日本語…" and fit("abc", 3) == "abc" and fit("abcd", 3) == "ab…" and fit("a", 0) == ""
    )
    assert wrapped("  one two three", 9) == ["  one two", "  three"]
    assert all(get_cwidth(part) <= 5 for part in wrapped("日本語日本語", 5))
    assert clock("2026-11-21T03:15:02.123Z", 1_795_230_900.0) == "03:15:02" and clock(None, NOW) == ""


def test_what_is_damaged_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    """A status somebody edited, logs that are none, a run that is taken away while it is looked at."""
    root = Root(tmp_path)
    for folder in (root.current, root.complete, root.pending):
        folder.mkdir(parents=True)
    (root.path / "pipeline.json").write_text('{"name": "p", "tasks": []}')
    run_dir = pretended(root, 1)
    status = json.loads((run_dir / "tasks-status.json").read_bytes())
    task = {
        "state": "failed",
        "progress": "x",
        "usage": 5,
        "attempt": "y",
        "seconds": [],
        "error": {},
        "refinements": None,
    }
    status |= {
        "tasks": {"a": task, "b": {"state": 5, "started_at": 7}},
        "usage": [],
        "error": {"message": 5},
        "notes": 3,
    }
    status |= {"progress": "x", "started_at": 5, "finished_at": "never"}
    (run_dir / "tasks-status.json").write_text(json.dumps(status))
    attempt = run_dir / "tasks" / "b" / "attempts" / "1"
    attempt.mkdir(parents=True)
    (attempt / "log.jsonl").write_bytes(
        b'{"at": 5}\n[[[\n{"at": "2026-11-21T03:15:02Z", "text": "\x1b[2Jhello"}\n' + b"\xff" * 20_000
    )
    (attempt / "stdout.txt").mkdir()
    reader = Reader(root)
    try:
        scene = reader.look(Wish(run_id=run_dir.name, step="b"))
        assert scene.opened and len(scene.opened.steps) == 2 and scene.entries[0].run_id == run_dir.name
        for place in (BOARD, RUN, STEP):
            paint(scene, View(place=place, run_id=run_dir.name, step="b"), 80, 24)
        run = reader.run_of(run_dir.name)
        assert run and last_lines(run, ["b", "nowhere"], named=True)
        run_dir.rename(tmp_path / "away")
        scene = reader.look(Wish(run_id=run_dir.name))
        assert scene.opened is None and scene.entries == ()
        assert "not here any more" in str(paint(scene, View(place=RUN, run_id=run_dir.name), 80, 24))
    finally:
        reader.close()


def test_nothing_is_asked_that_makes_no_sense(tmp_path: Path) -> None:
    """The reason is told instead."""
    root = Root(tmp_path)
    run_dir = pretended(root, 1)
    reader = Reader(root)
    try:
        run = reader.run_of(run_dir.name)
        assert run and question_of(run, "cancel").text.startswith(f"cancel {run_dir.name}?")
        for verb in ("retry", "resume", "approve"):
            with pytest.raises(PopError):
                question_of(run, verb)
    finally:
        reader.close()


def test_an_answer_is_for_the_opening_somebody_saw(gated_root: Root) -> None:
    """A gate that opened anew while the words were typed is to be looked at again."""
    run = Run(gated_root.current / GATED_RUN, "current")
    question = question_of(run, "approve")
    assert question.gate == "review" and question.typed
    open_a_gate(gated_root, "other")
    with pytest.raises(PopError, match="2 gates") as several:
        question_of(run, "approve")
    assert several.value.hint == "open the run and choose the gate"
    (run.path / "tasks" / "review" / "gate.json").unlink()
    open_a_gate(gated_root, "review", opening=2)
    with pytest.raises(PopError, match="opened anew"):
        do(gated_root, run, question, "fine")
    told = do(gated_root, run, question_of(run, "approve", "review"), " fine ")
    assert told.startswith(f"wrote pipeline-current/{GATED_RUN}/tasks/review/decision.json; no daemon is running here")
    assert json.loads((run.path / "tasks" / "review" / "decision.json").read_bytes())["text"] == "fine"
    with pytest.raises(PopError):
        do(gated_root, run, question, "once more")


def test_spend_of_today_follows_the_ledger(gated_root: Root) -> None:
    """Line by line, with the day's budget."""
    (gated_root.path / "pop.toml").write_text("[budget]\nday_usd = 5.0\n")
    day = time.strftime("%Y-%m-%d", time.gmtime())
    gated_root.calls.mkdir(parents=True)
    reader = Reader(gated_root)
    try:
        assert reader.look(Wish()).today == "today $0 of $5"
        for number, told in enumerate(("today $0.2500 of $5", "today $0.5000 of $5")):
            call = {"id": f"c{number}", "at": f"{day}T00:00:00.000Z", "run_id": "r", "model": "m", "cost_usd": 0.25}
            call |= {"outcome": "answer", "billed": True}
            with open(gated_root.calls / f"{day}.jsonl", "a") as file:
                file.write(json.dumps(call) + "\n")
            assert reader.look(Wish()).today == told
    finally:
        reader.close()
