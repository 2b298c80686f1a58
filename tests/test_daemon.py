"""The real daemon in a real folder: drop, inspect, tail; stop, kill, start again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pop.records import RunRecord, Status
from pop.store import hold_root, lock_holder
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]

COUNT = "def infer(prompt, ctx):\n    return {'n': ctx.seed['n'] + len(ctx.inputs)}\n"
CHAIN = {"name": "chain", "tasks": ["one", "two", "three"]}
CHAIN_TASKS = {
    "one.py": "def infer(prompt, ctx):\n    return {'n': ctx.seed['n'] + 1}\n",
    "two.py": "def infer(prompt, ctx):\n    return {'n': ctx.inputs['one']['n'] * 10}\n",
    "three.py": "def infer(prompt, ctx):\n    return {'n': ctx.inputs['two']['n'] + ctx.inputs['one']['n']}\n",
}
SLEEPY = "import time\ndef infer(prompt, ctx):\n    time.sleep(ctx.seed.get('s', 1.0))\n    return {'ok': True}\n"


def test_a_dropped_seed_becomes_a_line_in_the_ledger(make_living: Make) -> None:
    """The outputs chain, the status and the record have their documented shapes, the queue is empty."""
    living = make_living(pipeline=CHAIN, tasks=CHAIN_TASKS)
    living.up()
    living.drop("My Seed.json", {"n": 4})
    (row,) = living.wait_complete(1)
    record = RunRecord.model_validate(row)
    assert living.output(row, "three") == {"n": 55}
    assert record.tasks == ["one", "two", "three"] and record.attempts == 3
    run_dir = living.path / record.path
    status = Status.model_validate_json((run_dir / "tasks-status.json").read_bytes())
    assert (status.state, status.progress) == ("complete", 1.0)
    assert json.loads((run_dir / "record.json").read_bytes()) == row
    assert "my-seed" in record.run_id
    assert (run_dir / "seed.json").read_bytes() == b'{"n": 4}'
    assert not list(living.root.current.iterdir())


def test_sigterm_ends_the_daemon_and_everything_below_it(make_living: Make) -> None:
    """No process of the root is left, and the lock is free."""
    living = make_living(pipeline=CHAIN, tasks=CHAIN_TASKS)
    daemon = living.up()
    living.drop("a.json", {"n": 1})
    living.wait_complete(1)
    assert living.stop(daemon) == 0
    living.wait(lambda: not living.processes(), "all processes to end")


def test_a_daemon_whose_terminal_is_gone_serves_on_and_ends_on_sigterm(make_living: Make) -> None:
    """What nobody can read any more is lost there alone: the log in the machine room goes on to the end."""
    living = make_living(pipeline=CHAIN, tasks=CHAIN_TASKS)
    reader, writer = os.pipe()
    daemon = living.up(first=lambda: [os.dup2(writer, 1), os.dup2(writer, 2)])
    os.close(writer)
    living.wait(lambda: b"POP serves" in os.read(reader, 65536), "the greeting")
    os.close(reader)
    living.drop("a.json", {"n": 1})
    living.wait_complete(1)
    assert living.stop(daemon) == 0
    log = (living.root.machine_room / "log" / "supervisor.jsonl").read_text()
    assert [name for name in ("run.complete", "daemon.stopping", "daemon.stopped") if name not in log] == []
    assert not (living.root.machine_room / "daemon.json").exists()


@pytest.mark.parametrize("settings", ["", "[daemon]\ninotify = false\nscan_s = 0.2\n"])
def test_slow_writers_and_all_ways_to_drop(make_living: Make, settings: str, tmp_path: Path) -> None:
    """A slow copy, an editor, a folder and a zip are taken when they are whole; with inotify and by the scan alone."""
    living = make_living(pipeline={"name": "p", "tasks": ["one"]}, tasks=CHAIN_TASKS, settings=settings)
    living.up()
    pending = living.root.pending
    with open(pending / "slow.json", "w") as file:  # as scp writes
        for part in ('{"n"', ": 1", "0, ", '"x": "' + "y" * 70_000 + '"', "}"):
            file.write(part)
            file.flush()
            time.sleep(0.15)
    subprocess.run(["sh", "-c", f"printf '%s' '{{\"n\":' > '{pending}/append.json'"], check=True)
    time.sleep(0.4)
    subprocess.run(["sh", "-c", f"printf '%s' ' 20}}' >> '{pending}/append.json'"], check=True)
    (pending / ".edit.json.swp").write_text("junk")
    (pending / "edit.json~").write_text("{}")
    (pending / "4913").write_text("")
    (tmp_path / "edit.json").write_text('{"n": 30}')
    shutil.move(tmp_path / "edit.json", pending / "edit.json")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "seed.json").write_text('{"n": 40}')
    (tmp_path / "job" / "doc.txt").write_text("hello")
    shutil.copytree(tmp_path / "job", pending / "job")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("seed.json", '{"n": 50}')
    shutil.copy(tmp_path / "z.zip", pending / "z.zip")
    rows = living.wait_complete(5)
    assert sorted(living.output(row, "one")["n"] for row in rows) == [11, 21, 31, 41, 51]
    assert not list(living.root.rejected.iterdir())


def test_what_cannot_be_right_goes_to_rejected_with_a_reason(make_living: Make) -> None:
    """And the daemon lives and serves the next seed."""
    living = make_living(pipeline=CHAIN, tasks=CHAIN_TASKS)
    living.up()
    for name, text in {
        "list.json": "[1]",
        "twice.json": '{"a": 1, "a": 2}',
        "deep.json": "[" * 100_000 + "]" * 100_000,
        "nowhere.json": '{"data": 1, "pipeline": "nowhere"}',
    }.items():
        living.drop(name, text)
    os.mkfifo(living.root.pending / "pipe.json")
    os.symlink("/etc/passwd", living.root.pending / "link.json")
    living.wait(lambda: len(list(living.root.rejected.glob("*.reason.json"))) == 6, "six reasons")
    reason = json.loads((living.root.rejected / "nowhere.json.reason.json").read_bytes())
    assert reason["code"] == "unknown-pipeline"
    living.drop("good.json", {"n": 1})
    living.wait_complete(1)


def test_a_second_daemon_says_who_holds_the_root(make_living: Make) -> None:
    """It exits with 3 and changes nothing."""
    living = make_living(pipeline=CHAIN, tasks=CHAIN_TASKS)
    first = living.up()
    living.drop("a.json", {"n": 1})
    living.wait_complete(1)
    second = living.up()
    assert second.wait(20) == 3
    assert f"process {first.pid}" in living.log()


def test_a_machine_room_that_is_removed_is_held_again(make_living: Make) -> None:
    """No second daemon starts beside the first, which goes on and is found by commands as before."""
    living = make_living(pipeline=CHAIN, tasks=CHAIN_TASKS)
    daemon = living.up()
    living.drop("a.json", {"n": 1})
    living.wait_complete(1)
    os.rename(living.root.machine_room, living.path / "gone")  # `rm -r` may find something new in it again and again
    living.wait(lambda: (lock_holder(living.root.machine_room) or {}).get("pid") == daemon.pid, "the lock", 10.0)
    second = living.up()
    assert second.wait(30) == 3 and f"process {daemon.pid}" in living.log()
    living.drop("b.json", {"n": 2})
    living.wait_complete(2)
    assert json.loads((living.root.machine_room / "daemon.json").read_bytes())["pid"] == daemon.pid
    assert living.stop(daemon) == 0 and "root.held_again" in living.log()


def test_a_daemon_ends_when_another_one_took_its_root(make_living: Make) -> None:
    """The lock went with its file and somebody else was first: it says so, and leaves what is the other's alone."""
    living = make_living(pipeline=CHAIN, tasks=CHAIN_TASKS)
    daemon = living.up()
    living.drop("a.json", {"n": 1})
    living.wait_complete(1)
    lock = living.root.machine_room / "lock"
    about = living.root.machine_room / "daemon.json"
    daemon.send_signal(signal.SIGSTOP)
    lock.unlink()
    with hold_root(living.root.machine_room, "pop gc"):
        daemon.send_signal(signal.SIGCONT)
        assert daemon.wait(30) == 3
        assert "another daemon works here: `pop gc`" in living.log()
        assert about.exists() and lock_holder(living.root.machine_room)


