"""Finding seeds: the kernel's hint alone, and the scan alone, are each enough."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pop.watch import Watch
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]
ONE = {"one.py": "def infer(prompt, ctx):\n    return ctx.seed['n']\n"}
HINTS_ALONE = "[daemon]\nscan_s = 3600\n"
SCANS_ALONE = "[daemon]\ninotify = false\nscan_s = 0.2\n"
SOON_S = 15.0


def serving(make_living: Make, settings: str) -> LivingRoot:
    """A daemon that has looked at its queue for the first time."""
    living = make_living(pipeline={"name": "p", "tasks": ["one"]}, tasks=ONE, settings=settings)
    living.drop("first.json", {"n": 0})
    living.up()
    living.wait_complete(1)
    time.sleep(0.3)
    return living


def move(source: Path, target: Path) -> None:
    os.rename(source, target)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", str(source), str(target)], check=True)


def link(source: Path, target: Path) -> None:
    os.link(source, target)
    source.unlink()


@pytest.mark.parametrize("settings", [HINTS_ALONE, SCANS_ALONE], ids=["hints", "scans"])
def test_a_seed_is_found_however_it_arrives(make_living: Make, tmp_path: Path, settings: str) -> None:
    """By mv, by cp, by ln, and under a name that was there before, within seconds."""
    living = serving(make_living, settings)
    for number, arrive in enumerate([move, copy, link, move], 1):
        source = tmp_path / f"source{number}"
        source.write_text(json.dumps({"n": number}))
        arrive(source, living.root.pending / "again.json")
        rows = living.wait_complete(number + 1, patience_s=SOON_S)
        assert living.output(rows[-1], "one") == number


@pytest.mark.parametrize(
    "settings",
    [
        HINTS_ALONE,
        SCANS_ALONE,
        "[daemon]\nscan_s = 0.5\n",
    ],
    ids=["hints", "scans", "both"],
)
def test_a_pending_folder_that_was_deleted_is_served_again(make_living: Make, settings: str) -> None:
    """Somebody removes the folder and makes it anew; the next seed is found within seconds."""
    living = serving(make_living, settings)
    shutil.rmtree(living.root.pending)
    living.root.pending.mkdir()
    time.sleep(1.0)
    living.drop("b.json", {"n": 2})
    living.wait_complete(2, patience_s=4.0)


def test_a_folder_dropped_between_two_scans_is_served(make_living: Make, tmp_path: Path) -> None:
    """It has to stand still first, so it is looked at again by the scan."""
    living = serving(make_living, "[daemon]\nscan_s = 0.5\n[seeds]\nsettle_s = 0.5\n")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "seed.json").write_text('{"n": 5}')
    shutil.copytree(tmp_path / "job", living.root.pending / "job")
    rows = living.wait_complete(2, patience_s=SOON_S)
    assert living.output(rows[-1], "one") == 5


# -- the watch alone -----------------------------------------------------------------------------------------------


def watched(folder: Path, work: Callable[[Watch], None], *, until: set[str], patience_s: float = 5.0) -> set[str]:
    """Names the watch hints at while `work` is done, and until those asked for have come."""
    names: set[str] = set()

    async def look() -> None:
        watch = Watch(folder, names.add)
        try:
            await asyncio.to_thread(work, watch)
            give_up = time.monotonic() + patience_s
            while not until <= names and time.monotonic() < give_up:
                await asyncio.sleep(0.02)
        finally:
            watch.stop()

    asyncio.run(look())
    return names


def test_arrivals_are_hinted_at_and_departures_are_not(tmp_path: Path) -> None:
    """watchdog would hold a departure for half a second, and everything behind it."""
    pending = tmp_path / "pending"
    pending.mkdir()
    (pending / "old.json").write_text("{}")
    (tmp_path / "x").write_text("{}")

    def work(_: Watch) -> None:
        os.rename(pending / "old.json", tmp_path / "gone.json")
        (pending / "written.json").write_text("{}")
        os.rename(tmp_path / "x", pending / "moved.json")

    assert watched(pending, work, until={"written.json", "moved.json"}) == {"written.json", "moved.json"}


def test_a_hint_comes_at_once_while_seeds_leave(tmp_path: Path) -> None:
    """A hundred claims before it do not hold an arrival up."""
    pending = tmp_path / "pending"
    pending.mkdir()
    for number in range(100):
        (pending / f"{number}.json").write_text("{}")
    took = [0.0]

    def work(_: Watch) -> None:
        for number in range(100):
            os.rename(pending / f"{number}.json", tmp_path / f"{number}.json")
        took[0] = time.monotonic()
        (pending / "new.json").write_text("{}")

    assert watched(pending, work, until={"new.json"}) == {"new.json"}
    assert time.monotonic() - took[0] < 0.4


def test_a_replaced_folder_is_watched_anew(tmp_path: Path) -> None:
    """`check` notices that another folder stands under the name."""
    pending, other = tmp_path / "pending", tmp_path / "other"
    pending.mkdir()
    other.mkdir()

    def work(watch: Watch) -> None:
        pending.rmdir()
        os.rename(other, pending)
        watch.check()
        (pending / "new.json").write_text("{}")

    assert "new.json" in watched(pending, work, until={"new.json"})


def test_a_folder_made_anew_under_the_same_number_is_watched_anew(tmp_path: Path) -> None:
    """The file system may give the new folder the inode number of the old one."""
    pending = tmp_path / "pending"
    pending.mkdir()
    before = pending.stat().st_ino

    def work(watch: Watch) -> None:
        pending.rmdir()
        pending.mkdir()
        if pending.stat().st_ino != before:
            pytest.skip("this file system does not use the numbers of removed folders again")
        watch.check()
        (pending / "new.json").write_text("{}")

    assert "new.json" in watched(pending, work, until={"new.json"}, patience_s=2.0)


def test_a_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    """Somebody removed it; seeds can be dropped again after the next look."""
    pending = tmp_path / "pending"
    pending.mkdir()

    def work(watch: Watch) -> None:
        pending.rmdir()
        watch.check()

    watched(pending, work, until=set())
    assert pending.is_dir()


def test_names_that_are_no_text_are_hinted_at_as_they_are(tmp_path: Path) -> None:
    """A name in Latin-1 arrives as Python spells it, and the handler's thread lives on."""

    def work(_: Watch) -> None:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe4.json")).write_text("{}")
        (tmp_path / "next.json").write_text("{}")

    assert watched(tmp_path, work, until={"next.json", "\udce4.json"}) == {"next.json", "\udce4.json"}
