"""The structure that docs/architecture.md promises."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

POP = Path(__file__).parent.parent / "pop"
ORDER = [
    "__init__",
    "errors",
    "records",
    "events",
    "tomlplaces",
    "settings",
    "store",
    "confine",
    "places",
    "expressions",
    "steps",
    "pipeline_schema",
    "pipeline_values",
    "pipeline",
    "plan",
    "graph",
    "models.request",
    "models.providers",
    "models.catalogue",
    "models.extract",
    "models.providers.openai",
    "models.providers.builtin",
    "models.answers",
    "models.prices",
    "models.gateway",
    "models.client",
    "models",
    "inputs",
    "templates",
    "templatecheck",
    "parsing",
    "trail",
    "frontmatter",
    "schemas",
    "tasks",
    "taskcheck",
    "context",
    "stages",
    "runner",
    "executors.process",
    "executors",
    "worker",
    "executors.local",
    "executors.forkserver",
    "queue",
    "rootcheck",
    "history",
    "admission",
    "ledger",
    "attempts",
    "letters",
    "pipelines",
    "orders",
    "watch",
    "gatekeeper",
    "diskwork",
    "orchestrator",
    "intake",
    "daemon",
    "runs",
    "display",
    "commands",
    "cli",
    "__main__",
]
FORBIDDEN = {"utils", "helpers", "common", "base", "manager", "engine"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(POP.rglob("*.py")):
        parts = path.relative_to(POP).with_suffix("").parts
        if "starters" not in parts:
            yield ".".join(parts).removesuffix(".__init__") if parts != ("__init__",) else "__init__", path


def place_of(name: str) -> int:
    """The place of a module, or of its family, in the reading order."""
    while name not in ORDER and "." in name:
        name = name.rpartition(".")[0]
    return ORDER.index(name)


def imports_of(path: Path) -> Iterator[str]:
    """Modules of pop that a file imports, anywhere in it; imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text())
    checked_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pop") and id(node) not in checked_only:
            base = (node.module or "").removeprefix("pop").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found = (POP / f"{inner.replace('.', '/')}.py").exists() or (POP / inner.replace(".", "/")).is_dir()
                yield inner if found else base or "__init__"


def test_a_module_imports_only_what_stands_before_it() -> None:
    """Deferred imports inside functions count too, so there are no cycles behind anybody's back."""
    wrong = []
    for name, path in modules():
        for other in imports_of(path):
            same_family = place_of(name) == place_of(other)
            if not same_family and place_of(other) > place_of(name):
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_every_module_has_its_place() -> None:
    """A new module is added to the list, and so to the documentation."""
    for name, _ in modules():
        place_of(name)


def test_no_module_has_a_name_that_says_nothing() -> None:
    """Such modules gather what belongs elsewhere."""
    assert not [name for name, _ in modules() if name.rpartition(".")[2] in FORBIDDEN]


def test_only_the_gateway_side_knows_the_sdk() -> None:
    """Workers and the supervisor never import the model SDK."""
    users = [name for name, path in modules() if "import openai" in path.read_text()]
    assert users == ["models.providers.openai"]
