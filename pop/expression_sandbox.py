"""What expressions are worked out in: a sandbox with few filters and tests, in which nothing large can be built.

A name after a dot is a key of the data, never a Python attribute, but for `TEXT_METHODS` of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

from jinja2 import StrictUndefined, Undefined
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS

from pop.errors import did_you_mean

MAX_BITS = 4096  # of a whole number made by `*` or `**`
TEXT_METHODS = frozenset({"lower", "upper", "strip", "startswith", "endswith"})
FILTER_NAMES = frozenset({
    "abs", "count", "d", "default", "first", "float", "int", "last", "length", "list", "lower", "map", "max", "min",
    "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort", "sum", "trim", "unique", "upper",
})  # fmt: skip
TEST_NAMES = frozenset({
    "boolean", "defined", "divisibleby", "eq", "equalto", "even", "false", "float", "ge", "greaterthan", "gt", "in",
    "integer", "iterable", "le", "lessthan", "lt", "mapping", "ne", "none", "number", "odd", "sequence", "string",
    "true", "undefined", "==", "!=", "<", "<=", ">", ">=",
})  # fmt: skip


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox: dots and brackets reach keys and indexes of data and the methods in `TEXT_METHODS`."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, str) and attribute in TEXT_METHODS:
            return getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        by_index = isinstance(obj, (list, tuple, str)) and isinstance(argument, int)
        if by_index or isinstance(obj, Mapping):
            try:
                return obj[argument]
            except LookupError:
                pass
        return self.undefined(hint=_missing(obj, argument), obj=obj, name=cut(str(argument), 80))

    def is_safe_callable(self, obj: Any) -> bool:
        return isinstance(getattr(obj, "__self__", None), str) and getattr(obj, "__name__", "") in TEXT_METHODS

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
            raise TypeError(f"{operator} is for numbers, not {type_name(left)} and {type_name(right)}")
        if operator == "*" and _bits(left) + _bits(right) > MAX_BITS:
            raise OverflowError("the product is too large")
        if operator == "**" and (abs(right) > 64 or _bits(left) * abs(right) > MAX_BITS):
            raise OverflowError("the power is too large")
        return super().call_binop(context, operator, left, right)


def _bits(number: float) -> int:
    return number.bit_length() if isinstance(number, int) else 64


def _missing(obj: Any, key: Any) -> str:
    if isinstance(obj, Undefined):
        return "a value is missing"
    if obj is None:
        return f"{cut(str(key), 80)!r} is asked of null (the output of a skipped step is null)"
    if isinstance(obj, Mapping):
        keys = [name for _, name in zip(range(200), obj, strict=False) if isinstance(name, str) and len(name) <= 80]
        near = did_you_mean(str(key)[:80], keys)
        return f"no key {cut(str(key), 80)!r}" + (f", {near}" if near else "")
    return f"{type_name(obj)} has no {cut(str(key), 80)!r}"


def _eager(lazy: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter, giving a list at once where it would give a generator, and no missing values in it."""

    @wraps(lazy)
    def eager(*args: Any, **kwargs: Any) -> Any:
        value = lazy(*args, **kwargs)
        if not isinstance(value, Iterator):
            return value
        found = list(value)
        for element in found:
            if isinstance(element, Undefined):
                str(element)
                raise TypeError("an element is missing")
        return found

    return eager


def _batch(value: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Cut a list into lists of `size`, the last one may be shorter."""
    if not isinstance(value, (list, tuple)) or not isinstance(size, int) or size < 1:
        raise TypeError("batch is for a list and a size of at least 1")
    return [value[start : start + size] for start in range(0, len(value), size)]


def _environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, autoescape=False)
    environment.globals.clear()
    environment.filters = {name: _eager(FILTERS[name]) for name in sorted(FILTER_NAMES)} | {"batch": _batch}
    environment.tests = {name: TESTS[name] for name in sorted(TEST_NAMES)}
    return environment


ENVIRONMENT = _environment()


def type_name(value: Any) -> str:
    if isinstance(value, Undefined):
        return "nothing"
    kinds: tuple[tuple[Any, str], ...] = (
        (type(None), "null"), (bool, "true or false"), ((int, float), "a number"), (str, "a text"),
        ((list, tuple), "a list"), (Mapping, "an object"),
    )  # fmt: skip
    return next((name for kind, name in kinds if isinstance(value, kind)), "something else")


def cut(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
