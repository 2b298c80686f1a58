"""What persons are told about runs: finished, failed, waiting for one of them, out of budget; read out of the runs' journals.

A notice is known by its run and the byte of the journal at which its event stands, so that whoever gets one twice can tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from pop import events
from pop.errors import safe
from pop.records import Record
from pop.settings import NoticeKind
from pop.store import open_file

MAX_LINE_BYTES = 2**20


class Notice(Record):
    """What a hook gets as JSON. `kinds`: all it counts as; `waiting_for`: names of gates; `path`: the run's folder."""

    schema_version: int = 1
    id: str
    kinds: list[NoticeKind]
    at: str
    text: str
    run_id: str
    name: str
    pipeline: str
    path: str
    waiting_for: list[str] = []
    error: dict[str, Any] | None = None


def notices_in(run_dir: Path, start: int) -> tuple[list[Notice], int]:
    """What the journal of a run tells from the byte `start` on, and how far it was read (whole lines only).

    That it waited is left out where it went on since.

    Raises:
        OSError: There is no such journal.
    """
    found: list[Notice] = []
    with open_file(run_dir / "events.jsonl") as file:
        about = _created(file.readline(MAX_LINE_BYTES))
        at = file.seek(start if file.seek(0, 2) >= start else 0)
        while (line := file.readline()).endswith(b"\n"):
            row = _row(line)
            if str(row.get("event")).startswith("run."):
                found = [notice for notice in found if "waiting" not in notice.kinds]
            notice = _notice(row, run_dir, about, at)
            found += [notice] if notice else []
            at += len(line)
    return found, at


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(line)  # no half surrogates, which nothing could hand on
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _created(line: bytes) -> dict[str, str]:
    row = _row(line)
    return {key: str(row.get(key) or "") for key in ("run_id", "name", "pipeline")}


def _notice(row: dict[str, Any], run_dir: Path, about: dict[str, str], at: int) -> Notice | None:
    event = row.get("event")
    name = safe(about["name"] or run_dir.name, 120, one_line=True)
    kinds: list[NoticeKind] = []
    waiting: list[str] = []
    error: dict[str, Any] | None = None
    if event == events.RUN_COMPLETE:
        kinds, text = ["finished"], f"{name} is finished"
        run_dir = run_dir.parent.parent / "pipeline-complete" / run_dir.name  # where it goes
    elif event == events.RUN_FAILED:
        given = row.get("error")
        error = given if isinstance(given, dict) else {}
        kinds = ["failed", "budget"] if error.get("error_class") == "budget" else ["failed"]
        text = f"{name} has failed: {safe(str(error.get('message')), 500, one_line=True)}"
    elif event == events.RUN_WAITING:
        gates = row.get("for")
        kinds, waiting = ["waiting"], [str(gate) for gate in gates] if isinstance(gates, list) else []
        text = f"{name} waits for an answer: {safe(', '.join(waiting), 500, one_line=True)}"
    elif event == events.BUDGET_WARNING:
        kinds, text = ["budget"], f"{name}: {safe(str(row.get('text')), 500, one_line=True)}"
    else:
        return None
    return Notice(
        id=f"{run_dir.name}:{at}",
        kinds=kinds,
        at=str(row.get("at")),
        text=text,
        path=str(run_dir),
        waiting_for=waiting,
        error=error,
        **{**about, "run_id": run_dir.name},
    )
