"""``pop iterate validate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pop.commands._shared import as_json, print_json, with_root
from pop.errors import EXIT_OK, EXIT_RUN_FAILED, UsageError, safe

if TYPE_CHECKING:
    from pop.recipes.iterate.criteria import Finding, Report
    from pop.recipes.iterate.folder import Folder
    from pop.recipes.iterate.validation import Validation

MOST_LINES = 200


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--iteration", "iterations", metavar="NAME", multiple=True, help="Only this one. Repeatable.")
@click.option("--allow-unchecked", is_flag=True, help="Exit 0 also where prose is left that no program can check.")
@click.option("--no-commands", is_flag=True, help="Run no command of the criteria; they stay unchecked.")
@click.option("--report", is_flag=True, help="Write DIR/validation.json and DIR/validation.md, too.")
@as_json
@with_root
def command(
    folder: Path,
    iterations: tuple[str, ...],
    allow_unchecked: bool,
    no_commands: bool,
    report: bool,
    as_json: bool,
    root: str | None,
) -> int:
    """Hold what was made in DIR to its COMPLETION_CRITERIA.md, with evidence; exit code 4 when not all is met.

    What the newest run has made is written into DIR first. Criteria in prose count as unchecked, never as met.
    """
    from pop.commands.iterate._result import shown
    from pop.recipes.iterate.folder import read_folder
    from pop.recipes.iterate.launch import recorded
    from pop.recipes.iterate.validation import validate, write_reports

    read = read_folder(folder, inputs=False)
    for name in iterations:
        read.iteration(name)
    _deliver(read, iterations, root)
    found = validate(read, iterations, commands=not no_commands)
    written = write_reports(read.path, found) if report else []
    if as_json:
        print_json({**found.to_json(), "reports": [str(path) for path in written]})
    else:
        _show(found, written)
        if not found.met and recorded(read.path):
            click.echo(
                f"next       pop iterate feedback {shown(read.path)}   (how each agent did, and what to change)",
                err=True,
            )
    return EXIT_OK if found.complete or (found.met and allow_unchecked) else EXIT_RUN_FAILED


def _deliver(folder: Folder, iterations: tuple[str, ...], root: str | None) -> None:
    """Write what the newest run of each iteration has made so far; a folder that nothing ran yet is looked at as it is."""
    from pop.recipes.iterate.deliver import Deliverer
    from pop.recipes.iterate.launch import newest_run, recorded, root_of

    if not recorded(folder.path):
        return
    context = click.get_current_context()
    try:
        chosen = root_of(folder.path, root or (context.find_root().obj or {}).get("root"))
    except UsageError as error:
        click.echo(f"note: {safe(error.message)}; validating what stands in DIR", err=True)
        return
    runs = [newest_run(chosen, folder.path, name) for name in iterations or folder.manifests]
    deliverer = Deliverer(chosen, folder.path)
    for run in {run.run_id: run for run in runs if run}.values():
        made = deliverer.deliver(run)
        if made.written:
            click.echo(f"{len(made.written)} deliverables of {run.run_id} written", err=True)
        for path, beside in made.kept.items():
            told = f", the new version is {safe(beside)}" if beside else ""
            click.echo(f"note: {safe(path)} was edited and stays as it is{told}", err=True)


def _show(found: Validation, written: list[Path]) -> None:
    from pop.recipes.iterate.validation import counted

    for name, report in found.reports.items():
        click.echo(f"{name}: {counted(report)}")
        _table(report)
    click.echo(f"{'all criteria are met' if found.complete else found.summary()}")
    for path in written:
        click.echo(f"report     {path}")
    if found.met and not found.complete:
        click.echo("a person has to look at what is unchecked; --allow-unchecked lets it pass", err=True)


def _table(report: Report) -> None:
    """All findings; of very many only those that are not met."""
    from pop.recipes.iterate.validation import MARKS, what

    many = len(report.criteria) > MOST_LINES
    rows = [one for one in report.criteria if not many or one.status != "met"]
    placed = [one for one in rows[:MOST_LINES] if one.path is not None]
    wide = [min(44, max((len(text) for text in texts), default=0)) for texts in _columns(placed)]
    for one in rows[:MOST_LINES]:
        subject, rule = safe(what(one), 100, one_line=True), safe(one.rule, 60, one_line=True)
        first, *more = safe(one.evidence, 1000).split("\n")
        if one.path is None:
            click.echo(f"  {MARKS[one.status]} {subject}  ({first})")
            continue
        click.echo(f"  {MARKS[one.status]} {subject.ljust(wide[0])}  {rule.ljust(wide[1])}  {first}")
        for line in more:
            click.echo(f"      {line}")
    if len(rows) > MOST_LINES:
        click.echo(f"    ... and {len(rows) - MOST_LINES} more: --report, or --json")


def _columns(findings: list[Finding]) -> tuple[list[str], list[str]]:
    return [one.path or "" for one in findings], [one.rule for one in findings]
