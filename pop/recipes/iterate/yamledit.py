"""Small changes to a YAML text that leave everything else as a person wrote it: comments, order, quotes, indentation.

A value is replaced where it stands, a new key or item is written behind its neighbours; no other character changes. What
came out is read again and compared with what was meant, so a change that cannot be made so is refused.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pop.errors import ConfigError

Keys: TypeAlias = Sequence[str | int]
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./ -]*[A-Za-z0-9]|[a-z]")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


class CannotEdit(ConfigError):
    """A change has to be made by hand."""

    code = "edit-by-hand"


def set_value(text: str, keys: Keys, value: Any) -> str:
    """The text with the value at `keys` set; mappings on the way there are made where they are missing.

    Raises:
        CannotEdit: The text is no YAML, or the change cannot be made without touching more.
    """
    before, node = _read(text)
    meant = _changed(before, keys, value)
    depth, inner = _walk(node, keys)
    if depth == len(keys):
        changed = _replaced(text, node, keys, inner, value)
    else:
        for key in reversed(keys[depth + 1 :]):
            value = {key: value}
        changed = _added(text, node, keys[:depth], inner, str(keys[depth]), value)
    return _checked(changed, meant, keys)


def append_item(text: str, keys: Keys, item: Any) -> str:
    """The text with one more item at the end of the list at `keys`.

    Raises:
        CannotEdit: There is no list, or the change cannot be made without touching more.
    """
    before, node = _read(text)
    depth, inner = _walk(node, keys)
    if depth < len(keys) or not isinstance(inner, SequenceNode):
        raise CannotEdit(f"no list at {_shown(keys)}")
    meant = copy.deepcopy(before)
    _at(meant, keys).append(item)
    if inner.flow_style:
        changed = _in_flow(text, inner, _flow(item))
    else:
        place = _behind(text, inner)
        changed = _inserted(text, place, _listed(item, inner.start_mark.column))
    return _checked(changed, meant, keys)


def _read(text: str) -> tuple[Any, Node]:
    try:
        value = YAML(typ="safe", pure=True).load(text)
        node = YAML(typ="safe", pure=True).compose(text)
    except (YAMLError, RecursionError) as error:
        raise CannotEdit(f"it is no YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict) or not isinstance(node, MappingNode):
        raise CannotEdit("it is no mapping")
    return value, node


def _at(value: Any, keys: Keys) -> Any:
    for key in keys:
        value = value[key]
    return value


def _changed(before: Any, keys: Keys, value: Any) -> Any:
    after = copy.deepcopy(before)
    inner = after
    for key in keys[:-1]:
        if isinstance(inner, dict) and inner.get(key) is None:
            inner[key] = {}
        try:
            inner = inner[key]
        except (LookupError, TypeError):
            raise CannotEdit(f"nothing at {_shown(keys)}") from None
    if not isinstance(inner, dict | list):
        raise CannotEdit(f"{_shown(keys[:-1])} is no mapping")
    inner[keys[-1]] = value  # type: ignore[index]
    return after


def _walk(node: Node, keys: Keys) -> tuple[int, Node]:
    """How many of the keys lead somewhere, and where."""
    for depth, key in enumerate(keys):
        found = _child(node, key)
        if found is None:
            return depth, node
        node = found
    return len(keys), node


def _child(node: Node, key: str | int) -> Node | None:
    if isinstance(node, MappingNode):
        return next((value for name, value in node.value if name.value == str(key)), None)
    if isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
        inner: Node = node.value[key]
        return inner
    return None


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.start_mark.index == node.end_mark.index


def _replaced(text: str, root: Node, keys: Keys, node: Node, value: Any) -> str:
    """A scalar written anew in its place; a whole list or mapping in the flow style."""
    if _is_null(node):
        parent = _walk(root, keys[:-1])[1]
        column = _column(parent)
        place = _line_end(text, node.end_mark.index)
        if isinstance(value, dict | list):
            return _inserted(text, place, _block(value, column + 2))
        at = node.start_mark.index
        return f"{text[:at]} {_scalar(value)}{text[at:]}"
    start, end = node.start_mark.index, node.end_mark.index
    if not isinstance(node, ScalarNode) or node.style in ("|", ">"):
        raise CannotEdit(f"{_shown(keys)} is more than one value")
    return text[:start] + _flow(value) + text[end:]


def _added(text: str, root: Node, above: Keys, parent: Node, key: str, value: Any) -> str:
    if _is_null(parent):
        return _replaced(text, root, above, parent, {key: value})
    if not isinstance(parent, MappingNode):
        raise CannotEdit(f"{_shown(above)} is no mapping")
    if parent.flow_style:
        return _in_flow(text, parent, f"{_key(key)}: {_flow(value)}")
    return _inserted(text, _behind(text, parent), _pair(key, value, _column(parent)))


def _column(node: Node) -> int:
    """Where the keys of a mapping begin."""
    first: Node = node.value[0][0] if isinstance(node, MappingNode) and node.value else node
    return int(first.start_mark.column)


def _in_flow(text: str, node: Node, entry: str) -> str:
    """Before the closing bracket."""
    end = node.end_mark.index - 1
    head = text[:end].rstrip(" ")
    comma = "" if not node.value or head.rstrip().endswith(",") else ", "
    return head + (comma or (" " if head.rstrip().endswith(",") else "")) + entry + text[end:]


def _behind(text: str, node: Node) -> int:
    """Where a line may be put behind all that belongs to a block."""
    while isinstance(node, MappingNode | SequenceNode) and node.value and not node.flow_style:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    end = node.end_mark.index
    if isinstance(node, ScalarNode) and node.style in ("|", ">"):
        kept = text[:end].rstrip("\r\n \t")
        while (
            "\n" in kept and kept[kept.rfind("\n") + 1 :].lstrip().startswith("#") and len(kept) > node.start_mark.index
        ):
            if _indent(kept[kept.rfind("\n") + 1 :]) > _indent(_line_of(text, node.start_mark.index)):
                break  # it belongs to the text
            kept = kept[: kept.rfind("\n")].rstrip("\r\n \t")
        end = len(kept)
    return _line_end(text, end)


def _line_of(text: str, index: int) -> str:
    return text[text.rfind("\n", 0, index) + 1 : _line_end(text, index)]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _line_end(text: str, index: int) -> int:
    """Behind the line feed of the line in which `index` stands."""
    found = text.find("\n", index)
    return len(text) if found < 0 else found + 1


def _inserted(text: str, place: int, lines: list[str]) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    head = text[:place]
    if head and not head.endswith("\n"):
        head += newline
    return head + "".join(line + newline for line in lines) + text[place:]


def _pair(key: str, value: Any, column: int) -> list[str]:
    lead = f"{' ' * column}{_key(key)}:"
    if isinstance(value, dict | list) and value:
        return [lead, *_block(value, column + 2)]
    return [f"{lead} {_flow(value)}"]


def _block(value: Any, column: int) -> list[str]:
    if isinstance(value, dict):
        return [line for key, inner in value.items() for line in _pair(str(key), inner, column)]
    return [line for item in value for line in _listed(item, column)]


def _listed(item: Any, column: int) -> list[str]:
    if isinstance(item, dict | list):
        raise CannotEdit("an item of a list that is more than one value")
    return [f"{' ' * column}- {_scalar(item)}"]


def _key(key: str) -> str:
    return key if _PLAIN.fullmatch(key) and key.lower() not in _WORDS else json.dumps(key, ensure_ascii=False)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _flow(value: Any) -> str:
    """In one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(str(key))}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(json.dumps(inner, ensure_ascii=False) for inner in value) + "]"
    return _scalar(value)


def _checked(changed: str, meant: Any, keys: Keys) -> str:
    try:
        value = YAML(typ="safe", pure=True).load(changed)
    except (YAMLError, RecursionError):
        value = None
    if value != meant:
        raise CannotEdit(f"{_shown(keys)} cannot be changed without changing more around it")
    return changed


def _shown(keys: Keys) -> str:
    return ".".join(map(str, keys)) or "the whole"
