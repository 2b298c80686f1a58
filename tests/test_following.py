"""Commands while a daemon works: ending and retrying runs, following them, clearing away, exit codes, live tables."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import warm
from tests.fake_openai import FakeOpenAI, Fault
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "POP_"))}
ONE = "def infer(prompt, ctx):\n    ctx.log.info('one is at work')\n    return 1\n"
# Waits until somebody puts the file `go` into the root; says its process number.
PATIENT = """
import os, time
def infer(prompt, ctx):
    print('waiting in', os.getpid())
    open(ctx.letter.tasks_dir + '/../pid', 'w').write(str(os.getpid()))
    while not os.path.exists(ctx.letter.tasks_dir + '/../go'):
        time.sleep(0.05)
    print('the last words')
    time.sleep(0.2)
    return 2
"""
TASKS = {"one.py": ONE, "patient.py": PATIENT}
PIPELINE = {"name": "p", "tasks": ["one", "patient"]}


def command_of(living: LivingRoot, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "pop", "--root", str(living.path), *map(str, arguments)]


def pop(living: LivingRoot, *arguments: object) -> subprocess.CompletedProcess[str]:
    return warm.pop(["--root", living.path, *arguments], env=ENVIRONMENT)


@contextlib.contextmanager
def started(living: LivingRoot, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on; it ends with the block at the latest."""
    command = command_of(living, *arguments)
    with open(living.path / "out", "wb") as out, open(living.path / "err", "wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True, env=ENVIRONMENT, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(living: LivingRoot, where: str = "out") -> str:
    return (living.path / where).read_text()


def at_work(living: LivingRoot) -> tuple[Path, int]:
    """The run whose step waits, and the number of its worker."""
    pid = int(living.wait(lambda: (living.path / "pid").read_text(), "the worker"))
    return living.wait(living.current, "its status")[-1], pid


def go(living: LivingRoot) -> None:
    (living.path / "go").touch()


def serving(make_living: Make, **about: Any) -> LivingRoot:
    living = make_living(pipeline=PIPELINE, tasks=TASKS, **about)
    living.up()
    return living


def test_cancel_ends_the_worker_and_retry_goes_on(make_living: Make) -> None:
    """`pop cancel` stops what runs and says why; `pop retry` runs what was not done, and only that."""
    living = serving(make_living)
    living.drop("a.json", {})
    run_dir, pid = at_work(living)
    assert pop(living, "cancel", "last", "-m", "enough of it").returncode == 0
    status = living.wait_state("cancelled", run_dir)
    assert not psutil.pid_exists(pid)
    assert {name: task["state"] for name, task in status["tasks"].items()} == {"one": "done", "patient": "cancelled"}
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_bytes().splitlines()]
    assert [event["reason"] for event in events if event["event"] == "run.cancelled"] == ["enough of it"]
    go(living)
    assert pop(living, "retry", run_dir.name).returncode == 0
    (row,) = living.wait_complete(1)
    assert (row["run_id"], row["tasks"], row["attempts"]) == (run_dir.name, ["one", "patient"], 3)
    assert pop(living, "cancel", run_dir.name).returncode == 2  # nothing is left to end


def test_an_order_given_while_no_daemon_runs_is_obeyed_by_the_next(make_living: Make) -> None:
    """And the command says so."""
    living = serving(make_living)
    living.drop("a.json", {})
    run_dir, _ = at_work(living)
    living.daemons[0].kill()
    living.daemons[0].wait()
    if "pop up" not in pop(living, "cancel", run_dir.name).stderr:
        pytest.fail("it does not say that nobody serves this folder")
    living.up()
    living.wait_state("cancelled", run_dir)


def test_a_run_that_works_is_not_retried(make_living: Make) -> None:
    """Only failed and cancelled ones are: usage error 2, and no order is written."""
    living = serving(make_living)
    living.drop("a.json", {})
    run_dir, _ = at_work(living)
    result = pop(living, "retry", run_dir.name)
    assert result.returncode == 2 and "running" in result.stderr
    assert not (run_dir / "orders" / "retry.json").exists()


