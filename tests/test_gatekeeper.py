"""The gateway's process as the daemon sees it: started, noticed when it ends, started again, gone with the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from pop.gatekeeper import MAX_SOCKET_PATH_BYTES, GatewayProcess, socket_path
from pop.settings import Root, Settings


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path)
    (root.machine_room / "log").mkdir(parents=True)
    return root


async def until(condition: Callable[[], Any], patience_s: float = 15.0) -> None:
    give_up = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


def answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(address)
        except OSError:
            return False
        return True


def drive(root: Root, work: Callable[[GatewayProcess], Coroutine[Any, Any, None]]) -> GatewayProcess:
    gateway = GatewayProcess(root, Settings())

    async def whole() -> None:
        gateway.start(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(work(gateway), 30)
        finally:
            gateway.stop()

    asyncio.run(whole())
    return gateway


def test_it_listens_and_ends_with_stop(root: Root) -> None:
    """At an address only we can reach; nothing of it is left."""
    pids: list[int] = []

    async def work(gateway: GatewayProcess) -> None:
        await until(lambda: answers(gateway.address))
        assert gateway.pid
        pids.append(gateway.pid)
        assert stat.S_IMODE(os.stat(gateway.address).st_mode) & 0o077 == 0

    gateway = drive(root, work)
    assert not psutil.pid_exists(pids[0]) and not os.path.exists(gateway.address) and gateway.pid is None


def test_a_killed_one_is_started_again_at_the_same_address(root: Root) -> None:
    """Workers find it where it was."""

    async def work(gateway: GatewayProcess) -> None:
        await until(lambda: answers(gateway.address))
        address, first = gateway.address, gateway.pid
        assert first
        os.kill(first, signal.SIGKILL)
        await until(lambda: gateway.pid not in (None, first))
        await until(lambda: answers(address))

    drive(root, work)


def test_it_ends_when_its_daemon_does(root: Root) -> None:
    """Its standard input closes, however the daemon ended; a Ctrl-C of the terminal is not for it."""

    async def work(gateway: GatewayProcess) -> None:
        await until(lambda: answers(gateway.address))
        process = gateway._process
        assert process and process.stdin
        os.kill(process.pid, signal.SIGINT)
        await asyncio.sleep(0.3)
        assert process.poll() is None
        gateway._stopping = True
        process.stdin.close()
        await until(lambda: process.poll() is not None)

    drive(root, work)


def test_a_root_with_a_long_path_has_its_socket_elsewhere(tmp_path: Path) -> None:
    """In a private folder, the same one each time, and within what the kernel takes."""
    short, deep = Root(Path("/r")), Root(tmp_path / ("x" * 120))
    assert socket_path(short) == short.machine_room / "gateway.sock"
    path = socket_path(deep)
    assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES and path == socket_path(deep)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert socket_path(Root(tmp_path / ("y" * 120))) != path
    path.parent.rmdir()
    (path.parent).mkdir(mode=0o777)
    path.parent.chmod(0o777)  # somebody was there before: not trusted
    other = socket_path(deep)
    assert other.parent != path.parent and stat.S_IMODE(other.parent.stat().st_mode) == 0o700
    other.parent.rmdir()
    path.parent.rmdir()
