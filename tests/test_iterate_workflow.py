"""A workflow in YAML: what it may say, and every mistake with its line, its column and the nearest name."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from pop.errors import ConfigError, ConfigErrors, UsageError
from pop.recipes.iterate.library import ROLES, find_workflow, load_role, role_names
from pop.recipes.iterate.manifest import Manifest
from pop.recipes.iterate.workflow import WorkflowFile, load_workflow
from pop.yamlplaces import read_yaml
from tests.test_cli import pop

GOOD = """\
workflow:
  name: stories
  description: Refine stories.
  iterations:
    - name: requirements
      goal: Know what is wanted.
      agents:
        - role: developer
          targets: ["stories/*.md"]
          deliverables: ["stories/{story_id}/requirements.md"]
      completion_criteria:
        - '`stories/{story_id}/requirements.md` (exists, >1KB, has "## Risks")'
    - name: design
      goal: Know how it is built.
      dependencies: [requirements]
      agents:
        - role: developer
          targets: ["requirements/stories/*/requirements.md"]
          deliverables: ["stories/{story_id}/design.md"]
          allocation: by_epic
"""


def written(folder: Path, text: str = GOOD) -> Path:
    path = folder / "workflow.yaml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str) -> list[ConfigError]:
    with pytest.raises(ConfigErrors) as caught:
        load_workflow(written(folder, text))
    return caught.value.problems


def only(folder: Path, text: str) -> ConfigError:
    found = problems(folder, text)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def place(problem: ConfigError) -> str:
    """``9:20``."""
    found = re.search(r"workflow\.yaml:(\d+:\d+)", problem.where or "")
    assert found, problem.where
    return found[1]


def test_a_workflow_is_read_with_its_roles_and_templates(tmp_path: Path) -> None:
    """What is not said is as the documentation says."""
    loaded = load_workflow(written(tmp_path))
    first, second = loaded.workflow.iterations
    assert (first.rounds, first.otherwise, first.dependencies) == (2, "fail", [])
    assert (first.agents[0].allocation, first.agents[0].complexity_per_target) == ("balanced", 1.0)
    assert second.agents[0].output_tokens == 800
    assert loaded.roles["developer"] == load_role("developer")
    assert loaded.templates["developer"].name.endswith(".md.j2")
    assert loaded.workflow.before("design") == {"requirements"}


def test_a_role_says_only_what_differs(tmp_path: Path) -> None:
    """The rest is the library's."""
    loaded = load_workflow(written(tmp_path, GOOD + "agent_roles:\n  developer: {token_budget: 5000}\n"))
    library = load_role("developer")
    assert loaded.roles["developer"] == library.model_copy(update={"token_budget": 5000})


def test_a_role_of_ones_own_needs_a_perspective(tmp_path: Path) -> None:
    """Nobody else can say who it is."""
    mine = GOOD.replace("role: developer", "role: poet", 1)
    problem = only(tmp_path, mine + "agent_roles:\n  poet: {token_budget: 5000}\n")
    assert "perspective" in problem.message and place(problem) == "22:3"
    loaded = load_workflow(written(tmp_path, mine + "agent_roles:\n  poet: {perspective: You are a poet.}\n"))
    assert loaded.roles["poet"].perspective == "You are a poet."


