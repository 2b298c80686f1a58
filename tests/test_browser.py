"""The dashboard as a person uses it, in a real browser."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from pop.settings import Root
from pop.store import lock_holder
from tests.browsing import PHONE, WITHOUT, Person, chromium, somebody, started_browser
from tests.living import LivingRoot, living_root
from tests.runfolders import begin_run
from tests.test_cli import pop
from tests.test_safehtml import HOSTILE
from tests.webbing import Server, free_port, make_root, put_status, record, web_server, write_ledger

pytestmark = pytest.mark.skipif(chromium() is None, reason=WITHOUT)
expect.set_options(timeout=45_000)

TEXT = "The tide rises twice a day. The moon pulls the water. Sailors read the tables before they leave the harbour."
TASKS = {
    "ask.md": "Condense to one sentence:\n\n{{ seed.text }}\n",
    "count.py": "def infer(prompt, ctx):\n    return {'words': len(str(ctx.seed['text']).split())}\n",
    "draft.py": "def infer(prompt, ctx):\n    return '# Draft\\n\\n' + ctx.seed['text'] + ''.join(f'\\n\\nChanged: {one}' for one in ctx.changes)\n",
    "nap.py": "import time\n\n\ndef infer(prompt, ctx):\n    time.sleep(0.4)\n    return {'woke': time.time()}\n",
    "talk.py": """import os, time


def infer(prompt, ctx):
    number = 0
    while not os.path.exists(ctx.seed["until"]):
        number += 1
        ctx.log.info(f"line {number} of the log")
        print(f"number {number} was printed", flush=True)
        time.sleep(0.05)
    return {"lines": number}
""",
}
PIPELINES: dict[str, Any] = {
    "default": {"name": "default", "description": "Condenses a text.", "tasks": ["ask", "count"]},
    "gated": {"tasks": ["draft", {"approve": "sign-off", "text": "Is it good?"}, "count"]},
    "restful": {"tasks": [{"repeat": ["nap"], "until": "false", "at_most": 400, "otherwise": "fail"}]},
    "talking": {"tasks": ["talk"]},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivingRoot]:
    """A root with a daemon."""
    path = tmp_path_factory.mktemp("browser") / "harbour"
    with living_root(path, pipeline=PIPELINES["default"], tasks=TASKS, settings="[daemon]\ndrain_s = 0\n") as living:
        (path / "pipelines").mkdir()
        for name, pipeline in PIPELINES.items():
            if name != "default":
                (path / "pipelines" / f"{name}.json").write_text(json.dumps(pipeline))
        living.up()
        living.wait(lambda: lock_holder(living.root.machine_room), "the daemon")
        yield living


@pytest.fixture(scope="module")
def server(living: LivingRoot) -> Iterator[Server]:
    with web_server(living.root) as server:
        yield server


@pytest.fixture
def person(browser: Browser, server: Server) -> Iterator[Person]:
    with somebody(browser, server) as person:
        yield person


def drop(living: LivingRoot, name: str, pipeline: str = "default", **data: Any) -> None:
    living.drop(f"{name}.json", {"data": {"text": TEXT, **data}, "pipeline": pipeline, "name": name})


def row_of(page: Page, name: str) -> Locator:
    """A run's line on the board."""
    return page.locator("#runs tr").filter(has=page.get_by_role("link", name=name, exact=True))


def opens(person: Person, living: LivingRoot, name: str, state: str) -> Page:
    """Finds a run by its name on the board, and goes to its page."""
    person.goes(f"/?q={name}")
    expect(row_of(person.page, name).locator(".state")).to_have_text(state)
    row_of(person.page, name).get_by_role("link", name=name, exact=True).click()
    expect(person.page.get_by_role("heading", level=1)).to_have_text(name)
    return person.page


def state_shown(page: Page) -> Locator:
    return page.locator("#run-head .figures .state")


# -- doing something ---------------------------------------------------------------------------------------------------


