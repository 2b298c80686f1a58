"""Tasks in user land: ``pipeline-tasks/<name>.md`` and what stands beside it under the same stem (docs/tasks.md).

| file               | what it gives                                                          |
|--------------------|------------------------------------------------------------------------|
| NAME.md            | the prompt (Jinja), with optional front matter                         |
| NAME.schema.json   | JSON Schema of the output                                              |
| NAME.critique.md   | what to ask when quality falls short                                   |
| NAME.refine.md     | how to ask again                                                       |
| NAME.py            | any of the ten stages as functions, and/or a pydantic model ``Output`` |
| index.json         | ``{"name": "other-stem" or "package.module"}``                         |
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pop.errors import AttemptFailed, ConfigError, ConfigErrors, did_you_mean
from pop.frontmatter import FrontMatter as FrontMatter
from pop.frontmatter import FrontPlaces, PromptFile, read_prompt, read_text
from pop.places import Places, find_places, shown
from pop.records import NAME_PATTERN, STAGES, BadJson, read_json
from pop.schemas import checked, read_schema
from pop.templates import Prompt

_TARGET = r"[A-Za-z0-9_-]+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"  # of index.json
NAME_RULE = "names are lower-case: a to z first, then a to z, 0 to 9, - or _, at most 64 characters"
SIDE_SUFFIXES = (".critique.md", ".refine.md", ".schema.json")


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's files are; a missing one is None. `module` names installed code instead."""

    name: str
    folder: Path
    stem: str
    module: str | None = None

    def path(self, suffix: str) -> Path | None:
        path = self.folder / f"{self.stem}{suffix}"
        return path if path.is_file() else None

    def all(self) -> list[Path]:
        """Every file of the task, the prompt first."""
        found = [self.path(suffix) for suffix in (".md", ".py", *SIDE_SUFFIXES)]
        return [path for path in found if path]


@dataclass(frozen=True)
class LoadedTask:
    """A task ready to run."""

    name: str
    front: FrontMatter
    prompt: Prompt | None
    system: Prompt | None
    critique: Prompt | None
    refine: Prompt | None
    schema: dict[str, Any] | None
    output_model: type[BaseModel] | None
    stages: dict[str, Callable[..., Any]] = field(default_factory=dict)


def list_tasks(folder: Path) -> dict[str, str]:
    """The tasks of a folder by name: ``prompt``, ``code`` or ``installed``. Broken ones are listed too.

    A .py file is a task when it defines ``infer``; otherwise it is a helper module.
    """
    found: dict[str, str] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")) or path.name.endswith(SIDE_SUFFIXES):
            continue
        if path.suffix == ".md" and path.is_file():
            found[path.stem] = "prompt"
        elif path.suffix == ".py" and path.stem not in found and _defines_infer(path):
            found[path.stem] = "code"
    entries = read_index(folder).entries
    found |= {name: "installed" if "." in target else "prompt" for name, target in entries.items()}
    return {name: kind for name, kind in found.items() if re.fullmatch(NAME_PATTERN, name)}


def _defines_infer(path: Path) -> bool:
    """Whether it defines ``infer``, or means to: a name that is nearly that is told by `taskcheck`."""
    try:
        source = path.read_bytes() if path.is_file() else b""  # a pipe would be waited for
    except OSError:
        return False
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return b"def infer" in source
    return "infer" in bound_names(tree) or any(near == "infer" for _, near in misspelt_stages(tree))


