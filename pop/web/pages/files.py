"""The files of a run: its folders as lists, each file as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from pop.runs import Run
from pop.safehtml import image_type, kind_of
from pop.store import NotAFile, open_regular
from pop.web.reading import inside, listed, pieces
from pop.web.render import page

router = APIRouter()

RAW = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; sandbox"


def address(run_id: str, *parts: str) -> str:
    """``/runs/<id>/steps/<instance>``, quoted."""
    return "/".join(["/runs", run_id, *(quote(part, "@.,~", errors="surrogateescape") for part in parts)])


def raw_address(run: Run) -> Callable[[str], str]:
    """Where a file of the run is shown as it is."""
    return lambda path: address(run.run_id, "raw") + "/" + quote(path, errors="surrogateescape")


@router.get("/runs/{run_id}/files")
@router.get("/runs/{run_id}/files/{path:path}")
def folder(request: Request, run_id: str, path: str = "") -> HTMLResponse:
    """What lies in a folder of the run."""
    run: Run = request.app.state.site.run(run_id)
    path = path.rstrip("/")
    here = inside(run.path, path) if path else run.path
    if not here.is_dir():
        raise HTTPException(404, f"no folder {path[:120]!r} in this run")
    found, cut = listed(run.path, here)
    parts = path.split("/") if path else []
    above = [(name, "/".join(parts[: number + 1])) for number, name in enumerate(parts)]
    context: dict[str, Any] = {"run": run, "files": found, "cut": cut, "above": above, "raw": raw_address(run)}
    return page(request, "files.html", **context, folder=lambda path: address(run_id, "files") + "/" + quote(path))


@router.get("/runs/{run_id}/raw/{path:path}")
def raw_file(request: Request, run_id: str, path: str, download: bool = False) -> Response:
    """A file of the run as it is: pictures as such, everything else as text or as a download, never as a page."""
    run: Run = request.app.state.site.run(run_id)
    try:
        file = os.fdopen(open_regular(inside(run.path, path), max_bytes=1 << 62), "rb")
    except (NotAFile, OSError):
        raise HTTPException(404, f"no file {path[:120]!r} in this run") from None
    number, name = file.fileno(), path.rpartition("/")[2]
    size, head = os.fstat(number).st_size, os.pread(number, 8192, 0)
    binary = kind_of(name, head) == "binary"
    kind = image_type(head) or ("application/octet-stream" if binary else "text/plain; charset=utf-8")
    how = "attachment" if download or binary else "inline"
    headers = {
        "content-security-policy": RAW,
        "content-disposition": f"{how}; filename*=UTF-8''{quote(name, safe='')}",
        "content-length": str(size),
    }
    return StreamingResponse(pieces(file, 0, size), media_type=kind, headers=headers)
