"""A model that has learnt the example by heart: it plays planner, validator and programmer, without key and network.

It reads a prompt and prints an answer. Its first plan is too vague about pre-releases, and the validator part of it says so;
its first code has an unused import and forgets that a release ranks above its pre-releases, which ruff and pytest find.
It goes by what stands in the prompt, and remembers nothing: the same prompt has the same answer. With POP_SCRIPTED_SLEEP_S
it takes its time.
"""

import json
import os
import re
import sys
import time

VAGUE = "identifiers are compared from left to right"
EXACT = "numeric identifiers as integers and below all others, the rest as text, a longer list above its own beginning"
FORGOTTEN = "    return (version.major, version.minor, version.patch, identifiers)"
RIGHT = "    return (version.major, version.minor, version.patch, not version.prerelease, identifiers)"
UNUSED = "import functools\nimport re\n"
USED = "import re\n"

MODULE = '''"""Semantic versions: parsing, and comparing by precedence."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

_NUMBER = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"  # no number with leading zeros
_WORD = r"[0-9A-Za-z-]+"
# numbers, then a pre-release behind "-", then build metadata behind "+"
_VERSION = re.compile(
    rf"({_NUMBER})\\.({_NUMBER})\\.({_NUMBER})"
    rf"(?:-({_IDENTIFIER}(?:\\.{_IDENTIFIER})*))?"
    rf"(?:\\+({_WORD}(?:\\.{_WORD})*))?"
)


@dataclass(frozen=True)
class Version:
    """A semantic version; equal to another when all its parts are, build metadata included."""

    major: int
    minor: int
    patch: int
    prerelease: tuple[str, ...] = ()
    build: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The text it was parsed from."""
        text = f"{self.major}.{self.minor}.{self.patch}"
        if self.prerelease:
            text += "-" + ".".join(self.prerelease)
        if self.build:
            text += "+" + ".".join(self.build)
        return text


def parse(text: str) -> Version:
    """The version that a text spells.

    Raises:
        ValueError: `text` is no semantic version.
    """
    found = _VERSION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no semantic version")
    major, minor, patch, prerelease, build = found.groups()
    return Version(
        int(major),
        int(minor),
        int(patch),
        tuple(prerelease.split(".")) if prerelease else (),
        tuple(build.split(".")) if build else (),
    )


def precedence(version: Version) -> tuple[object, ...]:
    """A key for sorting: of two versions, the one that ranks lower has the smaller key."""
    identifiers = tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in version.prerelease
    )
FORGOTTEN


def compare(left: Version, right: Version) -> int:
    """-1, 0 or 1: whether `left` ranks below, beside or above `right`, build metadata aside."""
    first, second = precedence(left), precedence(right)
    return (first > second) - (first < second)
'''.replace("FORGOTTEN", FORGOTTEN)

TESTS = '''"""Semantic versions."""

import dataclasses

import pytest

from semver import Version, compare, parse, precedence

CHAIN = [
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "1.1.0",
    "2.0.0",
    "10.0.0",
]
VALID = ["0.0.0", "1.0.0-0a.-.x-y", "1.0.0+001.b", "1.0.0-rc.1+build.5", "99999999999999999999.0.0"]
REFUSED = ["", "1", "1.2", "v1.2.3", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3+"]
MORE_REFUSED = ["1.2.3-a..b", "\\uff11.2.3", "1.2.3\\n", " 1.2.3", "1.2.x"]


@pytest.mark.parametrize("text", [*VALID, *CHAIN])
def test_a_version_spells_itself(text: str) -> None:
    """What was parsed comes back character for character."""
    assert str(parse(text)) == text


def test_the_parts_of_a_version() -> None:
    """Numbers are integers, identifiers stay as they are."""
    assert parse("1.2.3-rc.1+b.07") == Version(1, 2, 3, ("rc", "1"), ("b", "07"))


@pytest.mark.parametrize("text", [*REFUSED, *MORE_REFUSED])
def test_other_texts_are_refused(text: str) -> None:
    """The error holds the text."""
    with pytest.raises(ValueError, match="is no semantic version") as caught:
        parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("lower", "higher"), list(zip(CHAIN[:-1], CHAIN[1:], strict=True)))
def test_neighbours_of_the_chain_compare_both_ways(lower: str, higher: str) -> None:
    """The chain of the requirements, and numbers compared as numbers."""
    assert compare(parse(lower), parse(higher)) == -1
    assert compare(parse(higher), parse(lower)) == 1


def test_build_metadata_does_not_count() -> None:
    """Versions that differ in it alone rank alike, and are not equal."""
    assert compare(parse("1.0.0+a"), parse("1.0.0+b")) == 0
    assert parse("1.0.0+a") != parse("1.0.0+b")


def test_versions_sort_by_precedence() -> None:
    """From any order."""
    mixed = [parse(text) for text in reversed(CHAIN)]
    assert [str(version) for version in sorted(mixed, key=precedence)] == CHAIN


def test_a_version_is_a_key_and_cannot_be_changed() -> None:
    """Frozen and hashable."""
    version = parse("1.2.3")
    assert {version: "x"}[parse("1.2.3")] == "x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        version.major = 2  # type: ignore[misc]
'''


