"""Run folders as commands read them, whatever state they are in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pop.cleaning import old_runs
from pop.display import again_line, closing_lines
from pop.errors import UsageError
from pop.runs import Run, find_run, newest_complete, pending, pending_names, seed_limits
from pop.settings import Root

CREATED = {"at": "2026-11-21T03:15:02.000Z", "event": "run.created", "pipeline": "default"}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path)
    for folder in (root.pending, root.current, root.complete):
        folder.mkdir()
    return root


def make_run(root: Root, run_id: str, name: str = "", *, complete: bool = False, status: Any = None) -> Run:
    """A run's folder with a journal, with its line in the ledger when it is complete."""
    path = (root.complete if complete else root.current) / run_id
    path.mkdir()
    (path / "events.jsonl").write_text(json.dumps({**CREATED, "run_id": run_id, "name": name}) + "\n")
    if status is not None:
        (path / "tasks-status.json").write_text(status if isinstance(status, str) else json.dumps(status))
    if complete:
        with open(root.ledger, "a") as file:
            file.write(json.dumps({"run_id": run_id, "name": name}) + "\n")
    return Run(path, "complete" if complete else "current")


def test_a_run_is_found_by_what_people_call_it(root: Root) -> None:
    """By its id, a prefix, its name (as the envelope or the file gave it), its slug, and `last`."""
    make_run(root, "20261121-031502-monthly-report-abcd", "Monthly Report", complete=True)
    make_run(root, "20261121-031503-brief-efgh", "Brief für Ä")
    for asked in ("20261121-031502-monthly-report-abcd", "20261121-031502", "Monthly Report", "monthly-report", "abcd"):
        assert find_run(root, asked).run_id.endswith("abcd"), asked
    assert find_run(root, "Brief für Ä") == find_run(root, "last") == find_run(root, "brief")


def test_several_runs_of_a_name_are_listed(root: Root) -> None:
    """With the way out: more of the id, or `last`."""
    ids = [f"20261121-03150{number}-brief-abc{number}" for number in range(3)]
    for number, run_id in enumerate(ids):
        make_run(root, run_id, "The Brief", complete=number < 2)
    with pytest.raises(UsageError) as caught:
        find_run(root, "The Brief")
    assert all(run_id in str(caught.value) for run_id in ids)
    assert "fits 3 runs" in str(caught.value) and "`last`" in str(caught.value)


@pytest.mark.parametrize("asked", ["20261121-031502-brief-abcd", "20261121-031502", "The Brief", "brief"])
def test_of_a_removed_run_the_line_in_the_ledger_is_named(root: Root, asked: str) -> None:
    """By whatever it is asked for."""
    make_run(root, "20261121-031501-other-zzzz", "other", complete=True)
    run = make_run(root, "20261121-031502-brief-abcd", "The Brief", complete=True)
    (run.path / "events.jsonl").unlink()
    run.path.rmdir()
    with pytest.raises(UsageError) as caught:
        find_run(root, asked)
    assert "was removed" in caught.value.message and caught.value.where == "pipeline-complete/runs.jsonl:2"


@pytest.mark.parametrize("status", [None, "", "{}", "[]", '{"state": "running"}', '{"state": "x", "tasks": {"a": 1}}'])
def test_without_a_whole_status_the_journal_tells(root: Root, status: Any) -> None:
    """Whatever somebody did to tasks-status.json."""
    run = make_run(root, "20261121-031502-brief-abcd", "The Brief", status=status)
    assert {"state": "queued", "name": "The Brief", "pipeline": "default"}.items() <= run.status().items()


@pytest.mark.parametrize("journal", [b"", b"\x00\xff\n", b'{"event": "step.done"}\n', b"[]\n"])
def test_a_run_that_cannot_be_read_is_called_so(root: Root, journal: bytes) -> None:
    """It is not `queued`: nothing will ever happen to it."""
    run = make_run(root, "20261121-031502-brief-abcd")
    (run.path / "events.jsonl").write_bytes(journal)
    assert run.status()["state"] == "unreadable"
    assert any("events.jsonl" in line for line in closing_lines(root, run, run.status()))


def test_a_run_that_is_being_accepted_is_queued(root: Root) -> None:
    """Its journal comes last."""
    run_dir = root.current / "20261121-031502-brief-abcd"
    run_dir.mkdir()
    assert find_run(root, "last").status()["state"] == "queued"
    (run_dir / "tasks").mkdir()
    assert find_run(root, "last").status()["state"] == "queued"


