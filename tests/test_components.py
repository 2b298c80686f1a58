"""The library of components: what comes with POP, what a root adds, what is refused, and the command."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pop.recipes.wizard.goals import load_goal_map
from pop.recipes.wizard.library import (
    KINDS,
    MAX_BYTES,
    PACKAGED,
    ComponentError,
    Kind,
    Library,
    MissingComponent,
    kind_of,
    singular,
    standard_name,
)
from tests.test_cli import REPOSITORY, pop
from tests.test_docs import DOCS, rows_of

FIXED = {
    "personas": {"empathetic_guide", "meticulous_auditor"},
    "protocols": {"code_review_pass", "turn_by_turn_dialogue"},
    "constraints": {"preserve_functional_attributes", "no_html_restructure"},
}
EVERY = [(kind, name) for kind in KINDS for name in Library(None).names(kind)]


def put(root: Path, kind: str, name: str, data: bytes | str) -> Path:
    path = root / "components" / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_the_library_is_large_enough_and_holds_the_six_fixed_names() -> None:
    """At least 45 in all, and a choice of each kind."""
    assert len(EVERY) >= 45
    for kind in KINDS:
        assert len(Library(None).names(kind)) >= 12 and set(Library(None).names(kind)) >= FIXED[kind]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_component_that_comes_with_pop_is_well_made(kind: Kind, name: str) -> None:
    """Second person, one to three paragraphs of plain prose, long enough to say something and short enough to be read."""
    text = Library(None).load(kind, name).text
    paragraphs = text.split("\n\n")
    assert 1 <= len(paragraphs) <= 3 and all("\n" not in paragraph for paragraph in paragraphs)
    assert 80 <= len(text.split()) <= 320
    assert len(re.findall(r"\byou\b", text, flags=re.IGNORECASE)) >= 4 and re.search(r"\bYou\b", text)
    assert not re.search(r"[#*`{}<>|]|  ", text) and text.isascii()
    assert re.search(r"[.]$", text)


def test_no_two_components_share_a_sentence() -> None:
    """Each has its own words."""
    seen: dict[str, str] = {}
    for kind, name in EVERY:
        for sentence in re.split(r"(?<=[.?:])\s+", Library(None).load(kind, name).text):
            if len(sentence.split()) > 5:
                assert seen.setdefault(sentence, name) == name, sentence


def test_the_docs_list_what_comes_with_pop() -> None:
    """docs/components.md, a table for each kind."""
    page = (DOCS / "components.md").read_text()
    for kind in KINDS:
        table = page[page.index(f"| {singular(kind)} | |") :].split("\n\n")[0]
        assert list(rows_of(table)) == Library(None).names(kind)


def test_a_roots_component_stands_before_ours(tmp_path: Path) -> None:
    """And what the root lacks comes from the package."""
    data = "\ufeffYou are ours.\r\nTwice.\r\n".encode()
    path = put(tmp_path, "personas", "empathetic_guide.txt", data)
    library = Library(tmp_path)
    own = library.load("personas", "empathetic_guide")
    assert (own.text, own.source, own.path) == ("You are ours.\nTwice.", "root", path)
    assert own.sha256 == hashlib.sha256(data).hexdigest() and own.reference == "personas/empathetic_guide"
    assert library.load("personas", "growth_mentor").source == "package"
    assert library.names("personas") == Library(None).names("personas")


def test_what_no_library_has_is_missing_with_the_nearest_name(tmp_path: Path) -> None:
    """`find` says so with None, for the wizard goes on and generates it."""
    library = Library(tmp_path)
    assert library.find("personas", "meticulos_auditor") is None
    with pytest.raises(MissingComponent, match="no persona 'meticulos_auditor'") as caught:
        library.load("personas", "meticulos_auditor")
    assert caught.value.hint == "did you mean 'meticulous_auditor'?" and caught.value.exit_code == 3
    with pytest.raises(MissingComponent) as caught:
        library.load("protocols", "meticulous_auditor")
    assert caught.value.hint == "personas/meticulous_auditor is there"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "../x",
        "a/b",
        "/etc/passwd",
        "a.txt",
        "a-b",
        "1a",
        "_a",
        "a\n",
        "a\x00",
        "ä",
        "a" * 81,
        "..",
        "a b",
        "\x1b[2J",
    ],
)
def test_a_name_that_could_lead_elsewhere_is_refused_before_anything_is_opened(tmp_path: Path, name: str) -> None:
    """By a list of what is allowed, for reading and writing alike."""
    library = Library(tmp_path)
    for use in (library.find, library.load, lambda kind, name: library.save(kind, name, "You.")):
        with pytest.raises(ComponentError) as caught:
            use("personas", name)
        assert "is no name for a persona" in str(caught.value) and "\x1b" not in str(caught.value)
    assert not (tmp_path / "components").exists()


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_text(""), "empty"),
    "blank": (lambda path: path.write_text(" \n\t\r\n"), "empty"),
    "only a byte order mark": (lambda path: path.write_bytes(b"\xef\xbb\xbf"), "empty"),
    "binary": (lambda path: path.write_bytes(b"\x7fELF\x00\x01"), "binary"),
    "UTF-16": (lambda path: path.write_bytes("You are".encode("utf-16")), "binary"),
    "Latin-1": (lambda path: path.write_bytes(b"You are caf\xe9."), "not UTF-8: byte 0xe9 at offset 11"),
    "control": (lambda path: path.write_text("You\nare\x1b[2J."), "that nobody sees: U+001B"),
    "turned": (lambda path: path.write_text("You \u202e are"), "that nobody sees: U+202E"),
    "too large": (lambda path: path.write_text("You " * MAX_BYTES), f"(at most {MAX_BYTES})"),
    "huge": (_huge, f"(at most {MAX_BYTES})"),
    "folder": (lambda path: path.mkdir(), "must be a text file"),
    "pipe": (lambda path: os.mkfifo(path), "must be a text file"),
    "link out": (_link("/etc/passwd"), "leads out of the library"),
    "link up": (_link("../../secret.txt"), "leads out of the library"),
    "link into the package": (_link(str(PACKAGED / "personas" / "growth_mentor.txt")), "leads out of the library"),
    "device": (_link("/dev/zero"), "leads out of the library"),
    "link to nowhere": (_link("nothing.txt"), "leads nowhere"),
    "link to itself": (_link("guide.txt"), "leads nowhere"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_component_that_cannot_be_used_is_told_with_its_place(tmp_path: Path, case: str) -> None:
    """Also where the package has a sound one of the same name; list and check go on with the others."""
    make, said = BROKEN[case]
    (tmp_path / "secret.txt").write_text("not for models")
    path = put(tmp_path, "personas", "guide.txt", "x")
    path.unlink()
    make(path)
    library = Library(tmp_path)
    with pytest.raises(ComponentError) as caught:
        library.load("personas", "guide")
    assert said in caught.value.message and (caught.value.where or "").startswith(str(path))
    assert [problem.message for problem in library.problems()] == [caught.value.message]
    assert "guide" in library.names("personas") and "not for models" not in str(caught.value)


def test_a_control_character_is_told_with_line_and_column(tmp_path: Path) -> None:
    """Nobody would find it otherwise."""
    path = put(tmp_path, "personas", "guide.txt", "You\nare\x07.")
    with pytest.raises(ComponentError) as caught:
        Library(tmp_path).load("personas", "guide")
    assert caught.value.where == f"{path}:2:4"


def test_a_broken_component_of_the_root_hides_the_packaged_one(tmp_path: Path) -> None:
    """Nobody works with another text than the one he wrote."""
    put(tmp_path, "personas", "empathetic_guide.txt", "")
    with pytest.raises(ComponentError, match="empty"):
        Library(tmp_path).find("personas", "empathetic_guide")


def test_a_link_inside_the_library_is_followed(tmp_path: Path) -> None:
    """Two names for one text; and the whole library may lie elsewhere, shared by several roots."""
    shared = tmp_path / "shared"
    put(shared, "personas", "one.txt", "You are one.")
    (shared / "components" / "personas" / "two.txt").symlink_to("one.txt")
    root = tmp_path / "root"
    root.mkdir()
    (root / "components").symlink_to(shared / "components")
    assert Library(root).load("personas", "two").text == "You are one." and Library(root).problems() == []


def test_a_kinds_folder_may_not_lead_out(tmp_path: Path) -> None:
    """Neither for reading nor for writing."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "passwords.txt").write_text("You are secret.")
    root = tmp_path / "root"
    (root / "components").mkdir(parents=True)
    (root / "components" / "personas").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ComponentError, match="leads out of the library"):
        Library(root).load("personas", "passwords")
    with pytest.raises(ComponentError, match="leads out of the library"):
        Library(root).save("personas", "mine", "You.")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["passwords.txt"]


