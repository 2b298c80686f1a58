"""What a daemon looks at before it begins: its folders, and the runs that an earlier one left."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pop import admission, events
from pop.errors import RootError
from pop.settings import Root

MAX_ROOT_BYTES = 400  # SQLite opens no file whose path is longer than 512


def prepare_root(root: Root) -> None:
    """Make the folders POP needs.

    Raises:
        RootError: The root is writable by others, not writable by us, or no POP root.
    """
    if not root.pipeline_file.is_file():
        raise RootError("no pipeline.json here", where=root.path, hint="create one: pop init")
    for folder in (root.path, root.tasks):
        if folder.is_dir() and stat.S_IMODE(folder.stat().st_mode) & stat.S_IWOTH:
            hint = f"chmod o-w {folder}"
            raise RootError("anybody on this machine may write here and so run code", where=folder, hint=hint)
    try:
        for folder in (root.pending, root.rejected, root.current, root.complete):
            folder.mkdir(exist_ok=True)
        for folder in (root.machine_room, root.machine_room / "log"):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RootError(f"cannot work here: {error.strerror}", where=error.filename) from None
    if len(os.fsencode(root.path.resolve())) > MAX_ROOT_BYTES:
        raise RootError(
            f"the path of this folder is longer than {MAX_ROOT_BYTES} bytes", hint="work in one nearer the top"
        )
    for folder in (root.pending, root.rejected, root.complete):
        if folder.stat().st_dev != root.current.stat().st_dev:
            message = f"{folder.name}/ and pipeline-current/ lie on different file systems"
            raise RootError(message, where=folder, hint="seeds and runs are renamed between them: keep them on one")
    if root.ledger.exists() and not root.ledger.is_file():
        raise RootError("runs.jsonl is no file", where=root.ledger, hint="move it away")


def unfinished_runs(root: Root) -> list[Path]:
    """Runs in pipeline-current/ that are not at rest (failed, cancelled), oldest first."""
    found = []
    for run_dir in sorted(root.current.iterdir()):
        if run_dir.name.startswith(".") or not (run_dir / "events.jsonl").is_file():
            continue
        if admission.last_event(run_dir) not in (events.RUN_FAILED, events.RUN_CANCELLED):
            found.append(run_dir)
    return found


def resting_runs(root: Root) -> list[Path]:
    """Runs in pipeline-current/ that failed or were cancelled."""
    unfinished = set(unfinished_runs(root))
    journals = sorted(root.current.glob("*/events.jsonl"))
    return [path.parent for path in journals if path.parent.name[0] != "." and path.parent not in unfinished]
