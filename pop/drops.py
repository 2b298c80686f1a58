"""Seeds into the queue, each whole, under a name of its own: from a file, a folder, an archive, or an upload."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pop.admission import NAMES_AT_FAULT
from pop.changes import Changes, Recorded
from pop.errors import SeedRejected, UsageError, safe
from pop.queue import (
    BROKEN_ZIP,
    Incomplete,
    entry_pieces,
    ignore_lease_breaks,
    is_candidate,
    open_archive,
    peek,
    zip_entries,
)
from pop.records import BadJson
from pop.rootcheck import RootCheck
from pop.seeds import is_a_beginning, parse_seed
from pop.settings import Root, SeedSettings, load_settings
from pop.store import NotAFile, contained, rename_noreplace

LONG_AGO_S = 60.0
CERTAIN = frozenset({"no-price", "unknown-run"})  # what a model lacks whatever the daemon's environment holds
Look = Callable[[Path], None]
WHAT_FITS = "a seed is a .json file, a .zip, or a folder with seed.json"


def submit(root: Root, asked: str, changes: Changes | None = None, *, look: Look | None = None) -> Path:
    """Put a file, a folder or ``-`` (standard input) into pipeline-pending/; it appears there whole.

    Args:
        look: Raises where the seed, as it will lie there, is not to appear.

    Raises:
        UsageError: There is no such file, or its name is left alone in the queue.
        SeedRejected: It can never become a run, or not as it stands (half a file).
    """
    return _submit(root, _existing(asked), asked, changes, look)


def _submit(root: Root, source: Path, asked: str, changes: Changes | None, look: Look | None) -> Path:
    with _draft(root) as draft:
        if source.is_dir() or (_is_zip(source) and changes):
            _lay_out(root, source, draft, asked)
            if changes:
                changes.write(root, draft / "seed.json")
                _make_old(draft)
            _look(root, look, draft, asked)
            return _appear(draft, root.pending, source.name if source.is_dir() else _stem(source))
        if _is_zip(source):
            _check(source, asked, _limits(root))
            shutil.copyfile(source, draft)
            _look(root, look, source, asked)
            return _appear(draft, root.pending, source.name)
        _copy_json(source, draft, asked, _limits(root))
        _check_envelope(root, draft, asked)
        if changes:
            changes.write(root, draft)
        _look(root, look, draft, asked)
        return _appear(draft, root.pending, f"{_stem(source)}.json")


def submit_alone(root: Root, asked: str, changes: Changes | None = None, *, look: Look | None = None) -> Path:
    """The same under a name that no other seed has, had or will have: a folder ``<stem>.<token>``.

    The run is called after the stem all the same.

    Args:
        changes: Which pipeline and models the seed is to ask for, whatever it asks for itself.
        look: As for `submit`.
    """
    source = _existing(asked)
    with _draft(root) as draft:
        _lay_out(root, source, draft, asked, check=not (changes and changes.pipeline))
        if changes:
            changes.write(root, draft / "seed.json")
        _look(root, look, draft if source.is_dir() or _is_zip(source) else draft / "seed.json", asked)
        _make_old(draft)
        return _appear(draft, root.pending, f"{_stem(source)}.{secrets.token_hex(4)}")


@dataclass(frozen=True)
class Upload:
    """A file that somebody sent: what they call it, and where its bytes are read from."""

    name: str
    file: BinaryIO


def drop(
    root: Root,
    uploads: Sequence[Upload],
    changes: Changes | None = None,
    *,
    name: str = "upload",
    look: Look | None = None,
) -> Path:
    """What was sent, into the queue: a .json, a .zip, or several files with a seed.json among them.

    It is held to [seeds] of pop.toml while it is read, before anything appears.

    Args:
        name: What a folder made of several files is called.
        look: As for `submit`.

    Raises:
        SeedRejected: It can never become a run, or it is too large, or too many.
        UsageError: A file's name is none.
    """
    limits = _limits(root)
    names = [_plain(upload.name) for upload in uploads]
    if len(names) != 1 and "seed.json" not in names:
        message = "no file was sent" if not names else f"{len(names)} files, and none of them is seed.json"
        raise SeedRejected(message, hint=WHAT_FITS)
    if len(names) == 1 and not names[0].lower().endswith((".json", ".zip")):
        raise SeedRejected(f"{names[0]!r} ends in neither .json nor .zip", where=names[0], hint=WHAT_FITS)
    if len(names) > limits.max_files:
        hint = "raise [seeds] max_files in pop.toml"
        raise SeedRejected(f"more than {limits.max_files} files", hint=hint, code="seed-too-large")
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise SeedRejected(f"{twice!r} was sent twice", hint="give each file a name of its own")
    with _draft(root) as staged:
        folder = staged / _plain(name)
        folder.mkdir(parents=True)
        room = int(limits.max_files_mb * 2**20)
        for one, upload in zip(names, uploads, strict=True):
            room -= _take(upload, folder / one, room, limits)
        alone = len(names) == 1
        return _submit(root, folder / names[0] if alone else folder, names[0] if alone else name, changes, look)


def _plain(name: str) -> str:
    """A name that a file of the queue may have.

    Raises:
        UsageError: It is none.
    """
    bad = not name or "/" in name or "\\" in name or not name.isprintable() or not is_candidate(name)
    try:
        bad = bad or len(name.encode()) > 200
    except UnicodeEncodeError:  # half of a surrogate pair
        bad = True
    if bad:
        hint = "at most 200 bytes, no slash, no dot at its beginning, nothing that cannot be printed"
        raise UsageError(
            f"{safe(name, 80, one_line=True)!r} is no name for a file of the queue", hint=hint, code="bad-name"
        )
    return name


def _take(upload: Upload, target: Path, room: int, limits: SeedSettings) -> int:
    """Copy what was sent; returns how many bytes that was.

    Raises:
        SeedRejected: There are more than fit.
    """
    whole = int(limits.max_mb * 2**20)
    key, most = ("max_mb", whole) if target.suffix.lower() == ".json" and whole < room else ("max_files_mb", room)
    taken = 0
    with open(target, "xb") as file:
        while chunk := upload.file.read(2**20):
            taken += len(chunk)
            if taken > most:
                hint = f"raise [seeds] {key} in pop.toml"
                message = f"more than the limit of {getattr(limits, key):g} MB"
                raise SeedRejected(message, where=upload.name, hint=hint, code="seed-too-large")
            file.write(chunk)
    return taken


def put_seed(root: Root, data: bytes, name: str) -> Path:
    """A seed's bytes into the queue under a free name like this one; it appears there whole."""
    with _draft(root) as draft:
        draft.write_bytes(data)
        return _appear(draft, root.pending, name)


