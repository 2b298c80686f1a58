"""Puts the two documents together: a persona, and a prompt with a marked place for the request.

Nothing here reads or writes a file, and nothing asks a model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

from pop.recipes.wizard.goals import Goal, Ref, Section, Word
from pop.recipes.wizard.library import Component, Kind, singular, standard_name

PERSONA_FILE = "00_PERSONA.md"
TEMPLATE_FILE = "01_PROMPT_TEMPLATE.md"

# Where the request goes. A person replaces the line between the marks; a task has an expression there.
REQUEST_PLACE = """<!-- the request begins -->
(Write here what this time is asked, and put below it what is to be worked on.)
<!-- the request ends -->"""

WISHES = Section("Further wishes", ("additions",))
REQUEST = Section("The request", ("request",))
PERSONA_SECTIONS = (Section("Who you are", ("persona",)), WISHES)
TEMPLATE_SECTIONS = (Section("How we work", ("protocols",)), Section("Limits", ("constraints",)), REQUEST)

Origin = Literal["package", "root", "generated", "skeleton", "placeholder"]


@dataclass(frozen=True)
class Part:
    """What stands in a document for a component: its text, and where that comes from.

    `brief` is what the user said of it, `why` why no model wrote it, `model` and `note` are those of the answer.
    """

    ref: Ref
    text: str
    origin: Origin
    sha256: str
    brief: str | None = None
    model: str | None = None
    note: str | None = None
    why: str | None = None

    @classmethod
    def of(cls, component: Component) -> Part:
        """A component of the library."""
        ref = Ref(component.kind, component.name)
        return cls(ref, component.text, component.source, component.sha256)

    @property
    def to_do(self) -> bool:
        """Whether somebody still has to write it."""
        return self.origin in ("skeleton", "placeholder")

    def shown(self) -> str:
        """Its text as the document has it, marked where it is not what it should be."""
        match self.origin:
            case "package" | "root" | "generated":
                return self.text
            case "skeleton":
                head = f"> **SKELETON for {self.ref}**: sentences of neighbouring components, not written for this."
                return f"{head}\n\n{self.text}\n\n> **End of the skeleton.** Rewrite it, or run `pop new` with a model."
            case "placeholder":
                return placeholder(self)
            case _:
                assert_never(self.origin)


def placeholder(part: Part) -> str:
    """The mark in the place of a text that is missing."""
    lines = [f"**TODO: {part.ref} is missing.** Write it here, or run `pop new` again: then it is tried again."]
    lines += [f"It is to say: {one_line(part.brief)}"] if part.brief else []
    lines += [f"Why it is missing: {one_line(part.why)}"] if part.why else []
    return "\n".join(f"> {line}" for line in lines)


def one_line(text: str) -> str:
    """A text on one line, at most 300 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"


