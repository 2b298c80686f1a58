"""The notifier process as the supervisor sees it: started where pop.toml has a ``[notify.NAME]``, told which runs came to rest."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress

import structlog

from pop.errorlogs import open_error_log
from pop.executors.local import worker_environment
from pop.executors.process import MARK
from pop.outbox import Outbox
from pop.settings import Root, Settings

log = structlog.get_logger()

RESTART_S, LONGEST_S = 1.0, 60.0  # between two starts: doubled as long as it does not live
ENDING_S = 10.0  # it gives what it is telling five


class NotifierProcess:
    """Nothing here waits: a hint that does not fit into the pipe becomes "look at all" with the next one."""

    def __init__(self, root: Root, settings: Settings) -> None:
        self._root = root
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._opened = False
        self._started_at = 0.0
        self._restart_s = RESTART_S
        self._missed = False
        self._again: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, if anybody is to be told; trouble with it is no trouble of the daemon."""
        if not self._settings.notify:
            return
        try:
            self._start()
        except (OSError, sqlite3.Error) as error:
            log.error("notifier.not_started", error=str(error))

    def _start(self) -> None:
        self._started_at = time.monotonic()
        if not self._opened:
            Outbox(self._root).close()  # from here on everything is told, however late the process comes
            self._opened = True
        environment = worker_environment(self._root, self._settings)
        environment.pop(MARK)  # it would be ended as a worker's orphan before it has said its last words
        for hook in self._settings.notify.values():
            for name in (hook.secret_env, *hook.env):
                if name and name in os.environ:
                    environment[name] = os.environ[name]
        command = [sys.executable, "-P", "-m", "pop.notifier", "--root", str(self._root.path)]
        with open_error_log(self._root.machine_room, "notifier") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=self._root.path,
                env=environment,
                start_new_session=True,
            )
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)

    def hint(self, run_id: str) -> None:
        """Something happened in a run that persons may want to know."""
        if not self._settings.notify:
            return
        if self._process is None or self._process.poll() is not None:
            self._restart()  # it looks at all runs when it starts
            return
        assert self._process.stdin
        line = "*" if self._missed else run_id
        try:
            os.write(self._process.stdin.fileno(), f"{line}\n".encode())
            self._missed = False
        except OSError:  # full, or it has just died
            self._missed = True

    def watch(self) -> None:
        """Start it again where it died: it may have had something to tell still."""
        if self._settings.notify and (self._process is None or self._process.poll() is not None):
            self._restart()

    def _restart(self) -> None:
        lived = time.monotonic() - self._started_at
        if lived < self._restart_s:
            self._missed = True
            if self._again is None:  # or nobody would be told before the next hint
                self._again = asyncio.get_running_loop().call_later(RESTART_S, self._try_again)
            return
        self._restart_s = RESTART_S if lived > 2 * LONGEST_S else min(2 * self._restart_s, LONGEST_S)
        code = self._process.returncode if self._process else None
        log.error("notifier.died", code=code, hint="its last words: .pop/log/notifier.err")
        self.start()

    def _try_again(self) -> None:
        self._again = None
        self.hint("*")

    def stop(self) -> None:
        """Let it end; what was not told is told after the next start."""
        if self._again:
            self._again.cancel()
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
