"""Components that no library has, written by a model when they are needed; and texts woven into one voice.

Nothing here raises for what the world does: a model without a key, a server that is down, a refusal or rubbish becomes a
placeholder that says why. A placeholder is never saved, so the next run tries again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from pop.askmodel import gateway_of
from pop.errors import AttemptFailed, PopError, UsageError, safe
from pop.models.catalogue import Catalogue, UnknownModel
from pop.models.client import GatewayClient
from pop.models.request import Answer, Message, ModelError, ModelRequest, Origin
from pop.recipes.wizard.compose import Part, describe_kind, sha256_of
from pop.recipes.wizard.goals import Goal, Ref
from pop.recipes.wizard.library import Component, ComponentError, Library, singular
from pop.settings import Root, load_settings

MAX_CHARS = 6_000  # of a component; about four times what is asked for
MAX_TOKENS = 4_000  # of an answer: room for a reasoning model
NEIGHBOURS = 3
TRIES = 2  # rubbish is told to the model once

SYSTEM = (
    "You write components for a library of prompts. A component is plain text that speaks to the assistant in the second "
    "person. Answer with the text of the component alone: one to three paragraphs, at most 250 words, no heading, no list, "
    "no Markdown fence, and not a word about the task."
)
WEAVER = (
    "You edit prompts. Rewrite what you are given so that it reads as one text in one voice. Keep every instruction, every "
    "limit and every Markdown heading of the second level; add nothing. Answer with the text alone, without a fence."
)
_REFUSAL = re.compile(
    r"(i['’]?m sorry|i am sorry|sorry,|i can(no|['’])t |i can not |i['’]?m (not able|unable)|i am (not able|unable)|"
    r"as an ai\b|unfortunately,? i )",
    re.IGNORECASE,
)
_FENCE = re.compile(r"\s*(`{3,}|~{3,})[^\n`]*\n(.*?)\n?\1\s*", re.DOTALL)
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Wish:
    """A component that is missing, and what the user said of it in a line."""

    ref: Ref
    goal: Goal
    brief: str = ""


@dataclass(frozen=True)
class Woven:
    """A text that a model wove, or why it is the plain one."""

    text: str | None
    model: str | None = None
    why: str | None = None


def check_model(root: Root, name: str) -> None:
    """Raises:
    UsageError: pop.toml has no such model.
    """
    try:
        Catalogue(load_settings(root), os.environ).route(name)
    except UnknownModel as error:
        raise UsageError(error.message, where="--model", hint=error.hint, code=error.code) from None


class Rubbish(ValueError):
    """An answer that is no component; says why."""


def cleaned(text: str, limit: int = MAX_CHARS) -> str:
    """The text of an answer, out of a fence around all of it.

    Raises:
        Rubbish: It is empty, too long, binary, a refusal, or still fenced.
    """
    whole = text.replace("\r\n", "\n").strip()
    fenced = _FENCE.fullmatch(whole)
    whole = fenced[2].strip() if fenced else whole
    if not whole:
        raise Rubbish("the answer is empty")
    if _UNSEEN.search(whole):
        raise Rubbish("the answer is binary: it holds characters that nobody sees")
    if _REFUSAL.match(whole):
        raise Rubbish(f"the model declined: {safe(whole, 120, one_line=True)}")
    if len(whole) > limit:
        raise Rubbish(f"the answer is too long: {len(whole):,} characters, at most {limit:,}")
    if len(re.findall(r"[^\W\d_]{2,}", whole)) < 5:
        raise Rubbish(f"the answer is no text: {safe(whole, 60, one_line=True)!r}")
    if whole.startswith(("```", "~~~")):
        raise Rubbish("the answer is half a Markdown fence")
    return whole


@dataclass(frozen=True)
class Writer:
    """Writes what is missing by asking `model` through the gateway."""

    root: Root
    library: Library
    model: str = "default"

    def write(self, wishes: Sequence[Wish]) -> list[Part]:
        """A part for each wish, all asked at once: generated, a skeleton where the embedded engine answered, or a
        placeholder."""
        answers = self._ask({str(wish.ref): self._question(wish) for wish in wishes}, MAX_CHARS)
        return [self._part(wish, answers[str(wish.ref)]) for wish in wishes]

    def weave(self, texts: Mapping[str, str]) -> dict[str, Woven]:
        """Each text in one voice."""
        questions = {
            name: [Message(role="system", content=WEAVER), Message(role="user", content=f"The text:\n\n{text}")]
            for name, text in texts.items()
        }
        longest = max(map(len, texts.values()), default=0)
        answers = self._ask(questions, 2 * longest + MAX_CHARS, tokens=longest + MAX_TOKENS)
        return {name: self._woven(texts[name], answer) for name, answer in answers.items()}

    def _part(self, wish: Wish, answer: Answer | str) -> Part:
        brief = wish.brief or None
        if isinstance(answer, str):
            return Part(wish.ref, "", "placeholder", sha256_of(""), brief=brief, why=answer)
        text = cleaned(answer.text)
        if answer.provider == "builtin":
            names = ", ".join(str(Ref(near.kind, near.name)) for near in self.neighbours(wish))
            why = f"only the embedded engine is there, which is {answer.note}; its sentences are those of {names}"
            return Part(wish.ref, text, "skeleton", sha256_of(text), brief, answer.model, answer.note, why)
        return Part(wish.ref, text, "generated", sha256_of(text), brief, answer.provider_model, answer.note)

    def _woven(self, before: str, answer: Answer | str) -> Woven:
        if isinstance(answer, str):
            return Woven(None, why=answer)
        if answer.provider == "builtin":
            return Woven(
                None, why=f"only the embedded engine is there, which is {answer.note}: it copies, it cannot weave"
            )
        text = cleaned(answer.text, len(answer.text) + 1)
        lost = [line for line in before.splitlines() if line.startswith("## ") and line not in text]
        if lost:
            return Woven(None, why=f"the answer lost the section {lost[0]!r}")
        return Woven(text, answer.provider_model)

    # -- questions -----------------------------------------------------------------------------------------------------

    def neighbours(self, wish: Wish) -> list[Component]:
        """The components of the same kind whose names are nearest to what is wished, and can be read."""
        words = _words(f"{wish.ref.name} {wish.brief} {wish.goal.name} {wish.goal.purpose}")
        named = wish.goal.names(wish.ref.kind)
        found: list[tuple[int, str, Component]] = []
        for name in self.library.names(wish.ref.kind):
            try:
                component = self.library.load(wish.ref.kind, name)
            except ComponentError:
                continue
            near = 3 * len(words & _words(name)) + len(words & _words(component.text)) + 5 * (name in named)
            found.append((-near, name, component))
        return [component for _, _, component in sorted(found, key=lambda entry: entry[:2])[:NEIGHBOURS]]

    def _question(self, wish: Wish) -> list[Message]:
        kind = singular(wish.ref.kind)
        lines = [
            f"Write the {kind} {wish.ref.name!r}. It is {describe_kind(wish.ref.kind)}.",
            f"It is for conversations of the goal {wish.goal.name}: {wish.goal.purpose}",
            f"What it is to say: {wish.brief}" if wish.brief else "Take from its name what it is to say.",
            "At most 250 words. Its neighbours in the library follow, for tone and length; do not repeat them.",
        ]
        near = [f'<document id="{one.name}">\n{one.text}\n</document>' for one in self.neighbours(wish)]
        return [
            Message(role="system", content=SYSTEM),
            Message(role="user", content="\n".join([*lines, "", *near])),
        ]

    def _ask(
        self, questions: Mapping[str, list[Message]], limit: int, tokens: int = MAX_TOKENS
    ) -> dict[str, Answer | str]:
        """The answer to each question, or why there is none that can be used."""
        found: dict[str, Answer | str] = {}
        if not questions:
            return found
        try:
            check_model(self.root, self.model)
            with gateway_of(self.root, "pop new") as address:
                self._ask_through(address, questions, found, limit, tokens)
        except (PopError, OSError) as error:
            found |= {name: _why(error) for name in questions if name not in found}
        return found

    def _ask_through(
        self,
        address: str,
        questions: Mapping[str, list[Message]],
        found: dict[str, Answer | str],
        limit: int,
        tokens: int,
    ) -> None:
        origin = Origin(run_id="pop-new", instance=token_hex(6), generation=1, attempt=1, step="wizard")
        client = GatewayClient(address, origin)
        open_ones = dict(questions)
        for left in reversed(range(TRIES)):
            requests = [self._request(messages, tokens) for messages in open_ones.values()]
            answers = dict(zip(open_ones, client.ask_many(requests), strict=True))
            rubbish = dict(_judged(answers, found, limit))
            open_ones = {name: _again(questions[name], why) for name, why in rubbish.items()} if left else {}
            if not open_ones:
                return

    def _request(self, messages: list[Message], tokens: int) -> ModelRequest:
        return ModelRequest(model=self.model, messages=messages, max_output_tokens=tokens, reuse_s=0.0)


def _judged(
    answers: Mapping[str, Answer | ModelError], found: dict[str, Answer | str], limit: int
) -> Iterable[tuple[str, str]]:
    """Puts each answer, or why there is none, into `found`; gives those that asking again may cure, and why."""
    for name, answer in answers.items():
        if isinstance(answer, ModelError):
            found[name] = _why(answer)
        elif answer.finish_reason in ("refusal", "content_filter"):
            found[name] = f"the model declined: {safe(answer.text, 160, one_line=True) or answer.finish_reason}"
        else:
            try:
                if answer.finish_reason == "length":
                    raise Rubbish("the answer was cut off: it is too long")
                cleaned(answer.text, limit)
                found[name] = answer
            except Rubbish as error:
                found[name] = str(error)
                if answer.provider != "builtin":
                    yield name, str(error)


def _again(messages: list[Message], why: str) -> list[Message]:
    """The question once more. What came is not repeated: it may be a megabyte of rubbish."""
    last = messages[-1]
    hint = f"An earlier answer could not be used: {why}. Answer with the text alone."
    return [*messages[:-1], last.model_copy(update={"content": f"{last.content}\n\n{hint}"})]


def _why(error: Exception) -> str:
    """An error as one sentence for a document."""
    if isinstance(error, ModelError | AttemptFailed):
        return safe(f"{error.error_class}: {error.message}", 300, one_line=True)
    if isinstance(error, PopError):
        return safe(error.message, 300, one_line=True)
    return safe(f"{type(error).__name__}: {error}", 300, one_line=True)


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z]{4,}", text.lower())}


def save(library: Library, parts: Iterable[Part]) -> list[Path]:
    """Keep what a model wrote in the root's own library, under its own name; nothing else is kept.

    Raises:
        ComponentError: A component of that name came meanwhile, or the folder leads out of the root.
    """
    return [library.save(part.ref.kind, part.ref.name, part.text) for part in parts if part.origin == "generated"]
