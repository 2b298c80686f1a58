"""Prompt templates: sandboxed Jinja in which an undefined name is an error with its line. Data is never a template."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
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


class _Environment(ImmutableSandboxedEnvironment):
    """What the run says goes before what Python adds: `seed.items` is the key of that name, where there is one."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Environment(
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
        try:
            self._template = ENVIRONMENT.from_string(text)
        except TemplateSyntaxError as error:
            raise _syntax_error(error, path, first_line) from None

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
    hints = [did_you_mean(missing[2], map(str, value)) for value in names.values() if isinstance(value, Mapping)]
    return next((hint for hint in hints if hint and hint.startswith("did")), next(filter(None, hints), None))


def _syntax_error(error: TemplateSyntaxError, path: Path, first_line: int) -> ConfigError:
    where = f"{path.name}:{error.lineno + first_line - 1}"
    return ConfigError(f"template: {error.message}", where=where, code="bad-template")


def check_template(text: str, path: Path, first_line: int, names: Iterable[str]) -> list[ConfigError]:
    """Every mistake that can be seen without data: syntax, unknown names, unknown filters."""
    try:
        tree = ENVIRONMENT.parse(text)
        ENVIRONMENT.compile(text)
    except TemplateSyntaxError as error:
        return [_syntax_error(error, path, first_line)]
    known = set(names)
    unknown = sorted(meta.find_undeclared_variables(tree) - known - set(ENVIRONMENT.globals))
    found = [
        ConfigError(
            f"template: unknown name {name!r}",
            where=_place_of(name, text, path, first_line),
            hint=did_you_mean(name, known),
            code="bad-template",
        )
        for name in unknown
    ]
    return found + [_no_other_file(node, path, first_line) for node in tree.find_all(_OTHER_FILES)]


_OTHER_FILES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


def _no_other_file(node: nodes.Node, path: Path, first_line: int) -> ConfigError:
    word = {"FromImport": "from ... import"}.get(type(node).__name__, type(node).__name__.lower())
    where = f"{path.name}:{node.lineno + first_line - 1}"
    return ConfigError(f"template: a prompt is one file; {word} is not available", where=where, code="bad-template")


def check_inputs(text: str, path: Path, first_line: int, steps: Collection[str]) -> list[ConfigError]:
    """Names after ``inputs.`` that are none of `steps`; a text that cannot be parsed has none."""
    try:
        tree = ENVIRONMENT.parse(text)
    except TemplateSyntaxError:
        return []
    known = {step.replace("-", "_") for step in steps}
    methods = {name for name in dir(Mapping) if not name.startswith("_")}
    unknown = {name for name in _input_names(tree) if name.replace("-", "_") not in known | methods}
    return [
        ConfigError(
            f"template: no step {name!r} comes before this one",
            where=_place_of(name, text, path, first_line),
            hint=did_you_mean(name, known),
            code="bad-template",
        )
        for name in sorted(unknown)
    ]


def _input_names(tree: nodes.Template) -> Iterator[str]:
    for attribute in tree.find_all(nodes.Getattr):
        if isinstance(attribute.node, nodes.Name) and attribute.node.name == "inputs":
            yield attribute.attr
    for entry in tree.find_all(nodes.Getitem):
        if isinstance(entry.node, nodes.Name) and entry.node.name == "inputs":
            if isinstance(entry.arg, nodes.Const) and isinstance(entry.arg.value, str):
                yield entry.arg.value


def _place_of(name: str, text: str, path: Path, first_line: int) -> str:
    """File, line and column of a name inside the template's brackets; prose before it may hold the same word."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    found = (word.search(text, *span.span()) for span in re.finditer(r"\{[{%].*?[%}]\}", text, re.DOTALL))
    match = next(filter(None, found), None)
    at = match.start() if match else 0
    return f"{path.name}:{text.count(chr(10), 0, at) + first_line}:{at - text.rfind(chr(10), 0, at)}"
