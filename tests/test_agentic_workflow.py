"""The agentic workflow: its parts, and whole runs of a scripted model through the daemon's own path."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pop.commands.init import templates
from pop.commands.schema import schemas
from pop.errors import AttemptFailed, ConfigError
from pop.recipes.agentic_records import ROLES
from pop.recipes.agentic_workflow import view
from pop.safehtml import markdown
from pop.views import VIEWS, BrokenView, known_views, load_view
from tests.living import LivingRoot
from tests.test_cli import REPOSITORY, pop

TEMPLATE = REPOSITORY / "pop" / "starters" / "agentic-workflow"
TASKS = TEMPLATE / "pipeline-tasks"
PROMPTS = {
    "step1_initial_planner_prompt_template": "planner",
    "step2_plan_validation_validator_prompt_template": "validator",
    "step3_plan_revision_planner_prompt_template": "planner",
    "step4_implementation_programmer_prompt_template": "programmer",
    "step5a_two_level_validation_agent_prompt_template": "validator",
    "step5b_two_level_standardization_validation_agent_prompt_template": "validator",
    "step6_code_refinement_programmer_prompt_template": "programmer",
}
HELPERS = ("checks", "workflow", "reviews", "plans", "verdict", "review-needed", "context", "wording", "scripted_model")


@pytest.fixture(scope="module")
def helpers() -> Iterator[Callable[[str], Any]]:
    """The template's modules, as its tasks import them."""
    wrote, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    folders = [str(TASKS), str(TEMPLATE / "examples" / "semver")]
    sys.path[:0] = folders
    yield importlib.import_module
    for folder in folders:
        sys.path.remove(folder)
    for name in HELPERS:
        sys.modules.pop(name, None)
    sys.dont_write_bytecode = wrote


# -- the template ------------------------------------------------------------------------------------------------------


def test_the_template_has_no_mistake(tmp_path: Path) -> None:
    """What `pop init` lays out passes `pop check` with its example, and says how to try it."""
    made = pop("init", "--template", "agentic-workflow", tmp_path / "demo")
    assert made.stdout.strip().endswith("pop run examples/semver")
    checked = pop("check", "examples/semver", root=tmp_path / "demo", cwd=tmp_path / "demo")
    assert checked.returncode == 0, checked.stdout


def test_the_prompts_have_the_names_of_the_design() -> None:
    """Each with a schema, the agent it is written for, and that agent's model; each of the three has a role."""
    assert {path.stem for path in TASKS.glob("*.md")} == set(PROMPTS)
    for stem, agent in PROMPTS.items():
        text = (TASKS / f"{stem}.md").read_text()
        assert f"{{# agent: {agent} #}}" in text and f"model: {agent}\n" in text
        assert (TASKS / f"{stem}.schema.json").is_file()
    assert {path.stem for path in (TASKS / "roles").iterdir()} == set(PROMPTS.values())
    index = json.loads((TASKS / "index.json").read_text())
    told = {index[name]: role.agent for name, role in ROLES.items() if role.template}
    assert told == PROMPTS and all(ROLES[name].template == f"{stem}.md" for name, stem in index.items())


def test_a_wrong_agent_is_an_error(helpers: Callable[[str], Any]) -> None:
    """As is a step without one, wherever it stands in the pipeline; the template's own pipeline has none."""
    workflow = helpers("workflow")
    document = json.loads((TEMPLATE / "pipeline.json").read_text())
    workflow.check_all_agents(TASKS, document)
    wrong = json.loads(json.dumps(document).replace('"refine-code", "with": {"agent": "programmer"}', '"refine-code"'))
    with pytest.raises(
        AttemptFailed, match="'refine-code' is given to no agent, but step6_.* is written for the programmer"
    ):
        workflow.check_all_agents(TASKS, wrong)
    with pytest.raises(AttemptFailed, match="'plan' is given to the agent 'validator'") as caught:
        workflow.check_all_agents(TASKS, {"tasks": [{"task": "plan", "with": {"agent": "validator"}}]})
    assert caught.value.error_class == "bad_input" and '{"agent": "planner"}' in str(caught.value.hint)


# -- the tools ---------------------------------------------------------------------------------------------------------


def files(module: str, test: str = "def test_a() -> None:\n    assert True\n") -> list[dict[str, str]]:
    return [{"path": "module.py", "content": module}, {"path": "tests/test_module.py", "content": test}]


Check = Callable[..., dict[str, Any]]


@pytest.fixture
def check(helpers: Callable[[str], Any], tmp_path: Path) -> Check:
    """Runs the tools; reports by tool."""

    def checked(given: list[dict[str, str]], **options: Any) -> dict[str, Any]:
        reports = helpers("checks").check(given, tmp_path / f"room{time.monotonic_ns()}", **options)
        return {report["tool"]: report for report in reports}

    return checked


