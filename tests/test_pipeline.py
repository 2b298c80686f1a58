"""The pipeline language: what it means, and that every mistake is found at its own place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pop.durations import seconds
from pop.errors import ERROR_CLASSES, ConfigErrors
from pop.expression_sandbox import FILTER_NAMES, TEXT_METHODS
from pop.pipeline import (
    KEYS,
    MAX_NESTING,
    MAX_STEPS,
    TOP_KEYS,
    Each,
    Gate,
    Parallel,
    Pipeline,
    Repeat,
    Sequence,
    Task,
    _Kind,
    instance_name,
    load_pipeline,
    pipeline_schema,
    read_pipeline,
)
from pop.remedies import CURES
from pop.steps import Action, At, Remedy

SCHEMA = Draft202012Validator(pipeline_schema())


def load(document: Any, **options: Any) -> Pipeline:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return load_pipeline(data, where="pipeline.json", name="default", **options)


def steps(*entries: Any, **options: Any) -> Pipeline:
    return load({"tasks": list(entries)}, **options)


def problems(document: Any, **options: Any) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(document, **options)
    return [str(problem) for problem in caught.value.problems]


def problem(*entries: Any, **options: Any) -> str:
    (only,) = problems({"tasks": list(entries)}, **options)
    return only


# ---- what it means ----------------------------------------------------------------------------------------------


def test_a_step_may_be_just_the_name_of_a_task() -> None:
    """The smallest pipeline is a list of names."""
    assert list(steps("a", "b").tasks.values()) == [Task("a", "a"), Task("b", "b")]


def test_a_name_alone_is_also_the_task() -> None:
    """`{"name": "facts", "needs": []}` runs the task facts."""
    assert steps({"name": "facts", "needs": []}).tasks["facts"] == Task("facts", "facts", needs=())


def test_every_option_of_a_step_is_read() -> None:
    """Durations in seconds whatever their unit, everything else as written."""
    options = {"with": {"x": 1}, "model": "large", "timeout": "5m", "stall": 90, "attempts": 3, "refinements": 0}
    more = {"memory_mb": 512, "output_mb": 0.5}
    assert steps({"task": "write", "name": "draft", **options, **more}).tasks["draft"] == Task(
        "draft", "write", None, None, {"x": 1}, "large", 300.0, 90.0, 3, 0, 512, 0.5
    )


def test_blocks_nest() -> None:
    """A list is a chain, `do` a chain with a condition, `parallel` and `each` hold any block."""
    each = {"each": "seed.parts", "do": [{"parallel": ["a", ["b", "c"]]}], "name": "parts"}
    root = steps(each, {"do": "d", "when": "seed.x == 1"}).root
    parts, conditional = root.inner
    assert isinstance(parts, Each)
    assert (parts.name, parts.over.text) == ("parts", "seed.parts")
    assert isinstance(parts.do, Sequence)
    (parallel,) = parts.do.inner
    assert isinstance(parallel, Parallel)
    assert [type(inner) for inner in parallel.inner] == [Task, Sequence]
    assert isinstance(conditional, Sequence)
    assert conditional.when is not None


def test_the_top_of_the_file_is_read() -> None:
    """Name, description, models and concurrency belong to the whole."""
    top = {"name": "brief", "description": "A brief.", "models": {"default": "large"}, "concurrency": 4}
    read = load({**top, "tasks": ["a"], "$schema": "x.json"})
    assert (read.name, read.description, read.models, read.concurrency) == (*top.values(),)
    assert load({"tasks": ["a"]}).name == "default"


def test_ancestors_follow_order_needs_and_blocks() -> None:
    """What a step may read is what has ended whenever it begins."""
    of = steps("a", {"task": "b", "needs": []}, {"parallel": ["c", ["d", "e"]]}, {"task": "f", "needs": ["c"]}, "g")
    known = {name: "".join(sorted(of.ancestors(name))) for name in of.tasks}
    assert known == {"a": "", "b": "", "c": "ab", "d": "ab", "e": "abd", "f": "abc", "g": "abcdef"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [("90s", 90.0), ("5m", 300.0), ("1.5h", 5400.0), ("250ms", 0.25), ("2d", 172800.0), (10, 10.0), (0.5, 0.5)],
)
def test_durations(written: Any, meant: float) -> None:
    """A number is seconds; a text has a unit."""
    assert seconds(written) == meant


@pytest.mark.parametrize("written", ["5", "5 minutes", "-5s", "0s", 0, -1, "40d", True, None, [], "", "1h30m"])
def test_what_is_no_duration(written: Any) -> None:
    """Refused rather than guessed."""
    assert "`timeout`" in problem({"task": "a", "timeout": written})


def test_instances_are_named_by_item_and_lap() -> None:
    """The name is the folder under tasks/, so it stays as it is."""
    assert instance_name("draft", At()) == "draft"
    assert instance_name("draft", At((2, 0))) == "draft.2.0"
    assert instance_name("draft", At((2,), (1,))) == "draft.2@1"


LOOP = {"repeat": ["a"], "until": "lap > 3", "at_most": 3}


def test_a_loop_is_read() -> None:
    """It is called by its first step; inside it expressions know `lap` and `laps`, and later steps of it."""
    given = {"until": "inputs.review.score >= 8 and lap > 1", "score": "laps.review[-1].score", "checks": "inputs.a.ok"}
    body = ["review", {"task": "revise", "when": "inputs.revise is none or laps.revise | length > 1"}]
    of = steps("a", {"repeat": body, **given, "at_most": 5, "otherwise": "keep-best", "when": "seed.x == 1"})
    loop = of.blocks["review-loop"]
    assert isinstance(loop, Repeat)
    assert [block.name for block in loop.body.inner] == ["review", "revise"]
    assert (loop.until.text, loop.at_most, loop.otherwise) == (given["until"], 5, "keep-best")
    assert loop.score and loop.score.expects == "number" and loop.score.laps == {"review"}
    assert loop.checks and loop.checks.expects == "bool" and loop.when
    assert of.repeats["revise"] == (loop,)


def test_the_body_of_a_loop_may_be_any_step() -> None:
    """One task, or a block."""
    one = steps({**LOOP, "repeat": "b", "name": "again"}).blocks["again"]
    side = steps({**LOOP, "repeat": {"parallel": ["b", "c"]}}).blocks["b-loop"]
    within = steps({**LOOP, "repeat": {**LOOP, "repeat": ["b"], "name": "inner"}})
    assert isinstance(one, Repeat) and one.body.inner == (Task("b", "b"),)
    assert isinstance(side, Repeat) and isinstance(side.body.inner[0], Parallel)
    assert [loop.name for loop in within.repeats["b"]] == ["b-loop", "inner"]


def test_a_gate_is_read() -> None:
    """It is a step, and its answer an input like another."""
    words = {"show": ["plan"], "text": "Is it good?", "timeout": "1h", "on_timeout": "reject"}
    of = steps("plan", {"approve": "plan-ok", **words}, {"task": "b", "when": "inputs.plan_ok.decision == 'approve'"})
    assert of.steps["plan-ok"] == Gate("plan-ok", ("plan",), "Is it good?", 3600.0, "reject")
    assert list(of.tasks) == ["plan", "b"]
    assert steps({"approve": "go"}).steps["go"] == Gate("go")


def test_recoveries_and_views_are_read() -> None:
    """At the top for all steps, in a step for it; one action or one for each failure."""
    table = {"timeout": ["retry-longer", "model:large", "ask"], "auth": "fail"}
    meant = {"timeout": (Action("retry-longer"), Action("model", "large"), Action("ask")), "auth": (Action("fail"),)}
    of = load({"tasks": [{"task": "a", "recover": table}], "recover": table, "views": ["board"]}, known_views=["board"])
    assert of.recover == meant == of.tasks["a"].recover
    assert of.views == ("board",)


# ---- mistakes ---------------------------------------------------------------------------------------------------


def test_every_mistake_is_reported_at_once_in_reading_order() -> None:
    """Each with file, line, column, path, and the nearest name."""
    text = b"""{
  "tasks": [
    {"task": "outlin", "timeot": "5m"},
    {"task": "draft", "attempts": 0, "when": "input.x"},
    {"each": "seed.parts", "do": "draft"}
  ],
  "modles": {}
}"""
    said = "\n".join(problems(text, known_tasks=["outline", "draft"]))
    assert (
        said
        == """\
