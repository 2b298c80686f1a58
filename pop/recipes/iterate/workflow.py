"""A workflow in YAML: iterations, who works in them on what, and when they are done (docs/iterate.md).

`load_workflow` finds every mistake that can be seen without looking at targets, each with line and column.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pop.errors import ConfigError, ConfigErrors, did_you_mean
from pop.recipes.iterate.criteria import parse_one
from pop.recipes.iterate.library import (
    ROLE_PATTERN,
    Entry,
    Line,
    Role,
    RoleSpec,
    Text,
    find_workflow,
    library_template,
    load_role,
    merged,
    read_yaml_file,
    role_names,
)  # fmt: skip
from pop.recipes.iterate.manifest import CONTEXT, CRITERIA, FILE, PROMPTS, check_step, rounds_step
from pop.recipes.iterate.rules import CriterionError
from pop.store import NotAFile, contained, read_regular
from pop.templatecheck import Template, check_template
from pop.yamlplaces import Keys, YamlPlaces

CODE = "bad-workflow"
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")
ALLOCATION_PATTERN = r"balanced|single|round_robin|by_[A-Za-z_][A-Za-z0-9_-]{0,79}"
# What `generate` itself writes into an iteration's folder, and beside the iterations.
RESERVED = frozenset({CONTEXT.lower(), CRITERIA.lower(), FILE, "readme.md", "pipeline.json"})
BESIDE = frozenset({"templates", "feedback", "targets"})
MAX_PATH = 240  # characters of a deliverable's path
_PLAIN = re.compile(r"(?=.{1,200}\Z)(?:[\w-][\w.-]*/)*[\w-][\w.-]*\Z", re.ASCII)  # most paths; the rest is looked at
MAX_TEMPLATE_BYTES = 1_000_000
# What a template of a role can name.
NAMES = (
    "workflow", "iteration", "agent", "role", "targets", "deliverables", "instructions", "criteria", "colleagues",
)  # fmt: skip

Glob = Annotated[str, StringConstraints(min_length=1, max_length=500)]
IterationName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,23}$")]
RoleName = Annotated[str, StringConstraints(pattern=rf"^{ROLE_PATTERN}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AgentSpec(_Part):
    """A role at work in an iteration: on which targets, to make what. Generate makes one or several agents of it."""

    role: RoleName = Field(description="A role of the library, or of agent_roles.")
    targets: list[Glob] = Field(
        min_length=1,
        max_length=100,
        description="Globs over the inputs; `<iteration>/...` means deliverables of an iteration before; `!...` leaves out.",
    )
    deliverables: list[Glob] = Field(
        min_length=1, max_length=100, description="Files to make, with {placeholders} of the target."
    )
    complexity_per_target: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    allocation: Annotated[str, StringConstraints(pattern=rf"^({ALLOCATION_PATTERN})$")] = Field(
        default="balanced", description="balanced, single, round_robin or by_<field>."
    )
    output_tokens: int = Field(default=800, ge=1, le=1_000_000, description="Expected for one deliverable.")
    instructions: Text | None = Field(default=None, description="Goes into the prompt.")


class Iteration(_Part):
    """One round of work by several roles, which ends when its criteria are met."""

    name: IterationName
    goal: Text
    dependencies: list[str] = Field(default_factory=list, description="Iterations that go before; [] = from the start.")
    rounds: int = Field(default=2, ge=1, le=10, description="Laps of agents and check until all criteria are met.")
    otherwise: Literal["fail", "ask", "keep-best"] = Field(default="fail", description="What then.")
    agents: list[AgentSpec] = Field(min_length=1, max_length=100)
    completion_criteria: list[Line] = Field(
        default_factory=list, description='`path` (exists, >1KB, has "## Risks"), or prose.'
    )


class Workflow(_Part):
    """The work as a whole."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
    description: Text
    iterations: list[Iteration] = Field(min_length=1, max_length=100)

    def order(self) -> list[Iteration]:
        """The iterations, each after those it depends on; else as they stand."""
        by_name = {iteration.name: iteration for iteration in self.iterations}
        found = TopologicalSorter({name: one.dependencies for name, one in by_name.items()}).static_order()
        return [by_name[name] for name in found]

    def before(self, name: str) -> set[str]:
        """All iterations that have ended when this one begins."""
        by_name = {iteration.name: iteration for iteration in self.iterations}
        found: set[str] = set()
        waiting = list(by_name[name].dependencies)
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += by_name[one].dependencies
        return found


