"""The embedded engine: it finds and copies, refuses what it cannot find, and invents nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pop.models.extract.text import Document, plain, sentences_of
from pop.models.providers.builtin import NOTE, extract
from pop.models.request import Answer, ModelRequest

DOCUMENTS = sorted((Path(__file__).parent.parent / "examples" / "brief").glob("*.rst"))


def ask(text: str, schema: dict[str, Any] | None = None, instruction: str = "Condense.") -> Answer:
    content = f'{instruction}\n\n<document id="doc">\n{text}\n</document>'
    return extract(
        ModelRequest.model_validate(
            {"model": "m", "messages": [{"role": "user", "content": content}], "schema": schema}
        )
    )


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_a_summary_is_made_of_the_documents_own_sentences(path: Path) -> None:
    """Each stands in the source, ends like a sentence, and is no heading, code or markup."""
    text = path.read_text()
    answer = ask(text, instruction="Condense to four sentences.")
    assert answer.note == NOTE and answer.finish_reason == "stop"
    assert 1 <= len(answer.extra["evidence"]) <= 4
    for evidence in answer.extra["evidence"]:
        assert evidence["quote"] in squeezed(text)
        assert evidence["quote"].split()[0] in text.splitlines()[evidence["line"] - 1]
        assert evidence["quote"][-1] in '.!?"' and "::" not in evidence["quote"]


def test_the_same_question_gets_the_same_answer() -> None:
    """No clock, no chance."""
    text = DOCUMENTS[0].read_text()
    assert ask(text).text == ask(text).text


def test_a_number_is_copied_or_refused_but_never_invented() -> None:
    """A score is a judgement, which it cannot give."""
    schema = {"type": "object", "required": ["score"], "properties": {"score": {"type": "integer"}}}
    assert ask("Nothing here is counted by anybody at all.", schema).finish_reason == "refusal"
    found = ask("Score: 42\n\nThis document was scored by somebody else before.", schema)
    assert json.loads(found.text) == {"score": 42}


def test_a_label_needs_clear_evidence() -> None:
    """Else it says "unsure" where it may, and refuses where it may not."""
    text = "The weather was mild in the morning of that day. Everybody went to the market in the old town."
    labels = {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": ["invoice", "contract", "unsure"]}},
    }
    assert json.loads(ask(text, labels).text) == {"kind": "unsure"}
    labels["properties"]["kind"]["enum"].remove("unsure")  # type: ignore[index]
    assert ask(text, labels).finish_reason == "refusal"


@pytest.mark.parametrize("last", ["none", "other", "n/a"])
def test_a_finding_is_no_way_out(last: str) -> None:
    """That there is none, or that it is another, is a judgement too."""
    text = "The weather was mild in the morning of that day. Everybody went to the market in the old town."
    schema = {"type": "object", "required": ["risk"], "properties": {"risk": {"enum": ["high", "low", last]}}}
    assert ask(text, schema).finish_reason == "refusal"


def test_a_label_is_read_from_its_line() -> None:
    """And one that the schema does not know is no evidence for another."""
    schema = {
        "type": "object",
        "required": ["severity"],
        "properties": {"severity": {"enum": ["high", "low", "unsure"]}},
    }
    text = "Severity: {}.\n\nThe pump stopped in the night and the cellar was under water by the morning."
    answer = ask(text.format("High"), schema)
    assert json.loads(answer.text) == {"severity": "high"} and answer.extra["evidence"][0]["line"] == 1
    answer = ask(text.format("grave"), schema)
    assert json.loads(answer.text) == {"severity": "unsure"} and not answer.extra["evidence"]


def test_labelled_fields_are_found() -> None:
    """Label: value, with dates by their format; what is optional and not there is left out."""
    schema = {
        "type": "object",
        "required": ["author", "created"],
        "properties": {
            "author": {"type": "string"}, "created": {"type": "string", "format": "date"}, "phone": {"type": "string"},
        },
    }  # fmt: skip
    value = json.loads(
        ask("Author: Ada Lovelace\nCreated: 2024-02-29\n\nA note on the analytical engine.", schema).text
    )
    assert value["author"] == "Ada Lovelace" and value["created"] == "2024-02-29" and "phone" not in value


def test_markup_is_taken_out_of_the_text_but_not_out_of_the_quote() -> None:
    """A quote stays verbatim."""
    assert plain("See :pep:`255` and `the docs <https://x.y>`_ for more.") == "See PEP 255 and the docs for more."


def test_code_headings_and_references_are_no_sentences() -> None:
    """Only running text is."""
    text = "Title\n=====\n\nThis is a whole sentence of running text.\n\n::\n\n    x = 1.  Not a sentence at all.\n\nReferences\n==========\n\n.. [1] Some reference that looks like one.\n"
    assert [s.text for s in sentences_of(Document("d", "", text))] == ["This is a whole sentence of running text."]


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["title", "summary", "quote", "points", "score", "kind", "themes", "source", "x", "date"])
    leaf = st.one_of(
        st.just({"type": "string"}),
        st.just({"type": "string", "maxLength": 40}),
        st.just({"type": "integer"}),
        st.just({"type": ["number", "null"]}),
        st.just({"type": "boolean"}),
        st.just({"enum": ["a", "b", "unsure"]}),
        st.just({"type": "string", "format": "date"}),
        st.just({}),
    )

    def grow(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        objects = st.dictionaries(names, inner, max_size=4).flatmap(
            lambda properties: st.lists(st.sampled_from(sorted(properties) or ["x"]), unique=True, max_size=3).map(
                lambda required: {
                    "type": "object", "properties": properties, "required": [r for r in required if r in properties],
                }
            )
        )  # fmt: skip
        arrays = st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least}, inner, st.integers(0, 2)
        )
        return st.one_of(objects, arrays)

    return st.recursive(leaf, grow, max_leaves=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schemas())
def test_any_schema_gets_a_valid_value_or_an_honest_refusal(schema: dict[str, Any]) -> None:
    """Never a crash, never a value that does not obey."""
    answer = ask(DOCUMENTS[0].read_text()[:6000], schema)
    if answer.finish_reason == "stop":
        jsonschema.validate(json.loads(answer.text), schema)
    else:
        assert "does not say" in answer.text


def test_a_megabyte_takes_bounded_time() -> None:
    """The graph is bounded, whatever comes in."""
    text = "\n\n".join(path.read_text() for path in DOCUMENTS * 3)[:1_000_000]
    began = time.perf_counter()
    ask(text)
    assert time.perf_counter() - began < 20


def test_a_prompt_without_a_sentence_is_refused_with_a_word_about_where_one_is_looked_for() -> None:
    """An instruction is none."""
    answer = ask("Annotate: The moon pulls the water of the sea.", None)
    assert answer.finish_reason == "refusal" and "first blank line" in answer.text