def _lay_out(root: Root, source: Path, draft: Path, asked: str, *, check: bool = True) -> None:
    """Any kind of seed as a folder.

    Args:
        check: Whether what the envelope names must be there.
    """
    if source.is_dir():
        _copy_folder(source, draft, asked, _limits(root))
    elif _is_zip(source):
        _check(source, asked, _limits(root))
        _unpack(source, draft, asked, _limits(root))
    else:
        draft.mkdir()
        _copy_json(source, draft / "seed.json", asked, _limits(root))
        if check:
            _check_envelope(root, draft / "seed.json", asked)


@contextmanager
def seed_of(recorded: Recorded) -> Iterator[Path]:
    """The seed of a recorded run as it was dropped: a folder with seed.json and what came with it.

    Raises:
        UsageError: The run has lost it.
    """
    with tempfile.TemporaryDirectory(prefix="pop-replay-") as around:
        folder = Path(around, recorded.stem)
        try:
            if (recorded.path / "files").is_dir():
                shutil.copytree(recorded.path / "files", folder, copy_function=shutil.copyfile)
            folder.mkdir(exist_ok=True)
            shutil.copyfile(recorded.path / "seed.json", folder / "seed.json")
        except (FileNotFoundError, IsADirectoryError, shutil.SpecialFileError, shutil.Error) as error:
            message = f"the seed of {recorded.path.name} cannot be read: {error}"
            raise UsageError(message, where="--replay", hint="drop a seed of your own", code="not-recorded") from None
        yield folder


@contextmanager
def _draft(root: Root) -> Iterator[Path]:
    """A name in the queue that it leaves alone; nothing is left there whatever happens."""
    root.pending.mkdir(parents=True, exist_ok=True)
    draft = root.pending / f".{os.getpid()}-{time.time_ns()}-{secrets.token_hex(2)}.draft"
    try:
        yield draft
    finally:
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)


def _limits(root: Root) -> SeedSettings:
    return load_settings(root).seeds


def _existing(asked: str) -> Path:
    """What `asked` names, itself where that is a link.

    Raises:
        UsageError: It is not there, or the queue leaves such names alone.
    """
    path = Path("/dev/stdin" if asked == "-" else asked)
    if not path.exists():
        raise UsageError(f"no file {asked!r}", hint=f"{WHAT_FITS}, or - for standard input")
    source = path.resolve() if path.is_dir() or (path.is_file() and asked != "-") else path
    if not is_candidate(source.name):
        raise UsageError(f"the queue leaves {source.name!r} alone", where=asked, hint="give it another name")
    return source


