"""The board in a real browser: what comes first moves nothing, and what was chosen stays chosen while it lives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from pop.settings import Root
from tests.browsing import WITHOUT, chromium, somebody, started_browser
from tests.webbing import Server, make_root, put_status, web_server

pytestmark = pytest.mark.skipif(chromium() is None, reason=WITHOUT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path / "harbour")


@pytest.fixture
def server(root: Root) -> Iterator[Server]:
    with web_server(root) as server:
        yield server


def places(page: Page) -> dict[str, tuple[float, float]]:
    """Where the parts of the board begin, and how tall they are."""
    return {
        name: (box["y"], box["height"])
        for name in ("runs", "part-waiting", "part-failed", "part-pending")
        if (box := page.locator(f"#{name}").bounding_box())
    }


@pytest.mark.parametrize("width", [1280, 360])
def test_the_first_of_each_moves_nothing(browser: Browser, server: Server, root: Root, width: int) -> None:
    """Where nothing is, little room is kept: enough for the first seed, the first run, the first that waits or failed."""
    with somebody(browser, server, viewport={"width": width, "height": 800}) as person:
        page = person.goes("/")
        before = places(page)
        assert all(height < 100 for name, (_, height) in before.items() if name != "runs"), before
        (root.pending / "first.json").write_text("{}")
        expect(page.locator("#part-pending")).to_contain_text("first.json")
        put_status(root, 1)
        expect(page.locator("#part-newest")).to_contain_text("brief 1")
        put_status(root, 2, "waiting", waiting_for="sign-off")
        expect(page.locator("#part-waiting")).to_contain_text("sign-off")
        put_status(root, 3, "failed", error={"error_class": "bug", "message": "KeyError"})
        expect(page.locator("#part-failed")).to_contain_text("KeyError")
        assert places(page) == before
        assert person.watched()["shift"] < 0.02 and person.sideways() <= 0, person.watched()
        for number in (4, 5, 6):
            put_status(root, number, "failed", error={"error_class": "bug", "message": "KeyError"})
        expect(page.locator("#part-failed")).to_contain_text("brief 6")
        tall = places(page)["part-failed"]
        assert tall[1] > 200 and places(page)["part-waiting"] == before["part-waiting"]
        for number in (4, 5, 6):
            put_status(root, number)
        expect(page.locator("#part-newest")).to_contain_text("brief 6")
        assert places(page)["part-failed"][1] == tall[1], "it does not shrink under somebody's pointer"
