"""What a hostile seed, model or file can do on a page: nothing."""

from __future__ import annotations

import json
import time
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop.safehtml import difference, image_type, json_tree, kind_of, markdown, plain, preview, text

ALLOWED = {
    "a", "blockquote", "br", "code", "del", "details", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p",
    "pre", "s", "span", "strong", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip


class Seen(HTMLParser):
    """Tags and attributes as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def harmless(html: str) -> Seen:
    """Only known tags; no handler, no style, no address but of the web and of mail."""
    seen = Seen(html)
    for tag, attributes in seen.tags:
        assert tag in ALLOWED, tag
        assert set(attributes) <= {"class", "href", "rel", "title", "start", "open"}, attributes
        assert str(attributes.get("href") or "https:").startswith(("https:", "http:", "mailto:"))
    return seen


HOSTILE = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "[x](JaVa\tScRiPt:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:x)",
    "[x](/runs/x/cancel)",
    "[x](//evil.example/)",
    "<javascript:alert(1)>",
    "![x](https://evil.example/pixel.png)",
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    '<img src=x onerror="alert(1)">',
    '<a href="javascript:alert(1)" onclick=x>y</a>',
    "<style>*{display:none}</style>",
    "<iframe src='https://evil.example'></iframe>",
    '</pre></div><form action="https://evil.example"><button>',
    "[a]: javascript:alert(1)\n[a]",
    '```"><script>\nalert(1)\n```',
    "|a|\n|-|\n|<script>|",
    "<!--><script>alert(1)</script>-->",
    "\x1b]8;;https://evil.example\x07click\x1b]8;;\x07 \x1b[31mred\x1b[0m",
    "abc\u202edcba\u2066x",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_markdown_of_a_model_is_harmless(words: str) -> None:
    """And so is the same as a text, in a tree, and in a difference."""
    for html in (markdown(words), text(words), json_tree({words: [words]}), difference(words, words, words + "\nx")):
        seen = harmless(html)
        assert "\x1b" not in seen.words and "\u202e" not in seen.words and "\u2066" not in seen.words


@given(st.text())
def test_any_text_is_harmless(words: str) -> None:
    """Whatever hypothesis finds."""
    for html in (markdown(words), text(words), json_tree([words, {words: words}]), difference("x", words, words[::-1])):
        harmless(html)


def test_markdown_is_still_markdown() -> None:
    """Headings, tables, lists, code, and links to the web."""
    html = markdown("# A\n\n- b\n\n|c|\n|-|\n|d|\n\n`e` **f** ~~g~~ [h](https://example.org 'i')")
    tags = {tag for tag, _ in harmless(html).tags}
    assert {"h1", "li", "td", "code", "strong", "s", "a"} <= tags
    assert 'rel="noopener noreferrer nofollow"' in html


def test_an_image_is_told_and_not_fetched() -> None:
    """Its description and where it would have come from."""
    seen = harmless(markdown("![a chart](https://example.org/x.png)"))
    assert "[image: a chart – https://example.org/x.png]" in seen.words


@pytest.mark.parametrize(
    "words", ["[" * 60_000, "> " * 50_000, "*a " * 40_000, "`" * 99_999, "- " * 50_000, "![" * 40_000, "<" * 99_999,
              "a\n" * 500_000, "[x](" * 30_000, "|a" * 40_000 + "\n" + "|-" * 40_000]
)  # fmt: skip
def test_huge_and_twisted_documents_take_no_more_than_seconds(words: str) -> None:
    """And say what they left out."""
    began = time.process_time()
    html = markdown(words)
    assert time.process_time() - began < 5
    assert len(words) <= 60_000 or "more characters" in html


def test_a_tree_opens_its_first_levels_and_says_what_it_leaves_out() -> None:
    """A million values are two thousand and a note; deep ones end in a line of text."""
    html = json_tree({"a": {"b": {"c": 1}}, "n": None, "t": True, "s": "x"})
    assert html.count("<details open>") == 2 and html.count("<details>") == 1
    assert '<span class="null">null</span>' in html and '<span class="num">1</span>' in html
    wide = json_tree(list(range(100_000)))
    assert len(wide) < 200_000 and "98,001 more values" in wide
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    assert len(harmless(json_tree(deep)).tags) < 200
    assert "more characters" in json_tree("x" * 10_000)


def test_what_is_shown_is_plain() -> None:
    """Colours of terminals go, controls are seen, tabs and lines stay."""
    assert plain("\x1b[1;31mred\x1b[0m\tx\ny\x07\u200f\ufeff") == "red\tx\ny\ufffd\ufffd\ufffd"


def test_differences_are_marked_and_limited() -> None:
    """Two megabytes are not compared."""
    html = difference("plan", "a\nb\nc", "a\nB\nc")
    assert '<span class="del">-b\n</span>' in html and '<span class="ins">+B\n</span>' in html
    assert "the same" in difference("plan", "a", "a")
    assert "too much to compare" in difference("plan", "a" * 2**20, "b")


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [("a.png", b"\x89PNG\r\n\x1a\n...", "image"), ("a.txt", b"\xff\xd8\xff\xe0", "image"), ("x.png", b"hello", "text"),
     ("a.svg", b"<svg onload='x'>", "text"), ("a.json", b"{}", "json"), ("a.MD", b"# a", "markdown"),
     ("a.bin", b"\x00\x01", "binary"), ("a.txt", b"\xff\xfe", "binary"), ("a.html", b"<html>", "text"),
     ("a.txt", "ä".encode() * 4096, "text"), ("w", b"RIFF....WEBPVP8 ", "image"), ("a.diff", b"+a", "diff")],
)  # fmt: skip
def test_files_are_what_their_bytes_say(name: str, data: bytes, kind: str) -> None:
    """A name alone makes no picture; SVG and HTML are text."""
    assert kind_of(name, data) == kind
    harmless(preview(name, data))
    assert (image_type(data) is not None) == (kind == "image")


def test_previews_say_when_only_the_beginning_is_shown() -> None:
    """A JSON file that was cut is a text."""
    assert "900 more bytes" in preview("a.json", json.dumps(["x" * 98]).encode()[:100], 1000)
    assert 'class="markdown"' in preview("output.json", b'"# a text"')
    assert 'class="tree"' in preview("output.json", b'{"a": 1}')
