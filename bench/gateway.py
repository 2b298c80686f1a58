"""The gateway's figures: the real process, asked over its socket by processes that speak its JSON lines.

    python -m bench gateway                BENCH_QUICK=1: a tenth of the calls and answers

What a call costs is told in CPU of the gateway (its callers with it), because machines are noisy; what is compared was measured
in one run on the same server, one after the other, several times round. With two callers the gateway took 35 % of the CPU of
a run, they 56 %, the server 7 % and the loaders 2 %: what is around it is not the limit. litellm is asked by the interpreter
that BENCH_LITELLM_PYTHON names, or this one when it can import it; POP does not need it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import openai
import orjson
import psutil

from bench.zero import zero_server
from pop.gatekeeper import socket_path
from pop.models.answers import AnswerStore
from pop.models.request import Answer, Message, ModelRequest, Origin, answer_key, request_hash
from pop.settings import Root

Row = tuple[str, str, str]
SHARE = 10 if os.environ.get("BENCH_QUICK") else 1
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


# -- who asks the gateway ------------------------------------------------------------------------------------------


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
    before = _cpu_s()
    for end in ends:
        await end.wait()
    wall_s, used_s = time.perf_counter() - began, _cpu_s() - before
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


# -- what it is compared with --------------------------------------------------------------------------------------


def sdk_loop(base_url: str, calls: int, in_flight: int) -> Load:
    """The openai SDK as its manual says, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_sdk, base_url, calls, in_flight).result()


def _sdk(base_url: str, calls: int, in_flight: int) -> Load:
    return asyncio.run(_ask_sdk(base_url, calls, in_flight))


async def _ask_sdk(base_url: str, calls: int, in_flight: int) -> Load:
    client = openai.AsyncOpenAI(api_key="k", base_url=base_url, max_retries=0)
    latencies_s, left = list[float](), iter(range(calls))

    async def one() -> None:
        began = time.perf_counter()
        await client.chat.completions.create(model="zero", messages=[{"role": "user", "content": PROMPT}])
        latencies_s.append(time.perf_counter() - began)

    async def several() -> None:
        for _ in left:
            await one()

    for _ in range(20):
        await one()
    latencies_s.clear()
    before, began = _cpu_s(), time.perf_counter()
    await asyncio.gather(*(several() for _ in range(in_flight)))
    return Load(len(latencies_s), calls, time.perf_counter() - began, latencies_s, _cpu_s() - before)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


LITELLM = """
import asyncio, json, resource, sys, time
from importlib.metadata import version
import litellm
base_url, calls, in_flight, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
litellm.suppress_debug_info = True
about = {"model": "openai/zero", "api_base": base_url, "api_key": "k"}
router = litellm.Router(model_list=[{"model_name": "zero", "litellm_params": about}], num_retries=0)

def cpu_s():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

async def main():
    left, found = iter(range(calls)), []
    async def one():
        began = time.perf_counter()
        await router.acompletion(model="zero", messages=[{"role": "user", "content": prompt}])
        found.append(time.perf_counter() - began)
    async def several():
        for _ in left:
            await one()
    for _ in range(20):
        await one()
    found.clear()
    before, began = cpu_s(), time.perf_counter()
    await asyncio.gather(*(several() for _ in range(in_flight)))
    wall_s = time.perf_counter() - began
    about = {"answered": len(found), "calls": calls, "wall_s": wall_s, "latencies_s": found, "cpu_s": cpu_s() - before}
    print("\\n" + json.dumps({"version": version("litellm"), "load": about}))

asyncio.run(main())
"""


def litellm_python() -> str | None:
    """The interpreter that has litellm."""
    named = os.environ.get("BENCH_LITELLM_PYTHON")
    return named or (sys.executable if importlib.util.find_spec("litellm") else None)


