"""The strict subset: what goes over the wire allows all that the schema allows, and the way back leaves what it allows."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from pop.models.strict import StrictSchema, strict_schema, without_nulls
from pop.parsing import schema_problems

KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"pattern", "format"},
    "number": {"multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "integer": {"multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
}


def check_strict(schema: Any, root: Any = None) -> None:
    """What a server with strict mode checks before it takes a schema."""
    at_root = root is None
    root = schema if at_root else root
    assert isinstance(schema, dict)
    if at_root:
        assert schema["type"] == "object" and "anyOf" not in schema
        for inner in schema.get("$defs", {}).values():
            check_strict(inner, root)
    keys = set(schema) - {"description"} - ({"$defs"} if at_root else set())
    if "$ref" in schema:
        assert set(schema) == {"$ref"} and schema["$ref"].removeprefix("#/$defs/") in root["$defs"]
        return
    if "anyOf" in schema:
        assert keys == {"anyOf"} and schema["anyOf"]
        for inner in schema["anyOf"]:
            check_strict(inner, root)
        return
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert keys <= {"type", "enum", "const"}.union(*(KEYWORDS[kind] for kind in kinds))
    assert schema.get("enum", [0]), "an empty enum"
    if "object" in kinds:
        assert schema["additionalProperties"] is False and schema["required"] == list(schema["properties"])
        for inner in schema["properties"].values():
            check_strict(inner, root)
    if "array" in kinds:
        check_strict(schema["items"], root)


def reduced(schema: dict[str, Any]) -> StrictSchema:
    found = strict_schema(schema)
    assert found is not None
    check_strict(found.schema)
    return found


# -- any schema that can be said, a value that obeys it, and the same with nulls for what is left out ---------------

Case = tuple[dict[str, Any], Any, Any]
NAMES = st.sampled_from(["a", "b", "kind", "über", "x y", "$ref", "type"])


PLAIN: list[tuple[dict[str, Any], st.SearchStrategy[Any]]] = [
    ({"type": "string"}, st.text(max_size=5)),
    ({"type": "string", "minLength": 2, "maxLength": 4, "title": "T"}, st.text(min_size=2, max_size=4)),
    ({"type": "string", "pattern": "^a+$"}, st.sampled_from(["a", "aaa"])),
    ({"type": "string", "pattern": "^(?=a)"}, st.just("ab")),
    ({"type": "string", "format": "date"}, st.just("2026-01-31")),
    ({"type": "string", "format": "uri", "description": "A link."}, st.just("http://a.b/c")),
    ({"type": "integer", "minimum": 3, "default": 4}, st.integers(3, 9)),
    ({"type": "number", "exclusiveMaximum": 2.5}, st.floats(-3, 2)),
    ({"type": "boolean"}, st.booleans()),
    ({"type": "null"}, st.none()),
    ({"type": ["string", "null"]}, st.none() | st.text(max_size=3)),
    ({"enum": ["x", 1, None]}, st.sampled_from(["x", 1, None])),
    ({"enum": ["only"], "type": "string"}, st.just("only")),
    ({"const": "c"}, st.just("c")),
    ({"const": 7, "type": "integer"}, st.just(7)),
    ({"$ref": "#/definitions/word"}, st.sampled_from(["one", "two"])),
    ({"$ref": "#/$defs/a~1b", "description": "A word."}, st.integers(0, 5)),
]


@st.composite
def plain(draw: st.DrawFn) -> Case:
    schema, values = draw(st.sampled_from(PLAIN))
    value = draw(values)
    return schema, value, value


@st.composite
def listed(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    schema, value, filled = draw(inner)
    count = draw(st.integers(0, 2))
    more: dict[str, Any] = draw(st.sampled_from([{}, {"maxItems": 2}, {"uniqueItems": False}]))
    return {"type": "array", "items": schema, **more}, [value] * count, [filled] * count


@st.composite
def chosen(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    cases = draw(st.lists(inner, min_size=1, max_size=3))
    _, value, filled = draw(st.sampled_from(cases))
    return {draw(st.sampled_from(["anyOf", "oneOf"])): [schema for schema, _, _ in cases]}, value, filled


@st.composite
def united(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    schema, value, filled = draw(inner)
    return {"allOf": [schema], "description": "One of one."}, value, filled


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    cases = draw(st.dictionaries(NAMES, inner, min_size=1, max_size=3))
    required = [name for name in cases if draw(st.booleans())]
    present = [name for name in cases if name in required or draw(st.booleans())]
    schema: dict[str, Any] = {"type": "object", "properties": {name: case[0] for name, case in cases.items()}}
    if draw(st.booleans()) or required:
        schema["required"] = required
    if draw(st.booleans()):
        schema["additionalProperties"] = False
    value = {name: cases[name][1] for name in present}
    filled = {name: cases[name][2] if name in present else None for name in cases}
    return schema, value, filled


INNER = st.recursive(
    plain(), lambda inner: listed(inner) | chosen(inner) | united(inner) | objects(inner), max_leaves=8
)
SHARED = {
    "definitions": {"word": {"enum": ["one", "two"], "description": "A word."}},
    "$defs": {"a/b": {"type": "integer"}},
}


@given(objects(INNER))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_obeys_the_schema_obeys_the_reduced_one(case: Case) -> None:
    """With nulls for what is left out; the reduced one is strict, and the way back leaves a value that obeys."""
    schema, value, filled = {**case[0], **SHARED}, case[1], case[2]
    assume(not schema_problems(value, schema))
    strict = reduced(schema).schema
    assert schema_problems(filled, strict) == []
    back = without_nulls(filled, schema)
    assert schema_problems(back, schema) == []
    assert without_nulls(back, schema) == back


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "type",
        "properties",
        "required",
        "items",
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
        "$defs",
        "enum",
        "const",
        "additionalProperties",
        "not",
    ]
)
ANY_SCHEMA = st.recursive(
    JSON | st.sampled_from(["object", "array", "#", "#/$defs/x", {"$ref": "#"}, ["object"], ["string", "null"]]),
    lambda inner: st.dictionaries(KEYS, inner | st.lists(inner, max_size=2), max_size=5),
    max_leaves=15,
)


@given(st.dictionaries(KEYS, ANY_SCHEMA, max_size=5), JSON)
@settings(max_examples=300, deadline=None)
def test_no_schema_is_too_odd(schema: dict[str, Any], value: Any) -> None:
    """Reduced or None, whatever it is; nothing is thrown."""
    strict_schema(schema)


class Node(BaseModel):
    """A pydantic model that holds itself."""

    name: str = Field(min_length=1)
    weight: float | None = None
    children: list[Node] = []


def test_a_pydantic_model_that_holds_itself_is_reduced_and_read_back() -> None:
    """Its schema is a reference into itself; what it may leave out comes back left out."""
    schema = Node.model_json_schema()
    strict = reduced(schema)
    leaf = {"name": "leaf", "weight": None, "children": None}
    filled = {"name": "top", "weight": 1.5, "children": [leaf]}
    assert schema_problems(filled, strict.schema) == []
    back = without_nulls(filled, schema)
    assert back == {"name": "top", "weight": 1.5, "children": [{"name": "leaf", "weight": None}]}
    assert Node.model_validate(back).children[0].children == []


def test_what_is_dropped_is_told_in_words() -> None:
    """The model reads it, the local check holds it."""
    schema = {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string", "maxLength": 9}, "uniqueItems": True}},
        "required": ["tags"],
    }
    strict = reduced(schema)
    assert set(strict.dropped) == {"uniqueItems", "maxLength"}
    tags = strict.schema["properties"]["tags"]
    assert tags["description"] == '(JSON Schema: {"uniqueItems":true})'
    assert tags["items"]["description"] == '(JSON Schema: {"maxLength":9})'


def test_parts_of_an_all_of_are_merged() -> None:
    """Properties and what is required come together."""
    schema = {
        "allOf": [
            {"$ref": "#/$defs/named"},
            {"properties": {"n": {"type": "integer"}}, "required": ["n"]},
        ],
        "$defs": {"named": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
    }
    strict = reduced(schema).schema
    assert strict["required"] == ["name", "n"] and strict["properties"]["n"] == {"type": "integer"}


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


def one(inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": inner}, "required": ["a"]}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": ["object", "null"], "properties": {"a": {"type": "string"}}},
        {"anyOf": [{"type": "object", "properties": {"a": {"type": "string"}}}]},
        {"type": "object"},
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {"^x": {}}},
        {"type": "object", "properties": {}, "required": ["ghost"]},
        one({}),
        one(True),
        one({"type": "array"}),
        one({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "string"}}),
        one({"$ref": "other.json"}),
        one({"$ref": "#/$defs/ghost"}),
        one({"enum": [[1], 2]}),
        one({"enum": []}),
        one({"type": "text"}),
        one({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        nested(11),
        one({"enum": [str(n) for n in range(1001)]}),
        one({"enum": ["x" * 100 + str(n) for n in range(260)]}),
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5001)}},
        {"type": "object", "properties": {"x" * 120_001: {"type": "string"}}},
        one({"$ref": "#/properties/a"}) | {"properties": {"a": {"$ref": "#/properties/a", "minLength": 1}}},
    ],
    ids=lambda schema: orjson.dumps(schema).decode()[:60],
)
def test_what_cannot_be_said_is_none(schema: dict[str, Any]) -> None:
    """The caller then asks with the schema as it is."""
    assert strict_schema(schema) is None


def test_ten_levels_can_be_said() -> None:
    """One more cannot, see above."""
    reduced(nested(10))


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ({"n": None}, {}),
        ({"n": 1, "other": None}, {"n": 1, "other": None}),
        ({"must": None}, {"must": None}),
        ({"may": None}, {"may": None}),
        ({"in": {"n": None, "m": [{"n": None}, 1]}}, {"in": {"m": [{}, 1]}}),
        ([{"n": None}], [{"n": None}]),
        (None, None),
        ("text", "text"),
    ],
)
def test_only_nulls_that_stand_for_left_out_go(value: Any, back: Any) -> None:
    """Not those that the schema allows, requires, or does not speak of."""
    item: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}}
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "must": {"type": "integer"},
            "may": {"type": ["integer", "null"]},
            "in": {**item, "properties": {**item["properties"], "m": {"type": "array", "items": item}}},
        },
        "required": ["must"],
    }
    assert without_nulls(value, schema) == back


def test_a_choice_is_read_back_by_the_branch_that_fits() -> None:
    """`n` may be null in one branch and is left out in the other."""
    one_way = {
        "type": "object",
        "properties": {"kind": {"const": "one"}, "n": {"type": ["integer", "null"]}},
        "required": ["kind", "n"],
    }
    other = {
        "type": "object",
        "properties": {"kind": {"const": "other"}, "n": {"type": "integer"}},
        "required": ["kind"],
    }
    schema = one({"oneOf": [one_way, other]})
    reduced(schema)
    for kind, back in (("one", {"kind": "one", "n": None}), ("other", {"kind": "other"})):
        assert without_nulls({"a": {"kind": kind, "n": None}}, schema) == {"a": back}


@pytest.mark.parametrize("odd", [{"$ref": "http://127.0.0.1:9/x.json"}, {"type": "string", "pattern": "("}])
def test_the_way_back_fetches_nothing_and_breaks_on_nothing(odd: dict[str, Any]) -> None:
    """A part that cannot be read leaves the value as it is; the local check tells what is wrong with it."""
    schema = {"type": "object", "properties": {"n": {"not": odd, "type": ["null", "string"]}, "m": {"anyOf": [odd]}}}
    value = {"n": None, "m": {"k": "x"}}
    assert without_nulls(value, schema) == value
