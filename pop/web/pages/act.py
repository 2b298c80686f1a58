"""Orders to a run: cancel, pause, resume, retry, and running it again from a step; and what any act has done."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from pop import acts
from pop.changes import changes_of
from pop.errors import PopError, UsageError
from pop.gateshow import diff
from pop.graph import summed_up
from pop.records import STAGES, BadJson, read_json
from pop.rerun import documents_of, read_sets
from pop.runs import Run
from pop.safehtml import diff_text
from pop.seeds import parse_seed
from pop.stale import place_of
from pop.store import NotAFile, lock_holder, read_regular
from pop.web.api_runs import open_gates
from pop.web.errors import status_of
from pop.web.once import Done, Fields, done_once, marks_of, new_mark, posted
from pop.web.ordering import possible
from pop.web.reading import relative
from pop.web.render import page
from pop.web.site import Site

router = APIRouter()
EDITABLE_BYTES = 100_000
NOTHING_GIVEN = dict.fromkeys(("stage", "exact", "sets", "models", "reason", "fork", "seed"), "")
WORDS = {
    "cancel": ("Cancel", "Its workers are stopped; what they did stays, and a retry can take it up again."),
    "pause": ("Pause", "Attempts at work end, and nothing new starts until it is resumed."),
    "resume": ("Resume", "It goes on where it stands."),
    "retry": ("Retry", "Done steps stay done, failed ones get fresh attempts."),
}


@router.get("/acted/{mark}")
def acted(request: Request, mark: str) -> HTMLResponse:
    """What a form did."""
    done = marks_of(request).done(mark)
    if done is None:
        raise HTTPException(
            404, "what this form did is not remembered any more: the files are, on the board and in the run"
        )
    served = lock_holder(request.app.state.site.root.machine_room) is not None
    return page(request, "acted.html", done=done, served=served)


# -- orders ----------------------------------------------------------------------------------------------------------


@router.get("/runs/{run_id}/act")
def act(request: Request, run_id: str) -> HTMLResponse:
    """What can be ordered of a run."""
    return _page(request, request.app.state.site.run(run_id))


def _page(request: Request, run: Run, *, status: int = 200, **more: Any) -> HTMLResponse:
    state = run.status()
    context = {
        **_about(request, run, state),
        "orders": [_order(run, verb) for verb in acts.PLANS],
        "waiting": run.waiting_orders(),
        "gates": open_gates(run, state),
        "reason": "",
        "budget": "",
        "error": None,
    }
    return page(request, "act.html", status=status, **{**context, **more})


def _about(request: Request, run: Run, status: dict[str, Any]) -> dict[str, Any]:
    site: Site = request.app.state.site
    return {
        "run": run,
        "run_name": str(status.get("name") or run.run_id),
        "state": str(status.get("state")),
        "served": lock_holder(site.root.machine_room) is not None,
    }


def _order(run: Run, verb: str) -> dict[str, Any]:
    """An order as it is offered: whether it fits the run now, and why not."""
    title, words = WORDS[verb]
    fits, why = possible(run, verb)
    return {"verb": verb, "title": title, "words": words, "why": why, "fits": fits, "once": new_mark()}


@router.post("/runs/{run_id}/orders/{verb}")
def give(request: Request, run_id: str, verb: str, fields: Annotated[Fields, Depends(posted)]) -> Response:
    """Write an order."""
    run: Run = request.app.state.site.run(run_id)
    if verb not in acts.PLANS:
        raise HTTPException(404, f"no order {verb[:40]!r}")
    try:
        return done_once(request, fields, partial(_give, request.app.state.site, run, verb, fields))
    except PopError as error:
        again = {"reason": fields.one("reason"), "budget": fields.one("budget")}
        return _page(request, run, **again, error=error, status=status_of(error))


def _give(site: Site, run: Run, verb: str, fields: Fields) -> Done:
    budget = acts.read_amounts(fields.one("budget").split()) if verb == "retry" else None
    given = acts.order(run, verb, fields.one("reason").strip() or None, budget=budget)
    title = f"{WORDS[verb][0]}: the order is given" if given.file else "Nothing was to be ordered"
    file = relative(site.root, given.file) if given.file else None
    return Done(title, file, given.note, (("To the run", f"/runs/{run.run_id}"), ("To the board", "/")))


# -- once more from a step -------------------------------------------------------------------------------------------


@router.get("/runs/{run_id}/rerun")
def again(request: Request, run_id: str) -> HTMLResponse:
    """From where it is to run again, with what changed."""
    run: Run = request.app.state.site.run(run_id)
    asked = request.query_params.getlist("from")
    known = dict(steps_of(run.status()))
    stage = request.query_params.get("stage", "")
    stage = stage if stage in STAGES else ""
    exact = " ".join(f"{one}:{stage}" if stage else one for one in asked if one not in known)  # an item, a lap
    given = {**NOTHING_GIVEN, "exact": exact, "stage": stage}
    return _rerun_page(request, run, chosen=[one for one in asked if one in known], given=given)


def _rerun_page(request: Request, run: Run, *, status: int = 200, **more: Any) -> HTMLResponse:
    state = run.status()
    context = {
        **_about(request, run, state),
        "steps": steps_of(state),
        "stages": STAGES,
        "seed": _seed_text(run),
        "chosen": [],
        "given": NOTHING_GIVEN,
        "once": new_mark(),
        "plan": None,
        "stale": None,
        "seed_diff": None,
        "forks": False,
        "wish": None,
        "error": None,
    }
    return page(request, "rerun.html", status=status, **{**context, **more})


def steps_of(status: dict[str, Any]) -> list[tuple[str, str]]:
    """The steps that ran, each with the state of its instances."""
    found: dict[str, Counter[str]] = {}
    for instance, task in (status.get("tasks") or {}).items():
        found.setdefault(place_of(str(instance))[0], Counter())[str(task.get("state"))] += 1
    return [(step, summed_up(states)) for step, states in found.items()]


def _seed_text(run: Run) -> str | None:
    """The data of the newest seed as a person edits it; None where it is too much for a form."""
    try:
        data = read_regular(run.path / documents_of(run.path).seed, max_bytes=EDITABLE_BYTES)
        return json.dumps(parse_seed(data).data, indent=2, ensure_ascii=False)
    except (OSError, NotAFile, PopError):
        return None


@router.post("/runs/{run_id}/rerun")
def rerun(request: Request, run_id: str, fields: Annotated[Fields, Depends(posted)]) -> Response:
    """Run it again, or only show what that would do and cost."""
    site: Site = request.app.state.site
    run = site.run(run_id)
    about: dict[str, Any] = {"chosen": fields.all("from"), "given": {name: fields.one(name) for name in NOTHING_GIVEN}}
    if once := fields.one("once"):
        about["once"] = once
    try:
        wish = _wish(site, run, fields)
        if fields.one("do") == "preview":
            return _rerun_page(request, run, **about, **_previewed(site, run, wish))
        return done_once(request, fields, partial(_rerun, site, run, wish))
    except PopError as error:
        return _rerun_page(request, run, **about, error=error, status=status_of(error))


def _wish(site: Site, run: Run, fields: Fields) -> acts.Wish:
    stage = f":{fields.one('stage')}" if fields.one("stage") else ""
    from_ = [f"{step}{stage}" for step in fields.all("from")] + fields.one("exact").split()
    if not from_:
        raise UsageError("from which step?", where="from", hint="tick one, or name it: draft, draft.3, review@2:parse")
    sets = read_sets(tuple(line for line in fields.one("sets").splitlines() if line.strip()))
    sets |= _seed_sets(_seed_text(run), fields.one("seed"))
    models = changes_of(site.root, fields.one("models").split()).models
    return acts.Wish(from_, sets, models, bool(fields.one("fork")), fields.one("reason").strip() or None)


def _seed_sets(before: str | None, after: str) -> dict[str, Any]:
    """What was edited in the seed's data, by its keys.

    Raises:
        UsageError: It is no JSON object any more, or a key is gone.
    """
    if before is None or not after.strip() or after.strip() == before.strip():
        return {}
    try:
        old, new = read_json(before), read_json(after, where="the seed")
    except BadJson as error:
        raise UsageError(f"the seed is {error.message}", where=error.where, hint=error.hint, code="bad-edit") from None
    if not isinstance(old, dict) or not isinstance(new, dict):
        raise UsageError("the seed must stay an object", where="the seed", code="bad-edit")
    if gone := sorted(old.keys() - new.keys()):
        hint = "leave it, with another value; or drop a new seed"
        raise UsageError(f"the key {gone[0][:80]!r} cannot be taken away", where="the seed", hint=hint, code="bad-edit")
    return {f"seed.{key}": value for key, value in new.items() if key not in old or old[key] != value}


def _previewed(site: Site, run: Run, wish: acts.Wish) -> dict[str, Any]:
    checked = acts.check_rerun(site.root, run, wish)
    plan = acts.outlook(site.root, run, wish.from_)
    before = _seed_text(run)
    shown: Markup | None = None
    if before is not None and any(path.startswith("seed.") for path in wish.sets):
        after = json.loads(before)
        after |= {
            path[5:]: value for path, value in wish.sets.items() if path.startswith("seed.") and "." not in path[5:]
        }
        text = json.dumps(after, indent=2, ensure_ascii=False)
        shown = diff_text(diff("seed", f"{before}\n".encode(), f"{text}\n".encode()))
    return {"plan": plan, "stale": checked.stale, "seed_diff": shown, "wish": wish, "forks": checked.seed is not None}


def _rerun(site: Site, run: Run, wish: acts.Wish) -> Done:
    done = acts.rerun(site.root, run, wish)
    file = relative(site.root, done.file)
    again = (
        f"{len(done.stale)} instance{' runs' if len(done.stale) == 1 else 's run'} again: {', '.join(done.stale[:12])}"
    )
    links = (("To the run", f"/runs/{run.run_id}"), ("To the board", "/"))
    if done.fork:
        return Done("A new run is made of it: its seed is in the queue", file, again, links)
    return Done("Run again: the order is given", file, again, links)
