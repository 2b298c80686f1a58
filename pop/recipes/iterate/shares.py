"""Who gets which units, under which names the deliverables stand, and what to say where a budget is tight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pop.errors import did_you_mean
from pop.models.tokens import estimate_tokens
from pop.recipes.iterate.allocate import SPLIT_FROM, WARN_FROM, Group, allocate, how_many, propose_split, together
from pop.recipes.iterate.library import Role
from pop.recipes.iterate.manifest import Agent, Deliverable
from pop.recipes.iterate.mistakes import Mistakes
from pop.recipes.iterate.prompts import Prompts, Seat
from pop.recipes.iterate.targets import OF_AGENT, Unit, fill, of_targets
from pop.recipes.iterate.units import Earlier
from pop.recipes.iterate.workflow import PLACEHOLDER, AgentSpec, Iteration
from pop.yamlplaces import Keys

REQUEST_TOKENS = 150  # what is asked for at the end of a prompt


@dataclass(frozen=True)
class Notice:
    """Something a person should know before it runs; where it is `high`, generate stops without --force."""

    text: str
    where: str
    hint: str
    high: bool

    def __str__(self) -> str:
        return f"{self.text}: {self.hint}"


@dataclass(frozen=True)
class Share:
    """What one agent is going to be: the spec at `keys` of the workflow, and its units."""

    spec: AgentSpec
    keys: Keys
    role: Role
    number: int
    units: Sequence[Unit]


@dataclass
class Sharing:
    """Deals the units of one spec after the other, and numbers the agents of each role in an iteration."""

    iteration: Iteration
    earlier: Earlier
    prompts: Prompts
    mistakes: Mistakes
    shares: list[Share] = field(default_factory=list)
    _count: dict[str, int] = field(default_factory=dict)

    def of(self, role: str) -> int:
        """How many agents have the role."""
        return self._count.get(role, 0)

    def deal(self, spec: AgentSpec, keys: Keys, role: Role, units: Sequence[Unit]) -> None:
        """Give the units to agents."""
        groups = self._groups(spec, keys, role, units)
        if self.mistakes:
            return
        agents = how_many(len(units), spec.complexity_per_target, role.complexity_threshold)
        for share in allocate(groups, agents, spec.allocation):
            mine = [unit for group in share for unit in group.items]
            self._count[role.name] = self.of(role.name) + 1
            self.shares.append(Share(spec, keys, role, self.of(role.name), mine))

    def _groups(self, spec: AgentSpec, keys: Keys, role: Role, units: Sequence[Unit]) -> list[Group[Unit]]:
        """The units that share a deliverable stay together."""
        own = [pattern for pattern in spec.deliverables if of_targets(pattern)]
        shared = [[self._draft_path(pattern, unit, role, spec, keys) for pattern in own] for unit in units]
        if self.mistakes:
            return []
        first = Deliverable(path=next(iter(shared[0]), "x"), targets=list(units[0].targets))
        prompt = estimate_tokens(self.prompts.render(self.iteration, spec, Seat(), [first]))
        fixed = REQUEST_TOKENS + prompt + spec.output_tokens
        found = []
        for indices in together(shared):
            items = tuple(units[at] for at in indices)
            calls = len({path for at in indices for path in shared[at]})
            read = sum(unit.tokens + self.earlier.tokens_with(unit, self.iteration) for unit in items)
            tokens = read * max(1, len(own)) + calls * fixed
            found.append(Group(items, tokens, self._value(spec, items[0], keys)))
        return found

    def _draft_path(self, pattern: str, unit: Unit, role: Role, spec: AgentSpec, keys: Keys) -> str:
        """The path of a deliverable before it is known which agent makes it."""
        of_agent = {"role": role.name, "iteration": self.iteration.name, "n": "{n}", "agent": "{agent}"}
        try:
            return fill(pattern, {**unit.names, **of_agent})
        except KeyError as error:
            name = str(error.args[0])
            here = (*keys, "deliverables", spec.deliverables.index(pattern))
            hint = unit.trouble or did_you_mean(name, {*unit.names, *OF_AGENT})
            self.mistakes.at(here, f"nothing is known as {{{name}}} of the target {unit.path!r}", hint)
            return ""

    def _value(self, spec: AgentSpec, unit: Unit, keys: Keys) -> str:
        """Of the field that by_<field> names."""
        if not spec.allocation.startswith("by_"):
            return ""
        name = spec.allocation.removeprefix("by_")
        if name not in unit.names:
            message = f"{spec.allocation!r}: the target {unit.path!r} has no {name!r}"
            self.mistakes.at((*keys, "allocation"), message, unit.trouble or did_you_mean(name, unit.names))
        return unit.names.get(name, "")


def paths_of(share: Share, of_agent: Mapping[str, str], mistakes: Mistakes) -> dict[str, tuple[int, list[Unit]]]:
    """What an agent makes of which units, each with the number of its pattern. `of_agent`: role, n, agent, iteration."""
    found: dict[str, tuple[int, list[Unit]]] = {}
    patterns = list(enumerate(share.spec.deliverables))
    wanted = [
        (n, fill(pattern, {**unit.names, **of_agent}), [unit])
        for unit in share.units
        for n, pattern in patterns
        if of_targets(pattern)
    ]
    wanted += [(n, fill(pattern, of_agent), list(share.units)) for n, pattern in patterns if not of_targets(pattern)]
    for n, path, units in wanted:
        first, those = found.setdefault(path, (n, []))
        here = (*share.keys, "deliverables", n)
        if first != n:
            message = f"the deliverable {path[:120]!r} would be made twice, by two patterns of one agent"
            mistakes.at(here, message, "give them different names")
        elif those and not _meant_together(share.spec.deliverables[n]):
            message = f"{those[0].path!r} and {units[0].path!r} would both become {path[:120]!r}"
            mistakes.at(here, message, "{parent}/{stem} differs, or a key of their front matter")
        those.extend(units)
    return found


def _meant_together(pattern: str) -> bool:
    """Whether several targets may go into one file: not where its name says that it is about a single one."""
    return not {"stem", "name", "path"} & set(PLACEHOLDER.findall(pattern))


# -- where a budget is tight -------------------------------------------------------------------------------------------


def notices(agents: Sequence[Agent], shares: Sequence[Share], where: str) -> Iterator[Notice]:
    """One for the agents of a spec, when they come near to their budget."""
    worst = max(agents, key=lambda agent: agent.share)
    if worst.risk != "HIGH" and worst.share < WARN_FROM:
        return
    role = shares[0].role
    near = sum(agent.share >= WARN_FROM for agent in agents)
    who = worst.step if near < 2 else f"{worst.step} and {near - 1} more"
    text = f"{who} would take {worst.share:.0%} of its budget ({worst.tokens:,} of {role.token_budget:,} tokens)"
    yield Notice(text, where, _advice(agents, shares, worst), worst.risk == "HIGH")


def _advice(agents: Sequence[Agent], shares: Sequence[Share], worst: Agent) -> str:
    spec, role = shares[0].spec, shares[0].role
    if worst.share < SPLIT_FROM:
        return f"a refinement or a second round may not fit; raise token_budget of {role.name}, or split its work"
    targets = sum(len(share.units) for share in shares)
    fixed = spec.allocation == "single" or spec.allocation.startswith("by_")
    whole = any(not of_targets(pattern) for pattern in spec.deliverables)
    split = propose_split(
        [agent.tokens for agent in agents],
        max(one.tokens for agent in agents for one in agent.deliverables),
        targets * spec.complexity_per_target,
        role.token_budget,
        fixed=fixed or whole,
    )
    budget = f"token_budget: {split.token_budget} for {role.name}"
    if split.agents is None or split.agents > targets:
        why = f"allocation: {spec.allocation} gives no more agents" if fixed else "more agents do not help"
        return f"{why}: {budget}"
    each = sum(agent.tokens for agent in agents) / split.agents / role.token_budget
    return (
        f"split it among {split.agents} agents instead of {len(agents)} (complexity_threshold: {split.threshold:g} "
        f"for {role.name}, about {each:.0%} each), or {budget}"
    )
