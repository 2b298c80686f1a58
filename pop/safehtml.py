"""What seeds, models and files hold, as HTML that is safe to show: escaped, sanitized, limited in size.

| what           | becomes                                                                                  |
|----------------|------------------------------------------------------------------------------------------|
| any text       | escaped; terminal colours are dropped, controls that steer or reorder are shown as U+FFFD |
| Markdown       | markdown-it without raw HTML, then nh3 with a list of tags; links to http, https, mailto; no images |
| JSON           | a tree of ``<details>``, up to `MAX_NODES` values                                         |
| a difference   | lines of a unified diff, up to `MAX_DIFF_CHARS`                                           |
| bytes          | PNG, JPEG, GIF and WebP by their first bytes; everything else is text or `binary`          |

What was left out is always said. Nothing here reads a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup, escape

from pop.errors import safe
from pop.gateshow import diff as unified
from pop.records import BadJson, read_json

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

MAX_TEXT = 200_000  # characters of one text
MAX_MARKDOWN = 60_000
MAX_NODES = 2_000  # values of one JSON tree
MAX_LEAF = 4_000  # characters of one string in it
MAX_DEPTH = 30  # levels of it; deeper ones are one line of text
OPEN_DEPTH = 2  # levels that are open at first
MAX_DIFF_CHARS = 60_000
MAX_DIFF_BYTES = 2**20
LOOKED_AT = 8192  # bytes that tell what a file is

Kind = Literal["image", "json", "markdown", "text", "diff", "binary"]

_ANSI = re.compile(r"\x1b(?:\[[0-?]{0,50}[ -/]{0,10}[@-~]|\][^\x07\x1b]{0,500}(?:\x07|\x1b\\)|[@-Z\\-_])")
_ALSO = re.compile("[\u061c\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")  # beyond what `errors.safe` knows


def plain(text: object, most: int = MAX_TEXT) -> str:
    """Text as a person may read it: no escape sequence, nothing that reorders or hides; not escaped for HTML yet."""
    return _ALSO.sub("\ufffd", safe(_ANSI.sub("", str(text)[: 2 * most + 100]), most))


def text(value: object, most: int = MAX_TEXT) -> Markup:
    """A text in a ``<pre>``, with a word about what is missing."""
    whole = str(value)
    return Markup('<pre class="text">{}</pre>{}').format(plain(whole, most), left_out(len(whole) - most, "characters"))


def left_out(count: int, what: str) -> Markup:
    """``(1,234 more characters)``, or nothing."""
    return Markup('<p class="faint small">{:,} more {}</p>').format(count, what) if count > 0 else Markup("")


# -- Markdown ------------------------------------------------------------------------------------------------------

_TAGS = {
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s",
    "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip


def markdown(value: object, most: int = MAX_MARKDOWN) -> Markup:
    """Markdown as HTML. Raw HTML in it is shown as text, an image as its description and address."""
    import nh3

    whole = str(value)
    shown = plain(whole, most)
    try:
        rendered = _renderer().render(shown)
    except RecursionError:
        return text(whole, most)
    clean = nh3.clean(
        rendered,
        tags=_TAGS,
        attributes={"a": {"href", "title"}, "ol": {"start"}, "span": {"class"}},
        allowed_classes=None,
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
    )
    return Markup('<div class="markdown">{}</div>{}').format(Markup(clean), left_out(len(whole) - most, "characters"))


@cache
def _renderer() -> MarkdownIt:
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])
    made.add_render_rule("image", _image)
    return made


def _image(_renderer: Any, tokens: Any, index: int, _options: Any, _env: Any) -> str:
    """A picture from elsewhere would tell somebody that it was looked at; one in `data:` could be anything."""
    token = tokens[index]
    return str(
        Markup('<span class="image">[image: {} – {}]</span>').format(token.content, str(token.attrs.get("src"))[:200])
    )


# -- JSON ----------------------------------------------------------------------------------------------------------


def json_tree(value: Any, most: int = MAX_NODES, leaf: int = MAX_LEAF) -> Markup:
    """A JSON value as a tree; parts beyond `most` values are left out, and it says how many.

    Args:
        leaf: Characters of one string in it.
    """
    pieces, left = list[str](), [most, leaf]
    _node(pieces, value, None, 0, left)
    note = left_out(-left[0], "values") if left[0] < 0 else ""
    return Markup('<div class="tree">{}</div>{}').format(Markup("".join(pieces)), note)


def _node(pieces: list[str], value: Any, key: str | None, depth: int, left: list[int]) -> None:
    left[0] -= 1
    if left[0] < 0:
        left[0] -= _size(value) - 1
        return
    label = f'<span class="key">{escape(plain(key, 200))}</span>: ' if key is not None else ""
    if not isinstance(value, (dict, list)) or not value or depth >= MAX_DEPTH:
        pieces.append(f'<div class="leaf">{label}{_leaf(value, left[1])}</div>')
        return
    count, (a, b) = len(value), "{}" if isinstance(value, dict) else "[]"
    what = "keys" if isinstance(value, dict) else "items"
    glance = escape(plain(_glance(value), 80))
    state = " open" if depth < OPEN_DEPTH and count <= 50 else ""
    pieces.append(
        f'<details{state}><summary>{label}<span class="faint">{a}{count:,} {what if count != 1 else what[:-1]}{b}</span> '
        f'<span class="faint glance">{glance}</span></summary><div class="in">'
    )
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in pairs:
        _node(pieces, part, str(name), depth + 1, left)
    pieces.append("</div></details>")


def _size(value: Any) -> int:
    """How many values there are in one, itself included; a guess beyond a thousand."""
    seen, count = [value], 0
    while seen and count < 1000:
        one = seen.pop()
        count += 1
        if isinstance(one, (dict, list)):
            seen.extend(one.values() if isinstance(one, dict) else one)
    return count + len(seen)


def _glance(value: Any) -> str:
    """What a closed part holds, in a few words."""
    if isinstance(value, dict):
        return ", ".join(str(key)[:40] for key in list(value)[:6])
    first = value[0]
    return "" if isinstance(first, (dict, list)) else json.dumps(first, ensure_ascii=False)[:80]


def _leaf(value: Any, most: int) -> str:
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1e18):
        kind = "null" if value is None else "bool" if isinstance(value, bool) else "num"
        return f'<span class="{kind}">{json.dumps(value)}</span>'
    if isinstance(value, str):
        return Markup('<span class="str">{}</span>{}').format(
            plain(value, most), left_out(len(value) - most, "characters")
        )
    if isinstance(value, (dict, list)):
        words = json.dumps(value, ensure_ascii=False)
        return Markup('<span class="faint">{}</span>{}').format(
            plain(words, 500), left_out(len(words) - 500, "characters")
        )
    return Markup('<span class="num">{}</span>').format(plain(value, 400))


# -- differences ---------------------------------------------------------------------------------------------------

_CLASSES = {"+": "ins", "-": "del", "@": "at"}


def difference(name: str, before: object, after: object) -> Markup:
    """What changed from one text to another, or that nothing did."""
    old, new = str(before), str(after)
    if old == new:
        return Markup('<p class="faint small">{}: the same</p>').format(plain(name, 200))
    if len(old) + len(new) > MAX_DIFF_BYTES:
        words = f"{len(old):,} characters before, {len(new):,} after: too much to compare here"
        return Markup('<p class="faint small">{}: {}</p>').format(plain(name, 200), words)
    return diff_text(unified(name, old.encode("utf-8", "replace"), new.encode("utf-8", "replace")))


def diff_text(value: str) -> Markup:
    """A unified diff, line by line, with a class for what was added and taken away."""
    lines = plain(value, MAX_DIFF_CHARS).rstrip("\n").split("\n")
    shown = Markup("").join(_diff_line(line) for line in lines)
    return Markup('<pre class="text diff">{}</pre>{}').format(
        shown, left_out(len(value) - MAX_DIFF_CHARS, "characters")
    )


def _diff_line(line: str) -> Markup:
    kind = "faint" if line.startswith(("+++", "---")) else _CLASSES.get(line[:1], "")
    return Markup('<span class="{}">{}\n</span>').format(kind, line)


# -- files ---------------------------------------------------------------------------------------------------------

IMAGES: Mapping[bytes, str] = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


def image_type(data: bytes) -> str | None:
    """The media type of a picture that browsers may show, by its first bytes. SVG is none: it may hold scripts."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in IMAGES.items() if data.startswith(magic)), None)


