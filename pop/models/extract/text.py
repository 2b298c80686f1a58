"""Plain sentences out of reStructuredText, Markdown or plain text, each with its place.

Headings, code, tables, directives, field lists and reference lists are no sentences. A sentence's `quote` is the
source's own words with runs of white space made one blank; its `text` is the same without link markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

STOPWORDS = frozenset(
    [
        "a",
        "about",
        "above",
        "after",
        "again",
        "all",
        "already",
        "also",
        "although",
        "always",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "being",
        "between",
        "both",
        "but",
        "by",
        "can",
        "cannot",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "done",
        "each",
        "either",
        "else",
        "even",
        "every",
        "few",
        "first",
        "for",
        "from",
        "further",
        "get",
        "given",
        "gives",
        "had",
        "has",
        "have",
        "having",
        "he",
        "her",
        "here",
        "him",
        "his",
        "how",
        "however",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "itself",
        "just",
        "last",
        "least",
        "less",
        "like",
        "made",
        "make",
        "makes",
        "making",
        "many",
        "may",
        "me",
        "might",
        "more",
        "most",
        "much",
        "must",
        "my",
        "need",
        "needs",
        "new",
        "no",
        "non",
        "nor",
        "not",
        "now",
        "of",
        "off",
        "often",
        "on",
        "once",
        "one",
        "only",
        "onto",
        "or",
        "other",
        "others",
        "our",
        "out",
        "over",
        "own",
        "per",
        "rather",
        "same",
        "see",
        "several",
        "she",
        "should",
        "since",
        "so",
        "some",
        "still",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "therefore",
        "these",
        "they",
        "this",
        "those",
        "though",
        "three",
        "through",
        "thus",
        "to",
        "too",
        "two",
        "under",
        "until",
        "up",
        "upon",
        "us",
        "use",
        "used",
        "useful",
        "user",
        "users",
        "uses",
        "using",
        "usually",
        "very",
        "via",
        "was",
        "way",
        "ways",
        "we",
        "well",
        "were",
        "what",
        "when",
        "where",
        "whether",
        "which",
        "while",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "within",
        "without",
        "would",
        "yet",
        "you",
        "your",
        "example",
        "examples",
        "pep",
        "peps",
        "e.g",
        "i.e",
        "etc",
        "section",
        "above",
        "below",
        "following",
        "note",
        "author",
        "proposal",
        "proposed",
        "current",
        "currently",
    ]
)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_'-]*[A-Za-z0-9]|[A-Za-z]")
_UNDERLINE = re.compile(r"^\s*([=\-~^\"'`#*+.:_])\1{2,}\s*$")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,3}[.)]|#\.|\[\d+\])\s+")
_FIELD = re.compile(r"^:?[A-Z][A-Za-z-]*:\s+\S")
_LINK = re.compile(r"`([^`<]+?)\s*<[^>]*>`__?|\[([^\]]+)\]\([^)]*\)|:[a-z:]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`")
_REFERENCE = re.compile(r"\s*\[#?[\w-]+\]_|\|([^|]+)\||`([^`]+)`__?(?!\w)")
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[`*]*[A-Z0-9`])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|Mr|Mrs|Dr|Prof|No|Fig|Sec|St|approx|resp|al)|\b[A-Z])\.$")
_SKIP_AFTER = re.compile(r"^(references|footnotes|copyright|acknowledge?ments?|bibliography|changelog)$", re.IGNORECASE)


@dataclass(frozen=True)
class Sentence:
    """One sentence. `line` counts from 1 in its document; `words` are its content words, lower case."""

    text: str
    quote: str
    document: str
    line: int
    order: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A source text and what it is called."""

    name: str
    title: str
    text: str


def words_of(text: str) -> list[str]:
    """Content words, lower case, with a plural s taken off."""
    found = []
    for match in _WORD.finditer(text):
        word = match.group().lower().removesuffix("'s")
        if len(word) > 2 and word not in STOPWORDS:
            found.append(word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word)
    return found


