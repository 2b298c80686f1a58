"""Orders to runs, as a person gives them: what each comes to for a run in its state, and the file that is written.

The command line and the dashboard call this; both write nothing but what a person could write by hand (docs/files.md).

| act    | writes                                                                     | makes no sense for              |
|--------|----------------------------------------------------------------------------|---------------------------------|
| cancel | orders/cancel.json; takes back retry, resume and rerun                     | a complete run                  |
| pause  | orders/pause.json, or takes back resume                                    | a run that has ended            |
| resume | orders/resume.json, or takes back pause                                    | a run that has ended            |
| retry  | orders/retry.json; takes back cancel and pause                             | any but failed, cancelled       |
| rerun  | orders/rerun.json, or a seed with a `fork` in the queue (`--fork`, complete) | one at work; a step that never ran |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pop.changes import check_roles
from pop.drops import put_seed
from pop.errors import PopError, UsageError
from pop.history import read_history
from pop.orders import write_order
from pop.outlook import Outlook, of_run
from pop.pipeline_values import budget
from pop.records import dump_json, read_json
from pop.rerun import (
    AT_REST,
    MAX_DOCUMENT,
    apply_set,
    changed_documents,
    documents_of,
    pipeline_name,
    pipeline_of,
    rerun_event,
    stale_of,
)
from pop.runs import Run
from pop.seeds import parse_seed
from pop.settings import Root
from pop.store import Disk, read_regular


class DoesNotFit(UsageError):
    """An order that makes no sense for a run in its state; passed over where the run was not named."""


class Unreadable(UsageError):
    """Somebody damaged the files of a run."""


@dataclass(frozen=True)
class Plan:
    """What an order comes to for one run: `verb` None when there is nothing to order, and why."""

    run: Run
    verb: str | None
    note: str | None = None
    withdraws: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """What was done for one run: the order's file, or None and why."""

    run: Run
    file: Path | None
    note: str | None = None


def plan_cancel(run: Run, *, named: bool = True) -> Plan:
    """What ending a run comes to.

    Args:
        named: Whether this very run is meant: then it may have ended, and is journaled as cancelled.

    Raises:
        DoesNotFit: There is nothing to end.
    """
    state = run.status().get("state")
    if run.place == "complete":
        raise DoesNotFit(f"{run.run_id} is complete; there is nothing to end")
    if not named and state in ("failed", "cancelled"):
        raise DoesNotFit(f"{run.run_id} is {state}")
    newer = tuple(verb for verb in ("retry", "resume", "rerun") if waits(run, verb))
    if state == "cancelled" and not newer:
        return Plan(run, None, f"{run.run_id} is cancelled already: pop show {run.run_id} tells why")
    return Plan(run, "cancel", withdraws=newer)


def plan_pause(run: Run) -> Plan:
    """What pausing a run comes to.

    Raises:
        DoesNotFit: It has ended.
    """
    status = run.status()
    state = status.get("state")
    if run.place == "complete" or state in ("failed", "cancelled", "unreadable"):
        raise DoesNotFit(f"{run.run_id} is {state}; only a run that goes on can be paused")
    if state == "paused" or status.get("pausing"):
        if waits(run, "resume"):
            return Plan(run, None, f"{run.run_id} stays paused: the order to resume it is withdrawn", ("resume",))
        until = "" if state == "paused" else ", once what is at work has ended"
        return Plan(run, None, f"{run.run_id} is paused already{until}")
    if waits(run, "pause"):
        return Plan(run, None, f"{run.run_id} has that order already; it waits to be carried out")
    return Plan(run, "pause", withdraws=tuple(verb for verb in ("resume",) if waits(run, verb)))


