"""The index of runs on disks that are full, beside other processes, and under files that change while they are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pop.runindex import Asked, RunIndex, database
from pop.settings import Root
from tests.webbing import make_root, record, run_id, web_client, write_ledger


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path / "root")


def ids(index: RunIndex) -> list[str]:
    index.refresh(5.0)
    return [row.run_id for row in index.query(Asked()).rows]


# -- disks -------------------------------------------------------------------------------------------------------------


def test_the_last_of_a_disk_is_left_to_the_runs(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is derived stops no daemon: it goes to the temporary folder."""
    full = {os.stat(root.machine_room).st_ino}
    monkeypatch.setattr(database, "free_bytes", lambda folder: 0 if os.stat(folder).st_ino in full else 2**40)
    write_ledger(root, record(1))
    index = RunIndex(root)
    assert ids(index) == [run_id(1)] and index.trouble is None
    assert not (root.machine_room / "index.db").exists()
    index.close()


def test_a_disk_that_fills_up_is_told_and_waited_for(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the temporary folder on the same disk: what was known is shown, and all of it when there is room."""
    write_ledger(root, record(1))
    index = RunIndex(root)
    assert ids(index) == [run_id(1)]
    monkeypatch.setattr(database, "free_bytes", lambda _: database.ROOM_BYTES - 1)
    write_ledger(root, record(2))
    for _ in range(3):
        assert ids(index) == [run_id(1)] and "left to the runs" in str(index.trouble)
    monkeypatch.undo()
    assert ids(index) == [run_id(2), run_id(1)] and index.trouble is None
    index.close()
    with web_client(root) as client:
        assert "cannot be kept" not in client.get("/").text


def test_what_stands_beside_the_index_stays_small(root: Root) -> None:
    """SQLite's journal grew with the first reading of a long ledger, and stayed as large as the index."""
    write_ledger(root, *(record(number) for number in range(20_000)))
    index = RunIndex(root)
    index.refresh(30.0)
    for number in range(20_000, 20_003):
        write_ledger(root, record(number))
        index.refresh(5.0)
    assert index.counts()["complete"] == 20_003
    assert os.path.getsize(root.machine_room / "index.db-wal") <= database.MOST_JOURNAL_BYTES
    index.close()
