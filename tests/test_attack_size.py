"""A run of very many instances: what is shown of it takes bounded time and memory."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from pop import largeruns, runlook
from pop.diaries import KEPT
from pop.largeruns import thinned
from pop.records import dump_json
from pop.runindex import Asked, RunIndex
from pop.runlook import look_at
from pop.runs import Run
from pop.settings import Root
from tests.runfolders import begin_run
from tests.webbing import make_root, put_status, run_id, web_client

MANY = 30_000


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


@pytest.mark.parametrize("pretty", [True, False])
def test_a_line_about_a_run_is_made_without_reading_its_steps(root: Root, pretty: bool) -> None:
    """The board looks at every status that changed, twice a second."""
    usage = {"calls": 1, "input_tokens": 10, "output_tokens": 1, "cost_usd": 0.001, "unpriced_calls": 0}
    tasks = {f"work.{number}": {"state": "done", "usage": usage, "said": '"state":'} for number in range(MANY)}
    run_dir = put_status(root, 1, progress=0.5, usage={**usage, "calls": MANY}, tasks={"one": {"state": "running"}})
    status = json.loads((run_dir / "tasks-status.json").read_bytes())
    (run_dir / "tasks-status.json").write_bytes(dump_json({**status, "tasks": tasks}, pretty=pretty))
    del tasks
    index = RunIndex(root)
    tracemalloc.start()
    index.refresh(10.0)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (row,) = index.query(Asked()).rows
    assert (row.run_id, row.state, row.steps, row.calls, row.doing) == (run_id(1), "running", MANY, MANY, "one")
    assert most_bytes < 5 * 2**20 < os.path.getsize(run_dir / "tasks-status.json") + 2 * 2**20
    index.close()


@pytest.mark.parametrize("text", ['{"tasks": {', '"tasks":', "[1, "])
def test_a_large_status_of_another_shape_is_read_whole(root: Root, text: str) -> None:
    run_dir = put_status(root, 1)
    status = json.loads((run_dir / "tasks-status.json").read_bytes())
    padded = dump_json({"pad": text * 400_000, "tasks": {"one": {"state": "running"}}, **status})
    (run_dir / "tasks-status.json").write_bytes(padded)
    assert Run(run_dir, "current").summary()["state"] == "running"
    (run_dir / "tasks-status.json").write_bytes(padded[:-100])
    assert Run(run_dir, "current").summary()["state"] == "unreadable"


def test_no_more_attempts_are_read_than_are_remembered(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every look at a large run would read all of its files again."""
    assert runlook.MOST_DIARIES < KEPT
    monkeypatch.setattr(runlook, "MOST_DIARIES", 3)
    run = begin_run(root, ["a", "b", "c", "d", "e"])
    for name in "abcde":
        run.step(name)
    look = look_at(Run(run.end("run.complete"), "complete"))
    assert [one.calls for one in look.models.values()] == [3]
    assert any("2 attempts were not read" in trouble for trouble in look.troubles)


@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_of_very_many_instances_the_first_and_the_pressing_are_shown(
    root: Root, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """In bounded memory; the page says how many are left out."""
    monkeypatch.setattr(largeruns, "LARGE_BYTES", 1000)
    monkeypatch.setattr(largeruns, "MOST_QUIET", 10)
    monkeypatch.setattr(largeruns, "MOST_PRESSING", 3)
    error = {"error_class": "bug", "message": '},\n    "x": {"state": "failed" \\'}
    states = {
        number: "failed" if number % 50 == 49 else "done" for number in range(200 * piece if piece < 10 else 5000)
    }
    tasks = {
        f"work.{number}": {"state": state, "usage": {"calls": 1}, "error": error if state == "failed" else None}
        for number, state in states.items()
    }
    run_dir = put_status(root, 1)
    status = json.loads((run_dir / "tasks-status.json").read_bytes())
    (run_dir / "tasks-status.json").write_bytes(dump_json({**status, "tasks": tasks}))
    found = thinned(Run(run_dir, "current"))
    assert found is not None
    kept = [f"work.{number}" for number in (*range(10), 49, 99, 149)]
    assert found["tasks"] == {name: tasks[name] for name in kept}
    assert found["left_out"] == len(tasks) - 13 and found["state"] == status["state"]
    look = look_at(Run(run_dir, "current"))
    assert any(f"{len(tasks) - 13:,} more instances" in trouble for trouble in look.troubles)
    with web_client(root) as client:
        html = client.get(f"/runs/{run_id(1)}").text
    assert "more instances are not shown" in html


def test_a_status_of_another_hand_is_read_whole(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largeruns, "LARGE_BYTES", 100)
    run_dir = put_status(root, 1)
    assert thinned(Run(run_dir, "current")) is None
    (run_dir / "tasks-status.json").write_text('{"state": 5,\n  "tasks": {\n' + " " * 200)
    assert thinned(Run(run_dir, "current")) is None
