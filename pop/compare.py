"""Two runs side by side: what each step put out, was asked, cost and took. It only reads."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from pop.errors import PopError
from pop.records import BadJson, Usage, read_json
from pop.runs import Run
from pop.stale import place_of
from pop.store import NotAFile, contained, lines_of, read_regular

MAX_BYTES = 8 * 2**20  # of one file that is compared
MAX_LINES = 20_000  # of a text that is compared line by line
SHOWN_LINES = 60
MAX_CALLS = 10_000  # lines of calls.jsonl


@dataclass(frozen=True)
class Side:
    """One instance in one run; `output` and `prompt` None where there is none."""

    state: str
    usage: Usage = field(default_factory=Usage)
    seconds: float | None = None
    models: tuple[str, ...] = ()
    output: str | None = None
    prompt: str | None = None

    def to_json(self) -> dict[str, Any]:
        tokens = self.usage.input_tokens + self.usage.output_tokens
        return {
            "state": self.state,
            "models": list(self.models),
            "calls": self.usage.calls,
            "cached_calls": self.usage.cached_calls,
            "tokens": tokens,
            "cost_usd": self.usage.cost_usd,
            "unpriced_calls": self.usage.unpriced_calls,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Pair:
    """The instance of one name in both runs; None where a run has none."""

    name: str
    a: Side | None
    b: Side | None

    @property
    def output(self) -> str:
        """``same``, ``different``, ``only in a``, ``only in b`` or ``none``."""
        return _compared(self.a.output if self.a else None, self.b.output if self.b else None)

    @property
    def prompt(self) -> str:
        """The same of the prompts."""
        return _compared(self.a.prompt if self.a else None, self.b.prompt if self.b else None)


def _compared(a: str | None, b: str | None) -> str:
    if a is None or b is None:
        return "none" if a is b else "only in a" if b is None else "only in b"
    return "same" if a == b else "different"


def compare(a: Run, b: Run, step: str | None = None) -> list[Pair]:
    """Pairs by instance, in the order of the first run, then those of the second alone.

    Args:
        step: Only this step, or instance.
    """
    return list(pairs(a, b, step))


def pairs(a: Run, b: Run, step: str | None = None, start: int = 0) -> Iterator[Pair]:
    """The same one after the other, each read when it is asked for; from the instance number `start` on."""
    of_a, of_b = tasks_of(a), tasks_of(b)
    names = [name for name in dict.fromkeys([*of_a, *of_b]) if step in (None, name, place_of(name)[0])]
    for name in names[start:]:
        yield Pair(name, _side(a, name, of_a.get(name)), _side(b, name, of_b.get(name)))


def tasks_of(run: Run) -> Mapping[str, Mapping[str, Any]]:
    """The instances of a run with what its status tells of them."""
    tasks: Mapping[str, Mapping[str, Any]] = run.status().get("tasks") or {}
    return tasks


def _side(run: Run, name: str, task: Mapping[str, Any] | None) -> Side | None:
    if task is None:
        return None
    try:
        usage = Usage.model_validate(task.get("usage") or {})
    except ValueError:
        usage = Usage()
    number, seconds = task.get("attempt"), task.get("seconds")
    attempt = _inside(run, f"tasks/{name}/attempts/{number}") if isinstance(number, int) else None
    output = _inside(run, f"tasks/{name}/output.json")
    return Side(
        str(task.get("state")),
        usage,
        seconds if isinstance(seconds, int | float) else None,
        _models(attempt / "calls.jsonl") if attempt else (),
        comparable(output) if output else None,
        _text(next(iter(sorted(attempt.glob("*-prompt.md"))), None)) if attempt else None,
    )


def _inside(run: Run, path: str) -> Path | None:
    """A path of a run that leads nowhere else; None where it would."""
    try:
        return contained(run.path, path)
    except NotAFile:
        return None


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return read_regular(path, max_bytes=MAX_BYTES).decode("utf-8", "replace")
    except (OSError, NotAFile):
        return None


def comparable(path: Path) -> str | None:
    """A JSON file as a person compares it: a text as it is, other JSON with its keys in order; None where there is none."""
    text = _text(path)
    if text is None:
        return None
    try:
        value = read_json(text)
    except (BadJson, PopError):
        return text
    return value if isinstance(value, str) else json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _models(path: Path) -> tuple[str, ...]:
    found: dict[str, None] = {}
    try:
        for line in islice(lines_of(path), MAX_CALLS):
            try:
                row = orjson.loads(line)
                found[str(row.get("provider_model") or row["model"])] = None
            except (ValueError, LookupError, TypeError, AttributeError):
                continue
    except (OSError, NotAFile):
        return ()
    return tuple(found)


def unified(a: str | None, b: str | None, names: tuple[str, str], *, full: bool = False) -> list[str]:
    """What differs, as ``diff -u`` has it; at most `SHOWN_LINES` lines unless `full`."""
    one, two = (a or "").splitlines(), (b or "").splitlines()
    if len(one) + len(two) > MAX_LINES and not full:
        return [f"({len(one):,} and {len(two):,} lines: --full compares them)"]
    lines = difflib.unified_diff(one, two, *names, lineterm="", n=3 if not full else 10)
    if full:
        return list(lines)
    shown = list(islice(lines, SHOWN_LINES + 1))
    return shown if len(shown) <= SHOWN_LINES else [*shown[:SHOWN_LINES], "... (--full shows the rest)"]
