"""A workflow and its targets become manifests, prompts, criteria, readable pages, and the pipeline that runs them.

`plan_workflow` reads everything and writes nothing; it finds every mistake. `folder.write_folder` writes what it made.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pop import __version__
from pop.errors import AttemptFailed, ConfigError, ConfigErrors, did_you_mean, safe
from pop.events import rfc3339
from pop.models.tokens import estimate_tokens
from pop.pipeline import load_pipeline
from pop.recipes.iterate.allocate import (
    SPLIT_FROM,
    WARN_FROM,
    Group,
    allocate,
    how_many,
    propose_split,
    risk_of,
    together,
)
from pop.recipes.iterate.writing import Generated as Generated
from pop.recipes.iterate.writing import base_for
from pop.recipes.iterate.writing import read_generated as read_generated
from pop.recipes.iterate.library import TEMPLATES, Role
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
from pop.recipes.iterate.pages import context_page, criteria_page, iteration_page, workflow_page
from pop.recipes.iterate.targets import OF_AGENT, Glob, Inputs, Planned, TargetError, Unit, fill, of_targets, wrong_glob
from pop.recipes.iterate.workflow import (
    CODE,
    PLACEHOLDER,
    AgentSpec,
    Iteration,
    Loaded,
    read_template,
    wrong_deliverable,
)
from pop.records import dump_json
from pop.templates import Prompt
from pop.yamlplaces import Keys

AGENT_TASK, CHECK_TASK = "iterate-agent", "iterate-check"
MAX_STEPS = 900
MAX_PROBLEMS = 20
REQUEST_TOKENS = 150  # what is asked for at the end of a prompt
FORMATS: dict[str, Format] = {"json": "json", "yaml": "yaml", "yml": "yaml", "md": "markdown", "markdown": "markdown"}
_RULED = re.compile(r"`([^`]+)`\s*\(")


@dataclass(frozen=True)
class Notice:
    """Something a person should know before it runs. `agents`: whom it is about; `high`: it stops without --force."""

    text: str
    where: str
    hint: str
    high: bool

    def __str__(self) -> str:
        return f"{self.text}: {self.hint}"


@dataclass(frozen=True)
class Figures:
    """What an agent's calls are expected to take in one round."""

    iteration: str
    agent: Agent
    output_tokens: int

    @property
    def input_tokens(self) -> int:
        return self.agent.tokens - self.output_tokens


@dataclass
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
    at = created_at or rfc3339(time.time())
    planner = _Planner(loaded, inputs, at)
    manifests = planner.manifests(known_models)
    steps = sum(len(manifest.agents) + 1 for manifest in manifests)
    if steps > MAX_STEPS:
        hint = "raise complexity_threshold of the roles, or lower complexity_per_target"
        where = loaded.places.of(("workflow", "iterations"))
        raise ConfigErrors(
            [ConfigError(f"{steps:,} steps are too many (at most {MAX_STEPS})", where=where, hint=hint, code=CODE)]
        )
    record = Generated(
        workflow=loaded.workflow.name,
        source=str(loaded.path),
        base=base_for(folder, inputs.base),
        targets=[glob.text for glob in inputs.globs],
        created_at=at,
        pop_version=__version__,
    )
    files = planner.files(manifests, shown or str(folder))
    return Plan(manifests, files, planner.notices, planner.figures, len(planner.used), record)


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


@dataclass(frozen=True)
class _Share:
    """What one agent is going to be: a spec of the workflow, and its units."""

    spec: AgentSpec
    keys: Keys
    role: Role
    number: int
    units: list[Unit]


@dataclass(frozen=True)
class _Made:
    """A deliverable with all its placeholders, for criteria."""

    path: str
    pattern: str
    names: Mapping[str, str]


