"""The goal map: what each goal of `pop new` is put together from (docs/components.md).

A root's ``goal_map.json`` stands before the package's; with ``"extends": "package"`` it holds only what differs. The map
names components, it does not look for them: one that no library has is generated when it is needed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal, TypeGuard, get_args

from pop.errors import ConfigError, ConfigErrors, UsageError, did_you_mean, safe
from pop.places import Path, Places, find_places
from pop.recipes.wizard.library import KINDS, NAME_HINT, NAME_PATTERN, Kind, Source, kind_of, standard_name
from pop.records import BadJson, read_json
from pop.store import NotAFile, read_regular

FILE = "goal_map.json"
PACKAGED = FilePath(__file__).parent / FILE
SCHEMA = FilePath(__file__).parent / "goal_map.schema.json"
MAX_BYTES = 1_000_000
MAX_GOALS = 200
SEPARATOR = "\n\n"  # between the components of a section

GOAL_PATTERN = r"[A-Za-z][A-Za-z0-9_]{0,55}"
TOP_KEYS = ("$schema", "extends", "goals")
GOAL_KEYS = (
    "group", "purpose", "aliases", "persona", "protocols", "constraints", "persona_sections", "template_sections",
)  # fmt: skip
SECTION_KEYS = ("title", "component", "components", "content", "separator")
_BODY = ("component", "components", "content")

# What a section may hold besides components: what was chosen or said in this one conversation.
Word = Literal["persona", "protocols", "constraints", "title", "additions", "request"]
WORDS: tuple[Word, ...] = get_args(Word)


@dataclass(frozen=True)
class Ref:
    """A component that the map names, whether or not a library has it."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Section:
    """A part of a document: a heading, and below it components joined by `separator`, or `content` as it stands."""

    title: str | None
    components: tuple[Ref | Word, ...] = ()
    content: str | None = None
    separator: str = SEPARATOR


@dataclass(frozen=True)
class Goal:
    """One goal of the menu, and what it recommends. None and () leave the kind to generation, under `standard_name`."""

    name: str
    group: str
    purpose: str
    aliases: tuple[str, ...] = ()
    persona: str | None = None
    protocols: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    persona_sections: tuple[Section, ...] | None = None
    template_sections: tuple[Section, ...] | None = None

    def wanted(self) -> list[Ref]:
        """Every component its documents are put together from, each once; where a kind names none, the standard one."""
        named: list[Ref] = []
        for kind in KINDS:
            names = self.names(kind) or (standard_name(kind, self.name),)
            named += [Ref(kind, name) for name in names]
        for section in (*(self.persona_sections or ()), *(self.template_sections or ())):
            named += [part for part in section.components if isinstance(part, Ref)]
        return list(dict.fromkeys(named))

    def names(self, kind: Kind) -> tuple[str, ...]:
        """What the map names of a kind."""
        persona = (self.persona,) if self.persona else ()
        return {"personas": persona, "protocols": self.protocols, "constraints": self.constraints}[kind]


@dataclass(frozen=True)
class GoalMap:
    """All goals in the order of the menu: group by group, as the groups first appear."""

    goals: tuple[Goal, ...]
    path: FilePath
    source: Source
    sha256: str

    @property
    def groups(self) -> dict[str, list[Goal]]:
        """The goals by group."""
        found: dict[str, list[Goal]] = {}
        for goal in self.goals:
            found.setdefault(goal.group, []).append(goal)
        return found

    def number(self, goal: Goal) -> int:
        """Its number in the menu, from 1."""
        return self.goals.index(goal) + 1

    def find(self, text: str) -> Goal:
        """The goal that a person means: its name, an alias or half of one, or its number in the menu.

        Raises:
            UsageError: It means none.
        """
        asked = text.strip()
        if re.fullmatch("[0-9]{1,9}", asked):
            if 1 <= int(asked) <= len(self.goals):
                return self.goals[int(asked) - 1]
            raise UsageError(f"no goal {asked}", hint=f"1 to {len(self.goals)}", code="unknown-goal")
        known = {spelling: goal for goal in self.goals for spelling in spellings(goal)}
        found = known.get(folded(asked))
        if found:
            return found
        words = {word.casefold(): goal for goal in reversed(self.goals) for word in goal.name.split("_") if word[3:]}
        near = next((hit for one in (known, words) if (hit := _near(asked, one))), None)
        hint = f"did you mean {near!r}?" if near else did_you_mean("", [goal.name for goal in self.goals])
        raise UsageError(f"no goal {safe(asked, 100, one_line=True)!r}", hint=hint, code="unknown-goal")

    def users(self) -> dict[Ref, list[str]]:
        """The goals that name a component, by component."""
        found: dict[Ref, list[str]] = {}
        for goal in self.goals:
            for ref in goal.wanted():
                found.setdefault(ref, []).append(goal.name)
        return found


