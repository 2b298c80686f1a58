"""The prompt of an agent: the template of its role, filled in. What comes from files and people is data in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pop.errors import AttemptFailed, ConfigError, ConfigErrors
from pop.recipes.iterate.criteria import parse_one
from pop.recipes.iterate.manifest import Deliverable
from pop.recipes.iterate.workflow import AgentSpec, Iteration, Loaded, read_template
from pop.templates import Prompt


@dataclass(frozen=True)
class Seat:
    """Which agent it is: the `number`-th of `of` with this role in its iteration."""

    step: str = ""
    name: str = ""
    number: int = 1
    of: int = 1


@dataclass
class Prompts:
    """Renders; each template is compiled once."""

    loaded: Loaded
    _compiled: dict[str, Prompt] = field(default_factory=dict)

    def render(
        self, iteration: Iteration, spec: AgentSpec, seat: Seat, deliverables: Sequence[Deliverable] = ()
    ) -> str:
        """The text of agent-prompts/<role>[-n].md.

        Raises:
            ConfigErrors: The template reads what is not there, with its line.
        """
        workflow, role = self.loaded.workflow, self.loaded.roles[spec.role]
        names = {
            "workflow": {"name": workflow.name, "description": workflow.description.strip()},
            "iteration": {
                "name": iteration.name,
                "goal": iteration.goal.strip(),
                "dependencies": iteration.dependencies,
                "rounds": iteration.rounds,
            },
            "agent": {"name": seat.name, "number": seat.number, "of": seat.of, "step": seat.step},
            "role": role.model_dump(mode="json"),
            "targets": list(dict.fromkeys(target for one in deliverables for target in one.targets)),
            "deliverables": [
                {
                    "path": one.path,
                    "format": one.format,
                    "targets": one.targets,
                    "reads": [f"{reading.iteration}/{reading.path}" for reading in one.reads],
                }
                for one in deliverables
            ],
            "instructions": (spec.instructions or "").strip(),
            "criteria": list(_criteria_of(iteration, spec)),
            "colleagues": sorted({agent.role for agent in iteration.agents} - {role.name}),
        }
        if role.name not in self._compiled:
            path = self.loaded.templates[role.name]
            self._compiled[role.name] = Prompt(read_template(path), path)
        try:
            return self._compiled[role.name].render(names) + "\n"
        except AttemptFailed as error:
            problem = ConfigError(error.message, where=error.where, hint=error.hint, code="bad-template")
            raise ConfigErrors([problem]) from None


def _criteria_of(iteration: Iteration, spec: AgentSpec) -> Iterator[str]:
    """What is about an agent's own deliverables, or about no file of another one's."""
    others = {pattern for agent in iteration.agents for pattern in agent.deliverables} - set(spec.deliverables)
    for text in iteration.completion_criteria:
        criterion = parse_one(text)
        if criterion.command is None and not (criterion.paths and others.issuperset(criterion.paths)):
            yield criterion.text
