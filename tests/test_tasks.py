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
        ({"t.md": "the itme is\n\nhere: {{ itme }}"}, "t.md:3:10"),
        ({"t.md": "---\ntemperature: 0\nsystem: be {{ itme }}\n---\nhi"}, "t.md:3"),
        ({"t.md": "{% include 'x.md' %}"}, "include"),
        ({"t.md": "x", "t.schema.json": '{"$ref": "http://example.org/s.json"}'}, "$ref"),
        ({"t.md": "x", "t.schema.json": '{"$ref": "#/$defs/nope"}'}, "$ref"),
        ({"t.md": "x", "index.json": '{"t": "../t"}'}, "index.json"),
        ({"index.json": '{"t": "no_such_package.inner"}'}, "no installed module"),
        ({"t.md": "{{ inputs.outlin.x }}"}, "did you mean 'outline'?"),
        ({"t.md": "{{ inputs['outlin'] }}"}, "did you mean 'outline'?"),
    ],
)
def test_a_mistake_is_found_with_its_place(tmp_path: Path, files: dict[str, str], says: str) -> None:
    """Whatever is wrong is said before anything runs."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert says in "\n".join(str(problem) for problem in check_task(tmp_path, "t", steps=["outline"]))


@pytest.mark.parametrize(
    "files",
    [
        {"t.md": "---\nsystem: You are *very* terse, R&D style.\n---\nhi"},
        {"t.md": "---\n---\nhi"},
        {"t.md": "\ufeff---\nsystem: x\n---\nhi"},
        {"t.md": "---\r\nsystem: x\r\n---\r\nhi"},
        {"t.md": "{{ inputs.out_line }}{{ inputs.items() }}"},
        {"t.md": "x", "t.py": "def preprocess(m, ctx):\n    return {'a': 1}\n", "t.refine.md": "{{ a }}"},
        {"t.md": "{% set x = 1 %}{% for i in [1] %}{{ i }}{{ loop.index }}{% endfor %}{{ x }}{{ range(3) }}"},
        {"t.md": "x", "t.schema.json": '{"$defs": {"a": {"type": "string"}}, "$ref": "#/$defs/a"}'},
        {"t.md": "x", "t.schema.json": '{"$defs": {"n": {"properties": {"x": {"$ref": "#/$defs/n"}}}}}'},
    ],
)
def test_what_is_right_is_not_complained_about(tmp_path: Path, files: dict[str, str]) -> None:
    """A check that cries wolf is switched off."""
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    assert check_task(tmp_path, "t", steps=["out-line"]) == []


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    """Two checks that meet the same broken front matter give one error."""
    (tmp_path / "t.md").write_text("---\nsytem: x\n---\nhi")
    assert len(check_task(tmp_path, "t")) == 1


def test_an_index_entry_for_missing_code_is_no_crash(tmp_path: Path) -> None:
    """Provenance of installed code is looked up without importing it."""
    (tmp_path / "index.json").write_text('{"a": "no_such_package.inner", "b": "json.tool"}')
    assert hash_task(tmp_path, "a") == {} and list(hash_task(tmp_path, "b")) == ["tool.py"]


def test_checking_runs_no_code(tmp_path: Path) -> None:
    """A task's Python file is read, not executed."""
    (tmp_path / "t.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef infer(prompt, ctx):\n    pass\n")
    assert check_task(tmp_path, "t") == [] and list_tasks(tmp_path) == {"t": "code"}
    assert not (tmp_path / "ran").exists()


def test_helper_modules_are_no_tasks(tmp_path: Path) -> None:
    """Only a .py that defines infer is one; companions of a prompt belong to it."""
    for name in ("a.md", "a.critique.md", "a.refine.md", "a.schema.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "d.py").write_text("from lib import infer\n")
    (tmp_path / "lib.py").write_text("def shared():\n    pass\n")
    (tmp_path / "index.json").write_text('{"b": "a", "c": "json.tool"}')
    assert list_tasks(tmp_path) == {"a": "prompt", "b": "prompt", "c": "installed", "d": "code"}
    assert sorted(hash_task(tmp_path, "b")) == ["a.critique.md", "a.md", "a.refine.md", "a.schema.json"]