def plan_resume(run: Run) -> Plan:
    """What resuming a run comes to.

    Raises:
        DoesNotFit: It has ended.
    """
    status = run.status()
    state = status.get("state")
    is_paused = state == "paused" or status.get("pausing")
    if run.place == "complete" or state == "unreadable":
        raise DoesNotFit(f"{run.run_id} is {state}; only a paused run is resumed")
    if state in ("failed", "cancelled"):
        hint = f"pop retry {run.run_id} lets it go on from what failed"
        raise DoesNotFit(f"{run.run_id} is {state}; only a paused run is resumed", hint=hint)
    if waits(run, "pause"):
        if is_paused:  # the newer order counts
            return Plan(run, "resume", withdraws=("pause",))
        return Plan(run, None, f"{run.run_id} is not paused: the order to pause it is withdrawn", ("pause",))
    if not is_paused:
        return Plan(run, None, f"{run.run_id} is not paused: it is {state}")
    if waits(run, "resume"):
        return Plan(run, None, f"{run.run_id} has that order already; it waits to be carried out")
    return Plan(run, "resume")


def plan_retry(run: Run) -> Plan:
    """What retrying a run comes to.

    Raises:
        DoesNotFit: Nothing of it failed.
    """
    state = run.status().get("state")
    if state not in ("failed", "cancelled"):
        raise DoesNotFit(f"{run.run_id} is {state}; only failed and cancelled runs are retried")
    return Plan(run, "retry", withdraws=("cancel", "pause"))  # else the older order would be carried out after this one


PLANS: dict[str, Callable[[Run], Plan]] = {
    "cancel": plan_cancel,
    "pause": plan_pause,
    "resume": plan_resume,
    "retry": plan_retry,
}


def order(run: Run, verb: str, reason: str | None = None, *, budget: dict[str, float] | None = None) -> Given:
    """Give one run an order of `PLANS`.

    Args:
        budget: With retry: what the run may use up in all from now on.

    Raises:
        DoesNotFit: It makes no sense for the run in its state.
    """
    return carry_out(PLANS[verb](run), reason, budget=budget)


def carry_out(plan: Plan, reason: str | None = None, *, budget: dict[str, float] | None = None) -> Given:
    """Write the new order, then take back those that are older: a crash in between leaves both, which are obeyed by age."""
    file = write_order(Disk(), plan.run.path, plan.verb, reason, budget) if plan.verb else None
    for verb in plan.withdraws:
        withdraw(plan.run, verb)
    return Given(plan.run, file, plan.note)


def waits(run: Run, verb: str) -> bool:
    """Whether an order was given and not carried out yet."""
    return (run.path / "orders" / f"{verb}.json").exists() or (run.path / "orders" / verb).exists()


def withdraw(run: Run, verb: str) -> None:
    """Take an order back: else it would be carried out after the newer one."""
    for name in (f"{verb}.json", verb):
        path: Path = run.path / "orders" / name
        if path.is_file():
            path.unlink(missing_ok=True)


def read_amounts(given: Iterable[str]) -> dict[str, float]:
    """``run_usd=5`` and the like: what a run may use up in all.

    Raises:
        UsageError: One is no such amount.
    """
    amounts: dict[str, float] = {}
    for text in given:
        name, _, amount = text.partition("=")
        if name.strip().startswith("day_"):
            raise UsageError(f"--budget {text}: a day's budget is no run's", hint="raise it in [budget] of pop.toml")
        if not amount.strip():
            raise UsageError(f"--budget {text}: how much?", hint=f"e.g. --budget {name.strip() or 'run_usd'}=5")
        try:
            amounts |= budget("step", "run", "pipeline")({name.strip(): float(amount)})
        except (TypeError, ValueError) as error:
            raise UsageError(f"--budget {text}: {error}", hint="e.g. --budget run_usd=5") from None
    return amounts


# -- once more from a step ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What a person asks for: from which steps (``STEP[:STAGE]``), with what set anew, in place or as a new run."""

    from_: list[str]
    sets: dict[str, Any] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    fork: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Checked:
    """A wish that fits a run: what runs again, and the seed of the fork, or None when it is done in place."""

    stale: tuple[str, ...]
    seed: dict[str, Any] | None = None
    file_name: str = ""


