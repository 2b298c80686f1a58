"""Questions as data, and who answers them: a person at menus, a person at plain lines, or nobody.

    Menus   arrow keys, or the number of an entry; on a terminal
    Plain   numbered lines; where there is no terminal, on dumb ones, and on demand
    Silent  the recommended answer to each question, or an error that says which option gives it

``b`` goes back one question. Ctrl-C is a KeyboardInterrupt.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TextIO, assert_never

from pop.errors import PopError, UsageError, did_you_mean, safe

YES, NO = "yes", "no"
BACK = "b"
_BACK = object()  # the entry of a menu; None would stand for its title


class Back(Exception):
    """The last question is to be asked again."""


class InputEnded(UsageError):
    """No more answers come."""

    code = "no-answer"


@dataclass(frozen=True)
class Option:
    """An entry of a menu; entries of one group stand together under its name."""

    value: str
    about: str = ""
    group: str = ""


@dataclass(frozen=True)
class Menu:
    """One of several. `find` understands what else a person may type, and raises PopError for the rest."""

    prompt: str
    options: tuple[Option, ...]
    default: str | None = None
    given_by: str = ""
    find: Callable[[str], str] | None = None

    def chosen(self, text: str) -> str:
        """The value that somebody means.

        Raises:
            PopError: There is none.
        """
        asked = text.strip()
        if not asked and self.default is not None:
            return self.default
        if asked.isascii() and asked.isdigit() and 1 <= int(asked[:9]) <= len(self.options):
            return self.options[int(asked) - 1].value
        if self.find and asked:
            return self.find(asked)
        values = {option.value.casefold(): option.value for option in self.options}
        if asked.casefold() in values:
            return values[asked.casefold()]
        shown = safe(asked, 60, one_line=True)
        near = did_you_mean(asked[:80], values.values()) if asked and not asked.isdigit() else None
        hint = near if near and near.startswith("did") else f"a number from 1 to {len(self.options)}, or a name"
        raise UsageError(f"{shown!r} is none of them" if asked else "nothing was chosen", hint=hint)


@dataclass(frozen=True)
class Line:
    """A line of text; `check` gives it as it counts, or raises PopError. Without a `default` it must be given."""

    prompt: str
    default: str | None = None
    given_by: str = ""
    check: Callable[[str], str] = str.strip
    hint: str = ""

    def taken(self, text: str) -> str:
        """Raises:
        PopError: It is empty though it must not be, or `check` refuses it.
        """
        if not text.strip() and self.default is not None:
            return self.default
        if not text.isprintable():
            raise UsageError("it holds a character that nobody sees", hint="type it again")
        return self.check(text)


@dataclass(frozen=True)
class YesNo:
    """`risky` is never agreed to by silence, only by ``--yes``."""

    prompt: str
    default: bool = True
    risky: bool = False
    given_by: str = "--yes"

    def meant(self, text: str) -> str:
        """Raises:
        PopError: Neither yes nor no.
        """
        word = text.strip().casefold() or ("y" if self.default else "n")
        if word in ("y", "yes"):
            return YES
        if word in ("n", "no"):
            return NO
        raise UsageError(f"{safe(text.strip(), 60, one_line=True)!r} is neither yes nor no", hint="y or n")


Question = Menu | Line | YesNo


def understood(question: Question, text: str) -> str:
    """The answer that a text means.

    Raises:
        Back: ``b``.
        PopError: It means none.
    """
    if text.strip().casefold() == BACK:
        raise Back
    match question:
        case Menu():
            return question.chosen(text)
        case Line():
            return question.taken(text)
        case YesNo():
            return question.meant(text)
        case _:
            assert_never(question)


def asked_for(question: Question) -> str:
    """The words of a question on one line, with what an empty line means."""
    match question:
        case Menu(default=default):
            return f"Number or name [{default}]: " if default else "Number or name: "
        case Line(prompt=prompt, default=default):
            return f"{prompt} [{default}]: " if default else f"{prompt}: "
        case YesNo(prompt=prompt, default=default):
            return f"{prompt} ({'Y/n' if default else 'y/N'}): "
        case _:
            assert_never(question)


def told(error: PopError) -> str:
    """What is wrong with an answer, on a line."""
    return safe(f"{error.message}{f' ({error.hint})' if error.hint else ''}", 400, one_line=True)


class Terminal(Protocol):
    """Who is talked to; `talks` says whether somebody is there to read a greeting and a preview."""

    talks: bool

    def say(self, text: str = "") -> None:
        """Show a text, without what could steer a terminal."""

    def ask(self, question: Question) -> str:
        """The answer; for a YesNo ``yes`` or ``no``.

        Raises:
            Back: The question before it is to be asked again.
            UsageError: Nobody answers.
            KeyboardInterrupt: Ctrl-C.
        """


class Plain:
    """Numbered lines. Where answers come from a file or a pipe they are shown, so that the talk reads as it went."""

    talks = True

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._typed = sys.stdin.isatty()

    def say(self, text: str = "") -> None:
        print(safe(text), file=self._out, flush=True)

    def ask(self, question: Question) -> str:
        if isinstance(question, Menu):
            self._show(question)
        while True:
            try:
                return understood(question, self._read(question))
            except InputEnded:
                raise
            except PopError as error:
                self.say(f"  {told(error)}")

    def _show(self, menu: Menu) -> None:
        self.say(f"{menu.prompt}")
        width = max(len(option.value) for option in menu.options)
        group = ""
        for number, option in enumerate(menu.options, 1):
            if option.group != group:
                group = option.group
                self.say(f"  {group}")
            self.say(f"  {number:>3}. {option.value:<{width}}  {option.about}".rstrip())
        self.say("    b. Back")

    def _read(self, question: Question) -> str:
        prompt = safe(asked_for(question), one_line=True)
        print(prompt, end="", file=self._out, flush=True)
        try:
            line = f"{input()}\n" if self._typed else sys.stdin.readline()
        except EOFError:
            line = ""
        except UnicodeDecodeError:
            raise UsageError("that is not UTF-8", hint="type it again") from None
        if not line:
            self.say()
            message = "the input ended before the last question; nothing was written"
            raise InputEnded(message, hint=f"give it by {question.given_by}" if question.given_by else None)
        text = line.rstrip("\r\n")
        if not self._typed:
            self.say(text)
        return text


class Silent:
    """Nobody is asked.

    Args:
        agree: ``--yes``: also to what is risky.
    """

    talks = False

    def __init__(self, say: Callable[[str], None], *, agree: bool) -> None:
        self._say = say
        self._agree = agree

    def say(self, text: str = "") -> None:
        self._say(safe(text))

    def ask(self, question: Question) -> str:
        return recommended(question, agree=self._agree)


def recommended(question: Question, *, agree: bool) -> str:
    """The answer that is taken when nobody is asked.

    Raises:
        UsageError: There is none.
    """
    match question:
        case YesNo(risky=True) if not agree:
            hint = f"{question.given_by} says yes"
            raise UsageError(f"nobody is there to answer: {question.prompt}", hint=hint, code="no-answer")
        case YesNo(default=default, risky=risky):
            return YES if default or risky else NO
        case Menu(default=default) | Line(default=default) if default is not None:
            return default
        case _:
            hint = f"give it by {question.given_by}" if question.given_by else "ask without --no-input"
            raise UsageError(f"nobody is there to answer: {question.prompt}", hint=hint, code="no-answer")


class Agreeing:
    """``--yes`` with a person there: only what nothing is recommended for is asked."""

    talks = True

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def say(self, text: str = "") -> None:
        self._terminal.say(text)

    def ask(self, question: Question) -> str:
        try:
            return recommended(question, agree=True)
        except UsageError:
            return self._terminal.ask(question)


class Menus:
    """Arrow keys and numbers, by questionary, which is imported with the first question."""

    talks = True

    def say(self, text: str = "") -> None:
        print(safe(text), flush=True)

    def ask(self, question: Question) -> str:
        return self._menu(question) if isinstance(question, Menu) else self._line(question)

    def _line(self, question: Line | YesNo) -> str:
        import questionary

        def valid(text: str) -> bool | str:
            try:
                understood(question, text)
            except Back:
                return True
            except PopError as error:
                return told(error)
            return True

        prompt = safe(asked_for(question), one_line=True).rstrip()
        return understood(question, questionary.text(prompt, validate=valid).unsafe_ask())

    def _menu(self, menu: Menu) -> str:
        import questionary

        choices: list[Any] = []
        columns = shutil.get_terminal_size().columns
        width = max(len(option.value) for option in menu.options)
        group = ""
        for number, option in enumerate(menu.options, 1):
            if option.group != group:
                group = option.group
                choices.append(questionary.Separator(f"   {safe(group, one_line=True)}"))
            title = safe(f"{number:>2}. {option.value:<{width}}  {option.about}", one_line=True).rstrip()
            title = title if len(title) <= columns - 4 else f"{title[: columns - 5]}…"
            choices.append(questionary.Choice(title, value=option.value))
        choices.append(questionary.Choice(" b. Back", value=_BACK))
        select = questionary.select(
            safe(menu.prompt, one_line=True),
            choices=choices,
            default=menu.default if menu.default in {option.value for option in menu.options} else None,
            use_jk_keys=False,
            instruction="(arrow keys or a number, then Enter; b goes back)",
        )
        _number_keys(select, len(menu.options))
        value = select.unsafe_ask()
        if value is _BACK:
            raise Back
        return str(value)


def _number_keys(select: Any, count: int) -> None:
    """Typing 1 points at the first entry, then 0 at the tenth; b goes back at once."""
    from prompt_toolkit.key_binding import KeyBindings, merge_key_bindings
    from questionary import Separator
    from questionary.prompts.common import InquirerControl

    (control,) = [c for c in select.application.layout.find_all_controls() if isinstance(c, InquirerControl)]
    places = [place for place, choice in enumerate(control.choices) if not isinstance(choice, Separator)]
    keys, typed = KeyBindings(), [""]

    def press(event: Any) -> None:
        digit = event.key_sequence[0].key
        for text in (typed[0] + digit, digit):
            if 1 <= int(text) <= count:
                typed[0], control.pointed_at = text, places[int(text) - 1]
                return

    def back(event: Any) -> None:
        event.app.exit(result=_BACK)

    for digit in "0123456789":
        keys.add(digit, eager=True)(press)
    keys.add(BACK, eager=True)(back)
    select.application.key_bindings = merge_key_bindings([select.application.key_bindings, keys])


def is_terminal() -> bool:
    """Whether menus work here."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")
