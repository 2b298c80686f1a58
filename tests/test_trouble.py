"""A root that takes no files, a root that anybody may change, a daemon that must stop: said, waited for, gone on from."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.living import LivingRoot

Make = Callable[..., LivingRoot]
ONE = {"one.py": "def infer(prompt, ctx):\n    return 1\n"}
PIPELINE = {"name": "p", "tasks": ["one"]}

_libc = ctypes.CDLL(None)
_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def without_privileges() -> None:
    """Permission bits apply to this process and its children, also when they are root's."""
    if os.geteuid() == 0:
        _libc.prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE)
        _libc.prctl(_PR_CAPBSET_DROP, _CAP_DAC_READ_SEARCH)


def serving(make_living: Make) -> LivingRoot:
    living = make_living(pipeline=PIPELINE, tasks=ONE)
    living.up(first=without_privileges)
    living.drop("first.json", {})
    living.wait_complete(1)
    return living


def check_it_waits_and_goes_on(living: LivingRoot, complaint: str, mend: Callable[[], None]) -> None:
    """Nothing is served while the trouble lasts, everything after it, each seed once."""
    for number in range(3):
        living.drop(f"{number}.json", {})
    living.wait(lambda: complaint in living.log(), "the complaint", patience_s=20)
    time.sleep(1.5)
    assert living.daemons[0].poll() is None, living.log()
    assert len(living.ledger()) == 1 and living.log().count(f"root: {complaint}") < 6
    mend()
    rows = living.wait_complete(4, patience_s=20)
    assert len({row["run_id"] for row in rows}) == len(rows) == 4
    living.wait(lambda: not list(living.root.pending.glob("*.json")), "an empty queue")
    assert living.stop(living.daemons[0]) == 0


@pytest.mark.parametrize("place", ["pipeline-current", "pipeline-complete"])
def test_a_folder_without_permission_to_write_is_waited_for(make_living: Make, place: str) -> None:
    """POP says which, loses nothing, and goes on by itself when the mode is right again."""
    living = serving(make_living)
    folder = living.path / place
    mode = folder.stat().st_mode
    folder.chmod(0o500)
    check_it_waits_and_goes_on(living, "no permission to write", lambda: folder.chmod(mode))


def test_a_queue_without_permission_to_write_leaves_no_litter(make_living: Make) -> None:
    """The seeds wait where they are, and no run folder is made for them."""
    living = serving(make_living)
    daemon, mode = living.daemons[0], living.root.pending.stat().st_mode
    daemon.send_signal(signal.SIGSTOP)
    living.drop("b.json", {})
    living.root.pending.chmod(0o500)
    daemon.send_signal(signal.SIGCONT)
    living.wait(lambda: "no permission to write" in living.log(), "the complaint", patience_s=20)
    time.sleep(2.5)
    living.root.pending.chmod(mode)
    living.wait_complete(2, patience_s=20)
    assert list(living.root.current.iterdir()) == []


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Callable[[], None]]:
    """`folder` seen through a read-only mount, until the function it gives is called."""
    mounted = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let the tests mount a folder")
    undone = False

    def undo() -> None:
        nonlocal undone
        if not undone:
            undone = True
            subprocess.run(["umount", "-l", str(folder)], check=True)

    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield undo
    finally:
        undo()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a folder read-only needs root")
def test_a_read_only_file_system_is_waited_for(make_living: Make) -> None:
    """As it is when a disk has errors and the kernel remounts it."""
    living = serving(make_living)
    with read_only(living.root.current) as undo:
        check_it_waits_and_goes_on(living, "the file system is read-only", undo)


@pytest.mark.parametrize("place", [".", "pipeline-tasks"])
def test_a_folder_that_anybody_may_change_is_refused(make_living: Make, place: str) -> None:
    """Whoever may write there may run code as us: exit code 3, the folder, and what to do."""
    living = make_living(pipeline=PIPELINE, tasks=ONE)
    folder = living.path / place
    folder.chmod(0o757)
    assert living.up().wait(20) == 3
    assert "anybody on this machine may write here" in living.log() and "chmod o-w" in living.log()
    assert not (living.root.machine_room).exists()
    folder.chmod(0o775)
    living.drop("a.json", {})
    living.up()
    living.wait_complete(1)


def test_the_machine_room_and_the_runs_are_private(make_living: Make) -> None:
    """Nobody else may read prompts and answers, whatever the umask was."""
    living = make_living(pipeline=PIPELINE, tasks=ONE)
    living.up(first=lambda: os.umask(0))
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    inside = [living.root.machine_room, living.path / row["path"]]
    for path in [found for folder in inside for found in [folder, *folder.rglob("*")]]:
        if path.name != "seed.json":  # the very file that was dropped
            assert path.lstat().st_mode & 0o077 == 0 or path.is_symlink(), path


def test_a_drain_that_takes_too_long_is_cut(make_living: Make) -> None:
    """`drain_s` after the first SIGTERM the attempt is interrupted, which uses up none, and the next daemon goes on."""
    slow = "import os, time\ndef infer(prompt, ctx):\n    time.sleep(0 if os.path.exists(ctx.letter.run_dir + '/go') else 99)\n    return 1\n"
    step = {"task": "slow", "attempts": 1}
    settings = "[daemon]\ndrain_s = 1.0\n"
    living = make_living(pipeline={"name": "p", "tasks": [step]}, tasks={"slow.py": slow}, settings=settings)
    daemon = living.up()
    living.drop("a.json", {})
    run_dir = living.wait(living.current, "the run")[0]
    living.wait(lambda: list((run_dir / "tasks/slow/attempts/1").glob("trail.jsonl")), "the worker")
    began = time.monotonic()
    assert living.stop(daemon) == 0
    assert 0.9 < time.monotonic() - began < 8
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_bytes().splitlines()]
    assert [e["error"]["error_class"] for e in events if e["event"] == "step.attempt_failed"] == ["interrupted"]
    (run_dir / "go").touch()
    living.up()
    (row,) = living.wait_complete(1)
    assert row["attempts"] == 2
