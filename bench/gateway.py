"""The gateway's figures.

    python -m bench gateway                BENCH_QUICK=1: a tenth of the calls and answers

What a call costs is told in CPU of the gateway (its callers with it), because machines are noisy; what is compared was measured
in one run on the same server, one after the other, several times round. With two callers the gateway took 35 % of the CPU of
a run, they 56 %, the server 7 % and the loaders 2 %: what is around it is not the limit. litellm is asked by the interpreter
that BENCH_LITELLM_PYTHON names, or this one when it can import it; POP does not need it.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import orjson

from bench.load import REQUEST, Load, gateway
from bench.rivals import litellm_loop, litellm_python, sdk_loop
from pop.models.answers import AnswerStore
from pop.models.request import Answer, Origin, answer_key, request_hash

Row = tuple[str, str, str]
SHARE = 10 if os.environ.get("BENCH_QUICK") else 1


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
