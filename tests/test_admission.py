"""Claim, seal, reject, promote: whatever is cut off in the middle is finished by the next start.

The crash tests end the work before each of its system calls that change the disk, one after the other, and then let a
new start repair what is there. Promises 1 and 2 must hold after every one of them.
"""

from __future__ import annotations

import json
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pop import admission
from pop.errors import SeedRejected
from pop.ledger import Ledger
from pop.records import dump_json
from pop.settings import Root, SeedSettings
from pop.store import Disk

LIMITS = SeedSettings(settle_s=0.0)
PIPELINE = b'{"name": "p", "tasks": ["a"]}'
CHANGING = ("rename", "mkdir", "rmdir", "unlink", "link", "write", "fsync", "fdatasync", "open", "ftruncate")


class Crash(BaseException):
    """The process ends here."""


@contextmanager
def crash_before(number: int) -> Iterator[list[int]]:
    """End the process before its system call `number` that may change the disk; all later ones fail as well."""
    count = [0]
    originals = {name: getattr(os, name) for name in CHANGING}

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] >= number:
                raise Crash
            return original(*args, **kwargs)

        return call

    try:
        for name, original in originals.items():
            setattr(os, name, wrap(original))
        yield count
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


def make_root(path: Path) -> Root:
    root = Root(path)
    for folder in (root.rejected, root.current, root.complete, root.machine_room):
        folder.mkdir(parents=True)
    Ledger(root, Disk()).settle()
    return root


def seal_one(root: Root, claimed: admission.Claimed) -> None:
    seed, data = admission.read_claim(claimed, LIMITS)
    admission.seal(
        root, Disk(), claimed, seed, data,
        pipeline_name="default", pipeline_bytes=PIPELINE, provenance={}, now=1_800_000_000.0,
    )  # fmt: skip


def whole_life(root: Root) -> None:
    """Claim, seal and promote everything in pending, repairing first, as a start does."""
    disk = Disk()
    ledger = Ledger(root, disk)
    ledger.repair()
    for claimed in admission.unfinished_claims(root):
        seal_one(root, claimed)
    names = [path.name for path in root.pending.iterdir() if path.suffix == ".json"]
    for claimed in admission.claim(root, disk, names, 1_800_000_000.0, random.Random(7)):
        seal_one(root, claimed)
    for run_dir in sorted(path for path in root.current.iterdir() if (path / "events.jsonl").exists()):
        disk.put(run_dir / "record.json", dump_json({"run_id": run_dir.name}))
        ledger.promote({run_dir.name: dump_json({"run_id": run_dir.name}, pretty=False)})


def places_of(root: Root) -> list[str]:
    """Where the seed stands, found by its content."""
    found = []
    for folder in (root.pending, root.rejected, root.current, root.complete):
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path != root.rejected and not path.name.startswith("."):
                files = [path / "seed.json", path / admission.CLAIM]
                found += [folder.name] if any(f.exists() and "precious" in f.read_text() for f in files) else []
            elif path.suffix == ".json" and not path.name.startswith(".") and "precious" in path.read_text():
                found.append(folder.name)
    return found


def test_a_crash_before_any_system_call_loses_nothing(tmp_path: Path) -> None:
    """After each of them the seed is in exactly one place, and the next start brings it to one line in the ledger."""
    number = 0
    while True:
        number += 1
        root = make_root(tmp_path / str(number))
        (root.pending / "a.json").write_text('{"text": "precious"}')
        try:
            with crash_before(number):
                whole_life(root)
            break
        except Crash:
            pass
        assert len(places_of(root)) == 1, f"call {number}: {places_of(root)}"
        whole_life(root)
        assert places_of(root) == ["pipeline-complete"], f"call {number}"
        lines = [json.loads(line) for line in root.ledger.read_bytes().splitlines()]
        folders = [path.name for path in root.complete.iterdir() if path.is_dir()]
        assert [line["run_id"] for line in lines] == folders, f"call {number}"
    assert number > 40


def test_a_crash_during_a_refusal_is_finished(tmp_path: Path) -> None:
    """The refused seed is never lost and never without its reason."""
    for number in range(1, 60):
        root = make_root(tmp_path / str(number))
        source = root.pending / "a.json"
        source.write_text("precious but wrong")
        error = SeedRejected("not valid JSON")
        try:
            with crash_before(number):
                admission.reject(root, Disk(), source, "a.json", error, 0.0)
            return
        except Crash:
            assert len(places_of(root)) == 1
        if source.exists():
            admission.reject(root, Disk(), source, "a.json", error, 0.0)
        assert json.loads((root.rejected / "a.json.reason.json").read_bytes())["message"] == "not valid JSON"
        assert (root.rejected / "a.json").read_text() == "precious but wrong"


