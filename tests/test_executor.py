"""The executor with the real fork server: every way a worker can end, and what it may take along."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pop.executors import EXECUTORS, Attempt, Result, open_executor
from pop.models.request import Answer
from pop.records import FileRef, Letter, Limits
from pop.settings import Root, Settings


class Bench:
    """A root with one executor, and tasks written by the test."""

    def __init__(self, path: Path) -> None:
        self.root = Root(path)
        self.root.tasks.mkdir()
        (self.root.machine_room / "log").mkdir(parents=True)
        (path / "seed.json").write_text("{}")
        self.executor: Any = open_executor(self.root, Settings())

    def attempt(self, name: str, body: str, **limits: Any) -> Attempt:
        (self.root.tasks / f"{name}.py").write_text(f"def infer(prompt, ctx):\n    {body}\n")
        step_dir = self.root.path / "tasks" / name
        folder = step_dir / "attempts" / "1"
        folder.mkdir(parents=True)
        letter = Letter(
            run_id="r", run_name="r", instance=name, step=name, task=name, tasks_dir=str(self.root.tasks),
            run_dir=str(self.root.path), attempt=1, attempt_id=name, generation=1, deadline_at=0.0,
            seed=FileRef(path="seed.json", sha256=hashlib.sha256(b"{}").hexdigest()), limits=Limits(**limits),
        )  # fmt: skip
        (step_dir / "letter.json").write_text(letter.model_dump_json())
        return Attempt(name, "r", name, str(step_dir / "letter.json"), str(folder), str(step_dir), letter.limits, None)


SECRET = "SECRET_TOKEN_FOR_TEST"


@pytest.fixture(params=EXECUTORS)
def bench(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The daemon has a secret before the executor chooses what a worker may see, and could write core dumps."""
    monkeypatch.setenv(SECRET, "x")
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    return Bench(tmp_path)


def drive(bench: Bench, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def whole() -> Any:
        await bench.executor.start()
        try:
            return await asyncio.wait_for(work(), 60)
        finally:
            await bench.executor.stop()

    return asyncio.run(whole())


def run(bench: Bench, body: str, **limits: Any) -> tuple[Result, Path]:
    attempt = bench.attempt("t", body, **limits)
    return drive(bench, lambda: bench.executor.run(attempt)), Path(attempt.attempt_dir)


def error_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "error.json").read_bytes())
    return value


def test_a_good_worker_leaves_an_output(bench: Bench) -> None:
    """And exits with 0."""
    result, folder = run(bench, "return 1")
    assert (result.how, result.code) == ("exited", 0) and (folder / "output.json").read_text() == "1\n"


def test_a_bug_leaves_its_traceback(bench: Bench) -> None:
    """In error.json and in what it printed."""
    result, folder = run(bench, "raise ValueError('oh')")
    assert result.code == 1 and error_of(folder)["error_class"] == "bug"
    assert "ValueError: oh" in error_of(folder)["traceback"] and "ValueError" in (folder / "stdout.txt").read_text()


def test_a_segfault_is_seen(bench: Bench) -> None:
    """As the signal it is."""
    result, _ = run(bench, "import ctypes; ctypes.string_at(0)")
    assert (result.how, result.signal) == ("signalled", signal.SIGSEGV)


def test_a_silent_exit_leaves_no_output(bench: Bench) -> None:
    """os._exit(0) is no success."""
    result, folder = run(bench, "import os; os._exit(0)")
    assert result.how == "exited" and not (folder / "output.json").exists()


def test_sys_exit_is_no_success_either(bench: Bench) -> None:
    """It is reported as what it is."""
    _, folder = run(bench, "import sys; sys.exit(0)")
    assert "SystemExit" in error_of(folder)["message"]


def test_a_flood_is_capped_and_says_so(bench: Bench) -> None:
    """The disk holds what is kept, a notice, and nothing more."""
    result, folder = run(bench, "while True: print('x' * 99999)", output_mb=0.5)
    text = (folder / "stdout.txt").read_bytes()
    assert result.how == "flood" and len(text) < 600_000 and b"capped at 0.5 MB" in text


