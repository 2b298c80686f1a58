"""A generated folder held to its criteria: a report for each iteration, as JSON and as Markdown.

    DIR/validation.json  {"workflow", "at", "met", "complete", "met_count", "unmet_count", "unchecked_count", "iterations":
                          [{"iteration", "met", "met_count", "unmet_count", "unchecked_count", "criteria", "unmet_paths"}]}
    DIR/validation.md    the same for people

`met`: everything that a rule understands is; `complete`: and nothing is left unchecked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop.errors import ConfigError, ConfigErrors, safe
from pop.events import rfc3339
from pop.recipes.iterate.criteria import Criterion, Finding, Report, check, parse, with_planned
from pop.recipes.iterate.folder import Folder
from pop.recipes.iterate.launch import put
from pop.recipes.iterate.manifest import CRITERIA, Manifest
from pop.records import dump_json
from pop.store import NotAFile, read_regular

REPORT = "validation"
MAX_BYTES = 50_000_000
MARKS = {"met": "✓", "unmet": "✗", "unchecked": "?"}


@dataclass(frozen=True)
class Validation:
    """The reports of some iterations of a folder, in their order."""

    workflow: str
    reports: dict[str, Report]

    def count(self, status: str) -> int:
        return sum(getattr(report, f"{status}_count") for report in self.reports.values())

    @property
    def met(self) -> bool:
        return all(report.met for report in self.reports.values())

    @property
    def complete(self) -> bool:
        return self.met and not self.count("unchecked")

    def to_json(self) -> dict[str, Any]:
        """See the module."""
        counts = {f"{status}_count": self.count(status) for status in MARKS}
        iterations = [
            {"iteration": name, **report.model_dump(), "unmet_paths": report.unmet_paths}
            for name, report in self.reports.items()
        ]
        about = {"workflow": self.workflow, "at": rfc3339(time.time()), "met": self.met, "complete": self.complete}
        return {**about, **counts, "iterations": iterations}

    def to_markdown(self) -> str:
        """Headings by iteration, a table of what each criterion came to."""
        lines = [f"# Validation of {self.workflow}", "", f"{rfc3339(time.time())}: {self.summary()}.", ""]
        for name, report in self.reports.items():
            lines += [f"## {name}", "", f"{counted(report)}.", "", "| | what | rule | evidence |", "|---|---|---|---|"]
            lines += [_row(finding) for finding in report.criteria]
            lines.append("")
        return "\n".join(lines)

    def summary(self) -> str:
        """``12 met, 1 not met, 2 that no program can check``."""
        return _summary(self.count("met"), self.count("unmet"), self.count("unchecked"))


def counted(report: Report) -> str:
    """The summary of one iteration."""
    return _summary(report.met_count, report.unmet_count, report.unchecked_count)


def _summary(met: int, unmet: int, unchecked: int) -> str:
    return f"{met:,} met, {unmet:,} not met" + (f", {unchecked:,} unchecked" if unchecked else "")


def _row(finding: Finding) -> str:
    cells = [MARKS[finding.status], what(finding), finding.rule, finding.evidence]
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def what(finding: Finding) -> str:
    """What a finding is about: a path, a command, or the criterion itself where it is prose."""
    return finding.text if finding.path is None else finding.path


def _cell(text: str) -> str:
    return safe(text, 600).replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def validate(folder: Folder, iterations: Iterable[str] | None = None, *, commands: bool = True) -> Validation:
    """Hold what stands in the folder to the criteria of its iterations (else of all).

    Raises:
        UsageError: There is no such iteration.
        ConfigErrors: Every line of a COMPLETION_CRITERIA.md that looks like a criterion and is none.
    """
    chosen = [folder.iteration(name) for name in iterations or folder.manifests]
    criteria, wrong = dict[str, list[Criterion]](), list[ConfigError]()
    for manifest in chosen:
        try:
            criteria[manifest.iteration] = criteria_of(folder.path / manifest.iteration, manifest)
        except ConfigErrors as error:
            wrong += error.problems
    if wrong:
        raise ConfigErrors(wrong)
    reports = {name: check(found, folder.path / name, commands=commands) for name, found in criteria.items()}
    return Validation(folder.workflow, reports)


def criteria_of(folder: Path, manifest: Manifest) -> list[Criterion]:
    """The criteria of an iteration's folder, and one for each planned deliverable that they leave out.

    Raises:
        ConfigErrors: They cannot be read.
    """
    place = f"{folder.name}/{CRITERIA}"
    try:
        text = read_regular(folder / CRITERIA, max_bytes=MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        hint = "put it back, or pop iterate generate writes it anew"
        raise ConfigErrors([ConfigError("it is not there", where=place, hint=hint, code="missing-file")]) from None
    except (NotAFile, UnicodeDecodeError) as error:
        raise ConfigErrors([ConfigError(f"it cannot be read: {error}", where=place, code="bad-criterion")]) from None
    planned = [one.path for agent in manifest.agents for one in agent.deliverables]
    return with_planned(parse(text, place), planned)


def write_reports(folder: Path, validation: Validation) -> list[Path]:
    """validation.json and validation.md, in the folder."""
    files = {f"{REPORT}.json": dump_json(validation.to_json()), f"{REPORT}.md": validation.to_markdown().encode()}
    for name, data in files.items():
        put(folder / name, data)
    return [folder / name for name in files]
