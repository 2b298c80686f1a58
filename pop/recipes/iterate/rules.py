"""What may stand in the bracket of a criterion, one rule or several with commas between them:

| rule                                                        | holds when                                            |
|-------------------------------------------------------------|-------------------------------------------------------|
| `exists`                                                    | the file is there (every other rule asks for that too)|
| `>1KB`, `at most 2 MB`, `10-20 KB`                          | its size fits; KB is 1000 bytes, KiB 1024             |
| `at least 200 words`, `< 80 lines`, `max 900 characters`    | it has so many                                        |
| `at least 3 files`                                          | so many files match the path's glob                   |
| `has "## Risks"`, `heading "Risks"`, `heading "Risks" at level 2` | a Markdown heading has these words              |
| `has "rollback"`, `contains "a", "b"`, `contains any of "a", "b"` | the text holds these words, in any case         |
| `lacks "TODO"`, `lacks /re/`                                | it does not                                           |
| `matches /re/i`                                             | Python's `re` finds it; ^ and $ are those of lines     |
| `markdown`, `yaml`, `json`, `well-formed`                   | it is well-formed (wellformed.py); the last by the file's ending |
| schema `file.json`                                          | it is JSON, or YAML, that fits this JSON Schema       |
| `exit 0`, `within 60s`                                      | of a command: its exit code, its time                 |

A heading is the same whatever its case, its number ("2.1 Risks") and its emphasis are. What is nearly a rule is a mistake;
what is none at all is prose, which nobody checks.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from pop.durations import seconds
from pop.errors import ConfigError

Unit = Literal["words", "lines", "characters", "files"]
Form = Literal["markdown", "yaml", "json", "well-formed"]
MAX_PATTERN = 1000  # characters of a regular expression
MAX_WITHIN_S = 3600.0


class CriterionError(ConfigError):
    """A criterion that looks like one and is none."""

    code = "bad-criterion"


@dataclass(frozen=True)
class Exists:
    text: str


@dataclass(frozen=True)
class Size:
    """Bytes, both ends included."""

    text: str
    least: int | None
    most: int | None


@dataclass(frozen=True)
class Amount:
    text: str
    unit: Unit
    least: int | None
    most: int | None


@dataclass(frozen=True)
class Holds:
    """`wanted`: False for `lacks`, which none of the words may break."""

    text: str
    words: tuple[str, ...]
    any_of: bool = False
    wanted: bool = True


@dataclass(frozen=True)
class Heading:
    """`level`: None for any."""

    text: str
    words: str
    level: int | None


@dataclass(frozen=True)
class Matches:
    text: str
    pattern: str
    flags: int
    wanted: bool = True


@dataclass(frozen=True)
class Formed:
    text: str
    form: Form


@dataclass(frozen=True)
class Schema:
    """`path`: of the schema, relative to the folder that is checked."""

    text: str
    path: str


@dataclass(frozen=True)
class Exit:
    text: str
    code: int


@dataclass(frozen=True)
class Within:
    text: str
    seconds: float


@dataclass(frozen=True)
class Prose:
    """Words that no rule understands."""

    text: str


Rule = Exists | Size | Amount | Holds | Heading | Matches | Formed | Schema | Exit | Within | Prose

_QUOTED = r'"(?:\\.|[^"\\])*"|“[^”]*”|`[^`]*`'
_REGEX = r"/(?>\\.|\[(?:\\.|[^\]\\])++\]|[^/\\])++/[a-z]*"  # possessive: a hostile text is walked through once
_PIECE = re.compile(rf"(?P<quoted>{_QUOTED})|(?P<regex>(?<=\s){_REGEX})|(?P<sign>[(),])|[^\"“`(),/]+|.", re.DOTALL)
_STRINGS = re.compile(rf"(?:{_QUOTED})(?:\s*(?:,|and|or)?\s*(?:{_QUOTED}))*")
_BYTES = {"b": 1, "byte": 1, "kb": 1000, "kib": 1 << 10, "mb": 10**6, "mib": 1 << 20, "gb": 10**9, "gib": 1 << 30}
_UNITS: dict[str, Unit] = {
    "word": "words", "line": "lines", "character": "characters", "char": "characters", "file": "files",
}  # fmt: skip
_LEAST, _MOST = {"at least": 0, "min": 0, "minimum": 0, ">=": 0, "≥": 0, ">": 1, "more than": 1, "over": 1}, {
    "at most": 0, "max": 0, "maximum": 0, "<=": 0, "≤": 0, "<": -1, "less than": -1, "fewer than": -1, "under": -1,
    "up to": 0,
}  # fmt: skip
_NUMBER = r"(\d[\d_]{0,17}(?:\.\d{1,9})?)"
_BOUND = re.compile(rf"({'|'.join(map(re.escape, sorted({**_LEAST, **_MOST}, key=len, reverse=True)))}|exactly)\s*{_NUMBER}\s*([A-Za-z]*)")  # fmt: skip
_RANGE = re.compile(rf"(?:between\s+)?{_NUMBER}\s*(?:-|–|to|and)\s*{_NUMBER}\s*([A-Za-z]+)")
_FLAGS = {"i": re.IGNORECASE, "s": re.DOTALL, "x": re.VERBOSE, "m": re.MULTILINE}
_FORMS: dict[str, Form] = {
    "markdown": "markdown", "md": "markdown", "yaml": "yaml", "yml": "yaml", "json": "json",
    "well-formed": "well-formed", "wellformed": "well-formed", "valid": "well-formed",
}  # fmt: skip
SHAPES = {
    "exists": "`exists` stands alone",
    "has": 'write has "words"',
    "contains": 'write contains "words", or contains all of "a", "b"',
    "mentions": 'write mentions "words"',
    "lacks": 'write lacks "words", or lacks /re/',
    "heading": 'write heading "Risks", or heading "Risks" at level 2',
    "headings": 'write headings "Risks", "Costs"',
    "matches": "write matches /re/",
    "schema": "write schema `file.json`",
    "exit": "write exit 0",
    "within": "write within 60s",
    "at least": "write at least 200 words, 20 lines, 900 characters, 3 files or 1 KB",
    "at most": "write at most 200 words, 20 lines, 900 characters, 3 files or 1 KB",
    **dict.fromkeys(("markdown", "yaml", "json", "well-formed"), "it stands alone"),
}


def bracket(text: str) -> tuple[list[str], str] | None:
    """The rules in the bracket that a text begins with, and what follows it; None where it has no such bracket."""
    if not text.startswith("("):
        return None
    depth, at, found, current = 0, 0, list[str](), ""
    for piece in _PIECE.finditer(text):
        sign, at = piece["sign"], piece.end()
        depth += {"(": 1, ")": -1}.get(sign, 0) if sign else 0
        if depth == 0:
            break
        if sign == "," and depth == 1:
            found.append(current)
            current = ""
        elif not (sign == "(" and depth == 1):
            current += piece[0]
    if depth:
        return None
    return _joined([*found, current]), text[at:]


def _joined(pieces: list[str]) -> list[str]:
    """Quoted words after a comma belong to the rule before them."""
    found: list[str] = []
    for piece in (piece.strip() for piece in pieces):
        if found and re.fullmatch(rf"(?:and\s+|or\s+)?(?:{_QUOTED})", piece):
            found[-1] += f", {piece}"
        elif piece:
            found.append(piece)
    return found


def read_rule(text: str) -> list[Rule]:
    """The rules of one piece of a bracket: several where it names several headings.

    Raises:
        CriterionError: It is nearly a rule.
    """
    plain = " ".join(text.split())
    small = plain.lower()
    if small in ("exists", "exist", "is there", "present"):
        return [Exists(text)]
    found = _bound(text, small) or _form(text, small) or _words(text, plain) or _pattern(text, plain)
    found = found or _schema(text, plain) or _of_command(text, small)
    if found:
        return found
    _refuse_nearly(text, small)
    return [Prose(text)]


def _refuse_nearly(text: str, small: str) -> None:
    for shape in SHAPES:
        if small == shape or small.startswith(f"{shape} "):
            raise CriterionError(f"{text[:80]!r} is not how {shape!r} is written", hint=SHAPES[shape])
    if re.match(r"[<>≤≥=]|\d", small):
        raise CriterionError(f"{text[:80]!r} is no rule", hint="say of what: >1KB, >= 200 words, < 80 lines")
    first = re.match(r"[\w-]+", small)
    near = difflib.get_close_matches(first[0], SHAPES, n=1, cutoff=0.75) if first else []
    if near:
        hint = f"did you mean {near[0]!r}? What no program can check stands outside of the bracket"
        raise CriterionError(f"unknown rule {text[:80]!r}", hint=hint)


def _bound(text: str, small: str) -> list[Rule]:
    if match := _BOUND.fullmatch(small):
        word, least, most = match[1], None, None
        factor, unit = _unit(text, match[3])
        number = round(float(match[2].replace("_", "")) * factor)
        if word == "exactly":
            least = most = number
        elif word in _LEAST:
            least = number + _LEAST[word]
        else:
            most = number + _MOST[word]
    elif match := _RANGE.fullmatch(small):
        factor, unit = _unit(text, match[3])
        least, most = (round(float(match[number].replace("_", "")) * factor) for number in (1, 2))
        if least > most:
            raise CriterionError(f"{text[:80]!r} holds for nothing", hint="the smaller number stands first")
    else:
        return []
    return [Amount(text, unit, least, most) if unit else Size(text, least, most)]


def _unit(text: str, word: str) -> tuple[int, Unit | None]:
    """What a unit is worth, and what it counts when that is not bytes."""
    one = word.removesuffix("s") or word
    if one in _BYTES:
        return _BYTES[one], None
    if one in _UNITS:
        return 1, _UNITS[one]
    hint = "KB, MB, words, lines, characters or files"
    raise CriterionError(f"{text[:80]!r} does not say of what" if not word else f"unknown unit {word!r}", hint=hint)


def _form(text: str, small: str) -> list[Rule]:
    word = re.sub(r"^(?:is\s+)?(?:valid|well-formed|wellformed)\s+(?=\w)", "", small)
    return [Formed(text, _FORMS[word])] if word in _FORMS else []


def _words(text: str, plain: str) -> list[Rule]:
    match = re.match(
        r"(?i)(?:(has|contains|mentions)(?:\s+(all|any)\s+of|\s+(headings?))?|(lacks)|(headings?))\s*(?=[\"“`])", plain
    )
    if match is None:
        return []
    strings = _STRINGS.match(plain, match.end())
    words = tuple(_unquoted(quoted) for quoted in re.findall(_QUOTED, strings[0])) if strings else ()
    rest = plain[strings.end() :].strip() if strings else plain
    level = re.fullmatch(r"(?i)(?:at\s+)?level\s+([1-6])", rest)
    of_heading = bool(match[3] or match[5])
    if not all(word.strip() for word in words) or (rest and not (level and of_heading)):
        return []
    if of_heading:
        return [_heading(text if len(words) == 1 else None, word, int(level[1]) if level else None) for word in words]
    if match[4]:
        return [Holds(text, words, wanted=False)]
    if (match[2] or "").lower() == "any":
        return [Holds(text, words, any_of=True)]
    marked = [word for word in words if re.match(r"#{1,6}\s+\S", word)]
    plain_words = tuple(word for word in words if word not in marked)
    own = text if len(words) == 1 else None
    return [*(_heading(own, word, None) for word in marked), *([Holds(text, plain_words)] if plain_words else [])]


def _heading(text: str | None, words: str, level: int | None) -> Heading:
    """A heading's rule; of several in one piece each has a text of its own, which tells what is missing."""
    match = re.match(r"(#{1,6})\s+(.*)", words)
    told = f'{"has" if match else "heading"} "{words}"' + (f" at level {level}" if level else "")
    return Heading(text or told, match[2] if match else words, level or (len(match[1]) if match else None))


