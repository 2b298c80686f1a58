"""From pipeline-pending/ into pipeline-current/: claim, seal, or reject; each step may be cut off and repeated.

| a crash leaves                             | `finish_claims` does                                  |
|--------------------------------------------|-------------------------------------------------------|
| an empty run folder                        | removes it                                            |
| seed.claim, no journal                     | seals again (every write is repeatable)               |
| seed.json, no journal, no claim            | takes it for the claim it was, seals again            |
| seed.claim beside a sealed run             | removes the claim                                     |
| a reason without its seed in rejected/     | the next scan refuses the seed again, under that name |
| a draft of an upload in pipeline-pending/  | `remove_old_drafts` removes it after an hour          |
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shutil
import time
import unicodedata
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop import events
from pop.errors import PopError, SeedRejected
from pop.queue import (
    BROKEN_ZIP,
    MB,
    NotYet,
    entry_pieces,
    folder_entries,
    is_written,
    open_archive,
    read_entry,
    zip_entries,
)
from pop.records import BadJson, Seed, dump_json, objects_in, printable
from pop.seeds import is_a_beginning, parse_seed
from pop.settings import Root, SeedSettings
from pop.store import (
    Disk,
    Later,
    NotAFile,
    contained,
    open_file,
    open_regular,
    open_up,
    read_regular,
    remove_tree,
    rename_noreplace,
)

CLAIM = "seed.claim"
DRAFT_S = 3600.0
_DRAFT = re.compile(r"\.\d+-(\d{1,20})-[0-9a-f]{4}\.draft")  # as drops.py names them: process, nanoseconds, chance
TAIL_BYTES = 65536  # of a journal, in which the newest event of its run is looked for
NAMES_AT_FAULT = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


@dataclass(frozen=True)
class Claimed:
    """A seed that left the queue: its run folder and what its file was called."""

    run_dir: Path
    file_name: str


def slug(name: str) -> str:
    """`name` as a part of a run id: ``[a-z0-9-]``, at most 40 characters, ``seed`` when nothing is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-") or "seed"


