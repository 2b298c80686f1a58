"""The supervisor's file work around one attempt: write its letter, then judge and place what it left.

A worker's word counts for nothing until the supervisor has read the output strictly, fsynced it, put it in its place
and journaled ``step.done``: that append is the commit of a step.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pop import events
from pop.errors import ErrorClass
from pop.executors import Attempt, Result
from pop.records import BadJson, ErrorRecord, Letter, Usage, dump_json, objects_in, read_json
from pop.remedies import Next
from pop.steps import Remedy
from pop.store import (
    Disk,
    DiskFailed,
    Later,
    NotAFile,
    open_regular,
    open_up,
    read_regular,
    remove_tree,
    root_trouble,
)

MAX_OUTPUT_BYTES = 64 * 2**20
MAX_CALLS_BYTES = 16 * 2**30  # of calls.jsonl, which holds whole answers; a larger one counts as none
MAX_LINE_BYTES = 64 * 2**20
MAX_MODELS = 1_000
SMALL_OUTPUT_BYTES = 2**18
SMALL_CALLS_BYTES = 2**21

# How an attempt ended when the supervisor ended it, or nobody did.
_ENDED: dict[str, tuple[ErrorClass, str]] = {
    "timeout": ("timeout", "did not end within {timeout_s:g} s"),
    "stalled": ("stalled", "made no progress for {stall_s:g} s"),
    "flood": ("worker_died", "printed more than 16 times the {output_mb:g} MB that are kept"),
    "cancelled": ("interrupted", "the run was cancelled"),
    "interrupted": ("interrupted", "the daemon was stopping"),
    "lost": ("interrupted", "the fork server went away"),
}
_HINTS = {
    "timeout": 'raise the step\'s "timeout"',
    "stalled": 'call ctx.progress() in long work, or raise the step\'s "stall"',
    "flood": 'print less, or raise the step\'s "output_mb"',
}


@dataclass(frozen=True)
class Outcome:
    """What an attempt came to: an output's hash, or an error. `usage` has the cached calls; `tally` knows the rest."""

    sha256: str | None
    size_bytes: int
    error: ErrorRecord | None
    usage: Usage
    refinements: int
    models: list[str] = field(default_factory=list)


def make_folder(step_dir: Path, first_number: int) -> tuple[int, Path]:
    """A fresh attempt folder; a number found on disk (its start was lost in a power cut) is not used again."""
    number = first_number
    if number == 1:
        _make_parents(step_dir)
    while True:
        folder = step_dir / "attempts" / str(number)
        try:
            os.mkdir(folder, 0o700)
            return number, folder
        except FileExistsError:
            number += 1
        except FileNotFoundError:  # somebody removed the step's folder
            if not step_dir.parent.parent.is_dir():
                raise
            _make_parents(step_dir)


def _make_parents(step_dir: Path) -> None:
    for parent in (step_dir.parent, step_dir, step_dir / "attempts"):
        _make(parent)


def _make(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)


def begin(disk: Disk, run_dir: Path, letter: Letter) -> tuple[Letter, Attempt, dict[str, Any]]:
    """Write the letter and journal ``step.started``.

    Neither is fsynced: a power cut that loses them ends the worker too.
    """
    step_dir = run_dir / "tasks" / letter.instance
    number, attempt_dir = make_folder(step_dir, letter.attempt)
    if number != letter.attempt:
        letter = letter.model_copy(update={"attempt": number, "attempt_id": f"{letter.attempt_id}-{number}"})
    disk.put(step_dir / "letter.json", letter.model_dump_json(indent=2).encode(), durable=False)
    event = {
        "at": events.rfc3339(time.time()),
        "event": events.STEP_STARTED,
        "instance": letter.instance,
        "step": letter.step,
        "attempt": number,
        "generation": letter.generation,
    }
    disk.append(run_dir / "events.jsonl", dump_json(event, pretty=False), durable=False)
    attempt = Attempt(
        attempt_id=letter.attempt_id,
        run_id=letter.run_id,
        instance=letter.instance,
        letter_path=str(step_dir / "letter.json"),
        attempt_dir=str(attempt_dir),
        step_dir=str(step_dir),
        limits=letter.limits,
        gateway=letter.gateway,
    )
    return letter, attempt, event