def test_a_failed_run_stays_and_a_retry_goes_on_from_what_failed(make_living: Make) -> None:
    """The error stands where a person looks; after the task is mended, `pop retry` runs only what is missing."""
    living = make_living(pipeline=CHAIN, tasks={**CHAIN_TASKS, "two.py": "def infer(prompt, ctx):\n    1 / 0\n"})
    living.up()
    living.drop("a.json", {"n": 1})
    status = living.wait_state("failed")
    assert status["tasks"]["two"]["error"]["error_class"] == "bug"
    run_dir = living.current()[0]
    assert "ZeroDivisionError" in (run_dir / "tasks" / "two" / "error.json").read_text()
    living.task("two.py", CHAIN_TASKS["two.py"])
    subprocess.run(
        [sys.executable, "-m", "pop", "--root", str(living.path), "retry", run_dir.name], check=True, timeout=60
    )
    (row,) = living.wait_complete(1)
    assert living.output(row, "three") == {"n": 22}
    assert row["attempts"] == 4  # one, two (failed), two, three


def test_a_cancelled_run_ends_its_workers(make_living: Make) -> None:
    """The run stays in pipeline-current as cancelled, and no worker goes on."""
    living = make_living(pipeline={"name": "p", "tasks": ["sleepy"]}, tasks={"sleepy.py": SLEEPY})
    living.up()
    living.drop("a.json", {"s": 300})
    run_dir = living.wait(lambda: living.current(), "the run")[0]
    living.wait(lambda: living.status(run_dir)["tasks"]["sleepy"]["state"] == "running", "the step to run")
    (run_dir / "orders").mkdir(exist_ok=True)
    (run_dir / "orders" / "cancel.json").write_text('{"by": "a test", "reason": "enough"}')
    status = living.wait_state("cancelled", run_dir)
    assert status["tasks"]["sleepy"]["state"] == "cancelled"
    assert list((run_dir / "orders" / "done").iterdir())


