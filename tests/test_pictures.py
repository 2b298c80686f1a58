"""The pictures in the documents: real runs of the brief and of the agentic workflow, made anew by `POP_SHOTS=docs/pictures`."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browsing import WITHOUT, chromium, shoot, somebody, started_browser
from tests.test_agentic_workflow import TEMPLATE, Workflow, workflow
from tests.test_cli import REPOSITORY, pop
from tests.webbing import web_server

PICTURES = REPOSITORY / "docs" / "pictures"
MOST_BYTES = 200_000
PAGES = ("README.md", "docs/web.md", "docs/report.md")
BRIEFS = {
    "generators": ("How generators learnt to delegate", ["pep-0255.rst", "pep-0289.rst", "pep-0380.rst"]),
    "matching": ("Pattern matching, and why", ["pep-0634.rst", "pep-0636.rst"]),
    "grammar": ("Small changes of the grammar", ["pep-0572.rst", "pep-0498.rst", "pep-0443.rst"]),
    "async": ("Coroutines with a syntax of their own", ["pep-0492.rst", "pep-0343.rst"]),
}


def test_the_documents_show_pictures_that_are_there_and_small() -> None:
    """1280 pixels wide, below 200 kB, and none is left over."""
    shown: set[Path] = set()
    for name in PAGES:
        page = REPOSITORY / name
        found = re.findall(r"(?:!\[[^\]]*\]\(|src=\"|srcset=\")([^)\"\s]+\.png)", page.read_text())
        shown |= {(page.parent / one).resolve() for one in found}
    assert shown and shown == set(PICTURES.glob("*.png"))
    for picture in shown:
        data = picture.read_bytes()
        width, _ = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG") and width == 1280 and len(data) < MOST_BYTES, (
            picture.name,
            width,
            len(data),
        )


# -- making them -------------------------------------------------------------------------------------------------------


@contextmanager
def newsroom(path: Path) -> Iterator[Workflow]:
    """A folder in which both pipelines have worked: complete, failed, waiting, at work and still in the queue."""
    with workflow(path) as living:
        (path / "pipelines").mkdir()
        shutil.move(path / "pipeline.json", path / "pipelines" / "agentic-workflow.json")
        shutil.copy(REPOSITORY / "pipeline.json", path / "pipeline.json")
        shutil.copytree(REPOSITORY / "pipeline-tasks", path / "pipeline-tasks", dirs_exist_ok=True)
        shutil.copy(TEMPLATE / "pop.toml", path / "pop.toml")  # `python3`, whichever that is
        daemon = living.up()
        shutil.copytree(REPOSITORY / "examples" / "brief", living.root.pending / "brief", symlinks=True)
        for name, (title, documents) in BRIEFS.items():
            brief(living, name, title, documents)
        for title in ("A brief of no documents", "Minutes of the working group"):
            brief(living, title.split()[0], title, [])
        living.wait_complete(5, 120)
        semver(living, "semantic versions")
        living.wait(lambda: gate_open(living, "plan-approval@2"), "the plan")
        pop("approve", "semantic versions", "-m", "a good plan", root=path)
        living.wait(lambda: gate_open(living, "code-review@1"), "the review")
        pop(
            "request-changes", "semantic versions", "-m", "Say in the docstring that release scripts use it.", root=path
        )
        living.wait(lambda: gate_open(living, "final-approval@2"), "the last gate")
        pop("approve", "semantic versions", root=path)
        living.wait_complete(6, 120)
        semver(living, "version ranges")
        semver(living, "release notes")
        living.wait(lambda: gates_open(living) == 2, "two plans")
        living.stop(daemon)
        living.up(env={"POP_SCRIPTED_SLEEP_S": "600"})
        semver(living, "calendar versions")
        brief(living, "tonight", "What changed this week", ["pep-0654.rst"], not_before="2199-01-01T20:00:00Z")
        living.wait(
            lambda: [
                s for s in map(living.status, living.current()) if s["state"] == "running" and "plan" in s["current"]
            ],
            "a run at work",
        )
        yield living


def brief(living: Workflow, name: str, title: str, documents: list[str], **envelope: Any) -> None:
    draft = living.root.pending / f".{name}.draft"
    draft.mkdir()
    for document in documents:
        shutil.copy(REPOSITORY / "examples" / "brief" / document, draft)
    data = {"title": title, "audience": "engineers who know Python", "themes": 4}
    (draft / "seed.json").write_text(json.dumps({"name": title, "data": data, **envelope}))
    os.rename(draft, living.root.pending / name)


def semver(living: Workflow, name: str) -> None:
    draft = living.root.pending / f".{name}.draft"
    shutil.copytree(living.path / "examples" / "semver", draft)
    seed = json.loads((draft / "seed.json").read_text())
    (draft / "seed.json").write_text(json.dumps({**seed, "name": name, "pipeline": "agentic-workflow"}))
    os.rename(draft, living.root.pending / name.replace(" ", "-"))


def gates_open(living: Workflow) -> int:
    return sum(status["state"] == "waiting" for status in map(living.status, living.current()))


def gate_open(living: Workflow, gate: str) -> bool:
    return any(gate in (status.get("waiting_for") or []) for status in map(living.status, living.current()))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.mark.skipif(chromium() is None, reason=WITHOUT)
@pytest.mark.skipif(not os.environ.get("POP_SHOTS"), reason="pictures are made where POP_SHOTS names a folder")
@pytest.mark.timeout(400)
def test_pictures_are_made(browser: Browser, tmp_path: Path) -> None:
    """Board, run, gate, step and report, light and dark."""
    folder = Path(os.environ["POP_SHOTS"]).absolute()
    with newsroom(tmp_path / "newsroom") as living, web_server(living.root) as server:
        runs = {row["name"]: row["run_id"] for row in [*living.ledger(), *map(living.status, living.current())]}
        done, asked = f"/runs/{runs['semantic versions']}", f"/runs/{runs['version ranges']}"
        report = tmp_path / "report.html"
        assert pop("report", runs["semantic versions"], "-o", report, root=living.path).returncode == 0
        for scheme in ("light", "dark"):
            with somebody(browser, server, color_scheme=scheme) as person:
                page = person.goes("/")
                expect(page.locator("#live-state")).to_have_text("live")
                taken(page, folder, f"board-{scheme}", 800)
                person.goes(asked)
                taken(page, folder, f"run-{scheme}", 1100)
                if scheme == "light":
                    person.goes(f"{asked}/gates/plan-approval@2")
                    taken(page, folder, "gate-light", 900)
                else:
                    person.goes(f"{done}/steps/validate-plan@2")
                    taken(page, folder, "step-dark", 900)
            with somebody(browser, offline=True, color_scheme=scheme) as person:
                person.page.goto(report.as_uri())
                taken(person.page, folder, f"report-{scheme}", 1000)


def taken(page: Page, folder: Path, name: str, height: int) -> None:
    page.set_viewport_size({"width": 1280, "height": height})
    page.evaluate("() => { document.documentElement.style.scrollbarGutter = 'auto'; return document.fonts.ready; }")
    page.wait_for_timeout(700)
    assert shoot(page, folder, name).stat().st_size < MOST_BYTES, name
