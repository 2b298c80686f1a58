"""Completion criteria: read from a checklist, held against files, told with evidence."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop.errors import ConfigErrors
from pop.recipes.iterate.bounded import Searcher, TooLong, is_plain, run_command
from pop.recipes.iterate.criteria import (
    Finding,
    Report,
    check,
    check_text,
    for_path,
    needed_files,
    parse,
    parse_one,
    with_planned,
)
from pop.recipes.iterate.judging import glob_regex
from pop.recipes.iterate.rules import CriterionError
from pop.recipes.iterate.wellformed import data_flaw, read_markdown

GOOD = """# Requirements

Who wants *what*, and why. See [the design](design.json).

## 2. Risks

| risk | weight |
|------|--------|
| fire | 3      |
"""


def judged(folder: Path, bracket: str, path: str = "a.md") -> list[tuple[str, str]]:
    """Status and evidence of each rule in the bracket of one path."""
    return [(one.status, one.evidence) for one in check([parse_one(f"`{path}` ({bracket})")], folder).criteria]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.md").write_text(GOOD)
    (tmp_path / "design.json").write_text('{"parts": 3}')
    return tmp_path


@pytest.mark.parametrize(
    ("bracket", "status", "evidence"),
    [
        ("exists", "met", "142 bytes"),
        (">100B", "met", "142 bytes"),
        (">= 142 bytes", "met", "142 bytes"),
        ("> 142 B", "unmet", "142 bytes"),
        (">1KB", "unmet", "142 bytes"),
        ("at most 1 KiB", "met", "142 bytes"),
        ("10-20 KB", "unmet", "142 bytes"),
        ("at least 20 words", "unmet", "17 words"),
        ("between 10 and 20 words", "met", "17 words"),
        ("fewer than 9 lines", "unmet", "9 lines"),
        ("max 200 characters", "met", "142 characters"),
        ('has "## Risks"', "met", "line 5: ## 2. Risks"),
        ('has "# Risks"', "unmet", "no such heading; there is # Requirements, ## 2. Risks"),
        ('heading "risks:"', "met", "line 5: ## 2. Risks"),
        ('heading "Risks" at level 3', "unmet", "no such heading; there is # Requirements, ## 2. Risks"),
        ('has "FIRE"', "met", "'FIRE' in line 9"),
        ('contains all of "fire", "flood"', "unmet", "no 'flood'"),
        ('contains any of "fire", "flood"', "met", "'fire' in line 9"),
        ('lacks "why"', "unmet", "'why' in line 3"),
        ('lacks "TODO"', "met", "no 'TODO'"),
        ("matches /^\\| fire\\s+\\| \\d/", "met", "line 9: | fire | 3"),
        ("matches /FLOOD/i", "unmet", "no match"),
        ("lacks /\\bwhat\\b/", "unmet", "line 3: what"),
        ("markdown", "met", "well-formed Markdown"),
        ("well-formed", "met", "well-formed Markdown"),
        ("json", "unmet", "1:1: not valid JSON: expecting value"),
    ],
)  # fmt: skip
def test_a_rule_is_held_with_evidence(folder: Path, bracket: str, status: str, evidence: str) -> None:
    """Each rule tells what it found, met or not."""
    assert judged(folder, bracket) == [(status, evidence)]


def test_the_issues_own_example_is_read(folder: Path) -> None:
    """- [ ] `path` (exists, >1KB, has "## Risks")"""
    (criterion,) = parse('- [ ] `a.md` (exists, >1KB, has "## Risks")\n')
    assert [rule.text for rule in criterion.rules] == ["exists", ">1KB", 'has "## Risks"']
    report = check([criterion], folder)
    assert (report.met, report.met_count, report.unmet_count, report.unchecked_count) == (False, 2, 1, 0)
    assert report.unmet_paths == {"a.md": [">1KB: 142 bytes"]}


def test_only_boxes_outside_of_blocks_are_criteria() -> None:
    """Text around the list explains it; an example in a block asks for nothing; a tick means nothing."""
    text = (
        "# Criteria\n\nTicked by `pop iterate validate`.\n\n- not a box\n```\n- [ ] `example.md` (exists)\n```\n"
        '1. [x] `a.md`\n   (exists,\n   has "x")\n* [ ] The tone is calm.\n'
    )
    first, second = parse(text)
    assert (first.text, first.line) == ('`a.md` (exists, has "x")', 9)
    assert (second.text, second.line) == ("The tone is calm.", 12)


def test_prose_is_never_met(folder: Path) -> None:
    """Neither a sentence, nor words in a bracket that are no rule, nor words behind it."""
    report = check(parse("- [ ] Good.\n- [ ] `a.md` is short\n- [ ] `a.md` (exists, lucid) and kind\n"), folder)
    assert [one.status for one in report.criteria] == ["unchecked", "unchecked", "met", "unchecked", "unchecked"]
    assert report.met and report.unchecked_count == 4


def test_words_behind_a_colon_are_a_remark(folder: Path) -> None:
    """So a criterion may say what it is for."""
    assert [one.status for one in check([parse_one("`a.md` (exists): the analysis")], folder).criteria] == ["met"]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("`a.md` (exsits)", "unknown rule 'exsits'", "did you mean 'exists'?"),
        ("`a.md` (contians \"x\")", "unknown rule", "did you mean 'contains'?"),
        ("`a.md` (markdwn)", "unknown rule 'markdwn'", "did you mean 'markdown'?"),
        ("`a.md` (has Risks)", "'has Risks' is not how 'has' is written", 'write has "words"'),
        ("`a.md` (>5)", "'>5' does not say of what", "KB, MB, words"),
        ("`a.md` (>5 parsecs)", "unknown unit 'parsecs'", "KB, MB, words"),
        ("`a.md` (20-10 KB)", "'20-10 KB' holds for nothing", "smaller number"),
        ("`a.md` (matches /(/)", "is no regular expression", "character 1"),
        ("`a.md` (matches /a/q)", "unknown flag 'q'", "known: i, s, x, m"),
        ("`a.md` (exists", "is not closed", "close it"),
        ("`../a.md` (exists)", "does not stay in the iteration's folder", "relative"),
        ("`/etc/passwd` (exists)", "does not stay in the iteration's folder", "relative"),
        ("`a.md` (within 5s)", "is a rule of a command", "command `pytest -q`"),
        ("`a*a*a*a*a*a*a*.md` (exists)", "more than 6 wildcards", "folders"),
        ("command `ls | wc`", "'|' stands in the command", "sh -c"),
        ("command `ls 'x`", "is no command", "close the quotes"),
        ("command `ls` (exists)", "'exists' is no rule of a command", "exit 0"),
        ("command `ls` (within 3y)", "'3y' is no time up to an hour", "60s"),
        ("`stories/{id}/a.md` (exists)", "nothing fills {id}", "stories/*/a.md"),
    ],
)  # fmt: skip
def test_what_is_nearly_a_criterion_is_a_mistake(text: str, message: str, hint: str) -> None:
    """With its line and the next move; silently taken as prose it would be forgotten."""
    with pytest.raises(ConfigErrors) as caught:
        parse(f"- [ ] fine\n- [ ] {text}\n")
    (problem,) = caught.value.problems
    assert message in problem.message and hint in str(problem.hint)
    assert problem.where == "COMPLETION_CRITERIA.md:2"


def test_placeholders_may_stand_in_a_workflow() -> None:
    """There `generate` fills them."""
    assert parse_one("`stories/{story_id}/a.md` (exists)").paths == ("stories/{story_id}/a.md",)
    with pytest.raises(CriterionError):
        parse_one("`a` (exsits)")


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("*.md", "a.md", True), ("*.md", "b/a.md", False), ("**/*.md", "a.md", True), ("**/*.md", "b/c/a.md", True),
        ("b/**", "b/c/a.md", True), ("b/**", "b", False), ("?.md", "a.md", True), ("[ab].md", "b.md", True),
        ("[!ab].md", "c.md", True), ("*.md", ".a.md", False), (".*", ".a", True), ("a.b", "axb", False),
    ],
)  # fmt: skip
def test_globs_match_as_in_a_shell(glob: str, path: str, matches: bool) -> None:
    """With ** for any folders, and nothing hidden unless it is asked for."""
    assert bool(glob_regex(glob).fullmatch(path)) is matches


def test_what_a_glob_matches_must_hold_one_by_one(folder: Path) -> None:
    """And one that matches nothing is not met."""
    for name in ("one", "two"):
        (folder / "stories" / name).mkdir(parents=True)
        (folder / "stories" / name / "r.md").write_text("# R\n" if name == "one" else "")
    report = check(parse("- [ ] `stories/*/r.md` (markdown, at least 3 files)\n- [ ] `x/*` (exists)\n"), folder)
    assert report.unmet_paths == {
        "stories/*/r.md": ["at least 3 files: 2 files"],
        "stories/two/r.md": ["markdown: it is empty"],
        "x/*": ["exists: nothing matches"],
    }


def test_an_iterations_own_files_match_no_glob(folder: Path) -> None:
    """They are not deliverables; by name they can be asked for."""
    (folder / "CONTEXT.md").write_text("x")
    (folder / "agent-prompts").mkdir()
    (folder / "agent-prompts" / "dev.md").write_text("x")
    report = check(parse("- [ ] `**/*.md` (exists)\n- [ ] `CONTEXT.md` (exists)\n"), folder)
    assert [one.path for one in report.criteria] == ["a.md", "CONTEXT.md"]


def test_no_link_leads_out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither a file, nor a folder on the way to it, nor a glob; and a pipe is no file."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "s.md").write_text("secret")
    (folder / "s.md").symlink_to(outside / "s.md")
    (folder / "out").symlink_to(outside)
    os.mkfifo(folder / "p.md")
    assert judged(folder, 'has "secret"', "s.md") == [("unmet", "a symbolic link is not followed")]
    assert judged(folder, 'has "secret"', "out/s.md") == [("unmet", "a symbolic link leads to it")]
    assert judged(folder, "exists", "p.md") == [("unmet", "it is no file")]
    assert [one.path for one in check([parse_one("`**/*.md` (exists)")], folder).criteria] == ["a.md"]


def test_a_schema_is_looked_up_beside_the_deliverables(folder: Path) -> None:
    """JSON and YAML are held to it; a schema that is missing or broken is not met, with the reason."""
    (folder / "parts.schema.json").write_text('{"required": ["parts"], "properties": {"parts": {"type": "string"}}}')
    (folder / "broken.json").write_text('{"type": "strnig"}')
    (folder / "d.yaml").write_text("parts: three\n")
    assert judged(folder, "schema `parts.schema.json`", "design.json") == [
        ("unmet", "/parts: 3 is not of type 'string'")
    ]
    assert judged(folder, "schema `parts.schema.json`", "d.yaml") == [("met", "it fits")]
    assert judged(folder, "schema `none.json`", "design.json") == [("unmet", "there is no schema none.json")]
    ((status, evidence),) = judged(folder, "schema `broken.json`", "design.json")
    assert status == "unmet" and "did you mean 'string'?" in evidence
    assert needed_files([parse_one("`a.json` (json, schema `parts.schema.json`)")]) == ["parts.schema.json"]


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("# A\n```\ncode\n", "2:1: the block that begins with ``` is not closed"),
        ("a\n<!-- b\n", "2:1: the comment that begins with <!-- is not closed"),
        ("| a | b |\n|---|---|\n| 1 | 2 | 3 |\n", "3:1: a row of 3 cells in a table of 2 columns"),
        ("see [x][nowhere]\n", "1:5: nothing defines the link [nowhere]"),
        ("  \n", "it is empty"),
        ("a\n b\x07\n", "2:3: the control character '\\x07'"),
    ],
)  # fmt: skip
def test_what_is_no_well_formed_markdown(text: str, flaw: str) -> None:
    """Each with line and column."""
    assert [str(one) for one in read_markdown(text).flaws] == [flaw]


@pytest.mark.parametrize(
    "text",
    [
        "````\n```\n````\n",
        "~~~\n```\n~~~\n",
        "- item\n  ```\n  x\n  ```\n",
        "a `| b` c\n",
        "| a \\| b | c |\n|---|---|\n| 1 | 2 |\n",
        "see [x][Here]\n\n[here]: https://example.org\n",
        "[a](https://x.org) ![b](#part) [c](mailto:x@y.z)\n",
        "a <!-- b --> c `<!--`\n",
        "1 | 2\nno table\n",
    ],
)
def test_what_is_well_formed_markdown(text: str) -> None:
    """As CommonMark and GitHub read it."""
    assert read_markdown(text).flaws == []


def test_headings_in_blocks_are_none() -> None:
    """Nor in comments; underlined ones are."""
    text = "```\n# no\n```\n<!--\n# no\n-->\nTitle\n=====\n\n### Three ###\n\n    # no\n\ntext\n---\n"
    assert [(one.line, str(one)) for one in read_markdown(text).titles] == [
        (7, "# Title"),
        (10, "### Three"),
        (14, "## text"),
    ]


def test_a_relative_link_leads_to_a_file(folder: Path) -> None:
    """What leaves the folder (the targets, say) is not judged."""
    (folder / "sub").mkdir()
    (folder / "sub" / "b.md").write_text("[up](../a.md#risks) [out](../../x.md) [gone](c%20d.md)\n")
    assert judged(folder, "markdown", "sub/b.md") == [("unmet", "1:1: the link 'c d.md' leads to nothing")]


@pytest.mark.parametrize(
    ("form", "text", "flaw"),
    [
        ("yaml", "a: 1\na: 2\n", '2:1: found duplicate key "a"'),
        ("yaml", "a: [1,\n", "2:1: "),
        ("yaml", "a: 1\n---\nb: 2\n", None),
        ("json", '{"a": 1,}', "1:9: not valid JSON"),
        ("json", '{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("json", "[1, 2]", None),
        ("yaml", "", "it is empty"),
        ("yaml", "a: 1\n" * 500_000, "are not read"),
    ],
)  # fmt: skip
def test_data_is_well_formed_or_told_where_not(form: str, text: str, flaw: str | None) -> None:
    """With line and column where they are known."""
    found = data_flaw(text, form)
    assert found is None if flaw is None else flaw in str(found)


def test_what_is_no_text_is_told(folder: Path) -> None:
    """No rule that reads it is met, and nothing crashes."""
    (folder / "b.md").write_bytes(b"ok\xff")
    assert judged(folder, 'exists, has "ok"', "b.md") == [
        ("met", "3 bytes"),
        ("unmet", "not UTF-8: byte 0xff at offset 2"),
    ]


def test_a_pattern_that_backtracks_for_ever_is_given_up() -> None:
    """The process that searched is replaced, and the next search is answered."""
    searcher = Searcher(limit_s=0.5)
    try:
        began = time.monotonic()
        with pytest.raises(TooLong):
            searcher.search(r"(a+)+$", 0, "a" * 60 + "b")
        with pytest.raises(TooLong):
            searcher.schema_problems("a" * 60 + "b", {"pattern": "^(a+)+$"})
        assert time.monotonic() - began < 10
        assert searcher.search("b+", 0, "a\nbb") == (2, "bb")
    finally:
        searcher.close()


@pytest.mark.parametrize(
    ("pattern", "plain"),
    [
        (r'"id": \d+', True), (r"^Risk: (low|high)$", True), (r"x*y", True), (r"(a|b)?c", True),
        (r"(a|a)*b", False), (r"^(a+)+$", False), (r"(a) {2}", False), (r"a?a?aa", False), (r"(a|aa)(a|aa)(a|aa)(a|aa)b", False),
        (r"(a*)\1", False), (r"\w+@\w+", False),
    ],
)  # fmt: skip
def test_only_what_is_soon_over_is_searched_at_once(pattern: str, plain: bool) -> None:
    """Everything else has a process and a limit."""
    assert is_plain(pattern) is plain


def test_a_command_is_judged_by_its_end_and_its_words(folder: Path) -> None:
    """It runs in the folder, without a shell, and the last lines it printed are evidence."""
    (folder / "t.sh").write_text("echo made $(ls | wc -l); exit 3\n")
    report = check(parse('- [ ] command `sh t.sh` (exit 0, within 9s, has "made")\n'), folder)
    first, second, third = report.criteria
    assert first.status == "unmet" and first.evidence.startswith("exit 3 after") and first.evidence.endswith("made 3")
    assert (second.status, third.status, third.path) == ("met", "met", "sh t.sh")
    assert [one.status for one in check([parse_one("command `sh t.sh` (exit 3)")], folder).criteria] == ["met"]
    ((status, evidence),) = [
        (one.status, one.evidence) for one in check([parse_one("command `nope`")], folder).criteria
    ]
    assert (status, evidence) == ("unmet", "it cannot be run: No such file or directory")


def test_a_command_that_hangs_is_ended_with_all_it_started(folder: Path) -> None:
    """Also children that ignore TERM."""
    (folder / "h.sh").write_text("(trap '' TERM; echo $$; exec sleep 4321.5) & sleep 4321.5\n")
    began = time.monotonic()
    (finding,) = check([parse_one("command `sh h.sh` (within 300ms)")], folder).criteria[:1]
    assert finding.status == "unmet" and "its time was over" in finding.evidence
    assert time.monotonic() - began < 10
    until = time.monotonic() + 5.0  # what was killed is there until the kernel has come to it
    while [p.pid for p in psutil.process_iter(["cmdline"]) if "4321.5" in (p.info["cmdline"] or [])]:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_command_may_print_without_end(folder: Path) -> None:
    """What is kept of it is bounded; and a process that left the group with the pipe does not hold us up."""
    ended = run_command("sh -c 'yes x | head -c 30000000; echo end'", folder, 30)
    assert ended.code == 0 and len(ended.said) <= 64 * 1024 and ended.said.endswith("end\n")
    away = f'{sys.executable} -c \'import subprocess; subprocess.Popen(["sleep", "5"], start_new_session=True)\''
    assert run_command(away, folder, 30).seconds < 4


def test_a_command_sees_no_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a person's command about a model's files."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "sk-secret" not in run_command("env", folder, 10).said


def test_commands_can_be_left_out(folder: Path) -> None:
    """Then nobody has checked them."""
    report = check([parse_one("command `false`")], folder, commands=False)
    assert [(one.status, one.evidence) for one in report.criteria] == [("unchecked", "not run")]


def test_a_text_is_held_to_what_concerns_its_path(folder: Path) -> None:
    """Before it is a file: commands, counts of files and links to others are left out."""
    criteria = parse('- [ ] `*.md` (exists, has "x", at least 9 files)\n- [ ] `b.md` (json)\n- [ ] command `false`\n')
    found = check_text(criteria, "a.md", "x [b](none.md)")
    assert [(one.rule, one.status) for one in found] == [("exists", "met"), ('has "x"', "met")]
    assert [one.text for one in for_path(criteria, "b.md")][-1] == "`b.md` (json)"
    schema = parse_one("`a.json` (schema `s.json`)")
    assert [one.status for one in check_text([schema], "a.json", "{}")] == ["unchecked"]


def test_what_is_planned_must_exist(folder: Path) -> None:
    """Also where no criterion speaks of it."""
    criteria = with_planned(parse("- [ ] `*.md` (markdown)\n"), ["a.md", "plan.yaml"])
    assert check(criteria, folder).unmet_paths == {"plan.yaml": ["exists: it is not there"]}


def test_a_glob_does_not_stand_for_what_was_never_made(folder: Path) -> None:
    """Four of five files beside `*.md` are not all that was planned."""
    criteria = with_planned(parse("- [ ] `*.md` (exists)\n"), ["a.md", "missing.md"])
    assert check(criteria, folder).unmet_paths == {"missing.md": ["exists: it is not there"]}


def test_counting_files_does_not_say_that_one_is_there(folder: Path) -> None:
    """`at most 1 files` holds of a file that nobody made."""
    criteria = with_planned(parse("- [ ] `missing.md` (at most 1 files)\n"), ["missing.md"])
    assert check(criteria, folder).unmet_paths == {"missing.md": ["exists: it is not there"]}


def test_each_missing_heading_is_named(folder: Path) -> None:
    """Else neither a person nor a model knows which one to write."""
    (folder / "plain.md").write_text("# Only this\n")
    problems = check(parse('- [ ] `plain.md` (has "## Risks", "## Costs")\n'), folder).unmet_paths["plain.md"]
    assert len(problems) == 2 and "Risks" in problems[0] and "Costs" in problems[1]


def test_a_report_counts() -> None:
    """`met` is about what a rule understands."""
    finding = Finding(text="t", path=None, rule="t", status="unchecked", evidence="e")
    assert Report.of([finding]).met and Report.of([finding]).unchecked_count == 1


@given(st.text(alphabet='`()"“”/[]\\ .,*a1<>=\n-:|#&', max_size=200))
def test_any_text_is_a_criterion_or_a_mistake(text: str) -> None:
    """Whatever a person or a model writes: nothing crashes."""
    with contextlib.suppress(CriterionError):
        parse_one(text or "x")
    with contextlib.suppress(ConfigErrors):
        parse(f"- [ ] `a` ({text})\n- [ ] {text}\n")


@given(st.text(alphabet="`~#|-[]()<>!\"' \t\n\\ax:=", max_size=300))
def test_any_text_can_be_read_as_markdown(text: str) -> None:
    """Flaws have places inside of it."""
    found = read_markdown(text)
    assert all(0 <= flaw.line <= text.count("\n") + 1 for flaw in found.flaws)


@pytest.mark.parametrize(
    "piece",
    ["[a](", '[a]( "', "<!--", "[", "[a][", "# ", " ", "|-", "`", "- ", "> ", "\\", "[a](x", "| a ", "1. ", "(", "*"],
)
def test_a_hostile_text_takes_no_longer_than_others(piece: str) -> None:
    """A model's answer of a quarter of a megabyte in one line, or in many."""
    began = time.monotonic()
    for text in (piece * (250_000 // len(piece)) + "x", "| a |\n" + f"{piece}{' ' * 100_000}x", f"{piece}\n" * 20_000):
        read_markdown(text)
    with contextlib.suppress(ConfigErrors):
        parse(f"- [ ] `a` (matches /{piece * 600}\n- [ ] `a` ({piece * 900}\n")
    assert time.monotonic() - began < 8