def is_small(attempt: Attempt) -> bool:
    """Whether what the attempt left can be read and placed in less time than a thread takes to begin."""
    size_bytes = _size_bytes(attempt, "output.json")
    small = size_bytes <= SMALL_OUTPUT_BYTES and _size_bytes(attempt, "calls.jsonl") <= SMALL_CALLS_BYTES
    return small and not os.path.lexists(os.path.join(attempt.attempt_dir, "artifacts"))


def _size_bytes(attempt: Attempt, name: str) -> int:
    try:
        return os.stat(os.path.join(attempt.attempt_dir, name)).st_size
    except OSError:
        return 0


def judge_and_place(files: Later, run_dir: Path, attempt: Attempt, letter: Letter, result: Result) -> Outcome:
    """`judge`, and `place` when there is no error. What a worker did to its folders is its own failure."""
    try:
        outcome = judge(attempt, letter, result)
        if outcome.error is None:
            place(files, attempt)
        return outcome
    except DiskFailed:
        raise
    except OSError as error:
        if root_trouble(error) and error.errno not in (errno.EACCES, errno.EPERM):
            raise
        text = f"its folder cannot be read as it left it: {error.strerror}: {os.path.basename(str(error.filename))}"
        return Outcome(None, 0, _record(letter, "worker_died", text), Usage(), 0)
    except RecursionError:
        return Outcome(None, 0, _record(letter, "worker_died", "what it left cannot be read"), Usage(), 0)


def judge(attempt: Attempt, letter: Letter, result: Result) -> Outcome:
    """Read what the attempt left: an output that counts, or the error that explains why there is none."""
    attempt_dir = Path(attempt.attempt_dir)
    cached, models = cached_calls(attempt_dir)
    refinements = _refinements(attempt_dir)
    error = _error_of(attempt_dir, letter, result)
    sha256, size_bytes = None, 0
    if error is None:
        try:
            data = read_regular(attempt_dir / "output.json", max_bytes=MAX_OUTPUT_BYTES)
            read_json(data, where="output.json")
            sha256, size_bytes = hashlib.sha256(data).hexdigest(), len(data)
        except (BadJson, NotAFile) as problem:
            error = _record(letter, "invalid_output", f"the output cannot be kept: {problem.message}")
        except FileNotFoundError:
            error = _record(letter, "worker_died", _how_it_went(result))
    return Outcome(sha256, size_bytes, error, Usage(cached_calls=cached), refinements, models)


def _error_of(attempt_dir: Path, letter: Letter, result: Result) -> ErrorRecord | None:
    if result.how in _ENDED:
        error_class, text = _ENDED[result.how]
        message = text.format(**letter.limits.model_dump())
        return _record(letter, error_class, message, hint=_HINTS.get(result.how))
    try:
        data = read_regular(attempt_dir / "error.json", max_bytes=MAX_OUTPUT_BYTES)
        written = ErrorRecord.model_validate(read_json(data))
    except FileNotFoundError:
        clean = result.how == "exited" and result.code == 0
        return None if clean else _record(letter, "worker_died", _how_it_went(result))
    except (BadJson, NotAFile, ValidationError):
        return _record(letter, "worker_died", "its error.json cannot be read")
    return written.model_copy(update={"instance": letter.instance, "attempt": letter.attempt})


def _how_it_went(result: Result) -> str:
    if result.signal:
        try:
            name = signal.Signals(result.signal).name
        except ValueError:
            name = str(result.signal)
        return f"the worker was ended by {name}"
    return f"the worker ended with exit code {result.code} and left no output"


def _record(letter: Letter, error_class: ErrorClass, message: str, hint: str | None = None) -> ErrorRecord:
    return ErrorRecord(
        error_class=error_class,
        code=error_class.replace("_", "-"),
        message=message,
        hint=hint,
        instance=letter.instance,
        attempt=letter.attempt,
    )