def places(report: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [(one["file"], one["line"], one["code"]) for one in report["findings"]]


def test_good_files_pass_every_tool(check: Check) -> None:
    """And the summary says how many tests that were."""
    reports = check(files('"""A."""\n'))
    assert all(report["passed"] and not report["findings"] for report in reports.values())
    assert reports["pytest"]["summary"] == "1 of 1 tests passed"


def test_findings_name_file_and_line(check: Check) -> None:
    """A syntax error, an unused import, a failing and a skipped test."""
    broken = check(files("x = 1\ndef f(:\n"))
    assert places(broken["compile"]) == [("module.py", 2, "syntax")]
    assert not broken["ruff"]["passed"] and not broken["pytest"]["passed"]
    assert "not run" in broken["pytest"]["summary"]
    assert places(check(files("import os\n"))["ruff"]) == [("module.py", 1, "F401")]
    test = "import pytest\n\n\ndef test_a() -> None:\n    assert 1 == 2\n\n\n@pytest.mark.skip\ndef test_b() -> None:\n    pass\n"
    found = check(files("x = 1\n", test))["pytest"]
    assert places(found) == [("tests/test_module.py", 5, "failure"), ("tests/test_module.py", 8, "skipped")]
    assert "assert 1 == 2" in found["findings"][0]["message"]


def test_settings_in_the_files_do_not_count(check: Check, helpers: Callable[[str], Any]) -> None:
    """They are refused; so are names that climb out, hide a module, or change how tests run."""
    checks = helpers("checks")
    for path in ("../x.py", "/x.py", "a//b.py", "conftest.py", "tests/conftest.py", "ruff.toml", "pyproject.toml", "json.py",
                 "json/__init__.py", "tests/random.py", "pytest.py", ".x.py", "a b.py", "x.pyc", "-m.py", ""):  # fmt: skip
        assert checks.path_problem(path), path
    for path in (
        "semver.py",
        "src/semver/__init__.py",
        "tests/test_semver.py",
        "README.md",
        "data.json",
        "pkg/types.py",
    ):
        assert checks.path_problem(path) is None, path
    assert any("given twice" in one for one in checks.file_problems([*files(""), *files("")]))
    assert any("no tests" in one for one in checks.file_problems(files("")[:1]))


def test_what_tests_start_is_bounded_and_ended(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time, processes, memory, output; a module that ends the interpreter proves nothing."""
    head = "import os\nimport subprocess\nimport time\n\n\ndef test_a() -> None:\n    "
    slow = check(files("", head + "time.sleep(99)\n"), seconds=1.5)["pytest"]
    assert "not done after 1.5 s" in slow["findings"][0]["message"] and slow["seconds"] < 15
    many = check(files("", head + "[subprocess.Popen(['sleep', '98.7']) for _ in range(60)]\n    time.sleep(9)\n"))[
        "pytest"
    ]
    assert "more than 32 processes" in many["findings"][0]["message"]
    until = time.monotonic() + 5.0  # what was killed is there until the kernel has come to it
    while "98.7" in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert (
        "MemoryError"
        in check(files("", head + "bytearray(1 << 30)\n"), memory_mb=300)["pytest"]["findings"][0]["message"]
    )
    assert not check(files("", head + "os.write(1, b'x' * (1 << 25))\n    os.write(1, b'x')\n"))["pytest"]["passed"]
    assert not check(
        files("import os\n\nos._exit(0)\n", "import module\n\n\ndef test_a() -> None:\n    assert module\n")
    )["pytest"]["passed"]


def test_tests_see_no_key_and_no_network(
    check: Check, helpers: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel can close TCP."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    test = "import os\n\n\ndef test_a() -> None:\n    assert 'sk-secret' not in os.environ.values()\n"
    if helpers("checks").network() == "closed (TCP)":
        test += "\n\ndef test_b() -> None:\n    import socket\n\n    try:\n        socket.create_connection(('127.0.0.1', 9))\n"
        test += "    except PermissionError:\n        return\n    raise AssertionError\n"
    assert check(files("", test))["pytest"]["passed"]


def test_a_missing_tool_says_what_to_install(check: Check, tmp_path: Path) -> None:
    """As a finding of that tool; the others are run."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\ncase "$*" in *find_spec*) echo ruff pytest;; *) exec {sys.executable} "$@";; esac\n')
    bare.chmod(0o755)
    reports = check(files(""), python=str(bare))
    assert reports["compile"]["passed"] and not reports["pytest"]["passed"]
    assert f"{bare} -m pip install pytest" in reports["pytest"]["findings"][0]["message"]


# -- reviews and the verdict -------------------------------------------------------------------------------------------


def test_scores_and_issues_must_agree(helpers: Callable[[str], Any]) -> None:
    """And name files and lines that are there."""
    reviews = helpers("reviews")
    issue = {
        "severity": "critical",
        "concerns": "alignment",
        "file": "a.py",
        "line": 9,
        "issue": "x",
        "suggestion": "y",
    }
    found = list(reviews.review_problems({"validation_scores": {"alignment_score": 9.5}, "issues": [issue]}))
    assert len(found) == 1 and "beside a critical issue" in found[0]
    found = list(reviews.review_problems({"validation_scores": {"alignment_score": 8.5}, "issues": []}))
    assert len(found) == 1 and "no issue explains 8.5" in found[0]
    low = {"validation_scores": {"alignment_score": 5.0}, "issues": [issue]}
    assert list(reviews.review_problems(low)) == []
    (found_line,) = reviews.review_problems(low, [{"path": "a.py", "content": "x\n"}])
    assert "has only 2 lines" in found_line
    (found_file,) = reviews.review_problems(low, [{"path": "b.py", "content": "x\n"}])
    assert "no file 'a.py'" in found_file


def verdict_of(helpers: Callable[[str], Any], passed: bool, issues: list[str]) -> Any:
    tools: list[Any] = [{"tool": name, "passed": True, "summary": "", "findings": []} for name in ("compile", "ruff")]
    finding = {"file": "t.py", "line": 3, "code": "failure", "message": "m"}
    tools.append({"tool": "pytest", "passed": passed, "summary": "s", "findings": [] if passed else [finding]})
    listed = [
        {"severity": severity, "concerns": "alignment", "file": None, "line": None, "issue": "i", "suggestion": "s"}
        for severity in issues
    ]
    inputs = {
        "tools": {"passed": passed, "tools": tools},
        "validate-code": {
            "validation_scores": {"alignment_score": 9.5, "compatibility_score": 9.0}, "issues": listed, "summary": "",
        },
        "validate-standards": {"validation_scores": {"standardization_score": 9.0}, "issues": [], "summary": ""},
    }  # fmt: skip
    return helpers("verdict").infer(None, SimpleNamespace(inputs=inputs, config={}, letter=SimpleNamespace(changes=[])))


def test_tools_override_the_models_scores(helpers: Callable[[str], Any]) -> None:
    """A failing test caps what it speaks of, is critical, and no praise accepts the code."""
    found = verdict_of(helpers, passed=False, issues=[])
    assert not found["accepted"] and found["critical"] == 1
    assert found["validation_scores"] == {
        "alignment_score": 6.0,
        "compatibility_score": 6.0,
        "standardization_score": 9.0,
    }
    assert [one["model"] for one in found["overridden"]] == [9.5, 9.0]
    assert found["findings"][0] | {"id": "F1", "source": "pytest", "file": "t.py", "line": 3} == found["findings"][0]


def test_two_minor_issues_are_accepted_and_three_are_not(helpers: Callable[[str], Any]) -> None:
    """Nor is one critical one."""
    assert verdict_of(helpers, True, ["minor", "minor"])["accepted"]
    assert not verdict_of(helpers, True, ["minor", "minor", "minor"])["accepted"]
    assert not verdict_of(helpers, True, ["critical"])["accepted"]


@pytest.mark.parametrize(
    ("lap", "passed", "review", "asked"),
    [
        (1, False, "when-needed", True), (1, True, "when-needed", True), (2, True, "when-needed", True),
        (2, False, "when-needed", False), (2, False, "always", True), (1, True, "never", False),
    ],
)  # fmt: skip
def test_a_person_reviews_code_where_there_is_something_to_decide(
    helpers: Callable[[str], Any], lap: int, passed: bool, review: str, asked: bool
) -> None:
    """Before the first refinement, later when the tools pass, or as the seed has it; never who has just spoken."""
    verdict = verdict_of(helpers, passed, ["critical"])
    for words, expected in ([], asked), (["say hello"], False):
        ctx = SimpleNamespace(
            inputs={"verdict": verdict, "context": {"code_review": review}},
            lap=lap,
            letter=SimpleNamespace(changes=words),
        )
        assert helpers("review-needed").infer(None, ctx)["ask"] is expected


# -- views -------------------------------------------------------------------------------------------------------------


def test_views_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown one is told with the nearest name, a broken one with its entry point."""
    assert load_view("agentic-workflow") is view
    with pytest.raises(ConfigError) as caught:
        load_view("agentic-workflows")
    assert caught.value.code == "unknown-view" and caught.value.hint == "did you mean 'agentic-workflow'?"
    monkeypatch.setattr("pop.views.known_views", lambda: {**VIEWS, "bad": "pop.views:GROUP", "gone": "nowhere:view"})
    with pytest.raises(BrokenView, match="cannot be called"):
        load_view("bad")
    with pytest.raises(BrokenView, match="ModuleNotFoundError"):
        load_view("gone")
    assert "agentic-workflow" in known_views()


VALIDATORS = {name: Draft202012Validator(schemas()[name]) for name in ("workflow-state", "orchestration-decision")}


def valid_state(data: bytes) -> dict[str, Any]:
    """A state, checked against what `pop schema workflow-state` prints."""
    state: dict[str, Any] = json.loads(data)
    VALIDATORS["workflow-state"].validate(state)
    return state


def valid_decisions(data: bytes) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in data.splitlines()]
    for line in lines:
        VALIDATORS["orchestration-decision"].validate(line)
    return [line["orchestration_decision"] for line in lines]


def test_the_schemas_are_published() -> None:
    """`pop schema` prints them, in the design's words."""
    state = json.loads(pop("schema", "workflow-state").stdout)
    assert list(state["properties"]) == [
        "workflow_id", "current_phase", "current_step", "step_history", "convergence_status", "human_approvals",
        "workspace_context",
    ]  # fmt: skip
    entry = state["$defs"]["StepEntry"]
    assert list(entry["properties"]) == [
        "step_number", "agent", "template", "status", "output", "timestamp", "validation_scores",
    ]  # fmt: skip
    line = json.loads(pop("schema", "orchestration-decision").stdout)
    actions = line["$defs"]["NextAction"]["properties"]["action_type"]["enum"]
    assert actions == ["invoke_agent", "transition_phase", "request_human_approval", "complete_workflow"]


# -- whole runs --------------------------------------------------------------------------------------------------------


class Workflow(LivingRoot):
    """A root laid out by the template. `change` may edit the pipeline, `settings` are added to pop.toml."""

    def __init__(
        self, path: Path, *, change: Callable[[Any], None] = lambda document: None, settings: str = ""
    ) -> None:
        document = json.loads((TEMPLATE / "pipeline.json").read_text())
        change(document)
        text = (TEMPLATE / "pop.toml").read_text().replace('"python3"', json.dumps(sys.executable))
        super().__init__(path, pipeline=document, tasks={}, settings=text + settings)
        for place, source in templates()["agentic-workflow"].items():
            if not (path / place).exists():
                (path / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, path / place)
        self.states: list[bytes] = []
        self.decisions: list[bytes] = []

    def seed(self, **data: Any) -> None:
        """Put examples/semver into the queue, with these keys of its data changed."""
        draft = self.root.pending / ".semver.draft"
        shutil.copytree(self.path / "examples" / "semver", draft)
        seed = json.loads((draft / "seed.json").read_text())
        seed["data"].update(data)
        (draft / "seed.json").write_text(json.dumps(seed))
        os.rename(draft, self.root.pending / "semver")

    def run_dir(self) -> Path:
        complete = [path for path in self.root.complete.glob("2*") if (path / "events.jsonl").exists()]
        return complete[0] if complete else self.current()[0]

    def waits_at(self, gate: str, patience_s: float = 60.0) -> Path:
        """Until the run waits at this gate; the gate's folder."""

        def waiting() -> Path | None:
            folder = self.run_dir() / "tasks" / gate
            status = self.status()
            return (
                folder
                if status["state"] == "waiting" and status["tasks"].get(gate, {}).get("state") == "waiting"
                else None
            )

        found: Path = self.wait(waiting, f"gate {gate}", patience_s)
        return found

    def state_at(self, step: str) -> dict[str, Any]:
        """Once workflow-state.json says this is the current step; it is written right behind the status."""

        def there() -> dict[str, Any] | None:
            state = valid_state((self.run_dir() / "workflow-state.json").read_bytes())
            return state if state["current_step"] == step else None

        found: dict[str, Any] = self.wait(there, f"the state at {step}")
        return found

    def value(self, instance: str) -> Any:
        return json.loads((self.run_dir() / "tasks" / instance / "output.json").read_bytes())

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.run_dir() / "events.jsonl").read_bytes().splitlines()]
        return [line for line in lines if name in (None, line["event"])]

    def calls(self) -> list[str]:
        """The model calls of the run, by instance."""
        return sorted(path.parts[-4] for path in self.run_dir().glob("tasks/*/attempts/*/calls.jsonl"))


