"""A workflow and its targets become manifests, prompts, criteria, readable pages, and the pipeline that runs them.

`plan_workflow` reads everything and writes nothing; it finds every mistake. `writing.write_folder` writes what it made.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pop import __version__
from pop.errors import ConfigError, ConfigErrors, did_you_mean
from pop.events import rfc3339
from pop.models.tokens import estimate_tokens
from pop.pipeline import load_pipeline
from pop.recipes.iterate.allocate import risk_of
from pop.recipes.iterate.checklist import Made, checklist, schemas
from pop.recipes.iterate.manifest import (
    CONTEXT,
    CRITERIA,
    FILE,
    PROMPTS,
    Agent,
    Deliverable,
    Format,
    Manifest,
    Reading,
    check_step,
    prompt_name,
    rounds_step,
    seed_key,
    step_name,
)
from pop.recipes.iterate.mistakes import Mistakes
from pop.recipes.iterate.pages import context_page, criteria_page, iteration_page, workflow_page
from pop.recipes.iterate.prompts import Prompts, Seat
from pop.recipes.iterate.shares import REQUEST_TOKENS, Notice, Share, Sharing, notices, paths_of
from pop.recipes.iterate.targets import Inputs, Planned, Unit
from pop.recipes.iterate.units import Earlier, Matching
from pop.recipes.iterate.workflow import Iteration, Loaded, wrong_deliverable
from pop.recipes.iterate.writing import Generated as Generated
from pop.recipes.iterate.writing import base_for
from pop.recipes.iterate.writing import read_generated as read_generated
from pop.records import dump_json
from pop.yamlplaces import Keys

AGENT_TASK, CHECK_TASK = "iterate-agent", "iterate-check"
MAX_STEPS = 900
FORMATS: dict[str, Format] = {"json": "json", "yaml": "yaml", "yml": "yaml", "md": "markdown", "markdown": "markdown"}


@dataclass(frozen=True)
class Figures:
    """What an agent's calls are expected to take in one round."""

    iteration: str
    agent: Agent
    output_tokens: int

    @property
    def input_tokens(self) -> int:
        return self.agent.tokens - self.output_tokens


@dataclass(frozen=True)
class Plan:
    """What generate would write: `files` by path in the folder; and what it found out on the way."""

    manifests: list[Manifest]
    files: dict[str, bytes]
    notices: list[Notice]
    figures: list[Figures]
    targets: int
    record: Generated

    def refuse_high(self) -> None:
        """Raises:
        ConfigErrors: An agent is likely to use up its budget.
        """
        found = [
            ConfigError(one.text, where=one.where, hint=f"{one.hint}; or --force", code="over-budget")
            for one in self.notices
            if one.high
        ]
        if found:
            raise ConfigErrors(found)


def plan_workflow(
    loaded: Loaded,
    inputs: Inputs,
    folder: Path,
    *,
    known_models: Collection[str] | None = None,
    created_at: str | None = None,
    shown: str | None = None,
) -> Plan:
    """Match, read, allocate, and write down (in memory) what `folder` is to hold.

    Args:
        known_models: The models of the root; None passes over whether those of the roles exist.
        created_at: When the folder was made first, so that the same comes out again.
        shown: How the folder's README calls it.

    Raises:
        ConfigErrors: Every mistake, in the order a reader meets them.
    """
    record = Generated(
        workflow=loaded.workflow.name,
        source=str(loaded.path.resolve()),
        base=base_for(folder, inputs.base),
        targets=[glob.text for glob in inputs.globs],
        created_at=created_at or rfc3339(time.time()),
        pop_version=__version__,
    )
    planner = _Planner(loaded, inputs, record)
    planner.check(known_models)
    for iteration in loaded.workflow.order():
        planner.plan(iteration)
        planner.mistakes.stop()
    planner.refuse_many()
    files = planner.files(shown or str(folder), known_models)
    targets = len(planner.matching.used)
    return Plan(planner.manifests, files, planner.notices, planner.figures, targets, record)


def compile_pipeline(manifests: Sequence[Manifest], name: str | None = None) -> dict[str, Any]:
    """The pipeline that runs these iterations, each a loop of its agents and its check; others do not count as needed."""
    here = {manifest.iteration for manifest in manifests}
    return {"name": name or manifests[0].workflow, "tasks": [_rounds(manifest, here) for manifest in manifests]}


