"""Hostile seeds, tasks and run folders: each hurts itself alone, and the daemon goes on with the others."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.living import LivingRoot, living_root

ONE = {"name": "t", "tasks": ["one"]}
FINE = {"one.py": "def infer(prompt, ctx):\n    return 1\n"}


def zipped(entries: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def damaged(name: str, entries: dict[str, bytes]) -> bytes:
    """A zip whose data of one entry was changed behind the header."""
    data = bytearray(zipped(entries))
    info = next(i for i in zipfile.ZipFile(io.BytesIO(data)).infolist() if i.filename == name)
    start = info.header_offset + 30 + len(name)
    for offset in range(start, start + info.compress_size):
        data[offset] ^= 0x5A
    return bytes(data)


NOISE = bytes(range(256)) * 4
BAD_FILES: dict[str, bytes] = {
    "deflate.zip": damaged("seed.json", {"seed.json": b'{"a": 1}' + b" " * 200}),
    "crc.zip": damaged("other.bin", {"seed.json": b"{}", "other.bin": NOISE}),
    "file-and-folder.zip": zipped({"seed.json": b"{}", "f": b"1", "f/b": b"2"}),
    "long-path.zip": zipped({"seed.json": b"{}", "/".join(["d" * 200] * 30): b"1"}),
    "duplicate.json": ("{" + ",".join(f'"k{n}":0' for n in range(200_000)) + ',"k199999":1}').encode(),
}
BAD_NAMES = {"new\nline.txt": "holds a control character", "..\\x.txt": "a backslash"}


def test_bad_seeds_are_refused_and_the_good_one_is_served(tmp_path: Path) -> None:
    """Now, and by the next daemon."""
    with living_root(tmp_path / "root", pipeline=ONE, tasks=FINE) as living:
        for name, data in BAD_FILES.items():
            (living.root.pending / name).write_bytes(data)
        for number, name in enumerate(BAD_NAMES):
            folder = living.root.pending / f"folder{number}"
            folder.mkdir()
            (folder / name).write_text("x")
            (folder / "seed.json").write_text("{}")
        os.mkfifo(living.root.pending / "pipe")
        (living.root.pending / os.fsdecode(b"bad\xff.json")).write_text("{]")
        (living.root.pending / os.fsdecode(b"good\xff.json")).write_text("{}")
        living.drop("good.json", {})
        daemon = living.up()
        living.wait_complete(1)
        expected = len(BAD_FILES) + len(BAD_NAMES) + 3
        living.wait(lambda: len(reasons(living)) == expected, f"{expected} reasons")
        assert living.stop(daemon) == 0 and "Traceback" not in living.log()
        again = living.up()
        living.drop("second.json", {})
        living.wait_complete(2)
        assert living.stop(again) == 0 and not living.current()


def reasons(living: LivingRoot) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in living.root.rejected.glob("*.reason.json")]


def test_a_reason_never_lands_on_a_refused_seed(tmp_path: Path) -> None:
    """Whatever the seed is called."""
    with living_root(tmp_path / "root", pipeline=ONE, tasks=FINE) as living:
        living.drop("a.json.reason.json", '["first"]')
        living.up()
        living.wait(lambda: (living.root.rejected / "a.json.reason.json").exists(), "the first")
        living.drop("a.json", '["second"]')
        living.wait(lambda: len(list(living.root.rejected.iterdir())) == 4, "the second")
        texts = [path.read_text() for path in living.root.rejected.iterdir()]
        assert '["first"]' in texts and '["second"]' in texts


@pytest.mark.parametrize("become", ["fifo", "link", "large", "cut off"])
def test_a_seed_may_change_while_it_waits(tmp_path: Path, become: str) -> None:
    """It is looked at again when its turn comes: refused then, or left waiting where it is half a seed now."""
    slow = {"one.py": "import time\n\n\ndef infer(prompt, ctx):\n    time.sleep(1.5)\n    return 1\n"}
    settings = "[concurrency]\nruns = 1\n[daemon]\ninotify = false\nscan_s = 3.0\n[seeds]\nmax_mb = 1\n"
    with living_root(tmp_path / "root", pipeline=ONE, tasks=slow, settings=settings) as living:
        living.drop("a.json", {"data": 1, "priority": 9})
        living.drop("b.json", {})
        living.up()
        living.wait(living.current, "the first run")
        target = living.root.pending / "b.json"
        target.unlink()
        if become == "fifo":
            os.mkfifo(target)
        elif become == "link":
            target.symlink_to(tmp_path / "root" / "pipeline.json")
        elif become == "large":
            target.write_text(json.dumps({"x": "y" * 2_000_000}))
        else:
            target.write_text('{"half":')
        living.drop("c.json", {})
        living.wait_complete(2)
        if become == "cut off":
            assert target.read_text() == '{"half":'
        else:
            assert [reason["name"] for reason in reasons(living)] == ["b.json"]
        assert "Traceback" not in living.log()


def no_journal(run_dir: Path) -> None:
    (run_dir / "events.jsonl").write_bytes(b"")


def no_first_line(run_dir: Path) -> None:
    path = run_dir / "events.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def odd_event(run_dir: Path) -> None:
    with open(run_dir / "events.jsonl", "a") as file:
        file.write('{"event": ["x"]}\n{"event": "step.done", "instance": "one", "usage": "many"}\n')


def no_tasks(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "tasks")


def no_seed(run_dir: Path) -> None:
    (run_dir / "seed.json").unlink()


def taken_place(run_dir: Path) -> None:
    (run_dir.parent.parent / "pipeline-complete" / run_dir.name).mkdir()


@pytest.mark.parametrize("damage", [no_journal, no_first_line, odd_event, no_tasks, no_seed, taken_place])
def test_a_damaged_run_stops_no_other(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """The daemon that finds it serves the next seed, and so does the one after."""
    wait = "import os, time\n\n\ndef infer(prompt, ctx):\n    while not os.path.exists(ctx.config['go']):\n        time.sleep(0.02)\n    return 1\n"
    pipeline = {"name": "t", "tasks": [{"task": "one", "with": {"go": str(tmp_path / "go")}}]}
    with living_root(tmp_path / "root", pipeline=pipeline, tasks={"one.py": wait}) as living:
        daemon = living.up()
        living.drop("a.json", {})
        run_dir = living.wait(living.current, "the run")[0]
        living.wait(lambda: (run_dir / "tasks" / "one" / "letter.json").exists(), "its worker")
        daemon.kill()
        daemon.wait()
        damage(run_dir)
        (tmp_path / "go").touch()
        for count in (1, 2):
            daemon = living.up()
            living.drop(f"good{count}.json", {})
            living.wait(
                lambda: sum(1 for row in living.ledger() if row["name"].startswith("good")) >= count,  # noqa: B023
                "the good run",
            )
            assert living.stop(daemon) == 0


def test_removing_a_live_run_or_a_folder_of_the_root_ends_nothing(tmp_path: Path) -> None:
    """The folder is made again, and the next seed is served."""
    tasks = {"one.py": "import time\n\n\ndef infer(prompt, ctx):\n    time.sleep(float(ctx.seed['s']))\n    return 1\n"}
    with living_root(tmp_path / "root", pipeline=ONE, tasks=tasks) as living:
        living.up()
        living.drop("a.json", {"s": 1.0})
        run_dir = living.wait(living.current, "the run")[0]
        living.wait(lambda: (run_dir / "tasks" / "one" / "letter.json").exists(), "its worker")
        shutil.rmtree(run_dir, ignore_errors=True)
        living.drop("b.json", {"s": 0})
        living.wait_complete(1)
        shutil.rmtree(living.root.current)
        living.drop("c.json", {"s": 0})
        living.wait_complete(2)
        shutil.rmtree(living.root.complete)
        living.drop("d.json", {"s": 0})
        living.wait_complete(1)
        assert living.daemons[0].poll() is None


CHAIN = """
import os, subprocess, sys, time
def infer(prompt, ctx):
    code = "import subprocess, sys, time; n = int(sys.argv[1]); n and subprocess.Popen([sys.executable, '-c', sys.argv[2], str(n - 1), sys.argv[2], sys.argv[3]], start_new_session=True); time.sleep(99)"
    subprocess.Popen([sys.executable, "-c", code, "4", code, ctx.config["mark"]], start_new_session=True)
    time.sleep(1.0)
    return 1
