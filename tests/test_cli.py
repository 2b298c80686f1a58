"""The commands as a person uses them, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pop.commands import COMMANDS
from tests import warm

REPOSITORY = Path(__file__).parent.parent


def pop(*arguments: object, root: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command without keys of this machine, in a process that need not start Python."""
    return warm.pop([*(["--root", root] if root else []), *arguments], env=_environment(), **options)


def started_pop(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same, with a Python of its own that starts."""
    command = [sys.executable, "-m", "pop", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=_environment())


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "POP_"))}


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """A root made by `pop init`."""
    assert pop("init", tmp_path / "hello").returncode == 0
    return tmp_path / "hello"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_refuses_what_it_does_not_know(name: str) -> None:
    """Help exits with 0, an unknown option with 2."""
    assert "Usage:" in started_pop(name, "--help").stdout
    assert pop(name, "--no-such-option").returncode == 2


def test_help_imports_nothing_heavy() -> None:
    """It must answer at once."""
    code = "import sys\nsys.argv = ['pop', '--help']\nfrom pop.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(sorted({m.split('.')[0] for m in sys.modules} & {'pydantic', 'rich', 'openai', 'jinja2', 'orjson'}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.rstrip().endswith("[]")


def test_from_init_to_the_result(hello: Path) -> None:
    """init, check, run, show, logs, ls, tail, graph and gc on one folder."""
    assert started_pop("--root", hello, "check").returncode == 0
    ran = started_pop("--root", hello, "run", hello / "examples" / "hello.json")
    assert ran.returncode == 0, ran.stderr
    assert "complete" in ran.stdout and "extractive, not a language model" in ran.stdout
    shown = json.loads(started_pop("--root", hello, "show", "last", "--json").stdout)
    assert shown["state"] == "complete" and list(shown["tasks"]) == ["summarise", "measure"]
    assert "summarise" in pop("show", "last", root=hello).stdout
    assert "infer" in pop("logs", "last", "--trail", root=hello).stdout
    listed = json.loads(pop("ls", "--json", root=hello).stdout)
    assert [run["run_id"] for run in listed["complete"]] == [shown["run_id"]]
    assert shown["run_id"] in pop("tail", root=hello).stdout
    assert "measure" in pop("graph", root=hello).stdout and "measure" in pop("graph", "last", root=hello).stdout
    dry = pop("gc", "--older-than", "0s", "--dry-run", root=hello)
    assert shown["run_id"] in dry.stdout and Path(shown["path"]).is_dir()
    assert pop("gc", "--older-than", "0s", "--archive", root=hello).returncode == 0
    assert not Path(shown["path"]).exists()
    assert (hello / "pipeline-complete" / "archive" / f"{shown['run_id']}.tar.gz").exists()
    assert shown["run_id"] in pop("tail", root=hello).stdout


def test_a_failed_run_says_what_to_do(hello: Path) -> None:
    """Exit code 4, the error, its place, and the next move; doctor says the same."""
    (hello / "pipeline-tasks" / "measure.py").write_text("def infer(prompt, ctx):\n    return {}['missing']\n")
    ran = pop("run", hello / "examples" / "hello.json", root=hello)
    assert ran.returncode == 4
    assert "KeyError" in ran.stdout and "pop retry" in ran.stdout and "measure.py:2" in ran.stdout
    doctor = pop("doctor", root=hello)
    assert doctor.returncode == 0 and "pop retry" in doctor.stdout  # it keeps POP from nothing


def test_mistakes_are_told_before_anything_runs(hello: Path) -> None:
    """Exit code 3, with file, line and column and the nearest name; nothing is put into the queue."""
    (hello / "pipeline.json").write_text('{"name": "x",\n "tasks": ["sumarise"]}')
    for command in (["check"], ["run", hello / "examples" / "hello.json"]):
        result = pop(*command, root=hello)
        assert result.returncode == 3
        assert "pipeline.json:2:12" in result.stdout + result.stderr
        assert "did you mean 'summarise'?" in result.stdout + result.stderr
    assert not list((hello / "pipeline-pending").glob("*.json"))


def test_a_bad_seed_is_refused_with_its_reason(hello: Path) -> None:
    """Exit code 3 and the sentence; it never enters the queue."""
    (hello / "bad.json").write_text("[1]")
    result = pop("run", "bad.json", root=hello, cwd=hello)
    assert result.returncode == 3 and "a seed is a JSON object" in result.stderr
    assert "bad.json" not in pop("ls", root=hello).stdout


def test_an_unknown_command_names_the_nearest() -> None:
    """As does a run that is not there."""
    assert "Did you mean 'submit'?" in pop("sumbit").stderr
    assert "The commands are init, check," in pop("frob").stderr


def test_what_seeds_contain_cannot_steer_a_terminal(hello: Path) -> None:
    """Control characters are taken out of what is printed."""
    (hello / "pipeline-pending" / "evil\x1b[31m.json").write_text("[1]")
    assert "\x1b" not in pop("ls", root=hello).stdout


def test_init_keeps_what_is_there(hello: Path) -> None:
    """Users' files are sacred."""
    (hello / "pipeline.json").write_text("mine")
    assert pop("init", hello).returncode == 0
    assert (hello / "pipeline.json").read_text() == "mine"


def test_schemas_are_printed() -> None:
    """Each by its name."""
    for name in pop("schema").stdout.split():
        assert json.loads(pop("schema", name).stdout)["$schema"]


def test_a_seed_from_standard_input_waits_for_the_daemon(hello: Path) -> None:
    """submit puts it there whole and says that nobody serves the queue."""
    result = pop("submit", "-", root=hello, input='{"text": "x"}')
    assert Path(result.stdout.strip()).read_text() == '{"text": "x"}'
    assert "pop up" in result.stderr
