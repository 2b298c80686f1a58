"""Gates: what a person is shown, how they answer, and that the first answer counts, whenever the power goes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pop.gates import AlreadyAnswered, Answer, find_answer, give_answer, open_gate, take_edits, write_output
from pop.gateshow import Shown, sha256_of
from pop.records import dump_json
from pop.store import Disk

T = "2026-11-21T03:15:02.000Z"
RUN = "20261121-031502-a-aaaa"
ALL = ["approve", "reject", "request-changes"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run whose draft and facts are done; the draft is a text with an artifact."""
    folder = tmp_path / RUN
    (folder / "tasks" / "draft" / "artifacts").mkdir(parents=True)
    (folder / "tasks" / "facts").mkdir()
    (folder / "tasks" / "draft" / "output.json").write_text('"# Title\\n\\nSome words."')
    (folder / "tasks" / "draft" / "artifacts" / "plot.bin").write_bytes(b"\x00\xff\x01")
    (folder / "tasks" / "facts" / "output.json").write_text('{"n":1,"of":["a","b"]}')
    journal(
        folder, {"event": "run.created", "run_id": RUN, "name": "a", "pipeline": "default", "seed_file": "article.json"}
    )
    return folder


def journal(run_dir: Path, *rows: dict[str, Any]) -> None:
    with open(run_dir / "events.jsonl", "ab") as file:
        file.write(b"".join(dump_json({"at": T, **row}, pretty=False) for row in rows))


def opened(run_dir: Path, instance: str = "review", **about: Any) -> list[Shown]:
    given: dict[str, Any] = {
        "kind": "step", "title": "", "why": "Is it fit to print?", "shown": ["draft", "facts"], "options": ALL,
        "opening": 1, "expires_at": None, **about,
    }  # fmt: skip
    return open_gate(Disk(durable=False), run_dir, instance, **given)


def gate_of(run_dir: Path, instance: str = "review") -> Path:
    return run_dir / "tasks" / instance


def still(path: Path, seconds: float = 10.0) -> Path:
    """A file that nobody has changed for a while."""
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def found(run_dir: Path, instance: str = "review") -> Answer | None:
    return find_answer(Disk(durable=False), gate_of(run_dir, instance), time.time())


def test_an_opened_gate_shows_copies_and_says_how_to_answer(run_dir: Path) -> None:
    """Texts as Markdown, the rest as indented JSON, artifacts as they are."""
    shown = opened(run_dir)
    assert [(copy.instance, copy.path) for copy in shown] == [
        ("draft", "tasks/review/show/draft.md"),
        ("draft", "tasks/review/show/draft/plot.bin"),
        ("facts", "tasks/review/show/facts.json"),
    ]
    assert (run_dir / shown[0].path).read_text() == "# Title\n\nSome words.\n"
    assert json.loads((run_dir / shown[2].path).read_bytes()) == {"n": 1, "of": ["a", "b"]}
    page = (gate_of(run_dir) / "request.md").read_text()
    assert "> Is it fit to print?" in page and "`article.json`" in page and "Some words." in page
    assert f'    pop request-changes {RUN} review -m "..."' in page and "`CHANGES.md`" in page


def test_the_first_answer_counts_and_the_next_one_hears_of_it(run_dir: Path) -> None:
    """Who, when and how."""
    opened(run_dir)
    path = give_answer(Disk(), gate_of(run_dir), "approve", by="anna", how="command", text=" fine ")
    assert path == gate_of(run_dir) / "decision.json"
    with pytest.raises(
        AlreadyAnswered, match=r"review was answered already: approve, by anna at .+Z \(command\): fine"
    ):
        give_answer(Disk(), gate_of(run_dir), "reject", by="bert", how="command")
    answer = found(run_dir)
    assert answer is not None and (answer.decision, answer.by, answer.text) == ("approve", "anna", "fine")


def test_edits_become_the_output_and_the_old_version_stays(run_dir: Path) -> None:
    """Only what was changed is an edit."""
    shown = opened(run_dir)
    (run_dir / shown[0].path).write_text("# Title\n\nBetter words.\n")
    edits = take_edits(Disk(), run_dir, gate_of(run_dir), shown, "review")
    assert [edit.path for edit in edits] == ["tasks/draft/output.json"] and edits[0].is_output
    folder = run_dir / "tasks" / "draft"
    assert json.loads((folder / "output.json").read_bytes()) == "# Title\n\nBetter words."
    assert json.loads((folder / "output.before-review.json").read_bytes()) == "# Title\n\nSome words."
    assert "+Better words." in (gate_of(run_dir) / "edits.diff").read_text()
    answer = Answer(decision="approve", by="anna", at=T, how="command")
    sha256, size = write_output(Disk(), gate_of(run_dir), answer, edits)
    data = (gate_of(run_dir) / "output.json").read_bytes()
    assert (sha256, size) == (sha256_of(data), len(data))
    assert json.loads(data) == {**answer.model_dump(), "edited": ["tasks/draft/output.json"]}
