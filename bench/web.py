"""The dashboard: a page of a hundred thousand runs, the index from nothing, memory, a hundred open pages, page weight."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil

from pop.runindex import RunIndex
from pop.settings import Root
from tests.webbing import Server, make_root, put_status, record, web_server

Row = tuple[str, str, str]
MANY = 100_000
PAGES = 100
CHANGES_PER_S = 200
LIVE_RUNS = 200
MEASURED_S = 20.0


def figures() -> list[Row]:
    """All of it, on one root."""
    folder = Path(tempfile.mkdtemp(prefix="pop-bench-web-", dir=os.environ.get("BENCH_DIR")))
    try:
        root = make_root(folder / "root")
        with open(root.ledger, "w") as file:
            file.writelines(json.dumps(_row(number)) + "\n" for number in range(MANY))
        rows = _rebuild(root)
        with web_server(root) as server:
            rows += _first_bytes(server)
            rows += _weight(server)
            rows += _crowd(server)
            rows.append(_memory(server))
        return rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _row(number: int) -> dict[str, object]:
    words = ("minutes", "brief", "claims", "letter", "summary")
    outputs = {step: "c" * 64 for step in ("collect", "condense.0", "condense.1", "publish")}
    identity = f"20260101-{number // 3600 % 24:02d}{number // 60 % 60:02d}{number % 60:02d}-run-{number:05x}"
    about = {"run_id": identity, "path": f"pipeline-complete/{identity}", "name": f"{words[number % 5]} {number}"}
    return record(number, **about, outputs=outputs, seed_sha256="a" * 64, pipeline_sha256="b" * 64)


def _rebuild(root: Root) -> list[Row]:
    began = time.perf_counter()
    index = RunIndex(root)
    index.refresh()
    while index.behind_bytes:
        index.refresh()
    took = time.perf_counter() - began
    assert index.counts()["complete"] == MANY
    index.close()
    return [(f"index of {MANY:,} runs from nothing", f"{took:.1f} s", "<= 30 s")]


def _first_bytes(server: Server) -> list[Row]:
    rows = []
    paths = {"board": "/", "last page": "/?state=complete&page=99999", "search": "/?q=minutes+99"}
    with server.client() as client:
        for name, path in paths.items():
            found = sorted(_first_byte_s(client, path) for _ in range(40))
            text = f"median {1000 * statistics.median(found):.0f} ms, p95 {1000 * found[37]:.0f} ms"
            rows.append((f"{name} with {MANY:,} runs, first byte", text, "<= 100 ms"))
            time.sleep(0.5)
    return rows


def _first_byte_s(client: httpx2.Client, path: str) -> float:
    began = time.perf_counter()
    with client.stream("GET", path) as response:
        next(response.iter_raw())
        return time.perf_counter() - began


def _weight(server: Server) -> list[Row]:
    """What a first visit loads: the page, and all it names."""
    with server.client() as client:
        html = client.get("/").text
        names = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', html))
        total = len(html.encode()) + sum(len(client.get(name).content) for name in names)
    return [("board, page weight", f"{total / 1000:.0f} kB in {1 + len(names)} files", "<= 300 kB")]


def _crowd(server: Server) -> list[Row]:
    """A hundred open pages, alike and each with a search of its own, while runs change."""
    for number in range(LIVE_RUNS):
        put_status(server.root, MANY + number)
    rows = []
    for name, path in (("alike", "/live/board"), ("all different", "/live/board?state=active&q=1000{:02d}")):
        with _readers(server, path) as got, _changes(server.root):
            time.sleep(3.0)
            process = psutil.Process(server.process.pid)
            before, events = sum(process.cpu_times()[:2]), sum(got)
            time.sleep(MEASURED_S)
            cores = (sum(process.cpu_times()[:2]) - before) / MEASURED_S
            each = (sum(got) - events) / MEASURED_S / PAGES
        title = f"{PAGES} open pages ({name}), {CHANGES_PER_S} changes/s"
        rows.append((title, f"{cores:.2f} cores, {each:.1f} updates/s each", "<= 0.5 cores"))
    return rows


@contextlib.contextmanager
def _readers(server: Server, path: str) -> Iterator[list[int]]:
    """Browsers that read events, counted."""
    got, over = [0] * PAGES, threading.Event()

    def read(number: int) -> None:
        with (
            contextlib.suppress(httpx2.HTTPError, OSError),
            server.client() as client,
            client.stream("GET", path.format(number), timeout=30) as response,
        ):
            for line in response.iter_lines():
                got[number] += line.startswith("event: fragments")
                if over.is_set():
                    return

    threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(PAGES)]
    for thread in threads:
        thread.start()
    try:
        yield got
    finally:
        over.set()
        for thread in threads:
            thread.join(5)


@contextlib.contextmanager
def _changes(root: Root) -> Iterator[None]:
    """Statuses of live runs, written as the daemon does."""
    over, rng = threading.Event(), random.Random(1)

    def write() -> None:
        due = time.monotonic()
        while not over.is_set():
            put_status(root, MANY + rng.randrange(LIVE_RUNS), progress=round(rng.random(), 3))
            due += 1 / CHANGES_PER_S
            over.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _memory(server: Server) -> Row:
    used = psutil.Process(server.process.pid).memory_info().rss / 2**20
    return (f"web process with {MANY:,} runs, memory (RSS)", f"{used:.0f} MB", "<= 200 MB")
