"""Budgets: room is taken before a call, so that many workers at once cannot go beyond."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pop.models.budgets import Budgets, Reservation
from pop.models.calls import Scope, Sum, nano
from pop.models.request import ModelError, Origin, Tokens
from pop.records import BudgetLimit

NOON = 1795262400.0  # 2026-11-21T12:00:00Z


def origin(**values: Any) -> Origin:
    base = {"run_id": "r1", "instance": "draft.3", "generation": 1, "attempt": 1, "step": "draft", "pipeline": "p"}
    return Origin.model_validate({**base, **values})


def limit(name: str, value: float, source: str = "seed", *, soft: bool = False) -> BudgetLimit:
    return BudgetLimit(name=name, limit=value, source=source, soft=soft)


def budgets(spent: dict[Scope, Sum] | None = None, **options: Any) -> Budgets:
    return Budgets(lambda scope: (spent or {}).get(scope, Sum()), clock=lambda: NOON, **options)


def refused(found: Budgets, limits: list[BudgetLimit], tokens: int = 100, usd: float | None = 0.04) -> ModelError:
    with pytest.raises(ModelError) as caught:
        found.reserve(origin(), limits, Tokens(input_tokens=tokens), usd, model="large")
    assert caught.value.error_class == "budget"
    return caught.value


def test_a_call_that_would_go_beyond_is_refused_with_the_figures_and_the_next_move() -> None:
    """What is spent counts, and what others have reserved."""
    found = budgets({("run", "r1"): Sum(calls=3, nano_usd=nano(0.43))})
    held = found.reserve(origin(), [limit("run_usd", 0.5)], Tokens(), 0.05)
    error = refused(found, [limit("run_usd", 0.5)])
    assert str(error) == (
        "budget: the budget run_usd = 0.5 (seed) does not allow this call: 0.43 are spent, 0.05 reserved, about 0.04 asked\n"
        "  where: step 'draft.3'\n"
        "  hint: pop retry r1 --budget run_usd=..."
    )
    held.release()
    found.reserve(origin(), [limit("run_usd", 0.5)], Tokens(), 0.07)  # to the last cent


def test_a_budget_below_one_call_is_told_as_that() -> None:
    """Before anything is spent."""
    error = refused(budgets(), [limit("step_tokens", 50, "pipeline.json")])
    assert error.message == "the budget step_tokens = 50 (pipeline.json) is below one call: about 100 are asked"
    assert error.hint == "pop retry r1 --budget step_tokens=..."
    assert refused(budgets(), [limit("run_calls", 0)]).message.endswith("is below one call: about 1 are asked")


def test_a_budget_of_pop_toml_is_raised_there() -> None:
    """The hint names the file."""
    error = refused(budgets(), [limit("day_usd", 0.01, "pop.toml")])
    assert error.hint == "raise day_usd in [budget] of pop.toml, then pop retry r1"


def test_under_a_usd_budget_a_model_needs_a_price() -> None:
    """Else nobody could keep it; a budget in tokens or calls, or a soft one, needs none."""
    error = refused(budgets(), [limit("run_usd", 5)], usd=None)
    assert error.code == "no-price" and "'large'" in error.message and "price in pop.toml" in str(error.hint)
    found = budgets()
    limits = [limit("run_tokens", 1000), limit("run_calls", 10), limit("run_usd", 5, soft=True)]
    assert found.reserve(origin(), limits, Tokens(), None).warnings == []


def test_a_model_that_costs_nothing_runs_under_a_budget_of_nothing() -> None:
    """The embedded engine."""
    budgets().reserve(origin(), [limit("run_usd", 0)], Tokens(input_tokens=100), 0.0)


def test_a_soft_budget_never_refuses_and_warns_once() -> None:
    """Per scope and budget: another run is warned for itself, on the day of all runs the first one."""
    found = budgets({("day", "2026-11-21"): Sum(calls=10)})
    limits = [limit("run_calls", 0, "pop.toml", soft=True), limit("day_calls", 10, "pop.toml", soft=True)]
    told = [found.reserve(origin(run_id=run), limits, Tokens(), None).warnings for run in ("a", "a", "b")]
    run, day = (
        f"this {what} goes beyond {what}_calls = {most} (pop.toml); work goes on"
        for what, most in (("run", 0), ("day", 10))
    )
    assert told == [[run, day], [], [run]]


def test_who_is_refused_has_taken_nothing_and_is_not_warned() -> None:
    """The soft budget warns the first call that goes."""
    found = budgets()
    soft, hard = limit("run_calls", 0, soft=True), limit("run_tokens", 50)
    refused(found, [soft, hard])
    held = found.reserve(origin(), [soft, hard], Tokens(input_tokens=50), None)
    assert len(held.warnings) == 1


def test_each_scope_counts_what_belongs_to_it() -> None:
    """Two items of a step share its budget, two steps do not; a pipeline's is that of all its runs."""
    found = budgets()

    def take(name: str, **values: str) -> bool:
        try:
            found.reserve(origin(**values), [limit(name, 1)], Tokens(), None)
        except ModelError:
            return False
        return True

    assert take("step_calls") and not take("step_calls", instance="draft.4") and take("step_calls", step="check")
    assert take("step_calls", run_id="r2")
    assert not take("run_calls") and take("run_calls", run_id="r3")
    assert take("pipeline_calls", run_id="r5", pipeline="q") and not take("pipeline_calls", run_id="r6", pipeline="q")