def sentences_of(document: Document, first_order: int = 0) -> list[Sentence]:
    """The document's sentences, in order."""
    found: list[Sentence] = []
    for line, paragraph in _paragraphs(document.text):
        for offset, quote in _split(paragraph):
            text = plain(quote)
            if _reads_well(text):
                at = line + paragraph[:offset].count("\n")
                quote_text = " ".join(quote.split())
                words = tuple(words_of(text))
                found.append(Sentence(text, quote_text, document.name, at, first_order + len(found), words))
    return found


def plain(quote: str) -> str:
    """A quote without link markup and reference marks, on one line."""
    text = re.sub(r":pep:`(\d+)`", r"PEP \1", " ".join(quote.split()))
    text = _LINK.sub(lambda match: match[1] or match[2] or match[3], text)
    text = _REFERENCE.sub(lambda match: match[1] or match[2] or "", text)
    return re.sub(r"\s+([.,;:])", r"\1", re.sub(r"\s{2,}", " ", text)).strip()


READABLE = "one of 6 to 60 words that begins with a capital and ends in a full stop"


def _reads_well(text: str) -> bool:
    words = text.split()
    if not 6 <= len(words) <= 60 or len(text) > 420:
        return False
    letters = sum(char.isalpha() or char == " " for char in text)
    starts = text[0].isupper() or text[0] in "\"'`*"
    balanced = text.count("(") == text.count(")") and text.count("``") % 2 == 0
    return starts and text.endswith((".", "!", "?")) and letters > 0.8 * len(text) and balanced and "://" not in text


def _split(paragraph: str) -> Iterator[tuple[int, str]]:
    """Sentences of a paragraph with their offsets; an abbreviation's full stop ends none."""
    start = 0
    for match in _END.finditer(paragraph):
        head = paragraph[start : match.start()]
        if _ABBREVIATION.search(head.rstrip("\"')]")):
            continue
        yield start, head + paragraph[match.start() : match.end()].rstrip()
        start = match.end()
    yield start, paragraph[start:]


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Blocks of running text with the number of their first line."""
    lines = text.splitlines()
    block: list[str] = []
    begin, skipping_deeper_than, ended = 1, -1, False
    for number, line in enumerate([*lines, ""], 1):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            if block and not ended:
                yield begin, "\n".join(block)
            block = []
            continue
        if skipping_deeper_than >= 0:
            if indent > skipping_deeper_than:
                continue
            skipping_deeper_than = -1
        following = lines[number] if number < len(lines) else ""
        if _is_heading(line, following):
            ended = bool(_SKIP_AFTER.match(line.strip(" #")))
            block = []
            continue
        if not block and _is_term(line, following):
            continue
        if line.lstrip().startswith("..") or (not block and _opens_literal(line)):
            skipping_deeper_than = indent
            block = []
            continue
        if _is_code(line, bool(block)) or _FIELD.match(line):
            continue
        if _BULLET.match(line) and block:
            yield begin, "\n".join(block)
            block = []
        if not block:
            begin = number
        block.append(_BULLET.sub("", line).strip() if not block else line.strip())
        if line.rstrip().endswith("::"):
            block[-1] = block[-1][:-1]
            if not ended:
                yield begin, "\n".join(block)
            block, skipping_deeper_than = [], indent


def _is_heading(line: str, following: str) -> bool:
    return bool(_UNDERLINE.match(line) or _UNDERLINE.match(following) or re.match(r"^#{1,6}\s", line))


def _is_term(line: str, following: str) -> bool:
    """A definition list's term: a short line that ends no sentence, above a line that stands deeper."""
    deeper = len(following) - len(following.lstrip()) > len(line) - len(line.lstrip())
    return bool(following.strip()) and deeper and not _BULLET.match(line) and line.rstrip()[-1:] not in ".,:;!?"


def _opens_literal(line: str) -> bool:
    return line.strip() == "::"


def _is_code(line: str, inside: bool) -> bool:
    if inside:
        return False
    return line.startswith(("    ", "\t", "```", ">>>", "|", "+-", "$ "))
