"""Places: every value of a JSON text is found again at its line and column."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pop.places import Path, find_places, json_path

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=12,
)


def walk(value: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [(path, value), *(found for key, child in inner for found in walk(child, (*path, key)))]


@given(_JSON, st.sampled_from([None, 2]), st.booleans())
def test_each_value_begins_where_its_place_says(document: Any, indent: int | None, ascii_only: bool) -> None:
    """Whatever the document: decoding from the offset gives the value, and nothing else has a place."""
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    places = find_places(text, "f.json")
    expected = walk(document)
    assert set(places.values) == {path for path, _ in expected}
    for path, value in expected:
        found, _ = json.JSONDecoder().raw_decode(text[places.values[path] :])
        assert found == value


def test_lines_and_columns_count_from_one() -> None:
    """The way editors do; keys and values have places of their own."""
    places = find_places('{\n  "tasks": [\n    "a",\n    {"task": "b"}\n  ]\n}', "pipeline.json")
    assert places.of(()) == "pipeline.json:1:1"
    assert places.of(("tasks", 0)) == "pipeline.json:3:5  tasks[0]"
    assert places.of(("tasks", 1, "task")) == "pipeline.json:4:14  tasks[1].task"
    assert places.of_key(("tasks", 1, "task")) == "pipeline.json:4:6  tasks[1].task"


def test_what_is_missing_is_placed_at_its_parent() -> None:
    """An error about an absent key still has a line."""
    assert find_places('{"a": {}}', "f").of(("a", "b", "c")) == "f:1:7  a.b.c"


def test_odd_keys_are_quoted() -> None:
    """A path can be read back by a person, whatever the key holds."""
    assert json_path(("with", "odd key", 3, 'a"b')) == 'with["odd key"][3]["a\\"b"]'
