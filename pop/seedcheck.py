"""Whether a seed's data fit the `seed` schema of their pipeline, in bounded time and memory whatever the two are.

| seed and schema                                               | looked at                                              |
|---------------------------------------------------------------|--------------------------------------------------------|
| at most `QUICK_BYTES`; only keywords that read a value once   | here: linear in the seed                               |
| any other: `pattern` may backtrack, `$ref` may branch for ever | by ``python -m pop.seedcheck``, which the kernel ends |

Such a process gets `BASE_S` and `PER_MB_S` of processor time, so that a busy machine refuses nothing, and `MOST_MEMORY`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from jsonschema.exceptions import best_match

from pop.errors import SeedRejected, did_you_mean
from pop.expression_sandbox import cut, type_name
from pop.parsing import validator_of
from pop.places import Path, json_path
from pop.records import dump_json

QUICK_BYTES = 64 * 1024
BASE_S = 3.0
PER_MB_S = 5.0
MOST_MEMORY = 2 * 2**30
PATIENCE = 20  # times the processor time, by the clock: a child that was stopped, or is starved
MOST_TOLD = 10
MOST_FOUND = 1000  # of them the first `MOST_TOLD` different ones are told
_QUICK = frozenset({
    "type", "properties", "required", "additionalProperties", "items", "enum", "const", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems",
    "minProperties", "maxProperties", "format", "title", "description", "default", "examples", "$schema", "$comment",
    "deprecated", "readOnly", "writeOnly", "contentMediaType",
})  # fmt: skip
_QUICK_FORMATS = frozenset({"date", "date-time", "time", "email", "uri", "uuid", "ipv4", "ipv6"})
_BEGUN = b"begun\n"


class Mistake(NamedTuple):
    """A value that does not fit, or is missing, by its path in the seed's data."""

    path: Path
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{cut(json_path(self.path), 120) or 'the data'} {self.message}"

    def to_json(self) -> dict[str, Any]:
        return {"path": list(self.path), "message": self.message, "hint": self.hint}


class SeedMismatch(SeedRejected):
    """A seed that its pipeline's schema does not allow; `wrong` are the first mistakes, every one with its key."""

    code = "seed-mismatch"

    def __init__(self, wrong: list[Mistake], *, where: object, file: str) -> None:
        told = [str(mistake) for mistake in wrong[:MOST_TOLD]] + (["and more"] if len(wrong) > MOST_TOLD else [])
        hints = [f"{json_path(one.path)[:120]}: {one.hint}" for one in wrong[:3] if one.hint]
        hint = "; ".join([*hints, f"`seed` in {file} says what it may hold"])
        super().__init__(f"it does not fit its pipeline: {'; '.join(told)}", where=where, hint=hint)
        self.wrong = wrong[:MOST_TOLD]

    def to_json(self) -> dict[str, Any]:
        """As that of every error, and ``"wrong": [{"path", "message", "hint"}]``."""
        return {**super().to_json(), "wrong": [mistake.to_json() for mistake in self.wrong]}


def refuse_misfit(schema: Mapping[str, Any] | None, data: Any, *, where: object, file: str) -> None:
    """Hold a seed's data against a pipeline's schema, where it has one.

    Args:
        where: What the seed is called.
        file: Of the pipeline.

    Raises:
        SeedMismatch: They do not fit, or that cannot be found out within the bounds.
        OSError: No process could be started to look.
    """
    wrong = mistakes(schema, data) if schema is not None else []
    if wrong:
        raise SeedMismatch(wrong, where=where, file=file)


def mistakes(schema: Mapping[str, Any], data: Any) -> list[Mistake]:
    """Where data do not fit: at most one more than `MOST_TOLD`.

    Raises:
        OSError: No process could be started to look.
    """
    text = dump_json(data, pretty=False)
    if len(text) <= QUICK_BYTES and is_quick(schema):
        return _found(dict(schema), data)
    return _found_elsewhere(schema, text)