"""


def marked(mark: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if mark in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_chain_of_sessions_ends_with_its_worker(tmp_path: Path) -> None:
    """However often they fork away."""
    mark = f"pop-chain-{os.getpid()}"
    pipeline = {"name": "t", "tasks": [{"task": "one", "with": {"mark": mark}}]}
    with living_root(tmp_path / "root", pipeline=pipeline, tasks={"one.py": CHAIN}) as living:
        living.up()
        living.drop("a.json", {})
        living.wait_complete(1)
        living.wait(lambda: not marked(mark), "the end of the chain", 10)


def test_a_stopping_daemon_leaves_nothing_behind(tmp_path: Path) -> None:
    """Not even what left its worker's session while that was still at work."""
    mark = f"pop-left-{os.getpid()}"
    pipeline = {"name": "t", "tasks": [{"task": "one", "with": {"mark": mark}}]}
    tasks = {"one.py": CHAIN.replace("time.sleep(1.0)", "time.sleep(60)")}
    with living_root(tmp_path / "root", pipeline=pipeline, tasks=tasks) as living:
        daemon = living.up()
        living.drop("a.json", {})
        living.wait(lambda: len(marked(mark)) >= 3, "the chain")
        daemon.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)
        assert not marked(mark)


MISCHIEF = {
    "calls": 'open(\'calls.jsonl\', \'w\').write(\'{"input_tokens": "x", "cost_usd": 1e308}\\n[]\\n{"output_tokens": []}\\n\')',
    "output": "os.mkdir('../../output.json')",
    "error": "os.makedirs('../../error.json/x')",
    "artifacts": "open('../../artifacts', 'w').close(); os.mkdir('artifacts'); open('artifacts/a', 'w').close(); os.chmod('artifacts/a', 0); os.chmod('artifacts', 0o500)",
    "folder": "d = os.getcwd(); os.rename(d, d + 'x'); open(d, 'w').close()",
    "step": "import shutil; shutil.rmtree('../..')",
    "trail": "os.unlink('trail.jsonl'); os.mkfifo('trail.jsonl')",
    "stdout": "os.mkfifo('stdout.txt'); print('x', flush=True)",
    "stop": "import signal; os.kill(os.getppid(), signal.SIGSTOP); import time; time.sleep(30)",
    "surrogate": "raise ValueError('\\ud800 oh')",
}


