"""The ladder from a model's text to a value."""

from __future__ import annotations

import json
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
        ('{"n": 1, "n": 2}\n```\n{"n": 3}\n```', "fenced", {"n": 3}),
        ('{"said": "n: 1, n: 2", "n": 3,', "repaired", {"said": "n: 1, n: 2", "n": 3}),
        ('[{"n": 1}, {"n": 2}', "embedded", {"n": 1}),
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


NUMBERS = st.integers() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
RUNGS = {
    "strict": "{}",
    "fenced": "Here:\n```json\n{}\n```\nDone.",
    "embedded": "It is {} as asked.",
    "repaired": "{}",
}


@pytest.mark.parametrize("rung", RUNGS)
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=5))
def test_numbers_stay_exact_on_every_rung(rung: str, numbers: list[Any]) -> None:
    """Integers of forty digits too, and a decimal is what a strict reading makes of it, with its type."""
    value = {"n": numbers, **{f"k{place}": number for place, number in enumerate(numbers)}}
    text = json.dumps(value)
    if rung == "repaired":
        text = text[:-1] + ","
    parsed = parse_json(RUNGS[rung].replace("{}", text))
    assert parsed.found_by == rung
    assert json.dumps(parsed.value) == json.dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 1, "n": 2}',
        '```json\n{"n": 1, "n": 2}\n```',
        'It is {"n": 1, "n": 2}.',
        '{"n": 1, "n": 2,}',
        "{'n': 1, 'n': 2}",
        "{n: 1, n: 2",
        '{"n": 1, "n": 2, "inner": {"n": 3}}',
        '[{"n": 1}, {"x": {"n": 1, "y": [1], "n": 2}}',
    ],
)
def test_a_key_that_stands_twice_is_told_not_chosen(text: str) -> None:
    """On no rung is the last taken in silence, nor a part of the inside taken for the whole."""
    with pytest.raises(Unparsable, match="the key 'n' stands twice in one object"):
        parse_json(text, {**OBJECT, "required": ["n", "absent"]} if text.startswith("[") else OBJECT)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "[1," * 100_000, "{ " * 100_000, '["' * 100_000,
    '{"a": 1,' + "'\\'" * 99_000, "{" + "a" * 290_000, "{a" + " " * 290_000, '{"' + "\\" * 290_000])  # fmt: skip
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


def test_a_schema_may_hold_integers_of_any_size() -> None:
    """Bounds beyond 64 bits are checked exactly."""
    assert schema_problems(10**30 + 1, {"maximum": 10**30}) and not schema_problems(10**30, {"maximum": 10**30})


def test_a_schema_is_read_in_its_own_draft() -> None:
    """`$schema` decides: in draft 7 a list under `items` is positional."""
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}]}
    assert schema_problems(["x"], schema) == ["/0: 'x' is not of type 'integer'"]