def new_run_id(name: str, now: float, rng: random.Random) -> str:
    """A readable id that sorts by time: ``20261121-031502-<slug>-<4 chars>``."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{stamp}-{slug(name)}-{''.join(rng.choices('abcdefghjkmnpqrstuvwxyz23456789', k=4))}"


def claim(
    root: Root,
    disk: Disk,
    file_names: list[str],
    now: float,
    rng: random.Random,
    stuck: dict[str, OSError] | None = None,
) -> list[Claimed]:
    """Take seeds out of the queue; the rename is the commit point, so of two takers one gets nothing.

    The folders are made durable before the renames, and all renames by one fsync of the queue. Repeatable: an error
    is raised before the first rename, or never.

    Args:
        stuck: Takes up what could not be moved, and why.
    """
    claimed: list[Claimed] = []
    with Later(disk) as names, contextlib.ExitStack() as undo:
        made = []
        for name in file_names:
            made.append((_make_run_dir(root, name, now, rng), name))
            undo.callback(made[-1][0].rmdir)
        disk.sync_folder(root.current)
        names.sync_folder(root.pending)
        for run_dir, _ in made:
            names.sync_folder(run_dir)
        undo.pop_all()
        for run_dir, name in made:
            error = _take(root.pending / name, run_dir)
            if error is None:
                claimed.append(Claimed(run_dir, name))
                continue
            with contextlib.suppress(OSError):
                run_dir.rmdir()
            if stuck is not None and not isinstance(error, FileNotFoundError):  # else its owner took it back
                stuck[name] = error
        names.settle()
    return claimed


def _take(source: Path, run_dir: Path) -> OSError | None:
    """Rename a seed to its claim; a folder of ours without write permission gets it, its ".." has to be written."""
    try:
        try:
            os.rename(source, run_dir / CLAIM)
        except PermissionError:
            if not source.is_dir() or source.is_symlink():
                raise
            os.chmod(source, source.stat().st_mode | 0o700)
            os.rename(source, run_dir / CLAIM)
    except OSError as error:
        return error
    return None


def _make_run_dir(root: Root, file_name: str, now: float, rng: random.Random) -> Path:
    while True:
        run_dir = root.current / new_run_id(Path(file_name).stem, now, rng)
        if (root.complete / run_dir.name).exists():
            continue
        try:
            run_dir.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return run_dir


def read_claim(claimed: Claimed, limits: SeedSettings) -> tuple[Seed, bytes]:
    """The claimed seed, strictly parsed, and its bytes; files of a folder or zip are unpacked into ``files/``.

    Raises:
        SeedRejected: It changed since it was looked at and cannot become a run.
        NotYet: It changed since and is no longer whole.
    """
    try:
        data = _read_claim(claimed, claim_path(claimed.run_dir), limits)
    except (NotAFile, *BROKEN_ZIP, ValueError) as error:
        message = error.message if isinstance(error, PopError) else f"it cannot be unpacked: {error}"
        raise SeedRejected(message, where=claimed.file_name) from None
    except OSError as error:
        if error.errno not in NAMES_AT_FAULT:
            raise
        raise SeedRejected(f"its files cannot be laid out: {error.strerror}", where=claimed.file_name) from None
    try:
        return parse_seed(data, where=claimed.file_name), data
    except SeedRejected as error:
        if error.code == BadJson.code and is_a_beginning(data):
            raise NotYet(f"{claimed.file_name} ends in the middle") from None
        raise


def _read_claim(claimed: Claimed, path: Path, limits: SeedSettings) -> bytes:
    files = claimed.run_dir / "files"
    if path.is_dir() and not path.is_symlink():
        try:
            return _copy_folder(path, files, limits)
        except PermissionError:
            open_up(path)
            return _copy_folder(path, files, limits)
    if claimed.file_name.lower().endswith(".zip") or _is_zip(path):
        return _unpack(path, files, limits)
    return read_regular(path, max_bytes=int(limits.max_mb * MB))


def _is_zip(path: Path) -> bool:
    fd = open_regular(path, max_bytes=1 << 62)
    try:
        return os.pread(fd, 4, 0) == b"PK\x03\x04"
    finally:
        os.close(fd)


def _copy_folder(source: Path, files: Path, limits: SeedSettings) -> bytes:
    shutil.rmtree(files, ignore_errors=True)
    for relative, _, _ in folder_entries(source, limits):
        if relative == "seed.json":
            continue
        target = contained(files, relative)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = open_regular(source / relative, max_bytes=int(limits.max_files_mb * MB))
        with os.fdopen(fd, "rb") as reader, open(target, "xb") as writer:
            shutil.copyfileobj(reader, writer)
    return read_regular(source / "seed.json", max_bytes=int(limits.max_mb * MB))


def _unpack(source: Path, files: Path, limits: SeedSettings) -> bytes:
    shutil.rmtree(files, ignore_errors=True)
    with open_archive(source) as file, zipfile.ZipFile(file) as archive:
        entries = zip_entries(archive, limits, source.name)
        for name, entry in entries.items():
            if name == "seed.json":
                continue
            target = contained(files, name)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(target, "xb") as writer:
                writer.writelines(entry_pieces(archive, entry))
        return read_entry(archive, entries["seed.json"])


def seal(
    root: Root,
    disk: Disk,
    claimed: Claimed,
    seed: Seed,
    data: bytes,
    *,
    pipeline_name: str,
    pipeline_bytes: bytes,
    provenance: dict[str, Any],
    now: float,
    forked_from: dict[str, Any] | None = None,
    lines: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Make the run stand on its own; returns the run.created event. Repeatable after a crash at any point.

    Args:
        forked_from: The run of which this is a fork; what it takes over is laid out already (``forks.lay_out``).
        lines: What its journal goes on with.

    Raises:
        SeedRejected: A run with the same seed id exists.
    """
    run_dir = claimed.run_dir
    if seed.id is not None:
        _claim_id(root, disk, seed.id, run_dir.name)
    if (run_dir / "files").is_dir():
        disk.sync_tree(run_dir / "files")
        disk.sync_folder(run_dir)
    (run_dir / "tasks").mkdir(mode=0o700, exist_ok=True)  # with the names that are made durable here
    _keep_seed(disk, run_dir, data)
    disk.put(run_dir / "pipeline.json", pipeline_bytes, folder=False)
    disk.put(run_dir / "provenance.json", dump_json(provenance), durable=False)
    event = {
        "at": events.rfc3339(now),
        "event": events.RUN_CREATED,
        "run_id": run_dir.name,
        "name": seed.name or Path(claimed.file_name).stem,
        "pipeline": pipeline_name,
        "priority": seed.priority,
        "seed_file": claimed.file_name,
        "seed_sha256": hashlib.sha256(data).hexdigest(),
        "pipeline_sha256": hashlib.sha256(pipeline_bytes).hexdigest(),
    }
    if forked_from:
        event["forked_from"] = forked_from
    journal = [event, *({"at": event["at"], **line} for line in lines)]
    disk.put(run_dir / "events.jsonl", b"".join(dump_json(line, pretty=False) for line in journal))
    drop_claim(run_dir)
    return event


