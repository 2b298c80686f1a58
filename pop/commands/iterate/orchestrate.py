"""``pop iterate orchestrate``: generate, run, monitor, validate and give feedback, in one go.

| what stands there when it is called           | then                                                         |
|-----------------------------------------------|--------------------------------------------------------------|
| nothing                                       | generated, run, validated, reported on                       |
| a run of DIR that has not ended               | it goes on; nothing is generated meanwhile                   |
| a run that ended                              | generated anew, which changes only what differs; see `run`   |

So the same call again is the way to go on after Ctrl-C, a gate (exit code 5), a failure or a crash.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pop.commands._shared import as_json, print_json, with_root
from pop.commands.iterate._options import with_agents_models, with_targets
from pop.commands.iterate._result import ENDED, RESTS, Result, shown, tell
from pop.commands.iterate.run import Asked, root_of, run_folder
from pop.errors import EXIT_OK, EXIT_RUN_FAILED, PopError, safe
from pop.recipes.iterate import launch
from pop.recipes.iterate.folder import Folder, read_folder
from pop.runs import Run
from pop.settings import Root

if TYPE_CHECKING:
    from pop.recipes.iterate.feedback import Report
    from pop.recipes.iterate.validation import Validation

LOOK_S = 2.0  # between two looks of the monitor
MOST_PROPOSALS = 10
ORDER = ("generate", "run", "validate", "feedback")


@click.command()
@click.argument("workflow")
@with_targets
@click.option("--force", is_flag=True, help="Go on though an agent is likely to use up its budget.")
@click.option("--replace", is_flag=True, help="Move a pipeline or task of the same name aside that is not ours.")
@click.option("--fresh", is_flag=True, help="Ask the models anew also where nothing has changed.")
@with_agents_models
@click.option("--stall", metavar="TIME", default="10m", help="An agent without progress for so long has stalled.")
@click.option("--allow-unchecked", is_flag=True, help="Exit 0 also where prose is left that no program can check.")
@as_json
@with_root
def command(
    workflow: str,
    targets: tuple[str, ...],
    output: str | None,
    base: str | None,
    sample: bool,
    force: bool,
    replace: bool,
    fresh: bool,
    models: tuple[str, ...],
    stall: str,
    allow_unchecked: bool,
    as_json: bool,
    root: str | None,
) -> int:
    """Generate WORKFLOW into a folder, run it, watch it, hold what was made to its criteria, and report on each agent.

    The same call goes on after Ctrl-C, a question to a person (exit code 5) or a failure. Exit code 0: all criteria are met.
    """
    from pop.durations import seconds

    work = Work(root, workflow, targets, output, base, sample, force, quiet=as_json)
    folder = work.generated()
    found = root_of(folder, root)
    watch = Watch(found, folder, float(seconds(stall)), quiet=as_json)
    work.say("run")
    asked = Asked(folder, None, replace, fresh, models, follow=True, quiet=as_json, look=watch)
    result = run_folder(found, asked)
    if not as_json:
        tell(result, moves=False)
    code, validation, report = result.code, None, None
    if result.status.get("state") in ("complete", *ENDED) and result.run:
        work.say("validate")
        validation = _validated(result.folder, quiet=as_json)
        work.say("feedback")
        report = _feedback(found, folder, result.run, quiet=as_json)
        if code == EXIT_OK:
            fine = validation.complete or (validation.met and allow_unchecked)
            code = EXIT_OK if fine else EXIT_RUN_FAILED
    if as_json:
        print_json(_summary(result, work, watch, validation, report))
    elif code not in (EXIT_OK, EXIT_RUN_FAILED):
        click.echo("next       the same call goes on from here")
    return code


@dataclass
class Work:
    """What is to be generated."""

    root: str | None
    workflow: str
    targets: tuple[str, ...]
    output: str | None
    base: str | None
    sample: bool
    force: bool
    quiet: bool
    written: int = 0

    def say(self, stage: str) -> None:
        if not self.quiet:
            click.echo(f"[{ORDER.index(stage) + 1}/{len(ORDER)}] {stage}", err=True)

    def generated(self) -> Path:
        """The folder, made or brought up to date; left alone while a run of it has not ended.

        Raises:
            PopError: The workflow has mistakes, or an agent's budget will not do.
        """
        from pop.commands.iterate import nearest_root
        from pop.commands.iterate.generate import _base, _catalogue, _globs
        from pop.recipes.iterate.generate import plan_workflow
        from pop.recipes.iterate.targets import Inputs
        from pop.recipes.iterate.workflow import load_workflow
        from pop.recipes.iterate.writing import check_folder, write_folder

        self.say("generate")
        top = nearest_root(self.root)
        loaded = load_workflow(self.workflow, top)
        folder = Path(self.output or loaded.workflow.name)
        before = check_folder(folder)
        if before is not None and (run := self._unfinished(folder)):
            self._tell(f"{folder} stays as it is: the run {run} of it has not ended")
            return folder
        inputs = Inputs(_base(self.base, self.sample, loaded), _globs(self.targets), skip=folder)
        created = before.created_at if before else None
        plan = plan_workflow(
            loaded, inputs, folder, known_models=_catalogue(top), created_at=created, shown=str(folder)
        )
        if not self.force:
            plan.refuse_high()
        done = write_folder(folder, plan.files, plan.record)
        self.written = len(done.written)
        for notice in plan.notices:
            self._tell(f"mind: {notice}")
        self._tell(f"{len(done.written)} files written in {folder}, {len(done.unchanged)} as before")
        return folder

    def _unfinished(self, folder: Path) -> str | None:
        try:
            root = root_of(folder, self.root)
        except PopError:
            return None
        if seed := launch.waiting_seed(root, folder):
            return seed
        run = launch.newest_run(root, folder)
        return run.run_id if run and run.status().get("state") in ("queued", "running", *RESTS) else None

    def _tell(self, sentence: str) -> None:
        if not self.quiet:
            click.echo(safe(sentence, 2000), err=True)


class Watch:
    """The monitor beside the run: what is new about its agents is told as it happens, and kept in DIR/alerts.jsonl."""

    def __init__(self, root: Root, folder: Path, stall_s: float, *, quiet: bool) -> None:
        self._root, self._folder, self._stall_s, self._quiet = root, folder, stall_s, quiet
        self._look: Callable[[Run], list[Any]] | None = None
        self._next = 0.0
        self.told: list[dict[str, Any]] = []

    def __call__(self, run: Run, *, last: bool = False) -> None:
        from dataclasses import asdict

        if time.monotonic() < self._next and run.status().get("state") in ("queued", "running"):
            return
        began = time.monotonic()
        self._look = self._look or self._looker(run)
        for alert in self._look(run):
            self.told.append(asdict(alert))
            if not self._quiet:
                click.echo(
                    safe(f"! {alert.text}" if alert.problems else f"  {alert.text}", 400, one_line=True), err=True
                )
        self._next = time.monotonic() + max(LOOK_S, 10 * (time.monotonic() - began))

    def _looker(self, run: Run) -> Callable[[Run], list[Any]]:
        from pop.recipes.iterate.alerts import tell as keep
        from pop.recipes.iterate.monitor import snapshot
        from pop.recipes.iterate.sights import Looker, judge_of, of_run

        manifests = of_run(read_folder(self._folder, inputs=False).manifests.values(), run)
        looker = Looker(self._root, self._folder, manifests, judge_of(self._folder, manifests))
        seen: Any = None

        def look(run: Run) -> list[Any]:
            nonlocal seen
            sight = looker.look(run, run.status())
            seen = snapshot(manifests, sight, now=time.time(), stall_s=self._stall_s, before=seen)
            try:
                return list(keep(self._folder, seen.run_id, seen.at, seen.alerts))
            except OSError:  # DIR takes no file
                return list(seen.alerts)

        return look


def _validated(folder: Folder, *, quiet: bool) -> Validation:
    """Every criterion, by what lies in DIR; the reports stand there, too."""
    from pop.recipes.iterate.validation import counted, validate, write_reports

    found = validate(folder, None)
    written = write_reports(folder.path, found)
    if not quiet:
        for name, report in found.reports.items():
            click.echo(f"{'✓' if report.met else '✗'} {name:<18} {counted(report)}")
        for path in written:
            click.echo(f"report     {shown(path)}")
    return found


def _feedback(root: Root, folder: Path, run: Run, *, quiet: bool) -> Report | None:
    """The report on the run, kept in DIR/feedback/."""
    from pop.commands.iterate.feedback import Feedback

    work = Feedback(root, folder, list(read_folder(folder, inputs=False).manifests.values()))
    row = next(row for row in reversed(launch.recorded(folder)) if row["run_id"] == run.run_id)
    report = work.report(row)
    work.keep(report)
    if not quiet:
        click.echo(f"report     {work.place(report.run_id, '.md')}")
        for note in report.notes:
            click.echo(safe(f"note       {note}", 300, one_line=True))
        for proposal in report.proposals[:MOST_PROPOSALS]:
            click.echo(safe(f"proposed   {proposal.id}: {proposal.title}", 300, one_line=True))
        if report.proposals:
            click.echo(f"next       pop iterate feedback {shown(folder)} shows them; --apply makes them")
    return report


def _summary(
    result: Result, work: Work, watch: Watch, validation: Validation | None, report: Report | None
) -> dict[str, Any]:
    """``{"generated", "run": as `run` tells it, "alerts", "validation", "feedback"}``."""
    return {
        "generated": work.written,
        "run": result.to_json(),
        "alerts": watch.told,
        "validation": validation.to_json() if validation else None,
        "feedback": report.model_dump() if report else None,
    }
