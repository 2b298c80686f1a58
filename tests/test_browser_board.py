"""The board in a real browser: what comes first moves nothing, and what was chosen stays chosen while it lives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from pop.settings import Root
from tests.browsing import WITHOUT, chromium, somebody, started_browser
from tests.webbing import Server, make_root, put_status, run_id, web_server

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


def test_runs_are_chosen_while_the_list_lives_and_ordered_together(
    browser: Browser, server: Server, root: Root
) -> None:
    """With the keyboard alone; what was ticked stays so while rows change, come and move."""
    for number in (1, 2, 3):
        put_status(root, number)
    with somebody(browser, server) as person:
        page = person.goes("/?state=active")
        person.stays()
        boxes = page.locator("#runs input[type=checkbox]")
        expect(boxes).to_have_count(3)
        for number in (1, 3):
            person.tabs_to(page.locator(f"#c-{run_id(number)}"))
            page.keyboard.press("Space")
            page.locator("#q").focus()
        put_status(root, 4)
        put_status(root, 1, current=["another"], progress=0.75)
        put_status(root, 3, "paused")
        expect(page.locator(f"#r-{run_id(1)}")).to_contain_text("another")
        expect(page.locator(f"#r-{run_id(3)}")).to_contain_text("paused")
        expect(boxes).to_have_count(4)
        assert [box.is_checked() for box in (page.locator(f"#c-{run_id(n)}") for n in (4, 3, 2, 1))] == [
            False,
            True,
            False,
            True,
        ]
        assert person.stayed() and not person.unread() and person.sideways() <= 0
        person.tabs_to(page.get_by_role("button", name="Orders to the chosen runs"))
        person.enters()
        expect(page.get_by_role("heading", level=1)).to_have_text("Orders to 2 runs")
        assert not person.unread() and person.sideways() <= 0
        person.tabs_to(page.get_by_role("button", name="Pause 1 of 2"))
        person.enters()
        expect(page.get_by_role("heading", level=1)).to_have_text("Pause: 1 order given, 1 run left as it is")
        expect(page.locator(".rows .file")).to_have_text(f"pipeline-current/{run_id(1)}/orders/pause.json")
        expect(page.locator(".rows")).to_contain_text(f"{run_id(3)} is paused already")
        assert not person.unread() and person.sideways() <= 0


def test_runs_are_ordered_together_without_a_script_on_a_phone(browser: Browser, server: Server, root: Root) -> None:
    """The boxes belong to a form."""
    for number in (1, 2):
        put_status(root, number)
    about = {"java_script_enabled": False, "viewport": {"width": 360, "height": 700}, "color_scheme": "dark"}
    with somebody(browser, server, **about) as person:
        page = person.goes("/?state=active")
        page.get_by_label("Choose brief 2").check()
        page.get_by_role("button", name="Orders to the chosen runs").click()
        page.get_by_role("button", name="Cancel 1 of 1").click()
        expect(page.locator(".rows .file")).to_have_text(f"pipeline-current/{run_id(2)}/orders/cancel.json")
