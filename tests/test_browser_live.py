"""Pages that change by themselves, in a real browser: costs, pipelines, two runs side by side, and a gate's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from pop.answering import answer_gate
from pop.settings import Root
from tests.browsing import PHONE, WITHOUT, Person, chromium, somebody, started_browser
from tests.runfolders import begin_run
from tests.test_web_acts import ask_again
from tests.test_web_pages import spend, two_runs
from tests.webbing import Server, make_root, put_status, web_server
from tests.webstates import States, every_state

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


# -- a gate ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asking(tmp_path: Path, browser: Browser) -> Iterator[tuple[States, Person, str]]:
    """A run that waits at a gate, somebody before a screen, and the address of the gate."""
    with (
        every_state(tmp_path / "root") as states,
        web_server(states.root) as server,
        somebody(browser, server) as person,
    ):
        yield states, person, f"/runs/{states.runs['waiting']}/gates/sign-off"


def test_who_writes_an_answer_is_told_that_something_else_is_asked(asking: tuple[States, Person, str]) -> None:
    """The words and edits stay where they are; they answer no other question; the new one is a click away."""
    states, person, address = asking
    page = person.goes(address)
    person.stays()
    page.locator(".copy summary").first.click()
    page.get_by_label("Edit draft.md").fill("my own draft")
    page.get_by_label("Words; needed").fill("nearly good")
    box = page.get_by_label("Words; needed").bounding_box()
    run_dir = states.run("waiting").path
    ask_again(run_dir)
    expect(page.locator("#gate-news")).to_contain_text("Asked again")
    assert person.stayed() and person.watched()["shift"] < 0.01
    assert page.get_by_label("Words; needed").bounding_box() == box
    expect(page.get_by_label("Edit draft.md")).to_have_value("my own draft")
    expect(page.get_by_label("Words; needed")).to_have_value("nearly good")
    assert person.unread() == []
    person.forgiven = ("status of 409",)
    page.get_by_role("button", name="Approve").click()
    expect(page.locator("#error")).to_contain_text("opened anew since you were asked")
    expect(page.get_by_label("draft.md", exact=True)).to_have_value("my own draft")
    expect(page.get_by_label("Words; needed")).to_have_value("nearly good")
    assert not (run_dir / "tasks/sign-off/decision.json").exists()
    ask_again(run_dir)
    page.get_by_role("link", name="Look at the new question").click()
    expect(page.get_by_text("opened for the 3. time")).to_be_visible()
    expect(page.locator("#gate-news .news")).to_have_count(0)


def test_who_looks_at_a_gate_is_told_of_an_answer_and_of_the_next_question(asking: tuple[States, Person, str]) -> None:
    """Of a question somebody else answered; a page without a form is loaded anew when there is something to answer."""
    states, person, address = asking
    page = person.goes(address)
    person.stays()
    run = states.run("waiting")
    answer_gate(run, "sign-off", "request-changes", text="shorter")
    expect(page.locator("#gate-news")).to_contain_text("Answered meanwhile: request-changes")
    assert person.stayed()
    page.reload()
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    ask_again(run.path)
    expect(page.get_by_role("button", name="Approve")).to_be_visible()
    page = person.goes("/gates")
    expect(page.locator("#gates")).to_contain_text("sign-off")
    person.stays()
    os.rename(run.path, states.root.path / "elsewhere")
    expect(page.locator("#gates")).to_contain_text("Nothing waits for an answer")
    assert person.stayed()


def test_what_is_very_long_fits_a_telephone(browser: Browser, server: Server, root: Root) -> None:
    """Names, errors, models and figures without a space: pages stay as wide as the screen, and all of an error is seen."""
    name, step = "a-name-that-somebody-gave-it-" * 6, "x" * 60
    run = begin_run(root, [step], run_id=f"20261121-110000-{name[:90]}-bbbb", name=name, place="current")
    run.step(
        step, {"k" * 80: "v" * 300}, prompt="W" * 500, answer="Z" * 600, artifacts={f"{name[:100]}.md": b"x" * 400}
    )
    error = {"error_class": "invalid-output", "message": "M" * 300, "where": "p" * 200, "hint": "q" * 150}
    run.end("run.failed", error={**error, "instance": step}, reason="r")
    for number in range(4):
        spend(root, number, pipeline="z" * 64, model="m" * 70, step=step, cost_usd=None if number else 1.0)
    here = f"/runs/{run.path.name}"
    paths = [here, f"{here}/steps/{step}", f"{here}/files", f"{here}/rerun", f"{here}/act", "/costs", "/costs?by=model"]
    with somebody(browser, server, viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="dark") as person:
        for path in [*paths, f"/compare?a={run.path.name}&b={run.path.name}", "/pipelines", "/"]:
            page = person.goes(path)
            assert person.sideways() <= 0, path
            assert person.unread() == [], path
        page = person.goes(here)
        for note in page.locator("#run-head .note p").all():
            assert note.evaluate("node => node.scrollWidth <= node.clientWidth")
