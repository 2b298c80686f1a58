"""What the board tells beside the runs: throughput, spend today, model limits in use, who serves the folder.

All of it is read where it stands: the index, the gateway's sums with the ledger behind them, the gateway's own figures.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from datetime import UTC, datetime, timedelta

import structlog

from pop.daycost import DayCost
from pop.events import rfc3339
from pop.gatekeeper import socket_path
from pop.models.calls import usd
from pop.models.questions import ask_gateway
from pop.runindex import RunIndex
from pop.settings import Root, Settings
from pop.store import lock_holder
from pop.web.shapes import Lane, Now
from pop.webkeeper import told_by_daemon

log = structlog.get_logger()

EVERY_S = 1.5
HOURS = 24
NOTHING_YET = Now(
    hours=[0] * HOURS,
    last_hour=0,
    usd_today=0.0,
    calls_today=0,
    tokens_today=0,
    unpriced_today=0,
    day_usd=None,
    lanes=[],
    open_circuits=[],
    serving=None,
    notes=[],
)


class FigureBook:
    """The newest figures of a root."""

    def __init__(self, root: Root, settings: Settings, index: RunIndex) -> None:
        self._root = root
        self._settings = settings
        self._index = index
        self._looked_at = 0.0
        self._day = DayCost(root)
        self._open: list[str] = []
        self.newest = NOTHING_YET

    def mark(self) -> str:
        """Another text when one of the newest figures is another."""
        return hashlib.sha256(self.newest.model_dump_json().encode()).hexdigest()[:8]

    def look(self) -> None:
        """See what is new, where that was not just done. One thread at a time."""
        if time.monotonic() - self._looked_at < EVERY_S:
            return
        self._looked_at = time.monotonic()
        try:
            self.newest = self._look()
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            log.warning("figures.unread", error=f"{type(error).__name__}: {error}")  # the last ones stay

    def _look(self) -> Now:
        now = datetime.now(UTC)
        hours = [now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=back) for back in range(HOURS)][::-1]
        spent = self._day.sum(now.strftime("%Y-%m-%d"))
        holder = lock_holder(self._root.machine_room)
        lanes = self._lanes() if holder else []
        return Now(
            hours=self._index.finished_since([rfc3339(hour.timestamp()) for hour in hours]),
            last_hour=self._index.finished_since([rfc3339(now.timestamp() // 10 * 10 - 3600)])[0],
            usd_today=usd(spent.nano_usd),
            calls_today=spent.calls,
            tokens_today=spent.input_tokens + spent.output_tokens,
            unpriced_today=spent.unpriced,
            day_usd=self._settings.budget.day_usd,
            lanes=lanes,
            open_circuits=self._open if holder else [],
            serving=str(holder.get("command") or "a daemon") if holder else None,
            notes=self._notes() if holder else [],
        )

    def _lanes(self) -> list[Lane]:
        told = asyncio.run(ask_gateway(str(socket_path(self._root)), {"figures": True}, 0.5)) or {}
        self._open = [str(name) for name, state in (told.get("circuits") or {}).items() if state != "closed"]
        found = []
        for name, lane in (told.get("lanes") or {}).items():
            limits = lane["limits"]
            if name.startswith("model replay:") and not (lane["in_flight"] or lane["waiting"]):
                continue  # a replay that is over
            found.append(
                Lane(
                    name=name.removeprefix("model ").removeprefix("provider "),
                    in_flight=lane["in_flight"],
                    waiting=lane["waiting"],
                    window=lane["window"],
                    requests=lane["requests_per_minute"],
                    most_requests=limits["requests_per_minute"],
                    tokens=lane["tokens_per_minute"],
                    most_tokens=limits["tokens_per_minute"],
                    paused_s=round(lane["paused_s"]),
                )
            )
        return sorted(found, key=lambda lane: (-lane.in_flight - lane.waiting, lane.name))[:12]

    def _notes(self) -> list[str]:
        """Which model answers when a task asks for none: the embedded engine is told wherever it is in use."""
        notes = told_by_daemon(self._root).get("notes")
        return [str(note) for note in notes][:3] if isinstance(notes, list) else []