@pytest.mark.parametrize("mischief", MISCHIEF)
def test_what_a_worker_does_to_its_folder_hurts_its_own_step_alone(tmp_path: Path, mischief: str) -> None:
    """The next run goes through, whatever it left."""
    tasks = {
        **FINE,
        "bad.py": f"import os\n\n\ndef infer(prompt, ctx):\n    if ctx.seed.get('bad'):\n        {MISCHIEF[mischief]}\n    return 1\n",
    }
    pipeline = {"name": "t", "tasks": [{"task": "bad", "attempts": 1, "timeout": 2}, "one"]}
    settings = "[worker]\nconfine = false\n"
    with living_root(tmp_path / "root", pipeline=pipeline, tasks=tasks, settings=settings) as living:
        daemon = living.up()
        living.drop("a.json", {"bad": True})
        living.wait(
            lambda: living.ledger() or [s for s in map(living.status, living.current()) if s["state"] == "failed"],
            "its end",
        )
        living.drop("b.json", {})
        living.wait(lambda: any(row["name"] == "b" for row in living.ledger()), "the next run")
        assert living.stop(daemon) == 0
        if mischief == "surrogate":
            assert living.status()["tasks"]["bad"]["error"]["error_class"] == "bug"


def test_orders_given_while_the_daemon_is_down_are_carried_out(tmp_path: Path) -> None:
    """Cancel of a run it was at work on, and then retry of that."""
    from pop.orders import write_order
    from pop.store import Disk

    slow = {"one.py": "import time\n\n\ndef infer(prompt, ctx):\n    time.sleep(1.5)\n    return 1\n"}
    with living_root(tmp_path / "root", pipeline=ONE, tasks=slow) as living:
        daemon = living.up()
        living.drop("a.json", {})
        run_dir = living.wait(living.current, "the run")[0]
        living.wait(lambda: (run_dir / "tasks" / "one" / "letter.json").exists(), "its worker")
        daemon.kill()
        daemon.wait()
        write_order(Disk(), run_dir, "cancel")
        daemon = living.up()
        living.wait(lambda: b"run.cancelled" in (run_dir / "events.jsonl").read_bytes(), "the cancel")
        living.wait_state("cancelled")
        assert living.stop(daemon) == 0 and not living.ledger()
        write_order(Disk(), run_dir, "retry")
        living.up()
        living.wait_complete(1)