@contextlib.contextmanager
def workflow(path: Path, **about: Any) -> Iterator[Workflow]:
    made = Workflow(path, **about)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def every_state(living: Workflow) -> Iterator[list[bytes]]:
    """Reads workflow-state.json as fast as it changes."""
    seen: list[bytes] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            with contextlib.suppress(OSError, IndexError):
                data = (living.run_dir() / "workflow-state.json").read_bytes()
                if not seen or seen[-1] != data:
                    seen.append(data)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workflow]:
    """The example, run to its end: gates are answered by command, by a file with words, and by a file after an edit."""
    with workflow(tmp_path_factory.mktemp("semver")) as living, every_state(living) as living.states:
        living.up()
        living.seed()
        living.waits_at("plan-approval@2")
        assert pop("approve", "last", "-m", "a good plan", root=living.path).returncode == 0
        gate = living.waits_at("code-review@1")
        (gate / "CHANGES.md").write_text("Say in the docstring that release scripts use it.\n")
        gate = living.waits_at("final-approval@2")
        module = gate / "show" / "tools@2" / "code" / "semver.py"
        module.write_text(module.read_text().replace("Semantic versions:", "Semantic versions (SemVer 2.0.0):", 1))
        (gate / "APPROVE").touch()
        living.wait_complete(1)
        yield living


