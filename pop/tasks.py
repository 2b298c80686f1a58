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
import hashlib
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.validators import validator_for
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.tokens import AliasToken, AnchorToken

from pop.errors import AttemptFailed, ConfigError, did_you_mean
from pop.parsing import lost_reference
from pop.records import NAME_PATTERN, STAGES, BadJson, read_json
from pop.templates import NAMES, REFINE_NAMES, Prompt, check_inputs, check_template

MAX_FILE_BYTES = 2_000_000
_TARGET = r"[A-Za-z0-9_-]+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"  # of index.json
SIDE_SUFFIXES = (".critique.md", ".refine.md", ".schema.json")


class FrontMatter(BaseModel):
    """What may stand between the ``---`` lines of a prompt."""

    model_config = ConfigDict(extra="forbid")

    system: str | None = None
    model: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_output_tokens: int | None = Field(default=None, ge=1)
    schema_: dict[str, Any] | str | None = Field(default=None, alias="schema")
    samples: int = Field(default=1, ge=1, le=100)


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
        if path.suffix == ".md":
            found[path.stem] = "prompt"
        elif path.suffix == ".py" and path.stem not in found and _defines_infer(path):
            found[path.stem] = "code"
    try:
        found |= {name: "installed" if "." in target else "prompt" for name, target in read_index(folder).items()}
    except ConfigError:
        pass
    return {name: kind for name, kind in found.items() if re.fullmatch(NAME_PATTERN, name)}


def _defines_infer(path: Path) -> bool:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return b"def infer" in path.read_bytes()
    return "infer" in _bound_names(tree)


def _bound_names(tree: ast.Module) -> set[str]:
    """The names a module defines, assigns or imports at its top level."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def read_index(folder: Path) -> dict[str, str]:
    """index.json: names for other stems, or for installed modules.

    Raises:
        ConfigError: It is not an object of texts.
    """
    path = folder / "index.json"
    if not path.is_file():
        return {}
    try:
        value = read_json(path.read_bytes(), where=f"{folder.name}/index.json")
    except BadJson as error:
        raise ConfigError(error.message, where=error.where, code="bad-index") from None
    if not isinstance(value, dict) or not all(isinstance(target, str) for target in value.values()):
        raise ConfigError('must be an object: {"name": "stem or package.module"}', where=path.name, code="bad-index")
    wrong = next((target for target in value.values() if not re.fullmatch(_TARGET, target)), None)
    if wrong is not None:
        hint = "write a file's stem, or package.module"
        raise ConfigError(f"{wrong[:80]!r} names no task", where=path.name, hint=hint, code="bad-index")
    return value


def find_task(folder: Path, name: str) -> TaskFiles:
    """The files of the task called `name`.

    Raises:
        ConfigError: There is no such task.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"{name[:80]!r} is no task's name", code="unknown-task")
    target = read_index(folder).get(name, name)
    if "." in target:
        return TaskFiles(name, folder, name, module=target)
    files = TaskFiles(name, folder, target)
    if files.path(".md") is None and files.path(".py") is None:
        raise ConfigError(
            f"no task {name!r}",
            where=f"{folder.name}/",
            hint=did_you_mean(name, list_tasks(folder)),
            code="unknown-task",
        )
    return files


def hash_task(folder: Path, name: str) -> dict[str, str]:
    """The sha256 of every file of a task, by file name; for installed code, of its module."""
    files = find_task(folder, name)
    paths = files.all()
    if files.module:
        source = _installed_source(files.module)
        paths += [source] if source else []
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _installed_source(module: str) -> Path | None:
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
    front, body, line = _read_prompt(files)
    output_model = getattr(module, "Output", None)
    md = files.path(".md")
    if md is None and (module is None or not hasattr(module, "infer")):
        raise ConfigError(f"task {name!r} has no prompt and defines no infer(prompt, ctx)", where=f"{files.stem}.py")
    return LoadedTask(
        name=name,
        front=front,
        prompt=_template(body, md, line),
        system=_template(front.system, md, 1),
        critique=_side(files, ".critique.md"),
        refine=_side(files, ".refine.md"),
        schema=_schema(files, front, output_model),
        output_model=output_model if isinstance(output_model, type) and issubclass(output_model, BaseModel) else None,
        stages=_stages(module, files) if module else {},
    )


def _template(text: str | None, path: Path | None, line: int) -> Prompt | None:
    return Prompt(text, path, line) if text is not None and path is not None else None


def _side(files: TaskFiles, suffix: str) -> Prompt | None:
    path = files.path(suffix)
    return Prompt(_text(path), path) if path else None


