"""The goal map: what it holds, how a goal is found, and every mistake with its place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pop.errors import ConfigErrors, UsageError
from pop.recipes.wizard.goals import PACKAGED, WORDS, Ref, folded, goal_map_schema, load_goal_map
from pop.recipes.wizard.library import Library
from tests.test_docs import rows_of, section

ELEVEN = {
    "Technical & Execution": [
        "TEACH_OR_EXPLAIN", "DIAGNOSE_ROOT_CAUSE", "REVIEW_AGAINST_STANDARDS", "SCAFFOLD_FROM_SCRATCH",
        "OPTIMIZE_OR_REFINE", "ADD_OR_INTEGRATE", "CONVERT_OR_MIGRATE",
    ],
    "Strategic & Developmental": [
        "DECONSTRUCT_AN_IDEA", "PLAN_PROFESSIONAL_GROWTH", "BUILD_A_MENTAL_MODEL", "REFINE_A_PRESENTATION",
    ],
}  # fmt: skip
SHORT = {
    "EXPLAIN/DOCUMENT": "TEACH_OR_EXPLAIN",
    "DEBUG/DIAGNOSE": "DIAGNOSE_ROOT_CAUSE",
    "AUDIT/REVIEW": "REVIEW_AGAINST_STANDARDS",
    "GENERATE/SCAFFOLD": "SCAFFOLD_FROM_SCRATCH",
    "REFACTOR/OPTIMIZE": "OPTIMIZE_OR_REFINE",
    "ENHANCE/INTEGRATE": "ADD_OR_INTEGRATE",
    "TRANSFORM/MIGRATE": "CONVERT_OR_MIGRATE",
}
NAMES = [name for group in ELEVEN.values() for name in group]


def written(root: Path, value: Any) -> Path:
    """A root with this goal map: a text as it stands, or a value as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2)
    (root / "goal_map.json").write_text(text)
    return root


def goal(**keys: Any) -> dict[str, Any]:
    return {"goals": {"MINE": {"purpose": "Do it.", **keys}}}


def test_the_eleven_goals_stand_in_two_groups() -> None:
    """In the order of the menu, each with a purpose that is a sentence."""
    goals = load_goal_map(None)
    assert {group: [goal.name for goal in found] for group, found in goals.groups.items()} == ELEVEN
    assert all(goal.purpose.endswith(".") for goal in goals.goals)
    assert [goals.number(goal) for goal in goals.goals] == list(range(1, 12))


def test_every_goal_has_its_components_and_they_are_in_the_library() -> None:
    """So that a fresh installation generates nothing."""
    library = Library(None)
    for one in load_goal_map(None).goals:
        assert one.persona and one.protocols and one.constraints
        for ref in one.wanted():
            assert library.load(ref.kind, ref.name).text


def test_several_goals_lay_out_their_documents() -> None:
    """Both documents, with the user's choice, the request, and components of each spelling."""
    laid_out = [one for one in load_goal_map(None).goals if one.template_sections]
    assert len(laid_out) >= 2 and any(one.persona_sections for one in laid_out)
    for one in laid_out:
        assert any("request" in part.components for part in one.template_sections or ())


@pytest.mark.parametrize(("short", "name"), SHORT.items())
def test_the_short_names_are_found_by_either_half(short: str, name: str) -> None:
    """Whatever their case, and however they are joined."""
    goals = load_goal_map(None)
    left, right = short.split("/")
    for asked in (short, left, right, left.lower(), f"{left} / {right}", f"{left}-{right}".lower(), f" {right} "):
        assert goals.find(asked).name == name, asked


@pytest.mark.parametrize("name", NAMES)
def test_a_goal_is_found_by_its_name_and_number(name: str) -> None:
    """Case, dashes, underscores and spaces do not matter."""
    goals = load_goal_map(None)
    for asked in (name, name.lower(), name.replace("_", "-"), name.replace("_", " ").title(), NAMES.index(name) + 1):
        assert goals.find(str(asked)).name == name


