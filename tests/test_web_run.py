"""A run in the dashboard: its page, its steps, its files, and what changes while somebody looks."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from starlette.testclient import TestClient

from pop.runs import Run
from pop.settings import Root
from pop.steplook import Shown, readable
from pop.web.pages.run import RunSource, StepSource
from tests.runfolders import MadeRun, begin_run
from tests.test_report import PNG
from tests.test_safehtml import HOSTILE, Seen
from tests.webbing import events_of, put_status, web_client, web_server

ID = "20261121-165320-made-ab12"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "pipeline.json").write_text('{"tasks": ["draft"]}')
    return Root(tmp_path)


@pytest.fixture
def client(root: Root) -> Iterator[TestClient]:
    with web_client(root) as client:
        yield client


def finished(root: Root) -> MadeRun:
    run = begin_run(root, ["plan", {"each": "inputs.plan.parts", "do": "write"}], name="My run")
    run.step("plan", {"parts": ["a", "b"]}, prompt="Plan three parts.", answer='{"parts": 2}')
    run.tell("each.expanded", key="tasks[1]", count=2)
    run.step("write.0", "# Part one", artifacts={"sub dir/ä chart.png": PNG, "page.html": b"<script>alert(1)</script>"})
    run.step("write.1", "# Part two")
    run.end("run.complete")
    return run


def links(html: str) -> set[str]:
    """Where a page leads on this server."""
    found = {attributes["href"] for tag, attributes in Seen(html).tags if tag == "a" and attributes.get("href")}
    return {str(one) for one in found if str(one).startswith("/")}


def test_the_page_shows_all_of_a_run_and_every_link_on_it_leads_somewhere(root: Root, client: TestClient) -> None:
    """Graph, timeline, steps, costs, files; nothing inline that the policy forbids; no stream for what is over."""
    finished(root)
    answer = client.get(f"/runs/{ID}")
    assert answer.status_code == 200
    html = answer.text
    for words in ("My run", "picture graph", "picture timeline", "2 of 2 done", "fast (m-1)", "$0.0060", "2 items"):
        assert words in html
    assert "<style" not in html and " style=" not in html and "onclick" not in html and "data-live" not in html
    assert f"/runs/{ID}/steps/write" in links(html)
    for link in links(html):
        assert client.get(link).status_code == 200, link


def test_a_damaged_status_is_shown_for_what_it_is(root: Root, client: TestClient) -> None:
    """An error that is a text, and tasks that lack most of what they have."""
    root.current.mkdir()
    run = put_status(root, 5, "failed", error="no good").name
    for path in (f"/runs/{run}", f"/runs/{run}/steps/one", f"/runs/{run}/act", f"/runs/{run}/report"):
        assert client.get(path).status_code == 200, path


def test_a_step_is_shown_with_all_it_kept(root: Root, client: TestClient) -> None:
    """Prompt, answer, output, call, letter, artifacts: pictures as pictures, the rest as text; a step by its name too."""
    finished(root)
    html = client.get(f"/runs/{ID}/steps/write.0").text
    for words in ("Write it.", "Here it is.", "<h1>Part one</h1>", "m-1", "the order to the worker", "1,000"):
        assert words in html
    picture = f"/runs/{ID}/raw/tasks/write.0/artifacts/sub%20dir/%C3%A4%20chart.png"
    assert f'src="{picture}"' in html and "&lt;script&gt;alert(1)" in html and "<script>alert" not in html
    assert "write.1" in client.get(f"/runs/{ID}/steps/write").text
    assert client.get(f"/runs/{ID}/steps/nothing").status_code == 404
    assert client.get(f"/runs/{ID}/steps/%2e%2e%2fseed.json").status_code == 404
    assert client.get(f"/runs/{ID}/steps/plan?attempt=7").status_code == 200


def test_all_files_of_a_run_are_listed_and_no_link_is_followed(root: Root, client: TestClient) -> None:
    """Folders lead on, files are shown or downloaded; what came with the seed is there too."""
    finished(root)
    folder = root.complete / ID
    (folder / "files").mkdir()
    (folder / "files" / "notes <b>.md").write_text("# Notes")
    (folder / "way-out").symlink_to("/etc")
    html = client.get(f"/runs/{ID}/files").text
    assert f"/runs/{ID}/files/tasks" in links(html) and f"/runs/{ID}/raw/seed.json" in links(html)
    assert "it is not followed" in html and f"/runs/{ID}/files/way-out" not in links(html)
    html = client.get(f"/runs/{ID}/files/files").text
    assert "notes &lt;b&gt;.md" in html and "<b>.md" not in html
    shown = client.get(f"/runs/{ID}/raw/files/notes%20%3Cb%3E.md?download=1")
    assert shown.text == "# Notes" and shown.headers["content-disposition"].startswith("attachment")
    html = client.get(f"/runs/{ID}/files/tasks/write.0/artifacts").text
    for link in links(html):
        assert client.get(link).status_code == 200, link
    for wrong in ("way-out", "nothing", "seed.json", "%2e%2e/%2e%2e", "tasks/../../.."):
        assert client.get(f"/runs/{ID}/files/{wrong}").status_code == 404, wrong


def test_a_step_leads_to_running_it_again_and_to_its_files(root: Root, client: TestClient) -> None:
    """A step is ticked, an item stands in the field for exact places, with the stage that was chosen."""
    finished(root)
    found = links(client.get(f"/runs/{ID}/steps/write.0").text)
    assert {f"/runs/{ID}/rerun?from=write.0", f"/runs/{ID}/files/tasks/write.0"} <= found
    item = client.get(f"/runs/{ID}/rerun?from=write.0&stage=parse").text
    assert 'name="exact" value="write.0:parse"' in item and "<option selected>parse</option>" in item
    assert 'value="plan" checked' in client.get(f"/runs/{ID}/rerun?from=plan").text
    assert 'name="exact" value="write.0"' in client.get(f"/runs/{ID}/rerun?from=write.0&stage=none-such").text


def test_refinements_laps_problems_and_logs(root: Root, client: TestClient) -> None:
    """What changed from round to round and from lap to lap, what remained wrong, what was logged and printed."""
    loop = {"repeat": ["review"], "until": "inputs.review.ok", "at_most": 3, "name": "loop"}
    run = begin_run(root, [loop])
    run.step("review@1", {"text": "first lap"})
    run.tell("lap.ended", key="loop", lap=1, verdict="again", reason="not yet", score=4.5, until=False, sha256="0")
    run.step("review@2", {"text": "second lap"})
    tried = run.path / "tasks" / "review@2" / "attempts" / "1"
    trail = (tried / "trail.jsonl").read_text()
    line = {"at": "2026-11-21T17:00:00.000Z", "event": "stage.end", "seconds": 0.1}
    more = [
        {
            **line,
            "stage": "validate_quality",
            "round": 0,
            "problems": ["too dry"],
            "score": 2.0,
            "file": "07-validate_quality.json",
        },
        {**line, "stage": "critique", "round": 1, "file": "08-critique.md"},
        {**line, "stage": "parse", "round": 1, "file": "10-parse.json"},
    ]
    (tried / "trail.jsonl").write_text(trail + "".join(json.dumps(one) + "\n" for one in more))
    (tried / "08-critique.md").write_text("Be less dry.")
    (tried / "10-parse.json").write_text('{"text": "third thought"}')
    (tried / "problems.json").write_text('["still a little dry"]')
    (tried / "log.jsonl").write_text(
        '{"at": "2026-11-21T17:00:00.000Z", "level": "warning", "text": "\\u001b[31mhot", "n": 5}\n'
    )
    (tried / "stdout.txt").write_text("printed <b>this</b>")
    run.end("run.complete")
    html = client.get(f"/runs/{ID}/steps/review@2").text
    assert f"/runs/{ID}/rerun?from=review%402&stage=parse" in links(html)
    words = " ".join(Seen(html).words.split())
    assert "Refinement, round 0 to round 1" in words and '+ "text": "third thought"' in words
    assert "Since the lap before, review@1 to review@2" in words and '- "text": "first lap"' in words
    for one in ("too dry", "Be less dry.", "still a little dry", "hot n=5", "printed <b>this</b>"):
        assert one in words
    assert 'class="warning"' in html and "\x1b" not in html
    page = " ".join(Seen(client.get(f"/runs/{ID}").text).words.split())
    assert "not yet" in page and "4.5" in page


def test_answers_of_a_task_that_asks_by_itself_stand_with_its_calls(root: Root, client: TestClient) -> None:
    """No stage keeps them; tries, what came from the store, and unknown prices are told."""
    run = begin_run(root, ["a"])
    run.step("a")
    tried = run.path / "tasks" / "a" / "attempts" / "1"
    call = json.loads((tried / "calls.jsonl").read_text())
    more = {
        **call,
        "text": "the second answer",
        "cost_usd": None,
        "tries": [{"model": "large", "error_class": "unavailable"}],
    }
    (tried / "calls.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in (call, more, {**call, "cached": True}))
    )
    run.end("run.complete")
    html = client.get(f"/runs/{ID}/steps/a").text
    assert all(words in html for words in ("the second answer", "large: unavailable", "from the store", "unknown"))
    assert "1 unpriced" in client.get(f"/runs/{ID}").text


def test_texts_inside_of_json_are_compared_line_by_line() -> None:
    """A long text that is one line of JSON would differ as a whole."""
    data = json.dumps({"text": "One.\nTwo \\n no line.\nThree.", "long": "This is a sentence. " * 20}).encode()
    lines = readable(Shown("05-parse.json", "x", data, len(data))).split("\n")
    assert '  "text": "One.\\n' in lines and "    Three." in lines[3] and len(lines) > 20
    assert lines[2] == "    Two \\\\n no line.\\n"


def test_a_gate_shows_what_was_asked(root: Root, client: TestClient) -> None:
    """And the run's page leads there while it waits."""
    run = begin_run(root, ["draft", {"approve": "ok"}], place="current")
    run.step("draft")
    gate = run.path / "tasks" / "ok"
    gate.mkdir()
    (gate / "request.md").write_text("Does it cover **all**?")
    (gate / "gate.json").write_text('{"shown": []}')
    run.tell("gate.opened", instance="ok", kind="step", key=None, opening=1, expires_at=None, shown=[])
    run.end("run.waiting", **{"for": ["ok"]})
    html = client.get(f"/runs/{ID}").text
    assert "waits for a person" in html and f"/runs/{ID}/steps/ok" in links(html)
    assert "<strong>all</strong>" in client.get(f"/runs/{ID}/steps/ok").text


