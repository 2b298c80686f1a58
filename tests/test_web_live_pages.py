"""Compare, costs, pipelines: what makes them change, and what does not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from pop.errors import PopError
from pop.rootcheck import RootCheck
from pop.settings import Root, load_settings
from pop.web import live
from pop.web.app import create_app
from pop.web.live import SELDOM_S
from pop.web.pages.compare import CompareSource
from pop.web.pages.compare import wish_of as compared
from pop.web.pages.costs import CostsSource, scale_of
from pop.web.pages.costs import wish_of as costs_of
from pop.web.pages.pipelines import CatalogueSource, PipelineSource
from pop.web.site import Site
from tests.runfolders import begin_run
from tests.test_web_pages import TODAY, spend, two_runs
from tests.webbing import events_of, make_root, put_status, record, run_id, web_server, write_ledger


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


def site_of(root: Root) -> Site:
    """As a server that has just started sees the folder."""
    site: Site = create_app(root, load_settings(root)).state.site
    site.look_now()
    return site


@pytest.fixture
def site(root: Root) -> Iterator[Site]:
    made = site_of(root)
    yield made
    made.close()


def looked_anew(site: Site) -> None:
    site._looked_at = 0.0


# -- costs -------------------------------------------------------------------------------------------------------------


def test_costs_change_when_a_call_of_their_time_is_written(root: Root, site: Site) -> None:
    """Of a time that is over only today's budgets do; a run's status changes nothing; another process has the same marks."""
    spend(root, 1, days_ago=3)
    spend(root, 2)
    now, past = CostsSource(site, costs_of()), CostsSource(site, costs_of(since="2020-01-01", until=_day(2)))
    mark, of_the_past = now.mark(), past.fragments()
    put_status(root, 7)
    assert now.mark() == mark and CostsSource(site_of(root), costs_of()).mark() == mark
    spend(root, 3)
    assert now.mark() != mark
    assert "$1.50" in now.fragments()["costs-totals"]
    assert past.fragments() == of_the_past
    mark = now.mark()
    (root.path / "pop.toml").write_text("[budget]\nday_usd = 5\n")
    assert now.mark() != mark and "$5.00" in now.fragments()["costs-budgets"]
    assert "$5.00" in past.fragments()["costs-budgets"]


def _day(ago: int) -> str:
    return str(TODAY - timedelta(days=ago))


def test_a_period_goes_on_with_the_days(root: Root, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a page that was opened yesterday `today` means today."""
    spend(root, 1, days_ago=1)
    wish = costs_of(period="today")
    opened_yesterday = replace(wish, since=_day(1))
    assert "<b>0</b> calls" in CostsSource(site, opened_yesterday).fragments()["costs-totals"]
    assert wish.live == "/live/costs?period=today"


@pytest.mark.parametrize(
    ("most", "scale"),
    [(0, 0), (1, 1), (3, 4), (4, 4), (7.5, 8), (9, 10), (0.013, 0.02), (101, 200), (650_000, 800_000)],
)
def test_a_chart_keeps_its_scale_while_figures_grow(most: float, scale: float) -> None:
    """It is a round number, so that one bar grows and the others stay."""
    assert scale_of(most) == pytest.approx(scale)


# -- pipelines ---------------------------------------------------------------------------------------------------------


def test_pipelines_change_with_their_runs_and_files(root: Root, site: Site) -> None:
    """A run that goes on as before changes nothing there; one that ends, and a file that is edited, do."""
    put_status(root, 1)
    site.look_now()
    catalogue, one = CatalogueSource(site), PipelineSource(site, "brief")
    looked_anew(site)
    before = catalogue.mark(), one.mark()
    put_status(root, 1, progress=0.7, current=["another"])
    looked_anew(site)
    assert catalogue.mark() == before[0]
    put_status(root, 1, "failed")
    looked_anew(site)
    assert catalogue.mark() != before[0] and one.mark() != before[1]
    assert "0 %" in catalogue.fragments()["pipelines"]
    assert "<b>1</b> failed" in one.fragments()["pipeline-head"]
    before = catalogue.mark(), one.mark()
    (root.path / "pipeline.json").write_text('{"name": "brief", "tasks": ["gone"]}')
    assert catalogue.mark() != before[0] and "1 problem" in catalogue.fragments()["pipelines"]