def test_the_last_of_several_runs_of_one_second_is_the_one_created_last(root: Root) -> None:
    """Their ids do not tell; one that is being accepted is the newest of all."""
    for end, at in (("zzzz", "02.100"), ("abcd", "02.900"), ("mmmm", "02.500")):
        run = make_run(root, f"20261121-031502-brief-{end}")
        (run.path / "events.jsonl").write_text(f'{{"at": "2026-11-21T03:15:{at}Z", "event": "run.created"}}\n')
    broken = make_run(root, "20261121-031502-brief-zzzx")
    (broken.path / "events.jsonl").write_bytes(b"\xff\n")
    assert find_run(root, "last").run_id == "20261121-031502-brief-abcd"
    (root.current / "20261121-031502-brief-aaaa").mkdir()
    assert find_run(root, "last").run_id == "20261121-031502-brief-aaaa"


def test_a_run_that_is_promoted_meanwhile_is_followed(root: Root) -> None:
    """Its status is the one at its new place."""
    run = make_run(root, "20261121-031502-brief-abcd", "The Brief", status={"state": "complete", "tasks": {}})
    run.path.rename(root.complete / run.run_id)
    assert run.status()["state"] == "complete" and run.here().place == "complete"


def test_only_runs_are_listed_as_complete(root: Root) -> None:
    """Not the folder of archives."""
    make_run(root, "20261121-031502-brief-abcd", complete=True)
    (root.complete / "archive").mkdir()
    assert [run.run_id for run in newest_complete(root, 5)] == ["20261121-031502-brief-abcd"]


def test_every_name_in_the_queue_counts(root: Root) -> None:
    """However many are looked at; by the limits of pop.toml."""
    for number in range(12):
        (root.pending / f"{number}.json").write_text(json.dumps({"text": "x" * 2000}))
    (root.path / "pop.toml").write_text("[seeds]\nmax_mb = 0.001\n")
    assert len(pending_names(root)) == 12
    assert [row["state"] for row in pending(root, seed_limits(root), most=5)] == ["refused"] * 5


def test_the_reason_of_a_cancellation_and_a_waiting_order_are_told(root: Root) -> None:
    """And the next move does not speak of mending."""
    status = {"state": "cancelled", "tasks": {}}
    run = make_run(root, "20261121-031502-brief-abcd", status=status)
    with open(run.path / "events.jsonl", "a") as file:
        file.write(json.dumps({"event": "run.cancelled", "by": "ann", "reason": "wrong seed"}) + "\n")
    told = "\n".join(closing_lines(root, run, status))
    assert "by ann: wrong seed" in told and f"next       pop retry {run.run_id}" in told and "mend" not in told
    (run.path / "orders").mkdir()
    (run.path / "orders" / "retry.json").touch()
    told = "\n".join(closing_lines(root, run, status))
    assert "retry waits" in told and "next" not in told


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({"state": "complete"}, "--from STEP   (a new run"),
        ({"state": "failed", "error": {"instance": "draft.3"}, "tasks": {"draft.3": {}}}, "--from draft.3   (what"),
        ({"state": "failed", "error": {"instance": "a+control"}, "tasks": {"a+control": {}}}, "--from STEP   (what"),
        ({"state": "failed", "error": {"message": "no"}}, "--from STEP   (what"),
        ({"state": "running"}, None),
        ({"state": "cancelled"}, None),
    ],
)
def test_a_run_that_has_ended_says_how_to_take_it_up_from_a_step(
    root: Root, status: dict[str, Any], told: str | None
) -> None:
    """From the one that failed, where one did; not where an order waits already."""
    run = make_run(root, "20261121-031502-brief-abcd", status=status)
    line = again_line(run, status)
    assert line is None if told is None else f"pop rerun {run.run_id} {told}" in str(line)
    (run.path / "orders").mkdir()
    (run.path / "orders" / "rerun.json").touch()
    assert status["state"] == "complete" or again_line(run, status) is None


@pytest.mark.parametrize("verb", ["retry", "rerun"])
def test_a_run_that_is_about_to_be_taken_up_is_not_old(root: Root, verb: str) -> None:
    """Its order may wait for a daemon."""
    run = make_run(root, "20261121-031502-brief-abcd", status={"state": "failed", "tasks": {}})
    (run.path / "events.jsonl").write_text('{"event": "run.failed"}\n')
    os.utime(run.path, (0, 0))
    assert [one.run_id for one in old_runs(root, 60, True)] == [run.run_id]
    (run.path / "orders").mkdir()
    (run.path / "orders" / f"{verb}.json").touch()
    os.utime(run.path, (0, 0))
    assert old_runs(root, 60, True) == []
