"""What can be removed of a root: finished runs that ended long ago, and stored answers: `pop gc`, and the dashboard."""

from __future__ import annotations

import fcntl
import math
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pop.admission import last_event
from pop.errors import UsageError
from pop.events import RUN_CANCELLED, RUN_COMPLETE, RUN_FAILED
from pop.runs import Run, runs_in
from pop.settings import Root
from pop.store import Disk, hold_root

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds_of(text: str) -> float:
    """``30d`` in seconds.

    Raises:
        UsageError: It is no age.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if not match:
        raise UsageError(f"{text!r} is no age", hint="write 30d, 12h or 2w")
    return float(match[1]) * _UNIT_S[match[2]]


def old_runs(root: Root, least_s: float, failed: bool) -> list[Run]:
    """Finished runs that ended longer ago than that and are at rest; with `failed` also failed and cancelled ones."""
    if least_s == math.inf:
        return []
    found = [run for run in _candidates(root, failed) if time.time() - _ended_at(run) > least_s]
    return [run for run in found if _is_at_rest(run)]


def remove_all(root: Root, runs: list[Run], *, archive: bool) -> tuple[list[Run], int]:
    """Remove the folders of those that are at rest still; `archive` keeps each as a .tar.gz.

    Returns:
        Those that were removed, and how many bytes they held.
    """
    removed: list[Run] = []
    freed = 0
    with _alone(root):
        _clean_up(root)
        for run in runs:
            if not _is_at_rest(run):  # somebody gave it an order meanwhile, or removed it
                continue
            held = size_bytes(run.path)
            if archive:
                archive_run(root, run)
            remove_run(run.path)
            removed.append(run)
            freed += held
    return removed, freed


def prune_answers(root: Root, age_s: float, dry_run: bool) -> int:
    """Remove old answers; returns how many. A run that asks for one of them again pays again.

    Raises:
        RootHeld: A daemon works here, so its gateway may be reading them.
    """
    from pop.models.answers import prune

    path = root.machine_room / "answers.db"
    if not path.is_file():
        return 0
    if dry_run:
        return prune(path, age_s, dry_run=True)
    with hold_root(root.machine_room, "pop gc", patience_s=0.0):
        return prune(path, age_s)


@contextmanager
def _alone(root: Root) -> Iterator[None]:
    """One gc at a time; the kernel frees the lock when the process ends."""
    root.machine_room.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(root.machine_room / "gc.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_at_rest(run: Run) -> bool:
    if run.waiting_orders():
        return False
    try:
        return last_event(run.path) in (RUN_COMPLETE, RUN_FAILED, RUN_CANCELLED, None)
    except OSError:
        return run.place == "complete" and run.path.is_dir()


def _candidates(root: Root, failed: bool) -> list[Run]:
    found = list(runs_in(root.complete, "complete"))
    if failed:
        resting = ("failed", "cancelled")
        found += [run for run in runs_in(root.current, "current") if run.status().get("state") in resting]
    return [run for run in found if not run.path.is_symlink()]  # what it leads to is no folder of this root


def _ended_at(run: Run) -> float:
    from pop.events import unix_s

    text = run.status().get("finished_at")
    try:
        return unix_s(text) if text else run.path.stat().st_mtime
    except ValueError:
        return run.path.stat().st_mtime


def size_bytes(folder: Path) -> int:
    """What its files take up; somebody may be removing it."""
    found = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found += os.lstat(Path(parent, name)).st_blocks * 512
    return found


def archive_run(root: Root, run: Run) -> None:
    """A whole, durable archive stands before the folder goes."""
    folder, disk = root.complete / "archive", Disk()
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        disk.sync_folder(root.complete)
    draft = folder / f".{run.run_id}.tmp"
    with open(draft, "wb") as file:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            archive.add(run.path, arcname=run.run_id)
        file.flush()
        disk.sync(file.fileno())
    os.rename(draft, folder / f"{run.run_id}.tar.gz")
    disk.sync_folder(folder)


def remove_run(path: Path) -> None:
    """Out of sight by one rename, then removed, so that a half-removed run never looks like a whole one."""
    doomed = path.with_name(f".{path.name}.removed")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _clean_up(root: Root) -> None:
    """Finish what a crash cut off: runs out of sight and half-written archives."""
    for folder in (root.complete, root.current):
        for doomed in folder.glob(".*.removed"):
            doomed.unlink() if doomed.is_symlink() else shutil.rmtree(doomed)
    for draft in (root.complete / "archive").glob(".*.tmp"):
        draft.unlink(missing_ok=True)
