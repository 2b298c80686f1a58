"""How a lap of a `repeat` ends: a pure function of what was found in it and in the laps before.

| found in the lap                                                       | verdict                                  |
|------------------------------------------------------------------------|------------------------------------------|
| the condition holds, no check is false, nobody asked for changes       | converged                                |
| the same as in an earlier lap, or two laps without gain                | by `otherwise`: failed, ask or kept      |
| as many laps as are allowed                                            | by `otherwise`: failed, ask or kept      |
| one of these two, to be asked about, and a person just asked for changes | again, and laps are counted anew       |
| none of these                                                          | again                                    |

Laps before a person granted further ones are not counted and not compared with. A lap is better than another when its
checks hold and the other's do not, else by its score; of equal ones the first is the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol

from pop.steps import Repeat

Verdict = Literal["again", "converged", "kept", "accepted", "ask", "failed"]


class LapFacts(Protocol):
    """One lap of a `repeat` whose condition was looked at."""

    @property
    def verdict(self) -> Verdict:
        """``again``: another lap. ``converged``, ``kept`` (the best one) and ``accepted`` (by a person) end the loop,
        ``ask`` opens a gate, ``failed`` ends the run."""

    @property
    def score(self) -> float | None: ...

    @property
    def checks(self) -> bool:
        """False when the deterministic checks said no."""

    @property
    def sha256(self) -> str:
        """Of all that the lap made: two equal ones are a standstill."""


class LoopFacts(Protocol):
    """What is known about one `repeat`."""

    @property
    def laps(self) -> Sequence[LapFacts]: ...

    @property
    def since(self) -> int:
        """Laps that do not count any more, because a person granted further ones."""

    @property
    def kept(self) -> int | None:
        """The lap whose outputs stand for the loop once it has ended, counted from 1."""


@dataclass(frozen=True)
class Ruling:
    """The verdict over lap number `lap`, counted from 1, with a sentence that says why.

    `kept` is the lap that stands for the loop, when it has ended; `granted` says that the laps so far do not count any more.
    """

    lap: int
    verdict: Verdict
    reason: str
    kept: int | None = None
    granted: bool = False


@dataclass(frozen=True)
class _Worth:
    checks: bool
    score: float | None

    @property
    def rank(self) -> tuple[bool, float]:
        return self.checks, -inf if self.score is None else self.score


def verdict(
    repeat: Repeat,
    loop: LoopFacts | None,
    *,
    until: bool,
    checks: bool | None,
    score: float | None,
    sha256: str,
    changes: bool = False,
) -> Ruling:
    """The verdict over the next lap of a loop.

    Args:
        loop: What is known of the laps before it; None before the first.
        until: What the condition gave.
        checks: What the checks gave; None without any.
        score: What the score gave; None without one.
        sha256: Of all that the lap made.
        changes: Whether a person asked for changes at a gate in this lap.
    """
    before = list(loop.laps) if loop else []
    since = loop.since if loop else 0
    number = len(before) + 1
    if until and checks is not False and not changes:
        return Ruling(number, "converged", f"`{repeat.until.text}` holds", number)
    worths = [_Worth(lap.checks, lap.score) for lap in before] + [_Worth(checks is not False, score)]
    over = _same(before, since, sha256) or _no_gain(repeat, worths[since:])
    if not over and number - since >= repeat.at_most:
        over = f"{number - since} laps are over" if number - since > 1 else "1 lap is over"
    if not over:
        return Ruling(number, "again", _why_not(repeat, checks, changes))
    if changes and repeat.otherwise == "ask":
        return Ruling(number, "again", f"a person asked for changes, so it goes on, though {over}", granted=True)
    if repeat.otherwise == "keep-best":
        kept = max(range(number), key=lambda n: worths[n].rank) + 1  # the first of the best
        return Ruling(number, "kept", f"{over}; lap {kept} is the best", kept)
    return Ruling(number, "ask" if repeat.otherwise == "ask" else "failed", over)


def _same(before: Sequence[LapFacts], since: int, sha256: str) -> str | None:
    for n in range(since, len(before)):
        if before[n].sha256 == sha256:
            return f"lap {len(before) + 1} gave the same as lap {n + 1}"
    return None


def _no_gain(repeat: Repeat, worths: Sequence[_Worth]) -> str | None:
    """No gain over the best of before, two laps in a row."""
    if repeat.score is None or len(worths) < 3 or any(worth.score is None for worth in worths[-2:]):
        return None
    best = max(worth.rank for worth in worths[:-2])
    if best[1] == -inf or any(worth.rank > best for worth in worths[-2:]):
        return None
    return f"no gain for two laps: {', '.join('-' if one.score is None else f'{one.score:g}' for one in worths[-3:])}"


def _why_not(repeat: Repeat, checks: bool | None, changes: bool) -> str:
    if changes:
        return "a person asked for changes"
    if checks is False and repeat.checks is not None:
        return f"`{repeat.checks.text}` does not hold"
    return f"`{repeat.until.text}` does not hold"
