"""COMPLETION_CRITERIA.md: a checklist for people that programs check too, and what came of it.

    - [ ] `stories/*/requirements.md` (exists, >1KB, has "## Risks")
    - [ ] `plan.json`, `plan.yaml` (well-formed): a colon begins a remark
    - [ ] command `pytest -q` (exit 0, within 60s)
    - [ ] The tone is calm.

A box makes a line of a list a criterion; ticks mean nothing here, and what stands in a ``` block is an example. Paths are
relative to the iteration's folder; `*`, `?` and `[ab]` match within a name, `**` any folders; what a glob matches must hold one
by one, and a glob that matches nothing is not met. The rules are in rules.py. A path without a bracket must exist. Prose, and
words behind a bracket that no colon sets off, are `unchecked`, never met.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from pop.errors import ConfigError, ConfigErrors, safe
from pop.recipes.iterate.bounded import run_command
from pop.recipes.iterate.judging import Judge, Looked, Tree, Verdict, amount, glob_regex, is_glob
from pop.recipes.iterate.rules import (
    Amount,
    CriterionError,
    Exists,
    Exit,
    Prose,
    Rule,
    Schema,
    Within,
    bracket,
    read_rule,
)
from pop.records import Record

Status = Literal["met", "unmet", "unchecked"]
FILE = "COMPLETION_CRITERIA.md"
COMMAND_S = 60.0  # where a command has no `within`
UNCHECKED = Verdict("unchecked", "no program can check this")
MAX_STARS = 6  # in a path: each multiplies how long a match may take
MAX_SHOWN = 20  # findings of one path in `unmet_paths`

_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+\[[ xX]\]\s+(\S.*)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_PATHS = re.compile(r"`([^`]+)`(?:\s*(?:,|and)\s*(?=`))?")
_COMMAND = re.compile(r"(?i)command:?\s+`([^`]+)`\s*")
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*\}")
_SHELL = re.compile(r"[|&;<>]+|\d?>&?\d?")


@dataclass(frozen=True)
class Criterion:
    """One line of the list. `paths`: relative, or globs; with a `command` or for prose there are none."""

    text: str
    rules: tuple[Rule, ...]
    paths: tuple[str, ...] = ()
    command: str | None = None
    line: int = 0

    def concerns(self, path: str) -> bool:
        """Whether the deliverable of this path is held to it."""
        return any(
            pattern == path or (is_glob(pattern) and glob_regex(pattern).fullmatch(path)) for pattern in self.paths
        )


class Finding(Record):
    """What one rule of a criterion says of one path. `path`: of the file; a glob that matches nothing; or the command."""

    text: str
    path: str | None
    rule: str
    status: Status
    evidence: str


class Report(Record):
    """All findings, in the order of the criteria."""

    met: bool = Field(description="All that a rule understands is met.")
    met_count: int
    unmet_count: int
    unchecked_count: int
    criteria: list[Finding]

    @classmethod
    def of(cls, findings: list[Finding]) -> Report:
        counts = {status: sum(one.status == status for one in findings) for status in ("met", "unmet", "unchecked")}
        return cls(
            met=not counts["unmet"],
            met_count=counts["met"],
            unmet_count=counts["unmet"],
            unchecked_count=counts["unchecked"],
            criteria=findings,
        )

    @cached_property
    def unmet_paths(self) -> dict[str, list[str]]:
        """By path (or glob, or command) what is wrong with it, in sentences."""
        found: dict[str, list[str]] = {}
        for one in self.criteria:
            if one.status == "unmet" and one.path is not None:
                found.setdefault(one.path, []).append(problem(one))
        return {path: problems[:MAX_SHOWN] for path, problems in found.items()}


def problem(finding: Finding) -> str:
    """A finding as a sentence for whoever is to mend it."""
    return f"{finding.rule}: {finding.evidence}"


def parse(text: str, file: str = FILE) -> list[Criterion]:
    """The criteria of a COMPLETION_CRITERIA.md.

    Raises:
        ConfigErrors: Every line that looks like a criterion and is none, with its place.
    """
    found, wrong = list[Criterion](), list[ConfigError]()
    for number, item in _items(text):
        try:
            criterion = parse_one(item, number)
            _refuse_placeholders(criterion)
            found.append(criterion)
        except CriterionError as error:
            wrong.append(CriterionError(error.message, where=f"{file}:{number}", hint=error.hint))
    if wrong:
        raise ConfigErrors(wrong)
    return found


def _items(text: str) -> Iterator[tuple[int, str]]:
    """The lines with boxes, each with what goes on below it, indented."""
    fence, number, item = "", 0, ""
    for at, line in enumerate(text.splitlines(), 1):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
            continue
        match = _ITEM.match(line)
        if (
            item
            and not match
            and not mark
            and line.startswith((" ", "\t"))
            and not re.match(r"\s*[-*+]\s", line)
            and line.strip()
        ):
            item += f" {line.strip()}"
            continue
        if item:
            yield number, item
        fence, number, item = mark[1] if mark else "", at, match[1].strip() if match else ""
    if item:
        yield number, item


def _refuse_placeholders(criterion: Criterion) -> None:
    for path in criterion.paths:
        if match := _PLACEHOLDER.search(path):
            hint = f"write a path, or a glob: {path.replace(match[0], '*')}"
            raise CriterionError(f"nothing fills {match[0]} in {path!r} here", hint=hint)


def parse_one(text: str, line: int = 0) -> Criterion:
    """One criterion, as it stands behind its box or in a workflow's `completion_criteria`; placeholders may be in its paths.

    Raises:
        CriterionError: It looks like one and is none.
    """
    text = " ".join(text.split())
    if match := _COMMAND.match(text):
        return _of_command(text, match[1].strip(), text[match.end() :], line)
    paths, end = list[str](), 0
    while match := _PATHS.match(text, end):
        paths.append(match[1].strip())
        end = match.end()
    if not paths:
        return Criterion(text, (Prose(text),), line=line)
    rules = _rules(text[end:].strip(), of_path=True)
    if rules is None:
        return Criterion(text, (Prose(text),), line=line)
    for path in paths:
        _refuse_outside(path)
    if wrong := next((rule for rule in rules if isinstance(rule, Exit | Within)), None):
        raise CriterionError(f"{wrong.text!r} is a rule of a command", hint="- [ ] command `pytest -q` (exit 0)")
    return Criterion(text, tuple(rules), tuple(paths), line=line)


def _of_command(text: str, command: str, rest: str, line: int) -> Criterion:
    import shlex

    rules = _rules(rest.strip(), of_path=False)
    if rules is None:
        return Criterion(text, (Prose(text),), line=line)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise CriterionError(f"{command[:80]!r} is no command: {str(error).lower()}", hint="close the quotes") from None
    if sign := next((word for word in words if _SHELL.fullmatch(word)), None):
        hint = f"no shell reads it; name one if you need it: sh -c '{command[:80]}'"
        raise CriterionError(f"{sign!r} stands in the command {command[:80]!r}", hint=hint)
    for rule in rules:
        if isinstance(rule, Exists | Schema) or (isinstance(rule, Amount) and rule.unit == "files"):
            raise CriterionError(f"{rule.text!r} is no rule of a command", hint='exit 0, within 60s, has "passed"')
    if not any(isinstance(rule, Exit) for rule in rules):
        rules.insert(0, Exit("exit 0", 0))
    return Criterion(text, tuple(rules), command=command, line=line)


def _rules(rest: str, *, of_path: bool) -> list[Rule] | None:
    """The rules behind a path or a command; None where it is a sentence that only begins with one."""
    read = bracket(rest)
    if read is None:
        if rest.startswith("("):
            raise CriterionError(f"the bracket {rest[:80]!r} is not closed", hint="close it, and its quotes")
        if not rest or rest.startswith((":", "—", "–")):
            return [Exists("exists")] if of_path else []
        return _sentence(rest)
    pieces, behind = read
    rules = [rule for piece in pieces for rule in read_rule(piece)]
    behind = behind.strip()
    if behind.strip(".") and not behind.startswith((":", "—", "–")):
        rules.append(Prose(behind))
    return rules or ([Exists("exists")] if of_path else [])


def _sentence(rest: str) -> list[Rule] | None:
    """``exists`` and the like without a bracket; where it is no rule it is prose."""
    try:
        rules = read_rule(rest.removesuffix("."))
    except CriterionError:
        return None
    return None if any(isinstance(rule, Prose) for rule in rules) else rules


def _refuse_outside(path: str) -> None:
    if len(re.findall(r"\*+", path)) > MAX_STARS:
        raise CriterionError(f"{path[:80]!r} has more than {MAX_STARS} wildcards", hint="name the folders between them")
    parts = path.replace("\\", "/").split("/")
    if path.startswith(("/", "~", "\\")) or any(part in ("", ".", "..") for part in parts) or safe(path) != path:
        hint = "a path relative to the iteration's folder, with /: stories/a/design.md"
        raise CriterionError(f"{path[:80]!r} does not stay in the iteration's folder", hint=hint)


def needed_files(criteria: Iterable[Criterion]) -> list[str]:
    """The JSON Schemas that rules name, sorted: whoever checks needs them in the folder, or in `schemas`."""
    return sorted({rule.path for one in criteria for rule in one.rules if isinstance(rule, Schema)})


def for_path(criteria: Iterable[Criterion], path: str) -> list[Criterion]:
    """Those that the deliverable of this path is held to."""
    return [one for one in criteria if one.concerns(path)]


def with_planned(criteria: list[Criterion], paths: Iterable[str]) -> list[Criterion]:
    """The criteria, and one more for each planned deliverable that none of them names: it exists.

    One that a glob means is not named: a glob holds what is there to its rules, and nothing that is missing. Nor is one
    whose files are only counted.
    """
    literal = {path for one in criteria if not all(map(_counts_files, one.rules)) for path in one.paths}
    missing = [path for path in paths if path not in literal]
    return [*criteria, *(Criterion(f"`{path}` (exists)", (Exists("exists"),), (path,)) for path in missing)]


def _counts_files(rule: Rule) -> bool:
    return isinstance(rule, Amount) and rule.unit == "files"


def check(criteria: Iterable[Criterion], folder: Path, *, schemas: Path | None = None, commands: bool = True) -> Report:
    """Hold a folder to its criteria. Its own files (CONTEXT.md, agent-prompts/ ...) are only looked at by name.

    Args:
        schemas: Where JSON Schemas are that rules name (else in `folder`).
        commands: False leaves commands `unchecked`.
    """
    tree = Tree(folder)
    with Judge(schemas or folder) as judge:
        found = [list(_of_files(one, tree, judge)) if one.command is None else [] for one in criteria]
        for at, one in enumerate(criteria):  # last: they may write files
            if one.command is not None:
                found[at] = list(_of_run(one, one.command, folder, judge, run=commands))
    return Report.of([finding for findings in found for finding in findings])


def _of_files(criterion: Criterion, tree: Tree, judge: Judge) -> Iterator[Finding]:
    if not criterion.paths:
        yield from (_finding(criterion, None, rule, UNCHECKED) for rule in criterion.rules)
    for pattern in criterion.paths:
        paths = tree.matching(pattern)
        counted = [rule for rule in criterion.rules if _counts_files(rule)]
        yield from (
            _finding(criterion, pattern, rule, amount(rule, len(paths))) for rule in counted if isinstance(rule, Amount)
        )
        others = [rule for rule in criterion.rules if rule not in counted]
        if not paths and others:
            missing = Verdict("unmet", tree.why_missing(pattern))
            yield from (_finding(criterion, pattern, rule, missing) for rule in others)
        for path in paths:
            file = tree.look(path)
            yield from (_finding(criterion, path, rule, judge.of(rule, file)) for rule in others)


def _of_run(criterion: Criterion, command: str, folder: Path, judge: Judge, *, run: bool) -> Iterator[Finding]:
    if not run:
        yield from (_finding(criterion, command, rule, Verdict("unchecked", "not run")) for rule in criterion.rules)
        return
    within_s = min((rule.seconds for rule in criterion.rules if isinstance(rule, Within)), default=COMMAND_S)
    ended = run_command(command, folder, within_s)
    yield from (_finding(criterion, command, rule, judge.of_run(rule, ended)) for rule in criterion.rules)


def _finding(criterion: Criterion, path: str | None, rule: Rule, verdict: Verdict) -> Finding:
    return Finding(
        text=criterion.text, path=path, rule=rule.text, status=verdict.status, evidence=safe(verdict.evidence, 2000)
    )


def check_text(criteria: Iterable[Criterion], path: str, text: str, *, schemas: Path | None = None) -> list[Finding]:
    """Hold the text that is to become the deliverable `path` to the criteria that concern it; commands are left out.

    Args:
        schemas: Where JSON Schemas are that rules name; None: such rules are `unchecked`.
    """
    file = Looked(path, text.encode("utf-8", "replace"))
    with Judge(schemas) as judge:
        return [
            _finding(one, path, rule, judge.of(rule, file))
            for one in for_path(criteria, path)
            for rule in one.rules
            if not _counts_files(rule)
        ]