def _rounds(manifest: Manifest, here: set[str]) -> dict[str, Any]:
    check = check_step(manifest.iteration)
    agents = [
        {
            "each": f"seed.agents.{seed_key(agent.step)}",
            "do": {
                "task": AGENT_TASK,
                "name": agent.step,
                **({"model": agent.model} if agent.model else {}),
                "budget": {"step_tokens": agent.token_budget},
                "with": {"iteration": manifest.iteration, "prompt": f"{PROMPTS}/{agent.prompt}"},
            },
        }
        for agent in manifest.agents
    ]
    return {
        "repeat": [
            {"parallel": agents},
            {"task": CHECK_TASK, "name": check, "with": {"iteration": manifest.iteration}},
        ],
        "name": rounds_step(manifest.iteration),
        "needs": [rounds_step(name) for name in manifest.dependencies if name in here],
        "until": f"inputs.{seed_key(check)}.met",
        "score": f"inputs.{seed_key(check)}.met_count",
        "at_most": manifest.rounds,
        "otherwise": manifest.otherwise,
    }


def pipeline_bytes(manifests: Sequence[Manifest], known_models: Collection[str] | None = None) -> bytes:
    """The pipeline as a file, read back by POP's own reader.

    Raises:
        ConfigErrors: A model that is not there; anything else would be a bug of ours.
    """
    data = dump_json(compile_pipeline(manifests))
    known = {"known_tasks": (AGENT_TASK, CHECK_TASK), "known_models": known_models}
    load_pipeline(data, where="pipeline.json", name=manifests[0].workflow, **known)
    return data