@pytest.mark.parametrize(
    ("asked", "hint"),
    [("TEACH_OR_EXPLIAN", "did you mean 'TEACH_OR_EXPLAIN'?"), ("teech", "did you mean 'TEACH_OR_EXPLAIN'?"),
     ("debugg", "did you mean 'DIAGNOSE_ROOT_CAUSE'?"), ("0", "1 to 11"), ("12", "1 to 11"), ("zzz", "known: "),
     ("", "known: "), ("/", "known: "), ("\x1b[2J" * 200, "known: ")],
)  # fmt: skip
def test_an_unknown_goal_is_told_with_the_nearest(asked: str, hint: str) -> None:
    """Exit code 2, and nothing that steers a terminal."""
    with pytest.raises(UsageError) as caught:
        load_goal_map(None).find(asked)
    assert (caught.value.hint or "").startswith(hint) and caught.value.code == "unknown-goal"
    assert "\x1b" not in str(caught.value) and caught.value.exit_code == 2


def test_a_goal_of_the_roots_own_map_stands_in_the_menu(tmp_path: Path) -> None:
    """Without `extends` it is the whole map; what it does not name gets its standard name."""
    goals = load_goal_map(written(tmp_path, goal(protocols="my_protocol")))
    assert [one.name for one in goals.goals] == ["MINE"] and goals.source == "root"
    assert goals.goals[0].wanted() == [
        Ref("personas", "autogen_persona_for_mine"),
        Ref("protocols", "my_protocol"),
        Ref("constraints", "autogen_constraint_for_mine"),
    ]


def test_a_map_that_extends_ours_holds_only_what_differs(tmp_path: Path) -> None:
    """A packaged name is replaced where it stands; a new goal comes at the end of its group."""
    mine = {"purpose": "Do it.", "group": "Technical & Execution"}
    teach = {**mine, "persona": "technical_writer"}
    goals = load_goal_map(written(tmp_path, {"extends": "package", "goals": {"MINE": mine, "TEACH_OR_EXPLAIN": teach}}))
    assert [one.name for one in goals.goals] == [*NAMES[:7], "MINE", *NAMES[7:]]
    assert goals.find("1").persona == "technical_writer" and goals.find("mine").name == "MINE"


def test_the_document_of_the_docs_is_what_they_say(tmp_path: Path) -> None:
    """The example in docs/components.md, with the kinds of its bare names."""
    text = section("components.md", "The goal map")
    example = text[text.index("    {\n") : text.index("\n\nA goal that stands")]
    found = load_goal_map(written(tmp_path, example)).find("agreement")
    assert found.template_sections is not None
    first, second, third, last = found.template_sections
    assert first.components == ("request",) and third.components == ("constraints",)
    assert second.components == (Ref("protocols", "standards_checklist"), Ref("protocols", "findings_report"))
    assert second.separator == "\n\n---\n\n" and last.title is None and last.content
    jsonschema.Draft202012Validator(goal_map_schema()).validate(json.loads(example))


