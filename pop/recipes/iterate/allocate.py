"""Who gets which targets, and whether that fits into a budget. Pure: numbers in, numbers out (docs/iterate.md)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Generic, TypeVar

from pop.recipes.iterate.manifest import Risk

LOW_UP_TO, MEDIUM_UP_TO = 0.70, 0.85
WARN_FROM, SPLIT_FROM = 0.80, 0.90

T = TypeVar("T")


@dataclass(frozen=True)
class Group(Generic[T]):
    """Targets that stay together. `tokens`: what all work on them is expected to take. `value`: of the field of by_<field>."""

    items: tuple[T, ...]
    tokens: int
    value: str = ""


def how_many(targets: int, complexity: float, threshold: float) -> int:
    """Agents for so many targets: their complexity by what one agent takes on, rounded up; at least one."""
    return max(1, math.ceil(round(targets * complexity / threshold, 9)))


def together(shared: Sequence[Iterable[Hashable]]) -> list[list[int]]:
    """The indices of targets that share a deliverable, directly or through others, in the order of the first of each.

    Args:
        shared: For each target, the deliverables it goes into.
    """
    parent = list(range(len(shared)))

    def top(at: int) -> int:
        while parent[at] != at:
            parent[at] = at = parent[parent[at]]
        return at

    first: dict[Hashable, int] = {}
    for at, keys in enumerate(shared):
        for key in keys:
            one, other = sorted((top(at), top(first.setdefault(key, at))))
            parent[other] = one
    found: dict[int, list[int]] = {}
    for at in range(len(shared)):
        found.setdefault(top(at), []).append(at)
    return list(found.values())


def allocate(groups: Sequence[Group[T]], agents: int, how: str) -> list[list[Group[T]]]:
    """Give every group to an agent; nobody stays without one. Each agent's groups keep their order.

    Args:
        agents: At most so many; `single` and `by_<field>` have their own number.
        how: ``balanced`` by tokens, ``round_robin`` in order, ``single``, or ``by_<field>``: an agent for each value.
    """
    if how == "single":
        shares = [list(range(len(groups)))]
    elif how.startswith("by_"):
        by_value: dict[str, list[int]] = {}
        for at, group in enumerate(groups):
            by_value.setdefault(group.value, []).append(at)
        shares = [by_value[value] for value in sorted(by_value)]
    elif how == "round_robin":
        count = min(agents, len(groups))
        shares = [list(range(first, len(groups), count)) for first in range(count)]
    else:
        shares = _balanced([group.tokens for group in groups], min(agents, len(groups)))
    return [[groups[at] for at in share] for share in shares]


def _balanced(tokens: Sequence[int], agents: int) -> list[list[int]]:
    """The largest first, each to whom has the least so far.

    Source: Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17, 1969 (LPT).
    """
    load = [(0, 0, agent) for agent in range(agents)]
    heapify(load)
    shares: list[list[int]] = [[] for _ in range(agents)]
    for at in sorted(range(len(tokens)), key=lambda at: (-tokens[at], at)):
        taken, count, agent = load[0]
        shares[agent].append(at)
        heapreplace(load, (taken + tokens[at], count + 1, agent))
    return sorted((sorted(share) for share in shares), key=lambda share: share[0])


def risk_of(share: float) -> Risk:
    """How likely it is that a budget does not suffice: LOW up to 70 %, MEDIUM up to 85 %, HIGH above."""
    return "LOW" if share <= LOW_UP_TO else "MEDIUM" if share <= MEDIUM_UP_TO else "HIGH"


@dataclass(frozen=True)
class Split:
    """What would bring a role's agents down to LOW: so many `agents` by that `threshold`, or another `token_budget`.

    `agents` is None where more of them cannot help: one deliverable alone takes too much, or the allocation fixes their number.
    """

    agents: int | None
    threshold: float | None
    token_budget: int


def propose_split(
    tokens: Sequence[int], largest: int, complexity_total: float, token_budget: int, *, fixed: bool = False
) -> Split:
    """A proposal for agents of one role.

    Args:
        tokens: What each of them is expected to take.
        largest: The most that targets which stay together take.
        complexity_total: Of all their targets.
        fixed: The allocation says how many there are.
    """
    enough = math.ceil(max(tokens) / LOW_UP_TO / 1000) * 1000
    room = token_budget * LOW_UP_TO
    if fixed or largest > room:
        return Split(None, None, enough)
    agents = max(len(tokens) + 1, math.ceil(sum(tokens) / max(room - largest / 2, largest, 1)))
    digits = 2 if complexity_total / agents < 100 else 0
    threshold = math.ceil(complexity_total / agents * 10**digits) / 10**digits
    return Split(agents, threshold, enough)