class WorkflowFile(_Part):
    """workflow.yaml."""

    workflow: Workflow
    agent_roles: dict[RoleName, RoleSpec] = Field(default_factory=dict, description="Over the library's roles.")
    templates: dict[RoleName, Annotated[str, StringConstraints(min_length=1, max_length=500)]] = Field(
        default_factory=dict, description="Templates of roles, relative to this file."
    )


@dataclass(frozen=True)
class Loaded:
    """A workflow without mistakes, with all it names.

    `roles` and `templates` (the file whose text makes the prompt) are by role, for every role that works in it.
    """

    workflow: Workflow
    file: WorkflowFile
    path: Path
    entry: Entry
    places: YamlPlaces
    roles: dict[str, Role]
    templates: dict[str, Path]


def load_workflow(given: str | Path, root: Path | None = None) -> Loaded:
    """The workflow of a file, a folder or a name (see `library.find_workflow`).

    Raises:
        UsageError: There is none.
        ConfigErrors: Every mistake in it, in reading order, each with ``file:line:column  path``.
    """
    entry = find_workflow(str(given), root)
    value, places = read_yaml_file(entry.path, CODE, example="workflow: {name: ..., description: ..., iterations: []}")
    try:
        file = WorkflowFile.model_validate(value)
    except ValidationError as error:
        entries = sorted(error.errors(), key=lambda one: places.order(_keys_of(one["loc"])))
        raise ConfigErrors([_explain(one, places) for one in entries]) from None
    problems = list(_mistakes(file, places))
    roles, of_roles = _roles(file, places)
    templates, of_templates = _templates(file, places, entry.path.parent)
    if found := _in_order(problems + of_roles) + of_templates:
        raise ConfigErrors(found)
    return Loaded(file.workflow, file, entry.path, entry, places, roles, templates)


def _keys_of(loc: Iterable[str | int]) -> Keys:
    return tuple(key for key in loc if key != "[key]")


def _explain(entry: Any, places: YamlPlaces) -> ConfigError:
    keys = _keys_of(entry["loc"])
    error = places.explain(entry, _known_keys(keys))
    if entry["type"] == "string_pattern_mismatch":
        rule = {"allocation": "balanced, single, round_robin or by_<field>"}.get(str(keys[-1]), _NAME_RULE)
        shown = str(entry["input"])[:60]
        return places.mistake(f"{shown!r} cannot stand here", keys, rule, key="[key]" in entry["loc"])
    if entry["type"] == "missing" and keys[-1] == "workflow":
        return places.mistake("`workflow` is missing", (), "workflow: {name: ..., description: ..., iterations: [...]}")
    return error


_NAME_RULE = "lower-case letters, digits and -, a letter first; 24 for an iteration, 32 for a role (_ too), 40 else"


def _known_keys(keys: Keys) -> list[str]:
    """The keys that may stand where the last of `keys` does."""
    match [key for key in keys[:-1] if not isinstance(key, int)]:
        case []:
            model: type[BaseModel] = WorkflowFile
        case ["workflow"]:
            model = Workflow
        case ["workflow", "iterations"]:
            model = Iteration
        case ["workflow", "iterations", "agents"]:
            model = AgentSpec
        case _:
            model = RoleSpec
    return list(model.model_fields)


def _in_order(problems: list[tuple[tuple[int, int], ConfigError]]) -> list[ConfigError]:
    return [problem for _, problem in sorted(problems, key=lambda one: one[0])]


Placed = tuple[tuple[int, int], ConfigError]


def _at(places: YamlPlaces, keys: Keys, message: str, hint: str | None = None, *, key: bool = False) -> Placed:
    return places.order(keys), places.mistake(message, keys, hint, key=key)


