"""`pop iterate generate`: what it writes, what it never overwrites, and what it refuses before anything is written."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest

from pop.errors import ConfigError, ConfigErrors, RootError, UsageError
from pop.pipeline import load_pipeline
from pop.recipes.iterate import targets as targets_module
from pop.recipes.iterate.criteria import parse
from pop.recipes.iterate.folder import read_folder
from pop.recipes.iterate.generate import Plan, compile_pipeline, plan_workflow, read_generated
from pop.recipes.iterate.manifest import Manifest
from pop.recipes.iterate.rules import Holds
from pop.recipes.iterate.targets import Glob, Inputs, front_fields
from pop.recipes.iterate.workflow import load_workflow
from pop.recipes.iterate.writing import write_folder
from tests.test_cli import REPOSITORY, pop

HEAD = "workflow:\n  name: refine\n  description: Refine stories.\n  iterations:\n"
REQUIREMENTS = """\
    - name: requirements
      goal: Know what is wanted.
      agents:
        - role: developer
          targets: ["stories/*.md"]
          deliverables: ["stories/{story_id}/requirements.md"]
"""
DESIGN = """\
    - name: design
      goal: Know how it is built.
      dependencies: [requirements]
      agents:
        - role: developer
          targets: ["requirements/stories/*/requirements.md"]
          deliverables: ["stories/{story_id}/design.md"]