def test_the_plan_fails_once_and_then_converges(finished: Workflow) -> None:
    """Two validations, one revision; each lap's values are recorded."""
    laps = [event for event in finished.events("lap.ended") if event["key"] == "plan-loop"]
    assert [lap["verdict"] for lap in laps] == ["again", "converged"]
    name = "inputs.validate_plan.validation_scores.alignment_score"
    assert [lap["values"][name] for lap in laps] == [6.0, 9.5]
    assert finished.value("validate-plan@1")["critical"] == 1 and finished.value("validate-plan@2")["issues"] == []
    assert len(finished.value("revise-plan@1")["resolutions"]) == 1
    assert finished.value("plan-approval@2")["text"] == "a good plan"
    assert "numeric identifiers as integers" in finished.value("plan-document@2")


def test_tools_find_what_is_wrong_with_the_first_code(finished: Workflow) -> None:
    """A failing test and an unused import, with file and line; after the refinement everything passes."""
    first = {report["tool"]: report for report in finished.value("tools@1")["tools"]}
    assert first["compile"]["passed"] and not first["ruff"]["passed"] and not first["pytest"]["passed"]
    assert places(first["ruff"]) == [("semver.py", 5, "F401")]
    assert {one["file"] for one in first["pytest"]["findings"]} == {"tests/test_semver.py"}
    assert first["pytest"]["summary"] == "44 of 46 tests passed"
    second = finished.value("tools@2")
    assert second["passed"] and second["tools"][2]["summary"] == "46 of 46 tests passed"
    verdicts = [finished.value(f"verdict@{lap}") for lap in (1, 2)]
    assert [(one["critical"], one["minor"], one["accepted"]) for one in verdicts] == [(3, 2, False), (0, 1, True)]
    assert verdicts[0]["model_scores"]["alignment_score"] == 9.5
    assert verdicts[0]["validation_scores"]["alignment_score"] == 6.0
    laps = [event["verdict"] for event in finished.events("lap.ended") if event["key"] == "code-loop"]
    assert laps == ["again", "converged"]