def is_quick(schema: Any) -> bool:
    """Whether holding something against it takes no longer than that thing is long."""
    if not isinstance(schema, Mapping):
        return isinstance(schema, bool)
    inner = [*(schema.get("properties") or {}).values()] if isinstance(schema.get("properties"), Mapping) else []
    inner += [schema[key] for key in ("items", "additionalProperties") if key in schema]
    formats = schema.get("format", "date") in _QUICK_FORMATS
    return formats and _QUICK.issuperset(schema) and all(is_quick(one) for one in inner)


def limit_s(size_bytes: int) -> float:
    """Seconds of processor time for a seed of so many bytes."""
    return BASE_S + PER_MB_S * size_bytes / 2**20


def _found_elsewhere(schema: Mapping[str, Any], text: bytes) -> list[Mistake]:
    asked = b'{"schema":%b,"data":%b}' % (dump_json(dict(schema), pretty=False), text)
    environment = {key: os.environ[key] for key in ("PYTHONPATH", "PYTHONHOME") if key in os.environ}
    command, seconds = [sys.executable, "-P", "-m", "pop.seedcheck"], limit_s(len(asked))
    try:
        answer = subprocess.run(
            command, input=asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd="/",
            start_new_session=True, timeout=PATIENCE * seconds, check=False,
        ).stdout  # fmt: skip
    except subprocess.TimeoutExpired:
        answer = _BEGUN
    if not answer.startswith(_BEGUN):
        raise OSError("the process that looks at seeds did not begin")
    try:
        return [Mistake(tuple(path), message, hint) for path, message, hint in json.loads(answer[len(_BEGUN) :])]
    except ValueError:  # the kernel ended it; its status may have been taken by who buries orphans
        message = f"cannot be checked within {seconds:.0f} s of processor time and {MOST_MEMORY // 2**30} GB"
        return [Mistake((), message, "a `pattern` or `uniqueItems` may take very long for it")]


def _look_alone() -> None:
    """The process: reads ``{"schema", "data"}``, says that it begins, then what it found."""
    asked = sys.stdin.buffer.read()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.buffer.write(_BEGUN)
    sys.stdout.buffer.flush()
    signal.setitimer(signal.ITIMER_PROF, limit_s(len(asked)))  # in the middle of a `pattern` no Python code would run
    value = json.loads(asked)
    sys.stdout.write(json.dumps(_found(value["schema"], value["data"])))


# -- what is wrong, in words -------------------------------------------------------------------------------------------


def _found(schema: dict[str, Any], data: Any) -> list[Mistake]:
    found: dict[Path, Mistake] = {}
    try:
        for error in islice(validator_of(schema).iter_errors(data), MOST_FOUND):
            for mistake in islice(_told(error), MOST_TOLD + 1):
                found.setdefault(mistake.path, mistake)
            if len(found) > MOST_TOLD:
                break
    except (RecursionError, ArithmeticError) as error:
        return [Mistake((), f"cannot be checked: {type(error).__name__}", "it may be nested too deep")]
    except Exception as error:  # `$ref` may lead to what is no schema
        says = f"cannot be checked: {type(error).__name__}: {cut(str(error), 200)}"
        return [Mistake((), says, "a part of the schema is none, as where a `$ref` leads into a `default`")]
    return list(found.values())[: MOST_TOLD + 1]


_KINDS = {
    "string": "a text", "integer": "a whole number", "number": "a number", "boolean": "true or false",
    "object": "an object", "array": "a list", "null": "null",
}  # fmt: skip
_BOUNDS = {
    "minimum": "must be at least", "maximum": "must be at most", "exclusiveMinimum": "must be more than",
    "exclusiveMaximum": "must be less than", "multipleOf": "must be a multiple of",
}  # fmt: skip
_COUNTS = {
    "minLength": ("at least", "characters"), "maxLength": ("at most", "characters"), "minItems": ("at least", "items"),
    "maxItems": ("at most", "items"), "minProperties": ("at least", "keys"), "maxProperties": ("at most", "keys"),
}  # fmt: skip