MISTAKES: list[tuple[Any, str, str]] = [
    ([], "must be an object", "goal_map.json:1:1"),
    ({}, "`goals` is missing", "goal_map.json:1:1"),
    ({"goals": {}}, "at least one goal", "goal_map.json:2:12  goals"),
    ({"goals": []}, "must be an object", "goal_map.json:2:12  goals"),
    ({"goals": {"A": {"purpose": "x"}}, "goal": 1}, "unknown key 'goal'", "goal_map.json:7:3  goal"),
    ({"goals": {"A": 3}}, "must be an object", "goal_map.json:3:10  goals.A"),
    ({"goals": {"../x": {"purpose": "x"}}}, "no name for a goal", 'goal_map.json:3:5  goals["../x"]'),
    ({"goals": {"A": {}}}, "`purpose` is missing", "goal_map.json:3:5  goals.A"),
    (goal(purpose=None), "must be a text", "goal_map.json:4:18  goals.MINE.purpose"),
    (goal(purpose="a\nb"), "must be a text", "goal_map.json:4:18  goals.MINE.purpose"),
    (goal(protocol="a"), "unknown key 'protocol'", "goal_map.json:5:7  goals.MINE.protocol"),
    (goal(persona=["a"]), "no name of a component", "goal_map.json:5:18  goals.MINE.persona"),
    (goal(persona="../../etc/passwd"), "no name of a component", "goal_map.json:5:18  goals.MINE.persona"),
    (goal(persona="personas/a"), "no name of a component", "goal_map.json:5:18  goals.MINE.persona"),
    (goal(persona="a.txt"), "no name of a component", "goal_map.json:5:18  goals.MINE.persona"),
    (goal(protocols={"a": 1}), "must be a list", "goal_map.json:5:20  goals.MINE.protocols"),
    (goal(protocols=["a", "a"]), "stands here twice", "goal_map.json:7:9  goals.MINE.protocols[1]"),
    (goal(aliases="A"), "must be a list", "goal_map.json:5:18  goals.MINE.aliases"),
    (goal(template_sections=[]), "must be a list of sections", "goal_map.json:5:28  goals.MINE.template_sections"),
    (goal(template_sections=[{}]), "one of `component`", "goal_map.json:6:9  goals.MINE.template_sections[0]"),
    (goal(template_sections=[{"component": "constraints", "content": "x"}]), "do not go together",
     "goal_map.json:8:11  goals.MINE.template_sections[0].content"),
    (goal(template_sections=[{"components": []}]), "at least one component",
     "goal_map.json:7:25  goals.MINE.template_sections[0].components"),
    (goal(template_sections=[{"component": None}]), "no name of a component",
     "goal_map.json:7:24  goals.MINE.template_sections[0].component"),
    (goal(template_sections=[{"content": " "}]), "must be a text",
     "goal_map.json:7:22  goals.MINE.template_sections[0].content"),
    (goal(template_sections=[{"content": "x", "separator": ""}]), "nothing to separate",
     "goal_map.json:8:11  goals.MINE.template_sections[0].separator"),
    (goal(template_sections=[{"components": ["request"], "separator": 3}]), "at most 200",
     "goal_map.json:10:24  goals.MINE.template_sections[0].separator"),
    (goal(persona_sections=[{"component": "person/x"}]), "no kind of component",
     "goal_map.json:7:24  goals.MINE.persona_sections[0].component"),
    (goal(persona_sections=[{"component": "personas/../x"}]), "no name of a component",
     "goal_map.json:7:24  goals.MINE.persona_sections[0].component"),
    ({"extends": "mine", "goals": {}}, "can only be", "goal_map.json:2:14  extends"),
    ({"$schema": 3, **goal()}, "must be a text", "goal_map.json:2:14  $schema"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "said", "where"), MISTAKES)
def test_a_mistake_is_told_with_line_column_and_path(tmp_path: Path, value: Any, said: str, where: str) -> None:
    """And the published schema refuses the same document, so that an editor finds it first."""
    with pytest.raises(ConfigErrors) as caught:
        load_goal_map(written(tmp_path, value))
    (problem,) = caught.value.problems
    place = (problem.where or "").replace('["$schema"]', "$schema")
    assert said in problem.message and place == where and problem.exit_code == 3
    assert not jsonschema.Draft202012Validator(goal_map_schema()).is_valid(value)


def test_a_bare_name_whose_kind_is_not_plain_is_asked_about(tmp_path: Path) -> None:
    """In the prompt's sections a name is a protocol or a constraint; what the goal does not name could be either."""
    with pytest.raises(ConfigErrors) as caught:
        load_goal_map(written(tmp_path, goal(template_sections=[{"component": "plain_language"}])))
    assert caught.value.problems[0].hint == (
        "say of which kind it is: protocols/plain_language or constraints/plain_language"
    )


def test_all_mistakes_are_told_at_once_in_reading_order(tmp_path: Path) -> None:
    """One look at the file mends them all; nearest names are hinted at."""
    with pytest.raises(ConfigErrors) as caught:
        load_goal_map(written(tmp_path, {"goals": {"A": {"purpos": "x", "persona": "B"}}, "extend": "package"}))
    told = [(problem.where, problem.hint) for problem in caught.value.problems]
    assert [(where or "").split()[-1] for where, _ in told] == [
        "goals.A",
        "goals.A.purpos",
        "goals.A.persona",
        "extend",
    ]
    assert told[1][1] == "did you mean 'purpose'?" and told[3][1] == "did you mean 'extends'?"


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "not valid JSON"), ('{"goals": {"A": 1,}}', "not valid JSON"), ("\ufeff{}", "byte order mark"),
     ('{"goals": {}, "goals": {}}', "stands twice"), ("[" * 500 + "]" * 500, "deep"), ("NaN", "not a JSON number")],
)  # fmt: skip
def test_what_is_no_json_is_told_as_such(tmp_path: Path, text: str, said: str) -> None:
    """With the file's name, and line and column where they are known."""
    with pytest.raises(ConfigErrors) as caught:
        load_goal_map(written(tmp_path, text))
    (problem,) = caught.value.problems
    assert said in problem.message and (problem.where or "").startswith("goal_map.json")