SPY = """
import glob, os
def infer(prompt, ctx):
    found = {}
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            found[path] = b"sk-secret-of-the-test" in open(path, "rb").read()
        except OSError:
            pass
    def may(path):
        try:
            open(path, "a").close()
            return True
        except OSError:
            return False
    run = ctx.letter.run_dir
    signalled = True
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        signalled = False
    return {"keys": any(found.values()), "own": may("mine.txt"), "seed": may(run + "/seed.json"), "null": may("/dev/null"),
            "pending": may(ctx.config["root"] + "/pipeline-pending/x.json"), "allowed": may(ctx.config["allowed"] + "/x"),
            "temp": may(os.environ["TMPDIR"] + "/x"), "signalled": signalled}
"""


def test_a_worker_writes_into_its_own_folder_and_reads_no_keys(tmp_path: Path) -> None:
    """What `[worker] write` names comes on top. Needs a kernel with Landlock."""
    from pop.confine import landlock_version

    if landlock_version() < 1:
        pytest.skip("this kernel has no Landlock")
    for name in ("allowed", "temp"):
        (tmp_path / name).mkdir()
    with_ = {"root": str(tmp_path / "root"), "allowed": str(tmp_path / "allowed")}
    pipeline = {"name": "t", "tasks": [{"task": "one", "with": with_}]}
    settings = f'[worker]\nwrite = ["{tmp_path}/allowed"]\n'
    with living_root(tmp_path / "root", pipeline=pipeline, tasks={"one.py": SPY}, settings=settings) as living:
        living.up(env={"OPENAI_API_KEY": "sk-secret-of-the-test", "TMPDIR": str(tmp_path / "temp")})
        living.drop("a.json", {})
        found = living.output(living.wait_complete(1)[0], "one")
        signalled = found.pop("signalled")
        assert signalled is (landlock_version() < 6)
        assert [name for name, value in found.items() if value] == ["own", "null", "allowed", "temp"]


def test_commands_show_whatever_a_task_wrote(tmp_path: Path) -> None:
    """Odd lines in its output, odd progress, escape codes, a pipe for a trail: no traceback, nothing raw, no waiting."""
    import subprocess
    import sys

    odd = (
        "import os\n\n\ndef infer(prompt, ctx):\n    print('{\"at\":5}'); print('[' * 100_000)\n"
        '    print(\'{"at":"2026-01-01T00:00:00.000Z","text":"\\\\ud800"}\')\n'
        "    ctx.progress(None, 5); ctx.progress('a', 'b'); ctx.log.info('x\\x1b]0;evil\\x07', n=5)\n"
        "    os.mkfifo('output.txt')\n    raise ValueError('\\x1b]0;evil\\x07')\n"
    )
    with living_root(tmp_path / "root", pipeline=ONE, tasks={"one.py": odd}) as living:
        living.up()
        living.drop("a.json", {})
        living.wait_state("failed")
        for command in (["logs", "last"], ["logs", "last", "--trail"], ["show", "last"], ["ls"], ["doctor"]):
            arguments = [sys.executable, "-m", "pop", "--root", str(living.path), *command]
            done = subprocess.run(arguments, capture_output=True, timeout=30)
            assert b"Traceback" not in done.stderr and b"\x1b" not in done.stdout + done.stderr, command
        assert "\x1b" not in living.log()