"""


def stories(folder: Path, count: int = 4) -> Path:
    (folder / "stories").mkdir(parents=True, exist_ok=True)
    for n in range(count):
        head = f"---\nstory_id: S-{n}\nepic: E{n % 2}\n---\n"
        (folder / "stories" / f"{n}.md").write_text(f"{head}As a user I want {n}.\n")
    return folder


def written(folder: Path, text: str = HEAD + REQUIREMENTS + DESIGN) -> Path:
    (folder / "workflow.yaml").write_text(text)
    return folder / "workflow.yaml"


def agent(**keys: Any) -> str:
    """An iteration with one agent, whose keys these are over the ordinary ones."""
    about: dict[str, Any] = {"role": "developer", "targets": ["stories/*.md"], "deliverables": ["{stem}.md"], **keys}
    return f"{HEAD}    - name: one\n      goal: Get it done.\n      agents:\n        - {json.dumps(about)}\n"


def planned(folder: Path, text: str, *globs: str, output: str = "out") -> Plan:
    inputs = Inputs(folder, [Glob(one) for one in globs], skip=folder / output)
    return plan_workflow(load_workflow(written(folder, text)), inputs, folder / output)


def refused(folder: Path, text: str, *globs: str) -> ConfigError:
    """The only mistake."""
    with pytest.raises(ConfigErrors) as caught:
        planned(folder, text, *globs)
    assert len(caught.value.problems) == 1, str(caught.value)
    assert not (folder / "out").exists()
    return caught.value.problems[0]


def paths(manifest: Manifest) -> dict[str, list[str]]:
    return {one.path: one.targets for agent in manifest.agents for one in agent.deliverables}


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- what is written ---------------------------------------------------------------------------------------------------


def test_a_workflow_becomes_a_folder_that_everything_else_can_read(tmp_path: Path) -> None:
    """Every file of the contract; the manifests without a mistake, the pipelines by POP's own reader."""
    path = written(stories(tmp_path))
    result = pop("iterate", "generate", path, "--output", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    assert {one.name for one in out.iterdir()} == {
        ".generated.json", "README.md", "pipeline.json", "workflow.yaml", "templates", "requirements", "design",
    }  # fmt: skip
    for name in ("requirements", "design"):
        assert {one.name for one in (out / name).iterdir()} == {
            "CONTEXT.md", "COMPLETION_CRITERIA.md", "README.md", "manifest.json", "pipeline.json", "agent-prompts",
        }  # fmt: skip
    folder = read_folder(out)
    assert list(folder.manifests) == ["requirements", "design"]
    assert folder.base("requirements") == tmp_path.resolve()
    tasks = ("iterate-agent", "iterate-check")
    for file in (out / "pipeline.json", out / "design" / "pipeline.json"):
        load_pipeline(file.read_bytes(), where="pipeline.json", name="x", known_tasks=tasks, known_models=())
    record = read_generated(out)
    assert record and record.base == ".." and record.base_of(out) == tmp_path.resolve()


def test_the_pipeline_is_a_loop_for_each_iteration(tmp_path: Path) -> None:
    """Agents side by side, then the check; iterations follow their dependencies; budgets are the gateway's."""
    plan = planned(stories(tmp_path), HEAD + REQUIREMENTS + DESIGN)
    first, second = compile_pipeline(plan.manifests)["tasks"]
    agents, check = first["repeat"]
    assert agents["parallel"][0] == {
        "each": "seed.agents.requirements_developer",
        "do": {
            "task": "iterate-agent",
            "name": "requirements-developer",
            "budget": {"step_tokens": plan.manifests[0].agents[0].token_budget},
            "with": {"iteration": "requirements", "prompt": "agent-prompts/developer.md"},
        },
    }
    assert check == {"task": "iterate-check", "name": "requirements-check", "with": {"iteration": "requirements"}}
    assert (first["name"], first["until"], first["at_most"]) == (
        "requirements-rounds", "inputs.requirements_check.met", 2,
    )  # fmt: skip
    assert second["needs"] == ["requirements-rounds"] and first["needs"] == []
    assert compile_pipeline(plan.manifests[1:])["tasks"][0]["needs"] == []


def test_placeholders_come_from_front_matter_then_the_glob_then_the_path(tmp_path: Path) -> None:
    """And those of the agent are always its own."""
    stories(tmp_path, 1)
    (tmp_path / "stories" / "x.y.md").write_text("---\nrole: admin\nstem: mine\n---\n")
    text = agent(
        targets=["stories/{story_id}.md"], deliverables=["{story_id}/{stem}.{ext}-{role}-{n}-{agent}-{iteration}"]
    )
    assert paths(planned(tmp_path, text).manifests[0]) == {
        "S-0/0.md-developer-1-developer-one": ["stories/0.md"],
        "x.y/mine.md-developer-1-developer-one": ["stories/x.y.md"],
    }


def test_a_pattern_without_a_placeholder_of_targets_is_one_file_for_all(tmp_path: Path) -> None:
    """Of the agent."""
    text = agent(deliverables=["summary.json", "{stem}.md"])
    found = planned(stories(tmp_path, 3), text).manifests[0].agents[0].deliverables
    assert [(one.path, len(one.targets), one.format) for one in found] == [
        ("0.md", 1, "markdown"), ("1.md", 1, "markdown"), ("2.md", 1, "markdown"), ("summary.json", 3, "json"),
    ]  # fmt: skip


def test_targets_that_share_a_deliverable_go_to_one_agent(tmp_path: Path) -> None:
    """Whatever the allocation."""
    text = agent(deliverables=["{epic}.md"], allocation="round_robin", complexity_per_target=4)
    manifest = planned(stories(tmp_path, 6), text).manifests[0]
    assert len(manifest.agents) == 2
    assert paths(manifest) == {
        "E0.md": ["stories/0.md", "stories/2.md", "stories/4.md"],
        "E1.md": ["stories/1.md", "stories/3.md", "stories/5.md"],
    }


def test_by_a_field_makes_an_agent_for_each_value(tmp_path: Path) -> None:
    """Named by number."""
    manifest = planned(stories(tmp_path), agent(allocation="by_epic")).manifests[0]
    assert [(one.prompt, [made.targets for made in one.deliverables]) for one in manifest.agents] == [
        ("developer-1.md", [["stories/0.md"], ["stories/2.md"]]),
        ("developer-2.md", [["stories/1.md"], ["stories/3.md"]]),
    ]


def test_later_iterations_read_what_was_made_of_their_targets(tmp_path: Path) -> None:
    """By lineage where they name files, else what their globs match; placeholders are inherited."""
    third = """\
    - name: plan
      goal: Know when.
      dependencies: [design]
      agents:
        - role: developer
          targets: ["stories/*.md"]
          deliverables: ["{stem}.md", "all.md"]
          allocation: single
"""
    plan = planned(stories(tmp_path, 3), HEAD + REQUIREMENTS + DESIGN + third)
    design, last = plan.manifests[1:]
    made = design.agents[0].deliverables[1]
    assert (made.path, made.targets) == ("stories/S-1/design.md", [])
    assert [(one.step, one.index, one.path) for one in made.reads] == [
        ("requirements-developer", 1, "stories/S-1/requirements.md")
    ]
    single, whole = last.agents[0].deliverables[2], last.agents[0].deliverables[3]
    assert [one.path for one in single.reads] == ["stories/S-2/design.md"] and single.targets == ["stories/2.md"]
    assert [one.path for one in whole.reads] == [f"stories/S-{n}/design.md" for n in range(3)]


def test_criteria_are_said_of_each_deliverable(tmp_path: Path) -> None:
    """In the words of the workflow, and so that the check reads them; what nothing is said of must exist."""
    criteria = [
        '`{stem}.md` (exists, has "## Risks in {epic}")',
        "`extra-*.md` (>10B)",
        "{story_id} is understood",
        "Calm.",
    ]
    text = agent(deliverables=["{stem}.md", "extra-{stem}.md", "other.txt"], allocation="single")
    text += f"      completion_criteria: {json.dumps(criteria)}\n"
    page = planned(stories(tmp_path, 2), text).files["one/COMPLETION_CRITERIA.md"].decode()
    assert [one.text for one in parse(page)] == [
        '`0.md` (exists, has "## Risks in E0")', '`1.md` (exists, has "## Risks in E1")', "`extra-*.md` (>10B)",
        "S-0 is understood", "S-1 is understood", "Calm.", "`other.txt` (exists)",
    ]  # fmt: skip


def test_a_prompt_says_who_it_is_what_it_makes_and_when_that_is_good(tmp_path: Path) -> None:
    """With the instructions of the workflow, and the criteria of its own files alone."""
    text = agent(instructions="Think of the night shift.", deliverables=["{stem}.md"])
    text += '      completion_criteria: ["`{stem}.md` (exists, >1KB)"]\n'
    prompt = planned(stories(tmp_path, 2), text).files["one/agent-prompts/developer.md"].decode()
    for said in (
        "developer",
        "Get it done.",
        "Think of the night shift.",
        ">1KB",
    ):
        assert said in prompt


def test_prompts_do_not_change_with_the_targets(tmp_path: Path) -> None:
    """So that a further target makes nobody pay for the others once more."""
    before = planned(stories(tmp_path, 2), agent(deliverables=["{stem}.md"])).files
    after = planned(stories(tmp_path, 3), agent(deliverables=["{stem}.md"])).files
    for name in ("one/agent-prompts/developer.md", "one/CONTEXT.md"):
        assert before[name] == after[name]


def test_what_targets_and_people_write_is_never_a_template(tmp_path: Path) -> None:
    """Braces in instructions, in criteria and in names of files stay what they are."""
    (stories(tmp_path, 1) / "stories" / "{{ 7 * 7 }}.md").write_text("---\nstory_id: '{{ 1/0 }}'\n---\n{{ role.nope }}")
    text = agent(instructions="{{ 1/0 }} {% include 'x' %}", deliverables=["{story_id}.md"])
    plan = planned(tmp_path, text)
    assert "{{ 1/0 }} {% include 'x' %}" in plan.files["one/agent-prompts/developer.md"].decode()
    assert sorted(paths(plan.manifests[0])) == ["S-0.md", "__ 1/0 __.md"]


def test_signs_of_globs_in_names_become_underscores(tmp_path: Path) -> None:
    """`[id].tsx` is a file like any other; a path of a deliverable is also a criterion's."""
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "[id].tsx").write_text("export default 1")
    assert list(paths(planned(tmp_path, agent(targets=["pages/*"])).manifests[0])) == ["_id_.md"]


