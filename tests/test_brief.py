"""The shipped example on real documents, through the daemon's own path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.test_cli import REPOSITORY, pop


def test_every_claim_of_the_brief_stands_in_its_source(tmp_path: Path) -> None:
    """brief.json names document, line and quote of each; the quote is there, word for word."""
    for name in ("pipeline.json", "pop.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "pipeline-tasks", tmp_path / "pipeline-tasks")
    ran = pop("run", "--quiet", REPOSITORY / "examples" / "brief", root=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (artifacts,) = tmp_path.glob("pipeline-complete/*/tasks/publish/artifacts")
    brief = json.loads((artifacts / "brief.json").read_bytes())
    assert brief["made_by"] == "extractive, not a language model"
    assert len(brief["sections"]) >= 3
    for section in brief["sections"]:
        for paragraph in section["paragraphs"]:
            lines = (REPOSITORY / "examples" / "brief" / f"{paragraph['source']}.rst").read_text().splitlines()
            around = " ".join(" ".join(lines[paragraph["line"] - 1 : paragraph["line"] + 12]).split())
            assert paragraph["quote"][:60] in around
    text = (artifacts / "brief.md").read_text()
    assert "extractive, not a language model" in text and "## Sources" in text


def collected(root: Path, data: dict, files: dict[str, str]) -> tuple[int, str, list[str]]:
    """Runs only `collect` over a folder seed; exit code, what was said, and the documents' ids."""
    shutil.copy(REPOSITORY / "pop.toml", root / "pop.toml")
    shutil.copytree(REPOSITORY / "pipeline-tasks", root / "pipeline-tasks")
    (root / "pipeline.json").write_text('{"name": "collect", "tasks": ["collect"]}')
    seed = root / "seed"
    for name, text in {"seed.json": json.dumps({"name": "docs", "data": data}), **files}.items():
        (seed / name).parent.mkdir(parents=True, exist_ok=True)
        (seed / name).write_text(text)
    ran = pop("run", "--quiet", seed, root=root)
    outputs = list(root.glob("pipeline-complete/*/tasks/collect/output.json"))
    ids = [document["id"] for document in json.loads(outputs[0].read_bytes())["documents"]] if outputs else []
    errors = [path.read_text() for path in root.glob("pipeline-current/*/tasks/collect/error.json")]
    return ran.returncode, ran.stdout + ran.stderr + "".join(errors), ids


def test_two_files_of_one_stem_stay_two_documents(tmp_path: Path) -> None:
    """A claim's source must say which of them it means, so both are called by their whole path."""
    code, said, ids = collected(
        tmp_path, {"title": "x"}, {"a/notes.md": "One thing.", "b/notes.md": "Another.", "c.txt": "C."}
    )
    assert code == 0, said
    assert ids == ["a/notes.md", "b/notes.md", "c"]


def test_a_document_without_text_is_the_seeds_mistake(tmp_path: Path) -> None:
    """The run fails as bad_input and names the entry; it is no bug of the task."""
    code, said, _ = collected(tmp_path, {"documents": [{"title": "no text"}]}, {})
    assert code == 4
    assert "bad_input" in said and "seed.documents[0]" in said


def test_two_documents_of_one_id_are_refused(tmp_path: Path) -> None:
    """Otherwise a quote of the second would be traced to the first."""
    twice = [{"id": "a", "text": "One thing."}, {"id": "a", "text": "Another."}]
    code, said, _ = collected(tmp_path, {"documents": twice}, {})
    assert code == 4
    assert "bad_input" in said and "two documents are called" in said
