"""The index of runs: derived, exact, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pop.runindex import Asked, RunIndex
from pop.settings import Root
from tests.webbing import make_root, put_status, record, run_id, write_ledger


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


def index_of(root: Root) -> RunIndex:
    made = RunIndex(root)
    made.refresh()
    return made


def found(index: RunIndex, asked: Asked = Asked()) -> list[str]:  # noqa: B008
    return [row.run_id for row in index.query(asked).rows]


def test_it_holds_what_the_ledger_and_the_folders_tell(root: Root) -> None:
    """Counts are exact, the newest comes first."""
    write_ledger(root, record(1), record(2))
    put_status(root, 3)
    put_status(root, 4, "waiting", waiting_for="sign-off")
    put_status(root, 5, "failed", error={"error_class": "budget", "message": "too dear"})
    (root.pending / "a.json").write_text("{}")
    (root.rejected / "b.json.reason.json").write_text("{}")
    index = index_of(root)
    counts = {"complete": 2, "running": 1, "waiting": 1, "failed": 1, "pending": 1, "rejected": 1}
    assert index.counts() == counts
    assert found(index) == [run_id(number) for number in (5, 4, 3, 2, 1)]
    row = index.query(Asked(state="failed")).rows[0]
    assert (row.error, row.name) == ("budget: too dear", "brief 5")
    assert index.query(Asked(state="waiting")).rows[0].doing == "sign-off"


def test_what_is_asked_narrows(root: Root) -> None:
    """Words must all occur, in any case, and mean themselves; the groups of the board are states."""
    write_ledger(root, record(1, name="Minutes of May"), record(2, name="100% brief", pipeline="other"))
    put_status(root, 3, "paused")
    index = index_of(root)
    assert found(index, Asked(text="MAY minutes")) == [run_id(1)]
    assert found(index, Asked(text="0%")) == [run_id(2)]
    assert found(index, Asked(text="may nothing")) == []
    assert found(index, Asked(pipeline="other")) == [run_id(2)]
    assert found(index, Asked(state="active")) == [run_id(3)]
    assert found(index, Asked(state="complete", since="2026-11-21T00:00:02")) == [run_id(2)]
    assert found(index, Asked(text="' OR 1=1 --")) == []
    assert index.pipelines() == ["brief", "other"]


def test_pages_cover_everything_once(root: Root) -> None:
    """And a page beyond the last one is the last one."""
    write_ledger(root, *(record(number) for number in range(120)))
    index = index_of(root)
    pages = [index.query(page=number) for number in (1, 2, 3)]
    assert [len(page.rows) for page in pages] == [50, 50, 20]
    shown = [row.run_id for page in pages for row in page.rows]
    assert shown == sorted(shown, reverse=True) and len(set(shown)) == 120
    one_by_one = [index.query(page=number, size=1).rows[0].run_id for number in range(1, 121)]
    assert one_by_one == shown
    assert index.query(page=99).page == index.query(page=99).pages == 3
    assert index.query(page=-1).page == 1


def test_a_change_is_another_mark_and_no_change_is_none(root: Root) -> None:
    """The mark is what pages are told to be current by."""
    run_dir = put_status(root, 1)
    index = index_of(root)
    first = index.mark()
    assert index.refresh() == first
    put_status(root, 1, "waiting")
    second = index.refresh()
    assert second != first
    shutil.rmtree(run_dir)
    third = index.refresh()
    assert third != second and index.counts() == {"pending": 0, "rejected": 0}
    write_ledger(root, record(2))
    assert index.refresh() != third
    index.close()
    assert RunIndex(root).refresh() == RunIndex(root).refresh()


def test_a_run_that_was_renamed_is_another_one(root: Root) -> None:
    """A person may move folders about; the index follows them."""
    run_dir = put_status(root, 1)
    index = index_of(root)
    os.rename(run_dir, root.current / run_id(2))
    index.refresh()
    assert found(index) == [run_id(2)]


def test_a_promoted_run_is_never_missing(root: Root) -> None:
    """Between the rename and the ledger's line its record.json tells; a daemon may have died there."""
    run_dir = put_status(root, 1)
    index = index_of(root)
    (run_dir / "record.json").write_text(json.dumps(record(1)))
    os.rename(run_dir, root.complete / run_dir.name)
    index.refresh()
    assert index.counts()["complete"] == 1 and "running" not in index.counts()
    (root.machine_room / "promoting").write_text(f"ledger 0\n{run_dir.name}\n")
    (root.machine_room / "index.db").unlink()
    write_ledger(root, record(7))
    assert index_of(root).counts()["complete"] == 2
    write_ledger(root, record(1))
    index.refresh()
    assert index.counts()["complete"] == 2


