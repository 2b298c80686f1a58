"""What follows a failed attempt, class by class."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop.errors import ERROR_CLASSES
from pop.remedies import CURES, MAX_INTERRUPTIONS, RECOVERY, Next, recovery
from pop.steps import Action


def test_every_error_class_has_a_recovery() -> None:
    """A new class cannot be forgotten."""
    assert set(RECOVERY) == set(ERROR_CLASSES)


@pytest.mark.parametrize("error_class", ["auth", "bug", "bad_input", "budget", "refused"])
def test_what_would_fail_again_is_not_retried(error_class: Any) -> None:
    """However many attempts are allowed."""
    assert recovery(error_class, table={}, failures=1, attempts_allowed=9, rng=random.Random(1)).action == "fail"


def test_attempts_run_out() -> None:
    """The last allowed failure is final."""
    rng = random.Random(1)
    assert recovery("timeout", table={}, failures=1, attempts_allowed=2, rng=rng).action == "retry"
    assert recovery("timeout", table={}, failures=2, attempts_allowed=2, rng=rng).action == "fail"


def test_a_timeout_gets_more_time() -> None:
    """Asking for the same again within the same time would end the same way."""
    assert recovery("timeout", table={}, failures=1, attempts_allowed=2, rng=random.Random(1)).more_time


def test_interruptions_use_up_no_attempt_but_end_some_day() -> None:
    """A step that takes the daemon down each time must not do so for ever."""
    rng = random.Random(1)
    early = recovery("interrupted", table={}, failures=0, interruptions=1, attempts_allowed=1, rng=rng)
    assert (early.action, early.delay_s <= 0.1) == ("again", True)
    late = recovery("interrupted", table={}, failures=0, interruptions=MAX_INTERRUPTIONS, attempts_allowed=1, rng=rng)
    assert late.action == "fail"


@given(st.integers(1, 10**6), st.integers(0, 2**32))
def test_waits_are_drawn_below_a_growing_bound(failures: int, seed: int) -> None:
    """Full jitter: anywhere from 0 to the bound, which doubles up to its cap."""
    wait = recovery("unavailable", table={}, failures=failures, attempts_allowed=10**7, rng=random.Random(seed)).delay_s
    assert 0 <= wait <= min(60.0, 2.0 ** min(failures - 1, 30))


# ---- tables of one's own ----------------------------------------------------------------------------------------


def after(error_class: Any, *actions: Action, failures: int = 1, allowed: int = 3) -> Next:
    """What follows the failure with this number, by a table of one class."""
    rng = random.Random(1)
    return recovery(error_class, table={error_class: actions}, failures=failures, attempts_allowed=allowed, rng=rng)


def test_the_first_failure_takes_the_first_action_and_the_last_one_stands_for_all_further() -> None:
    """``"timeout": ["retry-longer", "model:large"]``."""
    actions = (Action("retry-longer"), Action("model", "large"))
    assert after("timeout", *actions).more_time
    assert after("timeout", *actions, failures=2, allowed=9).model == "large"
    assert after("timeout", *actions, failures=5, allowed=9).model == "large"


def test_a_class_that_a_table_leaves_out_keeps_its_default() -> None:
    """So a table says only what is different."""
    table = {"timeout": (Action("fail"),)}
    found = recovery("truncated", table=table, failures=1, attempts_allowed=2, rng=random.Random(1))  # type: ignore[arg-type]
    assert (found.action, found.corrected) == ("retry", True)


@pytest.mark.parametrize(
    ("actions", "then"), [(("retry", "ask"), "ask"), (("ask", "retry"), "fail"), (("retry",), "fail")]
)
def test_when_the_attempts_are_used_up_a_person_is_asked_where_the_list_ends_so(actions: Any, then: str) -> None:
    """However long the list, a step has as many attempts as it is allowed."""
    found = after("stalled", *(Action(do) for do in actions), failures=2, allowed=2)
    assert found.action == then


def test_asking_and_failing_wait_for_no_number_of_attempts() -> None:
    """They are no attempts."""
    assert after("auth", Action("ask")) == Next("ask", reason="auth, failure 1 of 3: a person is asked")
    assert after("bug", Action("fail"), allowed=9).action == "fail"


def test_only_a_corrected_retry_tells_what_was_wrong() -> None:
    """A plain one asks the same again; another model is told nothing and waits for nothing."""
    assert after("invalid_output", Action("retry-corrected")).corrected
    assert not after("invalid_output", Action("retry")).corrected
    other = after("rate_limited", Action("model", "large"))
    assert (other.corrected, other.delay_s, other.reason) == (
        False,
        0.0,
        "rate_limited, failure 1 of 3: again with the model 'large'",
    )


@pytest.mark.parametrize("error_class", sorted(set(ERROR_CLASSES) - {"interrupted"}))
def test_defaults_do_only_what_can_cure(error_class: Any) -> None:
    """The table in code keeps to the rule for tables of one's own; to fail and to ask are always allowed."""
    assert {action.do for action in RECOVERY[error_class]} <= CURES[error_class]
    assert {"ask", "fail"} <= CURES[error_class]


def test_interruptions_follow_no_table() -> None:
    """They say nothing about the step."""
    assert CURES["interrupted"] == frozenset()
