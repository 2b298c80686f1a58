"""Every error a user may meet: a permanent code, a sentence, a place, one next move.

``PopError`` and its children are the user's mistakes and the world's misfortunes; they are printed
without a traceback. Anything else is a bug in POP and flies with its traceback.

    unknown-task: no task 'sumarise'
      where: pipeline.json:7:5  tasks[2].task
      hint: did you mean 'summarise'?
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args

# Exit codes of the command line (docs/cli.md).
EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_CONFIG = 3
EXIT_RUN_FAILED = 4
EXIT_WAITING = 5
EXIT_BUDGET = 6
EXIT_INTERRUPTED = 130

ErrorClass = Literal[
    "invalid_output",  # the model's answer never passed parsing or validation
    "refused",  # the model declined, or a content filter did
    "truncated",  # the answer hit the output limit
    "timeout",  # the attempt's deadline passed
    "stalled",  # no progress for stall_s
    "rate_limited",
    "unavailable",  # the provider, or the network on the way to it
    "auth",  # a missing or rejected key
    "budget",
    "worker_died",  # signal, os._exit, memory limit, output flood
    "bug",  # an exception in the task's own code
    "bad_input",  # the seed or an earlier output cannot be worked on
    "rejected",  # a person said no
    "interrupted",  # drained, or the gateway or fork server went away; uses up no attempt
]
ERROR_CLASSES: tuple[str, ...] = get_args(ErrorClass)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def safe(text: object, limit: int = 100_000, *, one_line: bool = False) -> str:
    """Text from a seed, a model or a file, without what could steer a terminal or be no UTF-8.

    Args:
        limit: Characters; the rest is cut.
        one_line: Line feeds and tabs go as well (names, cells of a table).
    """
    shown = _CONTROL.sub("\ufffd", str(text)[:limit])
    return shown.replace("\n", "\u23ce").replace("\t", " ") if one_line else shown


def safe_json(text: str) -> str:
    """JSON that means the same, without what could steer a terminal, reorder what stands beside it, or be no UTF-8."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class PopError(Exception):
    """An error with a place and a next move.

    Args:
        message: One sentence, lower case, no full stop, naming the offending value.
        where: File, line, column and JSON path, as far as known: ``pipeline.json:7:5  tasks[2].task``.
        hint: One next move for the person who reads it.
        code: Overrides the class's permanent code.
    """

    code = "error"
    exit_code = EXIT_INTERNAL

    def __init__(self, message: str, *, where: object = None, hint: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message = message
        self.where = str(where) if where is not None else None
        self.hint = hint
        if code:
            self.code = code

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.message}"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return safe("\n".join(lines))

    def to_json(self) -> dict[str, Any]:
        """``{"code": str, "message": str, "where": str | None, "hint": str | None}``."""
        return {"code": self.code, "message": self.message, "where": self.where, "hint": self.hint}


class UsageError(PopError):
    """The command line was used wrongly."""

    code = "usage"
    exit_code = EXIT_USAGE


class ConfigError(PopError):
    """pop.toml, a pipeline, a task, a template or a schema is wrong."""

    code = "invalid-config"
    exit_code = EXIT_CONFIG


class ConfigErrors(ConfigError):
    """Several mistakes found in one go.

    Args:
        problems: At least one error, in the order a reader meets them.
    """

    code = "invalid-config"

    def __init__(self, problems: Iterable[ConfigError]):
        self.problems = list(problems)
        super().__init__(f"{len(self.problems)} problem(s)")

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class SeedRejected(PopError):
    """What was dropped can never become a run; the reason file carries this text."""

    code = "bad-seed"
    exit_code = EXIT_CONFIG


class RootError(PopError):
    """The folder POP works in is missing, not writable, held by somebody else, or full."""

    code = "root"
    exit_code = EXIT_CONFIG


class AttemptFailed(PopError):
    """An attempt cannot go on; the worker writes it to error.json.

    Args:
        error_class: What kind of failure it is; decides what happens next (see ``remedies.RECOVERY``).
        problems: Sentences of the validators, for the reader and for the next attempt.
    """

    exit_code = EXIT_RUN_FAILED

    def __init__(
        self,
        error_class: ErrorClass,
        message: str,
        *,
        where: object = None,
        hint: str | None = None,
        problems: Iterable[str] = (),
    ):
        super().__init__(message, where=where, hint=hint, code=error_class.replace("_", "-"))
        self.error_class: ErrorClass = error_class
        self.problems = list(problems)


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint with the nearest known name, or the known names when none is near, or None when none exist."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    if not names:
        return None
    shown = ", ".join(names[:12])
    return f"known: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")