def test_orders_nobody_can_read_or_file_away_end_nothing(tmp_path: Path) -> None:
    """A link that goes round, and a done/ that is a file: the next seed is served, the order is carried out once."""
    tasks = {**FINE, "bad.py": "def infer(prompt, ctx):\n    raise ValueError('no')\n"}
    with living_root(tmp_path / "root", pipeline={"name": "t", "tasks": ["bad"]}, tasks=tasks) as living:
        (living.path / "pipelines").mkdir()
        (living.path / "pipelines" / "fine.json").write_text(json.dumps(ONE))
        living.up()
        for name in ("a.json", "b.json"):
            living.drop(name, {})
        living.wait(lambda: sum(living.status(r)["state"] == "failed" for r in living.current()) == 2, "two failures")
        looped, stuck = living.current()
        (looped / "orders").symlink_to("orders")
        (stuck / "orders").mkdir()
        (stuck / "orders" / "done").write_text("no folder")
        (stuck / "orders" / "retry.json").write_text("{}")
        living.wait(lambda: not (stuck / "orders" / "retry.json").exists(), "the order")
        living.wait(lambda: living.status(stuck)["state"] == "failed", "its second failure")
        living.drop("c.json", {"data": {}, "pipeline": "fine"})
        living.wait_complete(1)
        time.sleep(1.5)
        assert (stuck / "events.jsonl").read_text().count('"run.resumed"') == 1
        assert living.daemons[0].poll() is None


def test_a_cancel_of_a_run_at_rest_is_shown(tmp_path: Path) -> None:
    """The status says what the journal says."""
    from pop.orders import write_order
    from pop.store import Disk

    tasks = {"one.py": "def infer(prompt, ctx):\n    raise ValueError('no')\n"}
    with living_root(
        tmp_path / "root", pipeline={"name": "t", "tasks": ["one", "one2"]}, tasks={**tasks, "one2.py": FINE["one.py"]}
    ) as living:
        living.up()
        living.drop("a.json", {})
        living.wait_state("failed")
        write_order(Disk(), living.current()[0], "cancel")
        status = living.wait_state("cancelled")
        assert status["tasks"]["one"]["state"] == "failed" and status["tasks"]["one2"]["state"] == "cancelled"


def test_a_journal_that_is_a_pipe_blocks_nobody(tmp_path: Path) -> None:
    """Its run is left; the others go on, and SIGTERM works."""
    tasks = {"one.py": "import time\n\n\ndef infer(prompt, ctx):\n    time.sleep(ctx.seed['s'])\n    return 1\n"}
    with living_root(tmp_path / "root", pipeline=ONE, tasks=tasks) as living:
        daemon = living.up()
        living.drop("a.json", {"s": 1.0})
        run_dir = living.wait(living.current, "the run")[0]
        living.wait(lambda: (run_dir / "tasks" / "one" / "letter.json").exists(), "its worker")
        (run_dir / "events.jsonl").unlink()
        os.mkfifo(run_dir / "events.jsonl")
        living.drop("b.json", {"s": 1.5})
        living.wait_complete(1)
        assert living.stop(daemon) == 0


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root, and setpriv to give it up")
@pytest.mark.parametrize("folder", ["pipeline-complete", "pipeline-current", "pipeline-pending"])
def test_a_folder_without_write_permission_is_waited_for_and_sigterm_works(tmp_path: Path, folder: str) -> None:
    """Three runs end while their place is closed; opened again, all goes on; closed again, SIGTERM ends the daemon."""
    import subprocess
    import sys

    tasks = {"one.py": "import time\n\n\ndef infer(prompt, ctx):\n    time.sleep(ctx.seed['s'])\n    return 1\n"}
    with living_root(tmp_path / "root", pipeline=ONE, tasks=tasks) as living:
        lowered = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]
        log = open(living.path / "daemon.log", "ab")
        up = [*lowered, sys.executable, "-m", "pop", "--root", str(living.path), "up"]
        daemon = subprocess.Popen(up, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        living.daemons.append(daemon)
        for number in range(3):
            living.drop(f"{number}.json", {"s": 0.6 + number / 4})
        living.wait(lambda: len(living.current()) == 3, "three runs")
        os.chmod(living.path / folder, 0o500)
        time.sleep(2.5)
        assert daemon.poll() is None
        os.chmod(living.path / folder, 0o700)
        living.wait_complete(3, patience_s=20)
        living.drop("late.json", {"s": 0.5})
        living.drop("later.json", {"s": 0.8})
        living.wait(lambda: len(living.current()) == 2, "two more")
        os.chmod(living.path / folder, 0o500)
        time.sleep(2.0)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
        os.chmod(living.path / folder, 0o700)
        living.up()
        living.wait_complete(5, patience_s=20)


READER = """
import os, subprocess
def infer(prompt, ctx):
    path = ctx.config["keys"]
    found = {}
    for name, way in {"open": path, "root": "/proc/self/root" + path, "parent": f"/proc/{os.getppid()}/root" + path}.items():
        try:
            found[name] = open(way).read()
        except OSError as error:
            found[name] = error.strerror
    found["cat"] = subprocess.run(["cat", path], capture_output=True, text=True).stdout
    found["beside"] = open(os.path.dirname(path) + "/beside.txt").read()
    found["seed"] = open(ctx.letter.run_dir + "/seed.json").read()
    return found
"""


def test_a_worker_does_not_read_the_keys_file(tmp_path: Path) -> None:
    """Nor does what it starts; what lies beside it stays readable, also a file that came since. Needs Landlock."""
    from pop.confine import landlock_version

    if landlock_version() < 1:
        pytest.skip("this kernel has no Landlock")
    home = tmp_path / "config" / "pop"
    home.mkdir(parents=True)
    (home / "keys.env").write_text("A_KEY=sk-secret-of-the-file\n")
    (home / "keys.env").chmod(0o600)
    pipeline = {"name": "t", "tasks": [{"task": "one", "with": {"keys": str(home / "keys.env")}}]}
    (tmp_path / "temp").mkdir()
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "TMPDIR": str(tmp_path / "temp")}
    with living_root(tmp_path / "root", pipeline=pipeline, tasks={"one.py": READER}) as living:
        daemon = living.up(env=env)
        (home / "beside.txt").write_text("beside")
        living.drop("a.json", {})
        found = living.output(living.wait_complete(1)[0], "one")
        assert found.pop("seed") == "{}" and found.pop("beside") == "beside" and found.pop("cat") == ""
        assert found == {name: "Permission denied" for name in ("open", "root", "parent")}
        assert living.stop(daemon) == 0
        (home / "keys.env").chmod(0o644)
        assert living.up(env=env).wait(20) == 3
        assert f"chmod 600 {home}/keys.env" in living.log() and "sk-secret" not in living.log()