@pytest.mark.parametrize(
    ("old", "new", "where", "message", "hint"),
    [
        ("goal: Know what", "gaol: Know what", "6:7", "unknown key 'gaol'", "'goal'"),
        ("  description:", "  descripton:", "3:3", "unknown key 'descripton'", "'description'"),
        ("          targets: [\"stor", "          target: [\"stor", "9:11", "unknown key 'target'", "'targets'"),
        ("role: developer", "role: develper", "8:17", "no role 'develper'", "'developer'"),
        ("dependencies: [requirements]", "dependencies: [requirments]", "15:22", "no iteration 'requirments'", "'requirements'"),
        ("name: design", "name: requirements", "13:13", "a second iteration", "another name"),
        ("name: design", "name: templates", "13:13", "folder of the workflow itself", "another name"),
        ("name: stories", "name: default", "2:9", "pipeline.json is called", "another name"),
        ("by_epic", "by_", "20:23", "cannot stand here", "by_<field>"),
        ("name: design", "name: Design", "13:13", "cannot stand here", "lower-case"),
        ('["stories/*.md"]', '["/etc/*.md"]', "9:21", "is absolute", None),
        ('["stories/*.md"]', '["../*.md"]', "9:21", "has '..'", None),
        ('["stories/*.md"]', '["a/{x.md"]', "9:21", "brace", None),
        ('["stories/*.md"]', '["{x}/{x}.md"]', "9:21", "{x} twice", None),
        ('["stories/*.md"]', '["!x.md"]', "9:20", "only leaves out", "**"),
        ('["stories/*.md"]', "[]", "9:20", "at least 1 item", None),
        ('["stories/*.md"]', "stories", "9:20", "valid list", None),
        ("stories/{story_id}/design.md", "../{story_id}.md", "19:26", "leaves the folder", "relative"),
        ("stories/{story_id}/design.md", "/tmp/x.md", "19:26", "leaves the folder", "relative"),
        ("stories/{story_id}/design.md", "stories/*.md", "19:26", "sign of globs", "name one file"),
        ("stories/{story_id}/design.md", "README.md", "19:26", "itself writes", "another name"),
        ("stories/{story_id}/design.md", "agent-prompts/x.md", "19:26", "itself writes", "another name"),
        ("has \"## Risks\")", "has \"## Risks\"", "12:11", "not closed", "close it"),
        ("Refine stories.", "7", "3:16", "valid string", "quotes"),
        ("      goal: Know how", "      rounds: 11\n      goal: Know how", "14:15", "less than or equal to 10", None),
    ],
)  # fmt: skip
def test_a_mistake_stands_where_it_was_made(
    tmp_path: Path, old: str, new: str, where: str, message: str, hint: str | None
) -> None:
    """Line, column, what, and the nearest name."""
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new, 1))
    mine = [problem for problem in found if message in problem.message]
    assert mine, "\n".join(map(str, found))
    assert place(mine[0]) == where
    assert hint is None or hint in (mine[0].hint or "")


def test_a_circle_is_shown_as_one(tmp_path: Path) -> None:
    """With the way around it."""
    problem = only(tmp_path, GOOD.replace("    - name: design", "      dependencies: [design]\n    - name: design"))
    assert "wait for each other" in problem.message
    assert (
        "requirements -> design -> requirements" in problem.message
        or "design -> requirements -> design" in problem.message
    )


def test_an_iteration_that_waits_for_itself_is_a_circle_too(tmp_path: Path) -> None:
    """The shortest one."""
    assert "design -> design" in only(tmp_path, GOOD.replace("[requirements]", "[design]")).message


def test_steps_that_would_be_called_alike_are_refused(tmp_path: Path) -> None:
    """`a-b` of `c` and `a` of `b-c`; a role called check."""
    text = GOOD.replace("role: developer", "role: check", 1) + "agent_roles:\n  check: {perspective: You check.}\n"
    assert "would both be the step" in only(tmp_path, text).message


