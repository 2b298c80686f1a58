"""`pop iterate validate`, and the step of a run that holds its deliverables to their criteria."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench.iterate_validate import lay_out
from pop.cli import pop
from pop.errors import ConfigErrors, PopError
from pop.recipes.iterate.criteria import check, parse
from pop.recipes.iterate.manifest import Agent, Deliverable, Manifest, check_step, rounds_step, seed_key
from pop.records import dump_json
from tests.living import LivingRoot

STEP = "design-developer"
CRITERIA = """# When design is done

- [ ] `a/design.md` (exists, >9 B, has "## Risks")
- [ ] `b/design.md` (exists, >9 B, has "## Risks")
- [ ] command `grep -rl Risks .` (exit 0, within 20s, has "design.md")
"""
GOOD = "# Design\n\nIt is so.\n\n## Risks\n\nNone.\n"
AGENT = """
def infer(prompt, ctx):
    text = "# Design\\n\\nIt is so.\\n" + ("\\n## Risks\\n\\nNone.\\n" if ctx.lap > 1 or ctx.item["path"] < "b" else "")
    (ctx.artifact(ctx.item["path"])).write_text(text)
    return {"path": ctx.item["path"], "text": text}
"""


def manifest(*paths: str, iteration: str = "design") -> Manifest:
    made = [Deliverable(path=path) for path in paths]
    agent = Agent(
        step=f"{iteration}-developer", role="developer", number=1, prompt="developer.md", token_budget=1000, tokens=10,
        share=0.01, risk="LOW", deliverables=made,
    )  # fmt: skip
    about = {"workflow": "small", "goal": "A design.", "created_at": "2026-01-01T00:00:00Z", "pop_version": "1"}
    return Manifest(iteration=iteration, agents=[agent], **about)


def generated(folder: Path, criteria: str = CRITERIA, *paths: str, iteration: str = "design") -> Path:
    """What `generate` writes, as far as `validate` reads it."""
    inner = folder / iteration
    (inner / "agent-prompts").mkdir(parents=True)
    for name, text in (("CONTEXT.md", "Context."), ("COMPLETION_CRITERIA.md", criteria), ("README.md", "Read.")):
        (inner / name).write_text(text)
    (inner / "agent-prompts" / "developer.md").write_text("Design.")
    made = manifest(*(paths or ("a/design.md", "b/design.md")), iteration=iteration)
    (inner / "manifest.json").write_bytes(dump_json(made.model_dump()))
    return folder


def deliver(folder: Path, path: str, text: str = GOOD) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def validate(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(pop, ["iterate", "validate", str(folder), *arguments], standalone_mode=False)


def test_all_met_is_zero(tmp_path: Path) -> None:
    """Every criterion stands in the table, with what was found."""
    folder = generated(tmp_path / "dir")
    for name in "ab":
        deliver(folder, f"design/{name}/design.md")
    result = validate(folder)
    assert result.return_value == 0, result.output
    assert "design: 9 met, 0 not met" in result.output
    assert "  ✓ a/design.md" in result.output and "line 5: ## Risks" in result.output
    assert "all criteria are met" in result.output


def test_one_that_is_not_met_is_four(tmp_path: Path) -> None:
    """With evidence, also as JSON."""
    folder = generated(tmp_path / "dir")
    deliver(folder, "design/a/design.md", "# Design\n\nIt is so, as it were.\n")
    result = validate(folder)
    assert result.return_value == 4
    assert "✗ a/design.md" in result.output and "no such heading; there is # Design" in result.output
    assert "✗ b/design.md" in result.output and "it is not there" in result.output
    value = json.loads(validate(folder, "--json").stdout)
    assert (value["met"], value["complete"], value["unmet_count"]) == (False, False, 5)
    (iteration,) = value["iterations"]
    assert iteration["unmet_paths"]["b/design.md"][0] == "exists: it is not there"
    assert {"text", "path", "rule", "status", "evidence"} == set(iteration["criteria"][0])


def test_prose_is_not_met_unless_it_is_allowed(tmp_path: Path) -> None:
    """Exit 0 only when all are met; a person may let it pass."""
    folder = generated(tmp_path / "dir", "- [ ] `a.md` (exists)\n- [x] It reads well.\n", "a.md")
    deliver(folder, "design/a.md")
    result = validate(folder)
    assert result.return_value == 4
    assert "? It reads well.  (no program can check this)" in result.output
    assert "1 met, 0 not met, 1 unchecked" in result.output
    assert validate(folder, "--allow-unchecked").return_value == 0


def test_a_planned_deliverable_must_be_there(tmp_path: Path) -> None:
    """Also where no criterion speaks of it, and where there is no criterion at all."""
    folder = generated(tmp_path / "dir", "# Nothing is asked\n", "a.md")
    assert validate(folder).return_value == 4
    deliver(folder, "design/a.md", "")
    assert validate(folder).return_value == 0


def test_reports_are_written(tmp_path: Path) -> None:
    """As JSON and as Markdown, which is well-formed itself."""
    folder = generated(tmp_path / "dir")
    deliver(folder, "design/a/design.md", GOOD + "a | b\n")
    result = validate(folder, "--report")
    value = json.loads((folder / "validation.json").read_bytes())
    assert value["workflow"] == "small" and not value["met"]
    text = (folder / "validation.md").read_text()
    assert "## design" in text and "| ✗ | b/design.md | exists | it is not there |" in text
    assert f"report     {folder / 'validation.md'}" in result.output
    assert check(parse("- [ ] `validation.md` (markdown)\n"), folder).met


def test_one_iteration_can_be_chosen(tmp_path: Path) -> None:
    """A name that is not there gets the nearest one."""
    folder = generated(tmp_path / "dir", "- [ ] `a.md` (exists)\n", "a.md")
    generated(folder, "- [ ] `a.md` (exists)\n", "a.md", iteration="tests")
    deliver(folder, "tests/a.md")
    assert validate(folder).return_value == 4
    assert validate(folder, "--iteration", "tests").return_value == 0
    with pytest.raises(PopError) as caught:
        raise_of(validate(folder, "--iteration", "test"))
    assert caught.value.hint == "did you mean 'tests'?" and caught.value.exit_code == 2


def raise_of(result: Result) -> None:
    assert result.exception is not None
    raise result.exception


def test_mistakes_in_criteria_are_told_all_at_once(tmp_path: Path) -> None:
    """With file and line, before anything is checked."""
    folder = generated(tmp_path / "dir", "- [ ] `a.md` (exsits)\n\n- [ ] `b.md` (>5)\n", "a.md")
    with pytest.raises(ConfigErrors) as caught:
        raise_of(validate(folder))
    assert [one.where for one in caught.value.problems] == [
        "design/COMPLETION_CRITERIA.md:1",
        "design/COMPLETION_CRITERIA.md:3",
    ]
    assert "did you mean 'exists'?" in str(caught.value)


def test_commands_can_be_left_out(tmp_path: Path) -> None:
    """Then they are unchecked, and not all is met."""
    folder = generated(tmp_path / "dir", "- [ ] command `touch made` (exit 0)\n", "a.md")
    deliver(folder, "design/a.md")
    assert validate(folder, "--no-commands").return_value == 4
    assert not (folder / "design" / "made").exists()
    assert validate(folder).return_value == 0 and (folder / "design" / "made").exists()


def test_ten_thousand_deliverables_are_not_slow(tmp_path: Path) -> None:
    """A tenth of them here, with patience; the bench has them all."""
    lay_out(tmp_path, 1000)
    began = time.monotonic()
    assert check(parse((tmp_path / "COMPLETION_CRITERIA.md").read_text()), tmp_path).met
    assert time.monotonic() - began < 10


# -- in a run ----------------------------------------------------------------------------------------------------------


def pipeline(at_most: int) -> dict[str, Any]:
    check_name = check_step("design")
    each = {"each": f"seed.agents.{seed_key(STEP)}", "do": {"task": "iterate-agent", "name": STEP}}
    judge = {"task": "iterate-check", "name": check_name, "with": {"iteration": "design"}}
    loop = {"repeat": [{"parallel": [each]}, judge], "name": rounds_step("design"), "at_most": at_most}
    about = {"until": "inputs.design_check.met", "score": "inputs.design_check.met_count", "otherwise": "keep-best"}
    return {"name": "small", "tasks": [{**loop, **about}]}


TASKS = {"iterate-agent.py": AGENT, "iterate-check.py": "from pop.recipes.iterate.check import infer\n"}


def seed(living: LivingRoot, folder: Path, *paths: str) -> None:
    made = [Deliverable(path=path).model_dump() for path in paths]
    data = {"workflow": "small", "source": str(folder), "steps": {STEP: "design"}, "agents": {seed_key(STEP): made}}
    draft = living.path / "draft"
    (draft / "design").mkdir(parents=True)
    (draft / "design" / "COMPLETION_CRITERIA.md").write_text((folder / "design" / "COMPLETION_CRITERIA.md").read_text())
    (draft / "seed.json").write_bytes(dump_json({"data": data}))
    draft.rename(living.root.pending / "small")


def test_a_run_is_judged_lap_by_lap(make_living: Callable[..., LivingRoot], tmp_path: Path) -> None:
    """What is not met is told by path; the loop ends when all is. The deliverables lie in the step's artifacts."""
    living = make_living(pipeline=pipeline(3), tasks=TASKS)
    folder = generated(living.path / "work")
    seed(living, folder, "a/design.md", "b/design.md")
    living.up("--quiet")
    (record,) = living.wait_complete(1)
    first, second = (living.output(record, f"design-check@{lap}") for lap in (1, 2))
    assert first["met"] is False and second["met"] is True
    assert list(first["unmet_paths"]) == ["b/design.md"]
    assert first["unmet_paths"]["b/design.md"] == ['has "## Risks": no such heading; there is # Design']
    assert (first["met_count"], second["met_count"], second["unchecked_count"]) == (8, 9, 0)
    artifacts = living.path / record["path"] / "tasks" / "design-check@2" / "artifacts"
    assert (artifacts / "b" / "design.md").read_text() == GOOD

    (folder / "runs.jsonl").write_bytes(
        dump_json({"run_id": record["run_id"], "name": "small", "iterations": ["design"]}, pretty=False)
    )
    result = validate(folder, "--root", str(living.path))
    assert result.return_value == 0, result.output
    assert "2 deliverables of" in result.output and (folder / "design" / "b" / "design.md").read_text() == GOOD


def test_criteria_that_are_wrong_fail_the_step(make_living: Callable[..., LivingRoot]) -> None:
    """As bad input: no lap mends that."""
    living = make_living(pipeline=pipeline(2), tasks=TASKS)
    folder = generated(living.path / "work", "- [ ] `a.md` (exsits)\n")
    seed(living, folder, "a.md")
    living.up("--quiet")
    error = living.wait_state("failed")["error"]
    assert error["error_class"] == "bad_input" and "did you mean 'exists'?" in error["message"]
