"""Rules held against one file, or one command's end: what the verdict is, and on what evidence."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from pop.errors import PopError, safe
from pop.recipes.iterate.bounded import Ended, Searcher, TooLong
from pop.recipes.iterate.rules import (
    Amount,
    Exists,
    Exit,
    Formed,
    Heading,
    Holds,
    Matches,
    Prose,
    Rule,
    Schema,
    Size,
    Within,
)
from pop.recipes.iterate.wellformed import Flaw, Markdown, data_flaw, dead_links, read_data, read_markdown, same_words
from pop.store import NotAFile, read_regular

MAX_BYTES = 20_000_000  # of a file that rules look into
MAX_FILES = 200_000
MAX_FLAWS = 5  # told of one file
LAST_LINES = 8  # told of a command's output
OWN = frozenset({"CONTEXT.md", "COMPLETION_CRITERIA.md", "README.md", "manifest.json", "pipeline.json"})
OWN_FOLDER = "agent-prompts/"
FORMS = {".md": "markdown", ".markdown": "markdown", ".json": "json", ".yaml": "yaml", ".yml": "yaml"}


@dataclass(frozen=True)
class Verdict:
    """`evidence`: what was found, in a few words: a size, a line, an error with its place."""

    status: Literal["met", "unmet", "unchecked"]
    evidence: str


def _said(met: bool, evidence: str) -> Verdict:
    return Verdict("met" if met else "unmet", evidence)


def is_glob(pattern: str) -> bool:
    """Whether it has a sign that stands for others."""
    return any(sign in pattern for sign in "*?[")


@lru_cache(maxsize=1024)
def glob_regex(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression over relative paths; a leading dot is only matched by a dot."""
    found, at = "", 0
    while at < len(pattern):
        if match := re.compile(r"(?:^|(?<=/))\*\*/").match(pattern, at):
            found += r"(?:(?!\.)[^/]+/)*"
        elif match := re.compile(r"(?:^|(?<=/))\*\*\Z").match(pattern, at):
            found += r"(?:(?!\.)[^/]+/)*(?!\.)[^/]+"
        elif match := re.compile(r"(?:^|(?<=/))[*?]").match(pattern, at):
            found += r"(?!\.)" + ("[^/]*" if match[0] == "*" else "[^/]")
        elif match := re.compile(r"\*+").match(pattern, at):
            found += "[^/]*"
        elif match := re.compile(r"\[(!?)([^\]/]+)\]").match(pattern, at):
            inner = match[2].replace("\\", "\\\\").replace("[", r"\[").replace("^", r"\^")
            found += f"(?!/)[{'^' if match[1] else ''}{inner}]"
        else:
            match = re.compile(r".", re.DOTALL).match(pattern, at)
            assert match is not None
            found += "[^/]" if match[0] == "?" else re.escape(match[0])
        at = match.end()
    try:
        return re.compile(found, re.DOTALL)
    except re.error:  # [z-a]
        return re.compile(re.escape(pattern))


class Tree:
    """The regular files below a folder; links are never followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _paths(self) -> list[str]:
        found: list[str] = []
        for parent, folders, files in os.walk(self.folder, followlinks=False):
            folders.sort()
            below = os.path.relpath(parent, self.folder)
            prefix = "" if below == "." else f"{below}/"
            found += [prefix + name for name in sorted(files)]
            if len(found) > MAX_FILES:
                raise PopError(f"more than {MAX_FILES} files", where=self.folder, hint="name an iteration's own folder")
        return found

    def exists(self, path: str) -> bool:
        """Whether it names a file or folder in here."""
        return path == "." or os.path.exists(self.folder / path)

    def matching(self, pattern: str) -> list[str]:
        """The files of a path or glob; the iteration's own files, and links, match no glob."""
        if self._problem(pattern) is None:
            return [pattern]
        if not is_glob(pattern):
            return []
        regex = glob_regex(pattern)
        return [
            path
            for path in self._paths
            if regex.fullmatch(path) and path not in OWN and not path.startswith(OWN_FOLDER)
            if self._problem(path) is None
        ]

    def why_missing(self, pattern: str) -> str:
        """Why there is no such file."""
        return "nothing matches" if is_glob(pattern) else self._problem(pattern) or "it is there"

    def _problem(self, path: str) -> str | None:
        at = str(self.folder)
        parts = path.split("/")
        for number, part in enumerate(parts):
            at = f"{at}/{part}"
            try:
                mode = os.lstat(at).st_mode
            except (OSError, ValueError):
                return "it is not there"
            if stat.S_ISLNK(mode):
                return "a symbolic link is not followed" if number + 1 == len(parts) else "a symbolic link leads to it"
        return None if stat.S_ISREG(mode) else "it is no file"

    def look(self, path: str) -> Looked:
        """The file, to be judged."""
        full = self.folder / path
        try:
            return Looked(path, read_regular(full, max_bytes=MAX_BYTES), exists=self.exists)
        except (OSError, NotAFile) as error:
            size = os.lstat(full).st_size if os.path.lexists(full) else 0
            why = error.message if isinstance(error, NotAFile) else error.strerror or str(error)
            return Looked(path, b"", size_bytes=size, unreadable=why)


