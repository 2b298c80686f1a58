"""Prompt templates: sandboxed Jinja in which an undefined name is an error with its line. Data is never a template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import orjson
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from pop.errors import AttemptFailed, ConfigError, did_you_mean
from pop.places import shown


def _json(value: Any, indent: int = 2) -> str:
    options = orjson.OPT_INDENT_2 if indent else 0
    try:
        return orjson.dumps(value, option=options, default=_plain).decode()
    except TypeError:  # an integer beyond 64 bits
        separators = None if indent else (",", ":")
        return json.dumps(
            value, ensure_ascii=False, indent=2 if indent else None, separators=separators, default=_plain
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


class _MissingKey(UndefinedError):
    """A key was asked of something that has none of that name."""

    def __init__(self, owner: Any, key: Any, message: str) -> None:
        super().__init__(message)
        self.owner = owner
        self.key = str(key)[:80]


class _Undefined(StrictUndefined):
    """Its error knows what was asked for which key."""

    __slots__ = ()

    def __init__(self, hint: Any = None, obj: Any = missing, name: Any = None, exc: Any = UndefinedError) -> None:
        asked = obj is not missing and exc is UndefinedError
        super().__init__(hint, obj, name, cast(Any, partial(_MissingKey, obj, name)) if asked else exc)


class _Environment(ImmutableSandboxedEnvironment):
    """What the run says goes before what Python adds: `seed.items` is the key of that name, where there is one."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Environment(undefined=_Undefined, keep_trailing_newline=False, trim_blocks=True, lstrip_blocks=True)
    environment.filters["json"] = _json
    return environment


ENVIRONMENT = _environment()


class Prompt:
    """A template with its place. `first_line` is the line of the file on which its text begins (front matter above)."""

    def __init__(self, text: str, path: Path, first_line: int = 1) -> None:
        self.text = text
        self.path = path
        self.first_line = first_line
        try:
            self._template = ENVIRONMENT.from_string(text)
        except TemplateSyntaxError as error:
            raise syntax_error(error, path, first_line) from None

    def reads(self, name: str) -> bool:
        """Whether the template itself looks at one of the names it is given."""
        return any(node.name == name for node in ENVIRONMENT.parse(self.text).find_all(nodes.Name))

    def render(self, names: Mapping[str, Any]) -> str:
        """Fill in.

        Raises:
            AttemptFailed: ``bad_input`` when a name or key is missing, with the line and the nearest name.
        """
        try:
            return self._template.render(names).strip()
        except _MissingKey as error:
            line = self._line(error)
            message = f"{_asked(self.text, error.key, line)} has no key {error.key!r}"
            hint = _nearest_key(error.owner, error.key)
            raise AttemptFailed("bad_input", message, where=self._place(line), hint=hint) from None
        except UndefinedError as error:
            message = str(error.message or error)
            raise AttemptFailed("bad_input", message, where=self._where(error), hint=_hint(message, names)) from None
        except (SecurityError, TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise AttemptFailed("bad_input", f"the template fails: {error}", where=self._where(error)) from None

    def _where(self, error: BaseException) -> str:
        return self._place(self._line(error))

    def _place(self, line: int | None) -> str:
        return f"{self.path.name}:{line + self.first_line - 1}" if line else self.path.name

    def _line(self, error: BaseException) -> int | None:
        """The line of the template that was at work."""
        line, trace = None, error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == "<template>":
                line = trace.tb_lineno
            trace = trace.tb_next
        return line


def _asked(text: str, key: str, line: int | None) -> str:
    """What the template calls the thing that lacks `key`: ``seed``, ``item.parts[0]``; on its line if possible."""
    asked = [node for node in ENVIRONMENT.parse(text).find_all((nodes.Getattr, nodes.Getitem)) if key_of(node) == key]
    here = [node for node in asked if node.lineno == line] or asked
    names = {spelled_of(owner_of(node)) for node in here}
    return names.pop() or "an object" if len(names) == 1 else "an object"


def owner_of(node: nodes.Node) -> nodes.Node:
    """What stands before the dot or bracket."""
    return cast(nodes.Node, node.node) if isinstance(node, (nodes.Getattr, nodes.Getitem)) else node


def key_of(node: nodes.Node) -> str | None:
    match node:
        case nodes.Getattr(attr=name):
            return str(name)
        case nodes.Getitem(arg=nodes.Const(value=value)):
            return str(value)
    return None


def spelled_of(node: nodes.Node) -> str | None:
    """A chain of names as it is written; None for anything else."""
    match node:
        case nodes.Name(name=name):
            return str(name)
        case nodes.Getattr(node=inner, attr=name) if spelled_of(inner):
            return f"{spelled_of(inner)}.{name}"
        case nodes.Getitem(node=inner, arg=nodes.Const(value=value)) if spelled_of(inner):
            return f"{spelled_of(inner)}[{value!r}]"
    return None


def _nearest_key(owner: Any, key: str) -> str | None:
    if owner is None:
        return "it is null, as is the output of a skipped step"
    if isinstance(owner, Mapping):
        return did_you_mean(key, [name for name in owner if isinstance(name, str) and len(name) <= 80][:200])
    return None


def _hint(message: str, names: Mapping[str, Any]) -> str | None:
    missing_name = re.search(r"'([^']+)' is undefined", message)
    return did_you_mean(missing_name[1], names) if missing_name else None


def syntax_error(error: TemplateSyntaxError, path: Path, first_line: int) -> ConfigError:
    """A template that cannot be read, with its line."""
    where = f"{shown(path)}:{error.lineno + first_line - 1}"
    return ConfigError(f"template: {error.message}", where=where, code="bad-template")
