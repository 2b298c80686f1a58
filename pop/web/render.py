"""Templates, and how numbers and times read on a page."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pop.display import dollars
from pop.durations import in_words
from pop.events import unix_s
from pop.web.keys import csrf_of

HERE = Path(__file__).parent
MARKS = {
    "pending": "·", "queued": "·", "running": "▶", "waiting": "◆", "paused": "‖", "failed": "✗", "cancelled": "⊘",
    "complete": "✓", "done": "✓", "skipped": "↷", "stale": "↻", "unreadable": "?", "rejected": "✗", "removed": "∅",
}  # fmt: skip


def page(request: Request, name: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A whole page from a template; `site` and `csrf` are there by themselves."""
    return HTMLResponse(rendered(name, **about(request), **context), status)


def about(request: Request) -> dict[str, Any]:
    """What every template may use of a request."""
    return {
        "site": request.app.state.site,
        "path": request.url.path,
        "csrf": csrf_of(request.scope.get("pop.cookie", "")),
    }


def rendered(name: str, **context: Any) -> str:
    """A template as text, escaped; what is no UTF-8 (half of a surrogate pair, a name of other bytes) is shown as `?`."""
    return templates().get_template(name).render(**context).encode("utf-8", "replace").decode()


@cache
def templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"clock": clock, "seconds": seconds, "money": money, "paid": paid, "count": count, "short": short}
    made.globals |= {"static": static, "csrf_field": csrf_field, "marks": MARKS}
    return made


@cache
def static(name: str) -> str:
    """The address of a file in static/, which changes with its content."""
    digest = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


def csrf_field(csrf: str) -> Markup:
    """The hidden field that must be the first one of every form."""
    return Markup('<input type="hidden" name="csrf" value="{}">').format(csrf)


def clock(at: str | None) -> Markup:
    """An RFC 3339 time as ``<time>``: today 14:03:21, else 20 Nov 14:03. The browser makes it local."""
    if not at:
        return Markup('<span class="faint">–</span>')
    try:
        when = datetime.fromtimestamp(unix_s(at), UTC)
    except (ValueError, OverflowError):
        return Markup("<span>{}</span>").format(short(at, 24))
    today = when.date() == datetime.now(UTC).date()
    text = when.strftime("%H:%M:%S" if today else "%d %b %H:%M")
    return Markup('<time datetime="{}">{}</time>').format(at, text)


def seconds(value: float | None) -> str:
    """How long something took, in words."""
    return "–" if value is None else in_words(value)


def money(value: float | None) -> str:
    """$0.0123, $0.00001, $1,234.50; nothing spent is $0."""
    if not value:
        return "$0"
    return f"${value:,.2f}" if value >= 1 else dollars(value)


def paid(row: Any) -> str:
    """What a run cost, as far as somebody knows: ``$0.01``, ``$0.01+?``, ``unpriced``."""
    if row.unpriced_calls and row.unpriced_calls >= row.calls:
        return "unpriced"
    return money(row.cost_usd) + "+?" * bool(row.unpriced_calls)


def count(value: float | None) -> str:
    """12,345 with a thin space, so that figures stay together."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def short(text: object, most: int = 80) -> str:
    """One line of at most so many characters."""
    line = " ".join(str(text if text is not None else "").split())
    return line if len(line) <= most else line[: most - 1] + "…"