def test_sigterm_lets_running_attempts_end(make_living: Make) -> None:
    """A draining daemon starts nothing new; the next one goes on without running the done step again."""
    pipeline = {"name": "p", "tasks": ["sleepy", "one"]}
    living = make_living(pipeline=pipeline, tasks={"sleepy.py": SLEEPY, **CHAIN_TASKS})
    daemon = living.up()
    living.drop("a.json", {"s": 1.5, "n": 1})
    run_dir = living.wait(lambda: living.current(), "the run")[0]
    living.wait(lambda: living.status(run_dir)["tasks"]["sleepy"]["state"] == "running", "the step to run")
    assert living.stop(daemon) == 0
    assert (run_dir / "tasks" / "sleepy" / "output.json").exists()
    assert not (run_dir / "tasks" / "one").exists()
    living.up()
    (row,) = living.wait_complete(1)
    assert row["attempts"] == 2


def test_a_second_sigterm_is_quick_and_uses_up_no_attempt(make_living: Make) -> None:
    """The interrupted step is taken up again by the next daemon."""
    living = make_living(
        pipeline={"name": "p", "tasks": [{"task": "sleepy", "attempts": 1}]}, tasks={"sleepy.py": SLEEPY}
    )
    daemon = living.up()
    living.drop("a.json", {"s": 8})
    run_dir = living.wait(lambda: living.current(), "the run")[0]
    living.wait(lambda: living.status(run_dir)["tasks"]["sleepy"]["state"] == "running", "the step to run")
    began = time.monotonic()
    daemon.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert living.stop(daemon) == 0
    assert time.monotonic() - began < 7
    living.up()
    (row,) = living.wait_complete(1)
    assert row["attempts"] == 2


