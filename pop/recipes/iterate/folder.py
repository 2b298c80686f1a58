"""The folder that `pop iterate generate` wrote and a person may have edited: read whole, every mistake told at once.

DIR/pipeline.json                       the steps of the whole workflow, in order
DIR/<iteration>/manifest.json           who makes which deliverable; CONTEXT.md, COMPLETION_CRITERIA.md, agent-prompts/
DIR/<iteration>/pipeline.json           the steps of this iteration alone
DIR/<iteration>/<deliverable>           what runs made
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from pop.errors import ConfigError, ConfigErrors, UsageError, did_you_mean, safe
from pop.places import Places, find_places
from pop.recipes.iterate.manifest import (
    CONTEXT,
    CRITERIA,
    FILE,
    PROMPTS,
    Agent,
    Deliverable,
    Manifest,
    Reading,
    seed_key,
)
from pop.records import NAME_PATTERN, BadJson, read_json
from pop.store import NotAFile, contained, read_regular

PIPELINE = "pipeline.json"
TARGETS = "targets"  # where a run keeps them, beside its iterations
RESERVED = frozenset({FILE.lower(), CONTEXT.lower(), CRITERIA.lower(), "readme.md", PIPELINE})
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_TOLD = 20  # mistakes
MAX_PATH = 240  # characters of a deliverable's path below its iteration
Where = tuple[str | int, ...]


@dataclass(frozen=True)
class Folder:
    """What DIR holds. `manifests` by the iteration's name, those others depend on first."""

    path: Path
    workflow: str
    manifests: dict[str, Manifest]

    def iteration(self, name: str) -> Manifest:
        """The iteration of that name.

        Raises:
            UsageError: There is none.
        """
        if name not in self.manifests:
            hint = did_you_mean(name, self.manifests)
            raise UsageError(f"no iteration {name!r}", where=self.path, hint=hint, code="unknown-iteration")
        return self.manifests[name]

    def base(self, iteration: str) -> Path:
        """The folder an iteration's targets lie in."""
        return (self.path / self.manifests[iteration].base).resolve()

    def agents(self, iterations: Iterable[str] | None = None) -> Iterator[tuple[Manifest, Agent]]:
        for name in self.manifests if iterations is None else iterations:
            for agent in self.manifests[name].agents:
                yield self.manifests[name], agent


def _manifest_files(path: Path) -> Iterator[Path]:
    for inner in sorted(path.iterdir()) if path.is_dir() else ():
        if inner.is_dir() and not inner.is_symlink() and (inner / FILE).is_file():
            yield inner / FILE


def read_folder(path: Path, *, inputs: bool = True) -> Folder:
    """Read and check DIR.

    Args:
        inputs: Whether what a run would read must be there: targets, prompts, contexts, criteria.

    Raises:
        UsageError: It is no such folder.
        ConfigErrors: Every mistake in its manifests, with file, line and column.
    """
    path = path.resolve()
    read = [_Manifest.read(file, path) for file in _manifest_files(path)]
    if not read:
        message = f"no manifest.json of an iteration in {path}" if path.is_dir() else f"no folder {path}"
        hint = "pop iterate generate WORKFLOW --output DIR writes one"
        raise UsageError(message, hint=hint, code="no-iterations")
    problems = [problem for one in read for problem in one.problems]
    sound = {one.manifest.iteration: one for one in read if one.manifest}
    if not problems:
        problems = [problem for one in sound.values() for problem in one.check(sound, inputs)]
        problems += _shared_names(sound)
    if problems:
        raise ConfigErrors(_bounded(problems))
    manifests = {name: one.manifest for name, one in sound.items() if one.manifest}
    return Folder(path, next(iter(manifests.values())).workflow, _in_order(manifests, path))


def _bounded(problems: list[ConfigError]) -> list[ConfigError]:
    """Each sentence once, with its first place; of very many the first."""
    first = {problem.message: problem for problem in reversed(problems)}
    told = [problem for problem in problems if first[problem.message] is problem]
    if len(told) <= MAX_TOLD:
        return told
    more = f"and {len(told) - MAX_TOLD} more like these"
    return [*told[:MAX_TOLD], ConfigError(more, code=told[-1].code)]