@dataclass
class _Planner:
    """Plans one iteration after the other; `texts` are its files, by iteration and path."""

    loaded: Loaded
    inputs: Inputs
    record: Generated
    manifests: list[Manifest] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    texts: dict[str, dict[str, bytes]] = field(default_factory=dict)
    steps: set[str] = field(default_factory=set)
    schemas: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mistakes = Mistakes(self.loaded.places)
        self.earlier = Earlier()
        self.matching = Matching(self.loaded, self.inputs, self.earlier, self.mistakes)
        self.prompts = Prompts(self.loaded)

    def check(self, known_models: Collection[str] | None) -> None:
        """Raises:
        ConfigErrors: A model that is not there, or targets that match nothing.
        """
        for name, role in self.loaded.roles.items():
            if known_models is not None and role.model is not None and role.model not in known_models:
                near = getattr(known_models, "near", lambda _: None)(role.model) or did_you_mean(
                    role.model, known_models
                )
                message = f"no model {role.model!r}, which the role {name!r} asks for"
                self.mistakes.at(("agent_roles", name, "model"), message, near)
        ours = {one.name for one in self.loaded.workflow.iterations} | {"README.md", "pipeline.json", "workflow.yaml"}
        for of_role, given in self.loaded.file.templates.items():
            if given.split("/")[0] in ours:
                message = f"{given[:120]!r} is what generate itself writes into the folder"
                self.mistakes.at(("templates", of_role), message, f"move it: templates/{of_role}.md.j2")
        self.matching.check_given()
        self.mistakes.stop()

    def plan(self, iteration: Iteration) -> None:
        if self.inputs.progress:
            self.inputs.progress(f"allocating {iteration.name}", 0, None)
        keys: Keys = ("workflow", "iterations", self.loaded.workflow.iterations.index(iteration))
        sharing = Sharing(iteration, self.earlier, self.prompts, self.mistakes)
        for a, spec in enumerate(iteration.agents):
            here = (*keys, "agents", a)
            units = self.matching.units(iteration, spec, here)
            if units:
                sharing.deal(spec, here, self.loaded.roles[spec.role], units)
        self.mistakes.stop()
        making = _Making(iteration, sharing, context_page(self.loaded.workflow, iteration), self.mistakes)
        agents = [making.agent(share) for share in sharing.shares]
        for agent in agents:  # their numbers are known only now
            if seed_key(agent.step) in self.steps:
                self.mistakes.at((*keys, "name"), f"two agents would both be the step {agent.step!r}", "rename a role")
            self.steps.add(seed_key(agent.step))
        making.refuse_folders()
        self.mistakes.stop()
        self.figures += making.figures
        criteria = checklist(iteration, keys, making.made, self.mistakes)
        named = schemas(iteration, keys, self.loaded.path.resolve().parent, making.made, self.mistakes)
        self.schemas |= named
        manifest = Manifest(
            workflow=self.loaded.workflow.name,
            iteration=iteration.name,
            goal=iteration.goal,
            base=self.record.base,
            dependencies=iteration.dependencies,
            rounds=iteration.rounds,
            otherwise=iteration.otherwise,
            agents=agents,
            created_at=self.record.created_at,
            pop_version=__version__,
        )
        self.manifests.append(manifest)
        told = self._notices(sharing.shares, agents)
        self.notices += told
        page = iteration_page(manifest, [str(one) for one in told], self.loaded.workflow)
        texts = {
            "README.md": page,
            CONTEXT: making.context,
            CRITERIA: criteria_page(iteration, criteria),
            **making.texts,
        }
        self.texts[iteration.name] = {name: text.encode("utf-8", "replace") for name, text in texts.items()} | named

    def _notices(self, shares: Sequence[Share], agents: Sequence[Agent]) -> list[Notice]:
        by_spec: dict[Keys, list[int]] = {}
        for at, share in enumerate(shares):
            by_spec.setdefault(share.keys, []).append(at)
        return [
            notice
            for keys, those in by_spec.items()
            for notice in notices(
                [agents[at] for at in those], [shares[at] for at in those], self.loaded.places.of(keys)
            )
        ]

    def refuse_many(self) -> None:
        """Raises:
        ConfigErrors: More steps than a pipeline may have.
        """
        steps = sum(len(manifest.agents) + 1 for manifest in self.manifests)
        if steps > MAX_STEPS:
            hint = "raise complexity_threshold of the roles, or lower complexity_per_target"
            message = f"{steps:,} agents and checks are too many for a pipeline (at most {MAX_STEPS})"
            self.mistakes.at(("workflow", "iterations"), message, hint)
        self.mistakes.stop()

    def files(self, shown: str, known_models: Collection[str] | None) -> dict[str, bytes]:
        """Everything to write, by path in the folder."""
        told = [str(notice) for notice in self.notices]
        about = {"folder": shown, "base": str(self.inputs.base), "source": str(self.loaded.path)}
        page = workflow_page(self.loaded.workflow, self.manifests, told, **about)
        found = {"README.md": page.encode("utf-8", "replace")}
        found["pipeline.json"] = pipeline_bytes(self.manifests, known_models)
        found["workflow.yaml"] = self.loaded.path.resolve().read_bytes()
        for role, path in self.loaded.templates.items():
            found[self._place_of(role, path)] = path.resolve().read_bytes()
        found |= self.schemas
        for manifest in self.manifests:
            texts = self.texts[manifest.iteration]
            texts[FILE] = dump_json(manifest.model_dump(mode="json"))
            texts["pipeline.json"] = pipeline_bytes([manifest], known_models)
            found |= {f"{manifest.iteration}/{name}": data for name, data in texts.items()}
        return found

    def _place_of(self, role: str, template: Path) -> str:
        """Where a template is copied to, so that the copy of the workflow finds it again."""
        given = self.loaded.file.templates.get(role)
        return given or f"templates/{template.name}"


