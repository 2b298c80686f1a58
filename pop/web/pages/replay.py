"""A finished run once more by its recorded answers, without a call: `pop run --replay RUN`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from pop.runs import Run
from pop.web.api_acts import replay
from pop.web.once import Done, Fields, done_once, posted
from pop.web.reading import relative
from pop.web.site import Site

router = APIRouter()


@router.post("/runs/{run_id}/replay")
def again(request: Request, run_id: str, fields: Annotated[Fields, Depends(posted)]) -> Response:
    site: Site = request.app.state.site
    return done_once(request, fields, partial(_replay, site, site.run(run_id)))


def _replay(site: Site, run: Run) -> Done:
    links = (("To the board", "/"), ("To the recorded run", f"/runs/{run.run_id}"))
    note = "Its models are answered from what this run recorded: no call is made, and it costs nothing."
    return Done("The replay is in the queue", relative(site.root, replay(site.root, run)), note, links)
