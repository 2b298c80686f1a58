"""The web process: a listening socket, uvicorn, and a quick end.

The daemon holds the socket and starts ``python -m pop.web.server --fd N`` when somebody connects; `pop web` serves in
its own process. The server ends by itself when nobody has asked for anything for a while and the daemon can start it anew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pop.executors.process import die_with_parent
from pop.queue import ignore_lease_breaks
from pop.settings import Root, Settings, load_settings
from pop.web.app import create_app

HEAD_S = 10.0  # for the head of a request
KEPT_S = 20  # between two requests
MOST_CONNECTIONS = 1000
GRACE_S = 2
IDLE_S = 900.0


class PatientOnce(H11Protocol):
    """Ends a connection whose request does not come: uvicorn alone waits for ever for the first one."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # a request is there, not just a piece of one
            self._no_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._no_deadline()
            self._deadline = self.loop.call_later(self.timeout_keep_alive + HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_deadline()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _no_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """Ends its event streams first, so that one signal is enough; and returns instead of dying of it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def end(self) -> None:
        self.force_exit = self.should_exit  # the second time
        self.should_exit = True
        app: Any = self.config.app
        app.state.site.live.close()


def serve(
    root: Root, settings: Settings, listening: socket.socket, *, host: str, token: bool, idle_s: float = 0
) -> None:
    """Serve until a signal, or until nobody asked for anything in `idle_s` (0: for ever)."""
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=sys.stderr))
    app = create_app(root, settings, host=host, token=token)
    config = uvicorn.Config(
        app,
        http=PatientOnce,
        ws="none",
        loop="asyncio",
        lifespan="on",
        proxy_headers=False,  # nobody in front of us is trusted with addresses
        server_header=False,
        access_log=False,  # a link holds a token
        log_config=None,
        timeout_keep_alive=KEPT_S,
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=32768,
    )
    asyncio.run(_serve(Server(config), listening, idle_s))


async def _serve(server: Server, listening: socket.socket, idle_s: float) -> None:
    watcher = asyncio.create_task(_end_when_idle(server, idle_s)) if idle_s else None
    await server.serve([listening])
    if watcher:
        watcher.cancel()


async def _end_when_idle(server: Server, idle_s: float) -> None:
    asked, since = -1, time.monotonic()
    while time.monotonic() - since < idle_s:
        await asyncio.sleep(min(idle_s, 10.0))
        state = server.server_state
        if state.total_requests != asked or state.connections:
            asked, since = state.total_requests, time.monotonic()
    server.end()


def main() -> None:
    """The process that the daemon starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args()
    die_with_parent(given.parent)
    os.umask(0o077)
    root = Root(Path(given.root))
    settings = load_settings(root)
    web = settings.web
    listening = socket.socket(fileno=given.fd)
    listening.setblocking(False)
    ignore_lease_breaks()
    serve(root, settings, listening, host=web.host, token=web.token, idle_s=IDLE_S)


if __name__ == "__main__":
    main()
