"""Which status an error has over HTTP, and how it reads: `class` is its kind, `code` says it exactly."""

from __future__ import annotations

from typing import Any

from pop.acts import DoesNotFit, Unreadable
from pop.errors import ConfigError, PopError, RootError, SeedRejected, UsageError
from pop.rerun import RerunRefused

BY_CODE = {
    "unknown-run": 404,
    "removed": 404,
    "already-answered": 409,
    "asked-anew": 409,
    "gate-not-open": 409,
    "seed-too-large": 413,
    "bad-edit": 422,
    "unknown-path": 422,
    "unknown-step": 422,
    "unknown-model": 422,
    "unknown-pipeline": 422,
    "no-price": 422,
    "unknown-parameter": 422,
}
BY_CLASS: tuple[tuple[type[PopError], int], ...] = (
    (DoesNotFit, 409),
    (Unreadable, 409),
    (RerunRefused, 409),
    (SeedRejected, 422),
    (ConfigError, 422),
    (UsageError, 400),
    (RootError, 503),
)


def status_of(error: PopError) -> int:
    """From 400 on."""
    by_class = (status for kind, status in BY_CLASS if isinstance(error, kind))
    return BY_CODE.get(error.code) or next(by_class, 409)


def about(error: PopError) -> dict[str, Any]:
    """``{"class", "code", "message", "where", "hint"}``."""
    told = error.to_json()
    if problems := getattr(
        error, "problems", None
    ):  # of several mistakes the first one is told, and how many there are
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        told = {**first.to_json(), "message": f"{first.message}{more}"} if isinstance(first, PopError) else told
    return {"class": type(error).code, **told}