def test_a_failed_run_says_the_next_move_and_leads_to_the_step(root: Root, client: TestClient) -> None:
    """With the error's place and hint."""
    error = {
        "error_class": "auth",
        "message": "no key",
        "where": "pop.toml:3",
        "hint": "export it",
        "instance": "draft",
        "attempt": 1,
    }
    run = begin_run(root, ["draft"], place="current")
    run.step("draft", error=error)
    run.end("run.failed", error=error)
    html = client.get(f"/runs/{ID}").text
    assert all(words in html for words in ("auth", "no key", "pop.toml:3", "export it", "pop retry"))
    assert f"/runs/{ID}/steps/draft" in links(html)


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind", "how"),
    [("tasks/write.0/artifacts/sub dir/ä chart.png", "image/png", "inline"),
     ("tasks/write.0/artifacts/page.html", "text/plain; charset=utf-8", "inline"),
     ("seed.json", "text/plain; charset=utf-8", "inline"),
     ("files/x.bin", "application/octet-stream", "attachment"),
     ("files/x.svg", "text/plain; charset=utf-8", "inline")],
)  # fmt: skip
def test_raw_files_are_typed_and_boxed_in(root: Root, client: TestClient, path: str, kind: str, how: str) -> None:
    """Never as a page: what a model wrote runs nowhere."""
    run = finished(root)
    (run.path / "files").mkdir()
    (run.path / "files" / "x.bin").write_bytes(b"\x00\x01")
    (run.path / "files" / "x.svg").write_text("<svg onload='alert(1)'/>")
    answer = client.get(f"/runs/{ID}/raw/{path}")
    assert answer.status_code == 200 and answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "sandbox" in policy and "default-src 'none'" in policy and "allow-" not in policy
    assert answer.headers["content-disposition"].startswith(how)
    assert answer.content == (run.path / path).read_bytes()
    assert client.get(f"/runs/{ID}/raw/{path}?download=1").headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "path",
    ["../../pop.toml", "..%2f..%2fpop.toml", "%2e%2e/%2e%2e/pipeline.json", "/etc/passwd", "%2fetc%2fpasswd", "link", "link/passwd",
     "folder/file", "pipe", "tasks", "", "a%00b", "a%0ab", "tasks\\..\\..\\pop.toml", "nothing"],
)  # fmt: skip
def test_raw_files_stay_in_the_run(root: Root, client: TestClient, path: str) -> None:
    """No way up, no link, no pipe, no folder."""
    run = finished(root)
    (run.path / "link").symlink_to("/etc")
    (run.path / "folder").symlink_to(root.path)
    (root.path / "file").write_text("secret")
    os.mkfifo(run.path / "pipe")
    answer = client.get(f"/runs/{ID}/raw/{path}")
    assert answer.status_code == 404 and b"secret" not in answer.content


