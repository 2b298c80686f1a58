"""One order to many runs: chosen on the board, each told by itself, carried out once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pop.settings import Root
from tests.test_web_acts import fields_of
from tests.test_web_board import settled
from tests.webbing import HOST, ids_of, make_root, put_status, record, run_id, web_client, write_ledger

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Two that run, one that failed, one paused, one complete."""
    root = make_root(tmp_path)
    put_status(root, 1, name=HOSTILE)
    put_status(root, 2)
    put_status(root, 3, "failed", error={"error_class": "bug", "message": HOSTILE})
    put_status(root, 4, "paused")
    os.rename(put_status(root, 5, "complete"), root.complete / run_id(5))
    write_ledger(root, record(5))
    return root


@pytest.fixture
def client(root: Root) -> Iterator[TestClient]:
    with web_client(root) as client:
        client.headers["origin"] = HOST
        yield client


def send(client: TestClient, page: str, **fields: Any) -> Any:
    """Send the form of a page as a browser would; where it leads is the answer."""
    response = client.post("/orders", data=fields_of(page, "/orders") | fields)
    return client.get(response.headers["location"]) if response.status_code == 303 else response


def ticked(page: str) -> list[str]:
    """The runs whose box is ticked on the page of orders."""
    return re.findall(r'<input type="checkbox" name="run" value="([^"]+)"[^>]* checked>', page)


def test_lists_of_the_board_have_boxes_for_runs_that_can_be_ordered(client: TestClient) -> None:
    """They belong to a form with the filters' address; what is complete, pending or overview has none."""
    page = settled(client, "/?state=active&pipeline=brief")
    boxes = re.findall(r'<input type="checkbox" form="choose" name="run" value="([^"]+)" id="c-\1" aria-label=', page)
    assert boxes == ids_of(page) == [run_id(4), run_id(2), run_id(1)]
    assert '<form id="choose" class="row choose" method="get" action="/orders">' in page and "csrf" not in boxes
    assert unescape(re.findall(r'href="(/orders[^"]*)"', page)[0]) == "/orders?state=active&pipeline=brief"
    assert len(re.findall('name="run"', settled(client, "/?q=brief"))) == 4, "the complete one has none"
    for path in ("/", "/?state=complete", "/?state=pending"):
        assert 'name="run"' not in settled(client, path) and "/orders" not in settled(client, path)


def test_an_order_goes_to_each_and_each_is_told(client: TestClient, root: Root) -> None:
    """The file that was written, or why there is none; a run that is gone, and what does not fit, are named."""
    gone = run_id(77)
    page = client.get("/orders", params={"run": [run_id(1), run_id(2), run_id(3), run_id(5), gone]}).text
    assert ticked(page) == [run_id(1), run_id(2), run_id(3), run_id(5)] and f"no run <code>{gone}" in page
    assert HOSTILE not in page and "3 of 4" in page
    chosen = [run_id(1), run_id(2), run_id(3), run_id(5), gone]
    done = send(client, page, run=chosen, verb="pause", reason=HOSTILE)
    assert done.status_code == 200 and "Pause: 2 orders given, 3 runs left as they are" in done.text
    for number in (1, 2):
        file = f"pipeline-current/{run_id(number)}/orders/pause.json"
        assert f'<code class="file">{file}</code>' in done.text
        assert json.loads((root.path / file).read_bytes())["reason"] == HOSTILE
    told = unescape(done.text)
    assert f"{run_id(3)} is failed; only a run that goes on can be paused" in told
    assert "is complete; only a run that goes on" in told and f"no run '{gone}'" in told
    assert "No daemon serves this folder" in told and HOSTILE not in done.text
    assert not (root.current / run_id(3) / "orders").exists()


def test_what_is_sent_twice_is_done_once(client: TestClient, root: Root) -> None:
    """The second answer is the first one; the same runs with another order are another act."""
    page = client.get("/orders", params={"run": [run_id(1), run_id(2)]}).text
    fields = fields_of(page, "/orders") | {"run": [run_id(1), run_id(2)], "verb": "cancel"}
    first = client.post("/orders", data=fields)
    order = root.current / run_id(1) / "orders" / "cancel.json"
    written = order.read_bytes()
    order.unlink()
    again = client.post("/orders", data=fields)
    assert again.headers["location"] == first.headers["location"] and not order.exists() and written
    other = client.post("/orders", data={**fields, "verb": "pause"})
    assert other.headers["location"] != first.headers["location"]


def test_all_that_fit_the_filters_are_chosen(client: TestClient, root: Root) -> None:
    """By the address of the list, without those that are complete; each is named, so that one can be taken out."""
    settled(client)
    assert ticked(client.get("/orders?q=brief").text) == [run_id(4), run_id(3), run_id(2), run_id(1)]
    assert ticked(client.get("/orders?state=failed").text) == [run_id(3)]
    assert "No run was chosen" in client.get("/orders").text
    assert "No run was chosen" in client.get("/orders?state=complete").text


def test_what_makes_no_sense_writes_nothing(client: TestClient, root: Root) -> None:
    """No run, no such order, a budget that is none, another page's form."""
    page = client.get("/orders", params={"run": [run_id(3)]}).text
    assert send(client, page, verb="pause").status_code == 400
    assert send(client, page, run=[run_id(3)], verb="erase").status_code == 400
    refused = send(client, page, run=[run_id(3)], verb="retry", budget="run_usd=much")
    assert (
        refused.status_code == 400 and "Nothing was written" in refused.text and 'value="run_usd=much"' in refused.text
    )
    assert send(client, page, run=[run_id(3)], verb="retry", csrf="0" * 32).status_code == 403
    assert send(client, page, run=["../../etc", HOSTILE], verb="cancel").status_code == 200
    assert not list(root.path.glob("**/orders"))
    done = send(client, page, run=[run_id(3)], verb="retry", budget="run_usd=5")
    order = json.loads((root.current / run_id(3) / "orders" / "retry.json").read_bytes())
    assert "Retry: 1 order given" in done.text and order["budget"] == {"run_usd": 5}


def test_programs_give_orders_to_many(client: TestClient, root: Root) -> None:
    """A line for each, with its file, its note or its problem."""
    header = {"x-csrf-token": client.csrf}  # type: ignore[attr-defined]
    runs = [run_id(1), run_id(1), run_id(3), run_id(4), "nope"]
    answer = client.post("/api/orders/pause", json={"runs": runs}, headers=header)
    assert answer.status_code == 200 and answer.json()["served"] is False
    told = {one["run_id"]: one for one in answer.json()["orders"]}
    assert list(told) == [run_id(1), run_id(3), run_id(4), "nope"]
    assert told[run_id(1)]["file"] == f"pipeline-current/{run_id(1)}/orders/pause.json"
    assert "only a run that goes on" in told[run_id(3)]["problem"]["message"] and told[run_id(3)]["file"] is None
    assert "paused already" in told[run_id(4)]["note"] and told[run_id(4)]["problem"] is None
    assert told["nope"]["problem"]["code"] == "unknown-run"
    wrong: dict[str, Any]
    for wrong in ({"runs": []}, {}, {"runs": ["x"] * 501}, {"runs": ["x" * 300]}, {"runs": ["x"], "more": 1}):
        assert client.post("/api/orders/pause", json=wrong, headers=header).status_code == 422
    budget = {"runs": [run_id(1)], "budget": {"run_usd": 1}}
    assert client.post("/api/orders/cancel", json=budget, headers=header).status_code == 400
    assert client.post("/api/orders/erase", json={"runs": ["x"]}, headers=header).status_code == 422
