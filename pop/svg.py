"""What the pictures share: escaped text of a known width, colours, and the document around them.

Colours stand twice: as attributes, which every viewer knows, and in ``web/static/pictures.css``, which knows light,
dark and print. No picture holds a script or an inline style, so that it can stand in a page with a strict policy.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from unicodedata import combining, east_asian_width

from pop.errors import safe

STYLE = Path(__file__).parent / "web" / "static" / "pictures.css"
EM = 0.602  # the width of a character of the pictures' font, by its size
MARKS = {  # as the dashboard has them
    "done": "✓", "running": "▸", "waiting": "◆", "failed": "✕", "skipped": "↷", "stale": "↻", "cancelled": "⊘",
    "pending": "○",
}  # fmt: skip
PAINT = {  # fill and stroke by state, and by kind of time
    "done": ("#e3f4e6", "#2a743d"),
    "running": ("#e0ecfb", "#2b63a8"),
    "waiting": ("#fdf0c8", "#8a6700"),
    "failed": ("#fde2e1", "#b02a2a"),
    "skipped": ("#f2f3f5", "#666d76"),
    "stale": ("#f2f3f5", "#8a6700"),
    "cancelled": ("#f2f3f5", "#b02a2a"),
    "pending": ("#ffffff", "#666d76"),
}
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff\u061c\ufeff]")


def escaped(text: object, most: int = 500) -> str:
    """Text for an element or a quoted attribute, on one line, whatever it holds."""
    shown = _NOT_XML.sub("\ufffd", safe(text, most, one_line=True))
    return (
        shown.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&quot;")
        .replace("'", "&#39;")
    )


def width_of(text: str, size: float) -> float:
    """Pixels, in the pictures' font."""
    wide = sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)
    return wide * EM * size


def clipped(text: str, width: float, size: float) -> str:
    """As much of a text as fits, with a mark where something is left out."""
    text = " ".join(text.split())
    if width_of(text, size) <= width:
        return text
    kept, room = "", width - EM * size
    for one in text[: int(width) + 1]:
        room -= width_of(one, size)
        if room < 0:
            break
        kept += one
    return f"{kept}…"


def number(value: float) -> str:
    """A coordinate, as short as it goes."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))


@cache
def style() -> str:
    """pictures.css, for a picture or a report that stands alone."""
    return STYLE.read_text(encoding="utf-8")


def document(body: str, width: float, height: float, *, kind: str, label: str, alone: bool) -> str:
    """An ``<svg>`` around a picture.

    Args:
        kind: Its class beside ``picture``.
        label: What it shows, for those who do not see it.
        alone: With the style inside, as a file of its own.
    """
    w, h, name = number(width), number(height), escaped(label)
    head = '<?xml version="1.0" encoding="UTF-8"?>\n' if alone else ""
    inner = f"<style>{style()}</style>" if alone else ""
    return (
        f'{head}<svg xmlns="http://www.w3.org/2000/svg" class="picture {kind}" role="group" aria-label="{name}" '
        f'viewBox="0 0 {w} {h}" width="{w}" height="{h}" font-family="ui-monospace, Menlo, Consolas, '
        f"'DejaVu Sans Mono', monospace\"><title>{name}</title>{inner}{body}</svg>\n"
    )
