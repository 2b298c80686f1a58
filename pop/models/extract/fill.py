"""A walk over a JSON Schema that fills each leaf from the text and keeps the evidence for it.

What a leaf is about is told by its name and description:

| it speaks of                     | it gets                                                                    |
|----------------------------------|----------------------------------------------------------------------------|
| quote, evidence, excerpt         | the source's own words of the sentence in hand                             |
| source, document, doc            | the name of the document that sentence stands in                           |
| line                             | the line that sentence begins on                                           |
| title, heading, theme, topic     | the best key phrase                                                        |
| summary, abstract, overview ...  | the most central sentences, as many as `maxLength` allows, at most four    |
| keywords, tags, phrases (a list) | key phrases                                                                |
| an enum                          | the label the text speaks of clearly; else "unsure" / "unknown" if allowed |
| any other text                   | a labelled field (``Label: value``), else the sentence in hand             |
| a number                         | a labelled field; never anything else                                      |
| a list of objects                | one per central sentence (or theme), `minItems` to `maxItems`, 5 if unsaid |

What is not there is left out where the schema allows it, null where that is allowed, and otherwise missing: the whole
answer is then a refusal that names what was not found. Nothing is invented.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pop.models.extract.rank import Corpus, key_phrases
from pop.models.extract.text import Document, Sentence, words_of

DEFAULT_ITEMS = 5
MAX_DEPTH = 12
UNSURE = ("unsure", "unknown", "unclear", "uncertain", "undetermined", "not found", "not stated")  # "none" is a finding
_QUOTE = ("quote", "evidence", "excerpt", "verbatim", "citation")
_SOURCE = ("source", "document", "doc", "document_id", "doc_id", "source_id")
_TITLE = ("title", "heading", "theme", "topic", "headline")
_SUMMARY = ("summary", "abstract", "overview", "digest", "gist", "introduction", "conclusion")
_PHRASES = ("keywords", "keyword", "tags", "phrases", "terms", "topics")
_GROUPS = ("themes", "clusters", "groups", "topics", "sections")
_SENTENCES = ("point", "points", "claim", "claims", "text", "sentence", "statement", "finding", "findings", "paragraph",
              "paragraphs", "fact", "facts", "key_points", "highlights", "content", "body", "answer")  # fmt: skip


class _Missing:
    """Stands for what the text does not say."""


MISSING = _Missing()


@dataclass
class Focus:
    """What the walk looks at: the sentences in view, and the one in hand."""

    sentences: Sequence[Sentence]
    hand: Sentence | None = None


@dataclass
class Filler:
    """One walk. `evidence` is ``[{"pointer", "quote", "document", "line"}]``, `missing` the pointers without a value."""

    corpus: Corpus
    documents: Sequence[Document]
    root: Mapping[str, Any]
    evidence: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    used: set[int] = field(default_factory=set)

    def fill(self) -> Any:
        """The filled value, or MISSING when something required is not in the text."""
        value = self._value(self.root, "", "", Focus(self.corpus.sentences), 0)
        if value is MISSING and not self.missing:
            self.missing.append("/")
        return value

    # -- the walk ----------------------------------------------------------------------------------------------

    def _value(self, schema: Any, pointer: str, name: str, focus: Focus, depth: int) -> Any:
        schema = self._resolved(schema)
        if depth > MAX_DEPTH or not isinstance(schema, Mapping):
            return MISSING if depth > MAX_DEPTH else self._sentence(pointer, focus)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._label(schema, pointer, name, focus)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._first_of(schema[word], pointer, name, focus, depth)
        return self._typed(schema, pointer, name, focus, depth)

    def _typed(self, schema: Mapping[str, Any], pointer: str, name: str, focus: Focus, depth: int) -> Any:
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds or _guess(schema)]
        for kind in [kind for kind in kinds if kind != "null"]:
            value = self._of_kind(kind, schema, pointer, name, focus, depth)
            if value is not MISSING:
                return value
        return None if "null" in kinds else MISSING

    def _of_kind(self, kind: Any, schema: Mapping[str, Any], pointer: str, name: str, focus: Focus, depth: int) -> Any:
        if kind == "object":
            return self._object(schema, pointer, focus, depth)
        if kind == "array":
            return self._array(schema, pointer, name, focus, depth)
        if kind == "string":
            return self._text(schema, pointer, name, focus)
        if kind in ("integer", "number"):
            return self._number(schema, pointer, name, kind, focus)
        return MISSING  # a boolean would be a judgement

    def _resolved(self, schema: Any) -> Any:
        for _ in range(10):
            reference = schema.get("$ref") if isinstance(schema, Mapping) else None
            if not isinstance(reference, str) or not reference.startswith("#/"):
                return schema
            schema = self.root
            for part in reference[2:].split("/"):
                schema = (
                    schema.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(schema, Mapping) else {}
                )
        return {}

    def _first_of(self, options: Any, pointer: str, name: str, focus: Focus, depth: int) -> Any:
        nullable = False
        for option in options if isinstance(options, list) else []:
            if isinstance(option, Mapping) and option.get("type") == "null":
                nullable = True
                continue
            value = self._value(option, pointer, name, focus, depth + 1)
            if value is not MISSING:
                return value
        return None if nullable else MISSING

    def _object(self, schema: Mapping[str, Any], pointer: str, focus: Focus, depth: int) -> Any:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping):
            return {} if not schema.get("required") else MISSING
        required = set(schema.get("required") or [])
        found, complete = {}, True
        for name, inner in properties.items():
            value = self._value(inner, f"{pointer}/{name}", str(name), focus, depth + 1)
            if value is not MISSING:
                found[name] = value
            elif name in required:
                self.missing.append(f"{pointer}/{name}")
                complete = False
        return found if complete and required <= set(found) else MISSING

    def _array(self, schema: Mapping[str, Any], pointer: str, name: str, focus: Focus, depth: int) -> Any:
        least, most = int(schema.get("minItems") or 0), schema.get("maxItems")
        wanted = int(most) if isinstance(most, int) else max(least, DEFAULT_ITEMS)
        inner = self._resolved(schema.get("items") or {})
        if not isinstance(inner, Mapping):
            return []
        if _guess(inner) == "string" and "enum" not in inner and _about(name, schema, _PHRASES):
            items: list[Any] = key_phrases(focus.sentences, wanted, self._background(focus))
        elif _guess(inner) == "string" and "enum" not in inner and _about(name, schema, _SOURCE, plural=True):
            items = _documents_of(focus.sentences)[:wanted]
        else:
            items = self._items(inner, pointer, name, focus, wanted, depth)
        return items if len(items) >= least else MISSING

    def _items(
        self, inner: Mapping[str, Any], pointer: str, name: str, focus: Focus, wanted: int, depth: int
    ) -> list[Any]:
        found: list[Any] = []
        for each in self._foci(inner, name, focus, wanted):
            before = len(self.missing)
            value = self._value(inner, f"{pointer}/{len(found)}", name, each, depth + 1)
            if value is not MISSING and value not in found:
                found.append(value)
            else:
                del self.missing[before:]
        return found

    def _foci(self, inner: Mapping[str, Any], name: str, focus: Focus, wanted: int) -> list[Focus]:
        """What each item of a list is about: a theme where groups are asked for, else a central sentence."""
        if _guess(inner) == "object" and _about(name, {}, _GROUPS):
            groups = Corpus(focus.sentences).themes(wanted) if focus.sentences else []
            return [Focus(group, Corpus(group).best(1)[0]) for group in groups[:wanted]]
        best = self.corpus.best(wanted * 2, among=[s for s in focus.sentences if s.order not in self.used])
        chosen = sorted(best[:wanted], key=lambda sentence: sentence.order)
        return [Focus([sentence], sentence) for sentence in chosen]

    # -- leaves ------------------------------------------------------------------------------------------------

    def _text(self, schema: Mapping[str, Any], pointer: str, name: str, focus: Focus) -> Any:
        most = schema.get("maxLength")
        limit = int(most) if isinstance(most, int) else 100_000
        if isinstance(schema.get("pattern"), str):
            return self._pattern(schema["pattern"], pointer, limit)
        if schema.get("format") in _FORMATS:
            return self._pattern(_FORMATS[schema["format"]], pointer, limit)
        value = self._by_name(schema, pointer, name, focus, limit)
        if not isinstance(value, str) or not int(schema.get("minLength") or 0) <= len(value) <= limit:
            return MISSING
        return value

    def _by_name(self, schema: Mapping[str, Any], pointer: str, name: str, focus: Focus, limit: int) -> Any:
        if _about(name, schema, _QUOTE):
            return self._sentence(pointer, focus, quote=True)
        if name.lower() in _SOURCE:
            hand = focus.hand or self._central(focus)
            return hand.document if hand and hand.document else MISSING
        if _about(name, schema, _TITLE):
            return self._title(focus, limit)
        if _about(name, schema, _SUMMARY):
            return self._summary(pointer, focus, limit)
        labelled = self._labelled(name, pointer)
        if labelled is not MISSING or not (_about(name, schema, _SENTENCES) or focus.hand):
            return labelled
        return self._sentence(pointer, focus, limit=limit)

    def _central(self, focus: Focus) -> Sentence | None:
        best = self.corpus.best(1, among=focus.sentences)
        return best[0] if best else None

    def _sentence(self, pointer: str, focus: Focus, *, quote: bool = False, limit: int = 100_000) -> Any:
        hand = focus.hand or self._central(focus)
        if hand is None or len(hand.text) > limit:
            return MISSING
        self.used.add(hand.order)
        self._note(pointer, hand)
        return hand.quote if quote else hand.text

    def _summary(self, pointer: str, focus: Focus, limit: int) -> Any:
        chosen: list[Sentence] = []
        for sentence in self.corpus.best(4, among=focus.sentences):
            if sum(len(c.text) + 1 for c in chosen) + len(sentence.text) <= limit:
                chosen.append(sentence)
        for sentence in chosen:
            self._note(pointer, sentence)
        return " ".join(s.text for s in sorted(chosen, key=lambda s: s.order)) if chosen else MISSING

    def _title(self, focus: Focus, limit: int) -> Any:
        phrases = key_phrases(focus.sentences, 2, self._background(focus))
        if not phrases:
            return MISSING
        two = " and ".join(phrases) if len(phrases) == 2 and " " not in phrases[0] else phrases[0]
        text = two if len(two) <= limit else phrases[0]
        return text[:1].upper() + text[1:] if len(text) <= limit else MISSING

    def _background(self, focus: Focus) -> Sequence[Sentence]:
        return self.corpus.sentences if len(focus.sentences) < len(self.corpus.sentences) else ()

    def _labelled(self, name: str, pointer: str) -> Any:
        """The value of a line ``Name: value``."""
        label = r"[\s_-]*".join(map(re.escape, re.split(r"[_\s-]+", name))) if name else ""
        if not label:
            return MISSING
        pattern = re.compile(rf"^[\s:*|>-]*{label}\**\s*[:=]\s*\**\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)
        for document in self.documents:
            match = pattern.search(document.text)
            if match:
                line = document.text.count("\n", 0, match.start(1)) + 1
                self._evidence(pointer, match[0].strip(), document.name, line)
                return match[1]
        return MISSING

    def _number(self, schema: Mapping[str, Any], pointer: str, name: str, kind: str, focus: Focus) -> Any:
        if name.lower() in ("line", "line_number") and focus.hand is not None:
            return focus.hand.line
        text = self._labelled(name, pointer)
        match = re.match(r"[-+]?\d[\d,]*(\.\d+)?(?![\w.])", text) if isinstance(text, str) else None
        if not match or (kind == "integer" and match[1]):
            return MISSING
        number: float = float(match[0].replace(",", ""))
        value = int(number) if kind == "integer" or not match[1] else number
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        return value if low <= value <= high else MISSING

    def _pattern(self, pattern: str, pointer: str, limit: int) -> Any:
        try:
            compiled = re.compile(pattern.removeprefix("^").removesuffix("$"))
        except re.error:
            return MISSING
        for document in self.documents:
            match = compiled.search(document.text[:200_000])
            if match and match[0] and len(match[0]) <= limit:
                line = document.text.count("\n", 0, match.start()) + 1
                self._evidence(pointer, match[0], document.name, line)
                return match[0]
        return MISSING

    def _label(self, schema: Mapping[str, Any], pointer: str, name: str, focus: Focus) -> Any:
        """The enum value of a line ``Name: value``, or that the text speaks of twice as clearly as of any other.

        Else an honest "unsure", where the schema has a word for it.
        """
        labels = schema["enum"] if isinstance(schema["enum"], list) else []
        if name and not any(quoted["pointer"] == pointer for quoted in self.evidence):
            said = self._labelled(name, pointer)
            for label in labels if isinstance(said, str) else ():
                if str(label).casefold() == said.casefold().strip(" .*_`\"'"):
                    return label
            if said is not MISSING:  # a label the schema does not know is no evidence for another
                self.evidence.pop()
        rated = sorted(((self._spoken_of(label, focus), str(label)) for label in labels), reverse=True)
        if rated and rated[0][0] >= 2 and (len(rated) == 1 or rated[0][0] >= 2 * rated[1][0]):
            winner = next(label for label in labels if str(label) == rated[0][1])
            near = self.corpus.nearest(str(winner), least=0.0)[:1]
            for sentence in near:
                self._note(pointer, sentence)
            return winner
        unsure = next((label for label in labels if str(label).lower() in UNSURE), MISSING)
        return None if unsure is MISSING and None in labels else unsure

    def _spoken_of(self, label: Any, focus: Focus) -> int:
        words = words_of(str(label).replace("_", " "))
        if not words or str(label).lower() in UNSURE:
            return 0
        return sum(1 for sentence in focus.sentences if set(words) <= set(sentence.words))

    def _note(self, pointer: str, sentence: Sentence) -> None:
        self._evidence(pointer, sentence.quote, sentence.document, sentence.line)

    def _evidence(self, pointer: str, quote: str, document: str, line: int) -> None:
        self.evidence.append({"pointer": pointer or "/", "quote": quote, "document": document, "line": line})


_FORMATS = {
    "date": r"\d{4}-\d{2}-\d{2}",
    "date-time": r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:\d{2})",
    "email": r"[\w.+-]+@[\w-]+\.[\w.-]*\w",
    "uri": r"https?://[^\s<>\"'`)]+[^\s<>\"'`).,;]",
}


def _documents_of(sentences: Sequence[Sentence]) -> list[str]:
    """The documents that say the most of it, the one with most sentences first."""
    counts = Counter(sentence.document for sentence in sentences if sentence.document).most_common()
    return [name for name, count in counts if count >= 0.3 * counts[0][1]]


def _guess(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, str):
        return kind
    if isinstance(kind, list):
        return next((entry for entry in kind if entry != "null"), "null")
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema else "string"


def _about(name: str, schema: Mapping[str, Any], words: Sequence[str], *, plural: bool = False) -> bool:
    """Whether a leaf's name, or the first words of its description, speak of one of these."""
    spoken = set(re.split(r"[^a-z]+", name.lower())) | {name.lower()}
    if plural:
        spoken |= {word.removesuffix("s") for word in spoken}
    if spoken & set(words):
        return True
    description = schema.get("description")
    first = re.split(r"[^a-z]+", description.lower())[:4] if isinstance(description, str) else []
    return bool(set(first) & set(words)) and words is not _SENTENCES
