"""Values in a step of a pipeline: what each key takes, as functions that check one and give it back.

Each raises ValueError or TypeError with the rest of a sentence that begins with the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pop.durations import reuse_s, seconds
from pop.errors import ErrorClass
from pop.records import NAME_PATTERN
from pop.remedies import CURES
from pop.steps import Action, Remedy


def text(value: Any) -> str:
    """A text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text")
    return value


def name(value: Any) -> str:
    """A name of a step, block or pipeline."""
    if not isinstance(value, str) or not re.fullmatch(NAME_PATTERN, value):
        raise ValueError("must be a name: a to z first, then a to z, 0 to 9, - or _, at most 64 characters")
    return value


def names_of(things: str) -> Callable[[Any], tuple[str, ...]]:
    """A check for lists of names of `things`, each once."""

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ValueError(f"must be a list of names of {things}")
        if len(set(value)) != len(value):
            raise ValueError(f"names a {things.removesuffix('s')} twice")
        return tuple(value)

    return check


def one_of(*words: str) -> Callable[[Any], str]:
    """A check for one of some words."""
    listed = ", ".join(f'"{word}"' for word in words[:-1]) + f' or "{words[-1]}"'

    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be {listed}")
        return str(value)

    return check


def json_object(value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise TypeError("must be an object")
    return value


def models(value: Any) -> dict[str, str]:
    """Names of models by the names they replace."""
    if not isinstance(value, dict) or not all(isinstance(model, str) and model for model in value.values()):
        raise ValueError('must be an object of names of models, e.g. {"default": "large"}')
    return value


def whole(least: int, most: int) -> Callable[[Any], int]:
    """A check for whole numbers within bounds."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return check


def above_zero(value: Any) -> float:
    """A finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError("must be a number above zero")
    return float(value)


def budget(*scopes: str) -> Callable[[Any], dict[str, float]]:
    """A check for budgets of these scopes, e.g. ``{"run_usd": 2.0}``."""
    known = [f"{scope}_{unit}" for scope in scopes for unit in ("usd", "tokens", "calls")]

    def check(value: Any) -> dict[str, float]:
        if not isinstance(value, dict) or not value:
            raise TypeError(f'must be an object of budgets, e.g. {{"{known[0]}": 0.5}}')
        for name, amount in value.items():
            if name not in known:
                raise ValueError(f"knows no {name!r}; it may hold {', '.join(known)}")
            if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount < math.inf:
                raise ValueError(f"{name!r} must be a number, not below zero")
            if not name.endswith("_usd") and amount != int(amount):
                raise ValueError(f"{name!r} must be a whole number")
        return {name: float(amount) for name, amount in value.items()}

    return check


MAX_LAPS = 1000
REMEDIES: tuple[Remedy, ...] = get_args(Remedy)


def action(value: Any, error_class: ErrorClass) -> Action:
    """What is done about errors of a class: ``retry-longer``, ``model:large``, ...

    Raises:
        ValueError: It is no such word, or no cure for this class; with the whole sentence.
    """
    do, colon, model = value.partition(":") if isinstance(value, str) else ("", "", "")
    if do not in REMEDIES or (colon and do != "model"):
        near = get_close_matches(do, REMEDIES, n=1)
        words = ", ".join(REMEDIES).replace("model", "model:NAME")
        raise ValueError(f"must be one of {words}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if do not in CURES[error_class]:
        cures = ", ".join(remedy for remedy in REMEDIES if remedy in CURES[error_class])
        raise ValueError(f"{error_class} errors are not cured by {do}; they can be: {cures}")
    if do == "model" and not model.strip():
        raise ValueError('must name the model: "model:large"')
    return Action(do, model or None)


CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "with": json_object,
    "model": text,
    "timeout": seconds,
    "stall": seconds,
    "attempts": whole(1, 100),
    "refinements": whole(0, 100),
    "memory_mb": whole(64, 10_000_000),
    "output_mb": above_zero,
    "reuse": reuse_s,
    "budget": budget("step"),
}
FIELDS = {"with": "with_", "timeout": "timeout_s", "stall": "stall_s", "reuse": "reuse_s"}
