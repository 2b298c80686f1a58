"""The form made from a pipeline's seed schema, without script; the same schema over the API and on the pipeline's page."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from pop.cli import pop as pop_group
from pop.commands.init import templates
from pop.seedcheck import Mistake, mistakes
from pop.seedfields import SeedField, fields_of, flat, put_errors, read_form
from pop.settings import Root
from tests.test_web_acts import fields_of as sent_by
from tests.test_web_acts import post, send, written
from tests.webbing import HOST, make_root, web_client

SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Everything a note needs.",
    "properties": {
        "topic": {"type": "string", "title": "Topic", "description": "what it is about", "examples": ["Tides"]},
        "body": {"type": "string"},
        "words": {"type": "integer", "minimum": 10, "maximum": 500, "default": 100},
        "weight": {"type": "number"},
        "tone": {"enum": ["dry", "warm", 3], "default": "dry"},
        "urgent": {"type": "boolean", "default": True},
        "open": {"type": "boolean"},
        "due": {"type": "string", "format": "date"},
        "nick": {"anyOf": [{"$ref": "#/$defs/short"}, {"type": "null"}]},
        "author": {
            "type": "object",
            "title": "Author",
            "properties": {"na/me": {"type": "string"}, "team": {"type": "string", "default": "sea"}},
            "required": ["na/me"],
        },
        "paths": {"type": ["string", "array"]},
        "sources": {"type": "array", "items": {"type": "string"}},
        "open-ended": {"type": "object"},
    },
    "required": ["topic", "body"],
    "additionalProperties": False,
    "$defs": {"short": {"type": "string", "maxLength": 9, "pattern": "^[a-z]*$"}},
}
BY_NAME = {"topic": "text", "body": "long", "words": "number", "weight": "number", "tone": "choice", "urgent": "tick",
           "open": "choice", "due": "date", "nick": "text", "author": "group", "author/na~1me": "long",
           "author/team": "text", "paths": "long", "sources": "json", "open-ended": "json"}  # fmt: skip


def fields(**more: Any) -> dict[str, SeedField]:
    return {one.name: one for one in flat(fields_of(SCHEMA, guessed=False, **more))}


def test_what_is_written_as_json_shows_its_form() -> None:
    """By its schema; an example goes first."""
    some = {"type": "array", "items": {"$ref": "#/$defs/one"}}
    one = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "of": {"enum": ["x"]}},
    }
    schema = {"properties": {"some": some, "shown": {**some, "examples": [[7]]}}, "$defs": {"one": one}}
    hints = {found.name: found.hint for found in fields_of(schema, guessed=False)}
    assert hints == {"some": '[{"name": "...", "age": 1, "of": "x"}]', "shown": "[\n  7\n]"}
    assert fields()["open-ended"].hint == '{"...": "..."}'


# -- fields ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_value_has_its_control() -> None:
    """By its type, its size, and whether it may be left out."""
    assert {name: one.kind for name, one in fields().items()} == BY_NAME
    assert fields()["words"].attributes == {"step": 1, "min": 10, "max": 500}
    assert fields()["tone"].choices == [('"dry"', "dry"), ('"warm"', "warm"), ("3", "3")]


def test_a_form_begins_with_defaults_and_on_demand_with_examples() -> None:
    """What may be left out as a whole begins empty, or it would never be."""
    begun = {name: one.value for name, one in fields().items() if one.value}
    assert begun == {"words": "100", "tone": '"dry"', "urgent": "true"}
    assert fields(example=True)["topic"].value == "Tides" and fields()["topic"].hint == "Tides"
    whole = {"properties": {"a": {"type": "string"}}, "examples": [{"a": "from a whole seed"}]}
    assert fields_of(whole, guessed=False, example=True)[0].value == "from a whole seed"


@pytest.mark.parametrize(
    ("given", "data"),
    [
        ({}, {"urgent": False}),
        ({"topic": "a\r\nb", "words": "12", "weight": "1.5", "tone": "3"}, {"topic": "a\nb", "words": 12, "weight": 1.5, "tone": 3}),
        ({"urgent": "true", "open": "false"}, {"urgent": True, "open": False}),
        ({"author/team": "sea"}, {"author": {"team": "sea"}}),
        ({"paths": "a.md"}, {"paths": "a.md"}),
        ({"paths": ' ["a.md"]'}, {"paths": ["a.md"]}),
        ({"sources": "[]", "body": "[1]", "nick": "7"}, {"sources": [], "body": "[1]", "nick": "7"}),
        ({"words": "many", "tone": "wet"}, {"words": "many", "tone": "wet"}),
        ({"unknown": "x"}, {}),
    ],
)  # fmt: skip
def test_what_is_filled_in_becomes_the_data(given: dict[str, str], data: dict[str, Any]) -> None:
    """What was left empty is left out; what is no number stays, for the schema to refuse."""
    found, wrong = read_form(fields_of(SCHEMA, guessed=False), given, guessed=False)
    assert found == {"urgent": False, **data} and wrong == []


def test_what_cannot_be_read_is_told_at_its_field() -> None:
    """And what has no field, above all."""
    form = fields_of(SCHEMA, guessed=False)
    data, unread = read_form(form, {"sources": "[1,", "author/team": "sea"}, guessed=False)
    elsewhere = put_errors(
        form, [*unread, *mistakes(SCHEMA, {**data, "sources": [1]}), Mistake(("x",), "is no key of it")]
    )
    told = {one.name: one.errors for one in flat(form) if one.errors}
    assert set(told) == {"sources", "author/na~1me", "topic", "body"} and elsewhere == ["x is no key of it"]
    assert told["sources"][0] == 'is no JSON: expecting value (such as ["..."])'
    assert told["sources"][1] == "[0] must be a text, this is a number"
    assert told["topic"] == ["is missing"]


@pytest.mark.parametrize(
    "schema", [{}, {"type": "object"}, {"$ref": "#"}, {"$ref": "#/x"}, {"properties": {"a": True}}]
)
def test_odd_schemas_make_a_form_or_none(schema: dict[str, Any]) -> None:
    """Whatever is valid."""
    assert [one.kind for one in fields_of(schema, guessed=False)] in ([], ["json"])


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = make_root(tmp_path / "root")
    root.pipeline_file.write_text(json.dumps({"name": "note", "tasks": ["one"], "seed": SCHEMA}))
    root.pipelines.mkdir()
    (root.pipelines / "free.json").write_text('{"tasks": ["one"]}')
    return root


@pytest.fixture
def client(root: Root) -> Iterator[TestClient]:
    with web_client(root) as client:
        client.headers["origin"] = HOST
        yield client


def control(html: str, name: str) -> str:
    found = re.search(rf'<(input|select|textarea)[^>]*name="f\.{re.escape(name)}"[^>]*>', html)
    assert found, name
    return found[0]


def test_the_page_says_what_each_field_is(client: TestClient) -> None:
    """Every control has a label and is described by its note; nothing in a group that may be left out is required."""
    html = client.get("/new").text
    assert "Everything a note needs." in html and "Made from the pipeline" in html
    for name, kind in BY_NAME.items():
        if kind == "group":
            continue
        tag = control(html, name)
        identity = re.search(r'id="([^"]*)"', tag)
        assert identity and f'for="{identity[1]}"' in html
    assert 'aria-describedby="f-topic-note"' in control(html, "topic") and " required" in control(html, "topic")
    assert " required" not in control(html, "author/na~1me") and "<fieldset" in html and "may be left out" in html
    assert 'type="number"' in control(html, "words") and 'min="10"' in control(html, "words")
    assert 'type="date"' in control(html, "due") and " checked" in html


def test_a_seed_of_the_form_fits_and_is_dropped(client: TestClient, root: Root) -> None:
    """With its defaults; a look drops nothing."""
    filled = {"f.topic": "Tides", "f.body": "They rise.", "f.tone": '"warm"', "f.sources": '["a"]'}
    looked = send(client, "/new", "/new", **filled, do="look")
    assert "What it would do" in looked.text and not list(root.pending.glob("*.json"))
    file = written(send(client, "/new", "/new", **filled, do="drop"))
    assert json.loads((root.path / file).read_bytes()) == {
        "topic": "Tides", "body": "They rise.", "words": 100, "tone": "warm", "urgent": False, "sources": ["a"],
    }  # fmt: skip


@pytest.mark.parametrize("do", ["look", "drop"])
def test_what_is_wrong_stands_at_its_field_and_what_was_typed_stays(client: TestClient, root: Root, do: str) -> None:
    """The summary leads there; nothing is written."""
    filled = {"f.topic": "", "f.body": "kept <b>", "f.words": "5", "f.sources": "[1,", "f.author/team": "sea"}
    refused = send(client, "/new", "/new", **filled, do=do)
    html = refused.text
    assert refused.status_code == 422 and 'role="alert"' in html and "Nothing was written" in html
    assert '<a href="#f-words">words</a>: must be at least 10, this is 5' in html
    assert 'aria-invalid="true"' in control(html, "words") and 'aria-describedby=" f-words-wrong"' in control(
        html, "words"
    )
    assert "kept &lt;b&gt;" in html and "[1," in html and 'value="5"' in html and "is no JSON" in html
    assert 'aria-invalid="true"' in control(html, "author/na~1me")
    assert " checked" not in html  # it was not ticked when it was sent
    assert not list(root.pending.glob("*.json"))


def test_pasted_and_sent_seeds_are_held_against_it_too(client: TestClient, root: Root) -> None:
    """Every wrong key is named; files can be looked at first."""
    refused = send(client, "/new?by=paste", "/new", text='{"topic": 1, "x": 2}', do="drop")
    assert refused.status_code == 422 and "topic must be a text" in refused.text and "x is no key of it" in refused.text
    assert "seed.json:1:11  topic" in refused.text or "body is missing" in refused.text
    given = sent_by(client.get("/new?by=upload").text, "/new")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("seed.json", '{"topic": "Tides", "body": "x"}')
    for name, data in (("a.json", b'{"topic": "Tides", "body": "x"}'), ("a.zip", archive.getvalue())):
        looked = post(client, "/new", {**given, "do": "look"}, [("file", (name, data))])
        assert "What it would do" in looked.text and "Choose the files once more" in looked.text, looked.text
    assert post(client, "/new", {**given, "do": "look"}, [("file", ("a.json", b"{}"))]).status_code == 422
    assert not [name for name in os.listdir(root.pending) if name != "rejected"]


def test_without_a_schema_the_page_says_that_it_guesses(client: TestClient) -> None:
    """And any key will do."""
    html = client.get("/new?pipeline=free&by=form").text
    assert re.search(r"it has no (<code>)?seed(</code>)? schema", html)
    written(send(client, "/new?pipeline=free&by=paste", "/new", text='{"any": 1}', do="drop"))


def test_a_pipelines_page_and_the_api_tell_the_schema(client: TestClient, root: Root) -> None:
    """And whether it is the pipeline's own."""
    html = client.get("/pipelines/default").text
    assert "author[&#34;na/me&#34;]" in html and "integer, minimum 10, maximum 500" in html
    assert "one of dry, warm, 3" in html and "A seed that does not fit this is refused" in html
    assert "this is a guess" in client.get("/pipelines/free").text
    client.headers["accept"] = "application/json"
    told = client.get("/api/pipelines/default").json()
    assert told["seed"] == SCHEMA and told["seed_guessed"] is False
    assert client.get("/api/pipelines/free").json()["seed_guessed"] is True


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"$ref": "#"}, {"properties": {"a": True, "b": {}}}])
def test_a_schema_that_says_little_has_its_pages(client: TestClient, root: Root, schema: dict[str, Any]) -> None:
    """Nothing in a schema need be there."""
    (root.pipelines / "free.json").write_text(json.dumps({"tasks": ["one"], "seed": schema}))
    for address in ("/pipelines", "/pipelines/free", "/new?pipeline=free", "/api/pipelines/free"):
        assert client.get(address).status_code == 200, address


@pytest.mark.parametrize("template", templates())
def test_what_a_template_begins_with_has_its_pages(tmp_path: Path, template: str) -> None:
    """A newcomer's first look."""
    folder = tmp_path / "begun"
    result = CliRunner().invoke(pop_group, ["init", str(folder), "--template", template], obj={})
    assert result.exit_code == 0, result.output
    with web_client(Root(folder)) as begun:
        for address in ("/", "/pipelines", "/pipelines/default", "/new", "/costs", "/compare", "/health", "/gates"):
            assert begun.get(address).status_code == 200, address


def test_the_api_names_every_wrong_key(client: TestClient, root: Root) -> None:
    """By its path, for programs."""
    client.headers["accept"] = "application/json"
    refused = client.post("/api/seeds", json={"topic": 1}, headers={"x-csrf-token": client.csrf})  # type: ignore[attr-defined]
    error = refused.json()["error"]
    assert refused.status_code == 422 and error["code"] == "seed-mismatch", refused.text
    assert sorted(one["path"] for one in error["wrong"]) == [["body"], ["topic"]]
    assert not list(root.pending.glob("*.json"))