def test_tail_follows_the_ledger(make_living: Make) -> None:
    """Runs that end later are printed once each, also when there was no ledger yet; Ctrl-C exits with 130."""
    living = make_living(pipeline={"name": "p", "tasks": ["one"]}, tasks=TASKS)
    with started(living, "tail", "-f", "--json") as tail:
        time.sleep(0.8)
        living.up()
        for number in range(3):
            living.drop(f"{number}.json", {})
        rows = living.wait_complete(3)
        living.wait(lambda: len(said(living).splitlines()) >= 3, "three lines")
        time.sleep(0.5)
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 130
    assert [json.loads(line) for line in said(living).splitlines()] == rows


def test_logs_follow_a_run_to_its_end(make_living: Make) -> None:
    """What was printed is there once, what comes is added, and the command ends with the run."""
    living = serving(make_living)
    living.drop("a.json", {})
    run_dir, pid = at_work(living)
    with started(living, "logs", run_dir.name, "-f") as logs:
        living.wait(lambda: f"waiting in {pid}" in said(living), "the first words")
        assert logs.poll() is None
        go(living)
        assert logs.wait(20) == 0
    lines = said(living).splitlines()
    assert len(lines) == len(set(lines)) and any("one is at work" in line for line in lines)
    assert any("the last words" in line for line in lines)
    assert "patient#1" in next(line for line in lines if f"waiting in {pid}" in line)


def test_watching_without_a_terminal_says_each_change_once(make_living: Make) -> None:
    """Plain lines, for logs and pipes; a finished run ends `pop watch RUN`."""
    living = serving(make_living)
    living.drop("a.json", {})
    run_dir, _ = at_work(living)
    with started(living, "watch", run_dir.name) as watch:
        living.wait(lambda: "patient" in said(living, "err"), "the step")
        go(living)
        assert watch.wait(20) == 0
    assert "complete" in said(living) and "\x1b" not in said(living) + said(living, "err")


def test_gc_removes_failed_runs_when_asked(make_living: Make) -> None:
    """`--failed` takes what rests in pipeline-current/; what works there stays, and without it all stays."""
    living = serving(make_living)
    living.root.pipelines.mkdir()
    living.task("bad.py", "def infer(prompt, ctx):\n    1 / 0\n")
    (living.root.pipelines / "bad.json").write_text('{"tasks": ["bad"]}')
    living.drop("works.json", {})
    working, _ = at_work(living)
    living.drop("fails.json", {"data": {}, "pipeline": "bad"})
    failed = living.wait(lambda: [p for p in living.current() if living.status(p)["state"] == "failed"], "it")[0]
    pop(living, "gc", "--older-than", "0s")
    assert failed.is_dir()
    result = pop(living, "gc", "--older-than", "0s", "--failed", "--json")
    assert json.loads(result.stdout)["runs"] == [failed.name]
    assert not failed.exists() and working.is_dir()


def test_an_age_that_is_none_is_a_usage_error_also_where_nothing_is_old(make_living: Make) -> None:
    """A cron job with a typo says so on its first day."""
    living = make_living(pipeline=PIPELINE, tasks=TASKS)
    assert pop(living, "gc", "--older-than", "soon").returncode == 2


# -- exit codes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    path = tmp_path / "seed.json"
    path.write_text("{}")
    return path


def test_a_budget_that_is_used_up_exits_with_6(make_living: Make, seed: Path, fake_openai: FakeOpenAI) -> None:
    """The seed's own, and the provider's account."""
    living = make_living(pipeline={"name": "p", "tasks": ["ask"]}, tasks={"ask.md": "?"})
    seed.write_text('{"data": {}, "budget": {"run_tokens": 0}}')
    assert pop(living, "run", seed).returncode == 6
    fake_openai.faults = [Fault(status=429, body=b'{"error": {"message": "pay", "code": "insufficient_quota"}}')]
    settings = f'[models.default]\nprovider = "openai"\nmodel = "m"\nbase_url = "{fake_openai.base_url}"\n'
    asking = make_living("asking", pipeline={"name": "p", "tasks": ["ask"]}, tasks={"ask.md": "?"}, settings=settings)
    seed.write_text("{}")
    assert pop(asking, "run", seed).returncode == 6


