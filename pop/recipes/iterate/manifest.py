"""manifest.json of an iteration: who makes which deliverable from which targets, and what that is expected to take.

`pop iterate generate` writes it, a person may read and edit it; run, monitor, validate and feedback read it. Everything
about names lives here, so that a pipeline's steps, the folders of a run and this file agree.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pop.records import Record

FILE = "manifest.json"
CONTEXT, CRITERIA, PROMPTS = "CONTEXT.md", "COMPLETION_CRITERIA.md", "agent-prompts"
Risk = Literal["LOW", "MEDIUM", "HIGH"]
Format = Literal["markdown", "json", "yaml", "text"]


class Reading(Record):
    """An earlier deliverable that an agent is given: made by the agent `step` as its `index`-th, of `iteration`."""

    iteration: str
    step: str
    index: int = Field(ge=0)
    path: str


class Deliverable(Record):
    """One file to make, by one model call. Paths are relative, with ``/``: `path` to the iteration's folder, `targets` to
    the folder they were found in. `tokens`: what its call is expected to take, prompt and answer."""

    path: str
    format: Format = "markdown"
    targets: list[str] = Field(default_factory=list)
    reads: list[Reading] = Field(default_factory=list)
    tokens: int = Field(default=0, ge=0)


class Agent(Record):
    """One agent: `step` in the pipeline, its `prompt` below agent-prompts/, its share of the work. `share`: tokens / budget."""

    step: str
    role: str
    number: int = Field(ge=1)
    prompt: str
    model: str | None = None
    token_budget: int = Field(gt=0)
    tokens: int = Field(ge=0)
    share: float = Field(ge=0)
    risk: Risk
    deliverables: list[Deliverable]


class Manifest(Record):
    """manifest.json. `dependencies`: iterations that go before. `base`: the folder the targets were found in, as seen from
    the workflow's folder (the one around the iteration's)."""

    schema_version: int = 1
    workflow: str
    iteration: str
    goal: str
    base: str = "."
    dependencies: list[str] = Field(default_factory=list)
    rounds: int = Field(default=2, ge=1, le=10)
    otherwise: Literal["fail", "ask", "keep-best"] = "fail"
    agents: list[Agent]
    created_at: str
    pop_version: str


def prompt_name(role: str, number: int, of: int) -> str:
    """``developer.md``, or ``developer-2.md`` where several share the role in an iteration."""
    return f"{role}.md" if of == 1 else f"{role}-{number}.md"


def step_name(iteration: str, role: str, number: int, of: int) -> str:
    """``design-developer-2``: the step of an agent, and what its results are called."""
    return f"{iteration}-{prompt_name(role, number, of).removesuffix('.md')}"


def check_step(iteration: str) -> str:
    """The step that holds an iteration's deliverables to its criteria."""
    return f"{iteration}-check"


def rounds_step(iteration: str) -> str:
    """The loop of an iteration: its agents, then its check."""
    return f"{iteration}-rounds"


def seed_key(step: str) -> str:
    """Where the seed of a run lists the deliverables of an agent: ``seed.agents.<key>``."""
    return step.replace("-", "_")
