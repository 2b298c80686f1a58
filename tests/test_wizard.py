"""`pop new` as a person uses it: in a real terminal with arrow keys, line by line without one, and by options."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jsonschema
import pexpect
import pytest
import ruamel.yaml

from pop.recipes.wizard.answers import Answers
from pop.recipes.wizard.compose import REQUEST_PLACE
from pop.recipes.wizard.goals import load_goal_map
from pop.recipes.wizard.project import check_project_name
from pop.store import lock_holder
from tests.fake_openai import FakeOpenAI, Fault
from tests.test_cli import REPOSITORY, pop
from tests.wizardry import GOAL, GOOD, MAP, MISSING, ended, environment, files_of, make_root, server, talk

GOALS = [goal.name for goal in load_goal_map(None).goals]
DOWN, UP, CTRL_C, ENTER = "\x1b[B", "\x1b[A", "\x03", "\r"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root")


def new(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return pop("new", *more, root=root)


def document(root: Path, project: str, name: str = "00_PERSONA.md") -> str:
    return (root / "output" / project / name).read_text()


def to_the_title(child: pexpect.spawn[str], goal: int = 1, name: str = "Some_Project") -> None:
    """Answer up to the persona's title."""
    child.expect("Project name")
    child.send(f"{name}{ENTER}")
    child.expect("primary goal")
    child.send(f"{goal}{ENTER}")
    child.expect("Recommended persona")
    child.send(ENTER)
    child.expect("Title of the persona")


# -- in a terminal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(1, 12))
def test_each_of_the_eleven_goals_by_its_number(number: int, root: Path) -> None:
    """From the welcome to the files; 10 and 11 have two digits."""
    assert len(GOALS) == 11
    child = talk(root, "new")
    child.expect("Welcome")
    to_the_title(child, number)
    child.send(f"Title {number}{ENTER}")
    child.expect("Anything to add")
    child.send(f"Mind the {number} gap.{ENTER}")
    child.expect("00_PERSONA.md")
    child.expect("01_PROMPT_TEMPLATE.md")
    child.expect("To be written")
    child.expect("Write these files")
    assert not (root / "output").exists()
    child.send(ENTER)
    child.expect("Written:")
    assert ended(child) == 0
    assert document(root, "Some_Project").startswith(f"# Title {number}\n")
    assert f"Mind the {number} gap." in document(root, "Some_Project")
    template = document(root, "Some_Project", "01_PROMPT_TEMPLATE.md")
    assert template.startswith(f"# Some_Project: {GOALS[number - 1]}\n") and template.count(REQUEST_PLACE) == 1
    record = json.loads(document(root, "Some_Project", "environment.json"))
    assert {row["source"] for row in record["components"]} == {"package"}
    assert sorted(os.listdir(root / "output")) == ["Some_Project"]
    assert not (root / "output" / "Some_Project" / "TODO.md").exists()


@pytest.mark.parametrize("keys", [DOWN * 2, UP * 2 + DOWN * 4, "1" + DOWN * 2, "9" + "3", "11" + DOWN * 4])
def test_arrow_keys_and_numbers_lead_to_the_same_entry(keys: str, root: Path) -> None:
    """Over headings, round the end of the list (where Back stands), and from a number on."""
    child = talk(root, "new", "--name", "P", "--persona", "empathetic_guide", "--title", "T", "--additions", "")
    child.expect("primary goal")
    child.send(keys + ENTER)
    child.expect("Write these files")
    child.send(ENTER)
    assert ended(child) == 0
    assert json.loads(document(root, "P", "environment.json"))["goal"] == GOALS[2]


