"""The ladder from a model's text to a value."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop.parsing import Unparsable, parse_json, schema_problems

OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("text", "found_by", "value"),
    [
        ('{"n": 1}', "strict", {"n": 1}),
        ('```json\n{"n": 1}\n```', "fenced", {"n": 1}),
        ('As [1] and [2] say: {"n": 1}.', "embedded", {"n": 1}),
        ('First {"a": 0}, but in the end {"n": 1}', "embedded", {"n": 1}),
        ('{"n": 1, "list": [1, 2],}', "repaired", {"n": 1, "list": [1, 2]}),
        ('```json\n{"n": 1, "list": [{"n": "x"}],}\n```', "repaired", {"n": 1, "list": [{"n": "x"}]}),
        ('{"a": [1, 2], "a": [3]}', "repaired", {"a": [3]}),
    ],
)
def test_the_value_that_fits_the_schema_is_the_one_meant(text: str, found_by: str, value: Any) -> None:
    """A citation or an inner list is not mistaken for the answer."""
    parsed = parse_json(text, OBJECT)
    assert (parsed.found_by, parsed.value) == (found_by, value)


@given(st.text(alphabet='[]{}",:1a\\ \n`', max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    """There is a value or there is none; nothing else happens."""
    try:
        parse_json(text, OBJECT)
    except Unparsable as error:
        assert str(error)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "[1," * 100_000, "{ " * 100_000, '["' * 100_000])
def test_a_hostile_text_costs_seconds_at_most(text: str) -> None:
    """Model text is hostile data: no quadratic walk over it."""
    began = time.process_time()
    try:
        parse_json(text, OBJECT)
    except Unparsable:
        pass
    assert time.process_time() - began < 5


def test_problems_carry_json_pointers() -> None:
    """Also through keys that need escaping, and formats are checked."""
    schema = {"properties": {"a/b": {"items": {"type": "string", "format": "date-time"}}}}
    assert schema_problems({"a/b": ["yesterday"]}, schema)[0].startswith("/a~1b/0: 'yesterday' is not a 'date-time'")


def test_a_schema_is_read_in_its_own_draft() -> None:
    """`$schema` decides: in draft 7 a list under `items` is positional."""
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}]}
    assert schema_problems(["x"], schema) == ["/0: 'x' is not of type 'integer'"]
