"""`pop check` on task folders: every mistake, with its place, without running anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from pop.tasks import check_task, hash_task, list_tasks


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"t.md": "{{ seed.x"}, "t.md:1"),
        ({"t.md": "a\n\n{{ itme }}"}, "did you mean 'item'?"),
        ({"t.md": "{{ seed | nope }}"}, "nope"),
        ({"t.md": "---\nsytem: x\n---\nhi"}, "did you mean 'system'?"),
        ({"t.md": "---\na: [1\n---\nhi"}, "front matter"),
        ({"t.md": "---\na: &x 1\nb: *x\n---\nhi"}, "anchors"),
        ({"t.md": "---\nsystem: x\nhi"}, "closing ---"),
        ({"t.md": "   "}, "empty"),
        ({"t.md": "x", "t.schema.json": '{"type": "objekt"}'}, "not a JSON Schema"),
        ({"t.md": "x", "t.schema.json": '{"a": 1, "a": 2}'}, "twice"),
        ({"t.md": "x", "t.refine.md": "{{ critik }}"}, "critique"),
        ({"t.py": "def infer(prompt, ctx)\n    pass\n"}, "t.py:1"),
        ({"t.py": "def infer(prompt, ctx):\n    pass\ndef pars(a, ctx):\n    pass\n"}, "did you mean 'parse'?"),
        ({"t.py": "def infer(prompt):\n    pass\n"}, "takes (value, ctx)"),
        ({}, "no task 't'"),
    ],
)
def test_a_mistake_is_found_with_its_place(tmp_path: Path, files: dict[str, str], says: str) -> None:
    """Whatever is wrong is said before anything runs."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert says in "\n".join(str(problem) for problem in check_task(tmp_path, "t"))


def test_checking_runs_no_code(tmp_path: Path) -> None:
    """A task's Python file is read, not executed."""
    (tmp_path / "t.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef infer(prompt, ctx):\n    pass\n")
    assert check_task(tmp_path, "t") == [] and list_tasks(tmp_path) == {"t": "code"}
    assert not (tmp_path / "ran").exists()


def test_helper_modules_are_no_tasks(tmp_path: Path) -> None:
    """Only a .py that defines infer is one; companions of a prompt belong to it."""
    for name in ("a.md", "a.critique.md", "a.refine.md", "a.schema.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "lib.py").write_text("def shared():\n    pass\n")
    (tmp_path / "index.json").write_text('{"b": "a", "c": "json.tool"}')
    assert list_tasks(tmp_path) == {"a": "prompt", "b": "prompt", "c": "installed"}
    assert sorted(hash_task(tmp_path, "b")) == ["a.critique.md", "a.md", "a.refine.md", "a.schema.json"]