def _text(path: Path) -> str:
    """A prompt file's text; a byte order mark and CRLF mean nothing.

    Raises:
        ConfigError: It is not UTF-8, or larger than 2 MB.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError("a prompt file of more than 2 MB", where=path.name, code="bad-task")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}", where=path.name, code="bad-task") from None


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
        raise _python_error(error, path) from None


def _python_error(error: SyntaxError | ValueError, path: Path) -> ConfigError:
    place = f"{path.name}:{getattr(error, 'lineno', 1)}:{getattr(error, 'offset', 1) or 1}"
    return ConfigError(f"Python: {getattr(error, 'msg', error)}", where=place, code="bad-python")


def _stages(module: types.ModuleType, files: TaskFiles) -> dict[str, Callable[..., Any]]:
    found = {}
    for name, value in vars(module).items():
        if name in STAGES and callable(value):  # also one that was imported or wrapped
            found[name] = value
        elif isinstance(value, types.FunctionType) and value.__module__ == module.__name__ and name[0] != "_":
            raise _no_stage(name, f"{files.stem}.py:{value.__code__.co_firstlineno}")
    return found


def _no_stage(name: str, where: str) -> ConfigError:
    hint = did_you_mean(name, STAGES)
    hint = f"{hint}; a helper's name starts with _" if hint else "a helper's name starts with _"
    return ConfigError(f"{name}() is no stage", where=where, hint=hint, code="unknown-stage")


def _read_prompt(files: TaskFiles) -> tuple[FrontMatter, str | None, int]:
    path = files.path(".md")
    if path is None:
        return FrontMatter(), None, 1
    return split_prompt(_text(path), path.name)


def split_prompt(text: str, where: str) -> tuple[FrontMatter, str, int]:
    """Front matter, body, and the line on which the body begins.

    Raises:
        ConfigError: The front matter is no YAML mapping of known keys, with its line.
    """
    if not text.startswith("---\n"):
        return FrontMatter(), text, 1
    head, separator, body = text[3:].partition("\n---\n")
    if not separator:
        raise ConfigError("the front matter has no closing ---", where=f"{where}:1", code="bad-front-matter")
    return _front_matter(head[1:], where), body, head.count("\n") + 3


def _front_matter(head: str, where: str) -> FrontMatter:
    try:
        _refuse_aliases(head, where)
        value = YAML(typ="safe", pure=True).load(head)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 2}:{mark.column + 1}" if mark else where
        text = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"front matter: {text}", where=place, code="bad-front-matter") from None
    if not isinstance(value, dict | None):
        raise ConfigError("front matter must be `key: value` lines", where=f"{where}:2", code="bad-front-matter")
    try:
        return FrontMatter.model_validate(value or {})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        line = next((n for n, row in enumerate(head.splitlines(), 2) if row.startswith(f"{key}:")), 2)
        unknown = first["type"] == "extra_forbidden"
        names = [f.alias or n for n, f in FrontMatter.model_fields.items()]
        message = f"unknown key {key!r}" if unknown else f"{key}: {first['msg'].lower()}"
        hint = did_you_mean(key, names) if unknown else None
        raise ConfigError(
            f"front matter: {message}", where=f"{where}:{line}", hint=hint, code="bad-front-matter"
        ) from None


def _refuse_aliases(head: str, where: str) -> None:
    """A few aliases of aliases fill any memory."""
    if "&" not in head and "*" not in head:
        return
    for token in YAML(typ="safe", pure=True).scan(head):
        if isinstance(token, AliasToken | AnchorToken):
            place = f"{where}:{token.start_mark.line + 2}:{token.start_mark.column + 1}"
            raise ConfigError("YAML anchors and aliases are not allowed", where=place, code="bad-front-matter")


def _schema(files: TaskFiles, front: FrontMatter, output_model: Any) -> dict[str, Any] | None:
    path = files.path(".schema.json")
    if isinstance(front.schema_, str):
        path = files.folder / front.schema_
        if path.parent != files.folder or not path.is_file():
            raise ConfigError(f"no schema file {front.schema_!r}", where=f"{files.stem}.md", code="bad-schema")
    if isinstance(front.schema_, dict):
        return _checked_schema(front.schema_, f"{files.stem}.md")
    if path:
        try:
            return _checked_schema(read_json(path.read_bytes(), where=path.name), path.name)
        except BadJson as error:
            raise ConfigError(error.message, where=error.where, code="bad-schema") from None
    if isinstance(output_model, type) and issubclass(output_model, BaseModel):
        return output_model.model_json_schema()
    return None


def _checked_schema(schema: Any, where: str) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise ConfigError("a JSON Schema must be an object here", where=where, code="bad-schema")
    try:
        validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as error:
        path = "/".join(str(part) for part in error.absolute_path)
        raise ConfigError(f"not a JSON Schema: {error.message}", where=f"{where}  {path}", code="bad-schema") from None
    lost = lost_reference(schema)
    if lost is not None:
        hint = "keep what it names under $defs in the same file"
        raise ConfigError(f'"$ref": {lost[:200]!r} leads nowhere', where=where, hint=hint, code="bad-schema")
    return schema


# -- checking, without running anything ------------------------------------------------------------------------------


def check_task(folder: Path, name: str, *, steps: Collection[str] | None = None) -> list[ConfigError]:
    """Every mistake in a task's files that can be seen without running its code.

    Args:
        steps: The steps that come before this task; a template may name no other input. None: not checked.
    """
    try:
        files = find_task(folder, name)
    except ConfigError as error:
        return [error]
    problems: list[ConfigError] = []
    for check in (_check_prompt, _check_python, _check_schema, _check_sides):
        try:
            problems += check(files)
        except ConfigError as error:
            problems.append(error)
        except (OSError, UnicodeDecodeError) as error:
            problems.append(ConfigError(f"cannot read the task {name!r}: {error}", code="bad-task"))
    if steps is not None:
        problems += _unknown_inputs(files, steps)
    return list({str(problem): problem for problem in problems}.values())


def _unknown_inputs(files: TaskFiles, steps: Collection[str]) -> list[ConfigError]:
    problems: list[ConfigError] = []
    for suffix in (".md", ".critique.md", ".refine.md"):
        path = files.path(suffix)
        try:
            text = _text(path) if path else ""
            _, body, line = split_prompt(text, files.stem) if suffix == ".md" else (None, text, 1)
        except (ConfigError, OSError):  # told by the other checks
            continue
        problems += check_inputs(body, path, line, steps) if path else []
    return problems


def _check_prompt(files: TaskFiles) -> list[ConfigError]:
    path = files.path(".md")
    if path is None:
        return []
    text = _text(path)
    front, body, line = split_prompt(text, path.name)
    problems = check_template(body, path, line, NAMES) if body.strip() else [_empty(path)]
    if front.system:
        above = text.partition("system:")[0].count("\n") + 1
        problems += check_template(front.system, path, above, NAMES)
    return _without_own_names(files, problems)


def _without_own_names(files: TaskFiles, problems: list[ConfigError]) -> list[ConfigError]:
    """Without complaints about names that the task's own ingest or preprocess may add."""
    path = files.path(".py")
    if path is None or not re.search(rb"\b(ingest|preprocess)\b", path.read_bytes()):
        return problems
    return [problem for problem in problems if "unknown name" not in problem.message]


