"""Every workflow of the catalogue runs whole, offline and against a server; roles, templates and their pages agree."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from pop.commands.iterate import SUBCOMMANDS
from pop.recipes.iterate.criteria import check_text, parse, parse_one
from pop.recipes.iterate.generate import plan_workflow
from pop.recipes.iterate.library import CATALOGUE, ROLES, TEMPLATES, RoleSpec, catalogue, load_role, role_names
from pop.recipes.iterate.manifest import Manifest
from pop.recipes.iterate.rules import (
    Amount,
    Formed,
    Heading,
    Holds,
    Matches,
    Prose,
    Rule,
    Schema,
    Size,
    read_rule,
)
from pop.recipes.iterate.targets import Inputs
from pop.recipes.iterate.workflow import AgentSpec, Iteration, Loaded, load_workflow
from tests.fake_openai import FakeOpenAI, Fault, Served, _completion, obey
from tests.living import LivingRoot
from tests.test_cli import REPOSITORY, pop
from tests.test_docs import DOCS, rows_of, section

NAMES = sorted(entry.name for entry in catalogue(None))
THIRTEEN = {
    "tech-lead", "qa-lead", "sre", "tech-writer", "architect", "data-architect", "developer", "product-analyst",
    "security-analyst", "data-scientist", "frontend-developer", "performance-engineer", "devops",
}  # fmt: skip
# A line for each pattern that a criterion of the catalogue asks for, as a colleague would write it.
LINES = {
    r"^[-*] +\**AC-1\b": "- **AC-1** Given a tool that is free, When a member reserves it, Then nobody else can.",
    r"AC-\d": "This is about AC-1.",
    r"^\|\W*T-1\b": "| T-1 | AC-1 | unit | nothing lent | lend twice | the second one is refused |",
    r"\b(LOW|MEDIUM|HIGH|CRITICAL)\b": "The worst of it is HIGH.",
    r"^\|\W*S-1\b": "| S-1 | HIGH | somebody reserves in another's name | check the session | T-1 |",
    r"^\|\W*P-1\b": "| P-1 | the counter | nothing | two requests count as two |",
    r"\bP-1\b": "It begins with P-1.",
    r"^```": "```python\nprint(1)\n```",
    r"^### (CRITICAL|HIGH|MEDIUM|LOW): |^No findings\.": "### HIGH: the order of columns comes from outside",
    r"\bSEV[123]\b": "SEV1, since nobody can pay.",
    r"^\|.*\d\d:\d\d": "| 13:05 | the provider answers in 2.9 s | metrics.csv |",
    r"\bA-1\b": "| A-1 | no call to the provider inside a transaction | prevent | checkout | a test holds it |",
    r"^## Example: ": "## Example: the simplest one",
    r"\b(PUBLISH|REWRITE)\b": "PUBLISH WITH CHANGES",
    r"^\|\W*C-1\b": "| C-1 | it is a generator | it is a generator | holds |",
}
FILLER = (
    "What stands here rests on the material alone, and names the place it was read in, so that a reader can look there."
)


class Writer(FakeOpenAI):
    """A server that writes what it is asked for: every rule in the question has its line in the answer.

    `spoilt` holds paths whose first version lacks its headings.
    """

    def __init__(self, schemas: Path) -> None:
        super().__init__()
        self.schemas = schemas
        self.asked: Counter[str] = Counter()
        self.prompts: list[str] = []
        self.spoilt: set[str] = set()
        self._writing = threading.Lock()

    def answer(self, body: dict[str, Any], key: str) -> tuple[Fault | None, bytes]:
        question = next(m["content"] for m in body["messages"] if m["role"] == "user")
        path = re.findall(r"^Write the file `(.+?)` \(", question, flags=re.MULTILINE)[-1]
        with self._writing:
            first = not self.asked[path]
            self.asked[path] += 1
            self.bodies.append(body)
            self.prompts.append("\n".join(str(m["content"]) for m in body["messages"]))
        text = self.write(path, question)
        if first and path in self.spoilt:
            text = re.sub(r"^## .*$", "", text, flags=re.MULTILINE)
        with self._writing:
            self.served.append(Served(0.0, path, text, key))
        return None, json.dumps(_completion(body, text, None)).encode()

    def write(self, path: str, question: str) -> str:
        """A file that keeps to the criteria it is told."""
        rules = [
            rule
            for line in re.findall(r"^- (`.*)$", question.rpartition("\nWrite the file")[2], flags=re.M)
            for rule in parse_one(line).rules
        ]
        for rule in rules:
            if isinstance(rule, Schema):
                return json.dumps(self._sample(json.loads((self.schemas / rule.path).read_text())))
        lines = [f"# {path}", "", FILLER, ""]
        for rule in rules:
            if isinstance(rule, Heading):
                lines += [f"{'#' * (rule.level or 2)} {rule.words}", "", f"{FILLER} This is {rule.words}.", ""]
        for rule in rules:
            if isinstance(rule, Matches) and rule.wanted:
                lines += [LINES[rule.pattern], ""]
            if isinstance(rule, Holds) and rule.wanted:
                lines += [", ".join(rule.words) + ".", ""]
        text = "\n".join(lines)
        least = max([rule.least or 0 for rule in rules if isinstance(rule, Size)], default=0)
        while len(text.encode()) < least:
            text += f"\n{FILLER}"
        return text

    def _sample(self, schema: dict[str, Any]) -> Any:
        value = obey(schema, "a plan")
        patterns = {"id": {"findings": "F-1", "actions": "A-1"}}
        for name, inner in value.items():
            for one in inner if isinstance(inner, list) else []:
                if isinstance(one, dict):
                    one["id"] = patterns["id"][name]
        return value


@pytest.fixture
def writer(request: pytest.FixtureRequest) -> Iterator[Writer]:
    found = Writer(CATALOGUE / request.node.callspec.params["name"])
    yield found
    found.close()


def settings_for(server: FakeOpenAI) -> str:
    return f"""