def test_a_seed_is_dropped_by_the_form_and_seen_to_finish(person: Person) -> None:
    """Its page says which file was written; on the board it is there, and complete, without a reload."""
    page = person.page
    page.get_by_role("link", name="New seed").click()
    page.get_by_label("text").fill(TEXT)
    page.get_by_label("Name of the file").fill("tides")
    page.get_by_role("button", name="Look first").click()
    expect(page.locator("#plan")).to_contain_text("Nothing was dropped yet.")
    expect(page.get_by_label("text")).to_have_value(TEXT)
    page.get_by_role("button", name="Drop", exact=True).click()
    expect(page.locator("#file")).to_have_text("pipeline-pending/tides.json")
    page.get_by_role("link", name="To the board").click()
    person.stays()
    expect(row_of(page, "tides").locator(".state")).to_have_text("complete")
    assert person.stayed()
    row_of(page, "tides").get_by_role("link").click()
    expect(state_shown(page)).to_have_text("complete")
    page.locator("#run-steps").get_by_role("link", name="count").click()
    expect(page.locator("#step-body")).to_contain_text("words: 20")


def test_a_form_made_from_a_seed_schema(browser: Browser, server: Server, living: LivingRoot) -> None:
    """By the keyboard; what is wrong stands at its field, is read out with it, and the summary leads there; AA in both colours."""
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string", "title": "Words", "description": "what is to be counted"},
            "most": {"type": "integer", "minimum": 10, "default": 20},
            "loud": {"type": "boolean", "default": False},
            "author": {"type": "object", "title": "Author", "properties": {"team": {"type": "string", "maxLength": 9}}},
            "parts": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["text"],
        "additionalProperties": False,
    }
    (living.path / "pipelines" / "held.json").write_text(json.dumps({"tasks": ["count"], "seed": schema}))
    for scheme, width in (("light", 360), ("dark", 1200)):
        with somebody(browser, server, color_scheme=scheme, viewport={"width": width, "height": 800}) as person:
            person.forgiven = ("status of 422",)  # the browser itself tells it on its console
            page = person.goes("/new?pipeline=held")
            assert person.unread() == [] and person.sideways() <= 0
            person.tabs_to(page.get_by_label("Words"))
            page.keyboard.type("low and high")
            person.tabs_to(page.get_by_label("loud"))
            page.keyboard.press("Space")
            person.tabs_to(page.get_by_label("team"))
            page.keyboard.type("longer than nine")
            person.tabs_to(page.get_by_label("parts"))
            page.keyboard.type("[1]")
            person.tabs_to(page.get_by_role("button", name="Drop", exact=True))
            person.enters()
            assert person.unread() == [] and person.sideways() <= 0
            team = page.get_by_role("group", name="Author").get_by_label("team")
            expect(team).to_have_attribute("aria-invalid", "true")
            expect(team).to_have_accessible_description("must have at most 9 characters, this has 16")
            expect(page.get_by_label("parts")).to_have_accessible_description("[0] must be a text, this is a number")
            expect(page.get_by_label("Words")).to_have_value("low and high")
            expect(page.get_by_label("loud")).to_be_checked()
            page.get_by_role("alert").get_by_role("link", name="team").click()
            expect(team).to_be_focused()
            team.fill("sea")
            page.get_by_label("parts").fill('["one"]')
            page.get_by_label("Name of the file").fill(f"held-{scheme}")
            page.get_by_role("button", name="Drop", exact=True).click()
            expect(page.locator("#file")).to_have_text(f"pipeline-pending/held-{scheme}.json")
            living.wait(lambda: any(row["name"] == f"held-{scheme}" for row in living.ledger()), "the run")  # noqa: B023


def test_the_page_of_a_run_follows_it_to_its_end(person: Person, living: LivingRoot) -> None:
    """Steps turn from pending to done on the page that is open; a person asked for changes, then approved."""
    drop(living, "letter", "gated")
    page = opens(person, living, "letter", "waiting")
    run = page.url
    page.get_by_role("link", name="look at what is asked, and answer").click()
    expect(page.locator(".copy")).to_contain_text("The moon pulls the water.")
    page.get_by_label("Words; needed to request changes").fill("Say who reads the tables.")
    page.get_by_role("button", name="Request changes").click()
    expect(page.locator("#file")).to_contain_text("tasks/sign-off/decision.json")
    page.get_by_role("link", name="To the run").click()
    expect(page.locator("#run-said")).to_contain_text("Say who reads the tables.")
    page.get_by_role("link", name="look at what is asked, and answer").click()
    expect(page.locator(".copy")).to_contain_text("Changed: Say who reads the tables.")

    other = person.context.new_page()  # beside it the run's page is open
    other.goto(run)
    expect(other.locator("#step-count .state")).to_have_text("pending")
    page.locator(".copy summary").first.click()
    page.get_by_label("Edit draft.md").fill("# Draft\n\nHarbour masters read the tables.")
    page.get_by_role("button", name="Show what my edits change").click()
    expect(page.locator("#answer")).to_contain_text("+Harbour masters read the tables.")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Approved: sign-off")
    other.bring_to_front()
    expect(state_shown(other)).to_have_text("complete")
    expect(other.locator("#step-count .state")).to_have_text("done")
    expect(other.locator("#run-said")).to_contain_text("with 1 edit")