def misspelt_stages(tree: ast.Module) -> list[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Functions that take `ctx` last and are nearly called like a stage, each with that stage's name."""
    found = []
    for name, node in functions_of(tree).items():
        near = difflib.get_close_matches(name, STAGES, n=1, cutoff=0.8)
        if near and name not in STAGES and [argument.arg for argument in node.args.args][-1:] == ["ctx"]:
            found.append((node, near[0]))
    return found


def functions_of(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions a module defines at its top level."""
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def bound_names(tree: ast.Module) -> set[str]:
    """The names a module defines, assigns or imports at its top level, also inside an ``if`` or ``try``."""
    found = set()
    for node in _top_level(tree.body):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.ImportFrom(names=names) | ast.Import(names=names):
                found |= {alias.asname or alias.name for alias in names}
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def _top_level(body: list[Any]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)


@dataclass(frozen=True)
class Index:
    """index.json: names for other stems, or for installed modules; and what is wrong with it, by name or as a whole."""

    entries: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str | None, ConfigError]] = field(default_factory=list)


def read_index(folder: Path) -> Index:
    """The folder's index; a missing one is empty."""
    path = folder / "index.json"
    if not path.is_file():
        return Index()
    data = path.read_bytes()
    try:
        value = read_json(data, where=shown(path))
    except BadJson as error:
        return Index({}, [(None, _bad_index(error.message, str(error.where), error.hint))])
    places = find_places(data.decode(), shown(path))
    if not isinstance(value, dict):
        return Index({}, [(None, _bad_index('must be an object: {"name": "stem or package.module"}', places.of(())))])
    problems: list[tuple[str | None, ConfigError]] = [
        (name, problem) for name, target in value.items() for problem in _wrong_entry(name, target, places)
    ]
    wrong = {name for name, _ in problems}
    return Index({name: target for name, target in value.items() if name not in wrong}, problems)


def _wrong_entry(name: str, target: Any, places: Places) -> Iterator[ConfigError]:
    if not re.fullmatch(NAME_PATTERN, name):
        yield _bad_index(f"{name[:80]!r} is no task's name", places.of_key((name,)), NAME_RULE)
    if not isinstance(target, str) or not re.fullmatch(_TARGET, target):
        message = f"{target[:80]!r} names no task" if isinstance(target, str) else "must be a text"
        yield _bad_index(message, places.of((name,)), "write a file's stem, or package.module")


def _bad_index(message: str, where: str, hint: str | None = None) -> ConfigError:
    return ConfigError(message, where=where, hint=hint, code="bad-index")


def place_in_index(folder: Path, name: str) -> str:
    """Where index.json says what the task `name` is."""
    path = folder / "index.json"
    return find_places(path.read_text("utf-8"), shown(path)).of((name,))


def find_task(folder: Path, name: str) -> TaskFiles:
    """The files of the task called `name`.

    Raises:
        ConfigError: There is no such task, or index.json has mistakes.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"{name[:80]!r} is no task's name", hint=NAME_RULE, code="unknown-task")
    index = read_index(folder)
    if wrong := [problem for about, problem in index.problems if about in (None, name)]:
        raise ConfigErrors(wrong)
    target = index.entries.get(name, name)
    if "." in target:
        return TaskFiles(name, folder, name, module=target)
    files = TaskFiles(name, folder, target)
    if files.path(".md") is None and files.path(".py") is None:
        raise _no_task(folder, name, target)
    return files


def _no_task(folder: Path, name: str, target: str) -> ConfigError:
    stems = set(list_tasks(folder)) - {name}
    if target == name:
        return ConfigError(
            f"no task {name!r}", where=f"{folder.name}/", hint=did_you_mean(name, stems), code="unknown-task"
        )
    message = f"there is neither {target}.md nor {target}.py for the task {name!r}"
    hint = did_you_mean(target, stems)
    return ConfigError(message, where=place_in_index(folder, name), hint=hint, code="unknown-task")


def hash_task(folder: Path, name: str) -> dict[str, str]:
    """The sha256 of every file of a task, by file name; for installed code, of its module."""
    files = find_task(folder, name)
    paths = files.all()
    if files.module:
        source = installed_source(files.module)
        paths += [source] if source else []
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def installed_source(module: str) -> Path | None:
    """The file of an installed module, found without importing any of it."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in (Path(folder, *rest).with_suffix(".py"), Path(folder, *rest, "__init__.py")):
            if path.is_file():
                return path
    return None


# -- loading, in the worker ------------------------------------------------------------------------------------------


def load_task(folder: Path, name: str) -> LoadedTask:
    """Read a task and run its Python file.

    Raises:
        ConfigError: A file of the task is wrong.
        Exception: Whatever the task's own module raises.
    """
    files = find_task(folder, name)
    module = _load_module(files)
    prompt = prompt_of(files)
    front = prompt.front if prompt else FrontMatter()
    output_model = _output_model(module, files)
    if prompt is None and (module is None or not hasattr(module, "infer")):
        raise no_infer(name, f"{folder.name}/{files.stem}.py")
    found = schema_of(files, prompt)
    schema = checked(*found) if found else output_model.model_json_schema() if output_model else None
    return LoadedTask(
        name=name,
        front=front,
        prompt=Prompt(prompt.body, prompt.path, prompt.body_line) if prompt else None,
        system=Prompt(prompt.system.text, prompt.path, prompt.system.first_line) if prompt and prompt.system else None,
        critique=_side(files, ".critique.md"),
        refine=_side(files, ".refine.md"),
        schema=schema,
        output_model=output_model,
        stages=_stages(module, files) if module else {},
    )


def no_infer(name: str, where: str) -> ConfigError:
    """A task with nothing to run."""
    return ConfigError(f"task {name!r} has no prompt and defines no infer(prompt, ctx)", where=where, code="bad-task")


def _side(files: TaskFiles, suffix: str) -> Prompt | None:
    path = files.path(suffix)
    return Prompt(read_text(path), path) if path else None


def prompt_of(files: TaskFiles) -> PromptFile | None:
    """The task's prompt file, where it has one.

    Raises:
        ConfigError: It cannot be read, or its front matter has mistakes.
    """
    path = files.path(".md")
    return read_prompt(path) if path else None


def schema_of(files: TaskFiles, prompt: PromptFile | None) -> tuple[Any, Places | FrontPlaces, tuple[str, ...]] | None:
    """The schema that the task's files hold, unchecked; the places around it, and its path among them.

    Raises:
        ConfigError: It is not JSON, or the front matter names a file that is not there.
    """
    path = files.path(".schema.json")
    given = prompt.front.schema_ if prompt else None
    if prompt and isinstance(given, dict):
        return given, prompt.places, ("schema",)
    if prompt and isinstance(given, str):
        path = files.folder / given
        if path.parent != files.folder or not path.is_file():
            known = [file.name for file in files.folder.glob("*.schema.json")]
            where, hint = prompt.places.of(("schema",)), did_you_mean(given, known)
            raise ConfigError(f"no schema file {given!r}", where=where, hint=hint, code="bad-schema")
    return (*read_schema(path), ()) if path else None


def _output_model(module: types.ModuleType | None, files: TaskFiles) -> type[BaseModel] | None:
    output = getattr(module, "Output", None)
    if not isinstance(output, type):
        return None
    if not issubclass(output, BaseModel):
        raise no_model(f"{files.folder.name}/{files.stem}.py")
    return output


def no_model(where: str) -> ConfigError:
    """A class Output that could check nothing."""
    hint = "write class Output(pydantic.BaseModel)"
    return ConfigError("the class Output is no pydantic model", where=where, hint=hint, code="bad-python")


def _load_module(files: TaskFiles) -> types.ModuleType | None:
    """The task's module, compiled from its source as it is now; nothing is written beside it."""
    if files.module:
        return importlib.import_module(files.module)
    path = files.path(".py")
    if path is None:
        return None
    if str(files.folder) not in sys.path:
        sys.path.insert(0, str(files.folder))
    module = types.ModuleType(f"pop_task_{files.stem.replace('-', '_')}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(_compiled(path), module.__dict__)
    return module


def _compiled(path: Path) -> types.CodeType:
    try:
        return compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:
        raise python_error(error, path) from None


def python_error(error: SyntaxError | ValueError, path: Path) -> ConfigError:
    """A file that Python cannot read, with line and column."""
    place = f"{shown(path)}:{getattr(error, 'lineno', 1)}:{getattr(error, 'offset', 1) or 1}"
    return ConfigError(f"Python: {getattr(error, 'msg', error)}", where=place, code="bad-python")


def _stages(module: types.ModuleType, files: TaskFiles) -> dict[str, Callable[..., Any]]:
    found = {}
    for name, value in vars(module).items():
        if name in STAGES and callable(value):  # also one that was imported or wrapped
            found[name] = value
        elif isinstance(value, types.FunctionType) and value.__module__ == module.__name__ and name[0] != "_":
            raise no_stage(name, f"{files.folder.name}/{files.stem}.py:{value.__code__.co_firstlineno}")
    return found


def no_stage(name: str, where: str) -> ConfigError:
    """A public function that is none of the ten."""
    hint = did_you_mean(name, STAGES)
    hint = f"{hint}; a helper's name starts with _" if hint else "a helper's name starts with _"
    return ConfigError(f"{name}() is no stage", where=where, hint=hint, code="unknown-stage")


def bad_task(error: ConfigError) -> AttemptFailed:
    """A task that is wrong, as the failure of an attempt: not cured by trying again."""
    if isinstance(error, ConfigErrors):
        error = error.problems[0]
    where = error.where and error.where.removeprefix("pipeline-tasks/")  # as a failing template says it
    return AttemptFailed("bug", f"{error.code}: {error.message}", where=where, hint=error.hint)