@dataclass(frozen=True)
class Rerun:
    """What was done: the order's file, or the fork's seed in the queue."""

    run: Run
    stale: tuple[str, ...]
    file: Path
    fork: bool


def check_rerun(root: Root, run: Run, wish: Wish) -> Checked:
    """Find out whether it can be done, and do nothing.

    Raises:
        PopError: It cannot.
    """
    try:
        history = read_history(run.path)
        pipeline = pipeline_of(run.path, history)
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"{run.run_id} cannot be read: {error}", hint=f"pop show {run.run_id}") from None
    check_roles(root, [role for role in wish.models if role != "*"], pipeline_name(history))
    if wish.fork or run.place == "complete":
        stale = stale_of(pipeline, history, wish.from_)
        return Checked(stale.instances, *_fork_seed(run, history.created, wish, bool(stale.again)))
    if history.state not in AT_REST:
        raise DoesNotFit(
            f"{run.run_id} is {history.state}: it is at work", hint=f"pop pause {run.run_id} first, or --fork"
        )
    event, _ = rerun_event(root, run.path, pipeline, history, _order_of(wish))
    return Checked(tuple(event["instances"]))


def _order_of(wish: Wish) -> dict[str, Any]:
    return {"from": wish.from_, "set": wish.sets, "models": wish.models}


def _fork_seed(run: Run, created: Mapping[str, Any], wish: Wish, asks: bool) -> tuple[dict[str, Any], str]:
    """The seed of a fork: the other run's as it was last, with what is set."""
    documents = documents_of(run.path)
    changed_documents(run.path, documents, wish.sets, str(created["pipeline"]))  # refuses what cannot be set
    data = read_regular(run.path / documents.seed, max_bytes=MAX_DOCUMENT)
    value = read_json(data, where=documents.seed)
    own = dict(value) if "data" in value else {}
    pipeline = read_json(read_regular(run.path / documents.pipeline, max_bytes=MAX_DOCUMENT), where=documents.pipeline)
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


def outlook(root: Root, run: Run, from_: Iterable[str]) -> Outlook:
    """What a rerun would do, and may cost.

    Raises:
        PopError: A step is unknown or never ran, or the run's own files are broken.
    """
    try:
        return of_run(root, run, from_)
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"{run.run_id} cannot be read: {error}", hint=f"pop show {run.run_id}") from None


def rerun(root: Root, run: Run, wish: Wish) -> Rerun:
    """Run it again from a step on.

    Raises:
        PopError: It cannot be done; nothing is.
    """
    return carry_out_rerun(root, run, wish, check_rerun(root, run, wish))


def rerun_all(root: Root, runs: Iterable[Run], wish: Wish, *, named: bool) -> list[tuple[Run, Rerun | PopError]]:
    """Look at every run, then give the orders.

    Args:
        named: Whether each was named: then one that it does not fit stops them all.

    Raises:
        PopError: It does not fit a run that was named.
    """
    ready: list[tuple[Run, Checked | PopError]] = []
    for run in runs:
        try:
            ready.append((run, check_rerun(root, run, wish)))
        except PopError as error:
            if named:
                raise
            ready.append((run, error))
    return [
        (run, found if isinstance(found, PopError) else carry_out_rerun(root, run, wish, found)) for run, found in ready
    ]


def carry_out_rerun(root: Root, run: Run, wish: Wish, checked: Checked) -> Rerun:
    """Write the order, or drop the fork's seed."""
    if checked.seed is not None:
        return Rerun(run, checked.stale, put_seed(root, dump_json(checked.seed), checked.file_name), True)
    file = write_order(Disk(), run.path, "rerun", wish.reason, more=_order_of(wish))
    for verb in ("retry", "resume"):
        withdraw(run, verb)
    return Rerun(run, checked.stale, file, fork=False)
