"""Load on a gateway: the real process, asked over its socket by processes that speak its JSON lines."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from bench.zero import zero_server
from pop.gatekeeper import socket_path
from pop.models.request import Message, ModelRequest, Origin
from pop.settings import Root

PROMPT = "Say something about this. " * 20
LOADERS = 4
REQUEST = ModelRequest(model="zero", messages=[Message(role="user", content=PROMPT)])
SETTINGS = """
[models]
default = "zero"
[models.zero]
provider = "openai"
model = "zero"
base_url = "{base_url}"
concurrency = 4000
timeout_s = 120
price = {{ input = 1.0, output = 2.0 }}
[gateway]
processes = {processes}
[daemon]
durability = "{durability}"
"""


@dataclass(frozen=True)
class Load:
    """What some calls took: answered, of how many; seconds from the first to the last; each call's own; whose CPU.

    `cpu_s` is that of what was measured; `loaders_cpu_s` and `server_cpu_s` that of those around it.
    """

    answered: int
    calls: int
    wall_s: float
    latencies_s: list[float]
    cpu_s: float = 0.0
    loaders_cpu_s: float = 0.0
    server_cpu_s: float = 0.0

    @property
    def median_ms(self) -> float:
        return statistics.median(self.latencies_s) * 1000

    @property
    def cpu_ms(self) -> float:
        return self.cpu_s / self.calls * 1000


class _Asker(asyncio.Protocol):
    """One worker's connection: a question at a time until there are none left. `left` is shared by its process."""

    def __init__(self, run_id: str, left: Iterator[int], latencies_s: list[float], done: asyncio.Event) -> None:
        request = REQUEST.model_dump_json(by_alias=True)
        origin = Origin(run_id=run_id, instance="ask", generation=1, attempt=1, step="ask", pipeline="bench")
        about = origin.model_dump_json().replace('"n":0', '"n":@')  # as one worker that asks again and again
        line = f'{{"id":1,"request":{request},"origin":{about}}}\n'.encode()
        self._before, self._after = line.split(b"@")
        self._left, self._latencies_s, self._done = left, latencies_s, done
        self._inbox = bytearray()
        self.answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        number = next(self._left, None)
        if number is None:
            self._done.set()
            return
        self._began = time.perf_counter()
        self._transport.write(b"%b%d%b" % (self._before, number, self._after))

    def data_received(self, data: bytes) -> None:
        self._inbox += data
        if data.endswith(b"\n"):
            self._latencies_s.append(time.perf_counter() - self._began)
            self.answered += b'"answer":' in self._inbox
            self._inbox.clear()
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._done.set()


def _ready(_: int) -> None:
    """Makes a process import this module before anything is measured."""
    time.sleep(0.05)


def _load(address: str, run_id: str, calls: int, connections: int) -> Load:
    """One process of the load."""
    return asyncio.run(_ask_gateway(address, run_id, calls, connections))


async def _ask_gateway(address: str, run_id: str, calls: int, connections: int) -> Load:
    loop = asyncio.get_running_loop()
    latencies_s, left = list[float](), iter(range(calls))
    ends = [asyncio.Event() for _ in range(connections)]
    began = time.perf_counter()
    askers = [
        (await loop.create_unix_connection(lambda end=end: _Asker(run_id, left, latencies_s, end), address))[1]  # type: ignore[misc]
        for end in ends
    ]
    before = cpu_s()
    for end in ends:
        await end.wait()
    wall_s, used_s = time.perf_counter() - began, cpu_s() - before
    return Load(sum(asker.answered for asker in askers), calls, wall_s, latencies_s, loaders_cpu_s=used_s)


class Gateway:
    """The process, started as pop/gatekeeper.py does."""

    def __init__(self, base_url: str, *, processes: int = 0, durability: str = "safe") -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pop-bench-", dir=os.environ.get("BENCH_DIR")))
        self.root = Root(self._folder)
        (self.root.machine_room / "log").mkdir(parents=True)
        self.root.complete.mkdir()
        settings = SETTINGS.format(base_url=base_url, processes=processes, durability=durability)
        self.root.settings_file.write_text(settings)
        self._address = str(socket_path(self.root))
        self._runs = 0
        self._log = open(self.root.machine_room / "log" / "gateway.err", "wb")
        command = [sys.executable, "-P", "-m", "pop.models.gateway", "--root", str(self._folder)]
        self._process = subprocess.Popen(
            [*command, "--socket", self._address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._folder,
            start_new_session=True,
        )
        assert self._process.stdout
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError((self.root.machine_room / "log" / "gateway.err").read_text())

    def ask(self, calls: int, in_flight: int) -> Load:
        """So many calls by several processes; `cpu_s` is the gateway's and its callers'.

        Raises:
            RuntimeError: Not every call was answered.
        """
        loaders = min(LOADERS, in_flight)
        self._runs += 1
        with ProcessPoolExecutor(loaders, mp_context=get_context("spawn")) as pool:
            list(pool.map(_ready, range(loaders * 4)))
            before, before_server = self.cpu_s(), _server_cpu_s()
            parts = [
                pool.submit(_load, self._address, f"r{self._runs}-{n}", calls // loaders, in_flight // loaders)
                for n in range(loaders)
            ]
            found = [part.result() for part in parts]
            cpu_s, server_cpu_s = self.cpu_s() - before, _server_cpu_s() - before_server
        load = Load(
            answered=sum(load.answered for load in found),
            calls=calls // loaders * loaders,
            wall_s=max(load.wall_s for load in found),
            latencies_s=[second for load in found for second in load.latencies_s],
            cpu_s=cpu_s,
            loaders_cpu_s=sum(load.loaders_cpu_s for load in found),
            server_cpu_s=server_cpu_s,
        )
        if load.answered != load.calls:
            raise RuntimeError(f"{load.answered} of {load.calls} calls were answered")
        return load

    def _all(self) -> list[psutil.Process]:
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._all())

    def own_cpu_s(self) -> float:
        """Without its callers."""
        return sum(psutil.Process(self._process.pid).cpu_times()[:2])

    def rss_mb(self) -> float:
        return sum(process.memory_info().rss for process in self._all()) / 2**20

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()
        self._log.close()
        Path(self._address).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _server_cpu_s() -> float:
    """Of the servers that this process has started."""
    found = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "bench.zero" in process.cmdline():
                found += sum(process.cpu_times()[:2])
    return found


@contextmanager
def gateway(*, latency_ms: float = 0.0, servers: int = 2, **about: Any) -> Iterator[tuple[str, Gateway]]:
    """A warm gateway before a server of its own. Yields: The server's base_url, and the gateway."""
    with zero_server(latency_ms=latency_ms, processes=servers) as base_url:
        living = Gateway(base_url, **about)
        try:
            living.ask(200 if latency_ms < 1000 else 4, 4)
            yield base_url, living
        finally:
            living.close()


def cpu_s() -> float:
    """Of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
