"""Keeps the views of one run current: further files in its folder, made of its journal (see ``pop.views``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from pop.records import objects_in
from pop.store import Disk, open_file
from pop.views import load_view

log = structlog.get_logger()


class RunViews:
    """Calls come from one thread at a time. A view that fails is told in the log, once per sentence, and stops nothing."""

    def __init__(self, run_dir: Path, names: Sequence[str]) -> None:
        self._run_dir = run_dir
        self._names = names
        self._read_bytes = 0
        self._events: list[dict[str, Any]] = []
        self._written: dict[str, bytes] = {}
        self._said: set[str] = set()

    def write(self, disk: Disk, status: dict[str, Any], *, durable: bool = False) -> None:
        """Write what changed."""
        if not self._names:
            return
        try:
            self._read_on()
        except OSError as error:
            return self._say("journal", error)
        for name in self._names:
            try:
                self._write_files(disk, load_view(name)(self._run_dir, self._events, status), durable)
            except Exception as error:  # a view is a guest: whatever it does, the run goes on
                self._say(name, error)

    def _read_on(self) -> None:
        with open_file(self._run_dir / "events.jsonl") as file:
            file.seek(self._read_bytes)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self._events += (event for event in objects_in(whole.splitlines()) if "event" in event)

    def _write_files(self, disk: Disk, files: dict[str, bytes], durable: bool) -> None:
        for name, data in files.items():
            if name != Path(name).name or name.startswith("."):
                raise ValueError(f"{name!r} is no file name")
            if self._written.get(name) != data:
                disk.put(self._run_dir / name, data, durable=durable, folder=False)
                self._written[name] = data

    def _say(self, name: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"[:500]
        if text not in self._said:
            self._said.add(text)
            log.error("view.failed", run=self._run_dir.name, view=name, error=text)
