"""``pop diff``: two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pop.compare import SHOWN_LINES, unified
from pop.records import dump_json
from pop.settings import Root
from tests.test_admission import make_root
from tests.test_cli import pop

A, B = "20261121-031501-a-abcd", "20261121-031502-b-abcd"


def run_of(root: Root, run_id: str, steps: dict[str, tuple[Any, str]], *, cost: float = 1.0, model: str = "m") -> Path:
    """A finished run; per step its output and its prompt."""
    run_dir = root.complete / run_id
    tasks = {}
    for name, (output, prompt) in steps.items():
        attempt = run_dir / "tasks" / name / "attempts" / "2"
        attempt.mkdir(parents=True)
        (run_dir / "tasks" / name / "output.json").write_bytes(dump_json(output))
        (attempt / "03-prompt.md").write_text(prompt)
        (attempt / "calls.jsonl").write_bytes(
            dump_json({"model": "fast", "provider_model": model}, pretty=False) + b"x\n"
        )
        usage = {"calls": 1, "input_tokens": 10, "output_tokens": 5, "cost_usd": cost}
        tasks[name] = {"state": "done", "attempt": 2, "seconds": 1.5, "usage": usage}
    (run_dir / "events.jsonl").write_text('{"event": "run.created"}\n')
    status = {"run_id": run_id, "name": run_id, "pipeline": "default", "state": "complete", "tasks": tasks}
    (run_dir / "tasks-status.json").write_bytes(dump_json(status))
    return run_dir


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = make_root(tmp_path)
    (root.path / "pipeline.json").write_text('{"tasks": ["plan"]}')
    run_of(root, A, {"plan": ({"b": 1, "a": 2}, "plan it"), "draft": ("one\ntwo\n", "draft it"), "old": (1, "o")})
    steps = {"plan": ({"a": 2, "b": 1}, "plan it"), "draft": ("one\nthree\n", "draft it well"), "new": (1, "n")}
    run_of(root, B, steps, cost=0.25, model="other")
    return root


def diff(root: Root, *arguments: str) -> dict[str, Any]:
    result = pop("diff", *arguments, "--json", root=root.path)
    assert result.returncode == 0, result.stderr
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_each_step_is_told_with_what_differs(root: Root) -> None:
    """The order of keys is no difference; a step of one run alone is told."""
    found = diff(root, A, B)
    steps = {step["step"]: step for step in found["steps"]}
    assert {name: (step["output"], step["prompt"]) for name, step in steps.items()} == {
        "plan": ("same", "same"), "draft": ("different", "different"), "old": ("only in a", "only in a"),
        "new": ("only in b", "only in b"),
    }  # fmt: skip
    assert steps["draft"]["output_diff"][2:] == ["@@ -1,2 +1,2 @@", " one", "-two", "+three"]
    assert "+draft it well" in steps["draft"]["prompt_diff"]
    assert steps["plan"]["a"]["models"] == ["m"] and steps["plan"]["b"]["models"] == ["other"]
    assert found["totals"]["a"]["cost_usd"] == 3.0 and found["totals"]["b"]["cost_usd"] == 0.75
    assert found["totals"]["a"]["tokens"] == 45 and found["totals"]["b"]["seconds"] == 4.5
    assert steps["old"]["b"] is None


def test_the_table_names_both_sides_where_they_differ(root: Root) -> None:
    """And once where they are alike."""
    shown = pop("diff", A, B, root=root.path).stdout
    assert (
        "$1.0000 | $0.2500" in shown
        and "m | other" in shown
        and "-two" in shown
        and "done |" not in shown.split("old")[0]
    )


def test_one_step_or_instance_is_enough(root: Root) -> None:
    """An unknown one is told with the nearest."""
    assert [step["step"] for step in diff(root, A, B, "--step", "draft")["steps"]] == ["draft"]
    wrong = pop("diff", A, B, "--step", "drafft", root=root.path)
    assert wrong.returncode == 2 and "did you mean 'draft'?" in wrong.stderr


def test_a_run_is_like_itself(root: Root) -> None:
    """Nothing differs."""
    assert {step["output"] for step in diff(root, A, A)["steps"]} == {"same"}


def test_long_texts_are_cut_unless_all_is_asked_for(root: Root) -> None:
    """So that a terminal is not flooded."""
    a, b = ("\n".join(f"{letter}{n}" for n in range(500)) for letter in "ab")
    assert len(unified(a, b, ("a", "b"))) == SHOWN_LINES + 1
    assert len(unified(a, b, ("a", "b"), full=True)) > 1000
    huge = "\n".join("x" for _ in range(30_000))
    assert "--full" in unified(huge, "", ("a", "b"))[0]


def test_broken_and_hostile_files_are_shown_as_they_are(root: Root) -> None:
    """A link is read by nobody, control characters do not reach the terminal."""
    output = root.complete / A / "tasks" / "draft" / "output.json"
    output.write_text("{broken \x1b[31m")
    (root.complete / B / "tasks" / "plan" / "output.json").unlink()
    (root.complete / B / "tasks" / "plan" / "output.json").symlink_to("/etc/passwd")
    result = pop("diff", A, B, root=root.path)
    assert result.returncode == 0 and "\x1b" not in result.stdout and "root:" not in result.stdout
    assert diff(root, A, B)["steps"][0]["output"] == "only in a"