def test_kill_9_in_the_middle_of_a_step_is_repaired_without_a_person(make_living: Make) -> None:
    """No worker survives its daemon, the step runs again, the done one does not."""
    living = make_living(pipeline={"name": "p", "tasks": ["one", "sleepy"]}, tasks={"sleepy.py": SLEEPY, **CHAIN_TASKS})
    daemon = living.up()
    living.drop("a.json", {"n": 1, "s": 3})
    run_dir = living.wait(lambda: living.current(), "the run")[0]
    living.wait(lambda: living.status(run_dir)["tasks"].get("sleepy", {}).get("state") == "running", "the step")
    daemon.kill()
    daemon.wait()
    living.wait(lambda: not living.processes(), "all processes to end")
    living.up()
    (row,) = living.wait_complete(1)
    assert row["attempts"] == 3 and row["tasks"] == ["one", "sleepy"]


def test_a_pipeline_edited_or_deleted_in_mid_run_changes_nothing_in_flight(make_living: Make) -> None:
    """A run keeps its frozen copy; later seeds wait until the file is back."""
    living = make_living(pipeline={"name": "p", "tasks": ["sleepy", "one"]}, tasks={"sleepy.py": SLEEPY, **CHAIN_TASKS})
    living.up()
    living.drop("a.json", {"n": 1, "s": 2})
    living.wait(lambda: living.current(), "the run")
    (living.path / "pipeline.json").unlink()
    living.drop("b.json", {"n": 2, "s": 0})
    (row,) = living.wait_complete(1)
    assert row["tasks"] == ["sleepy", "one"]
    assert (living.root.pending / "b.json").exists()
    (living.path / "pipeline.json").write_text('{"name": "p", "tasks": ["one"]}')
    rows = living.wait_complete(2)
    assert rows[1]["tasks"] == ["one"]


def test_a_broken_pipeline_holds_its_seeds_until_it_is_mended(make_living: Make) -> None:
    """It is not the seeds' fault, so they are not refused."""
    living = make_living(pipeline={"name": "p", "tasks": ["nope"]}, tasks=CHAIN_TASKS)
    living.up()
    living.drop("a.json", {"n": 1})
    living.wait(lambda: "nope" in living.log(), "the complaint")
    time.sleep(0.5)
    assert (living.root.pending / "a.json").exists()
    (living.path / "pipeline.json").write_text('{"name": "p", "tasks": ["one"]}')
    living.wait_complete(1)


def test_blocks_conditions_and_lists_run_end_to_end(make_living: Make) -> None:
    """parallel, each and when, with the outputs in item order."""
    pipeline = {
        "name": "p",
        "tasks": [
            "split",
            {"parallel": [{"task": "twice", "name": "left"}, {"task": "twice", "name": "right"}]},
            {"each": "inputs.split.items", "do": "square"},
            {"task": "twice", "name": "never", "when": "inputs.split.items|length > 99"},
            "total",
        ],
    }
    tasks = {
        "split.py": "def infer(prompt, ctx):\n    return {'items': list(range(ctx.seed['n']))}\n",
        "twice.py": "def infer(prompt, ctx):\n    return len(ctx.inputs['split']['items']) * 2\n",
        "square.py": "def infer(prompt, ctx):\n    return ctx.item ** 2\n",
        "total.py": (
            "def infer(prompt, ctx):\n    i = ctx.inputs\n"
            "    return {'squares': i['square'], 'sides': i['left'] + i['right'], 'never': i['never']}\n"
        ),
    }
    living = make_living(pipeline=pipeline, tasks=tasks)
    living.up()
    living.drop("a.json", {"n": 12})
    (row,) = living.wait_complete(1)
    assert living.output(row, "total") == {"squares": [i * i for i in range(12)], "sides": 48, "never": None}
    status = Status.model_validate_json((living.path / row["path"] / "tasks-status.json").read_bytes())
    assert status.tasks["never"].state == "skipped"


def test_edited_code_is_used_by_the_next_attempt(make_living: Make) -> None:
    """Without restarting the daemon, helper modules included."""
    tasks = {
        "one.py": "from lib import value\ndef infer(prompt, ctx):\n    return {'v': value()}\n",
        "lib.py": "def value():\n    return 1\n",
    }
    living = make_living(pipeline={"name": "p", "tasks": ["one"]}, tasks=tasks)
    living.up()
    living.drop("a.json", {})
    living.wait_complete(1)
    living.task("lib.py", "def value():\n    return 2\n")
    living.drop("b.json", {})
    rows = living.wait_complete(2)
    assert [living.output(row, "one")["v"] for row in rows] == [1, 2]


