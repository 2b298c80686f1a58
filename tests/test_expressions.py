"""Expressions: useful on honest data, harmless on any data, and checked before there is data at all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pop.errors import ConfigErrors
from pop.expressions import MAX_ITEMS, Expects, ExpressionError, compile_expression

SCOPE: dict[str, Any] = {
    "seed": {"text": "Hello", "count": 3, "items": [1, 2, 3], "keys": "mine", "parts": [{"ok": True}, {"ok": False}]},
    "inputs": {"plan-a": {"score": 8}, "skipped": None},
    "item": {"title": "x"},
}


def value_of(text: str, scope: Mapping[str, Any] = SCOPE, expects: Expects = "any") -> Any:
    return compile_expression(text, "p.json:1:1", expects=expects).evaluate(scope)


def mistakes_in(text: str, **options: Any) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        compile_expression(text, "p.json:1:1  tasks[0].when", **options)
    assert all(problem.where == "p.json:1:1  tasks[0].when" for problem in caught.value.problems)
    return [" | ".join(filter(None, (problem.message, problem.hint))) for problem in caught.value.problems]


def failure_of(text: str, scope: Mapping[str, Any] = SCOPE, expects: Expects = "any") -> str:
    with pytest.raises(ExpressionError) as caught:
        value_of(text, scope, expects)
    assert caught.value.where == "p.json:1:1"
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("seed.count == 3", True),
        ("inputs.plan_a.score >= 8 and not inputs.skipped", True),
        ("inputs['plan-a'].score", 8),
        ("inputs.skipped is none", True),
        ("seed.missing is defined", False),
        ("seed.missing | default('none')", "none"),
        ("seed.items", [1, 2, 3]),
        ("seed.keys", "mine"),
        ("seed.items[1:]", [2, 3]),
        ("seed.items | length * 2", 6),
        ("seed.parts | selectattr('ok') | list | length", 1),
        ("seed.items | batch(2)", [[1, 2], [3]]),
        ("seed.items | map('float')", [1.0, 2.0, 3.0]),
        ("seed.text.lower().startswith('h')", True),
        ("'a' if seed.count > 2 else 'b'", "a"),
        ("item.title in ['x', 'y']", True),
        ("seed.count % 2", 1),
        ("2 ** 10", 1024),
    ],
)
def test_what_users_write_works(text: str, value: Any) -> None:
    """A name after a dot is a key of the data, also where Python's own objects have a method of that name."""
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("sed.x", "unknown name 'sed' | did you mean 'seed'?"),
        ("seed.x | lenght", "unknown filter 'lenght' | did you mean 'length'?"),
        ("seed.x is emty", "unknown test 'emty'"),
        ("range(10)", "unknown name 'range'"),
        ("seed.x.format(1)", "only these can be called: endswith, lower, startswith, strip, upper"),
        ("seed.x ==", "`seed.x ==` is not an expression: unexpected"),
        ("seed.x seed.y", "unexpected 'seed'"),
        ("{{ seed.x }}", "is not an expression"),
        ("", "is not an expression"),
        ("(" * 1000, "nested too deep"),
        ("x" * 5000, "too many"),
    ],
)
def test_mistakes_are_found_before_there_is_data(text: str, mistake: str) -> None:
    """Each with its place and what to do about it."""
    assert any(mistake in found for found in mistakes_in(text))


def test_every_mistake_is_reported_at_once() -> None:
    """A user mends them in one go."""
    assert len(mistakes_in("sed.a | lenght + foo()")) >= 3


def test_names_without_a_meaning_here_are_explained() -> None:
    """`item` exists inside an each only, `lap` and `laps` inside a repeat."""
    names = ("seed", "inputs")
    assert "only inside an `each`" in mistakes_in("item.x", names=names)[0]
    assert "`lap` has a meaning only inside a `repeat`" in mistakes_in("lap > 1", names=names)[0]
    assert "`laps` has a meaning only inside a `repeat`" in mistakes_in("laps.a | length > 1", names=names)[0]