def test_roles_and_templates_that_nobody_uses_are_mistakes(tmp_path: Path) -> None:
    """Most often a name was mistyped, and would be passed over in silence."""
    found = problems(tmp_path, GOOD + "agent_roles:\n  develper: {}\ntemplates:\n  develper: x.j2\n")
    assert [place(problem) for problem in found] == ["22:3", "24:3"]
    assert all("'developer'" in (problem.hint or "") for problem in found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("templates/nope.md.j2", "no template"),
        ("../x.j2", "plain relative path"),
        ("/etc/passwd", "plain relative path"),
    ],
)
def test_a_template_must_be_there_and_inside(tmp_path: Path, given: str, message: str) -> None:
    """It is copied with the workflow."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "none.md.j2").write_text("x")
    problem = only(tmp_path, f"{GOOD}templates:\n  developer: {given}\n")
    assert message in problem.message and place(problem) == "22:14"


def test_a_template_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    """Also where it lies beside the workflow and nobody names it."""
    (tmp_path / "templates").mkdir()
    os.symlink("/etc/hostname", tmp_path / "templates" / "developer.md.j2")
    assert "symbolic link" in only(tmp_path, GOOD).message


@pytest.mark.parametrize(
    ("template", "message", "hint"),
    [
        ("Hello\n{{ rolle.name }}", "unknown name 'rolle'", "'role'"),
        ("{{ role.name | uper }}", "unknown filter 'uper'", "'upper'"),
        ("{{ role.name ", "unexpected", None),
        ("{% include 'x' %}", "include is not available", None),
    ],
)
def test_a_template_is_checked_before_anything_is_made(
    tmp_path: Path, template: str, message: str, hint: str | None
) -> None:
    """Names, filters and syntax, with the line."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "developer.md.j2").write_text(template)
    found = problems(tmp_path, GOOD)
    assert any(message in problem.message for problem in found), "\n".join(map(str, found))
    assert all("developer.md.j2:" in (problem.where or "") for problem in found)
    assert hint is None or any(hint in (problem.hint or "") for problem in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "expected"),
        ("- a\n- b\n", "`key: value`"),
        ("a: &x [1]\nb: *x\n", "anchors"),
        ("workflow:\n  iterations:\n    - agents:\n      - targets: [*.md]\n", "anchors"),
        ("workflow: {name: a}\nworkflow: {name: b}\n", "duplicate"),
        ("", "`workflow` is missing"),
        ("\x00", "not allowed"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    """And never a traceback."""
    assert message in str(problems(tmp_path, text)[0])


def test_a_glob_without_quotes_is_told_how_to_be_written(tmp_path: Path) -> None:
    """`*.md` is an alias in YAML."""
    problem = problems(tmp_path, "workflow:\n  targets: [*.md]\n")[0]
    assert problem.hint == 'put a glob between quotes: "*.md"' and place(problem) == "2:13"


def test_not_utf8_and_too_large_are_told(tmp_path: Path) -> None:
    """With the file."""
    path = tmp_path / "w.yaml"
    path.write_bytes(b"workflow: \xff\n")
    with pytest.raises(ConfigErrors, match="not UTF-8 at byte 10"):
        load_workflow(path)
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigErrors, match="more than the limit"):
        load_workflow(path)


def test_every_mistake_is_told_at_once_in_reading_order(tmp_path: Path) -> None:
    """One run of the check is enough."""
    text = GOOD.replace("role: developer", "role: develper").replace("[requirements]", "[x]").replace("by_epic", "by_e")
    found = problems(tmp_path, text)
    lines = [int(place(problem).split(":")[0]) for problem in found]
    assert len(found) == 3 and lines == sorted(lines)


def test_a_root_s_workflow_goes_before_the_package_s(tmp_path: Path) -> None:
    """By name; a path is a path."""
    own = tmp_path / "workflows" / "mine"
    own.mkdir(parents=True)
    path = written(own)
    assert find_workflow("mine", tmp_path).path == path
    assert find_workflow(str(own), None).path == path
    with pytest.raises(UsageError, match="no workflow 'mne'") as caught:
        find_workflow("mne", tmp_path)
    assert "'mine'" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no workflow file"):
        find_workflow("mne/workflow.yaml", tmp_path)


@pytest.mark.parametrize("name", role_names())
def test_every_role_of_the_library_can_be_read(name: str) -> None:
    """With a perspective, and lists that say something."""
    role = load_role(name)
    assert role.perspective and role.responsibilities and role.constraints
    assert set(YAML(typ="safe").load((ROLES / f"{name}.yaml").read_text())) <= set(type(role).model_fields)


def test_an_unknown_role_hints_at_the_nearest() -> None:
    """As `pop iterate roles` does."""
    with pytest.raises(UsageError, match="no role 'develper'") as caught:
        load_role("develper")
    assert "'developer'" in (caught.value.hint or "")


