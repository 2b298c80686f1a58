"""What an attempt orders about the rest of its run, read from its folder and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pop import control
from pop.control import ControlRefused, additions
from pop.errors import PopError
from pop.history import RunHistory
from pop.records import ErrorRecord
from pop.rerun import pipeline_file, pipeline_name
from pop.settings import Root
from pop.steps import step_of
from pop.store import NotAFile, read_file, read_regular
from pop.tasks import list_tasks

MAX_ORDERS_BYTES = 4_000_000


def orders_of(root: Root, run_dir: Path, history: RunHistory, instance: str, attempt_dir: Path) -> dict[str, Any]:
    """What ``step.done`` is to carry about the orders of an attempt: `control`, `control_error`, or nothing."""
    try:
        document = read_regular(attempt_dir / "control.json", max_bytes=MAX_ORDERS_BYTES)
    except FileNotFoundError:
        return {}
    except NotAFile as error:
        return _refused(instance, ControlRefused(error.message))
    try:
        checked = control.check(
            read_file(run_dir / pipeline_file(history)),
            additions(history),
            history,
            step_of(instance),
            document,
            name=pipeline_name(history),
            known_tasks=list_tasks(root.tasks),
        )
    except (PopError, RecursionError) as error:
        return _refused(instance, error if isinstance(error, PopError) else ControlRefused("nested too deep"))
    return {"control": checked.to_json()}


def _refused(instance: str, error: PopError) -> dict[str, Any]:
    about = {key: value for key, value in error.to_json().items() if value is not None}
    record = ErrorRecord.model_validate({"error_class": "bad_input", "instance": instance, **about})
    return {"control_error": record.model_dump(exclude_none=True)}
