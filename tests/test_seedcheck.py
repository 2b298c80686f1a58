"""A pipeline's seed schema: what may stand in it, and that every seed is held against it, within bounds."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pop import seedcheck
from pop.drops import submit, submit_alone
from pop.errors import ConfigErrors
from pop.pipeline import load_pipeline, read_pipeline
from pop.rerun import changed_documents, documents_of
from pop.rootcheck import RootCheck
from pop.seedcheck import Mistake, SeedMismatch, is_quick, mistakes, refuse_misfit
from pop.settings import Root
from tests.living import LivingRoot
from tests.test_cli import pop

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "topic": {"type": "string", "minLength": 1, "description": "what to write about"},
        "words": {"type": "integer", "minimum": 10},
        "tone": {"enum": ["dry", "warm"]},
        "author": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["topic"],
    "additionalProperties": False,
}
EVIL = {"type": "object", "properties": {"topic": {"type": "string", "pattern": "^(a+)+$"}}}
HOSTILE = {"topic": "a" * 100 + "!"}


# -- what is wrong, in words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"topic": "x"}, []),
        ({}, ["topic is missing"]),
        ({"topic": ""}, ["topic must not be empty"]),
        ({"topic": 1, "words": 2.5}, ["topic must be a text, this is a number", "words must be a whole number, this is 2.5"]),
        ({"topic": "x", "words": 3, "tone": "drie"}, ["words must be at least 10, this is 3", 'tone must be one of "dry", "warm"']),
        ({"topic": "x", "author": {}}, ["author.name is missing"]),
        ({"topic": "x", "worms": 1}, ["worms is no key of it"]),
        ([], ["the data must be an object, this is a list"]),
    ],
)  # fmt: skip
def test_every_wrong_key_is_named(data: Any, told: list[str]) -> None:
    """In words for whoever writes seeds, with the path of the key."""
    assert sorted(map(str, mistakes(SCHEMA, data))) == sorted(told)


def test_a_hint_is_the_nearest_key_or_what_the_schema_says_of_it() -> None:
    """What to write instead."""
    hints = {one.path[-1]: one.hint for one in mistakes(SCHEMA, {"worms": 1, "tone": "dri"})}
    assert hints == {"worms": "did you mean 'words'?", "tone": "did you mean 'dry'?", "topic": "what to write about"}


@pytest.mark.parametrize(
    ("schema", "value", "told"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 1, "a must be a text or null, this is a number"),
        ({"anyOf": [{"type": "string"}, {"type": "object", "required": ["b"]}]}, {}, "a.b is missing"),
        ({"const": 1}, 2, "a must be 1"),
        ({"maxLength": 2}, "abc", "a must have at most 2 characters, this has 3"),
        ({"pattern": "^b"}, "abc", "a does not look like ^b"),
        ({"format": "date"}, "tomorrow", "a is no date"),
        ({"type": "array", "uniqueItems": True}, [1, 1], "a holds something twice"),
        ({"$ref": "#/$defs/n"}, "x", "a must be a number, this is a text"),
        ({"$ref": "#"}, {"a": {"a": 1}}, "a.a.a must be an object, this is a number"),
        ({"not": {}}, 1, "a does not fit: 1 should not be valid under {}"),
    ],
)  # fmt: skip
def test_other_keywords_have_words_too(schema: dict[str, Any], value: Any, told: str) -> None:
    """Those that are looked at in a process of their own as well."""
    whole = {"type": "object", "properties": {"a": schema}, "$defs": {"n": {"type": "number"}}}
    assert [str(one) for one in mistakes(whole, {"a": value})] == [told]


def test_a_reason_is_bounded() -> None:
    """Ten keys are named, and long names and values are cut."""
    data = {f"{number}" + "k" * 5000: "v" * 5000 for number in range(50)}
    with pytest.raises(SeedMismatch) as caught:
        refuse_misfit(SCHEMA, data, where="a.json", file="pipeline.json")
    told = caught.value.to_json()
    assert len(told["wrong"]) == 10 and len(json.dumps(told)) < 8000 and told["message"].endswith("; and more")
    assert told["code"] == "seed-mismatch" and told["where"] == "a.json"
    assert told["hint"].endswith("`seed` in pipeline.json says what it may hold")


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "quick"),
    [
        (SCHEMA, True),
        ({"items": {"type": "string"}, "format": "date"}, True),
        ({"properties": {"a": {"pattern": "x"}}}, False),
        ({"items": {"additionalProperties": {"anyOf": []}}}, False),
        ({"format": "regex"}, False),
        ({"uniqueItems": True}, False),
        ({"$ref": "#"}, False),
    ],
)
def test_only_linear_keywords_are_looked_at_here(schema: dict[str, Any], quick: bool) -> None:
    """Everything else may take for ever."""
    assert is_quick(schema) is quick


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        (EVIL, HOSTILE),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{"b": number} for number in range(5_000)]}),
    ],
)
def test_a_schema_that_takes_for_ever_is_given_up(schema: dict[str, Any], data: Any) -> None:
    """The kernel ends the process in the middle of it; the seed counts as wrong."""
    began = time.monotonic()
    assert "cannot be checked within " in str(mistakes(schema, data)[0])
    assert time.monotonic() - began < 45


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"items": {"$ref": "#"}, "type": "array"}])
def test_endless_recursion_is_a_mistake_of_the_seed(schema: dict[str, Any]) -> None:
    """Rather than the end of whoever looks."""
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    assert all("cannot be checked" in str(one) for one in mistakes(schema, deep))


def test_a_large_seed_is_looked_at_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """However plain the schema is."""
    asked: list[int] = []

    def elsewhere(schema: Any, text: bytes) -> list[Mistake]:
        asked.append(len(text))
        return []

    monkeypatch.setattr(seedcheck, "_found_elsewhere", elsewhere)
    assert mistakes(SCHEMA, {"topic": "x" * 100}) == [] and not asked
    assert mistakes(SCHEMA, {"topic": "x" * seedcheck.QUICK_BYTES}) == [] and asked


def test_where_no_process_begins_the_seed_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is our trouble."""
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(OSError, match="did not begin"):
        mistakes(EVIL, {"topic": "a"})


