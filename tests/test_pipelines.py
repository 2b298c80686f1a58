"""The pipelines of a root: read when asked for, kept while their files stay, frozen with each run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pop.errors import ConfigError, SeedRejected
from pop.pipelines import BrokenPipeline, PipelineShelf
from pop.settings import Root

GOOD = '{"tasks": ["one"]}'


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path)
    root.tasks.mkdir()
    root.pipelines.mkdir()
    (root.tasks / "one.py").write_text("def infer(prompt, ctx):\n    return 1\n")
    root.pipeline_file.write_text(GOOD)
    return root


def write(path: Path, text: str, tick: list[int] = [1]) -> None:  # noqa: B006
    """Write a file so that its time is one of its own."""
    path.write_text(text)
    tick[0] += 1
    os.utime(path, (tick[0], tick[0]))


def test_a_pipeline_is_read_once_and_again_when_it_changes(root: Root) -> None:
    """The bytes are those on the disk, as a run freezes them."""
    shelf = PipelineShelf(root)
    first = shelf.take("default")
    assert first.data == GOOD.encode() and shelf.take("default") is first
    write(root.pipeline_file, '{"name": "new", "tasks": ["one"]}')
    assert shelf.take("default").pipeline.name == "new"


def test_a_new_task_makes_a_pipeline_whole(root: Root) -> None:
    """The set of tasks counts as a part of it."""
    write(root.pipeline_file, '{"tasks": ["one", "two"]}')
    shelf = PipelineShelf(root)
    with pytest.raises(BrokenPipeline, match="two") as caught:
        shelf.take("default")
    assert caught.value.pipeline_name == "default" and not shelf.changed("default")
    write(root.tasks / "two.py", "def infer(prompt, ctx):\n    return 2\n")
    assert shelf.changed("default") and list(shelf.take("default").pipeline.tasks) == ["one", "two"]


def test_an_unknown_view_is_told_before_a_run_is_made(root: Root) -> None:
    """With the nearest name."""
    write(root.pipeline_file, '{"tasks": ["one"], "views": ["agentic-workflw"]}')
    with pytest.raises(BrokenPipeline, match="no view 'agentic-workflw'") as caught:
        PipelineShelf(root).take("default")
    assert (
        caught.value.hint == "did you mean 'agentic-workflow'?" and caught.value.where == "pipeline.json:1:30  views[0]"
    )


def test_a_missing_default_waits_and_a_missing_name_is_refused(root: Root) -> None:
    """pipeline.json will come back; a name nobody has is the seed's mistake, with the nearest one."""
    (root.pipelines / "report.json").write_text(GOOD)
    root.pipeline_file.unlink()
    shelf = PipelineShelf(root)
    with pytest.raises(BrokenPipeline, match="missing"):
        shelf.take("default")
    with pytest.raises(SeedRejected, match="no pipeline 'reprot'") as caught:
        shelf.take("reprot")
    assert caught.value.code == "unknown-pipeline" and caught.value.hint == "did you mean 'report'?"
    write(root.pipeline_file, GOOD)
    assert shelf.changed("default")


def test_a_frozen_pipeline_is_the_runs_own(root: Root, tmp_path: Path) -> None:
    """Tasks that went away since do not matter; a copy that somebody broke is told in its place."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "pipeline.json").write_text('{"tasks": ["gone"]}')
    shelf = PipelineShelf(root)
    assert list(shelf.frozen(run_dir, "default").tasks) == ["gone"]
    (run_dir / "pipeline.json").write_text('{"tasks": [7]}')
    with pytest.raises(ConfigError) as caught:
        shelf.frozen(run_dir, "default")
    assert "run/pipeline.json" in str(caught.value)


def test_provenance_names_every_file_of_every_task(root: Root) -> None:
    """By its hash, which changes with the file."""
    (root.tasks / "one.md").write_text("Hello")
    shelf = PipelineShelf(root)
    pipeline = shelf.take("default").pipeline
    before = shelf.provenance(pipeline)
    assert set(before["tasks"]["one"]) == {"one.py", "one.md"} and {"pop", "python", "platform"} <= set(before)
    write(root.tasks / "one.md", "Other")
    after = shelf.provenance(pipeline)["tasks"]["one"]
    assert after["one.md"] != before["tasks"]["one"]["one.md"] and after["one.py"] == before["tasks"]["one"]["one.py"]