def test_a_narrow_terminal_that_changes_its_size(root: Path) -> None:
    """40 columns and 12 lines: the list scrolls to the entry, also after the window was made smaller in the middle of it."""
    child = talk(root, "new", "--name", "P", "--persona", "empathetic_guide", "--title", "T", "--additions", "")
    child.setwinsize(12, 40)
    child.expect("primary goal")
    child.send("11")
    child.expect(r"11\. REFINE_A_PRESENTATION")
    child.setwinsize(8, 30)
    child.send(UP)
    child.expect(r"10\. BUILD_A_MENTAL_MODEL")
    child.setwinsize(12, 40)
    child.send(ENTER)
    child.expect("Write these")
    child.send(ENTER)
    assert ended(child) == 0
    assert json.loads(document(root, "P", "environment.json"))["goal"] == "BUILD_A_MENTAL_MODEL"


def test_back_goes_back_one_question_at_a_time(root: Path) -> None:
    """From the last question to the first, then on again with other answers."""
    child = talk(root, "new")
    to_the_title(child)
    child.send(ENTER)
    child.expect("Anything to add")
    child.send(ENTER)
    child.expect("Write these files")
    for asked in ("Anything to add", "Title of the persona", "Recommended persona"):
        child.send(f"b{ENTER}")
        child.expect(asked)
    child.send(f"b{ENTER}")
    child.expect("primary goal")
    child.send("b")  # in a menu it needs no Enter
    child.expect(r"Project name.*\[Some_Project\]")
    child.send(f"b{ENTER}")
    child.expect("This is the first question")
    to_the_title(child, 7, "Another")
    child.send(ENTER)
    child.expect("Anything to add")
    child.send(ENTER)
    child.expect("Write these files")
    child.send(f"y{ENTER}")
    assert ended(child) == 0
    assert os.listdir(root / "output") == ["Another"]
    assert json.loads(document(root, "Another", "environment.json"))["goal"] == GOALS[6]


def test_another_persona_is_chosen_from_the_library(root: Path) -> None:
    """The Back entry of the menu leads to the question before it; the title follows the persona."""
    child = talk(root, "new", "--name", "P", "--goal", "EXPLAIN")
    child.expect("Recommended persona: empathetic_guide")
    child.send(f"n{ENTER}")
    child.expect("Which persona")
    child.send(UP + ENTER)  # Back is the last entry
    child.expect("Recommended persona")
    child.send(f"n{ENTER}")
    child.expect("Which persona")
    child.expect(r"(\d+)\. meticulous_auditor")
    assert isinstance(child.match, re.Match)
    child.send(child.match[1] + ENTER)
    child.expect("Meticulous Auditor")
    child.send(ENTER)
    child.expect("Anything to add")
    child.send(ENTER)
    child.expect("Write these files")
    child.send(ENTER)
    assert ended(child) == 0
    assert document(root, "P").startswith("# Meticulous Auditor\n") and "You are an auditor" in document(root, "P")


STOPS = ["Project name", "primary goal", "Recommended persona", "Title of", "Anything to add", "Write these files"]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("plain", [False, True])
def test_ctrl_c_leaves_without_a_trace(stop: str, plain: bool, root: Path) -> None:
    """At every question: exit code 130, and the folder is as it was."""
    before = files_of(root)
    child = talk(root, "new", *(["--plain"] if plain else []))
    for question, answer in zip(STOPS, ["P", "3", "", "", "", ""], strict=True):
        child.expect(question)
        if plain and question == "primary goal":
            child.expect("Number or name")
        if question == stop:
            child.send(CTRL_C)
            break
        child.send(answer + ENTER)
    assert ended(child) == 130
    assert "nothing was written" in str(child.before)
    assert files_of(root) == before and not (root / "output").exists() and not (root / ".pop").exists()