# -- the pipeline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ('"topic"', "pipeline.json:1:28  seed"),
        ('{"type": "strin"}', "did you mean 'string'?"),
        ('{"requird": ["a"]}', "unknown keyword 'requird'\n  where: pipeline.json:1:29  seed.requird\n  hint: did you mean 'required'?"),
        ('{"properties": {"a": {"pattern": "("}}}', "seed.properties.a.pattern"),
        ('{"$ref": "https://example.org/seed.json"}', "leads nowhere"),
        ('{"$ref": "seed.schema.json"}', "keep what it names under $defs in the same file"),
    ],
)  # fmt: skip
def test_a_schema_is_checked_with_its_place(schema: str, told: str) -> None:
    """By the same means as those of tasks."""
    text = f'{{"tasks": ["one"], "seed": {schema}}}'
    _, problems = read_pipeline(text.encode(), where="pipeline.json", name="default", known_tasks=["one"])
    assert told in "\n".join(map(str, problems)) and problems


def test_a_pipeline_keeps_its_schema_and_a_near_name_is_hinted_at() -> None:
    """`seed` stands at the top."""
    data = json.dumps({"tasks": ["one"], "seed": SCHEMA}).encode()
    assert load_pipeline(data, where="p", name="default").seed == SCHEMA
    assert load_pipeline(b'{"tasks": ["one"]}', where="p", name="default").seed is None
    with pytest.raises(ConfigErrors) as caught:
        load_pipeline(b'{"tasks": ["one"], "seeds": {}}', where="p", name="default")
    assert "did you mean 'seed'?" in str(caught.value)


def make_root(path: Path, prompt: str = "{{ seed.topic }}", schema: Any = SCHEMA, **more: Any) -> Root:
    root = Root(path)
    root.tasks.mkdir(parents=True)
    (root.tasks / "one.md").write_text(prompt)
    document = {"tasks": ["one"], **more} | ({"seed": schema} if schema is not None else {})
    root.pipeline_file.write_text(json.dumps(document))
    (path / "pop.toml").write_text("")
    return root