def test_one_bad_worker_stops_no_other_run(make_living: Make) -> None:
    """Segfaults, exits, floods and hunger fail their own step with the right class, and nothing else."""
    bad = {
        "segfault": "import ctypes; ctypes.string_at(0)",
        "exit": "import os; os._exit(0)",
        "flood": "while True: print('x' * 65536)",
        "hunger": "x = []\n    while True: x.append(bytearray(10_000_000))",
        "hang": "import signal, time\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    time.sleep(600)",
        "stray": (
            "import os, time\n    for _ in range(50):\n        if os.fork() == 0:\n"
            "            os.setsid(); time.sleep(600); os._exit(0)\n    os._exit(3)"
        ),
    }
    bad_tasks = {f"{name}.py": f"def infer(prompt, ctx):\n    {body}\n" for name, body in bad.items()}
    living = make_living(pipeline=CHAIN, tasks={**CHAIN_TASKS, **bad_tasks})
    (living.root.pipelines).mkdir()
    for name in bad:
        step = {"task": name, "attempts": 1, "timeout": 8, "memory_mb": 300}
        (living.root.pipelines / f"{name}.json").write_text(json.dumps({"name": name, "tasks": [step]}))
    living.up()
    for name in bad:
        living.drop(f"{name}.json", {"data": {}, "pipeline": name})
    for number in range(5):
        living.drop(f"good{number}.json", {"n": number})
    living.wait_complete(5)

    def classes() -> dict[str, str] | None:
        found = {}
        for run_dir in living.current():
            status = living.status(run_dir)
            if status["state"] == "failed":
                found[status["pipeline"]] = status["error"]["error_class"]
        return found if len(found) == len(bad) else None

    assert living.wait(classes, "all bad runs to fail") == {
        "segfault": "worker_died",
        "exit": "worker_died",
        "flood": "worker_died",
        "hunger": "worker_died",
        "hang": "timeout",
        "stray": "worker_died",
    }
    living.wait(lambda: len(living.processes()) <= 3, "the strays to be gone")


def test_pending_can_be_replaced_under_the_daemon(make_living: Make) -> None:
    """A recreated folder is watched anew."""
    living = make_living(pipeline={"name": "p", "tasks": ["one"]}, tasks=CHAIN_TASKS)
    living.up()
    living.drop("a.json", {"n": 1})
    living.wait_complete(1)
    shutil.rmtree(living.root.pending)
    living.root.pending.mkdir()
    living.drop("b.json", {"n": 2})
    living.wait_complete(2)


def fill_up(path: Path) -> None:
    """Write until the file system is full."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_stops_new_work_and_loses_nothing(make_living: Make, tmp_path: Path) -> None:
    """POP says so, and goes on by itself when there is space again."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let the tests mount a small file system")
    try:
        living = make_living("small", pipeline=CHAIN, tasks=CHAIN_TASKS)
        living.up()
        living.drop("a.json", {"n": 1})
        living.wait_complete(1)
        fill_up(path / "ballast")
        os.truncate(path / "ballast", (path / "ballast").stat().st_size - 64 * 1024)
        for number in range(3):
            living.drop(f"full{number}.json", {"n": number})
        living.wait(lambda: "the disk is full" in living.log(), "the complaint")
        time.sleep(2.5)
        assert len(living.ledger()) == 1
        (path / "ballast").unlink()
        living.wait_complete(4)
        living.close()
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_two_thousand_seeds_are_served_once_each(make_living: Make) -> None:
    """A burst: every seed has exactly one line and one folder."""
    settings = "[concurrency]\nworkers = 8\n"
    living = make_living(pipeline={"name": "p", "tasks": ["one"]}, tasks=CHAIN_TASKS, settings=settings)
    for number in range(2000):
        living.drop(f"s{number}.json", {"n": number})
    living.up()
    rows = living.wait_complete(2000, patience_s=180)
    assert len(rows) == 2000
    assert sorted(living.output(row, "one")["n"] for row in rows) == list(range(1, 2001))
    folders = [path for path in living.root.complete.iterdir() if path.is_dir() and path.name[0] != "."]
    assert len(folders) == 2000
