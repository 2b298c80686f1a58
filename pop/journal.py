"""Journals what happens in active runs: a history changes by what stands in its journal, and only then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pop import events
from pop.active import ActiveRun
from pop.diskwork import DiskWork
from pop.records import dump_json
from pop.store import Later


class Journal:
    """Calls come from the event loop. `changed` is called with a run whose history has changed."""

    def __init__(self, work: DiskWork, changed: Callable[[ActiveRun], None]) -> None:
        self._work = work
        self._changed = changed

    async def write(self, run: ActiveRun, *rows: dict[str, Any], durable: bool = True) -> None:
        """Journal events by one append, and take them into account."""
        timed = [{"at": events.rfc3339(time.time()), **event} for event in rows]
        lines = b"".join(dump_json(row, pretty=False) for row in timed)
        if durable:
            await self._work.commit(Later(self._work.disk), run.journal, lines)
        else:
            await self._work.at_once(self._work.disk.append, run.journal, lines, durable=False)
        for row in timed:
            run.history.apply(row)
        self._changed(run)
