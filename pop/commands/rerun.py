"""``pop rerun``: a run once more from one of its steps; in place, or as a new run that shares the finished part."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pop.commands._ordering import Chosen, choose, in_current, waits, with_runs
from pop.commands._shared import as_json, changes_of, check_roles, chosen_root, print_json, with_root
from pop.errors import PopError, UsageError
from pop.runs import Run, newest_complete
from pop.settings import Root

MOST_FORKED = 1_000_000
MOST_SHOWN = 5  # reasons for which runs were passed over


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    from_: list[str]
    sets: dict[str, Any]
    models: dict[str, str]
    fork: bool
    reason: str | None


@click.command()
@with_runs
@click.option("--from", "from_", metavar="STEP[:STAGE]", multiple=True, help="Where to begin (required). Repeatable.")
@click.option("--set", "sets", metavar="PATH=VALUE", multiple=True, help="seed.a.b=, STEP.with.k=, STEP.model= ...")
@click.option("-m", "--model", "models", metavar="[ROLE=]NAME", multiple=True, help="Ask this model from now on.")
@click.option("--fork", is_flag=True, help="Make a new run; this one stays as it is.")
@click.option("-r", "--reason", help="Why, for the record.")
@as_json
@with_root
def command(
    runs: tuple[str, ...],
    pipeline: str | None,
    everything: bool,
    from_: tuple[str, ...],
    sets: tuple[str, ...],
    models: tuple[str, ...],
    fork: bool,
    reason: str | None,
    as_json: bool,
    root: str | None,
) -> None:
    """Run RUN... again from a step on: what lies before is kept, what depends on it runs again.

    From `STEP:parse` on, the recorded answers are parsed again, without a call. A complete run is never opened again: a
    new run is made of it, as with --fork. With --pipeline or --all, every run at rest in which the step ran.
    """
    from pop.rerun import read_sets
    from pop.store import lock_holder

    if not from_:
        raise UsageError(
            "from which step?", where="--from", hint="--from STEP; pop plan RUN says what changed or failed"
        )
    here = chosen_root(root)
    wish = Wish(list(from_), read_sets(sets), changes_of(here, models).models, fork, reason)
    chosen = choose(here, runs, pipeline, everything, _with_complete if fork else in_current)
    rows = order_all(here, chosen, wish)
    done = [row for row in rows if "error" not in row]
    if as_json:
        print_json(rows[0] if chosen.named and len(rows) == 1 else {"runs": rows})
        return
    for row in done:
        if row["fork"] and not fork:
            click.echo(f"{row['run_id']} is complete: a new run is made of it", err=True)
        click.echo(row["order"] or row["seed"])
    if not chosen.named:
        for row in [row for row in rows if "error" in row][:MOST_SHOWN]:
            click.echo(f"{row['run_id']}: {row['error']['message']}", err=True)
        click.echo(f"{len(done)} run(s) run again, {len(rows) - len(done)} left as they are", err=True)
        if rows and not done:
            raise UsageError("no run was run again", where=f"--from {', '.join(from_)}", hint=_why_none(rows))
    if done and lock_holder(here.machine_room) is None:
        click.echo("no daemon is running here: it goes on with the next pop up", err=True)


def _why_none(rows: list[dict[str, Any]]) -> str | None:
    """What the first run that was passed over is told."""
    return next((row["error"]["hint"] for row in rows if row["error"].get("hint")), "pop ls shows the runs")


def _with_complete(root: Root) -> list[Run]:
    return [*newest_complete(root, MOST_FORKED), *in_current(root)]


def order_all(root: Root, chosen: Chosen, wish: Wish) -> list[dict[str, Any]]:
    """Look at every run, then give the orders: a named run that it does not fit stops them all.

    Raises:
        PopError: It does not fit a run that was named.
    """
    ready: list[tuple[Run, Checked | PopError]] = []
    for run in chosen.runs:
        try:
            ready.append((run, check(root, run, wish)))
        except PopError as error:
            if chosen.named:
                raise
            ready.append((run, error))
    return [
        {"run_id": run.run_id, "error": found.to_json()}
        if isinstance(found, PopError)
        else _give(root, run, wish, found)
        for run, found in ready
    ]


@dataclass(frozen=True)
class Checked:
    """A wish that fits a run: the seed of the fork, or None when it is done in place."""

    stale: tuple[str, ...]
    seed: dict[str, Any] | None = None
    file_name: str = ""


def check(root: Root, run: Run, wish: Wish) -> Checked:
    """Find out whether it can be done, and do nothing.

    Raises:
        PopError: It cannot.
    """
    from pop.history import read_history
    from pop.rerun import AT_REST, pipeline_of, rerun_event, stale_of

    try:
        history = read_history(run.path)
        pipeline = pipeline_of(run.path, history)
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{run.run_id} cannot be read: {error}", hint=f"pop show {run.run_id}") from None
    check_roles(root, [role for role in wish.models if role != "*"], pipeline.name)
    if wish.fork or run.place == "complete":
        stale = stale_of(pipeline, history, wish.from_)
        return Checked(stale.instances, *_fork_seed(run, history.created, wish, bool(stale.again)))
    if history.state not in AT_REST:
        raise UsageError(
            f"{run.run_id} is {history.state}: it is at work", hint=f"pop pause {run.run_id} first, or --fork"
        )
    order = {"from": wish.from_, "set": wish.sets, "models": wish.models}
    event, _ = rerun_event(root, run.path, pipeline, history, order)
    return Checked(tuple(event["instances"]))


def _fork_seed(run: Run, created: Mapping[str, Any], wish: Wish, asks: bool) -> tuple[dict[str, Any], str]:
    """The seed of a fork: the other run's as it was last, with what is set."""
    from pop.queue import parse_seed
    from pop.records import read_json
    from pop.rerun import apply_set, changed_documents, documents_of

    documents = documents_of(run.path)
    changed_documents(run.path, documents, wish.sets, str(created["pipeline"]))  # refuses what cannot be set
    data = (run.path / documents.seed).read_bytes()
    value = read_json(data, where=documents.seed)
    own = dict(value) if "data" in value else {}
    pipeline = read_json((run.path / documents.pipeline).read_bytes(), where=documents.pipeline)
    changed, _ = apply_set(parse_seed(data, where=documents.seed).data, pipeline, wish.sets)
    kept = {key: own[key] for key in ("priority", "budget", "models", "reuse") if own.get(key) is not None}
    models = dict(kept.get("models") or {})
    if "*" in wish.models:
        models = dict.fromkeys([*(pipeline.get("models") or {}), *models], wish.models["*"])
    models |= wish.models
    fork = {
        "run": run.run_id,
        "from": wish.from_,
        "set": {path: value for path, value in wish.sets.items() if path.partition(".")[0] != "seed"},
    }
    seed = {**kept, "data": changed, "name": f"{str(created['name'])[:115]}-fork", "pipeline": created["pipeline"]}
    seed |= {"models": models} if models else {}
    if not asks:  # recorded answers are parsed again: what follows finds its answers in the store
        seed.setdefault("reuse", True)
    stem = Path(str(created.get("seed_file") or "seed")).stem
    return {**seed, "fork": fork}, f"{os.fsencode(stem)[:160].decode(errors='ignore') or 'seed'}-fork.json"


def _give(root: Root, run: Run, wish: Wish, checked: Checked) -> dict[str, Any]:
    from pop.commands.submit import put_seed
    from pop.orders import write_order
    from pop.records import dump_json
    from pop.store import Disk

    about = {"run_id": run.run_id, "stale": list(checked.stale), "fork": checked.seed is not None}
    if checked.seed is not None:
        path = put_seed(root, dump_json(checked.seed), checked.file_name)
        return {**about, "order": None, "seed": str(path)}
    for verb in ("retry", "resume"):
        if waits(run, verb):
            (run.path / "orders" / f"{verb}.json").unlink(missing_ok=True)
    more = {"from": wish.from_, "set": wish.sets, "models": wish.models}
    path = write_order(Disk(), run.path, "rerun", wish.reason, more=more)
    return {**about, "order": str(path), "seed": None}