def test_a_map_that_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    """A folder, a link out of the root, a pipe, and more than a goal map can be."""
    path = tmp_path / "goal_map.json"

    def refused() -> str:
        with pytest.raises(ConfigErrors) as caught:
            load_goal_map(tmp_path)
        return str(caught.value)

    path.mkdir()
    assert "not a regular file" in refused()
    path.rmdir()
    path.symlink_to(PACKAGED)
    assert "a symbolic link" in refused()
    path.unlink()
    path.symlink_to("nowhere")
    assert "a symbolic link" in refused()
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refused()
    path.unlink()
    path.write_text(" " * 1_000_001)
    assert "more than the limit" in refused()


@pytest.mark.parametrize("alias", ["42", "4-2", "AUDIT/7"])
def test_an_alias_that_is_a_number_is_refused(alias: str, tmp_path: Path) -> None:
    """A number means a place in the menu, so nobody would ever find the goal by it."""
    with pytest.raises(ConfigErrors) as caught:
        load_goal_map(written(tmp_path, goal(aliases=[alias])))
    assert "a number means a place in the menu" in str(caught.value) and "aliases[0]" in str(caught.value)
    assert load_goal_map(written(tmp_path, goal(aliases=["7S"]))).find("7s").name == "MINE"


@pytest.mark.parametrize("other", [{"aliases": ["mi-ne"]}, {"aliases": ["X/Mine"]}])
def test_no_name_means_two_goals(tmp_path: Path, other: dict[str, Any]) -> None:
    """Halves of aliases count."""
    value = {"goals": {"MINE": {"purpose": "x"}, "THEIRS": {"purpose": "y", **other}}}
    with pytest.raises(ConfigErrors) as caught:
        load_goal_map(written(tmp_path, value))
    assert "'THEIRS' and 'MINE' are both called 'mine'" in str(caught.value)


def test_an_alias_of_ours_is_refused_in_a_map_that_extends_ours(tmp_path: Path) -> None:
    """The mistake stands at the goal of the root, whichever comes first."""
    with pytest.raises(ConfigErrors) as caught:
        load_goal_map(written(tmp_path, {"extends": "package", **goal(aliases=["debug"])}))
    assert "goals.MINE" in str(caught.value) and "DIAGNOSE_ROOT_CAUSE" in str(caught.value)


def test_a_packaged_name_that_was_taken_is_told_at_the_goal_that_took_it(tmp_path: Path) -> None:
    """Also where that goal stands before the one whose name it is."""
    value = {"extends": "package", "goals": {"TEACH_OR_EXPLAIN": {"purpose": "x", "aliases": ["debug"]}}}
    with pytest.raises(ConfigErrors) as caught:
        load_goal_map(written(tmp_path, value))
    assert [problem.where for problem in caught.value.problems] == ["goal_map.json:4:5  goals.TEACH_OR_EXPLAIN"]


def test_the_packaged_map_fulfils_the_schema() -> None:
    """And the schema is one."""
    jsonschema.Draft202012Validator.check_schema(goal_map_schema())
    jsonschema.Draft202012Validator(goal_map_schema()).validate(json.loads(PACKAGED.read_bytes()))


def test_every_key_is_documented() -> None:
    """docs/components.md has a row for each key of a goal and of a section."""
    defs = goal_map_schema()["$defs"]
    keys = {*defs["goal"]["properties"], *defs["section"]["properties"]}
    assert set(rows_of(section("components.md", "The goal map"))) == keys
    assert all(f"`{word}`" in section("components.md", "The goal map") for word in WORDS)


def test_spelling_is_folded() -> None:
    """What does not matter in a name."""
    assert folded("Teach or-Explain_/") == "teachorexplain"