def test_a_link_in_a_steps_folder_is_not_followed(root: Root, client: TestClient) -> None:
    """A task may put anything into its own folder."""
    run = finished(root)
    tried = run.path / "tasks" / "plan" / "attempts" / "1"
    for name in ("03-prompt.md", "stdout.txt", "log.jsonl"):
        (tried / name).unlink(missing_ok=True)
        (tried / name).symlink_to("/etc/passwd")
    (run.path / "tasks" / "plan" / "artifacts").symlink_to("/etc")
    html = client.get(f"/runs/{ID}/steps/plan").text
    assert "root:x:" not in html and "passwd" not in html


@pytest.mark.parametrize("words", HOSTILE)
def test_what_models_and_seeds_wrote_does_nothing(root: Root, client: TestClient, words: str) -> None:
    """On the run's page, the step's, and in the report."""
    run = begin_run(root, ["a", "b"], name=words.replace("\n", " "), place="current")
    run.step("a", {words: [words]}, prompt=words, answer=words, artifacts={"x.md": words.encode()})
    error = {"error_class": words, "message": words, "where": words, "hint": words, "problems": [words]}
    run.tell("lap.ended", key=words, lap=1, verdict=words, reason=words, score=1, sha256="0", until=False)
    run.step("b", error=error)
    (run.path / "tasks" / "b" / "attempts" / "1" / "stdout.txt").write_text(words)
    run.end("run.failed", error={**error, "instance": "b", "attempt": 1})
    for path in ("", "/steps/a", "/steps/b", "/report"):
        html = client.get(f"/runs/{ID}{path}").text
        for tag, attributes in Seen(html).tags:
            own = tag == "script" and str(attributes.get("src")).startswith("/static/")
            assert own or tag not in ("script", "iframe", "object", "form", "base"), (path, tag)
            assert not [key for key in attributes if key.startswith("on")]
            assert not re.match(r"(?i)\s*(javascript|vbscript|data:text)", str(attributes.get("href") or ""))
            if tag == "img":
                assert str(attributes["src"]).startswith((f"/runs/{ID}/raw/", "data:image/"))
        assert "\x1b" not in html and "\u202e" not in html