def test_a_log_is_followed(person: Person, living: LivingRoot) -> None:
    """New lines come by themselves and the newest is in sight, until somebody scrolls back to read."""
    until = living.path / "enough"
    drop(living, "speech", "talking", until=str(until))
    page = opens(person, living, "speech", "running")
    page.locator("#run-steps").get_by_role("link", name="talk").click()
    lines = page.locator("#step-log-lines")
    expect(lines).to_contain_text("line 1 of the log")
    person.stays()
    expect(lines).to_contain_text("line 60 of the log")
    expect(page.locator("#step-stdout")).to_contain_text("number 60 was printed")
    assert lines.evaluate("node => node.scrollHeight - node.scrollTop - node.clientHeight") < 60
    lines.evaluate("node => { node.scrollTop = 5; }")
    latest = _newest(lines)
    expect(lines).to_contain_text(f"line {latest + 40} of the log")
    assert lines.evaluate("node => node.scrollTop") < 60
    assert person.stayed()
    until.touch()
    expect(page.locator("#step-head .state")).to_have_text("done")
    expect(page.locator("#step-body")).to_contain_text("lines: ")


def _newest(lines: Locator) -> int:
    return int(re.findall(r"line (\d+) of", lines.inner_text())[-1])


def test_a_run_is_run_again_from_a_stage_with_an_edit(person: Person, living: LivingRoot) -> None:
    """A look at the plan tells what that may cost; what comes of it is a new run, which leads to the old one."""
    drop(living, "almanac")
    page = opens(person, living, "almanac", "complete")
    page.get_by_role("link", name="Run again").click()
    page.get_by_label("count").check()
    page.get_by_label("From its stage").select_option("prompt")
    page.get_by_text("The seed's data").first.click()
    page.locator("#seed").fill(json.dumps({"text": "Three short words"}))
    page.get_by_label("Why, for the record").fill("shorter")
    page.get_by_role("button", name="Look at the plan").click()
    plan = page.locator("#plan")
    expect(plan).to_contain_text("1 instance runs again, in a new run: count")
    expect(plan.locator("tr", has_text="ask").first).to_contain_text("reuse")
    expect(plan.locator("tfoot")).to_contain_text("0")
    expect(plan).to_contain_text("Three short words")
    expect(plan).to_contain_text("Nothing was ordered yet.")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#file")).to_contain_text("pipeline-pending/")
    page = opens(person, living, "almanac-fork", "complete")
    expect(page.locator("#run-head")).to_contain_text("Forked from")
    page.locator("#run-steps").get_by_role("link", name="count").click()
    expect(page.locator("#step-body .tree")).to_contain_text("words: 3")


def test_a_run_is_paused_resumed_and_cancelled(person: Person, living: LivingRoot) -> None:
    """By its orders, each with a reason; the page of the run shows what came of it."""
    drop(living, "siesta", "restful")
    page = opens(person, living, "siesta", "running")
    run = page.url
    for title, state in (("Pause", "paused"), ("Resume", "running"), ("Cancel", "cancelled")):
        page.goto(run)
        page.get_by_role("link", name="Orders").click()
        form = page.locator(f"#order-{title.lower()}")
        form.get_by_label("Why, for the record").fill(f"{title} it")
        form.get_by_role("button", name=title).click()
        expect(page.locator("#file")).to_contain_text(f"orders/{title.lower()}.json")
        page.get_by_role("link", name="To the run").click()
        expect(state_shown(page)).to_have_text(state)
    expect(page.locator("#run-head")).to_contain_text("pop retry")


