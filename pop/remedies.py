"""What is done about a failed attempt: a table from the class of its error to actions, and the choice among them.

| remedy          | the next attempt                                                                     |
|-----------------|--------------------------------------------------------------------------------------|
| retry           | asks the same again, after a wait where the other side may need one                  |
| retry-longer    | gets twice the time                                                                  |
| retry-corrected | is told what was wrong with the last answer                                          |
| model           | asks another model, as do all after it                                               |
| ask             | waits until a person has answered a gate                                             |
| fail            | is not made                                                                          |

A class maps to a list: the first failure of an instance takes the first action, the second the second, and so on; the
last one stands for all further ones. However long the list, a step has as many attempts as it is allowed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pop.errors import ErrorClass
from pop.steps import Action, Remedy

MAX_INTERRUPTIONS = 100
MAX_WAIT_S = 150.0  # no wait before an attempt is longer: a time further off means that the clock was put back

RECOVERY: Mapping[ErrorClass, tuple[Action, ...]] = {
    "invalid_output": (Action("retry-corrected"),),
    "refused": (Action("fail"),),
    "truncated": (Action("retry-corrected"),),
    "timeout": (Action("retry-longer"),),
    "stalled": (Action("retry"),),
    "rate_limited": (Action("retry"),),
    "unavailable": (Action("retry"),),
    "auth": (Action("fail"),),
    "budget": (Action("fail"),),
    "worker_died": (Action("retry"),),
    "bug": (Action("fail"),),
    "bad_input": (Action("fail"),),
    "rejected": (Action("fail"),),
    "interrupted": (Action("retry"),),  # uses up no attempt
}

# What may be written in a table of one's own: nothing is tried that cannot cure the error.
CURES: Mapping[ErrorClass, frozenset[Remedy]] = {
    "invalid_output": frozenset({"retry", "retry-corrected", "model", "ask", "fail"}),
    "refused": frozenset({"retry-corrected", "model", "ask", "fail"}),
    "truncated": frozenset({"retry", "retry-corrected", "model", "ask", "fail"}),
    "timeout": frozenset({"retry", "retry-longer", "model", "ask", "fail"}),
    "stalled": frozenset({"retry", "retry-longer", "model", "ask", "fail"}),
    "rate_limited": frozenset({"retry", "model", "ask", "fail"}),
    "unavailable": frozenset({"retry", "model", "ask", "fail"}),
    "auth": frozenset({"model", "ask", "fail"}),
    "budget": frozenset({"model", "ask", "fail"}),
    "worker_died": frozenset({"retry", "retry-longer", "ask", "fail"}),
    "bug": frozenset({"ask", "fail"}),
    "bad_input": frozenset({"ask", "fail"}),
    "rejected": frozenset({"ask", "fail"}),
    "interrupted": frozenset(),
}

_WAITS: Mapping[ErrorClass, tuple[float, float]] = {  # seconds: below the first at first, below the second at last
    "rate_limited": (2.0, 120.0),
    "unavailable": (1.0, 60.0),
    "interrupted": (0.1, 5.0),
}
_WORDS: Mapping[Remedy, str] = {
    "retry": "the same again",
    "retry-longer": "again with more time",
    "retry-corrected": "again with what was wrong",
    "model": "again with the model {model!r}",
    "ask": "a person is asked",
    "fail": "no further attempt",
}


@dataclass(frozen=True)
class Next:
    """What to do after a failed attempt, and how many seconds to wait before it.

    `again` uses up no attempt. `more_time` doubles the next attempt's deadline, `corrected` tells it what was wrong,
    `model` is the one it asks instead. `reason` is a sentence for the journal.
    """

    action: Literal["retry", "again", "ask", "fail"]
    delay_s: float = 0.0
    more_time: bool = False
    corrected: bool = False
    model: str | None = None
    reason: str = ""


def recovery(
    error_class: ErrorClass,
    *,
    table: Mapping[ErrorClass, tuple[Action, ...]],
    failures: int,
    attempts_allowed: int,
    rng: random.Random,
    interruptions: int = 0,
) -> Next:
    """What follows an attempt that ended with `error_class`.

    Args:
        table: Of the pipeline, with that of the step laid over it; `RECOVERY` stands for what it leaves out.
        failures: Attempts that failed so far, this one included, interrupted ones not.
        attempts_allowed: Of the step.
        rng: Draws the wait: evenly below a bound that doubles from failure to failure.
        interruptions: Interrupted attempts so far, this one included.

    Source of the waits: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    if error_class == "interrupted":
        if interruptions >= MAX_INTERRUPTIONS:
            return Next("fail", reason=f"interrupted {interruptions} times: {_WORDS['fail']}")
        return Next("again", _wait_s(error_class, interruptions, rng), reason=f"interrupted: {_WORDS['retry']}")
    actions = table.get(error_class) or RECOVERY[error_class]
    chosen, why = actions[min(failures, len(actions)) - 1], f"{error_class}, failure {failures} of {attempts_allowed}"
    if chosen.do not in ("ask", "fail") and failures >= attempts_allowed:
        chosen = actions[-1] if actions[-1].do == "ask" else Action("fail")
    reason = f"{why}: {_WORDS[chosen.do].format(model=chosen.model)}"
    if chosen.do == "ask" or chosen.do == "fail":
        return Next(chosen.do, reason=reason)
    return Next(
        "retry",
        delay_s=_wait_s(error_class, failures, rng) if chosen.do == "retry" else 0.0,
        more_time=chosen.do == "retry-longer",
        corrected=chosen.do == "retry-corrected",
        model=chosen.model if chosen.do == "model" else None,
        reason=reason,
    )


def _wait_s(error_class: ErrorClass, count: int, rng: random.Random) -> float:
    base_s, cap_s = _WAITS.get(error_class, (0.0, 0.0))
    return rng.uniform(0.0, min(cap_s, base_s * 2 ** min(max(0, count - 1), 30)))