def _in_order(manifests: dict[str, Manifest], path: Path) -> dict[str, Manifest]:
    """Dependencies first, else by name.

    Raises:
        ConfigError: They go in a circle.
    """
    found: dict[str, Manifest] = {}
    while len(found) < len(manifests):
        ready = [
            name
            for name in sorted(manifests)
            if name not in found and found.keys() >= set(manifests[name].dependencies)
        ]
        if not ready:
            circle = ", ".join(sorted(set(manifests) - set(found)))
            hint = "take one of the dependencies out"
            raise ConfigErrors([ConfigError(f"the iterations depend on each other: {circle}", where=path, hint=hint)])
        found |= {name: manifests[name] for name in ready}
    return found


def _shared_names(read: dict[str, _Manifest]) -> Iterator[ConfigError]:
    """Names that two iterations or agents share, and two workflows in one folder."""
    workflows: dict[str, _Manifest] = {}
    steps: dict[str, str] = {}
    for one in read.values():
        assert one.manifest
        workflows[one.manifest.workflow] = one
        for number, agent in enumerate(one.manifest.agents):
            where: Where = ("agents", number, "step")
            if other := steps.get(seed_key(agent.step)):
                yield one.wrong(f"the step {agent.step!r} is that of an agent of {other!r} too", where)
            steps[seed_key(agent.step)] = one.manifest.iteration
    if len(workflows) > 1:
        names = ", ".join(sorted(workflows))
        yield list(workflows.values())[-1].wrong(f"several workflows in one folder: {names}", ("workflow",))


@dataclass
class _Manifest:
    """One manifest.json, its places, and what is wrong with it by itself."""

    folder: Path
    root: Path
    places: Places
    manifest: Manifest | None
    problems: list[ConfigError]

    @cached_property
    def agents(self) -> dict[str, Agent]:
        """By the step of each."""
        return {agent.step: agent for agent in self.manifest.agents} if self.manifest else {}

    @staticmethod
    def read(file: Path, root: Path) -> _Manifest:
        shown = f"{file.parent.name}/{FILE}"
        self = _Manifest(file.parent, root, Places(shown), None, [])
        try:
            data = read_regular(file, max_bytes=MAX_MANIFEST_BYTES)
            value = read_json(data, where=shown)
            self.places = find_places(data.decode(), shown)
            self.manifest = Manifest.model_validate(value)
        except BadJson as error:
            self.problems = [ConfigError(error.message, where=error.where, hint=error.hint, code="bad-manifest")]
        except ValidationError as error:
            self.problems = [self.wrong(one["msg"].lower(), one["loc"]) for one in error.errors()[:20]]
        except NotAFile as error:
            self.problems = [ConfigError(error.message, where=shown, code="bad-manifest")]
        except OSError as error:
            self.problems = [ConfigError(f"cannot be read: {error.strerror}", where=shown, code="bad-manifest")]
        return self

    def wrong(self, message: str, where: Where, hint: str | None = None, code: str = "bad-manifest") -> ConfigError:
        return ConfigError(message, where=self.places.of(where), hint=hint, code=code)

    def check(self, read: dict[str, _Manifest], inputs: bool) -> Iterator[ConfigError]:
        """Whatever can be said about the manifest beside the others."""
        manifest = self.manifest
        assert manifest
        if manifest.iteration != self.folder.name:
            hint = "the folder and the iteration have the same name"
            yield self.wrong(f"{manifest.iteration!r} stands in the folder {self.folder.name!r}", ("iteration",), hint)
        for key in ("workflow", "iteration"):
            if not re.fullmatch(NAME_PATTERN, value := getattr(manifest, key)):
                yield self.wrong(f"{value[:80]!r} is no name", (key,), "a-z first, then a-z, 0-9, - or _")
        if manifest.iteration == TARGETS:
            yield self.wrong(f"no iteration can be called {TARGETS!r}: a run's inputs lie there", ("iteration",))
        for number, name in enumerate(manifest.dependencies):
            if name not in read:
                yield self.wrong(f"no iteration {name[:80]!r}", ("dependencies", number), did_you_mean(name, read))
        if inputs:
            yield from self._files([CONTEXT, CRITERIA], ())
        yield from self._agents(manifest, read, inputs)

    def _agents(self, manifest: Manifest, read: dict[str, _Manifest], inputs: bool) -> Iterator[ConfigError]:
        before = set(_all_before(manifest, read))
        taken = _Taken()
        for number, agent in enumerate(manifest.agents):
            where: Where = ("agents", number)
            if not re.fullmatch(NAME_PATTERN, agent.step):
                yield self.wrong(f"{agent.step[:80]!r} is no step's name", (*where, "step"))
            if inputs:
                yield from self._files([f"{PROMPTS}/{agent.prompt}"], (*where, "prompt"))
            for index, deliverable in enumerate(agent.deliverables):
                place = (*where, "deliverables", index)
                yield from self._path(deliverable.path, agent.step, taken, (*place, "path"))
                if inputs:
                    yield from self._targets(deliverable, place)
                for which, reading in enumerate(deliverable.reads):
                    if problem := _misread(reading, read, before):
                        yield self.wrong(problem[0], (*place, "reads", which), problem[1])

    def _files(self, names: Iterable[str], where: Where) -> Iterator[ConfigError]:
        for name in names:
            hint = "put it back, or pop iterate generate writes it anew"
            if problem := missing(self.folder, name):
                yield self.wrong(f"{self.folder.name}/{name[:120]}: {problem}", where, hint, code="missing-file")

    def _targets(self, deliverable: Deliverable, where: Where) -> Iterator[ConfigError]:
        assert self.manifest
        base = (self.root / self.manifest.base).resolve()
        for index, target in enumerate(deliverable.targets):
            if problem := missing(base, target):
                hint = f"targets lie in {base}: put it back, or take it out of the manifest"
                place = (*where, "targets", index)
                yield self.wrong(f"the target {target[:120]!r}: {problem}", place, hint, code="missing-target")

    def _path(self, path: str, step: str, taken: _Taken, where: Where) -> Iterator[ConfigError]:
        """A deliverable stays in its iteration's folder, overwrites nothing there, and is made once."""
        parts = path.split("/")
        long = len(path) > MAX_PATH or any(len(part.encode("utf-8", "replace")) > 200 for part in parts)
        if "\\" in path or long or safe(path, one_line=True) != path or ".git" in path.lower().split("/"):
            hint = "shorter, with / alone, without what nobody sees, and not into .git"
            yield self.wrong(f"{path[:80]!r} is no path for a deliverable", where, hint)
            return
        try:
            contained(self.folder, path)
        except NotAFile as error:
            hint = "a path below the iteration's folder, without .. and links"
            yield self.wrong(f"a deliverable leaves its folder: {error.message}", where, hint, code="outside")
            return
        if path.lower() in RESERVED or parts[0].lower() == PROMPTS:
            yield self.wrong(f"{path!r} is a file of the iteration itself", where, "another name", code="collision")
        if clash := taken.take(path, step):
            hint = "give each agent files of its own"
            yield self.wrong(f"{path!r} collides with {clash[0]!r} of {clash[1]!r}", where, hint, code="collision")