[models]
default = "fake"
[models.fake]
provider = "openai"
base_url = "{server.base_url}"
model = "fake-1"
structured = "prompt"
[concurrency]
workers = 8
[daemon]
durability = "fast"
"""


def manifests_of(folder: Path) -> list[Manifest]:
    return [Manifest.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("*/manifest.json"))]


def planned(folder: Path) -> list[Path]:
    """Every file that agents are to make."""
    return [
        folder / manifest.iteration / one.path
        for manifest in manifests_of(folder)
        for agent in manifest.agents
        for one in agent.deliverables
    ]


def ready(make_living: Callable[..., LivingRoot], server: FakeOpenAI) -> LivingRoot:
    living = make_living(
        pipeline={"tasks": ["idle"]},
        tasks={"idle.py": "def infer(prompt, ctx):\n    return 1\n"},
        settings=settings_for(server),
    )
    living.up()
    return living


def in_one_round(folder: Path) -> None:
    """A manifest may be edited: the embedded engine says the same again in a second round."""
    for path in folder.glob("*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"rounds": 1}))


# How many calls the sample takes: one for each deliverable.
CALLS = {
    "user-story-refinement": 5 * 10 + 2,
    "task-execution": 2 * 6,
    "code-review": 2 + 3 * 5 + 2,
    "incident-response": 1 + 3 + 1 + 3 + 2,
    "documentation": 5 + 1 + 10 + 5 + 5 + 2,
}


OFFLINE = {
    "user-story-refinement": "stories/US-10[13].md",
    "documentation": "peps/pep-0[26]??.rst",
}  # a part of the sample


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_runs_whole(name: str, writer: Writer, make_living: Callable[..., LivingRoot]) -> None:
    """By the embedded engine, which writes every file and meets few criteria; by a server that writes what it is asked."""
    living = ready(make_living, writer)
    offline, folder = living.path / "offline", living.path / "work"

    files = generated(living, name, offline, *(["--targets", OFFLINE[name]] if name in OFFLINE else []))
    in_one_round(offline)
    ran = pop("iterate", "run", offline, "-m", "builtin", root=living.path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert all(path.read_text().strip() for path in files) and writer.total == 0
    judged = pop("iterate", "validate", offline, "--json", root=living.path)
    unmet = [one for one in findings(json.loads(judged.stdout)) if one["status"] == "unmet"]
    assert judged.returncode == 4 and unmet and all(one["evidence"] for one in unmet)
    assert not [one for one in unmet if one["rule"] == "exists"]

    files = generated(living, name, folder)
    assert len(files) == CALLS[name]
    assert {agent.risk for manifest in manifests_of(folder) for agent in manifest.agents} == {"LOW"}
    writer.spoilt = {manifests_of(folder)[0].agents[0].deliverables[0].path}
    ran = pop("iterate", "run", folder, root=living.path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    judged = pop("iterate", "validate", folder, "--allow-unchecked", "--json", root=living.path)
    found = findings(json.loads(judged.stdout))
    assert judged.returncode == 0, [one for one in found if one["status"] == "unmet"]
    assert {one["status"] for one in found} == {"met", "unchecked"}
    assert {one["path"] for one in found if one["status"] == "met"} == {
        str(path.relative_to(folder)).partition("/")[2] for path in files
    }
    asked_twice = {path for path, times in writer.asked.items() if times > 1}
    assert asked_twice == writer.spoilt and writer.total == CALLS[name] + 1


def generated(living: LivingRoot, name: str, folder: Path, *options: str) -> list[Path]:
    """Every file that agents are to make."""
    made = pop("iterate", "generate", name, "--sample", "--output", folder, *options, root=living.path)
    assert made.returncode == 0, made.stdout + made.stderr
    return planned(folder)


def findings(report: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    waiting: list[Any] = [report]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "status" in value and "rule" in value:
                found.append(value)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found


@pytest.mark.parametrize("name", ["code-review"])
def test_a_review_of_a_real_package(name: str, writer: Writer, make_living: Callable[..., LivingRoot]) -> None:
    """The wizard of this repository: every module before the three who look at one, all of it before the two who look at the whole."""
    living = ready(make_living, writer)
    folder = living.path / "review"
    base = REPOSITORY / "pop" / "recipes" / "wizard"
    given = ("--base", base, "--targets", "*.py", "--output", folder, "--allow-unchecked")
    ran = pop("iterate", "orchestrate", name, *given, root=living.path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    modules = {path.name for path in base.glob("*.py")}
    review = Manifest.model_validate_json((folder / "review" / "manifest.json").read_bytes())
    by_role = {agent.role: set[str]() for agent in review.agents}
    for agent in review.agents:
        by_role[agent.role] |= {target for one in agent.deliverables for target in one.targets}
    assert by_role["architect"] == by_role["security-analyst"] == modules
    assert by_role["developer"] == by_role["qa-lead"] == modules - {"__init__.py"}
    assert {path.stem for path in (folder / "review" / "developer").glob("*.md")} == modules - {"__init__.py"}
    asked = next(text for text in writer.prompts if "Write the file `developer/flow.py.md`" in text)
    assert (base / "flow.py").read_text()[:200] in asked and (base / "terminal.py").read_text()[:200] not in asked
    report = next(text for text in writer.prompts if "Write the file `REPORT.md`" in text)
    assert all(f'<document id="review/developer/{name}.md"' in report for name in modules - {"__init__.py"})
    assert json.loads((folder / "report" / "findings.json").read_text())["findings"]


# -- the library and the catalogue, without running anything -----------------------------------------------------------


def test_the_thirteen_roles_are_there() -> None:
    """By the names that the pages use, and no others."""
    assert set(role_names()) == THIRTEEN == {path.stem for path in ROLES.glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(THIRTEEN))
def test_a_role_is_well_made(name: str) -> None:
    """It speaks in the second person, and says enough under every heading to tell it from the others."""
    role = load_role(name)
    assert len(re.findall(r"\byou\b", role.perspective, flags=re.IGNORECASE)) >= 2
    assert 40 <= len(role.perspective.split()) <= 90
    assert len(role.responsibilities) >= 4 and len(role.capabilities) >= 3 and len(role.constraints) >= 3
    for line in (*role.responsibilities, *role.capabilities, *role.constraints):
        assert 3 <= len(line.split()) <= 32 and line.isascii() and "  " not in line
    assert role.model is None and role.output_format == "markdown"
    assert 100_000 <= role.token_budget <= 200_000 and 4 <= role.complexity_threshold <= 16


def test_no_two_roles_share_a_line() -> None:
    """Each has its own words."""
    seen: dict[str, str] = {}
    for name in THIRTEEN:
        role = load_role(name)
        for line in (role.perspective, *role.responsibilities, *role.capabilities, *role.constraints):
            assert seen.setdefault(line, name) == name


def test_the_page_of_roles_says_what_the_files_say() -> None:
    """docs/iterate-roles.md: budget, threshold and whether there is a template; every key, with its default."""
    page = (DOCS / "iterate-roles.md").read_text()
    rows = rows_of(page.partition("## What a role holds")[0])
    assert set(rows) == THIRTEEN
    for name, (_, budget, threshold, template) in rows.items():
        role = load_role(name)
        assert (budget, threshold) == (str(role.token_budget), f"{role.complexity_threshold:g}"), name
        assert (template == "yes") == (TEMPLATES / f"{name}.md.j2").is_file(), name
    assert set(rows_of(section("iterate-roles.md", "What a role holds"))) == set(RoleSpec.model_fields)


def deliverables_of(loaded: Loaded) -> list[tuple[str, str, str, str]]:
    return [
        (one.name, ", ".join(one.dependencies), agent.role, ", ".join(f"`{path}`" for path in agent.deliverables))
        for one in loaded.workflow.iterations
        for agent in one.agents
    ]


def test_the_catalogue_holds_the_five() -> None:
    """Under the names of their folders, each with its page, its templates and its sample."""
    assert NAMES == ["code-review", "documentation", "incident-response", "task-execution", "user-story-refinement"]
    for name in NAMES:
        folder = CATALOGUE / name
        assert load_workflow(name).workflow.name == name
        assert list((folder / "templates").glob("*.md.j2")) and any((folder / "sample").rglob("*.*"))
        assert f"# {name}\n" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_the_catalogue_says_what_the_workflows_say(name: str) -> None:
    """docs/iterate-catalogue.md: every agent of every iteration, in order; the workflow's own page names its deliverables."""
    found = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in section("iterate-catalogue.md", name).splitlines()
        if line.startswith("| `")
    ]
    wanted = deliverables_of(load_workflow(name))
    assert [(it.strip("`"), after, role, made) for it, after, role, made in found] == wanted
    page = (CATALOGUE / name / "README.md").read_text()
    for *_, role, made in wanted:
        assert f"| {role} |" in page, role
        for path in re.findall(r"`([^`]+)`", made):
            assert re.sub(r"\{[a-z]+_id\}|\{incident\}", "<id>", path).replace("{", "<").replace("}", ">") in page, path


