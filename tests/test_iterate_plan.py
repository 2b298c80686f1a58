"""`pop iterate plan`: a task in plain words becomes a workflow, through a real run against a real server."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pop.recipes.iterate.planning import rendered, workflow_problems
from pop.recipes.iterate.proposals import install, is_ours, marked, nearest
from pop.recipes.iterate.workflow import load_workflow
from pop.settings import Root
from tests import warm
from tests.fake_openai import FakeOpenAI, Fault
from tests.living import LivingRoot

TASK = "Turn the interview notes into a guide for new colleagues."
ASSESSED: dict[str, Any] = {
    "understanding": "A guide of a few pages, made from the notes, for people in their first week.",
    "complexity": "small",
    "roles": ["tech-writer"],
    "nearest": "documentation",
    "assumptions": ["The notes are complete."],
    "questions": [],
}
QUESTION = {
    "question": "In which language?",
    "why": "All texts depend on it.",
    "options": ["English", "German"],
    "answer": None,
}
DECOMPOSED: dict[str, Any] = {
    "name": "colleague-guide",
    "description": "A guide for new colleagues, from interview notes.",
    "assumptions": ["One guide for all teams."],
    "iterations": [
        {
            "name": "extract",
            "goal": "Facts from each note.",
            "why": "The writer reads facts, not talk.",
            "dependencies": [],
            "agents": [
                {
                    "role": "product-analyst",
                    "targets": ["notes/{note}.md"],
                    "deliverables": ["{note}/facts.md"],
                    "complexity_per_target": 1,
                    "output_tokens": 600,
                    "instructions": "## Facts\nOne line each: with its quote.",
                }
            ],
            "completion_criteria": ["`{note}/facts.md` (exists, has \"## Facts\")"],
        },
        {
            "name": "write",
            "goal": "One guide.",
            "why": "It needs all facts.",
            "dependencies": ["extract"],
            "agents": [
                {
                    "role": "tech-writer",
                    "targets": ["extract/**"],
                    "deliverables": ["guide.md"],
                    "complexity_per_target": 2,
                    "output_tokens": 2000,
                    "instructions": "For the first week.",
                }
            ],
            "completion_criteria": ["`guide.md` (exists, >1KB)", "A new colleague finds the coffee."],
        },
    ],
    "new_roles": [],
    "watch": ["whether facts have quotes"],
    "learn": ["how many facts the guide uses"],
}  # fmt: skip


def changed(**about: Any) -> dict[str, Any]:
    """The first iteration of the decomposition, otherwise."""
    found = copy.deepcopy(DECOMPOSED)
    found["iterations"][0] |= about
    return found


@pytest.fixture
def planned(make_living: Callable[..., LivingRoot], fake_openai: FakeOpenAI) -> LivingRoot:
    """A root whose default model is the server; notes lie in it."""
    settings = f'[models.default]\nprovider = "openai"\nmodel = "m"\nbase_url = "{fake_openai.base_url}"\ntries = 1\n'
    living = make_living(pipeline={"tasks": ["t"]}, tasks={"t.md": "Say hello."}, settings=settings)
    (living.path / "notes").mkdir()
    for name in ("anna", "ben"):
        (living.path / "notes" / f"{name}.md").write_text(f"# Talk with {name}\n\nThe coffee is on floor 2.\n")
    return living


def pop(living: LivingRoot, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENAI_API_KEY": "sk-test", **env}
    return warm.pop(arguments, cwd=living.path, env=environment)


def plan(living: LivingRoot, *arguments: str) -> subprocess.CompletedProcess[str]:
    return pop(living, "iterate", "plan", *arguments)


def answers(fake: FakeOpenAI, *values: Any) -> None:
    fake.answers = [value if isinstance(value, str) else json.dumps(value) for value in values]


def test_a_task_becomes_a_workflow(planned: LivingRoot, fake_openai: FakeOpenAI) -> None:
    """Where nothing is open nobody is asked; what is written passes the checker and says what it is."""
    answers(fake_openai, ASSESSED, DECOMPOSED)
    result = plan(planned, TASK, "--targets", "notes/*.md")
    assert result.returncode == 0, result.stderr + result.stdout
    path = planned.path / "workflows" / "colleague-guide" / "workflow.yaml"
    assert f"workflow   {path}" in result.stdout
    assert "pop iterate generate colleague-guide --targets 'notes/*.md' --output colleague-guide" in result.stdout
    loaded = load_workflow("colleague-guide", planned.path)
    assert [one.name for one in loaded.workflow.order()] == ["extract", "write"]
    text = path.read_text()
    assert text.startswith("# A PROPOSAL by m: nothing has run") and f"#   - {TASK}" in text
    assert "# One guide for all teams." in text.replace("#   - ", "# ") and "# It needs all facts." in text
    assess, decompose = (body["messages"] for body in fake_openai.bodies)
    assert (
        "Master Orchestrator" in assess[0]["content"]
        and "assess, decide, delegate, monitor, validate, learn" in assess[0]["content"]
    )
    assert "- notes/anna.md (" in assess[1]["content"] and "Talk with anna" in assess[1]["content"]
    for role in ("sre", "tech-writer", "architect"):
        assert f"- {role}: " in decompose[1]["content"]
    assert "- user-story-refinement: " in decompose[1]["content"]
    assert pop(planned, "check").returncode == 0


def test_open_questions_are_asked_once(planned: LivingRoot, fake_openai: FakeOpenAI) -> None:
    """Exit code 5 with the next move; the answer reaches the decomposition; the workflow is written once."""
    answers(fake_openai, {**ASSESSED, "questions": [QUESTION]}, DECOMPOSED)
    asked = plan(planned, TASK, "--targets", "notes/*.md", "--json")
    assert asked.returncode == 5, asked.stderr
    value = json.loads(asked.stdout)
    assert value["questions"] == [QUESTION] and value["next"][1] == f"pop iterate plan --continue {value['run_id']}"
    again = plan(planned, "--continue", value["run_id"])
    assert again.returncode == 5
    assert "  1. In which language?" in again.stdout and "English | German" in again.stdout
    assert pop(planned, "approve", value["run_id"], "-m", "1. In Welsh, please.").returncode == 0
    done = plan(planned, "--continue", "last")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "1. In Welsh, please." in fake_openai.bodies[-1]["messages"][1]["content"]
    path = planned.path / "workflows" / "colleague-guide" / "workflow.yaml"
    assert "answered: 1. In Welsh, please." in path.read_text()
    path.write_text(path.read_text() + "# edited\n")
    more = plan(planned, "--continue", value["run_id"])
    assert more.returncode == 0 and "written before" in more.stdout
    assert path.read_text().endswith("# edited\n") and len(list((planned.path / "workflows").iterdir())) == 1


def test_answers_can_be_written_into_the_request(planned: LivingRoot, fake_openai: FakeOpenAI) -> None:
    """The copy in show/ is edited, and approved by a file."""
    answers(fake_openai, {**ASSESSED, "questions": [QUESTION]}, DECOMPOSED)
    run = Path(json.loads(plan(planned, TASK, "--targets", "notes/*.md", "--json").stdout)["path"])
    shown = run / "tasks" / "questions" / "show" / "assess.json"
    value = json.loads(shown.read_text())
    value["questions"][0]["answer"] = "In Klingon."
    shown.write_text(json.dumps(value))
    (run / "tasks" / "questions" / "APPROVE").touch()
    done = plan(planned, "--continue", run.name)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Answer: In Klingon." in fake_openai.bodies[-1]["messages"][1]["content"]


def test_changes_have_it_assessed_anew(planned: LivingRoot, fake_openai: FakeOpenAI) -> None:
    """With the person's words; when nothing is open any more, it goes on."""
    answers(fake_openai, {**ASSESSED, "questions": [QUESTION]}, ASSESSED, DECOMPOSED)
    value = json.loads(plan(planned, TASK, "--targets", "notes/*.md", "--json").stdout)
    assert pop(planned, "request-changes", value["run_id"], "-m", "Only the kitchen.").returncode == 0
    done = plan(planned, "--continue", value["run_id"])
    assert "Only the kitchen." in fake_openai.bodies[1]["messages"][1]["content"]
    assert done.returncode in (0, 5), done.stderr + done.stdout
    if done.returncode == 5:  # the gate opens again after changes; nothing is left to be answered
        assert pop(planned, "approve", value["run_id"]).returncode == 0
        assert plan(planned, "--continue", value["run_id"]).returncode == 0
    assert (planned.path / "workflows" / "colleague-guide" / "workflow.yaml").is_file()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (changed(agents=[{**DECOMPOSED["iterations"][0]["agents"][0], "role": "product-analist"}]), "did you mean 'product-analyst'?"),
        (changed(dependencies=["write"]), "iterations that wait for each other"),
        (changed(completion_criteria=["`{note}/facts.md` (exsits)"]), "did you mean 'exists'?"),
        (changed(agents=[{**DECOMPOSED["iterations"][0]["agents"][0], "targets": ["stories/*.md"]}]), "matches no file"),
        ("I would rather talk about it.", "not JSON"),
    ],
    ids=["unknown role", "cycle", "criterion", "targets", "no JSON"],
)  # fmt: skip
def test_what_is_wrong_is_told_and_mended(planned: LivingRoot, fake_openai: FakeOpenAI, wrong: Any, told: str) -> None:
    """The checker's own words go back to the model; what is written is the mended version."""
    answers(fake_openai, ASSESSED, wrong, DECOMPOSED)
    result = plan(planned, TASK, "--targets", "notes/*.md")
    assert result.returncode == 0, result.stderr + result.stdout
    assert fake_openai.total == 3
    assert told in fake_openai.bodies[-1]["messages"][-1]["content"]
    load_workflow("colleague-guide", planned.path)