def _mistakes(file: WorkflowFile, places: YamlPlaces) -> Iterator[Placed]:
    yield from _of_names(file.workflow, places)
    yield from _of_order(file.workflow, places)
    for i, iteration in enumerate(file.workflow.iterations):
        for a, agent in enumerate(iteration.agents):
            for n, glob in enumerate(agent.targets):
                if why := wrong_target(glob):
                    yield _at(places, ("workflow", "iterations", i, "agents", a, "targets", n), why)
            if all(glob.startswith("!") for glob in agent.targets):
                here = ("workflow", "iterations", i, "agents", a, "targets")
                yield _at(places, here, "only leaves out, and names no targets", 'begin with "**"')
            for n, pattern in enumerate(agent.deliverables):
                if wrong := wrong_deliverable(pattern):
                    yield _at(places, ("workflow", "iterations", i, "agents", a, "deliverables", n), *wrong)
        for n, text in enumerate(iteration.completion_criteria):
            try:
                parse_one(text)
            except CriterionError as error:
                yield _at(places, ("workflow", "iterations", i, "completion_criteria", n), error.message, error.hint)
    used = {agent.role for iteration in file.workflow.iterations for agent in iteration.agents}
    for table, names in (("agent_roles", file.agent_roles), ("templates", file.templates)):
        for name in sorted(set(names) - used):
            yield _at(places, (table, name), f"no agent has the role {name!r}", did_you_mean(name, used), key=True)


def _of_names(workflow: Workflow, places: YamlPlaces) -> Iterator[Placed]:
    """Iterations that are called alike, or like something else; step names that two would have."""
    if workflow.name == "default":
        yield _at(places, ("workflow", "name"), "'default' is what pipeline.json is called", "choose another name")
    seen: dict[str, int] = {}
    steps: dict[str, str] = {}
    for i, iteration in enumerate(workflow.iterations):
        here: Keys = ("workflow", "iterations", i, "name")
        if iteration.name in seen:
            yield _at(places, here, f"a second iteration {iteration.name!r}", "give it another name")
            continue
        seen[iteration.name] = i
        if iteration.name in BESIDE:
            yield _at(places, here, f"{iteration.name!r} is a folder of the workflow itself", "choose another name")
        names = [(check_step(iteration.name), "the check"), (rounds_step(iteration.name), "the loop")]
        names += [(f"{iteration.name}-{agent.role}", f"the role {agent.role!r}") for agent in iteration.agents]
        for step, what in names:
            told = f"{what} of {iteration.name!r}"
            owner = steps.setdefault(step.replace("_", "-"), told)
            if owner != told:
                yield _at(places, here, f"{told} and {owner} would both be the step {step!r}", "rename one of them")


def _of_order(workflow: Workflow, places: YamlPlaces) -> Iterator[Placed]:
    """Dependencies that are not there, and circles."""
    names = [iteration.name for iteration in workflow.iterations]
    known: dict[str, list[str]] = {}
    for i, iteration in enumerate(workflow.iterations):
        known.setdefault(iteration.name, [])
        for n, name in enumerate(iteration.dependencies):
            here: Keys = ("workflow", "iterations", i, "dependencies", n)
            if name not in names:
                others = [other for other in names if other != iteration.name]
                yield _at(places, here, f"no iteration {name[:80]!r}", did_you_mean(name[:80], others))
            else:
                known[iteration.name].append(name)
    try:
        TopologicalSorter(known).prepare()
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        here = ("workflow", "iterations", names.index(circle[0]), "dependencies")
        told = " -> ".join(circle)
        yield _at(places, here, f"iterations that wait for each other: {told}", "take out one of these dependencies")


def wrong_target(glob: str) -> str | None:
    """Why a glob over targets is none; None where it is one."""
    text = glob.removeprefix("!")
    if wrong_path(text):
        return f"{glob[:80]!r} {wrong_path(text)}"
    rest = PLACEHOLDER.sub("", text)
    if "{" in rest or "}" in rest:
        return f"{glob[:80]!r} has a brace that is no {{placeholder}}"
    names = PLACEHOLDER.findall(text)
    twice = next((name for name in names if names.count(name) > 1), None)
    return f"{glob[:80]!r} has {{{twice}}} twice" if twice else None


