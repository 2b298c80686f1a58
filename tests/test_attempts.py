"""What an attempt left, judged: an output that counts, or the error that says why there is none."""

from __future__ import annotations

import json
import os
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pop import attempts
from pop.executors import Attempt, Result
from pop.records import FileRef, Letter, Limits, dump_json
from pop.store import Disk, Later


def begun(run_dir: Path, number: int = 1) -> tuple[Letter, Attempt, dict[str, Any]]:
    (run_dir / "tasks").mkdir(parents=True, exist_ok=True)
    letter = Letter(
        run_id="r", run_name="r", instance="a", step="a", task="a", tasks_dir="", run_dir=str(run_dir), attempt=number,
        attempt_id=f"id-{number}", generation=1, deadline_at=0.0, seed=FileRef(path="seed.json", sha256=""),
        limits=Limits(timeout_s=3, stall_s=2, output_mb=0.5),
    )  # fmt: skip
    return attempts.begin(Disk(), run_dir, letter)


def judged(run_dir: Path, result: Result, **files: bytes) -> attempts.Outcome:
    letter, attempt, _ = begun(run_dir)
    for name, data in files.items():
        Path(attempt.attempt_dir, name.replace("_", ".")).write_bytes(data)
    return attempts.judge(attempt, letter, result)


GOOD = Result("id", "exited", code=0)
ERROR = dump_json({"error_class": "refused", "message": "no", "instance": "another", "attempt": 9})


@pytest.mark.parametrize(
    ("result", "files", "error_class", "says"),
    [
        (GOOD, {"output_json": b'{"a": 1}'}, None, ""),
        (GOOD, {}, "worker_died", "exit code 0 and left no output"),
        (Result("id", "exited", code=3), {}, "worker_died", "exit code 3"),
        (Result("id", "exited", code=3), {"output_json": b"1"}, "worker_died", "exit code 3"),
        (Result("id", "signalled", signal=signal.SIGSEGV), {"output_json": b"1"}, "worker_died", "SIGSEGV"),
        (Result("id", "exited", code=1), {"error_json": ERROR}, "refused", "no"),
        (GOOD, {"error_json": ERROR, "output_json": b"1"}, "refused", "no"),
        (Result("id", "exited", code=1), {"error_json": b"{"}, "worker_died", "cannot be read"),
        (Result("id", "exited", code=1), {"error_json": b'{"error_class": "mine"}'}, "worker_died", "cannot be read"),
        (GOOD, {"output_json": b'{"a": 1'}, "invalid_output", "cannot be kept"),
        (GOOD, {"output_json": b'{"a": 1, "a": 2}'}, "invalid_output", "twice"),
        (GOOD, {"output_json": b"NaN"}, "invalid_output", "NaN"),
        (Result("id", "timeout", signal=9), {"output_json": b"1"}, "timeout", "within 3 s"),
        (Result("id", "stalled"), {}, "stalled", "for 2 s"),
        (Result("id", "flood"), {}, "worker_died", "0.5 MB"),
        (Result("id", "cancelled"), {"output_json": b"1"}, "interrupted", "cancelled"),
        (Result("id", "interrupted"), {}, "interrupted", "stopping"),
        (Result("id", "lost"), {}, "interrupted", "fork server"),
    ],
)
def test_every_end_has_its_class(
    tmp_path: Path, result: Result, files: dict[str, bytes], error_class: str | None, says: str
) -> None:
    """A worker's word counts for nothing until the supervisor has read what it left."""
    outcome = judged(tmp_path, result, **files)
    assert (outcome.error.error_class if outcome.error else None) == error_class
    assert (outcome.sha256 is None) == (error_class is not None)
    if outcome.error:
        assert says in outcome.error.message
        assert (outcome.error.instance, outcome.error.attempt) == ("a", 1)