@pytest.mark.parametrize(
    ("prompt", "tasks", "told"),
    [
        ("{{ seed.topik }}", None, "one.md:1:9\n  hint: did you mean 'topic'?"),
        ("{{ seed.author.nam }}", None, ""),  # an author may have more keys
        ("{% if seed.place %}x{% endif %}", None, "no key 'place'"),
        ("{{ seed.place | default('here') }}{% if seed.topic %}{{ seed.town }}{% endif %}", None, ""),
        ("x", [{"each": "seed.parts", "do": "one"}], "pipeline.json:1:21  tasks[0].each"),
        ("x", [{"task": "one", "when": "seed.topik == 'x'"}], "did you mean 'topic'?"),
    ],
)
def test_what_is_read_in_any_case_and_no_seed_can_have(
    tmp_path: Path, prompt: str, tasks: list[Any] | None, told: str
) -> None:
    """It is an error of `pop check`; what may not be read is none."""
    root = make_root(tmp_path, prompt, tasks=tasks or ["one"])
    found = "\n".join(str(one) for one in RootCheck(root).problems() if "seed" in str(one))
    assert told in found and bool(found) is bool(told)


def test_what_is_read_in_any_case_and_not_required_is_a_note(tmp_path: Path) -> None:
    """A seed without it would pass, and its run fail."""
    notes = RootCheck(make_root(tmp_path, "{{ seed.topic }} {{ seed.words }}")).notes()
    assert notes == [
        "task 'one' reads seed.words in any case, and the seed schema of pipeline 'default' does not require it: "
        "add it to `required`, or read {{ seed.words | default(...) }}"
    ]


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_pop_check_tells_each_mistake_with_line_and_column(tmp_path: Path) -> None:
    """Of a seed with an envelope and of one without."""
    root = make_root(tmp_path / "root")
    seed = tmp_path / "a.json"
    seed.write_text('{"data": {\n "words": 3}}')
    told = pop("check", seed, root=root.path)
    assert told.returncode == 3
    assert f"words must be at least 10, this is 3\n  where: {seed}:2:11  data.words" in told.stdout
    assert f"topic is missing\n  where: {seed}:1:10  data.topic\n  hint: what to write about" in told.stdout
    seed.write_text('{"topic": 1}')
    assert f"{seed}:1:11  topic" in pop("check", seed, root=root.path).stdout
    seed.write_text('{"topic": "tides"}')
    assert pop("check", seed, root=root.path).returncode == 0


@pytest.mark.parametrize("put", [submit, submit_alone])
@pytest.mark.parametrize("kind", ["file", "folder", "zip"])
def test_a_seed_that_does_not_fit_does_not_enter_the_queue(tmp_path: Path, put: Any, kind: str) -> None:
    """Whatever it comes as; the place is that in what was given."""
    root = make_root(tmp_path / "root")
    bad = '{"data": {"topic": 1}}'
    source = tmp_path / {"file": "s.json", "folder": "s", "zip": "s.zip"}[kind]
    if kind == "file":
        source.write_text(bad)
    elif kind == "folder":
        source.mkdir()
        (source / "seed.json").write_text(bad)
    else:
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("seed.json", bad)
    with pytest.raises(SeedMismatch) as caught:
        put(root, str(source))
    inner = "" if kind == "file" else "/seed.json"
    assert caught.value.where == f"{source}{inner}:1:20  data.topic"
    assert caught.value.wrong == [Mistake(("topic",), "must be a text, this is a number", "what to write about")]
    assert not list(root.pending.iterdir())


def test_pop_run_refuses_at_once(tmp_path: Path) -> None:
    """Before a daemon is started."""
    root = make_root(tmp_path / "root", "x")
    seed = tmp_path / "a.json"
    seed.write_text("{}")
    done = pop("run", seed, root=root.path)
    assert done.returncode == 3 and "seed-mismatch: it does not fit its pipeline: topic is missing" in done.stderr
    assert not root.current.exists() or not list(root.current.iterdir())


