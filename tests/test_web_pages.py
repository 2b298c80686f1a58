"""Compare, costs and pipelines in the dashboard: exact, bounded, and safe with whatever files hold."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pop.models.calls import CallLine, append_calls
from pop.runs import Run
from pop.settings import Root
from pop.store import Disk
from pop.web import costbook
from pop.web.pages import compare as compare_page
from tests.runfolders import begin_run
from tests.webbing import make_root, put_status, record, run_id, web_client, write_ledger

EVIL = '<script>alert("x")</script>'
TODAY = datetime.now(UTC).date()


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


@pytest.fixture
def client(root: Root) -> Iterator[TestClient]:
    with web_client(root) as made:
        yield made


def words_of(page: str) -> str:
    """What a person reads, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).replace("\u202f", "").split())


def is_safe(page: str) -> None:
    """Nothing a file holds became markup, and nothing in the page needs what the policy forbids."""
    assert EVIL not in page
    assert not re.search(r"<script(?! src=)|\sstyle=|\son\w+=|<style|javascript:", page)


# -- costs ---------------------------------------------------------------------------------------------------------


def spend(root: Root, number: int, *, days_ago: int = 0, **about: Any) -> None:
    """One line of the ledger of calls."""
    at = f"{TODAY - timedelta(days=days_ago)}T00:00:00.000Z"
    given = {"pipeline": "brief", "step": "draft", "model": "fast", "input_tokens": 100, "output_tokens": 10}
    line = CallLine(id=f"c{number}", at=at, run_id=run_id(number), **{**given, "cost_usd": 0.5, **about})
    append_calls(Disk(durable=False), root.calls, [line])


def rows_of(page: str) -> dict[str, list[str]]:
    """The cells of each row of the first table of numbers, by its head."""
    table = page[page.index('<table class="list numbers">') : page.index("</tfoot>")]
    found = [
        [words_of(cell) for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.S)] for row in table.split("<tr>")
    ]
    return {row[0]: row[1:] for row in found if row}


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("day", {str(TODAY): "$1.00", str(TODAY - timedelta(days=2)): "$0.2500"}),
        ("pipeline", {"brief": "$1.00", "other": "$0.2500"}),
        ("step", {"brief/draft": "$0.5000", "brief/check": "$0.5000", "other/draft": "$0.2500"}),
        ("model", {"fast": "$0.7500", "slow": "$0.5000"}),
        ("run", {run_id(1): "$0.5000", run_id(2): "$0.5000", run_id(3): "$0.2500"}),
    ],
)
def test_costs_are_added_up_by_what_is_asked(client: TestClient, root: Root, by: str, expected: dict[str, str]) -> None:
    """Every request that is billed stands in one row, and the sum of all rows below them."""
    spend(root, 1)
    spend(root, 2, step="check", model="slow")
    spend(root, 3, days_ago=2, pipeline="other", cost_usd=0.25)
    spend(root, 4, billed=False)
    rows = rows_of(client.get(f"/costs?by={by}").text)
    assert {name: cells[0] for name, cells in rows.items() if name in expected} == expected
    assert rows["together"][:2] == ["$1.25", "3"]


def test_costs_of_a_time_are_those_of_its_days(client: TestClient, root: Root) -> None:
    """Both days of a period count; the time is in the address, also in that of every link on the page."""
    for days in (0, 1, 6, 7, 40):
        spend(root, days, days_ago=days)
    for period, calls in (("today", "1"), ("7d", "3"), ("30d", "4"), ("all", "5")):
        assert rows_of(client.get(f"/costs?period={period}&by=model").text)["together"][1] == calls
    first, last = TODAY - timedelta(days=7), TODAY - timedelta(days=1)
    page = client.get(f"/costs?since={first}&until={last}&by=model").text
    assert rows_of(page)["together"][1] == "3"
    assert f'value="{first}"' in page
    assert "period=7d" in page


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ("since=yesterday", 400, "'yesterday' is no day"),
        ("since=2026-11-02&until=2026-11-01", 400, "is after until"),
        ("period=9w", 400, "no period '9w'"),
        ("by=colour", 422, "query.by"),
    ],
)
def test_a_time_that_is_none_is_refused(client: TestClient, asked: str, status: int, told: str) -> None:
    """What is wrong with an address is said, with what may stand there."""
    answer = client.get(f"/costs?{asked}")
    assert answer.status_code == status
    assert told in words_of(answer.text)


