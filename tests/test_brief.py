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
