"""Everything that can be seen wrong in a root, and in a seed for it, before anything runs (``pop check``)."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pop.errors import ConfigError, ConfigErrors, ErrorClass, PopError, SeedRejected, did_you_mean
from pop.executors.local import writable
from pop.expressions import Expression, ExpressionError
from pop.models.catalogue import Catalogue
from pop.models.entries import ModelEntry
from pop.models.keys import keys_of
from pop.models.keysfile import paths_to_hide
from pop.models.prices import price_of
from pop.models.providers import KINDS, load_provider
from pop.models.providers.command import PROGRAM_HINT, command_problem
from pop.models.providers.replay import find_recorded
from pop.pipeline import Pipeline, Repeat, Task, read_pipeline
from pop.pipeline_wiring import steps_around
from pop.places import Places, find_places
from pop.queue import BROKEN_ZIP, Incomplete, ignore_lease_breaks, peek
from pop.records import NAME_PATTERN, Seed
from pop.seedcheck import SeedMismatch, mistakes, refuse_misfit
from pop.seedreads import certain_expressions, excluded_keys, keys_not_required, unconditional
from pop.seeds import parse_seed
from pop.seedtext import content_of, explained, misfit, no_envelope, text_of
from pop.settings import Root, SeedSettings, Settings, load_settings
from pop.steps import Action
from pop.store import read_file
from pop.taskcheck import Use, check_folder, check_task, check_task_against_seed, model_of
from pop.tasks import NAME_RULE, list_tasks
from pop.views import known_views


@dataclass(frozen=True)
class Read:
    """A pipeline file as far as it could be read."""

    file: str
    data: bytes
    pipeline: Pipeline | None
    problems: list[ConfigError]

    @property
    def places(self) -> Places:
        return find_places(self.data.decode(), self.file)


class RootCheck:
    """Looks at a root once."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.tasks = list_tasks(root.tasks)
        self.settings: Settings | None = None
        self.of_settings: list[PopError] = []
        try:
            self.settings = load_settings(root)
        except ConfigError as error:
            self.of_settings = _each_of(error)

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """The environment with the keys of the keys file, as far as it can be read."""
        return keys_of(self.settings) if self.settings else os.environ

    @cached_property
    def catalogue(self) -> Catalogue | None:
        """The models; None while pop.toml has mistakes."""
        return Catalogue(self.settings, self.keys) if self.settings else None

    @cached_property
    def pipelines(self) -> dict[str, Read]:
        return {name: self._read(name) for name in self.root.pipeline_names()}

    def _read(self, name: str) -> Read:
        path = self.root.pipeline_path(name)
        file = os.path.relpath(path, self.root.path)
        try:
            data = read_file(path, links=True)
        except OSError as error:
            return Read(file, b"", None, [ConfigError(f"cannot be read: {error.strerror}", where=file)])
        views = known_views()
        known = {"known_tasks": self.tasks, "known_models": self.catalogue, "known_views": views}
        return Read(file, data, *read_pipeline(data, where=file, name=name, **known))

    @property
    def looked_at(self) -> int:
        """How many files and folders that was."""
        return len(self.tasks) + len(self.pipelines) + 1

    def problems(self) -> list[PopError]:
        """Every mistake in settings, pipelines and tasks."""
        found = [*self.of_settings, *self._of_keys_file(), *self._of_models(), *check_folder(self.root.tasks)]
        for name in self.tasks:
            found += check_task(self.root.tasks, name)
        found += self._of_names()
        for name, read in self.pipelines.items():
            found += read.problems
            if read.pipeline:
                found += self._of_uses(read.pipeline)
                found += self._of_renamed(read.pipeline.models, read.pipeline, read.places)
                found += self.asked_problems(name)
                found += excluded_keys(self.root.tasks, read.pipeline)
        found += self._of_idle_tasks()
        return list({str(problem): problem for problem in found}.values())

    def _of_keys_file(self) -> Iterator[PopError]:
        """No gateway starts with a keys file that is missing, not the user's alone, or within reach of tasks."""
        if self.settings is None:
            return
        try:
            paths_to_hide(self.root, self.settings, writable(self.settings))
        except ConfigError as error:
            yield from _each_of(error)

    def _of_models(self) -> Iterator[PopError]:
        if self.settings is None or self.catalogue is None:
            return
        named = [model for read in self.pipelines.values() if read.pipeline for model in _named_by(read.pipeline)]
        direct = [model for model in named if model in self.catalogue]
        for name in dict.fromkeys(["default", *self.settings.models, *direct]):
            try:
                entries = self.catalogue.resolve(name)
            except ConfigError as error:
                yield from _each_of(error)
                continue
            for entry in entries:
                if entry.provider not in KINDS:  # an installed package's
                    try:
                        load_provider(entry.provider)
                    except ConfigError as error:
                        yield error

    def _unusable(self, entry: ModelEntry) -> ConfigError | None:
        """Why a model cannot answer here: its program or the run it replays is not there."""
        assert self.settings is not None
        problem = command_problem(entry, self.keys, self.root.path)
        if problem:
            where = self.settings.place("models", entry.name, "command")
            return ConfigError(problem, where=where, hint=PROGRAM_HINT, code="no-program")
        if entry.provider == "replay":
            try:
                find_recorded(self.root, entry.model)
            except PopError as error:
                where = self.settings.place("models", entry.name, "model")
                return ConfigError(error.message, where=where, hint=error.hint, code="unknown-run")
        return None

    def asked_problems(
        self, name: str, models: Mapping[str, str] | None = None, budget: Mapping[str, float] | None = None
    ) -> list[PopError]:
        """What the models that a pipeline's prompts ask for lack: programs, recorded runs, prices.

        Args:
            models: What a seed, or the command line, gives another meaning to.
            budget: What a seed allows.
        """
        read = self.pipelines.get(name)
        if read is None or read.pipeline is None:
            return []
        asked = self.asked_by(read.pipeline, models or {})
        absent = [self._unusable(entry) for _, _, entries in asked for entry in entries]
        return [*(problem for problem in absent if problem), *self._of_budgets(read, models or {}, budget or {})]

    def notes(self) -> list[str]:
        """What is no mistake yet: keys that the daemon may have, loops whose condition nothing in them changes, and models
        that cannot answer and no prompt asks for."""
        found = [missing.message for missing in self.all_missing_keys()]
        pipelines = [read.pipeline for read in self.pipelines.values() if read.pipeline]
        found += [note for pipeline in pipelines for note in _of_loops(pipeline)]
        found += [note for pipeline in pipelines for note in keys_not_required(self.root.tasks, pipeline)]
        asked = {entry.name for one in pipelines for _, _, entries in self.asked_by(one, {}) for entry in entries}
        for name in self.settings.models if self.settings and self.catalogue else ():
            with suppress(ConfigError):
                for entry in self.catalogue.resolve(name) if self.catalogue else ():
                    problem = self._unusable(entry) if entry.name == name and name not in asked else None
                    if problem:
                        found.append(f"model {name!r}, which no prompt asks for: {problem.message} ({problem.where})")
        return found

    def asked_by(self, pipeline: Pipeline, models: Mapping[str, str]) -> Iterator[tuple[Task, str, list[ModelEntry]]]:
        """The models that the prompts of a pipeline ask for: step, name and entries. What code asks for is not known.

        Args:
            models: What a seed gives another meaning to.
        """
        renamed = {**pipeline.models, **models}
        for step in pipeline.tasks.values():
            if self.catalogue is None or self.tasks.get(step.task) != "prompt":
                continue
            front = model_of(self.root.tasks, step.task)
            first = step.model or (front[0] if front else "default")
            for asked in dict.fromkeys((first, *models_of({**pipeline.recover, **step.recover}))):
                name = renamed.get(asked, renamed.get("*", asked))
                with suppress(ConfigError):
                    yield step, name, self.catalogue.resolve(name)

    def _of_budgets(self, read: Read, models: Mapping[str, str], of_seed: Mapping[str, float]) -> Iterator[PopError]:
        """Models without a price under a budget in USD: each of their calls would be refused."""
        if self.settings is None or read.pipeline is None:
            return
        of_settings = self.settings.budget.model_dump(exclude_none=True, exclude={"warn"})
        for step, name, entries in self.asked_by(read.pipeline, models):
            given = {"pop.toml": of_settings, read.file: read.pipeline.budget, f"step {step.name!r}": step.budget}
            given["the seed's"] = of_seed
            sources = [source for source, budget in given.items() if any(key.endswith("_usd") for key in budget)]
            for entry in entries:
                if sources and price_of(entry) is None:
                    message = f"there is a budget in USD ({sources[0]}), and nobody knows what {entry.name!r} costs"
                    hint = "give it a `price` in pop.toml, or a budget in tokens or calls"
                    yield ConfigError(message, where=self.settings.place("models", name), hint=hint, code="no-price")

    def missing_keys(self, pipeline: Pipeline, models: Mapping[str, str]) -> list[PopError]:
        """Keys that the models of a pipeline need and this environment lacks."""
        found = dict[str, PopError]()
        for step, _, entries in self.asked_by(pipeline, models):
            for entry in entries:
                if entry.key_env and not self.keys.get(entry.key_env):
                    message = f"{entry.key_env} is not set, and model {entry.name!r} of step {step.name!r} needs it"
                    file = (self.settings and self.settings.gateway.keys_file) or "~/.config/pop/keys.env"
                    hint = f"export {entry.key_env}=..., write it into {file}, or choose another model in pop.toml"
                    found.setdefault(entry.key_env, ConfigError(message, hint=hint, code="no-key"))
        return list(found.values())

    def all_missing_keys(self) -> list[PopError]:
        """The same for all pipelines. Not a mistake: the daemon may have them in its own environment."""
        pipelines = [read.pipeline for read in self.pipelines.values() if read.pipeline]
        found = {str(one): one for pipeline in pipelines for one in self.missing_keys(pipeline, {})}
        return list(found.values())

    def _of_names(self) -> Iterator[PopError]:
        """Pipelines that are missing, or that no seed can ask for."""
        if not self.pipelines:
            yield ConfigError("no pipeline.json", where=self.root.path, hint="pop init")
        for path in sorted(self.root.pipelines.glob("*.json")):
            where = f"{self.root.pipelines.name}/{path.name}"
            if path.stem == "default":
                hint = "`default` is pipeline.json; give this one another name"
                yield ConfigError("this pipeline is never read", where=where, hint=hint, code="unknown-pipeline")
            elif not path.name.startswith(".") and not re.fullmatch(NAME_PATTERN, path.stem):
                message = f"no seed can ask for a pipeline called {path.stem[:80]!r}"
                yield ConfigError(message, where=where, hint=NAME_RULE, code="unknown-pipeline")

    def _of_uses(self, pipeline: Pipeline) -> Iterator[PopError]:
        for step in pipeline.tasks.values():
            if step.task not in self.tasks:
                continue  # told by the pipeline
            around = steps_around(pipeline, step.name)
            use = Use(pipeline.readable(step.name), in_each=bool(pipeline.eaches[step.name]), in_loop=around)
            yield from check_task(self.root.tasks, step.task, use=use)
            if step.model is None:
                yield from self._of_front_matter(step.task, pipeline.models)

    def _of_idle_tasks(self) -> Iterator[PopError]:
        """Models that tasks ask for which no pipeline names."""
        pipelines = [read.pipeline for read in self.pipelines.values() if read.pipeline]
        named = {step.task for pipeline in pipelines for step in pipeline.tasks.values()}
        renamed = {key for pipeline in pipelines for key in pipeline.models}
        for name in self.tasks.keys() - named:
            yield from self._of_front_matter(name, renamed)

    def _of_front_matter(self, task: str, renamed: Collection[str]) -> Iterator[PopError]:
        asked = model_of(self.root.tasks, task)
        if asked and self.catalogue is not None and asked[0] not in renamed and asked[0] not in self.catalogue:
            near = did_you_mean(asked[0][:80], renamed) if set(renamed) else None
            hint = near if near and near.startswith("did") else self.catalogue.near(asked[0][:80])
            yield unknown_model(asked[0], asked[1], hint)

    def _of_renamed(self, models: Iterable[str], pipeline: Pipeline, places: Places) -> Iterator[PopError]:
        """Names in a `models` table that nothing asks for: neither steps, nor front matters, nor any Python file."""
        if self.catalogue is None:
            return
        steps = pipeline.tasks.values()
        fronts = (model_of(self.root.tasks, step.task) for step in steps)
        asked = {*_named_by(pipeline), *(front[0] for front in fronts if front)}
        for name in models:
            if name == "*" or name in self.catalogue or name in asked or self._in_python(name):
                continue
            hint = did_you_mean(name[:80], {*self.catalogue, *asked})
            message = f"nothing asks for a model called {name[:80]!r}"
            yield ConfigError(message, where=places.of_key(("models", name)), hint=hint, code="unknown-model")

    def _in_python(self, word: str) -> bool:
        return any(
            word.encode() in read_file(path, links=True) for path in self.root.tasks.glob("*.py") if path.is_file()
        )

    # -- a seed --------------------------------------------------------------------------------------------------------

    def seed_problems(self, path: Path) -> list[PopError]:
        """Every mistake in a seed for this root."""
        ignore_lease_breaks()
        limits = (self.settings.seeds if self.settings else SeedSettings()).model_copy(update={"settle_s": 0.0})
        try:
            found = peek(path, limits)
            if isinstance(found, Incomplete):
                return [ConfigError(f"not yet a seed: {found.reason}", where=path)]
            value, places = content_of(path)
        except SeedRejected as error:
            return explained(path, error)
        except OSError as error:
            return [ConfigError(f"cannot read the seed: {error.strerror}", where=path)]
        within = ("data",) if "data" in value else ()
        read = self.read_for(found.seed)
        wrong = mistakes(read.pipeline.seed, found.seed.data) if read and read.pipeline and read.pipeline.seed else []
        of_data: list[PopError] = [misfit(one, places, within) for one in wrong]
        of_data = of_data or [*self._against_tasks(found.seed, path)]
        if not within:
            return [*no_envelope(value, places), *of_data]
        asked = self.asked_problems(found.seed.pipeline or "default", found.seed.models, found.seed.budget)
        return [*self._of_envelope(found.seed, places), *asked, *of_data]

    def refuse_misfit(self, path: Path, where: str) -> None:
        """Hold what lies at `path` against the schema of its pipeline; what is no seed is told by others.

        Args:
            where: What its writer calls it.

        Raises:
            SeedMismatch: With the place of the first mistake.
        """
        try:
            seed = parse_seed(text_of(path)[0])
        except (*BROKEN_ZIP, SeedRejected, OSError, KeyError):
            return
        read = self.read_for(seed)
        if read is None or read.pipeline is None:
            return
        try:
            refuse_misfit(read.pipeline.seed, seed.data, where=where, file=read.file)
        except SeedMismatch as error:
            value, places = content_of(path, where)
            error.where = places.of((*(("data",) if "data" in value else ()), *error.wrong[0].path))
            raise

    def read_for(self, seed: Seed) -> Read | None:
        """The pipeline that a seed asks for; a fork goes on with the other run's own, which the daemon looks at."""
        return None if seed.fork else self.pipelines.get(seed.pipeline or "default")

    def envelope_problems(self, path: Path) -> list[PopError]:
        """Pipelines and models that a seed's envelope names and this root lacks; [] for what is no readable seed."""
        try:
            value, places = content_of(path)
            seed = parse_seed(path.read_bytes(), where=path)
        except (SeedRejected, OSError):
            return []
        return list(self._of_envelope(seed, places)) if "data" in value else []

    def _of_envelope(self, seed: Seed, places: Places) -> Iterator[PopError]:
        names = self.root.pipeline_names()
        if seed.pipeline and seed.pipeline not in names:
            where, hint = places.of(("pipeline",)), did_you_mean(seed.pipeline, names)
            yield ConfigError(f"no pipeline {seed.pipeline!r}", where=where, hint=hint, code="unknown-pipeline")
        for asked, model in (seed.models or {}).items():
            if self.catalogue is not None and model not in self.catalogue:
                yield unknown_model(model, places.of(("models", asked)), self.catalogue.near(model[:80]))
        read = self.pipelines.get(seed.pipeline or "default")
        if read and read.pipeline:
            new = [name for name in seed.models or () if name not in read.pipeline.models]
            yield from self._of_renamed(new, read.pipeline, places)

    def _against_tasks(self, seed: Seed, path: Path) -> Iterator[PopError]:
        """What the pipeline certainly reads of the seed and this one lacks; steps behind a `when` may not run."""
        read = self.pipelines.get(seed.pipeline or "default")
        if read is None or read.pipeline is None:
            return
        sure = set(unconditional(read.pipeline))
        for name in sure & read.pipeline.tasks.keys():
            for problem in check_task_against_seed(self.root.tasks, read.pipeline.tasks[name].task, seed.data):
                yield ConfigError(
                    f"{problem.message} in {path.name}", where=problem.where, hint=problem.hint, code="bad-seed"
                )
        yield from _evaluated(certain_expressions(read.pipeline), seed.data)