def place(files: Later, attempt: Attempt) -> None:
    """Put the output, with the artifacts, where "done" is looked for. Repeatable: the rename is the last that can fail."""
    step_dir, attempt_dir = Path(attempt.step_dir), Path(attempt.attempt_dir)
    artifacts = attempt_dir / "artifacts"
    if artifacts.is_dir() and not artifacts.is_symlink():
        open_up(artifacts)
        files.disk.sync_tree(artifacts)
        _replace(artifacts, step_dir / "artifacts")
    files.sync_folder(step_dir)
    files.sync_folder(step_dir.parent)
    _remove(step_dir / "error.json")
    fd = open_regular(attempt_dir / "output.json", max_bytes=MAX_OUTPUT_BYTES)
    try:
        files.sync(fd)
    finally:
        os.close(fd)
    _replace(attempt_dir / "output.json", step_dir / "output.json")


def _replace(source: Path, target: Path) -> None:
    """Rename onto `target`, whatever kind of thing stands there."""
    if target.is_dir() and not target.is_symlink():
        remove_tree(target)
    elif source.is_dir():
        target.unlink(missing_ok=True)
    os.rename(source, target)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        remove_tree(path)


def done_event(letter: Letter, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """The journal's line that commits a step."""
    return {
        "at": events.rfc3339(time.time()),
        "event": events.STEP_DONE,
        "instance": letter.instance,
        "attempt": letter.attempt,
        "sha256": outcome.sha256,
        "size_bytes": outcome.size_bytes,
        "seconds": round(seconds, 6),
        "refinements": outcome.refinements,
        "usage": outcome.usage.model_dump(),
        "models": outcome.models,
    }


def failed_event(
    letter: Letter, outcome: Outcome, error: ErrorRecord, again: Next, *, more_time: float, seconds: float
) -> dict[str, Any]:
    """The journal's line about an attempt that failed, and what follows it."""
    action = "retry" if again.action == "again" else again.action
    return {
        "at": events.rfc3339(time.time()),
        "event": events.STEP_ATTEMPT_FAILED,
        "instance": letter.instance,
        "attempt": letter.attempt,
        "error": error.model_dump(exclude_none=True),
        "action": action,
        "remedy": _remedy(again),
        "reason": again.reason,
        "model": again.model,
        "corrected": again.corrected,
        "not_before": round(time.time() + again.delay_s, 3) if again.delay_s else None,
        "more_time": more_time * (2 if again.more_time else 1),
        "seconds": round(seconds, 6),
        "refinements": outcome.refinements,
        "usage": outcome.usage.model_dump(),
        "models": outcome.models,
    }


def _remedy(again: Next) -> Remedy:
    if again.action in ("ask", "fail"):
        return "ask" if again.action == "ask" else "fail"
    if again.model:
        return "model"
    return "retry-longer" if again.more_time else "retry-corrected" if again.corrected else "retry"


def cached_calls(attempt_dir: Path) -> tuple[int, list[str]]:
    """How many answers of an attempt came from the store, as it wrote down, and the models that gave its answers."""
    cached, models = 0, dict[str, None]()
    for row in _calls(attempt_dir):
        if not row.get("error_class"):
            cached += row.get("cached") is True
            if len(models) < MAX_MODELS:
                models["builtin" if row.get("provider") == "builtin" else str(row.get("model"))[:200]] = None
    return cached, list(models)


def _calls(attempt_dir: Path) -> Iterator[dict[str, Any]]:
    """The rows of calls.jsonl, one in memory at a time; a torn or overlong line is passed over."""
    try:
        file = os.fdopen(open_regular(attempt_dir / "calls.jsonl", max_bytes=MAX_CALLS_BYTES), "rb")
    except (OSError, NotAFile):
        return
    with file:
        yield from objects_in(iter(partial(file.readline, MAX_LINE_BYTES), b""))


def last_trail_line(attempt_dir: Path) -> dict[str, Any] | None:
    """The newest whole line of the attempt's trail, or None."""
    try:
        fd = os.open(attempt_dir / "trail.jsonl", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, 16384, max(0, size - 16384))
    except OSError:  # a pipe
        return None
    finally:
        os.close(fd)
    return next(objects_in(reversed(tail.split(b"\n"))), None)


def _refinements(attempt_dir: Path) -> int:
    row = last_trail_line(attempt_dir)
    value = row.get("round") if row else 0
    return value if isinstance(value, int) else 0
