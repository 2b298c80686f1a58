"""A person with a browser: pages of the dashboard in the system's Chromium, and what a browser knows about them.

Whatever a page does that it must not (a script that is refused, an error on the console, a dialog, a request to another
origin) is remembered and fails the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Locator,
    Page,
    Request,
    sync_playwright,
)

from pop.web.keys import Keys
from tests.webbing import Server

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT = 1280, 860
PHONE = {"width": 360, "height": 740}

# What the page itself sees: how far things jumped, what its policy refused, how long an input waited for the next frame.
WATCH = """
window.watched = {shift: 0, shifts: [], refused: [], inputs: [], longest: 0};
const watch = (type, each, more) => {
  try { new PerformanceObserver((list) => list.getEntries().forEach(each)).observe({type, buffered: true, ...more}); } catch {}
};
watch("layout-shift", (entry) => {
  if (entry.hadRecentInput) return;
  watched.shift += entry.value;
  for (const source of entry.sources || []) {
    const node = source.node && (source.node.id || source.node.className || source.node.nodeName);
    watched.shifts.push([entry.value, String(node), source.previousRect.y, source.currentRect.y]);
  }
});
watch("event", (entry) => { if (entry.name === "keydown") watched.inputs.push(entry.duration); }, {durationThreshold: 16});
watch("longtask", (entry) => { watched.longest = Math.max(watched.longest, entry.duration); });
addEventListener("securitypolicyviolation", (event) => watched.refused.push(event.violatedDirective + " " + event.blockedURI), true);
"""

# Every text that can be seen, the colour it has, and the colours it stands on; those of one kind once.
COLOURS = """() => {
  const parse = (text) => {
    const found = text.match(/^rgba?\\(([^)]+)\\)$/);
    if (!found) return null;
    const [r, g, b, a] = found[1].split(/[ ,/]+/).filter(Boolean).map(Number);
    return [r, g, b, a === undefined ? 1 : a];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const canvas = parse(getComputedStyle(document.body).backgroundColor);
  const root = canvas && canvas[3] ? canvas : [255, 255, 255, 1];
  const ground = (node) => {
    const layers = [];
    for (let at = node; at && at.nodeType === 1; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour && colour[3]) { layers.unshift(colour); if (colour[3] === 1) break; }
    }
    return layers.reduce((below, top) => over(top, below), root);
  };
  const painted = (node) => {  // below a text in a picture: the shape that was drawn under its middle
    const box = node.getBoundingClientRect();
    for (const at of document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2)) {
      if (!at.closest("svg")) break;
      if (at.closest("text") || at.tagName === "a" || at.tagName === "g" || at.tagName === "svg") continue;
      const colour = parse(getComputedStyle(at).fill);
      if (colour && colour[3] && getComputedStyle(at).fillOpacity > 0 && at.tagName !== "line") return over(colour, ground(node.closest("svg").parentElement));
    }
    return ground(node.closest("svg").parentElement);
  };
  const found = new Map();
  const note = (node, colour, below, style, words) => {
    if (!colour) { found.set("unread " + style.color, {problem: style.color, words}); return; }
    const shown = over(colour, below);
    const key = [shown, below, style.fontSize, style.fontWeight].join();
    if (!found.has(key)) {
      const where = node.tagName.toLowerCase() + (node.id ? "#" + node.id : "") + "." + String(node.getAttribute("class") || "").trim().replace(/ +/g, ".");
      found.set(key, {text: shown.slice(0, 3), ground: below.slice(0, 3), px: parseFloat(style.fontSize), weight: Number(style.fontWeight), words: words.trim().slice(0, 40), where});
    }
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const words = walk.currentNode.data, node = walk.currentNode.parentElement;
    if (!words.trim() || !node.checkVisibility({opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true})) continue;
    const box = node.getBoundingClientRect();
    if (box.width < 2 || box.height < 2 || node.closest("title, option, script, style") || node.matches(".hidden, .hidden *")) continue;
    const style = getComputedStyle(node), picture = node.closest("svg");
    if (node.closest("[disabled]")) continue;  // what is switched off need not be read
    if (picture) note(node, parse(style.fill), painted(node), style, words);
    else note(node, parse(style.color), ground(node), style, words);
  }
  for (const node of document.querySelectorAll("input, textarea, select, .state, summary")) {
    if (!node.checkVisibility()) continue;
    for (const part of ["", "::placeholder", "::before"]) {
      const style = getComputedStyle(node, part);
      if (part === "::placeholder" && !node.placeholder || part === "::before" && (!style.content || style.content === "none")) continue;
      const colour = parse(style.color);
      if (colour) colour[3] *= Number(style.opacity);
      note(node, colour, ground(node), style, part || node.value || "value");
    }
  }
  return [...found.values()];
}"""

# How the focus shows on the element that has it: an outline, or a stroke of its own in a picture.
FOCUS = """() => {
  const node = document.activeElement;
  if (!node || node === document.body) return null;
  const ring = (at) => { const s = getComputedStyle(at); return s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 1; };
  const box = node.getBoundingClientRect();
  const drawn = node.closest("svg") ? [...node.querySelectorAll("*")].some((at) => parseFloat(getComputedStyle(at).strokeWidth) >= 2.5) : false;
  return {name: node.tagName + " " + (node.id || node.textContent.trim().slice(0, 30)), shows: ring(node) || drawn,
          inside: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth};
}"""


@cache
def chromium() -> str | None:
    """The system's Chromium, or what POP_CHROMIUM names; a stub that only tells how to install one is none."""
    named = os.environ.get("POP_CHROMIUM")
    for path in [named] if named else filter(None, map(shutil.which, NAMES)):
        with suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0:
                return path
    return None