@dataclass
class Looked:
    """A file's bytes, and what is made of them when a rule asks. `exists`: for links; None where nothing stands beside it."""

    path: str
    data: bytes
    size_bytes: int | None = None
    unreadable: str | None = None
    exists: Callable[[str], bool] | None = None

    @property
    def size(self) -> int:
        return len(self.data) if self.size_bytes is None else self.size_bytes

    @cached_property
    def text(self) -> str:
        """Raises ValueError: it is no UTF-8, or cannot be read."""
        if self.unreadable is not None:
            raise ValueError(self.unreadable)
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8: byte {self.data[error.start]:#04x} at offset {error.start}") from None

    @cached_property
    def folded(self) -> str:
        return self.text.casefold()

    @cached_property
    def markdown(self) -> Markdown:
        return read_markdown(self.text)

    @property
    def form(self) -> str | None:
        """By its ending."""
        return FORMS.get(os.path.splitext(self.path)[1].lower())


class Judge:
    """Holds rules against files. Close it, or use it as a context: it may have a process of its own.

    Args:
        schemas: The folder in which JSON Schemas are looked for; None: such rules stay unchecked.
    """

    def __init__(self, schemas: Path | None) -> None:
        self._schemas = schemas
        self._searcher = Searcher()
        self._read: dict[str, dict[str, Any] | str] = {}

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._searcher.close()

    def of(self, rule: Rule, file: Looked) -> Verdict:
        """What a rule says of a file."""
        try:
            return self._of(rule, file)
        except ValueError as error:
            return Verdict("unmet", str(error))

    def _of(self, rule: Rule, file: Looked) -> Verdict:
        match rule:
            case Exists():
                return Verdict("met", f"{file.size:,} bytes")
            case Size():
                return _within(rule.least, rule.most, file.size, "bytes")
            case Amount():
                return amount(rule, _count(rule, file))
            case Holds():
                return _holds(rule, file.text, file.folded)
            case Heading():
                return _heading(rule, file)
            case Matches():
                return self._matches(rule, file.text)
            case Formed():
                return _formed(rule, file)
            case Schema():
                return self._fits(rule, file)
            case Exit() | Within() | Prose():
                return Verdict("unchecked", "no program can check this")

    def of_run(self, rule: Rule, ended: Ended) -> Verdict:
        """What a rule says of a command's end; of its output where it looks for words."""
        if isinstance(rule, Exit | Within) or (ended.code is None and not isinstance(rule, Prose)):
            return _of_end(rule, ended)
        return self.of(rule, Looked("output", ended.said.encode()))

    def _matches(self, rule: Matches, text: str) -> Verdict:
        try:
            found = self._searcher.search(rule.pattern, rule.flags, text)
        except TooLong:
            return Verdict("unmet", "the search was given up: the pattern backtracks for ever on this text")
        if found is None:
            return _said(not rule.wanted, "no match")
        return _said(rule.wanted, f"line {found[0]}: {safe(found[1], 80, one_line=True)}")

    def _fits(self, rule: Schema, file: Looked) -> Verdict:
        schema = self._schema(rule.path)
        if isinstance(schema, str):
            return Verdict("unchecked" if self._schemas is None else "unmet", schema)
        value = read_data(file.text, "yaml" if file.form == "yaml" else "json")
        try:
            problems = self._searcher.schema_problems(value, schema)
        except (TooLong, TypeError) as error:  # TypeError: a YAML value that JSON does not have
            return Verdict("unmet", "looking at it was given up" if isinstance(error, TooLong) else str(error))
        return _said(not problems, "; ".join(problems[:MAX_FLAWS]) or "it fits")

    def _schema(self, path: str) -> dict[str, Any] | str:
        """The schema, or why there is none."""
        if path not in self._read:
            self._read[path] = self._looked_up(path)
        return self._read[path]

    def _looked_up(self, path: str) -> dict[str, Any] | str:
        from pop.schemas import checked, read_schema
        from pop.store import contained

        if self._schemas is None:
            return f"the schema {path} is not at hand"
        try:
            full = contained(self._schemas, path)
            read_regular(full, max_bytes=MAX_BYTES)
            return checked(*read_schema(full))
        except FileNotFoundError:
            return f"there is no schema {path}"
        except (PopError, OSError) as error:
            return f"the schema {path} cannot be used: {' '.join(str(error).split())}"


def amount(rule: Amount, count: int) -> Verdict:
    """Whether a count fits."""
    return _within(rule.least, rule.most, count, rule.unit)


def _within(least: int | None, most: int | None, count: int, unit: str) -> Verdict:
    met = (least is None or count >= least) and (most is None or count <= most)
    return _said(met, f"{count:,} {unit}")


def _count(rule: Amount, file: Looked) -> int:
    match rule.unit:
        case "words":
            return len(re.findall(r"\w[\w'’-]*", file.text))
        case "lines":
            return len(file.text.splitlines())
        case "characters":
            return len(file.text)
        case "files":
            return 1


def _holds(rule: Holds, text: str, folded: str) -> Verdict:
    at = {word: folded.find(word.casefold()) for word in rule.words}
    held = {word: folded.count("\n", 0, place) + 1 for word, place in at.items() if place >= 0}
    where = ", ".join(f"{word!r} in line {line}" for word, line in held.items())
    missing = ", ".join(repr(word) for word in rule.words if word not in held)
    if not rule.wanted:
        return _said(not held, where or f"no {missing}")
    met = bool(held) if rule.any_of else not missing
    return _said(met, where if met else f"no {missing}")


def _heading(rule: Heading, file: Looked) -> Verdict:
    wanted, titles = same_words(rule.words), file.markdown.titles
    for title in titles:
        if same_words(title.words) == wanted and rule.level in (None, title.level):
            return Verdict("met", f"line {title.line}: {safe(str(title), 80)}")
    there = ", ".join(safe(str(title), 60) for title in titles[:8]) + (" ..." if len(titles) > 8 else "")
    return Verdict("unmet", f"no such heading; there is {there}" if there else "no such heading, nor any other")


def _formed(rule: Formed, file: Looked) -> Verdict:
    form = rule.form if rule.form != "well-formed" else file.form
    if form is None:
        return _said(bool(file.text.strip()), "UTF-8 text" if file.text.strip() else "it is empty")
    if form != "markdown":
        flaws = [flaw for flaw in [data_flaw(file.text, form)] if flaw]
    else:
        flaws = list(file.markdown.flaws)
        if file.exists is not None:
            flaws += dead_links(file.markdown, file.path, file.exists)
    return _said(not flaws, _told(flaws) or f"well-formed {form.upper() if form != 'markdown' else 'Markdown'}")


def _told(flaws: list[Flaw]) -> str:
    more = f"; and {len(flaws) - MAX_FLAWS} more" if len(flaws) > MAX_FLAWS else ""
    return "; ".join(map(str, flaws[:MAX_FLAWS])) + more


def _of_end(rule: Rule, ended: Ended) -> Verdict:
    if ended.timed_out:
        return Verdict("unmet", f"ended after {ended.seconds:.1f} s: its time was over{_last_words(ended)}")
    if ended.code is None:
        return Verdict("unmet", ended.said)
    if isinstance(rule, Within):
        return Verdict("met", f"{ended.seconds:.1f} s")
    met = isinstance(rule, Exit) and ended.code == rule.code
    how = f"exit {ended.code}" if ended.code >= 0 else f"signal {-ended.code}"
    return _said(met, f"{how} after {ended.seconds:.1f} s{_last_words(ended)}")


def _last_words(ended: Ended) -> str:
    lines = [line for line in ended.said.splitlines() if line.strip()][-LAST_LINES:]
    return ": " + "\n".join(safe(line, 200) for line in lines) if lines else ", and it printed nothing"
