"""One order to many runs: for each the file that was written, or why none was. One that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastapi import HTTPException

from pop import acts
from pop.errors import PopError
from pop.runs import Run
from pop.store import root_trouble
from pop.web.reading import relative
from pop.web.site import Site

MOST_RUNS = 500


@dataclass(frozen=True)
class Told:
    """What an order came to for one run: its file (relative to the root), or a note, or what is wrong."""

    run_id: str
    file: str | None = None
    note: str | None = None
    error: PopError | None = None


class NoRun(PopError):
    """It was removed meanwhile, or never was."""

    code = "unknown-run"


def order_all(
    site: Site, run_ids: Iterable[str], verb: str, reason: str | None, budget: Mapping[str, float] | None = None
) -> list[Told]:
    """Give every run the same order, each once, in the order they were named."""
    return [_order(site, run_id, verb, reason, budget) for run_id in dict.fromkeys(run_ids)]


def _order(site: Site, run_id: str, verb: str, reason: str | None, budget: Mapping[str, float] | None) -> Told:
    try:
        given = acts.order(run_called(site, run_id), verb, reason, budget=dict(budget) if budget else None)
    except PopError as error:
        return Told(run_id, error=error)
    except OSError as error:
        trouble = root_trouble(error) or PopError(f"its order cannot be written: {error.strerror}", code="unwritten")
        return Told(run_id, error=trouble)
    return Told(run_id, relative(site.root, given.file) if given.file else None, given.note)


def run_called(site: Site, run_id: str) -> Run:
    """The run with exactly this id.

    Raises:
        NoRun: There is none.
    """
    try:
        return site.run(run_id)
    except HTTPException as error:
        raise NoRun(str(error.detail)) from None


def possible(run: Run, verb: str) -> tuple[bool, str | None]:
    """Whether an order would do anything for a run now, and what is to be said about it."""
    try:
        plan = acts.PLANS[verb](run)
    except acts.DoesNotFit as error:
        return False, error.message
    return plan.verb is not None or bool(plan.withdraws), plan.note if plan.verb is None else None