WITHOUT = "there is no Chromium: apt-get install chromium, or name one in POP_CHROMIUM"


@contextmanager
def started_browser() -> Iterator[Browser]:
    """One Chromium; its profile is empty and goes with it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Person:
    """Somebody before a screen."""

    context: BrowserContext
    page: Page
    home: str
    faults: list[str] = field(default_factory=list)
    forgiven: tuple[str, ...] = ()

    def goes(self, path: str) -> Page:
        """To a page of the dashboard, by its address."""
        self.page.goto(self.home + path, wait_until="load")
        return self.page

    def stays(self) -> None:
        """From here on the page is not loaded anew."""
        self.page.evaluate("() => { window.stayed = true; }")

    def stayed(self) -> bool:
        return bool(self.page.evaluate("() => window.stayed === true"))

    def watched(self) -> Any:
        return self.page.evaluate("() => window.watched")

    def tabs_to(self, target: Locator, most: int = 120) -> None:
        """Tab until it has the focus, which shows wherever it is on the way."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            seen = self.page.evaluate(FOCUS)
            assert seen is None or (seen["shows"] and seen["inside"]), f"the focus does not show: {seen}"
            if target.evaluate("node => node === document.activeElement"):
                return
        raise AssertionError(f"{target} cannot be reached with Tab")

    def enters(self) -> None:
        """Enter, which leads to another page."""
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")

    def unread(self, colours: list[dict[str, Any]] | None = None) -> list[str]:
        """Texts whose contrast is below WCAG AA."""
        found = self.page.evaluate(COLOURS) if colours is None else colours
        return [told for one in found if (told := too_faint(one))]

    def sideways(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("() => document.scrollingElement.scrollWidth - innerWidth"))

    def note_faults(self) -> None:
        """Remember whatever a page of this context does that it must not."""

        def note(text: str) -> None:
            if not any(one in text for one in self.forgiven):
                self.faults.append(text)

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                note(f"console: {message.text} {message.location['url']}")

        def asked(dialog: Dialog) -> None:
            note(f"dialog: {dialog.message}")
            dialog.dismiss()

        def sent(request: Request) -> None:
            if self._foreign(request.url):
                note(f"request: {request.url}")

        def watch(page: Page) -> None:
            page.on("console", said)
            page.on("pageerror", lambda error: note(f"error: {error}"))
            page.on("dialog", asked)

        self.context.on("page", watch)
        self.context.on("request", sent)

    def _foreign(self, url: str) -> bool:
        return urlsplit(url).scheme not in ("data", "blob", "about") and not url.startswith(
            f"{self.home}/" if self.home else "file://"
        )


def too_faint(pair: dict[str, Any]) -> str | None:
    """A text that is harder to read than WCAG AA allows: 4.5 to 1, or 3 to 1 for large ones."""
    if "problem" in pair:
        return f"cannot tell the colour {pair['problem']} of {pair['words']!r}"
    light, dark = sorted((luminance(pair["text"]), luminance(pair["ground"])), reverse=True)
    ratio = (light + 0.05) / (dark + 0.05)
    large = pair["px"] >= 24 or (pair["px"] >= 18.66 and pair["weight"] >= 700)
    return (
        None
        if ratio >= (3 if large else 4.5)
        else f"{ratio:.2f} to 1: {pair['words']!r} {pair['where']} {pair['text']} on {pair['ground']}"
    )


def luminance(colour: list[float]) -> float:
    """WCAG 2.2, relative luminance of an sRGB colour."""
    parts = [one / 255 for one in colour]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@contextmanager
def somebody(browser: Browser, server: Server | None = None, **about: Any) -> Iterator[Person]:
    """A person with a browser of their own, who came by a link; their pages did nothing wrong."""
    about = {"viewport": {"width": WIDTH, "height": HEIGHT}, "locale": "en-GB", "reduced_motion": "reduce", **about}
    context = browser.new_context(**about)
    context.set_default_timeout(30_000)
    context.add_init_script(WATCH)
    person = Person(context, None, server.url if server else "")  # type: ignore[arg-type]
    person.note_faults()
    person.page = context.new_page()
    try:
        if server:
            person.goes(f"/?token={Keys(server.root.machine_room).mint()}")
            person.page.wait_for_url(f"{server.url}/")
        yield person
        for page in context.pages:
            if page.url.startswith("http") and not page.is_closed():
                person.faults += page.evaluate(
                    "() => window.watched ? [...watched.refused, ...(window.pwned ? ['pwned'] : [])] : []"
                )
        assert not person.faults, person.faults
    finally:
        context.close()


def shoot(page: Page, folder: Path, name: str, **about: Any) -> Path:
    """A picture for the documents."""
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", animations="disabled", caret="hide", **about)
    return folder / f"{name}.png"
