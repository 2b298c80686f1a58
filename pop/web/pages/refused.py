"""A seed that was refused: what it is, why, its text; and dropping a mended copy. The refused one stays as it lies."""

from __future__ import annotations

import io
import os
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from pop.drops import Upload
from pop.errors import PopError
from pop.refusals import Refusal, refusal
from pop.store import lock_holder
from pop.web.api_acts import plan_of_seed, put
from pop.web.errors import status_of
from pop.web.once import Done, Fields, done_once, new_mark, posted
from pop.web.reading import relative
from pop.web.render import page
from pop.web.site import Site

router = APIRouter()
WORDS = {
    "file": "a JSON file",
    "folder": "a folder",
    "zip": "a zip archive",
    "gone": "gone: only its reason is left",
    "other": "neither a file nor a folder",
}


def _found(site: Site, key: str) -> Refusal:
    found = refusal(site.root, key)
    if found is None:
        raise HTTPException(404, f"no refused seed {key[:120]!r}")
    return found


@router.get("/refused/{key}")
def refused(request: Request, key: str) -> HTMLResponse:
    """Why, and what it holds."""
    return _page(request, _found(request.app.state.site, key))


def _page(request: Request, seed: Refusal, *, status: int = 200, **more: Any) -> HTMLResponse:
    site: Site = request.app.state.site
    context = {
        "seed": seed,
        "what": WORDS[seed.kind],
        "place": relative(site.root, seed.path),
        "mendable": seed.kind == "file" and seed.text is not None,
        "text": seed.text,
        "called": os.path.splitext(seed.name)[0][:150],
        "once": new_mark(),
        "error": None,
        "plan": None,
        "served": lock_holder(site.root.machine_room) is not None,
    }
    return page(request, "refused_seed.html", status=status, **{**context, **more})


@router.post("/refused/{key}")
def mend(request: Request, key: str, fields: Annotated[Fields, Depends(posted)]) -> Response:
    """Drop a mended copy as a new seed, or only look at what it would do."""
    site: Site = request.app.state.site
    seed = _found(site, key)
    text, name = fields.one("text"), fields.one("name").strip() or "seed"
    about: dict[str, Any] = {"text": text, "called": name}
    if once := fields.one("once"):
        about["once"] = once
    try:
        data = text.encode("utf-8", "replace")
        if fields.one("do") == "look":
            return _page(request, seed, **about, plan=plan_of_seed(site.root, data))
        return done_once(request, fields, partial(_drop, site, seed, data, name))
    except PopError as error:
        return _page(request, seed, **about, error=error, status=status_of(error))


def _drop(site: Site, seed: Refusal, data: bytes, name: str) -> Done:
    path = put(site.root, [Upload(f"{name}.json", io.BytesIO(data))], name, None, [])
    note = f"What was refused stays in {relative(site.root, seed.path)}, with its reason, until you remove it."
    return Done("The mended seed is in the queue", relative(site.root, path), note, (("To the board", "/"),))
