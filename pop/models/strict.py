"""A JSON Schema reduced to the strict subset that servers enforce, and the way back.

The subset: the root is an object; every object is closed and all its properties are required, so that what may be left
out may be null instead; choices are ``anyOf``; references are local. What the subset cannot say goes into the
description, for the model to read; the whole schema is checked when the answer is there.

| in the schema                          | in the reduced one                                 |
|----------------------------------------|----------------------------------------------------|
| a property that is not required        | required, and null is allowed                      |
| oneOf                                  | anyOf                                              |
| allOf                                  | merged where it is plain                           |
| any local ``$ref``                     | ``#/$defs/...``                                    |
| minLength, uniqueItems, not, if, ...   | words in the description                           |
| a free-form object or list, a tuple    | cannot be said: None                               |

Source: OpenAI, "Structured model outputs", supported schemas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import orjson

MAX_PROPERTIES = 5000
MAX_DEPTH = 10  # objects and lists within each other
MAX_ENUM_VALUES = 1000
MAX_NAMES_CHARS = 120_000  # of all property names, definitions, enum and const values
MAX_LONG_ENUM_CHARS = 15_000  # of one enum with more than 250 values
MAX_TOLD_CHARS = 600

_KEPT = {
    "string": ("pattern", "format"),
    "number": ("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "integer": ("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "array": ("minItems", "maxItems"),
}
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_STRUCTURE = frozenset(
    {"type", "properties", "required", "additionalProperties", "items", "anyOf", "oneOf", "allOf", "enum", "const"}
    | {"$ref", "$defs", "definitions", "description"}
)
_SILENT = frozenset({"title", "$schema", "$id", "$comment", "readOnly", "writeOnly", "deprecated", "discriminator"})
_NAMED = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_FANCY = re.compile(r"\(\?|\\[1-9bBAZpP]")  # what a pattern of a server's grammar does not know


@dataclass(frozen=True)
class StrictSchema:
    """What goes over the wire. `dropped`: the keywords that only words tell of now."""

    schema: dict[str, Any]
    dropped: tuple[str, ...]


class _Inexpressible(Exception):
    """The strict subset cannot say it."""


def strict_schema(schema: dict[str, Any]) -> StrictSchema | None:
    """The reduced schema; None when the subset cannot say it.

    Whatever obeys `schema` obeys the reduced one, once its objects have null for each property they leave out and
    nothing that the schema does not name.
    """
    try:
        return _reduced(orjson.dumps(schema))
    except (orjson.JSONEncodeError, RecursionError):
        return None


@lru_cache(maxsize=256)
def _reduced(text: bytes) -> StrictSchema | None:
    try:
        return _Reduction(orjson.loads(text)).whole()
    except (_Inexpressible, RecursionError):
        return None


class _Reduction:
    """One schema under work: its definitions by the pointer they stand at, and what was dropped."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._names: dict[str, str] = {}
        self._waiting: list[str] = []
        self._dropped: dict[str, None] = {}

    def whole(self) -> StrictSchema:
        root = self.plain(self._root)
        if root.get("type") not in ("object", ["object"]) and "properties" not in root:
            raise _Inexpressible("the root is no object")
        reduced = self.part(root)
        if reduced.get("type") != "object":
            raise _Inexpressible("the root is no object")
        definitions: dict[str, Any] = {}
        while self._waiting:
            pointer = self._waiting.pop()
            definitions[self._names[pointer]] = self.part(self.at(pointer))
        if definitions:
            reduced["$defs"] = definitions
        _check_sizes(reduced)
        return StrictSchema(reduced, tuple(self._dropped))

    def plain(self, part: Any, seen: tuple[str, ...] = ()) -> dict[str, Any]:
        """A schema without ``$ref`` and ``allOf`` at its top."""
        if not isinstance(part, dict):
            raise _Inexpressible("anything goes")
        if "$ref" in part:
            pointer = part["$ref"]
            if pointer in seen:
                raise _Inexpressible("it refers to itself and to nothing else")
            others = {key: value for key, value in part.items() if key != "$ref"}
            return self.merged([others, self.plain(self.at(pointer), (*seen, pointer))])
        if "allOf" in part:
            others = {key: value for key, value in part.items() if key != "allOf"}
            if not isinstance(part["allOf"], list):
                raise _Inexpressible("no allOf")
            return self.merged([others, *(self.plain(one, seen) for one in part["allOf"])])
        return part

    def merged(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """One schema that allows at least what all of them allow together."""
        whole: dict[str, Any] = {}
        for part in parts:
            for key, value in part.items():
                if key not in whole:
                    whole[key] = value
                elif key == "properties":
                    if any(whole[key].get(name, inner) != inner for name, inner in value.items()):
                        raise _Inexpressible("allOf says two things of one property")
                    whole[key] = {**whole[key], **value}
                elif key == "required":
                    whole[key] = [*whole[key], *(name for name in value if name not in whole[key])]
                elif key == "type" and value != whole[key]:
                    if {str(value), str(whole[key])} != {"integer", "number"}:
                        raise _Inexpressible("allOf names two types")
                    whole[key] = "integer"
                elif key not in ("description", "$defs", "definitions") and value != whole[key]:
                    self._dropped[key] = None  # the first one stands, which allows more
        return whole

    def at(self, pointer: Any) -> Any:
        """What a local reference points to."""
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise _Inexpressible("a reference that leads elsewhere")
        found: Any = self._root
        for step in pointer.split("/")[1:]:
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            else:
                raise _Inexpressible("a reference that leads nowhere")
        return found

    def part(self, part: Any) -> dict[str, Any]:
        """One schema, reduced."""
        if not isinstance(part, dict):
            raise _Inexpressible("anything goes")
        if "$ref" in part and not set(part) - _SILENT - {"$ref", "description", "default", "$defs", "definitions"}:
            return {"$ref": self.reference(part["$ref"])}
        if "$ref" in part or "allOf" in part:
            part = self.plain(part)
        if "$dynamicRef" in part or "$recursiveRef" in part:
            raise _Inexpressible("a dynamic reference")
        kinds = _kinds(part)
        if not kinds:
            return self.choice(part)
        told = {key: part[key] for key in part if key in ("anyOf", "oneOf")}
        if len(kinds) == 1 or not {"object", "array"} & set(kinds):
            return self.described(self.of_kinds(part, kinds), part, told)
        several = [self.of_kinds(part, [kind]) for kind in kinds]
        return self.described({"anyOf": several}, part, told)

    def reference(self, pointer: Any) -> str:
        self.at(pointer)
        if pointer not in self._names:
            name = re.sub(r"[^a-zA-Z0-9_]", "_", pointer.rpartition("/")[2].strip("#"))[:40] or "root"
            taken = set(self._names.values())
            self._names[pointer] = name if name not in taken else f"{name}_{len(taken)}"
            self._waiting.append(pointer)
        return f"#/$defs/{self._names[pointer]}"

    def choice(self, part: dict[str, Any]) -> dict[str, Any]:
        branches = part.get("anyOf") or part.get("oneOf")
        if not isinstance(branches, list) or not branches:
            raise _Inexpressible("anything goes")
        told = {"oneOf": part["oneOf"]} if "anyOf" in part and "oneOf" in part else {}
        reduced = [self.part(branch) for branch in branches if branch is not False]
        if not reduced:
            raise _Inexpressible("nothing goes")
        return self.described({"anyOf": reduced}, part, told)

    def of_kinds(self, part: dict[str, Any], kinds: list[str]) -> dict[str, Any]:
        """For one type, or several plain ones."""
        reduced: dict[str, Any] = {"type": kinds[0] if len(kinds) == 1 else kinds}
        if "object" in kinds:
            return {**reduced, **self.object(part)}
        if "array" in kinds:
            if "prefixItems" in part or "items" not in part:
                raise _Inexpressible("a free-form list")
            reduced["items"] = self.part(part["items"])
        if "const" in part:
            reduced["const"] = part["const"]
        elif "enum" in part:
            reduced["enum"] = [value for value in part["enum"] if set(_kinds_of(value)) & set(kinds)]
            if not reduced["enum"]:
                raise _Inexpressible("nothing goes")
        for key in dict.fromkeys(key for kind in kinds for key in _KEPT.get(kind, ())):
            if key in part and _is_kept(key, part[key]):
                reduced[key] = part[key]
        return reduced

    def object(self, part: dict[str, Any]) -> dict[str, Any]:
        properties = part.get("properties", {})
        extra = part.get("additionalProperties")
        if extra not in (None, False) or "patternProperties" in part or (not properties and extra is None):
            raise _Inexpressible("a free-form object")
        required = part.get("required", [])
        if not isinstance(properties, dict) or not set(required) <= set(properties):
            raise _Inexpressible("it requires what it does not describe")
        named = {name: inner for name, inner in properties.items() if inner is not False or name in required}
        reduced = {
            name: self.part(inner) if name in required else _nullable(self.part(inner)) for name, inner in named.items()
        }
        return {"properties": reduced, "required": list(reduced), "additionalProperties": False}

    def described(self, reduced: dict[str, Any], part: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
        """With the description, and in it what the subset has no keyword for."""
        for key, value in part.items():
            if key not in _STRUCTURE and key not in _SILENT and key not in reduced:
                told[key] = value
        self._dropped.update(dict.fromkeys(told))
        words = part.get("description") if isinstance(part.get("description"), str) else ""
        if told:
            words = f"{words} (JSON Schema: {orjson.dumps(told).decode()[:MAX_TOLD_CHARS]})".strip()
        return {**reduced, "description": words} if words else reduced


def _is_kept(key: str, value: Any) -> bool:
    if key == "format":
        return value in _FORMATS
    return key != "pattern" or (isinstance(value, str) and not _FANCY.search(value))


def _kinds(part: dict[str, Any]) -> list[str]:
    """The types a schema names, or shows by its other keywords; none for a choice."""
    named = part.get("type")
    kinds = [named] if isinstance(named, str) else list(named) if isinstance(named, list) else []
    if not kinds and "const" in part:
        kinds = _kinds_of(part["const"])[:1]
    elif not kinds and isinstance(part.get("enum"), list):
        kinds = list(dict.fromkeys(kind for value in part["enum"] for kind in _kinds_of(value)[:1]))
    elif not kinds and "properties" in part:
        kinds = ["object"]
    elif not kinds and "items" in part:
        kinds = ["array"]
    if not set(kinds) <= _NAMED:
        raise _Inexpressible("no such type")
    if ("const" in part or "enum" in part) and {"object", "array"} & set(kinds):
        raise _Inexpressible("an object or list among the values")
    return kinds


def _kinds_of(value: Any) -> list[str]:
    """The types a value has, the narrowest first."""
    match value:
        case None:
            return ["null"]
        case bool():
            return ["boolean"]
        case int():
            return ["integer", "number"]
        case float():
            return ["number", "integer"] if value.is_integer() else ["number"]
        case str():
            return ["string"]
        case dict():
            return ["object"]
    return ["array"]


def _nullable(part: dict[str, Any]) -> dict[str, Any]:
    """The same schema, or null."""
    kinds = part.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "anyOf" in part:
        if any(_is_null(branch) for branch in part["anyOf"]):
            return part
        return {**part, "anyOf": [*part["anyOf"], {"type": "null"}]}
    if kinds and not {"object", "array"} & set(kinds) and "const" not in part:
        values = {"enum": [*part["enum"], *([] if None in part["enum"] else [None])]} if "enum" in part else {}
        return {**part, "type": [*kinds, *([] if "null" in kinds else ["null"])], **values}
    if part.get("type") == "null":
        return part
    words = {"description": part["description"]} if "description" in part else {}
    return {"anyOf": [part, {"type": "null"}], **words}


def _is_null(part: dict[str, Any]) -> bool:
    return part.get("type") == "null"


def _check_sizes(reduced: dict[str, Any]) -> None:
    """What servers refuse for its size.

    Raises:
        _Inexpressible: It is too large.
    """
    properties = values = chars = 0
    for part, depth in _parts(reduced, 0):
        inner = part.get("properties", {})
        enum = [value for value in part.get("enum", []) if isinstance(value, str)]
        properties += len(inner)
        values += len(part.get("enum", []))
        chars += sum(map(len, [*inner, *part.get("$defs", {}), *enum, str(part.get("const", ""))]))
        if depth > MAX_DEPTH or (len(enum) > 250 and sum(map(len, enum)) > MAX_LONG_ENUM_CHARS):
            raise _Inexpressible("too deep, or an enum too long")
    if properties > MAX_PROPERTIES or values > MAX_ENUM_VALUES or chars > MAX_NAMES_CHARS:
        raise _Inexpressible("too large")


def _parts(part: dict[str, Any], depth: int) -> Iterator[tuple[dict[str, Any], int]]:
    yield part, depth
    for inner in part.get("properties", {}).values():
        yield from _parts(inner, depth + 1)
    if "items" in part:
        yield from _parts(part["items"], depth + 1)
    for inner in part.get("anyOf", []):
        yield from _parts(inner, depth)
    for inner in part.get("$defs", {}).values():
        yield from _parts(inner, 1)


# -- the way back ----------------------------------------------------------------------------------------------


def without_nulls(value: Any, schema: dict[str, Any]) -> Any:
    """`value` without the nulls that stand for "left out": of properties that `schema` neither requires nor lets be null.

    Args:
        schema: The whole schema, not the reduced one.
    """
    from referencing.exceptions import Unresolvable

    try:
        return _Return(schema).value(value, schema, 0)
    except (_Inexpressible, RecursionError, Unresolvable, re.error):
        return value


class _Return:
    def __init__(self, root: dict[str, Any]) -> None:
        from jsonschema import Draft202012Validator  # in workers, which check the answer; the gateway goes without it
        from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]  # nothing is fetched

        self._reduction = _Reduction(root)
        self._validator = Draft202012Validator(root, registry=REGISTRY)

    def fits(self, value: Any, part: Any) -> bool:
        return bool(self._validator.evolve(schema=part).is_valid(value))

    def value(self, value: Any, part: Any, level: int) -> Any:
        if not isinstance(value, (dict, list)) or not isinstance(part, dict):
            return value
        if level > 200:
            raise _Inexpressible("a reference that leads to itself")
        if "$ref" in part:
            value = self.value(value, self._reduction.at(part["$ref"]), level + 1)
        for inner in part.get("allOf", []):
            value = self.value(value, inner, level + 1)
        branches = [*part.get("anyOf", []), *part.get("oneOf", [])]
        cleaned = (self.value(value, branch, level + 1) for branch in branches)
        value = next((one for one, branch in zip(cleaned, branches, strict=True) if self.fits(one, branch)), value)
        if isinstance(value, list) and isinstance(part.get("items"), dict):
            return [self.value(item, part["items"], level + 1) for item in value]
        if isinstance(value, dict) and isinstance(part.get("properties"), dict):
            return self.object(value, part, level)
        return value

    def object(self, value: dict[str, Any], part: dict[str, Any], level: int) -> dict[str, Any]:
        properties, required = part["properties"], part.get("required", [])
        kept = {}
        for name, inner in value.items():
            if inner is None and name in properties and name not in required and not self.fits(None, properties[name]):
                continue
            kept[name] = self.value(inner, properties[name], level + 1) if name in properties else inner
        return kept
