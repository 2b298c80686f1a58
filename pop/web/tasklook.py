"""A task as a page shows it: its files, what is wrong with them, and where each of the ten stages comes from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pop.errors import PopError
from pop.records import STAGES, BadJson, read_json
from pop.rootcheck import RootCheck
from pop.safehtml import json_tree, text
from pop.store import NotAFile, read_regular
from pop.tasks import TaskFiles, bound_names, find_task

TEXT = 20_000  # characters of one file
TEXTS = 150_000  # of all files on one page
MAX_BYTES = 2_000_000
STAGE_WORDS = {  # what a stage is where a task does not bring it (docs/tasks.md)
    "ingest": "nothing", "preprocess": "as it is", "prompt": "none", "infer": "asks the model",
    "parse": "the text", "validate_structure": "none", "validate_quality": "none", "critique": "the list of problems",
    "refine": "the talk goes on", "finalize": "as it is",
}  # fmt: skip
TITLES = {
    ".schema.json": "Schema of the output",
    ".critique.md": "Critique",
    ".refine.md": "Refinement",
    ".md": "Prompt",
    ".py": "Python",
}


def file_of(problem: PopError) -> str:
    """The file in which a problem stands."""
    return str(problem.where or "").partition("  ")[0].partition(":")[0]


@dataclass(frozen=True)
class TaskFile:
    """A file of a task; `shown` None: there is no room for it on the page."""

    path: str
    title: str
    size: int
    shown: Markup | None


@dataclass(frozen=True)
class TaskLook:
    """A task: which steps are made of it, its files, and where each of the ten stages comes from."""

    name: str
    kind: str
    steps: list[str]
    files: list[TaskFile]
    stages: list[tuple[str, str, bool]]
    problems: list[PopError]
    module: str | None


class TaskReader:
    """Reads the tasks of one page, which has room for so much text."""

    def __init__(self, look: RootCheck, problems: list[PopError]) -> None:
        self._look = look
        self._problems = problems
        self._room = TEXTS

    def read(self, name: str, steps: list[str]) -> TaskLook:
        kind = self._look.tasks.get(name, "missing")
        try:
            files = find_task(self._look.root.tasks, name)
        except PopError:
            return TaskLook(name, kind, steps, [], [], [], None)
        folder = self._look.root.tasks.name
        paths = {f"{folder}/{path.name}" for path in files.all()}
        mine = [one for one in self._problems if file_of(one) in paths]
        read = [self._file(f"{folder}/{path.name}", path) for path in files.all()]
        return TaskLook(name, kind, steps, read, list(stages_of(files)), mine, files.module)

    def _file(self, path: str, at: Path) -> TaskFile:
        suffix = next(one for one in TITLES if at.name.endswith(one))
        try:
            data = read_regular(at, max_bytes=MAX_BYTES)
        except (OSError, NotAFile):
            return TaskFile(path, TITLES[suffix], 0, Markup('<p class="faint">cannot be read</p>'))
        if self._room <= 0:
            return TaskFile(path, TITLES[suffix], len(data), None)
        shown = _schema(data) if suffix == ".schema.json" else text(data.decode("utf-8", "replace"), TEXT)
        self._room -= len(shown)
        return TaskFile(path, TITLES[suffix], len(data), shown)


def _schema(data: bytes) -> Markup:
    try:
        return json_tree(read_json(data), 400)
    except (BadJson, PopError):
        return text(data.decode("utf-8", "replace"), TEXT)


def stages_of(files: TaskFiles) -> Iterator[tuple[str, str, bool]]:
    """Each of the ten stages, where it comes from, and whether the task brings it. Nothing is run for it."""
    bound = _bound(files)
    brought = {
        "prompt": files.path(".md"),
        "validate_structure": files.path(".schema.json"),
        "critique": files.path(".critique.md"),
        "refine": files.path(".refine.md"),
    }
    for stage in STAGES:
        if stage in bound:
            yield stage, f"{files.stem}.py", True
        elif path := brought.get(stage):
            yield stage, path.name, True
        elif stage == "validate_structure" and "Output" in bound:
            yield stage, f"Output in {files.stem}.py", True
        elif stage == "parse" and (brought["validate_structure"] or "Output" in bound):
            yield stage, "JSON", False
        else:
            yield stage, "see the package" if files.module else STAGE_WORDS[stage], False


def _bound(files: TaskFiles) -> set[str]:
    path = files.path(".py")
    try:
        return bound_names(ast.parse(read_regular(path, max_bytes=MAX_BYTES))) if path else set()
    except (OSError, NotAFile, SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
