"""The head of a prompt file: YAML between ``---`` lines, read with the places of its keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode
from ruamel.yaml.tokens import AliasToken, AnchorToken

from pop.errors import ConfigError, ConfigErrors, did_you_mean
from pop.places import Path, json_path, shown
from pop.templatecheck import Template

MAX_FILE_BYTES = 2_000_000


class FrontMatter(BaseModel):
    """What may stand between the ``---`` lines of a prompt."""

    model_config = ConfigDict(extra="forbid")

    system: str | None = None
    model: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_output_tokens: int | None = Field(default=None, ge=1)
    schema_: dict[str, Any] | str | None = Field(default=None, alias="schema")
    samples: int = Field(default=1, ge=1, le=100)
    choose: Literal["best", "majority"] = "best"


@dataclass
class FrontPlaces:
    """Where the keys and values of a front matter stand; answers as `places.Places` does for JSON."""

    head: str
    file: str

    @cached_property
    def _root(self) -> Any:
        return YAML(typ="safe", pure=True).compose(self.head)

    def of(self, path: Path) -> str:
        """``file:line:column  schema.type`` of the value at `path`; the nearest parent's when it is missing."""
        return self._describe(path, self._nodes(path)[1])

    def of_key(self, path: Path) -> str:
        """The same for the key that leads to it."""
        return self._describe(path, self._nodes(path)[0])

    def value(self, path: Path) -> Any:
        """The YAML node of the value at `path`."""
        return self._nodes(path)[1]

    def _nodes(self, path: Path) -> tuple[Any, Any]:
        key = value = self._root
        for part in path:
            if isinstance(value, MappingNode):
                pair = next(((name, inner) for name, inner in value.value if name.value == part), None)
            elif isinstance(value, SequenceNode) and isinstance(part, int) and part < len(value.value):
                pair = (value.value[part], value.value[part])
            else:
                pair = None
            if pair is None:
                break
            key, value = pair
        return key, value

    def _describe(self, path: Path, node: Any) -> str:
        line, column = (node.start_mark.line + 2, node.start_mark.column + 1) if node else (2, 1)
        return f"{self.file}:{line}:{column}" + (f"  {json_path(path)}" if path else "")


@dataclass(frozen=True)
class PromptFile:
    """A prompt file as read: its front matter, and the body with the line on which it begins."""

    path: FilePath
    body: str
    body_line: int = 1
    front: FrontMatter = field(default_factory=FrontMatter)
    head: str = ""
    problems: tuple[ConfigError, ...] = ()

    @property
    def places(self) -> FrontPlaces:
        return FrontPlaces(self.head, shown(self.path))

    @property
    def template(self) -> Template:
        return Template(self.body, self.path, self.body_line)

    @property
    def system(self) -> Template | None:
        """The system prompt as a template, where its text begins; a folded text keeps only its first line's place."""
        if self.front.system is None:
            return None
        node = self.places.value(("system",))
        line, column = node.start_mark.line + 2, node.start_mark.column
        if node.style in ("|", ">"):
            row = next((row for row in self.head.splitlines()[line - 1 :] if row.strip()), "")
            return Template(self.front.system, self.path, line + 1, len(row) - len(row.lstrip()))
        return Template(self.front.system, self.path, line, column + (1 if node.style else 0))


def read_text(path: FilePath) -> str:
    """A prompt file's text; a byte order mark and CRLF mean nothing.

    Raises:
        ConfigError: It is not UTF-8, or larger than 2 MB.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError("a prompt file of more than 2 MB", where=shown(path), code="bad-task")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}", where=shown(path), code="bad-task") from None


def read_prompt(path: FilePath) -> PromptFile:
    """A prompt file with its front matter.

    Raises:
        ConfigErrors: Every mistake of the front matter, each with line and column.
        ConfigError: The file cannot be read.
    """
    prompt = examine_prompt(path)
    if prompt.problems:
        raise ConfigErrors(prompt.problems)
    return prompt


def examine_prompt(path: FilePath) -> PromptFile:
    """A prompt file with the mistakes of its front matter, and with what is right in it.

    Raises:
        ConfigError: The file cannot be read.
    """
    text = read_text(path)
    if not text.startswith("---\n"):
        return PromptFile(path, text)
    head, separator, body = text[3:].partition("\n---\n")
    line, head = head.count("\n") + 3, head[1:]
    if not separator:
        unclosed = _mistake("the front matter has no closing ---", f"{shown(path)}:1:1")
        return PromptFile(path, text, problems=(unclosed,))
    front, problems = _front_matter(head, shown(path))
    return PromptFile(path, body, line, front, head, tuple(problems))


def _mistake(message: str, where: str, hint: str | None = None) -> ConfigError:
    return ConfigError(message, where=where, hint=hint, code="bad-front-matter")


def _front_matter(head: str, file: str) -> tuple[FrontMatter, list[ConfigError]]:
    try:
        _refuse_aliases(head, file)
        value = YAML(typ="safe", pure=True).load(head)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 2}:{mark.column + 1}" if mark else file
        text = getattr(error, "problem", None) or str(error).splitlines()[0]
        return FrontMatter(), [_mistake(f"front matter: {text}", place)]
    except ConfigError as error:
        return FrontMatter(), [error]
    if not isinstance(value, dict | None):
        return FrontMatter(), [_mistake("front matter must be `key: value` lines", f"{file}:2:1")]
    return _validated(value or {}, FrontPlaces(head, file))


def _validated(value: dict[Any, Any], places: FrontPlaces) -> tuple[FrontMatter, list[ConfigError]]:
    try:
        return FrontMatter.model_validate(value), []
    except ValidationError as error:
        found = {str(entry["loc"][0]): entry for entry in reversed(error.errors())}  # one for each key
    problems = [_explain(key, found[key]["type"], found[key]["msg"], places) for key in _in_order(found, value)]
    rest = {key: inner for key, inner in value.items() if str(key) not in found}
    return FrontMatter.model_validate(rest) if len(rest) < len(value) else FrontMatter(), problems


def _in_order(found: dict[str, Any], value: dict[Any, Any]) -> list[str]:
    order = [str(key) for key in value]
    return sorted(found, key=lambda key: order.index(key) if key in order else 0)


def _explain(key: str, kind: str, message: str, places: FrontPlaces) -> ConfigError:
    if kind != "extra_forbidden":
        return _mistake(f"front matter: {key}: {message.lower()}", places.of((key,)))
    names = [field.alias or name for name, field in FrontMatter.model_fields.items()]
    return _mistake(f"front matter: unknown key {key!r}", places.of_key((key,)), did_you_mean(key, names))


def _refuse_aliases(head: str, file: str) -> None:
    """A few aliases of aliases fill any memory."""
    if "&" not in head and "*" not in head:
        return
    for token in YAML(typ="safe", pure=True).scan(head):
        if isinstance(token, AliasToken | AnchorToken):
            place = f"{file}:{token.start_mark.line + 2}:{token.start_mark.column + 1}"
            raise _mistake("YAML anchors and aliases are not allowed", place)
