"""How many tokens a text has, and cutting texts to a number of them.

Exact where a model's vocabulary is at hand without a download (tiktoken, when it is installed and has it in its cache),
else an estimate: characters per token, 4 at first, corrected by the usage seen of each model. The characters are
weighed: a letter or a blank is one, a digit or a sign two, one of another alphabet two, a Chinese one four.
"""

from __future__ import annotations

import importlib
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

CHARS_PER_TOKEN = 4.0
LEAST, MOST = 1.0, 8.0  # characters per token that a correction may lead to
LEAST_SEEN_TOKENS = 50  # below, what a server adds to every request outweighs the text
STEADY = 20  # answers after which a new one moves the estimate by a twentieth
STEP = 0.05  # what is stated follows in steps, so that it rests, and one run asks what the run before it asked
TOPIC = "chars_per_token"

_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \n\r\t"
_FOLLOWING = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character
_OF_TWO = bytes(range(0xC0, 0xE0))  # those that begin one of two bytes
_OF_MORE = bytes(range(0xE0, 0x100))
MAX_EXACT_CHARS = 400_000
_UNBROKEN = re.compile(r"\S{2000}|\s{2000}")  # tiktoken's time grows faster than its length
# Where a text may be cut, best first: paragraphs, sentences and lines, words.
_PARAGRAPHS = re.compile(r"\n\s*\n")
_SENTENCES = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]]*+\s++|[。！？]++|\n")
_WORDS = re.compile(r"\s+")


class Memory(Protocol):
    """Small facts that survive restarts (`answers.AnswerStore`)."""

    def recall(self, topic: str, name: str) -> Any | None: ...

    def remember(self, topic: str, name: str, value: Any) -> None: ...


def weigh(text: str) -> float:
    """The text's length in characters as the estimate counts them; of two texts together it is the sum."""
    data = text.encode("utf-8", "replace")
    others = data.translate(None, _PLAIN)
    of_two = len(others) - len(others.translate(None, _OF_TWO))
    of_more = len(others) - len(others.translate(None, _OF_MORE))
    following = len(others) - len(others.translate(None, _FOLLOWING))
    signs = len(others) - of_two - of_more - following
    return len(data) - len(others) + 2 * signs + 2 * of_two + 4 * of_more


def estimate_tokens(text: str, chars_per_token: float = CHARS_PER_TOKEN) -> int:
    """About how many tokens a text has, rounded up."""
    return math.ceil(weigh(text) / chars_per_token)


class TokenCounter:
    """The gateway's knowledge of tokens, model by model.

    Args:
        memory: Where corrections are remembered.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._known: dict[str, tuple[float, int]] = {}
        self._stated: dict[str, float] = {}

    def count(self, text: str, model: str) -> tuple[int, bool]:
        """Tokens of a text alone, and whether the number is exact.

        Args:
            model: The provider's name for it (``gpt-5-mini``).
        """
        exact = _exact(text, model)
        return (exact, True) if exact is not None else (estimate_tokens(text, self._ratio_stated(model)), False)

    def learn(self, model: str, chars: float, tokens: int) -> None:
        """Correct the estimate of a model by one answer's usage.

        Args:
            chars: `weigh` of all messages that were sent.
            tokens: The input tokens that the provider counted for them.
        """
        if tokens < LEAST_SEEN_TOKENS or chars <= 0:
            return
        stated = self._ratio_stated(model)
        ratio, seen = self._ratio(model)
        seen = min(seen + 1, STEADY)
        ratio += (min(max(chars / tokens, LEAST), MOST) - ratio) / seen
        self._known[model] = (ratio, seen)
        if abs(ratio - stated) > STEP * ratio:
            self._stated[model] = ratio
            self._memory.remember(TOPIC, model, [ratio, seen])

    def _ratio_stated(self, model: str) -> float:
        """Characters per token as last remembered."""
        if model not in self._stated:
            self._stated[model] = self._ratio(model)[0]
        return self._stated[model]

    def _ratio(self, model: str) -> tuple[float, int]:
        """Characters per token, and how many answers it rests on (one stands for the beginning)."""
        if model not in self._known:
            self._known[model] = _sound(self._memory.recall(TOPIC, model))
        return self._known[model]


def _sound(value: Any) -> tuple[float, int]:
    match value:
        case [int() | float() as ratio, int() as seen] if LEAST <= ratio <= MOST and 1 <= seen <= STEADY:
            return float(ratio), seen
    return CHARS_PER_TOKEN, 1


# -- exactly -----------------------------------------------------------------------------------------------------------


def _exact(text: str, model: str) -> int | None:
    if len(text) > MAX_EXACT_CHARS or _UNBROKEN.search(text):
        return None
    encoding = _encoding(model)
    return len(encoding.encode_ordinary(text)) if encoding is not None else None


@lru_cache(maxsize=256)
def _encoding(model: str) -> Any | None:
    """tiktoken's encoding of a model, or None; what is not in its cache is not fetched."""
    try:
        tiktoken, load = importlib.import_module("tiktoken"), importlib.import_module("tiktoken.load")
        vars(load)["read_file"] = _not_at_hand
        return tiktoken.encoding_for_model(model)
    except Exception:  # not installed, another model, no vocabulary, a damaged one
        return None


def _not_at_hand(path: str) -> bytes:
    raise FileNotFoundError(f"{path} is not in tiktoken's cache, and nothing is downloaded")


# -- cutting -----------------------------------------------------------------------------------------------------------


def split_text(text: str, size_tokens: int) -> list[str]:
    """Cut a text into parts of at most about `size_tokens` (by the first estimate, so that it is always cut alike).

    At blank lines where it can be, else after sentences, else between words. Joined, the parts are the text.
    """
    size = max(1, size_tokens) * CHARS_PER_TOKEN
    parts, current, held = list[str](), list[str](), 0.0
    for piece in _pieces(text, size, (_PARAGRAPHS, _SENTENCES, _WORDS)):
        weight = weigh(piece)
        if current and held + weight > size:
            parts.append("".join(current))
            current, held = [], 0.0
        current.append(piece)
        held += weight
    return [*parts, "".join(current)] if current else parts


def _pieces(text: str, size: float, levels: Sequence[re.Pattern[str]]) -> Iterator[str]:
    if weigh(text) <= size:
        if text:
            yield text
    elif levels:
        begin = 0
        for end in [*(match.end() for match in levels[0].finditer(text)), len(text)]:
            yield from _pieces(text[begin:end], size, levels[1:])
            begin = end
    else:
        step = max(1, int(size / 4))
        yield from (text[at : at + step] for at in range(0, len(text), step))


def cut_text(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning that fits and ends with a sentence; with a word, or inside one, where there is none."""
    if fits(text):
        return text
    for pattern in (_SENTENCES, _WORDS):
        found = _longest(text, [match.end() for match in pattern.finditer(text)], fits)
        if found:
            return found
    return _longest(text, range(1, len(text)), fits)


def _longest(text: str, ends: Sequence[int], fits: Callable[[str], bool]) -> str:
    at = bisect_right(ends, False, key=lambda end: not fits(text[:end].rstrip()))
    return text[: ends[at - 1]].rstrip() if at else ""
