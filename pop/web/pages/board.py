"""The board: what is pending, active, waiting for a person, failed, complete."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from pop.runs import current_runs, newest_complete
from pop.web.render import page, rendered

router = APIRouter()


class BoardSource:
    """What the board shows of a root."""

    def __init__(self, site: Any) -> None:
        self._site = site

    def mark(self) -> str:
        return str(self._site.root.current.stat().st_mtime_ns)

    def context(self) -> dict[str, Any]:
        root = self._site.root
        runs = [run.status() for run in [*current_runs(root), *reversed(newest_complete(root, 20))]]
        return {"site": self._site, "runs": runs}

    def fragments(self) -> dict[str, str]:
        return {"runs": rendered("board_runs.html", **self.context())}


@router.get("/")
def board(request: Request) -> HTMLResponse:
    source = BoardSource(request.app.state.site)
    return page(request, "board.html", mark=source.mark(), **{k: v for k, v in source.context().items() if k != "site"})


@router.get("/live/board")
async def live_board(request: Request) -> Response:
    site = request.app.state.site
    return site.live.stream(request, "board", lambda: BoardSource(site))  # type: ignore[no-any-return]