def kind_of(name: str, data: bytes) -> Kind:
    """How a file is best shown, by its name and its first bytes."""
    if image_type(data):
        return "image"
    if b"\x00" in data[:LOOKED_AT] or not _is_text(data[:LOOKED_AT]):
        return "binary"
    suffix = name.lower().rpartition(".")[2]
    by_suffix: dict[str, Kind] = {
        "json": "json",
        "md": "markdown",
        "markdown": "markdown",
        "diff": "diff",
        "patch": "diff",
    }
    return by_suffix.get(suffix, "text")


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return len(data) == LOOKED_AT and error.start >= len(data) - 3  # a character that was cut
    return True


def preview(name: str, data: bytes, size: int | None = None, most: int = MAX_TEXT) -> Markup:
    """A file as HTML, by its kind; pictures are not among them, since they need an address.

    Args:
        data: Its bytes, or the beginning of them.
        size: Of the whole file, when `data` is only its beginning.
    """
    kind, missing = kind_of(name, data), (size or len(data)) - len(data)
    note = left_out(missing, "bytes")
    if kind in ("binary", "image"):
        return Markup('<p class="faint">{:,} bytes, no text</p>').format(size or len(data))
    words = data.decode("utf-8", "replace")
    if kind == "json" and not missing:
        try:
            value = read_json(data)
        except BadJson:
            return text(words, most)
        if not isinstance(value, str):
            return json_tree(value, max(20, min(MAX_NODES, most // 60)), min(MAX_LEAF, most))
        words, kind = value, "markdown"
    shown = {"markdown": lambda: markdown(words, min(most, MAX_MARKDOWN)), "diff": lambda: diff_text(words[:most])}
    return shown.get(kind, lambda: text(words, most))() + note
