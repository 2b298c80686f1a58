"""What is on the screen, as values: all texts are safe to print, so that two looks can be compared and laid out anywhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pop.display import MARKS, dollars
from pop.durations import in_words
from pop.errors import safe
from pop.events import unix_s
from pop.steps import step_of

PARTS: Mapping[str, tuple[str, int]] = {  # what the board lists, in this order, and how many of each at most
    "waiting": ("waiting for a person", 500),
    "active": ("active", 1000),
    "pending": ("pending", 200),
    "failed": ("failed", 200),
    "complete": ("complete, the newest", 50),
}


@dataclass(frozen=True)
class Wish:
    """What somebody looks at: `words` narrow the board, `run_id` is the run that is opened, `step` a step of it."""

    words: str = ""
    run_id: str | None = None
    step: str | None = None


@dataclass(frozen=True)
class Entry:
    """A run, or a seed in the queue, as the board lists it. `key` is its own alone; a seed has no `run_id`."""

    key: str
    part: str
    state: str
    name: str
    run_id: str | None = None
    at: str = ""
    share: str = ""
    took: str = ""
    cost: str = ""
    about: str = ""


@dataclass(frozen=True)
class Step:
    """One instance of a step, or several summed up (`count` of them, `name` the step's)."""

    name: str
    state: str
    family: str
    count: int = 1
    stage: str = ""
    attempt: int = 0
    lap: str = ""
    took: str = ""
    cost: float = 0.0
    about: str = ""

    @property
    def mark(self) -> str:
        return MARKS.get(self.state, " ")


@dataclass(frozen=True)
class Opened:
    """The run that is looked at. `notes` are lines about it; `page` is what is shown of the chosen step."""

    run_id: str
    title: str
    state: str
    share: str
    took: str
    usage: str
    notes: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    logs: tuple[str, ...] = ()
    page: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """One look, as `wish` asked. `counts` by part, of all runs, whatever the words ask for; `found` of those asked for."""

    path: str
    wish: Wish = Wish()
    counts: Mapping[str, int] = field(default_factory=dict)
    found: Mapping[str, int] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    today: str = ""
    served: str | None = None
    troubles: tuple[str, ...] = ()
    opened: Opened | None = None
    behind: bool = False  # the ledger is still being read


# -- steps ---------------------------------------------------------------------------------------------------------


def step_from(name: str, task: Mapping[str, Any], now: float) -> Step:
    """One instance, from its place in tasks-status.json, which anybody may have edited."""
    state = line(task.get("state"), 20)
    error, usage, progress = task.get("error"), task.get("usage"), task.get("progress")
    if isinstance(error, dict) and state != "done":
        about = f"{error.get('error_class')}: {error.get('message')}"
    else:
        about = str(task.get("reason") or "")
    stage = line(task.get("stage") or "", 40)
    if isinstance(progress, list) and len(progress) == 2:
        stage = f"{stage} {line(progress[0], 12)}/{line(progress[1], 12)}".strip()
    refined = int(number(task.get("refinements")))
    if refined:
        about = f"{refined} refinement{'s' * (refined > 1)}{': ' if about else ''}{about}"
    return Step(
        name=line(name, 200),
        state=state,
        family=line(step_of(name) + ("+control" if "+control" in name else ""), 200),
        stage=stage,
        attempt=int(number(task.get("attempt"))),
        lap=line(name.partition("@")[2].partition("+")[0], 20),
        took=span(since(task.get("started_at"), now) if state == "running" else task.get("seconds")),
        cost=number(usage.get("cost_usd")) if isinstance(usage, dict) else 0.0,
        about=line(about, 300),
    )


def summed_up(steps: Iterable[Step], unfolded: frozenset[str], words: str = "") -> list[Step]:
    """Steps with their items and laps in one line each, but for those that are unfolded."""
    families: dict[str, list[Step]] = {}
    for step in steps:
        if all(word in f"{step.name} {step.state}".casefold() for word in words.casefold().split()):
            families.setdefault(step.family, []).append(step)
    rows: list[Step] = []
    for family, members in families.items():
        if len(members) == 1:
            rows += members
            continue
        rows.append(_sum(family, members))
        rows += members if family in unfolded else ()
    return rows


_TELLING = ("waiting", "failed", "running", "stale", "pending", "cancelled", "done", "skipped")


def _sum(family: str, members: list[Step]) -> Step:
    """The members of the newest lap in one line; what they cost is of all laps."""
    newest = max((member.lap for member in members), key=_lap_numbers)
    here = [member for member in members if member.lap == newest]
    states = [member.state for member in here]
    counts = {state: states.count(state) for state in dict.fromkeys((*_TELLING, *states)) if state in states}
    state = "running" if "running" in counts and not {"waiting", "failed"} & set(counts) else next(iter(counts))
    about = f"{counts.pop('done', 0)} of {len(here)} done" if len(here) > 1 else here[0].about
    if len(here) > 1:
        about = ", ".join([about, *(f"{count} {name}" for name, count in counts.items())])
    return Step(
        name=family,
        state=state,
        family=family,
        count=len(members),
        stage=here[0].stage if len(here) == 1 else "",
        attempt=max(member.attempt for member in here),
        lap=newest,
        took=here[0].took if len(here) == 1 else "",
        cost=sum(member.cost for member in members),
        about=about,
    )


def _lap_numbers(lap: str) -> list[int]:
    return [int(part) for part in lap.split(".") if part.isascii() and part.isdigit()]


# -- texts ---------------------------------------------------------------------------------------------------------


def line(text: object, most: int = 300) -> str:
    """What a seed, a model or a file says, as one line that steers no terminal."""
    return safe(text, most, one_line=True)


def number(value: Any) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and -1e12 < value < 1e12
    return float(value) if fits else 0.0


def since(at: Any, now: float) -> float | None:
    """Whole seconds from an RFC 3339 time until now; None where there is none."""
    try:
        return max(0.0, float(int(now - unix_s(str(at)))))
    except (ValueError, OverflowError):
        return None


def span(seconds: Any) -> str:
    """How long something took; "" where that is no number."""
    return "" if seconds is None or number(seconds) != seconds else in_words(max(0.0, number(seconds)))


def clock(at: str | None, now: float) -> str:
    """An RFC 3339 time, UTC: the time of today, else month and day."""
    if not at or len(at) < 19:
        return ""
    today = time.strftime("%Y-%m-%d", time.gmtime(now))
    return line(at[11:19] if at.startswith(today) else at[5:10], 8)


def money(usd: float) -> str:
    return dollars(usd) if usd else ""