def litellm_loop(python: str, base_url: str, calls: int, in_flight: int) -> tuple[str, Load]:
    """litellm's Router, its version and what it took.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    arguments = [python, "-c", LITELLM, base_url, str(calls), str(in_flight), PROMPT]
    environ = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise RuntimeError(f"litellm: {done.stderr[-500:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["version"], Load(**found["load"])


# -- the rows ------------------------------------------------------------------------------------------------------


def rates() -> list[Row]:
    """Calls per second, and the ratios: everybody in turn on one server, three times round; the middle one counts."""
    calls, rounds = 3000 // SHARE, 3
    python, version = litellm_python(), ""
    found: dict[str, list[Load]] = {"gateway": [], "sdk": [], "litellm": []}
    with gateway() as (base_url, living):
        for _ in range(rounds):
            found["gateway"].append(living.ask(calls, 64))
            found["sdk"].append(sdk_loop(base_url, calls, 64))
            if python:
                version, load = litellm_loop(python, base_url, calls, 64)
                found["litellm"].append(load)
    cost = {name: statistics.median(load.cpu_ms for load in loads) for name, loads in found.items() if loads}
    most = max(load.calls / load.wall_s for load in found["gateway"])
    mine = cost["gateway"]
    rows = [
        ("calls per s of gateway CPU, 64 in flight", f"{1000 / mine:.0f} ({mine:.2f} ms each)", ">= 300"),
        ("calls per s through one gateway", f"{most:.0f}", "the machine's load decides"),
        ("CPU per call against the openai SDK", f"x {mine / cost['sdk']:.2f} ({cost['sdk']:.2f} ms)", "-"),
    ]
    name = f"CPU per call against litellm's Router {version}".rstrip()
    text = f"x {mine / cost['litellm']:.2f} ({cost['litellm']:.2f} ms)" if python else "litellm is not installed"
    return [*rows, (name, text, "-")]


def callers() -> list[Row]:
    """With further processes that speak to providers: what the gateway itself still has to do, and what comes out.

    In turn and back again, because the machine's load drifts; every round is printed.
    """
    rates_of: dict[int, list[float]] = {}
    costs_of: dict[int, list[tuple[float, ...]]] = {}
    for processes in (0, 1, 2, 3, 3, 2, 1, 0):
        with gateway(processes=processes) as (_, living):
            before = living.own_cpu_s()
            load = living.ask(4000 // SHARE, 192)
            own_ms = (living.own_cpu_s() - before) / load.calls * 1000
        rates_of.setdefault(processes, []).append(load.calls / load.wall_s)
        around = ((load.server_cpu_s / load.calls * 1000), (load.loaders_cpu_s / load.calls * 1000))
        costs_of.setdefault(processes, []).append((own_ms, max(0.0, load.cpu_ms - own_ms), *around))
    rows = []
    for processes, found in rates_of.items():
        ms = [statistics.mean(part) for part in zip(*costs_of[processes], strict=True)]
        rounds = " and ".join(f"{rate:.0f}" for rate in found)
        text = (
            f"{rounds} calls/s; CPU {ms[0]:.2f} ms gateway + {ms[1]:.2f} ms callers "
            f"(+ {ms[2]:.2f} ms server, {ms[3]:.2f} ms loaders)"
        )
        aim = ">= 1500 calls/s with several" if processes else "-"
        rows.append((f"[gateway] processes = {processes}, 192 in flight, {os.cpu_count()} cores", text, aim))
    return rows


def at_once() -> list[Row]:
    calls = 2000
    with gateway(latency_ms=5000, servers=1) as (base_url, living):
        load = living.ask(calls, calls)
        seen = orjson.loads(urllib.request.urlopen(base_url.removesuffix("/v1") + "/served").read())
    text = f"{load.answered} answered, {seen['most_at_once']} at once at the server, {load.wall_s:.1f} s"
    return [(f"{calls:,} calls in flight, 5 s each", text, f"all {calls:,} at once")]


def added() -> list[Row]:
    """What the gateway adds to a call: the median beside the bare SDK's, in turn, on one server.

    With durability = "safe" an answer is handed out after its fsyncs, so the disk is part of it; with "fast" it is not.
    """
    rows = []
    for latency_ms, in_flight, durability in ((0, 1, "safe"), (0, 1, "fast"), (100, 16, "safe"), (0, 16, "safe")):
        calls = 200 * in_flight // SHARE
        with gateway(latency_ms=latency_ms, durability=durability) as (base_url, living):
            pairs = [(living.ask(calls, in_flight), sdk_loop(base_url, calls, in_flight)) for _ in range(3)]
        mine = statistics.median(mine.median_ms for mine, _ in pairs)
        bare = statistics.median(bare.median_ms for _, bare in pairs)
        about = "" if latency_ms or in_flight == 1 else " (both saturated)"
        text = f"{mine - bare:+.1f} ms: {mine:.1f} against {bare:.1f}{about}"
        rows.append(
            (f"added latency p50, {in_flight} in flight, server {latency_ms} ms, {durability}", text, "<= 5 ms")
        )
    return rows


def memory() -> list[Row]:
    calls = 100_000 // SHARE
    with gateway() as (_, living):
        living.ask(calls // 10, 64)
        early = living.rss_mb()
        living.ask(calls - calls // 10, 64)
        late = living.rss_mb()
    text = f"{early:.0f} MB after {calls // 10:,}, {late:.0f} MB after {calls:,}: {late - early:+.0f} MB"
    return [(f"memory over {calls:,} calls (RSS)", text, "flat")]


def look_up() -> list[Row]:
    """Answers of distinct step folders, filled in below the store, looked up by `AnswerStore.get` in no order."""
    answers = 1_000_000 // SHARE
    folder = Path(tempfile.mkdtemp(prefix="pop-bench-", dir=os.environ.get("BENCH_DIR")))
    try:
        path = folder / "answers.db"
        AnswerStore(path, calls=folder / "calls").close()
        _fill(path, answers)
        store = AnswerStore(path, calls=folder / "calls")
        took = sorted(_timed(store, _key(random.randrange(answers))) for _ in range(5000))
        store.close()
        size_mb = path.stat().st_size / 2**20
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = f"p50 {took[2500] * 1000:.3f} ms, p99 {took[4950] * 1000:.3f} ms ({size_mb:.0f} MB)"
    return [(f"store look-up among {answers:,} answers", text, "<= 1 ms")]


_ASKED = request_hash(REQUEST)


def _key(number: int) -> str:
    return answer_key(Origin(run_id="r", instance=f"i{number}", generation=1, attempt=1), _ASKED)


def _fill(path: Path, answers: int) -> None:
    answer = Answer(text="All is well. " * 20, model="zero", provider="openai", provider_model="zero")
    data, now = answer.model_dump_json(), time.time()
    columns = "(key, request_sha256, shared_key, stored_at, answer)"
    with sqlite3.connect(path) as connection:
        rows = ((_key(number), _ASKED, _key(number), now, data) for number in range(answers))
        connection.executemany(f"INSERT INTO answers {columns} VALUES (?, ?, ?, ?, ?)", rows)
    connection.close()


def _timed(store: AnswerStore, key: str) -> float:
    began = time.perf_counter()
    found: Any = store.get(key)
    took_s = time.perf_counter() - began
    if found is None:
        raise RuntimeError("an answer is not in the store")
    return took_s


PARTS = {
    "rates": rates, "callers": callers, "at_once": at_once, "added": added, "memory": memory, "look_up": look_up,
}  # fmt: skip


def figures() -> list[Row]:
    """All rows, or those that BENCH_GATEWAY names (``rates,added``)."""
    rows: list[Row] = []
    for name in (os.environ.get("BENCH_GATEWAY") or ",".join(PARTS)).split(","):
        print(f"    {name}", file=sys.stderr, flush=True)
        rows += PARTS[name]()
    return rows
