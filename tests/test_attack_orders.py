"""Orders that cross each other: a crash, a full disk or a second person between two of them loses neither."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pop import acts
from pop.acts import Checked, Wish, carry_out, carry_out_rerun, plan_cancel
from pop.orders import Orders, write_order
from pop.runs import Run
from pop.settings import Root
from pop.store import Disk
from tests.webbing import make_root, put_status


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


def verbs(root: Root) -> list[str]:
    return [order.verb for order in Orders(root, Disk()).find(set())]


def test_the_older_order_stands_until_the_newer_one_does(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the newer one cannot be written, what was ordered before still counts."""
    run = Run(put_status(root, 1, "failed"), "current")
    write_order(Disk(), run.path, "retry")

    def full(*_: Any, **__: Any) -> Path:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(acts, "write_order", full)
    for act in (
        lambda: carry_out(plan_cancel(run)),
        lambda: carry_out_rerun(root, run, Wish(["one"]), Checked(("one",))),
    ):
        with pytest.raises(OSError):
            act()
        assert verbs(root) == ["retry"]


def test_orders_are_carried_out_by_age(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash before the older one was taken back both stand: the newer one has the last word."""
    run = Run(put_status(root, 1, "failed"), "current")
    write_order(Disk(), run.path, "retry")
    time.sleep(0.02)
    monkeypatch.setattr(acts, "withdraw", lambda *_: None)
    carry_out(plan_cancel(run))
    assert verbs(root) == ["retry", "cancel"]
    time.sleep(0.02)
    os.utime(run.path / "orders" / "retry.json", (0, 0))  # its own time says nothing
    assert verbs(root) == ["cancel", "retry"]


def test_two_people_order_the_same_at_once(root: Root) -> None:
    """Two threads of the dashboard: each has its answer, and one whole order stands there."""
    run = Run(put_status(root, 1), "current")
    failed: list[BaseException] = []

    def give() -> None:
        for _ in range(50):
            try:
                write_order(Disk(durable=False), run.path, "pause", "for a while")
            except BaseException as error:  # a draft that somebody else took away
                failed.append(error)

    threads = [threading.Thread(target=give) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    (order,) = Orders(root, Disk()).find(set())
    assert (order.verb, order.reason) == ("pause", "for a while")
    assert os.listdir(run.path / "orders") == ["pause.json"]


WORK = """
import time
from pathlib import Path
def infer(prompt, ctx):
    if not Path(ctx.seed["mended"]).exists(): raise ValueError("not yet")
    while Path(ctx.seed.get("hold", "/none")).exists(): time.sleep(0.05)
    return {}
"""


@pytest.mark.parametrize(("first", "second"), [("retry", "resume"), ("rerun", "resume"), ("retry", "rerun")])
def test_an_order_that_does_nothing_overtakes_none(make_living: Any, first: str, second: str) -> None:
    """A failed run is not resumed: what was ordered before still takes it up; of two that do, the newer one does."""
    living = make_living(pipeline={"tasks": ["one"]}, tasks={"one.py": WORK})
    living.up()
    living.drop("a.json", {"mended": str(living.path / "mended")})
    living.wait_state("failed")
    (run,) = living.current()
    living.daemons[-1].terminate()
    living.daemons[-1].wait(30)
    (living.path / "mended").touch()
    for verb in (first, second):
        write_order(Disk(), run, verb, more={"from": ["one"]})
        time.sleep(0.02)
    living.up()
    living.wait_complete(1)
    done = living.root.complete / run.name
    events = [json.loads(line)["event"] for line in (done / "events.jsonl").read_bytes().splitlines()]
    taken_up = {"run.rerun", "run.resumed"}.intersection(events)
    assert taken_up == {"run.rerun" if "rerun" in (first, second) else "run.resumed"}
    assert len(list((done / "orders" / "done").glob("*.problem.json"))) == (second == "rerun")


def test_a_rerun_of_a_run_at_work_is_refused_where_it_was_ordered(make_living: Any) -> None:
    living = make_living(pipeline={"tasks": ["one"]}, tasks={"one.py": WORK})
    for name in ("mended", "hold"):
        (living.path / name).touch()
    living.up()
    living.drop("a.json", {"mended": str(living.path / "mended"), "hold": str(living.path / "hold")})
    living.wait_state("running")
    (run,) = living.current()
    write_order(Disk(), run, "rerun", more={"from": ["one"]})
    living.wait(lambda: list((run / "orders" / "done").glob("*.problem.json")), "the refusal")
    (told,) = (run / "orders" / "done").glob("*.problem.json")
    assert "is at work" in json.loads(told.read_bytes())["message"]
    (living.path / "hold").unlink()
    living.wait_complete(1)
