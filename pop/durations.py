"""Durations as people write them: ``90s``, ``5m``, ``1.5h``, ``250ms``, ``7d``, or a number of seconds."""

from __future__ import annotations

import re
from typing import Any

MAX_DURATION_S = 30 * 86400.0
ANY_AGE_S = 1e10  # "reuse": true

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: Any, *, at_most_s: float = MAX_DURATION_S) -> float:
    """A duration in seconds.

    Raises:
        ValueError: It is none, is not above zero, or is longer than `at_most_s`.
    """
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        value = float(match[1]) * _UNIT_S[match[2]]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError('must be a duration such as "90s", "5m" or a number of seconds')
    if not 0 < value <= at_most_s:
        raise ValueError(f"must be above zero and at most {at_most_s / 86400:g} days")
    return float(value)


def written(seconds: float) -> str:
    """As people write it, in the largest unit that is whole: ``5s``, ``90m``, ``2d``; below a second ``250ms``."""
    if seconds < 1:
        return f"{max(1, round(seconds * 1000))}ms"
    whole = round(seconds)
    unit = next(unit for unit in ("d", "h", "m", "s") if whole % _UNIT_S[unit] == 0)
    return f"{whole / _UNIT_S[unit]:g}{unit}"


def in_words(seconds: float) -> str:
    """As a page tells how long something took: ``12 ms``, ``3.2 s``, ``4 m 05 s``, ``2 h 10 m``, ``3 d 4 h``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} m {seconds % 60:02.0f} s" if seconds % 60 >= 0.5 else f"{seconds / 60:.0f} m"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} m"
    return f"{seconds // 86400:.0f} d {seconds % 86400 // 3600:.0f} h"


def reuse_s(value: Any) -> float | None:
    """How old an answer may be that is used again, in seconds: true is any age, false is 0.0: never; None: not said.

    Whoever comes first and has said something counts, in the order call, step, seed, model: a false there is not
    overridden by a true behind it.

    Raises:
        ValueError: It is neither true, false, nor a duration.
    """
    if value is None:
        return None
    if value is False:
        return 0.0
    if value is True:
        return ANY_AGE_S
    try:
        return seconds(value, at_most_s=ANY_AGE_S)
    except (TypeError, ValueError):
        raise ValueError('must be true, false, or the greatest age, such as "7d"') from None
