"""What can be seen wrong in pipeline-tasks/ without running any of it: each task's files, and files of no task."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop.errors import ConfigError, ConfigErrors, did_you_mean
from pop.frontmatter import PromptFile, examine_prompt, read_text
from pop.places import shown
from pop.records import NAME_PATTERN, STAGES
from pop.schemas import keyword_mistakes, schema_mistakes
from pop.tasks import (
    NAME_RULE,
    SIDE_SUFFIXES,
    TaskFiles,
    bound_names,
    find_task,
    functions_of,
    installed_source,
    list_tasks,
    misspelt_stages,
    no_infer,
    no_model,
    no_stage,
    place_in_index,
    python_error,
    read_index,
    schema_of,
)
from pop.templatecheck import (
    Template,
    check_inputs,
    check_template,
    check_without_value,
    excluded_by,
    missing_from_seed,
    read_of_seed,
)

NAMES = (
    "seed", "inputs", "item", "lap", "laps", "config", "material", "run_id", "step", "attempt", "problems_before",
    "changes",
)  # fmt: skip
REFINE_NAMES = (*NAMES, "output", "problems", "critique", "answer", "prompt")
NO_ITEM = "`item` has a meaning only inside an `each`; a step of this task stands outside"
NO_LAP = "`{}` has a meaning only inside a `repeat`; a step of this task stands outside"


@dataclass(frozen=True)
class Use:
    """A step that runs the task: the steps it may read, whether it stands inside an `each`, and the steps of the loops
    around it."""

    steps: Collection[str]
    in_each: bool
    in_loop: Collection[str] = ()


def check_task(folder: Path, name: str, *, use: Use | None = None) -> list[ConfigError]:
    """Every mistake in a task's files that can be seen without running its code.

    Args:
        use: The step it is looked at for; None passes over what depends on that.
    """
    try:
        files = find_task(folder, name)
    except ConfigError as error:
        return _each_of(error)
    problems: list[ConfigError] = []
    for check in (_check_prompt, _check_python, _check_schema, _check_sides):
        problems += _collected(check, files)
    if use is not None:
        problems += _collected(lambda files: _check_use(files, use), files)
    return list({str(problem): problem for problem in problems}.values())


def _each_of(error: ConfigError) -> list[ConfigError]:
    return error.problems if isinstance(error, ConfigErrors) else [error]


def _collected(check: Any, files: TaskFiles) -> list[ConfigError]:
    try:
        return list(check(files))
    except ConfigError as error:
        return _each_of(error)
    except (OSError, UnicodeDecodeError) as error:
        where = f"{files.folder.name}/{files.stem}"
        return [ConfigError(f"cannot be read: {error}", where=where, code="bad-task")]


# -- templates ---------------------------------------------------------------------------------------------------------


def _prompt(files: TaskFiles) -> PromptFile | None:
    path = files.path(".md")
    return examine_prompt(path) if path else None


def _check_prompt(files: TaskFiles) -> Iterator[ConfigError]:
    prompt = _prompt(files)
    if prompt is None:
        return
    yield from prompt.problems
    names = None if _brings_names(files) else NAMES
    if prompt.body.strip():
        yield from check_template(prompt.template, names)
    else:
        yield ConfigError("the prompt is empty", where=shown(prompt.path), code="bad-template")
    if prompt.system:
        yield from check_template(prompt.system, names)


def _check_sides(files: TaskFiles) -> Iterator[ConfigError]:
    names = None if _brings_names(files) else REFINE_NAMES
    for template in _sides(files):
        yield from check_template(template, names)


def _sides(files: TaskFiles) -> Iterator[Template]:
    for path in (files.path(".critique.md"), files.path(".refine.md")):
        if path:
            yield Template(read_text(path), path)


def _brings_names(files: TaskFiles) -> bool:
    """Whether the task's own ingest or preprocess may add names to the templates'."""
    path = files.path(".py")
    return path is not None and bool(re.search(rb"\b(ingest|preprocess)\b", path.read_bytes()))


def _check_use(files: TaskFiles, use: Use) -> Iterator[ConfigError]:
    unset = {} if use.in_each else {"item": NO_ITEM}
    unset |= {} if use.in_loop else {name: NO_LAP.format(name) for name in ("lap", "laps")}
    for template in _templates(files):
        yield from check_inputs(template, use.steps)
        if use.in_loop:
            yield from check_inputs(template, use.in_loop, of="laps", why="stands in the loops around this one")
        if not _brings_names(files):
            yield from check_without_value(template, unset)


def _templates(files: TaskFiles) -> Iterator[Template]:
    try:
        prompt = _prompt(files)
    except ConfigError:  # told by the other checks
        prompt = None
    if prompt:
        yield from filter(None, (prompt.template, prompt.system))
    yield from _sides(files)


def model_of(folder: Path, name: str) -> tuple[str, str] | None:
    """The model that the task's front matter asks for, and where it does."""
    try:
        prompt = _prompt(find_task(folder, name))
    except (ConfigError, OSError):
        return None
    return (prompt.front.model, prompt.places.of(("model",))) if prompt and prompt.front.model else None


