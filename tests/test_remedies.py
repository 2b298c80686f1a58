"""What follows a failed attempt, class by class."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop.errors import ERROR_CLASSES
from pop.remedies import MAX_INTERRUPTIONS, RECOVERY, recovery


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
