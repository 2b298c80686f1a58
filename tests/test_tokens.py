"""Counting tokens, and cutting texts to a number of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop.models import tokens
from pop.models.tokens import TokenCounter, cut_text, estimate_tokens, split_text, weigh

PROSE = "The committee met in the old town hall on Monday, and decided to build a new bridge over the river. "


class Memory(dict[tuple[str, str], Any]):
    def recall(self, topic: str, name: str) -> Any | None:
        return self.get((topic, name))

    def remember(self, topic: str, name: str, value: Any) -> None:
        self[topic, name] = value


def test_prose_code_and_chinese_are_weighed_apart() -> None:
    """About four letters a token, fewer for signs, about one Chinese character."""
    assert estimate_tokens("") == 0 and estimate_tokens("word" * 1000) == 1000
    assert estimate_tokens("if (a[1]) { b += 2; }" * 100) > 700
    assert estimate_tokens("我们决定在河上建一座新桥" * 10) == 120
    assert estimate_tokens("Мост через реку") < 15


@given(st.text(), st.text())
def test_the_weight_of_two_texts_is_the_sum(first: str, second: str) -> None:
    """So parts can be packed without weighing them again."""
    assert weigh(first + second) == weigh(first) + weigh(second)


def test_an_estimate_is_corrected_by_usage_and_remembered() -> None:
    """Model by model, also by the next gateway; the number is stated to be an estimate."""
    memory = Memory()
    counter = TokenCounter(memory)
    text = "word" * 1000
    for _ in range(40):
        counter.learn("dense", weigh(text), 2000)
    found, exact = counter.count(text, "dense")
    assert 1900 <= found <= 2100 and not exact
    assert counter.count(text, "other") == (1000, False)
    assert TokenCounter(memory).count(text, "dense") == (found, False)


def test_an_estimate_that_is_right_rests() -> None:
    """Answers a few percent off do not move it, so that the same text is given the same number by and by."""
    counter = TokenCounter(Memory())
    text = "word" * 1000
    for _ in range(40):
        counter.learn("m", weigh(text), 1500)
    found = {counter.count(text, "m")}
    for number in range(200):
        counter.learn("m", weigh(text), 1500 + (-40, 0, 40)[number % 3])
        found.add(counter.count(text, "m"))
    assert len(found) == 1


def test_the_first_answer_already_is_remembered() -> None:
    """Though nothing was counted before."""
    memory = Memory()
    TokenCounter(memory).learn("m", weigh("word" * 1000), 2000)
    assert TokenCounter(memory).count("word" * 1000, "m")[0] == 1334


def test_no_usage_leads_the_estimate_astray() -> None:
    """A server may count nonsense: the correction is bounded, and tiny or empty requests teach nothing."""
    counter = TokenCounter(Memory())
    for model, chars, seen in [("a", 4e9, 50), ("b", 1, 10**9), ("c", 10, 49), ("d", 0, 100), ("e", 400, -5)]:
        for _ in range(200):
            counter.learn(model, chars, seen)
    counts = [counter.count("word" * 1000, model)[0] for model in "abcde"]
    assert 500 <= counts[0] <= 530 and 3800 <= counts[1] <= 4000 and counts[2:] == [1000] * 3


@pytest.mark.parametrize("value", ["x", None, [], [0, 1], [9.0, 1], [float("nan"), 2], [4.0, 0], {"a": 1}, [4.0, 1, 1]])
def test_a_memory_that_holds_nonsense_is_not_believed(value: Any) -> None:
    """The estimate begins anew."""
    memory = Memory()
    memory.remember(tokens.TOPIC, "m", value)
    assert TokenCounter(memory).count("word" * 100, "m") == (100, False)


FAKE = """
from . import load
class _Encoding:
    def encode_ordinary(self, text):
        return text.split()
def encoding_for_model(model):
    if model == "absent":
        load.read_file("https://example.org/absent.tiktoken")
    if model != "known":
        raise KeyError(model)
    return _Encoding()
"""
LOAD = "def read_file(path):\n    open('downloaded', 'w').close()\n    return b''\n"


@pytest.fixture
def tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for the package, with the door through which the real one downloads."""
    (tmp_path / "tiktoken").mkdir()
    (tmp_path / "tiktoken" / "__init__.py").write_text(FAKE)
    (tmp_path / "tiktoken" / "load.py").write_text(LOAD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("tiktoken", "tiktoken.load"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    tokens._encoding.cache_clear()
    yield tmp_path
    tokens._encoding.cache_clear()
    for name in ("tiktoken", "tiktoken.load"):
        sys.modules.pop(name, None)


def test_a_vocabulary_at_hand_counts_exactly_and_none_is_downloaded(tiktoken: Path) -> None:
    """A model tiktoken does not know, and one whose vocabulary would have to be fetched, are estimated."""
    counter = TokenCounter(Memory())
    assert counter.count("one two three", "known") == (3, True)
    assert counter.count("word" * 10, "unknown") == (10, False)
    assert counter.count("word" * 10, "absent") == (10, False)
    assert not (tiktoken / "downloaded").exists()
    assert counter.count("x" * 5000, "known")[1] is False  # its time would grow with the square


@given(st.text(alphabet="ab. \n。!é我", max_size=300), st.integers(1, 40))
def test_parts_are_the_text_and_none_is_too_long(text: str, size: int) -> None:
    """Whatever the text is made of."""
    parts = split_text(text, size)
    assert "".join(parts) == text and all(parts)
    assert all(estimate_tokens(part) <= size or len(part) == 1 for part in parts)


def test_a_text_is_cut_where_a_reader_would() -> None:
    """At blank lines, after sentences, between words; in that order."""
    assert split_text("a b c.\n\nd e f.\n\ng", 4) == ["a b c.\n\n", "d e f.\n\ng"]
    assert split_text("One is here. Two is there. ", 5) == ["One is here. ", "Two is there. "]
    assert split_text("alpha beta gamma", 3) == ["alpha beta ", "gamma"]


@pytest.mark.parametrize(
    ("text", "most", "cut"),
    [
        ("It rains. It pours. It ends.", 6, "It rains. It pours."),
        ("one two three four five", 3, "one two"),
        ("abcdefghijklmnop", 2, "abcdefgh"),
        ("fits", 1, "fits"),
        ("   ", 0, ""),
        ("我们决定。在河上", 5, "我们决定。"),
        ("x", 0, ""),
    ],
)
def test_a_cut_ends_with_a_sentence_where_one_fits(text: str, most: int, cut: str) -> None:
    """Else with a word, else inside one."""
    assert cut_text(text, lambda part: estimate_tokens(part) <= most) == cut


@pytest.mark.parametrize(
    "text", ["." * 10**6, "\n" * 10**6, ".'" * 500_000, " " * 10**6, "x" * 10**6, "\n " * 500_000, "。" * 10**6]
)
def test_no_text_takes_long(text: str) -> None:
    """Whatever a document is made of."""
    began = time.process_time()
    parts = split_text(text, 1000)
    cut_text(text, lambda part: estimate_tokens(part) <= 500)
    assert "".join(parts) == text and time.process_time() - began < 5
