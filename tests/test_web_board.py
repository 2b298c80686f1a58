"""The board: exact, safe, and the same with a hundred thousand runs."""

from __future__ import annotations

import fcntl
import html
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pop.models.calls import CallLine, append_calls
from pop.settings import Root
from pop.store import Disk
from pop.web.render import count, money, seconds, short, templates
from tests.webbing import ids_of, make_root, put_status, record, run_id, web_client, write_ledger


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


@pytest.fixture
def client(root: Root) -> Iterator[TestClient]:
    with web_client(root) as made:
        yield made


def settled(client: TestClient, path: str = "/") -> str:
    """A page that has seen what is on the disk now."""
    client.app.state.site._looked_at = 0.0  # type: ignore[attr-defined]
    client.app.state.site.figures._looked_at = 0.0  # type: ignore[attr-defined]
    client.app.state.site.look_now()  # type: ignore[attr-defined]
    return client.get(path).text


def tabs(text: str) -> dict[str, str]:
    """The numbers at the top of the board, by their titles."""
    found = re.findall(r"<b>([^<]+)</b><span>([^<]+)</span>", text)
    return {title: number.replace("\u202f", "") for number, title in found}


def put_complete(root: Root, *numbers: int, **about: object) -> None:
    for number in numbers:
        (root.complete / run_id(number)).mkdir()
    write_ledger(root, *(record(number, **about) for number in numbers))


def test_it_counts_what_is_there(client: TestClient, root: Root) -> None:
    """Each group by its states; and each leads to its list."""
    put_complete(root, *range(1, 30))
    put_status(root, 40)
    put_status(root, 41, "paused")
    put_status(root, 42, "waiting", waiting_for="sign-off")
    put_status(root, 43, "failed", error={"error_class": "bug", "message": "KeyError"})
    put_status(root, 44, "cancelled")
    (root.pending / "a.json").write_text("{}")
    text = settled(client)
    numbers = {"Pending": "1", "Active": "2", "Waiting for a person": "1", "Failed": "2", "Complete": "29"}
    assert tabs(text) == numbers
    assert ids_of(text)[:3] == [run_id(41), run_id(40), run_id(29)]
    assert len(ids_of(text)) == 20 + 3
    assert "bug: KeyError" in text and "sign-off" in text and "a.json" in text
    assert ids_of(settled(client, "/?state=failed")) == [run_id(44), run_id(43)]
    assert ids_of(settled(client, "/?state=active")) == [run_id(41), run_id(40)]
    assert len(ids_of(settled(client, "/?state=complete"))) == 29


def test_an_empty_root_says_so(client: TestClient, root: Root) -> None:
    """And a root whose folders are not there yet is one."""
    for folder in (root.rejected, root.pending, root.current, root.complete):
        folder.rmdir()
    text = settled(client)
    assert set(tabs(text).values()) == {"0"}
    assert "The queue is empty" in text and "pop up" in text


def test_search_and_pages_stand_in_the_address(client: TestClient, root: Root) -> None:
    """A page of the list can be kept and sent; the next one keeps what was asked for."""
    put_complete(root, *range(120), pipeline="brief")
    put_complete(root, 200, name="Ümlaut & Co", pipeline="other")
    text = settled(client, "/?q=brief&state=complete&pipeline=brief&page=2")
    assert len(ids_of(text)) == 50 and "120 runs" in text and "page 2 of 3" in text
    following = [html.unescape(link) for link in re.findall(r'rel="next" href="([^"]+)"', text)]
    assert following == ["/?state=complete&q=brief&pipeline=brief&page=3"]
    assert len(ids_of(client.get(following[0]).text)) == 20
    assert ids_of(settled(client, "/?q=%C3%BCmlaut")) == [run_id(200)]
    assert ids_of(settled(client, "/?pipeline=other")) == [run_id(200)]
    assert "No run fits" in settled(client, "/?q=nothing+of+it")
    assert "No run fits" in settled(client, "/?state=frobnicated")
    for wrong in ("page=0", "page=x", "page=99999999999999999999", "q=" + "x" * 300, "since=" + "1" * 20):
        assert client.get("/?" + wrong).status_code == 422
    assert "page 3 of 3" in settled(client, "/?q=brief&pipeline=brief&page=777")


def test_whatever_runs_are_called_is_text(client: TestClient, root: Root) -> None:
    """Names, errors, seeds, pipelines, models: nothing of it becomes a tag, an attribute or an address."""
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    put_complete(root, 1, name=evil, pipeline=evil, models=[evil])
    put_status(root, 2, name=evil, current=[evil], error={"error_class": evil, "message": evil})
    put_status(root, 3, "waiting", name="javascript:alert(3)", waiting_for=evil)
    (root.pending / "<b onclick=x>.json").write_text("{}")
    (root.rejected / "x.json.reason.json").write_text(json.dumps({"name": evil, "code": evil, "message": evil}))
    (root.current / run_id(4).replace("brief", "<i>")).mkdir()
    for path in (
        "/",
        "/?q=%22%3E%3Cscript%3E",
        "/?state=pending",
        "/?pipeline=" + evil.replace("#", ""),
        "/?state=%3Cb%3E",
    ):
        text = settled(client, path)
        assert not re.search(r"<script(?! src=\"/static/)|<img|<b onclick|<i>\-|href=\"javascript", text), path
    assert "&lt;script&gt;" in settled(client)


def test_a_run_whose_folder_is_gone_is_told_as_gone(client: TestClient, root: Root) -> None:
    """The ledger keeps its line; there is nothing to open."""
    put_complete(root, 1, 2)
    write_ledger(root, record(3))
    (root.complete / run_id(1)).rmdir()
    (root.complete / "archive").mkdir()
    (root.complete / "archive" / f"{run_id(1)}.tar.gz").touch()
    text = settled(client)
    assert tabs(text)["Complete"] == "3" and ids_of(text) == [run_id(2)]
    assert "archived" in text and "removed" in text