@dataclass
class _Making:
    """The agents of one iteration, and what they make."""

    iteration: Iteration
    sharing: Sharing
    context: str
    mistakes: Mistakes
    made: list[Made] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    _taken: dict[str, tuple[Keys, str]] = field(default_factory=dict)

    def agent(self, share: Share) -> Agent:
        """An agent of the manifest; its prompt, and its deliverables for the criteria, are noted."""
        spec, role, of = share.spec, share.role, self.sharing.of(share.role.name)
        step = step_name(self.iteration.name, role.name, share.number, of)
        prompt = prompt_name(role.name, share.number, of)
        name = prompt.removesuffix(".md")
        of_agent = {"role": role.name, "iteration": self.iteration.name, "n": str(share.number), "agent": name}
        found: list[Deliverable] = []
        planned: list[Planned] = []
        for path, (n, units) in paths_of(share, of_agent, self.mistakes).items():
            self._claim(path, (*share.keys, "deliverables", n), step, units)
            self.made.append(Made(path, spec.deliverables[n], {**_common([unit.names for unit in units]), **of_agent}))
            deliverable, seen = self._deliverable(share, step, len(found), path, units)
            found.append(deliverable)
            planned.append(seen)
        self.sharing.earlier.add(self.iteration.name, planned)
        text = self.sharing.prompts.render(self.iteration, spec, Seat(step, name, share.number, of), found)
        self.texts[f"{PROMPTS}/{prompt}"] = text
        fixed = estimate_tokens(text) + estimate_tokens(self.context) + REQUEST_TOKENS
        deliverables = [one.model_copy(update={"tokens": one.tokens + fixed}) for one in found]
        self._refuse_unaskable(share, max(deliverables, key=lambda one: one.tokens))
        tokens = sum(one.tokens for one in deliverables)
        agent = Agent(
            step=step,
            role=role.name,
            number=share.number,
            prompt=prompt,
            model=role.model,
            token_budget=role.token_budget,
            tokens=tokens,
            share=round(tokens / role.token_budget, 4),
            risk=risk_of(tokens / role.token_budget),
            deliverables=deliverables,
        )
        self.figures.append(Figures(self.iteration.name, agent, spec.output_tokens * len(deliverables)))
        return agent

    def _refuse_unaskable(self, share: Share, largest: Deliverable) -> None:
        """The gateway would refuse a call whose prompt alone goes beyond the budget, so --force does not help."""
        asked, budget = largest.tokens - share.spec.output_tokens, share.role.token_budget
        if asked > budget:
            message = f"what is read for {largest.path!r} has about {asked:,} tokens"
            message += f", more than the whole budget of {share.role.name} ({budget:,})"
            hint = "raise token_budget, or give it smaller or fewer targets"
            self.mistakes.at(share.keys, message, hint)

    def _deliverable(
        self, share: Share, step: str, index: int, path: str, units: Sequence[Unit]
    ) -> tuple[Deliverable, Planned]:
        """It, with its tokens but for the prompt; and how later iterations know it."""
        earlier, output = self.sharing.earlier, share.spec.output_tokens
        reads = {
            (one.reading.step, one.reading.index): one
            for unit in units
            for one in earlier.read_with(unit, self.iteration)
        }
        found = Deliverable(
            path=path,
            format=FORMATS.get(path.rpartition("/")[2].rpartition(".")[2].lower(), share.role.output_format),
            targets=list(dict.fromkeys(target for unit in units for target in unit.targets)),
            reads=[one.reading for one in reads.values()],
            tokens=sum(unit.tokens for unit in units) + sum(one.tokens for one in reads.values()) + output,
        )
        lineage = units[0].lineage if len(units) == 1 else frozenset(one for unit in units for one in unit.lineage)
        reading = Reading(iteration=self.iteration.name, step=step, index=index, path=path)
        return found, Planned(reading, output, _common([unit.fields for unit in units]), lineage)

    def _claim(self, path: str, here: Keys, step: str, units: Sequence[Unit]) -> None:
        """Two agents never write the same file, and none leaves the folder."""
        if wrong := wrong_deliverable(path):
            self.mistakes.at(here, f"{wrong[0]} (for the target {units[0].path!r})", wrong[1])
        other_keys, other = self._taken.setdefault(path.casefold(), (here, step))
        if other != step:
            alike = other_keys[:-2] == here[:-2]
            hint = (
                "add {n} to it, or say `allocation: single`" if alike else "give them different names, e.g. by {role}"
            )
            self.mistakes.at(here, f"{other!r} and {step!r} would both write {path[:120]!r}", hint)

    def refuse_folders(self) -> None:
        """A deliverable that would be a file and a folder at once."""
        above = set()
        for path in self._taken:
            while (path := path.rpartition("/")[0]) and path not in above:
                above.add(path)
        for path, (keys, _) in self._taken.items():
            if path in above:
                self.mistakes.at(keys, f"{path[:120]!r} would be a file, and the folder of another deliverable")


def _common(names: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    """What means the same for all."""
    first = names[0]
    if len(names) == 1:
        return first
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in names)}