def _told(error: Any) -> Iterator[Mistake]:
    """What one error of the validator says: a line for each key that is missing or too many."""
    path, keyword, schema = tuple(error.absolute_path), error.validator, error.schema
    if keyword in ("anyOf", "oneOf") and error.context:
        yield from _of_several(error, path)
    elif keyword == "required" and isinstance(error.validator_value, list):
        missing = (key for key in error.validator_value if key not in error.instance)
        inner = schema.get("properties") or {}
        yield from (Mistake((*path, key), "is missing", _meant(inner.get(key))) for key in missing)
    elif keyword == "additionalProperties" and error.validator_value is False:
        known, patterns = schema.get("properties") or {}, schema.get("patternProperties") or {}
        more = (key for key in error.instance if key not in known and not any(re.search(one, key) for one in patterns))
        yield from (Mistake((*path, key[:200]), "is no key of it", did_you_mean(key[:80], known)) for key in more)
    elif keyword == "type":
        kinds = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        yield Mistake(path, _of_types(kinds, error.instance), _meant(schema))
    else:
        yield Mistake(path, _sentence(error), _near_word(error) or _meant(schema))


def _of_several(error: Any, path: Path) -> Iterator[Mistake]:
    """Of forms that all ask for another type, the types; else the mistake in the form that is nearest."""
    branches = [(one.validator, tuple(one.absolute_path), one.validator_value) for one in error.context]
    if all(keyword == "type" and place == path and isinstance(kind, str) for keyword, place, kind in branches):
        yield Mistake(path, _of_types([kind for _, _, kind in branches], error.instance), _meant(error.schema))
        return
    best = best_match([error])
    if best is None or best.validator in ("anyOf", "oneOf"):
        yield Mistake(path, "has none of the forms that are allowed", _meant(error.schema))
    else:
        yield from _told(best)


def _of_types(kinds: list[Any], instance: Any) -> str:
    wanted = " or ".join(_KINDS.get(str(kind), str(kind)) for kind in kinds)
    fraction = isinstance(instance, float) and "integer" in kinds
    return f"must be {wanted}, this is {_shown(instance) if fraction else type_name(instance)}"


def _sentence(error: Any) -> str:
    keyword, value, instance = error.validator, error.validator_value, error.instance
    if keyword == "enum":
        return f"must be one of {cut(', '.join(_shown(one) for one in value), 200)}"
    if keyword == "const":
        return f"must be {_shown(value)}"
    if keyword in _BOUNDS:
        return f"{_BOUNDS[keyword]} {_shown(value)}, this is {_shown(instance)}"
    if keyword in ("minLength", "minItems") and value == 1:
        return "must not be empty"
    if keyword in _COUNTS:
        words = _COUNTS[keyword]
        return f"must have {words[0]} {value} {words[1]}, this has {len(instance)}"
    if keyword == "pattern":
        return f"does not look like {cut(str(value), 100)}"
    if keyword == "format":
        return f"is no {cut(str(value), 40)}"
    if keyword == "uniqueItems":
        return "holds something twice"
    return cut(f"does not fit: {error.message}", 200)


def _shown(value: Any) -> str:
    return cut(json.dumps(value, ensure_ascii=False), 60)


def _near_word(error: Any) -> str | None:
    words = [one for one in error.validator_value if isinstance(one, str)] if error.validator == "enum" else []
    hint = did_you_mean(error.instance[:80], words) if words and isinstance(error.instance, str) else None
    return hint if hint and hint.startswith("did") else None


def _meant(schema: Any) -> str | None:
    """What the schema's author says of the value."""
    text = schema.get("description") if isinstance(schema, Mapping) else None
    return cut(text, 160) if isinstance(text, str) and text else None


if __name__ == "__main__":
    _look_alone()