def plan(comparing):
    """The plan; its promise about pre-releases is what it is told to be."""
    wanted = [
        ("R1", "parse(text) gives a Version for every text of the grammar", "semver.parse, by one regular expression"),
        ("R2", "everything else is refused with ValueError that holds the text", "semver.parse, by fullmatch"),
        ("R3", "str(version) gives back the text", "Version.__str__, from the parts as they were"),
        ("R4", "compare gives -1, 0 or 1 by precedence without build metadata", "semver.compare, on precedence()"),
        ("R5", "a Version cannot be changed and can be a key", "a frozen dataclass"),
        ("R6", "versions sort by key=precedence", "semver.precedence gives a tuple"),
        ("R7", "only the standard library, Python 3.11 and later", "re and dataclasses"),
    ]
    interfaces = [
        ("class Version: major, minor, patch: int; prerelease, build: tuple[str, ...]", "frozen, hashable; str() spells it"),
        ("def parse(text: str) -> Version", "the version that text spells; ValueError with repr(text) for anything else"),
        ("def precedence(version: Version) -> tuple[object, ...]", f"a key for sorting; of pre-releases {comparing}"),
        ("def compare(left: Version, right: Version) -> int", "-1, 0 or 1 by precedence; build metadata does not count"),
    ]
    tests = [
        ("a version spells itself", ["R1", "R3"], "str(parse(text)) == text for 0.0.0, 1.0.0-0a.-.x-y, 1.0.0+001.b ..."),
        ("other texts are refused", ["R2"], "each refused text of the requirements; the error holds its repr"),
        ("neighbours of the chain", ["R4"], "the chain of requirement 4, each neighbour compared both ways"),
        ("build metadata does not count", ["R4"], "1.0.0+a and 1.0.0+b compare as 0"),
        ("versions sort", ["R6", "R7"], "the chain reversed, sorted by key=precedence, is the chain"),
        ("a key that cannot be changed", ["R5"], "as a key of a dict; FrozenInstanceError on assignment"),
    ]
    return {
        "title": "Semantic versions",
        "summary": "One module with a frozen dataclass, a parser by one regular expression, and a key for sorting.",
        "requirements": [{"id": i, "requirement": r, "met_by": m} for i, r, m in wanted],
        "files": [
            {
                "path": "semver.py",
                "purpose": "Parses and compares semantic versions.",
                "interfaces": [{"signature": s, "promise": p} for s, p in interfaces],
            },
            {"path": "tests/test_semver.py", "purpose": "Tests of semver.", "interfaces": []},
        ],
        "steps": [
            "Version and parse; the tests of R1 to R3 and R5 pass",
            "precedence and compare; the tests of R4 and R6 pass",
        ],
        "tests": [{"name": n, "covers": c, "checks": k} for n, c, k in tests],
        "standards": ["errors name the value by !r", "the regular expression is compiled once, at the top"],
        "compatibility": ["Python 3.11: nothing newer is used"],
        "assumptions": ["equality counts build metadata, as requirement 3 tells versions apart by it"],
        "risks": ["\\d would take digits that are not ASCII; [0-9] is used"],
    }


def initial_plan(prompt):
    return plan(VAGUE)


def validated_plan(prompt):
    exact = EXACT in part(prompt, "plan")
    issue = {
        "severity": "critical",
        "concerns": "alignment",
        "where": "files[0].interfaces[2]",
        "issue": f"Requirement 4 orders numeric and other identifiers differently; the plan only says that {VAGUE}. "
        "Compared as text, 1.0.0-beta.11 would come before 1.0.0-beta.2.",
        "suggestion": "Say that numeric identifiers compare as integers and rank below all others.",
    }
    return {
        "checked": [
            {"item": "R1 to R3: parsing", "holds": True, "where": "files[0].interfaces[1], tests[0], tests[1]"},
            {"item": "R4: precedence", "holds": exact, "where": "files[0].interfaces[2]"},
            {"item": "R5 to R7", "holds": True, "where": "files[0].interfaces[0], tests[4], tests[5]"},
        ],
        "issues": [] if exact else [issue],
        "validation_scores": {
            "alignment_score": 9.5 if exact else 6.0,
            "standardization_score": 9.0,
            "compatibility_score": 9.5,
        },
        "summary": "Every requirement is fixed by the plan." if exact else "The order of pre-releases is left open.",
    }