def test_laps_must_be_those_of_a_loop_around() -> None:
    """They are looked up like inputs; a step that stands elsewhere is told to."""
    expression = compile_expression("laps.reveiw[0].x or laps['b'] or laps.a_b", "p:1:1")
    assert not expression.inputs and expression.laps == {"reveiw", "b", "a_b"}
    assert expression.reads("a-b") and not expression.reads("a")
    elsewhere, unknown = expression.check_inputs([], ["review", "a-b", "b"], in_loop=["review", "a-b"])
    assert elsewhere.message.endswith("reads step 'b', which is in no loop around this place")
    assert unknown.hint == "did you mean 'review'?"


LAPS: dict[str, Any] = {
    "seed": {"goal": 8, "text": "x" * 500, "odd key": 1, "i": 0},
    "inputs": {"review": {"score": 7.5, "notes": list(range(100))}, "fix-it": None},
    "laps": {"review": [{"score": 6}, {"score": 7.5}], "fix-it": [None]},
    "lap": 2,
}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("inputs.review.score >= seed.goal and lap > 1", {"inputs.review.score": 7.5, "seed.goal": 8, "lap": 2}),
        ("laps.review[-1].score > laps.review[0].score",
         {"laps.review[-1].score": 7.5, "laps.review[0].score": 6}),
        ("(laps.review | last).score > 7", {"laps.review": [{"score": 6}, {"score": 7.5}]}),
        ("laps.fix_it[0] is none and laps['fix-it'] | length", {"laps.fix_it[0]": None, "laps['fix-it']": [None]}),
        ("inputs.fix_it.x == 1 or seed.nope is defined", {}),
        ("seed['odd key'] == 1", {"seed['odd key']": 1}),
        ("seed.text.upper().startswith(seed.nope)", {"seed.text": '"' + "x" * 198 + "…"}),
        ("inputs[seed.i] or laps | length", {"seed.i": 0}),
        ("item.x == 1", {}),
    ],
)  # fmt: skip
def test_what_an_expression_read_can_be_told(text: str, values: dict[str, Any]) -> None:
    """By its longest chains of names; what cannot be had is left out, what is long is cut."""
    assert compile_expression(text, "p:1:1").values(LAPS) == values


def test_long_values_are_told_by_their_beginning() -> None:
    """As JSON, 200 characters of it."""
    told = compile_expression("inputs.review.notes | length > 3", "p:1:1").values(LAPS)["inputs.review.notes"]
    assert told.startswith("[0, 1, 2, ") and len(told) == 200


def test_inputs_must_come_before() -> None:
    """An unknown step gets the nearest name, a later one is told to be later."""
    expression = compile_expression("inputs.reveiw.x and inputs['b'] and inputs.a_b", "p:1:1")
    later, unknown = expression.check_inputs(["review", "a-b"], ["review", "a-b", "b"])
    assert later.message.endswith("reads step 'b', which does not come before it")
    assert {later.code, unknown.code} == {"unknown-input"}
    assert unknown.hint == "did you mean 'review'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed.txt", "no key 'txt', did you mean 'text'?"),
        ("inputs.skipped.score", "null (the output of a skipped step is null)"),
        ("seed.text.nope", "a text has no 'nope'"),
        ("seed.text.__class__", "a text has no '__class__'"),
        ("seed['__class__']", "no key '__class__'"),
        ("seed.parts | map(attribute='__class__')", "no key '__class__'"),
        ("seed.items | sum(start='')", "sum() can't sum strings"),
        ("seed.text * 1000000000", "* is for numbers, not a text and a number"),
        ("seed.items * 1000000000", "* is for numbers"),
        ("'%1000000000d' % 1", "% is for numbers"),
        ("(9 ** 60) ** 60", "too large"),
        ("10 ** 60 * 10 ** 60 * 10 ** 60 ** 60", "too large"),
        ("seed.count / 0", "division by zero"),
        ("seed.text > 3", "not supported between"),
        ("1 if false", "gave nothing"),
        ("[seed.missing]", "missing"),
        ("lap", "'lap' is undefined"),
    ],
)
def test_what_does_not_fit_the_data_is_an_error_at_its_place(text: str, message: str) -> None:
    """Neither a traceback nor a silent false."""
    assert message in failure_of(text)


