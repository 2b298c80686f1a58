"""Removing old runs while others work: links, orders that wait, two at once; it tells what it removed and nothing else."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pop.cleaning import old_runs, remove_all, size_bytes
from pop.orders import STARTS, write_order
from pop.runs import rejected
from pop.settings import Root
from pop.store import Disk
from pop.web.upkeep import Old, findings, older_than, remove_old
from tests.test_web_health import ended
from tests.webbing import make_root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path / "root")


def test_a_link_among_finished_runs_is_left_alone(root: Root, tmp_path: Path) -> None:
    """What it leads to lies elsewhere; and a link that an earlier gc put out of sight stops none."""
    elsewhere = make_root(tmp_path / "elsewhere")
    target = ended(elsewhere, 1, 40)
    (root.complete / target.name).symlink_to(target)
    (root.complete / ".20261120-run.removed").symlink_to(target)
    gone = ended(root, 2, 40)
    assert [run.run_id for run in old_runs(root, 86400, failed=True)] == [gone.name]
    removed, _ = remove_all(root, old_runs(root, 86400, failed=True), archive=True)
    assert [run.run_id for run in removed] == [gone.name]
    assert (target / "events.jsonl").is_file() and (root.complete / target.name).is_symlink()
    assert not list(root.complete.glob(".*.removed"))


@pytest.mark.parametrize("verb", [verb for verb in STARTS if verb != "resume"])
def test_a_failed_run_that_was_ordered_to_go_on_is_not_removed(root: Root, verb: str) -> None:
    run = ended(root, 1, 40, "failed")
    (shown,) = old_runs(root, 86400, failed=True)
    write_order(Disk(), run, verb)
    assert old_runs(root, 86400, failed=True) == []
    assert remove_all(root, [shown], archive=False) == ([], 0) and run.is_dir()


def test_two_at_once_tell_each_run_once(root: Root) -> None:
    for number in range(30):
        folder = ended(root, number, 40)
        (folder / "output").write_bytes(b"x" * 5000)
    old = older_than(root, "30d", failed=False)
    told: list[Old] = []
    start = threading.Barrier(3)

    def clean() -> None:
        start.wait()
        told.append(remove_old(root, old.before, failed=False, archive=True))

    threads = [threading.Thread(target=clean) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run for one in told for run in one.run_ids) == sorted(old.run_ids)
    assert sum(one.size_bytes for one in told) == old.size_bytes
    assert len(list((root.complete / "archive").glob("*.tar.gz"))) == 30


def test_a_size_is_told_while_files_go(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ended(root, 1, 40)
    (folder / "gone").write_bytes(b"x")
    walk = os.walk

    def late(path: Path) -> object:
        found = list(walk(path))
        (folder / "gone").unlink()
        return found

    monkeypatch.setattr(os, "walk", late)
    assert size_bytes(folder) > 0


def test_health_and_lists_stand_reasons_that_are_no_objects(root: Root) -> None:
    for number, text in enumerate(("[]", "5", '"x"', "null")):
        (root.rejected / f"{number}.json.reason.json").write_text(text)
    (root.rejected / "whole.json.reason.json").write_text('{"message": "no"}')
    assert rejected(root) == [{"message": "no"}]
    assert [found.says for found in findings(root) if found.about == "rejected"]