def test_a_persons_words_and_edits_go_on(finished: Workflow) -> None:
    """The words to the programmer; the edit, through the tools once more, into the delivery."""
    decided = {event["instance"]: event for event in finished.events("gate.decided")}
    assert decided["plan-approval@2"]["how"] == "command"
    assert (decided["code-review@1"]["decision"], decided["code-review@1"]["how"]) == (
        "request-changes",
        "file CHANGES.md",
    )
    prompt = next((finished.run_dir() / "tasks" / "refine-code@1").glob("attempts/1/*-prompt.md")).read_text()
    assert "Say in the docstring that release scripts use it." in prompt
    delivered = finished.run_dir() / "tasks" / "deliver" / "artifacts"
    text = (delivered / "code" / "semver.py").read_text()
    assert text.startswith('"""Semantic versions (SemVer 2.0.0):') and "release scripts use it" in text
    output = finished.value("deliver")
    assert output["edited_by_a_person"] == ["semver.py"] and output["tools_passed"]
    assert "edited by a person" in (delivered / "report.md").read_text()
    ran = subprocess.run(
        [sys.executable, "-c", "import semver; print(semver.compare(semver.parse('1.0.0-rc.1'), semver.parse('1.0.0')))"],
        cwd=delivered / "code", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout == "-1\n"


def test_each_step_is_given_what_it_needs_and_no_more(finished: Workflow) -> None:
    """The programmer sees no requirements, the validator of standards none either, the planner no code."""
    prompts = {path.parts[-4]: path.read_text() for path in finished.run_dir().glob("tasks/*/attempts/1/*-prompt.md")}

    def has(text: str) -> set[str]:
        return {name for name, prompt in prompts.items() if text in prompt}

    assert has("Refused are, among others") == {
        "plan", "validate-plan@1", "validate-plan@2", "revise-plan@1", "validate-code@1", "validate-code@2",
    }  # fmt: skip
    assert has("Roman numerals from I") == {"plan", "implement", "validate-standards@1", "validate-standards@2"}
    assert has("# The grammar of a semantic version") == {"plan"}
    assert has("You are the programmer of a small team") == {"implement", "refine-code@1"}
    assert has("## pytest: FAILED") == {"validate-code@1", "validate-standards@1"}


def test_the_state_and_the_decisions_are_always_valid(finished: Workflow) -> None:
    """Every state that was written, and those after each event; decisions only grow."""
    run_dir = finished.run_dir()
    assert len(finished.states) > 10
    for data in finished.states:
        valid_state(data)
    journal, before = finished.events(), b""
    for count in range(1, len(journal) + 1):
        made = view(run_dir, journal[:count], {})
        valid_state(made["workflow-state.json"])
        valid_decisions(made["decisions.jsonl"])
        assert made["decisions.jsonl"].startswith(before)
        before = made["decisions.jsonl"]
    status = json.loads((run_dir / "tasks-status.json").read_bytes())
    for name, data in view(run_dir, journal, status).items():
        assert (run_dir / name).read_bytes() == data


def test_the_state_at_the_end(finished: Workflow) -> None:
    """Steps, scores, convergence, approvals and workspace, in the design's words."""
    state = valid_state((finished.run_dir() / "workflow-state.json").read_bytes())
    assert [(entry["step_number"], entry["agent"]) for entry in state["step_history"]] == [
        (1, "planner"), (2, "validator"), (3, "planner"), (2, "validator"), (4, "programmer"),
        (5, "tools"), (5, "validator"), (5, "validator"), (7, "orchestrator"), (6, "programmer"),
        (5, "tools"), (5, "validator"), (5, "validator"), (7, "orchestrator"),
    ]  # fmt: skip
    assert all(entry["status"] == "completed" for entry in state["step_history"])
    assert all((finished.run_dir() / entry["output"]).is_file() for entry in state["step_history"])
    assert state["step_history"][-1]["validation_scores"] == {
        "alignment_score": 9.5, "standardization_score": 9.0, "compatibility_score": 9.5,
    }  # fmt: skip
    converged = state["convergence_status"]
    assert converged["phase_1_converged"] and converged["phase_2_converged"]
    assert converged["convergence_criteria"]["phase_1"]["laps"] == 2
    assert converged["convergence_criteria"]["phase_2"]["at_most"] == 4
    assert state["human_approvals"] == {"plan_approved": True, "code_approved": True, "final_approved": True}
    assert (state["current_phase"], state["current_step"]) == ("completed", "completed")
    assert state["workspace_context"]["workspace_path"] == "tasks/tools@2/artifacts/code"
    assert (finished.run_dir() / state["workspace_context"]["workspace_path"] / "semver.py").is_file()


def test_the_decisions_tell_every_move(finished: Workflow) -> None:
    """Who was invoked, when a person was asked, when the phase changed, and the end; each with its reason."""
    decisions = valid_decisions((finished.run_dir() / "decisions.jsonl").read_bytes())
    moves = [(one["next_action"]["action_type"], one["next_action"]["target"].partition("@")[0]) for one in decisions]
    validated = {("invoke_agent", "validate-code"), ("invoke_agent", "validate-standards")}
    assert moves[:7] == [
        ("invoke_agent", "plan"), ("invoke_agent", "validate-plan"), ("invoke_agent", "revise-plan"),
        ("invoke_agent", "validate-plan"),
        ("request_human_approval", "plan-approval"), ("transition_phase", "phase_2"), ("invoke_agent", "implement"),
    ]  # fmt: skip
    assert moves[7] == ("invoke_agent", "tools") and set(moves[8:10]) == validated
    asked = ("request_human_approval", "code-review")
    assert moves[10:13] == [asked, ("invoke_agent", "refine-code"), ("invoke_agent", "tools")]
    assert set(moves[13:15]) == validated
    assert moves[15:] == [("request_human_approval", "final-approval"), ("complete_workflow", "completed")]
    assert "alignment_score 6.0" in decisions[2]["analysis"]["decision_rationale"]
    assert not decisions[4]["workflow_continuation"]["continues"]


def test_the_run_can_be_replayed_as_a_test(finished: Workflow) -> None:
    """A recorded run asks the same questions again; answers of persons are not recorded, so it stops at the first gate."""
    replayed = pop("run", "--replay", finished.run_dir().name, "--json", root=finished.path)
    status = json.loads(replayed.stdout)
    assert replayed.returncode == 5 and status["state"] == "waiting" and status["usage"]["cost_usd"] == 0


def scores_of(state: dict[str, Any]) -> list[str]:
    """What each step gave, in whichever order the steps side by side ended."""
    entries = state["step_history"]
    return sorted(str((entry["step_number"], entry["agent"], entry["validation_scores"])) for entry in entries)


def answer_everything(living: Workflow) -> None:
    """Whatever gate is open is approved by a file."""
    for gate in living.current()[0].glob("tasks/*/gate.json") if living.current() else ():
        if not any((gate.parent / name).exists() for name in ("decision.json", "APPROVE")):
            (gate.parent / "APPROVE").touch()


def test_kill_9_at_every_step_leaves_a_consistent_state(finished: Workflow, tmp_path: Path) -> None:
    """The daemon is killed at each step's start, and once its state file is gone; it ends as if nothing had been."""
    with workflow(tmp_path) as living:
        living.seed()
        killed: set[str] = set()
        daemon = living.up()
        give_up = time.monotonic() + 150
        while not living.ledger():
            assert time.monotonic() < give_up, living.log()[-3000:]
            time.sleep(0.01)
            with contextlib.suppress(OSError, ValueError, LookupError):
                answer_everything(living)
                begun = {event["instance"] for event in living.events("step.started")} - killed
                if begun:
                    daemon.send_signal(signal.SIGKILL)
                    daemon.wait()
                    killed |= begun
                    file = living.run_dir() / "workflow-state.json"
                    if file.exists():
                        valid_state(file.read_bytes())
                        valid_decisions((living.run_dir() / "decisions.jsonl").read_bytes())
                        if len(killed) % 2:
                            file.unlink()
                    daemon = living.up()
        assert len(killed) >= 12
        run_dir = living.run_dir()
        state = valid_state((run_dir / "workflow-state.json").read_bytes())
        told = valid_state((finished.run_dir() / "workflow-state.json").read_bytes())
        assert scores_of(state) == scores_of(told)
        assert state["human_approvals"] == told["human_approvals"] and state["current_phase"] == "completed"
        assert len(living.ledger()) == 1
        for instance in ("plan", "revise-plan@1", "validate-plan@2", "implement"):
            assert living.value(instance) == finished.value(instance)
        assert living.value("deliver")["tools_passed"]


# -- when something is wrong -------------------------------------------------------------------------------------------


def step_named(document: Any, name: str) -> dict[str, Any]:
    """A step of the template's pipeline by its task's name."""
    found = re.search(rf'"task": "{name}"', json.dumps(document))
    assert found
    stack = list(document["tasks"])
    while stack:
        block = stack.pop()
        if isinstance(block, dict):
            if block.get("task") == name:
                return block
            stack += [*block.get("repeat", []), *block.get("parallel", [])]
    raise LookupError(name)


def test_a_wrong_agent_stops_the_run_before_anything_is_spent(tmp_path: Path) -> None:
    """A person is asked; no model was."""

    def change(document: Any) -> None:
        step_named(document, "refine-code")["with"] = {"agent": "validator"}

    with workflow(tmp_path, change=change) as living:
        living.up()
        living.seed()
        gate = living.waits_at("context")
        assert "refine-code' is given to the agent 'validator'" in (gate / "request.md").read_text()
        assert living.calls() == []
        (gate / "REJECT").write_text("my mistake")
        living.wait_state("failed")


def test_a_model_that_stays_away_is_replaced(tmp_path: Path) -> None:
    """The planner's is unavailable: it is asked once more, then the spare one; the reason stands in the decisions."""
    settings = '\n[models.away]\nprovider = "command"\ncommand = ["false"]\ntries = 1\n'
    with workflow(tmp_path, settings=settings) as living:
        text = (tmp_path / "pop.toml").read_text()
        (tmp_path / "pop.toml").write_text(
            text.replace('planner = "default"', 'planner = "away"')
            .replace('spare = "default"', 'spare = "scripted"')
            .replace('validator = "default"', 'validator = "scripted"')
        )
        seed = tmp_path / "examples" / "semver" / "seed.json"
        seed.write_text(
            json.dumps({key: value for key, value in json.loads(seed.read_text()).items() if key != "models"})
        )
        living.up()
        living.seed()
        living.wait(lambda: living.value("plan"), "the plan")
        failed = [event for event in living.events("step.attempt_failed") if event["instance"] == "plan"]
        assert [event["model"] for event in failed] == [None, "spare"]
        decisions = living.wait(
            lambda: [one for one in valid_decisions((living.run_dir() / "decisions.jsonl").read_bytes())
                     if one["next_action"]["target"] == "plan"][2:3],
            "the third try",
        )  # fmt: skip
        assert decisions[0]["analysis"]["decision_rationale"].startswith("attempt 3: unavailable, failure 2")


def test_a_loop_that_does_not_converge_asks_a_person(tmp_path: Path) -> None:
    """Who may accept the plan as it is, or ask for a further refinement of the code in their own words."""

    def change(document: Any) -> None:
        for block in document["tasks"]:
            block.update({"at_most": 1} if "repeat" in block else {})

    with workflow(tmp_path, change=change) as living:
        living.up()
        living.seed()
        (living.waits_at("plan-loop@1") / "APPROVE").touch()
        gate = living.waits_at("code-loop@1")
        state = living.state_at("code-loop@1")
        assert state["human_approvals"] == {"plan_approved": True, "code_approved": False, "final_approved": False}
        assert state["convergence_status"]["convergence_criteria"]["phase_1"]["verdict"] == "accepted"
        assert state["current_phase"] == "phase_2"
        assert not (gate.parent / "code-review@1" / "request.md").exists()
        (gate / "CHANGES.md").write_text("Resolve what the tools found.")
        (living.waits_at("final-approval@2") / "decision.json").write_text('{"decision": "approve", "by": "the board"}')
        living.wait_complete(1)
        decisions = valid_decisions((living.run_dir() / "decisions.jsonl").read_bytes())
        moves = [one["next_action"]["action_type"] for one in decisions]
        assert moves.count("transition_phase") == 1 and moves[-1] == "complete_workflow"
        assert living.value("final-approval@2")["by"] == "the board"
        assert living.value("deliver")["tools_passed"]


def test_a_missing_tool_is_told_before_the_first_plan(tmp_path: Path) -> None:
    """With what to install; when that is done a person approves, and the run goes on."""
    bare = tmp_path / "python"

    def change(document: Any) -> None:
        step_named(document, "context")["with"]["python"] = str(bare)

    bare.write_text("#!/bin/sh\necho ruff pytest\n")
    bare.chmod(0o755)
    with workflow(tmp_path, change=change) as living:
        living.up()
        living.seed()
        gate = living.waits_at("context")
        assert "pip install ruff pytest" in (gate / "request.md").read_text()
        assert living.calls() == []
        bare.write_text("#!/bin/sh\n")
        (gate / "APPROVE").touch()
        living.waits_at("plan-approval@2")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"requirements": "../requirements.md"}, "is not a plain relative path"),
        ({"requirements": "requirement.md"}, "there is no 'requirement.md'"),
        ({"requirements": []}, "there are no requirements"),
        ({"documentation": 5}, "must be a path or a list of paths"),
        ({"docs": "docs"}, "unknown key 'docs'"),
        ({"code_review": "sometimes"}, "is one of when-needed, always, never"),
        ({"project": {"titel": "x"}}, "unknown key 'titel' in seed.project"),
    ],
)
def test_a_seed_that_names_what_is_not_there_is_told(
    helpers: Callable[[str], Any], tmp_path: Path, data: dict[str, Any], told: str
) -> None:
    """With the key and the nearest name, before anything is spent."""
    with pytest.raises(AttemptFailed, match=re.escape(told)) as caught:
        prepared(helpers, tmp_path, data)
    assert caught.value.error_class == "bad_input"


