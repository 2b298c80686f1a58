"""Runs attempts on this machine through the fork server, and owns their deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import structlog

from pop.confine import landlock_version
from pop.errorlogs import open_error_log
from pop.errors import ConfigError
from pop.executors import Attempt, How, Result
from pop.executors.process import MARK, adopt_orphans, end_orphans
from pop.models.keysfile import paths_to_hide
from pop.models.questions import ask_gateway
from pop.settings import Root, Settings
from pop.store import NotAFile, open_regular

log = structlog.get_logger()

ALLOWED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "USER", "LOGNAME")
GRACE_S = 2.0
DEAF_S = 8.0
WATCHED = ("trail.jsonl", "calls.jsonl", "log.jsonl", "stdout.txt")


@dataclass
class _Running:
    attempt: Attempt
    ended: asyncio.Future[Result]
    began: float
    timer: asyncio.TimerHandle | None = None
    how: How | None = None
    signs: tuple[tuple[int, int], ...] = ()
    alive_at: float = 0.0
    extended_s: float = 0.0
    questions: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass(frozen=True)
class Waited:
    """How long an attempt has waited for permits of the gateway so far; `since_s`: since it last did (None: never)."""

    seconds: float = 0.0
    waiting: bool = False
    since_s: float | None = None


class LocalExecutor:
    """The supervisor's side of the fork server. All calls come from the event loop's thread."""

    def __init__(self, root: Root, settings: Settings) -> None:
        self._root = root
        self._settings = settings
        self._environment = worker_environment(root, settings)
        self._write = writable(settings)
        self._hide = paths_to_hide(root, settings, self._write)
        self._running: dict[str, _Running] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._inbox = b""
        self._outbox = bytearray()
        self._stopping = False
        self._started_at = 0.0
        self._stall_timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        adopt_orphans()
        self._open()

    @property
    def pid(self) -> int | None:
        return self._server.pid if self._server else None

    def _open(self) -> None:
        """Start the fork server; orders wait in the socket until it is ready."""
        ours, theirs = socket.socketpair()
        self._started_at = time.monotonic()
        with theirs, open_error_log(self._root.machine_room, "forkserver") as errors:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-m", "pop.executors.forkserver", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=self._environment,
                cwd=self._root.path,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.setblocking(False)
        self._socket = ours
        self._inbox = b""
        self._outbox.clear()
        asyncio.get_running_loop().add_reader(ours, self._on_report)

    async def run(self, attempt: Attempt) -> Result:
        loop = asyncio.get_running_loop()
        running = _Running(attempt, loop.create_future(), time.monotonic())
        self._running[attempt.attempt_id] = running
        if self._stall_timer is None:
            self._stall_timer = loop.call_later(1.0, self._end_stalled)
        self._send(
            {
                "op": "start",
                "id": attempt.attempt_id,
                "letter": attempt.letter_path,
                "attempt_dir": attempt.attempt_dir,
                "step_dir": attempt.step_dir,
                "memory_mb": attempt.limits.memory_mb,
                "output_mb": attempt.limits.output_mb,
                "write": [attempt.attempt_dir, *self._write] if self._write else None,
                "hide": self._paths_to_hide(),
            }
        )
        return await running.ended

    def _paths_to_hide(self) -> list[str]:
        """A keys file that was written since the start is hidden too: a gateway that is started again reads it."""
        if self._write and not self._hide:
            with contextlib.suppress(ConfigError):
                self._hide = paths_to_hide(self._root, self._settings, self._write)
        return self._hide

    def cancel(self, attempt_id: str, how: How) -> None:
        running = self._running.get(attempt_id)
        if running is None or running.how is not None:
            return
        running.how = how
        self._send({"op": "kill", "id": attempt_id, "grace_s": GRACE_S})
        asyncio.get_running_loop().call_later(GRACE_S + DEAF_S, self._end_deaf_server, running)

    def _end_deaf_server(self, running: _Running) -> None:
        """The fork server carries out no orders any more (a task may have stopped it): start another."""
        if self._server and running.attempt.attempt_id in self._running:
            log.error("forkserver.deaf", attempt=running.attempt.attempt_id)
            self._server.kill()

    def _send(self, order: dict[str, Any]) -> None:
        if self._socket is None:
            return self._lose(order["id"])
        self._outbox += orjson.dumps(order) + b"\n"
        self._flush()

    def _flush(self) -> None:
        """Send what fits. Blocking here could meet a fork server that blocks on its reports, and neither would go on."""
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        try:
            while self._outbox:
                del self._outbox[: self._socket.send(self._outbox)]
        except BlockingIOError:
            loop.add_writer(self._socket, self._flush)
            return
        except OSError:  # its end is noticed by the reader
            self._outbox.clear()
        loop.remove_writer(self._socket)

    def _lose(self, attempt_id: str) -> None:
        running = self._running.get(attempt_id)
        if running:
            self._end(running, Result(attempt_id, running.how or "lost"))

    def _on_report(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            return self._on_death()
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        for line in lines:
            report = orjson.loads(line)
            running = self._running.get(report.get("id"))
            if running and report["ev"] == "started":
                self._begin(running)
            elif running and report["ev"] == "exit":
                self._end(running, _result(running, report))

    def _begin(self, running: _Running) -> None:
        """The worker's time counts from its fork, not from the order."""
        attempt, loop = running.attempt, asyncio.get_running_loop()
        running.began = time.monotonic()
        running.timer = loop.call_later(attempt.limits.timeout_s, self._due, running)

    def _due(self, running: _Running) -> None:
        """The deadline; what the attempt waited for permits does not count against it."""
        if running.attempt.gateway is None:
            return self.cancel(running.attempt.attempt_id, "timeout")
        self._question(running, self._end_or_extend(running))

    async def _end_or_extend(self, running: _Running) -> None:
        waited = await waited_for_permits(running.attempt)
        if running.how is not None:  # ended meanwhile
            return
        lived_s = time.monotonic() - running.began
        more_s = min(waited.seconds, lived_s) - running.extended_s
        if waited.waiting:
            more_s = max(more_s, 1.0)  # it waits now: look again, but not all the time
        if more_s < 0.01:
            return self.cancel(running.attempt.attempt_id, "timeout")
        running.extended_s += more_s
        due_s = running.attempt.limits.timeout_s + running.extended_s - lived_s
        running.timer = asyncio.get_running_loop().call_later(max(due_s, 0.0), self._due, running)

    def _question(self, running: _Running, question: Coroutine[Any, Any, None]) -> None:
        """Ask the gateway about an attempt; the question ends with the attempt."""
        task = asyncio.create_task(question)
        running.questions.add(task)
        task.add_done_callback(running.questions.discard)

    def _end(self, running: _Running, result: Result) -> None:
        if running.timer:
            running.timer.cancel()
        for question in running.questions:
            question.cancel()
        self._running.pop(running.attempt.attempt_id, None)
        if not running.ended.done():
            running.ended.set_result(result)

    def _on_death(self) -> None:
        """The fork server has gone and its workers with it: end what they left, start another."""
        self._close_socket()
        if self._server:
            self._server.kill()
            self._server.wait()
        end_orphans(self._root.path)
        for running in list(self._running.values()):
            self._end(running, Result(running.attempt.attempt_id, running.how or "lost"))
        if self._stopping:
            return
        lived_s = time.monotonic() - self._started_at
        log.error("forkserver.died", lived_s=round(lived_s, 3))
        asyncio.get_running_loop().call_later(0.0 if lived_s > 2 else 1.0, self._reopen)

    def _reopen(self) -> None:
        if not self._stopping:
            self._open()

    def _close_socket(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            asyncio.get_running_loop().remove_writer(self._socket)
            self._socket.close()
            self._socket = None

    def _end_stalled(self) -> None:
        self._stall_timer = None
        now = time.monotonic()
        for running in [one for one in self._running.values() if one.timer]:  # those that were forked
            signs = signs_of_life(running.attempt)
            if signs != running.signs:
                running.signs, running.alive_at = signs, now
            quiet_s = now - max(running.alive_at, running.began)
            if quiet_s > running.attempt.limits.stall_s and not running.questions and not waits(running.attempt):
                self._question(running, self._end_or_spare(running))
        if self._running:
            self._stall_timer = asyncio.get_running_loop().call_later(1.0, self._end_stalled)

    async def _end_or_spare(self, running: _Running) -> None:
        """Waiting for a permit now, or within the stall time, is a sign of life."""
        waited = await waited_for_permits(running.attempt)
        now = time.monotonic()
        if waited.waiting:
            running.alive_at = now
        elif waited.since_s is not None:
            running.alive_at = max(running.alive_at, now - waited.since_s)
        signs = signs_of_life(running.attempt)
        if now - running.alive_at > running.attempt.limits.stall_s and signs == running.signs:
            self.cancel(running.attempt.attempt_id, "stalled")

    async def stop(self) -> None:
        self._stopping = True
        if self._stall_timer:
            self._stall_timer.cancel()
        self._close_socket()
        if self._server:
            try:
                self._server.wait(5.0)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        end_orphans(self._root.path)  # what left its worker's session outlives the fork server's last look
        questions = [question for running in self._running.values() for question in running.questions]
        for running in list(self._running.values()):
            self._end(running, Result(running.attempt.attempt_id, "interrupted"))
        await asyncio.gather(*questions, return_exceptions=True)


async def waited_for_permits(attempt: Attempt) -> Waited:
    """What the gateway says about an attempt; without a gateway, or a sound answer in time, it has not waited."""
    who = {"run_id": attempt.run_id, "instance": attempt.instance, "attempt": int(Path(attempt.attempt_dir).name)}
    told = await ask_gateway(attempt.gateway, {"waited": who})
    try:
        return _waited(told) if told is not None else Waited()
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
        log.info("gateway.strange", attempt=attempt.attempt_id, error=str(error))
        return Waited()


def _waited(told: dict[str, Any]) -> Waited:
    """Never waited says ``since_s`` null, or 0 with 0 seconds."""
    seconds, waiting, since = float(told["seconds"]), bool(told["waiting"]), told.get("since_s")
    if not seconds >= 0:
        raise ValueError(f"waited {seconds} s")
    since_s = None if since is None or (not since and not seconds) else max(float(since), 0.0)
    return Waited(seconds, waiting, since_s)


def _result(running: _Running, report: dict[str, Any]) -> Result:
    how: How = "exited" if report["code"] is not None else "signalled"
    if report.get("lost") or report["code"] == 75:
        how = "lost"
    elif report.get("flood"):
        how = "flood"
    return Result(
        attempt_id=running.attempt.attempt_id,
        how=running.how or how,
        code=report["code"],
        signal=report["signal"],
        seconds=time.monotonic() - running.began,
        cpu_s=report.get("cpu_s", 0.0),
        max_rss_kb=report.get("max_rss_kb", 0),
    )


def worker_environment(root: Root, settings: Settings) -> dict[str, str]:
    """What a worker may see of the daemon's environment: names on the list, locale, and the mark of its root."""
    names = {*ALLOWED, *settings.worker.env, *(name for name in os.environ if name.startswith("LC_"))}
    found = {name: os.environ[name] for name in names if name in os.environ}
    return {**found, MARK: os.path.realpath(root.path), "PYTHONDONTWRITEBYTECODE": "1"}


def writable(settings: Settings) -> list[str]:
    """Where workers may write besides their attempt's folder; empty when they are not confined."""
    if not settings.worker.confine or not landlock_version():
        return []
    return [tempfile.gettempdir(), "/dev/shm", *(os.path.expanduser(path) for path in settings.worker.write)]


def signs_of_life(attempt: Attempt) -> tuple[tuple[int, int], ...]:
    """Sizes and times of what the attempt writes: while they change, it lives (whatever the clock says)."""
    signs = []
    for name in WATCHED:
        with contextlib.suppress(OSError):
            info = os.lstat(os.path.join(attempt.attempt_dir, name))
            signs.append((info.st_size, info.st_mtime_ns))
    return tuple(signs)


def waits(attempt: Attempt) -> bool:
    """Whether the newest line of the trail says that a model call is open (the gateway bounds it)."""
    try:
        fd = open_regular(os.path.join(attempt.attempt_dir, "trail.jsonl"), max_bytes=1 << 62)
    except (OSError, NotAFile):
        return False
    with os.fdopen(fd, "rb") as file:
        file.seek(max(0, os.fstat(fd).st_size - 8192))
        lines = file.read().splitlines()
    try:
        return bool(lines) and orjson.loads(lines[-1]).get("event") == "call.begin"
    except (ValueError, AttributeError):
        return False
