"""What the API tells and does to keep a root well: findings, who is told of runs, tests of models, old runs."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Query

from pop import __version__
from pop.web import shapes, upkeep
from pop.web.api_root import daemon_of
from pop.web.reading import ASite
from pop.web.upkeep import Old, findings, hooks, remove_old, tested

router = APIRouter(tags=["health"])
AGE = r"^[0-9]+(\.[0-9]+)?[smhdw]$"
Age = Annotated[str, Query(max_length=20, pattern=AGE, description="Counted from the run's end.", examples=["30d"])]


@router.get("/health")
def health(site: ASite) -> shapes.Health:
    """What `pop doctor` finds, without what it says of keys; and who serves the root."""
    found = [shapes.Finding(**dataclasses.asdict(one)) for one in findings(site.root)]
    return shapes.Health(version=__version__, daemon=daemon_of(site.root), findings=found)


@router.get("/notifications")
def notifications(site: ASite) -> shapes.Hooks:
    """Who is told about runs, what waits to be told, and how the last try went, as `pop notify` says."""
    return shapes.Hooks(hooks=[shapes.Hook(**row) for row in hooks(site.root)])


@router.post("/models/test")
def test_models(site: ASite, body: shapes.TestBody) -> shapes.Tested:
    """Ask models one tiny question each, through the daemon's gateway, as `pop models --test`. It may cost a little."""
    rows = tested(site.root, body.models)
    return shapes.Tested(models=[shapes.TestedModel(name=name, says=says, failed=bad) for name, says, bad in rows])


@router.get("/gc/plan")
def old(site: ASite, older_than: Age = "30d", failed: bool = False) -> shapes.OldRuns:
    """The finished runs that ended longer ago, as `pop gc --dry-run`; with `failed` also failed and cancelled ones."""
    return _told(upkeep.older_than(site.root, older_than, failed=failed))


@router.post("/gc")
def remove(site: ASite, body: shapes.GcBody) -> shapes.OldRuns:
    """Remove the folders of runs that ended before `before`, which its plan told, as `pop gc`. Ledgers keep their lines."""
    return _told(remove_old(site.root, body.before, failed=body.failed, archive=body.archive))


def _told(found: Old) -> shapes.OldRuns:
    return shapes.OldRuns(before=found.before, runs=found.run_ids, size_bytes=found.size_bytes)
