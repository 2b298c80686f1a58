"""A seed's JSON Schema as the fields of a form, and what was filled in as the data of a seed.

| the schema says                                  | kind       | a control                                          |
|--------------------------------------------------|------------|----------------------------------------------------|
| `enum` of single values, `const`                 | choice     | select                                             |
| boolean that is needed or has a default          | tick       | checkbox                                           |
| another boolean                                  | choice     | select: true, false, left out                      |
| integer, number                                  | number     | number, with its bounds                            |
| text with a format                               | date, ...  | date, email, url; else one line                    |
| a text that may be long; a text or something else | long      | textarea                                           |
| small object                                     | group      | fieldset                                           |
| list, other objects, all the rest                | json       | textarea that holds JSON                           |

A field is called by the path of its value, as in a JSON pointer: ``author/name``. What was guessed rather than said by the
pipeline (`guessed`) is taken as it was written: what is no JSON there is a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pop.places import Path, json_path
from pop.records import BadJson, read_json
from pop.seedcheck import Mistake

SHORT = 120  # characters of a text that has a line
LONG_TEXT = 60  # characters from which an example shows that it needs more than a line
MOST_INNER = 8  # fields of a group
MOST_DEPTH = 2
MOST_SKETCHED = 3  # keys of an object that is shown for its form
MOST_CHOICES = 200
_FORMATS = {"date": "date", "email": "email", "uri": "url"}
_TOLD = ("format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern")
_BOUNDS = {"minimum": "min", "maximum": "max", "multipleOf": "step"}


@dataclass
class SeedField:
    """`value` is the text it begins with; `choices` are JSON texts and what they are called."""

    path: Path
    kind: str
    label: str
    needed: bool
    optional: bool = False  # it stands in a group that may be left out as a whole
    note: str | None = None
    hint: str = ""
    value: str = ""
    choices: list[tuple[str, str]] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    inner: list[SeedField] = field(default_factory=list)
    schema: Mapping[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in self.path)

    @property
    def rows(self) -> int:
        text = self.value or self.hint
        return min(16, max(3, text.count("\n") + len(text) // 80 + 1))

    @property
    def types(self) -> list[str]:
        return _types(self.schema)

    @property
    def called(self) -> str:
        """``author.name``."""
        return json_path(self.path)

    @property
    def what(self) -> str:
        """What it may hold, in a few words: ``integer, minimum 10``."""
        choices = [] if self.types == ["boolean"] else [shown for _, shown in self.choices]
        words = [f"one of {', '.join(choices)}"] if choices else [" or ".join(self.types) or "anything"]
        return ", ".join([*words, *(f"{key} {self.schema[key]}" for key in _TOLD if key in self.schema)])


def fields_of(
    schema: Mapping[str, Any], *, guessed: bool, example: bool = False, given: Mapping[str, str] | None = None
) -> list[SeedField]:
    """The fields of a form; none for a schema that does not say which keys there are.

    Args:
        example: Whether they begin with examples, where there are some.
        given: What was filled in before, by the fields' names: it is kept.
    """
    maker = _Maker(schema, guessed, example)
    found = maker.below(schema, (), _example(_sound(schema)) if example else None, optional=False)
    for one in flat(found) if given is not None else ():
        one.value = (given or {}).get(one.name, "")
    return found


def flat(fields: list[SeedField]) -> Iterator[SeedField]:
    """All of them, those of groups behind their group."""
    for one in fields:
        yield one
        yield from flat(one.inner)


@dataclass(frozen=True)
class _Maker:
    root: Mapping[str, Any]
    guessed: bool
    example: bool

    def below(self, schema: Mapping[str, Any], path: Path, example: Any, *, optional: bool) -> list[SeedField]:
        schema = self._resolved(schema)
        required = schema.get("required") or []
        found = []
        for key, about in (schema.get("properties") or {}).items():
            of_example = example.get(key) if isinstance(example, Mapping) else None
            found.append(self._field((*path, key), about, key in required, of_example, optional))
        return found

    def _resolved(self, schema: Any) -> dict[str, Any]:
        """A schema that says all itself, where it refers to another or allows null beside one form."""
        found = _sound(schema) if isinstance(schema, Mapping) else {}
        for _ in range(10):
            reference = found.get("$ref")
            one = self._at(reference) if isinstance(reference, str) else None
            forms = [form for form in found.get("anyOf", []) if form != {"type": "null"}]
            if one is not None:
                found = {**one, **{key: value for key, value in found.items() if key != "$ref"}}
            elif len(forms) == 1 and isinstance(forms[0], Mapping):
                found = {**forms[0], **{key: value for key, value in found.items() if key != "anyOf"}}
            else:
                break
            found = _sound(found)
        return found

    def _at(self, reference: str) -> dict[str, Any] | None:
        value: Any = self.root
        for part in reference.removeprefix("#").split("/")[1:]:
            value = value.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(value, Mapping) else None
        return dict(value) if reference.startswith("#/") and isinstance(value, Mapping) else None

    def _field(self, path: Path, about: Any, needed: bool, example: Any, optional: bool) -> SeedField:
        schema = self._resolved(about)
        examples = schema.get("examples") or ([] if example is None else [example])
        default = schema.get("default")
        begin = examples[0] if self.example and examples else None if optional else default
        label, note = str(schema.get("title") or path[-1]), schema.get("description")
        note = note if isinstance(note, str) else None
        found = SeedField(path, "", label, needed, optional, note, schema=schema)
        found.kind = self._kind(schema, path, needed and not optional, [*examples, default])
        if found.kind == "group":
            inside = None if not examples else examples[0]
            may_lack = optional or (not (needed or self.guessed) and bool(schema.get("required")))
            found.inner = self.below(schema, path, inside if self.example else None, optional=may_lack)
            return found
        found.choices = _choices(schema) if found.kind == "choice" else []
        found.attributes = _attributes(schema, found.kind)
        plain = "string" in found.types and found.kind != "choice"
        found.value = "" if begin is None else _text(begin, plain, compact=found.kind == "choice")
        if examples:
            found.hint = _text(examples[0], plain)[:200]
        elif found.kind == "json" and not self.guessed:
            found.hint = json.dumps(self._sketch(schema, MOST_DEPTH), ensure_ascii=False)[:200]
        return found

    def _sketch(self, about: Any, depth: int) -> Any:
        """How such a value may look, for whoever has to write it."""
        schema = self._resolved(about)
        types, choices = _types(schema), schema.get("enum")
        if isinstance(choices, list) and choices:
            return choices[0]
        if "array" in types and depth:
            return [self._sketch(schema.get("items"), depth - 1)]
        if "object" in types and depth:
            known = schema.get("properties")
            inside = list(known.items())[:MOST_SKETCHED] if isinstance(known, Mapping) else []
            return {str(key): self._sketch(inner, depth - 1) for key, inner in inside} or {"...": "..."}
        return {"integer": 1, "number": 1.5, "boolean": True}.get(types[0], "...") if types else "..."

    def _kind(self, schema: Mapping[str, Any], path: Path, needed: bool, shown: list[Any]) -> str:
        types = _types(schema)
        if (_choices(schema) and "enum" in schema) or "const" in schema:
            return "choice"
        if types == ["boolean"]:
            return "tick" if not self.guessed and (needed or isinstance(schema.get("default"), bool)) else "choice"
        if types in (["integer"], ["number"]):
            return "text" if self.guessed else "number"
        if types == ["string"]:
            known = [one for one in shown if isinstance(one, str)]
            long = any("\n" in one or len(one) > LONG_TEXT for one in known) or not known
            if schema.get("format") or schema.get("maxLength", SHORT + 1) <= SHORT:
                return _FORMATS.get(str(schema.get("format")), "text")
            return "long" if long else "text"
        if "string" in types:
            return "long"
        properties = schema.get("properties") or {}
        if types == ["object"] and properties and len(properties) <= MOST_INNER and len(path) < MOST_DEPTH:
            more = schema.get("additionalProperties")
            return "json" if schema.get("patternProperties") or isinstance(more, Mapping) else "group"
        return "json"


_NUMBER = (int, float)
_KINDS: dict[str, type | tuple[type, ...]] = {
    "properties": Mapping, "patternProperties": Mapping, "required": list, "examples": list, "anyOf": list, "enum": list,
    "type": (str, list), "title": str, "description": str, "format": str, "pattern": str, "minLength": _NUMBER,
    "maxLength": _NUMBER, "minimum": _NUMBER, "maximum": _NUMBER, "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER, "multipleOf": _NUMBER,
}  # fmt: skip


def _sound(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without keywords of other kinds than the latest draft has: older ones differ, and a `$ref` may lead into data."""
    found: dict[str, Any] = {k: value for k, value in schema.items() if isinstance(value, _KINDS.get(k, object))}
    if isinstance(found.get("type"), list):
        found["type"] = [one for one in found["type"] if isinstance(one, str)]
    return found