def test_a_template_of_ones_own_makes_the_prompt_and_goes_along(tmp_path: Path) -> None:
    """So that the folder can be generated again from its own copy."""
    stories(tmp_path, 1)
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "dev.md.j2").write_text("I am {{ role.name }}, {{ agent.name }}.\n{{ targets[0] }}")
    text = agent() + "templates: {developer: templates/dev.md.j2}\n"
    plan = planned(tmp_path, text)
    assert plan.files["one/agent-prompts/developer.md"] == b"I am developer, developer.\nstories/0.md\n"
    assert "templates/dev.md.j2" in plan.files
    out = tmp_path / "out"
    write_folder(out, plan.files, plan.record)
    again = pop("iterate", "generate", out / "workflow.yaml", "-o", out, "--base", tmp_path, "--json")
    assert json.loads(again.stdout)["written"] == ["README.md"]  # which says what it was made of


def test_a_template_that_fails_on_real_data_is_told_with_its_line(tmp_path: Path) -> None:
    """Before anything is written."""
    (stories(tmp_path) / "templates").mkdir()
    (tmp_path / "templates" / "developer.md.j2").write_text("a\n{{ role.perspectve }}")
    problem = refused(tmp_path, agent())
    assert "developer.md.j2:2" in (problem.where or "") and "'perspective'" in (problem.hint or "")


def test_left_out_targets_are_not_even_read(tmp_path: Path) -> None:
    """`!glob` takes out what is binary, too."""
    (stories(tmp_path, 1) / "stories" / "logo.png").write_bytes(b"\x89PNG\0")
    assert len(paths(planned(tmp_path, agent(targets=["stories/*", "!**/*.png"])).manifests[0])) == 1