def _is_zip(source: Path) -> bool:
    return source.suffix.lower() == ".zip"


def _stem(source: Path) -> str:
    """The name without its ending, at most 180 bytes: a token, a number and an ending find room in a file's name."""
    name = source.name if source.is_dir() or source.suffix.lower() not in (".json", ".zip") else source.stem
    return os.fsencode(name)[:180].decode(errors="ignore") or "seed"


def _copy_json(source: Path, target: Path, asked: str, limits: SeedSettings) -> None:
    """From a file, a pipe or standard input."""
    most, where = int(limits.max_mb * 2**20), _shown(asked)
    with nullcontext(sys.stdin.buffer) if asked == "-" else open(source, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        hint = "raise [seeds] max_mb in pop.toml, or take a folder with the large files beside seed.json"
        raise SeedRejected(
            f"more than the limit of {limits.max_mb:g} MB", where=where, hint=hint, code="seed-too-large"
        )
    target.write_bytes(data)
    _check_json(target, where)


def _check_json(file: Path, where: str) -> None:
    """Read it as the queue will.

    Raises:
        SeedRejected: It is no seed; with the place, also where it ends too early.
    """
    data = file.read_bytes()
    try:
        parse_seed(data, where=where)
    except SeedRejected as error:
        if not data.strip():
            raise SeedRejected("it is empty", where=where, hint="a seed is a JSON object") from None
        if error.code == BadJson.code and is_a_beginning(data):
            raise SeedRejected(
                "it ends in the middle", where=error.where, hint="write it to its end, then again"
            ) from None
        error.hint = error.hint or (None if where.lower().endswith(".json") else WHAT_FITS)
        raise


def _check_envelope(root: Root, seed: Path, asked: str) -> None:
    """Which pipeline and models a copied seed asks for, against this folder's.

    Raises:
        PopError: The first that is not there, with its place in what was `asked`.
    """
    for problem in RootCheck(root).envelope_problems(seed):
        problem.where = (problem.where or "").replace(str(seed), _shown(asked))
        raise problem


def _shown(asked: str) -> str:
    return "standard input" if asked == "-" else asked


def _look(root: Root, look: Look | None, seed: Path, asked: str) -> None:
    """Hold it against its pipeline's schema, and against what the caller knows."""
    RootCheck(root).refuse_misfit(seed, _shown(asked))
    if look is not None:
        look(seed)


def _check(source: Path, asked: str, limits: SeedSettings) -> None:
    """Look at a folder or an archive as the queue will.

    Raises:
        SeedRejected: It is no seed.
    """
    ignore_lease_breaks()
    found = peek(source, limits.model_copy(update={"settle_s": 0.0}))
    if isinstance(found, Incomplete):
        raise SeedRejected(f"not yet a seed: {found.reason}", where=asked, hint=WHAT_FITS)


def _copy_folder(source: Path, draft: Path, asked: str, limits: SeedSettings) -> None:
    inner = source / "seed.json"
    if inner.is_file():
        _check_json(inner, os.path.join(asked, "seed.json"))
    _check(source, asked, limits)
    shutil.copytree(source, draft, copy_function=shutil.copyfile)  # whatever their modes
    _make_old(draft)


def _unpack(source: Path, draft: Path, asked: str, limits: SeedSettings) -> None:
    """The names and sizes in it were looked at by `_check`.

    Raises:
        SeedRejected: It is damaged, or a file in it stands where a folder does.
    """
    draft.mkdir()
    try:
        with open_archive(source) as file, zipfile.ZipFile(file) as archive:
            for name, entry in zip_entries(archive, limits, asked).items():
                target = contained(draft, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as writer:
                    writer.writelines(entry_pieces(archive, entry))
    except (*BROKEN_ZIP, NotAFile) as error:
        raise SeedRejected(f"it cannot be unpacked: {error}", where=asked) from None
    except OSError as error:
        if error.errno not in NAMES_AT_FAULT:
            raise
        raise SeedRejected(f"it cannot be unpacked: {error.strerror}", where=asked) from None


def _make_old(folder: Path) -> None:
    """It is whole, so nobody needs to wait for it to settle."""
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (time.time() - LONG_AGO_S, time.time() - LONG_AGO_S))


def _appear(draft: Path, folder: Path, name: str) -> Path:
    stem, suffix = os.path.splitext(name)
    for number in range(1, 100_000):
        target = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
        try:
            rename_noreplace(draft, target)
            return target
        except FileExistsError:
            continue
    raise UsageError("the queue holds 100,000 seeds of this name")