def test_what_nobody_would_read_is_a_problem(tmp_path: Path) -> None:
    """Files of other names and in other places; what editors leave is none."""
    for kind, name in (("persona", "a.txt"), ("personas", "My Guide.txt"), ("protocols", "a.md"), ("", "lost.txt")):
        put(tmp_path, kind, name, "You.")
    for name in (".draft.swp", "a.txt~"):
        put(tmp_path, "personas", name, "You.")
    put(tmp_path, "", "README.md", "What these are.")
    put(tmp_path, "", "constraints", "a file")
    told = {Path(str(problem.where)).name: problem for problem in Library(tmp_path).problems()}
    assert set(told) == {"persona", "My Guide.txt", "a.md", "lost.txt", "constraints"}
    assert told["persona"].hint == "did you mean 'personas'?"


def test_a_component_is_saved_whole_and_never_over_another(tmp_path: Path) -> None:
    """Unless that is asked for; a draft never stays behind."""
    library = Library(tmp_path)
    path = library.save("protocols", "mine", "\r\n  You go first.\r\nThen I. \n\n")
    assert path == tmp_path / "components" / "protocols" / "mine.txt" and path.stat().st_mode & 0o777 == 0o644
    assert path.read_bytes() == b"You go first.\nThen I.\n"
    with pytest.raises(ComponentError, match="is there already") as caught:
        library.save("protocols", "mine", "Another.")
    assert caught.value.where == str(path) and library.load("protocols", "mine").text.startswith("You go first.")
    library.save("protocols", "mine", "Another.", replace=True)
    assert library.load("protocols", "mine").text == "Another."
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("text", ["", " \n", "You\x00", "You\x1b[2J", "\ud800", "y" * (MAX_BYTES + 1)])
def test_what_could_not_be_read_is_not_saved(tmp_path: Path, text: str) -> None:
    """So that a model's rubbish never becomes a component."""
    with pytest.raises(ComponentError):
        Library(tmp_path).save("personas", "mine", text)
    assert not (tmp_path / "components").exists()