def check_task_against_seed(folder: Path, name: str, seed: Any) -> list[ConfigError]:
    """Keys of the seed that the task's prompt reads in any case, and that this seed lacks."""
    return [problem for template in _own_templates(folder, name) for problem in missing_from_seed(template, seed)]


def check_task_against_schema(folder: Path, name: str, schema: Any) -> list[ConfigError]:
    """Keys of the seed that the task's prompt reads in any case, and that the pipeline's schema excludes."""
    return [problem for template in _own_templates(folder, name) for problem in excluded_by(template, schema)]


def _own_templates(folder: Path, name: str) -> list[Template]:
    """Those of the task's prompt, where its code does not make another one."""
    try:
        files = find_task(folder, name)
        prompt = _prompt(files)
        path = files.path(".py")
        own = bound_names(ast.parse(path.read_bytes())) if path else set()
    except (ConfigError, SyntaxError, ValueError, OSError):
        return []
    if prompt is None or "prompt" in own:
        return []
    return [template for template in (prompt.template, prompt.system) if template]


def seed_keys(folder: Path, name: str) -> dict[str, bool]:
    """The seed's keys that a task reads, as far as its text tells; true for those that its prompt reads in any case."""
    try:
        files = find_task(folder, name)
        path = files.path(".py")
        tree = ast.parse(path.read_bytes()) if path else ast.Module([], [])
        templates = list(_templates(files))
    except (ConfigError, SyntaxError, ValueError, OSError):
        return {}
    found = dict.fromkeys(_keys_in_python(tree), False)
    own_prompt = "prompt" in bound_names(tree)
    for template in templates:
        for key, certain in read_of_seed(template).items():
            found[key] = found.get(key, False) or (certain and not own_prompt and template.path.suffixes == [".md"])
    return found


