"""Holds the dashboard's port and starts its process when somebody connects: until then it costs a socket.

| what happens                          | what is done                                                           |
|---------------------------------------|------------------------------------------------------------------------|
| the port is taken, or cannot be had   | it is said, and the daemon goes on without                             |
| somebody connects                     | the web process starts; it accepts what waits at the door              |
| it ends (idle, crashed, killed)       | the next connection starts another one; after two quick deaths, after a pause |
| the daemon ends                       | so does it, at once                                                    |
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import structlog

from pop.errorlogs import open_error_log
from pop.settings import Root, Settings
from pop.store import lock_holder

log = structlog.get_logger()

ALLOWED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "USER", "LOGNAME")  # and so no keys
QUICK_S = 5.0
PAUSE_S = 2.0
PATIENCE_S = 3.0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: The port is taken, or the address is none of this machine's.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(256)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def address_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listening.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/"


def address_told(root: Root) -> str | None:
    """Where the dashboard of the daemon that serves this folder is, as that one tells; None where it has none."""
    told = told_by_daemon(root).get("web")
    return str(told) if told and lock_holder(root.machine_room) else None


def told_by_daemon(root: Root) -> dict[str, Any]:
    """``.pop/daemon.json``, what a daemon tells of itself: its notes, its dashboard. Empty where there is none."""
    with suppress(OSError, ValueError, RecursionError):
        told = json.loads((root.machine_room / "daemon.json").read_bytes())
        return told if isinstance(told, dict) else {}
    return {}


class WebKeeper:
    """The dashboard as the supervisor sees it."""

    def __init__(self, root: Root, settings: Settings) -> None:
        self._root = root
        self._web = settings.web
        self._listening: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started_at = 0.0
        self._quick_deaths = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def address(self) -> str | None:
        """Where it is, without a token; None where there is no dashboard."""
        return address_of(self._listening) if self._listening else None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the port, and wait for somebody to connect."""
        self._loop = loop
        try:
            self._listening = listen(self._web.host, self._web.port)
        except OSError as error:
            where = f"{self._web.host}:{self._web.port}"
            hint = "pop web --port N serves it beside; or another [web] port in pop.toml, or --no-web"
            log.warning("web.not_listening", where=where, error=(error.strerror or str(error)).lower(), hint=hint)
            return
        if not self._web.is_loopback:
            why = "other machines can reach the dashboard, and nothing it sends is encrypted"
            log.warning("web.beyond_loopback", where=self.address, why=why)
        self._wait_for_somebody()

    def _wait_for_somebody(self) -> None:
        if self._loop and self._listening and self._process is None:
            self._loop.add_reader(self._listening.fileno(), self._start)

    def _start(self) -> None:
        assert self._loop and self._listening
        self._loop.remove_reader(self._listening.fileno())
        self._started_at = time.monotonic()
        number = self._listening.fileno()
        command = [sys.executable, "-P", "-m", "pop.web.server", "--root", str(self._root.path), "--fd", str(number)]
        names = [*ALLOWED, *(name for name in os.environ if name.startswith("LC_"))]
        try:
            with open_error_log(self._root.machine_room, "web") as errors:
                self._process = subprocess.Popen(
                    [*command, "--parent", str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=self._root.path,
                    env={name: os.environ[name] for name in names if name in os.environ},
                    pass_fds=(number,),
                    start_new_session=True,
                )
        except OSError as error:  # no process, no file to be had
            log.warning("web.not_started", error=str(error))
            self._loop.call_later(PAUSE_S, self._wait_for_somebody)
            return
        assert self._process.stdout
        os.set_blocking(self._process.stdout.fileno(), False)
        self._loop.add_reader(self._process.stdout.fileno(), self._on_output)
        log.info("web.started", pid=self._process.pid)

    def _on_output(self) -> None:
        """What it prints means nothing; the end of it means its end."""
        process, loop = self._process, self._loop
        assert process and process.stdout and loop
        if process.stdout.read(4096):
            return
        loop.remove_reader(process.stdout.fileno())
        process.stdout.close()
        self._process = None
        code = _buried(process)
        died_quickly = code != 0 and time.monotonic() - self._started_at < QUICK_S
        self._quick_deaths = self._quick_deaths + 1 if died_quickly else 0
        if code == 0:
            log.info("web.rests")
        else:
            log.warning("web.died", code=code, hint="it starts again when somebody connects; see .pop/log/web.err")
        loop.call_later(PAUSE_S if self._quick_deaths > 1 else 0.0, self._wait_for_somebody)

    def stop(self) -> None:
        """End the process, and give the port back."""
        process, self._process = self._process, None
        if self._loop and self._listening:
            self._loop.remove_reader(self._listening.fileno())
        if process and process.stdout and self._loop:
            self._loop.remove_reader(process.stdout.fileno())
            process.stdout.close()
            process.send_signal(signal.SIGTERM)
            _buried(process)
        if self._listening:
            self._listening.close()
            self._listening = None


def _buried(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process that is ending; one that does not is killed."""
    try:
        return process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