@pytest.mark.parametrize("name", NAMES)
def test_criteria_are_rules_and_a_little_prose(name: str) -> None:
    """Every deliverable exists and is well-formed by rule; each iteration has an honest line or two that no program can check."""
    for iteration in load_workflow(name).workflow.iterations:
        criteria = [parse_one(line) for line in iteration.completion_criteria]
        prose = [one for one in criteria if not one.paths]
        assert 1 <= len(prose) <= 2 and all(isinstance(rule, Prose) for one in prose for rule in one.rules)
        rules = {
            path: [rule for one in criteria if path in one.paths for rule in one.rules]
            for one in criteria
            for path in one.paths
        }
        assert set(rules) == {path for agent in iteration.agents for path in agent.deliverables}
        for path, found in rules.items():
            assert any(isinstance(rule, Formed) for rule in found), path
            told = " ".join(agent.instructions or "" for agent in iteration.agents if path in agent.deliverables)
            for rule in found:
                assert not isinstance(rule, Heading) or rule.words in told + reviewer(name), (path, rule.words)
                assert not isinstance(rule, Amount) or rule.unit == "words"


def reviewer(name: str) -> str:
    return "".join(path.read_text() for path in (CATALOGUE / name / "templates").glob("*.j2"))


def test_every_pattern_of_the_catalogue_has_a_line_that_fits() -> None:
    """What the server of these tests writes would be accepted, so the patterns can be met."""
    for name in NAMES:
        for iteration in load_workflow(name).workflow.iterations:
            for rule in (rule for line in iteration.completion_criteria for rule in parse_one(line).rules):
                if isinstance(rule, Matches) and rule.wanted:
                    assert re.search(rule.pattern, LINES[rule.pattern], flags=rule.flags), rule.text