def test_two_stars_mean_all_inputs_but_nothing_generated_or_hidden(tmp_path: Path) -> None:
    """Not the output folder, other generated folders, caches, a daemon's folders or dot files."""
    stories(tmp_path, 1)
    for name in (".git/x.md", "__pycache__/x.md", "pipeline-complete/x.md", "out/x.md", "old/x.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "old" / ".generated.json").write_text("{}")
    (tmp_path / "out" / "x.md").unlink()
    text = agent(targets=["**", "!workflow.yaml"], deliverables=["{path}.md"])
    assert list(paths(planned(tmp_path, text).manifests[0])) == ["stories/0.md.md"]


def test_targets_given_are_what_globs_choose_from(tmp_path: Path) -> None:
    """`--targets` may capture, too."""
    text = agent(targets=["**"], deliverables=["{number}.md"], allocation="single")
    plan = planned(stories(tmp_path, 12), text, "stories/{number}.md", "stories/1*.md")
    assert list(paths(plan.manifests[0]))[:3] == ["0.md", "1.md", "10.md"]
    assert plan.record.targets == ["stories/{number}.md", "stories/1*.md"]


def test_pages_for_people_say_what_will_happen(tmp_path: Path) -> None:
    """Order, agents, tokens, risk, and what to do next; every link in them leads somewhere."""
    plan = planned(stories(tmp_path), HEAD + REQUIREMENTS + DESIGN)
    page = plan.files["README.md"].decode()
    for said in ("| [requirements](requirements/README.md) | the start | 1 | 4 |", "pop iterate run", "LOW"):
        assert said in page
    for name, data in plan.files.items():
        if name.endswith("README.md"):
            for link in re.findall(r"\]\(([^)]+)\)", data.decode()):
                assert str(Path(name).parent / link) in plan.files, (name, link)


# -- budgets ------------------------------------------------------------------------------------------------------------


def budget(tokens: int) -> str:
    return f"agent_roles:\n  developer: {{token_budget: {tokens}, complexity_threshold: 8}}\n"


def test_a_budget_that_will_not_do_stops_generate_and_force_goes_on(tmp_path: Path) -> None:
    """Exit 3, with a split proposed in words and numbers, which then does."""
    path = written(stories(tmp_path, 8), agent() + budget(6000))
    stopped = pop("iterate", "generate", path, "-o", "out", cwd=tmp_path)
    assert stopped.returncode == 3 and not (tmp_path / "out").exists()
    assert "over-budget: one-developer would take" in stopped.stderr
    proposed = re.search(r"split it among (\d+) agents instead of 1 \(complexity_threshold: ([\d.]+)", stopped.stderr)
    assert proposed, stopped.stderr
    assert pop("iterate", "generate", path, "-o", "out", "--force", cwd=tmp_path).returncode == 0
    page = (tmp_path / "out" / "README.md").read_text()
    assert "## Mind" in page and "HIGH" in page
    written(tmp_path, agent() + budget(6000).replace("complexity_threshold: 8", f"complexity_threshold: {proposed[2]}"))
    again = json.loads(pop("iterate", "generate", path, "-o", "out2", "--json", cwd=tmp_path).stdout)
    assert len(again["agents"]) == int(proposed[1]) and {one["risk"] for one in again["agents"]} == {"LOW"}


def test_risks_and_warnings_follow_the_share_of_the_budget(tmp_path: Path) -> None:
    """70, 80, 85 and 90 percent."""
    stories(tmp_path, 4)
    tokens = planned(tmp_path, agent()).manifests[0].agents[0].tokens
    expected = {0.69: ("LOW", 0), 0.75: ("MEDIUM", 0), 0.82: ("MEDIUM", 1), 0.87: ("HIGH", 1), 0.95: ("HIGH", 1)}
    for share, (risk, notices) in expected.items():
        plan = planned(tmp_path, agent() + budget(round(tokens / share)))
        assert (plan.manifests[0].agents[0].risk, len(plan.notices)) == (risk, notices), share
    assert "split it among" in planned(tmp_path, agent() + budget(round(tokens / 0.95))).notices[0].hint
    assert "split it among" not in planned(tmp_path, agent() + budget(round(tokens / 0.82))).notices[0].hint


def test_a_target_larger_than_the_whole_budget_is_an_error_also_with_force(tmp_path: Path) -> None:
    """Nothing could ever be made of it."""
    (stories(tmp_path) / "stories" / "big.md").write_text("word " * 10_000)
    result = pop("iterate", "generate", written(tmp_path, agent() + budget(9000)), "--force", cwd=tmp_path)
    assert result.returncode == 3 and "target-too-large" in result.stderr and "stories/big.md" in result.stderr


def test_a_prompt_larger_than_the_whole_budget_is_an_error_also_with_force(tmp_path: Path) -> None:
    """Every target fits, and yet no call would be made."""
    path = written(stories(tmp_path), agent() + budget(500))
    result = pop("iterate", "generate", path, "--force", cwd=tmp_path)
    assert result.returncode == 3 and "more than the whole budget of developer (500)" in result.stderr
    assert "workflow.iterations[0].agents[0]" in result.stderr and "raise token_budget" in result.stderr


def test_more_steps_than_a_pipeline_holds_are_refused(tmp_path: Path) -> None:
    """With what to turn."""
    problem = refused(stories(tmp_path, 901), agent(complexity_per_target=8))
    assert "902 agents and checks are too many" in problem.message and "complexity_threshold" in (problem.hint or "")


def test_a_dry_run_shows_the_allocation_and_writes_nothing(tmp_path: Path) -> None:
    """With tokens, and with what it costs where the root's models have a price."""
    root = tmp_path / "root"
    assert pop("init", root).returncode == 0
    with open(root / "pop.toml", "a") as file:
        file.write('\n[models.dear]\nprovider = "openai"\nmodel = "x"\nbase_url = "http://127.0.0.1:9/v1"\n')
        file.write("price = {input = 1000.0, output = 2000.0}\n")
    written(stories(root), agent() + "agent_roles:\n  developer: {model: dear}\n")
    shown = pop("iterate", "generate", "workflow.yaml", "--dry-run", cwd=root)
    assert shown.returncode == 0 and not (root / "stories" / "out").exists() and not (root / "one").exists()
    assert "developer" in shown.stdout and re.search(r"about [1-9]\d*\.\d+ USD", shown.stdout)
    value = json.loads(pop("iterate", "generate", "workflow.yaml", "--dry-run", "--json", cwd=root).stdout)
    row = value["agents"][0]
    assert value["cost_usd"] == pytest.approx((row["input_tokens"] * 1000 + row["output_tokens"] * 2000) / 1e6)
    assert {path.name for path in root.iterdir() if path.name == "stories"} == {"stories"}


def test_a_model_that_is_not_there_is_told_by_its_name(tmp_path: Path) -> None:
    """Where there is a root to say which are."""
    root = tmp_path / "root"
    assert pop("init", root).returncode == 0
    written(stories(root), agent() + "agent_roles:\n  developer: {model: bultin}\n")
    result = pop("iterate", "generate", "workflow.yaml", cwd=root)
    assert result.returncode == 3 and "no model 'bultin'" in result.stderr and "'builtin'" in result.stderr


# -- what is never overwritten -------------------------------------------------------------------------------------------


def generate(folder: Path, text: str | None = None) -> Any:
    if text is not None:
        written(folder, text)
    result = pop("iterate", "generate", folder / "workflow.yaml", "-o", folder / "out", "--json", "--base", folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_generating_again_changes_nothing_where_nothing_changed(tmp_path: Path) -> None:
    """Byte for byte."""
    generate(stories(tmp_path), HEAD + REQUIREMENTS + DESIGN)
    before = everything(tmp_path / "out")
    assert generate(tmp_path)["written"] == []
    assert everything(tmp_path / "out") == before


def test_an_edited_file_stays_and_the_new_text_goes_beside(tmp_path: Path) -> None:
    """Only when there is new text; said clearly; and never over what is beside, when that was edited too."""
    generate(stories(tmp_path), agent())
    prompt = tmp_path / "out" / "one" / "agent-prompts" / "developer.md"
    prompt.write_text("Mine.\n")
    assert generate(tmp_path)["kept"] == ["one/agent-prompts/developer.md"]
    name = "one/agent-prompts/developer.md"
    assert generate(tmp_path, agent(instructions="Be brief."))["beside"] == {name: f"{name}.new"}
    assert prompt.read_text() == "Mine.\n" and "Be brief." in (prompt.parent / "developer.md.new").read_text()
    assert "Be brief." in (prompt.parent / "developer.md.new").read_text()
    (prompt.parent / "developer.md.new").write_text("Mine too.\n")
    assert generate(tmp_path, agent(instructions="Be long."))["beside"] == {name: f"{name}.new2"}
    assert (prompt.parent / "developer.md.new").read_text() == "Mine too.\n"
    result = pop("iterate", "generate", tmp_path / "workflow.yaml", "-o", tmp_path / "out", "--base", tmp_path)
    assert "developer.md was edited and stays" in result.stderr


def test_a_folder_is_generated_again_of_its_own_copy(tmp_path: Path) -> None:
    """With the base and the targets it had; what was changed in the copy counts."""
    written(stories(tmp_path), agent())
    first = pop("iterate", "generate", "workflow.yaml", "-o", "out", "-t", "stories/[01].md", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    copy = tmp_path / "out" / "workflow.yaml"
    copy.write_text(copy.read_text().replace("{stem}.md", "{stem}.txt"))
    assert pop("iterate", "generate", copy, cwd=tmp_path / "stories").returncode == 0
    made = Manifest.model_validate_json((tmp_path / "out" / "one" / "manifest.json").read_bytes())
    assert paths(made) == {"0.txt": ["stories/0.md"], "1.txt": ["stories/1.md"]}
    assert {one.name for one in (tmp_path / "stories").iterdir()} == {f"{n}.md" for n in range(4)}


def test_what_is_not_made_any_more_goes_unless_it_was_edited(tmp_path: Path) -> None:
    """And what a run delivered is none of its business."""
    generate(stories(tmp_path), agent(complexity_per_target=4) + budget(100_000))
    prompts = tmp_path / "out" / "one" / "agent-prompts"
    (tmp_path / "out" / "one" / "0.md").write_text("delivered")
    (prompts / "developer-1.md").write_text("Mine.")
    done = generate(tmp_path, agent() + budget(100_000))
    assert done["removed"] == ["one/agent-prompts/developer-2.md"]
    assert done["left"] == ["one/agent-prompts/developer-1.md"]
    assert {one.name for one in prompts.iterdir()} == {"developer.md", "developer-1.md"}
    assert (tmp_path / "out" / "one" / "0.md").read_text() == "delivered"


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """Not empty, a file, or without a readable record; an empty one is taken."""
    plan = planned(stories(tmp_path), agent())
    out = tmp_path / "out"
    out.mkdir()
    write_folder(out, plan.files, plan.record)
    (out / ".generated.json").write_text("{")
    with pytest.raises(RootError, match="cannot be read"):
        write_folder(out, plan.files, plan.record)
    (out / ".generated.json").unlink()
    with pytest.raises(UsageError, match="did not make it"):
        write_folder(out, plan.files, plan.record)
    with pytest.raises(UsageError, match="is no folder"):
        write_folder(tmp_path / "workflow.yaml", plan.files, plan.record)
    result = pop("iterate", "generate", tmp_path / "workflow.yaml", "-o", tmp_path)
    assert result.returncode == 2 and "not-ours" in result.stderr


def test_a_link_in_the_folder_leads_nowhere(tmp_path: Path) -> None:
    """Neither for a file nor for a folder on the way."""
    generate(stories(tmp_path), agent())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    prompts = tmp_path / "out" / "one" / "agent-prompts"
    os.rename(prompts, tmp_path / "kept")
    prompts.symlink_to(elsewhere)
    result = pop("iterate", "generate", tmp_path / "workflow.yaml", "-o", tmp_path / "out", "--base", tmp_path)
    assert result.returncode == 3 and "outside" in result.stderr and not any(elsewhere.iterdir())


def test_a_failure_leaves_no_half_a_folder(tmp_path: Path) -> None:
    """A new folder appears whole, or not at all."""
    plan = planned(stories(tmp_path), agent())
    with pytest.raises(OSError):
        write_folder(tmp_path / "out", {**plan.files, "x" * 300: b""}, plan.record)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["stories", "workflow.yaml"]


# -- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ({"targets": ["storys/*.md"]}, "nothing matches 'storys/*.md'", "stories/0.md"),
        ({"targets": ["stories/*", "!**"]}, "everything that matches is left out", None),
        ({"targets": ["stories/[z-a]*.md"]}, "is no glob", None),
        ({"targets": ["a*b*c*d*e*f*.md"]}, "more than 5 stars", None),
        ({"targets": ["**/a/**/b/**/c/**/*.md"]}, "more than three times", None),
        (
            {"deliverables": ["{stroy_id}.md"]},
            "nothing is known as {stroy_id} of the target 'stories/0.md'",
            "'story_id'",
        ),
        ({"allocation": "by_epik"}, "the target 'stories/0.md' has no 'epik'", "'epic'"),
        ({"deliverables": ["{iteration}.md"], "complexity_per_target": 4}, "would both write 'one.md'", "{n}"),
        ({"deliverables": ["{stem}.md", "{story_id}.md", "0.md"]}, "made twice", "different names"),
        ({"deliverables": ["{stem}", "{stem}/x.md"]}, "would be a file, and the folder", None),
    ],
)
def test_what_cannot_be_allocated_is_told_with_its_place(
    tmp_path: Path, keys: dict[str, Any], message: str, hint: str | None
) -> None:
    """In the workflow's file, before anything is written."""
    with pytest.raises(ConfigErrors) as caught:
        planned(stories(tmp_path), agent(**keys))
    first = caught.value.problems[0]
    assert message in first.message, str(caught.value)
    assert re.search(r"workflow\.yaml:8:\d+", first.where or "")
    assert hint is None or hint in (first.hint or "")
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_collide_with_a_way_out(tmp_path: Path) -> None:
    """`a/x.md` and `b/x.md` are not meant to become one review."""
    for name in ("a/x.md", "b/x.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    problem = refused(tmp_path, agent(targets=["*/x.md"]))
    assert "'a/x.md' and 'b/x.md' would both become 'x.md'" in problem.message
    assert sorted(paths(planned(tmp_path, agent(targets=["*/x.md"], deliverables=["{parent}/{stem}.md"])).manifests[0])) == [
        "a/x.md", "b/x.md",
    ]  # fmt: skip


def test_two_roles_never_write_the_same_file(tmp_path: Path) -> None:
    """Not even in another case: some disks know no difference."""
    text = agent() + '        - {role: poet, targets: ["stories/*.md"], deliverables: ["{stem}.MD"]}\n'
    text += "agent_roles:\n  poet: {perspective: You are a poet.}\n"
    with pytest.raises(ConfigErrors, match="'one-developer' and 'one-poet' would both write '0.MD'"):
        planned(stories(tmp_path), text)


@pytest.mark.parametrize("value", ["../../etc", "/etc", "a/../../b"])
def test_a_value_of_front_matter_does_not_lead_out_of_the_folder(tmp_path: Path, value: str) -> None:
    """It is data."""
    (stories(tmp_path, 1) / "stories" / "evil.md").write_text(f"---\nstory_id: {value}\n---\n")
    problem = refused(tmp_path, agent(deliverables=["{story_id}"] if value[0] == "/" else ["x/{story_id}/y.md"]))
    assert "leaves the folder" in problem.message and "stories/evil.md" in problem.message


def test_an_earlier_iteration_must_be_a_dependency(tmp_path: Path) -> None:
    """Said so, where the name is known."""
    problem = refused(
        stories(tmp_path), HEAD + REQUIREMENTS + DESIGN.replace("      dependencies: [requirements]\n", "")
    )
    assert "does not go before 'design'" in problem.message and problem.hint == "dependencies: [requirements]"


def test_an_earlier_deliverable_that_nobody_makes_is_told(tmp_path: Path) -> None:
    """With the nearest."""
    problem = refused(stories(tmp_path), HEAD + REQUIREMENTS + DESIGN.replace("*/requirements.md", "*/requirement.md"))
    assert "no deliverable of 'requirements' matches" in problem.message


def test_schemas_of_criteria_go_along(tmp_path: Path) -> None:
    """Into the iteration's folder, where agents, check and validate find them; a missing one is told before."""
    text = (
        agent(deliverables=["{stem}.json"])
        + '      completion_criteria: ["`{stem}.json` (schema `part.schema.json`)"]\n'
    )
    (tmp_path / "party.schema.json").write_text("{}")
    problem = refused(stories(tmp_path), text)
    assert "no schema 'part.schema.json'" in problem.message and "party.schema.json" in (problem.hint or "")
    (tmp_path / "part.schema.json").write_text('{"type": "object"}')
    assert planned(tmp_path, text).files["one/part.schema.json"] == b'{"type": "object"}'


def test_criteria_about_files_that_nobody_makes_are_mistakes(tmp_path: Path) -> None:
    """They could never be met."""
    problem = refused(stories(tmp_path), agent() + '      completion_criteria: ["`0.txt` (exists)"]\n')
    assert "no agent makes '0.txt'" in problem.message and "0.md" in (problem.hint or "")
    problem = refused(tmp_path, agent() + '      completion_criteria: ["`{stm}.md` (exists)"]\n')
    assert "{stm}" in problem.message and "'stem'" in (problem.hint or "")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("logo.md", b"\x89PNG\0\0", "is binary"),
        ("latin.md", "Grüße".encode("latin-1"), "not UTF-8"),
        ("two\nlines.md", b"x", "a character that nobody sees"),
        ("back\\slash.md", b"x", "a backslash"),
        (os.fsdecode(b"\xff.md"), b"x", "a character that nobody sees"),
    ],
)
def test_a_target_that_is_no_text_is_refused_by_its_name(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    """Shown without what could steer a terminal."""
    (stories(tmp_path, 1) / "stories" / name).write_bytes(data)
    problem = refused(tmp_path, agent())
    assert message in problem.message and "\n" not in problem.message


def test_links_and_pipes_are_told_from_files(tmp_path: Path) -> None:
    """A link out of the base is an error, one inside is the file; links to folders are not followed; pipes do not block."""
    folder = stories(tmp_path / "base", 1) / "stories"
    os.mkfifo(folder / "pipe.md")
    (folder / "gone.md").symlink_to("nowhere")
    (folder / "again").symlink_to(folder)
    (folder / "same.md").symlink_to(folder / "0.md")
    text = agent(targets=["**/*.md"], deliverables=["{path}"])
    assert list(paths(planned(tmp_path / "base", text).manifests[0])) == ["stories/0.md", "stories/same.md"]
    (folder / "out.md").symlink_to("/etc/hostname")
    assert "leads out of" in refused(tmp_path / "base", text).message
    (folder / "out.md").unlink()
    (tmp_path / "base" / "link").symlink_to("/etc")
    assert "leads out of" in refused(tmp_path / "base", agent(targets=["link/*"])).message


def test_a_huge_target_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Sparse, so that reading it would show."""
    with open(stories(tmp_path, 1) / "stories" / "huge.md", "wb") as file:
        file.truncate(50 * 2**30)
    began = time.monotonic()
    assert "51200.0 MB is more than the limit" in refused(tmp_path, agent()).message
    assert time.monotonic() - began < 5


def test_more_matches_than_can_be_worked_on_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the number."""
    monkeypatch.setattr(targets_module, "MAX_TARGETS", 10)
    problem = refused(stories(tmp_path, 12), agent())
    assert "'stories/*.md' matches 12 files, which are too many (at most 10)" in problem.message


def test_a_hundred_mistakes_are_told_without_end_being_lost(tmp_path: Path) -> None:
    """The first of them, and how many more."""
    for n in range(100):
        (stories(tmp_path, 1) / "stories" / f"b{n}.md").write_bytes(b"\0")
    with pytest.raises(ConfigErrors) as caught:
        planned(tmp_path, agent())
    assert len(caught.value.problems) == 20 and "and 81 more like these" in caught.value.problems[-1].message


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("---\na: 1\nb: x y\n---\n", {"a": "1", "b": "x y"}),
        ("---\nid: 007\nday: 2026-11-21\nyes: no\n---\n", {"id": "007", "day": "2026-11-21", "yes": "no"}),
        ("---\na: 'x: y' # c\nb: [1]\nc:\n  d: 1\ne:\nf: ~\n---\n", {"a": "x: y"}),
        ("---\r\na: 1\r\n---\r\nx", {"a": "1"}),
        ("---\nodd key: 1\n---\n", {}),
        ("no\n---\na: 1\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ("---\nnever closed: 1\n", {}),
        ("a: 1", {}),
    ],
)
def test_front_matter_counts_as_it_is_written(text: str, fields: dict[str, str]) -> None:
    """007 stays 007; lists, empty values and what is no front matter count for nothing."""
    assert front_fields(text) == (fields, None)