def test_a_little_too_much_output_ends_nothing(bench: Bench) -> None:
    """It is capped, and the worker goes on."""
    result, folder = run(bench, "print('x' * 1_000_000); return 1", output_mb=0.5)
    assert (result.how, result.code) == ("exited", 0) and b"capped" in (folder / "stdout.txt").read_bytes()


def test_hunger_is_told_from_a_bug(bench: Bench) -> None:
    """The memory limit is named."""
    _, folder = run(bench, "x = [bytearray(10_000_000) for _ in range(1000)]", memory_mb=200)
    assert error_of(folder)["error_class"] == "worker_died" and "memory" in error_of(folder)["message"]


def test_a_deaf_worker_is_ended_all_the_same(bench: Bench) -> None:
    """TERM, a grace, then KILL."""
    body = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    result, _ = run(bench, body, timeout_s=0.5)
    assert (result.how, result.signal) == ("timeout", signal.SIGKILL) and result.seconds < 15


def test_a_stalled_worker_is_ended_and_a_busy_one_is_not(bench: Bench) -> None:
    """Progress is a sign of life, whatever the clock says: it may jump."""
    stalled = bench.attempt("stalled", "import time; time.sleep(60)", stall_s=1.5)
    busy_body = (
        "import os, time\n    for n in range(30):\n        time.sleep(0.15); ctx.progress(n, 30); os.utime('trail.jsonl', (0, 0))\n"
        "    return n"
    )
    busy = bench.attempt("busy", busy_body, stall_s=1.5)

    async def both() -> list[Result]:
        return list(await asyncio.gather(bench.executor.run(stalled), bench.executor.run(busy)))

    one, other = drive(bench, both)
    assert (one.how, other.how) == ("stalled", "exited") and other.code == 0


def test_grandchildren_that_hold_the_pipes_hold_nothing_up(bench: Bench) -> None:
    """Also those in a session of their own; all of them end with their worker."""
    marker = f"pop-stray-{os.getpid()}"
    body = (
        "import subprocess, sys\n    code = 'import time; time.sleep(99)'\n    for new in (True, False):\n"
        f"        subprocess.Popen([sys.executable, '-c', code, '{marker}'], start_new_session=new)\n    return 1"
    )
    attempt = bench.attempt("t", body)

    async def work() -> Result:
        result: Result = await bench.executor.run(attempt)
        give_up = time.monotonic() + 10
        while time.monotonic() < give_up and strays(marker):
            await asyncio.sleep(0.1)
        return result

    result = drive(bench, work)
    assert result.code == 0 and result.seconds < 10 and not strays(marker)