def test_ctrl_c_while_a_model_writes_leaves_at_once(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """Nobody waits for the answer, and no gateway is left behind."""
    fake_openai.delay_s = 8
    root = make_root(tmp_path / "root", server(fake_openai), MAP)
    before = files_of(root)
    child = talk(root, "new", "--name", "P", "--goal", GOAL, "--yes")
    child.expect("What is it to say|Asking default")
    child.expect(pexpect.TIMEOUT, timeout=3)
    child.send(CTRL_C)
    child.timeout = 7
    assert ended(child) == 130
    assert files_of(root) == before
    assert lock_holder(root / ".pop") is None


def test_what_a_model_writes_is_shown_and_kept_only_when_it_is_wanted(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """Announced, described in a line, shown; written again on demand; saved with the rest."""
    root = make_root(tmp_path / "root", server(fake_openai), MAP)
    first = "You open every port there is, and you tell nobody about any of them."
    fake_openai.answers = [first, GOOD]
    child = talk(root, "new", "--name", "P", "--goal", GOAL)
    child.expect("Recommended persona")
    child.send(ENTER)
    child.expect("Title of")
    child.send(ENTER)
    child.expect("Anything to add")
    child.send(ENTER)
    child.expect("The library has no constraint 'least_privilege'")
    child.expect("in one line")
    child.send(f"few rights{ENTER}")
    child.expect("Asking default")
    child.expect("You open every port")
    child.expect("What shall become of it")
    child.send(f"2{ENTER}")
    child.expect("in one line")
    child.send(f"as few rights as will do{ENTER}")
    child.expect("You give every process")
    child.expect("What shall become of it")
    assert not (root / "components").exists()
    child.send(ENTER)
    child.expect("To be written")
    child.expect(f"components/{MISSING}.txt")
    child.expect("Write these files")
    assert not (root / "components").exists()
    child.send(ENTER)
    assert ended(child) == 0
    assert (root / "components" / f"{MISSING}.txt").read_text() == f"{GOOD}\n"
    assert "as few rights as will do" in fake_openai.bodies[1]["messages"][-1]["content"]
    assert GOOD in document(root, "P", "01_PROMPT_TEMPLATE.md")


def test_a_server_that_is_down_is_told_in_the_talk(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """The talk goes on with a placeholder; going back does not ask the server again."""
    fake_openai.faults = [Fault(status=401)]
    root = make_root(tmp_path / "root", server(fake_openai), MAP)
    child = talk(root, "new", "--name", "P", "--goal", GOAL, "--persona", "meticulous_auditor", "--title", "T")
    child.expect("Anything to add")
    child.send(ENTER)
    child.expect("in one line")
    child.send(ENTER)
    child.expect("was not written: auth")
    child.expect("TODO.md")
    child.expect("Write these files")
    child.send(f"b{ENTER}")
    child.expect("in one line")
    child.send(ENTER)
    child.expect("was not written: auth")
    child.expect("Write these files")
    child.send(ENTER)
    child.expect("Still to be written")
    assert ended(child) == 0 and len(fake_openai.bodies) == 1
    assert f"TODO: {MISSING}" in document(root, "P", "01_PROMPT_TEMPLATE.md")


def test_no_at_the_end_writes_nothing(root: Path) -> None:
    """It is a way to look."""
    child = talk(root, "new", "--name", "P", "--goal", "1", "--persona", "empathetic_guide", "--title", "T")
    child.expect("Anything to add")
    child.send(ENTER)
    child.expect("Write these files")
    child.send(f"n{ENTER}")
    assert ended(child) == 0 and "nothing was written" in str(child.before) and not (root / "output").exists()


def test_a_dumb_terminal_gets_plain_lines(root: Path) -> None:
    """No escape sequence comes."""
    child = talk(root, "new", TERM="dumb")
    child.expect("Project name")
    child.sendline("P")
    child.expect("Number or name: ")
    assert "\x1b" not in str(child.before) and "   11. REFINE_A_PRESENTATION" in str(child.before)
    child.sendline("twelve")
    child.expect("no goal 'twelve'.*Number or name: ")
    child.sendeof()
    assert ended(child) == 2


def test_a_bad_name_is_told_at_the_question(root: Path) -> None:
    """And can be typed again."""
    child = talk(root, "new", "--goal", "1", "--persona", "empathetic_guide", "--title", "T", "--additions", "")
    child.expect("Project name")
    child.send(f"../out{ENTER}")
    child.expect("it holds a slash")
    child.send(f"\x15P{ENTER}")
    child.expect("Write these files")
    child.send(ENTER)
    assert ended(child) == 0 and os.listdir(root / "output") == ["P"]


# -- line by line ------------------------------------------------------------------------------------------------------------


def transcript() -> tuple[str, list[str]]:
    """The talk that docs/wizard.md shows, and what the person in it typed."""
    page = (REPOSITORY / "docs" / "wizard.md").read_text()
    block = re.search(r"^    Welcome to the wizard\..*?(?=^\S)", page, flags=re.MULTILINE | re.DOTALL)
    assert block
    lines = [line.removeprefix("    ") for line in block[0].rstrip().splitlines()]
    questions = r"(?:Project name.*?|Number or name.*?|.*\(Y/n\)|Title of .*?|Anything .*?\)|What is it .*?\)): ?(.*)"
    return "\n".join(lines) + "\n", [match[1] for line in lines if (match := re.fullmatch(questions, line))]


def test_the_transcript_of_the_docs_is_what_happens(root: Path) -> None:
    """Line by line, from the welcome to the list of written files."""
    shown, typed = transcript()
    assert len(typed) == 6
    command = [sys.executable, "-m", "pop", "--root", str(root), "new"]
    result = subprocess.run(
        command,
        input="".join(f"{line}\n" for line in typed),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert [line.rstrip() for line in result.stdout.splitlines()] == [line.rstrip() for line in shown.splitlines()]


def test_when_the_input_ends_early_nothing_is_written(root: Path) -> None:
    """Exit code 2, and which option would have answered."""
    result = pop("new", root=root, input="P\n3\n")
    assert result.returncode == 2 and "the input ended" in result.stderr and not (root / "output").exists()


# -- by options --------------------------------------------------------------------------------------------------------------

COMPLETE = ("--name", "Django_Model_Auditor", "--goal", "AUDIT", "--no-input")


def test_options_answer_everything(root: Path) -> None:
    """By an earlier name of the goal; what is not said is what the wizard recommends."""
    made = new(root, *COMPLETE, "--title", "Senior Auditor", "--additions", "Django 5 only.", "--json")
    assert made.returncode == 0, made.stderr
    summary = json.loads(made.stdout)
    assert (summary["goal"], summary["persona"]) == ("REVIEW_AGAINST_STANDARDS", "meticulous_auditor")
    assert summary["files"] == [
        f"output/Django_Model_Auditor/{name}" for name in ("00_PERSONA.md", "01_PROMPT_TEMPLATE.md", "environment.json")
    ]
    text = document(root, "Django_Model_Auditor")
    assert text.startswith("# Senior Auditor\n") and text.endswith("## Further wishes\n\nDjango 5 only.\n")


@pytest.mark.parametrize(
    ("given", "option"), [((), "--name"), (("--name", "P"), "--goal")]
)  # fmt: skip
def test_what_nobody_can_answer_names_its_option(given: tuple[str, ...], option: str, root: Path) -> None:
    """Not a question that hangs."""
    made = new(root, *given, "--no-input", "--json")
    assert made.returncode == 2 and option in json.loads(made.stdout)["error"]["hint"]


def test_an_unknown_goal_or_persona_gets_the_nearest_name(root: Path) -> None:
    """Before anything is asked or written."""
    goal = new(root, "--name", "P", "--goal", "SCAFOLD", "--no-input")
    assert goal.returncode == 2 and "did you mean 'SCAFFOLD_FROM_SCRATCH'?" in goal.stderr
    persona = new(root, *COMPLETE, "--persona", "meticulous_audtor")
    assert persona.returncode == 3 and "did you mean 'meticulous_auditor'?" in persona.stderr
    assert not (root / "output").exists()


def test_the_goals_can_be_listed_anywhere(tmp_path: Path, root: Path) -> None:
    """With numbers; a root's own goal stands in its group."""
    here = pop("new", "--list", cwd=tmp_path)
    assert here.returncode == 0 and "   1. TEACH_OR_EXPLAIN" in here.stdout and "  11. REFINE" in here.stdout
    (root / "goal_map.json").write_text(json.dumps(MAP))
    rows = json.loads(new(root, "--list", "--json").stdout)["goals"]
    assert [row["name"] for row in rows][7] == GOAL and rows[7]["number"] == 8


def test_a_broken_goal_map_is_told_with_its_place(root: Path) -> None:
    """Line, column and path."""
    (root / "goal_map.json").write_text('{"goals": {\n  "A_GOAL": {"purpose": "x", "persnoa": "y"}}}')
    made = new(root, *COMPLETE)
    assert made.returncode == 3 and "goal_map.json:2:30  goals.A_GOAL.persnoa" in made.stderr
    assert "did you mean 'persona'?" in made.stderr


@pytest.mark.parametrize(("data", "said"), [(b"", "empty"), (b"\0\1", "binary"), (b"\xff" * 40, "not UTF-8")])
def test_a_component_that_cannot_be_used_is_an_error(data: bytes, said: str, root: Path) -> None:
    """Nobody works with another text than the one he wrote."""
    own = root / "components" / "personas" / "meticulous_auditor.txt"
    own.parent.mkdir(parents=True)
    own.write_bytes(data)
    made = new(root, *COMPLETE)
    assert made.returncode == 3 and said in made.stderr and str(own) in made.stderr and not (root / "output").exists()


YAML = """\
name: Django_Model_Auditor
goal: AUDIT/REVIEW
title: Senior Auditor
additions: |
  Django 5 only.
  No GIS.
"""


def test_a_project_file_answers_everything(root: Path, tmp_path: Path) -> None:
    """And options go before it."""
    config = tmp_path / "project.yaml"
    config.write_text(YAML)
    made = new(root, "--config", str(config), "--no-input", "--name", "Other")
    assert made.returncode == 0, made.stderr
    assert document(root, "Other").endswith("Django 5 only.\nNo GIS.\n")


def test_the_schema_of_a_project_file_is_that_of_the_docs() -> None:
    """`pop schema project`, for editors: what docs/wizard.md shows passes, a misspelt key does not."""
    page = (REPOSITORY / "docs" / "wizard.md").read_text()
    block = re.search(r"^    # project\.yaml\n(.*?)(?=^\S)", page, flags=re.MULTILINE | re.DOTALL)
    assert block
    schema = json.loads(pop("schema", "project").stdout)
    value = ruamel.yaml.YAML(typ="safe").load(textwrap.dedent(block[1]))
    jsonschema.validate(value, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**value, "nme": "x"}, schema)


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("nme: X\n", "project.yaml:1:1  nme", "did you mean 'name'?"),
        ("name: X\ngoal: 3\n", "project.yaml:2:7  goal", "put it between quotes"),
        ("name: X\nname: Y\n", "project.yaml:2:1", "duplicate"),
        ("name: [\n", "project.yaml:2:1", ""),
        ("describe:\n  protocls/x: y\n", "project.yaml:2:3  describe.protocls/x", "did you mean 'protocols'?"),
        ("describe:\n  protocols/x: [y]\n", "project.yaml:2:16  describe.protocols/x", "string"),
        ("synthesize: maybe\n", "project.yaml:1:13  synthesize", "bool"),
        ("a: &a [1]\nb: *a\n", "project.yaml:1:4", "aliases"),
        ("- name\n", "project.yaml:1:1", "lines"),
    ],
)
def test_mistakes_in_a_project_file_have_a_place(text: str, where: str, said: str, root: Path, tmp_path: Path) -> None:
    """Line, column and key."""
    config = tmp_path / "project.yaml"
    config.write_text(text)
    made = new(root, "--config", str(config), "--no-input")
    assert made.returncode == 3 and where in made.stderr and said in made.stderr, made.stderr


# -- names and places --------------------------------------------------------------------------------------------------------

BAD_NAMES = {
    "a/b": "a slash", "a\\b": "a slash", "..": "'..'", "a..b": "'..'", "/etc/passwd": "a slash", "": "empty",
    "x" * 300: "300 characters are too many", "a\nb": "nobody sees", "a\x1b[31mb": "nobody sees",
    "a\u202eb": "nobody sees", ".hidden": "begins with", "-rf": "begins with", "CON": "Windows", "aux.txt": "Windows",
    "LPT1": "Windows", "end.": "Windows", "a b": "a space", "a:b": "':'", "a*b": "'*'", "$(x)": "'$'",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_do_harm_is_refused(name: str, root: Path) -> None:
    """With what is wrong and the next move; nothing is made anywhere."""
    before = sorted(path for path in root.parent.rglob("*"))
    made = new(root, f"--name={name}", "--goal", "1", "--no-input")
    assert made.returncode == 2 and BAD_NAMES[name] in made.stderr and "hint: " in made.stderr, made.stderr
    assert "\x1b" not in made.stderr and len(made.stderr) < 400
    assert sorted(path for path in root.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["Django_Model_Auditor", "a", "v1.2-rc", "Größe", "模型", "x" * 80])
def test_plain_names_are_taken(name: str) -> None:
    """Letters of any script."""
    assert check_project_name(name) == name


@pytest.mark.parametrize("link", ["output", "output/P"])
def test_nothing_is_written_through_a_link(link: str, root: Path, tmp_path: Path) -> None:
    """Neither the output folder nor a project may lead out of the root."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(outside)
    made = new(root, "--name", "P", "--goal", "1", "--no-input", "--yes")
    assert made.returncode == 3 and "symbolic link" in made.stderr and os.listdir(outside) == []


def test_a_link_in_the_place_of_a_document_is_not_followed(root: Path, tmp_path: Path) -> None:
    """The wizard does not write through it."""
    assert new(root, *COMPLETE).returncode == 0
    mine = tmp_path / "mine.md"
    mine.write_text("mine")
    place = root / "output" / "Django_Model_Auditor" / "00_PERSONA.md"
    place.unlink()
    place.symlink_to(mine)
    assert new(root, *COMPLETE, "--yes").returncode in (0, 3)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["output", "output/P"])
def test_a_file_in_the_way_is_told(name: str, root: Path) -> None:
    """It is not replaced."""
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("mine")
    made = new(root, "--name", "P", "--goal", "1", "--no-input", "--yes")
    assert made.returncode == 3 and "must be a folder" in made.stderr and (root / name).read_text() == "mine"


# -- once more ---------------------------------------------------------------------------------------------------------------


def test_an_existing_project_is_made_anew_only_when_told_so(root: Path) -> None:
    """Without --yes nobody's work is touched."""
    assert new(root, *COMPLETE).returncode == 0
    before = files_of(root)
    again = new(root, *COMPLETE)
    assert again.returncode == 2 and "Make it anew?" in again.stderr and "--yes" in again.stderr
    assert files_of(root) == before
    assert new(root, *COMPLETE, "--yes", "--title", "Other").returncode == 0
    assert document(root, "Django_Model_Auditor").startswith("# Other\n")
    assert len(os.listdir(root / "output" / "Django_Model_Auditor")) == 3


def test_with_yes_an_edited_file_stays_and_the_new_one_goes_beside_it(root: Path) -> None:
    """Each time: an edited .new.md is not replaced either, an unedited one is."""
    assert new(root, *COMPLETE).returncode == 0
    folder = root / "output" / "Django_Model_Auditor"
    (folder / "00_PERSONA.md").write_text("mine")
    for title in ("Second", "Third"):
        made = new(root, *COMPLETE, "--yes", "--title", title)
        assert made.returncode == 0, made.stderr
        assert document(root, "Django_Model_Auditor") == "mine"
        assert (folder / "00_PERSONA.new.md").read_text().startswith(f"# {title}\n")
    (folder / "00_PERSONA.new.md").write_text("mine too")
    assert new(root, *COMPLETE, "--yes").returncode == 0
    assert (folder / "00_PERSONA.new.md").read_text() == "mine too" and (folder / "00_PERSONA.new2.md").exists()


def test_a_person_is_asked_about_each_edited_file(root: Path) -> None:
    """What was chosen before is the default of each question."""
    assert new(root, *COMPLETE).returncode == 0
    (root / "output" / "Django_Model_Auditor" / "00_PERSONA.md").write_text("mine")
    child = talk(root, "new")
    child.expect("Project name")
    child.send(f"Django_Model_Auditor{ENTER}")
    child.expect("is there already")
    child.expect("Make it anew")
    child.send(f"n{ENTER}")
    child.expect("Project name")
    child.send(f"Django_Model_Auditor{ENTER}")
    child.expect("Make it anew")
    child.send(ENTER)
    child.expect("primary goal")
    child.send(ENTER)
    for question in ("Recommended persona: meticulous_auditor", "Title of", "Anything to add"):
        child.expect(question)
        child.send(ENTER)
    child.expect("00_PERSONA.md was edited")
    child.send(DOWN + ENTER)
    child.expect("Write these files")
    child.send(ENTER)
    assert ended(child) == 0
    assert document(root, "Django_Model_Auditor").startswith("# Meticulous Auditor\n")


def test_a_project_whose_record_is_broken_counts_as_edited(root: Path) -> None:
    """Nobody knows what was written, so nothing is replaced."""
    assert new(root, *COMPLETE).returncode == 0
    folder = root / "output" / "Django_Model_Auditor"
    before = document(root, "Django_Model_Auditor")
    (folder / "environment.json").write_text("[1")
    assert new(root, *COMPLETE, "--yes", "--title", "Other").returncode == 0
    assert document(root, "Django_Model_Auditor") == before and (folder / "00_PERSONA.new.md").exists()


# -- as a task ---------------------------------------------------------------------------------------------------------------


def test_a_project_file_may_name_the_task_of_a_request(root: Path, tmp_path: Path) -> None:
    """`as_task` of a project.yaml counts like --as-task; with neither there is nothing a request could go to."""
    (tmp_path / "code.py").write_text("print()\n")
    (tmp_path / "project.yaml").write_text(f"{YAML}as_task: audit\n")
    given = ("--no-input", "--request", str(tmp_path / "code.py"))
    made = new(root, "--config", str(tmp_path / "project.yaml"), *given)
    assert made.returncode == 0, made.stderr
    assert "print()" in (root / "output" / "Django_Model_Auditor" / "request.json").read_text()
    assert "--as-task" in new(root, *COMPLETE, *given).stderr


def test_as_a_task_it_runs_in_a_pipeline_at_once(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """Filled with code to be audited, and answered; `pop check` has nothing to say."""
    root = tmp_path / "root"
    assert pop("init", root).returncode == 0
    (root / "pop.toml").write_text(server(fake_openai))
    code = tmp_path / "models.py"
    code.write_text("class Invoice(models.Model):\n    total = models.FloatField()  # {{ 1 }} {% x %}\n")
    made = new(root, *COMPLETE, "--as-task", "audit", "--request", str(code), "--additions", "Braces: {{ x }} {# y #}")
    assert made.returncode == 0, made.stderr
    assert "Try it: pop run output/Django_Model_Auditor/request.json" in made.stdout
    assert pop("check", root=root).returncode == 0
    seed = root / "output" / "Django_Model_Auditor" / "request.json"
    assert pop("check", str(seed), root=root).returncode == 0
    fake_openai.answers = ["Money must not be a float: line 2."]
    ran = pop("run", str(seed), root=root)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    system, user = fake_openai.bodies[0]["messages"]
    assert system["role"] == "system" and system["content"] == document(root, "Django_Model_Auditor").strip()
    template = document(root, "Django_Model_Auditor", "01_PROMPT_TEMPLATE.md")
    assert user["content"] == template.replace(REQUEST_PLACE, code.read_text()).strip()
    output = next((root / "pipeline-complete").glob("*/tasks/audit/output.json"))
    assert json.loads(output.read_text()) == "Money must not be a float: line 2."


@pytest.mark.parametrize("goal", range(1, 12))
def test_every_goal_makes_a_task_that_check_accepts(goal: int, root: Path) -> None:
    """Whatever its components hold."""
    assert new(root, "--name", "P", "--goal", str(goal), "--no-input", "--as-task", "it").returncode == 0
    assert pop("check", str(root / "output" / "P" / "request.json"), root=root).returncode == 0


def test_a_task_that_is_not_ours_is_never_replaced(root: Path) -> None:
    """Nor one that was edited; the same project's own is."""
    assert new(root, *COMPLETE, "--as-task", "audit").returncode == 0
    assert new(root, *COMPLETE, "--as-task", "audit", "--yes", "--title", "Second").returncode == 0
    task = root / "pipeline-tasks" / "audit.md"
    assert "# Second" in task.read_text()
    task.write_text(task.read_text() + "\nmine\n")
    edited = new(root, *COMPLETE, "--as-task", "audit", "--yes")
    assert edited.returncode == 2 and "pipeline-tasks/audit.md is there already" in edited.stderr
    (root / "pipeline-tasks" / "other.py").write_text("def infer(prompt, ctx):\n    return 1\n")
    assert new(root, *COMPLETE, "--as-task", "other", "--yes").returncode == 2
    assert new(root, *COMPLETE, "--as-task", "../up", "--yes").returncode == 2
    assert new(root, *COMPLETE, "--as-task", "default", "--yes").returncode == 2


# -- the door of the design document -----------------------------------------------------------------------------------------


def test_orchestrator_py_starts_the_wizard(root: Path) -> None:
    """`python orchestrator.py`, with the options of `pop new`; also with a Python that has none of what POP needs."""
    child = talk(root, program=("orchestrator.py",), POP_ROOT=str(root))
    child.expect("Welcome to the wizard")
    child.expect("Project name")
    child.send(CTRL_C)
    assert ended(child) == 130
    bare = subprocess.run(
        [sys.executable, "-S", str(REPOSITORY / "orchestrator.py"), "--list"],
        capture_output=True, text=True, timeout=60, env=environment(POP_ROOT=str(root)),
    )  # fmt: skip
    assert (bare.returncode == 0 and "TEACH_OR_EXPLAIN" in bare.stdout) or "make install" in bare.stderr


def test_help_stays_quick() -> None:
    """Neither questionary nor the wizard is imported for it."""
    code = "import sys\nsys.argv = ['pop', 'new', '--help']\nfrom pop.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('questionary', 'prompt_toolkit', 'pop.recipes.wizard') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.rstrip().endswith("[]")


def test_a_terminated_wizard_leaves_no_draft(root: Path) -> None:
    """SIGTERM in the middle of the talk."""
    child = talk(root, "new", "--plain")
    child.expect("Project name")
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    assert not (root / "output").exists()


def test_every_key_of_a_project_file_is_documented() -> None:
    """docs/wizard.md has a row for each, with its option."""
    page = (REPOSITORY / "docs" / "wizard.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:`(--[\w-]+)`)? ?\|", page, flags=re.MULTILINE))
    assert set(rows) == set(Answers.model_fields)
    shown = pop("new", "--help").stdout
    assert all(option in shown for option in rows.values())