def test_everything_can_be_done_without_a_script(browser: Browser, server: Server, living: LivingRoot) -> None:
    """The forms are forms."""
    with somebody(browser, server, java_script_enabled=False) as person:
        page = person.goes("/new?by=paste")
        page.get_by_label("JSON").fill(json.dumps({"text": TEXT}))
        page.get_by_label("Name of the file").fill("plain")
        page.get_by_role("button", name="Drop", exact=True).click()
        expect(page.locator("#file")).to_have_text("pipeline-pending/plain.json")
        living.wait(lambda: any(row["name"] == "plain" for row in living.ledger()), "the run")
        person.goes("/?q=plain&state=complete")
        expect(row_of(page, "plain")).to_be_visible()


def test_the_keyboard_is_enough(person: Person, living: LivingRoot) -> None:
    """From dropping a seed to approving: Tab and Enter, `/` for the search, and the focus always shows."""
    page, keys = person.page, person.page.keyboard
    person.tabs_to(page.get_by_role("link", name="Skip to the content"), 1)
    person.tabs_to(page.get_by_role("link", name="New seed"))
    person.enters()
    person.tabs_to(page.get_by_label("Pipeline"))
    with page.expect_navigation():
        keys.type("gated")
    person.tabs_to(page.get_by_label("text"))
    keys.type("Twice a day.")
    person.tabs_to(page.get_by_label("Name of the file"))
    keys.type("keyboard")
    person.tabs_to(page.get_by_role("button", name="Drop", exact=True))
    person.enters()
    person.tabs_to(page.get_by_role("link", name="To the board"))
    person.enters()
    page.wait_for_url(person.home + "/")
    keys.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    keys.type("keyboard")
    person.enters()
    expect(row_of(page, "keyboard").locator(".state")).to_have_text("waiting")
    person.tabs_to(row_of(page, "keyboard").get_by_role("link"))
    person.enters()
    answer = page.get_by_role("link", name="look at what is asked, and answer")
    expect(answer).to_be_visible()
    person.tabs_to(answer)
    person.enters()
    person.tabs_to(page.get_by_role("button", name="Approve"))
    person.enters()
    person.tabs_to(page.get_by_role("link", name="To the run"))
    person.enters()
    expect(state_shown(page)).to_have_text("complete")


# -- staying current ---------------------------------------------------------------------------------------------------


