"""The board: what is pending, active, waiting for a person, failed, complete."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response

from pop.errors import SeedRejected
from pop.events import rfc3339
from pop.queue import Incomplete, peek
from pop.refusals import reason_of
from pop.runindex import GROUPS, PAGE, Asked
from pop.web.render import page, rendered
from pop.web.site import Site

router = APIRouter()
PATIENCE_S = 0.04  # a page is not kept waiting for what its events can tell
FEW = 4
TABS = (
    ("pending", "Pending"),
    ("active", "Active"),
    ("waiting", "Waiting for a person"),
    ("failed", "Failed"),
    ("complete", "Complete"),
)
NEWEST = 20
SINCE = {"1h": ("the last hour", 3600), "24h": ("the last day", 86400), "7d": ("the last week", 7 * 86400)}
PEEK_BYTES = 2**20


@dataclass(frozen=True)
class Wish:
    """What the address asks for."""

    state: str = ""
    q: str = ""
    pipeline: str = ""
    since: str = ""
    page: int = 1

    @property
    def narrows(self) -> bool:
        return bool(self.state or self.q or self.pipeline or self.since)

    @property
    def choosable(self) -> bool:
        """Whether the list has runs that can be given an order."""
        return self.narrows and self.state not in ("pending", "complete")

    @property
    def asked(self) -> Asked:
        """The index's words for it; the time is whole minutes, so that a minute's answers are the same."""
        since = rfc3339(time.time() // 60 * 60 - SINCE[self.since][1]) if self.since in SINCE else ""
        return Asked("" if self.state == "pending" else self.state, self.q, self.pipeline, since)

    def to(self, **changes: Any) -> str:
        """The address of the same with something else; another page only where that is what changes."""
        values = {"state": self.state, "q": self.q, "pipeline": self.pipeline, "since": self.since, **changes}
        kept = {key: value for key, value in values.items() if value not in ("", None, 1)}
        return "/?" + urlencode(kept) if kept else "/"

    @property
    def live(self) -> str:
        return "/live/board" + self.to(page=self.page)[1:]


def wish_of(
    state: Annotated[str, Query(max_length=20)] = "",
    q: Annotated[str, Query(max_length=200)] = "",
    pipeline: Annotated[str, Query(max_length=100)] = "",
    since: Annotated[str, Query(max_length=10)] = "",
    page: Annotated[int, Query(ge=1, le=10**7)] = 1,
) -> Wish:
    return Wish(state, q.strip(), pipeline, since, page)


AWish = Annotated[Wish, Depends(wish_of)]


class BoardSource:
    """What the board shows of a root to one wish."""

    def __init__(self, site: Site, wish: Wish) -> None:
        self._site = site
        self._wish = wish
        self._kept: dict[str, tuple[Any, str]] = {}  # of fragments: what they show, and how that reads

    def mark(self) -> str:
        return self._site.look_now()

    def fragments(self) -> dict[str, str]:
        about = self.context()
        shown_by = {
            "tabs": about["tabs"],
            "figures": about["figures"],
            "notes": (about["figures"], about["behind"], about["trouble"]),
            "runs": object(),
        }
        for name, key in shown_by.items():
            if name not in self._kept or self._kept[name][0] != key:
                self._kept[name] = (key, rendered(f"board_{name}.html", **about))
        return {name: self._kept[name][1] for name in shown_by}

    def context(self) -> dict[str, Any]:
        site, wish = self._site, self._wish
        counts = site.index.counts()
        return {
            "wish": wish,
            "tabs": [(state, title, _count(counts, state)) for state, title in TABS],
            "counts": {state: _count(counts, state) for state, _ in (*TABS, ("rejected", ""))},
            "figures": site.figures.newest,
            "behind": _behind(site),
            "trouble": site.index.trouble,
            "pipelines": site.index.pipelines(),
            "since": [(key, words) for key, (words, _) in SINCE.items()],
            **(self._listed() if wish.narrows else self._overview()),
        }

    def _overview(self) -> dict[str, Any]:
        """What is at work, then what finished, together as many rows as ever; and the newest few that ask for somebody."""
        ask = self._site.index.query
        active = ask(Asked(state="active"), size=NEWEST).rows
        complete = ask(Asked(state="complete"), size=NEWEST).rows[: NEWEST - len(active)]
        asides = [
            (state, _shown(self._site, ask(Asked(state=state), size=FEW).rows)) for state in ("waiting", "failed")
        ]
        return {
            "newest": _shown(self._site, [*active, *complete]),
            "asides": asides,
            "found": None,
            "seeds": self._seeds(0, FEW),
            "refused": self._refused(2),
        }

    def _listed(self) -> dict[str, Any]:
        """A page of what is asked for."""
        if self._wish.state == "pending":
            names = self._site.index.pending_names()
            pages = max(1, -(-len(names) // PAGE))
            number = min(self._wish.page, pages)
            found = {"total": len(names), "page": number, "pages": pages, "rows": []}
            seeds = self._seeds((number - 1) * PAGE, PAGE)
            return {"found": found, "seeds": seeds, "refused": self._refused(PAGE)}
        result = self._site.index.query(self._wish.asked, self._wish.page)
        found = {"total": result.total, "page": result.page, "pages": result.pages}
        return {"found": {**found, "rows": _shown(self._site, result.rows)}, "seeds": [], "refused": []}

    def _seeds(self, start: int, most: int) -> list[dict[str, Any]]:
        return [self._seed(name) for name in self._site.index.pending_names()[start : start + most]]

    def _seed(self, name: str) -> dict[str, Any]:
        """A name in pipeline-pending/: since when, how large, and what it waits for."""
        path = self._site.root.pending / name
        row: dict[str, Any] = {"name": name, "at": None, "bytes": None, "about": "gone", "state": "pending"}
        try:
            info = os.lstat(path)
            row |= {"at": rfc3339(info.st_mtime), "bytes": info.st_size, "about": ""}
            if info.st_size > PEEK_BYTES or (path.suffix.lower() not in (".json", ".zip") and not path.is_dir()):
                return row
            found = peek(path, self._site.settings.seeds)
        except SeedRejected as error:
            return {**row, "about": error.message, "state": "rejected"}
        except OSError:
            return row
        if isinstance(found, Incomplete):
            return {**row, "about": found.reason}
        later = f"not before {found.seed.not_before}" if found.seed.not_before else ""
        priority = f"priority {found.seed.priority}" if found.seed.priority else ""
        return {**row, "about": ", ".join(filter(None, (found.seed.pipeline, priority, later)))}

    def _refused(self, most: int) -> list[dict[str, Any]]:
        """The newest names in rejected/ with their reasons."""
        names = self._site.index.rejected_names()[-most:][::-1]
        return [{**reason_of(self._site.root, name), "name": name, "address": _refused_address(name)} for name in names]


def _refused_address(key: str) -> str | None:
    """The page of a refused seed; a name that is no UTF-8 can stand in no address."""
    try:
        return f"/refused/{quote(key, safe='')}"
    except UnicodeEncodeError:
        return None


def _count(counts: dict[str, int], state: str) -> int:
    return sum(counts.get(one, 0) for one in GROUPS.get(state, (state,)))


def _behind(site: Site) -> int | None:
    """How much of the ledger was read, in per cent, while that is not all of it."""
    behind = site.index.behind_bytes
    try:
        return int(100 - 100 * behind / site.root.ledger.stat().st_size) if behind else None
    except (OSError, ZeroDivisionError):
        return None


def _shown(site: Site, rows: list[Any]) -> list[dict[str, Any]]:
    """Rows for the page; of a run whose folder is gone the ledger still tells."""
    complete = os.fspath(site.root.complete)
    found = []
    for row in rows:
        gone = row.state == "complete" and not os.path.isdir(f"{complete}/{row.run_id}")
        archived = gone and os.path.exists(f"{complete}/archive/{row.run_id}.tar.gz")
        found.append({"run": row, "gone": "archived" if archived else "removed" if gone else ""})
    return found


@router.get("/")
def board(request: Request, wish: AWish) -> HTMLResponse:
    site: Site = request.app.state.site
    site.look(PATIENCE_S)
    mark = site.mark()
    return page(request, "board.html", mark=mark, **BoardSource(site, wish).context())


@router.get("/live/board")
async def live_board(request: Request, wish: AWish) -> Response:
    site: Site = request.app.state.site
    return site.live.stream(request, ("board", wish), lambda: BoardSource(site, wish))
