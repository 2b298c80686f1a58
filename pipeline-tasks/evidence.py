"""What the tasks of *brief* share about claims: is the quote really there, does the claim stay with it, who wrote it."""

import re

LEAST_WORDS = 6
_ENDS = re.compile(r"[.!?。！？][\"'”’)\]*`]*$")
_BULLET = re.compile(r"(^|\n)[ \t]*([-*+•>]|\(?\d+[.)])[ \t]+$")
_POINTS_BACK = re.compile(
    r"\b(it(?! is proposed)|its|they|them|their|these|those|this(?! (?:pep|document|paper|report|note|is a proposal))|other|"
    r"another|instead|such|above|below|following|here|again|latter|former|he|she|his|her|i|we|you|your|our|my|then|same|also|"
    r"however|presumably|but|feedback|let's|new part|similar(?! to))\b",
    re.IGNORECASE,
)
_POINTS_ON = re.compile(
    r"\b(following|as follows|below|above|previous|readers?|first person|see (appendix|section)|I|my)\b"
)
_SAYS_WHAT = re.compile(r"^this (pep|document|paper|report|note) |\b(propos|introduc)", re.IGNORECASE)
_VERB = re.compile(r"\b(\w+[^\Ws]s|is|was|are|were|have|can|may|must|will|would|should|do|did|be)\b")
_LITERAL = re.compile(r"(``.+?``)")
_NOTES = r"\[(?:#?[\w-]+|\*)\]_"
_MARKS = [
    (re.compile(rf"\s*\((?:see|see also|cf\.|in|implemented in)?\s*{_NOTES}(?:,?\s*(?:and\s+)?{_NOTES})*\)"), ""),
    (re.compile(rf"\s*{_NOTES}"), ""),
    (re.compile(r":(pep|rfc):`(\d+)`"), lambda match: f"{match[1].upper()} {match[2]}"),
    (
        re.compile(r":(?:func|class|meth|mod|data|exc|attr|keyword|const|py:\w+):`[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`"),
        r"`\1`",
    ),
    (re.compile(r":[a-z][\w:+-]*:`[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),
    (re.compile(r"`([^`]+)`__?(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w|])\|(\w[^|]*?)\|(?:__?)?(?!\w)"), r"\1"),
    (re.compile(r"\[([^\]]+)\]\([^)\s]*\)"), r"\1"),
    (re.compile(r"\\\s"), ""),
]


def squeezed(text):
    """Runs of white space as one blank: a quote may cross a line's end."""
    return " ".join(text.split())


def line_of(quote, text):
    """The line of `text` on which `quote` begins, or None when its words do not stand there, one after the other."""
    match = _found(quote, text)
    return text.count("\n", 0, match.start()) + 1 if match else None


def _found(quote, text):
    words = quote.split()
    if not words:
        return None
    pattern = r"\s+".join(re.escape(word) for word in words)
    before, after = (r"(?<!\w)" if words[0][0].isalnum() else ""), (r"(?!\w)" if words[-1][-1].isalnum() else "")
    return re.search(f"{before}{pattern}{after}", text)


def weakness(quote, text):
    """Why a quote is no evidence, or None: it must stand in the text, as a whole sentence or with six words or more."""
    match = _found(quote, text)
    if match is None:
        return "the quote does not stand there word for word"
    if len(quote.split()) >= LEAST_WORDS:
        return None
    before = text[: match.start()].rstrip("\"'“‘(*` ")
    begins = not before.strip() or before.endswith("\n\n") or _ENDS.search(before.rstrip())
    if (begins or _BULLET.search(text[: match.start()])) and _ENDS.search(quote.strip()):
        return None
    return f"the quote is neither a whole sentence nor {LEAST_WORDS} words long"


def strangers(text, document):
    """Numbers and names in a claim that its document never mentions.

    A name is a word with a capital that opens no sentence; in a language that writes every noun so, only numbers count.
    """
    known = squeezed(f"{document['title']} {document['text']}")
    numbers, words = set(_numbers(known)), {word.lower() for word in re.findall(r"[^\W\d_]+", known)}
    names = [] if _capitals_are_common(document["text"]) else _names(text)
    found = [number for number in _numbers(text) if number not in numbers]
    found += [name for name in names if not {name.lower(), name.lower().removesuffix("s")} & words]
    return list(dict.fromkeys(found))


def _names(text):
    for match in re.finditer(r"[^\W\d_]+", text):
        word = match[0]
        named = word[0].isupper() and not _opens_sentence(text[: match.start()])
        if word != "I" and (named or re.search(r".[A-Z]", word)):
            yield word


def _capitals_are_common(text):
    inside = re.findall(r"(?<=[a-z,] )[^\W\d_]{3,}", text)
    return len(inside) >= 20 and sum(word[0].isupper() for word in inside) > 0.25 * len(inside)


def _numbers(text):
    return [number.replace(",", "") for number in re.findall(r"(?<!\w)\d+(?:[.,]\d+)*", text)]


def _opens_sentence(before):
    before = before.rstrip("\"'“‘(*`[ \n")
    return not before or before[-1] in ".!?:"


def fault(claim, documents):
    """What is wrong with ``{"text", "quote", "document"}``, or None."""
    document = documents.get(claim["document"])
    if document is None:
        return f"there is no document {claim['document']!r}"
    weak = weakness(claim["quote"], document["text"])
    if weak:
        return f"{weak} ({claim['document']}): {claim['quote'][:200]!r}"
    foreign = strangers(claim["text"], document)
    return f"{claim['document']} does not speak of {', '.join(foreign[:6])}" if foreign else None


def as_text(quote):
    """A quote as the text of a claim."""
    return re.sub(r"\s*\(see [^()]*\)", "", printed(quote))


def stands_alone(text):
    """Whether a copied sentence can be read outside its place."""
    opening = " ".join(text.split()[:7])
    whole = re.match(r"[\"'“*_]*[A-Z`]", text) and _ENDS.search(text) and _VERB.search(text)
    return bool(whole) and not _POINTS_BACK.search(opening) and not _POINTS_ON.search(text)


def says_what(text):
    """Whether a sentence says what its document is there for."""
    return bool(_SAYS_WHAT.search(text))


def printed(text):
    """A text for print: reST's roles, links, references and substitutions as plain words, its literals as `code`.

    What steers a terminal or turns the reading order around (escapes, bidi marks) is left out.
    """
    text = re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", text)
    pieces = _LITERAL.split(squeezed(text))
    for at in range(0, len(pieces), 2):
        for pattern, plain in _MARKS:
            pieces[at] = pattern.sub(plain, pieces[at])
    joined = "".join(piece[1:-1] if at % 2 else piece for at, piece in enumerate(pieces))
    return re.sub(r"\s+([.,;:])(?=\s|$)", r"\1", re.sub(r" {2,}", " ", joined)).strip()


def makers(ctx):
    """The models this attempt asked so far: ``[{"model", "note", "calls", "input_tokens", "output_tokens"}]``."""
    return added(
        {
            "model": f"{call.provider}/{call.provider_model}",
            "note": call.note or "",
            "calls": 1,
            "input_tokens": call.input_tokens,
            "output_tokens": call.output_tokens,
        }
        for call in ctx.calls
        if call.error_class is None
    )


def added(entries):
    """One entry per model, with the sums of theirs."""
    found = {}
    for entry in entries:
        one = found.setdefault(
            (entry["model"], entry["note"]), {**entry, "calls": 0, "input_tokens": 0, "output_tokens": 0}
        )
        for key in ("calls", "input_tokens", "output_tokens"):
            one[key] += entry[key]
    return list(found.values())


def extractive(ctx):
    """Whether this attempt's words were only copied, by the embedded engine."""
    made = makers(ctx)
    return bool(made) and all(entry["model"].startswith("builtin/") for entry in made)