@contextmanager
def changing(root: Root, runs: int, per_s: float) -> Iterator[None]:
    """Statuses of live runs, written as the daemon does."""
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.wait(1 / per_s):
            number += 1
            put_status(root, number % runs, progress=number % 97 / 97, current=[f"step-{number}"])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_five_hundred_live_runs_do_not_freeze_the_page(browser: Browser, tmp_path: Path) -> None:
    """While they all change, what somebody types is on the screen at once."""
    root = make_root(tmp_path)
    for number in range(500):
        put_status(root, number)
    with web_server(root) as server, somebody(browser, server) as person:
        page = person.goes("/?state=active")
        expect(page.locator("#found")).to_contain_text("500 runs")
        person.stays()
        with changing(root, 500, 200):
            expect(page.locator("#runs")).to_contain_text(re.compile(r"step-\d{3,}"))
            search = page.get_by_role("searchbox")
            search.focus()
            before = page.locator("#runs").inner_html()
            for letter in "which of them is it that":
                search.press(letter if letter != " " else "Space")
                page.wait_for_timeout(150)
            expect(search).to_have_value("which of them is it that")  # the updates left what was being typed
            assert page.locator("#runs").inner_html() != before
        watched = person.watched()
        waits = sorted([16.0] * (24 - len(watched["inputs"])) + watched["inputs"])  # quicker ones are not reported
        assert waits[len(waits) // 2] < 200 and waits[-3] < 600, waits
        assert person.stayed() and watched["shift"] < 0.1, watched


def test_nothing_jumps_while_pages_are_live(
    person: Person, living: LivingRoot, browser: Browser, tmp_path: Path
) -> None:
    """Neither on the board, where runs come, change and finish, nor on the page of a run that goes on."""
    drop(living, "steady", "restful")
    page = opens(person, living, "steady", "running")
    expect(page.locator("#run-steps")).to_contain_text("nap@8")
    root = make_root(tmp_path)
    write_ledger(root, *(record(number) for number in range(30)))
    with web_server(root) as server, somebody(browser, server) as other, changing(root, 12, 20):
        for number in range(30, 42):
            other.page.wait_for_timeout(300)
            write_ledger(root, record(number))
            (root.pending / f"seed-{number}.json").write_text("{}")
        put_status(root, 50, "waiting", waiting_for=["sign-off"])
        put_status(root, 51, "failed", error="no good")
        expect(other.page.locator("#runs")).to_contain_text("sign-off")
        expect(other.page.locator("#tabs .failed b")).to_have_text("1")
        assert other.watched()["shift"] < 0.1, other.watched()
    expect(page.locator("#run-steps")).to_contain_text("nap@16")
    assert person.watched()["shift"] < 0.1, person.watched()
    pop("cancel", "steady", "--yes", root=living.path)


def test_a_page_comes_back_after_the_server_was_killed(browser: Browser, tmp_path: Path) -> None:
    """It says that it is lost, then shows what it missed; the cookie goes on, and nothing was loaded anew."""
    root = make_root(tmp_path)
    write_ledger(root, record(1))
    port = free_port()
    with web_server(root, port=port) as server, somebody(browser, server) as person:
        page = person.page
        expect(page.locator("#live-state")).to_have_text("live")
        person.stays()
        person.forgiven = ("net::ERR_",)
        server.stop(signal.SIGKILL)
        expect(page.locator("#live-state")).to_have_text("reconnecting")
        write_ledger(root, record(2, name="while it was away"))
        put_status(root, 3, "waiting", waiting_for=["sign-off"], name="a question")
        with web_server(root, port=port):
            expect(page.locator("#live-state")).to_have_text("live")
            expect(page.locator("#runs")).to_contain_text("while it was away")
            expect(page.locator("#runs")).to_contain_text("a question")
            assert person.stayed()
            page.reload()
            expect(page.locator("#tabs .waiting b")).to_have_text("1")


# -- who comes, and what they are shown --------------------------------------------------------------------------------


def test_pop_up_prints_a_link_that_opens_the_dashboard_once(browser: Browser, tmp_path: Path) -> None:
    """On a terminal; the token leaves the address at once, a cookie stays that no script reads and no other site sends."""
    make_root(tmp_path, f"[web]\nport = {free_port()}\n")
    daemon = pexpect.spawn(sys.executable, ["-m", "pop", "--root", str(tmp_path), "up"], encoding="utf-8", timeout=60)
    try:
        daemon.expect(r"dashboard: (http://\S+\?token=\S+)")
        link = str(daemon.match.group(1))  # type: ignore[union-attr]
        home = link.partition("/?")[0]
        with somebody(browser) as person:
            person.home = home
            page = person.page
            person.forgiven = ("401",)
            assert page.goto(f"{home}/").status == 401  # type: ignore[union-attr]
            expect(page.get_by_text("open the link that")).to_be_visible()
            person.forgiven = ()
            page.goto(link)
            page.wait_for_url(f"{home}/")
            expect(page.locator("#tabs")).to_be_visible()
            (cookie,) = person.context.cookies()
            assert (
                cookie["httpOnly"]
                and cookie["sameSite"] == "Strict"
                and link.partition("token=")[2] not in cookie["value"]
            )
            assert page.evaluate("() => document.cookie") == ""
            another = person.context.new_page()
            another.goto(f"{home}/new")
            expect(another.get_by_role("heading", level=1)).to_have_text("New seed")
        with somebody(browser) as stranger:
            stranger.home, stranger.forgiven = home, ("401",)
            assert stranger.page.goto(f"{home}/").status == 401  # type: ignore[union-attr]
    finally:
        daemon.sendintr()
        daemon.expect(pexpect.EOF)
        daemon.close(force=True)


MISSING = ("the server responded with a status of 404",)
SANDBOXED = (
    "'allow-scripts' permission is not set",
    "/favicon.ico",
)  # the test's own script, and the icon, of reports and raw files
NASTY = "<script>window.pwned=1;alert(1)</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="window.pwned=1;alert(1)"><script>alert(2)</script></svg>'
PAGE = b"<!doctype html><script>window.pwned=1;alert(3)</script><img src=x onerror='alert(4)'>"


def hostile_run(root: Root) -> str:
    """A run in which every text, name and file tries to be more than that."""
    answer = "\n\n".join(
        [NASTY, *HOSTILE, '<img src=x onerror="window.pwned=1;alert(5)">', "[click me](javascript:window.pwned=1)"]
    )
    run = begin_run(
        root,
        ["draft", "boom"],
        run_id="20261121-165320-nasty-ab12",
        name=f"{NASTY}<img src=x onerror=alert(1)>",
        place="current",
    )
    files = {
        "evil.svg": SVG,
        "evil.html": PAGE,
        "evil.md": answer.encode(),
        "evil.json": json.dumps({NASTY: NASTY}).encode(),
        f"{NASTY[:8]}.txt": b"x",
    }
    run.step("draft", answer, prompt=answer, answer=answer, artifacts=files)
    tried = run.path / "tasks" / "draft" / "attempts" / "1"
    (tried / "log.jsonl").write_text(
        json.dumps({"at": "2026-11-21T17:00:00.000Z", "level": "error", "text": NASTY, NASTY: NASTY}) + "\n"
    )
    (tried / "stdout.txt").write_text(answer)
    (tried / "problems.json").write_text(json.dumps([NASTY]))
    error = {
        "error_class": "invalid-output",
        "stage": "infer",
        "message": NASTY,
        "where": NASTY,
        "hint": NASTY,
        "problems": [NASTY],
        "traceback": NASTY,
    }
    run.step("boom", error=error, answer=answer)
    run.end("run.failed", error={**error, "instance": "boom"}, reason=NASTY)
    return run.path.name


def links(page: Page) -> set[str]:
    """Where a page leads on this server."""
    found = page.eval_on_selector_all(
        "a", "nodes => nodes.map((node) => node.getAttribute('href') || node.href.baseVal || '')"
    )
    assert not [one for one in found if re.match(r"\s*(javascript|data|vbscript):", one, re.IGNORECASE)], found
    return {one.partition("#")[0] for one in found if one.startswith("/") and not one.startswith("//")}


def kind(address: str) -> str:
    """Addresses that differ in values alone are of one kind."""
    path, _, query = address.partition("?")
    return "&".join([path, *sorted(set(re.findall(r"(?:^|&)([^=&]+)=", query)))])


def test_nothing_in_seeds_answers_and_files_runs(browser: Browser, tmp_path: Path) -> None:
    """Every page that the run leads to is opened, its files too: no script, no dialog, nothing refused, nothing asked of others."""
    root = make_root(tmp_path)
    run = hostile_run(root)
    name = "<script>alert(9)<" + "!--.json"
    (root.pending / name.replace("/", "")).write_text(
        json.dumps({"data": {}, "name": NASTY[:100].replace("/", ""), "pipeline": "one"})
    )
    put_status(root, 4, "waiting", waiting_for=[NASTY], name=NASTY, error=NASTY)
    put_status(root, 5, "failed", error=NASTY, name=NASTY)
    write_ledger(root, record(6, name=NASTY, models=[NASTY], pipeline=NASTY))
    with web_server(root) as server, somebody(browser, server) as person:
        page = person.page
        expect(page.locator("#runs")).to_contain_text(NASTY)
        person.forgiven = (*MISSING, *SANDBOXED, "status of 409")  # no plan of a run whose files are broken
        seen, ahead = set(), {"/", f"/?q={NASTY}", "/?state=pending", "/gates", "/new"}
        while ahead:
            path = ahead.pop()
            if kind(path) in seen:
                continue
            seen.add(kind(path))
            answer = page.goto(person.home + path)
            assert answer and answer.status in (200, 404, 409), path
            if "/raw/" in path and "svg" in path:
                assert answer.headers["content-type"].startswith("text/plain")
            page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            if page.locator("main").count():
                ahead |= {one for one in links(page) if "download" not in one and ".csv" not in one}
            assert page.evaluate("() => window.pwned") is None
            assert not page.evaluate("() => window.watched.refused"), path
        assert len(seen) > 15 and any("evil.svg" in path for path in seen), seen
    report = tmp_path / "report.html"
    assert pop("report", run, "-o", report, root=tmp_path).returncode == 0
    with somebody(browser) as person:
        person.page.goto(report.as_uri())
        expect(person.page.locator("h1").first).to_contain_text("<script>")
        assert person.page.evaluate("() => window.pwned") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser: Browser, server: Server, living: LivingRoot, scheme: Any) -> None:
    """WCAG AA: the contrast of each text with what it stands on, by the colours that were computed."""
    names = all_states(living)
    with somebody(browser, server, color_scheme=scheme) as person:
        person.forgiven = (*MISSING, *SANDBOXED)
        for path in paths(names):
            person.goes(path)
            assert person.unread() == [], path


