"""What a task, a model or a seed may leave in a run's folder: no command hangs, breaks or is misled by it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pop import drops
from pop.admission import _DRAFT, remove_old_drafts
from pop.cli import pop as pop_group
from pop.commands.logs import _new_lines
from pop.errors import PopError
from pop.pipelines import BrokenPipeline, PipelineShelf
from pop.settings import Root
from tests.runfolders import begin_run
from tests.webbing import make_root, record, web_client, write_ledger

RUN = "20261121-165320-made-ab12"
OTHER = "20261121-165320-made-cd34"
TRIED = "tasks/one/attempts/1"
COMMANDS = (
    ("show", RUN), ("logs", RUN), ("diff", RUN, OTHER), ("graph", RUN), ("graph", RUN, "--svg"), ("ls",), ("plan", RUN),
    ("report", RUN, "--md"), ("report", RUN, "-o", "-"), ("doctor",), ("rerun", RUN, "--from", "one"), ("ls", "--json"),
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Root:
    made = make_root(tmp_path / "root")
    for run_id in (RUN, OTHER):
        run = begin_run(made, ["one"], run_id=run_id)
        run.step("one", {"a": 1}, artifacts={"a.md": b"# hi\n"})
        (run.path / TRIED / "log.jsonl").write_text('{"at": "2026-11-21T00:00:00.000Z", "text": "x"}\n')
        (run.path / TRIED / "problems.json").write_text("[]")
        run.end("run.complete", seconds=1.0)
    return made


@contextmanager
def patience(seconds: int, what: str) -> Iterator[None]:
    """Fail instead of hanging."""

    def over(*_: object) -> None:
        raise AssertionError(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def deep(path: Path) -> None:
    path.write_text('{"event": "lap.ended", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n")


def other_kinds(path: Path) -> None:
    path.write_text('[[1], "\\ud800", null]\n"\\u001b]0;x\\u0007"\n5\n{"event": 5, "instance": [], "tries": 5}\n')


FILES = (
    "events.jsonl", "pipeline.json", "seed.json", "tasks-status.json", "tasks/one/output.json", "tasks/one/letter.json",
    *(f"{TRIED}/{name}" for name in ("calls.jsonl", "trail.jsonl", "log.jsonl", "problems.json", "03-prompt.md")),
)  # fmt: skip


@pytest.mark.parametrize("harm", [fifo, folder, deep, other_kinds])
def test_no_command_hangs_or_breaks_on_what_lies_in_a_run(root: Root, harm: Callable[[Path], None]) -> None:
    """Each file in turn; a command may refuse, with a sentence."""
    for name in FILES:
        path = root.complete / RUN / name
        data = path.read_bytes()
        harm(path)
        for words in COMMANDS:
            with patience(20, f"{name}: {' '.join(words)}"):
                ran = CliRunner().invoke(pop_group, ["--root", str(root.path), *words], obj={})
            fine = ran.exception is None or isinstance(
                ran.exception, (PopError, OSError, SystemExit, click.ClickException)
            )
            assert fine, (name, words, ran.exc_info)
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", ran.output), (name, words)
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(data)


def test_a_log_of_gigabytes_is_read_in_pieces(root: Root) -> None:
    """A task can make one in an instant: a hole."""
    path = root.complete / RUN / TRIED / "log.jsonl"
    with open(path, "ab") as file:
        file.truncate(20 * 2**30)
    tracemalloc.start()
    try:
        lines = _new_lines(path, {})
        assert next(lines).startswith("{") and set(next(lines)) == {"\0"}
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


def test_a_pipe_among_pipelines_tasks_and_examples_blocks_nobody(root: Root) -> None:
    """Tasks that are not confined can write there; links of a person are followed."""
    (root.path / "examples").mkdir()
    root.pipelines.mkdir()
    for path in (
        root.pipelines / "pipe.json",
        root.tasks / "pipe.py",
        root.tasks / "pipe.md",
        root.path / "examples/a.json",
    ):
        os.mkfifo(path)
    (root.pipelines / "linked.json").symlink_to(root.pipeline_file)
    seed = root.path / "seed.json"
    seed.write_text('{"data": {}, "pipeline": "pipe", "models": {"x": "y"}}')
    with patience(30, "a command or a page"):
        checked = CliRunner().invoke(pop_group, ["--root", str(root.path), "check"], obj={})
        assert "pipelines/pipe.json" in checked.output and "linked" not in checked.output
        for words in (("graph", "pipe"), ("graph", "linked"), ("plan", RUN), ("plan", str(seed)), ("check", str(seed))):
            ran = CliRunner().invoke(pop_group, ["--root", str(root.path), *words], obj={})
            assert words[0] != "graph" or (ran.exception is None) == (words == ("graph", "linked")), ran.output
        with web_client(root) as client:
            for where in (
                "/pipelines",
                "/pipelines/pipe",
                "/pipelines/linked",
                "/new",
                "/new?pipeline=pipe",
                "/api/check",
            ):
                assert client.get(where).status_code < 500, where
    with pytest.raises(BrokenPipeline), patience(5, "the shelf of the daemon"):
        PipelineShelf(root).take("pipe")


def test_what_an_upload_that_was_killed_left_goes_away(root: Root) -> None:
    """After an hour, and nothing else does: a seed is never called so."""
    now = time.time()
    old, new = (root.pending / f".77-{int((now - age) * 1e9)}-beef.draft" for age in (4000, 60))
    for path in (old, new, root.pending / ".77-x-beef.draft", root.pending / "a.draft"):
        (path / "upload").mkdir(parents=True)
        (path / "upload" / "big.bin").write_bytes(b"x")
    (root.pending / f".78-{int((now - 4000) * 1e9)}-beef.draft").write_text("{}")
    (root.pending / f".79-{int((now - 4000) * 1e9)}-beef.draft").symlink_to(root.tasks)
    remove_old_drafts(root, now)
    assert sorted(os.listdir(root.pending)) == sorted([new.name, ".77-x-beef.draft", "a.draft", "rejected"])
    assert (root.tasks / "one.py").exists()
    with drops._draft(root) as draft:
        assert _DRAFT.fullmatch(draft.name)


STEERING = "\x1b]0;pwn\x07\x1b[2J\x9b31m\u202eevil\u200b\r\x08\ud800"


def test_nothing_that_is_printed_steers_a_terminal(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in words nor in JSON, which means the same: ``json.loads`` gives what was written."""
    monkeypatch.chdir(root.path)  # a report is written where one stands
    run = begin_run(
        root, ["one"], run_id="20261121-165320-made-ef56", place="current", name=STEERING, seed_file=STEERING
    )
    error = dict.fromkeys(("error_class", "stage", "message", "where", "hint"), STEERING) | {"problems": [STEERING]}
    run.step("one", error=error, answer="\x9b", prompt="\x9b")
    (run.path / TRIED / "log.jsonl").write_text(json.dumps({"at": "2026-11-21T00:00:00.000Z", "text": STEERING}) + "\n")
    run.end("run.failed", error={**error, "instance": "one"}, reason=STEERING)
    status = json.loads((run.path / "tasks-status.json").read_text())
    (run.path / "tasks-status.json").write_text(
        json.dumps({**status, "name": STEERING.rstrip("\ud800"), "notes": ["\x9b"]})
    )
    write_ledger(root, record(6, name=STEERING, models=[STEERING], pipeline=STEERING))
    (root.rejected / "r.reason.json").write_text(
        json.dumps(dict.fromkeys(("name", "code", "message", "hint"), "\x9b\u202e"))
    )
    (root.pending / "p\x9b\u202e.json").write_text("{}")
    about = ("show", "logs", "report", "graph", "plan", "cancel")
    words = [
        ("ls",),
        ("ls", "--json"),
        ("doctor",),
        ("doctor", "--json"),
        ("tail",),
        ("tail", "--json"),
        ("show", STEERING),
    ]
    words += [(verb, run.path.name, *more) for verb in about for more in ((), ("--json",), ("--md",))]
    for one in words:
        ran = CliRunner().invoke(pop_group, ["--root", str(root.path), *one], obj={})
        fine = ran.exception is None or isinstance(ran.exception, (PopError, SystemExit, click.ClickException))
        assert fine, (one, ran.exc_info)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\ud800-\udfff]", ran.output), one
        if one[0] == "ls" and "--json" in one:
            assert "p\x9b\u202e.json" in [row["name"] for row in json.loads(ran.stdout)["pending"]]
