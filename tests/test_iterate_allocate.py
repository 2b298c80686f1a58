"""Who gets what: the formula, the four ways to allocate, what stays together, and when a budget is tight."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pop.recipes.iterate.allocate import Group, allocate, how_many, propose_split, risk_of, together


def groups(*tokens: int, values: str = "") -> list[Group[int]]:
    return [Group((n,), size, values[n] if values else "") for n, size in enumerate(tokens)]


def items(shares: list[list[Group[int]]]) -> list[list[int]]:
    return [[item for group in share for item in group.items] for share in shares]


@pytest.mark.parametrize(
    ("targets", "complexity", "threshold", "agents"),
    [(1, 1, 8, 1), (8, 1, 8, 1), (9, 1, 8, 2), (16, 1, 8, 2), (10, 0.1, 1, 1), (3, 0.1, 0.3, 1), (5, 2.5, 5, 3), (10_000, 1, 12, 834)],
)  # fmt: skip
def test_agents_are_the_complexity_by_the_threshold_rounded_up(
    targets: int, complexity: float, threshold: float, agents: int
) -> None:
    """ceil(n * complexity / threshold), whatever floating point makes of 3 * 0.1 / 0.3."""
    assert how_many(targets, complexity, threshold) == agents


def test_balanced_gives_the_largest_first_to_whom_has_the_least() -> None:
    """So that no agent is far from the others; each keeps the order of its targets."""
    shares = allocate(groups(10, 70, 20, 60, 30, 50), 2, "balanced")
    assert [sum(group.tokens for group in share) for share in shares] == [120, 120]
    assert all(share == sorted(share) for share in items(shares))


def test_round_robin_deals_in_order() -> None:
    """Whatever the sizes."""
    assert items(allocate(groups(9, 1, 1, 1, 9), 2, "round_robin")) == [[0, 2, 4], [1, 3]]


def test_single_is_one_agent() -> None:
    """However many the formula gives."""
    assert items(allocate(groups(1, 2, 3), 3, "single")) == [[0, 1, 2]]


def test_by_a_field_is_one_agent_for_each_value() -> None:
    """Sorted by value."""
    assert items(allocate(groups(1, 1, 1, 1, values="baba"), 1, "by_team")) == [[1, 3], [0, 2]]


def test_no_agent_stays_without_work() -> None:
    """More agents than targets are not made."""
    for how in ("balanced", "round_robin"):
        assert len(allocate(groups(1, 1), 5, how)) == 2


def test_targets_that_share_a_deliverable_stay_together_also_through_others() -> None:
    """a shares with b, b with c: one group."""
    assert together([["x"], ["y"], ["x", "z"], ["z"], []]) == [[0, 2, 3], [1], [4]]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=60),
    agents=st.integers(1, 20),
    how=st.sampled_from(["balanced", "round_robin", "single", "by_x"]),
)
def test_every_target_goes_to_exactly_one_agent(sizes: list[int], agents: int, how: str) -> None:
    """Nothing is lost, nothing is done twice, nobody is idle; balanced stays within one largest target of the mean."""
    shares = allocate([Group((n,), size, str(n % 3)) for n, size in enumerate(sizes)], agents, how)
    assert sorted(item for share in items(shares) for item in share) == list(range(len(sizes)))
    assert all(shares)
    if how == "balanced":
        most = max(sum(group.tokens for group in share) for share in shares)
        assert most <= sum(sizes) / len(shares) + max(sizes)


@pytest.mark.parametrize(
    ("share", "risk"),
    [(0.0, "LOW"), (0.70, "LOW"), (0.701, "MEDIUM"), (0.85, "MEDIUM"), (0.851, "HIGH"), (1.0, "HIGH"), (7.0, "HIGH")],
)
def test_risk_at_70_85_and_100_percent(share: float, risk: str) -> None:
    """LOW up to 70 %, MEDIUM up to 85 %, HIGH above."""
    assert risk_of(share) == risk


@settings(max_examples=200, deadline=None)
@given(
    deliverables=st.lists(st.integers(100, 3000), min_size=4, max_size=80),
    agents=st.integers(1, 5),
)
def test_a_proposed_split_brings_every_agent_to_low(deliverables: list[int], agents: int) -> None:
    """The number of agents it says comes out of the threshold it says, and then nobody is above 70 %."""
    budget = 10_000
    before = allocate(groups(*deliverables), agents, "balanced")
    tokens = [sum(group.tokens for group in share) for share in before]
    split = propose_split(tokens, max(deliverables), len(deliverables), budget)
    assert split.agents is not None and split.threshold is not None and split.agents > len(before)
    count = how_many(len(deliverables), 1.0, split.threshold)
    after = allocate(groups(*deliverables), count, "balanced")
    assert count <= split.agents
    if split.agents <= len(deliverables):
        assert all(sum(group.tokens for group in share) <= 0.70 * budget for share in after)


def test_where_more_agents_cannot_help_a_budget_is_proposed() -> None:
    """One deliverable alone is too much, or the allocation says how many there are."""
    assert propose_split([9000], 9000, 1, 10_000).agents is None
    split = propose_split([9500], 1000, 10, 10_000, fixed=True)
    assert split.agents is None and risk_of(9500 / split.token_budget) == "LOW"
