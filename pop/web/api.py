"""The API: all that the pages show and do, as JSON below /api; described by /api/openapi.json (docs/api.md)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Security
from fastapi.security import HTTPBearer

from pop.web import api_acts, api_health, api_root, api_runs
from pop.web.reading import PREFIX, refuse_unknown_parameters
from pop.web.shapes import Error

STATUS = {
    400: "The request makes no sense, or names something that is none.",
    401: "No token, or a wrong one.",
    403: "From another site, or without the page's own token.",
    404: "There is no such thing.",
    408: "The rest of the request did not come.",
    409: "It does not fit what is there: somebody was first, or the run is in another state.",
    413: "More than is taken.",
    422: "It can be read, and cannot be done: a parameter, a seed or an edit is wrong.",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": description} for status, description in STATUS.items()
}

TOKEN = HTTPBearer(auto_error=False, description="A token from `pop web --url`; the guard looks at it.")

router = APIRouter(
    prefix=PREFIX, responses=RESPONSES, dependencies=[Security(TOKEN), Depends(refuse_unknown_parameters)]
)
for part in (api_root, api_runs, api_acts, api_health):
    router.include_router(part.router)
