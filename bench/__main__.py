"""`make bench`: the figures POP promises, measured on the real daemon, printed as one table.

The workload is three steps whose task is a one-line ``infer`` in Python; seeds are renamed into pipeline-pending/ and
`pop up --no-web` serves them with every commit fsynced (durability = "safe"). Machines are noisy: compare ratios.

"safe" means: a seed, its pipeline and journal are fsynced before it leaves the queue for good; an output before its
step.done; step.done, record.json and the line of runs.jsonl before the next thing begins. The roots stay until all is
measured, because some file systems are slow to make files where many were just removed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench import gateway, iterate, web, web_run
from tests.fake_openai import FakeOpenAI
from tests.living import LivingRoot, living_root

Row = tuple[str, str, str]
STEP = "def infer(prompt, ctx):\n    return {'n': len(ctx.inputs)}\n"
TASKS = {"one.py": STEP, "two.py": STEP, "three.py": STEP}
PIPELINE = {"name": "bench", "tasks": ["one", "two", "three"]}
WORKERS = 8 * (os.cpu_count() or 2)  # raised as needed: most of the time a worker waits for its commit
ROOTS: list[Path] = []
MANY = 100_000


@contextmanager
def served(**about: Any) -> Iterator[LivingRoot]:
    """A root with a warm daemon on it."""
    folder = Path(tempfile.mkdtemp(prefix="pop-bench-", dir=os.environ.get("BENCH_DIR")))
    ROOTS.append(folder)
    options = {"pipeline": PIPELINE, "tasks": TASKS, "settings": f"[concurrency]\nworkers = {WORKERS}\n", **about}
    prepare, dashboard = options.pop("prepare", None), options.pop("web", False)
    with living_root(folder / "root", **options) as living:
        if prepare:
            prepare(living)
        living.up("--quiet", web=dashboard)
        if options["pipeline"] is PIPELINE:
            living.drop("warm.json", {})
            living.wait(lambda: count(living) >= 1, "the first run", 120)
        yield living


def count(living: LivingRoot) -> int:
    return living.root.ledger.read_bytes().count(b"\n") if living.root.ledger.exists() else 0


def latencies_s(living: LivingRoot, runs: int) -> list[float]:
    """Seconds from the rename into pending to the line in runs.jsonl, one seed at a time."""
    found = []
    for number in range(runs):
        draft = living.path / "draft"
        draft.write_text("{}")
        before, began = count(living), time.perf_counter()
        os.rename(draft, living.root.pending / f"single{number}.json")
        while count(living) <= before:
            time.sleep(0.0005)
        found.append(time.perf_counter() - began)
        time.sleep(0.03)
    return found


def latency() -> list[Row]:
    with served() as living:
        found = sorted(latencies_s(living, 60))
    median, p95 = statistics.median(found) * 1000, found[56] * 1000
    return [("drop to ledger, 3 steps", f"median {median:.1f} ms, p95 {p95:.1f} ms", "median <= 40 ms")]


def burst() -> list[Row]:
    with served() as living:
        seeds = 500
        stage = living.path / "stage"
        stage.mkdir()
        for number in range(seeds):
            (stage / f"{number}.json").write_text("{}")
        done, began = count(living), time.perf_counter()
        for number in range(seeds):
            os.rename(stage / f"{number}.json", living.root.pending / f"{number}.json")
        living.wait(lambda: count(living) >= done + seeds, "the burst", 300)
        rate = 3 * seeds / (time.perf_counter() - began)
    return [("burst of 500 seeds", f"{rate:.0f} steps/s", ">= 300 steps/s")]


def waiting() -> list[Row]:
    """A thousand workers that wait for a model at once."""
    workers = 1000
    fake = FakeOpenAI()
    fake.delay_s = 45.0
    settings = (
        f'[concurrency]\nworkers = {workers}\n[models]\ndefault = "fake"\n[models.fake]\nprovider = "openai"\n'
        f'model = "x"\nbase_url = "{fake.base_url}"\nconcurrency = {workers}\ntimeout_s = 120\n'
    )
    pipeline = {"name": "wait", "tasks": ["list", {"each": "inputs.list", "do": "ask"}]}
    tasks = {"list.py": f"def infer(prompt, ctx):\n    return list(range({workers}))\n", "ask.md": "Say {{ item }}."}
    with served(pipeline=pipeline, tasks=tasks, settings=settings) as living:
        living.drop("a.json", {})
        living.wait(lambda: len(fake.bodies) >= workers, "a thousand calls under way", 120)
        server = next(
            p for p in living.processes() if p.ppid() == living.daemons[0].pid and "forkserver" in str(p.cmdline())
        )
        sizes = [private_mb(child.pid) for child in server.children()]
    fake.close()
    text = f"{len(sizes)} workers, median {statistics.median(sizes):.1f} MB, most {max(sizes):.1f} MB private"
    return [("waiting on a model at once", text, ">= 1000, <= 5 MB each")]


def private_mb(pid: int) -> float:
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in fields if line.startswith("Private_")) / 1024


def idle() -> list[Row]:
    """With the dashboard's port open, to which nobody connects."""
    with served(web=True, settings="[web]\nport = 0\n") as living:
        time.sleep(4)
        processes = [
            living.daemons[0].pid,
            *(c.pid for c in psutil.Process(living.daemons[0].pid).children(recursive=True)),
        ]
        pss = [pss_mb(pid) for pid in processes]
        before = sum(switches(pid) for pid in processes)
        time.sleep(10)
        wakes = (sum(switches(pid) for pid in processes) - before) / 10
    text = f"{sum(pss):.0f} MB in {len(pss)} processes ({', '.join(f'{mb:.0f}' for mb in pss)})"
    return [
        ("idle daemon, memory (PSS)", text, "<= 120 MB"),
        ("idle daemon, wake-ups", f"{wakes:.1f} per s", "the scan: 1/s"),
    ]


def pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def switches(pid: int) -> int:
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def disk() -> list[Row]:
    with served() as living:
        living.drop("big.json", {"text": "x" * 1_000_000})
        living.wait(lambda: count(living) >= 2, "the big run")
        run_dir = living.path / living.ledger()[-1]["path"]
        size = sum(path.lstat().st_blocks * 512 for path in run_dir.rglob("*"))
    return [("disk of a run with a 1 MB seed", f"{size / 1e6:.2f} MB", "<= 3 MB")]


def crowded() -> list[Row]:
    """The same latency with 100,000 finished runs and 100,000 waiting seeds beside it."""
    with served() as living:
        alone = statistics.median(latencies_s(living, 30))
    with served(prepare=crowd) as living:
        among = statistics.median(latencies_s(living, 30))
    text = f"{among * 1000:.1f} ms against {alone * 1000:.1f} ms alone: x {among / alone:.2f}"
    return [(f"run beside {MANY:,} finished and {MANY:,} waiting", text, "does not grow")]


def crowd(living: LivingRoot) -> None:
    record = json.dumps({"run_id": "20200101-000000-old-%06d", "state": "complete"})
    with open(living.root.ledger, "w") as ledger:
        for number in range(MANY):
            (living.root.complete / f"20200101-000000-old-{number:06d}").mkdir()
            ledger.write(record % number + "\n")
            seed = living.root.pending / f"later{number}.json"
            seed.write_text('{"data": {}, "not_before": "2999-01-01T00:00:00Z"}')
    os.sync()  # what is measured is the daemon beside them, not the disk that still writes them down


BENCHES: dict[str, Callable[[], list[Row]]] = {
    "latency": latency, "burst": burst, "waiting": waiting, "idle": idle, "disk": disk, "crowded": crowded,
    "gateway": gateway.figures, "iterate": iterate.figures, "web": web.figures, "web_run": web_run.figures,
}  # fmt: skip


def main() -> None:
    """All of them, or those named: ``python -m bench latency burst``."""
    chosen = sys.argv[1:] or list(BENCHES)
    if unknown := [name for name in chosen if name not in BENCHES]:
        sys.exit(f"no bench is called {', '.join(unknown)}; there are: {', '.join(BENCHES)}")
    print(f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}")
    print("durability = safe: seed, output, journal, record and ledger are fsynced, each before the next depends on it")
    rows: list[Row] = []
    try:
        for name in chosen:
            print(f"... {name}", file=sys.stderr, flush=True)
            rows += BENCHES[name]()
    finally:
        for folder in ROOTS:
            shutil.rmtree(folder, ignore_errors=True)
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
