"""Targets: the files that globs match, what is known of each (front matter, placeholders, tokens), and earlier deliverables.

Nothing outside the base is read: a link that leads out of it is an error, one to a folder is not followed. Hidden
files, folders that `pop iterate generate` or a daemon wrote, and caches are passed over, unless a glob begins with them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode

from pop.errors import ConfigError, safe
from pop.models.tokens import estimate_tokens
from pop.recipes.iterate.manifest import Reading
from pop.recipes.iterate.workflow import PLACEHOLDER
from pop.store import NotAFile, read_regular

RECORD = ".generated.json"  # lies in every folder that generate wrote
MAX_FILES = 1_000_000  # looked through below the base
MAX_TARGETS = 50_000
MAX_TARGET_BYTES = 4_000_000
MAX_FRONT_CHARS = 65_536
MAX_FIELDS, MAX_VALUE = 100, 200
MAX_STARS = 5
PASSED_OVER = frozenset({
    "__pycache__", "node_modules", "pipeline-pending", "pipeline-current", "pipeline-complete",
})  # fmt: skip
OF_AGENT = frozenset({"role", "n", "agent", "iteration"})  # placeholders that no target has

Progress = Callable[[str, int, int | None], None]
_SIGNS = re.compile(r"[*?\[\]{}`\\]")
_UNSEEN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_NOTHING = frozenset({"", "null", "Null", "NULL", "~"})
_SIMPLE_FIELD = re.compile(r"([A-Za-z_][\w-]*):[ \t]+([^\s\"'#&*!|>\[\]{}%@`,?:-][^#:\n]*?)[ \t]*")


class TargetError(ConfigError):
    """A target, or a glob that names some, cannot be used."""

    code = "bad-target"


@dataclass(frozen=True)
class Target:
    """A file that an agent is given. `fields`: the scalars of its front matter, as they are written."""

    path: str
    tokens: int
    size_bytes: int
    fields: Mapping[str, str] = field(default_factory=dict)
    trouble: str | None = None  # why its front matter says nothing


@dataclass(frozen=True)
class Planned:
    """A deliverable that an earlier iteration is going to make. `lineage`: the targets it comes from."""

    reading: Reading
    tokens: int
    fields: Mapping[str, str]
    lineage: frozenset[str]

    @property
    def name(self) -> str:
        """``requirements/stories/7.md``: what a glob calls it."""
        return f"{self.reading.iteration}/{self.reading.path}"


@dataclass(frozen=True)
class Unit:
    """One thing to work on: a target, or a deliverable of an earlier iteration, with what its placeholders mean."""

    path: str
    tokens: int
    fields: Mapping[str, str]
    targets: tuple[str, ...]
    reads: tuple[Planned, ...]
    lineage: frozenset[str]
    trouble: str | None = None

    @cached_property
    def names(self) -> Mapping[str, str]:
        """All placeholders: of the path, then captured by the glob, then front matter; the latter win."""
        parent, _, name = self.path.rpartition("/")
        stem, dot, ext = name.rpartition(".")
        stem, ext = (stem, ext) if dot and stem else (name, "")
        return {"path": self.path, "name": name, "stem": stem, "ext": ext, "parent": parent, **self.fields}


@dataclass(frozen=True)
class Glob:
    """A pattern over relative paths with ``/``: ``*``, ``**``, ``?``, ``[...]`` and ``{names}`` that capture a part."""

    text: str

    @cached_property
    def names(self) -> list[str]:
        return PLACEHOLDER.findall(self.text)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(_as_regex(self.text), re.DOTALL)

    def match(self, path: str) -> dict[str, str] | None:
        """What its names stand for in this path; None where it does not match."""
        found = self._pattern.fullmatch(path)
        return dict(zip(self.names, found.groups(), strict=True)) if found else None

    @property
    def prefix(self) -> str:
        """The folders before the first wildcard, where a search may begin; the whole where there is none."""
        parts = []
        for part in self.text.split("/"):
            if re.search(r"[*?\[{]", part):
                break
            parts.append(part)
        return "/".join(parts)

    @property
    def literal(self) -> bool:
        return self.prefix == self.text


def wrong_glob(text: str) -> str | None:
    """Why a glob cannot be matched, or would take too long; None where it would not."""
    parts = text.split("/")
    if parts.count("**") > 3:
        return "has '**' more than three times"
    if any(part.count("*") > MAX_STARS for part in parts):
        return f"has more than {MAX_STARS} stars in a part"
    try:
        Glob(text).match("")
    except re.error as error:  # [z-a]
        return f"is no glob: {error.msg}"
    return None


def _as_regex(glob: str) -> str:
    parts = glob.split("/")
    found = []
    for n, part in enumerate(parts):
        last = n == len(parts) - 1
        if part == "**":
            found.append(".+" if last else "(?:[^/]+/)*")
        else:
            found.append(_part_as_regex(part) + ("" if last else "/"))
    return "".join(found)


_SIGN = re.compile(r"\*+|\?|\[!?[^\]/]+\]|\{[A-Za-z_][A-Za-z0-9_-]*\}")


def _part_as_regex(part: str) -> str:
    found, end = [], 0
    for sign in _SIGN.finditer(part):
        found.append(re.escape(part[end : sign.start()]))
        end, text = sign.end(), sign.group()
        if text[0] == "*":
            found.append("[^/]*")
        elif text == "?":
            found.append("[^/]")
        elif text[0] == "{":
            found.append("([^/]+)")
        else:
            inner = text[1:-1].replace("\\", "\\\\").replace("[", "\\[").replace("&", "\\&").replace("~", "\\~")
            found.append(f"[{'^' + inner[1:] if inner[0] == '!' else inner.replace('^', chr(92) + '^')}]")
    return "".join(found) + re.escape(part[end:])


@dataclass
class Inputs:
    """The files of a base that may be targets.

    Args:
        base: The folder.
        globs: What `--targets` says; without it, every file may be one.
        skip: A folder to pass over: the one that is generated.
        progress: Told ``what, how many, of how many``.
    """

    base: Path
    globs: Sequence[Glob] = ()
    skip: Path | None = None
    progress: Progress | None = None
    _read: dict[str, Target] = field(default_factory=dict)
    _listed: dict[str, list[str]] = field(default_factory=dict)
    _given: dict[str, dict[str, str]] | None = None

    def matching(self, glob: Glob) -> dict[str, dict[str, str]]:
        """The files that a glob matches, sorted, with what it captures.

        Raises:
            TargetError: More than can be worked on, or looked through.
        """
        given = self._given_files()
        names: Iterable[str] = self._below(glob) if given is None else given
        found = {}
        for name in names:
            captured = glob.match(name)
            if captured is not None:
                found[name] = {**given[name], **captured} if given is not None else captured
        if len(found) > MAX_TARGETS:
            message = f"{glob.text[:80]!r} matches {len(found):,} files, which are too many (at most {MAX_TARGETS:,})"
            raise TargetError(message, where=self.base, hint="narrow the glob, or work on a part of them at a time")
        return found

    def given_without_match(self) -> list[str]:
        """Globs of `--targets` that match nothing."""
        return [glob.text for glob in self.globs if not any(glob.match(name) is not None for name in self._below(glob))]

    def near(self) -> str | None:
        """Some files that are there, for a hint."""
        given = self._given_files()
        names = list(given) if given is not None else self._below(Glob("**"))
        some = ", ".join(safe(name, 60, one_line=True) for name in names[:3])
        return f"{some}{' ...' if len(names) > 3 else ''}" if names else None

    def _given_files(self) -> dict[str, dict[str, str]] | None:
        if self.globs and self._given is None:
            found: dict[str, dict[str, str]] = {}
            for glob in self.globs:
                for name in self._below(glob):
                    captured = glob.match(name)
                    if captured is not None:
                        found[name] = {**captured, **found.get(name, {})}
            self._given = {name: found[name] for name in sorted(found)}
        return self._given

    def _below(self, glob: Glob) -> list[str]:
        """The files that a glob could match."""
        prefix = glob.prefix
        if glob.literal:
            path = self.base / prefix
            if path.is_file():
                return [prefix]
        if prefix not in self._listed:
            self._listed[prefix] = sorted(self._walk(prefix))
        return self._listed[prefix]

    def _walk(self, prefix: str) -> Iterator[str]:
        top = self.base / prefix if prefix else self.base
        self._refuse_outside(top, prefix)
        waiting, seen = [(str(top), f"{prefix}/" if prefix else "")], 0
        skip = os.path.realpath(self.skip) if self.skip else None
        while waiting:
            folder, above = waiting.pop()
            try:
                entries = list(os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError:
                hint = "let it be read, or narrow the globs to the folders beside it"
                raise TargetError("the folder cannot be read: permission denied", where=folder, hint=hint) from None
            if any(entry.name == RECORD for entry in entries) or os.path.realpath(folder) == skip:
                continue
            seen += len(entries)
            if seen > MAX_FILES:
                message = f"more than {MAX_FILES:,} files below it"
                raise TargetError(message, where=top, hint="narrow the globs, or say with --base where to look")
            if self.progress and len(waiting) % 50 == 0:
                self.progress("looking for targets", seen, None)
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in PASSED_OVER:
                        waiting.append((entry.path, f"{above}{entry.name}/"))
                elif _is_file(entry):
                    yield f"{above}{entry.name}"

    def _refuse_outside(self, path: Path, shown: str) -> None:
        if not path.resolve().is_relative_to(self.base.resolve()):
            hint = "put a copy there instead of the link"
            raise TargetError(f"{safe(shown, 200, one_line=True)!r} leads out of {self.base}", where=path, hint=hint)

    def read(self, path: str) -> Target:
        """A file as a target.

        Raises:
            TargetError: It is binary, huge, outside the base, or its name cannot stand in a manifest.
        """
        if path not in self._read:
            self._read[path] = self._target(path)
        return self._read[path]

    def _target(self, path: str) -> Target:
        shown = safe(path.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), 300, one_line=True)
        if _UNSEEN.search(path):
            raise TargetError(f"a target's name holds a character that nobody sees: {shown!r}", hint="rename the file")
        if "\\" in path:
            raise TargetError(f"a target's name holds a backslash: {shown!r}", hint="rename the file")
        full = os.path.join(self.base, path)
        try:
            if os.path.islink(full):
                self._refuse_outside(Path(full), path)
                full = os.path.realpath(full)
            data = read_regular(full, max_bytes=MAX_TARGET_BYTES)
        except NotAFile as error:
            hint = 'leave it out: "!path", or split it'
            raise TargetError(f"the target {shown!r} cannot be used: {error.message}", hint=hint) from None
        except OSError as error:
            said = (error.strerror or str(error)).lower()
            raise TargetError(f"the target {shown!r} cannot be read: {said}") from None
        try:
            text = data.decode("utf-8-sig") if b"\0" not in data else None
        except UnicodeDecodeError:
            text = None
        if text is None:
            hint = f'leave it out: "!{shown}", or narrow the glob'
            raise TargetError(f"the target {shown!r} is binary, or not UTF-8", hint=hint)
        fields, trouble = front_fields(text)
        return Target(path, estimate_tokens(text), len(data), fields, trouble)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def front_fields(text: str) -> tuple[dict[str, str], str | None]:
    """The scalars of a text's front matter as they are written, and why it could not be read, where it could not."""
    head = text[: MAX_FRONT_CHARS + 8].replace("\r\n", "\n")
    if not head.startswith("---\n"):
        return {}, None
    inner, separator, _ = head[4:].partition("\n---")
    if not separator:
        return {}, None
    simple = [_SIMPLE_FIELD.fullmatch(line) for line in inner.split("\n") if line.strip()]
    if len(simple) <= MAX_FIELDS and all(simple):
        return _usable((match[1], match[2]) for match in simple if match), None
    try:
        node = YAML(typ="safe", pure=True).compose(inner)
    except (YAMLError, RecursionError, ValueError) as error:
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        return {}, f"its front matter cannot be read{f' (line {mark.line + 2})' if mark else ''}: {said}"
    if not isinstance(node, MappingNode):
        return {}, None
    pairs = ((key.value, value.value) for key, value in node.value if _is_text(key) and _is_text(value))
    return _usable(pairs), None


def _is_text(node: object) -> bool:
    return isinstance(node, ScalarNode)


def _usable(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Those that can stand in a path."""
    found: dict[str, str] = {}
    for key, value in pairs:
        value = value.strip()
        plain = value not in _NOTHING and len(value) <= MAX_VALUE and "\n" not in value
        if plain and PLACEHOLDER.fullmatch(f"{{{key}}}") and len(found) < MAX_FIELDS:
            found[key] = value
    return found


def fill(pattern: str, names: Mapping[str, str]) -> str:
    """A pattern with its placeholders filled in; an empty one leaves no double slash behind.

    Raises:
        KeyError: One that is not known.
    """
    text = PLACEHOLDER.sub(lambda match: in_path(names[match[1]]), pattern)
    return re.sub(r"/{2,}", "/", text).removeprefix("/") if "{parent}" in pattern else text


def in_path(value: str) -> str:
    """A value without the signs that a path of a deliverable cannot hold: ``[id].tsx`` becomes ``_id_.tsx``."""
    return _SIGNS.sub("_", value)


def of_targets(pattern: str) -> list[str]:
    """The placeholders of a pattern that a target fills, in order."""
    return [name for name in PLACEHOLDER.findall(pattern) if name not in OF_AGENT]
