"""Prompt templates: sandboxed Jinja in which an undefined name is an error with its line. Data is never a template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pop.errors import AttemptFailed, ConfigError, did_you_mean

NAMES = ("seed", "inputs", "item", "lap", "config", "material", "run_id", "step", "attempt", "problems_before")
REFINE_NAMES = (*NAMES, "output", "problems", "critique", "answer", "prompt")


def _json(value: Any, indent: int = 2) -> str:
    options = orjson.OPT_INDENT_2 if indent else 0
    return orjson.dumps(value, option=options, default=_plain).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=False, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["json"] = _json
    return environment


ENVIRONMENT = _environment()


class Prompt:
    """A template with its place. `first_line` is the line of the file on which its text begins (front matter above)."""

    def __init__(self, text: str, path: Path, first_line: int = 1) -> None:
        self.text = text
        self.path = path
        self.first_line = first_line
        self._template = ENVIRONMENT.from_string(text)

    def render(self, names: Mapping[str, Any]) -> str:
        """Fill in.

        Raises:
            AttemptFailed: ``bad_input`` when a name or key is missing, with the line and the nearest name.
        """
        try:
            return self._template.render(names).strip()
        except UndefinedError as error:
            message = str(error.message or error)
            raise AttemptFailed("bad_input", message, where=self._where(error), hint=_hint(message, names)) from None
        except (SecurityError, TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise AttemptFailed("bad_input", f"the template fails: {error}", where=self._where(error)) from None

    def _where(self, error: BaseException) -> str:
        line, trace = None, error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == "<template>":
                line = trace.tb_lineno
            trace = trace.tb_next
        return f"{self.path.name}:{line + self.first_line - 1}" if line else self.path.name


def _hint(message: str, names: Mapping[str, Any]) -> str | None:
    missing = re.search(r"'([^']+)' is undefined|no attribute '([^']+)'", message)
    if not missing:
        return None
    if missing[1]:
        return did_you_mean(missing[1], names)
    for value in names.values():
        if isinstance(value, Mapping) and (hint := did_you_mean(missing[2], [str(key) for key in value])):
            return hint
    return None


def check_template(text: str, path: Path, first_line: int, names: Iterable[str]) -> list[ConfigError]:
    """Every mistake that can be seen without data: syntax, unknown names, unknown filters."""
    try:
        tree = ENVIRONMENT.parse(text)
        ENVIRONMENT.compile(text)
    except TemplateSyntaxError as error:
        where = f"{path.name}:{error.lineno + first_line - 1}"
        return [ConfigError(f"template: {error.message}", where=where, code="bad-template")]
    known = set(names)
    return [
        ConfigError(
            f"template: unknown name {name!r}",
            where=f"{path.name}:{_line_of(name, text) + first_line - 1}",
            hint=did_you_mean(name, known),
            code="bad-template",
        )
        for name in sorted(meta.find_undeclared_variables(tree) - known - {"range", "dict", "lipsum", "cycler"})
    ]


def _line_of(name: str, text: str) -> int:
    pattern = re.compile(rf"\b{re.escape(name)}\b")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)), 1)
