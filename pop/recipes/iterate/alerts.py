"""Alerts that were told: DIR/alerts.jsonl, one line each, and the command of ``--on-end`` that is run for them.

A line is ``{"at", "run_id", "key", "event", "state", "text", "iteration", "step", "role", "lap", "done", "total",
"problems", "error"}``. A monitor that begins late, or again, tells no alert a second time: its key stands there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import shlex
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from pop.errors import UsageError, safe
from pop.recipes.iterate.snapshots import Alert
from pop.records import objects_in
from pop.store import Disk, NotAFile, mend_tail, read_regular

FILE = "alerts.jsonl"
HOOK_TIMEOUT_S = 60.0
MAX_BYTES = 64 * 2**20


def told(folder: Path, run_id: str) -> list[dict[str, Any]]:
    """The alerts of a run that stand in DIR/alerts.jsonl, oldest first; what cannot be read is left out."""
    try:
        lines = read_regular(folder / FILE, max_bytes=MAX_BYTES).splitlines()
    except (OSError, NotAFile):
        return []
    return [row for row in objects_in(lines) if row.get("run_id") == run_id]


def tell(folder: Path, run_id: str, at: str, alerts: Iterable[Alert]) -> list[Alert]:
    """Write down those alerts that no monitor has told yet, and return them.

    Raises:
        OSError: The file cannot be written.
    """
    given = list(alerts)
    if not given:
        return []
    path = folder / FILE
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        fcntl.flock(fd, fcntl.LOCK_EX)  # of two monitors one tells
        mend_tail(path)
        known = {row.get("key") for row in told(folder, run_id)}
        new = [alert for alert in given if alert.key not in known]
        lines = b"".join(
            orjson.dumps({"at": at, "run_id": run_id, **asdict(alert)}, option=orjson.OPT_APPEND_NEWLINE)
            for alert in new
        )
        if lines:
            Disk(durable=False).append(path, lines, durable=False)
        return new
    finally:
        os.close(fd)


def hook_argv(command: str) -> list[str]:
    """The words of ``--on-end``; no shell reads them.

    Raises:
        UsageError: They are none.
    """
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--on-end cannot be split into words: {error}", hint="quote it as for a shell") from None
    if not argv:
        raise UsageError("--on-end names no command", hint="--on-end 'notify-send POP'")
    return argv


@dataclass(frozen=True)
class _Call:
    alert: Alert
    document: bytes
    env: dict[str, str]


class Hook:
    """Runs a command for alerts, one after the other, in a thread of its own: nothing it does stops the monitor.

    It gets the alert as JSON on stdin, and POP_ITERATE_EVENT, _STATE, _TEXT, _ITERATION, _STEP, _ROLE, _LAP, _RUN and
    _DIR in its environment. It is ended with all its children after `timeout_s`. `say` is given one line for each that
    ended badly.
    """

    def __init__(self, argv: list[str], *, say: Callable[[str], None], timeout_s: float = HOOK_TIMEOUT_S) -> None:
        self.argv, self.timeout_s = argv, timeout_s
        self._say = say
        self._calls: queue.Queue[_Call | None] = queue.Queue()
        self._lock = threading.Lock()
        self._closing = False
        self._running: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._work, name="on-end", daemon=True)
        self._thread.start()

    def call(self, alert: Alert, about: Mapping[str, Any]) -> None:
        """Run it soon. `about`: what the JSON says beside the alert; ``run_id`` and ``dir`` stand in the environment too."""
        document = orjson.dumps({**about, **asdict(alert)}, option=orjson.OPT_APPEND_NEWLINE)
        values = {
            "EVENT": alert.event, "STATE": alert.state, "TEXT": alert.text, "ITERATION": alert.iteration,
            "STEP": alert.step, "ROLE": alert.role, "LAP": alert.lap, "RUN": about.get("run_id"), "DIR": about.get("dir"),
        }  # fmt: skip
        env = {f"POP_ITERATE_{key}": str(value).replace("\0", "") for key, value in values.items() if value is not None}
        self._calls.put(_Call(alert, document, env))

    def close(self, *, at_once: bool = False) -> None:
        """Wait for what is under way, at most `timeout_s`; `at_once` ends it (Ctrl-C)."""
        self._calls.put(None)
        give_up = time.monotonic() + (0.0 if at_once else self.timeout_s + 2.0)
        while self._thread.is_alive() and time.monotonic() < give_up:
            self._thread.join(0.1)
        with self._lock:  # nothing is started behind our back
            self._closing = True
            _kill(self._running)
        left = sum(1 for call in list(self._calls.queue) if call is not None)
        if left:
            self._say(f"--on-end {safe(self.argv[0], 80, one_line=True)}: {left} alert(s) were not told any more")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self._closing:
            problem = self._run(call)
            if problem and not self._closing:
                self._say(f"--on-end {safe(self.argv[0], 80, one_line=True)}: {problem} ({call.alert.event})")

    def _run(self, call: _Call) -> str | None:
        """What went wrong."""
        with self._lock:
            if self._closing:
                return None
            try:
                self._running = process = self._started(call)
            except (OSError, ValueError) as error:
                return f"cannot be started: {getattr(error, 'strerror', None) or error}"
        try:
            process.communicate(call.document, timeout=self.timeout_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            return f"did not end within {self.timeout_s:g} s, and was ended"
        except OSError as error:  # it has closed its stdin; that is its business
            return f"cannot be spoken to: {error.strerror}"
        code = process.returncode
        return f"exit code {code}" if code else None

    def _started(self, call: _Call) -> subprocess.Popen[bytes]:
        nowhere = subprocess.DEVNULL
        env = {**os.environ, **call.env}
        return subprocess.Popen(
            self.argv, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, env=env, start_new_session=True
        )


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    """The whole group of a hook."""
    if process is None or process.poll() is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()
    process.wait()
