"""From a model's text to a value: strict first, then fenced or surrounded by prose, then repaired, and it says which.

| found by   | meaning                                              |
|------------|------------------------------------------------------|
| strict     | the whole text is the JSON                           |
| fenced     | it stood in a ``` block                              |
| embedded   | the first object or list within prose                |
| repaired   | a repair library closed or mended it: look twice     |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import orjson
from json_repair import repair_json
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import BaseModel, ValidationError

from pop.records import BadJson, read_json

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
MAX_PROBLEMS = 20
MAX_PROSE = 200_000  # characters searched for JSON within prose
MAX_REPAIR = 50_000  # characters: the repair takes seconds on hostile text of this size, minutes on more
MAX_STARTS = 200  # brackets tried: a hostile answer may be nothing but brackets


class Unparsable(Exception):
    """No JSON value can be made of the text; the message says why, for the model to read."""


@dataclass(frozen=True)
class Parsed:
    """A value and how it was found (see the module's table)."""

    value: Any
    found_by: str


def parse_json(text: str) -> Parsed:
    """The JSON value that a model meant.

    Raises:
        Unparsable: There is none.
    """
    try:
        return Parsed(read_json(text.strip()), "strict")
    except BadJson as error:
        first_error = error
    for candidate in _FENCE.findall(text):
        try:
            return Parsed(read_json(candidate.strip()), "fenced")
        except BadJson:
            continue
    embedded = _embedded(text)
    if embedded is not None:
        return Parsed(embedded, "embedded")
    repaired = _repaired(text)
    if repaired is not None:
        return Parsed(repaired, "repaired")
    raise Unparsable(f"the answer is not JSON: {first_error.message}")


def _embedded(text: str) -> Any:
    """The first object or list that stands whole in the text and reads strictly."""
    decoder = json.JSONDecoder()
    for match in islice(re.finditer(r"[{\[]", text[:MAX_PROSE]), MAX_STARTS):
        try:
            _, end = decoder.raw_decode(text, match.start())
            return read_json(text[match.start() : end])
        except (ValueError, RecursionError, BadJson):
            continue
    return None


def _repaired(text: str) -> Any:
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not starts or len(text) > MAX_REPAIR:
        return None
    try:
        value = repair_json(text[min(starts) :], return_objects=True, skip_json_loads=True)
        return read_json(json.dumps(value, allow_nan=False)) if value not in ("", [], {}) else None
    except (ValueError, TypeError, RecursionError, BadJson):
        return None


@lru_cache(maxsize=32)
def _validator(schema: bytes) -> Draft202012Validator:
    return Draft202012Validator(orjson.loads(schema), format_checker=FormatChecker())


def schema_problems(value: Any, schema: dict[str, Any]) -> list[str]:
    """What keeps `value` from matching the schema, each with its JSON pointer; empty when it matches."""
    errors = sorted(_validator(orjson.dumps(schema)).iter_errors(value), key=lambda error: list(map(str, error.path)))
    return [_sentence(error) for error in errors[:MAX_PROBLEMS]]


def _sentence(error: Any) -> str:
    pointer = "".join(f"/{part}" for part in error.absolute_path) or "(the whole answer)"
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
        pointer = "".join(f"/{part}" for part in entry["loc"]) or "(the whole answer)"
        yield f"{pointer}: {entry['msg']}"