def test_what_is_unpriced_or_estimated_is_said(client: TestClient, root: Root) -> None:
    """A sum that leaves something out never looks like one that does not."""
    spend(root, 1, cost_usd=None, model="local")
    spend(root, 2, estimated=True)
    (root.calls / f"{TODAY}.jsonl").open("a").write("no line\n")
    words = words_of(client.get("/costs").text)
    assert "1 call has no price, and is in no sum of money here: local." in words
    assert "1 call: nobody counted the tokens for us" in words
    assert "1 line of the ledger could not be read and is left out." in words
    assert "1 unpriced, 1 est." in words
    words = words_of(client.get("/costs?by=model").text)
    assert "local unpriced" in words and "fast $0.5000" in words and "together $0.5000 +? 2" in words


def test_the_chart_has_every_day_and_says_what_it_shows(client: TestClient, root: Root) -> None:
    """A day on which nothing was asked is a gap; a picture has a name and a table with the numbers."""
    spend(root, 1, days_ago=6)
    spend(root, 2, cost_usd=1.0)
    page = client.get("/costs?period=7d").text
    svg = page[page.index('<svg class="chart"') : page.index("</svg>", page.index('<svg class="chart"'))]
    assert [float(height) for height in re.findall(r'class="bar"[^>]*height="([\d.]+)"', svg)] == [75.0, 150.0]
    assert 'role="img"' in svg and f"from {TODAY - timedelta(days=6)} to {TODAY}; the most is $1.00" in svg
    assert "other" not in words_of(svg)


def test_many_bars_end_in_one_for_the_others(client: TestClient, root: Root) -> None:
    """What does not fit into the picture is still in it; the table goes further."""
    for number in range(30):
        spend(root, number, model=f"m{number:02d}", cost_usd=1.0)
    page = client.get("/costs?by=model").text
    svg = page[page.index('<svg class="chart"') : page.index("</div>", page.index('<svg class="chart"'))]
    assert "10 others" in svg and "$10.00" in svg
    assert svg.count('class="bar"') == 20
    assert "m29" in rows_of(page)


def test_costs_of_a_file_that_grows_or_is_replaced(client: TestClient, root: Root) -> None:
    """What was added is taken in, and nothing is counted twice; a file that is another one is read anew."""
    spend(root, 1)
    assert rows_of(client.get("/costs").text)["together"][1] == "1"
    spend(root, 2)
    assert rows_of(client.get("/costs").text)["together"][1] == "2"
    (root.calls / f"{TODAY}.jsonl").unlink()
    spend(root, 3)
    assert rows_of(client.get("/costs").text)["together"][1] == "1"


