"""Pages that change by themselves, in a real browser: costs, pipelines, two runs side by side, and a gate's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from pop.settings import Root
from tests.browsing import WITHOUT, Person, chromium, somebody, started_browser
from tests.runfolders import begin_run
from tests.test_web_pages import spend, two_runs
from tests.webbing import Server, make_root, put_status, web_server

pytestmark = pytest.mark.skipif(chromium() is None, reason=WITHOUT)
expect.set_options(timeout=30_000)


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


@pytest.fixture
def person(browser: Browser, server: Server) -> Iterator[Person]:
    with somebody(browser, server) as person:
        yield person


@pytest.mark.parametrize("by", ["day", "pipeline"])
def test_costs_grow_while_somebody_looks(person: Person, root: Root, by: str) -> None:
    """Sums, chart and table follow the ledger; nothing jumps, and a day that is being chosen stays."""
    for number in range(8):
        spend(root, number, days_ago=number % 5, pipeline=f"pipe-{number % 3}", cost_usd=0.7)
    page = person.goes(f"/costs?by={by}")
    expect(page.locator("#live-state")).to_have_text("live")
    person.stays()
    page.locator("#since").fill("2026-11-01")
    chart = page.locator("svg.chart").bounding_box()
    for number in range(8, 12):
        spend(root, number, pipeline="pipe-1", cost_usd=0.1)
        page.wait_for_timeout(300)
    expect(page.locator("#costs-totals")).to_contain_text("$6.00")
    expect(page.locator("#costs-totals")).to_contain_text("12 calls")
    expect(page.locator("tfoot").first).to_contain_text("$6.00")
    assert page.locator("svg.chart").bounding_box() == chart
    expect(page.locator("#since")).to_have_value("2026-11-01")
    assert person.stayed() and person.watched()["shift"] < 0.02, person.watched()


def test_pipelines_follow_their_runs_and_files(person: Person, root: Root) -> None:
    """In the catalogue and on the page of one: a run that fails, a mistake in the file; what was opened stays open."""
    put_status(root, 1)
    page = person.goes("/pipelines")
    line = page.locator(".catalogue tr").filter(has_text="no file any more")
    expect(line).to_contain_text("1 under way")
    person.stays()
    put_status(root, 2, "failed")
    expect(line).to_contain_text("0 %")
    other = person.context.new_page()
    other.goto(f"{person.home}/pipelines/default")
    expect(other.locator("#pipeline-check")).to_contain_text("All is well")
    other.get_by_text("The file, pipeline.json").click()
    (root.path / "pipeline.json").write_text('{"name": "brief", "tasks": ["one", "two"]}')
    expect(other.locator("#pipeline-check")).to_contain_text("1 problem")
    expect(other.locator("#pipeline-made pre").last).to_contain_text('"two"')
    expect(other.locator("#pipeline-made pre").last).to_be_visible()
    page.bring_to_front()
    expect(page.locator("#pipelines")).to_contain_text("1 problem")
    assert person.stayed()


def test_two_runs_are_compared_while_one_goes_on(person: Person, root: Root) -> None:
    """Its state and steps follow; a difference that somebody closed stays closed; what can be chosen follows, too."""
    a, _ = two_runs(root)
    page = person.goes("/compare")
    person.stays()
    run = begin_run(root, ["same", "other"], run_id="20261121-120000-third-cccc", name="third", place="current")
    (run.path / "seed.json").write_text('{"topic": "3"}')
    run.step("other", "text 3", prompt="Write 3.")
    run.end()
    row = page.locator("#compare-choices").get_by_role("link", name="third").first
    expect(row).to_be_visible()
    assert person.stayed()
    page = person.goes(f"/compare?a={a}&b={run.path.name}")
    person.stays()
    difference = page.locator("#difference-other")
    expect(difference.locator(".diff").first).to_be_visible()
    difference.locator("summary").first.click()
    expect(page.locator("#compare-steps")).to_contain_text("not in B")
    run.step("same", {"b": 1, "a": 2})
    run.end()
    expect(page.locator("#compare-steps")).not_to_contain_text("not in B")
    expect(difference.locator(".diff").first).to_be_hidden()
    assert person.stayed()
