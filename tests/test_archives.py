"""Folder and zip seeds: what they bring along, and what hostile ones cannot do."""

from __future__ import annotations

import os
import stat
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pop import admission
from pop.admission import Claimed
from pop.changes import Changes
from pop.drops import submit
from pop.errors import SeedRejected
from pop.queue import Ready, ignore_lease_breaks, peek
from pop.settings import SeedSettings
from tests.living import LivingRoot
from tests.webbing import make_root

Make = Callable[..., LivingRoot]
LIMITS = SeedSettings(settle_s=0.0)
READ = """
def infer(prompt, ctx):
    files = ctx.files
    return {str(p.relative_to(files)): p.read_text() for p in files.rglob('*') if p.is_file()} if files else None
"""

Entry = tuple[str, bytes] | tuple[zipfile.ZipInfo, bytes]


def make_zip(path: Path, *entries: Entry) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # a name that stands twice
        for name, data in (("seed.json", b"{}"), *entries):
            archive.writestr(name, data)
    return path


def special(name: str, kind: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (kind | 0o644) << 16
    return entry


def packed(method: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("a.txt")
    entry.compress_type = method
    return entry


def folders_alone(path: Path, count: int) -> None:
    """An archive that is nothing but a list of folders, and a seed."""
    make_zip(path, ("x/", b""))
    data = path.read_bytes()
    end, start = data.rfind(b"PK\5\6"), data.find(b"PK\1\2", data.find(b"PK\1\2") + 1)
    more = data[start:end] * count
    size = end - data.find(b"PK\1\2") + len(more)
    path.write_bytes(data[:end] + more + data[end : end + 12] + struct.pack("<I", size) + data[end + 16 :])


def patch(
    path: Path, name: str, *, flags: int | None = None, method: int | None = None, size: int | None = None
) -> None:
    """Change what both headers of an entry say about it."""
    data = bytearray(path.read_bytes())
    for mark, at_flags, at_method, at_size, at_name in ((b"PK\3\4", 6, 8, 22, 30), (b"PK\1\2", 8, 10, 24, 46)):
        start = data.find(mark)
        while start >= 0:
            if data[start + at_name :].startswith(name.encode()):
                for offset, code, value in ((at_flags, "<H", flags), (at_method, "<H", method), (at_size, "<I", size)):
                    if value is not None:
                        struct.pack_into(code, data, start + offset, value)
            start = data.find(mark, start + 4)
    path.write_bytes(data)


def encrypted(path: Path) -> None:
    make_zip(path, ("secret.txt", b"x"))
    patch(path, "secret.txt", flags=1)


def encrypted_seed(path: Path) -> None:
    make_zip(path)
    patch(path, "seed.json", flags=1)


REFUSED_AT_ONCE: dict[str, tuple[Callable[[Path], object], str]] = {
    "encrypted": (encrypted, "'secret.txt' is encrypted"),
    "encrypted seed": (encrypted_seed, "'seed.json' is encrypted"),
    "twice": (lambda path: make_zip(path, ("a.txt", b"1"), ("a.txt", b"2")), "'a.txt' stands twice"),
    "seed twice": (lambda path: make_zip(path, ("seed.json", b"{}")), "'seed.json' stands twice"),
    "link": (lambda path: make_zip(path, (special("a", stat.S_IFLNK), b"/etc/passwd")), "'a' is no regular file"),
    "pipe": (lambda path: make_zip(path, (special("a", stat.S_IFIFO), b"")), "'a' is no regular file"),
    "device": (lambda path: make_zip(path, (special("a", stat.S_IFCHR), b"")), "'a' is no regular file"),
    "backslash": (lambda path: make_zip(path, ("a\\..\\b", b"")), "plain relative path"),
    "drive": (lambda path: make_zip(path, ("c:/b", b"")), "plain relative path"),
    "bzip2": (lambda path: make_zip(path, (packed(zipfile.ZIP_BZIP2), b"x")), "'a.txt' is not packed with deflate"),
    "lzma": (lambda path: make_zip(path, (packed(zipfile.ZIP_LZMA), b"x")), "'a.txt' is not packed with deflate"),
    "too many folders": (lambda path: folders_alone(path, 400_000), "list of entries is too long"),
    "long name": (lambda path: make_zip(path, ("x" * 256, b"")), "too long a name"),
}


@pytest.mark.parametrize("kind", REFUSED_AT_ONCE)
def test_a_hostile_archive_is_refused_before_it_is_unpacked(tmp_path: Path, kind: str) -> None:
    """The sentence names the entry; unpacking refuses it as well, since it may have changed after it was looked at."""
    make, says = REFUSED_AT_ONCE[kind]
    make(tmp_path / "a.zip")
    with pytest.raises(SeedRejected) as caught:
        peek(tmp_path / "a.zip", LIMITS)
    assert says in str(caught.value)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    os.rename(tmp_path / "a.zip", run_dir / admission.CLAIM)
    with pytest.raises(SeedRejected) as again:
        admission.read_claim(Claimed(run_dir, "a.zip"), LIMITS)
    assert says in str(again.value) and not (run_dir / "files").exists()


# These pass the first look, which reads seed.json alone, and fail when the other entries are unpacked.


def larger_than_declared(path: Path) -> None:
    make_zip(path, ("a.txt", b"x" * 5000))
    patch(path, "a.txt", size=10)


def damaged(path: Path) -> None:
    entry = zipfile.ZipInfo("a.txt")
    make_zip(path, (entry, b"precious"))  # stored, not compressed
    path.write_bytes(path.read_bytes().replace(b"precious", b"previous"))


def garbage(path: Path) -> None:
    make_zip(path, ("a.txt", b"abcdefgh" * 500))
    data = bytearray(path.read_bytes())
    at = data.find(b"a.txt") + 5
    data[at : at + 6] = b"\xff" * 6
    path.write_bytes(data)


def odd_method(path: Path) -> None:
    make_zip(path, ("a.txt", b"x" * 500))
    patch(path, "a.txt", method=99)


LATER: dict[str, Callable[[Path], object]] = {
    "larger than declared": larger_than_declared,
    "damaged": damaged,
    "garbage": garbage,
    "odd method": odd_method,
    "file and folder": lambda path: make_zip(path, ("a", b"1"), ("a/b", b"2")),
    "folder and file": lambda path: make_zip(path, ("a/b", b"1"), ("a", b"2")),
}


@pytest.mark.parametrize("kind", LATER)
def test_an_archive_that_cannot_be_unpacked_is_refused(tmp_path: Path, kind: str) -> None:
    """As a bad seed, with a sentence."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    LATER[kind](run_dir / admission.CLAIM)
    with pytest.raises(SeedRejected):
        admission.read_claim(Claimed(run_dir, "a.zip"), LIMITS)


def test_an_entry_never_yields_more_than_it_declares(tmp_path: Path) -> None:
    """Whatever becomes of the archive, no more bytes than the checked sizes reach the disk."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    larger_than_declared(run_dir / admission.CLAIM)
    with pytest.raises(SeedRejected):
        admission.read_claim(Claimed(run_dir, "a.zip"), LIMITS)
    assert (run_dir / "files" / "a.txt").stat().st_size <= 10


def test_an_entry_is_never_in_memory_beyond_its_declared_size(tmp_path: Path) -> None:
    """Half a kilobyte could stand for gigabytes: it is unpacked in small pieces, up to what its header tells."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("seed.json", b" " * 2**28)
    patch(tmp_path / "a.zip", "seed.json", size=100)
    tracemalloc.start()
    try:
        with pytest.raises(SeedRejected, match="cannot be unpacked"):
            peek(tmp_path / "a.zip", LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["file and folder", "folder and file", "leads out"])
def test_an_archive_that_is_laid_out_for_its_envelope_stays_in_its_folder(tmp_path: Path, kind: str) -> None:
    """Where a pipeline is chosen for it, `submit` unpacks it; folders' names count as well as files'."""
    root = make_root(tmp_path / "root")
    (root.pipelines).mkdir()
    (root.pipelines / "other.json").write_text('{"tasks": ["one"]}')
    if kind == "leads out":
        make_zip(tmp_path / "a.zip", ("../../evil/", b""), ("/evil/", b""), ("x" * 300 + "/", b""))
    else:
        LATER[kind](tmp_path / "a.zip")
    try:
        path = submit(root, str(tmp_path / "a.zip"), Changes(pipeline="other"))
        assert kind == "leads out" and os.listdir(path) == ["seed.json"]
    except SeedRejected as error:
        assert kind != "leads out" and "cannot be unpacked" in str(error)
    assert not list(tmp_path.rglob("evil")) and not list(root.pending.glob(".*"))


def test_an_archive_that_cannot_be_unpacked_ends_no_daemon(make_living: Make, tmp_path: Path) -> None:
    """It goes to rejected/ with its reason, and the next seed is served."""
    living = make_living(pipeline={"name": "p", "tasks": ["read"]}, tasks={"read.py": READ})
    daemon = living.up()
    damaged(tmp_path / "a.zip")
    os.rename(tmp_path / "a.zip", living.root.pending / "a.zip")
    reason = living.root.rejected / "a.zip.reason.json"
    living.wait(lambda: reason.exists() or daemon.poll() is not None, "what becomes of it", patience_s=20)
    living.drop("good.json", {})
    living.wait_complete(1, patience_s=20)
    assert reason.exists()


@pytest.mark.parametrize("kind", ["folder", "zip", "alone"])
def test_a_task_sees_what_came_with_the_seed(make_living: Make, tmp_path: Path, kind: str) -> None:
    """`ctx.files` is the folder of what came, without seed.json; None when the seed came alone."""
    living = make_living(pipeline={"name": "p", "tasks": ["read"]}, tasks={"read.py": READ})
    job = tmp_path / "job"
    (job / "docs").mkdir(parents=True)
    (job / "seed.json").write_text("{}")
    (job / "docs" / "ü.txt").write_text("hello")
    if kind == "folder":
        os.rename(job, living.root.pending / "job")
    elif kind == "zip":
        make_zip(living.root.pending / "job.zip", ("docs/ü.txt", b"hello"))
    else:
        living.drop("job.json", {})
    living.up()
    (row,) = living.wait_complete(1)
    assert living.output(row, "read") == (None if kind == "alone" else {"docs/ü.txt": "hello"})


# -- [seeds] -------------------------------------------------------------------------------------------------------

SMALL = "[seeds]\nmax_mb = 0.001\nmax_files = 3\nmax_files_mb = 0.01\nmax_ratio = 5\nsettle_s = 0\n"
TOO_MUCH: dict[str, tuple[dict[str, bytes], str]] = {
    "files": ({f"{n}.txt": b"x" for n in range(3)}, "more than 3 files"),
    "bytes": ({"a.txt": os.urandom(6000), "b.txt": os.urandom(6000)}, "more than 0.01 MB"),
}
ENOUGH: dict[str, bytes] = {"a.txt": os.urandom(4000), "b.txt": os.urandom(4000)}


def folder_of(path: Path, files: dict[str, bytes]) -> None:
    path.mkdir()
    for name, data in {"seed.json": b"{}", **files}.items():
        (path / name).write_bytes(data)


@pytest.mark.parametrize("kind", TOO_MUCH)
@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
def test_a_seed_with_too_much_is_refused(tmp_path: Path, kind: str, as_zip: bool) -> None:
    """max_files and max_files_mb hold for folders and archives alike, and say how to raise them."""
    limits = SeedSettings(settle_s=0.0, max_files=3, max_files_mb=0.01)
    files, says = TOO_MUCH[kind]
    for name, some in (("good", ENOUGH), ("bad", files)):
        if as_zip:
            make_zip(tmp_path / f"{name}.zip", *some.items())
        else:
            folder_of(tmp_path / name, some)
    suffix = ".zip" if as_zip else ""
    ignore_lease_breaks()
    assert isinstance(peek(tmp_path / f"good{suffix}", limits), Ready)
    with pytest.raises(SeedRejected, match=says) as caught:
        peek(tmp_path / f"bad{suffix}", limits)
    assert caught.value.code == "seed-too-large" and "[seeds] max_files" in (caught.value.hint or "")


def test_the_limits_of_pop_toml_count(make_living: Make, tmp_path: Path) -> None:
    """Each key of [seeds] refuses what the defaults would take."""
    living = make_living(pipeline={"name": "p", "tasks": ["read"]}, tasks={"read.py": READ}, settings=SMALL)
    living.drop("large.json", {"text": "x" * 2000})
    folder_of(tmp_path / "many", TOO_MUCH["files"][0])
    folder_of(tmp_path / "heavy", TOO_MUCH["bytes"][0])
    for name in ("many", "heavy"):
        os.rename(tmp_path / name, living.root.pending / name)
    living.up()
    names = {"large.json", "many", "heavy"}
    living.wait(lambda: {n for n in names if (living.root.rejected / f"{n}.reason.json").exists()} == names, "refusals")
    assert living.ledger() == []


def test_how_much_an_entry_may_expand_is_a_setting(tmp_path: Path) -> None:
    """max_ratio, from one megabyte on."""
    make_zip(tmp_path / "a.zip", ("a.txt", b"abcdefgh" * 200_000))
    ignore_lease_breaks()
    assert isinstance(peek(tmp_path / "a.zip", SeedSettings(max_ratio=100_000)), Ready)
    with pytest.raises(SeedRejected, match="expands more than 5 times"):
        peek(tmp_path / "a.zip", SeedSettings(max_ratio=5))
