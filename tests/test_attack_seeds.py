"""Schemas of seeds that nobody should write: no page breaks, and every mistake is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pop.changes import Recorded
from pop.drops import seed_of
from pop.errors import UsageError
from pop.rootcheck import RootCheck
from pop.seedcheck import mistakes
from pop.settings import Root
from tests.test_web_acts import send
from tests.webbing import HOST, make_root, web_client

DRAFT_3, DRAFT_4 = (f"http://json-schema.org/draft-0{number}/schema#" for number in (3, 4))
OF_DATA: tuple[dict[str, Any], ...] = (
    {"properties": 5, "type": 7, "examples": 3, "anyOf": 4},
    {"properties": {"a": 7}, "type": ["object", {}], "required": 5},
    {"enum": 5, "title": {"a": 1}, "const": []},
    {"type": "string", "maxLength": "no", "format": {}},
)
ODD: list[dict[str, Any]] = [
    {"$schema": DRAFT_3, "properties": {"a": {"type": "string", "required": True}}, "required": True},
    {"$schema": DRAFT_3, "type": ["object", {"type": "string"}], "properties": {"a": {"type": ["string", {}]}}},
    {
        "$schema": DRAFT_4,
        "examples": 5,
        "properties": {"a": {"type": "integer", "exclusiveMinimum": True, "minimum": 3, "examples": 7}},
    },
    {"$ref": "#/x-a", "x-a": {"type": "object", "properties": [1, 2]}},
    *({"properties": {"x": {"$ref": "#/properties/y/default"}, "y": {"default": data}}} for data in OF_DATA),
]
FORM = {"do": "look", "f.a": "x", "f.x": '{"a": 1}'}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


def give(root: Root, schema: Any) -> None:
    root.pipeline_file.write_text(json.dumps({"seed": schema, "tasks": ["one"]}))


@pytest.mark.parametrize("schema", ODD)
def test_pages_stand_schemas_of_old_drafts_and_references_into_data(root: Root, schema: dict[str, Any]) -> None:
    give(root, {"type": "object", **schema})
    with web_client(root) as client:
        for path in ("/new", "/new?example=1", "/pipelines/default"):
            assert client.get(path).status_code == 200, path
        client.headers["origin"] = HOST
        sent = send(client, "/new", "/new", **FORM)
        assert sent.status_code in (200, 400, 422), sent.text[:500]


def test_what_cannot_be_looked_at_is_told_as_it_is() -> None:
    """Not as if it had taken too long."""
    schema = {"properties": {"x": {"$ref": "#/properties/y/default"}, "y": {"default": OF_DATA[0]}}}
    (wrong,) = mistakes(schema, {"x": {"a": 1}})
    assert wrong.message.startswith("cannot be checked: ") and "within" not in wrong.message
    (wrong,) = mistakes(ODD[0], {})
    assert "required" in wrong.message


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"$schema": 5}, '"$schema" must be a text'),
        ({"$schema": []}, '"$schema" must be a text'),
        ({"properties": {"a": {"$dynamicRef": "#nowhere"}}}, "\"$dynamicRef\": '#nowhere' leads nowhere"),
        ({"properties": {"a": {"$dynamicRef": "http://a/b"}}}, "\"$dynamicRef\": 'http://a/b' leads nowhere"),
    ],
)
def test_a_schema_that_no_seed_could_be_held_against_is_a_mistake(root: Root, schema: Any, told: str) -> None:
    give(root, schema)
    assert told in [error.message for error in RootCheck(root).pipelines["default"].problems]


@pytest.mark.parametrize("lost", ["gone", "folder", "pipe"])
def test_a_replay_of_a_run_that_lost_its_seed_says_so(root: Root, lost: str) -> None:
    run = root.complete / "20261121-000001-a-0001"
    run.mkdir()
    if lost == "folder":
        (run / "seed.json").mkdir()
    elif lost == "pipe":
        os.mkfifo(run / "seed.json")
    with pytest.raises(UsageError, match="cannot be read"), seed_of(Recorded(run, "default", f"replay:{run.name}")):
        pass


def test_a_daemon_that_ends_waits_for_no_check_of_a_seed(make_living: Any) -> None:
    """What was claimed lies there still, and the next daemon looks at it."""
    slow = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    living = make_living(
        pipeline={"seed": slow, "tasks": ["one"]}, tasks={"one.py": "def infer(prompt, ctx):\n    return {}\n"}
    )
    names = [f"slow{number}.json" for number in range(5)]
    for name in names:
        living.drop(name, {"a": "a" * 40 + "b"})
    living.up()
    living.wait(lambda: len(list(living.root.current.glob("*/seed.claim"))) == len(names), "claims")
    living.daemons[-1].terminate()
    living.daemons[-1].wait(60)
    assert "daemon.stopped" in living.log() and "seed.broken" not in living.log()
    left = list(living.root.current.glob("*/seed.claim"))
    assert len(left) >= len(names) - 2 and len(left) + len(list(living.root.rejected.glob("slow?.json"))) == len(names)
    living.up()
    living.wait(lambda: sorted(path.name for path in living.root.rejected.glob("slow?.json")) == names, "all refused")
