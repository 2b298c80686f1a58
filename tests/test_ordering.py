"""Orders to several runs: which are meant, what is already so, and which order the newer one withdraws."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pop.records import dump_json
from pop.settings import Root
from tests.test_admission import make_root
from tests.test_cli import pop

STATES = {"r": "running", "p": "paused", "w": "waiting", "f": "failed", "c": "cancelled"}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A run in each state, and a complete one."""
    root = make_root(tmp_path)
    (root.path / "pipeline.json").write_text('{"tasks": ["a"]}')
    for letter, state in {**STATES, "z": "complete"}.items():
        run_dir = (root.complete if letter == "z" else root.current) / run_id(letter)
        run_dir.mkdir()
        (run_dir / "events.jsonl").write_text('{"event": "run.created"}\n')
        status = {"run_id": run_dir.name, "name": letter, "state": state, "tasks": {}, "pipeline": "default"}
        (run_dir / "tasks-status.json").write_bytes(dump_json(status))
    return root


def run_id(letter: str) -> str:
    return f"20261121-031502-{letter}-abcd"


def orders(root: Root) -> set[str]:
    """``r/pause`` and so on."""
    return {f"{path.parts[-3].split('-')[2]}/{path.stem}" for path in root.current.glob("*/orders/*.json")}


def test_all_means_the_runs_it_fits(root: Root) -> None:
    """The others are counted."""
    result = pop("pause", "--all", root=root.path)
    assert result.returncode == 0 and orders(root) == {"r/pause", "w/pause"} and "2 order(s)" in result.stderr
    assert "p-abcd is paused already" in result.stderr
    again = pop("pause", "--all", root=root.path)
    assert "0 order(s)" in again.stderr and "has that order already" in again.stderr


def test_a_named_run_that_it_does_not_fit_stops_all(root: Root) -> None:
    """Nothing is half-done."""
    for command, letter in (("pause", "f"), ("pause", "z"), ("resume", "f"), ("resume", "z"), ("cancel", "z")):
        result = pop(command, run_id("r"), run_id(letter), root=root.path)
        assert result.returncode == 2 and not orders(root), (command, letter)


def test_the_newer_order_counts(root: Root) -> None:
    """What was not carried out yet is withdrawn."""
    pop("pause", "r", root=root.path)
    result = pop("resume", "r", root=root.path)
    assert "withdrawn" in result.stderr and not orders(root)
    pop("resume", "p", root=root.path)
    assert orders(root) == {"p/resume"}
    assert "withdrawn" in pop("pause", "p", root=root.path).stderr and not orders(root)
    pop("resume", "p", root=root.path)
    pop("cancel", "p", root=root.path)
    assert orders(root) == {"p/cancel"}
    assert "is not paused: it is running" in pop("resume", "r", root=root.path).stderr


def test_a_pause_is_taken_back_before_the_work_has_ended(root: Root) -> None:
    """A step may be at work for an hour after the order."""
    path = root.current / run_id("r") / "tasks-status.json"
    path.write_bytes(dump_json({**json.loads(path.read_bytes()), "pausing": True}))
    assert "is paused already, once what is at work has ended" in pop("pause", "r", root=root.path).stderr
    pop("resume", "r", root=root.path)
    assert orders(root) == {"r/resume"}
    assert "withdrawn" in pop("pause", "r", root=root.path).stderr and not orders(root)


def test_cancelling_all_wants_a_yes(root: Root) -> None:
    """Without a terminal to ask at it must be said."""
    result = pop("cancel", "--all", root=root.path)
    assert result.returncode == 2 and "--yes" in result.stderr and not orders(root)
    assert pop("cancel", "--all", "--yes", root=root.path).returncode == 0
    assert orders(root) == {"r/cancel", "p/cancel", "w/cancel"}
    for letter in "rpw":
        (root.current / run_id(letter)).rename(root.complete / run_id(letter))
    assert pop("cancel", "--all", root=root.path).returncode == 0


@pytest.mark.parametrize(("answer", "given"), [("y\n", 3), ("n\n", 0), ("\n", 0), ("\x04", 0)])
def test_at_a_terminal_cancelling_all_asks(root: Root, answer: str, given: int) -> None:
    """How many runs it is about; no, nothing and the end of the input leave them all."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pop", "--root", str(root.path), "cancel", "--all"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        _, said = process.communicate(timeout=60)
    os.close(ours)
    assert "cancel 3 run(s)?" in said and len(orders(root)) == given
    assert process.returncode == (0 if given else 130)


@pytest.mark.parametrize(
    "arguments", [[], ["r", "--all"], ["--all", "--pipeline", "default"], ["--pipeline", "deflaut"]]
)
def test_which_runs_must_be_clear(root: Root, arguments: list[str]) -> None:
    """One way of saying it."""
    assert pop("pause", *arguments, root=root.path).returncode == 2 and not orders(root)


def test_json_is_one_row_for_one_run_and_a_list_else(root: Root) -> None:
    """As scripts expect it."""
    one = json.loads(pop("pause", "r", "--json", root=root.path).stdout)
    assert one["run_id"] == run_id("r") and one["order"]
    rows = json.loads(pop("pause", "--pipeline", "default", "--json", root=root.path).stdout)["runs"]
    assert {row["run_id"] for row in rows} == {run_id("r"), run_id("p"), run_id("w")}
