"""JSON Schemas of outputs and seeds: read strictly, and every mistake found with its place.

A keyword that no draft knows is allowed, as JSON Schema has it; one that is nearly a known keyword is a mistake of
``pop check``, because a validator would pass over it without a word.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from pop.errors import ConfigError, ConfigErrors, did_you_mean
from pop.parsing import lost_reference
from pop.places import Path, Places, find_places, shown
from pop.records import BadJson, dump_json, read_json

if TYPE_CHECKING:
    from pop.frontmatter import FrontPlaces

_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})
_LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_SINGLE = frozenset({
    "items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties", "contentSchema",
})  # fmt: skip
_KEYWORDS = _NAMED | _LISTED | _SINGLE | {
    "$schema", "$id", "$ref", "$anchor", "$comment", "$vocabulary", "$dynamicRef", "$dynamicAnchor", "$recursiveRef",
    "$recursiveAnchor", "type", "enum", "const", "multipleOf", "maximum", "minimum", "exclusiveMaximum",
    "exclusiveMinimum", "maxLength", "minLength", "pattern", "format", "maxItems", "minItems", "uniqueItems",
    "maxContains", "minContains", "maxProperties", "minProperties", "required", "dependentRequired", "title",
    "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType",
}  # fmt: skip
_FOREIGN = frozenset({"id", "example", "nullable", "optional", "order", "note", "when", "comment"})


def read_schema(path: FilePath) -> tuple[Any, Places]:
    """A schema file and the places in it.

    Raises:
        ConfigError: It is not JSON.
    """
    data = path.read_bytes()
    try:
        value = read_json(data, where=shown(path))
    except BadJson as error:
        raise ConfigError(error.message, where=error.where, hint=error.hint, code="bad-schema") from None
    return value, find_places(data.decode(), shown(path))


def checked(schema: Any, places: Places | FrontPlaces, under: Path = ()) -> dict[str, Any]:
    """The schema itself.

    Args:
        under: Where it stands in the document that `places` knows.

    Raises:
        ConfigErrors: Every way in which it is no JSON Schema.
    """
    mistakes = schema_mistakes(schema, places, under)
    if mistakes:
        raise ConfigErrors(mistakes)
    return dict(schema)


def schema_mistakes(schema: Any, places: Places | FrontPlaces, under: Path = ()) -> list[ConfigError]:
    """Every way in which it is no JSON Schema."""
    if not isinstance(schema, dict):
        return [_mistake("a JSON Schema must be an object here", places.of(under))]
    if not isinstance(schema.get("$schema", ""), str):
        return [_mistake('"$schema" must be a text', places.of((*under, "$schema")), "leave it out for draft 2020-12")]
    if _is_sound(dump_json(schema, pretty=False)):
        return []
    from jsonschema.exceptions import best_match

    found = [_explain(best_match([error]) or error, places, under) for error in _meta_errors(schema)]
    if found:
        return list({str(problem): problem for problem in found}.values())
    lost = lost_reference(schema)
    if lost is None:
        return []
    path = _path_of_reference(schema, lost) or ("$ref",)
    place = places.of((*under, *path))
    hint = "keep what it names under $defs in the same file"
    return [_mistake(f'"{path[-1]}": {lost[:200]!r} leads nowhere', place, hint)]


@lru_cache(maxsize=64)
def _is_sound(text: bytes) -> bool:
    """Whether a schema has no mistakes: asked for every run that is opened, and slow."""
    schema = json.loads(text)
    return not any(_meta_errors(schema)) and lost_reference(schema) is None


def _meta_errors(schema: dict[str, Any]) -> Iterator[Any]:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    cls = validator_for(schema, default=Draft202012Validator)
    of_schemas = validator_for(cls.META_SCHEMA, default=cls)
    yield from of_schemas(cls.META_SCHEMA, format_checker=of_schemas.FORMAT_CHECKER).iter_errors(schema)


def _mistake(message: str, where: str, hint: str | None = None) -> ConfigError:
    return ConfigError(message, where=where, hint=hint, code="bad-schema")


def _explain(error: Any, places: Places | FrontPlaces, under: Path) -> ConfigError:
    hint = None
    closed = (one for one in (error, *(error.context or ())) if one.validator == "enum")
    one = next((one for one in closed if isinstance(one.instance, str) and one.instance == error.instance), None)
    if one is not None:
        error, hint = one, did_you_mean(one.instance[:80], [str(value) for value in one.validator_value])
    place = places.of((*under, *error.absolute_path))
    return _mistake(f"not a JSON Schema: {error.message[:300]}", place, hint)


def _path_of_reference(part: Any, reference: str) -> Path | None:
    for word in ("$ref", "$dynamicRef") if isinstance(part, dict) else ():
        if part.get(word) == reference:
            return (word,)
    entries = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in entries:
        below = _path_of_reference(value, reference)
        if below is not None:
            return (key, *below)
    return None


def keyword_mistakes(schema: Any, places: Places | FrontPlaces, under: Path = ()) -> list[ConfigError]:
    """Keywords that are nearly one of JSON Schema's."""
    found = []
    for path in _keywords(schema, under):
        near = _near_keyword(str(path[-1]))
        if near:
            hint = f"did you mean {near!r}?"
            found.append(_mistake(f"unknown keyword {path[-1]!r}", places.of_key(path), hint))
    return found


def _keywords(schema: Any, path: Path) -> Iterator[Path]:
    """The path of every keyword of a schema and of those in it; names of properties are none."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        here = (*path, key)
        yield here
        if key in _NAMED and isinstance(value, dict):
            for name, inner in value.items():
                yield from _keywords(inner, (*here, name))
        elif key in _LISTED and isinstance(value, list):
            for number, inner in enumerate(value):
                yield from _keywords(inner, (*here, number))
        elif key in _SINGLE:
            yield from _keywords(value, here)


def _near_keyword(word: str) -> str | None:
    if word in _KEYWORDS or word in _FOREIGN or word.startswith("x-") or len(word) > 80:
        return None
    near = difflib.get_close_matches(word, [known for known in _KEYWORDS if len(known) > 3], n=1, cutoff=0.75)
    if not near:
        return None
    swapped = sorted(word) == sorted(near[0])
    return near[0] if swapped or difflib.SequenceMatcher(None, word, near[0]).ratio() >= 0.8 else None