def _unquoted(quoted: str) -> str:
    return re.sub(r'\\(["\\])', r"\1", quoted[1:-1]) if quoted[0] == '"' else quoted[1:-1]


def _pattern(text: str, plain: str) -> list[Rule]:
    match = re.fullmatch(r"(?is)(matches|lacks)\s+/(.+)/([a-z]*)", text.strip())
    if match is None:
        return []
    flags = re.MULTILINE
    for letter in match[3]:
        if letter not in _FLAGS:
            raise CriterionError(f"unknown flag {letter!r} in {text[:80]!r}", hint=f"known: {', '.join(_FLAGS)}")
        flags |= _FLAGS[letter]
    if len(match[2]) > MAX_PATTERN:
        raise CriterionError(f"a regular expression of {len(match[2])} characters", hint=f"at most {MAX_PATTERN}")
    try:
        re.compile(match[2], flags)
    except (re.error, OverflowError, RecursionError) as error:
        where = f" at its character {error.pos + 1}" if isinstance(error, re.error) and error.pos is not None else ""
        raise CriterionError(f"{match[2][:80]!r} is no regular expression: {error}", hint=f"mend it{where}") from None
    return [Matches(text, match[2], int(flags), wanted=match[1].lower() == "matches")]


def _schema(text: str, plain: str) -> list[Rule]:
    match = re.fullmatch(r"(?i)(?:fits\s+|json\s+)?schema\s+[`\"]([^`\"]+)[`\"]", plain)
    return [Schema(text, match[1])] if match else []


def _of_command(text: str, small: str) -> list[Rule]:
    if match := re.fullmatch(r"exits?(?:\s+with)?(?:\s+code)?\s+(\d{1,3})", small):
        return [Exit(text, int(match[1]))]
    if match := re.fullmatch(r"within\s+(\S+)", small):
        try:
            return [Within(text, seconds(match[1], at_most_s=MAX_WITHIN_S))]
        except (TypeError, ValueError):
            raise CriterionError(f"{match[1]!r} is no time up to an hour", hint='such as "60s" or "5m"') from None
    return []
