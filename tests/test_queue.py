"""The queue: what is ready, what waits, what is refused."""

from __future__ import annotations

import json
import os
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pop.errors import SeedRejected
from pop.queue import Incomplete, PendingQueue, Ready, ignore_lease_breaks, peek
from pop.seeds import parse_seed
from pop.settings import Root, SeedSettings

LIMITS = SeedSettings(settle_s=0.0)


@pytest.fixture(autouse=True)
def _quiet_leases() -> Iterator[None]:
    ignore_lease_breaks()
    yield


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path)
    root.rejected.mkdir(parents=True)
    return root


def drop(root: Root, name: str, value: object) -> Path:
    path = root.pending / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_bare_object_is_the_data(root: Root) -> None:
    """Without a 'data' key the whole object is what the tasks see."""
    found = peek(drop(root, "a.json", {"text": "x", "priority": 5}), LIMITS)
    assert isinstance(found, Ready)
    assert found.seed.data == {"text": "x", "priority": 5}
    assert found.seed.priority == 0


def test_an_envelope_is_read(root: Root) -> None:
    """With a 'data' key the other keys steer the run."""
    found = peek(drop(root, "a.json", {"data": 1, "name": "N", "priority": 5}), LIMITS)
    assert isinstance(found, Ready)
    assert (found.seed.data, found.name, found.seed.priority) == (1, "N", 5)


def test_a_file_that_is_open_for_writing_waits(root: Root) -> None:
    """Even a whole document is not taken while its writer has it open."""
    with open(root.pending / "a.json", "w") as file:
        file.write("{}")
        file.flush()
        found = peek(root.pending / "a.json", LIMITS)
        assert isinstance(found, Incomplete) and "writing" in found.reason
    assert isinstance(peek(root.pending / "a.json", LIMITS), Ready)


@pytest.mark.parametrize("text", ["", "  \n", '{"a": ', '{"a": "no end', '{"a": [1, 2', '{"a": tr', '{"a": "\\u00'])
def test_half_a_file_waits_and_is_never_refused(root: Root, text: str) -> None:
    """A closed file that ends in the middle may still grow (`>>`, a killed copy)."""
    assert isinstance(peek(drop(root, "a.json", text), LIMITS), Incomplete)


def test_half_a_character_waits(root: Root) -> None:
    """A copy that stopped inside a multi-byte character is half a file, not bad UTF-8."""
    (root.pending / "a.json").write_bytes('{"a": "ü'.encode()[:-1])
    assert isinstance(peek(root.pending / "a.json", LIMITS), Incomplete)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a": 1} x', "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"[1]", "a list"),
        (b"null", "null"),
        (b"[" * 100_000 + b"]" * 100_000, "deep"),
        (b'{"data": 1, "prio": 2}', "prio"),
        (b'{"data": 1, "priority": "high"}', "priority"),
        (b'{"data": 1, "name": "../x"}', "slash"),
        (b'{"data": 1, "name": "a\\u0007b"}', "control"),
        (b'{"data": 1, "name": "' + b"x" * 300 + b'"}', "300 characters"),
        (b'{"data": 1, "pipeline": "../etc"}', "no pipeline's name"),
        (b'{"data": 1, "not_before": "tomorrow"}', "no time"),
    ],
)
def test_what_can_never_be_right_is_refused_at_once(root: Root, data: bytes, says: str) -> None:
    """The sentence names what is wrong."""
    path = root.pending / "a.json"
    path.write_bytes(data)
    with pytest.raises(SeedRejected) as caught:
        peek(path, LIMITS)
    assert says in caught.value.message


def test_a_seed_above_the_limit_is_refused_without_reading_it(root: Root) -> None:
    """A 100 MB file costs a stat, not memory."""
    with open(root.pending / "a.json", "wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(SeedRejected, match="more than the limit"):
        peek(root.pending / "a.json", SeedSettings())


def test_links_pipes_and_sockets_are_refused(root: Root) -> None:
    """Only what was really put there is a seed."""
    drop(root, "real.json", {})
    os.symlink(root.pending / "real.json", root.pending / "link.json")
    os.mkfifo(root.pending / "pipe.json")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root.pending / "s.json"))
        for name in ("link.json", "pipe.json", "s.json"):
            with pytest.raises(SeedRejected):
                peek(root.pending / name, LIMITS)