def test_what_is_made_of_files_alone_is_made_once(root: Root, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs of a pipeline go on, it is checked and drawn again only when a file has changed."""
    checked: list[int] = []
    usual = RootCheck.problems

    def problems(self: RootCheck) -> list[PopError]:
        checked.append(1)
        return usual(self)

    monkeypatch.setattr(RootCheck, "problems", problems)
    source = PipelineSource(site, "default")
    for number in range(5):
        put_status(root, number, "failed")
        looked_anew(site)
        source.mark()
        assert "pipeline-made" in source.fragments()
    assert len(checked) == 1
    os.utime(root.path / "pipeline.json", ns=(1, 1))
    source.mark()
    assert len(checked) == 2


def test_a_pipeline_that_is_gone_is_over(root: Root, site: Site) -> None:
    """Its page loads anew, and says that there is none."""
    source = PipelineSource(site, "default")
    assert source.mark()
    (root.path / "pipeline.json").unlink()
    assert source.mark() is None


# -- compare -----------------------------------------------------------------------------------------------------------


def test_two_runs_that_are_complete_are_not_live(root: Root, site: Site) -> None:
    """Nothing changes there; with one that is at work it does, and only then."""
    a, b = two_runs(root)
    assert not CompareSource(site, compared(a=a, b=b)).moves
    run = begin_run(root, ["same", "other"], run_id="20261121-120000-third-cccc", place="current")
    source = CompareSource(site, compared(a=a, b=run.path.name))
    assert source.moves
    mark = source.mark()
    assert source.mark() == mark
    with open(run.path / "events.jsonl", "a") as journal:
        journal.write("\n")
    assert source.mark() != mark
    found = source.fragments()
    assert found.keys() == {f"compare-{name}" for name in ("whole", "given", "steps", "differences", "texts")}


def test_what_may_be_chosen_is_current(root: Root, site: Site) -> None:
    """A run that begins is offered; a run that was chosen and is taken away is another page."""
    two_runs(root)
    looked_anew(site)
    source = CompareSource(site, compared())
    mark = source.mark()
    put_status(root, 5)
    looked_anew(site)
    assert source.mark() != mark and run_id(5) in source.fragments()["compare-choices"]
    chosen = CompareSource(site, compared(a=run_id(5)))
    assert chosen.mark()
    os.rename(root.current / run_id(5), root.path / "elsewhere")
    assert chosen.mark() is None


# -- the streams -------------------------------------------------------------------------------------------------------


def test_pages_that_are_dear_change_at_most_once_in_two_seconds(root: Root) -> None:
    """However much is written; and what was missed is told to who comes back with the mark of before."""
    spend(root, 1)
    write_ledger(root, record(1))
    with web_server(root) as server, server.client() as client:
        before = client.get("/costs").text.partition('data-mark="')[2].partition('"')[0]
        over = threading.Event()

        def write() -> None:
            number = 1
            while not over.wait(0.05):
                number += 1
                spend(root, number)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            events = events_of(client, f"/live/costs?after={before}", most=100, seconds=7)
        finally:
            over.set()
            thread.join()
        assert 2 <= len(events) <= 7 / SELDOM_S + 1
        assert all('id="costs-drawn"' in event["data"] for event in events)
        (missed,) = events_of(client, f"/live/costs?after={before}", most=1, seconds=8)
        assert 'id="costs-totals"' in missed["data"]
        assert events_of(client, f"/live/costs?after={missed['id']}", most=1, seconds=3) == []
        for path in ("/live/pipelines", "/live/pipelines/default", "/live/compare"):
            assert events_of(client, path, most=1, seconds=8), path


def test_a_page_that_takes_long_to_make_is_made_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds up the others for no more than the 8th part of the time."""
    now, asked = [100.0], list[float]()

    class Slow:
        def mark(self) -> str:
            asked.append(now[0])
            return str(asked)

        def fragments(self) -> dict[str, str]:
            now[0] += 1.5
            return {}

    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    channel = live._Channel(Slow(), SELDOM_S)
    assert channel.look()
    now[0] += 9.0
    assert not channel.look()
    now[0] += 2.0
    assert channel.look() and asked == [100.0, 112.5]