def sha256_of(text: str) -> str:
    """Of the text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Choice:
    """What a person chose for one project."""

    name: str
    goal: Goal
    persona: str
    title: str
    additions: str = ""

    def sections(self) -> tuple[tuple[Section, ...], tuple[Section, ...]]:
        """The layout of the two documents; what none of them would show gets a section of its own."""
        persona = self.goal.persona_sections or PERSONA_SECTIONS
        template = self.goal.template_sections or TEMPLATE_SECTIONS
        words = {part for section in (*persona, *template) for part in section.components}
        if not words & {"persona", self.recommended}:
            persona = (PERSONA_SECTIONS[0], *persona)
        if "additions" not in words:
            persona = (*persona, WISHES)
        if not any("request" in section.components for section in template):
            template = (*template, REQUEST)
        return persona, template

    @property
    def recommended(self) -> Ref | None:
        """The persona that the map names, in whose place the chosen one stands."""
        return Ref("personas", self.goal.persona) if self.goal.persona else None

    def refs(self, part: Ref | Word) -> tuple[Ref, ...]:
        """The components that a part of a section stands for."""
        if part == "persona" or part == self.recommended:
            return (Ref("personas", self.persona),)
        if part == "protocols" or part == "constraints":
            return named(self.goal, part)
        return (part,) if isinstance(part, Ref) else ()

    def needed(self) -> list[Ref]:
        """Every component that the documents are put together from, each once, in reading order."""
        parts = [part for document in self.sections() for section in document for part in section.components]
        return list(dict.fromkeys(ref for part in parts for ref in self.refs(part)))


def named(goal: Goal, kind: Kind) -> tuple[Ref, ...]:
    """What the map names of a kind; where it names none, the standard name."""
    return tuple(Ref(kind, name) for name in goal.names(kind) or (standard_name(kind, goal.name),))


def default_title(name: str) -> str:
    """``meticulous_auditor`` -> ``Meticulous Auditor``."""
    return " ".join(word.capitalize() for word in re.split(r"[_\-\s]+", name) if word)


@dataclass(frozen=True)
class Documents:
    """The two texts. The prompt is cut where the request goes: below `heading`, between `before` and `after`."""

    persona: str
    before: str
    heading: str
    after: str

    def filled(self, request: str) -> str:
        """The prompt with something in the place of the request."""
        return _joined([self.before, self.heading, request, self.after])

    def files(self) -> dict[str, str]:
        """The documents by their file names."""
        return {PERSONA_FILE: f"{self.persona}\n", TEMPLATE_FILE: f"{self.filled(REQUEST_PLACE)}\n"}

    def texts(self) -> dict[str, str]:
        """The pieces that a model may weave, by name; those that are empty left out."""
        pieces = {"persona": self.persona, "before": self.before, "after": self.after}
        return {name: text for name, text in pieces.items() if text}

    def quoted(self) -> Documents:
        """The same as templates that give them back."""
        return Documents(*map(_no_template, (self.persona, self.before, self.heading, self.after)))


def build(choice: Choice, parts: Mapping[Ref, Part]) -> Documents:
    """Put the documents together.

    Args:
        parts: One for each of `choice.needed()`.
    """
    persona, template = choice.sections()
    at = next(number for number, section in enumerate(template) if "request" in section.components)

    def texts(sections: Iterable[Section]) -> list[str]:
        return [_titled(section, _body(section, choice, parts)) for section in sections]

    return Documents(
        persona=_joined([f"# {choice.title}", *texts(persona)]),
        before=_joined([f"# {choice.name}: {choice.goal.name}", *texts(template[:at])]),
        heading=_joined([f"## {template[at].title}" if template[at].title else "", _body(template[at], choice, parts)]),
        after=_joined(texts(template[at + 1 :])),
    )


def _body(section: Section, choice: Choice, parts: Mapping[Ref, Part]) -> str:
    if section.content is not None:
        return section.content.strip()
    texts = [text for part in section.components if (text := _text(part, choice, parts, section.separator))]
    return section.separator.join(texts)


def _text(part: Ref | Word, choice: Choice, parts: Mapping[Ref, Part], separator: str) -> str:
    if part == "title":
        return choice.title
    if part == "additions":
        return choice.additions.strip()
    return separator.join(parts[ref].shown() for ref in choice.refs(part))


def _titled(section: Section, body: str) -> str:
    """A section without a text has no heading either."""
    return f"## {section.title}\n\n{body}" if section.title and body else body


def _joined(pieces: list[str]) -> str:
    return "\n\n".join(piece for piece in pieces if piece)


# -- as a task -----------------------------------------------------------------------------------------------------


def as_task(documents: Documents, model: str | None = None) -> str:
    """The prompt file of a task: the persona as its system prompt, and the request from the seed.

    A seed is ``{"request": str}``.
    """
    quoted = documents.quoted()
    head = [f"system: {_yaml(quoted.persona)}", *([f"model: {model}"] if model else [])]
    return "\n".join(["---", *head, "---", quoted.filled("{{ seed.request }}")]) + "\n"


def _no_template(text: str) -> str:
    """A text that a template gives back as it is: what begins an expression in it is quoted."""
    return re.sub(r"\{(?=[{%#])", "{{ '{' }}", text)


_PLAIN_YAML: Callable[[str], object] = re.compile(
    r"[^\s][^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]*"
).fullmatch


def _yaml(text: str) -> str:
    """A block that people can read, or where YAML would not give the text back, one quoted line."""
    if not _PLAIN_YAML(text):
        return json.dumps(text, ensure_ascii=False)
    return "|-\n" + "\n".join(f"  {line}" if line else "" for line in text.split("\n"))


def describe_kind(kind: Kind) -> str:
    """What components of a kind are for, in a word or two for a model."""
    match kind:
        case "personas":
            return "a persona: who the assistant is, what it knows, how it thinks and speaks"
        case "protocols":
            return "a protocol: how the conversation goes, step by step, and what comes out of each step"
        case "constraints":
            return "a constraint: one rule the assistant keeps to, why, and what to do at its edge"
        case _:
            assert_never(kind)


def reading_name(ref: Ref) -> str:
    """``protocol 'code_review_pass'``."""
    return f"{singular(ref.kind)} {ref.name!r}"
