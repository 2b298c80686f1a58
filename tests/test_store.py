"""File primitives: whole files, no clobbering, nothing outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pop.store import (
    Disk,
    NotAFile,
    RootHeld,
    contained,
    hold_root,
    lock_holder,
    mend_tail,
    read_regular,
    rename_noreplace,
)


def test_put_replaces_a_file_whole(tmp_path: Path) -> None:
    """A reader sees the old content or the new; no draft stays behind."""
    disk = Disk()
    disk.put(tmp_path / "a.json", b"one")
    disk.put(tmp_path / "a.json", b"two")
    assert (tmp_path / "a.json").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.json"]


def test_put_does_not_follow_a_planted_draft(tmp_path: Path) -> None:
    """A link that waits under the draft's name is removed, not written through."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".a.json.{os.getpid()}.tmp").symlink_to(victim)
    Disk().put(tmp_path / "a.json", b"x")
    assert victim.read_text() == "precious"


def test_rename_never_lands_on_an_empty_folder(tmp_path: Path) -> None:
    """The plain rename would succeed silently there."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError):
        rename_noreplace(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        rename_noreplace(tmp_path / "gone", tmp_path / "c")


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "", "a//b", "a\0b", "a\nb", "..\\a", "./a"])
def test_a_path_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    """Names from seeds, models and archives stay in their folder."""
    with pytest.raises(NotAFile):
        contained(tmp_path, name)


def test_a_path_across_a_link_is_refused(tmp_path: Path) -> None:
    """A link inside the folder leads out of it."""
    (tmp_path / "out").symlink_to("/tmp")
    with pytest.raises(NotAFile):
        contained(tmp_path, "out/x")


def test_reading_never_blocks_on_a_pipe(tmp_path: Path) -> None:
    """A FIFO under a file's name is refused at once."""
    os.mkfifo(tmp_path / "f")
    with pytest.raises(NotAFile):
        read_regular(tmp_path / "f", max_bytes=10)


def test_a_torn_tail_is_cut(tmp_path: Path) -> None:
    """What follows the last newline was never a line."""
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthr")
    assert mend_tail(path) == b"thr"
    assert path.read_bytes() == b"one\ntwo\n"
    assert mend_tail(path) == b""
    assert mend_tail(tmp_path / "none") == b""


def test_a_second_daemon_is_told_who_holds_the_root(tmp_path: Path) -> None:
    """The lock belongs to a process and goes with it."""
    code = (
        "import sys, pathlib; from pop.store import hold_root\n"
        "with hold_root(pathlib.Path(sys.argv[1]), 'pop up'):\n print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    try:
        with pytest.raises(RootHeld, match=f"process {holder.pid}"), hold_root(tmp_path, "pop up", patience_s=0.1):
            pass
        assert (lock_holder(tmp_path) or {})["pid"] == holder.pid
    finally:
        holder.kill()
        holder.wait()
    with hold_root(tmp_path, "pop up"):
        pass
    assert lock_holder(tmp_path) is None


@pytest.mark.parametrize("removed", ["lock", "room"])
def test_a_lock_whose_file_was_removed_is_taken_again(tmp_path: Path, removed: str) -> None:
    """Unless somebody else was first: of two, one has it, and the other one is told."""
    room = tmp_path / "room"
    room.mkdir()
    with hold_root(room, "pop up") as held:
        assert held.stands()
        (room / "lock").unlink()
        if removed == "room":
            room.rmdir()
        assert not held.stands()
        held.take_again()
        assert held.stands() and lock_holder(room)
        (room / "lock").unlink()
        with hold_root(room, "pop gc") as other:
            with pytest.raises(RootHeld, match="pop gc"):
                held.take_again()
            assert other.stands() and not held.stands()
