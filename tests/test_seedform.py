"""What a pipeline's seed must or may hold, found out from prompts, expressions, Python and examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pop.rootcheck import RootCheck
from pop.seedfields import fields_of, read_form
from pop.seedform import seed_schema
from pop.settings import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path)
    tasks = ["draft", {"each": "seed.parts", "do": "part"}, {"task": "maybe", "when": "seed.deep"}]
    root.pipeline_file.write_text(json.dumps({"tasks": tasks}))
    root.tasks.mkdir()
    (root.tasks / "draft.md").write_text("{{ seed.topic }} {% if seed.tone is defined %}{{ seed.tone }}{% endif %}")
    (root.tasks / "part.md").write_text("{{ item }}{{ seed['words'] }}")
    (root.tasks / "maybe.md").write_text("{{ seed.depth }}")
    (root.tasks / "maybe.py").write_text("def ingest(seed, ctx):\n    return ctx.seed['year'], seed.get('place')\n")
    return root


def test_what_prompts_read_in_any_case_is_needed(root: Root) -> None:
    """What stands behind a condition, or is read by code, may be there."""
    schema = seed_schema(RootCheck(root), "default")
    assert set(schema["properties"]) == {"topic", "tone", "parts", "words", "deep", "depth", "year", "place"}
    assert schema["required"] == ["topic", "words"]
    assert schema["properties"]["topic"] == {"type": "string"}


def test_types_come_from_examples(root: Root) -> None:
    """Of this pipeline; a broken one, or another pipeline's, tells nothing."""
    examples = root.path / "examples"
    examples.mkdir()
    (examples / "a.json").write_text('{"topic": "tides", "parts": [1], "depth": 2.5, "deep": true, "note": null}')
    (examples / "b.json").write_text('{"data": {"topic": 7, "other": 1}, "pipeline": "else"}')
    (examples / "c.json").write_text("{")
    properties = seed_schema(RootCheck(root), "default")["properties"]
    types = {key: about["type"] for key, about in properties.items() if "examples" in about}
    assert types == {"topic": "string", "parts": "array", "depth": "number", "deep": "boolean", "note": "null"}
    assert properties["topic"]["examples"] == ["tides"]


def test_a_pipeline_that_is_broken_has_no_keys(root: Root) -> None:
    """And one that is not there neither; nothing is raised."""
    root.pipeline_file.write_text("{")
    for name in ("default", "nope"):
        assert seed_schema(RootCheck(root), name) == {"type": "object", "properties": {}, "required": []}


def test_a_form_becomes_a_seed(root: Root) -> None:
    """Texts stay as they are, other values are read as JSON; what was left empty is left out, unless it is needed."""
    properties = {"a": "string", "b": "number", "c": "array", "d": "boolean", "e": "string", "f": "string"}
    schema = {"properties": {key: {"type": kind} for key, kind in properties.items()}, "required": ["e"]}
    given = {"a": "1\r\n2", "b": "3", "c": "[1", "d": "", "e": "", "f": "", "g": "7"}
    fields = fields_of(schema, guessed=True, given=given)
    assert read_form(fields, given, guessed=True) == ({"a": "1\n2", "b": 3, "c": "[1", "e": ""}, [])
