"""YAML that people write, read with the places of its keys and values, so that an error can point at line and column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.tokens import AliasToken, AnchorToken

from pop.errors import ConfigError, did_you_mean

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlPlaces:
    """Where everything of a YAML text stands. `code`: of the errors it makes."""

    file: str
    node: Node | None = field(repr=False)
    code: str

    def of(self, keys: Keys) -> str:
        """``project.yaml:3:7  describe.protocols/x`` of the value; the nearest parent's when it is missing."""
        return self._place(keys, of_key=False)

    def of_key(self, keys: Keys) -> str:
        """The same for the key that leads to it."""
        return self._place(keys, of_key=True)

    def mistake(self, message: str, keys: Keys, hint: str | None = None, *, key: bool = False) -> ConfigError:
        """An error at the place of a value, or of its key."""
        return ConfigError(message, where=self._place(keys, of_key=key), hint=hint, code=self.code)

    def explain(self, entry: Mapping[str, Any], known: Iterable[str]) -> ConfigError:
        """One of pydantic's errors, at its place. `known`: the keys that may stand there."""
        keys = tuple(key for key in entry["loc"] if key != "[key]")
        if entry["type"] == "extra_forbidden":
            name = str(keys[-1])[:80]
            return self.mistake(f"unknown key {name!r}", keys, did_you_mean(name, known), key=True)
        if entry["type"] == "missing":
            return self.mistake(f"`{keys[-1]}` is missing", keys)
        hint = "put it between quotes" if entry["type"] == "string_type" else None
        message = str(entry["msg"]).replace("Input should be", "must be").removeprefix("Value error, ")
        return self.mistake(message[:1].lower() + message[1:], keys, hint, key="[key]" in entry["loc"])

    def order(self, keys: Keys) -> tuple[int, int]:
        """By which errors are sorted into reading order."""
        at = self._node(keys, of_key=True)
        return (at.start_mark.line, at.start_mark.column) if at is not None else (0, 0)

    def _place(self, keys: Keys, *, of_key: bool) -> str:
        at = self._node(keys, of_key=of_key)
        place = _at(at.start_mark, self.file) if at is not None else f"{self.file}:1:1"
        return f"{place}  {_dotted(keys)}" if keys else place

    def _node(self, keys: Keys, *, of_key: bool) -> Node | None:
        at = node = self.node
        for key in keys:
            pair = _inner(node, key)
            if pair is None:
                break
            at, node = (pair[0] if of_key else pair[1]), pair[1]
        return at


def read_yaml(text: str, file: str, code: str, *, example: str) -> tuple[dict[str, Any], YamlPlaces]:
    """The mapping that a YAML text holds, and where everything in it stands; an empty text holds an empty one.

    Args:
        file: What the places call it.
        code: Of the errors.
        example: A line as it should be, for the hint where it is no mapping.

    Raises:
        ConfigError: It cannot be read, is no mapping, or uses anchors: a few aliases of aliases fill any memory.
    """
    try:
        _refuse_aliases(text, file, code)
        yaml = YAML(typ="safe", pure=True)
        node: Node | None = yaml.compose(text)
        value = yaml.constructor.construct_document(node) if node is not None else None
    except (YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(said, where=_at(mark, file) if mark else file, code=code) from None
    if value is not None and not isinstance(value, dict):
        raise ConfigError("must be `key: value` lines", where=f"{file}:1:1", hint=example, code=code)
    return value or {}, YamlPlaces(file, node, code)


def _refuse_aliases(text: str, file: str, code: str) -> None:
    if "&" not in text and "*" not in text:
        return
    for token in YAML(typ="safe", pure=True).scan(text):
        if isinstance(token, AliasToken | AnchorToken):
            hint = 'put a glob between quotes: "*.md"' if isinstance(token, AliasToken) else None
            where = _at(token.start_mark, file)
            raise ConfigError("YAML anchors and aliases are not allowed", where=where, hint=hint, code=code)


def _at(mark: Any, file: str) -> str:
    return f"{file}:{mark.line + 1}:{mark.column + 1}"


def _inner(node: Node | None, key: str | int) -> tuple[Node, Node] | None:
    """The nodes of a key and of its value."""
    if isinstance(node, MappingNode):
        return next(((name, inner) for name, inner in node.value if name.value == str(key)), None)
    if isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key]
    return None


def _dotted(keys: Keys) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")[:200]