def prepared(helpers: Callable[[str], Any], tmp_path: Path, data: dict[str, Any], tokens: int = 8000) -> Any:
    """What the context step makes of the example's seed with some keys changed."""
    seed = json.loads((TEMPLATE / "examples" / "semver" / "seed.json").read_text())["data"] | data
    shutil.copytree(TEMPLATE / "examples" / "semver", tmp_path / "files", dirs_exist_ok=True)
    (tmp_path / "files" / "link.md").symlink_to("/etc/passwd")
    (tmp_path / "pipeline.json").write_text('{"tasks": []}')
    warnings: list[Any] = []
    ctx = SimpleNamespace(
        seed=seed,
        files=tmp_path / "files",
        config={"tokens": {"documentation": tokens}},
        letter=SimpleNamespace(tasks_dir=str(TASKS), run_dir=str(tmp_path)),
        count_tokens=lambda text: len(text) // 4,
        compress=lambda text, most: f"[{most}] " + text[:40],
        log=SimpleNamespace(warning=lambda *about, **more: warnings.append(more)),
    )
    return helpers("context").infer(None, ctx)


def test_what_is_too_long_is_condensed(helpers: Callable[[str], Any], tmp_path: Path) -> None:
    """The longest documents first; what fits stays whole, and the text says which was condensed."""
    found = prepared(helpers, tmp_path, {}, tokens=250)
    assert found["documentation"]["condensed"] and "(condensed)" in found["documentation"]["text"]
    assert found["requirements"]["condensed"] == []
    assert found["requirements"]["text"].count("ValueError") == 1
    with pytest.raises(AttemptFailed, match="crosses a symbolic link"):
        prepared(helpers, tmp_path / "again", {"documentation": "link.md"})