@dataclass
class _Planner:
    loaded: Loaded
    inputs: Inputs
    at: str
    problems: dict[str, ConfigError] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    planned: dict[str, list[Planned]] = field(default_factory=dict)
    by_target: dict[str, dict[str, list[Planned]]] = field(default_factory=dict)
    texts: dict[str, dict[str, bytes]] = field(default_factory=dict)  # of an iteration, by path
    prompts: dict[str, Prompt] = field(default_factory=dict)

    def wrong(self, error: ConfigError) -> None:
        self.problems.setdefault(str(error), error)

    def mistake(self, keys: Keys, message: str, hint: str | None = None, *, key: bool = False) -> None:
        self.wrong(self.loaded.places.mistake(message, keys, hint, key=key))

    def stop_if_wrong(self) -> None:
        if not self.problems:
            return
        found = list(self.problems.values())
        if len(found) > MAX_PROBLEMS:
            more = ConfigError(f"and {len(found) - MAX_PROBLEMS + 1:,} more like these", code=found[-1].code)
            found = [*found[: MAX_PROBLEMS - 1], more]
        raise ConfigErrors(found)

    # -- iterations ----------------------------------------------------------------------------------------------------

    def manifests(self, known_models: Collection[str] | None) -> list[Manifest]:
        """In the order in which they can run."""
        self._check_models(known_models)
        self._check_given()
        self.stop_if_wrong()
        index = {one.name: i for i, one in enumerate(self.loaded.workflow.iterations)}
        found = []
        for iteration in self.loaded.workflow.order():
            if self.inputs.progress:
                self.inputs.progress(f"allocating {iteration.name}", 0, None)
            found.append(self._manifest(iteration, ("workflow", "iterations", index[iteration.name])))
            self.stop_if_wrong()
        for manifest in found:
            self.texts[manifest.iteration]["pipeline.json"] = pipeline_bytes([manifest], known_models)
        return found

    def _check_models(self, known: Collection[str] | None) -> None:
        for name, role in self.loaded.roles.items():
            if known is not None and role.model is not None and role.model not in known:
                near = getattr(known, "near", lambda _: None)(role.model) or did_you_mean(role.model, known)
                message = f"no model {role.model!r}, which the role {name!r} asks for"
                self.mistake(("agent_roles", name, "model"), message, near)

    def _check_given(self) -> None:
        for glob in self.inputs.globs:
            if why := wrong_glob(glob.text):
                self.wrong(TargetError(f"{glob.text!r} {why}", where="--targets"))
                return
        for text in self.inputs.given_without_match():
            near = Inputs(self.inputs.base, skip=self.inputs.skip).near()
            hint = f"there are {near}" if near else "--base DIR says where to look"
            where = f"--targets, in {self.inputs.base}"
            self.wrong(TargetError(f"nothing matches {text!r}", where=where, hint=hint, code="no-targets"))

    def _manifest(self, iteration: Iteration, keys: Keys) -> Manifest:
        shares = self._shares(iteration, keys)
        self.stop_if_wrong()
        context = context_page(self.loaded.workflow, iteration)
        of = {share.role.name: 0 for share in shares}
        for share in shares:
            of[share.role.name] += 1
        taken: dict[str, tuple[Keys, str]] = {}
        made: list[_Made] = []
        agents, texts = [], {CONTEXT: context.encode()}
        by_spec: dict[Keys, list[Agent]] = {}
        for share in shares:
            agent, prompt = self._agent(iteration, share, of[share.role.name], context, taken, made)
            agents.append(agent)
            texts[f"{PROMPTS}/{agent.prompt}"] = prompt.encode("utf-8", "replace")
            by_spec.setdefault(share.keys, []).append(agent)
        self._refuse_folders(taken)
        self.stop_if_wrong()
        criteria = self._criteria(iteration, keys, made)
        texts[CRITERIA] = criteria_page(iteration, criteria).encode("utf-8", "replace")
        manifest = Manifest(
            workflow=self.loaded.workflow.name,
            iteration=iteration.name,
            goal=iteration.goal,
            dependencies=iteration.dependencies,
            rounds=iteration.rounds,
            otherwise=iteration.otherwise,
            agents=agents,
            created_at=self.at,
            pop_version=__version__,
        )
        notices = [
            notice for share_keys, those in by_spec.items() for notice in self._notices(share_keys, those, shares)
        ]
        self.notices += notices
        texts[FILE] = dump_json(manifest.model_dump(mode="json"))
        told = [str(notice) for notice in notices]
        texts["README.md"] = iteration_page(manifest, told, self.loaded.workflow).encode("utf-8", "replace")
        self.texts[iteration.name] = texts
        return manifest

    # -- targets -------------------------------------------------------------------------------------------------------

    def _shares(self, iteration: Iteration, keys: Keys) -> list[_Share]:
        """Every agent of the iteration, numbered by role."""
        found: list[_Share] = []
        numbers: dict[str, int] = {}
        for a, spec in enumerate(iteration.agents):
            here = (*keys, "agents", a)
            units = self._units(iteration, spec, here)
            role = self.loaded.roles[spec.role]
            for units_of_agent in self._allocated(iteration, spec, here, role, units) if units else []:
                numbers[spec.role] = numbers.get(spec.role, 0) + 1
                found.append(_Share(spec, here, role, numbers[spec.role], units_of_agent))
        return found

    def _units(self, iteration: Iteration, spec: AgentSpec, keys: Keys) -> list[Unit]:
        """What a spec's globs match; an earlier glob's captures win."""
        before = self.loaded.workflow.before(iteration.name)
        role = self.loaded.roles[spec.role]
        globs = [(n, Glob(text.removeprefix("!")), text.startswith("!")) for n, text in enumerate(spec.targets)]
        for n, glob, _ in globs:
            if why := wrong_glob(glob.text):
                self.mistake((*keys, "targets", n), f"{glob.text[:80]!r} {why}")
                return []
        left_out = [glob for _, glob, negative in globs if negative]
        found: dict[str, Unit] = {}
        for n, glob, negative in globs:
            if negative:
                continue
            matched = list(self._matched(glob, before, role))
            if not matched:
                self._nothing(glob, (*keys, "targets", n), iteration)
            for name, unit in matched:
                if not any(one.match(name) is not None for one in left_out):
                    found.setdefault(name, unit)
        if not found and not self.problems:
            self.mistake((*keys, "targets"), "everything that matches is left out again", "take out one of the !globs")
        return [found[name] for name in sorted(found)]

    def _matched(self, glob: Glob, before: set[str], role: Role) -> Iterator[tuple[str, Unit]]:
        first = glob.text.partition("/")[0]
        if first in before:
            for one in self.planned[first]:
                captured = glob.match(one.name)
                if captured is not None:
                    fields = {**captured, **one.fields}
                    yield one.name, Unit(one.reading.path, 0, fields, (), (one,), one.lineage)
            return
        try:
            files = self.inputs.matching(glob)
        except TargetError as error:
            self.wrong(error)
            return
        for number, (path, captured) in enumerate(files.items()):
            if self.inputs.progress and number % 200 == 0:
                self.inputs.progress("reading targets", number, len(files))
            try:
                target = self.inputs.read(path)
            except TargetError as error:
                self.wrong(error)
                continue
            if target.tokens > role.token_budget:
                message = (
                    f"the target {path!r} has about {target.tokens:,} tokens, more than the whole budget of "
                    f"{role.name} ({role.token_budget:,})"
                )
                hint = "split the file, leave it out, or raise the role's token_budget"
                self.wrong(TargetError(message, where=self.inputs.base / path, hint=hint, code="target-too-large"))
            self.used.add(path)
            fields = {**captured, **target.fields}
            yield path, Unit(path, target.tokens, fields, (path,), (), frozenset((path,)), target.trouble)

    def _nothing(self, glob: Glob, keys: Keys, iteration: Iteration) -> None:
        first = glob.text.partition("/")[0]
        names = [one.name for one in self.loaded.workflow.iterations]
        if first in self.loaded.workflow.before(iteration.name):
            paths = [one.name for one in self.planned[first]]
            hint = did_you_mean(glob.text, paths[:50])
            self.mistake(keys, f"no deliverable of {first!r} matches {glob.text[:80]!r}", hint)
        elif first in names:
            message = f"{glob.text[:80]!r} names deliverables of {first!r}, which does not go before {iteration.name!r}"
            self.mistake(keys, message, f"dependencies: [{first}]" if first != iteration.name else None)
        else:
            near = self.inputs.near()
            hint = f"there are {near}" if near else "there are no files: --base DIR says where to look"
            of = "the targets given" if self.inputs.globs else f"the files below {self.inputs.base}"
            self.mistake(keys, f"nothing matches {glob.text[:80]!r} among {of}", hint)

    # -- allocation ----------------------------------------------------------------------------------------------------

    def _allocated(
        self, iteration: Iteration, spec: AgentSpec, keys: Keys, role: Role, units: list[Unit]
    ) -> list[list[Unit]]:
        own = [pattern for pattern in spec.deliverables if of_targets(pattern)]
        shared: list[list[str]] = []
        for unit in units:
            paths = [self._draft_path(pattern, unit, role, iteration, spec, keys) for pattern in own]
            shared.append([path for path in paths if path is not None])
        if self.problems:
            return []
        fixed = REQUEST_TOKENS + estimate_tokens(self._prompt(iteration, spec, role))
        groups = []
        for indices in together(shared):
            items = tuple(units[at] for at in indices)
            calls = len({path for at in indices for path in shared[at]})
            copies = max(1, calls) / len(items) if own else 0
            tokens = sum(unit.tokens + self._read_tokens(unit, iteration) for unit in items)
            each = round(tokens * max(copies, 1)) + calls * (fixed + spec.output_tokens)
            groups.append(Group(items, each, self._value(spec, items[0], keys)))
        agents = how_many(len(units), spec.complexity_per_target, role.complexity_threshold)
        shares = allocate(groups, agents, spec.allocation)
        return [[unit for group in share for unit in group.items] for share in shares]

    def _value(self, spec: AgentSpec, unit: Unit, keys: Keys) -> str:
        if not spec.allocation.startswith("by_"):
            return ""
        name = spec.allocation.removeprefix("by_")
        if name in unit.names:
            return unit.names[name]
        message = f"{spec.allocation!r}: the target {unit.path!r} has no {name!r}"
        self.mistake((*keys, "allocation"), message, unit.trouble or did_you_mean(name, unit.names))
        return ""

    def _draft_path(
        self, pattern: str, unit: Unit, role: Role, iteration: Iteration, spec: AgentSpec, keys: Keys
    ) -> str | None:
        """The path of a deliverable before it is known which agent makes it."""
        of_agent = {"role": role.name, "iteration": iteration.name, "n": "{n}", "agent": "{agent}"}
        try:
            return fill(pattern, {**unit.names, **of_agent})
        except KeyError as error:
            here = (*keys, "deliverables", spec.deliverables.index(pattern))
            known = sorted({*unit.names, *OF_AGENT})
            hint = unit.trouble or did_you_mean(str(error.args[0]), known)
            self.mistake(here, f"nothing is known as {{{error.args[0]}}} of the target {unit.path!r}", hint)
            return None

    def _reads(self, unit: Unit, iteration: Iteration) -> list[Planned]:
        """Earlier deliverables that go with it: those it stands for, and those made of its targets in a dependency."""
        of_lineage = [
            one
            for target in unit.targets
            for name in iteration.dependencies
            for one in self.by_target[name].get(target, ())
        ]
        return [*unit.reads, *of_lineage]

    def _read_tokens(self, unit: Unit, iteration: Iteration) -> int:
        return sum(one.tokens for one in self._reads(unit, iteration))

    # -- agents --------------------------------------------------------------------------------------------------------

    def _agent(
        self,
        iteration: Iteration,
        share: _Share,
        of: int,
        context: str,
        taken: dict[str, tuple[Keys, str]],
        made: list[_Made],
    ) -> tuple[Agent, str]:
        spec, role = share.spec, share.role
        step = step_name(iteration.name, role.name, share.number, of)
        prompt = prompt_name(role.name, share.number, of)
        of_agent = {
            "role": role.name,
            "iteration": iteration.name,
            "n": str(share.number),
            "agent": prompt.removesuffix(".md"),
        }
        planned: list[tuple[Deliverable, Planned]] = []
        for path, (n, units) in self._paths(share, of_agent).items():
            here = (*share.keys, "deliverables", n)
            self._claim(path, here, step, units, taken)
            names = _common(units)
            made.append(_Made(path, spec.deliverables[n], {**names, **of_agent}))
            planned.append(self._deliverable(iteration, share, step, len(planned), path, units))
        text = self._prompt(iteration, spec, role, step, share.number, of, [one for one, _ in planned])
        fixed = estimate_tokens(text) + estimate_tokens(context) + REQUEST_TOKENS
        deliverables = [one.model_copy(update={"tokens": one.tokens + fixed}) for one, _ in planned]
        self._remember(iteration.name, [one for _, one in planned])
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
        self.figures.append(Figures(iteration.name, agent, spec.output_tokens * len(deliverables)))
        return agent, text

    def _paths(self, share: _Share, of_agent: Mapping[str, str]) -> dict[str, tuple[int, list[Unit]]]:
        """What an agent makes of which units, with the number of the pattern."""
        found: dict[str, tuple[int, list[Unit]]] = {}
        spec = share.spec
        own = [(n, pattern) for n, pattern in enumerate(spec.deliverables) if of_targets(pattern)]
        once = [(n, pattern) for n, pattern in enumerate(spec.deliverables) if not of_targets(pattern)]
        wanted = [(n, fill(pattern, {**unit.names, **of_agent}), [unit]) for unit in share.units for n, pattern in own]
        wanted += [(n, fill(pattern, of_agent), share.units) for n, pattern in once]
        for n, path, units in wanted:
            first, those = found.setdefault(path, (n, []))
            if first != n:
                here = (*share.keys, "deliverables", n)
                message = f"the deliverable {path[:120]!r} would be made twice, by two patterns of one agent"
                self.mistake(here, message, "give them different names")
            elif those and not _meant_together(spec.deliverables[n]):
                here = (*share.keys, "deliverables", n)
                message = f"{those[0].path!r} and {units[0].path!r} would both become {path[:120]!r}"
                self.mistake(here, message, "{parent}/{stem} differs, or a key of their front matter")
            those.extend(units)
        return found

    def _claim(
        self, path: str, here: Keys, step: str, units: Sequence[Unit], taken: dict[str, tuple[Keys, str]]
    ) -> None:
        if wrong := wrong_deliverable(path):
            self.mistake(here, f"{wrong[0]} (for the target {units[0].path!r})", wrong[1])
        other_keys, other = taken.setdefault(path, (here, step))
        if other == step:
            return
        if other_keys[:-2] == here[:-2]:
            hint = "add {n} to it, or say `allocation: single`"
        else:
            hint = "give them different names, for example by {role}"
        self.mistake(here, f"{other!r} and {step!r} would both write {path[:120]!r}", hint)

    def _refuse_folders(self, taken: Mapping[str, tuple[Keys, str]]) -> None:
        """A deliverable that would be a file and a folder at once."""
        above = {str(folder) for path in taken for folder in PurePosixPath(path).parents}
        for path, (keys, _) in taken.items():
            if path in above:
                self.mistake(keys, f"{path[:120]!r} would be a file, and the folder of another deliverable")

    def _deliverable(
        self, iteration: Iteration, share: _Share, step: str, index: int, path: str, units: Sequence[Unit]
    ) -> tuple[Deliverable, Planned]:
        """It, with its tokens but for the prompt; and how later iterations know it."""
        spec = share.spec
        reads = {(one.reading.step, one.reading.index): one for unit in units for one in self._reads(unit, iteration)}
        tokens = sum(unit.tokens for unit in units) + sum(one.tokens for one in reads.values()) + spec.output_tokens
        found = Deliverable(
            path=path,
            format=FORMATS.get(PurePosixPath(path).suffix[1:].lower(), share.role.output_format),
            targets=list(dict.fromkeys(target for unit in units for target in unit.targets)),
            reads=[one.reading for one in reads.values()],
            tokens=tokens,
        )
        lineage = units[0].lineage if len(units) == 1 else frozenset().union(*(unit.lineage for unit in units))
        reading = Reading(iteration=iteration.name, step=step, index=index, path=path)
        return found, Planned(reading, spec.output_tokens, _common_fields(units), lineage)

    def _remember(self, iteration: str, planned: Sequence[Planned]) -> None:
        self.planned.setdefault(iteration, []).extend(planned)
        by_target = self.by_target.setdefault(iteration, {})
        for one in planned:
            for target in one.lineage:
                by_target.setdefault(target, []).append(one)

    def _prompt(
        self,
        iteration: Iteration,
        spec: AgentSpec,
        role: Role,
        step: str = "",
        number: int = 1,
        of: int = 1,
        deliverables: Sequence[Deliverable] = (),
    ) -> str:
        """The text of agent-prompts/<role>[-n].md."""
        workflow = self.loaded.workflow
        targets = list(dict.fromkeys(target for one in deliverables for target in one.targets))
        names = {
            "workflow": {"name": workflow.name, "description": workflow.description.strip()},
            "iteration": {
                "name": iteration.name,
                "goal": iteration.goal.strip(),
                "dependencies": iteration.dependencies,
                "rounds": iteration.rounds,
            },
            "agent": {"name": step.removeprefix(f"{iteration.name}-"), "number": number, "of": of, "step": step},
            "role": role.model_dump(mode="json"),
            "targets": targets,
            "deliverables": [
                {"path": one.path, "format": one.format, "targets": one.targets, "reads": _paths_read(one)}
                for one in deliverables
            ],
            "instructions": (spec.instructions or "").strip(),
            "criteria": list(_criteria_of(iteration, spec)),
            "colleagues": sorted({agent.role for agent in iteration.agents} - {role.name}),
        }
        if role.name not in self.prompts:
            path = self.loaded.templates[role.name]
            self.prompts[role.name] = Prompt(read_template(path), path)
        try:
            return self.prompts[role.name].render(names) + "\n"
        except AttemptFailed as error:
            self.wrong(ConfigError(error.message, where=error.where, hint=error.hint, code="bad-template"))
            return ""

    # -- criteria ------------------------------------------------------------------------------------------------------

    def _criteria(self, iteration: Iteration, keys: Keys, made: Sequence[_Made]) -> list[str]:
        """The criteria with every placeholder filled in, once for each deliverable they are about."""
        found: dict[str, None] = {}
        covered: set[str] = set()
        paths = {one.path for one in made}
        for n, text in enumerate(iteration.completion_criteria):
            here = (*keys, "completion_criteria", n)
            lines = list(self._expanded(" ".join(text.split()), made, here))
            found |= dict.fromkeys(lines)
            for line in lines:
                ruled = _RULED.match(line)
                if ruled:
                    covered |= self._about(ruled[1], paths, made, here)
        missing = [path for path in sorted(paths - covered)]
        return [*found, *(f"`{path}` (exists)" for path in missing)]

    def _expanded(self, text: str, made: Sequence[_Made], keys: Keys) -> Iterator[str]:
        names = PLACEHOLDER.findall(text)
        if not names:
            yield text
            return
        ruled = _RULED.match(text)
        about = [one for one in made if ruled and one.pattern == ruled[1]] or made
        fits = [one for one in about if all(name in one.names for name in names)]
        if not fits:
            name = next((name for name in names if not any(name in one.names for one in about)), names[0])
            known = {known for one in about[:100] for known in one.names}
            self.mistake(keys, f"nothing is known as {{{name}}} of any deliverable", did_you_mean(name, known))
        for one in fits:
            yield PLACEHOLDER.sub(lambda match, one=one: one.names[match[1]], text)  # type: ignore[misc]

    def _about(self, path: str, paths: set[str], made: Sequence[_Made], keys: Keys) -> set[str]:
        """The deliverables that a criterion's path or glob means."""
        if path in paths:
            return {path}
        glob = Glob(path)
        found = {one for one in paths if glob.match(one) is not None} if not glob.literal else set()
        if not found:
            hint = did_you_mean(path, [*dict.fromkeys(one.pattern for one in made), *sorted(paths)[:200]])
            self.mistake(keys, f"no agent makes {safe(path, 120, one_line=True)!r}", hint)
        return found

    # -- what a person should know -----------------------------------------------------------------------------------------

    def _notices(self, keys: Keys, agents: Sequence[Agent], shares: Sequence[_Share]) -> Iterator[Notice]:
        """One for a spec whose agents come near to their budget."""
        worst = max(agents, key=lambda agent: agent.share)
        if worst.risk != "HIGH" and worst.share < WARN_FROM:
            return
        mine = [share for share in shares if share.keys == keys]
        spec, role = mine[0].spec, mine[0].role
        near = [agent for agent in agents if agent.share >= WARN_FROM]
        who = worst.step if len(near) == 1 else f"{worst.step} and {len(near) - 1} more"
        text = f"{who} would take {worst.share:.0%} of its budget ({worst.tokens:,} of {role.token_budget:,} tokens)"
        where = self.loaded.places.of(keys)
        yield Notice(text, where, self._advice(spec, role, mine, agents, worst), worst.risk == "HIGH")

    def _advice(
        self, spec: AgentSpec, role: Role, mine: Sequence[_Share], agents: Sequence[Agent], worst: Agent
    ) -> str:
        if worst.share < SPLIT_FROM:
            return f"a refinement or a second round may not fit; a little more token_budget for {role.name} helps"
        targets = sum(len(share.units) for share in mine)
        fixed = spec.allocation == "single" or spec.allocation.startswith("by_")
        whole = any(not of_targets(pattern) for pattern in spec.deliverables)
        largest = max(one.tokens for agent in agents for one in agent.deliverables)
        tokens = [agent.tokens for agent in agents]
        complexity = targets * spec.complexity_per_target
        split = propose_split(tokens, largest, complexity, role.token_budget, fixed=fixed or whole)
        budget = f"token_budget: {split.token_budget} for {role.name}"
        if split.agents is None or split.agents > targets:
            why = f"allocation: {spec.allocation} gives no more agents" if fixed else "more agents do not help"
            return f"{why}: {budget}"
        return (
            f"split it among {split.agents} agents instead of {len(agents)} (complexity_threshold: {split.threshold:g} "
            f"for {role.name}, about {sum(tokens) / split.agents / role.token_budget:.0%} each), or {budget}"
        )

    # -- files ---------------------------------------------------------------------------------------------------------

    def files(self, manifests: Sequence[Manifest], shown: str) -> dict[str, bytes]:
        """Everything to write, by path in the folder."""
        told = [str(notice) for notice in self.notices]
        base, source = str(self.inputs.base), str(self.loaded.path)
        about = {"folder": shown, "base": base, "source": source}
        page = workflow_page(self.loaded.workflow, manifests, told, **about)
        found = {"README.md": page.encode("utf-8", "replace"), "pipeline.json": pipeline_bytes(manifests)}
        found["workflow.yaml"] = self.loaded.path.resolve().read_bytes()
        for role, path in self.loaded.templates.items():
            found[self._place_of(role, path)] = path.resolve().read_bytes()
        for iteration, texts in self.texts.items():
            found |= {f"{iteration}/{name}": data for name, data in texts.items()}
        return found

    def _place_of(self, role: str, template: Path) -> str:
        """Where a template is copied to, so that the copy of the workflow finds it again."""
        given = self.loaded.file.templates.get(role)
        if template.parent == TEMPLATES or not given:
            return f"templates/{template.name}"
        return given


