"""From a model's text to a value: strict first, then fenced or surrounded by prose, then repaired, and it says which.

| found by   | meaning                                              |
|------------|------------------------------------------------------|
| strict     | the whole text is the JSON                           |
| fenced     | it stood in a ``` block                              |
| embedded   | the first object or list within prose                |
| repaired   | a repair library closed or mended it: look twice     |

Integers stay exact on every rung. An object in which a key stands twice is no answer on any rung: which of the two is
meant, the model is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from json_repair import repair_json
from pydantic import BaseModel, ValidationError

from pop.records import BadJson, dump_json, read_json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
MAX_PROBLEMS = 20
_OPENING = re.compile(r"[{\[]")
MAX_REPAIR = 300_000  # characters handed to the repair library
MAX_UNCLOSED = 100  # its time grows with the square of the brackets left open
MAX_CANDIDATES = 20  # values looked at in one answer
MAX_STARTS = 200  # brackets tried: a hostile answer may be nothing but brackets
_TWICE = "stands twice"
_KEYS_AND_BRACKETS = re.compile(  # each alternative ends what it began, so that the walk is linear
    r"""("(?:[^"\\]|\\.?)*+(?:"|\Z)|'(?:[^'\\]|\\.?)*+(?:'|\Z))\s*+(:)?|(?<!\w)([A-Za-z_]\w*+)\s*+:|[{}\[\]]""",
    re.DOTALL,
)


Schema = Mapping[str, Any] | type[BaseModel]


class Unparsable(Exception):
    """No JSON value can be made of the text; the message says why, for the model to read."""


@dataclass(frozen=True)
class Parsed:
    """A value and how it was found (see the module's table)."""

    value: Any
    found_by: str


def parse_json(text: str, schema: dict[str, Any] | None = None) -> Parsed:
    """The JSON value that a model meant: of several, the first that fits the schema, else the one nearest to it.

    Raises:
        Unparsable: There is none, or a key stands twice in it.
    """
    try:
        return Parsed(read_json(text.strip()), "strict")
    except BadJson as error:
        first_error = error
    doubled: list[str] = []
    best, best_misfit = None, 3
    for found in _candidates(text, doubled):
        misfit = _misfit(found.value, schema)
        if misfit == 0:
            return found
        if misfit < best_misfit:
            best, best_misfit = found, misfit
    if doubled:
        raise Unparsable(doubled[0])
    if best is None:
        raise Unparsable(f"the answer is not JSON: {first_error.message}")
    return best


def _misfit(value: Any, schema: dict[str, Any] | None) -> int:
    """0: it fits; 1: at least its type does; 2: not even that."""
    if schema is None or not schema_problems(value, schema):
        return 0
    return 2 if schema_problems(value, {"type": schema["type"]} if "type" in schema else {}) else 1


def _candidates(text: str, doubled: list[str]) -> Iterator[Parsed]:
    """Every value that may be meant, the likeliest first; what is wrong with those that name a key twice is added.

    A text that is broken from its first bracket on is repaired before a piece is taken out of its inside.
    """
    bodies = [body.strip() for body in _FENCE.findall(text)[:MAX_CANDIDATES]]
    for body in bodies:
        with suppress(BadJson):
            yield Parsed(read_json(body), "fenced")
    whole = next((body for body in [*bodies, text.strip()] if body.startswith(("{", "["))), None)
    embedded = _embedded(text, doubled)
    if doubled and not embedded:
        return  # mending it would choose between the two
    broken = whole is not None and (not embedded or embedded[0].start > text.find(whole))
    if broken:
        yield from _repaired(whole or "", doubled)
    for piece in sorted(embedded, key=lambda piece: piece.start - piece.end):
        yield Parsed(piece.value, "embedded")
    if not broken:
        yield from _repaired(text, doubled)


@dataclass(frozen=True)
class _Piece:
    value: Any
    start: int
    end: int


def _embedded(text: str, doubled: list[str]) -> list[_Piece]:
    """The objects and lists that stand whole in the text and read strictly, in order; tries are bounded."""
    decoder, found, at = json.JSONDecoder(), list[_Piece](), 0
    for _ in range(MAX_STARTS):
        match = _OPENING.search(text, at)
        if match is None or len(found) == MAX_CANDIDATES:
            break
        at, end = match.start() + 1, match.start() + 1
        try:
            _, end = decoder.raw_decode(text, match.start())
            found.append(_Piece(read_json(text[match.start() : end]), match.start(), end))
            at = end
        except BadJson as error:
            if _TWICE in error.message:  # its parts are not the answer either
                doubled.append(error.message)
                at = end
        except (ValueError, RecursionError):
            continue
    return found