def test_without_a_root_nothing_is_saved() -> None:
    """The package's own files are nobody's to change."""
    with pytest.raises(ComponentError, match="no root"):
        Library(None).save("personas", "mine", "You.")


def test_names_of_kinds_and_standard_names() -> None:
    """As the wizard and the command say them."""
    assert [kind_of(text) for text in ("personas", "Persona", "constraint", "person")] == [
        "personas", "personas", "constraints", None,
    ]  # fmt: skip
    assert standard_name("constraints", "TEACH_OR_EXPLAIN") == "autogen_constraint_for_teach_or_explain"
    longest = [standard_name(kind, "A" * 56) for kind in KINDS]
    assert all(
        len(name) <= 80 and Library(None).find(kind, name) is None for kind, name in zip(KINDS, longest, strict=True)
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a component of its own, and a map that asks for one that is nowhere."""
    (tmp_path / "pipeline.json").write_text('{"tasks": ["a"]}')
    put(tmp_path, "personas", "our_auditor.txt", "You are ours.\n")
    mine = {
        "purpose": "Do it.",
        "persona": "our_auditor",
        "protocols": ["code_review_pas"],
        "constraints": "no_flattery",
    }
    (tmp_path / "goal_map.json").write_text(json.dumps({"extends": "package", "goals": {"MINE": mine}}))
    return tmp_path


def test_list_tells_where_each_comes_from_and_who_asks_for_it(root: Path) -> None:
    """All of them, or those of a kind."""
    listed = json.loads(pop("components", "list", "--json", root=root).stdout)["components"]
    by_name = {row["name"]: row for row in listed}
    assert len(listed) == len(EVERY) + 1 and by_name["our_auditor"]["source"] == "root"
    assert by_name["our_auditor"]["goals"] == ["MINE"] and "MINE" in by_name["no_flattery"]["goals"]
    assert by_name["code_review_pass"]["goals"] == ["REVIEW_AGAINST_STANDARDS"]
    text = pop("components", "list", "persona", root=root).stdout
    assert text.startswith("personas\n") and "our_auditor" in text and "protocols" not in text
    assert pop("components", root=root).stdout == pop("components", "list", root=root).stdout


def test_list_shows_what_is_broken_and_goes_on(root: Path) -> None:
    """Exit code 3."""
    put(root, "personas", "broken.txt", b"\x00")
    result = pop("components", "list", root=root)
    assert result.returncode == 3 and re.search(r"broken +cannot be used: binary", result.stdout)
    assert "our_auditor" in result.stdout


def test_show_prints_the_text_and_nothing_else(root: Path) -> None:
    """So that it can be the beginning of a component of one's own."""
    result = pop("components", "show", "our_auditor", root=root)
    assert result.stdout == "You are ours.\n" and "for MINE" in result.stderr
    shown = json.loads(pop("components", "--json", "show", "personas/our_auditor", root=root).stdout)
    assert shown["text"] == "You are ours." and shown["goals"] == ["MINE"]


def test_show_asks_which_where_two_kinds_have_the_name(root: Path) -> None:
    """And hints at the nearest where none has."""
    put(root, "protocols", "our_auditor.txt", "You go.")
    result = pop("components", "show", "our_auditor", root=root)
    assert result.returncode == 2 and "personas/our_auditor, protocols/our_auditor" in result.stderr
    assert pop("components", "show", "protocol/our_auditor", root=root).stdout == "You go.\n"
    for asked in ("our_auditr", "personas/our_auditr"):
        result = pop("components", "show", asked, "--json", root=root)
        assert result.returncode == 2
        assert json.loads(result.stdout)["error"]["hint"] == "did you mean 'our_auditor'?"
    for asked in ("../../../etc/passwd", "personas/../../x", "personas//etc/passwd", ""):
        assert pop("components", "show", asked, root=root).returncode in (2, 3)


def test_check_lists_what_would_be_generated_and_calls_it_no_error(root: Path) -> None:
    """With the nearest name, should it be a slip."""
    result = pop("components", "check", root=root)
    assert result.returncode == 0 and "all is well" in result.stderr
    assert result.stdout == (
        "missing, would be generated: protocols/code_review_pas, for MINE; did you mean 'code_review_pass'?\n"
    )
    checked = json.loads(pop("components", "check", "--json", root=root).stdout)
    assert checked["ok"] and checked["problems"] == [] and checked["missing"][0]["name"] == "code_review_pas"


def test_check_finds_mistakes_in_map_and_library_at_once(root: Path) -> None:
    """Exit code 3."""
    put(root, "personas", "broken.txt", "")
    (root / "goal_map.json").write_text('{"goals": {"MINE": {"purpos": "x"}}}')
    result = pop("components", "check", root=root)
    assert result.returncode == 3 and "3 problem(s)" in result.stderr
    assert "goal_map.json:1:21  goals.MINE.purpos" in result.stdout and "broken.txt" in result.stdout
    checked = json.loads(pop("components", "check", "--json", root=root).stdout)
    assert not checked["ok"] and len(checked["problems"]) == 3 and checked["goal_map"] is None
    listed = pop("components", "show", "our_auditor", root=root)
    assert listed.returncode == 0 and "did you mean 'purpose'?" in listed.stderr


def test_without_a_root_there_are_the_packaged_ones(tmp_path: Path) -> None:
    """But a root that was named has to be there."""
    result = pop("components", "check", "--json", cwd=tmp_path)
    assert result.returncode == 0 and json.loads(result.stdout)["components"] == len(EVERY)
    assert pop("components", "list", "--root", tmp_path / "nowhere").returncode == 2
    assert pop("components", "--root", tmp_path / "nowhere", "list").returncode == 2


def test_an_unknown_action_or_kind_is_told_with_the_nearest() -> None:
    """Exit code 2."""
    for arguments, hint in ((["lst"], "Did you mean 'list'?"), (["list", "personae"], "did you mean 'personas'?")):
        result = pop("components", *arguments)
        assert result.returncode == 2 and hint in result.stderr


def test_the_wheel_holds_map_schema_and_library(tmp_path: Path) -> None:
    """Where one can be built."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".venv", ".git", "pipeline-c*", ".*_cache", ".pop")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-q", "-w", str(tmp_path)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"no wheel can be built here: {built.stderr[-200:]}")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    wizard = "pop/recipes/wizard"
    assert {f"{wizard}/goal_map.json", f"{wizard}/goal_map.schema.json"} <= held
    assert {f"{wizard}/components/{kind}/{name}.txt" for kind, name in EVERY} <= held


def test_loading_the_whole_library_is_quick() -> None:
    """Everything is read for each list; it must not be felt."""
    from time import perf_counter

    before = perf_counter()
    load_goal_map(None)
    for kind, name in EVERY:
        Library(None).load(kind, name)
    assert perf_counter() - before < 2
