"""One contract for all commands: help, options, --json where it is documented, the root by either side."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pop.cli import pop as pop_group
from pop.commands import COMMANDS
from pop.gates import open_gate
from pop.records import dump_json
from pop.store import Disk
from tests.test_cli import pop
from tests.test_docs import DOCS, rows_of

DOCUMENTED = {row.split()[1]: row for row in rows_of((DOCS / "cli.md").read_text())}
WITH_JSON = [name for name, row in DOCUMENTED.items() if "--json" in row]
ROOTLESS = {"init", "schema", "completion"}


def command_of(name: str) -> click.Command:
    command = pop_group.get_command(click.Context(pop_group), name)
    assert command is not None
    return command


def options_of(name: str) -> set[str]:
    return {
        text
        for parameter in command_of(name).params
        if parameter.param_type_name == "option"
        for text in parameter.opts
    }


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """A root with a finished run and one that failed."""
    root = tmp_path / "hello"
    assert pop("init", root).returncode == 0
    for place, state in (("complete", "complete"), ("current", "failed")):
        run_dir = root / f"pipeline-{place}" / f"20261121-03150{len(place)}-a-{place[:4]}"
        run_dir.mkdir()
        (run_dir / "events.jsonl").write_text('{"event": "run.created", "at": "2026-11-21T03:15:02.000Z"}\n')
        (run_dir / "pipeline.json").write_bytes((root / "pipeline.json").read_bytes())
        status = {"run_id": run_dir.name, "name": "a", "state": state, "tasks": {}, "pipeline": "default"}
        (run_dir / "tasks-status.json").write_bytes(dump_json(status))
    wait_at_a_gate(root / "pipeline-current" / "20261121-031501-a-wait")
    line = {"run_id": "20261121-031508-a-comp", "finished_at": "2026-11-21T03:15:08.000Z", "models": []}
    (root / "pipeline-complete" / "runs.jsonl").write_bytes(dump_json(line, pretty=False))
    return root


def wait_at_a_gate(run_dir: Path) -> None:
    """A run of which one gate is open."""
    run_dir.mkdir()
    about: dict[str, Any] = {"kind": "step", "opening": 1, "expires_at": None, "shown": []}
    asked: dict[str, Any] = {"title": "", "why": "", "options": ["approve", "reject", "request-changes"]}
    open_gate(Disk(durable=False), run_dir, "review", **about, **asked)
    at = {"at": "2026-11-21T03:15:01.000Z"}
    created = {"event": "run.created", "run_id": run_dir.name, "name": "a", "pipeline": "default", **at}
    waiting = {"event": "gate.opened", "instance": "review", "key": None, **about, **at}
    (run_dir / "events.jsonl").write_bytes(dump_json(created, pretty=False) + dump_json(waiting, pretty=False))
    status = {"run_id": run_dir.name, "name": "a", "state": "waiting", "tasks": {}, "pipeline": "default"}
    (run_dir / "tasks-status.json").write_bytes(dump_json(status))


ARGUMENTS: dict[str, list[object]] = {
    "new": ["--name", "Some_Project", "--goal", "1"],
    "run": ["{root}/examples/hello.json"],
    "submit": ["{root}/examples/hello.json"],
    "cancel": ["20261121-031507-a-curr"],
    "plan": ["{root}/examples/hello.json"],
    "diff": ["20261121-031508-a-comp", "20261121-031507-a-curr"],
    "pause": ["--pipeline", "default"],
    "resume": ["--all"],
    "rerun": ["--all", "--from", "greet"],
    "retry": ["20261121-031507-a-curr"],
    "approve": ["20261121-031501-a-wait"],
    "reject": ["20261121-031501-a-wait"],
    "request-changes": ["20261121-031501-a-wait", "-m", "shorter"],
    "gc": ["--older-than", "99w"],
    "show": ["20261121-031508-a-comp"],
    "watch": ["--once"],
}
JSON_LINES = {"tail", "logs", "watch"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_a_sentence_and_unknown_options_exit_with_2(name: str) -> None:
    """The first line stands in `pop --help` too; every option explains itself."""
    runner = CliRunner()
    shown = runner.invoke(pop_group, [name, "--help"])
    assert shown.exit_code == 0 and "Usage:" in shown.output
    assert runner.invoke(pop_group, [name, "--no-such-option"]).exit_code == 2
    assert COMMANDS[name].endswith(".") and command_of(name).help
    silent = [p.name for p in command_of(name).params if isinstance(p, click.Option) and not p.help]
    assert silent == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_root_on_its_own_side_too(name: str) -> None:
    """`pop ls --root DIR` reads as well as `pop --root DIR ls`."""
    assert name in ROOTLESS or "--root" in options_of(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_documented_options_exist(name: str) -> None:
    """Those of its row in docs/cli.md."""
    told = set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", DOCUMENTED[name]))
    assert told <= options_of(name)


def test_json_is_documented_where_the_contract_asks_for_it() -> None:
    """So that the next test cannot pass by testing nothing."""
    assert {"check", "run", "ls", "show", "tail", "doctor"} <= set(WITH_JSON)


def test_what_documents_json_takes_it() -> None:
    """And the rest does not promise it."""
    assert set(WITH_JSON) <= {name for name in COMMANDS if "--json" in options_of(name)}


@pytest.mark.parametrize("name", [name for name in COMMANDS if "--json" in options_of(name)])
def test_json_is_json_on_stdout_and_nothing_else(hello: Path, name: str) -> None:
    """One document, or for the ledger one per line; talk goes to stderr."""
    arguments = [str(a).format(root=hello) for a in ARGUMENTS.get(name, [])]
    result = pop(name, *arguments, "--json", root=hello)
    values: list[Any] = [
        json.loads(part) for part in (result.stdout.splitlines() if name in JSON_LINES else [result.stdout])
    ]
    assert (values or name == "logs") and result.returncode in (0, 3), result.stderr  # these runs logged nothing
    if name == "doctor":  # something has failed, so it says so, though nothing keeps POP from its work
        assert result.returncode == 0 and not all(finding["ok"] for finding in values[0])


def test_looking_changes_nothing(hello: Path) -> None:
    """Commands that only look leave every file as it was."""

    def seen() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in [hello, *hello.rglob("*")]}

    before = seen()
    for name in ("ls", "show", "tail", "cost", "doctor", "graph", "plan", "diff"):  # doctor checks as check does
        pop(name, *(str(a).format(root=hello) for a in ARGUMENTS.get(name, []) if name in ("plan", "diff")), root=hello)
        assert seen() == before, name
