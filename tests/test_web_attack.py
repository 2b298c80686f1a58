"""What somebody with bad intentions, a broken disk or an editor can do to the dashboard and its index."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from pop.acts import Checked, Wish, carry_out_rerun
from pop.runindex import RunIndex
from pop.runs import Run
from pop.settings import Root
from pop.web.app import cookie_name
from pop.web.keys import Keys, cookie_of
from pop.web.live import Live
from tests.webbing import HOST, make_root, put_status, record, run_id, web_client, web_server, write_ledger

RUN = run_id(1)
ASIDE = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


# -- who is let in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/%09/evil.example/", "/%0a/evil.example/", "/%5c%09/evil.example/", "/%0d%5Cevil.example/"]
)
def test_no_page_of_ours_sends_anybody_elsewhere(root: Root, path: str) -> None:
    """Browsers leave tabs and line feeds out of an address: ``/<tab>/evil`` is another host."""
    with web_client(root, signed_in=False) as stranger:
        passed_on = stranger.get(path, headers=ASIDE).text
        signed_in = stranger.get(path, params={"token": Keys(root.machine_room).mint()}).text
    for html in (passed_on, signed_in):
        target = html.partition("0;url=")[2].partition('"')[0]
        assert target.startswith("/") and not target.startswith(("//", "/\\"))
        assert not any(ord(char) < 33 for char in target)


def test_a_link_leads_to_the_very_path(root: Root) -> None:
    with web_client(root, signed_in=False) as stranger:
        token = Keys(root.machine_room).mint()
        html = stranger.get(f"/runs/{RUN}/raw/a%3Fb%23c%25.md?x=1&token={token}").text
    assert f"0;url=/runs/{RUN}/raw/a%3Fb%23c%25.md?x=1" in html


@pytest.mark.parametrize("other", ['x={"a": 1}', "bad name=1; y=[1,2]", 'z="open', "a,b=@; ="])
def test_cookies_of_other_programs_sign_nobody_out(root: Root, other: str) -> None:
    """All ports of a host share their cookies."""
    with web_client(root, signed_in=False) as client:
        own = f"{cookie_name(root)}={cookie_of(Keys(root.machine_room).mint())}"
        for line in (f"{other}; {own}", f"{own}; {other}", f"{cookie_name(root)}={'0' * 64}; {own}"):
            assert client.get("/", headers={"cookie": line}).status_code == 200, line


def test_an_origin_that_is_no_address_is_refused(root: Root) -> None:
    with web_client(root) as client:
        for origin in (
            "http://[",
            "http://[::1",
            "null",
            "",
            "http://127.0.0.1:7670.evil.example",
            "http://127.0.0.1:7671",
        ):
            answer = client.post("/new", headers={"origin": origin}, data={"csrf": client.csrf})  # type: ignore[attr-defined]
            assert answer.status_code == 403, origin
            assert answer.headers["content-security-policy"]


def test_without_tokens_a_link_gives_nobody_a_cookie_of_their_choice(root: Root) -> None:
    with web_client(root, token=False, signed_in=False) as client:
        given = client.get("/", params={"token": "known"}).headers["set-cookie"]
    assert cookie_of("known") not in given


def test_a_second_head_that_does_not_come_is_not_waited_for(root: Root) -> None:
    """The deadline of the first request on a connection holds for the next ones too."""
    code = "import pop.web.server as s; s.HEAD_S = 0.5; s.KEPT_S = 1; from pop.cli import main; main()"
    with web_server(root, code=code) as server, socket.create_connection(("127.0.0.1", server.port)) as line:
        head = f"GET /favicon.ico HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        line.sendall(f"{head}\r\n".encode())
        time.sleep(0.5)
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        line.sendall(head.encode())
        line.settimeout(10)
        while line.recv(65536):
            pass


# -- live pages --------------------------------------------------------------------------------------------------------


class _Page:
    def __init__(self, error: type[Exception] | None = None) -> None:
        self.error, self.asked = error, 0

    def mark(self) -> str:
        self.asked += 1
        if self.error:
            raise self.error("no good")
        return str(self.asked)

    def fragments(self) -> dict[str, str]:
        return {"a": f"<p id=a>{self.asked}</p>"}


@pytest.mark.parametrize("error", [RecursionError, RuntimeError, ValueError])
def test_one_page_that_fails_stops_no_other(error: type[Exception]) -> None:
    async def look() -> int:
        live, good = Live(), _Page()
        bad = live._events("bad", lambda: _Page(error), "")
        other = live._events("good", lambda: good, "")
        await anext(bad)
        await anext(other)
        failing = asyncio.ensure_future(anext(bad))
        for _ in range(3):
            await asyncio.wait_for(anext(other), 10)
        live.close()
        failing.cancel()
        return good.asked

    assert asyncio.run(look()) >= 3


# -- what lies in the folders ------------------------------------------------------------------------------------------

PAGES = ("/", "/?state=pending", "/gates", "/api/board", "/api/runs", "/api/pending", "/api/rejected", "/api/ledger")
RUN_PAGES = (
    *(f"/runs/{RUN}{end}" for end in ("", "/steps/one", "/act", "/rerun", "/report", "/gates/one")),
    *(f"/api/runs/{RUN}{end}" for end in ("", "/events", "/timeline", "/steps/one", "/gates", "/plan", "/files")),
    f"/api/runs/{RUN}/steps/one/attempts/1",
)


def _step(run_dir: Path) -> Path:
    attempt = run_dir / "tasks" / "one" / "attempts" / "1"
    attempt.mkdir(parents=True)
    return attempt


def _surrogates(run_dir: Path, root: Root) -> None:
    status = json.loads((run_dir / "tasks-status.json").read_text())
    status |= {"name": "\ud800", "notes": ["\udfff"], "waiting_for": "\ud800"}
    (run_dir / "tasks-status.json").write_text(json.dumps(status))


def _deep(run_dir: Path, root: Root) -> None:
    (run_dir / "tasks-status.json").write_text(
        '{"state": "running", "tasks": {}, "x": ' + "[" * 10**5 + "]" * 10**5 + "}"
    )


def _deep_lines(run_dir: Path, root: Root) -> None:
    line = '{"event": "x", "text": ' + "[" * 400 + "]" * 400 + "}\n"
    (run_dir / "events.jsonl").write_text(line)
    for name in ("log.jsonl", "problems.json", "output.json"):
        (_step(run_dir) if name == "log.jsonl" else run_dir / "tasks/one/attempts/1").joinpath(name).write_text(line)


def _names(run_dir: Path, root: Root) -> None:
    folder = _step(run_dir).parent.parent / "artifacts"
    folder.mkdir()
    for place, name in ((root.pending, b"\xff.json"), (root.rejected, b"\xff.reason.json"), (folder, b"\xff.md")):
        place.mkdir(exist_ok=True)
        Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_text('{"name": "x", "code": "y", "message": "z"}')
    Path(os.fsdecode(os.fsencode(root.current) + b"/20261121-000001-\xff")).mkdir()


def _kinds(run_dir: Path, root: Root) -> None:
    _step(run_dir)
    one = {"state": "running", "usage": 5, "error": 7, "stage": {}, "progress": "x", "attempt": "y", "refinements": [1]}
    tasks = {"one": one, "../x": {"state": "<b>"}, "": {"state": 5}, "x" * 5000: {"state": "done"}}
    put_status(root, 1, tasks=tasks, usage=[1], notes=7, current=5, waiting_for=5, pipeline=5, created_at={})


def _pipes(run_dir: Path, root: Root) -> None:
    _step(run_dir)
    root.ledger.unlink(missing_ok=True)
    paths = [run_dir / name for name in ("events.jsonl", "tasks-status.json", "pipeline.json", "seed.json")]
    paths += [
        run_dir / "tasks/one" / name for name in ("output.json", "gate.json", "letter.json", "attempts/1/log.jsonl")
    ]
    paths += [root.ledger, root.rejected / "x.json.reason.json", root.machine_room / "promoting"]
    for path in paths:
        path.unlink(missing_ok=True)
        os.mkfifo(path)


def _holes(run_dir: Path, root: Root) -> None:
    """Gigabytes that are nothing but holes."""
    _step(run_dir)
    names = ("tasks-status.json", "events.jsonl", "tasks/one/output.json", "tasks/one/attempts/1/log.jsonl")
    for path in (*(run_dir / name for name in names), root.ledger, root.rejected / "x.json.reason.json"):
        with open(path, "ab") as file:
            file.truncate(3 * 2**30)


@pytest.mark.parametrize("harm", [_surrogates, _deep, _deep_lines, _names, _kinds, _pipes, _holes])
def test_whatever_lies_there_every_page_answers(root: Root, harm: Any) -> None:
    harm(put_status(root, 1), root)
    with web_client(root) as client:
        for path in (*PAGES, *RUN_PAGES):
            began = time.monotonic()
            answer = client.get(path)
            assert answer.status_code < 500, path
            assert time.monotonic() - began < 10, path


def test_a_key_that_is_no_text_is_refused_like_any_other(root: Root) -> None:
    put_status(root, 1)
    with web_client(root) as client:
        token = {"authorization": f"Bearer {Keys(root.machine_room).mint()}", "content-type": "application/json"}
        for path in (f"/api/runs/{RUN}/orders/cancel", f"/api/runs/{RUN}/rerun", f"/api/runs/{RUN}/gates/one/answer"):
            for body in (
                '{"\\ud800": 1}',
                '{"edits": {"\\ud800": 1}}',
                '{"set": {"\\ud800": NaN}, "from": ["\\ud800"]}',
            ):
                assert 400 <= client.post(path, content=body, headers=token).status_code < 500, (path, body)


@pytest.mark.parametrize("text", ['{"a": 1', "{" * 5000, '{"a": NaN}', "[]", "", '{"a": "\\ud800"}'])
def test_a_pasted_text_that_is_no_seed_is_told_on_the_page(root: Root, text: str) -> None:
    (root.path / "pipelines").mkdir()
    (root.path / "pipelines" / "other.json").write_text('{"tasks": ["one"]}')
    with web_client(root) as client:
        form = {"csrf": client.csrf, "by": "paste", "do": "look", "pipeline": "other", "text": text}  # type: ignore[attr-defined]
        answer = client.post("/new", data=form, headers={"origin": HOST})
        assert 400 <= answer.status_code < 500 or "problem" in answer.text


# -- the index ---------------------------------------------------------------------------------------------------------


def test_on_a_full_disk_the_index_keeps_what_it_knows(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ledger(root, *(record(number) for number in range(20)))
    index = RunIndex(root)
    index.refresh()
    db = index._db.open()
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    write_ledger(root, *(record(number) for number in range(20, 3000)))
    index.refresh()
    assert index.trouble and "full" in index.trouble
    assert index.counts()["complete"] == 20
    assert sqlite3.connect(root.machine_room / "index.db").execute("SELECT count(*) FROM runs").fetchone() == (20,)
    index.refresh(30)  # another connection, without the limit
    assert index.trouble is None and index.counts()["complete"] == 3000


def test_no_line_is_passed_over_among_many_short_ones(root: Root) -> None:
    root.ledger.write_bytes(b"\n" * 60_000 + json.dumps(record(1)).encode() + b"\n" * 600_000)
    write_ledger(root, record(2))
    index = RunIndex(root)
    index.refresh(30)
    assert index.counts()["complete"] == 2
    write_ledger(root, record(3))
    index.refresh(30)
    assert index.counts()["complete"] == 3


# -- acts --------------------------------------------------------------------------------------------------------------


def test_a_rerun_takes_back_what_a_person_touched(root: Root) -> None:
    """``touch orders/retry`` is an order too."""
    run_dir = put_status(root, 1, state="failed")
    (run_dir / "orders").mkdir()
    for name in ("retry", "resume.json"):
        (run_dir / "orders" / name).touch()
    carry_out_rerun(root, Run(run_dir, "current"), Wish(["one"]), Checked(("one",)))
    assert os.listdir(run_dir / "orders") == ["rerun.json"]
