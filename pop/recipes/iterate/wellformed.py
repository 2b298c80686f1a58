"""What is well-formed Markdown, YAML and JSON, with the place of what is not; and where a Markdown text has its headings.

Almost any text is valid Markdown, so here it is well-formed when

- it is not empty and has no control characters;
- every ``` or ~~~ block is closed, and every <!-- comment;
- no row of a table has more cells than its header has columns: readers do not show the rest;
- every reference of a link has its definition ([text][ref] where [ref]: ... is missing);
- every relative link and image names something in the folder (only where there is a folder to look in; what leads out of it
  is not looked at).

Lines are read as CommonMark reads them as far as this needs it: a parser that reads all of it takes ten times as long. YAML is
YAML 1.2, several documents too, a key twice is an error; JSON is strict, a key twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from pop.records import BadJson, read_json

_FENCE = re.compile(r" {0,3}(?:> ?)*+(?:(?:[-*+]|\d++[.)]) ++)?+\s*+(`{3,}(?=[^`]*$)|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_SETEXT = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_DIVIDER = re.compile(r" {0,3}\|?[ \t]*+:?-++:?[ \t]*+(?:\|[ \t]*+:?-++:?[ \t]*+)*+\|?[ \t]*+$")
_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_LINK = re.compile(
    r"!?\[(?:[^\[\]\\]|\\.|\[[^\[\]]*+\])*+\]"
    r"\(\s*+(?:<([^<>\n]*+)>|([^\s()<>]*+(?:\([^\s()]*+\)[^\s()<>]*+)*+))\s*+(?:\"[^\"\n]*+\"|'[^'\n]*+')?+\s*+\)"
)
_REFERRED = re.compile(r"\[[^\[\]\n]+\]\[([^\[\]\n]+)\]")
_DEFINED = re.compile(r" {0,3}\[([^\[\]\n]+)\]:")
_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|//|#|/|\?")
MAX_YAML = 2_000_000  # characters: its reader takes a minute for more
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_NUMBERED = re.compile(r"^(?:\d+(?:\.\d+)*[.)]?|[A-Za-z][.)])\s+")


@dataclass(frozen=True)
class Flaw:
    """What is wrong, and where: line and column from 1, 0 where there is none."""

    message: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.line}:{self.column or 1}: " if self.line else ""
        return f"{place}{self.message}"


@dataclass(frozen=True)
class Title:
    """A heading: its line from 1, its level, its words as they stand."""

    line: int
    level: int
    words: str

    def __str__(self) -> str:
        return f"{'#' * self.level} {self.words}"


@dataclass
class Markdown:
    """What was found in a text. `links`: relative targets with their lines."""

    titles: list[Title] = field(default_factory=list)
    links: list[tuple[int, str]] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)


def same_words(words: str) -> str:
    """A heading's words as they are compared: without number, emphasis, case and a colon at the end."""
    plain = re.sub(r"[*_`]+", "", words).strip()
    return " ".join(_NUMBERED.sub("", plain).rstrip(":").split()).casefold()


def read_markdown(text: str) -> Markdown:
    """See the module."""
    found = Markdown()
    if not text.strip():
        found.flaws.append(Flaw("it is empty"))
    if match := _CONTROL.search(text):
        line = text.count("\n", 0, match.start()) + 1
        column = match.start() - text.rfind("\n", 0, match.start())
        found.flaws.append(Flaw(f"the control character {match[0]!r}", line, column))
    prose = list(_prose(text.split("\n"), found))
    _read_tables(prose, found)
    _read_titles(prose, found)
    _read_links(prose, found)
    found.flaws.sort(key=lambda flaw: (flaw.line, flaw.column))
    return found


def _prose(lines: list[str], found: Markdown) -> Iterator[tuple[int, str]]:
    """The lines outside of fenced blocks and comments, with their numbers."""
    fence, began, comment = "", 0, 0
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if comment:
            _, end, line = line.partition("-->")
            if not end:
                continue
            comment = 0
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
            continue
        if mark:
            fence, began = mark[1], number
            continue
        if "<!--" in line:
            line, is_open = _without_comments(_CODE.sub("", line))
            comment = number if is_open else 0
        yield number, line
    if fence:
        found.flaws.append(Flaw(f"the block that begins with {fence} is not closed", began, 1))
    if comment:
        found.flaws.append(Flaw("the comment that begins with <!-- is not closed", comment, 1))


def _without_comments(line: str) -> tuple[str, bool]:
    """What stands around the comments of a line, and whether the last one is still open at its end."""
    kept, rest = "", line
    while "<!--" in rest:
        before, _, rest = rest.partition("<!--")
        kept += before
        _, end, rest = rest.partition("-->")
        if not end:
            return kept, True
    return kept + rest, False