def test_what_stays_wrong_is_never_written(planned: LivingRoot, fake_openai: FakeOpenAI) -> None:
    """The run fails, and says why."""
    wrong = changed(dependencies=["write"])
    fake_openai.answers = [json.dumps(ASSESSED), *([json.dumps(wrong)] * 30)]
    result = plan(planned, TASK, "--targets", "notes/*.md", "--json")
    assert result.returncode == 4
    value = json.loads(result.stdout)
    assert value["state"] == "failed" and value["error"]["error_class"] == "invalid_output"
    assert "wait for each other" in json.dumps(value["error"])
    assert not (planned.path / "workflows").exists()


def test_a_refusal_is_told(planned: LivingRoot, fake_openai: FakeOpenAI) -> None:
    """With exit code 4 and what to do; nothing is written."""
    fake_openai.faults = [Fault(refusal="I do not plan guides.")] * 10
    result = plan(planned, TASK)
    assert result.returncode == 4
    assert "refused: " in result.stdout and "I do not plan guides." in result.stdout
    assert not (planned.path / "workflows").exists()


def test_another_workflow_is_never_overwritten(planned: LivingRoot, fake_openai: FakeOpenAI) -> None:
    """Neither one that a person has, nor is one of the package hidden; the name says which it is."""
    answers(fake_openai, ASSESSED, DECOMPOSED, ASSESSED, {**DECOMPOSED, "name": "documentation"})
    mine = planned.path / "workflows" / "colleague-guide" / "workflow.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    first = plan(planned, TASK, "--targets", "notes/*.md")
    assert first.returncode == 0, first.stderr
    assert mine.read_text() == "mine"
    assert load_workflow("colleague-guide-2", planned.path).workflow.name == "colleague-guide-2"
    assert plan(planned, TASK + " Twice.", "--targets", "notes/*.md").returncode == 0
    assert load_workflow("documentation-2", planned.path).workflow.name == "documentation-2"


def test_a_task_without_files_is_its_own_target(planned: LivingRoot, fake_openai: FakeOpenAI) -> None:
    """It lies beside the workflow as a sample, and the next command uses it."""
    alone = copy.deepcopy(DECOMPOSED)
    alone["iterations"][0]["agents"][0] |= {"targets": ["**"], "deliverables": ["facts.md"]}
    alone["iterations"][0]["completion_criteria"] = ["`facts.md` (exists)"]
    answers(fake_openai, ASSESSED, alone)
    result = plan(planned, TASK)
    assert result.returncode == 0, result.stderr + result.stdout
    assert (planned.path / "workflows/colleague-guide/sample/task.md").read_text() == TASK + "\n"
    assert "pop iterate generate colleague-guide --sample --output colleague-guide" in result.stdout


def test_a_daemon_that_serves_does_the_work(planned: LivingRoot, fake_openai: FakeOpenAI) -> None:
    """It goes on by itself when it is answered."""
    answers(fake_openai, {**ASSESSED, "questions": [QUESTION]}, DECOMPOSED)
    planned.up("--quiet", env={"OPENAI_API_KEY": "sk-test"})
    planned.wait(lambda: "serving" in planned.log() or (planned.path / ".pop" / "lock").exists(), "the daemon")
    value = json.loads(plan(planned, TASK, "--targets", "notes/*.md", "--json").stdout)
    assert value["state"] == "waiting"
    assert pop(planned, "approve", value["run_id"], "-m", "English").returncode == 0
    planned.wait_complete(1)
    done = plan(planned, "--continue", value["run_id"], "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["name"] == "colleague-guide"


def test_the_embedded_engine_plans_nothing(make_living: Callable[..., LivingRoot]) -> None:
    """It says so, and offers the nearest workflow; --start writes it, marked as what it is."""
    living = make_living(
        pipeline={"tasks": ["t"]}, tasks={"t.md": "Say hello."}, settings='[models]\ndefault = "builtin"\n'
    )
    task = "Review the code of our parser for security and performance."
    result = plan(living, task)
    assert result.returncode == 3
    assert "cannot-reason: " in result.stderr and "extractive, not a language model" in result.stderr
    assert "'code-review'" in result.stderr and not (living.path / "workflows").exists()
    started = plan(living, task, "--start", "--json")
    assert started.returncode == 0, started.stderr
    path = Path(json.loads(started.stdout)["workflow"])
    assert path == living.path / "workflows" / "code-review-start" / "workflow.yaml"
    assert path.read_text().startswith("# A START, no plan: nobody has decomposed the task")
    assert load_workflow("code-review-start", living.path).workflow.name == "code-review-start"
    assert not list(living.root.current.iterdir())
    for_any = json.loads(plan(living, "Xylophones?", "--start", "--json").stdout)
    assert for_any["nearest"] == "task-execution"  # shares no word with anything


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give a task, or --continue RUN"),
        (["  "], "the task is empty"),
        ([TASK, "--targets", "none/*.md"], "no file matches 'none/*.md'"),
        ([TASK, "-m", "nobody"], "unknown-model"),
        (["--continue", "nothing"], "nothing"),
        (["x" * 30_000], "a task of 30,000 characters"),
    ],
)
def test_bad_input_costs_nothing(planned: LivingRoot, fake_openai: FakeOpenAI, arguments: list[str], told: str) -> None:
    """A sentence, and exit code 2."""
    result = plan(planned, *arguments)
    assert result.returncode == 2 and told in result.stderr, result.stderr
    assert fake_openai.total == 0


def test_what_a_person_edited_is_used(tmp_path: Path) -> None:
    """Prompts of the root are theirs; ours are renewed."""
    root = Root(tmp_path)
    assert install(root) == [] and install(root) == []
    prompt = root.tasks / "iterate-decompose.md"
    assert all(is_ours(path.read_bytes()) for path in root.tasks.iterdir())
    prompt.write_text(prompt.read_text() + "\nIn Welsh.\n")
    schema = root.tasks / "iterate-assess.schema.json"
    schema.write_bytes(marked(schema.read_bytes().replace(b'"maxItems": 5', b'"maxItems": 9')))  # of an older version
    assert install(root) == [prompt]
    assert prompt.read_text().endswith("In Welsh.\n") and b'"maxItems": 9' not in schema.read_bytes()


def test_a_hostile_decomposition_stays_data() -> None:
    """Neither comments nor texts of a model become keys of the file."""
    evil = copy.deepcopy(DECOMPOSED)
    evil["assumptions"] = ["a\nworkflow: {}\n# b"]
    evil["iterations"][0]["why"] = "x\n    - name: evil"
    evil["iterations"][0]["goal"] = "x: y\n- z\x1b[31m"
    text = rendered(evil, "t\nagent_roles: {}", run="r")
    assert workflow_problems(text) == []
    assert "\x1b" not in text and "\nagent_roles" not in text and "evil" in text


def test_the_nearest_workflow_shares_words(tmp_path: Path) -> None:
    """Or it is the one for any task."""
    (tmp_path / "pipeline.json").write_text("{}")
    root = Root(tmp_path)
    found = {task: nearest(root, task) for task in ("refine ten user stories", "an incident in production", "zzzz")}
    assert [entry.name for entry in found.values()] == ["user-story-refinement", "incident-response", "task-execution"]
