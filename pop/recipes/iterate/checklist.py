"""The lines of COMPLETION_CRITERIA.md: the workflow's criteria, said of each deliverable that they are about."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pop.errors import did_you_mean, safe
from pop.recipes.iterate.criteria import needed_files, parse_one
from pop.recipes.iterate.judging import glob_regex, is_glob
from pop.recipes.iterate.mistakes import Mistakes
from pop.recipes.iterate.rules import CriterionError
from pop.recipes.iterate.targets import in_path
from pop.recipes.iterate.workflow import PLACEHOLDER, Iteration
from pop.store import NotAFile, contained, read_regular
from pop.yamlplaces import Keys

MAX_SCHEMA_BYTES = 1_000_000


@dataclass(frozen=True)
class Made:
    """A deliverable with the pattern it was made by, and what the placeholders mean for it."""

    path: str
    pattern: str
    names: Mapping[str, str]


def checklist(iteration: Iteration, keys: Keys, made: Sequence[Made], mistakes: Mistakes) -> list[str]:
    """Every criterion with its placeholders filled in; then that each deliverable exists of which none says anything."""
    found: dict[str, None] = {}
    covered: set[str] = set()
    paths = {one.path for one in made}
    for n, text in enumerate(iteration.completion_criteria):
        here = (*keys, "completion_criteria", n)
        named = parse_one(text).paths
        for names in _meanings(text, named, made, here, mistakes):
            filled = _filled(" ".join(text.split()), names)
            if wrong := _misfilled(text, filled, names):
                mistakes.at(here, wrong, "targets say that of themselves: in their front matter, or by their names")
                continue
            found[filled] = None
            for path in named:
                covered |= _about(_fill(path, names, in_path), paths, made, here, mistakes)
    return [*found, *(f"`{path}` (exists)" for path in sorted(paths - covered))]


def _meanings(
    text: str, named: Sequence[str], made: Sequence[Made], keys: Keys, mistakes: Mistakes
) -> Iterator[Mapping[str, str]]:
    """What the placeholders of a criterion mean, for each deliverable it is about; once where it has none."""
    wanted = PLACEHOLDER.findall(text)
    if not wanted:
        yield {}
        return
    about = [one for one in made if one.pattern in named] or made
    fits = [one for one in about if all(name in one.names for name in wanted)]
    if not fits:
        name = next((name for name in wanted if not any(name in one.names for one in about)), wanted[0])
        known = {known for one in about[:100] for known in one.names}
        mistakes.at(keys, f"nothing is known as {{{name}}} of any deliverable", did_you_mean(name, known))
    elif len(fits) < len(about) and about is not made:
        lost = next(one for one in about if one not in fits)
        name = next(name for name in wanted if name not in lost.names)
        hint = "name what all its targets share, or give each a deliverable of its own"
        mistakes.at(keys, f"{{{name}}} is not one thing for {safe(lost.path, 120, one_line=True)!r}", hint)
    for one in fits:
        yield one.names


_PIECE = re.compile(r'`[^`]*`|"(?:\\.|[^"\\])*"|(?<=\s)/(?:\\.|[^/\\])+/|[^`"/]+|.', re.DOTALL)
_HARMLESS = re.compile(r"[\w.,:=+@%/ -]*")
_IN_COMMAND = re.compile(r"[\w.,:=+@%/][\w.,:=+@%/-]*")


def _filled(text: str, names: Mapping[str, str]) -> str:
    """With its placeholders filled in, so that a path stays one path, words those words, and prose prose."""
    return "".join(_fill(piece, names, _MEANT.get(piece[0], _plain)) for piece in _PIECE.findall(text))


def _fill(text: str, names: Mapping[str, str], meant: Callable[[str], str]) -> str:
    return PLACEHOLDER.sub(lambda match: meant(names[match[1]]) if match[1] in names else match[0], text)


def _plain(value: str) -> str:
    return value.replace("`", "'")


def _in_words(value: str) -> str:
    return re.sub(r'(["\\])', r"\\\1", value)


def _in_pattern(value: str) -> str:
    return re.escape(value).replace("/", r"\/")


_MEANT: Mapping[str, Callable[[str], str]] = {"`": in_path, '"': _in_words, "/": _in_pattern}


def _misfilled(text: str, filled: str, names: Mapping[str, str]) -> str | None:
    """What a target says of itself that makes another criterion of it, or none; None where it is still the same."""
    given = {name: names[name] for name in PLACEHOLDER.findall(text) if name in names}
    before = parse_one(text)
    if not given or (before.command is None and all(_HARMLESS.fullmatch(value) for value in given.values())):
        return None
    shown = ", ".join(f"{{{name}}} is {safe(value, 80, one_line=True)!r}" for name, value in given.items())
    if before.command is not None:
        fits = all(_IN_COMMAND.fullmatch(value) for value in given.values())
        return None if fits else f"{shown}, which cannot stand in a command"
    try:
        now = parse_one(filled)
    except CriterionError as error:
        return f"{error.message}: {shown}"
    same = [type(rule) for rule in now.rules] == [type(rule) for rule in before.rules] and now.command is None
    return None if same and len(now.paths) == len(before.paths) else f"it is no such criterion any more: {shown}"


def _about(path: str, paths: set[str], made: Sequence[Made], keys: Keys, mistakes: Mistakes) -> set[str]:
    """The deliverables that a criterion's path or glob means."""
    if path in paths:
        return {path}
    pattern = glob_regex(path) if is_glob(path) else None
    found = {one for one in paths if pattern.fullmatch(one)} if pattern else set()
    if not found:
        hint = did_you_mean(path, [*dict.fromkeys(one.pattern for one in made), *sorted(paths)[:200]])
        mistakes.at(keys, f"no agent makes {safe(path, 120, one_line=True)!r}", hint)
    return found


def schemas(
    iteration: Iteration, keys: Keys, beside: Path, made: Sequence[Made], mistakes: Mistakes
) -> dict[str, bytes]:
    """The JSON Schemas that criteria name, by name: they lie beside the workflow, unless an agent makes them."""
    found: dict[str, bytes] = {}
    paths = {one.path for one in made}
    for n, text in enumerate(iteration.completion_criteria):
        for name in needed_files([parse_one(text)]):
            if name in paths or name in found:
                continue
            try:
                found[name] = read_regular(contained(beside, name).resolve(), max_bytes=MAX_SCHEMA_BYTES)
            except (OSError, NotAFile):
                near = did_you_mean(name, sorted(path.name for path in beside.glob("*.json")))
                hint = near or f"put it beside the workflow: {beside / name}"
                mistakes.at((*keys, "completion_criteria", n), f"no schema {safe(name, 120, one_line=True)!r}", hint)
    return found