def test_a_telephone_is_wide_enough(browser: Browser, server: Server, living: LivingRoot) -> None:
    """At 360 pixels no page scrolls sideways."""
    names = all_states(living)
    with somebody(browser, server, viewport=PHONE, is_mobile=True, has_touch=True) as person:
        person.forgiven = (*MISSING, *SANDBOXED)
        for path in paths(names):
            person.goes(path)
            assert person.sideways() <= 0, (path, person.sideways())


def all_states(living: LivingRoot) -> dict[str, str]:
    """Runs that are complete, that failed and that wait, by name; made once."""
    wanted = {"harvest": "default", "question": "gated", "wreck": "default"}
    known = {row["name"]: row["run_id"] for row in [*living.ledger(), *map(living.status, living.current())]}
    if not wanted.keys() <= known.keys():
        for name, pipeline in wanted.items():
            if name == "wreck":
                living.drop("wreck.json", {"data": {}, "pipeline": pipeline, "name": name})
            else:
                drop(living, name, pipeline)

    def settled() -> dict[str, str]:
        found = {row["name"]: row["run_id"] for row in living.ledger()}
        found |= {
            s["name"]: s["run_id"] for s in map(living.status, living.current()) if s["state"] in ("waiting", "failed")
        }
        return {name: found[name] for name in wanted}

    found: dict[str, str] = living.wait(settled, "the three runs")
    return found