def _keep_seed(disk: Disk, run_dir: Path, data: bytes) -> None:
    """Make the claimed file itself the run's seed.json, when nobody else can change it any more; else a copy of it.

    Somebody else can: who has it open for writing, or knows it by another name (a hard link).
    """
    source = run_dir / CLAIM
    if os.path.lexists(source) and not source.is_dir() and not _is_zip(source):
        fd = open_regular(source, max_bytes=1 << 62)
        try:
            info = os.fstat(fd)
            if info.st_nlink == 1 and not is_written(fd, info) and info.st_size == len(data):
                disk.sync(fd)
                os.rename(source, run_dir / "seed.json")
                return
        finally:
            os.close(fd)
    if os.path.lexists(source):
        disk.put(run_dir / "seed.json", data, folder=False)


def claim_path(run_dir: Path) -> Path:
    """Where the claimed seed lies: an unfinished `seal` may have taken it for the run's seed.json already."""
    path = run_dir / CLAIM
    return path if os.path.lexists(path) else run_dir / "seed.json"


def drop_claim(run_dir: Path) -> None:
    """Remove the claimed original: the run holds its own copy by now."""
    path = run_dir / CLAIM
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _claim_id(root: Root, disk: Disk, seed_id: str, run_id: str) -> None:
    """Bind a seed's id to this run for good; a link never replaces an earlier binding."""
    folder = root.complete / ".ids"
    if not folder.is_dir():
        folder.mkdir(mode=0o700, exist_ok=True)
        disk.sync_folder(root.complete)
    name = hashlib.sha256(seed_id.encode()).hexdigest()[:40]
    draft = folder / f".{run_id}.tmp"
    disk.put(draft, dump_json({"id": seed_id, "run_id": run_id}, pretty=False), folder=False)
    try:
        os.link(draft, folder / name)
        disk.sync_folder(folder)
    except FileExistsError:
        owner = json.loads((folder / name).read_bytes()).get("run_id")
        if owner != run_id:
            hint = f"look at it: pop show {owner}; to run it again give another id, or none"
            message = f"the id {seed_id!r} was already run as {owner}"
            raise SeedRejected(message, hint=hint, code="duplicate-id") from None
    finally:
        draft.unlink(missing_ok=True)


def reject(root: Root, disk: Disk, source: Path, file_name: str, error: PopError, now: float) -> Path:
    """Move an entry to rejected/ with a reason a person understands; returns where it lies now.

    The reason stands first, so that a refused seed never lies there without one. Nothing is overwritten.
    """
    root.rejected.mkdir(mode=0o700, exist_ok=True)
    target = _free_name(root.rejected, file_name)
    reason = {**error.to_json(), "name": printable(file_name), "at": events.rfc3339(now)}
    disk.put(reason_path(target), dump_json(reason), folder=False)
    try:
        rename_noreplace(source, target)
    except OSError:
        reason_path(target).unlink(missing_ok=True)
        raise
    disk.sync_folder(root.rejected)
    disk.sync_folder(source.parent)
    return target


