"""The commands against real daemons, and against what people and crashes leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.living import LivingRoot
from tests.test_cli import hello, pop

__all__ = ["hello"]
Make = Callable[..., LivingRoot]
SLOW = "import time\ndef infer(prompt, ctx):\n    time.sleep(60)\n    return {}\n"
QUICK = "def infer(prompt, ctx):\n    return {'n': 1}\n"


def start(living: LivingRoot, *arguments: object) -> subprocess.Popen[str]:
    """`pop` in the background, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pop", *map(str, arguments), "--root", str(living.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def one_step(make_living: Make, code: str, **about: Any) -> LivingRoot:
    return make_living(pipeline={"name": "x", "tasks": ["work"]}, tasks={"work.py": code}, **about)


# -- looking at runs -----------------------------------------------------------------------------------------------


def test_a_run_is_shown_by_its_own_name(make_living: Make) -> None:
    """ls tells name and pipeline of finished runs; after gc the ledger's line is pointed at."""
    living = one_step(make_living, QUICK)
    (living.path / "seed.json").write_text('{"data": {}, "name": "The Monthly Report"}')
    assert pop("run", "seed.json", root=living.path, cwd=living.path).returncode == 0
    assert "The Monthly Report" in pop("show", "The Monthly Report", root=living.path).stdout
    assert "(The Monthly Report, default)" in pop("ls", root=living.path).stdout
    assert pop("run", "seed.json", root=living.path, cwd=living.path).returncode == 0
    several = pop("show", "The Monthly Report", root=living.path).stderr
    assert "fits 2 runs" in several and "`last`" in several
    assert pop("gc", "--older-than", "0s", root=living.path).returncode == 0
    gone = pop("show", "The Monthly Report", root=living.path)
    assert gone.returncode == 2 and "runs.jsonl:2" in gone.stderr


def test_a_run_with_a_broken_status_is_shown_all_the_same(hello: Path) -> None:
    """By show, ls, watch, logs, graph and doctor."""
    assert pop("run", hello / "examples" / "hello.json", root=hello).returncode == 0
    folder = next((hello / "pipeline-complete").glob("*-hello-*"))
    (folder / "tasks-status.json").write_text("{}")
    folder.rename(hello / "pipeline-current" / folder.name)
    for words in (
        ["show"],
        ["ls"],
        ["watch", "last", "--once"],
        ["watch", "--once"],
        ["logs"],
        ["graph", "last"],
        ["doctor"],
    ):
        result = pop(*words, root=hello)
        assert "Traceback" not in result.stderr and "None" not in result.stdout, words
    (hello / "pipeline-current" / folder.name / "events.jsonl").write_text("")
    assert "cannot be read" in pop("doctor", root=hello).stdout
    assert "unreadable" in pop("ls", root=hello).stdout


def test_the_whole_queue_is_counted(hello: Path) -> None:
    """By ls, doctor and watch; more than are looked at."""
    for number in range(1003):
        (hello / "pipeline-pending" / f"{number:04}.json").write_text("{}")
    assert "pending (1003)" in pop("ls", root=hello).stdout
    assert "1003 in the queue, 1000 of the first 1000 ready" in pop("doctor", root=hello).stdout
    assert json.loads(pop("ls", "--json", root=hello).stdout)["pending_count"] == 1003


def test_doctor_reads_the_limits_of_this_root(hello: Path) -> None:
    """What is too large here is not ready."""
    (hello / "pipeline-pending" / "big.json").write_text(json.dumps({"text": "x" * 5000}))
    assert "1 in the queue, 1 ready" in pop("doctor", root=hello).stdout
    (hello / "pop.toml").write_text("[seeds]\nmax_mb = 0.001\n")
    assert "1 in the queue, 0 ready" in pop("doctor", root=hello).stdout


def test_doctor_tells_each_mistake_on_a_line_with_its_hint_once(hello: Path) -> None:
    """Exit code 3: it keeps POP from its work."""
    (hello / "pipeline.json").write_text('{"name": "x",\n "tasks": ["sumarise"]}')
    result = pop("doctor", root=hello)
    assert result.returncode == 3 and result.stdout.count("did you mean 'summarise'?") == 1
    assert "unknown-task: no task 'sumarise' (pipeline.json:2:12" in result.stdout