def _meant_together(pattern: str) -> bool:
    """Whether several targets may go into one file: not where its name says that it is about a single one."""
    return not {"stem", "name", "path"} & set(PLACEHOLDER.findall(pattern))


def _common(units: Sequence[Unit]) -> dict[str, str]:
    """The placeholders that mean the same for all of them."""
    first = units[0].names
    if len(units) == 1:
        return dict(first)
    return {name: value for name, value in first.items() if all(unit.names.get(name) == value for unit in units)}


def _common_fields(units: Sequence[Unit]) -> Mapping[str, str]:
    first = units[0].fields
    if len(units) == 1:
        return first
    return {name: value for name, value in first.items() if all(unit.fields.get(name) == value for unit in units)}


def _paths_read(deliverable: Deliverable) -> list[str]:
    return [f"{one.iteration}/{one.path}" for one in deliverable.reads]


def _criteria_of(iteration: Iteration, spec: AgentSpec) -> Iterator[str]:
    """What is about an agent's own deliverables, or about no file."""
    others = {pattern for agent in iteration.agents if agent is not spec for pattern in agent.deliverables} - set(
        spec.deliverables
    )
    for text in iteration.completion_criteria:
        ruled = _RULED.match(text)
        if not ruled or ruled[1] not in others:
            yield " ".join(text.split())