# -- live ----------------------------------------------------------------------------------------------------------


class Site:
    def __init__(self, root: Root) -> None:
        self.root = root


def test_the_page_follows_its_run_until_it_is_complete(root: Root, client: TestClient) -> None:
    """Only what changed has another text; a promoted run ends the stream, so that the page loads anew."""
    run = begin_run(root, ["a", "b"], place="current")
    run.step("a")
    run.end()
    html = client.get(f"/runs/{ID}").text
    assert f'data-live="/live/run/{ID}"' in html
    source = RunSource(Site(root), Run(run.path, "current"))
    mark, before = source.mark(), source.fragments()
    assert mark and f'data-mark="{mark}"' in html and source.mark() == mark
    assert all(f'id="{key}"' in fragment for key, fragment in before.items())
    run.step("b")
    run.end()
    assert source.mark() != mark
    changed = {key for key, fragment in source.fragments().items() if fragment != before[key]}
    assert {"run-graph", "run-time", "run-steps", "run-costs"} <= changed
    os.renames(run.path, root.complete / ID)
    assert source.mark() is None
    assert "data-live" not in client.get(f"/runs/{ID}").text


def test_a_log_is_followed(root: Root, client: TestClient) -> None:
    """Each new line moves the mark and stands in the fragment."""
    run = begin_run(root, ["a"], place="current")
    run.tell("step.started", instance="a", step="a", attempt=1, generation=1)
    tried = run.path / "tasks" / "a" / "attempts" / "1"
    tried.mkdir(parents=True)
    run.end()
    source = StepSource(Run(run.path, "current"), "a", None)
    marks: list[Any] = [source.mark()]
    for number in range(3):
        with open(tried / "log.jsonl", "a") as log:
            log.write(json.dumps({"at": "2026-11-21T17:00:00.000Z", "level": "info", "text": f"line {number}"}) + "\n")
        marks.append(source.mark())
        assert f"line {number}" in source.fragments()["step-log"]
    (tried / "trail.jsonl").write_text(
        '{"at": "2026-11-21T17:00:00.000Z", "event": "stage.begin", "stage": "infer", "round": 0}\n'
    )
    assert "infer" in source.fragments()["step-body"]
    (tried / "stdout.txt").write_text("printed")
    assert "printed" in source.fragments()["step-log"]
    assert len({*marks, source.mark()}) == 5
    assert f'data-live="/live/run/{ID}/steps/a"' in client.get(f"/runs/{ID}/steps/a").text
    assert client.get(f"/live/run/{ID}/steps/nothing").status_code == 404
    assert client.get("/live/run/20261121-165320-nobody-ab12").status_code == 404


