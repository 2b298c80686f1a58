"""Gates: what waits for a person, and answering it with what is shown side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from pop.answering import answer_gate, open_gate_of
from pop.errors import PopError, UsageError
from pop.events import rfc3339
from pop.gateanswers import DECISIONS, answer_of
from pop.gateshow import MAX_OUTPUT_BYTES, Shown
from pop.runindex import Asked
from pop.runs import Run
from pop.safehtml import diff_text, markdown, preview
from pop.store import NotAFile, contained, lock_holder, read_regular
from pop.web.api_acts import diffs
from pop.web.api_runs import gate_of, open_gates
from pop.web.app import Site
from pop.web.errors import status_of
from pop.web.once import Done, Fields, done_once, new_mark, posted
from pop.web.reading import relative
from pop.web.render import clock, page, templates

router = APIRouter()
templates().filters["moment"] = lambda unix_s: clock(rfc3339(unix_s))
MOST_RUNS = 200
EDITABLE_BYTES = 100_000  # of one copy; a larger one is edited where it lies
EDITABLE_ALL = 400_000
MOST_SHOWN = 40


@dataclass(frozen=True)
class Copy:
    """A copy as it is shown; `text` is None where it cannot be edited here."""

    instance: str
    path: str
    name: str
    html: Markup
    text: str | None
    size: int

    @property
    def rows(self) -> int:
        return min(30, max(4, (self.text or "").count("\n") + len(self.text or "") // 90 + 1))


@router.get("/gates")
def gates(request: Request) -> HTMLResponse:
    """Everything that waits for a person."""
    site: Site = request.app.state.site
    site.look(1.0)
    found = site.index.query(Asked(state="waiting"), size=MOST_RUNS)
    rows = [(row, gate) for row in found.rows for gate in _gates_of(site, row.run_id)]
    return page(request, "gates.html", rows=rows, more=max(0, found.total - len(found.rows)))


def _gates_of(site: Site, run_id: str) -> list[Any]:
    try:
        run = site.run(run_id)
        return [gate for name in open_gates(run) if (gate := gate_of(run, name))]
    except (HTTPException, OSError):  # it has gone on
        return []


@router.get("/runs/{run_id}/gates/{gate}")
def gate(request: Request, run_id: str, gate: str) -> HTMLResponse:
    """One gate."""
    return _page(request, request.app.state.site.run(run_id), gate)


def _page(request: Request, run: Run, name: str, *, status: int = 200, **more: Any) -> HTMLResponse:
    try:
        about = gate_of(run, name) if contained(run.path / "tasks", name).is_dir() else None
    except (PopError, OSError):
        about = None
    if about is None:
        raise HTTPException(404, f"no gate {name[:80]!r} was opened in this run")
    site: Site = request.app.state.site
    values = more.pop("values", {})
    context = {
        "run": run,
        "run_name": str(run.status().get("name") or run.run_id),
        "gate": about,
        "is_open": name in open_gates(run),
        "answer": answer_of(run.path / "tasks" / name),
        "request_html": markdown(_asked(about.request or "")),
        "copies": _copies(run, about.shown, values),
        "cut": max(0, len(about.shown) - MOST_SHOWN),
        "once": new_mark(),
        "text": "",
        "diffs": None,
        "error": None,
        "served": lock_holder(site.root.machine_room) is not None,
        "here": f"/runs/{run.run_id}/gates/{quote(name)}",
    }
    return page(request, "gate.html", status=status, **{**context, **more})


def _asked(request: str) -> str:
    """What is asked and why, without the glance at the copies, which stand beside it, and the commands."""
    for heading in ("\n## What to look at", "\n## How to answer"):
        request = request.partition(heading)[0]
    return request


def _copies(run: Run, shown: list[Shown], values: dict[str, str]) -> list[Copy]:
    found, left = list[Copy](), EDITABLE_ALL
    for copy in shown[:MOST_SHOWN]:
        try:
            data = read_regular(contained(run.path, copy.path), max_bytes=MAX_OUTPUT_BYTES)
        except (OSError, NotAFile):
            continue
        text = _text(data) if len(data) <= min(EDITABLE_BYTES, left) else None
        left -= len(data) if text is not None else 0
        name = copy.path.partition("/show/")[2]
        if text is not None:
            text = values.get(copy.path, text)
        found.append(Copy(copy.instance, copy.path, name, preview(name, data), text, len(data)))
    return found


def _text(data: bytes) -> str | None:
    """What a form can hold without changing it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if "\0" not in text else None


@router.post("/runs/{run_id}/gates/{gate}")
def answer(request: Request, run_id: str, gate: str, fields: Annotated[Fields, Depends(posted)]) -> Response:
    """Answer it, or only show what the edits change."""
    run: Run = request.app.state.site.run(run_id)
    values, once = fields.with_prefix("edit:"), fields.one("once")
    again: dict[str, Any] = {"values": values, "text": fields.one("text"), **({"once": once} if once else {})}
    try:
        if fields.one("do") == "preview":
            return _page(request, run, gate, **again, diffs=_previewed(run, gate, values))
        return done_once(request, fields, partial(_answer, request.app.state.site, run, gate, fields, values))
    except PopError as error:
        return _page(request, run, gate, **again, error=error, status=status_of(error))


def _previewed(run: Run, gate: str, values: dict[str, str]) -> list[tuple[str, Markup]]:
    found = diffs(run, open_gate_of(run, gate), _edits(run, values))
    return [(path.partition("/show/")[2], diff_text(text)) for path, text in found.items()]


def _edits(run: Run, values: dict[str, str]) -> dict[str, str]:
    """The texts that were changed: a form gives all of them back, each with the line ends of forms."""
    found = {}
    for path, text in values.items():
        try:
            before = read_regular(contained(run.path, path), max_bytes=MAX_OUTPUT_BYTES).decode()
        except (OSError, NotAFile, UnicodeDecodeError) as error:
            raise UsageError(f"the copy cannot be edited: {error}", where=path[:200], code="bad-edit") from None
        if before.replace("\r\n", "\n").replace("\r", "\n") != text.replace("\r", "\n"):
            found[path] = text
    return found


def _answer(site: Site, run: Run, gate: str, fields: Fields, values: dict[str, str]) -> Done:
    decision: Any = fields.one("do")
    if decision not in DECISIONS:
        raise UsageError("which answer?", where="do", hint="approve, reject or request changes")
    instance = open_gate_of(run, gate)
    edits = _edits(run, values) if decision != "reject" else {}
    text = fields.one("text").strip() or None
    data = {path: changed.encode() for path, changed in edits.items()}
    file, by = answer_gate(run, instance, decision, text=text, how="dashboard", edits=data)
    what = {"approve": "Approved", "reject": "Rejected", "request-changes": "Changes are requested"}[decision]
    edited = f"; {len(edits)} edited cop{'y' if len(edits) == 1 else 'ies'} with it" if edits else ""
    links = (("To the run", f"/runs/{run.run_id}"), ("What else waits", "/gates"))
    return Done(f"{what}: {instance}", relative(site.root, file), f"By {by}{edited}.", links)