def _repaired(text: str, doubled: list[str]) -> Iterator[Parsed]:
    match = _OPENING.search(text)
    part = text[match.start() :] if match else ""
    unclosed = sum(map(part.count, "{[")) - sum(map(part.count, "}]"))
    if not part or len(part) > MAX_REPAIR or unclosed > MAX_UNCLOSED:
        return
    if twice := _key_twice(part):
        doubled.append(f"the key {twice[:80]!r} {_TWICE} in one object")
        return
    with suppress(ValueError, TypeError, RecursionError, BadJson):
        value = repair_json(part, return_objects=True, skip_json_loads=True)
        value = read_json(json.dumps(value, allow_nan=False))
        if value not in ("", [], {}):
            yield Parsed(value, "repaired")


def _key_twice(broken: str) -> str | None:
    """A key that seems to stand twice in an object of a text that is no JSON; the repair would keep the last."""
    levels: list[set[str] | None] = []
    for match in _KEYS_AND_BRACKETS.finditer(broken):
        token = match[0]
        if token in ("{", "["):
            levels.append(set() if token == "{" else None)
        elif token in ("}", "]"):
            del levels[-1:]
        elif levels and (keys := levels[-1]) is not None and (match[2] or match[3]):
            key = match[3] or match[1][1:-1]
            if key in keys:
                return str(key)
            keys.add(key)
    return None


def json_schema(schema: Schema) -> dict[str, Any]:
    """The JSON Schema of what a call may name as one.

    Raises:
        TypeError: It is neither a JSON Schema's object nor a pydantic model.
    """
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    if not isinstance(schema, Mapping):
        raise TypeError(f"a schema is a JSON Schema's object or a pydantic model, not {schema!r:.80}")
    return dict(schema)


def validator_of(schema: dict[str, Any]) -> Validator:
    """A validator of the schema's own draft."""
    return _validator(dump_json(schema, pretty=False))


@lru_cache(maxsize=32)
def _validator(text: bytes) -> Validator:
    """A validator of the schema's own draft; REGISTRY holds the published drafts, nothing is fetched."""
    from jsonschema import Draft202012Validator, FormatChecker  # not for commands that look; the fork server has it
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    schema = json.loads(text)
    kind = validator_for(schema, default=Draft202012Validator)
    return kind(schema, format_checker=FormatChecker(), registry=REGISTRY)


def lost_reference(schema: dict[str, Any]) -> str | None:
    """The first ``$ref`` that leads neither into the schema itself nor to a published draft; nothing is fetched."""
    references = list(_references(schema))
    if not references:
        return None
    from jsonschema_specifications import REGISTRY
    from referencing import Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    base = schema.get("$id", "")
    whole = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = REGISTRY.with_resource(base, whole).crawl().resolver(base_uri=base)
    for reference in references:
        try:
            resolver.lookup(reference)
        except (Unresolvable, LookupError, ValueError):
            return reference
    return None


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from (part[word] for word in ("$ref", "$dynamicRef") if isinstance(part.get(word), str))
        for key, value in part.items():
            if key not in ("enum", "const", "default", "examples"):
                yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def schema_problems(value: Any, schema: dict[str, Any]) -> list[str]:
    """What keeps `value` from matching the schema, each with its JSON pointer; empty when it matches."""
    errors = sorted(validator_of(schema).iter_errors(value), key=lambda error: list(map(str, error.path)))
    return [_sentence(error) for error in errors[:MAX_PROBLEMS]]


def _sentence(error: Any) -> str:
    pointer = _pointer(error.absolute_path)
    message = error.message if len(error.message) < 300 else error.message[:300] + "..."
    return f"{pointer}: {message}"


def model_problems(value: Any, model: type[BaseModel]) -> list[str]:
    """What keeps `value` from being a pydantic `model`, each with its JSON pointer."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        return list(_pydantic_sentences(error))[:MAX_PROBLEMS]
    return []


def _pydantic_sentences(error: ValidationError) -> Iterator[str]:
    for entry in error.errors():
        yield f"{_pointer(entry['loc'])}: {entry['msg']}"


def _pointer(path: Iterable[object]) -> str:
    """A JSON pointer (RFC 6901)."""
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in path]
    return "".join(f"/{part}" for part in parts) or "(the whole answer)"