def test_a_browser_is_told_what_changed_and_where_to_go_on(root: Root) -> None:
    """The log's new line comes by itself; a reader that comes back with the last id gets only what it has not seen."""
    run = begin_run(root, ["a"], place="current")
    run.tell("step.started", instance="a", step="a", attempt=1, generation=1)
    tried = run.path / "tasks" / "a" / "attempts" / "1"
    tried.mkdir(parents=True)
    run.end()
    line = json.dumps({"at": "2026-11-21T17:00:00.000Z", "level": "info", "text": "so far so good"}) + "\n"
    with web_server(root) as server, server.client() as client:
        path = f"/live/run/{ID}/steps/a"
        Timer(2.0, lambda: (tried / "log.jsonl").write_text(line)).start()
        first, second = events_of(client, path, most=2, seconds=30)
        assert "step-head" in first["data"] and "so far so good" not in first["data"]
        assert "so far so good" in second["data"] and "step-head" not in second["data"]
        Timer(1.0, lambda: (tried / "log.jsonl").write_text(line + line.replace("good", "bad"))).start()
        [third] = events_of(client, path, most=1, seconds=30, headers={"last-event-id": second["id"]})
        assert "so far so bad" in third["data"] and third["id"] != second["id"]


def test_a_run_of_two_thousand_steps_is_one_light_page(root: Root, client: TestClient) -> None:
    """Below 300 kB, and below half a second of work once its diaries were read."""
    run = begin_run(root, [{"each": "seed.parts", "do": "write"}], place="current")
    run.tell("each.expanded", key="tasks[0]", count=2000)
    for number in range(1990):
        run.step(f"write.{number}", {"n": number})
    for number in range(1990, 2000):
        run.step(f"write.{number}", error={"error_class": "bug", "message": f"broken {number}"})
    run.end()
    client.get(f"/runs/{ID}")
    began = time.process_time()
    answer = client.get(f"/runs/{ID}")
    assert time.process_time() - began < 1.0
    assert len(answer.content) < 300_000 and "1,990 of 2,000" in answer.text and "broken 1995" in answer.text
    listed = client.get(f"/runs/{ID}/steps/write?show=10").text
    assert "write.1999" in listed and "10 of 10" in listed and len(listed) < 300_000


def test_a_thousand_boxes_have_a_picture_of_their_own(root: Root, client: TestClient) -> None:
    """The page stays light; the picture carries its style, and a policy that lets nothing run."""
    names = [f"s{number:03}" for number in range(1000)]
    begin_run(root, names, place="current").end()
    answer = client.get(f"/runs/{ID}")
    assert len(answer.content) < 300_000 and f"/runs/{ID}/graph.svg" in links(answer.text)
    picture = client.get(f"/runs/{ID}/graph.svg")
    assert (
        picture.headers["content-type"] == "image/svg+xml" and "sandbox" in picture.headers["content-security-policy"]
    )
    assert picture.text.count('class="node task') == 1000


def test_broken_runs_have_a_page_too(root: Root, client: TestClient) -> None:
    """What cannot be read is said."""
    folder = root.current / ID
    (folder / "tasks").mkdir(parents=True)
    (folder / "events.jsonl").write_text("nonsense\n")
    html = client.get(f"/runs/{ID}").text
    assert client.get(f"/runs/{ID}/report").status_code in (200, 404, 409)
    assert "unreadable" in html and "It cannot be drawn" in html
    assert client.get("/runs/20261121-165320-nobody-ab12").status_code == 404