def wrong_deliverable(pattern: str) -> tuple[str, str | None] | None:
    """What is wrong with a pattern, or path, of a deliverable, and a hint; None where nothing is."""
    shown = pattern[:80]
    rest = PLACEHOLDER.sub("x", pattern)
    if why := wrong_path(rest):
        return f"the deliverable {shown!r} {why}", 'paths are relative to the iteration: "stories/{stem}.md"'
    if "{" in rest or "}" in rest:
        return f"{shown!r} has a brace that is no {{placeholder}}", "{stem}, or a name of letters, digits, - and _"
    if any(sign in rest for sign in "*?[`"):
        return (
            f"the deliverable {shown!r} holds a sign of globs",
            "name one file; {placeholders} make it differ by target",
        )
    if len(pattern) > MAX_PATH:
        return f"the deliverable {shown!r} is longer than {MAX_PATH} characters", "shorter names"
    if rest.lower() in RESERVED or rest.lower().split("/")[0] == PROMPTS:
        return f"{shown!r} is what `pop iterate generate` itself writes there", "choose another name"
    return None


def wrong_path(text: str) -> str | None:
    """Why a text is no plain relative path; None where it is one."""
    if _PLAIN.fullmatch(text):
        return None
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        return "holds a control character"
    if "\\" in text:
        return "holds a backslash; folders are divided by /"
    if text.startswith("/"):
        return "leaves the folder: it is absolute"
    parts = text.split("/")
    if ".." in parts:
        return "leaves the folder: it has '..'"
    if "" in parts or "." in parts:
        return "has an empty part"
    if any(len(part.encode("utf-8", "replace")) > 200 for part in parts):
        return "has a part of more than 200 bytes"
    return "is longer than 1000 bytes" if len(text.encode("utf-8", "replace")) > 1000 else None


def _roles(file: WorkflowFile, places: YamlPlaces) -> tuple[dict[str, Role], list[Placed]]:
    found: dict[str, Role] = {}
    problems: list[Placed] = []
    library = set(role_names())
    for i, iteration in enumerate(file.workflow.iterations):
        for a, agent in enumerate(iteration.agents):
            here = ("workflow", "iterations", i, "agents", a, "role")
            name, spec = agent.role, file.agent_roles.get(agent.role)
            if name not in library and spec is None:
                known = library | set(file.agent_roles)
                problems.append(_at(places, here, f"no role {name!r}", did_you_mean(name, known)))
            elif name not in found:
                of_library = load_role(name) if name in library else None
                found[name] = merged(name, of_library, spec or RoleSpec())
                if not found[name].perspective:
                    message = f"the role {name!r} is not in the library, so it needs a `perspective`"
                    problems.append(_at(places, ("agent_roles", name), message, key=True))
    return found, problems


def _templates(file: WorkflowFile, places: YamlPlaces, folder: Path) -> tuple[dict[str, Path], list[ConfigError]]:
    """The template of each role that works, checked: names it may read, filters, syntax."""
    found: dict[str, Path] = {}
    problems: dict[str, ConfigError] = {}
    for role in sorted({agent.role for iteration in file.workflow.iterations for agent in iteration.agents}):
        try:
            found[role] = path = _template_of(role, file.templates.get(role), folder, places)
            wrong = check_template(Template(read_template(path), path), NAMES)
        except ConfigError as error:
            wrong = [error]
        problems |= {str(problem): problem for problem in wrong}
    return found, list(problems.values())


def _template_of(role: str, given: str | None, folder: Path, places: YamlPlaces) -> Path:
    if given is None:
        beside, of_library, for_all = (
            folder / "templates" / f"{role}.md.j2",
            library_template(role),
            folder / "templates" / "default.md.j2",
        )
        own = for_all if of_library.name == "default.md.j2" and for_all.is_file() else of_library
        return beside if os.path.lexists(beside) else own
    keys = ("templates", role)
    try:
        path = contained(folder, given)
    except NotAFile as error:
        raise places.mistake(error.message, keys, "a path below the workflow's folder: templates/x.md.j2") from None
    if not path.is_file():
        near = sorted(str(one.relative_to(folder)) for one in folder.glob("*/*.j2"))[:50]
        hint = did_you_mean(given, near) or f"write it beside the workflow; without this line {role} has the library's"
        raise places.mistake(f"no template {given[:200]!r}", keys, hint)
    return path


def read_template(path: Path) -> str:
    """The text of a template.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return read_regular(path, max_bytes=MAX_TEMPLATE_BYTES).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}", where=path, code="bad-template") from None
    except NotAFile as error:
        raise ConfigError(error.message, where=path, code="bad-template") from None
