"""`pop check` on task folders: every mistake, with its place, without running anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from pop.taskcheck import Use, check_folder, check_task
from pop.tasks import hash_task, list_tasks


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
        ({"t.md": "a\n{% if seed.x %}\n{{ seed.x | uper }}{% endif %}"}, "t.md:3:13\n  hint: did you mean 'upper'?"),
        ({"t.md": "{% if seed.x is defind %}y{% endif %}"}, "t.md:1:17\n  hint: did you mean 'defined'?"),
        ({"t.md": "{{ itme | uper }}"}, "unknown filter 'uper'"),
        ({"t.md": "{{ itme | uper }}"}, "unknown name 'itme'"),
        (
            {"t.md": "x", "t.schema.json": '{\n "propertees": {}}'},
            "t.schema.json:2:2  propertees\n  hint: did you mean 'pr",
        ),
        ({"t.md": "x", "t.schema.json": '{"properties": {"a": {"tpye": "string"}}}'}, ":1:23  properties.a.tpye"),
        ({"t.md": "x", "t.schema.json": '{"properties": {\n"a": {"type": "strin"}}}'}, ":2:15  properties.a.type"),
        ({"t.md": "x", "t.schema.json": '{"properties": {\n"a": {"type": "strin"}}}'}, "did you mean 'string'?"),
        ({"t.md": "x", "t.schema.json": '{"type": 1, "minimum": "x"}'}, ":1:24  minimum"),
        ({"t.md": "---\nsamples: 2\nschema:\n  type: strin\n---\nx"}, "t.md:4:9  schema.type"),
        ({"t.md": "---\nschema:\n  propertees: {}\n---\nx"}, "t.md:3:3  schema.propertees"),
        ({"t.md": "---\nschema: t.shcema.json\n---\nx", "t.schema.json": "{}"}, "did you mean 't.schema.json'?"),
        ({"t.md": "---\nsytem: x\nsamples: 0\n---\nhi"}, "t.md:2:1  sytem"),
        ({"t.md": "---\nsytem: x\nsamples: 0\n---\nhi"}, "t.md:3:10  samples"),
        ({"t.md": "---\nsytem: x\n---\n{{ itme }}"}, "t.md:4:4"),
        ({"t.md": "---\nsamples: 3\nchoose: majorty\n---\nx"}, "t.md:3:9  choose"),
        ({"t.md": "---\nsamples: 3\nchoose: majorty\n---\nx"}, "'best' or 'majority'"),
        ({"t.md": "---\nsytem: x\n---\nx", "t.schema.json": '{"tpye": 1}'}, "t.schema.json:1:2"),
        ({"t.md": "---\nsystem: be {{ itme }}\n---\nhi"}, "t.md:2:15"),
        ({"t.md": "---\nsystem: |\n  be\n  {{ itme }}\n---\nhi"}, "t.md:4:6"),
        ({"t.md": "x {{ item.y }}"}, "only inside an `each`"),
        ({"t.md": "x {{ lap }}"}, "`lap` has a meaning only inside a `repeat`"),
        (
            {"t.md": "x", "t.py": "class Output:\n    a: int\n"},
            "t.py:1:7\n  hint: write class Output(pydantic.BaseModel)",
        ),
        ({"t.md": "x", "t.py": "class A:\n    pass\nclass Output(A):\n    a: int\n"}, "t.py:3:7"),
        ({"t.py": "import os\n\n\ndef inferr(prompt, ctx):\n    pass\n"}, "inferr() is no stage"),
        ({"t.py": "import os\n\n\ndef inferr(prompt, ctx):\n    pass\n"}, "t.py:4:5\n  hint: did you mean 'infer'?"),
        ({"index.json": '{\n"t": "json.nope"}'}, "index.json:2:6  t"),
        ({"index.json": '{"t": "json.decoder"}'}, "the module 'json.decoder' defines no infer"),
        ({"index.json": '{"t": "json.decoder.JSONDecoder"}'}, "name the module itself: json.decoder"),
        ({"index.json": '{"t": "sumarise"}', "summarise.md": "x"}, "did you mean 'summarise'?"),
    ],
)
def test_a_mistake_is_found_with_its_place(tmp_path: Path, files: dict[str, str], says: str) -> None:
    """Whatever is wrong is said before anything runs."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert says in "\n".join(str(problem) for problem in check_task(tmp_path, "t", use=Use(["outline"], in_each=False)))


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
        {"t.md": "{% if item %}{{ item.x }}{% endif %}{{ lap | default(1) }}{{ item is none }}"},
        {"t.md": "x", "t.schema.json": '{"x-unit": "m", "example": 1, "properties": {"tpye": {"note": ""}}}'},
        {"t.md": "x", "t.py": "from lib import Base\nclass Output(Base):\n    a: int\n"},
        {"t.md": "x", "t.py": "class A(pydantic.BaseModel):\n    pass\nclass Output(A):\n    a: int\n"},
        {"t.md": "x", "t.schema.json": '{"$defs": {"n": {"properties": {"x": {"$ref": "#/$defs/n"}}}}}'},
    ],
)
def test_what_is_right_is_not_complained_about(tmp_path: Path, files: dict[str, str]) -> None:
    """A check that cries wolf is switched off."""
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    assert check_task(tmp_path, "t", use=Use(["out-line"], in_each=False)) == []


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    """Two checks that meet the same broken front matter give one error."""
    (tmp_path / "t.md").write_text("---\nsytem: x\n---\nhi")
    assert len(check_task(tmp_path, "t")) == 1


