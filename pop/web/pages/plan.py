"""What would run again of a run, since it changed or failed, why, and what that may cost: `pop plan RUN`."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from pop import acts
from pop.errors import PopError
from pop.outlook import Outlook
from pop.runs import Run
from pop.web.errors import status_of
from pop.web.render import page

router = APIRouter()


@router.get("/runs/{run_id}/plan")
def plan(request: Request, run_id: str) -> HTMLResponse:
    """Nothing is ordered; it leads to the page that orders exactly this."""
    site = request.app.state.site
    run: Run = site.run(run_id)
    found, error = Outlook([]), None
    try:
        found = acts.outlook(site.root, run, ())
    except PopError as trouble:
        error = trouble
    again = f"/runs/{run.run_id}/rerun?" + urlencode([("from", one) for one in found.from_])
    about = {"run": run, "run_name": str(run.status().get("name") or run.run_id)}
    return page(
        request, "plan.html", status=status_of(error) if error else 200, plan=found, again=again, error=error, **about
    )