def _keys_in_python(tree: ast.Module) -> Iterator[str]:
    """``seed["key"]`` and ``seed.get("key")``, of `ctx.seed` or of a name that is called so."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Subscript(value=owner, slice=ast.Constant(value=str() as key))
                | ast.Call(func=ast.Attribute(value=owner, attr="get"), args=[ast.Constant(value=str() as key), *_])
            ):
                if getattr(owner, "id", getattr(owner, "attr", "")) == "seed":
                    yield key


# -- Python and schemas ------------------------------------------------------------------------------------------------


def _check_python(files: TaskFiles) -> Iterator[ConfigError]:
    if files.module:
        yield from _check_installed(files, files.module)
        return
    path = files.path(".py")
    if path is None:
        return
    try:
        tree = ast.parse(path.read_bytes(), path.name)
    except (SyntaxError, ValueError) as error:
        yield python_error(error, path)
        return
    for name, node in functions_of(tree).items():
        if name in STAGES and not _fits(node):
            wanted = ", ".join(ARGUMENTS.get(name, ("value", "ctx")))
            yield ConfigError(f"{name}() takes ({wanted})", where=_place(path, node), code="bad-python")
        elif name not in STAGES and not name.startswith("_"):
            yield no_stage(name, _place(path, node))
    yield from _check_output(tree, path)
    meant = any(near == "infer" for _, near in misspelt_stages(tree))
    if files.path(".md") is None and "infer" not in bound_names(tree) and not meant:
        yield no_infer(files.name, shown(path))


def _place(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    """Line and column of the name that is defined."""
    word = {ast.FunctionDef: "def ", ast.AsyncFunctionDef: "async def ", ast.ClassDef: "class "}[type(node)]
    return f"{shown(path)}:{node.lineno}:{node.col_offset + len(word) + 1}"


ARGUMENTS = {"critique": ("output", "problems", "ctx"), "refine": ("output", "critique", "ctx")}


def _fits(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    wanted = len(ARGUMENTS.get(node.name, ("value", "ctx")))
    arguments = node.args
    count = len(arguments.posonlyargs) + len(arguments.args)
    return arguments.vararg is not None or count - len(arguments.defaults) <= wanted <= count


_NO_MODELS = frozenset({"object", "dict", "list", "TypedDict", "NamedTuple", "Enum", "StrEnum", "ABC", "Protocol"})


def _check_output(tree: ast.Module, path: Path) -> Iterator[ConfigError]:
    """A class Output that is certainly no pydantic model; a base from elsewhere may be one."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    output = classes.get("Output")
    if output and not _may_be_model(output, classes, depth=20):
        yield no_model(_place(path, output))


def _may_be_model(node: ast.ClassDef, classes: dict[str, ast.ClassDef], depth: int) -> bool:
    for base in node.bases:
        name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        if isinstance(base, ast.Name) and name in classes and classes[name] is not node and depth:
            if _may_be_model(classes[name], classes, depth - 1):
                return True
        elif name not in _NO_MODELS:
            return True
    return False


def _check_installed(files: TaskFiles, module: str) -> Iterator[ConfigError]:
    """An entry of index.json that names no module, or one that brings nothing to run."""
    top, _, rest = module.rpartition(".")
    where = place_in_index(files.folder, files.name)
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        yield ConfigError(f"no installed module {module!r}", where=where, code="unknown-task")
        return
    source = installed_source(module)
    if source is None:
        parent = installed_source(top)
        defined = parent is not None and rest in _names_in(parent)
        hint = f"name the module itself: {top}" if defined else _near_module(module)
        message = f"{module!r} is no module but a name in one" if defined else f"no installed module {module!r}"
        yield ConfigError(message, where=where, hint=hint, code="unknown-task")
    elif files.path(".md") is None and not _names_in(source) & {"infer", "*", "__getattr__"}:
        hint = "a module that is a task defines infer(prompt, ctx)"
        yield ConfigError(f"the module {module!r} defines no infer", where=where, hint=hint, code="unknown-task")


def _names_in(source: Path) -> set[str]:
    try:
        return bound_names(ast.parse(source.read_bytes()))
    except (SyntaxError, ValueError, OSError):
        return {"*"}


def _near_module(module: str) -> str | None:
    parent = installed_source(module.rpartition(".")[0])
    if parent is None or parent.name != "__init__.py":
        return None
    beside = {path.name.partition(".")[0] for path in parent.parent.iterdir() if not path.name.startswith(("_", "."))}
    return did_you_mean(module.rpartition(".")[2], beside)


def _check_schema(files: TaskFiles) -> Iterator[ConfigError]:
    found = schema_of(files, _prompt(files))
    if found:
        yield from schema_mistakes(*found)
        yield from keyword_mistakes(*found)


