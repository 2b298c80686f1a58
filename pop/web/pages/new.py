"""Dropping a seed: by a form made from what the pipeline reads, by pasting it, by sending files."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response

from pop.drops import Upload
from pop.errors import PopError, SeedRejected, UsageError
from pop.records import dump_json, read_json
from pop.rootcheck import RootCheck
from pop.seedform import read_fields, seed_schema
from pop.settings import load_settings
from pop.store import lock_holder
from pop.web.api_acts import plan_of_seed, put
from pop.web.app import Site
from pop.web.errors import status_of
from pop.web.once import Done, Fields, done_once, new_mark
from pop.web.reading import relative
from pop.web.render import page

router = APIRouter()
WAYS = (("form", "Form"), ("paste", "Paste"), ("upload", "Upload"))
LONG_TEXT = 60  # characters from which a text gets more than a line


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
    schema = seed_schema(look, name)
    fields = [_field(key, about, key in schema["required"], example) for key, about in schema["properties"].items()]
    ways = [way for way, _ in WAYS]
    limits = load_settings(site.root).seeds
    context = {
        "ways": WAYS,
        "by": by if by in ways else ("form" if fields else "paste"),
        "pipelines": names,
        "pipeline": name,
        "fields": fields,
        "has_examples": any("examples" in about for about in schema["properties"].values()),
        "problems": look.pipelines[name].problems if name in look.pipelines else [],
        "limits": limits,
        "once": new_mark(),
        "values": {},
        "given": {"name": "", "models": "", "text": ""},
        "error": None,
        "plan": None,
        "served": lock_holder(site.root.machine_room) is not None,
    }
    return page(request, "new.html", status=status, **{**context, **more})


def _field(key: str, about: dict[str, Any], needed: bool, example: bool) -> dict[str, Any]:
    """How a key is asked for: its name, kind of input, and a value to begin with."""
    kind, examples = about["type"], about.get("examples") or []
    shown = "" if not examples else examples[0]
    text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False, indent=2)
    control = {"number": "number", "boolean": "boolean"}.get(kind, "text" if kind == "string" else "json")
    long = control == "json" or "\n" in text or len(text) > LONG_TEXT or (control == "text" and not examples)
    return {
        "key": key,
        "control": control,
        "long": long and control in ("text", "json"),
        "needed": needed,
        "note": about.get("description"),
        "hint": text[:200],
        "value": text if example else "",
        "rows": min(16, max(3, text.count("\n") + len(text) // 80 + 1)),
    }


@router.post("/new")
async def drop(request: Request) -> Response:
    """Drop it, or only look at what it would do."""
    site: Site = request.app.state.site
    limits = load_settings(site.root).seeds
    most = int(limits.max_mb * 2**20)
    async with request.form(max_files=limits.max_files + 1, max_fields=2000, max_part_size=most + 1) as form:
        return await run_in_threadpool(_drop, request, site, Fields(form))


def _drop(request: Request, site: Site, fields: Fields) -> Response:
    values = fields.with_prefix("f.")
    given = {name: fields.one(name) for name in ("name", "models", "text")}
    about: dict[str, Any] = {
        "pipeline": fields.one("pipeline"),
        "by": fields.one("by"),
        "values": values,
        "given": given,
    }
    if once := fields.one("once"):
        about["once"] = once
    try:
        uploads, name = _uploads(site, fields, values)
        if fields.one("do") == "look":
            return _page(request, **about, plan=_looked_at(site, fields, uploads))
        return done_once(request, fields, partial(_put, site, uploads, name, fields))
    except PopError as error:
        return _page(request, **about, error=error, status=status_of(error))


def _uploads(site: Site, fields: Fields, values: dict[str, str]) -> tuple[list[Upload], str]:
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
        schema = seed_schema(RootCheck(site.root), fields.one("pipeline"))
        data = dump_json(read_fields(schema, values))
    return [Upload(f"{stem or 'seed'}.json", io.BytesIO(data))], stem or "seed"


def _pipeline(fields: Fields) -> str | None:
    """Which one the seed is to ask for; what was pasted or sent says it itself, unless another one was chosen."""
    name = fields.one("pipeline")
    return None if name in ("", "default") else name


def _looked_at(site: Site, fields: Fields, uploads: list[Upload]) -> Any:
    if fields.one("by") == "upload":
        raise UsageError("files are looked at when they are dropped", hint="paste the seed to see its plan")
    data = uploads[0].file.read()
    if name := _pipeline(fields):
        value = read_json(data, where="the seed")
        if isinstance(value, dict):
            data = dump_json({**(value if "data" in value else {"data": value}), "pipeline": name})
    return plan_of_seed(site.root, data)


def _put(site: Site, uploads: list[Upload], name: str, fields: Fields) -> Done:
    path = put(site.root, uploads, name, _pipeline(fields), fields.one("models").split())
    return Done(
        "The seed is in the queue",
        relative(site.root, path),
        "It is taken by priority, then by arrival; the board shows it as pending until then.",
        (("To the board", "/"), ("Another one", f"/new?pipeline={fields.one('pipeline')}&by={fields.one('by')}")),
    )
