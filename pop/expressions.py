"""Expressions of the pipeline language: what stands in ``when``, ``each``, ``until``, ``score`` and ``checks``.

Jinja expressions over ``seed``, ``inputs``, ``item``, ``lap`` and ``laps``. They are evaluated in the supervisor, over data that
nobody vouches for, so the language is small: no loops, no ``range``, filters and tests from a list, five methods of
texts, ``*`` ``**`` ``%`` for numbers of bounded size only. A name after a dot is always a key of the data, never a
Python attribute. Nothing can be changed, and what an expression builds is at most as big as the data it read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Any, Literal, cast

from jinja2 import TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.environment import TemplateExpression
from jinja2.parser import Parser

from pop.errors import EXIT_RUN_FAILED, ConfigError, ConfigErrors, PopError, did_you_mean
from pop.expression_sandbox import ENVIRONMENT, TEST_NAMES, TEXT_METHODS, cut, type_name

NAMES = ("seed", "inputs", "item", "lap", "laps")
MAX_TEXT = 4000  # characters of one expression
MAX_ITEMS = 100_000  # of one `each`
MAX_SHOWN = 200  # characters of a value that `Expression.values` tells
Expects = Literal["bool", "list", "number", "any"]


class ExpressionError(PopError):
    """An expression that looked right cannot be worked out for the data at hand."""

    code = "bad-expression"
    exit_code = EXIT_RUN_FAILED


@dataclass(frozen=True)
class Expression:
    """A checked expression.

    `where` is its place for errors; `expects` is what `evaluate` insists on; `inputs` and `laps` are the steps it reads,
    spelt as in the expression: ``plan_a`` may stand for the step ``plan-a`` (see `spelled`).
    """

    text: str
    where: str
    expects: Expects = "any"
    inputs: frozenset[str] = frozenset()
    laps: frozenset[str] = frozenset()

    def reads(self, step: str) -> bool:
        """Whether it reads an output of this step, the newest or those of all laps."""
        return spelled(step) in {spelled(name) for name in self.inputs | self.laps}

    def evaluate(self, scope: Mapping[str, Any]) -> Any:
        """Work it out.

        Args:
            scope: Values of the names, e.g. ``{"seed": ..., "inputs": {step: output}, "item": ...}``; ``inputs`` may be
                a lazy mapping. The output of a skipped step is None.

        Returns:
            A bool, a list or a number where `expects` says so, else any JSON value.

        Raises:
            ExpressionError: It names a missing key, does not fit the data, or gives another type than expected.
        """
        try:
            return self._checked(_compiled(self.text)(**_scope(scope)))
        except ExpressionError:
            raise
        except (
            TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            NameError,  # Jinja writes the constant inf as a name
        ) as error:
            raise self._error(cut(str(error) or type(error).__name__)) from None
        except (RecursionError, MemoryError) as error:
            raise self._error(f"the data is too large for it ({type(error).__name__})") from None

    def values(self, scope: Mapping[str, Any]) -> dict[str, Any]:
        """What the expression read, by the longest chains of names it is written with.

        ``{"inputs.review.score": 7.5, "lap": 2}``. A value that cannot be had is left out; one whose JSON is longer than
        `MAX_SHOWN` characters is given as the beginning of that text.

        Args:
            scope: As for `evaluate`.
        """
        names, found = _scope(scope), {}
        for name, *keys in _chains(_parse(self.text, self.where)):
            if keys or name not in ("inputs", "laps"):
                with suppress(LookupError, TypeError, ValueError, OSError, PopError):
                    found[_chain_text(name, keys)] = _abridged(_value_of(names[name], keys))
        return found

    def check_inputs(
        self,
        known: Collection[str],
        steps: Collection[str] = (),
        *,
        in_loop: Collection[str] | None = None,
        later: str = "which does not come before it",
    ) -> list[ConfigError]:
        """One error for each ``inputs.<step>`` and ``laps.<step>`` that names no step that can be read at this place.

        Args:
            known: The steps whose outputs are there by then.
            steps: All steps of the pipeline, to tell a later step from an unknown one.
            in_loop: The steps of the loops around, for ``laps``; None leaves these unchecked.
            later: What is said of a step that cannot be read.
        """
        words = (later, "no step comes before this one")
        found = [self._check_read(name, known, steps, words) for name in sorted(self.inputs)]
        if in_loop is not None:
            words = ("which is in no loop around this place", "no loop stands around this place")
            found += [self._check_read(name, in_loop, steps, words) for name in sorted(self.laps)]
        return [problem for problem in found if problem]

    def _check_read(
        self, name: str, known: Collection[str], steps: Collection[str], words: tuple[str, str]
    ) -> ConfigError | None:
        readable = {spelled(step) for step in known}
        if spelled(name) in readable:
            return None
        later, none = words
        if spelled(name) in {spelled(step) for step in steps}:
            message, hint = f"`{self.text}` reads step {name!r}, {later}", "see `needs`"
        else:
            message, hint = (
                f"`{self.text}` reads an unknown step {name!r}",
                did_you_mean(spelled(name), readable) or none,
            )
        return ConfigError(message, where=self.where, hint=hint, code="unknown-input")

    def _checked(self, value: Any) -> Any:
        if isinstance(value, Undefined):
            str(value)  # a strict one raises with its explanation
            raise self._error("gave nothing", "an `if` needs an `else`")
        if ("[" in self.text or "{" in self.text) and not _is_data(value):
            raise self._error("a value inside the list or object is missing")
        if self.expects == "bool" and not isinstance(value, bool):
            raise self._error(
                f"must be true or false, gave {type_name(value)}",
                "compare it with something",
            )
        if self.expects == "list" and not isinstance(value, (list, tuple)):
            raise self._error(f"must be a list, gave {type_name(value)}")
        if self.expects == "number" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise self._error(f"must be a number, gave {type_name(value)}")
        if self.expects == "number" and not isfinite(value):
            raise self._error("must be a number, gave one without end")
        if self.expects == "list" and len(value) > MAX_ITEMS:
            raise self._error(f"{len(value)} items are too many (at most {MAX_ITEMS})")
        return list(value) if isinstance(value, tuple) else value

    def _error(self, message: str, hint: str | None = None) -> ExpressionError:
        return ExpressionError(f"`{self.text}`: {message}", where=self.where, hint=hint)


def compile_expression(
    text: str,
    where: object,
    *,
    expects: Expects = "any",
    names: Collection[str] = NAMES,
    inputs: Collection[str] | None = None,
) -> Expression:
    """Check an expression before any data is there.

    Args:
        where: Its place, for errors.
        expects: What `Expression.evaluate` is to insist on.
        names: The names that mean something at this place.
        inputs: The steps that ``inputs`` may name; None leaves that to `Expression.check_inputs`.

    Raises:
        ConfigErrors: Every mistake found: syntax, unknown names, filters, tests, methods, steps.
    """
    tree = _parse(text, where)
    problems = [ConfigError(message, where=where, hint=hint) for message, hint in _mistakes(tree, names)]
    expression = Expression(text, str(where), expects, *_steps_read(tree))
    if inputs is not None:
        problems += expression.check_inputs(inputs)
    if problems:
        raise ConfigErrors(problems)
    try:
        _compiled(text)
    except (
        RecursionError,
        MemoryError,
        SyntaxError,
        ValueError,
        TemplateError,
    ) as error:
        raise ConfigErrors([ConfigError(f"not an expression: {cut(str(error))}", where=where)]) from None
    return expression


def unchecked(text: str, where: str, expects: Expects) -> Expression:
    """An expression that has mistakes: what it reads is known all the same, unless it cannot be parsed."""
    try:
        return Expression(text, where, expects, *_steps_read(_parse(text, "")))
    except ConfigErrors:
        return Expression(text, where, expects)


def _parse(text: str, where: object) -> nodes.Node:
    try:
        if len(text) > MAX_TEXT:
            raise TemplateSyntaxError(f"{len(text)} characters are too many (at most {MAX_TEXT})", 1)
        parser = Parser(ENVIRONMENT, text, state="variable")
        tree = parser.parse_expression()
        if not parser.stream.eos:
            raise TemplateSyntaxError(f"unexpected {parser.stream.current.value!r}", 1)
        return tree
    except TemplateSyntaxError as error:
        message = f"`{cut(text)}` is not an expression: {cut(str(error.message))}"
    except RecursionError:
        message = "the expression is nested too deep"
    raise ConfigErrors([ConfigError(message, where=where, hint="see docs/pipelines.md")])


def _mistakes(tree: nodes.Node, names: Collection[str]) -> Iterator[tuple[str, str | None]]:
    for node in _walk(tree):
        match node:
            case nodes.Name(name=name) if name not in names:
                yield _unknown_name(name, names)
            case nodes.Filter(name=name) if name not in ENVIRONMENT.filters:
                yield (
                    f"unknown filter {name!r}",
                    did_you_mean(name, ENVIRONMENT.filters),
                )
            case nodes.Test(name=name) if name not in TEST_NAMES:
                yield f"unknown test {name!r}", did_you_mean(name, TEST_NAMES)
            case nodes.Call(node=nodes.Getattr(attr=name)) if name in TEXT_METHODS:
                pass
            case nodes.Call():
                yield (
                    "only these can be called: " + ", ".join(sorted(TEXT_METHODS)),
                    "use a filter: `... | length`",
                )


def _unknown_name(name: str, names: Collection[str]) -> tuple[str, str | None]:
    if name == "item" and name not in names:
        return (
            "`item` has a meaning only inside an `each`",
            "the `each` itself and its `when` stand outside",
        )
    if name in ("lap", "laps") and name not in names:
        return (
            f"`{name}` has a meaning only inside a `repeat`",
            "the `when` of the `repeat` itself stands outside",
        )
    return f"unknown name {name!r}", did_you_mean(name, names)


def _steps_read(tree: nodes.Node) -> tuple[frozenset[str], frozenset[str]]:
    """The steps after ``inputs`` and after ``laps``."""
    read: dict[str, set[str]] = {"inputs": set(), "laps": set()}
    for node in _walk(tree):
        match node:
            case nodes.Getattr(node=nodes.Name(name="inputs" | "laps" as of), attr=name):
                read[of].add(name)
            case nodes.Getitem(node=nodes.Name(name="inputs" | "laps" as of), arg=nodes.Const(value=str() as name)):
                read[of].add(name)
    return frozenset(read["inputs"]), frozenset(read["laps"])


_Key = str | int


def _chains(node: nodes.Node) -> Iterator[tuple[Any, ...]]:
    """The longest chains of names and constant keys in an expression: ``("inputs", "review", "score")``."""
    chain = _chain(node)
    if chain is not None:
        yield chain
        return
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):  # a method of a text
        yield from _chains(node.node.node)
        children: Iterator[nodes.Node] = iter(node.args)
    else:
        children = node.iter_child_nodes()
    for child in children:
        yield from _chains(child)


def _chain(node: nodes.Node) -> tuple[Any, ...] | None:
    match node:
        case nodes.Name(name=name) if name in NAMES:
            return (name,)
        case nodes.Getattr(node=inner, attr=name) if (chain := _chain(inner)) is not None:
            return (*chain, name)
        case nodes.Getitem(node=inner, arg=arg) if (chain := _chain(inner)) is not None:
            match arg:
                case nodes.Const(value=str() | int() as key):
                    return (*chain, key)
                case nodes.Neg(node=nodes.Const(value=int() as index)):
                    return (*chain, -index)
    return None


def _chain_text(name: str, keys: Sequence[_Key]) -> str:
    dotted = (f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]" for key in keys)
    return name + "".join(dotted)


def _value_of(value: Any, keys: Sequence[_Key]) -> Any:
    """Raises: LookupError: It is not there."""
    for key in keys:
        value = ENVIRONMENT.getitem(value, key)
        if isinstance(value, Undefined):
            raise LookupError(key)
    return value


def _abridged(value: Any) -> Any:
    shown = json.dumps(value, ensure_ascii=False)
    return value if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 1] + "…"


def _walk(tree: nodes.Node) -> Iterator[nodes.Node]:
    yield tree
    yield from tree.find_all(nodes.Node)


class _BySteps(Mapping[str, Any]):
    """Outputs, or lists of them, by step, where ``_`` also reads ``-``."""

    def __init__(self, outputs: Mapping[str, Any]):
        self._outputs = outputs

    def __getitem__(self, name: str) -> Any:
        if name in self._outputs:
            return self._outputs[name]
        return self._outputs[next((key for key in self._outputs if spelled(key) == name), name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)


def _scope(scope: Mapping[str, Any]) -> dict[str, Any]:
    return {**scope, **{name: _BySteps(scope[name]) for name in ("inputs", "laps") if name in scope}}


def spelled(name: str) -> str:
    """A step's name as expressions may spell it: `-` reads `_`."""
    return name.replace("-", "_")


def _is_data(value: Any) -> bool:
    """Whether a value that an expression may have built of parts is JSON all through."""
    if isinstance(value, (list, tuple)):
        return all(_is_data(element) for element in value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_data(element) for key, element in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


@lru_cache(maxsize=1000)
def _compiled(text: str) -> TemplateExpression:
    compiled: Callable[..., Any] = ENVIRONMENT.compile_expression(text, undefined_to_none=False)
    return cast(TemplateExpression, compiled)
