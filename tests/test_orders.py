"""Orders to runs are files: whoever wrote them, whatever is in them, carried out once and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pop import orders
from pop.gates import problem_of
from pop.history import read_history
from pop.orders import Order, Orders, write_order
from pop.records import dump_json
from pop.settings import Root
from pop.store import Disk
from pop.waiting import WaitingRuns

T = "2026-11-21T03:15:02.000Z"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path)
    root.current.mkdir(parents=True)
    return root


def run_at_rest(root: Root, name: str = "20261121-031502-a-aaaa", *events: dict[str, Any]) -> Path:
    run_dir = root.current / name
    run_dir.mkdir()
    rows: list[dict[str, Any]] = [
        {"event": "run.created", "run_id": name, "at": T},
        {"event": "run.started", "at": T},
        *events,
    ]
    (run_dir / "events.jsonl").write_bytes(b"".join(dump_json({"at": T, **row}, pretty=False) for row in rows))
    return run_dir


def failed(root: Root, name: str = "20261121-031502-a-aaaa") -> Path:
    error = {"error_class": "bug", "message": "oh"}
    about = {"instance": "two", "attempt": 1, "error": error, "action": "fail"}
    return run_at_rest(
        root, name,
        {"event": "step.started", "instance": "one", "step": "one", "attempt": 1, "generation": 1},
        {"event": "step.done", "instance": "one", "attempt": 1, "sha256": "x"},
        {"event": "step.started", "instance": "two", "step": "two", "attempt": 1, "generation": 1},
        {"event": "step.attempt_failed", **about},
        {"event": "run.failed", "error": error},
    )  # fmt: skip


def test_a_written_order_is_found_with_who_and_why(root: Root) -> None:
    """As `pop cancel -m` writes it."""
    run_dir = run_at_rest(root)
    write_order(Disk(), run_dir, "cancel", "enough")
    (order,) = Orders(root, Disk()).find(set())
    assert (order.run_dir, order.verb, order.reason) == (run_dir, "cancel", "enough") and order.by


@pytest.mark.parametrize("text", ["", "junk", "[1]", '{"by": 7}', '{"reason": {"x": 1}}', "\xff", '{"a": 1, "a": 2}'])
@pytest.mark.parametrize("name", ["cancel.json", "cancel"])
def test_the_name_alone_is_the_order(root: Root, name: str, text: str) -> None:
    """`touch orders/cancel` is enough; what stands in it is for the record."""
    folder = run_at_rest(root) / "orders"
    folder.mkdir()
    (folder / name).write_text(text, encoding="latin-1")
    (order,) = Orders(root, Disk()).find(set())
    assert order.verb == "cancel" and isinstance(order.by, str)


def test_other_names_and_links_are_passed_over(root: Root) -> None:
    """A file of a verb nobody knows is no order; a link is read by nobody."""
    folder = run_at_rest(root) / "orders"
    folder.mkdir()
    (folder / "explode.json").write_text("{}")
    (folder / "retry.json").symlink_to("/etc/passwd")
    (order,) = Orders(root, Disk()).find(set())
    assert (order.verb, order.by, order.reason) == ("retry", "a file", None)


def test_a_retry_resets_what_failed_and_keeps_what_is_done(root: Root) -> None:
    """The run is to be taken up again, with fresh attempts for the failed step."""
    run_dir = failed(root)
    assert Orders(root, Disk()).apply_to_resting(Order(run_dir, "retry", "me", "mended"))
    history = read_history(run_dir)
    assert history.state == "running"
    assert {name: instance.state for name, instance in history.instances.items()} == {"one": "done", "two": "retry"}
    assert history.instances["two"].failures == 0
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_bytes().splitlines()]
    assert [event["reason"] for event in events if event["event"] == "run.resumed"] == ["mended"]


def test_a_failed_run_can_be_cancelled_and_a_cancelled_one_not_again(root: Root) -> None:
    """Nothing is journaled that changes nothing."""
    run_dir = failed(root)
    box = Orders(root, Disk())
    order = Order(run_dir, "cancel", "me", None)
    assert not box.apply_to_resting(order) and read_history(run_dir).state == "cancelled"
    size = (run_dir / "events.jsonl").stat().st_size
    assert not box.apply_to_resting(order) and (run_dir / "events.jsonl").stat().st_size == size


def test_a_run_that_is_no_run_takes_no_order(root: Root) -> None:
    """A folder without a journal is left alone."""
    (root.current / "strange").mkdir()
    assert not Orders(root, Disk()).apply_to_resting(Order(root.current / "strange", "retry", "me", None))


def test_a_torn_journal_is_mended_before_an_order_is_appended(root: Root) -> None:
    """Otherwise the order would stand in the torn line."""
    run_dir = failed(root)
    with open(run_dir / "events.jsonl", "ab") as file:
        file.write(b'{"event": "step.st')
    assert Orders(root, Disk()).apply_to_resting(Order(run_dir, "retry", "me", None))
    assert read_history(run_dir).state == "running"


def test_carried_out_orders_are_kept_under_names_of_their_own(root: Root) -> None:
    """The same order given twice leaves two files in orders/done/."""
    run_dir = run_at_rest(root)
    box = Orders(root, Disk())
    for _ in range(2):
        write_order(Disk(), run_dir, "cancel")
        for order in box.find(set()):
            box.file_away(order)
    assert box.find(set()) == []
    assert len(list((run_dir / "orders" / "done").iterdir())) == 2


def test_every_run_at_rest_is_looked_at_in_turn(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded number per look, active ones at every look."""
    monkeypatch.setattr(orders, "AT_ONCE", 3)
    names = [f"20261121-03150{number}-a-aaaa" for number in range(8)]
    for name in names:
        write_order(Disk(), run_at_rest(root, name), "retry")
    box = Orders(root, Disk())
    looks = [{order.run_id for order in box.find({names[7]})} for _ in range(3)]
    assert all(names[7] in look and len(look) <= 4 for look in looks)
    assert set().union(*looks) == set(names)


def test_a_damaged_run_that_waits_holds_up_no_order(root: Root) -> None:
    """What was meant as an answer in it cannot be told; the order of another run is found."""
    broken, waiting = run_at_rest(root), WaitingRuns({"20261121-031502-a-aaaa": ["look"]})
    (broken / "tasks" / "look").mkdir(parents=True)
    (broken / "tasks" / "look" / "APPROVED").touch()
    (broken / "events.jsonl").write_text('{"event": "step.started"}\n')
    other = failed(root, "20261121-031502-b-bbbb")
    write_order(Disk(), other, "retry")
    found = Orders(root, Disk(), waiting).find(set())
    assert [(order.run_dir, order.verb) for order in found] == [(other, "retry")]
    assert problem_of(broken / "tasks" / "look")