def test_a_when_must_be_true_or_false() -> None:
    """A text such as 'false' is true in Python; here it is a mistake."""
    assert value_of("seed.count > 1", expects="bool") is True
    assert failure_of("seed.text", expects="bool") == "`seed.text`: must be true or false, gave a text"
    assert "gave null" in failure_of("inputs.skipped", expects="bool")


def test_an_each_must_be_a_list() -> None:
    """The error names the expression and what was found instead."""
    assert value_of("seed.items | select('odd')", expects="list") == [1, 3]
    assert failure_of("seed.text", expects="list") == "`seed.text`: must be a list, gave a text"
    assert failure_of("seed.parts[0]", expects="list") == "`seed.parts[0]`: must be a list, gave an object"


def test_a_score_must_be_a_number() -> None:
    """A finite one; true counts as none."""
    assert value_of("seed.count / 2", expects="number") == 1.5
    assert failure_of("seed.text", expects="number") == "`seed.text`: must be a number, gave a text"
    assert failure_of("seed.count > 1", expects="number").endswith("must be a number, gave true or false")
    assert failure_of("seed.x | float", {"seed": {"x": "inf"}}, "number").endswith("gave one without end")
    assert "'inf'" in failure_of("'inf' | float", expects="number")


def test_an_each_has_a_bound() -> None:
    """A model's list of a million items is an error, not a million folders."""
    scope = {"seed": {"items": [0] * (MAX_ITEMS + 1)}}
    assert "too many" in failure_of("seed.items", scope, "list")


def test_nothing_can_be_changed() -> None:
    """Evaluation leaves the data as it was: there is nothing to call that could change it."""
    assert "can be called" in mistakes_in("seed.items.append(4)")[0]


class Lazy(Mapping[str, Any]):
    def __init__(self) -> None:
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Any:
        if name not in ("big", "small"):
            raise KeyError(name)
        self.read.append(name)
        return {"x": 1}

    def __iter__(self) -> Iterator[str]:
        return iter(("big", "small"))

    def __len__(self) -> int:
        return 2


def test_only_the_inputs_that_are_named_are_read() -> None:
    """Inputs may be a mapping that loads files; an unnamed one stays on disk."""
    lazy = Lazy()
    assert value_of("inputs.small.x", {"inputs": lazy}) == 1
    assert set(lazy.read) == {"small"}


_DATA = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=10,
)
_PIECES = st.sampled_from(
    [
        "seed",
        "seed.a",
        "inputs.b",
        "item",
        "lap",
        "laps.b",
        "1",
        "9",
        "'x'",
        "[]",
        "{}",
        "true",
        "none",
        "(",
        ")",
        "[",
        "]",
        ",",
        ":",
        ".",
        "+",
        "-",
        "*",
        "**",
        "/",
        "//",
        "%",
        "~",
        "==",
        "<",
        "in",
        "not",
        "and",
        "or",
        "if",
        "else",
        "|",
        "is",
        "length",
        "first",
        "map('upper')",
        "select",
        "batch(2)",
        "sum",
        "sort",
        "unique",
        "join",
        "range",
        "lower()",
        "__class__",
        "defined",
        "odd",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PIECES, min_size=1, max_size=9), _DATA)
def test_no_expression_and_no_data_break_the_supervisor(pieces: list[str], data: Any) -> None:
    """Whatever is written and whatever it meets: a value, a configuration error or an expression error."""
    began = time.process_time()
    try:
        scope = {"seed": data, "inputs": {"b": data}, "laps": {"b": [data]}, "item": data}
        expression = compile_expression(" ".join(pieces), "p:1:1")
        assert len(str(expression.values(scope))) < 5000
        expression.evaluate(scope)
    except (ConfigErrors, ExpressionError) as error:
        assert len(str(error)) < 5000
    assert time.process_time() - began < 2