def test_the_day_changes_at_midnight_utc() -> None:
    """What was reserved before it is counted on its own day."""
    now = [NOON + 43199]
    found = Budgets(lambda _: Sum(), clock=lambda: now[0])
    day = [limit("day_calls", 1), limit("pipeline_calls", 1)]
    held = found.reserve(origin(), day, Tokens(), None)
    with pytest.raises(ModelError):
        found.reserve(origin(), day, Tokens(), None)
    now[0] += 1
    found.reserve(origin(), day, Tokens(), None)
    held.settle(Tokens(), None)
    with pytest.raises(ModelError):
        found.reserve(origin(), day, Tokens(), None, "2026-11-21")
    found.reserve(origin(), day, Tokens(), None, "2026-11-23")


def test_what_was_spent_is_asked_once_and_then_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a budget that holds for some calls alone counts the others of its scope too."""
    asked: list[Scope] = []

    def totals(scope: Scope) -> Sum:
        asked.append(scope)
        return Sum(calls=1, input_tokens=10, output_tokens=5)

    found = Budgets(totals, clock=lambda: NOON)
    for _ in range(3):
        found.reserve(origin(), [limit("run_tokens", 100)], Tokens(input_tokens=10), None).settle(
            Tokens(input_tokens=10, output_tokens=5), None
        )
    found.reserve(origin(), [], Tokens(), None).settle(Tokens(input_tokens=40), None)
    assert asked == [("run", "r1")]
    assert "100 are spent, 0 reserved" in refused(found, [limit("run_tokens", 100)]).message


def test_a_reservation_ends_once() -> None:
    """A release after it was settled gives nothing back."""
    found = budgets()
    held = found.reserve(origin(), [limit("run_calls", 1)], Tokens(), None)
    held.settle(Tokens(), None)
    held.release()
    held.settle(Tokens(), None)
    assert "1 are spent, 0 reserved" in refused(found, [limit("run_calls", 1)]).message


def test_a_budget_raised_lets_the_run_go_on() -> None:
    """The limit is that of the call."""
    found = budgets({("run", "r1"): Sum(nano_usd=nano(1.0))})
    refused(found, [limit("run_usd", 1.0)])
    found.reserve(origin(), [limit("run_usd", 2.0)], Tokens(), 0.04)


def test_a_budget_that_does_not_exist_is_told() -> None:
    """A seed is data."""
    with pytest.raises(ModelError) as caught:
        budgets().reserve(origin(), [limit("run_eur", 1)], Tokens(), None)
    assert caught.value.error_class == "bad_input" and "run_eur" in caught.value.message


def test_memory_is_bounded_but_what_is_under_way_stays() -> None:
    """Scopes long unused are forgotten and asked for again."""
    now = [NOON]
    found = Budgets(lambda _: Sum(), clock=lambda: now[0], max_scopes=10)
    held = found.reserve(origin(run_id="held"), [limit("run_calls", 1)], Tokens(), None)
    held_budget = [limit("run_calls", 1)]
    for number in range(100):
        now[0] += 30
        found.reserve(origin(run_id=f"r{number}"), [limit("run_calls", 1)], Tokens(), None).release()
    assert len(found) <= 300
    with pytest.raises(ModelError):
        found.reserve(origin(run_id="held"), held_budget, Tokens(), None)
    held.release()
    now[0] += 3600
    for number in range(100):
        now[0] += 30
        found.reserve(origin(run_id=f"s{number}"), [limit("run_calls", 1)], Tokens(), None).release()
    assert len(found) == 10


Steps = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "release"]),
        st.integers(0, 5),
        st.integers(0, 2000),
        st.sampled_from(["draft", "check"]),
    ),
    max_size=120,
)


@given(steps=Steps, most=st.integers(0, 5000), before=st.integers(0, 3000))
@settings(max_examples=200, deadline=None)
def test_a_limit_is_only_passed_by_what_calls_use_beyond_their_estimates(
    steps: list[tuple[str, int, int, str]], most: int, before: int
) -> None:
    """In any order of reservations and their ends; and a release restores exactly what was."""
    found = budgets({("run", "r1"): Sum(input_tokens=before)})
    limits = [limit("run_tokens", most), limit("run_usd", 1e6), limit("day_calls", 1e6)]
    spent, overshoot, calls = before, 0, 0
    held: list[tuple[Reservation, int]] = []
    for what, index, amount, step in steps:
        if what == "reserve":
            room = most - spent - sum(estimate for _, estimate in held)
            try:
                got = found.reserve(origin(step=step), limits, Tokens(input_tokens=amount), amount * 1e-6)
            except ModelError:
                assert amount > room
            else:
                assert amount <= room
                held.append((got, amount))
        elif held:
            reservation, estimate = held.pop(index % len(held))
            if what == "release":
                reservation.release()
            else:
                reservation.settle(Tokens(input_tokens=amount), amount * 1e-6)
                spent, calls = spent + amount, calls + 1
                overshoot += max(0, amount - estimate)
        assert spent <= max(most, before) + overshoot
    for reservation, _ in held:
        reservation.release()
    account = found._accounts.get(("run", "r1"))
    if account is not None:
        assert (
            account.spent
            and account.spent.tokens == spent
            and account.reserved.of("tokens") == account.reserved.of("usd") == 0
        )
        assert account.spent.calls == calls


def test_a_thousand_workers_at_once_stay_within_one_limit() -> None:
    """What they spend together is at most the limit, where estimates are not too low; and nothing stays reserved."""
    found = budgets()
    rng = random.Random(1)
    spent = 0

    async def work() -> None:
        nonlocal spent
        for _ in range(5):
            estimate = rng.randint(1, 500)
            try:
                held = found.reserve(origin(), [limit("run_tokens", 50_000)], Tokens(input_tokens=estimate), None)
            except ModelError:
                continue
            await asyncio.sleep(rng.random() / 100)
            if rng.random() < 0.2:
                held.release()
                continue
            actual = rng.randint(0, estimate)
            spent += actual
            held.settle(Tokens(output_tokens=actual), None)

    async def all_of_them() -> None:
        await asyncio.gather(*(work() for _ in range(1000)))

    asyncio.run(all_of_them())
    assert 45_000 < spent <= 50_000
    account = found._accounts["run", "r1"]
    assert account.reserved.of("tokens") == 0 and account.spent and account.spent.tokens == spent
