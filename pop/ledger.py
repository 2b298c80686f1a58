"""From pipeline-current/ to pipeline-complete/, with exactly one line in runs.jsonl.

Order: the run's id goes into ``.pop/promoting`` (durable), the folder is renamed (never onto anything), both parents
are made durable, the line is appended. At the next start the ids in ``.pop/promoting`` are the only ones whose folder
may stand there without its line, so the repair looks at these alone. Without that file (``.pop`` was deleted) the
whole ledger is compared with the folders once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pop.records import dump_json
from pop.settings import Root
from pop.store import Disk, mend_tail, rename_noreplace


class Ledger:
    """The writing side of runs.jsonl. Used by one thread at a time."""

    def __init__(self, root: Root, disk: Disk) -> None:
        self._root = root
        self._disk = disk
        self._intents = root.machine_room / "promoting"

    def promote(self, lines: dict[str, bytes]) -> list[str]:
        """Move finished runs and append their lines, all by one round of fsyncs. Repeatable.

        Args:
            lines: By run id, the line of runs.jsonl (record.json already stands in the run's folder).

        Returns:
            The runs that could not be moved: somebody removed the folder, or put another one where it belongs.
        """
        self._disk.append(self._intents, "".join(f"{run_id}\n" for run_id in lines).encode())
        stuck = [run_id for run_id in lines if not self._move(run_id)]
        self._disk.sync_folder(self._root.complete)
        self._disk.sync_folder(self._root.current)
        is_first = not self._root.ledger.exists()
        self._disk.append(self._root.ledger, b"".join(line for run_id, line in lines.items() if run_id not in stuck))
        if is_first:
            self._disk.sync_folder(self._root.complete)
        return stuck

    def _move(self, run_id: str) -> bool:
        source, target = self._root.current / run_id, self._root.complete / run_id
        try:
            rename_noreplace(source, target)
        except (FileNotFoundError, FileExistsError):
            return not source.exists() and (target / "record.json").is_file()  # an earlier try moved it
        return True

    def settle(self) -> None:
        """Nothing is under way: start a new list of intents, which remembers how long the ledger was."""
        size_bytes = self._root.ledger.stat().st_size if self._root.ledger.exists() else 0
        self._disk.put(self._intents, f"ledger {size_bytes}\n".encode())

    def repair(self) -> int:
        """Make folders and lines agree after a crash; returns how many lines were added."""
        mend_tail(self._root.ledger)
        suspects, checked_bytes = self._suspects()
        written = _run_ids(self._root.ledger, checked_bytes)
        missing = [run_id for run_id in suspects if run_id not in written]
        lines = [line for run_id in missing if (line := self._line_of(run_id))]
        if lines:
            self._disk.append(self._root.ledger, b"".join(lines))
        self.settle()
        return len(lines)

    def _suspects(self) -> tuple[list[str], int]:
        try:
            rows = self._intents.read_text().splitlines()
        except FileNotFoundError:
            return sorted(_run_folders(self._root.complete)), 0
        checked_bytes = 0
        suspects: dict[str, None] = {}
        for row in rows:
            if row.startswith("ledger "):
                checked_bytes = int(row.split()[1])
            else:
                suspects[row] = None
        return list(suspects), checked_bytes

    def _line_of(self, run_id: str) -> bytes | None:
        try:
            record = json.loads((self._root.complete / run_id / "record.json").read_bytes())
        except (OSError, ValueError):
            return None
        return dump_json(record, pretty=False)


def _run_folders(folder: Path) -> Iterable[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield entry.name


def _run_ids(ledger: Path, start_bytes: int) -> set[str]:
    """The run ids in the ledger from an offset on; a line that is no record is passed over."""
    found: set[str] = set()
    try:
        file = open(ledger, "rb")
    except FileNotFoundError:
        return found
    with file:
        if start_bytes <= os.fstat(file.fileno()).st_size:
            file.seek(start_bytes)
        for line in file:
            try:
                found.add(json.loads(line)["run_id"])
            except (ValueError, KeyError, TypeError):
                continue
    return found