# -- files of no task --------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> list[ConfigError]:
    """Mistakes in index.json, and files that look like a task's and belong to none."""
    problems = [problem for _, problem in read_index(folder).problems]
    if not folder.is_dir():
        return problems
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith((".", "_"))]
    tasks = list_tasks(folder)
    stems = {path.stem for path in paths if path.suffix in (".md", ".py")} & set(tasks)
    renamed = set(read_index(folder).entries.values())
    stems |= renamed | set(tasks)
    used = _schemas_named_by(path for path in paths if path.suffix == ".md")
    for path in paths:
        problem = None
        if path.name.endswith(SIDE_SUFFIXES):
            problem = None if path.name in used else _orphan(path, stems)
        elif path.suffix in (".md", ".json") and path.stem not in renamed:
            problem = _misnamed(path)
        elif path.suffix == ".py" and path.stem not in stems:
            problem = _useless_code(path, stems, paths)
        if problem:
            problems.append(problem)
    return problems


def _belongs_nowhere(path: Path, message: str, hint: str | None) -> ConfigError:
    return ConfigError(message, where=shown(path), hint=hint, code="orphan-file")


def _schemas_named_by(prompts: Iterable[Path]) -> set[str]:
    found = set()
    for path in prompts:
        try:
            found.add(str(examine_prompt(path).front.schema_))
        except (ConfigError, OSError):
            continue
    return found


def _orphan(path: Path, stems: Collection[str]) -> ConfigError | None:
    suffix = next(suffix for suffix in SIDE_SUFFIXES if path.name.endswith(suffix))
    stem = path.name.removesuffix(suffix)
    if stem in stems:
        return None
    return _belongs_nowhere(path, f"there is no task {stem!r} that this file belongs to", did_you_mean(stem, stems))


def _misnamed(path: Path) -> ConfigError | None:
    """A prompt no step could name, or a misspelt suffix; README.md and other files of data are nobody's business."""
    stem, dot, kind = path.stem.rpartition(".")
    kinds = {".md": ("critique", "refine"), ".json": ("schema",)}[path.suffix]
    if dot and difflib.get_close_matches(kind, kinds, n=1):
        near = difflib.get_close_matches(kind, kinds, n=1)[0]
        return _belongs_nowhere(path, "this file belongs to no task", f"did you mean '{stem}.{near}{path.suffix}'?")
    if path.suffix == ".json":
        near_index = difflib.get_close_matches(path.name, ["index.json"], n=1, cutoff=0.8)
        wrong = bool(near_index) and path.name != "index.json"
        return _belongs_nowhere(path, "nothing reads this file", "did you mean 'index.json'?") if wrong else None
    if re.fullmatch(NAME_PATTERN, path.stem) or path.stem.isupper():
        return None
    return _bad_name(path)


def _bad_name(path: Path) -> ConfigError:
    return _belongs_nowhere(path, f"{path.stem[:80]!r} is no task's name", NAME_RULE)


def _useless_code(path: Path, stems: Collection[str], paths: Collection[Path]) -> ConfigError | None:
    """A .py with stages that no step can run; helper modules define none, or are imported by another file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        return python_error(error, path)
    except OSError as error:
        return _belongs_nowhere(path, f"cannot be read: {error.strerror}", None)
    stages = [node for name, node in functions_of(tree).items() if name in STAGES]
    near = [node for node, _ in misspelt_stages(tree)]
    if not stages + near or path.stem in _imported_by(other for other in paths if other.suffix == ".py"):
        return None
    if not re.fullmatch(NAME_PATTERN, path.stem):
        return _bad_name(path)
    if not stages:
        return no_stage(near[0].name, _place(path, near[0]))
    hint = next(iter(difflib.get_close_matches(path.stem, stems, n=1)), None)
    hint = f"did you mean '{hint}.py'?" if hint else f"write {path.stem}.md, or infer(prompt, ctx)"
    message = f"{stages[0].name}() belongs to no task"
    return ConfigError(message, where=_place(path, stages[0]), hint=hint, code="orphan-file")


def _imported_by(paths: Iterable[Path]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found
