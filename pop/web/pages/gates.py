"""Gates: what waits for a person, and answering it with what is shown side by side."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from pop.answering import AskedAnew, answer_gate, asked_still, open_gate_of
from pop.errors import PopError, UsageError
from pop.events import rfc3339
from pop.gateanswers import DECISIONS, answer_of, opened
from pop.gateshow import MAX_OUTPUT_BYTES, Shown
from pop.runindex import Asked, Found
from pop.runs import Run
from pop.safehtml import diff_text, markdown, preview
from pop.steps import step_of
from pop.store import NotAFile, contained, lock_holder, read_regular
from pop.web.api_acts import diffs
from pop.web.api_runs import gate_of, open_gates
from pop.web.errors import status_of
from pop.web.live import SELDOM_S
from pop.web.once import Done, Fields, done_once, new_mark, posted
from pop.web.reading import digest, mark_of, relative, stamp
from pop.web.render import clock, page, rendered, templates
from pop.web.shapes import Gate
from pop.web.site import Site

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


class GatesSource:
    """All that waits for a person, while runs come to their gates and are answered."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def mark(self) -> str:
        self._site.look_now()
        return self.known_mark()

    def known_mark(self) -> str:
        """By what is known already."""
        found = self._found()
        return digest((found.total, found.rows))

    def fragments(self) -> dict[str, str]:
        return {"gates": rendered("gates_all.html", **self.context())}

    def context(self) -> dict[str, Any]:
        found = self._found()
        rows = [(row, gate, _words(gate)) for row in found.rows for gate in _gates_of(self._site, row.run_id)]
        return {"rows": rows, "more": max(0, found.total - len(found.rows))}

    def _found(self) -> Found:
        return self._site.index.query(Asked(state="waiting"), size=MOST_RUNS)


@router.get("/gates")
def gates(request: Request) -> HTMLResponse:
    """Everything that waits for a person."""
    site: Site = request.app.state.site
    site.look(1.0)
    source = GatesSource(site)
    mark = source.known_mark()
    return page(request, "gates.html", mark=mark, **source.context())


@router.get("/live/gates")
async def live_gates(request: Request) -> Response:
    site: Site = request.app.state.site
    return site.live.stream(request, "gates", lambda: GatesSource(site), SELDOM_S)


def _gates_of(site: Site, run_id: str) -> list[Gate]:
    try:
        run = site.run(run_id)
        return [gate for name in open_gates(run) if (gate := gate_of(run, name))]
    except (HTTPException, OSError):  # it has gone on
        return []


def _words(gate: Gate) -> tuple[str, str]:
    """What is asked, in a line, and the first line of the pipeline's own words about it."""
    text = gate.request or ""
    title = gate.title or text.partition("\n")[0].lstrip("# ")
    own = re.search(r"^## Why it waits\n\n> (.+)", text, re.MULTILINE) if gate.kind == "step" else None
    return title, own[1] if own else ""


@router.get("/runs/{run_id}/gates/{gate}")
def gate(request: Request, run_id: str, gate: str) -> HTMLResponse:
    """One gate."""
    return _page(request, request.app.state.site.run(run_id), gate)


class GateSource:
    """What a person who looks at a question is told meanwhile. What they write is theirs: the form stays as it is.

    Args:
        opening: The question that the page shows: a gate may ask again.
        asked: Whether the page has a form. One without is loaded anew when there is something to answer.
    """

    def __init__(self, site: Site, run_id: str, gate: str, opening: int, asked: bool) -> None:
        self._site = site
        self._run_id, self._gate, self._opening, self._asked = run_id, gate, opening, asked
        self._stood = ""

    def mark(self) -> str | None:
        run = self._run()
        if run is None:
            return "gone"
        folder = run.path / "tasks" / self._gate
        stands = f"{mark_of(run)}-{stamp(folder / 'gate.json', folder / 'decision.json')}"
        if not self._asked and stands != self._stood:
            self._stood = stands
            if _is_asked(run, self._gate):
                return None
        return stands

    def fragments(self) -> dict[str, str]:
        return {"gate-news": rendered("gate_news.html", **self.news())}

    def news(self) -> dict[str, Any]:
        """What happened to the question since, and where to go on."""
        run = self._run()
        if run is None or not self._asked:
            return {"news": "gone" if self._asked else None, "href": "/gates", "answer": None}
        folder = run.path / "tasks" / self._gate
        href = f"/runs/{run.run_id}/gates/{quote(self._gate)}"
        about, answer, waiting = opened(folder), answer_of(folder), open_gates(run)
        later = [one for one in waiting if one != self._gate and step_of(one) == step_of(self._gate)]
        if about and about.opening == self._opening and self._gate in waiting:
            return {"news": "answered" if answer else None, "href": f"/runs/{run.run_id}", "answer": answer}
        if self._gate in waiting and about:
            return {"news": "again", "href": href, "answer": None}
        if later:
            return {"news": "again", "href": f"/runs/{run.run_id}/gates/{quote(later[-1])}", "answer": None}
        return {"news": "over", "href": f"/runs/{run.run_id}", "answer": answer}

    def _run(self) -> Run | None:
        try:
            return self._site.run(self._run_id)
        except HTTPException:
            return None