def revised_plan(prompt):
    found = re.findall(r'"issue": "(.{1,80})', part(prompt, "review"))
    asked = re.findall(r"^- (.+)$", part(prompt, "changes"), re.MULTILINE)
    resolutions = [{"issue": issue, "resolution": f"The promise of precedence() now says: {EXACT}."} for issue in found]
    resolutions += [{"issue": words, "resolution": "It stands among the assumptions."} for words in asked]
    revised = plan(EXACT)
    revised["assumptions"] += [f"a person asked: {words}" for words in asked]
    return {"resolutions": resolutions, **revised}


def first_code(prompt):
    files = [{"path": "semver.py", "content": MODULE}, {"path": "tests/test_semver.py", "content": TESTS}]
    return {"files": files, "deviations": [], "notes": "precedence() gives the key that everything is compared by."}


def validated_code(prompt):
    right = RIGHT in prompt
    issue = {
        "severity": "critical",
        "concerns": "compatibility",
        "file": "semver.py",
        "line": line_of(prompt, FORGOTTEN),
        "issue": "The key of 1.0.0 is smaller than that of 1.0.0-rc.1, as an empty tuple comes first; it must be larger.",
        "suggestion": "Put `not version.prerelease` before the identifiers.",
    }
    return {
        "checked": [
            {"item": "parse, str, refused texts", "holds": True, "where": "semver.py"},
            {"item": "precedence by the chain of requirement 4", "holds": right, "where": "semver.py"},
        ],
        "issues": [] if right else [issue],
        "validation_scores": {"alignment_score": 9.5, "compatibility_score": 9.5 if right else 5.0},
        "summary": "The code does what was planned." if right else "A release ranks below its pre-releases.",
    }


def validated_standards(prompt):
    issue = {
        "severity": "minor",
        "concerns": "standardization",
        "file": "semver.py",
        "line": line_of(prompt, "def __str__(self) -> str:"),
        "issue": "The habit of the example code is to build a text in one expression; here it grows in three steps.",
        "suggestion": "Leave it, or join the parts at the end.",
    }
    return {
        "checked": [{"item": "docstrings, type hints, errors by !r", "holds": True, "where": "semver.py"}],
        "issues": [issue],
        "validation_scores": {"standardization_score": 9.0},
        "summary": "The standards are kept; one habit of the example code is not.",
    }


def refined_code(prompt):
    findings = re.findall(r"^- (F\d+) \((\w+), (\w+)\)", part(prompt, "findings"), re.MULTILINE)
    asked = part(prompt, "changes").strip()
    module = MODULE.replace(UNUSED, USED).replace(FORGOTTEN, RIGHT)
    if asked:
        words = re.sub(r"\s+", " ", asked.lstrip("- "))[:70]
        module = module.replace("by precedence.", f"by precedence.\n\nA person asked: {words}\n", 1).replace("\n\n\"\"\"", '\n"""', 1)
    told = {"5b": "Left as it is: each part has its own condition."}
    resolutions = [
        {"finding": name, "resolved": source != "5b", "how": told.get(source, "The cause was removed from semver.py.")}
        for name, _, source in findings
    ]
    if asked:
        resolutions.append({"finding": "person", "resolved": True, "how": "The module's docstring says it."})
    notes = "The unused import is gone, and a release ranks above its pre-releases."
    return {"files": [{"path": "semver.py", "content": module}], "removed": [], "resolutions": resolutions, "notes": notes}


def part(prompt, tag):
    """What stands between the first tag of that name and its end; nothing where there is none."""
    found = re.search(rf"^<{tag}(?: [^>]*)?>$(.*?)^</{tag}>$", prompt, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def line_of(prompt, text):
    """The line of semver.py on which a text stands."""
    module = re.search(r'^<file path="semver.py">\n(.*?)^</file>$', prompt, re.DOTALL | re.MULTILINE)[1]
    return next((number for number, line in enumerate(module.splitlines(), 1) if text.strip() in line), 1)


STEPS = {
    "1": initial_plan,
    "2": validated_plan,
    "3": revised_plan,
    "4": first_code,
    "5a": validated_code,
    "5b": validated_standards,
    "6": refined_code,
}


def main():
    prompt = sys.stdin.read()
    step = re.search(r"^# Step (\w+) of 7:", prompt, re.MULTILINE)
    if step is None:
        print("Nothing was learnt for this prompt.", file=sys.stderr)
        return 1
    time.sleep(float(os.environ.get("POP_SCRIPTED_SLEEP_S", "0")))
    print(json.dumps(STEPS[step[1]](prompt), ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