def test_logs_of_a_family_come_in_order_and_nothing_is_said_to_be_nothing(make_living: Make) -> None:
    """`draft` means all its items; an item that is not there names those that are."""
    pipeline = {"name": "x", "tasks": ["make", {"each": "inputs.make.parts", "do": "draft"}, "quiet"]}
    tasks = {
        "make.py": "def infer(prompt, ctx):\n    return {'parts': list(range(12))}\n",
        "draft.py": "def infer(prompt, ctx):\n    print('item', ctx.item)\n    return {}\n",
        "quiet.py": QUICK,
    }
    living = make_living(pipeline=pipeline, tasks=tasks)
    (living.path / "seed.json").write_text("{}")
    assert pop("run", "seed.json", root=living.path, cwd=living.path).returncode == 0
    lines = pop("logs", "last", "draft", root=living.path).stdout.splitlines()
    assert [line.split("#")[0] for line in lines] == [f"draft.{number}" for number in range(12)]
    missing = pop("logs", "last", "draft.99", root=living.path)
    assert missing.returncode == 2 and "draft has the items draft.0 to draft.11" in missing.stderr
    assert "did you mean 'quiet'" in pop("logs", "last", "quite", root=living.path).stderr
    quiet = pop("logs", "last", "quiet", root=living.path)
    assert quiet.stdout == "" and "--trail" in quiet.stderr
    rows = [json.loads(line) for line in pop("logs", "last", "--json", root=living.path).stdout.splitlines()]
    assert {"step": "draft.3", "attempt": 1, "file": "stdout.txt", "text": "item 3"} in rows
    watched = json.loads(pop("watch", "last", "--json", root=living.path).stdout.splitlines()[-1])
    assert watched["state"] == "complete"
    assert "draft" in json.loads(pop("graph", "--json", root=living.path).stdout)["mermaid"]


# -- ending runs and going on --------------------------------------------------------------------------------------


def test_a_cancelled_run_tells_why_and_how_to_go_on(make_living: Make) -> None:
    """A second cancel writes nothing; an order that waits is told."""
    living = one_step(make_living, SLOW)
    daemon = living.up()
    living.drop("a.json", {})
    living.wait_state("running")
    run_id = living.current()[0].name
    assert pop("cancel", "a", "-m", "wrong seed", root=living.path).returncode == 0
    living.wait_state("cancelled")
    shown = pop("show", "a", root=living.path).stdout
    assert "wrong seed" in shown and f"pop retry {run_id}" in shown and "mend it" not in shown
    again = pop("cancel", "a", root=living.path)
    assert again.returncode == 0 and "cancelled already" in again.stderr
    assert not list((living.current()[0] / "orders").glob("*.json"))
    living.stop(daemon)
    assert pop("retry", "a", root=living.path).returncode == 0
    assert "retry waits" in pop("show", "a", root=living.path).stdout
    assert "retry waits" in pop("ls", root=living.path).stdout
    assert pop("cancel", "a", root=living.path).returncode == 0  # the newer order is the one that counts
    living.up()
    living.wait(lambda: list((living.current()[0] / "orders" / "done").glob("*-cancel.json"))[1:], "the second cancel")
    assert living.status()["state"] == "cancelled"


def test_a_failed_condition_names_the_copy_to_mend(make_living: Make) -> None:
    """Each run its own; mended there, `pop retry` goes on."""
    pipeline = {"name": "x", "tasks": ["work", {"each": "inputs.work.n", "do": "more"}]}
    living = make_living(pipeline=pipeline, tasks={"work.py": QUICK, "more.py": QUICK})
    living.up()
    living.drop("a.json", {})
    living.drop("b.json", {})
    living.wait(lambda: len(living.current()) == 2, "both runs")
    for name in ("a", "b"):
        run_dir = next(living.root.current.glob(f"*-{name}-*"))
        living.wait_state("failed", run_dir)
        shown = pop("show", name, root=living.path).stdout
        own = f"pipeline-current/{run_dir.name}/pipeline.json"
        assert f"where      {own}:1:" in shown and f"mend {own}, then pop retry" in shown
    own_file = run_dir / "pipeline.json"
    own_file.write_text(own_file.read_text().replace("inputs.work.n", "[inputs.work.n]"))
    assert pop("retry", "b", root=living.path).returncode == 0
    living.wait_complete(1)
