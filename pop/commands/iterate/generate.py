"""``pop iterate generate``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pop.commands._shared import as_json, print_json, with_root
from pop.commands.iterate import nearest_root
from pop.commands.iterate._options import with_targets
from pop.errors import EXIT_OK, UsageError, safe

if TYPE_CHECKING:
    from pop.models.catalogue import Catalogue
    from pop.recipes.iterate.generate import Plan
    from pop.recipes.iterate.workflow import Loaded
    from pop.recipes.iterate.writing import Written

ROWS = 40  # of the allocation table, before it is cut


@click.command("generate")
@click.argument("workflow")
@with_targets
@click.option("--dry-run", is_flag=True, help="Show who would get what, and what it takes; write nothing.")
@click.option("--force", is_flag=True, help="Write it though an agent is likely to use up its budget.")
@as_json
@with_root
def command(
    workflow: str,
    targets: tuple[str, ...],
    output: str | None,
    base: str | None,
    sample: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
    root: str | None,
) -> int:
    """Give the targets of WORKFLOW (a YAML file, or a name) to agents, and write what runs them into a folder.

    For each iteration: CONTEXT.md, COMPLETION_CRITERIA.md, README.md, the prompt of each agent, manifest.json and
    pipeline.json. Nothing runs, nothing is spent; read it, edit it, then `pop iterate run DIR`. Of DIR/workflow.yaml it
    generates DIR again, with the base and targets it had.
    """
    from pop.recipes.iterate.generate import plan_workflow
    from pop.recipes.iterate.targets import Inputs
    from pop.recipes.iterate.workflow import load_workflow
    from pop.recipes.iterate.writing import check_folder, read_generated, write_folder

    top = nearest_root(root)
    loaded = load_workflow(workflow, top)
    again = read_generated(loaded.path.parent)
    folder = Path(output) if output else loaded.path.parent if again else Path(loaded.workflow.name)
    before = check_folder(folder)
    teller = _Teller(quiet=as_json)
    if again and not (base or sample):
        base, targets = str(again.base_of(loaded.path.parent)), targets or tuple(again.targets)
    inputs = Inputs(_base(base, sample, loaded), _globs(targets), skip=folder, progress=teller.tell)
    models, created = _catalogue(top), before.created_at if before else None
    done = None
    try:
        plan = plan_workflow(loaded, inputs, folder, known_models=models, created_at=created, shown=str(folder))
        if not dry_run:
            if not force:
                plan.refuse_high()
            done = write_folder(folder, plan.files, plan.record, teller.writing(len(plan.files)))
    finally:
        teller.clear()
    _tell(plan, models, folder, done, as_json=as_json)
    return EXIT_OK


def _tell(plan: Plan, models: Catalogue | None, folder: Path, done: Written | None, *, as_json: bool) -> None:
    """What was planned, and written; `done` is None after --dry-run."""
    if as_json:
        about = {"folder": str(folder) if done else None, **_json(plan, models)}
        print_json(about | (vars(done) if done else {}))
        return
    _show_table(plan, models)
    if done:
        _show_written(folder, done)
    else:
        click.echo("nothing was written (--dry-run)", err=True)


def _globs(given: tuple[str, ...]) -> list[Any]:
    from pop.recipes.iterate.targets import Glob
    from pop.recipes.iterate.workflow import wrong_target

    for text in given:
        if why := wrong_target(text):
            hint = "globs are relative to --base, with /: 'stories/*.md'"
            raise UsageError(f"{safe(why, 300, one_line=True)}", where="--targets", hint=hint)
        if text.startswith("!"):
            raise UsageError(f"{text!r}: only the workflow's targets can leave out", where="--targets")
    return [Glob(text) for text in given]


def _base(given: str | None, sample: bool, loaded: Loaded) -> Path:
    if sample and given:
        raise UsageError("--sample and --base do not go together", hint="the sample is the base")
    if sample:
        found = loaded.entry.sample
        if found is None:
            hint = "pop iterate list shows which have one"
            raise UsageError(f"{loaded.workflow.name} comes with no sample", where="--sample", hint=hint)
        return found
    base = Path(given or ".")
    if not base.is_dir():
        raise UsageError("no such folder", where=f"--base {base}", hint="name the folder the targets lie in")
    return base


def _catalogue(top: Path | None) -> Catalogue | None:
    """The models of the root, to see whether those of the roles are there, and what they cost."""
    if top is None:
        return None
    from pop.models.catalogue import Catalogue
    from pop.settings import Root, load_settings

    return Catalogue(load_settings(Root(top)), os.environ)


class _Teller:
    """One line on a terminal that says how far it is."""

    def __init__(self, *, quiet: bool) -> None:
        self.shown = not quiet and sys.stderr.isatty()
        self.last = self.width = 0.0

    def tell(self, what: str, number: int, of: int | None) -> None:
        now = time.monotonic()
        if not self.shown or now - self.last < 0.1:
            return
        self.last = now
        count = f"{number:,} of {of:,}" if of else f"{number:,}" if number else ""
        line = f"{what} {count}".rstrip()[:78]
        sys.stderr.write(f"\r{line.ljust(int(self.width))}")
        sys.stderr.flush()
        self.width = len(line)

    def writing(self, files: int) -> Any:
        return lambda number: self.tell("writing files", number, files)

    def clear(self) -> None:
        if self.shown and self.width:
            sys.stderr.write("\r" + " " * int(self.width) + "\r")
            sys.stderr.flush()


def _cost_usd(plan: Plan, models: Catalogue | None) -> float | None:
    """Of one round, by the prices of the first model of each name; None where one is not known."""
    from pop.models.prices import price_of

    if models is None:
        return None
    total = 0.0
    for one in plan.figures:
        entries = models.resolve(one.agent.model or "default")
        price = price_of(entries[0]) if entries else None
        if price is None:
            return None
        total += (one.input_tokens * price.input + one.output_tokens * price.output) / 1_000_000
    return round(total, 6)


def _json(plan: Plan, models: Catalogue | None) -> dict[str, Any]:
    agents = [
        {
            "iteration": one.iteration,
            "agent": one.agent.step,
            "role": one.agent.role,
            "model": one.agent.model,
            "targets": len({target for made in one.agent.deliverables for target in made.targets}),
            "deliverables": len(one.agent.deliverables),
            "input_tokens": one.input_tokens,
            "output_tokens": one.output_tokens,
            "token_budget": one.agent.token_budget,
            "share": one.agent.share,
            "risk": one.agent.risk,
        }
        for one in plan.figures
    ]
    notices = [{"message": one.text, "where": one.where, "hint": one.hint, "stops": one.high} for one in plan.notices]
    return {
        "workflow": plan.record.workflow,
        "iterations": [manifest.iteration for manifest in plan.manifests],
        "targets": plan.targets,
        "agents": agents,
        "tokens": sum(one.agent.tokens for one in plan.figures),
        "cost_usd": _cost_usd(plan, models),
        "notices": notices,
    }


def _show_table(plan: Plan, models: Catalogue | None) -> None:
    rows = [("ITERATION", "AGENT", "TARGETS", "DELIVERABLES", "TOKENS", "OF BUDGET", "RISK")]
    for one in plan.figures[:ROWS]:
        targets = len({target for made in one.agent.deliverables for target in made.targets})
        name = one.agent.prompt.removesuffix(".md")
        figures = (f"{targets:,}", f"{len(one.agent.deliverables):,}", f"{one.agent.tokens:,}")
        rows.append((one.iteration, name, *figures, f"{one.agent.share:.0%}", one.agent.risk))
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    for row in rows:
        cells = [
            text.rjust(width) if 2 <= n <= 5 else text.ljust(width)
            for n, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
    if len(plan.figures) > ROWS:
        click.echo(f"and {len(plan.figures) - ROWS:,} agents more (--json lists all)")
    tokens, calls = sum(one.agent.tokens for one in plan.figures), sum(len(f.agent.deliverables) for f in plan.figures)
    cost = _cost_usd(plan, models)
    told = "" if models is None else f", {_usd(cost)}"
    counts = ((plan.targets, "target"), (len(plan.figures), "agent"), (calls, "call"))
    listed = ", ".join(f"{number:,} {what}{'s' * (number != 1)}" for number, what in counts)
    click.echo(f"{listed}, about {tokens:,} tokens a round{told}")
    for notice in plan.notices:
        click.echo(f"{'too much' if notice.high else 'mind'}: {notice.text}\n  hint: {notice.hint}", err=True)


def _usd(cost: float | None) -> str:
    return "at a price nobody knows" if cost is None else f"about {cost:.4f} USD" if cost else "0 USD"


def _show_written(folder: Path, done: Written) -> None:
    for name, place in done.beside.items():
        click.echo(f"{folder / name} was edited and stays; what is new is in {folder / place}", err=True)
    for name in done.kept:
        click.echo(f"{folder / name} was edited and stays", err=True)
    for name in done.left:
        click.echo(f"{folder / name} is not made any more, but was edited, and stays", err=True)
    gone = f", {len(done.removed):,} removed" if done.removed else ""
    same = f", {len(done.unchanged):,} as before" if done.unchanged else ""
    count = f"{len(done.written):,} file{'' if len(done.written) == 1 else 's'}"
    click.echo(f"{count} written{same}{gone} in {folder}", err=True)
    click.echo(f"read {folder / 'README.md'}, then: pop iterate run {folder}", err=True)