def test_broken_front_matter_is_told_where_it_is_missed(tmp_path: Path) -> None:
    """And passed over where nobody needs it."""
    stories(tmp_path, 1)
    (tmp_path / "stories" / "0.md").write_text("---\na: [\nb: 'x\n---\n")
    assert len(paths(planned(tmp_path, agent()).manifests[0])) == 1
    problem = refused(tmp_path, agent(deliverables=["{story_id}.md"]))
    assert "front matter cannot be read" in (problem.hint or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--targets", "/etc/*"], "is absolute"),
        (["--targets", "../*"], "has '..'"),
        (["--targets", "nope/*.md"], "nothing matches 'nope/*.md'"),
        (["--base", "nowhere"], "no such folder"),
        (["--sample"], "comes with no sample"),
        (["--sample", "--base", "."], "do not go together"),
        (["--root", "nowhere"], "no folder"),
    ],
)
def test_options_that_cannot_be_are_told(tmp_path: Path, options: list[str], message: str) -> None:
    """Without a traceback, and as JSON where that is asked for."""
    path = written(stories(tmp_path), agent())
    result = pop("iterate", "generate", path, *options, cwd=tmp_path)
    assert result.returncode in (2, 3) and message in result.stderr and "Traceback" not in result.stderr
    asked = pop("iterate", "generate", path, *options, "--json", cwd=tmp_path)
    assert asked.returncode == result.returncode and json.loads(asked.stdout)["error"]["code"]


def test_long_work_tells_on_a_terminal_how_far_it_is(tmp_path: Path) -> None:
    """One line, which is gone in the end."""
    stories(tmp_path, 3000)
    written(tmp_path, agent(complexity_per_target=0.1))
    child = pexpect.spawn(
        str(REPOSITORY / ".venv/bin/python") if (REPOSITORY / ".venv").exists() else "python3",
        ["-m", "pop", "iterate", "generate", "workflow.yaml", "--force"],
        cwd=str(tmp_path), timeout=60, dimensions=(40, 100), env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    child.expect(r"(reading targets [\d,]+ of 3,000|looking for targets|writing files [\d,]+ of)")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_what_targets_say_of_themselves_keeps_a_criterion_what_it_is(tmp_path: Path) -> None:
    """Brackets, quotes, backticks and braces of names and front matter neither break nor change the checklist."""
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "[id].md").write_text('---\ntitle: The "best" (one), `x`\n---\na\n')
    criteria = ['`{stem}.md` (exists, has "{title}")', "{title} is told well."]
    plan = planned(tmp_path, agent() + f"      completion_criteria: {json.dumps(criteria)}\n")
    path, prose = parse(plan.files["one/COMPLETION_CRITERIA.md"].decode())
    assert path.paths == ("_id_.md",)
    assert [rule.words for rule in path.rules if isinstance(rule, Holds)] == [('The "best" (one), `x`',)]
    assert prose.paths == () and prose.text == "The \"best\" (one), 'x' is told well."


def test_a_value_that_looks_like_a_placeholder_is_none(tmp_path: Path) -> None:
    """The path it goes into is one that criteria can name."""
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "a.md").write_text('---\nid: "{n}"\n---\na\n')
    plan = planned(tmp_path, agent(deliverables=["{id}.md"]))
    assert [one.path for one in plan.manifests[0].agents[0].deliverables] == ["_n_.md"]
    assert parse(plan.files["one/COMPLETION_CRITERIA.md"].decode())


@pytest.mark.parametrize(
    ("criterion", "value", "says"),
    [
        ("command `grep -q {word} {stem}.md`", "$(reboot)", "cannot stand in a command"),
        ("command `grep -q {word} {stem}.md`", "-r", "cannot stand in a command"),
        ("{word} it is", "command ''", None),
        ("{word} reads well", "well", None),
    ],
)
def test_a_target_puts_nothing_into_a_command(tmp_path: Path, criterion: str, value: str, says: str | None) -> None:
    """Only what is a plain word for every shell goes there."""
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "a.md").write_text(f"---\nword: {value}\n---\na\n")
    text = agent() + f"      completion_criteria: {json.dumps([criterion])}\n"
    if says:
        assert says in refused(tmp_path, text).message
    else:
        planned(tmp_path, text)


def test_a_criterion_that_means_no_single_thing_is_told(tmp_path: Path) -> None:
    """It is not left out in silence where a deliverable has several targets."""
    stories(tmp_path, 3)
    text = agent(deliverables=["{epic}.md"])
    error = refused(tmp_path, text + "      completion_criteria: ['`{epic}.md` (has \"{story_id}\")']\n")
    assert error.message == "{story_id} is not one thing for 'E0.md'"


def test_a_link_to_itself_is_no_target(tmp_path: Path) -> None:
    """And no error."""
    stories(tmp_path, 1)
    (tmp_path / "stories" / "loop.md").symlink_to("loop.md")
    assert planned(tmp_path, agent()).targets == 1
