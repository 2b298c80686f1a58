"""A run as one file: what a person finds in it, and that it is always small, whole and harmless."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pop.report import MAX_BYTES, look_of, report, short_text
from pop.runs import Run
from pop.settings import Root
from tests.living import LivingRoot
from tests.runfolders import NO_USAGE, T0, begin_run
from tests.test_cli import pop
from tests.test_safehtml import HOSTILE

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


class Page(HTMLParser):
    """What a browser would load, run or follow."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "link", "br", "img", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-5:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def made(root: Root, run_dir: Path) -> str:
    """The report, looked through as every report must be."""
    html = report(root, look_of(Run(run_dir, run_dir.parent.name.removeprefix("pipeline-")), T0 + 100), now=T0 + 100)
    assert len(html.encode()) < 2_000_000
    page = Page(html)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base", "link"), tag
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "srcset")]
        assert not re.match(r"(?i)\s*(javascript|vbscript|data:text)", attributes.get("href", ""))
        if tag == "img":
            assert attributes["src"].startswith("data:image/")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(a["href"][1:] in ids for _, a in page.tags if a.get("href", "").startswith("#")), "a link leads nowhere"
    return html


def test_a_finished_run_is_told_whole(root: Root) -> None:
    """Graph, timeline, costs, prompts, answers, outputs, artifacts, the picture itself."""
    run = begin_run(root, ["plan", {"each": "inputs.plan.parts", "do": "write"}], name="My run")
    run.step("plan", {"parts": ["a", "b"]}, prompt="Plan three parts.", answer='{"parts": 2}')
    run.tell("each.expanded", key="tasks[1]", count=2)
    run.step("write.0", "# Part one", artifacts={"chart.png": PNG, "notes.md": b"some *notes*"})
    run.step("write.1", "# Part two")
    html = made(root, run.end("run.complete"))
    text = Page(html).text
    assert "My run" in text and "Plan three parts." in text and '{"parts": 2}' in text
    assert "<h1>Part one</h1>" in html and "<em>notes</em>" in html and "data:image/png;base64," in html
    assert 'class="picture graph"' in html and 'class="picture timeline"' in html
    assert "fast (m-1)" in text and "$0.0060" in text and "2 items" in text
    assert "Not in this file" not in text


def test_a_failed_run_says_what_went_wrong_and_what_to_do_next(root: Root) -> None:
    """The failed step's details come first in what is kept, and are open."""
    error = {"error_class": "invalid_output", "message": "no title", "where": "draft.md:3", "hint": "ask for a title",
             "problems": ["/title: is missing"], "traceback": "Traceback: x"}  # fmt: skip
    run = begin_run(root, ["draft"], place="current")
    run.step("draft", error=error)
    html = made(root, run.end("run.failed", error={**error, "instance": "draft", "attempt": 1}))
    text = Page(html).text
    assert "invalid_output : no title" in text.replace(" :", " :") or "invalid_output" in text
    for words in ("no title", "draft.md:3", "ask for a title", "/title: is missing", "Traceback: x", "pop retry"):
        assert words in text
    assert '<details class="step" id="step-draft" open>' in html
    short = short_text(root, look_of(Run(run.path, "current"), T0), now=T0)
    assert "## What went wrong" in short and "pop retry" in short and "no title" in short