def _example(schema: Mapping[str, Any]) -> Any:
    """A whole seed that the schema shows."""
    return next(iter(schema.get("examples") or []), None)


def _types(schema: Mapping[str, Any]) -> list[str]:
    given = schema.get("type", [])
    return [one for one in (given if isinstance(given, list) else [given]) if one != "null"]


def _choices(schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    values = [True, False] if not values and _types(schema) == ["boolean"] else values
    if len(values) > MOST_CHOICES or any(isinstance(value, (dict, list)) for value in values):
        return []
    return [(_json(value), value if isinstance(value, str) else _json(value)) for value in values]


def _attributes(schema: Mapping[str, Any], kind: str) -> dict[str, Any]:
    if kind != "number":
        return {"inputmode": "decimal"} if _types(schema) == ["number"] else {}
    found = {name: schema[key] for key, name in _BOUNDS.items() if isinstance(schema.get(key), (int, float))}
    return {"step": 1 if _types(schema) == ["integer"] else "any", **found}


def _text(value: Any, plain: bool, *, compact: bool = False) -> str:
    if plain and isinstance(value, str):
        return value
    return _json(value) if compact else json.dumps(value, ensure_ascii=False, indent=2)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# -- what was filled in ------------------------------------------------------------------------------------------------


def read_form(
    fields: list[SeedField], given: Mapping[str, str], *, guessed: bool
) -> tuple[dict[str, Any], list[Mistake]]:
    """The data of a seed, and what could not be read; what was left empty is left out."""
    data: dict[str, Any] = {}
    wrong: list[Mistake] = []
    for one in fields:
        key = str(one.path[-1])
        if one.kind == "group":
            inner, more = read_form(one.inner, given, guessed=guessed)
            wrong += more
            if inner or one.needed or more:
                data[key] = inner
            continue
        text = given.get(one.name, "").replace("\r\n", "\n")
        try:
            for value in _values(one, text, guessed):
                data[key] = value
        except BadJson as error:
            data[key] = text
            why = error.message.removeprefix("not valid JSON: ")
            wrong.append(Mistake(one.path, f"is no JSON: {why}", hint=f"such as {one.hint}" if one.hint else None))
    return data, wrong


def _values(one: SeedField, text: str, guessed: bool) -> Iterator[Any]:
    """The value of a field, if it has one.

    Raises:
        BadJson: It cannot be read.
    """
    if one.kind == "tick":
        yield text == "true"
    elif one.kind == "choice" and text in dict(one.choices):
        yield json.loads(text)
    elif one.kind in ("choice", "json", "number") or "string" not in one.types:
        if text.strip():
            yield _read(text, guessed or one.kind != "json")
    elif one.types != ["string"] and text.lstrip().startswith(("[", "{")):
        yield _read(text, guessed)
    elif text or (guessed and one.needed):
        yield text


def _read(text: str, lenient: bool) -> Any:
    try:
        return read_json(text)
    except BadJson:
        if lenient:  # the schema tells what it should have been
            return text
        raise


def put_errors(fields: list[SeedField], wrong: list[Mistake]) -> list[str]:
    """Tell each field what is wrong in it; returns what belongs to none."""
    known, elsewhere = {one.path: one for one in flat(fields)}, list[str]()
    for mistake in wrong:
        path = mistake.path
        while path and path not in known:
            path = path[:-1]
        rest = json_path(mistake.path[len(path) :])
        hint = f" ({mistake.hint})" if mistake.hint and path and mistake.hint != known[path].note else ""
        sentence = f"{rest} {mistake.message}".strip() + hint
        if path:
            known[path].errors.append(sentence)
        else:
            elsewhere.append(str(mistake) + (f" ({mistake.hint})" if mistake.hint else ""))
    return elsewhere