def test_seeds_say_what_they_wait_for(client: TestClient, root: Root) -> None:
    """Half of one, one for later, one that was refused; in pages."""
    (root.pending / "half.json").write_text('{"data": {"a": ')
    (root.pending / "later.json").write_text('{"data": {}, "not_before": "2999-01-01T00:00:00Z", "priority": 3}')
    (root.rejected / "no.json.reason.json").write_text('{"code": "bad-json", "message": "expected a comma"}')
    for number in range(60):
        (root.pending / f"s{number:02d}.json").write_text("{}")
    text = settled(client, "/?state=pending")
    assert "ends in the middle" in text and "not before 2999" in text and "priority 3" in text
    assert "expected a comma" in text and "62 seeds" in text and "page 1 of 2" in text
    assert "s59.json" in settled(client, "/?state=pending&page=2")
    assert tabs(settled(client))["Pending"] == "62"


def test_spend_today_is_what_the_ledger_of_calls_says(client: TestClient, root: Root) -> None:
    """With or without the gateway's sums; what nobody knows the price of is told beside."""
    root.calls.mkdir()

    def call(number: int, cost: float | None) -> CallLine:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return CallLine(id=f"c{number}", at=at, run_id="r", model="m", input_tokens=100, output_tokens=5, cost_usd=cost)

    append_calls(Disk(durable=False), root.calls, [call(1, 0.25), call(2, 0.5), call(3, None)])
    text = settled(client)
    assert "<b>$0.7500</b>" in text and "3 calls" in text and "the price of 1 calls is not known" in text
    append_calls(Disk(durable=False), root.calls, [call(4, 1.0)])
    assert "<b>$1.75</b>" in settled(client)


def test_broken_files_beside_the_runs_stop_no_page(client: TestClient, root: Root) -> None:
    """A machine room that somebody filled with nonsense, a folder of calls that is none, a daemon that is none."""
    put_complete(root, 1)
    for name in ("answers.db", "daemon.json", "lock", "promoting"):
        (root.machine_room / name).write_bytes(b"\xff nonsense \x00")
    root.calls.write_text("no folder")
    assert tabs(settled(client))["Complete"] == "1" and client.get("/").status_code == 200
    (root.machine_room / "lock").write_text("")
    with open(root.machine_room / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "No daemon" not in settled(client) and client.get("/").status_code == 200


def test_a_page_waits_for_nothing(tmp_path: Path) -> None:
    """Of a long ledger it shows what is read so far, and says how much that is."""
    root = make_root(tmp_path)
    write_ledger(root, *(record(number) for number in range(50_000)))
    with web_client(root) as client:
        began, seen = time.monotonic(), [tabs(client.get("/").text)["Complete"]]
        assert time.monotonic() - began < 1.0
        while seen[-1] != "50000" and time.monotonic() - began < 60:
            text = settled(client)
            seen.append(tabs(text)["Complete"])
            assert ("is being read" in text) == (seen[-1] != "50000")
        assert seen[-1] == "50000" and seen == sorted(seen, key=int)


def test_every_template_can_be_compiled() -> None:
    """And every one extends a frame, or is a fragment of a page."""
    for name in templates().list_templates():
        assert templates().get_template(name)


def test_a_page_weighs_little(client: TestClient, root: Root) -> None:
    """The page, its scripts and styles: less than 300 kB, and nothing from elsewhere."""
    put_complete(root, *range(100))
    text = settled(client)
    names = re.findall(r'(?:src|href)="(/static/[^"]+)"', text)
    sizes = [len(client.get(name).content) for name in names]
    assert all(client.get(name).status_code == 200 for name in names)
    assert all("immutable" in client.get(name).headers["cache-control"] for name in names)
    assert sum(sizes) + len(text) < 150_000


COLOURS = re.compile(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)")
GROUNDS = ("ground", "raised", "sunken")
PAIRS = [(text, ground) for text in ("text", "soft", "faint", "accent", "good", "ask", "bad") for ground in GROUNDS]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [*PAIRS, ("on-accent", "accent"), ("text", "accent-ground"), ("soft", "accent-ground"), ("faint", "accent-ground"),
     ("good", "good-ground"), ("ask", "ask-ground"), ("bad", "bad-ground"), ("text", "ask-ground"), ("text", "bad-ground"),
     ("accent", "accent-ground")],
)  # fmt: skip
def test_every_text_can_be_read_on_its_ground(text: str, ground: str, scheme: int) -> None:
    """WCAG AA: 4.5 to 1, light and dark."""
    css = (Path(__file__).parent.parent / "pop" / "web" / "static" / "pop.css").read_text()
    colours = {name: pair for name, *pair in COLOURS.findall(css)}
    light, dark = sorted((luminance(colours[name][scheme]) for name in (text, ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5, (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Source: WCAG 2.2, relative luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_figures_read_well() -> None:
    """Seconds, money, counts, cut texts."""
    assert [seconds(value) for value in (None, 0.061, 4.26, 12.4, 200, 7500, 200_000)] == [
        "–", "61 ms", "4.3 s", "12.4 s", "3 m 20 s", "2 h 05 m", "2 d 7 h",
    ]  # fmt: skip
    assert [money(value) for value in (None, 0, 0.00001, 0.0123, 1234.5)] == [
        "$0",
        "$0",
        "$0.00001",
        "$0.0123",
        "$1,234.50",
    ]
    assert count(1234567) == "1\u202f234\u202f567" and short("a\n b" * 40, 10) == "a ba ba b…"
