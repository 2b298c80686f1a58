"""One attempt of one task, in a process of its own: read the letter, run the stages, leave an output or an error.

It writes its attempt's folder and nothing else. Whatever goes wrong becomes error.json there, for the supervisor to
decide and for a person to read.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

from pop.errors import AttemptFailed, PopError, safe
from pop.executors import process
from pop.models.client import GatewayClient
from pop.models.request import Origin
from pop.records import ErrorRecord, Letter, dump_json
from pop.runner import run_attempt


def main(letter_path: str, attempt_dir: str) -> int:
    """Work through one letter.

    Returns:
        0 when output.json stands in `attempt_dir`, 1 when error.json does.
    """
    folder = Path(attempt_dir)
    tasks_dir = ""
    try:
        letter = Letter.model_validate_json(Path(letter_path).read_bytes())
        tasks_dir = letter.tasks_dir
        os.chdir(folder)
        run_attempt(letter, folder, _gateway(letter))
    except AttemptFailed as error:
        return _fail(folder, _expected(error))
    except MemoryError:
        process.allow_last_words()
        return _fail(folder, _memory_error())
    except PopError as error:
        return _fail(folder, ErrorRecord(error_class="bug", **error.to_json()))
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return _fail(folder, _bug(error, tasks_dir))
    return 0


def _gateway(letter: Letter) -> GatewayClient | None:
    if letter.gateway is None:
        return None
    origin = Origin(
        run_id=letter.run_id,
        instance=letter.instance,
        generation=letter.generation,
        attempt=letter.attempt,
        step=letter.step,
        pipeline=letter.pipeline,
        budgets=letter.budgets,
    )
    return GatewayClient(letter.gateway, origin)


def _expected(error: AttemptFailed) -> ErrorRecord:
    return ErrorRecord(
        error_class=error.error_class,
        code=error.code,
        message=error.message,
        where=error.where,
        hint=error.hint,
        problems=error.problems,
    )


def _memory_error() -> ErrorRecord:
    return ErrorRecord(
        error_class="worker_died",
        code="worker-died",
        message="it needed more memory than its limit",
        hint='raise the step\'s "memory_mb"',
    )


def _bug(error: BaseException, tasks_dir: str) -> ErrorRecord:
    text = "".join(traceback.format_exception(error))
    return ErrorRecord(
        error_class="bug",
        code="bug",
        message=safe(f"{type(error).__name__}: {error}", 2000),
        where=_place(error, tasks_dir),
        hint="the traceback stands in error.json and stdout.txt of the attempt",
        traceback=safe(text[-20_000:]),
    )


def _place(error: BaseException, tasks_dir: str) -> str | None:
    """The last line of the task's own code, where the traceback has one; else the last line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if tasks_dir and frame.filename.startswith(tasks_dir + os.sep)]
    if own:
        return f"{os.path.relpath(own[-1].filename, os.path.dirname(tasks_dir))}:{own[-1].lineno}"
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else None


def _fail(folder: Path, record: ErrorRecord) -> int:
    if record.traceback:
        print(record.traceback, flush=True)
    draft = folder / ".error.json.tmp"
    draft.write_bytes(dump_json(record.model_dump(exclude_none=True)))
    os.rename(draft, folder / "error.json")
    return 1
