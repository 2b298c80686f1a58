"""Costs as comma-separated values: what the page and the API show, and nothing that a spreadsheet would carry out."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pop.costsheet import COLUMNS
from pop.models.calls import CallLine, append_calls
from pop.settings import Root
from pop.store import Disk
from tests.webbing import make_root, web_client

EVIL = ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\t=1", "a,b\n=1", '"quoted"')


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = make_root(tmp_path)
    root.calls.mkdir()
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lines = [CallLine(id=f"c{n}", at=at, run_id="r", model=name, input_tokens=1) for n, name in enumerate(EVIL)]
    append_calls(Disk(durable=False), root.calls, lines)
    return root


@pytest.fixture
def client(root: Root) -> Iterator[TestClient]:
    with web_client(root) as client:
        yield client


@pytest.mark.parametrize("path", ["/costs.csv?by=model&period=all", "/api/costs.csv?by=model"])
def test_no_cell_is_a_formula(client: TestClient, path: str) -> None:
    """Names of models come from files; a cell that begins like a formula gets an apostrophe."""
    response = client.get(path)
    assert response.status_code == 200 and response.headers["content-type"] == "text/csv; charset=utf-8"
    head, *rows = csv.reader(io.StringIO(response.text))
    assert head == ["model", *COLUMNS] and len(rows) == len(EVIL)
    assert not [row[0] for row in rows if row[0].lstrip()[0] in "=+-@"]
    assert all(len(row) == len(head) and row[1] == "1" for row in rows)


def test_the_page_leads_to_what_it_shows(client: TestClient) -> None:
    """With the same time, pipeline and kind of row; what makes no sense is refused."""
    assert 'href="/costs.csv?by=step&amp;period=7d"' in client.get("/costs?by=step&period=7d").text
    assert 'href="/costs.csv"' in client.get("/costs").text
    assert client.get("/costs.csv?by=step").headers["content-disposition"] == 'attachment; filename="costs-by-step.csv"'
    assert client.get("/costs.csv?pipeline=nothing").text.count("\n") == 1
    assert client.get("/costs.csv?period=never").status_code == 400
    assert client.get("/api/costs.csv?by=nothing").status_code == 422