def _is_asked(run: Run, gate: str) -> bool:
    return gate in open_gates(run) and answer_of(run.path / "tasks" / gate) is None


@router.get("/live/runs/{run_id}/gates/{gate}")
async def live_gate(request: Request, run_id: str, gate: str, opening: int = 1, asked: bool = True) -> Response:
    site: Site = request.app.state.site
    run = site.run(run_id)
    if not await run_in_threadpool(_is_there, run, gate):
        raise HTTPException(404, f"no gate {gate[:80]!r} was opened in this run")
    key = ("gate", run_id, gate, opening, asked)
    return site.live.stream(request, key, lambda: GateSource(site, run_id, gate, opening, asked))


def _is_there(run: Run, name: str) -> bool:
    try:
        return contained(run.path / "tasks", name).is_dir()
    except (PopError, OSError):
        return False


def _page(request: Request, run: Run, name: str, *, status: int = 200, **more: Any) -> HTMLResponse:
    about = gate_of(run, name) if _is_there(run, name) else None
    if about is None:
        raise HTTPException(404, f"no gate {name[:80]!r} was opened in this run")
    site: Site = request.app.state.site
    values, mark, opening = more.pop("values", {}), mark_of(run), more.pop("opening", "")
    is_open, answer = name in open_gates(run), answer_of(run.path / "tasks" / name)
    asked = is_open and not answer
    of_before = isinstance(more.get("error"), AskedAnew)
    unsent = _unsent(run, values, opening if of_before else "") if of_before or not asked else {}
    if not asked and more.get("text"):
        unsent["your words"] = more["text"]
    query = urlencode({"opening": about.opening, "asked": int(asked)})
    context = {
        "run": run,
        "run_name": str(run.status().get("name") or run.run_id),
        "gate": about,
        "is_open": is_open,
        "answer": answer,
        "unsent": unsent,
        "news": None,
        "live": f"/live/runs/{run.run_id}/gates/{quote(name)}?{query}" if run.place == "current" else None,
        "mark": mark,
        "request_html": markdown(_asked(about.request or "")),
        "copies": _copies(run, about.shown, {} if of_before else values),
        "cut": max(0, len(about.shown) - MOST_SHOWN),
        "once": new_mark(),
        "text": "",
        "diffs": None,
        "error": None,
        "served": lock_holder(site.root.machine_room) is not None,
        "here": f"/runs/{run.run_id}/gates/{quote(name)}",
    }
    return page(request, "gate.html", status=status, **{**context, **more})


def _unsent(run: Run, values: dict[str, str], opening: str) -> dict[str, str]:
    """What somebody edited that no form holds any more.

    Args:
        opening: Of an earlier question, whose copies were put away; "" of the one that is asked now.
    """
    found = {}
    for path, text in values.items():
        before = path.replace("/show/", f"/answers/{opening}/show/", 1) if opening else path
        with suppress(PopError):
            if not _edits(run, {before: text}):
                continue
        found[path.partition("/show/")[2]] = text
    return found


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
    opening = fields.one("opening")
    try:
        if fields.one("do") == "preview":
            asked_still(opened(run.path / "tasks" / open_gate_of(run, gate)), gate, _opening(fields))
            return _page(request, run, gate, **again, diffs=_previewed(run, gate, values))
        return done_once(request, fields, partial(_answer, request.app.state.site, run, gate, fields, values))
    except PopError as error:
        return _page(request, run, gate, **again, opening=opening, error=error, status=status_of(error))


def _opening(fields: Fields) -> int:
    """Which question the form was made for.

    Raises:
        UsageError: It does not say.
    """
    said = fields.one("opening")
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        hint = "reload the page, then send it again"
        raise UsageError("this form does not say which question it answers", where="opening", hint=hint)
    return int(said)


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
    instance, opening = open_gate_of(run, gate), _opening(fields)
    asked_still(opened(run.path / "tasks" / instance), instance, opening)
    edits = _edits(run, values) if decision != "reject" else {}
    text = fields.one("text").strip() or None
    data = {path: changed.encode() for path, changed in edits.items()}
    file, by = answer_gate(run, instance, decision, text=text, how="dashboard", edits=data, opening=opening)
    what = {"approve": "Approved", "reject": "Rejected", "request-changes": "Changes are requested"}[decision]
    edited = f"; {len(edits)} edited cop{'y' if len(edits) == 1 else 'ies'} with it" if edits else ""
    links = (("To the run", f"/runs/{run.run_id}"), ("What else waits", "/gates"))
    return Done(f"{what}: {instance}", relative(site.root, file), f"By {by}{edited}.", links)
