"""The pipeline language: ``pipeline.json`` read, checked, and turned into blocks (docs/pipelines.md).

``load_pipeline`` finds every mistake in one go. `KEYS` is the list of what may stand in a step; `pipeline_schema` says
the same to editors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from pop import pipeline_values as values
from pop.errors import ConfigError, ConfigErrors, did_you_mean
from pop.expressions import Expects, Expression, compile_expression, inputs_read
from pop.pipeline_schema import pipeline_schema
from pop.places import Path, Places, find_places, json_path
from pop.records import NAME_PATTERN, BadJson, read_json
from pop.steps import (
    ROOT,
    Block,
    CyclicNeeds,
    Each,
    Parallel,
    Pipeline,
    Sequence,
    Task,
    below,
    instance_name,
)  # fmt: skip

__all__ = [
    "Block", "Each", "Parallel", "Pipeline", "Sequence", "Task", "below", "instance_name", "load_pipeline",
    "pipeline_schema",
]  # fmt: skip

MAX_BYTES = 4_000_000
MAX_STEPS = 1000
MAX_NESTING = 20  # blocks inside blocks

_Kind = Literal["task", "parallel", "each", "do"]
_EVERYWHERE = ("name", "needs", "when")
KEYS: dict[_Kind, tuple[str, ...]] = {
    "task": (
        *_EVERYWHERE, "task", "with", "model", "timeout", "stall", "attempts", "refinements", "memory_mb", "output_mb",
        "reuse", "budget",
    ),
    "parallel": (*_EVERYWHERE, "parallel"),
    "each": (*_EVERYWHERE, "each", "do"),
    "do": (*_EVERYWHERE, "do"),
}  # fmt: skip
TOP_KEYS = ("$schema", "name", "description", "tasks", "models", "concurrency", "budget")
_LATER_BLOCKS = ("repeat", "approve")
_LATER = frozenset({*_LATER_BLOCKS, "until", "at_most", "otherwise", "show", "on_timeout", "recover"})


@runtime_checkable
class KnowsNear(Protocol):
    """A collection of models that also hints at names which are not in it, such as ``provider/model``: the catalogue."""

    def near(self, name: str) -> str | None: ...


def load_pipeline(
    data: bytes,
    *,
    where: str,
    name: str,
    known_tasks: Collection[str] | None = None,
    known_models: Collection[str] | None = None,
) -> Pipeline:
    """Read and check a pipeline.

    Args:
        data: The file as it stands on disk.
        where: The file's name, for errors.
        name: What the pipeline is called, if it does not say so itself; ``default`` for pipeline.json.
        known_tasks: The tasks that exist; None passes over whether the named ones do.
        known_models: The models that exist; None passes over whether the named ones do.

    Raises:
        ConfigErrors: Every mistake, in reading order, each with ``file:line:column  path``.
    """
    pipeline, problems = read_pipeline(data, where=where, name=name, known_tasks=known_tasks, known_models=known_models)
    if problems or pipeline is None:
        raise ConfigErrors(problems)
    return pipeline


def read_pipeline(
    data: bytes,
    *,
    where: str,
    name: str,
    known_tasks: Collection[str] | None = None,
    known_models: Collection[str] | None = None,
) -> tuple[Pipeline | None, list[ConfigError]]:
    """As `load_pipeline`, but with its mistakes; None where they leave no order of steps to speak of."""
    try:
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{len(data)} bytes are too many for a pipeline (at most {MAX_BYTES})", where=where)
        document = read_json(data, where=where)
    except BadJson as error:
        return None, [ConfigError(error.message, where=error.where, hint=error.hint, code=error.code)]
    except ConfigError as error:
        return None, [error]
    reader = _Reader(find_places(data.decode("utf-8"), where), known_tasks, known_models)
    pipeline = reader.pipeline(document, name)
    problems = [problem for _, problem in sorted(reader.problems, key=lambda entry: entry[0])]
    return pipeline if reader.whole else None, problems


@dataclass
class _Reader:
    """Turns a document into blocks and collects what is wrong with it."""

    places: Places
    known_tasks: Collection[str] | None
    known_models: Collection[str] | None = None
    problems: list[tuple[int, ConfigError]] = field(default_factory=list)
    named_at: dict[str, Path] = field(default_factory=dict)
    path_of: dict[str, Path] = field(default_factory=dict)
    whole: bool = True  # every step left a block behind, and they have an order
    renamed: Collection[str] = ()  # what `models` at the top gives a meaning to

    def wrong(self, path: Path, message: str, hint: str | None = None, *, key: bool = False, code: str = "") -> None:
        where = self.places.of_key(path) if key else self.places.of(path)
        problem = ConfigError(message, where=where, hint=hint, code=code or None)
        self.problems.append((self.places.order(path), problem))

    def pipeline(self, document: Any, name: str) -> Pipeline | None:
        if not isinstance(document, dict):
            self.wrong((), "a pipeline must be an object", '{"name": ..., "tasks": [...]}')
            return None
        self._unknown_keys(document, TOP_KEYS, ())
        if "tasks" not in document:
            self.wrong((), "`tasks` is missing", 'a list of steps: {"tasks": ["summarise"]}')
            return None
        given = self._checked(document, "name", values.name, ())
        models = self._checked(document, "models", values.models, ()) or {}
        self.renamed = models.keys()
        for asked, model in models.items():
            self._check_model(model, ("models", asked), ())
        root = Sequence(ROOT, self._entries(document["tasks"], ("tasks",), 1, in_each=False))
        pipeline = Pipeline(
            name=given or name,
            description=self._checked(document, "description", values.text, ()) or "",
            root=root,
            models=models,
            concurrency=self._checked(document, "concurrency", values.whole(1, 1_000_000), ()),
            budget=self._checked(document, "budget", values.budget("step", "run", "pipeline"), ()) or {},
        )
        self._check_wiring(pipeline)
        return pipeline

    def _checked(self, step: dict[str, Any], key: str, check: Callable[[Any], Any], path: Path) -> Any:
        """The value of a key, or None with the mistake noted."""
        if key not in step:
            return None
        try:
            return check(step[key])
        except (TypeError, ValueError) as error:
            self.wrong((*path, key), f"`{key}` {error}")
            return None

    def _check_model(self, model: Any, path: Path, renamed: Collection[str]) -> None:
        known = self.known_models
        if known is not None and isinstance(model, str) and model not in renamed and model not in known:
            self.wrong(path, f"no model {model[:80]!r}", _near(model[:80], known, renamed), code="unknown-model")

    def _unknown_keys(self, step: dict[str, Any], known: Collection[str], path: Path) -> None:
        for key in step:
            if key in known:
                continue
            if key in _LATER:
                self.wrong((*path, key), f"`{key}` comes with a later version", key=True, code="not-yet")
            else:
                self.wrong((*path, key), f"unknown key {key[:80]!r}", did_you_mean(key[:80], known), key=True)

    def _dropped(self, path: Path, message: str, hint: str | None = None, **options: Any) -> None:
        """Note a mistake that leaves no block behind; the wiring of the rest is not checked then."""
        self.wrong(path, message, hint, **options)
        self.whole = False

    def _entries(self, steps: Any, path: Path, depth: int, in_each: bool) -> tuple[Block, ...]:
        if not isinstance(steps, list) or not steps:
            self._dropped(path, "must be a list of at least one step")
            return ()
        blocks = (self._block(step, (*path, n), depth, in_each) for n, step in enumerate(steps))
        return tuple(block for block in blocks if block is not None)

    def _block(self, step: Any, path: Path, depth: int, in_each: bool) -> Block | None:
        if isinstance(step, str):
            return self._task({"task": step}, path, in_each, short=True)
        if depth > MAX_NESTING:
            self._dropped(path, f"blocks are nested more than {MAX_NESTING} deep")
        elif isinstance(step, list):
            return Sequence(self._named({}, path), self._entries(step, path, depth + 1, in_each))
        elif not isinstance(step, dict):
            self._dropped(path, "a step must be a task's name, an object, or a list of steps")
        elif later := [key for key in _LATER_BLOCKS if key in step]:
            self._dropped((*path, later[0]), f"`{later[0]}` comes with a later version", key=True, code="not-yet")
        else:
            return self._object_block(step, path, depth, in_each)
        return None

    def _object_block(self, step: dict[str, Any], path: Path, depth: int, in_each: bool) -> Block | None:
        kind = _kind(step)
        self._unknown_keys(step, KEYS[kind], path)
        match kind:
            case "task":
                return self._task(step, path, in_each)
            case "each":
                return self._each(step, path, depth, in_each)
            case "parallel":
                inner = self._entries(step["parallel"], (*path, "parallel"), depth + 1, in_each)
                return Parallel(self._named(step, path), inner, **self._order(step, path, in_each))
            case "do":
                inner = self._inside(step["do"], (*path, "do"), depth, in_each)
                return Sequence(self._named(step, path), inner, **self._order(step, path, in_each))

    def _inside(self, do: Any, path: Path, depth: int, in_each: bool) -> tuple[Block, ...]:
        if isinstance(do, list):
            return self._entries(do, path, depth + 1, in_each)
        block = self._block(do, path, depth + 1, in_each)
        return (block,) if block else ()

    def _each(self, step: dict[str, Any], path: Path, depth: int, in_each: bool) -> Each | None:
        over = self._expression(step["each"], (*path, "each"), "list", in_each)
        if "do" not in step:
            self._dropped(path, "`do` is missing: what to do with each item", '{"each": "seed.parts", "do": "draft"}')
            return None
        do = self._block(step["do"], (*path, "do"), depth + 1, in_each=True)
        name, order = self._named(step, path), self._order(step, path, in_each)
        return Each(name, over, do, **order) if do else None

    def _task(self, step: dict[str, Any], path: Path, in_each: bool, *, short: bool = False) -> Task | None:
        task_path = path if short else (*path, "task" if "task" in step else "name")
        task = step.get("task", step.get("name"))
        if task is None:
            hint = 'the smallest step is {"task": "summarise"}'
            self._dropped(path, "a step needs one of `task`, `parallel`, `each`, `do`", hint)
            return None
        try:
            task = values.name(task)
        except (TypeError, ValueError) as error:
            self._dropped(task_path, f"a task {error}")
            return None
        name = self._checked(step, "name", values.name, path) if "name" in step else task
        if self.known_tasks is not None and task not in self.known_tasks:
            hint = did_you_mean(task, self.known_tasks) or "pipeline-tasks/ is empty"
            self.wrong(task_path, f"no task {task!r}", hint, code="unknown-task")
        options = {
            values.FIELDS.get(key, key): self._checked(step, key, values.CHECKS[key], path) for key in values.CHECKS
        }
        options["with_"], options["budget"] = options["with_"] or {}, options["budget"] or {}
        self._check_model(options["model"], (*path, "model"), self.renamed)
        order = self._order(step, path, in_each)
        if name is None:
            self.whole = False
            return None
        self._take_name(name, task_path if "name" not in step else (*path, "name"), path)
        return Task(name=name, task=task, **order, **options)

    def _named(self, step: dict[str, Any], path: Path) -> str:
        """The name of a block: the given one, or its place."""
        name = self._checked(step, "name", values.name, path)
        if name:
            self._take_name(name, (*path, "name"), path)
            return str(name)
        self.path_of[json_path(path)] = path
        return json_path(path)

    def _take_name(self, name: str, name_path: Path, path: Path) -> None:
        spelled = name.replace("-", "_")
        if spelled in self.named_at:
            first = self.places.of(self.named_at[spelled])
            hint = f"it stands first at {first}; give this one a `name` of its own"
            self._dropped(name_path, f"the name {name!r} is taken", hint, code="name-taken")
            return
        self.named_at[spelled] = name_path
        self.path_of[name] = path

    def _order(self, step: dict[str, Any], path: Path, in_each: bool) -> dict[str, Any]:
        when = self._expression(step["when"], (*path, "when"), "bool", in_each) if "when" in step else None
        return {"needs": self._checked(step, "needs", values.names, path), "when": when}

    def _expression(self, text: Any, path: Path, expects: Expects, in_each: bool) -> Expression:
        """The expression, or a stand-in with its mistakes noted."""
        names = ("seed", "inputs", "item") if in_each else ("seed", "inputs")
        where = self.places.of(path)
        try:
            return compile_expression(values.text(text), where, expects=expects, names=names)
        except (TypeError, ValueError):
            self.wrong(path, "must be an expression, written as a text", "e.g. \"inputs.triage.severity == 'high'\"")
        except ConfigErrors as errors:
            self.problems += [(self.places.order(path), problem) for problem in errors.problems]
            return Expression(str(text), where, expects, inputs_read(str(text)))
        return Expression("none", where, expects)

    def _check_wiring(self, pipeline: Pipeline) -> None:
        """What can be checked once all blocks are known: their number, needs, and the steps expressions read."""
        if len(pipeline.tasks) > MAX_STEPS:
            self._dropped(("tasks",), f"{len(pipeline.tasks)} steps are too many (at most {MAX_STEPS})")
        elif self.whole:
            self.whole = self._needs_exist(pipeline) and self._needs_end(pipeline)
        if self.whole:
            for block in pipeline.blocks.values():
                for expression in _expressions(block):
                    found = expression.check_inputs(pipeline.ancestors(block.name), pipeline.tasks)
                    self.problems += [(self.places.order(self.path_of[block.name]), problem) for problem in found]

    def _needs_exist(self, pipeline: Pipeline) -> bool:
        known = {name for name in pipeline.blocks if re.fullmatch(NAME_PATTERN, name)}
        missing = [
            (block.name, n, name)
            for block in pipeline.blocks.values()
            for n, name in enumerate(block.needs or ())
            if name not in known
        ]
        for asking, n, name in missing:
            near = did_you_mean(name[:80], known - {asking})
            path = (*self.path_of[asking], "needs", n)
            self.wrong(path, f"no step {name[:80]!r} in this pipeline", near, code="unknown-step")
        return not missing

    def _needs_end(self, pipeline: Pipeline) -> bool:
        try:
            pipeline.ancestors(ROOT)
        except CyclicNeeds as error:
            path = (*self.path_of[error.names[0]], "needs")
            message = f"these wait for each other: {' → '.join(error.names)}"
            self.wrong(path, message, "remove one of these `needs`", code="cyclic-needs")
            return False
        return True


def _near(model: str, known: Collection[str], renamed: Collection[str]) -> str | None:
    """The hint for a model that is none."""
    hint = did_you_mean(model, {*known, *renamed})
    if isinstance(known, KnowsNear) and not (hint or "").startswith("did"):
        return known.near(model)
    return hint


def _kind(step: dict[str, Any]) -> _Kind:
    kinds: tuple[_Kind, ...] = ("each", "parallel", "task", "do")
    return next((kind for kind in kinds if kind in step), "task")


def _expressions(block: Block) -> Iterator[Expression]:
    if isinstance(block, Each):
        yield block.over
    if block.when:
        yield block.when