def test_a_rejected_plan_ends_the_workflow(tmp_path: Path) -> None:
    """The last decision says so, and by whom; at the last gate the scores are those of the verdict."""
    at = "2026-11-21T03:15:02.000Z"
    verdict = tmp_path / "tasks" / "verdict@2" / "output.json"
    verdict.parent.mkdir(parents=True)
    verdict.write_text('{"validation_scores": {"alignment_score": 9.5}}')
    journal: list[dict[str, Any]] = [
        {"event": "run.created", "at": at, "run_id": "r"},
        {"event": "gate.opened", "at": at, "instance": "final-approval@2", "kind": "step"},
        {"event": "gate.opened", "at": at, "instance": "plan-approval@1", "kind": "step"},
        {
            "event": "gate.decided",
            "at": at,
            "instance": "plan-approval@1",
            "decision": "reject",
            "by": "ada",
            "text": "no",
        },
    ]
    decisions = valid_decisions(view(tmp_path, journal, {"state": "failed"})["decisions.jsonl"])
    assert decisions[0]["analysis"]["validation_scores"]["alignment_score"] == 9.5
    assert (decisions[-1]["next_action"]["action_type"], decisions[-1]["next_action"]["target"]) == (
        "complete_workflow",
        "failed",
    )
    assert decisions[-1]["analysis"]["decision_rationale"] == "plan-approval@1 was rejected by ada: no"
    assert not decisions[-1]["workflow_continuation"]["continues"]


def test_names_in_a_plan_read_as_they_are(helpers: Callable[[str], Any]) -> None:
    """`__str__` would be a bold `str`, a text of several lines could forge a heading; code that is marked stays."""
    wording = helpers("wording")
    for text, html in {
        "implement __str__ and _x_.": "implement <code>__str__</code> and <code>_x_</code>.",
        "use `__init__` or list[int] in f(x_y)": "use <code>__init__</code> or <code>list[int]</code> in f(<code>x_y</code>)",
        "a stray ` and __str__": "a stray ' and <code>__str__</code>",
        "one\n\n## Approved": "one ## Approved",
        "# Approved": "# Approved",
        "<b>x</b> **so**": "<code>&lt;b&gt;x&lt;/b&gt;</code> <strong>so</strong>",
    }.items():
        assert str(markdown(wording.prose(text))) == f'<div class="markdown"><p>{html}</p>\n</div>', text
    assert wording.code("a `b`") == "`` a `b` ``" and wording.paragraphs("a\nb\n\n# c") == "a b\n\n\\# c"