def paths(names: dict[str, str]) -> list[str]:
    """Pages of every kind."""
    done, asked, failed = (f"/runs/{names[name]}" for name in ("harvest", "question", "wreck"))
    return [
        "/", "/?state=failed", "/?state=pending", "/?q=nothing-is-called-so", "/gates", "/new", "/new?by=paste", "/new?by=upload",
        done, f"{done}/steps/ask", f"{done}/steps/count", f"{done}/rerun", f"{done}/act", f"{done}/report",
        asked, f"{asked}/gates/sign-off", f"{asked}/steps/draft", f"{asked}/act", failed, f"{failed}/steps/ask", "/no-such-page",
        f"{failed}/plan", "/orders", "/orders?q=wreck", "/health", "/health/gc?age=1s&failed=true",
        f"{done}/files", "/pipelines", "/pipelines/default", "/costs", "/costs?by=model", "/compare", f"/compare?a={names['harvest']}",
    ]  # fmt: skip


def test_light_and_dark_are_chosen_and_kept(person: Person) -> None:
    """By the button; the choice is there on the next page, before anything is painted."""
    ground = "() => getComputedStyle(document.body).backgroundColor"
    before = person.page.evaluate(ground)
    person.page.get_by_role("button", name="Light or dark").click()
    after = person.page.evaluate(ground)
    assert before != after
    person.goes("/gates")
    assert person.page.evaluate(ground) == after


def test_a_report_needs_nothing(browser: Browser, living: LivingRoot, tmp_path: Path) -> None:
    """Opened from a disk without a network: no request, no error, all of it on paper."""
    all_states(living)
    file = tmp_path / "harvest.html"
    assert pop("report", "harvest", "-o", file, root=living.path).returncode == 0
    with somebody(browser, offline=True) as person:
        asked: list[str] = []
        person.context.on("request", lambda request: asked.append(request.url))
        page = person.page
        page.goto(file.as_uri())
        expect(page.get_by_role("heading", level=1)).to_have_text("harvest")
        expect(page.locator("svg.picture.graph")).to_be_visible()
        expect(page.locator("svg.picture.timeline")).to_be_visible()
        assert person.unread() == []
        paper = page.pdf(format="A4")
        assert paper.startswith(b"%PDF") and len(paper) > 10_000
        assert asked == [file.as_uri()] and person.sideways() <= 0
