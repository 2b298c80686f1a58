"""Dropping a seed: by a form made from the pipeline's seed schema, or from what it reads, by pasting it, by sending files."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response

from pop.drops import Upload
from pop.errors import PopError, SeedRejected
from pop.records import dump_json
from pop.rootcheck import RootCheck
from pop.seedcheck import SeedMismatch, mistakes
from pop.seedfields import fields_of, flat, put_errors, read_form
from pop.seedform import own_schema, seed_schema
from pop.settings import load_settings
from pop.store import lock_holder
from pop.web.api_acts import plan_at, put
from pop.web.errors import status_of
from pop.web.once import Done, Fields, done_once, new_mark
from pop.web.reading import relative
from pop.web.render import page
from pop.web.shapes import PlanShape
from pop.web.site import Site

router = APIRouter()
WAYS = (("form", "Form"), ("paste", "Paste"), ("upload", "Upload"))


@router.get("/new")
def new(request: Request, pipeline: str = "", by: str = "", example: bool = False) -> HTMLResponse:
    """The page on which a seed is made."""
    return _page(request, pipeline=pipeline, by=by, example=example)


def _page(
    request: Request, *, pipeline: str, by: str, example: bool = False, status: int = 200, **more: Any
) -> HTMLResponse:
    site: Site = request.app.state.site
    look = RootCheck(site.root)
    names = list(look.pipelines)
    name = pipeline if pipeline in names else next(iter(names), "default")
    schema, guessed = seed_schema(look, name), own_schema(look, name) is None
    given, wrong = more.pop("values", None), getattr(more.get("error"), "wrong", [])
    fields = fields_of(schema, guessed=guessed, example=example, given=given)
    ways = [way for way, _ in WAYS]
    limits = load_settings(site.root).seeds
    context = {
        "ways": WAYS,
        "by": by if by in ways else ("form" if fields else "paste"),
        "pipelines": names,
        "pipeline": name,
        "fields": fields,
        "guessed": guessed,
        "about": schema.get("description") if not guessed else None,
        "closed": schema.get("additionalProperties") is False,
        "has_examples": any(one.hint for one in flat(fields)) or bool(schema.get("examples")),
        "elsewhere": put_errors(fields, wrong) if by == "form" else [],
        "wrong_fields": [one for one in flat(fields) if one.errors],
        "problems": look.pipelines[name].problems if name in look.pipelines else [],
        "limits": limits,
        "once": new_mark(),
        "given": {"name": "", "models": "", "text": ""},
        "error": None,
        "plan": None,
        "served": lock_holder(site.root.machine_room) is not None,
    }
    return page(request, "new.html", status=status, **{**context, **more})


@router.post("/new")
async def drop(request: Request) -> Response:
    """Drop it, or only look at what it would do."""
    site: Site = request.app.state.site
    limits = load_settings(site.root).seeds
    most = int(limits.max_mb * 2**20)
    async with request.form(max_files=limits.max_files + 1, max_fields=2000, max_part_size=most + 1) as form:
        return await run_in_threadpool(_drop, request, site, Fields(form))


def _drop(request: Request, site: Site, fields: Fields) -> Response:
    by_form = fields.one("by") not in ("paste", "upload")
    values = fields.with_prefix("f.") if by_form else None
    given = {name: fields.one(name) for name in ("name", "models", "text")}
    about: dict[str, Any] = {
        "pipeline": fields.one("pipeline"),
        "by": fields.one("by") or "form",
        "values": values,
        "given": given,
    }
    if once := fields.one("once"):
        about["once"] = once
    try:
        uploads, name = _uploads(site, fields, values)
        if fields.one("do") == "look":
            return _page(request, **about, plan=_looked_at(site, uploads, name, fields))
        return done_once(request, fields, partial(_put, site, uploads, name, fields))
    except PopError as error:
        return _page(request, **about, error=error, status=status_of(error))


def _uploads(site: Site, fields: Fields, values: dict[str, str] | None) -> tuple[list[Upload], str]:
    """What was filled in, pasted or sent, and what the file is to be called."""
    stem = fields.one("name").strip()
    if fields.one("by") == "upload":
        files = fields.files("file")
        if not files:
            raise SeedRejected(
                "no file was chosen", hint="a .json, a .zip, or several files with a seed.json among them"
            )
        only = Path(files[0].filename or "")
        name = stem or only.stem
        if len(files) == 1 and stem:
            return [Upload(f"{stem}{only.suffix}", files[0].file)], name
        return [Upload(file.filename or "", file.file) for file in files], name if stem else "upload"
    if fields.one("by") == "paste":
        data = fields.one("text").encode("utf-8", "replace")
    else:
        data = dump_json(_filled_in(RootCheck(site.root), fields.one("pipeline"), values or {}))
    return [Upload(f"{stem or 'seed'}.json", io.BytesIO(data))], stem or "seed"


def _filled_in(look: RootCheck, name: str, values: dict[str, str]) -> dict[str, Any]:
    """The data of the form.

    Raises:
        SeedMismatch: They do not fit the pipeline's schema; what could not be read is told first.
    """
    own = own_schema(look, name)
    guessed = own is None
    data, unread = read_form(fields_of(seed_schema(look, name), guessed=guessed), values, guessed=guessed)
    if own is not None:
        places = {mistake.path for mistake in unread}
        wrong = [*unread, *(one for one in mistakes(own, data) if one.path not in places)]
        if wrong:
            raise SeedMismatch(wrong, where="the form", file=look.pipelines[name].file)
    return data


def _pipeline(fields: Fields) -> str | None:
    """Which one the seed is to ask for; what was pasted or sent says it itself, unless another one was chosen."""
    name = fields.one("pipeline")
    return None if name in ("", "default") else name


class _Looked(Exception):
    """It was looked at, and is not to appear in the queue."""

    def __init__(self, plan: PlanShape) -> None:
        self.plan = plan


def _looked_at(site: Site, uploads: list[Upload], name: str, fields: Fields) -> PlanShape | None:
    """What it would do: all that a drop does but the last step.

    Raises:
        PopError: It would not be dropped.
    """

    def look(path: Path) -> None:
        raise _Looked(plan_at(site.root, path, called=uploads[0].name if len(uploads) == 1 else name))

    try:
        put(site.root, uploads, name, _pipeline(fields), fields.one("models").split(), look=look)
    except _Looked as looked:
        return looked.plan
    return None


def _put(site: Site, uploads: list[Upload], name: str, fields: Fields) -> Done:
    path = put(site.root, uploads, name, _pipeline(fields), fields.one("models").split())
    return Done(
        "The seed is in the queue",
        relative(site.root, path),
        "It is taken by priority, then by arrival; the board shows it as pending until then.",
        (("To the board", "/"), ("Another one", f"/new?pipeline={fields.one('pipeline')}&by={fields.one('by')}")),
    )