def test_a_folder_needs_a_seed(root: Root) -> None:
    """A folder without seed.json waits a little (it may be being copied) and is then refused."""
    folder = root.pending / "job"
    folder.mkdir()
    (folder / "doc.txt").write_text("hello")
    assert isinstance(peek(folder, LIMITS), Incomplete)
    for path in (folder / "doc.txt", folder):
        os.utime(path, (1, 1))
    with pytest.raises(SeedRejected, match="no seed.json"):
        peek(folder, LIMITS)
    (folder / "seed.json").write_text("{}")
    assert isinstance(peek(folder, LIMITS), Ready)


def test_a_folder_waits_until_it_stands_still(root: Root) -> None:
    """A slow copy of a folder is not taken in the middle."""
    folder = root.pending / "job"
    folder.mkdir()
    (folder / "seed.json").write_text("{}")
    assert isinstance(peek(folder, SeedSettings(settle_s=5.0)), Incomplete)


def make_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_zip_with_a_seed_is_ready(root: Root) -> None:
    """The envelope inside is read without unpacking."""
    path = make_zip(root.pending / "a.zip", {"seed.json": b'{"data": 1, "priority": 3}', "docs/a.txt": b"x"})
    found = peek(path, LIMITS)
    assert isinstance(found, Ready) and found.seed.priority == 3


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"a.txt": b"x"}, "no seed.json"),
        ({"seed.json": b"{}", "../evil": b"x"}, "plain relative path"),
        ({"seed.json": b"{}", "/etc/passwd": b"x"}, "plain relative path"),
        ({"seed.json": b"{}", "bomb": b"\0" * 30_000_000}, "expands"),
        ({"seed.json": b"[1]"}, "a list"),
    ],
)
def test_a_hostile_zip_is_refused(root: Root, entries: dict[str, bytes], says: str) -> None:
    """Names, sizes and ratios are checked before a byte is written."""
    path = make_zip(root.pending / "a.zip", entries)
    with pytest.raises(SeedRejected) as caught:
        peek(path, LIMITS)
    assert says in str(caught.value)


def test_half_a_zip_waits(root: Root) -> None:
    """The directory of a zip stands at its end, so a cut one may still grow."""
    path = make_zip(root.pending / "a.zip", {"seed.json": b"{}"})
    path.write_bytes(path.read_bytes()[:-10])
    assert isinstance(peek(path, LIMITS), Incomplete)


def test_order_is_priority_then_arrival(root: Root) -> None:
    """The higher priority first; among equals the one that came first."""
    queue = PendingQueue(root, LIMITS)
    for name, priority in [("a", 0), ("b", 5), ("c", 0), ("d", 5)]:
        drop(root, f"{name}.json", {"data": 1, "priority": priority})
    assert queue.scan() == []
    assert [queue.next_name(0) for _ in range(5)] == ["b.json", "d.json", "a.json", "c.json", None]


def test_not_before_waits_for_its_time(root: Root) -> None:
    """A seed for later stays in the queue until it is due."""
    queue = PendingQueue(root, LIMITS)
    drop(root, "a.json", {"data": 1, "not_before": "2999-01-01T00:00:00Z"})
    queue.scan()
    assert queue.next_name(0) is None
    assert queue.next_name(4e10) == "a.json"


def test_a_second_scan_hands_out_nothing_twice(root: Root) -> None:
    """A name is known until it is forgotten."""
    queue = PendingQueue(root, LIMITS)
    drop(root, "a.json", {})
    queue.scan()
    assert queue.next_name(0) == "a.json"
    queue.scan(forced=True)
    assert queue.next_name(0) is None
    queue.forget("a.json")
    queue.scan(forced=True)
    assert queue.next_name(0) == "a.json"


def test_editors_temporary_files_are_left_alone(root: Root) -> None:
    """Dot-names and other suffixes are neither taken nor refused."""
    queue = PendingQueue(root, LIMITS)
    for name in (".a.json.swp", "a.json~", "notes.txt", "a.json.part"):
        drop(root, name, "junk")
    assert queue.scan() == []
    assert queue.next_name(0) is None


def test_an_incomplete_seed_is_taken_when_it_is_whole(root: Root) -> None:
    """Appending the rest does not change the folder, yet the next scan sees it."""
    queue = PendingQueue(root, LIMITS)
    path = drop(root, "a.json", '{"a": ')
    os.utime(root.pending, (1, 1))
    queue.scan()
    assert queue.next_name(0) is None
    with open(path, "a") as file:
        file.write("1}")
    queue.scan()
    assert queue.next_name(0) == "a.json"


def test_big_integers_stay_exact() -> None:
    """No number of a seed becomes a float on the way."""
    assert parse_seed(b'{"n": 123456789012345678901234567890}').data == {"n": 123456789012345678901234567890}
