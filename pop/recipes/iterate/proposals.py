"""`pop iterate plan` outside of its run: what the Master Orchestrator is told, where its pipeline stands, where a proposal goes.

    pipelines/iterate-plan.json, pipeline-tasks/iterate-assess.*, iterate-decompose.*     in the root; edited ones are used as they are
    workflows/<name>/workflow.yaml                                                        the proposal; never over another one
    workflows/<name>/sample/task.md                                                       the task, where no files were named

Each installed file says that we wrote it, with the sha256 of the rest, so that what a person edited is known.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop.errors import ConfigError, UsageError, safe
from pop.models.catalogue import Catalogue
from pop.recipes.iterate.judging import glob_regex
from pop.recipes.iterate.launch import put
from pop.recipes.iterate.library import SAMPLE, WORKFLOW_FILE, WORKFLOWS, Entry, catalogue, load_role, role_names
from pop.recipes.iterate.planning import TASK_FILE
from pop.recipes.iterate.workflow import PLACEHOLDER, load_workflow
from pop.records import read_json
from pop.runs import Run
from pop.settings import Root, load_settings
from pop.store import NotAFile, contained, read_regular

PIPELINE = "iterate-plan"
FOR_ANY_TASK = "task-execution"
PACKAGED = Path(__file__).parent / "planning_tasks"
CODE: Mapping[str, str] = {
    "iterate-assess.py": "from pop.recipes.iterate.planning import assessment_problems as validate_quality\n",
    "iterate-decompose.py": (
        "from pop.recipes.iterate.planning import decomposition_problems as validate_quality\n"
        "from pop.recipes.iterate.planning import write_proposal as finalize\n"
    ),
}
MAX_TASK = 20_000  # characters
MAX_FILES = 200  # told to the model
MAX_LOOKED = 100_000
MAX_BYTES = 4_000_000
_ZEROS = b"0" * 12
_MARK = re.compile(rb"(written by pop iterate, sha256 )([0-9a-f]{12})", re.IGNORECASE)
_PASSED_OVER = frozenset({"pipeline-pending", "pipeline-current", "pipeline-complete", "node_modules", "__pycache__"})


# -- the pipeline ------------------------------------------------------------------------------------------------------


def marked(data: bytes) -> bytes:
    """A file of ours with the sha256 of itself (counted with zeros in its place) in its mark."""
    plain = _MARK.sub(rb"\g<1>" + _ZEROS, data, count=1)
    sha = hashlib.sha256(plain).hexdigest()[:12].encode()
    return _MARK.sub(rb"\g<1>" + sha, plain, count=1)


def is_ours(data: bytes) -> bool:
    """Whether it is a file as some `pop iterate plan` wrote it."""
    return _MARK.search(data) is not None and marked(data) == data


def install(root: Root) -> list[Path]:
    """Put the pipeline and its tasks into the root.

    Returns:
        Files that a person has edited; they are used as they are.

    Raises:
        ConfigError: Something that is no file stands there.
    """
    files = {root.pipeline_path(PIPELINE): (PACKAGED / f"{PIPELINE}.json").read_bytes()}
    for path in sorted(PACKAGED.glob("iterate-*.*")):
        if path.stem != PIPELINE:
            files[root.tasks / path.name] = path.read_bytes()
    for name, text in CODE.items():
        head = "# The stages of pop.recipes.iterate.planning; written by pop iterate, sha256 000000000000\n"
        files[root.tasks / name] = (head + text).encode()
    edited = []
    for path, data in files.items():
        path.parent.mkdir(exist_ok=True)
        there = _there(path)
        if there is not None and not is_ours(there):
            edited.append(path)
        elif there != marked(data):
            put(path, marked(data))
    return edited


def _there(path: Path) -> bytes | None:
    try:
        return read_regular(path, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        return None
    except NotAFile as error:
        raise ConfigError(error.message, where=path, hint="pop iterate plan wants to put a file there") from None


# -- what it is told ---------------------------------------------------------------------------------------------------


def seed_data(root: Root, task: str, globs: Iterable[str], base: Path) -> dict[str, Any]:
    """The task, the files it is about, the role library and the catalogue.

    Raises:
        UsageError: There is no task, or a glob matches nothing.
    """
    if not task.strip():
        raise UsageError("the task is empty", hint='pop iterate plan "Write a migration guide for ..."')
    if len(task) > MAX_TASK:
        hint = "say what is to be done, and name the files that tell the rest with --targets"
        raise UsageError(f"a task of {len(task):,} characters", where="TASK", hint=hint)
    paths = matching(base, list(globs))
    files = [_file(base, path) for path in paths[:MAX_FILES]]
    if not paths:
        files = [{"path": TASK_FILE, "bytes": len(task.encode()), "title": "the task above, in these words"}]
    roles = [load_role(name) for name in role_names()]
    return {
        "task": task,
        "base": str(base),
        "targets": list(globs),
        "files": files,
        "more_files": max(0, len(paths) - MAX_FILES),
        "roles": [
            {"name": one.name, "perspective": one.perspective, "responsibilities": list(one.responsibilities)}
            for one in roles
        ],
        "catalogue": [_known(entry, root) for entry in catalogue(root.path)],
    }


def matching(base: Path, globs: list[str]) -> list[str]:
    """The files below `base` that the globs name, sorted.

    Raises:
        UsageError: One of them matches nothing.
    """
    if not globs:
        return []
    regexes = {glob: glob_regex(PLACEHOLDER.sub("*", glob)) for glob in globs}
    found: dict[str, set[str]] = {glob: set() for glob in globs}
    for count, path in enumerate(_files(base)):
        if count > MAX_LOOKED:
            raise UsageError(f"more than {MAX_LOOKED:,} files in {base}", hint="name a smaller folder with --base")
        for glob, regex in regexes.items():
            if regex.fullmatch(path):
                found[glob].add(path)
    if empty := next((glob for glob in globs if not found[glob]), None):
        hint = "relative to --base (else this folder), with / and **: 'stories/**/*.md'"
        raise UsageError(f"no file matches {empty!r}", where=base, hint=hint, code="no-targets")
    return sorted(set().union(*found.values()))


def _files(base: Path) -> Iterable[str]:
    for parent, folders, names in os.walk(base):
        folders[:] = sorted(one for one in folders if one not in _PASSED_OVER and not one.startswith("."))
        below = os.path.relpath(parent, base)
        for name in sorted(names):
            if os.path.isfile(os.path.join(parent, name)):
                yield name if below == "." else f"{below}/{name}"


def _file(base: Path, path: str) -> dict[str, Any]:
    """What a model is told of a file: its first words, not its text."""
    full = base / path
    with open(full, "rb") as file:
        first = file.read(2000).decode("utf-8", "replace")
    lines = (line.strip("#=- \t\"'/*") for line in first.splitlines())
    title = next((line for line in lines if re.search(r"\w{2}", line)), "")
    return {"path": path, "bytes": full.stat().st_size, "title": safe(title, 100, one_line=True)}


def _known(entry: Entry, root: Root) -> dict[str, Any]:
    try:
        loaded = load_workflow(entry.path, root.path)
    except ConfigError:
        return {"name": entry.name, "description": "cannot be read", "iterations": []}
    names = [one.name for one in loaded.workflow.order()]
    return {"name": entry.name, "description": loaded.workflow.description, "iterations": names}


# -- a model that cannot reason ----------------------------------------------------------------------------------------


def is_embedded(root: Root, model: str) -> bool:
    """Whether nothing but the embedded engine stands behind a model's name.

    Raises:
        UnknownModel: There is no such model.
    """
    return all(entry.provider == "builtin" for entry in Catalogue(load_settings(root), os.environ).resolve(model))


def nearest(root: Root, task: str) -> Entry:
    """The workflow whose description and goals share most words with a task; where none shares any, the one for any task."""
    words = _words(task)
    scored = []
    for entry in catalogue(root.path):
        try:
            loaded = load_workflow(entry.path, root.path)
        except ConfigError:
            continue
        goals = " ".join(one.goal for one in loaded.workflow.iterations)
        names = _words(f"{entry.name} {' '.join(one.name for one in loaded.workflow.iterations)}")
        score = (
            3 * len(words & names) + 2 * len(words & _words(loaded.workflow.description)) + len(words & _words(goals))
        )
        scored.append((-score, entry.name, entry))
    best = min(scored, key=lambda one: one[:2])
    return best[2] if best[0] < 0 else next((entry for _, name, entry in scored if name == FOR_ANY_TASK), best[2])


def _words(text: str) -> set[str]:
    """Words of four letters and more, without the endings that change."""
    return {re.sub(r"(ies|ing|ed|es|s|y)$", "", word) for word in re.findall(r"[a-z]{4,}", text.lower())}


def write_start(root: Root, entry: Entry, task: str) -> Path:
    """A copy of a workflow that says that it is a start and no plan; returns its workflow.yaml."""
    text = entry.path.read_text()
    told = " ".join(safe(task, 2000).split())
    head = (
        "# A START, no plan: nobody has decomposed the task, since there is no language model to do it.\n"
        f"# It is a copy of the workflow {entry.name!r}, the nearest there is. Make it your own.\n"
        f"# Task: {told}\n"
    )
    folder, name = _free(root, f"{entry.name}-start")
    folder.mkdir(parents=True)
    for part in ("templates", SAMPLE):
        if (entry.path.parent / part).is_dir():
            shutil.copytree(entry.path.parent / part, folder / part)
    put(folder / WORKFLOW_FILE, (head + _renamed(text, name)).encode())
    return folder / WORKFLOW_FILE


# -- where a proposal goes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proposal:
    """A workflow.yaml in the root. `again`: it was written before, by an earlier call."""

    name: str
    path: Path
    targets: list[str]
    base: str
    again: bool = False

    def next_moves(self) -> list[str]:
        """What a person does with it."""
        what = " ".join(f"--targets {_quoted(glob)}" for glob in self.targets) or "--sample"
        where = f" --base {_quoted(self.base)}" if self.targets and Path(self.base) != Path.cwd() else ""
        made = f"pop iterate generate {self.name} {what}{where} --output {self.name}"
        return [f"read {self.path}", f"pop iterate check {self.name}", made]


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


def write_proposal(root: Root, run: Run) -> Proposal:
    """Put the workflow that a run made into the root, once; a workflow that is there is never overwritten.

    Raises:
        UsageError: It is no run of `pop iterate plan`, or has not made one.
    """
    seed = seed_of(run)
    try:
        made = read_json(read_regular(contained(run.path, "tasks/decompose/output.json"), max_bytes=MAX_BYTES))
        name, text = str(made["name"]), str(made["workflow"])
    except (OSError, KeyError, TypeError, NotAFile):
        hint = f"pop show {run.run_id} tells where it stands"
        raise UsageError(f"{run.run_id} has made no workflow", hint=hint, code="no-proposal") from None
    if written := _written_before(root, run.run_id):
        return Proposal(written.parent.name, written, seed["targets"], seed["base"], again=True)
    folder, name = _free(root, name)
    folder.mkdir(parents=True)
    if not seed["targets"]:
        (folder / SAMPLE).mkdir()
        put(folder / SAMPLE / TASK_FILE, seed["task"].rstrip().encode() + b"\n")
    put(folder / WORKFLOW_FILE, _renamed(text, name).encode())
    return Proposal(name, folder / WORKFLOW_FILE, seed["targets"], seed["base"])


def seed_of(run: Run) -> dict[str, Any]:
    """What the run was told.

    Raises:
        UsageError: It is no run of `pop iterate plan`.
    """
    try:
        value = read_json(read_regular(run.path / "seed.json", max_bytes=MAX_BYTES))
        if value["pipeline"] == PIPELINE:
            return {
                "task": str(value["data"]["task"]),
                "targets": list(value["data"]["targets"]),
                "base": str(value["data"]["base"]),
            }
    except (OSError, KeyError, TypeError, NotAFile):
        pass
    raise UsageError(
        f"{run.run_id} is no run of pop iterate plan", hint="pop ls names the runs", code="another-pipeline"
    )


def _written_before(root: Root, run_id: str) -> Path | None:
    line = f"# Planned by run {run_id}"
    for path in sorted((root.path / WORKFLOWS).glob(f"*/{WORKFLOW_FILE}")):
        try:
            if line in read_regular(path, max_bytes=MAX_BYTES).decode("utf-8", "replace").splitlines()[:10]:
                return path
        except (OSError, NotAFile):
            continue
    return None


def _free(root: Root, name: str) -> tuple[Path, str]:
    """A folder below workflows/ that nobody has, and its name; no workflow of the package is hidden by it."""
    taken = {entry.name for entry in catalogue(root.path)}
    for number in range(1, 1000):
        ending = "" if number == 1 else f"-{number}"
        one = f"{name[: 40 - len(ending)]}{ending}"
        folder = root.path / WORKFLOWS / one
        if one not in taken and not os.path.lexists(folder):
            return folder, one
    raise UsageError(f"999 workflows are called {name!r}", where=root.path / WORKFLOWS, hint="remove some")


def _renamed(text: str, name: str) -> str:
    """The workflow under the name of its folder."""
    text = re.sub(r"(?m)^( {2,4}name: ).*$", rf"\g<1>{name}", text, count=1)
    return re.sub(r"(?m)^(#   pop iterate check ).*$", rf"\g<1>{name}", text, count=1)