def _empty(path: Path) -> ConfigError:
    return ConfigError("the prompt is empty", where=path.name, code="bad-template")


def _check_python(files: TaskFiles) -> list[ConfigError]:
    if files.module:
        if importlib.util.find_spec(files.module.partition(".")[0]) is None:
            return [ConfigError(f"no installed module {files.module!r}", where="index.json", code="unknown-task")]
        return []
    path = files.path(".py")
    if path is None:
        return []
    try:
        tree = ast.parse(path.read_bytes(), path.name)
    except (SyntaxError, ValueError) as error:
        return [_python_error(error, path)]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    public = [node for node in functions if not node.name.startswith("_")]
    problems = [_no_stage(n.name, f"{path.name}:{n.lineno}") for n in public if n.name not in STAGES]
    problems += [_wrong_arguments(n, path) for n in public if n.name in STAGES and not _fits(n)]
    return problems


ARGUMENTS = {"critique": ("output", "problems", "ctx"), "refine": ("output", "critique", "ctx")}


def _fits(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    wanted = len(ARGUMENTS.get(node.name, ("value", "ctx")))
    arguments = node.args
    count = len(arguments.posonlyargs) + len(arguments.args)
    return arguments.vararg is not None or count - len(arguments.defaults) <= wanted <= count


def _wrong_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef, path: Path) -> ConfigError:
    wanted = ", ".join(ARGUMENTS.get(node.name, ("value", "ctx")))
    return ConfigError(f"{node.name}() takes ({wanted})", where=f"{path.name}:{node.lineno}", code="bad-python")


def _check_schema(files: TaskFiles) -> list[ConfigError]:
    front, _, _ = _read_prompt(files)
    _schema(files, front, None)
    return []


def _check_sides(files: TaskFiles) -> list[ConfigError]:
    problems: list[ConfigError] = []
    for suffix in (".critique.md", ".refine.md"):
        path = files.path(suffix)
        if path:
            problems += check_template(_text(path), path, 1, REFINE_NAMES)
    return _without_own_names(files, problems)


def bad_task(error: ConfigError) -> AttemptFailed:
    """A task that is wrong, as the failure of an attempt: not cured by trying again."""
    return AttemptFailed("bug", f"{error.code}: {error.message}", where=error.where, hint=error.hint)