PLANTER = """
import os
def infer(prompt, ctx):
    for name in ("stdout.txt", "trail.jsonl", "calls.jsonl", "log.jsonl", "04-infer.md", "05-parse.json", "error.json",
                 "output.json", "output.txt", "artifacts/report.md"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        if os.path.lexists(name):
            os.unlink(name)
        os.symlink(ctx.config["keys"], name)
    os._exit(ctx.seed["code"])
"""


@pytest.mark.parametrize("code", [0, 3])
def test_nobody_follows_a_link_to_the_keys_file_for_a_worker(tmp_path: Path, code: int) -> None:
    """Whatever it plants in its folder, no file of the root comes to hold what stands there."""
    home = tmp_path / "config" / "pop"
    home.mkdir(parents=True)
    (tmp_path / "temp").mkdir()
    (home / "keys.env").write_text("A_KEY=sk-secret-of-the-file\n")
    (home / "keys.env").chmod(0o600)
    pipeline = {"name": "t", "tasks": [{"task": "one", "attempts": 1, "with": {"keys": str(home / "keys.env")}}]}
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "TMPDIR": str(tmp_path / "temp")}
    with living_root(tmp_path / "root", pipeline=pipeline, tasks={"one.py": PLANTER}) as living:
        daemon = living.up(env=env)
        living.drop("a.json", {"code": code})
        living.wait_state("failed")
        assert living.stop(daemon) == 0
        plain = [path for path in living.path.rglob("*") if path.is_file() and not path.is_symlink()]
        assert plain and not [path for path in plain if b"sk-secret" in path.read_bytes()]


def test_a_keys_file_where_tasks_may_write_keeps_the_daemon_from_starting(tmp_path: Path) -> None:
    """In the temporary folder, for one; the error names a better place."""
    (tmp_path / "keys.env").write_text("A_KEY=sk-secret-of-the-file\n")
    (tmp_path / "keys.env").chmod(0o600)
    settings = f'[gateway]\nkeys_file = "{tmp_path}/keys.env"\n'
    with living_root(tmp_path / "root", pipeline=ONE, tasks=FINE, settings=settings) as living:
        assert living.up(env={"TMPDIR": str(tmp_path)}).wait(20) == 3
        assert "lies where tasks may write" in living.log() and "~/.config/pop/keys.env" in living.log()