def test_only_one_of_two_claims_gets_the_seed(root: Root) -> None:
    """A claim is one rename, so the slower taker gets nothing and leaves no folder behind."""
    (root.pending / "a.json").write_text("{}")
    first = admission.claim(root, Disk(), ["a.json"], 0.0, random.Random(1))
    second = admission.claim(root, Disk(), ["a.json"], 0.0, random.Random(2))
    assert (len(first), len(second)) == (1, 0)
    assert len(list(root.current.iterdir())) == 1


def test_nothing_in_rejected_is_overwritten(root: Root) -> None:
    """A second seed of the same name gets a name of its own."""
    for text in ("one", "two"):
        (root.pending / "a.json").write_text(text)
        admission.reject(root, Disk(), root.pending / "a.json", "a.json", SeedRejected("no"), 0.0)
    assert (root.rejected / "a.json").read_text() == "one"
    assert (root.rejected / "a.2.json").read_text() == "two"
    assert (root.rejected / "a.2.json.reason.json").exists()


ODD_NAMES = ["\U0001f600.json", "a\nb.json", "x" * 240 + ".json", "..json", "-rf.json", "ü ö.json"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_file_name_becomes_a_readable_run(root: Root, name: str) -> None:
    """A run's id is safe whatever the seed's file was called, and the seed is kept byte for byte."""
    (root.pending / name).write_text('{"a":   1}')
    (claimed,) = admission.claim(root, Disk(), [name], 0.0, random.Random(1))
    seal_one(root, claimed)
    assert claimed.run_dir.name.isascii() and claimed.run_dir.name.replace("-", "").isalnum()
    assert (claimed.run_dir / "seed.json").read_text() == '{"a":   1}'


def test_an_id_runs_once(root: Root) -> None:
    """The second seed with the same id is refused and told which run has it."""
    runs: list[admission.Claimed] = []
    for name in ("a.json", "b.json"):
        (root.pending / name).write_text('{"data": 1, "id": "order-7"}')
        runs += admission.claim(root, Disk(), [name], 0.0, random.Random(len(runs)))
    seal_one(root, runs[0])
    (runs[0].run_dir / admission.CLAIM).write_text('{"data": 1, "id": "order-7"}')
    seal_one(root, runs[0])  # a repeat after a crash is no second run
    with pytest.raises(SeedRejected, match=runs[0].run_dir.name):
        seal_one(root, runs[1])


def test_a_folder_brings_its_files(root: Root) -> None:
    """Everything beside seed.json lands in files/, with its folders."""
    folder = root.pending / "job"
    (folder / "docs").mkdir(parents=True)
    (folder / "seed.json").write_text('{"a": 1}')
    (folder / "docs" / "x.txt").write_text("hello")
    (claimed,) = admission.claim(root, Disk(), ["job"], 0.0, random.Random(1))
    seal_one(root, claimed)
    assert (claimed.run_dir / "files" / "docs" / "x.txt").read_text() == "hello"
    assert not (claimed.run_dir / admission.CLAIM).exists()


def test_a_zip_brings_its_files(root: Root) -> None:
    """As a folder does."""
    with zipfile.ZipFile(root.pending / "job.zip", "w") as archive:
        archive.writestr("seed.json", '{"a": 1}')
        archive.writestr("docs/x.txt", "hello")
    (claimed,) = admission.claim(root, Disk(), ["job.zip"], 0.0, random.Random(1))
    seal_one(root, claimed)
    assert (claimed.run_dir / "files" / "docs" / "x.txt").read_text() == "hello"


def test_without_the_machine_room_the_ledger_is_compared_as_a_whole(root: Root) -> None:
    """Deleting .pop costs no line."""
    (root.pending / "a.json").write_text('{"text": "precious"}')
    whole_life(root)
    root.ledger.unlink()
    (root.machine_room / "promoting").unlink()
    assert Ledger(root, Disk()).repair() == 1
    assert len(root.ledger.read_bytes().splitlines()) == 1


def test_a_seed_put_back_keeps_its_name(root: Root) -> None:
    """A seed whose pipeline is broken waits in the queue as if it had never been taken."""
    (root.pending / "a.json").write_text("{}")
    (claimed,) = admission.claim(root, Disk(), ["a.json"], 0.0, random.Random(1))
    assert admission.put_back(root, Disk(), claimed) == "a.json"
    assert (root.pending / "a.json").read_text() == "{}"
    assert list(root.current.iterdir()) == []
