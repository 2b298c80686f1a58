"""The embedded engine as a provider: no key, no network, the same answer to the same question.

How it reads a prompt: sources stand between ``<document id="..." title="...">`` and ``</document>``; where there are
none, in fenced blocks; where there are none either, in everything after the first blank line. The rest is the
instruction, of which it understands little: "key phrases" or "keywords", and how many words or sentences at most.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any

from pop.models.extract.fill import MISSING, Filler
from pop.models.extract.rank import Corpus, key_phrases
from pop.models.extract.text import READABLE, Document, Sentence, sentences_of
from pop.models.providers import Setup
from pop.models.request import Answer, Form, ModelRequest, Origin

if TYPE_CHECKING:
    from pop.models.entries import ModelEntry

NOTE = "extractive, not a language model"
MAX_CHARS = 1_000_000
DEFAULT_SENTENCES = 5
_DOCUMENT = re.compile(r"<document\b([^>]*)>\n?(.*?)</document>", re.DOTALL)
_ATTRIBUTE = re.compile(r"""(\w+)=(["'])(.*?)\2""")
_FENCED = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)
_LIMIT = re.compile(
    r"\b(\d{1,5}|one|two|three|four|five|six|seven|eight|nine|ten)\s+(words|sentences?)\b", re.IGNORECASE
)
_NUMBERS = {
    word: n for n, word in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], 1)
}


class BuiltinProvider:
    """See the module."""

    def __init__(self, setup: Setup) -> None:
        self._one_at_a_time = asyncio.Semaphore(2)

    async def answer(self, request: ModelRequest, entry: ModelEntry, origin: Origin, form: Form | None) -> Answer:
        async with self._one_at_a_time:
            return await asyncio.to_thread(extract, request)


def extract(request: ModelRequest) -> Answer:
    """The answer to a request, worked out from nothing but the request's own text."""
    began = time.perf_counter()
    instruction, documents = read_prompt(request.text[:MAX_CHARS])
    sentences: list[Sentence] = []
    for document in documents:
        sentences += sentences_of(document, len(sentences))
    corpus = Corpus(sentences)
    if request.schema_ is not None:
        text, finish, extra = _by_schema(request.schema_, corpus, documents)
    else:
        text, finish, extra = _freely(instruction, corpus)
    return Answer(
        text=text,
        model="builtin",
        provider="builtin",
        provider_model="extractive-1",
        finish_reason="stop" if finish else "refusal",
        input_tokens=len(request.text) // 4,
        output_tokens=len(text) // 4,
        cost_usd=0.0,
        ms=round((time.perf_counter() - began) * 1000, 3),
        note=NOTE,
        extra=extra,
    )


def read_prompt(text: str) -> tuple[str, list[Document]]:
    """The instruction and the sources of a prompt."""
    tagged = list(_DOCUMENT.finditer(text))
    if tagged:
        documents = []
        for number, match in enumerate(tagged, 1):
            names = {name: value for name, _, value in _ATTRIBUTE.findall(match[1])}
            name = names.get("id") or names.get("name") or str(number)
            documents.append(Document(name, names.get("title", ""), match[2]))
        return _DOCUMENT.sub("", text), documents
    fenced = [Document(str(number), "", match[1]) for number, match in enumerate(_FENCED.finditer(text), 1)]
    if fenced:
        return _FENCED.sub("", text), fenced
    head, blank, rest = text.partition("\n\n")
    return (head, [Document("1", "", rest)]) if blank and rest.strip() else ("", [Document("1", "", text)])


def _by_schema(schema: dict[str, Any], corpus: Corpus, documents: list[Document]) -> tuple[str, bool, dict[str, Any]]:
    filler = Filler(corpus, documents, schema)
    value = filler.fill()
    if value is MISSING:
        where = ", ".join(dict.fromkeys(filler.missing))
        refusal = (
            f"The text does not say what is asked for at {where}. This engine finds and copies; it does not judge."
        )
        return refusal, False, {"missing": filler.missing}
    return json.dumps(value, ensure_ascii=False, indent=2), True, {"evidence": filler.evidence}


def _freely(instruction: str, corpus: Corpus) -> tuple[str, bool, dict[str, Any]]:
    if not corpus.sentences:
        said = f"There is no sentence to work on in this prompt ({READABLE})"
        return f"{said}. It reads <document> tags, fenced blocks, or else what follows the first blank line.", False, {}
    if re.search(r"key ?(words|phrases)|tags\b", instruction, re.IGNORECASE):
        return "\n".join(f"- {phrase}" for phrase in key_phrases(corpus.sentences, 10)), True, {}
    chosen = _within(corpus, *_limits(instruction))
    evidence = [{"pointer": "/", "quote": s.quote, "document": s.document, "line": s.line} for s in chosen]
    return " ".join(sentence.text for sentence in chosen), True, {"evidence": evidence}


def _limits(instruction: str) -> tuple[int, int]:
    """How many sentences and words the instruction allows."""
    sentences, words = DEFAULT_SENTENCES, 100_000
    match = _LIMIT.search(instruction)
    if match:
        number = _NUMBERS.get(match[1].lower()) or int(match[1]) if not match[1].isdigit() else int(match[1])
        if match[2].lower() == "words":
            sentences, words = 1000, number
        else:
            sentences = number
    return max(1, sentences), max(1, words)


def _within(corpus: Corpus, sentences: int, words: int) -> list[Sentence]:
    """The best sentences within the limits, in the order of the source; at least one."""
    count = min(sentences, max(1, words // 12), 200)
    chosen: list[Sentence] = []
    used = 0
    for sentence in corpus.best(count):
        length = len(sentence.text.split())
        if chosen and used + length > words:
            continue
        chosen.append(sentence)
        used += length
    return sorted(chosen, key=lambda sentence: sentence.order)