def test_broken_runs_stop_no_other(root: Root) -> None:
    """A status that is none, a journal that is none, lines that are none, numbers that are none."""
    put_status(root, 1).joinpath("tasks-status.json").write_text('{"state": 7}')
    put_status(root, 2).joinpath("tasks-status.json").write_bytes(b"\xff\xfe")
    put_status(root, 3, usage=["x"], progress="half", current="abc", name=["a"], error="bad")
    (root.current / "no run").mkdir()
    (root.current / ".draft").mkdir()
    (root.current / "a file").write_text("x")
    root.ledger.write_bytes(b'{"run_id": "half\n[]\n\n{"usage": 3, "run_id": "odd"}\n{"x": 1}\n\xff\n')
    write_ledger(root, record(4, usage={"calls": "many", "cost_usd": 1e400}, tasks=None, models=3))
    write_ledger(root, record(5, usage=None, name="<b>", tasks=7), record(6, usage=None, name="<b>"))
    index = index_of(root)
    counts = index.counts()
    assert counts["complete"] == 1 and counts["running"] == 1 and counts["unreadable"] >= 2
    assert run_id(6) in found(index)
    assert index.trouble is None


def test_a_torn_line_waits_for_its_end(root: Root) -> None:
    """Half a line is none; it counts once it is whole."""
    line = json.dumps(record(1))
    root.ledger.write_text(line[:40])
    index = index_of(root)
    assert "complete" not in index.counts() and not index.behind_bytes
    with open(root.ledger, "a") as file:
        file.write(line[40:] + "\n")
    index.refresh()
    assert index.counts()["complete"] == 1


def test_another_ledger_is_read_anew(root: Root) -> None:
    """Somebody edited, shortened or removed it."""
    write_ledger(root, record(1), record(2), record(3))
    index = index_of(root)
    write_ledger(root, record(8), mode="w")
    index.refresh()
    assert found(index) == [run_id(8)]
    draft = root.complete / "draft"
    draft.write_text("".join(json.dumps(record(number)) + "\n" for number in (5, 6, 9)))
    os.rename(draft, root.ledger)
    index.refresh()
    assert found(index) == [run_id(9), run_id(6), run_id(5)]
    root.ledger.unlink()
    index.refresh()
    assert found(index) == []


@pytest.mark.parametrize("harm", ["delete", "all of it", "garbage", "empty", "cut", "other tables"])
def test_an_index_that_is_deleted_or_damaged_is_made_anew(root: Root, harm: str) -> None:
    """Also under a server that has it open; nothing is lost, for nothing was there alone."""
    write_ledger(root, *(record(number) for number in range(300)))
    index, path = index_of(root), root.machine_room / "index.db"
    if harm == "delete":
        path.unlink()
    elif harm == "all of it":
        shutil.rmtree(root.machine_room)
    elif harm == "garbage":
        path.write_bytes(os.urandom(100_000))
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "cut":
        os.truncate(path, os.path.getsize(path) // 2)
    else:
        sqlite3.connect(path).execute("DROP TABLE runs").connection.close()
    for _ in range(3):
        index.query(Asked(text="brief 7"))
        index.refresh()
    write_ledger(root, record(300))
    index.refresh()
    assert index.counts()["complete"] == 301
    assert len(index.query().rows) == 50
    assert RunIndex(root).refresh() == index.mark()


def test_two_processes_keep_one_index(root: Root) -> None:
    """Each sees what the other found, and no line is counted twice."""
    write_ledger(root, *(record(number) for number in range(2000)))
    code = (
        "import sys; from pathlib import Path; from pop.runindex import RunIndex; from pop.settings import Root\n"
        "index = RunIndex(Root(Path(sys.argv[1])))\n"
        "for _ in range(150): index.refresh(0.001)\n"
        "while index.behind_bytes: index.refresh()\n"
        "index.refresh(); print(index.counts()['complete'], index.mark())"
    )
    command = [sys.executable, "-c", code, str(root.path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for number in range(2000, 2300):
        write_ledger(root, record(number))
    told = [process.communicate(timeout=60)[0].split() for process in processes]
    index = index_of(root)
    assert {one[0] for one in told} == {"2300"} == {str(index.counts()["complete"])}


def test_it_is_read_while_it_is_written(root: Root) -> None:
    """A page waits for no refresh, also not for the first one of a long ledger."""
    write_ledger(root, *(record(number) for number in range(20_000)))
    index = RunIndex(root)
    index.refresh(0.0)
    assert index.behind_bytes > 0
    writer = threading.Thread(target=lambda: [index.refresh(0.05) for _ in range(100)])
    writer.start()
    seen = [index.query().total for _ in range(50)]
    writer.join()
    assert seen == sorted(seen) and index.query().total == 20_000 and not index.behind_bytes


def test_a_root_that_takes_no_files_is_shown_all_the_same(root: Root, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Then the index lies in the temporary folder, and goes with the server."""
    write_ledger(root, record(1))
    shutil.rmtree(root.machine_room)
    root.machine_room.write_text("no folder")
    index = index_of(root)
    assert index.counts()["complete"] == 1
    place = index._db.path
    index.close()
    assert not place.exists()