@dataclass
class _Taken:
    """The paths of an iteration's deliverables, the folders among them, and who makes them."""

    files: dict[str, str] = field(default_factory=dict)
    folders: dict[str, tuple[str, str]] = field(default_factory=dict)

    def take(self, path: str, step: str) -> tuple[str, str] | None:
        """The path and step it collides with, if any."""
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts))]
        clash = next(((one, self.files[one]) for one in [path, *above] if one in self.files), self.folders.get(path))
        self.files[path] = step
        self.folders |= {one: (path, step) for one in above}
        return clash


def _all_before(manifest: Manifest, read: dict[str, _Manifest]) -> Iterator[str]:
    """The iterations that certainly have ended before this one."""
    seen, open_ = set(), list(manifest.dependencies)
    while open_:
        name = open_.pop()
        if name in seen or name not in read:
            continue
        seen.add(name)
        yield name
        inner = read[name].manifest
        open_ += inner.dependencies if inner else []


def _misread(reading: Reading, read: dict[str, _Manifest], before: set[str]) -> tuple[str, str | None] | None:
    if reading.iteration not in before:
        return f"{reading.iteration[:80]!r} is no iteration that goes before", "add it to dependencies"
    agent = read[reading.iteration].agents.get(reading.step)
    if agent is None:
        return f"no agent {reading.step[:80]!r} in {reading.iteration!r}", None
    made = agent.deliverables[reading.index].path if reading.index < len(agent.deliverables) else None
    if made != reading.path:
        return f"{reading.step!r} makes {made!r} as its number {reading.index}, not {reading.path[:120]!r}", None
    return None


def missing(folder: Path, name: str) -> str | None:
    """Why `name` is no file inside `folder`, or None when it is one."""
    try:
        path = contained(folder, name)
    except NotAFile as error:
        return error.message
    if not path.is_file():
        return "it is not there" if not path.exists() else "not a regular file"
    return None