@pytest.mark.parametrize("given", ["a.json", "-"])
def test_a_seed_that_does_not_fit_has_no_plan(tmp_path: Path, given: str) -> None:
    """Nor is it applied."""
    root = make_root(tmp_path / "root", "x")
    (tmp_path / "a.json").write_text('{"topic": ""}')
    what = given if given == "-" else tmp_path / given
    done = pop("plan", what, "--apply", root=root.path, input='{"topic": ""}')
    assert done.returncode == 3 and "topic must not be empty" in done.stderr
    assert not root.pending.exists() or not list(root.pending.glob("*.json"))


def test_another_value_is_held_against_the_runs_own_schema(tmp_path: Path) -> None:
    """`pop rerun --set`, in place and as a fork; not the pipeline as it stands now."""
    (tmp_path / "pipeline.json").write_text(json.dumps({"tasks": ["one"], "seed": SCHEMA}))
    (tmp_path / "seed.json").write_text('{"data": {"topic": "x", "words": 10}}')
    (tmp_path / "events.jsonl").write_text("")
    documents = documents_of(tmp_path)
    with pytest.raises(SeedMismatch) as caught:
        changed_documents(tmp_path, documents, {"seed.words": 3}, "default")
    assert caught.value.where == "--set seed.words" and "words must be at least 10" in caught.value.message
    assert (
        json.loads(changed_documents(tmp_path, documents, {"seed.words": 30}, "default")["seed"])["data"]["words"] == 30
    )


# -- the daemon --------------------------------------------------------------------------------------------------------

TASKS = {"one.py": "def infer(prompt, ctx):\n    return {'topic': ctx.seed['topic']}\n"}


def reason_of(living: LivingRoot, name: str) -> Any:
    path = living.root.rejected / f"{name}.reason.json"
    living.wait(path.exists, f"a reason for {name}")
    return json.loads(path.read_bytes())


def test_the_daemon_rejects_what_does_not_fit_and_names_every_key(make_living: Any) -> None:
    """And runs the others; the seed lies in rejected/ as it was dropped."""
    living = make_living(pipeline={"tasks": ["one"], "seed": SCHEMA}, tasks=TASKS)
    living.up()
    living.drop("bad.json", {"words": 3, "topc": 1})
    living.drop("good.json", {"topic": "tides"})
    reason = reason_of(living, "bad.json")
    assert reason["code"] == "seed-mismatch" and reason["where"] == "bad.json"
    assert {tuple(one["path"]) for one in reason["wrong"]} == {("words",), ("topc",), ("topic",)}
    assert json.loads((living.root.rejected / "bad.json").read_bytes()) == {"words": 3, "topc": 1}
    [record] = living.wait_complete(1)
    assert living.output(record, "one") == {"topic": "tides"}
    living.wait(lambda: not list(living.root.current.iterdir()), "no folder is left")


def test_hostile_seeds_hold_up_nobody(make_living: Any) -> None:
    """While they are looked at, seeds of other pipelines run; and a daemon that is killed meanwhile rejects them later."""
    living = make_living(pipeline={"tasks": ["one"], "seed": EVIL}, tasks=TASKS)
    living.root.pipelines.mkdir()
    (living.root.pipelines / "plain.json").write_text(json.dumps({"tasks": ["one"], "seed": SCHEMA}))
    for number in range(3):
        living.drop(f"evil{number}.json", HOSTILE)
    daemon = living.up()
    living.wait(lambda: list(living.root.current.glob("*/seed.claim")), "a claim")
    living.drop("good.json", {"data": {"topic": "tides"}, "pipeline": "plain"})
    living.wait_complete(1)
    assert not list(living.root.rejected.iterdir())  # the good one came through first
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    left = [
        *living.root.current.glob("*/seed.claim"),
        *living.root.pending.glob("*.json"),
        *living.root.rejected.glob("evil?.json"),
    ]
    assert len(left) == 3
    living.up()
    for number in range(3):
        assert "cannot be checked" in reason_of(living, f"evil{number}.json")["message"]
    assert living.wait(lambda: not os.listdir(living.root.current), "no folder is left")