unknown-task: no task 'outlin'
  where: pipeline.json:3:14  tasks[0].task
  hint: did you mean 'outline'?
invalid-config: unknown key 'timeot'
  where: pipeline.json:3:24  tasks[0].timeot
  hint: did you mean 'timeout'?
invalid-config: `attempts` must be a whole number from 1 to 100
  where: pipeline.json:4:35  tasks[1].attempts
invalid-config: unknown name 'input'
  where: pipeline.json:4:46  tasks[1].when
  hint: did you mean 'inputs'?
name-taken: the name 'draft' is taken
  where: pipeline.json:5:34  tasks[2].do
  hint: it stands first at pipeline.json:4:14  tasks[1].task; give this one a `name` of its own
invalid-config: unknown key 'modles'
  where: pipeline.json:7:3  modles
  hint: did you mean 'models'?"""
    )


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (3, "a step must be a task's name, an object, or a list of steps"),
        ({}, "a step needs one of `task`, `parallel`, `each`, `do`, `repeat`, `approve`"),
        ("Über", "a task must be a name"),
        ("../x", "a task must be a name"),
        ({"task": "a", "name": "a.b"}, "`name` must be a name"),
        ({"task": "a", "needs": "b"}, "`needs` must be a list of names of steps"),
        ({"task": "a", "with": []}, "`with` must be an object"),
        ({"task": "a", "when": True}, "must be an expression, written as a text"),
        ({"task": "a", "when": "item.x"}, "only inside an `each`"),
        ({"task": "a", "memory_mb": 1}, "`memory_mb` must be a whole number from 64"),
        ({"task": "a", "attempts": True}, "`attempts` must be a whole number"),
        ({"task": "a", "do": "b"}, "unknown key 'do'"),
        ({"parallel": []}, "must be a list of at least one step"),
        ({"parallel": "a"}, "must be a list of at least one step"),
        ({"each": "seed.x"}, "`do` is missing"),
        ({"each": ["a"], "do": "a"}, "must be an expression, written as a text"),
        ({"each": "seed.x", "do": "a", "timeout": 5}, "unknown key 'timeout'"),
        (LOOP | {"at_most": 0}, "`at_most` must be a whole number from 1 to 1000"),
        (LOOP | {"otherwise": "keep-best"}, "`keep-best` needs a `score`"),
        (LOOP | {"otherwise": "stop"}, '`otherwise` must be "fail", "ask" or "keep-best"'),
        (LOOP | {"repeat": []}, "must be a list of at least one step"),
        (LOOP | {"until": 3}, "must be an expression, written as a text"),
        (LOOP | {"until": "laps.b[0].score > 3"}, "reads an unknown step 'b'"),
        (LOOP | {"until": "inputs.x.score > 3"}, "reads an unknown step 'x'"),
        (LOOP | {"when": "lap > 1"}, "`lap` has a meaning only inside a `repeat`"),
        (LOOP | {"task": "a"}, "unknown key 'task'"),
        ({"repeat": ["a"], "at_most": 3}, "`until` is missing"),
        ({"repeat": ["a"], "until": "lap > 3"}, "`at_most` is missing"),
        ({"repeat": ["a" * 64], "until": "lap > 3", "at_most": 3}, "is too long for a name"),
        ({"task": "a", "until": "seed.x"}, "`until` belongs to a step with `repeat`"),
        ({"parallel": ["a"], "at_most": 3}, "`at_most` belongs to a step with `repeat`"),
        ({"task": "a", "show": []}, "`show` belongs to a step with `approve`"),
        ({"approve": "Plan!"}, "`approve` must be a name"),
        ({"approve": "plan", "name": "x"}, "the name of a gate is what stands behind `approve`"),
        ({"approve": "plan", "show": ["plan"]}, "a gate cannot show itself"),
        ({"approve": "plan", "show": "a"}, "`show` must be a list of names of steps"),
        ({"approve": "plan", "show": ["x"]}, "no step 'x' comes before this gate"),
        ({"approve": "plan", "text": " "}, "`text` must be a text"),
        ({"approve": "plan", "timeout": "soon"}, "`timeout` must be a duration"),
        ({"approve": "plan", "on_timeout": "reject"}, "`on_timeout` means nothing without a `timeout`"),
        (
            {"approve": "plan", "timeout": "1h", "on_timeout": "yes"},
            '`on_timeout` must be "wait", "reject" or "approve"',
        ),
        ({"approve": "plan", "attempts": 2}, "unknown key 'attempts'"),
        ({"task": "a", "recover": []}, "`recover` must be an object"),
        ({"task": "a", "recover": {"auht": "ask"}}, "no class of errors 'auht'"),
        (
            {"task": "a", "recover": {"auth": "retry"}},
            "auth errors are not cured by retry; they can be: model, ask, fail",
        ),
        ({"task": "a", "recover": {"bug": ["ask", "model:x"]}}, "bug errors are not cured by model"),
        ({"task": "a", "recover": {"timeout": "retry-lnger"}}, "did you mean 'retry-longer'?"),
        ({"task": "a", "recover": {"timeout": "model"}}, "must name the model"),
        ({"task": "a", "recover": {"timeout": "retry:3"}}, "must be one of retry"),
        ({"task": "a", "recover": {"timeout": 3}}, "must be one of retry"),
        ({"task": "a", "recover": {"timeout": []}}, "must be an action, or a list of at least one"),
        ({"task": "a", "recover": {"interrupted": "fail"}}, "`interrupted` cannot be set"),
    ],
)
def test_each_mistake_is_named(entry: Any, said: str) -> None:
    """One mistake, one problem."""
    assert said in problem(entry)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not valid JSON"),
        (b'{"tasks": ["a"', "bad-json: not valid JSON: expecting ',' delimiter\n  where: pipeline.json:1:15"),
        (b"[]", "a pipeline must be an object"),
        (b"{}", "`tasks` is missing"),
        (b'{"tasks": "a"}', "must be a list of at least one step"),
        (b'{"tasks": []}', "must be a list of at least one step"),
        (b'{"tasks": ["a"], "tasks": ["b"]}', "stands twice"),
        (b'{"tasks": [NaN]}', "NaN"),
        (b"\xff\xfe{}", "byte order mark"),
        (b'{"tasks": ["\xff"]}', "not UTF-8"),
        (b'{"tasks": ' + b"[" * 100_000, "nested"),
        (b" " * 5_000_000, "too many"),
        (b'{"tasks": ["a"], "models": {"x": 1}}', "`models` must be an object of names of models"),
        (b'{"tasks": ["a"], "concurrency": 0}', "`concurrency` must be a whole number"),
        (b'{"tasks": ["a"], "budget": {"run_euro": 1}}', "knows no 'run_euro'"),
        (b'{"tasks": ["a"], "budget": {"run_calls": 1.5}}', "'run_calls' must be a whole number"),
        (b'{"tasks": [{"task": "a", "budget": {"step_tokens": 0.5}}]}', "'step_tokens' must be a whole number"),
        (b'{"tasks": [{"task": "a", "budget": {"run_usd": 1}}]}', "knows no 'run_usd'"),
    ],
)
def test_a_broken_file_is_one_clear_error(data: bytes, said: str) -> None:
    """Hostile bytes included; never a traceback."""
    (only,) = problems(data)
    assert said in only


def test_needs_must_exist() -> None:
    """The nearest name is offered, at the entry of the list."""
    said = problem("outline", {"task": "a", "needs": ["outlin"]})
    assert said.startswith("unknown-step: no step 'outlin' in this pipeline\n  where: pipeline.json:1:")
    assert said.endswith("tasks[1].needs[0]\n  hint: did you mean 'outline'?")


@pytest.mark.parametrize(
    ("entries", "circle"),
    [
        (({"task": "a", "needs": ["b"]}, {"task": "b", "needs": ["a"]}), "a → b → a"),
        (({"task": "a", "needs": ["a"]},), "a → a"),
        (({"task": "a", "needs": ["b"]}, "b"), "a → b → a"),
        (({"parallel": [{"task": "foo", "needs": ["all"]}], "name": "all"},), "foo → foo"),
        (({"each": "seed.x", "do": ["a", {"task": "b", "needs": ["c"]}]}, "c"), "b → c → b"),
    ],
)
def test_cyclic_needs_are_found(entries: Any, circle: str) -> None:
    """Also those that come about by the order of the file or by a block that waits for its own step."""
    assert f"cyclic-needs: these wait for each other: {circle}\n" in problem(*entries)


def test_expressions_may_read_only_what_came_before() -> None:
    """An unknown step gets the nearest name; a later one, or one beside it, is told to be later."""
    assert "hint: did you mean 'outline'?" in problem("outline", {"task": "a", "when": "inputs.outlin.x"})
    assert "does not come before it" in problem({"task": "a", "when": "inputs.b.x"}, "b")
    assert "does not come before it" in problem({"parallel": ["a", {"task": "b", "when": "inputs.a.x"}]})
    assert steps("plan-a", {"task": "b", "when": "inputs.plan_a.x"}).tasks["b"].when is not None


def test_an_expression_with_two_mistakes_tells_both() -> None:
    """A misspelt filter does not hide a misspelt step."""
    said = "\n".join(problems({"tasks": ["outline", {"task": "a", "when": "inputs.outlin.x | lenght > sed.y"}]}))
    assert "did you mean 'outline'?" in said and "did you mean 'length'?" in said and "did you mean 'seed'?" in said


def test_models_must_exist() -> None:
    """Where a step or the top of the file names one; what the top of the file renames is known below it."""
    known = ["default", "large"]
    assert steps({"task": "a", "model": "large"}, known_models=known)
    assert load({"tasks": [{"task": "a", "model": "fast"}], "models": {"fast": "large"}}, known_models=known)
    said = problem({"task": "a", "model": "larg"}, known_models=known)
    assert said.startswith("unknown-model: no model 'larg'\n  where: pipeline.json:1:")
    assert said.endswith("tasks[0].model\n  hint: did you mean 'large'?")
    (said,) = problems({"tasks": ["a"], "models": {"default": "larg"}}, known_models=known)
    assert "models.default\n  hint: did you mean 'large'?" in said


def test_models_of_recoveries_must_exist() -> None:
    """At their place in the list."""
    said = problem({"task": "a", "recover": {"timeout": ["retry", "model:larg"]}}, known_models=["large"])
    assert said.startswith("unknown-model: no model 'larg'\n  where: pipeline.json:1:")
    assert said.endswith("tasks[0].recover.timeout[1]\n  hint: did you mean 'large'?")


def test_views_must_exist() -> None:
    """As far as it is known which there are."""
    (said,) = problems({"tasks": ["a"], "views": ["bord"]}, known_views=["board"])
    assert said.startswith("unknown-view: no view 'bord'") and said.endswith("views[0]\n  hint: did you mean 'board'?")
    (said,) = problems({"tasks": ["a"], "views": "board"})
    assert "`views` must be a list of names of views" in said


def test_a_loop_ends_by_what_is_in_it_or_before_it() -> None:
    """A step behind the loop, or beside it, is told to be neither."""
    loop = {"repeat": ["a", "b"], "until": "inputs.c.ok", "at_most": 2}
    assert "reads step 'c', which is neither in the loop nor before it" in problem(loop, "c")
    assert steps("c", loop | {"until": "inputs.c.ok and inputs.a.ok"})
    assert "reads step 'c', which is in no loop around this place" in problem(
        "c", loop | {"until": "laps.c | length > 1"}
    )
    assert "`laps` has a meaning only inside a `repeat`" in problem("c", {"task": "d", "when": "laps.c"})
    said = problem({"parallel": [LOOP, "c"]}, {"approve": "d", "show": ["c", "e"]}, "e")
    assert "`show` names step 'e', which does not come before the gate\n" in said and "show[1]" in said


@pytest.mark.parametrize("until", ["inputs.c.ok", "inputs['c'].ok and seed.x"])
def test_an_until_that_reads_only_steps_outside_its_loop_is_refused(until: str) -> None:
    """It would say the same in every lap; beside a step of the loop, or `lap`, others may be read."""
    loop = {"repeat": ["a", "b"], "until": until, "at_most": 2}
    said = problem("c", loop)
    assert said.startswith(
        f"until-outside: `{until}` reads only steps outside the loop (c): it is the same in every lap"
    )
    assert "tasks[1].until" in said and "hint: read a step of the loop (a, b), or `lap`; a condition of" in said
    for more in ("inputs.a.ok", "lap > 1", "laps.b | length > 1"):
        assert steps("c", loop | {"until": f"{until} and {more}"})
    nested = {"repeat": [{"repeat": ["a"], "until": "inputs.b.ok", "at_most": 2}, "d"], "until": "inputs.d.ok"}
    assert "until-outside" in problem("b", nested | {"at_most": 2, "name": "outer"})
    assert steps("c", loop | {"until": "seed.x", "score": "inputs.c.n"})  # that one is only noted


def test_two_loops_need_two_names() -> None:
    """Those that begin with the same step."""
    said = problem({**LOOP, "repeat": [LOOP]})
    assert said.startswith("name-taken: the name 'a-loop' is taken\n") and "give this one a `name`" in said


def test_a_mistaken_pipeline_still_has_its_steps() -> None:
    """So that the mistakes of their tasks can be told in the same go; without an order it has none."""
    data = b'{"tasks": ["a", {"task": "b", "model": "x"}], "tsaks": 1}'
    read, found = read_pipeline(data, where="p", name="p", known_models=["y"])
    assert read is not None and list(read.tasks) == ["a", "b"] and len(found) == 2
    assert read_pipeline(b'{"tasks": [{"task": "a", "needs": ["a"]}]}', where="p", name="p")[0] is None


def test_names_that_read_alike_in_expressions_are_refused() -> None:
    """`inputs.a_b` could mean either."""
    assert "the name 'a_b' is taken" in problem("a-b", "a_b")


def test_sizes_are_bounded() -> None:
    """Deep nesting and endless lists are errors, not stack overflows."""
    deep: Any = "a"
    for _ in range(MAX_NESTING + 1):
        deep = [deep]
    assert "nested more than" in problem(deep)
    assert "steps are too many" in problem(*(f"s{n}" for n in range(MAX_STEPS + 1)))


def test_a_thousand_steps_are_fine() -> None:
    """A generated pipeline loads in a moment."""
    of = steps(*(f"s{n}" for n in range(MAX_STEPS)))
    assert len(of.ancestors(f"s{MAX_STEPS - 1}")) == MAX_STEPS - 1


_WORDS = sorted({key for keys in KEYS.values() for key in keys} | {"frob"})
_TEXTS = ["a", "b", "5m", "seed.x", "", "é", "lap > 1", "laps.a[0]", "inputs.b == 1", "ask", "keep-best", "model:m"]
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 200), st.sampled_from(_TEXTS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4),
        st.fixed_dictionaries(
            {"repeat": inner, "until": st.sampled_from(_TEXTS), "at_most": st.integers(0, 9)},
            optional={"otherwise": inner, "score": inner, "name": st.just("l")},
        ),
        st.fixed_dictionaries({"approve": st.just("g")}, optional={"show": inner, "needs": inner, "timeout": inner}),
        st.dictionaries(st.sampled_from(["timeout", "auth"]), inner, min_size=1).map(
            lambda to: {"task": "c", "recover": to}
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(_VALUES)
def test_any_document_is_a_pipeline_or_a_list_of_problems(value: Any) -> None:
    """Nothing else comes out of the reader; and the schema for editors accepts all that the reader accepts."""
    document = {"tasks": value}
    try:
        load(document)
    except ConfigErrors as errors:
        assert errors.problems
        assert all(problem.where and problem.where.startswith("pipeline.json:1:") for problem in errors.problems)
    else:
        SCHEMA.validate(document)


def test_the_schema_knows_every_key() -> None:
    """A schema that lags behind the reader would underline correct files in red."""
    task: dict[str, Any] = {
        "task": "a",
        "name": "b",
        "needs": [],
        "when": "seed.x",
        "with": {},
        "model": "m",
        "timeout": "5m",
    }
    task |= {"stall": 5, "attempts": 1, "refinements": 0, "memory_mb": 64, "output_mb": 1}
    document: dict[str, Any] = {
        "tasks": [task, [{"parallel": ["c"]}], {"each": "seed.x", "do": {"do": ["d"], "when": "item"}}]
    }
    loop = {
        "repeat": "e",
        "until": "lap == 2",
        "at_most": 2,
        "otherwise": "keep-best",
        "score": "lap",
        "checks": "true",
    }
    gate = {"approve": "ok", "show": ["e"], "text": "Well?", "timeout": 5, "on_timeout": "wait", "when": "true"}
    table = {"timeout": ["retry-longer", "model:m"], "bug": "ask"}
    document["tasks"] += [loop, gate, {"task": "g", "recover": table}]
    document |= {"recover": table, "views": ["x"]}
    load(document)
    SCHEMA.validate(document)
    for wrong in ({"task": "a", "frob": 1}, loop | {"at_most": 0}, gate | {"name": "x"}, {"repeat": "a", "at_most": 1}):
        assert not SCHEMA.is_valid({"tasks": [wrong]})
    assert not SCHEMA.is_valid({"tasks": ["a"], "recover": {"bug": "retry"}})


# ---- the page for users -----------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs" / "pipelines.md").read_text("utf-8")


@pytest.mark.parametrize("example", re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
def test_every_example_of_the_page_is_a_pipeline(example: str) -> None:
    """What users copy works, and no editor underlines it."""
    load(example.encode())
    SCHEMA.validate(json.loads(example))


def rows(heading: str) -> dict[str, list[str]]:
    """The tables below a heading of the page: the cells behind the first one, by each word in it."""
    below = PAGE.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    found = {}
    for line in re.findall(r"^\| `.*$", below, re.MULTILINE):
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        found.update(dict.fromkeys(re.findall(r"`([^`]+)`", first), rest))
    return found


@pytest.mark.parametrize(("heading", "kind"), [("`repeat`", "repeat"), ("`approve`", "approve"), ("Steps", "task")])
def test_every_word_of_a_step_has_a_row(heading: str, kind: _Kind) -> None:
    """Below the heading that explains it."""
    assert set(KEYS[kind]) - {"name", "needs", "when"} <= set(rows(heading))


def test_every_class_of_errors_has_a_row_with_its_cures() -> None:
    """Exactly those that a table may name."""
    told = {name: cells[-1] for name, cells in rows("`recover`").items() if len(cells) == 3}
    assert set(told) == set(ERROR_CLASSES)
    assert {name: set(re.findall(r"`([a-z-]+)`", cell)) for name, cell in told.items()} == {
        name: set(cures) for name, cures in CURES.items()
    }
    assert set(get_args(Remedy)) - {"model"} | {"model:NAME"} <= set(rows("`recover`"))


def test_the_page_names_every_key_filter_and_test() -> None:
    """Nothing can be written that is not explained."""
    words = set(re.findall(r"[a-z_]+", PAGE))
    keys = {key for keys in KEYS.values() for key in keys} | set(TOP_KEYS) - {"$schema"}
    assert keys | FILTER_NAMES | TEXT_METHODS | set(ERROR_CLASSES) <= words
