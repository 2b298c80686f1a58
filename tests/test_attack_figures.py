"""What the dashboard says things cost, against the ledger of calls."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pop.runindex import Asked, RunIndex
from pop.settings import Root
from tests.webbing import make_root, record, run_id, web_client, write_ledger

UNPRICED = {"calls": 2, "input_tokens": 100, "output_tokens": 20, "cost_usd": 0.0, "unpriced_calls": 2}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A run that cost 2 cents, one nobody knows the price of, and one whose price is known in part."""
    root = make_root(tmp_path)
    usage = {**UNPRICED, "cost_usd": 0.02}
    write_ledger(
        root,
        record(1, usage={**usage, "unpriced_calls": 0}),
        record(2, usage=UNPRICED),
        record(3, usage={**usage, "unpriced_calls": 1}),
    )
    return root


def cell(html: str, identity: str) -> str:
    """A run's cost in a table."""
    row = html.partition(f'title="{identity}"')[2] or html.partition(f'href="/runs/{identity}"')[2]
    found = re.search(r"<td[^>]*right[^>]*>\s*(\$[^<]*|unpriced)<", row.partition("</tr>")[0])
    return found[1] if found else ""


@pytest.mark.parametrize("path", ["/?state=complete", "/pipelines/brief"])
def test_what_nobody_knows_the_price_of_is_not_called_free(root: Root, path: str) -> None:
    for number in (1, 2, 3):
        (root.complete / run_id(number)).mkdir()
    with web_client(root) as client:
        html = client.get(path).text
        rows = client.get("/api/runs", headers={"accept": "application/json"}).json()["runs"]
    assert [cell(html, run_id(number)) for number in (1, 2, 3)] == ["$0.0200", "unpriced", "$0.0200+?"]
    assert [row["unpriced_calls"] for row in rows] == [1, 2, 0]


def test_a_mean_is_of_what_is_known(root: Root) -> None:
    """Runs without a price would make it too small."""
    index = RunIndex(root)
    index.refresh()
    tally = index.tallies()["brief"]
    assert tally.cost_usd == 0.02 and tally.total == 3
    assert [row.unpriced_calls for row in index.query(Asked()).rows] == [1, 2, 0]
    index.close()
