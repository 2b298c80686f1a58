"""Starts the gateway process, notices its end, starts it again.

The gateway is the only process that inherits the daemon's whole environment, and with it the API keys. It ends when
its standard input closes, so that it never outlives the daemon.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog

from pop.errorlogs import open_error_log
from pop.models.catalogue import describe_default
from pop.models.keys import keys_of
from pop.settings import Root, Settings

log = structlog.get_logger()

MAX_SOCKET_PATH_BYTES = 100  # the kernel takes 107


def socket_path(root: Root) -> Path:
    """Where the gateway listens: in the machine room, or in a private temporary folder when that path is too long."""
    path = root.machine_room / "gateway.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(root.path)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"pop-{os.getuid()}-{name}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        folder = Path(tempfile.mkdtemp(prefix="pop-"))
    return folder / "gateway.sock"


class GatewayProcess:
    """The gateway as the supervisor sees it."""

    def __init__(self, root: Root, settings: Settings) -> None:
        self._root = root
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._started_at = 0.0
        self._socket = socket_path(root)
        self._log_path = root.machine_room / "log" / "gateway.err"
        self._log_from_bytes = 0
        self._lives = 0
        self._is_ready = False  # it has opened its store

    @property
    def address(self) -> str:
        """What a worker connects to."""
        return str(self._socket)

    @property
    def life(self) -> int:
        """Another number as soon as the process, or the store it had, is another one or gone."""
        return self._lives + (self._is_ready and not (self._root.machine_room / "answers.db").exists())

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def notes(self) -> list[str]:
        """Sentences for the status and the start message: which model answers when a task asks for none."""
        return [describe_default(self._settings, keys_of(self._settings))]

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the process and do not wait for it: workers wait at its door."""
        self._loop = loop
        self._lives += 1
        self._started_at = time.monotonic()
        self._socket.unlink(missing_ok=True)
        log_file = open_error_log(self._root.machine_room, "gateway")
        self._log_from_bytes = log_file.tell()
        command = [sys.executable, "-P", "-m", "pop.models.gateway", "--root", str(self._root.path)]
        with log_file:
            self._process = subprocess.Popen(
                [*command, "--socket", str(self._socket)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                cwd=self._root.path,
                start_new_session=True,
            )
        assert self._process.stdout
        os.set_blocking(self._process.stdout.fileno(), False)
        loop.add_reader(self._process.stdout.fileno(), self._on_output)

    def _on_output(self) -> None:
        assert self._process and self._process.stdout and self._loop
        if self._process.stdout.read(4096):
            self._is_ready = True
            return
        self._is_ready = False
        self._loop.remove_reader(self._process.stdout.fileno())
        self._close()
        if self._stopping:
            return
        self._lives += 1
        lived_s = time.monotonic() - self._started_at
        log.error("gateway.died", lived_s=round(lived_s, 3), last_words=self._last_words())
        self._loop.call_later(0.05 if lived_s > 5 else 1.0, self._restart)

    def _last_words(self) -> str:
        """The last line that it left in gateway.err in this life, which holds no key; often that of a traceback."""
        try:
            with open(self._log_path, "rb") as file:
                file.seek(max(self._log_from_bytes, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line[:300] for line in reversed(lines) if line and line[0] not in " {"), "")

    def _restart(self) -> None:
        if self._stopping or not self._loop:
            return
        try:
            self.start(self._loop)
        except OSError as error:  # no process, no file to be had, or .pop/log is gone
            log.error("gateway.not_started", error=str(error))
            self._loop.call_later(1.0, self._restart)

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End the process; calls in flight are given up with it."""
        self._stopping = True
        if self._process and self._process.stdout and self._loop:
            self._loop.remove_reader(self._process.stdout.fileno())
            self._close()
        self._socket.unlink(missing_ok=True)