def test_an_output_that_is_no_file_does_not_count(tmp_path: Path) -> None:
    """A link or a pipe planted by a worker is neither read nor waited for."""
    letter, attempt, _ = begun(tmp_path)
    output = Path(attempt.attempt_dir, "output.json")
    for kind in ("link", "pipe"):
        output.symlink_to("/etc/hostname") if kind == "link" else os.mkfifo(output)
        outcome = attempts.judge(attempt, letter, GOOD)
        assert outcome.error and outcome.error.error_class == "invalid_output"
        output.unlink()


def test_a_number_found_on_disk_is_not_used_again(tmp_path: Path) -> None:
    """Its start was lost in a power cut; the new attempt has a folder, a number and an id of its own."""
    begun(tmp_path)
    letter, attempt, event = begun(tmp_path)
    assert (letter.attempt, event["attempt"]) == (2, 2) and attempt.attempt_dir.endswith("/2")
    assert attempt.attempt_id != "id-1"
    assert json.loads(Path(attempt.letter_path).read_bytes())["attempt"] == 2


def test_what_came_from_the_store_is_told_by_calls_jsonl(tmp_path: Path) -> None:
    """What was paid is the ledger's to say; a torn line, a failed call and what is no truth value count as nothing."""
    _, attempt, _ = begun(tmp_path)
    rows: list[dict[str, Any]] = [
        {"model": "m", "cached": False}, {"model": "m", "cached": True}, {"model": "x", "provider": "builtin", "cached": 7},
        {"model": "n", "cached": True, "error_class": "auth"},
    ]  # fmt: skip
    data = b"".join(dump_json(row, pretty=False) for row in rows) + b'{"torn'
    Path(attempt.attempt_dir, "calls.jsonl").write_bytes(data)
    assert attempts.cached_calls(Path(attempt.attempt_dir)) == (1, ["m", "builtin"])


def test_calls_of_any_size_are_counted_line_by_line(tmp_path: Path) -> None:
    """Rows hold whole answers: 100 MB of them are counted in the memory of one."""
    _, attempt, _ = begun(tmp_path)
    row = dump_json({"model": "m", "cached": True, "text": "t" * 2**18}, pretty=False)
    with open(Path(attempt.attempt_dir, "calls.jsonl"), "wb") as file:
        for _ in range(400):
            file.write(row)
    assert not attempts.is_small(attempt)
    tracemalloc.start()
    assert attempts.cached_calls(Path(attempt.attempt_dir)) == (400, ["m"])
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_placing_again_after_a_crash_gives_the_same(tmp_path: Path) -> None:
    """Artifacts that moved already stay, what is no file is no artifact, an old error goes."""
    _, attempt, _ = begun(tmp_path)
    folder, step_dir = Path(attempt.attempt_dir), Path(attempt.step_dir)
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "a.txt").write_text("x")
    (folder / "artifacts" / "link").symlink_to("/etc/passwd")
    (folder / "output.json").write_text("1\n")
    (step_dir / "error.json").write_text("{}")
    (step_dir / "artifacts").mkdir()
    (step_dir / "artifacts" / "old.txt").write_text("of an earlier attempt")
    with Later(Disk()) as files:
        attempts.place(files, attempt)
        os.rename(step_dir / "output.json", folder / "output.json")  # as if cut off before the last rename
        attempts.place(files, attempt)
        files.settle()
    assert (step_dir / "output.json").read_text() == "1\n" and not (step_dir / "error.json").exists()
    assert os.listdir(step_dir / "artifacts") == ["a.txt"]


def test_the_last_line_of_a_trail_is_found_behind_a_torn_one(tmp_path: Path) -> None:
    """It is read while the worker writes it."""
    assert attempts.last_trail_line(tmp_path) is None
    (tmp_path / "trail.jsonl").write_bytes(b'{"stage": "infer"}\n{"stage": "parse", "round": 2}\n{"sta')
    assert attempts.last_trail_line(tmp_path) == {"stage": "parse", "round": 2}
