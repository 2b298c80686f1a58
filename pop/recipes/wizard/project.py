"""A project on disk: ``output/<project>/``, what was made there, what a person edited since, and its task.

    output/<project>/
      00_PERSONA.md  01_PROMPT_TEMPLATE.md   the two documents; *.plain.md beside them when a model wove them
      environment.json                       what was chosen, hashes and versions; the sha256 of each file written here
      TODO.md                                what no model wrote, while there is such a thing
      request.json                           a seed for the task, when there is one

A file whose sha256 is not the one in environment.json was edited: it is replaced only when a person says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from pop import __version__
from pop.errors import ConfigErrors, PopError, RootError, UsageError, safe
from pop.events import rfc3339
from pop.recipes.wizard.compose import Choice, Part, one_line, sha256_of
from pop.recipes.wizard.goals import GoalMap
from pop.records import NAME_PATTERN, dump_json
from pop.settings import Root
from pop.store import Disk, NotAFile, contained, read_regular, rename_noreplace

OUTPUT = "output"
RECORD = "environment.json"
TODO_FILE = "TODO.md"
REQUEST_FILE = "request.json"
MAX_NAME = 80
MAX_BYTES = 4_000_000
NAME_RULE = "letters, digits, and _ - . between them, at most 80: Django_Model_Auditor"
_WINDOWS = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # no folder there can be called so


def check_project_name(given: str) -> str:
    """The name of a project, which is that of its folder.

    Raises:
        UsageError: No folder should be called that.
    """
    name = unicodedata.normalize("NFC", given.strip())
    why = _wrong_with(name)
    if why:
        shown = safe(name, 60, one_line=True) + ("…" if len(name) > 60 else "")
        raise UsageError(
            f"{shown!r} cannot be a project's name: {why}", hint=_better(name) or NAME_RULE, code="bad-name"
        )
    return name


def _wrong_with(name: str) -> str | None:
    if not name:
        return "it is empty"
    if any(unicodedata.category(char)[0] == "C" for char in name):
        return "it holds a character that nobody sees"
    if len(name) > MAX_NAME or len(name.encode()) > 200:
        return f"{len(name)} characters are too many (at most {MAX_NAME})"
    if "/" in name or "\\" in name:
        return "it holds a slash"
    if ".." in name:
        return "it holds '..'"
    if name[0] in ".-":
        return f"it begins with {name[0]!r}"
    odd = next((char for char in name if not (char.isalnum() or char in "_-.")), None)
    if odd:
        return "it holds a space" if odd.isspace() else f"it holds {odd!r}"
    if name[-1] == "." or _WINDOWS.fullmatch(name):
        return "no folder on Windows can be called that"
    return None


def _better(name: str) -> str | None:
    """The same without what is wrong with it, where that is a name."""
    words = re.findall(r"[^\W_]+", name)
    better = "_".join(words)[:MAX_NAME]
    return f"for example {better}" if better and not _wrong_with(better) else None


def check_task_name(name: str) -> str:
    """Raises:
    UsageError: No task can be called that.
    """
    if not re.fullmatch(NAME_PATTERN, name) or name == "default":
        hint = "lower-case letters, digits, - and _, at most 64, a letter first; not `default`"
        raise UsageError(f"{safe(name, 60, one_line=True)!r} is no name for a task", where="--as-task", hint=hint)
    return name


@dataclass(frozen=True)
class Project:
    """The folder of a project below a root. `open_project` makes one whose path is safe."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.root / OUTPUT / self.name

    @property
    def exists(self) -> bool:
        return self.folder.is_dir()

    def record(self) -> dict[str, Any]:
        """environment.json as it stands; empty when it is missing or nobody can read it: then all counts as edited."""
        try:
            value = json.loads(read_regular(self.folder / RECORD, max_bytes=MAX_BYTES))
        except (OSError, ValueError, PopError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def written(self) -> dict[str, str]:
        """The sha256 of each file as it was written, by its path below the root."""
        files = self.record().get("files")
        return {str(name): str(sha) for name, sha in files.items()} if isinstance(files, dict) else {}

    def place(self, file: str) -> str:
        """The path of a file of the project below the root."""
        return f"{OUTPUT}/{self.name}/{file}"

    def edited(self, places: Collection[str]) -> list[str]:
        """Which of these files are there, and are not as they were written."""
        return [place for place in places if not self._ours(place)]

    def _ours(self, place: str) -> bool:
        path = self.root / place
        return not os.path.lexists(path) or sha256_of_file(path) == self.written().get(place)

    def beside(self, place: str) -> str:
        """Where a new version of an edited file goes: ``00_PERSONA.new.md``, or a number more where that is edited too."""
        stem, suffix = os.path.splitext(place)
        names = [f"{stem}.new{number if number > 1 else ''}{suffix}" for number in range(1, 100)]
        return next((name for name in names if self._ours(name)), f"{stem}.new-{token_hex(4)}{suffix}")

    def write(self, files: Mapping[str, str], gone: Collection[str] = ()) -> list[Path]:
        """Write files by their path below the root; a new project's folder appears whole.

        Args:
            gone: Files of ours that nothing stands for any more.

        Raises:
            PopError: A path crosses a symbolic link, or somebody else was faster.
        """
        paths = {place: _contained(self.root, place) for place in files}
        inside = {place: text for place, text in files.items() if place.startswith(self.place(""))}
        disk = Disk()
        if self.exists:
            self._put(disk, {paths[place]: text for place, text in files.items()})
        else:
            self._appear(disk, {paths[place].name: text for place, text in inside.items()})
            self._put(disk, {paths[place]: text for place, text in files.items() if place not in inside})
        for place in gone:
            (self.root / place).unlink(missing_ok=True)
        return list(paths.values())

    def _put(self, disk: Disk, files: Mapping[Path, str]) -> None:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.put(path, text.encode("utf-8", "replace"))
            path.chmod(0o644)

    def _appear(self, disk: Disk, files: Mapping[str, str]) -> None:
        output = self.folder.parent
        made = not output.exists()
        output.mkdir(exist_ok=True)
        draft = output / f".{self.name[:40]}.{token_hex(4)}.new"
        try:
            draft.mkdir()
            self._put(disk, {draft / name: text for name, text in files.items()})
            rename_noreplace(draft, self.folder)
            disk.sync_folder(output)
        except FileExistsError:
            raise RootError("the project has been made meanwhile", where=self.folder, hint="start again") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if made and not self.exists:
                output.rmdir()


def open_project(root: Path, name: str) -> Project:
    """The project of that name, whether it is there or not.

    Raises:
        UsageError: The name is none.
        RootError: Its folder would be, or is, a symbolic link or a file.
    """
    project = Project(root, check_project_name(name))
    path = _contained(root, f"{OUTPUT}/{project.name}")
    for folder in (path.parent, path):
        if folder.exists() and not folder.is_dir():
            raise RootError("must be a folder", where=folder, hint="move it away")
    return project


def _contained(root: Path, place: str) -> Path:
    try:
        return contained(root, place)
    except NotAFile as error:
        hint = "the wizard writes only below the root: move the link away"
        raise RootError(error.message, where=root, hint=hint, code="outside") from None


def sha256_of_file(path: Path) -> str | None:
    """Of a regular file; None for anything else."""
    try:
        return hashlib.sha256(read_regular(path, max_bytes=MAX_BYTES)).hexdigest()
    except (OSError, PopError):
        return None


# -- what is written -------------------------------------------------------------------------------------------------


def todo_text(parts: Sequence[Part], woven: str | None = None) -> str:
    """TODO.md: a line for each part that no model wrote, and for a text that none wove."""
    lines = [f"- [ ] **{part.ref}** ({part.origin}): {_reasons(part)}" for part in parts if part.to_do]
    lines += [f"- [ ] **--synthesize**: {one_line(woven)}"] if woven else []
    foot = "Write a component as components/KIND/NAME.txt, or run `pop new` again with a model that answers."
    return "\n".join(["# TODO", "", *lines, "", foot, ""]) if lines else ""


def _reasons(part: Part) -> str:
    said = f'it is to say "{one_line(part.brief)}"; ' if part.brief else ""
    return f"{said}{one_line(part.why or 'no model wrote it')}"


def environment(
    choice: Choice,
    goal_map: GoalMap,
    parts: Sequence[Part],
    *,
    files: Mapping[str, str],
    woven: Mapping[str, str] | None,
    task: str | None,
) -> str:
    """environment.json: what was chosen, the sha256 of everything that went in and came out, versions."""
    about: dict[str, Any] = {
        "pop": __version__,
        "made_at": rfc3339(time.time()),
        "project": choice.name,
        "goal": choice.goal.name,
        "persona": choice.persona,
        "title": choice.title,
        "additions": choice.additions,
        "goal_map": {"source": goal_map.source, "sha256": goal_map.sha256},
        "components": [_about(part) for part in parts],
        "synthesized": dict(woven) if woven else None,
        "task": task,
        "files": dict(files),
    }
    return dump_json(about).decode()


def _about(part: Part) -> dict[str, Any]:
    more = {"brief": part.brief, "model": part.model, "note": part.note, "why": part.why}
    told = {name: value for name, value in more.items() if value}
    return {"kind": part.ref.kind, "name": part.ref.name, "source": part.origin, "sha256": part.sha256, **told}


def request_seed(task: str, request: str | None) -> str:
    """A seed of the task's pipeline."""
    text = request or "Write here what this time is asked, and put below it what is to be worked on."
    return dump_json({"pipeline": task, "name": task, "data": {"request": text}}).decode()


def shas(files: Mapping[str, str]) -> dict[str, str]:
    return {place: sha256_of(text) for place, text in files.items()}


# -- as a task ---------------------------------------------------------------------------------------------------------


def task_files(task: str, prompt: str) -> dict[str, str]:
    """The files of a task, and of a pipeline that runs it alone, by their path below the root."""
    request = {"type": "string", "title": "Request", "description": "what this time is asked, and what it is about"}
    schema = {"type": "object", "properties": {"request": request}, "required": ["request"]}
    pipeline = dump_json({"name": task, "seed": schema, "tasks": [task]}).decode()
    return {f"pipeline-tasks/{task}.md": prompt, f"pipelines/{task}.json": pipeline}


def refuse_task(project: Project, task: str) -> None:
    """Raises:
    UsageError: A task or pipeline of that name is there that is not this project's, or was edited.
    """
    from pop.tasks import list_tasks

    check_task_name(task)
    places = list(task_files(task, ""))
    taken = project.edited(places)
    tasks = Root(project.root).tasks
    if not taken and places[0] not in project.written() and tasks.is_dir() and task in list_tasks(tasks):
        taken = [f"pipeline-tasks/{task}"]
    if taken:
        message = f"{taken[0]} is there already, and is not what the wizard wrote for {project.name}"
        raise UsageError(message, where="--as-task", hint="choose another name, or move it away", code="task-is-there")


def check_prompt(task: str, prompt: str) -> None:
    """What `pop check` says of the task, before it is written.

    Raises:
        ConfigErrors: It has mistakes.
    """
    from pop.taskcheck import check_task

    with tempfile.TemporaryDirectory(prefix="pop-") as folder:
        tasks = Path(folder, "pipeline-tasks")
        tasks.mkdir()
        (tasks / f"{task}.md").write_text(prompt, "utf-8")
        problems = check_task(tasks, task)
    if problems:
        raise ConfigErrors(problems)


def log_todo(root: Path, project: str, parts: Sequence[Part]) -> None:
    """One line of ``.pop/log/wizard.jsonl`` for each part that no model wrote."""
    folder = Root(root).machine_room / "log"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in parts:
            if part.to_do:
                line = {"at": rfc3339(time.time()), "event": "component.missing", "project": project, **_about(part)}
                Disk().append(folder / "wizard.jsonl", dump_json(line, pretty=False), durable=False)
    except OSError:
        pass  # TODO.md says the same