def test_a_run_that_waits_shows_what_is_asked_and_one_that_was_decided_by_whom(root: Root) -> None:
    """The request as it was laid before the person, the words of the answer, and what was edited."""
    run = begin_run(root, ["draft", {"approve": "ok", "show": ["draft"]}], place="current")
    run.step("draft", "# A draft")
    gate = run.path / "tasks" / "ok"
    (gate / "show").mkdir(parents=True)
    (gate / "show" / "draft.md").write_text("# A draft")
    (gate / "request.md").write_text("# Approve ok?\n\nDoes it cover **all**?")
    shown = [{"instance": "draft", "path": "tasks/ok/show/draft.md", "sha256": ""}, {"path": "tasks/ok/show/../../x"}]
    (gate / "gate.json").write_text(json.dumps({"kind": "step", "shown": shown}))
    run.tell("gate.opened", instance="ok", kind="step", key=None, opening=1, expires_at=None, shown=[])
    html = made(root, run.end("run.waiting", **{"for": ["ok"]}))
    text = Page(html).text
    assert "This run has not ended" in text and "Does it cover all ?" in text and "pop approve" in text
    decided = {
        "decision": "approve",
        "by": "ann",
        "how": "command",
        "text": "fine by me",
        "at": "2026-11-21T17:00:00.000Z",
    }
    (gate / "output.json").write_text(json.dumps(decided))
    (gate / "edits.diff").write_text("--- a\n+++ b\n@@ -1 +1 @@\n-# A draft\n+# The draft\n")
    run.tell(
        "gate.decided",
        instance="ok",
        sha256="0",
        edited=[{"instance": "draft", "path": "x", "sha256": "y"}],
        **dict[str, Any](decided),
    )
    html = made(root, run.end("run.complete"))
    text = Page(html).text
    assert "fine by me" in text and "ann" in text and "with 1 edit" in text and '<span class="ins">+# The draft' in html


def test_forks_replays_and_reruns_say_so(root: Root) -> None:
    """Where the beginning came from, that no model was asked, and that it was taken up again."""
    run = begin_run(root, ["a"], forked_from={"run": "20261120-000000-first-aaaa", "from": ["a"]})
    run.step("a")
    call = run.path / "tasks" / "a" / "attempts" / "1" / "calls.jsonl"
    call.write_text(call.read_text().replace('"model": "fast"', '"model": "replay:20261120-000000-first-aaaa"'))
    run.tell("run.rerun", by="ann", instances=["a"], reason="better")
    run.step("a", attempt=2)
    text = Page(made(root, run.end("run.complete"))).text
    assert "Forked from 20261120-000000-first-aaaa" in text and "Replayed: no model was asked" in text
    assert "Taken up again from a step 1 time" in text


@pytest.mark.parametrize("words", HOSTILE)
def test_whatever_seeds_models_and_files_hold_is_harmless(root: Root, words: str) -> None:
    """As a name, prompt, answer, key, artifact, error, log, gate and loop."""
    run = begin_run(root, ["a", "b"], name=words.replace("\n", " "))
    run.step(
        "a",
        {words: [words]},
        prompt=words,
        answer=words,
        artifacts={"x.md": words.encode(), "y.svg": b"<svg onload='x'>"},
    )
    error = {
        "error_class": words,
        "message": words,
        "where": words,
        "hint": words,
        "problems": [words],
        "traceback": words,
    }
    run.tell("lap.ended", key=words, lap=1, verdict=words, reason=words, score=1, sha256="0", until=False)
    run.tell("gate.decided", instance=words, decision=words, by=words, how=words, text=words)
    run.step("b", error=error)
    run_dir = run.end("run.failed", error={**error, "instance": "b", "attempt": 1})
    made(root, run_dir)
    short = short_text(root, look_of(Run(run_dir, "complete"), T0), now=T0)
    assert "\x1b" not in short and "\u202e" not in short
    outside = re.sub(r"^(`{3,}).*?^\1$", "", short, flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"(?<!\\)`[^`\n]*`", "", outside)
    assert not re.search(r"(?<!\\)<", outside)