def test_the_stories_are_ten_and_real() -> None:
    """Ten different ids, four epics or more, and enough text to work on."""
    stories = [path.read_text() for path in (CATALOGUE / "user-story-refinement" / "sample" / "stories").glob("*.md")]
    assert len({re.search(r"^story_id: (.+)$", text, flags=re.MULTILINE)[1] for text in stories}) == len(stories) == 10  # type: ignore[index]
    assert len({re.search(r"^epic: (.+)$", text, flags=re.MULTILINE)[1] for text in stories}) >= 4  # type: ignore[index]
    assert all(len(text.split()) >= 100 for text in stories)


def test_the_peps_are_in_the_public_domain() -> None:
    """Each says so itself, and the page says where they are from."""
    peps = sorted((CATALOGUE / "documentation" / "sample").rglob("*.rst"))
    assert len(peps) == 5 and all("placed in the public domain" in path.read_text() for path in peps)
    assert "https://github.com/python/peps" in (CATALOGUE / "documentation" / "README.md").read_text()


def test_the_sample_package_works(tmp_path: Path) -> None:
    """linkbox can be imported and used; its faults are not that it does not run."""
    import subprocess
    import sys

    shutil.copytree(CATALOGUE / "code-review" / "sample", tmp_path / "sample")
    code = """
import pathlib
from linkbox.exchange import export, restore
from linkbox.search import search
from linkbox.store import Store
store = Store(pathlib.Path("box.db"))
store.add("https://peps.python.org/pep-0020/", "The Zen of Python", "tim", ["zen", "python"])
store.add("https://peps.python.org/pep-0008/", "Style Guide", "guido", ["style"])
print([link.title for link in search(store, "zen")])
print(restore(Store(pathlib.Path("other.db")), export(store, pathlib.Path("."), "all"), "tim"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "sample", capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["['The Zen of Python']", "2"], done.stderr


def blocks(page: str) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", blocks("iterate-patterns.md"))
def test_a_pattern_on_the_page_is_a_workflow(block: str, tmp_path: Path) -> None:
    """docs/iterate-patterns.md promises that every block is accepted; files of the right names can be allocated by it."""
    inner = "".join(f"    {line}\n" for line in block.splitlines())
    head = "workflow:\n  name: pattern\n  description: A pattern.\n  iterations:\n"
    (tmp_path / "workflow.yaml").write_text(head + inner)
    base = tmp_path / "base"
    for path in ("stories/US-1.md", "stories/US-2.md", "tasks/EX-1.md", "specs/tides.md", "src/waves.py"):
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(f"---\nepic: lending\nstory_id: {Path(path).stem}\n---\nSomething to work on.\n")
    loaded = load_workflow(tmp_path / "workflow.yaml")
    plan = plan_workflow(loaded, Inputs(base), tmp_path / "out")
    assert [manifest.iteration for manifest in plan.manifests] and not plan.notices
    for iteration in loaded.workflow.iterations:
        assert parse(plan.files[f"{iteration.name}/COMPLETION_CRITERIA.md"].decode())


def test_the_page_of_the_framework_knows_every_key_and_command() -> None:
    """docs/iterate.md: a row for each key of an iteration and of an agent, with its default, and for each command."""
    keys = rows_of(section("iterate.md", "The workflow"))
    assert list(keys) == [*Iteration.model_fields, *(name for name in AgentSpec.model_fields)]
    for model in (Iteration, AgentSpec):
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            if field.is_required():
                assert keys[name][-1] == "needed", name
            elif isinstance(default, (int, float, str)):
                assert keys[name][-1].strip("`") == (default if isinstance(default, str) else f"{default:g}"), name
    commands = [
        row.split("`")[1].split() for row in section("iterate.md", "The commands").splitlines() if row[:3] == "| `"
    ]
    assert [words[2] for words in commands] == list(SUBCOMMANDS)


def test_every_rule_on_the_page_is_one() -> None:
    """docs/iterate.md, below Criteria: nothing in the first column is prose to the reader of criteria, and none is missing."""
    found: set[str] = set()
    for cell in re.findall(r"^\| (`.+?) \| ", section("iterate.md", "Criteria"), flags=re.MULTILINE):
        for double, single in re.findall(r"`` ?(.+?) ?``|`([^`]+)`", cell):
            rules = read_rule(double or single)
            assert rules and not any(isinstance(rule, Prose) for rule in rules), cell
            found |= {type(rule).__name__ for rule in rules}
    assert found == {kind.__name__ for kind in get_args(Rule)} - {"Prose"}


def test_every_page_is_reachable() -> None:
    """From the framework's page to the three others, and back."""
    page = (DOCS / "iterate.md").read_text()
    for other in ("iterate-patterns.md", "iterate-catalogue.md", "iterate-roles.md"):
        assert f"({other})" in page


def test_a_text_of_the_writer_meets_its_criteria() -> None:
    """The server of these tests keeps to `check_text`, the function that agents are held to."""
    line = '`a.md` (exists, >600 B, markdown, has "## In short", matches /^\\|\\W*T-1\\b/, contains "UTC")'
    server = Writer(CATALOGUE)
    try:
        text = server.write("a.md", f"x\nWrite the file `a.md` (markdown).\n\nA program holds it to this:\n- {line}")
    finally:
        server.close()
    assert {one.status for one in check_text([parse_one(line)], "a.md", text)} == {"met"}
