"""The structure that docs/architecture.md promises."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

POP = Path(__file__).parent.parent / "pop"
ORDER = [
    "__init__",
    "errors",
    "records",
    "events",
    "durations",
    "tomlplaces",
    "yamlplaces",
    "settings",
    "store",
    "errorlogs",
    "confine",
    "places",
    "expression_sandbox",
    "expressions",
    "parsing",
    "schemas",
    "seedcheck",
    "steps",
    "remedies",
    "loops",
    "pipeline_values",
    "pipeline_schema",
    "pipeline_wiring",
    "pipeline",
    "moves",
    "plan",
    "reading",
    "graph",
    "models.request",
    "models.tokens",
    "models.counts",
    "models.entries",
    "models.providers",
    "models.catalogue",
    "models.extract",
    "models.providers.openai_wire",
    "models.providers.openai_errors",
    "models.providers.openai_body",
    "models.providers.openai",
    "models.providers.builtin",
    "models.providers.command",
    "models.providers.replay",
    "models.strict",
    "models.forms",
    "models.keysfile",
    "models.redaction",
    "models.keys",
    "models.prices",
    "models.calls",
    "models.spent",
    "models.answerwriter",
    "models.answers",
    "models.budgets",
    "models.circuit",
    "models.limits",
    "models.flights",
    "models.lanes",
    "models.expected",
    "models.tries",
    "models.router",
    "models.callers",
    "models.gateway",
    "models.client",
    "models.questions",
    "models.described",
    "models",
    "inputs",
    "templates",
    "templatecheck",
    "trail",
    "frontmatter",
    "tasks",
    "taskcheck",
    "replies",
    "compression",
    "control_orders",
    "context",
    "stages",
    "runner",
    "executors.process",
    "executors",
    "worker",
    "executors.local",
    "executors.forkserver",
    "seeds",
    "queue",
    "views",
    "seedreads",
    "seedtext",
    "rootcheck",
    "instances",
    "history",
    "statuses",
    "control",
    "admission",
    "refusals",
    "ledger",
    "attempts",
    "letters",
    "pipelines",
    "sets",
    "stale",
    "rerun",
    "forks",
    "gateshow",
    "gatepage",
    "gateanswers",
    "gates",
    "loopwork",
    "gatework",
    "controlwork",
    "startup",
    "waiting",
    "orders",
    "watch",
    "gatekeeper",
    "notices",
    "outbox",
    "notifier",
    "notifying",
    "webkeeper",
    "diskwork",
    "tally",
    "recipes",
    "viewwork",
    "active",
    "lineup",
    "board",
    "journal",
    "attending",
    "ends",
    "orchestrator",
    "orderdesk",
    "intake",
    "daemon",
    "askmodel",
    "recipes.wizard.library",
    "recipes.wizard.goals",
    "recipes.wizard.compose",
    "recipes.wizard.project",
    "recipes.wizard.generate",
    "recipes.wizard.answers",
    "recipes.wizard.terminal",
    "recipes.wizard.flow",
    "recipes.wizard",
    "runs",
    "largeruns",
    "display",
    "estimates",
    "outlook",
    "compare",
    "costs",
    "costsheet",
    "daycost",
    "seedform",
    "seedfields",
    "changes",
    "drops",
    "answering",
    "acts",
    "recipes.iterate.manifest",
    "recipes.iterate.rules",
    "recipes.iterate.wellformed",
    "recipes.iterate.bounded",
    "recipes.iterate.judging",
    "recipes.iterate.criteria",
    "recipes.iterate.folder",
    "recipes.iterate.library",
    "recipes.iterate.workflow",
    "recipes.iterate.targets",
    "recipes.iterate.mistakes",
    "recipes.iterate.units",
    "recipes.iterate.allocate",
    "recipes.iterate.prompts",
    "recipes.iterate.shares",
    "recipes.iterate.checklist",
    "recipes.iterate.pages",
    "recipes.iterate.writing",
    "recipes.iterate.generate",
    "recipes.iterate.agent",
    "recipes.iterate.check",
    "recipes.iterate.installing",
    "recipes.iterate.launch",
    "recipes.iterate.deliver",
    "recipes.iterate.validation",
    "recipes.iterate.planning",
    "recipes.iterate.proposals",
    "recipes.iterate.snapshots",
    "recipes.iterate.monitor",
    "recipes.iterate.alerts",
    "recipes.iterate.sights",
    "recipes.iterate.evidence",
    "recipes.iterate.feedback",
    "recipes.iterate.feedbackpage",
    "recipes.iterate.yamledit",
    "recipes.iterate.improvements",
    "recipes.iterate",
    "svg",
    "timeline",
    "gantt",
    "drawing",
    "safehtml",
    "diaries",
    "hooks",
    "health",
    "cleaning",
    "modeltest",
    "runlook",
    "steplook",
    "report",
    "runindex",
    "screen",
    "web",
    "testing",
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


def packages_of(text: str) -> set[str]:
    """The top-level packages a source imports, in whichever way, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in IMPORTERS:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value.partition(".")[0])
    return found


IMPORTERS = {"import_module", "__import__"}


@pytest.mark.parametrize(
    "text",
    ["import openai", "import a, openai.types as o", "from openai import X", "def f():\n    from openai.types import X",
     "import_module('openai')", "__import__('openai.types')"],
)  # fmt: skip
def test_every_way_of_importing_is_seen(text: str) -> None:
    """The check below is only as good as this."""
    assert "openai" in packages_of(text)


def test_only_the_gateway_side_knows_the_sdk() -> None:
    """Workers and the supervisor never import the model SDK."""
    users = [name for name, path in modules() if "openai" in packages_of(path.read_text())]
    assert users == ["models.providers.openai"]


def test_supervisor_and_workers_load_no_sdk() -> None:
    """Whatever imports whatever: a process that has loaded them does not hold the SDK."""
    code = "import sys, pop.daemon, pop.worker, pop.executors.forkserver; print('openai' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "False"