def test_the_book_of_costs_is_bounded(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days that do not fit into memory are read again, with the same sums."""
    monkeypatch.setattr(costbook, "KEPT_ROWS", 4)
    for days in range(8):
        spend(root, days, days_ago=days)
    book = costbook.CostBook(root, "run")
    for _ in range(3):
        assert costbook.add_up(book, "", "", "run").total.calls == 8
        assert sum(len(day.rows) for day in book._days.values()) <= 4


def test_budgets_of_today_and_how_much_is_used(tmp_path: Path) -> None:
    """Of the day and of each pipeline, hard and soft, from pop.toml and from a pipeline's file."""
    root = make_root(
        tmp_path, "[budget]\nday_usd = 2.0\npipeline_calls = 1\nrun_usd = 0.1\n[budget.warn]\nday_usd = 0.25\n"
    )
    (tmp_path / "pipeline.json").write_text('{"name": "b", "tasks": ["one"], "budget": {"pipeline_usd": 1.0}}')
    spend(root, 1, pipeline="default")
    spend(root, 2, days_ago=1)
    with web_client(root) as client:
        words = words_of(client.get("/costs").text)
    assert "the day $0.5000 $2.00 25 % pop.toml" in words
    assert "the day $0.5000 $0.2500 beyond it pop.toml, warning" in words
    assert "default 1 calls 1 used up pop.toml" in words
    assert "default $0.5000 $1.00 50 % pipeline.json" in words
    assert "Each run: at most $0.1000." in words


def test_costs_say_where_there_is_nothing(client: TestClient) -> None:
    """An empty ledger is no error."""
    words = words_of(client.get("/costs").text)
    assert "No model was called in this time" in words
    assert "There is none for a day or a pipeline" in words


def test_costs_escape_what_the_ledger_holds(client: TestClient, root: Root) -> None:
    """Names of models, steps and pipelines come from files."""
    spend(root, 1, model=EVIL, step=EVIL, pipeline=EVIL, cost_usd=None)
    for by in ("pipeline", "step", "model"):
        page = client.get(f"/costs?by={by}&measure=calls").text
        is_safe(page)
        assert html.escape(EVIL, quote=False)[:20] in page


# -- compare -------------------------------------------------------------------------------------------------------


def two_runs(root: Root) -> tuple[str, str]:
    """Runs of two steps: one is the same, one differs in prompt and output; the second run has a third."""
    ids = ("20261121-100000-first-aaaa", "20261121-110000-second-bbbb")
    for number, one in enumerate(ids):
        run = begin_run(root, ["same", "other"], run_id=one, name=f"run {number}")
        (run.path / "seed.json").write_text(f'{{"topic": "{number}", "kept": 1}}')
        run.step("same", {"b": 1, "a": 2})
        run.step("other", f"{EVIL} text {number}", prompt=f"Write {EVIL} {number}.")
        if number:
            run.step("third", "more")
        run.end("run.complete")
    write_ledger(root, *(record(1, run_id=one, name=one[16:-5], pipeline="made") for one in ids))
    return ids


def test_two_runs_side_by_side(client: TestClient, root: Root) -> None:
    """States, outputs, prompts, costs; and of what differs both versions, as a difference."""
    a, b = two_runs(root)
    page = client.get(f"/compare?a={a}&b={b}").text
    words = words_of(page)
    assert "same ✓ done" not in words and re.search(r"same done same same 1 1100", words)
    assert re.search(r"other done different different", words)
    assert re.search(r"third not in A done only in B only in B", words)
    assert "seed.json different" in words
    assert '<span class="del">-Write &lt;script&gt;' in page
    assert '<span class="ins">+Write &lt;script&gt;' in page
    is_safe(page)


def test_only_what_differs(client: TestClient, root: Root) -> None:
    """The others are counted, not listed."""
    a, b = two_runs(root)
    page = client.get(f"/compare?a={a}&b={b}&only=different").text
    assert "step=same" not in page
    assert "1 the same" in words_of(page)
    assert "Nothing differs: the 2 instances" in words_of(client.get(f"/compare?a={a}&b={a}&only=different").text)


def test_one_step_as_a_whole(client: TestClient, root: Root) -> None:
    """Output and prompt of both beside each other, also where they are the same; a step of neither run is none."""
    a, b = two_runs(root)
    page = client.get(f"/compare?a={a}&b={b}&step=same").text
    assert page.count('<pre class="text">') == 4
    assert f"/runs/{b}/steps/same" in page
    is_safe(client.get(f"/compare?a={a}&b={b}&step=other").text)
    assert client.get(f"/compare?a={a}&b={b}&step=nope").status_code == 404


def test_runs_are_found_by_words(client: TestClient, root: Root) -> None:
    """A side that names no run shows what fits; each is one click, and keeps the other side."""
    a, b = two_runs(root)
    page = client.get(f"/compare?a={a}&b=second").text
    assert f'href="/compare?a={a}&amp;b={b}"' in page
    assert "Choose B" in words_of(page) and "Choose A" not in words_of(page)
    page = client.get("/compare").text
    assert f'href="/compare?a={a}"' in page and f'href="/compare?b={b}"' in page
    assert "No run fits these words" in words_of(client.get(f"/compare?a={a}&b=nothing-like-it").text)


@pytest.mark.parametrize(
    "words", ["../../etc", EVIL, "20261121-100000-..%2F..%2Fx", "a\x00b", "\ud800".encode("utf-8", "replace").decode()]
)
def test_a_side_is_never_a_path(client: TestClient, words: str) -> None:
    """What names no run is words to search by, whatever it looks like."""
    answer = client.get("/compare", params={"a": words})
    assert answer.status_code == 200
    is_safe(answer.text)


def test_a_run_whose_files_are_broken_can_be_compared(client: TestClient, root: Root) -> None:
    """People have editors: what is no task in a status is left out, what is no file is none."""
    a, _ = two_runs(root)
    tasks = {"same": {"state": "done", "seconds": "long", "usage": 3}, "odd": {"state": "running"}}
    odd = put_status(root, 7, tasks=tasks, usage={"calls": "many"}, started_at="never")
    (odd / "tasks").mkdir()
    (odd / "tasks" / "same").write_text("no folder")
    page = client.get(f"/compare?a={a}&b={odd.name}")
    assert page.status_code == 200
    assert "only in A" in words_of(page.text)
    assert "is at work: this is how it stands now" in words_of(page.text)
    put_status(root, 8, tasks=[1, 2])
    answer = client.get(f"/compare?a={a}&b={run_id(8)}")
    assert answer.status_code == 200
    assert "unreadable" in words_of(answer.text)


def test_files_that_are_none_are_not_followed(client: TestClient, root: Root) -> None:
    """A link, a pipe or a folder where a file should be is nothing, and nobody waits for it."""
    a, b = two_runs(root)
    secret = root.path / "keys.env"
    secret.write_text("not to be seen")
    for one, name in ((a, "same"), (b, "other")):
        attempt = root.complete / one / "tasks" / name / "attempts" / "1"
        for file in ("calls.jsonl", "03-prompt.md"):
            (attempt / file).unlink()
        os.mkfifo(attempt / "calls.jsonl")
        (attempt / "03-prompt.md").symlink_to(secret)
        (attempt.parent.parent / "output.json").unlink()
        (attempt.parent.parent / "output.json").symlink_to(secret)
    (root.complete / b / "seed.json").unlink()
    (root.complete / b / "seed.json").symlink_to(secret)
    for more in ("", "&step=same", "&step=other"):
        page = client.get(f"/compare?a={a}&b={b}{more}")
        assert page.status_code == 200
        assert "not to be seen" not in page.text


def test_many_steps_are_shown_page_by_page(root: Root, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page reads only its own; together they show every step once."""
    monkeypatch.setattr(compare_page, "ROWS", 4)
    ids = ("20261121-100000-many-aaaa", "20261121-110000-many-bbbb")
    for one in ids:
        run = begin_run(root, [f"s{n}" for n in range(10)], run_id=one)
        for number in range(10):
            run.step(f"s{number}", f"{one} {number}")
        run.end("run.complete")
    seen: list[str] = []
    url = f"/compare?a={ids[0]}&b={ids[1]}"
    while url:
        page = client.get(url).text
        seen += re.findall(r'step=(s\d)">s\d</a></th>', page)
        found = re.search(r'rel="next" href="([^"]+)"', page)
        url = html.unescape(found[1]) if found else ""
    assert seen == [f"s{n}" for n in range(10)]


def test_a_page_of_differences_is_bounded(root: Root, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no room leads to a page of its own."""
    monkeypatch.setattr(compare_page, "DIFFS", 1)
    a, b = two_runs(root)
    run = Run(root.complete / b, "complete")
    (run.path / "tasks" / "same" / "output.json").write_text('"' + "long line \\n" * 3000 + '"')
    page = client.get(f"/compare?a={a}&b={b}").text
    assert "Too much for this page" in page
    assert len(page) < 150_000


# -- pipelines -----------------------------------------------------------------------------------------------------


def test_the_catalogue_tells_how_runs_went(client: TestClient, root: Root) -> None:
    """Success is of what completed or failed; means are of what completed; a pipeline without a file is still told."""
    write_ledger(root, *(record(n, pipeline="default", seconds=2.0 * n) for n in (1, 2, 3)), record(9, pipeline="old"))
    put_status(root, 4, "failed", pipeline="default")
    put_status(root, 5, "running", pipeline="default")
    words = words_of(client.get("/pipelines").text)
    assert "default brief well 1 5 1 under way 75 % 4 s $0.0100" in words
    assert "old no file any more" in words
    assert client.get("/pipelines/old").status_code == 200
    assert client.get("/pipelines/nope").status_code == 404


def test_a_pipeline_with_all_it_is_made_of(client: TestClient, root: Root) -> None:
    """Graph, steps, tasks with files and stages, what its seed holds, its newest runs."""
    (root.path / "pipeline.json").write_text(
        '{"name": "brief", "description": "What it is for", "tasks": ["one", {"each": "seed.parts", "do": "two"},'
        ' {"approve": "sign-off", "show": ["one"]}, {"task": "two", "name": "three", "when": "seed.more"}]}'
    )
    (root.tasks / "two.md").write_text("Condense {{ seed.text }}.")
    (root.tasks / "two.schema.json").write_text('{"type": "object", "properties": {"claim": {"type": "string"}}}')
    (root.tasks / "two.py").write_text("def finalize(output, ctx):\n    return output\n")
    write_ledger(root, record(1, pipeline="default"), record(2, pipeline="default"))
    page = client.get("/pipelines/default").text
    words = words_of(page)
    assert "All is well" in words
    assert '<svg xmlns="http://www.w3.org/2000/svg" class="picture graph"' in page
    assert 'href="#step-one"' in page and 'id="step-one"' in page
    assert "sign-off a person decides" in words
    assert "two prompt; steps two, three" in words
    for stage, source in (("prompt", "two.md"), ("validate_structure", "two.schema.json"), ("finalize", "two.py")):
        assert f"{stage} {source}" in words
    assert "infer asks the model" in words
    assert "Condense {{ seed.text }}." in words
    assert '<span class="key">claim</span>' in page
    assert "text string yes" in words
    assert f"a={run_id(1)}&amp;b={run_id(2)}" in page
    assert (
        'href="/new?pipeline=default"' in page and 'href="/costs?by=step&amp;period=all&amp;pipeline=default"' in page
    )
    is_safe(page)


def test_problems_stand_with_the_pipeline_they_are_of(client: TestClient, root: Root) -> None:
    """As `pop check` tells them, with place and hint; those of other files stand in the catalogue."""
    (root.tasks / "two.md").write_text("{{ sed.text }}")
    (root.tasks / "idle.md").write_text("{{ seeed.text }}")
    root.pipelines.mkdir()
    (root.pipelines / "bad.json").write_text('{"name": "bad", "tasks": ["two", "nine"]}')
    (root.pipelines / "worse.json").write_text("{")
    words = words_of(client.get("/pipelines/bad").text)
    assert "2 problems that pop check finds" in words
    assert "unknown-task : no task 'nine'" in words and "where: pipelines/bad.json:1:" in words
    assert "where: pipeline-tasks/two.md:1" in words and "seeed" not in words
    assert client.get("/pipelines/worse").status_code == 200
    assert "1 problem that" in words_of(client.get("/pipelines/worse").text)
    catalogue = words_of(client.get("/pipelines").text)
    assert "bad 2 problems" in catalogue and "default brief well" in catalogue
    assert "seeed" in catalogue and "sed'" not in catalogue


def test_a_large_pipeline_has_its_graph_elsewhere(client: TestClient, root: Root) -> None:
    """A page stays small; the picture has its own policy, which lets nothing in it run."""
    steps = ", ".join(f'{{"task": "one", "name": "s{n}"}}' for n in range(700))
    (root.path / "pipeline.json").write_text(f'{{"name": "brief", "tasks": [{steps}]}}')
    page = client.get("/pipelines/default").text
    assert "<svg xmlns" not in page and "The graph of 700 steps" in words_of(page)
    assert "and 400 more steps" in words_of(page)
    assert len(page) < 300_000
    graph = client.get("/pipelines/default/graph.svg")
    assert graph.headers["content-type"].startswith("image/svg+xml")
    assert "sandbox" in graph.headers["content-security-policy"]


def test_pipelines_escape_what_files_hold(client: TestClient, root: Root) -> None:
    """Descriptions, prompts, schemas, code and mistakes are text."""
    quoted = EVIL.replace('"', '\\"')
    (root.path / "pipeline.json").write_text(
        f'{{"name": "{quoted}", "description": "{quoted}", "tasks": ["one", {{"task": "two", "when": "{quoted}"}}]}}'
    )
    (root.tasks / "two.md").write_text(f"{EVIL} {{{{ {EVIL} }}}}")
    (root.tasks / "two.schema.json").write_text(f'{{"description": "{quoted}"}}')
    (root.tasks / "one.py").write_text(f"# {EVIL}\ndef infer(prompt, ctx):\n    return 1\n")
    for path in ("/pipelines", "/pipelines/default"):
        answer = client.get(path)
        assert answer.status_code == 200
        is_safe(answer.text)
    assert "&lt;script&gt;" in client.get("/pipelines/default").text


def test_the_pages_stand_in_the_head(client: TestClient) -> None:
    """Each is reached from each, and marked where one is."""
    for path in ("/pipelines", "/costs", "/compare"):
        page = client.get(path).text
        assert f'<a href="{path}" aria-current="page">' in page
        is_safe(page)
