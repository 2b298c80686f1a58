"""``pop iterate feedback``."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from pop.commands._shared import as_json, print_json, with_root
from pop.errors import EXIT_OK, PopError, UsageError, did_you_mean, safe
from pop.events import rfc3339
from pop.models.catalogue import EMBEDDED_NOTE
from pop.recipes.iterate.evidence import read_evidence
from pop.recipes.iterate.feedback import FOLDER, Proposal, Report, assess, patterns_of
from pop.recipes.iterate.feedbackpage import page, proposal_lines
from pop.recipes.iterate.folder import read_folder
from pop.recipes.iterate.generate import read_generated
from pop.recipes.iterate.improvements import Owned, apply, owned_workflow, propose
from pop.recipes.iterate.launch import put, recorded, root_of
from pop.recipes.iterate.manifest import Manifest
from pop.recipes.iterate.sights import chosen_row, of_run, run_of
from pop.recipes.iterate.snapshots import OVER
from pop.records import BadJson, dump_json, read_json
from pop.runs import Run
from pop.settings import Root
from pop.store import NotAFile, read_regular

MAX_BYTES = 64 * 2**20
MOST_EARLIER = 20  # the newest runs that patterns are looked for in


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--run", "asked", metavar="RUN", help="Which run made of DIR (else the newest).")
@click.option("--apply", "applying", is_flag=True, help="Make the proposed changes, after showing them.")
@click.option("--only", "chosen", metavar="ID", multiple=True, help="With --apply: this proposal alone. Repeatable.")
@click.option("--yes", "-y", is_flag=True, help="With --apply: do not ask.")
@as_json
@with_root
def command(
    folder: Path, asked: str | None, applying: bool, chosen: tuple[str, ...], yes: bool, as_json: bool, root: str | None
) -> int:
    """Report how each agent of a run made of DIR did, what went wrong twice, and what to change about it.

    The report goes to DIR/feedback/RUN.json and RUN.md too. Proposals are diffs of the workflow's YAML and templates; a
    workflow that came with POP is first copied to workflows/NAME/. --apply refuses where a file has changed since.
    """
    if (chosen or yes) and not applying:
        raise UsageError("--only and --yes belong to --apply", hint=f"pop iterate feedback {folder} --apply")
    found = root_of(folder, root or (click.get_current_context().find_root().obj or {}).get("root"))
    work = Feedback(found, folder, list(read_folder(folder, inputs=False).manifests.values()))
    row = chosen_row(folder, asked)
    kept = work.kept(row["run_id"])
    report = work.report(row)
    if applying and kept and kept.state == report.state and kept.proposals:
        report = report.model_copy(update={"proposals": kept.proposals})  # what the person has read
    elif not applying or not kept or kept.proposals:
        work.keep(report)
    if not applying:
        print_json(report.model_dump()) if as_json else click.echo(page(report), nl=False)
        if not as_json:
            _closing(work, report)
        return EXIT_OK
    return _apply(work, row, report, chosen, yes=yes, as_json=as_json)


def _closing(work: Feedback, report: Report) -> None:
    click.echo("")
    click.echo(f"written    {work.place(report.run_id, '.json')}, and .md")
    if any(one.edits for one in report.proposals):
        click.echo(f"next       pop iterate feedback {work.folder} --apply   (or --apply --only ID)")


def _apply(
    work: Feedback, row: dict[str, Any], report: Report, chosen: tuple[str, ...], *, yes: bool, as_json: bool
) -> int:
    proposals = _chosen(report, chosen)
    if not proposals:
        print_json({"applied": [], "files": []}) if as_json else click.echo("nothing is proposed that can be applied")
        return EXIT_OK
    if not as_json:
        for proposal in proposals:
            click.echo("\n".join(proposal_lines(proposal)))
    if not yes:
        if as_json or not sys.stdin.isatty():
            hint = f"pop iterate feedback {work.folder} --apply --yes"
            raise UsageError("--apply asks before it changes anything, and here is no terminal", hint=hint)
        if not click.confirm(f"Make {'this change' if len(proposals) == 1 else f'these {len(proposals)} changes'}?"):
            click.echo("nothing was changed")
            return EXIT_OK
    owned = work.owned()
    files = apply(proposals, owned)
    work.keep(work.report(row))
    if as_json:
        print_json({"applied": [one.id for one in proposals], "files": [str(file) for file in files]})
        return EXIT_OK
    for file in files:
        click.echo(f"changed    {file}")
    click.echo(f"next       {_again(work, owned)}   (then run it)")
    return EXIT_OK


def _again(work: Feedback, owned: Owned) -> str:
    """The command that makes the folder anew of the changed workflow."""
    generated = read_generated(work.folder)
    words = ["pop", "iterate", "generate", str(owned.file)]
    words += ["--base", str(generated.base_of(work.folder))] if generated else []
    words += [word for glob in (generated.targets if generated else []) for word in ("--targets", glob)]
    return shlex.join([*words, "--output", str(work.folder)])


def _chosen(report: Report, chosen: tuple[str, ...]) -> list[Proposal]:
    known = {one.id: one for one in report.proposals}
    for name in chosen:
        if name not in known:
            raise UsageError(f"no proposal {name!r}", hint=did_you_mean(name, known), code="unknown-proposal")
        if not known[name].edits:
            raise UsageError(f"the proposal {name!r} has to be made by hand", hint=known[name].by_hand)
    return [one for one in report.proposals if one.edits and (not chosen or one.id in chosen)]


class Feedback:
    """The reports on the runs of one folder."""

    def __init__(self, root: Root, folder: Path, manifests: list[Manifest]) -> None:
        self.root, self.folder, self.manifests = root, folder, manifests

    def place(self, run_id: str, suffix: str) -> Path:
        return self.folder / FOLDER / f"{run_id}{suffix}"

    def report(self, row: dict[str, Any]) -> Report:
        """On the run as it is now, with patterns and proposals; of a run that was removed, what was kept.

        Raises:
            UsageError: It is not there, and nothing was kept.
        """
        try:
            run = run_of(self.root, self.folder, row)
        except UsageError:
            kept = self.kept(row["run_id"])
            if kept is None:
                raise
            kept.notes = [*(note for note in kept.notes if note != GONE), GONE]
            return kept
        report = self._assessed(run)
        self._note_engine(report, run)
        if report.state not in OVER:
            report.notes.append(f"the run is not over, it is {report.state}: this is what is known so far")
        earlier = list(self._earlier(row["run_id"]))
        report.patterns = patterns_of(report, earlier)
        report.earlier_runs = [one.run_id for one in earlier]
        self._propose(report)
        return report

    def _assessed(self, run: Run) -> Report:
        manifests = of_run(self.manifests, run)
        return assess(manifests, read_evidence(run, self.folder, manifests), at=rfc3339(time.time()))

    def _note_engine(self, report: Report, run: Run) -> None:
        """What an engine misses that only copies is no sign of bad templates."""
        report.notes += [
            f"{safe(note, 200)}: what it misses says little about prompts"
            for note in run.status().get("notes") or []
            if EMBEDDED_NOTE in str(note)
        ]

    def _propose(self, report: Report) -> None:
        try:
            owned = self.owned()
            report.notes += [owned.note] if owned.note else []
            if owned.copied:
                report.notes.append(f"--apply first copies the workflow that came with POP to {owned.target}")
            report.proposals = propose(report, owned, self.root)
        except (PopError, OSError) as error:
            said = error.message if isinstance(error, PopError) else error.strerror
            report.notes.append(f"nothing is proposed, the workflow cannot be read: {said}")

    def owned(self) -> Owned:
        return owned_workflow(self.root, self.folder, self.manifests[0].workflow)

    def _earlier(self, run_id: str) -> Iterator[Report]:
        """The reports on the runs before this one, oldest first; those without a report are assessed now."""
        before = []
        for row in recorded(self.folder):
            if row["run_id"] == run_id:
                break
            before.append(row)
        for row in before[-MOST_EARLIER:]:
            kept = self.kept(row["run_id"])
            if kept is None or kept.state not in OVER:
                try:
                    kept = self._assessed(run_of(self.root, self.folder, row))
                except (PopError, OSError):
                    continue
            yield kept

    def kept(self, run_id: str) -> Report | None:
        """What was written before."""
        try:
            data = read_json(read_regular(self.place(run_id, ".json"), max_bytes=MAX_BYTES))
            report = Report.model_validate(data)
        except (OSError, NotAFile, BadJson, ValidationError):
            return None
        return report if report.run_id == run_id else None

    def keep(self, report: Report) -> None:
        """Write DIR/feedback/RUN.json and RUN.md."""
        (self.folder / FOLDER).mkdir(exist_ok=True)
        put(self.place(report.run_id, ".json"), dump_json(report.model_dump()))
        put(self.place(report.run_id, ".md"), page(report).encode())


GONE = "the run was removed; this is what was kept of it"