def test_an_index_entry_for_missing_code_is_no_crash(tmp_path: Path) -> None:
    """Provenance of installed code is looked up without importing it."""
    (tmp_path / "index.json").write_text('{"a": "no_such_package.inner", "b": "json.tool"}')
    assert hash_task(tmp_path, "a") == {} and list(hash_task(tmp_path, "b")) == ["tool.py"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"summarise.critque.md": ""}, "summarise.critque.md\n  hint: did you mean 'summarise.critique.md'?"),
        ({"summarise.shema.json": ""}, "did you mean 'summarise.schema.json'?"),
        ({"sumarise.schema.json": "{}"}, "sumarise.schema.json\n  hint: did you mean 'summarise'?"),
        ({"Bad-Name.md": "x"}, "names are lower-case"),
        ({"Measure.py": "def infer(prompt, ctx):\n    pass\n"}, "names are lower-case"),
        ({"sumarise.py": "\ndef parse(a, ctx):\n    pass\n"}, "sumarise.py:2:5\n  hint: did you mean 'summarise.py'?"),
        ({"words.py": "def pars(a, ctx):\n    pass\n"}, "pars() is no stage"),
        ({"indx.json": "{}"}, "did you mean 'index.json'?"),
        ({"index.json": '{\n"A": "summarise",\n"b": 1}'}, "index.json:2:1  A"),
        ({"index.json": '{\n"A": "summarise",\n"b": 1}'}, "index.json:3:6  b"),
        ({"index.json": "{\n"}, "index.json:2:1"),
        ({"broken.py": "def f(:\n"}, "broken.py:1:7"),
    ],
)
def test_a_file_of_no_task_is_told(tmp_path: Path, files: dict[str, str], says: str) -> None:
    """A misspelt companion would be passed over without a word when the task runs."""
    for name, text in {"summarise.md": "x", **files}.items():
        (tmp_path / name).write_text(text)
    assert says in "\n".join(str(problem) for problem in check_folder(tmp_path))


def test_other_files_may_lie_beside_tasks(tmp_path: Path) -> None:
    """Documents, data, helper modules, schemas that a front matter names, stages that others import."""
    files = {"README.md": "# Tasks", "notes.txt": "", "words.json": "[]", "Helper.py": "def infers():\n    pass\n"}
    files |= {"a.md": "---\nschema: shared.schema.json\n---\nx", "shared.schema.json": "{}", "_draft.md": "{{"}
    files |= {"a.py": "from lib import parse\n", "lib.py": "def parse(a, ctx):\n    pass\n"}
    files |= {"index.json": '{"b": "a"}'}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert check_folder(tmp_path) == []


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