def strays(marker: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if marker in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_dead_fork_server_is_replaced(bench: Bench) -> None:
    """What it ran is lost, which uses up no attempt; the next attempt runs on a new one."""
    sleeper = bench.attempt("sleeper", "import time; time.sleep(60)")
    after = bench.attempt("after", "return 2")

    async def work() -> tuple[Result, Result]:
        running = asyncio.create_task(bench.executor.run(sleeper))
        await asyncio.sleep(2.5)
        os.kill(bench.executor.pid, signal.SIGKILL)
        lost = await running
        await asyncio.sleep(1.5)
        return lost, await bench.executor.run(after)

    lost, done = drive(bench, work)
    assert lost.how == "lost" and (done.how, done.code) == ("exited", 0)


def test_a_worker_cannot_write_core_dumps_or_read_the_daemons_input(bench: Bench) -> None:
    """Its standard input is empty and its environment an allow-list."""
    assert SECRET in os.environ
    asked = f"[sys.stdin.read(), '{SECRET}' in os.environ, resource.getrlimit(resource.RLIMIT_CORE)[0]]"
    _, folder = run(bench, f"import os, sys, resource; return {asked}")
    assert json.loads((folder / "output.json").read_bytes()) == ["", False, 0]


def test_a_second_worker_for_a_held_step_is_lost_and_does_nothing(bench: Bench) -> None:
    """While an orphan of another daemon holds the step's folder, nobody else works in it; afterwards somebody may."""
    attempt, after = bench.attempt("t", "return 1"), bench.attempt("t2", "return 2")
    holder = os.open(attempt.step_dir, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    later = replace(after, step_dir=attempt.step_dir)

    async def work() -> tuple[Result, Result]:
        lost = await bench.executor.run(attempt)
        os.close(holder)
        return lost, await bench.executor.run(later)

    lost, done = drive(bench, work)
    assert lost.how == "lost" and os.listdir(attempt.attempt_dir) == []
    assert (done.how, done.code) == ("exited", 0)


def test_two_workers_of_one_step_never_meet(bench: Bench) -> None:
    """The lock is a worker's as long as it lives, also for a worker of the same daemon."""
    body = (
        "import time, os; path = ctx.letter.run_dir + '/log'\n    open(path, 'a').write('+')\n    time.sleep(0.7)\n"
        "    open(path, 'a').write('-')\n    return 1"
    )
    one, other = bench.attempt("one", body), bench.attempt("other", body)
    other = replace(other, step_dir=one.step_dir)

    async def work() -> list[Result]:
        return list(await asyncio.gather(bench.executor.run(one), bench.executor.run(other)))

    assert [result.how for result in drive(bench, work)] == ["exited", "exited"]
    assert (bench.root.path / "log").read_text() == "+-+-"


def test_an_open_model_call_is_no_stall(bench: Bench) -> None:
    """A worker that waits for the gateway shows no sign of life for long, and is not ended for it."""
    attempt = bench.attempt("t", "return ctx.model()('well?').text", stall_s=2.0)
    address = str(bench.root.path / "g.sock")
    letter = Letter.model_validate_json(Path(attempt.letter_path).read_bytes())
    Path(attempt.letter_path).write_text(letter.model_copy(update={"gateway": address}).model_dump_json())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = json.loads(await reader.readline())
        await asyncio.sleep(5.0)
        answer = Answer(text="well", model="m", provider="p", provider_model="m", key="k")
        writer.write(json.dumps({"id": asked["id"], "answer": answer.model_dump(mode="json")}).encode() + b"\n")

    async def work() -> Result:
        async with await asyncio.start_unix_server(answer, address):
            result: Result = await bench.executor.run(attempt)
            return result

    result = drive(bench, work)
    assert (result.how, result.code) == ("exited", 0) and result.seconds > 4.5


class Lines:
    """Stands for the gateway: says how long an attempt has waited, by the seconds since it was first asked."""

    def __init__(self, bench: Bench, says: Callable[[float], Any]) -> None:
        self.address = str(bench.root.path / "w.sock")
        self.says = says
        self.asked: list[dict[str, Any]] = []
        self.began = 0.0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = json.loads(await reader.readline())
        self.asked.append(line)
        self.began = self.began or time.monotonic()
        said = self.says(time.monotonic() - self.began)
        if said == "nothing":
            await reader.read()  # until the other side gives up
        elif said != "gone":
            writer.write(
                said if isinstance(said, bytes) else json.dumps({"id": line["id"], "waited": said}).encode() + b"\n"
            )
        writer.close()

    def run(self, bench: Bench, attempt: Attempt) -> Result:
        async def work() -> Result:
            async with await asyncio.start_unix_server(self.answer, self.address):
                result: Result = await bench.executor.run(replace(attempt, gateway=self.address))
                return result

        result: Result = drive(bench, work)
        return result


def waited(seconds: float, *, waiting: bool = False, since_s: float | None = None) -> dict[str, Any]:
    return {"seconds": seconds, "waiting": waiting, "since_s": since_s}


def test_waiting_for_a_permit_does_not_count_against_the_timeout(bench: Bench) -> None:
    """The attempt gets what it waited on top, and not more."""
    gateway = Lines(bench, lambda _: waited(1.5, since_s=0.3))
    result = gateway.run(bench, bench.attempt("t", "import time; time.sleep(60)", timeout_s=2.0))
    assert result.how == "timeout" and 3.4 < result.seconds < 5.0
    assert [line["waited"] for line in gateway.asked] == [{"run_id": "r", "instance": "t", "attempt": 1}] * 2


def test_whoever_waits_now_is_not_ended(bench: Bench) -> None:
    """However long; asked about once a second, and the work's own time is bounded as before."""
    gateway = Lines(bench, lambda at: waited(min(at, 4.0), waiting=at < 4.0, since_s=max(at - 4.0, 0.0)))
    result = gateway.run(bench, bench.attempt("t", "import time; time.sleep(60)", timeout_s=0.5))
    assert result.how == "timeout" and 4.4 < result.seconds < 6.5 and len(gateway.asked) < 9


def test_work_that_ends_while_the_deadline_is_asked_about_is_done(bench: Bench) -> None:
    """The question ends nothing any more."""
    gateway = Lines(bench, lambda _: "nothing")
    result = gateway.run(bench, bench.attempt("t", "import time; time.sleep(1.5); return 1", timeout_s=0.5))
    assert (result.how, result.code) == ("exited", 0) and len(gateway.asked) == 1


SILENT = ["nothing", "gone", b"rubbish\n", b"[]\n", b"{}\n", b'{"id": 1, "error": {}}\n', {"seconds": -1, "waiting": False},
          {"seconds": "x"}, {"seconds": None, "waiting": 1}, {"seconds": 1e999, "waiting": False}, b"x" * 200_000]  # fmt: skip


@pytest.mark.parametrize("says", SILENT, ids=lambda says: str(says)[:30])
def test_a_gateway_that_says_nothing_sound_changes_nothing(bench: Bench, says: Any) -> None:
    """Within the two seconds of patience; and no attempt waits longer than it lives."""
    gateway = Lines(bench, lambda _: says)
    result = gateway.run(bench, bench.attempt("t", "import time; time.sleep(60)", timeout_s=0.5))
    assert result.how == "timeout" and result.seconds < 4.5


def test_without_a_gateway_at_the_socket_the_deadline_holds(bench: Bench) -> None:
    """It may have died."""
    attempt = replace(bench.attempt("t", "import time; time.sleep(60)", timeout_s=0.5), gateway="/nowhere/g.sock")
    assert drive(bench, lambda: bench.executor.run(attempt)).how == "timeout"


def test_waiting_for_a_permit_is_a_sign_of_life(bench: Bench) -> None:
    """Now, or within the stall time; after that silence is a stall again."""
    gateway = Lines(bench, lambda at: waited(min(at, 3.5), waiting=at < 3.5, since_s=max(at - 3.5, 0.0)))
    result = gateway.run(bench, bench.attempt("t", "import time; time.sleep(60)", stall_s=1.2))
    assert result.how == "stalled" and 5.7 < result.seconds < 10


def test_silence_of_a_worker_that_never_waited_is_a_stall(bench: Bench) -> None:
    """A gateway that knows nothing of it says 0."""
    gateway = Lines(bench, lambda _: waited(0.0, since_s=0.0))
    result = gateway.run(bench, bench.attempt("t", "import time; time.sleep(60)", stall_s=1.2))
    assert result.how == "stalled" and result.seconds < 5


def test_no_question_outlives_the_executor(bench: Bench) -> None:
    """A stop in the middle of one ends it, and the attempt is interrupted."""
    attempt = bench.attempt("t", "import time; time.sleep(60)", timeout_s=0.3)
    gateway = Lines(bench, lambda _: "nothing")

    async def whole() -> tuple[Result, list[str]]:
        await bench.executor.start()
        async with await asyncio.start_unix_server(gateway.answer, gateway.address):
            running = asyncio.create_task(bench.executor.run(replace(attempt, gateway=gateway.address)))
            while not gateway.asked:
                await asyncio.sleep(0.02)
            await bench.executor.stop()
            left = [task.get_name() for task in asyncio.all_tasks() if "_end_or" in repr(task)]
            return await running, left

    result, left = asyncio.run(whole())
    assert result.how == "interrupted" and left == []


def test_a_cancel_while_the_deadline_is_asked_about_is_a_cancel(bench: Bench) -> None:
    """Whoever came first says how it ended."""
    attempt = bench.attempt("t", "import time; time.sleep(60)", timeout_s=0.3)
    gateway = Lines(bench, lambda _: "nothing")

    async def work() -> Result:
        async with await asyncio.start_unix_server(gateway.answer, gateway.address):
            running = asyncio.create_task(bench.executor.run(replace(attempt, gateway=gateway.address)))
            while not gateway.asked:
                await asyncio.sleep(0.02)
            bench.executor.cancel(attempt.attempt_id, "cancelled")
            result: Result = await running
            return result

    assert drive(bench, work).how == "cancelled"