def test_nonsense_in_the_files_is_passed_over(root: Root) -> None:
    """A page about a broken run is what a person needs most."""
    run = begin_run(root, ["a", "b"])
    run.step("a")
    tried = run.path / "tasks" / "a" / "attempts" / "1"
    lines = [
        "7",
        "[]",
        '{"at": 5}',
        '{"event": "stage.end", "at": "x", "seconds": "y", "file": "../../../etc/passwd", "problems": 3}',
        "{",
    ]
    (tried / "trail.jsonl").write_text("\n".join(lines))
    (tried / "calls.jsonl").write_text('{"tries": 7, "ms": "x", "cost_usd": [], "model": {}, "warnings": "x"}\n')
    (tried / "problems.json").write_text('{"a": 1}')
    (tried / "error.json").write_text("[]")
    (run.path / "tasks" / "a" / "output.json").write_text("{")
    (tried / "04-infer.md").unlink()
    (tried / "04-infer.md").symlink_to("/etc/passwd")
    run_dir = run.end("run.complete")
    (run_dir / "pipeline.json").write_text("{")
    (run_dir / "events.jsonl").write_bytes((run_dir / "events.jsonl").read_bytes() + b'{"event": "step.done"}\n{"torn')
    html = made(root, run_dir)
    assert "its pipeline cannot be drawn" in html
    assert "root:x:" not in html


def test_a_run_of_two_thousand_steps_with_much_text_stays_small(root: Root) -> None:
    """It says what was cut and where it stands; the failed one is there in full."""
    run = begin_run(root, [{"each": "seed.parts", "do": "write"}])
    run.tell("each.expanded", key="tasks[0]", count=2000)
    big = "a word and another <b> & 'so' on; " * 400
    for number in range(1999):
        run.step(f"write.{number}", {"text": big, "n": list(range(200))}, prompt=big, answer=big)
    run.step(
        "write.1999", error={"error_class": "bug", "message": "the one that failed"}, prompt="the prompt that failed"
    )
    began = time.process_time()
    html = made(root, run.end("run.failed", error={"error_class": "bug", "message": "x", "instance": "write.1999"}))
    assert time.process_time() - began < 60
    assert len(html.encode()) > 1_000_000 and "the prompt that failed" in html
    text = Page(html).text
    assert (
        "Not in this file" in text
        and "the details of 1," in text
        and "1999 of 2,000 done" in text.replace("1,999", "1999")
    ) or "2000" in text


def test_a_thousand_steps_of_a_pipeline_fit_too(root: Root) -> None:
    """The graph of a thousand boxes, a table, a timeline."""
    names = [f"s{number:03}" for number in range(1000)]
    run = begin_run(root, names)
    for name in names:
        run.step(name, {"n": 1}, usage=NO_USAGE)
    html = made(root, run.end("run.complete"))
    assert 'class="picture graph"' in html or "pop graph" in html


def test_pop_report_writes_one_file(make_living: Callable[..., LivingRoot]) -> None:
    """On a real run with refinements: the file here, -o elsewhere, --md to stdout, and an error that says what to do."""
    task = """
def infer(prompt, ctx): return '{"text": "too short", "round": 0}'
def validate_quality(output, ctx):
    if output["round"] < 1: yield "it is too short"
def critique(output, problems, ctx): return "make it longer"
def refine(output, critique, ctx): return '{"text": "long enough now", "round": 1}'
"""
    living = make_living(
        pipeline={"tasks": ["draft"]}, tasks={"draft.py": task, "draft.schema.json": '{"type": "object"}'}
    )
    assert pop("run", "-q", "-", input='{"x": 1}', root=living.path).returncode == 0
    written = pop("report", root=living.path, cwd=living.path)
    assert written.returncode == 0, written.stderr
    html = (living.path / written.stdout.strip()).read_text()
    assert "Refinement, round 0 to round 1" in html and "long enough now" in html and "make it longer" in html
    assert "it is too short" in html
    other = pop("report", "last", "-o", living.path / "r" / "x.html", root=living.path)
    assert other.returncode == 2 and "cannot write the report" in other.stderr
    assert "# " in pop("report", "--md", root=living.path).stdout
    assert pop("report", "-o", "-", root=living.path).stdout.startswith("<!doctype html>")
    assert pop("report", "nobody", root=living.path).returncode == 2


def test_the_limit_is_below_two_megabytes() -> None:
    """With room for what is added behind it."""
    assert MAX_BYTES < 2_000_000