def models_of(recover: Mapping[ErrorClass, Iterable[Action]]) -> Iterator[str]:
    """The models that a table of recoveries names."""
    return (action.model for actions in recover.values() for action in actions if action.model)


def _of_loops(pipeline: Pipeline) -> Iterator[str]:
    """Loops whose `until` is the same in every lap."""
    for loop in pipeline.blocks.values():
        if not isinstance(loop, Repeat) or not loop.until.where:  # a missing one has been told
            continue
        reads_lap = re.search(r"\blap\b", loop.until.text)
        if not reads_lap and not any(loop.until.reads(leaf.name) for leaf in pipeline.leaves[loop.name]):
            what = f"`{loop.until.text}` is the same in every lap of {loop.name!r}: it reads no step of the loop"
            yield f"{what} ({loop.until.where})"


def _named_by(pipeline: Pipeline) -> Iterator[str]:
    """The models that the file itself names for its steps."""
    yield from models_of(pipeline.recover)
    for step in pipeline.tasks.values():
        yield from (step.model,) if step.model else ()
        yield from models_of(step.recover)


def unknown_model(name: str, where: str, hint: str | None) -> ConfigError:
    """A model that neither pop.toml nor a `models` table knows."""
    return ConfigError(f"no model {name[:80]!r}", where=where, hint=hint, code="unknown-model")


def _each_of(error: ConfigError) -> list[PopError]:
    return list(error.problems) if isinstance(error, ConfigErrors) else [error]


def _evaluated(expressions: Iterable[Expression], data: Any) -> Iterator[PopError]:
    """Failures of expressions that read nothing but the seed."""
    for expression in expressions:
        if re.search(r"\b(inputs|item|laps?)\b", expression.text):
            continue
        try:
            expression.evaluate({"seed": data})
        except ExpressionError as error:
            yield error
