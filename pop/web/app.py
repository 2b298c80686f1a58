"""The application: pages and the API from a list, behind the guard."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp

from pop import __version__
from pop.errors import PopError, safe
from pop.queue import ignore_lease_breaks
from pop.runindex import RunIndex
from pop.settings import Root, SeedSettings, Settings
from pop.store import root_trouble
from pop.web.errors import about, status_of
from pop.web.figures import FigureBook
from pop.web.guard import PUBLIC, Guard, Policy
from pop.web.keys import Keys
from pop.web.live import Live
from pop.web.render import HERE, page, rendered, templates
from pop.web.site import Site

PAGES = (
    "board",
    "run",
    "files",
    "new",
    "gates",
    "act",
    "plan",
    "replay",
    "orders",
    "refused",
    "health",
    "pipelines",
    "costs",
    "costs_csv",
    "compare",
)
MB = 2**20
FOREVER = "public, max-age=31536000, immutable"
ROOT_HEADER = "x-pop-root"


def cookie_name(root: Root) -> str:
    """Cookies of one host are shared by all its ports, and so by all roots served there."""
    return "pop-" + hashlib.sha256(os.fsencode(root.path)).hexdigest()[:10]


def create_app(root: Root, settings: Settings, *, host: str = "127.0.0.1", token: bool = True) -> FastAPI:
    """The dashboard of a root.

    Args:
        host: Where it will listen: beyond loopback, further names are taken for this machine's.
        token: Whether a browser must have come by a link.
    """
    ignore_lease_breaks()
    index = RunIndex(root)
    site = Site(root, settings, Live(), index, FigureBook(root, settings, index))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for name in templates().list_templates():
            templates().get_template(name)  # compiled before the first reader comes
        yield
        site.close()

    keys = Keys(root.machine_room) if token else None
    app = _App(
        title="POP",
        version=__version__,
        description="Reads runs and gives orders, by the same files as the command line.",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.policy = policy_of(root, settings.seeds, keys, host)
    app.state.site = site
    app.mount("/static", _Static(directory=HERE / "static"))
    app.get("/favicon.ico", include_in_schema=False)(_icon)
    for name in PAGES:
        app.include_router(import_module(f"pop.web.pages.{name}").router, include_in_schema=False)
    app.include_router(import_module("pop.web.api").router)
    _say_errors(app)
    return app


class _App(FastAPI):
    """With the guard around everything, so that the page of a bug has its headers too."""

    def build_middleware_stack(self) -> ASGIApp:
        return Guard(super().build_middleware_stack(), self.state.policy)


def policy_of(root: Root, seeds: SeedSettings, keys: Keys | None, host: str) -> Policy:
    """The guard's rules for a server on this host."""
    beyond = host not in ("127.0.0.1", "::1", "localhost")
    upload = int((seeds.max_files_mb + seeds.max_mb + 1) * MB)
    return Policy(
        keys,
        cookie=cookie_name(root),
        hosts=frozenset({host.lower(), os.uname().nodename.lower()}) if beyond else frozenset(),
        any_address=beyond,
        large={"/new": upload, "/api/seeds/plan": int((seeds.max_mb + 1) * MB), "/api/seeds": upload},
    )


class _Static(StaticFiles):
    """Files whose address changes with their content may be kept by browsers."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = FOREVER
        return response


async def _icon(request: Request) -> Response:
    """Also tells which root is served here, to whoever is about to print a link: `pop web --url`."""
    headers = {"cache-control": FOREVER, ROOT_HEADER: cookie_name(request.app.state.site.root)}
    return FileResponse(HERE / "static" / "icon.svg", media_type="image/svg+xml", headers=headers)


def _say_errors(app: FastAPI) -> None:
    """A user's mistakes read as on the command line; of a bug the page tells nothing."""

    @app.exception_handler(PopError)
    async def known(request: Request, error: PopError) -> Response:
        return told(request, status_of(error), about(error))

    @app.exception_handler(OSError)
    async def disk(request: Request, error: OSError) -> Response:
        known = root_trouble(error)
        if known is None:
            raise error
        return told(request, 503, about(known))

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: StarletteHTTPException) -> Response:
        codes = {404: "not-found", 405: "wrong-method"}
        message = "there is nothing here" if error.detail == "Not Found" else str(error.detail)
        code = getattr(error, "code", codes.get(error.status_code, "refused"))
        found = {"class": "http", "code": code, "message": message, "hint": getattr(error, "hint", None)}
        return told(request, error.status_code, found, headers=dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return told(
            request, 422, {"class": "invalid-request", "code": "invalid", "message": str(first["msg"]), "where": where}
        )

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        hint = "its traceback is in .pop/log/web.err, or where pop web runs"
        return told(request, 500, {"class": "bug", "code": "bug", "message": "a bug in POP", "hint": hint})


def told(request: Request, status: int, found: dict[str, Any], *, headers: dict[str, str] | None = None) -> Response:
    """An error: as a page, or as JSON below /api and for programs."""
    error = {"class": "refused", "code": "refused", "message": "", "where": None, "hint": None, **found}
    error = {key: safe(value) if isinstance(value, str) else value for key, value in error.items()}
    if request.url.path.startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": error}, status, headers)
    if request.url.path.startswith(PUBLIC):  # who was not asked for a token learns nothing, not even the root's name
        answer = HTMLResponse(rendered("refused.html", status=status, **error), status)
    else:
        answer = page(request, "error.html", status=status, **{"code_number": status, **error})
    answer.headers.update(headers or {})
    return answer