def reason_path(target: Path) -> Path:
    """Where the reason of a refused seed lies."""
    suffix = ".reason.json"
    fits = len(os.fsencode(target.name)) + len(suffix) <= 255
    name = target.name if fits else hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return target.with_name(name + suffix)


def _free_name(folder: Path, file_name: str) -> Path:
    stem, suffix = os.path.splitext(file_name)
    if len(os.fsencode(file_name)) > 230:
        stem = stem.encode(errors="ignore")[:200].decode(errors="ignore")
    for number in range(1, 1_000_000):
        target = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}.{number}{suffix}")
        if not os.path.lexists(target) and not os.path.lexists(reason_path(target)):
            return target
    raise SeedRejected("rejected/ holds a million files of this name")


def unfinished_claims(root: Root) -> list[Claimed]:
    """Claims that a crash left behind; empty run folders are removed, claims of sealed runs are dropped."""
    found = []
    for run_dir in sorted(path for path in root.current.iterdir() if path.is_dir() and not path.name.startswith(".")):
        path = claim_path(run_dir)
        if os.path.lexists(path) and (path.name == CLAIM or not (run_dir / "events.jsonl").exists()):
            if all((run_dir / name).exists() for name in ("seed.json", "pipeline.json", "events.jsonl")):
                drop_claim(run_dir)
            else:
                found.append(Claimed(run_dir, _file_name_of(run_dir)))
        elif not any(run_dir.iterdir()):
            run_dir.rmdir()
    return found


def remove_old_drafts(root: Root, now: float) -> None:
    """What a `pop submit` or an upload that was killed has left in the queue, an hour ago or longer."""
    for name in os.listdir(root.pending):
        match = _DRAFT.fullmatch(name)
        if match and now - int(match[1]) / 1e9 > DRAFT_S:
            path = root.pending / name
            with contextlib.suppress(OSError):
                remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _file_name_of(run_dir: Path) -> str:
    """What the seed's file was called, as far as the run's id still tells."""
    name = re.sub(r"^\d{8}-\d{6}-(.*)-[a-z2-9]{4}$", r"\1", run_dir.name)
    try:
        return name + (".zip" if _is_zip(claim_path(run_dir)) else ".json")
    except (NotAFile, OSError):  # a folder, or something that sealing will refuse
        return name


def drop_run_dir(run_dir: Path) -> None:
    """Remove the folder of a run that never began (its seed has been moved away)."""
    shutil.rmtree(run_dir / "files", ignore_errors=True)
    for name in ("seed.json", "pipeline.json", "provenance.json"):
        (run_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        remove_tree(run_dir / "tasks")  # with what a fork had taken over
    run_dir.rmdir()


def put_back(root: Root, disk: Disk, claimed: Claimed) -> str:
    """Return a claimed seed to the queue, under its own name where that is still free; returns the name."""
    shutil.rmtree(claimed.run_dir / "files", ignore_errors=True)
    target = _free_name(root.pending, claimed.file_name)
    rename_noreplace(claim_path(claimed.run_dir), target)
    disk.sync_folder(root.pending)
    drop_run_dir(claimed.run_dir)
    return target.name


def newest_of_run(run_dir: Path) -> dict[str, Any] | None:
    """The newest event of the run itself (not of its steps), as far as the journal's end tells."""
    with open_file(run_dir / "events.jsonl") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().split(b"\n")
    of_run = (row for row in objects_in(reversed(lines)) if str(row.get("event")).startswith("run."))
    return next(of_run, None)


def last_event(run_dir: Path) -> str | None:
    """The name of that event."""
    row = newest_of_run(run_dir)
    return str(row["event"]) if row else None