def folded(text: str) -> str:
    """A name without what does not matter in it: case, and `-`, `_`, `/` and spaces."""
    return re.sub(r"[-_/\s]+", "", text).casefold()


def spellings(goal: Goal) -> Iterator[str]:
    """How a goal may be called, folded; an alias such as ``EXPLAIN/DOCUMENT`` by each half too."""
    for name in (goal.name, *goal.aliases):
        for part in dict.fromkeys((name, *name.split("/"))):
            if folded(part):
                yield folded(part)


def goal_map_schema() -> dict[str, Any]:
    """The JSON Schema of goal_map.json (``pop schema goal-map``)."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_bytes())
    return schema


def load_goal_map(root: FilePath | None) -> GoalMap:
    """The root's goal map where it has one, else the package's.

    Raises:
        ConfigErrors: Every mistake in it, in reading order, each with ``file:line:column  path``.
    """
    own = root / FILE if root else None
    if own is None or not (own.exists() or own.is_symlink()):
        return read_goal_map(PACKAGED, "package")
    return read_goal_map(own, "root")


def read_goal_map(path: FilePath, source: Source) -> GoalMap:
    """The goal map in a file; see `load_goal_map`."""
    try:
        data = read_regular(path, max_bytes=MAX_BYTES)
        document = read_json(data, where=path.name)
    except NotAFile as error:
        raise ConfigErrors([ConfigError(error.message, where=path, code=error.code)]) from None
    except BadJson as error:
        where, code = error.where, error.code
        raise ConfigErrors([ConfigError(error.message, where=where, hint=error.hint, code=code)]) from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigErrors([ConfigError(f"cannot be read: {why}", where=path)]) from None
    reader = _Reader(find_places(data.decode(), path.name))
    goals = reader.goal_map(document)
    if reader.problems:
        raise ConfigErrors([problem for _, problem in sorted(reader.problems, key=lambda entry: entry[0])])
    groups = list(dict.fromkeys(goal.group for goal in goals))
    ordered = tuple(sorted(goals, key=lambda goal: groups.index(goal.group)))
    return GoalMap(ordered, path, source, hashlib.sha256(data).hexdigest())


@dataclass
class _Reader:
    """Turns the document into goals and collects what is wrong with it."""

    places: Places
    problems: list[tuple[int, ConfigError]] = field(default_factory=list)

    def wrong(self, path: Path, message: str, hint: str | None = None, *, key: bool = False) -> None:
        where = self.places.of_key(path) if key else self.places.of(path)
        self.problems.append((self.places.order(path), ConfigError(message, where=where, hint=hint, code="goal-map")))

    def goal_map(self, document: Any) -> list[Goal]:
        if not isinstance(document, dict):
            self.wrong((), "a goal map must be an object", '{"goals": {"MY_GOAL": {...}}}')
            return []
        self._unknown_keys(document, TOP_KEYS, ())
        if not isinstance(document.get("$schema", ""), str):
            self.wrong(("$schema",), "must be a text: where the schema lies")
        extends = document.get("extends")
        if "extends" in document and extends != "package":
            self.wrong(("extends",), '`extends` can only be "package"', "leave it out where this map is the whole map")
        own = self._goals(document)
        if extends != "package":
            self._refuse_doubles(own)
            if not own and not self.problems:
                self.wrong(("goals",), "a goal map needs at least one goal", '"extends": "package" brings its eleven')
            return own
        ours = {goal.name: goal for goal in own}
        theirs = [ours.pop(goal.name, goal) for goal in read_goal_map(PACKAGED, "package").goals]
        goals = [*theirs, *ours.values()]
        self._refuse_doubles(goals)
        return goals

    def _goals(self, document: dict[str, Any]) -> list[Goal]:
        if "goals" not in document:
            self.wrong((), "`goals` is missing", '{"goals": {"MY_GOAL": {...}}}')
            return []
        value = document["goals"]
        if not isinstance(value, dict):
            self.wrong(("goals",), "must be an object: a goal by its name", '{"MY_GOAL": {"purpose": "..."}}')
            return []
        if len(value) > MAX_GOALS:
            self.wrong(("goals",), f"{len(value)} goals are too many (at most {MAX_GOALS})")
            return []
        found = [self._goal(name, goal, ("goals", name)) for name, goal in value.items()]
        return [goal for goal in found if goal]

    def _goal(self, name: str, value: Any, path: Path) -> Goal | None:
        if not re.fullmatch(GOAL_PATTERN, name):
            hint = "letters, digits and _, at most 56, a letter first: MY_GOAL"
            self.wrong(path, f"{name[:100]!r} is no name for a goal", hint, key=True)
        if not isinstance(value, dict):
            self.wrong(path, "a goal must be an object", '{"purpose": "...", "persona": "..."}')
            return None
        self._unknown_keys(value, GOAL_KEYS, path)
        if "purpose" not in value:
            self.wrong(path, "`purpose` is missing", "one sentence: it stands in the menu", key=True)
        protocols = self._names(value, "protocols", path)
        constraints = self._names(value, "constraints", path)
        of_template: dict[str, Kind] = {**dict.fromkeys(protocols, KINDS[1]), **dict.fromkeys(constraints, KINDS[2])}
        persona = self._checked(value, "persona", path, self._name)
        return Goal(
            name=name,
            group=self._checked(value, "group", path, self._line) or "Further goals",
            purpose=(self._line(value["purpose"], (*path, "purpose")) if "purpose" in value else None) or "",
            aliases=self._list(value, "aliases", path, self._alias),
            persona=persona,
            protocols=protocols,
            constraints=constraints,
            persona_sections=self._sections(value, "persona_sections", path, lambda _: KINDS[0]),
            template_sections=self._sections(value, "template_sections", path, of_template.get),
        )

    def _sections(
        self, goal: dict[str, Any], key: str, path: Path, kind: Callable[[str], Kind | None]
    ) -> tuple[Section, ...] | None:
        """The sections of a document; `kind` says of which kind a component is that is named without it."""
        if goal.get(key) is None:
            return None
        value, here = goal[key], (*path, key)
        if not isinstance(value, list) or not value:
            self.wrong(here, "must be a list of sections", '[{"title": "...", "component": "..."}]')
            return None
        found = [self._section(section, (*here, number), kind) for number, section in enumerate(value)]
        return tuple(section for section in found if section)

    def _section(self, value: Any, path: Path, kind: Callable[[str], Kind | None]) -> Section | None:
        if not isinstance(value, dict):
            self.wrong(path, "a section must be an object", '{"title": "...", "component": "..."}')
            return None
        self._unknown_keys(value, SECTION_KEYS, path)
        bodies = [key for key in _BODY if key in value]
        if len(bodies) != 1:
            message = "one of `component`, `components` and `content` is needed" if not bodies else (
                f"`{bodies[0]}` and `{bodies[1]}` do not go together"
            )  # fmt: skip
            self.wrong((*path, *bodies[1:2]), message, "one of them says what stands in the section", key=bool(bodies))
            return None
        if "separator" in value and "components" not in value:
            self.wrong((*path, "separator"), "there is nothing to separate", "it stands between `components`", key=True)

        def part(text: Any, at: Path) -> Ref | Word | None:
            return self._part(text, at, kind)

        (body,) = bodies
        here = (*path, body)
        parts: tuple[Ref | Word, ...] = ()
        if body == "component":
            one = part(value[body], here)
            parts = (one,) if one else ()
        elif body == "components":
            if value[body] in ([], None):
                self.wrong(here, "must be a list with at least one component")
            parts = self._list(value, body, path, part)
        return Section(
            title=self._checked(value, "title", path, self._line),
            components=parts,
            content=self._text(value[body], here) if body == "content" else None,
            separator=self._separator(value, path),
        )

    def _separator(self, value: dict[str, Any], path: Path) -> str:
        given = value.get("separator", SEPARATOR)
        if isinstance(given, str) and len(given) <= 200:
            return given
        self.wrong((*path, "separator"), "must be a text of at most 200 characters")
        return SEPARATOR

    def _part(self, value: Any, path: Path, kind: Callable[[str], Kind | None]) -> Ref | Word | None:
        """``protocols/code_review_pass``, a name whose kind is plain from its place, or one of the words."""
        if _is_word(value):
            return value
        if not isinstance(value, str) or "/" not in value:
            return self._bare(value, path, kind)
        of, _, rest = value.partition("/")
        given = kind_of(of)
        if given is None or of not in KINDS:
            hint = f"did you mean {given!r}?" if given else did_you_mean(of[:80], KINDS)
            self.wrong(path, f"no kind of component {of[:80]!r}", hint)
            return None
        name = self._name(rest, path)
        return Ref(given, name) if name else None

    def _bare(self, value: Any, path: Path, kind: Callable[[str], Kind | None]) -> Ref | None:
        name = self._name(value, path)
        if name is None:
            return None
        found = kind(name)
        if found is None:
            hint = f"say of which kind it is: protocols/{name} or constraints/{name}"
            self.wrong(path, f"{name!r} stands neither in `protocols` nor in `constraints` of this goal", hint)
            return None
        return Ref(found, name)

    def _names(self, goal: dict[str, Any], key: Kind, path: Path) -> tuple[str, ...]:
        """One name or several."""
        if isinstance(goal.get(key), str):
            name = self._name(goal[key], (*path, key))
            return (name,) if name else ()
        return self._list(goal, key, path, self._name)

    def _list(self, holder: dict[str, Any], key: str, path: Path, check: Callable[[Any, Path], Any]) -> tuple[Any, ...]:
        value, here = holder.get(key), (*path, key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.wrong(here, "must be a list")
            return ()
        found = []
        for number, entry in enumerate(value):
            checked = check(entry, (*here, number))
            if checked in found:
                self.wrong((*here, number), f"{str(checked)!r} stands here twice")
            elif checked is not None:
                found.append(checked)
        return tuple(found)

    def _checked(self, holder: dict[str, Any], key: str, path: Path, check: Callable[[Any, Path], Any]) -> Any:
        """The value of a key, or None where it is not given, or is wrong."""
        return None if holder.get(key) is None else check(holder[key], (*path, key))

    def _name(self, value: Any, path: Path) -> str | None:
        if isinstance(value, str) and re.fullmatch(NAME_PATTERN, value):
            return value
        shown = repr(value[:100]) if isinstance(value, str) else "this"
        plain = isinstance(value, str) and re.fullmatch(NAME_PATTERN, value.removesuffix(".txt"))
        hint = f"without the ending: {value.removesuffix('.txt')}" if plain else NAME_HINT
        self.wrong(path, f"{shown} is no name of a component", hint)
        return None

    def _line(self, value: Any, path: Path) -> str | None:
        """A short text of one line."""
        if isinstance(value, str) and value.strip() and len(value) <= 300 and value.isprintable():
            return value.strip()
        self.wrong(path, "must be a text: one line, 1 to 300 characters, nothing that cannot be printed")
        return None

    def _alias(self, value: Any, path: Path) -> str | None:
        """No number, whole or half: that means a place in the menu."""
        line = self._line(value, path)
        if line and any(folded(part).isdigit() for part in (line, *line.split("/"))):
            self.wrong(path, f"{line!r} is never found: a number means a place in the menu", "put a letter to it")
            return None
        return line

    def _text(self, value: Any, path: Path) -> str | None:
        if isinstance(value, str) and value.strip() and len(value) <= 20_000 and safe(value) == value:
            return value
        self.wrong(path, "must be a text of 1 to 20000 characters, without control characters")
        return None

    def _unknown_keys(self, value: dict[str, Any], known: tuple[str, ...], path: Path) -> None:
        for key in value:
            if key not in known:
                self.wrong((*path, key), f"unknown key {key[:80]!r}", did_you_mean(key[:80], known), key=True)

    def _refuse_doubles(self, goals: list[Goal]) -> None:
        """No spelling means two goals."""
        means: dict[str, str] = {}
        for goal in goals:
            for spelling in dict.fromkeys(spellings(goal)):
                other = means.setdefault(spelling, goal.name)
                if other != goal.name:
                    here = next(name for name in (goal.name, other) if ("goals", name) in self.places.keys)
                    self.wrong(("goals", here), f"{goal.name!r} and {other!r} are both called {spelling!r}", key=True)


def _near(asked: str, known: dict[str, Goal]) -> str | None:
    near = difflib.get_close_matches(folded(asked[:100]), known, n=1, cutoff=0.6)
    return known[near[0]].name if near else None


def _is_word(value: Any) -> TypeGuard[Word]:
    return isinstance(value, str) and value in WORDS
