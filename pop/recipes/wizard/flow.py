"""The conversation of `pop new`: which questions come, in which order, and what their answers make.

    name -> (go on with what is there?) -> goal -> persona -> title -> additions
         -> missing components: a line about each, written, shown -> preview -> write

It knows no terminal and no options: it asks a `Terminal` what `Answers` leave open. ``b`` goes back one question. Until the
last yes nothing is written, so Ctrl-C leaves nothing behind but what the gateway keeps of the calls it paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pop.errors import UsageError, safe
from pop.recipes.wizard import generate
from pop.recipes.wizard.answers import Answers
from pop.recipes.wizard.compose import (
    Choice,
    Documents,
    Part,
    as_task,
    build,
    default_title,
    reading_name,
    sha256_of,
)
from pop.recipes.wizard.generate import Wish, Woven, Writer
from pop.recipes.wizard.goals import Goal, GoalMap, Ref
from pop.recipes.wizard.library import Library, standard_name
from pop.recipes.wizard.project import (
    RECORD,
    REQUEST_FILE,
    TODO_FILE,
    Project,
    check_project_name,
    check_prompt,
    environment,
    log_todo,
    open_project,
    refuse_task,
    request_seed,
    shas,
    task_files,
    todo_text,
)
from pop.recipes.wizard.terminal import NO, YES, Back, Line, Menu, Option, Terminal, YesNo
from pop.settings import Root

PREVIEW_LINES = 12
PREVIEW_COLUMNS = 100
KEEP, AGAIN, LEAVE = "keep it", "write it again", "leave a placeholder"
BESIDE, REPLACE = "keep mine, write the new one beside it", "replace mine"

WELCOME = """\
Welcome to the wizard. A few questions, and there is a persona and a prompt to work with.
Enter takes what stands in brackets, b goes back one question, Ctrl-C leaves without a trace."""


class Declined(Exception):
    """The last question was answered with no: nothing was written."""


@dataclass
class Draft:
    """What has been chosen so far."""

    name: str = ""
    goal: Goal | None = None
    persona: str = ""
    title: str = ""
    additions: str = ""
    briefs: dict[Ref, str] = field(default_factory=dict)
    written: dict[Ref, Part] = field(default_factory=dict)
    replaces: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """What one conversation made."""

    project: Project
    choice: Choice
    parts: list[Part]
    files: list[Path]
    components: list[Path]
    todo: list[Part]
    woven: str | None
    task: str | None


def walk(steps: Sequence[Callable[[], bool]]) -> bool:
    """Take the steps in order; Back takes the last one that asked something again.

    Returns:
        Whether any asked.

    Raises:
        Back: From the first question.
    """
    asked: list[int] = []
    at = 0
    while at < len(steps):
        try:
            if steps[at]():
                asked.append(at)
            at += 1
        except Back:
            if not asked:
                raise
            at = asked.pop()
    return bool(asked)


class Conversation:
    """One talk about one project.

    Args:
        given: What need not be asked.
    """

    def __init__(self, root: Root, goal_map: GoalMap, terminal: Terminal, given: Answers, request: str | None = None):
        self.root = root
        self.goal_map = goal_map
        self.library = Library(root.path)
        self.terminal = terminal
        self.given = given
        self.request = request
        self.draft = Draft(briefs=given.briefs())
        self._paid: dict[tuple[Ref, str, str], Part] = {}  # what was written once is not paid for twice
        self._woven: dict[str, Woven] = {}
        self._documents: Documents | None = None
        self._plain: Documents | None = None

    def run(self) -> Made:
        """Talk, and write.

        Raises:
            Declined: The last answer was no.
            PopError: What was given beforehand is wrong, or the disk is.
        """
        self._check_given()
        if self.terminal.talks:
            self.terminal.say(f"{WELCOME}\n")
        steps = (
            self._name, self._existing, self._goal, self._persona, self._title, self._additions, self._describe,
            self._generate, self._weave, self._preview,
        )  # fmt: skip
        while True:
            try:
                walk(steps)
                return self._write()
            except Back:
                self.terminal.say("This is the first question; Ctrl-C leaves.")

    def _check_given(self) -> None:
        """What is wrong with the answers given beforehand, before anybody is asked anything."""
        given = self.given
        if given.name is not None:
            open_project(self.root.path, given.name)
        if given.goal is not None:
            self.goal_map.find(given.goal)
        if given.model is not None:
            generate.check_model(self.root, given.model)
        if given.as_task is not None and given.name is not None:
            refuse_task(open_project(self.root.path, given.name), given.as_task)
        for text, option in ((given.title, "--title"), (given.additions, "--additions")):
            if text is not None and safe(text) != text:
                raise UsageError("it holds a character that nobody sees", where=option, hint="type it again")

    # -- the questions -------------------------------------------------------------------------------------------------

    def _name(self) -> bool:
        if self.given.name is not None:
            self.draft.name = check_project_name(self.given.name)
            return False

        def check(text: str) -> str:
            return open_project(self.root.path, text).name

        question = Line("Project name, e.g. Django_Model_Auditor", self.draft.name or None, "--name", check)
        self.draft.name = self.terminal.ask(question)
        return True

    @property
    def project(self) -> Project:
        return open_project(self.root.path, self.draft.name)

    def _existing(self) -> bool:
        """Nobody's project is made anew without a word."""
        project = self.project
        if self.given.as_task is not None:
            refuse_task(project, self.given.as_task)
        if not project.exists:
            return False
        record = project.record()
        about = f"goal {record.get('goal')}, {record.get('made_at')}" if record else "not made by this wizard"
        self.terminal.say(f"{project.place('')} is there already ({about}). Files you edited are not replaced unasked.")
        answer = self.terminal.ask(YesNo("Make it anew?", risky=True))
        if answer == YES:
            return True
        if self.given.name is not None:
            raise Declined
        self.draft.name = ""
        raise Back

    def _goal(self) -> bool:
        if self.given.goal is not None:
            self._chose(self.goal_map.find(self.given.goal))
            return False
        options = tuple(Option(goal.name, goal.purpose, goal.group) for goal in self.goal_map.goals)
        before = self.draft.goal.name if self.draft.goal else self.project.record().get("goal")
        default = before if before in {option.value for option in options} else None
        question = Menu(
            "What is the primary goal?", options, default, "--goal", lambda text: self.goal_map.find(text).name
        )
        self._chose(self.goal_map.find(self.terminal.ask(question)))
        return True

    def _chose(self, goal: Goal) -> None:
        if goal != self.draft.goal:
            self.draft = replace(self.draft, goal=goal, persona="", title="", written={}, replaces={})

    @property
    def goal(self) -> Goal:
        assert self.draft.goal is not None
        return self.draft.goal

    def _persona(self) -> bool:
        recommended = self.goal.persona or standard_name("personas", self.goal.name)
        if self.given.persona is not None:
            if self.given.persona != recommended:
                self.library.load("personas", self.given.persona)
            self._took(self.given.persona)
            return False
        known = self.library.names("personas")
        there = "" if recommended in known else ", which is not in the library yet"

        def agreed() -> bool:
            answer = self.terminal.ask(YesNo(f"Recommended persona: {recommended}{there}. Use it?"))
            self._took(recommended if answer == YES else "")
            return True

        def another() -> bool:
            if self.draft.persona:
                return False
            options = tuple(Option(name, self._first_words(name)) for name in known)
            self._took(self.terminal.ask(Menu("Which persona?", options, given_by="--persona")))
            return True

        return walk((agreed, another))

    def _took(self, persona: str) -> None:
        if persona != self.draft.persona:
            self.draft = replace(self.draft, persona=persona, title="", replaces={})

    def _first_words(self, persona: str) -> str:
        try:
            text = " ".join(self.library.load("personas", persona).text.split())
        except UsageError:
            raise
        except Exception as error:  # broken ones are told when they are chosen
            return f"cannot be used: {getattr(error, 'message', error)}"
        return text if len(text) <= 80 else f"{text[:79]}…"

    def _title(self) -> bool:
        if self.given.title is not None:
            self.draft.title = self.given.title.strip() or default_title(self.draft.persona)
            return False
        default = self.draft.title or default_title(self.draft.persona)
        self.draft.title = self.terminal.ask(Line("Title of the persona", default, "--title", _title_checked))
        return True

    def _additions(self) -> bool:
        if self.given.additions is not None:
            self.draft.additions = self.given.additions.strip()
            return False
        prompt = "Anything to add, in your own words (Enter: nothing)"
        self.draft.additions = self.terminal.ask(Line(prompt, self.draft.additions, "--additions"))
        return True

    # -- what is missing -----------------------------------------------------------------------------------------------

    @property
    def choice(self) -> Choice:
        draft = self.draft
        return Choice(draft.name, self.goal, draft.persona, draft.title, draft.additions)

    def _missing(self) -> list[Ref]:
        """The components that no library has. One that is there and broken is an error: nobody guesses what it said."""
        return [ref for ref in self.choice.needed() if self.library.find(ref.kind, ref.name) is None]

    def _describe(self) -> bool:
        missing = [ref for ref in self._missing() if ref not in self.given.briefs()]
        return walk([partial(self._describe_one, ref) for ref in missing])

    def _describe_one(self, ref: Ref) -> bool:
        self.terminal.say(f"The library has no {reading_name(ref)}. A model can write it now.")
        line = Line("What is it to say, in one line (Enter: as its name says)", self.draft.briefs.get(ref, ""))
        self.draft.briefs[ref] = self.terminal.ask(line)
        return True

    def _generate(self) -> bool:
        missing = self._missing()
        self._write_missing(missing)
        self.draft.written = {ref: self._paid[self._key(ref)] for ref in missing}
        return walk([lambda ref=ref: self._show(ref) for ref in missing])  # type: ignore[misc]

    def _key(self, ref: Ref) -> tuple[Ref, str, str]:
        return ref, self.goal.name, self.draft.briefs.get(ref, "")

    @property
    def writer(self) -> Writer:
        return Writer(self.root, self.library, self.given.model or "default")

    def _write_missing(self, missing: Sequence[Ref]) -> None:
        new = [ref for ref in missing if self._key(ref) not in self._paid]
        if not new:
            return
        self.terminal.say(f"Asking {self.writer.model} for {', '.join(map(str, new))} ...")
        wishes = [Wish(ref, self.goal, self.draft.briefs.get(ref, "")) for ref in new]
        for part in self.writer.write(wishes):
            self._paid[self._key(part.ref)] = part

    def _show(self, ref: Ref) -> bool:
        """What a model wrote is shown, and kept only when it is wanted."""
        part = self._paid[self._key(ref)]
        self.terminal.say()
        if part.origin == "placeholder":
            self.terminal.say(f"{ref} was not written: {part.why}")
            self.terminal.say("A marked placeholder goes into the document, and TODO.md says so.")
            return False
        written = "a skeleton" if part.origin == "skeleton" else f"written by {part.model}"
        self.terminal.say(f"--- {ref}, {written}")
        self.terminal.say(part.text)
        self.terminal.say("---")
        if part.origin == "skeleton":
            self.terminal.say(f"It is a skeleton: {part.why}.")
            if self.terminal.ask(YesNo("Use the skeleton?")) == NO:
                self._leave(part, "the skeleton was not wanted")
            return True
        question = Menu("What shall become of it?", tuple(map(Option, (KEEP, AGAIN, LEAVE))), KEEP)
        answer = self.terminal.ask(question)
        if answer == AGAIN:
            del self._paid[self._key(ref)]
            walk((lambda: self._describe_one(ref),))
            self._write_missing([ref])
            self.draft.written[ref] = self._paid[self._key(ref)]
            return self._show(ref)
        if answer == LEAVE:
            self._leave(part, "what the model wrote was not wanted")
        return True

    def _leave(self, part: Part, why: str) -> None:
        left = Part(part.ref, "", "placeholder", sha256_of(""), brief=part.brief, why=why)
        self.draft.written[part.ref] = left

    def _parts(self) -> dict[Ref, Part]:
        found = dict(self.draft.written)
        for ref in self.choice.needed():
            if ref not in found:
                found[ref] = Part.of(self.library.load(ref.kind, ref.name))
        return {ref: found[ref] for ref in self.choice.needed()}

    # -- the documents -------------------------------------------------------------------------------------------------

    def _weave(self) -> bool:
        """The documents, in one voice where that is wished and can be done."""
        self._plain = None
        self._woven = {}
        parts = self._parts()
        plain = self._documents = build(self.choice, parts)
        if not self.given.synthesize:
            return False
        if any(part.to_do for part in parts.values()):
            self._woven = {"": Woven(None, why="parts are missing: first they have to be written")}
        else:
            self.terminal.say(f"Asking {self.writer.model} to weave the parts into one voice ...")
            self._woven = self.writer.weave(plain.texts())
        if why := self._not_woven:
            self.terminal.say(f"The parts were not woven: {why}. The plain text stands.")
            return False
        texts = {name: woven.text or "" for name, woven in self._woven.items()}
        self._plain = plain
        self._documents = replace(plain, **texts)
        return False

    @property
    def _not_woven(self) -> str | None:
        return next((woven.why for woven in self._woven.values() if woven.text is None), None)

    def _files(self) -> dict[str, str]:
        """Every file but environment.json, by its path below the root; edited ones still under their own names."""
        assert self._documents is not None
        project, parts = self.project, list(self._parts().values())
        files = self._documents.files()
        if self._plain:
            files |= {name.replace(".md", ".plain.md"): text for name, text in self._plain.files().items()}
        if todo := todo_text(parts, self._not_woven):
            files[TODO_FILE] = todo
        task = self.given.as_task
        if task:
            files[REQUEST_FILE] = request_seed(task, self.request)
        placed = {project.place(name): text for name, text in files.items()}
        if task:
            prompt = as_task(self._documents, self.given.model)
            check_prompt(task, prompt)
            placed |= task_files(task, prompt)
        return placed

    def _preview(self) -> bool:
        files = self._files()
        project = self.project
        edited = project.edited([place for place in files if place.startswith(project.place(""))])

        def show() -> bool:
            assert self._documents is not None
            for name, text in self._documents.files().items():
                self.terminal.say()
                self.terminal.say(f"--- {name}")
                lines = text.rstrip("\n").split("\n")
                shown = (
                    PREVIEW_LINES if len(lines) > PREVIEW_LINES + 2 else len(lines)
                )  # "1 more line" is a line itself
                self.terminal.say("\n".join(_cut(line) for line in lines[:shown]))
                if left := len(lines) - shown:
                    self.terminal.say(f"... {left} more lines")
            self.terminal.say("---")
            return False

        def agreed() -> bool:
            if self.terminal.talks:
                self.terminal.say("\nTo be written:")
                for place in self._list(files):
                    self.terminal.say(f"  {place}")
            if self.terminal.ask(YesNo("Write these files?")) == NO:
                raise Declined
            return True

        return walk(
            (
                *([show] if self.terminal.talks else []),
                *[lambda place=place: self._ask_about(place) for place in edited],
                agreed,
            )
        )

    def _ask_about(self, place: str) -> bool:
        """An edited file is replaced only when a person says so."""
        question = Menu(f"{place} was edited since it was written.", (Option(BESIDE), Option(REPLACE)), BESIDE)
        self.draft.replaces[place] = self.terminal.ask(question) == REPLACE
        return True

    def _list(self, files: dict[str, str]) -> list[str]:
        """What is going to be written, as a person reads it."""
        there = self.project.written()
        told = []
        for place in files:
            actual = self._actual(place)
            note = "" if actual == place else f"  (beside {Path(place).name}, which was edited)"
            told.append(f"{actual}{note or ('  (replaced)' if place in there else '')}")
        new = [str(part.ref) for part in self.draft.written.values() if part.origin == "generated"]
        return [*told, self.project.place(RECORD), *(f"components/{ref}.txt" for ref in new)]

    def _actual(self, place: str) -> str:
        """Where a file goes: beside the one of that name, when that was edited and is to stay."""
        project = self.project
        if place.startswith(project.place("")) and project.edited([place]) and not self.draft.replaces.get(place):
            return project.beside(place)
        return place

    def _write(self) -> Made:
        project, choice, parts = self.project, self.choice, list(self._parts().values())
        before = project.written()
        files = {self._actual(place): text for place, text in self._files().items()}
        stay = {place: before.get(place, "") for place in self._files() if place not in files}
        record = environment(
            choice,
            self.goal_map,
            parts,
            files={**stay, **shas(files)},
            woven={name: woven.model or "" for name, woven in self._woven.items()} if self._plain else None,
            task=self.given.as_task,
        )
        gone = [place for place in [project.place(TODO_FILE)] if place in before and place not in files]
        components = generate.save(self.library, list(self.draft.written.values()))
        written = project.write(
            {**files, project.place(RECORD): record}, [place for place in gone if not project.edited([place])]
        )
        log_todo(self.root.path, project.name, parts)
        todo = [part for part in parts if part.to_do]
        return Made(project, choice, parts, written, components, todo, self._not_woven, self.given.as_task)


def _cut(line: str) -> str:
    """The beginning of a long line."""
    return line if len(line) <= PREVIEW_COLUMNS else f"{line[: PREVIEW_COLUMNS - 1]}…"


def _title_checked(text: str) -> str:
    if len(text.strip()) > 120:
        raise UsageError("a title of more than 120 characters", hint="shorten it")
    return text.strip()
