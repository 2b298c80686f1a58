"""The page of a run with two thousand steps: until it is there, what it weighs, and the report of the same run."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from pop.report import look_of, report
from pop.runs import Run
from pop.settings import Root
from tests.runfolders import begin_run
from tests.webbing import make_root, web_server

Row = tuple[str, str, str]
STEPS = 2_000
TEXT = "A sentence of a prompt, or of an answer, with some length. " * 60


def figures() -> list[Row]:
    """Each attempt has its trail, a prompt, an answer of 3.5 kB, and a call."""
    folder = Path(tempfile.mkdtemp(prefix="pop-bench-run-", dir=os.environ.get("BENCH_DIR")))
    try:
        root = make_root(folder / "root")
        run_dir = _made(root)
        with web_server(root) as server, server.client() as client:
            path = f"/runs/{run_dir.name}"
            client.get("/")
            times = []
            for _ in range(6):
                began = time.perf_counter()
                page = client.get(path)
                times.append(time.perf_counter() - began)
                assert page.status_code == 200
        began = time.perf_counter()
        made = report(root, look_of(Run(run_dir, "complete"), time.time()), now=time.time())
        seconds = time.perf_counter() - began
        return [
            ("run page, 2,000 steps, the first time", f"{times[0] * 1000:.0f} ms", "<= 500 ms"),
            ("run page, 2,000 steps, again", f"{statistics.median(times[1:]) * 1000:.0f} ms", "<= 500 ms"),
            ("its weight", f"{len(page.content) / 1000:.0f} kB", "<= 300 kB"),
            ("report, 2,000 steps", f"{seconds:.1f} s, {len(made.encode()) / 1e6:.2f} MB", "< 2 MB"),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made(root: Root) -> Path:
    run = begin_run(root, [{"each": "seed.parts", "do": "write"}])
    run.tell("each.expanded", key="tasks[0]", count=STEPS)
    for number in range(STEPS):
        run.step(f"write.{number}", {"n": number, "text": TEXT}, prompt=TEXT, answer=TEXT)
    return run.end("run.complete")