def test_the_schema_accepts_what_the_reader_accepts() -> None:
    """`pop schema iterate-workflow`, for editors."""
    schema = WorkflowFile.model_json_schema()
    value = read_yaml(GOOD, "x", "x", example="")[0]
    jsonschema.validate(value, schema)
    value["workflow"]["iterations"][0]["gaol"] = "x"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, schema)


def test_both_schemas_are_printed() -> None:
    """By their names."""
    printed = json.loads(pop("schema", "iterate-manifest").stdout)
    assert set(printed["properties"]) == set(Manifest.model_fields)
    assert pop("schema", "iterate-workflow").returncode == 0


def test_check_tells_what_will_work_on_what(tmp_path: Path) -> None:
    """Exit 0 and a summary, or 3 and the mistakes; the same as JSON."""
    path = written(tmp_path)
    fine = pop("iterate", "check", path)
    assert fine.returncode == 0 and "developer: stories/*.md -> stories/{story_id}/requirements.md" in fine.stdout
    assert json.loads(pop("iterate", "check", path, "--json").stdout)["ok"] is True
    written(tmp_path, GOOD.replace("role: developer", "role: develper", 1))
    broken = pop("iterate", "check", path, "--json")
    assert broken.returncode == 3
    assert [one["code"] for one in json.loads(broken.stdout)["problems"]] == ["bad-workflow"]
    assert "did you mean 'developer'?" in pop("iterate", "check", path).stdout


def test_roles_are_listed_and_shown() -> None:
    """All of them, by their first sentence; one with all it brings."""
    lines = pop("iterate", "roles").stdout.splitlines()
    assert [line.split()[0] for line in lines] == role_names() and max(map(len, lines)) < 250
    developer = next(line for line in lines if line.startswith("developer"))
    assert developer.endswith("You are the one who has to make it run, and to read it again in a year.")
    listed = json.loads(pop("iterate", "roles", "--json").stdout)
    assert [one["name"] for one in listed] == role_names()
    shown = pop("iterate", "roles", "developer")
    assert "responsibilities:" in shown.stdout and "token_budget:" in shown.stdout
    assert pop("iterate", "roles", "develper").returncode == 2


def test_a_workflow_of_a_root_is_listed_also_when_it_is_broken(tmp_path: Path) -> None:
    """With what to do about it."""
    root = tmp_path / "root"
    assert pop("init", root).returncode == 0
    for name, text in (("fine", GOOD), ("broken", "workflow: 1\n")):
        (root / "workflows" / name).mkdir(parents=True)
        written(root / "workflows" / name, text)
    rows = {row["name"]: row for row in json.loads(pop("iterate", "list", "--json", root=root).stdout)}
    assert rows["fine"]["iterations"] == ["requirements", "design"] and rows["fine"]["source"] == "root"
    assert rows["broken"]["description"] is None
    assert "pop iterate check broken" in pop("iterate", "list", root=root).stdout


def test_copy_makes_a_workflow_ones_own(tmp_path: Path) -> None:
    """Whole, below the root's workflows/; never over something that is there."""
    root = tmp_path / "root"
    assert pop("init", root).returncode == 0
    source = root / "workflows" / "mine"
    (source / "templates").mkdir(parents=True)
    written(source)
    (source / "templates" / "developer.md.j2").write_text("You are {{ role.name }}.")
    copied = pop("iterate", "copy", "mine", tmp_path / "copy", root=root)
    assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "copy" / "workflow.yaml").read_text() == GOOD
    assert (tmp_path / "copy" / "templates" / "developer.md.j2").is_file()
    again = pop("iterate", "copy", "mine", tmp_path / "copy", root=root)
    assert again.returncode == 2 and "is-there" in again.stderr
    assert pop("iterate", "copy", "mne", root=root).returncode == 2


def test_unknown_subcommands_hint_at_the_nearest() -> None:
    """As everywhere."""
    result = pop("iterate", "genrate")
    assert result.returncode == 2 and "Did you mean 'generate'?" in result.stderr
