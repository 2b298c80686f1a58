"""The fork server: imports everything a worker needs once, then forks one process per attempt.

It is single-threaded, holds no keys and no model SDK, and knows nothing of pipelines. Orders come as JSON lines on a
socket whose number is the only argument, reports go back the same way:

    {"op": "start", "id": ..., "letter": path, "attempt_dir": path, "step_dir": path, "memory_mb": n, "output_mb": x,
     "write": [paths a worker may write below] | null, "hide": [paths it may not read]}
    {"op": "kill", "id": ..., "grace_s": x}            TERM now, KILL after the grace
    {"ev": "ready"}   {"ev": "started", "id": ...}
    {"ev": "exit", "id": ..., "code": n | null, "signal": n | null, "flood": bool, "cpu_s": x, "max_rss_kb": n}

Every worker leads a session of its own and adopts its orphans; the fork server adopts the orphans of dead workers. So
a living child that the server did not fork itself belongs to nobody any more, and is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import hashlib
import heapq
import os
import selectors
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pop import worker
from pop.confine import Hiding, enter, landlock_version, prepare
from pop.executors import process
from pop.models.request import Answer, ModelError, ModelRequest, request_hash
from pop.records import FileRef, Letter
from pop.runner import run_attempt

FLOOD_FACTOR = 16
STRAYS_EVERY_S = 0.5
LOCK_PATIENCE_S = 5.0
END_PATIENCE_S = 3.0
WARM_UPS = 20
MB = 2**20


@dataclass
class Child:
    """One living worker."""

    attempt_id: str
    pid: int
    pipe: int
    stdout_path: str
    keep_bytes: int
    seen_bytes: int = 0
    capped: bool = False
    flood: bool = False
    ended: bool = False


class ForkServer:
    """The loop. One thread; every read is of something that is there."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._by_id: dict[str, Child] = {}
        self._kills: list[tuple[float, int]] = []
        self._strays_due: float | None = None
        self._strays_last = 0.0
        self._inbox = b""
        self._hiding = Hiding()

    def serve(self) -> None:
        """Until the supervisor's end of the socket closes."""
        wakeup_read, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._control, selectors.EVENT_READ, "control")
        self._selector.register(wakeup_read, selectors.EVENT_READ, "children")
        self._report({"ev": "ready"})
        while True:
            for key, _ in self._selector.select(self._patience_s()):
                if key.data == "control":
                    if not self._take_orders():
                        return self._end_all()
                elif key.data == "children":
                    with contextlib.suppress(BlockingIOError):
                        os.read(wakeup_read, 65536)
                else:
                    self._drain(key.data)
            self._reap()
            self._kill_overdue()
            self._end_strays()

    def _patience_s(self) -> float | None:
        due = [when for when in (self._kills[0][0] if self._kills else None, self._strays_due) if when is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _take_orders(self) -> bool:
        data = self._control.recv(1 << 20)
        if not data:
            return False
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        for line in lines:
            order = orjson.loads(line)
            if order["op"] == "start":
                self._fork(order)
            elif child := self._by_id.get(order["id"]):
                process.end_group(child.pid, signal.SIGTERM)
                heapq.heappush(self._kills, (time.monotonic() + order["grace_s"], child.pid))
        return True

    def _report(self, report: dict[str, Any]) -> None:
        self._control.sendall(orjson.dumps(report) + b"\n")

    def _fork(self, order: dict[str, Any]) -> None:
        server_pid = os.getpid()
        ours: list[int] = []
        hiding: list[int] = []
        try:
            ours += os.pipe()
            if order["write"]:
                ours.append(prepare(order["write"]))
            if order.get("hide"):
                hiding.append(self._hiding.ruleset(order["hide"]))
            pid = os.fork()
        except OSError as error:
            for fd in ours:
                os.close(fd)
            return self._could_not_start(order, error)
        read_end, write_end, *rulesets = ours
        if pid == 0:
            _become_worker(order, server_pid, write_end, [*rulesets, *hiding])
        for fd in (write_end, *rulesets):
            os.close(fd)
        os.set_blocking(read_end, False)
        path = os.path.join(order["attempt_dir"], "stdout.txt")
        child = Child(order["id"], pid, read_end, path, int(order["output_mb"] * MB))
        self._children[pid] = self._by_id[child.attempt_id] = child
        self._selector.register(read_end, selectors.EVENT_READ, child)
        self._report({"ev": "started", "id": child.attempt_id})

    def _could_not_start(self, order: dict[str, Any], error: OSError) -> None:
        print(f"cannot fork: {error}", file=sys.stderr, flush=True)
        self._report({"ev": "exit", "id": order["id"], "code": None, "signal": None, "lost": True})

    def _drain(self, child: Child) -> None:
        """Keep what a worker prints up to the limit, say so when it is reached, end it when it does not stop."""
        try:
            data = os.read(child.pipe, 65536)
        except BlockingIOError:
            return
        if not data:
            self._close_pipe(child)
            return
        self._keep(child, data)
        if child.seen_bytes > FLOOD_FACTOR * child.keep_bytes and not child.flood:
            child.flood = True
            process.end_group(child.pid, signal.SIGKILL)

    def _keep(self, child: Child, data: bytes) -> None:
        room = child.keep_bytes - child.seen_bytes
        child.seen_bytes += len(data)
        if child.capped:
            return
        if len(data) > room:
            child.capped = True
            data = data[:room] + f"\n[pop: output capped at {child.keep_bytes / MB:g} MB]\n".encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            fd = os.open(child.stdout_path, flags, 0o600)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):  # a task may have put a pipe there
                    os.write(fd, data)
            finally:
                os.close(fd)

    def _close_pipe(self, child: Child) -> None:
        if child.pipe >= 0:
            self._selector.unregister(child.pipe)
            os.close(child.pipe)
            child.pipe = -1

    def _reap(self) -> None:
        """Report ended workers. The group is killed while the dead leader still holds its number."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            child = self._children.pop(info.si_pid, None)
            if child:
                process.end_group(child.pid, signal.SIGKILL)
            _, status, usage = os.wait4(info.si_pid, 0)
            if child:
                self._finish(child, status, usage)
            self._look_for_strays()

    def _finish(self, child: Child, status: int, usage: Any) -> None:
        for _ in range(64):  # what still stands in the pipe; somebody else may hold its other end
            if child.pipe < 0:
                break
            before = child.seen_bytes
            self._drain(child)
            if child.seen_bytes == before:
                break
        self._close_pipe(child)
        del self._by_id[child.attempt_id]
        self._report(
            {
                "ev": "exit",
                "id": child.attempt_id,
                "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
                "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
                "flood": child.flood,
                "cpu_s": round(usage.ru_utime + usage.ru_stime, 6),
                "max_rss_kb": usage.ru_maxrss,
            }
        )

    def _kill_overdue(self) -> None:
        while self._kills and self._kills[0][0] <= time.monotonic():
            _, pid = heapq.heappop(self._kills)
            if pid in self._children:
                process.end_group(pid, signal.SIGKILL)

    def _look_for_strays(self) -> None:
        """A process has ended: its own children are ours soon."""
        if self._strays_due is None:
            self._strays_due = max(time.monotonic() + 0.02, self._strays_last + STRAYS_EVERY_S)

    def _end_strays(self) -> None:
        if self._strays_due is None or time.monotonic() < self._strays_due:
            return
        self._strays_due, self._strays_last = None, time.monotonic()
        for pid in process.children_of(os.getpid()):
            if pid not in self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _end_all(self) -> None:
        """Kill every descendant: the children of the killed become ours, so until there are none."""
        for pid in self._children:
            process.end_group(pid, signal.SIGKILL)
        give_up = time.monotonic() + END_PATIENCE_S
        while time.monotonic() < give_up:
            for pid in process.children_of(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.005)


def _become_worker(order: dict[str, Any], server_pid: int, output: int, rulesets: list[int]) -> None:
    """The child's side of the fork; never returns."""
    code = 70
    try:
        os.setsid()
        process.die_with_parent(server_pid)
        process.adopt_orphans()
        for ruleset in rulesets:
            enter(ruleset)
        _inherit_nothing(output)
        lock = _hold_step(order["step_dir"])
        if lock is None:
            os._exit(75)
        process.limit_memory(order["memory_mb"])
        os.environ["POP_ATTEMPT"] = order["id"]
        code = worker.main(order["letter"], order["attempt_dir"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        with contextlib.suppress(BaseException):
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _inherit_nothing(output: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def open_streams() -> None:
    """The standard streams as every worker has them; made before the first fork, which spares each worker the pages.

    Only the numbers below them change in a worker. Standard input is empty.
    """
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _hold_step(step_dir: str) -> int | None:
    """A flock on the step's folder: an orphan of a killed daemon never meets a second worker. None when it is held."""
    fd = os.open(step_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    give_up = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() > give_up:
                return None
        time.sleep(0.05)


def warm_up() -> None:
    """Run a task of our own a few times before the first fork.

    The interpreter writes into code that it runs the first times; done here, the pages stay shared with the workers.
    """
    folder = Path(tempfile.mkdtemp(prefix="pop-warm-"))
    try:
        (folder / "pipeline-tasks").mkdir()
        (folder / "pipeline-tasks" / "warm.py").write_text("def infer(prompt, ctx):\n    return ctx.seed\n")
        (folder / "pipeline-tasks" / "talk.md").write_text("---\nsystem: s\n---\n{{ seed | json }}")
        (folder / "pipeline-tasks" / "talk.schema.json").write_text('{"type": "object"}')
        (folder / "seed.json").write_text("{}")
        for number in range(1, WARM_UPS + 1):
            _warm_attempt(folder, number)
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
        sys.path.remove(str(folder / "pipeline-tasks"))
        del sys.modules["pop_task_warm"]


def _warm_attempt(folder: Path, number: int) -> None:
    attempt_dir = folder / str(number)
    attempt_dir.mkdir()
    letter = Letter(
        run_id="warm", run_name="warm", instance="warm", step="warm", task="warm",
        tasks_dir=str(folder / "pipeline-tasks"), run_dir=str(folder), attempt=number, attempt_id=str(number),
        generation=1, seed=FileRef(path="seed.json", sha256=hashlib.sha256(b"{}").hexdigest()), deadline_at=0.0,
        gateway=str(folder / "nobody"),
    )  # fmt: skip
    (folder / "letter.json").write_bytes(letter.model_dump_json().encode())
    worker.main(str(folder / "letter.json"), str(attempt_dir))
    talk_dir = folder / f"talk-{number}"
    talk_dir.mkdir()
    run_attempt(letter.model_copy(update={"task": "talk"}), talk_dir, _Echo())


class _Echo:
    """Answers without a gateway, for the warm-up alone; the request and the answer go through their wire forms."""

    def ask(self, request: ModelRequest) -> Answer:
        request_hash(request)
        answer = Answer(text='{"n": 1}', model="warm", provider="warm", provider_model="warm", key="warm")
        return Answer.model_validate(orjson.loads(answer.model_dump_json()))

    def ask_many(self, requests: Sequence[ModelRequest], **_: object) -> list[Answer | ModelError]:
        return [self.ask(request) for request in requests]


def main() -> None:
    """Entry point; the supervisor starts it with the socket's number."""
    control = socket.socket(fileno=int(sys.argv[1]))
    process.die_with_parent(int(sys.argv[2]))
    process.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.dont_write_bytecode = True
    os.umask(0o077)
    open_streams()
    if landlock_version():
        os.close(prepare([tempfile.gettempdir()]))
    warm_up()
    gc.collect()
    gc.freeze()
    ForkServer(control).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