def _read_titles(prose: list[tuple[int, str]], found: Markdown) -> None:
    before = ""
    for number, line in prose:
        if match := _ATX.match(line):
            found.titles.append(Title(number, len(match[1]), _words_of(line[match.end() :].strip())))
            line = ""
        elif before.strip() and (match := _SETEXT.match(line)):
            found.titles.append(Title(number - 1, 1 if match[1][0] == "=" else 2, before.strip()))
            line = ""
        before = "" if line.startswith(("    ", "\t", ">", "- ", "* ", "|")) else line


def _words_of(title: str) -> str:
    """Without the signs that may close a heading."""
    plain = title.rstrip("#")
    return plain.rstrip() if plain != title and (not plain or plain[-1] in " \t") else title


def _read_tables(prose: list[tuple[int, str]], found: Markdown) -> None:
    columns, before = 0, ""
    for number, line in prose:
        if columns and "|" in line and line.strip():
            cells = _cells(line)
            if cells > columns:
                column = len(line) - len(line.lstrip()) + 1
                message = f"a row of {cells} cells in a table of {columns} columns"
                found.flaws.append(Flaw(message, number, column))
            continue
        columns = 0
        if "|" in before and "-" in line and _DIVIDER.match(line) and _cells(line) == _cells(before):
            columns = _cells(line)
        before = line


def _cells(row: str) -> int:
    plain = row.replace("\\|", "").strip()
    return plain.removeprefix("|").removesuffix("|").count("|") + 1


def _read_links(prose: list[tuple[int, str]], found: Markdown) -> None:
    defined = {" ".join(match[1].split()).casefold() for _, line in prose if (match := _DEFINED.match(line))}
    for number, line in prose:
        if "](" not in line and "][" not in line:
            continue
        plain = _CODE.sub(lambda match: " " * len(match[0]), line)
        for match in _LINK.finditer(plain):
            target = match[1] if match[1] is not None else match[2]
            if target and not _ELSEWHERE.match(target):
                found.links.append((number, unquote(re.split(r"[?#]", target)[0])))
        for match in _REFERRED.finditer(plain):
            if " ".join(match[1].split()).casefold() not in defined:
                found.flaws.append(Flaw(f"nothing defines the link [{match[1][:80]}]", number, match.start() + 1))


def dead_links(found: Markdown, path: str, exists: Callable[[str], bool]) -> Iterator[Flaw]:
    """Relative links of the file `path` that lead to nothing in its folder; those that leave the folder are not judged.

    Args:
        exists: Whether a relative path names a file or folder.
    """
    import posixpath

    for line, target in found.links:
        full = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if not full.startswith("../") and full != ".." and not exists(full):
            yield Flaw(f"the link {target[:120]!r} leads to nothing", line, 1)


def read_data(text: str, form: str) -> Any:
    """The value of a JSON or YAML text, for a schema.

    Raises:
        ValueError: It is not well-formed, with ``line:column:`` where that is known.
    """
    if flaw := data_flaw(text, form, whole=True):
        raise ValueError(str(flaw))
    if form == "json":
        return read_json(text)
    return _yaml(text)[0]


def data_flaw(text: str, form: str, *, whole: bool = False) -> Flaw | None:
    """What keeps a text from being JSON, or YAML.

    Args:
        whole: YAML is one document without aliases: a few aliases of aliases make a value that takes for ever to look at.
    """
    if not text.strip():
        return Flaw("it is empty")
    if form == "yaml" and len(text) > MAX_YAML:
        return Flaw(f"{len(text):,} characters of YAML are not read; at most {MAX_YAML:,}")
    try:
        if form == "json":
            read_json(text)
            return None
        documents = _yaml(text)
    except BadJson as error:
        place = re.search(r"(\d+):(\d+)", error.where or "")
        return Flaw(error.message, int(place[1]), int(place[2])) if place else Flaw(error.message)
    except _NotYaml as error:
        return error.flaw
    if whole and len(documents) != 1:
        return Flaw(f"{len(documents)} YAML documents instead of one")
    if whole and "*" in text and (line := _first_alias(text)):
        return Flaw("YAML aliases are not looked at by a schema", line)
    return None


def _first_alias(text: str) -> int:
    """The line of the first alias; 0 where there is none."""
    from ruamel.yaml import YAML
    from ruamel.yaml.tokens import AliasToken

    tokens = YAML(typ="safe", pure=True).scan(text)
    return next((int(token.start_mark.line) + 1 for token in tokens if isinstance(token, AliasToken)), 0)


class _NotYaml(Exception):
    def __init__(self, flaw: Flaw) -> None:
        self.flaw = flaw


def _yaml(text: str) -> list[Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return list(YAML(typ="safe", pure=True).load_all(text))
    except RecursionError:
        raise _NotYaml(Flaw("nested too deeply")) from None
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        said = str(getattr(error, "problem", None) or str(error).splitlines()[0])
        raise _NotYaml(Flaw(said, mark.line + 1, mark.column + 1) if mark else Flaw(said)) from None