def test_an_interrupted_run_exits_with_130_and_can_go_on(make_living: Make, seed: Path) -> None:
    """Ctrl-C lets the attempt end, a second one interrupts it; the run stays and the next daemon takes it up."""
    living = make_living(pipeline=PIPELINE, tasks=TASKS)
    with started(living, "run", seed) as run:
        run_dir, pid = at_work(living)
        run.send_signal(signal.SIGINT)
        living.wait(lambda: "stopping" in said(living, "err"), "its word")
        assert run.poll() is None and psutil.pid_exists(pid)
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130
    assert not psutil.pid_exists(pid) and not living.processes()
    go(living)
    living.up()
    (row,) = living.wait_complete(1)
    assert row["run_id"] == run_dir.name and row["tasks"] == ["one", "patient"]


def test_interrupting_pop_run_beside_a_daemon_leaves_the_run_alone(make_living: Make, seed: Path) -> None:
    """It is the daemon's run: the command exits with 130 and the work goes on."""
    living = serving(make_living)
    living.drop("warm.json", {})
    go(living)
    living.wait_complete(1)
    (living.path / "go").unlink()
    (living.path / "pid").unlink()
    with started(living, "run", seed) as run:
        _, pid = at_work(living)
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130
    assert psutil.pid_exists(pid)
    go(living)
    assert len(living.wait_complete(2)) == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "no-such-run"], 2),
        (["graph", "nothing"], 2),
        (["schema", "nothing"], 2),
        (["submit", "/no/such/file"], 2),
        (["init", "x", "--template", "nothing"], 2),
        (["--root", "/no/such/folder", "ls"], 2),
        (["completion", "tcsh"], 2),
        (["completion", "bash"], 0),
    ],
)
def test_a_wrong_word_is_a_usage_error(make_living: Make, arguments: list[str], code: int) -> None:
    """Exit code 2, one sentence, no traceback."""
    living = make_living(pipeline=PIPELINE, tasks=TASKS)
    result = pop(living, *arguments)
    assert result.returncode == code and "Traceback" not in result.stderr


# -- live tables ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_a_terminal(
    living: LivingRoot, *arguments: object
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """A command on a terminal of its own, 120 columns wide; and what it has shown so far."""
    ours, theirs = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        command_of(living, *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = bytearray()

    def look() -> str:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                shown.extend(data)
        return shown.decode("utf-8", "replace")

    try:
        yield process, look
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_pop_run_shows_a_live_table(make_living: Make, seed: Path) -> None:
    """Steps with their states while it goes; where the result lies when it is over."""
    living = make_living(pipeline=PIPELINE, tasks=TASKS)
    with on_a_terminal(living, "run", seed) as (process, look):
        run_dir, _ = at_work(living)
        words = ("step", "state", "stage", "one", "done", "patient", "running", run_dir.name)
        living.wait(lambda: all(word in look() for word in words), "the table")
        assert "\x1b[" in look()
        go(living)
        living.wait(lambda: look() is not None and process.poll() is not None, "its end")
        assert process.returncode == 0 and f"pipeline-complete/{run_dir.name}" in look()


def test_pop_watch_shows_a_live_board(make_living: Make) -> None:
    """All runs of the folder with their progress, until Ctrl-C; one run with its steps, until it ends."""
    living = serving(make_living)
    living.drop("a.json", {})
    run_dir, _ = at_work(living)
    with on_a_terminal(living, "watch") as (board, look):
        living.wait(lambda: run_dir.name in look() and "50 %" in look() and "patient" in look(), "the board")
        assert "\x1b[" in look() and "0 pending" in look() and "1 active" in look()
        with on_a_terminal(living, "watch", "last") as (one, look_at_one):
            living.wait(lambda: "patient" in look_at_one() and "running" in look_at_one(), "the table")
            go(living)
            living.wait(lambda: look_at_one() is not None and one.poll() is not None, "its end")
            assert one.returncode == 0
        living.wait(lambda: "the newest (1)" in look(), "the end on the board")
        board.send_signal(signal.SIGINT)
        living.wait(lambda: look() is not None and board.poll() is not None, "its end")
        assert board.returncode == 130
