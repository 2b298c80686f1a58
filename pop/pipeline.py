"""The pipeline language: ``pipeline.json`` read, checked, and turned into blocks (docs/pipelines.md).

``load_pipeline`` finds every mistake in one go. `KEYS` is the list of what may stand in a step; `pipeline_schema` says
the same to editors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

from pop import pipeline_values as values
from pop.durations import seconds
from pop.errors import ERROR_CLASSES, ConfigError, ConfigErrors, ErrorClass, did_you_mean
from pop.expressions import Expects, Expression, compile_expression, unchecked
from pop.pipeline_schema import pipeline_schema
from pop.pipeline_wiring import Wiring
from pop.places import Path, Places, find_places, json_path
from pop.records import NAME_PATTERN, BadJson, read_json
from pop.remedies import CURES
from pop.steps import (
    ROOT,
    Action,
    Block,
    Each,
    Gate,
    Parallel,
    Pipeline,
    Repeat,
    Sequence,
    Task,
    below,
    instance_name,
)  # fmt: skip

__all__ = [
    "Block", "Each", "Gate", "Parallel", "Pipeline", "Repeat", "Sequence", "Task", "below", "instance_name",
    "load_pipeline", "pipeline_schema",
]  # fmt: skip

MAX_BYTES = 4_000_000
MAX_STEPS = 1000
MAX_NESTING = 20  # blocks inside blocks


_Kind = Literal["task", "parallel", "each", "do", "repeat", "approve"]
_EVERYWHERE = ("name", "needs", "when")
_REPEAT = ("until", "at_most", "otherwise", "score", "checks")
_APPROVE = ("show", "text", "on_timeout")
KEYS: dict[_Kind, tuple[str, ...]] = {
    "task": (
        *_EVERYWHERE, "task", "with", "model", "timeout", "stall", "attempts", "refinements", "memory_mb", "output_mb",
        "reuse", "budget", "recover",
    ),
    "parallel": (*_EVERYWHERE, "parallel"),
    "each": (*_EVERYWHERE, "each", "do"),
    "do": (*_EVERYWHERE, "do"),
    "repeat": (*_EVERYWHERE, "repeat", *_REPEAT),
    "approve": ("needs", "when", "approve", *_APPROVE, "timeout"),
}  # fmt: skip
TOP_KEYS = (
    "$schema", "name", "description", "tasks", "models", "concurrency", "budget", "recover", "views", "seed",
)  # fmt: skip
_BELONGS = {**dict.fromkeys(_REPEAT, "repeat"), **dict.fromkeys(_APPROVE, "approve")}
_AN_INPUT = "e.g. \"inputs.triage.severity == 'high'\""
_A_GATE = '{"approve": "plan-approval", "show": ["plan"]}'
_A_LOOP = '{"repeat": ["review", "revise"], "until": "inputs.review.score >= 8", "at_most": 5}'
_HINTS = {"repeat": _A_LOOP, "approve": _A_GATE}


class _Inside(NamedTuple):
    """What stands around a place: it decides about the names that expressions know there."""

    each: bool = False
    repeat: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return ("seed", "inputs", *(("item",) if self.each else ()), *(("lap", "laps") if self.repeat else ()))


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
    known_views: Collection[str] | None = None,
) -> Pipeline:
    """Read and check a pipeline.

    Args:
        data: The file as it stands on disk.
        where: The file's name, for errors.
        name: What the pipeline is called, if it does not say so itself; ``default`` for pipeline.json.
        known_tasks: The tasks that exist; None passes over whether the named ones do.
        known_models: The models that exist; None passes over whether the named ones do.
        known_views: The same for views.

    Raises:
        ConfigErrors: Every mistake, in reading order, each with ``file:line:column  path``.
    """
    known = {"known_tasks": known_tasks, "known_models": known_models, "known_views": known_views}
    pipeline, problems = read_pipeline(data, where=where, name=name, **known)
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
    known_views: Collection[str] | None = None,
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
    reader = _Reader(find_places(data.decode("utf-8"), where), known_tasks, known_models, known_views)
    pipeline = reader.pipeline(document, name)
    problems = [problem for _, problem in sorted(reader.problems, key=lambda entry: entry[0])]
    return pipeline if reader.whole else None, problems


@dataclass
class _Reader:
    """Turns a document into blocks and collects what is wrong with it."""

    places: Places
    known_tasks: Collection[str] | None
    known_models: Collection[str] | None = None
    known_views: Collection[str] | None = None
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
        root = Sequence(ROOT, self._entries(document["tasks"], ("tasks",), 1, _Inside()))
        pipeline = Pipeline(
            name=given or name,
            description=self._checked(document, "description", values.text, ()) or "",
            root=root,
            models=models,
            concurrency=self._checked(document, "concurrency", values.whole(1, 1_000_000), ()),
            budget=self._checked(document, "budget", values.budget("step", "run", "pipeline"), ()) or {},
            recover=self._recover(document, ()),
            views=self._views(document),
            seed=self._seed(document),
        )
        wiring = Wiring(pipeline, self.places, self.path_of)
        if len(pipeline.steps) > MAX_STEPS:
            self._dropped(("tasks",), f"{len(pipeline.steps)} steps are too many (at most {MAX_STEPS})")
        elif self.whole:
            self.whole = wiring.check()
        self.problems += wiring.problems
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

    def _views(self, document: dict[str, Any]) -> tuple[str, ...]:
        views: tuple[str, ...] = self._checked(document, "views", values.names_of("views"), ()) or ()
        for n, name in enumerate(views):
            if self.known_views is not None and name not in self.known_views:
                hint = did_you_mean(name[:80], self.known_views) or "no installed package brings a view"
                self.wrong(("views", n), f"no view {name[:80]!r}", hint, code="unknown-view")
        return views

    def _seed(self, document: dict[str, Any]) -> Mapping[str, Any] | None:
        """The JSON Schema of the seed's data; what is wrong with it is noted."""
        if "seed" not in document:
            return None
        from pop.schemas import keyword_mistakes, schema_mistakes  # with libraries that other pipelines do without

        schema, path = document["seed"], ("seed",)
        mistakes = schema_mistakes(schema, self.places, path)
        if self.known_tasks is not None:  # a run's own copy was looked at when it began
            mistakes += keyword_mistakes(schema, self.places, path)
        self.problems += [(self.places.order(path), problem) for problem in mistakes]
        return schema if isinstance(schema, dict) and not mistakes else None

    def _recover(self, step: dict[str, Any], path: Path) -> Mapping[ErrorClass, tuple[Action, ...]]:
        """A table from classes of errors to actions; what is wrong in it is noted and left out."""
        found: dict[ErrorClass, tuple[Action, ...]] = {}
        for error_class, given in (self._checked(step, "recover", values.json_object, path) or {}).items():
            place = (*path, "recover", error_class)
            if CURES.get(cast(ErrorClass, error_class)) == frozenset():
                message = "`interrupted` cannot be set: such an attempt is made again and counts for nothing"
                self.wrong(place, message, key=True)
            elif error_class not in ERROR_CLASSES:
                hint = did_you_mean(error_class[:80], CURES)
                self.wrong(place, f"no class of errors {error_class[:80]!r}", hint, key=True)
            else:
                known = cast(ErrorClass, error_class)
                found[known] = self._actions(given, known, place)
        return found

    def _actions(self, given: Any, error_class: ErrorClass, path: Path) -> tuple[Action, ...]:
        if given == []:
            self.wrong(path, "must be an action, or a list of at least one", 'e.g. ["retry", "model:large", "ask"]')
        listed = isinstance(given, list)
        found = []
        for n, one in enumerate(given if listed else [given]):
            place = (*path, n) if listed else path
            try:
                action = values.action(one, error_class)
            except ValueError as error:
                self.wrong(place, str(error))
                continue
            self._check_model(action.model, place, self.renamed)
            found.append(action)
        return tuple(found)

    def _unknown_keys(self, step: dict[str, Any], known: Collection[str], path: Path) -> None:
        for key in step:
            if key in known:
                continue
            if key in _BELONGS:
                owner = _BELONGS[key]
                self.wrong((*path, key), f"`{key}` belongs to a step with `{owner}`", _HINTS[owner], key=True)
            elif key == "name" and "approve" in known:
                self.wrong((*path, key), "the name of a gate is what stands behind `approve`", key=True)
            else:
                self.wrong((*path, key), f"unknown key {key[:80]!r}", did_you_mean(key[:80], known), key=True)

    def _dropped(self, path: Path, message: str, hint: str | None = None, **options: Any) -> None:
        """Note a mistake that leaves no block behind; the wiring of the rest is not checked then."""
        self.wrong(path, message, hint, **options)
        self.whole = False

    def _entries(self, steps: Any, path: Path, depth: int, inside: _Inside) -> tuple[Block, ...]:
        if not isinstance(steps, list) or not steps:
            self._dropped(path, "must be a list of at least one step")
            return ()
        blocks = (self._block(step, (*path, n), depth, inside) for n, step in enumerate(steps))
        return tuple(block for block in blocks if block is not None)

    def _block(self, step: Any, path: Path, depth: int, inside: _Inside) -> Block | None:
        if isinstance(step, str):
            return self._task({"task": step}, path, inside, short=True)
        if depth > MAX_NESTING:
            self._dropped(path, f"blocks are nested more than {MAX_NESTING} deep")
        elif isinstance(step, list):
            return Sequence(self._named({}, path), self._entries(step, path, depth + 1, inside))
        elif not isinstance(step, dict):
            self._dropped(path, "a step must be a task's name, an object, or a list of steps")
        else:
            return self._object_block(step, path, depth, inside)
        return None

    def _object_block(self, step: dict[str, Any], path: Path, depth: int, inside: _Inside) -> Block | None:
        kind = _kind(step)
        self._unknown_keys(step, KEYS[kind], path)
        match kind:
            case "task":
                return self._task(step, path, inside)
            case "each":
                return self._each(step, path, depth, inside)
            case "parallel":
                inner = self._entries(step["parallel"], (*path, "parallel"), depth + 1, inside)
                return Parallel(self._named(step, path), inner, **self._order(step, path, inside))
            case "repeat":
                return self._repeat(step, path, depth, inside)
            case "approve":
                return self._gate(step, path, inside)
            case "do":
                inner = self._inside(step["do"], (*path, "do"), depth, inside)
                return Sequence(self._named(step, path), inner, **self._order(step, path, inside))

    def _inside(self, do: Any, path: Path, depth: int, inside: _Inside) -> tuple[Block, ...]:
        if isinstance(do, list):
            return self._entries(do, path, depth + 1, inside)
        block = self._block(do, path, depth + 1, inside)
        return (block,) if block else ()

    def _each(self, step: dict[str, Any], path: Path, depth: int, inside: _Inside) -> Each | None:
        over = self._expression(step["each"], (*path, "each"), "list", inside)
        if "do" not in step:
            self._dropped(path, "`do` is missing: what to do with each item", '{"each": "seed.parts", "do": "draft"}')
            return None
        do = self._block(step["do"], (*path, "do"), depth + 1, inside._replace(each=True))
        name, order = self._named(step, path), self._order(step, path, inside)
        return Each(name, over, do, **order) if do else None

    def _repeat(self, step: dict[str, Any], path: Path, depth: int, inside: _Inside) -> Repeat:
        within = inside._replace(repeat=True)
        body_path = (*path, "repeat")
        inner = self._inside(step["repeat"], body_path, depth, within)
        body = Sequence(f"{json_path(body_path)}[]", inner)
        self.path_of[body.name] = body_path
        if "until" not in step:
            self.wrong(path, "`until` is missing: when the loop has reached its goal", _A_LOOP)
        if "at_most" not in step:
            self.wrong(path, "`at_most` is missing: how many laps there may be", _A_LOOP)
        until, score, checks = (
            self._expression(step[key], (*path, key), expects, within) if key in step else None
            for key, expects in _CONDITIONS.items()
        )
        if step.get("otherwise") == "keep-best" and "score" not in step:
            hint = 'e.g. "score": "inputs.review.score"'
            self.wrong((*path, "otherwise"), "`keep-best` needs a `score`: a number that says which lap is best", hint)
        return Repeat(
            name=self._loop_name(step, body, path),
            body=body,
            until=until or Expression("true", "", "bool"),
            at_most=self._checked(step, "at_most", values.whole(1, values.MAX_LAPS), path) or 1,
            otherwise=self._checked(step, "otherwise", values.one_of("fail", "ask", "keep-best"), path) or "fail",
            score=score,
            checks=checks,
            **self._order(step, path, inside),
        )

    def _loop_name(self, step: dict[str, Any], body: Sequence, path: Path) -> str:
        """The given name of a loop, or one after its first step."""
        first = next((block.name for block in below(body) if isinstance(block, Task | Gate)), None)
        if "name" in step or first is None:
            return self._named(step, path)
        name = f"{first}-loop"
        if not re.fullmatch(NAME_PATTERN, name):
            self._dropped((*path, "repeat"), f"{name!r} is too long for a name", "give the loop a `name` of its own")
        self._take_name(name, (*path, "repeat"), path)
        return name

    def _gate(self, step: dict[str, Any], path: Path, inside: _Inside) -> Gate | None:
        name = self._checked(step, "approve", values.name, path)
        if "on_timeout" in step and "timeout" not in step:
            self.wrong((*path, "on_timeout"), "`on_timeout` means nothing without a `timeout`", '"timeout": "2d"')
        gate = Gate(
            name=name or json_path(path),
            show=self._checked(step, "show", values.names_of("steps"), path) or (),
            text=self._checked(step, "text", values.text, path),
            timeout_s=self._checked(step, "timeout", seconds, path),
            on_timeout=self._checked(step, "on_timeout", values.one_of("wait", "reject", "approve"), path) or "wait",
            **self._order(step, path, inside),
        )
        if name is None:
            self.whole = False
            return None
        self._take_name(name, (*path, "approve"), path)
        return gate

    def _task(self, step: dict[str, Any], path: Path, inside: _Inside, *, short: bool = False) -> Task | None:
        task_path = path if short else (*path, "task" if "task" in step else "name")
        task = step.get("task", step.get("name"))
        if task is None:
            hint = 'the smallest step is {"task": "summarise"}'
            kinds = ", ".join(f"`{kind}`" for kind in KEYS)
            self._dropped(path, f"a step needs one of {kinds}", hint)
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
        order, recover = self._order(step, path, inside), self._recover(step, path)
        if name is None:
            self.whole = False
            return None
        self._take_name(name, task_path if "name" not in step else (*path, "name"), path)
        return Task(name=name, task=task, recover=recover, **order, **options)

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

    def _order(self, step: dict[str, Any], path: Path, inside: _Inside) -> dict[str, Any]:
        when = self._expression(step["when"], (*path, "when"), "bool", inside) if "when" in step else None
        return {"needs": self._checked(step, "needs", values.names_of("steps"), path), "when": when}

    def _expression(self, text: Any, path: Path, expects: Expects, inside: _Inside) -> Expression:
        """The expression, or a stand-in with its mistakes noted."""
        where = self.places.of(path)
        try:
            return compile_expression(values.text(text), where, expects=expects, names=inside.names)
        except (TypeError, ValueError):
            self.wrong(path, "must be an expression, written as a text", _AN_INPUT)
        except ConfigErrors as errors:
            self.problems += [(self.places.order(path), problem) for problem in errors.problems]
            return unchecked(str(text), where, expects)
        return Expression("none", where, expects)


_CONDITIONS: dict[str, Expects] = {"until": "bool", "score": "number", "checks": "bool"}


def _near(model: str, known: Collection[str], renamed: Collection[str]) -> str | None:
    """The hint for a model that is none."""
    hint = did_you_mean(model, {*known, *renamed})
    if isinstance(known, KnowsNear) and not (hint or "").startswith("did"):
        return known.near(model)
    return hint


def _kind(step: dict[str, Any]) -> _Kind:
    kinds: tuple[_Kind, ...] = ("each", "parallel", "repeat", "approve", "task", "do")
    return next((kind for kind in kinds if kind in step), "task")
