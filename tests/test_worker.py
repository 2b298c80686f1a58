"""One attempt in a process: whatever goes wrong becomes error.json with its class and its place."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pop.records import ErrorRecord, FileRef, Letter

MAIN = "import sys; from pop import worker; sys.exit(worker.main(sys.argv[1], sys.argv[2]))"


def work(
    path: Path, body: str, *, seed: bytes = b"{}", recorded: bytes | None = None, main: str = MAIN, **about: Any
) -> tuple[int, Path]:
    """Run one attempt in a process of its own; its exit code and its folder."""
    (path / "pipeline-tasks").mkdir()
    (path / "pipeline-tasks" / "t.py").write_text(body)
    (path / "seed.json").write_bytes(seed)
    folder = path / "attempt"
    folder.mkdir()
    letter = Letter(
        run_id="r", run_name="r", instance="t", step="t", task="t", tasks_dir=str(path / "pipeline-tasks"),
        run_dir=str(path), attempt=1, attempt_id="1", generation=1, deadline_at=0.0,
        seed=FileRef(path="seed.json", sha256=hashlib.sha256(recorded or seed).hexdigest()), **about,
    )  # fmt: skip
    (path / "letter.json").write_text(letter.model_dump_json())
    command = [sys.executable, "-c", main, str(path / "letter.json"), str(folder)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode, folder


def infer(*lines: str) -> str:
    return "def infer(prompt, ctx):\n" + "".join(f"    {line}\n" for line in lines)


def error_in(folder: Path) -> ErrorRecord:
    return ErrorRecord.model_validate_json((folder / "error.json").read_bytes())


def test_a_good_attempt_leaves_an_output_and_no_error(tmp_path: Path) -> None:
    """It works in its own folder."""
    code, folder = work(tmp_path, infer("import os", "return [ctx.seed['a'], os.getcwd()]"), seed=b'{"a": 7}')
    assert code == 0 and not (folder / "error.json").exists()
    assert json.loads((folder / "output.json").read_bytes()) == [7, str(folder)]


@pytest.mark.parametrize(
    ("lines", "error_class", "says", "where"),
    [
        (["1 / 0"], "bug", "ZeroDivisionError", "t.py:2"),
        (["import sys", "sys.exit(3)"], "bug", "SystemExit: 3", "t.py:3"),
        (["raise KeyboardInterrupt"], "bug", "KeyboardInterrupt", "t.py:2"),
        (["raise MemoryError"], "worker_died", "memory", None),
        (["ctx.artifact('../x')"], "bug", "plain relative path", None),
        (["from pop.errors import AttemptFailed", "raise AttemptFailed('refused', 'no', hint='ask nicely')"], "refused", "no", None),
        (["return {1, 2}"], "bug", "no JSON form", None),
        (["return ctx.model()('x').text"], "unavailable", "no gateway", None),
    ],
)  # fmt: skip
def test_whatever_goes_wrong_is_written_down(
    tmp_path: Path, lines: list[str], error_class: str, says: str, where: str | None
) -> None:
    """Exit code 1, one whole error.json, no output."""
    code, folder = work(tmp_path, infer(*lines))
    error = error_in(folder)
    assert (code, error.error_class) == (1, error_class) and says in error.message
    assert where is None or (error.where or "").endswith(where)
    assert (error.traceback is not None) == (where is not None)
    assert not (folder / "output.json").exists() and not list(folder.glob(".*.tmp"))


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    """The mistake of a task, without a traceback of POP's."""
    code, folder = work(tmp_path, "def infer(prompt, ctx)\n    pass\n")
    assert code == 1 and "t.py:1" in (error_in(folder).where or "")


def test_a_seed_that_was_changed_is_bad_input(tmp_path: Path) -> None:
    """The letter names it by its hash."""
    _, folder = work(tmp_path, infer("return 1"), seed=b'{"a": 2}', recorded=b'{"a": 1}')
    assert error_in(folder).error_class == "bad_input"


def test_a_gateway_that_never_comes_interrupts_the_attempt(tmp_path: Path) -> None:
    """It uses up none; the worker waits a while before it says so."""
    hurried = "from pop.models import client; client.CONNECT_PATIENCE_S = 0.2; " + MAIN
    code, folder = work(tmp_path, infer("return ctx.model()('x').text"), main=hurried, gateway=str(tmp_path / "nobody"))
    assert code == 1 and error_in(folder).error_class == "interrupted"


def test_a_gateway_that_nobody_asks_is_not_missed(tmp_path: Path) -> None:
    """The connection is opened with the first question."""
    code, _ = work(tmp_path, infer("return 1"), gateway=str(tmp_path / "nobody"))
    assert code == 0
