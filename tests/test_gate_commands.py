"""`pop approve`, `pop reject` and `pop request-changes`: which gate is meant, and what a person is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pop import cli
from pop.cli import pop as pop_group
from pop.errors import PopError
from pop.gates import Answer, answer_of, open_gate, owner
from pop.settings import Root
from pop.store import Disk
from tests.test_gates import ALL, RUN, journal


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root with one run, of which the gate ``review`` is open."""
    root = Root(tmp_path)
    (root.path / "pipeline.json").write_text('{"name": "p", "tasks": []}')
    for folder in (root.current, root.complete, root.machine_room):
        folder.mkdir(parents=True)
    run_dir = root.current / RUN
    run_dir.mkdir()
    created = {"run_id": RUN, "name": "a", "pipeline": "default", "seed_file": "a.json"}
    journal(run_dir, {"event": "run.created", **created}, {"event": "run.started"})
    opened(root, "review")
    return root


def opened(root: Root, instance: str, **about: Any) -> Path:
    given = {"kind": "step", "title": "", "why": "", "shown": [], "options": ALL, "opening": 1, "expires_at": None}
    run_dir = root.current / RUN
    open_gate(Disk(durable=False), run_dir, instance, **{**given, **about})
    row: dict[str, Any] = {
        "instance": instance,
        "kind": "step",
        "key": None,
        "opening": 1,
        "expires_at": None,
        "shown": [],
    }
    known = {key: value for key, value in about.items() if key in row and key != "shown"}
    journal(run_dir, {"event": "gate.opened", **row, **known})
    return run_dir / "tasks" / instance


def pop(root: Root, *arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(pop_group, ["--root", str(root.path), *arguments], input=given, obj={})


def answered(root: Root, instance: str = "review") -> Answer:
    answer = answer_of(root.current / RUN / "tasks" / instance)
    assert answer is not None
    return answer


def refused(root: Root, *arguments: str, given: str | None = None) -> PopError:
    """The error of a call that exits with 2."""
    error = pop(root, *arguments, given=given).exception
    assert isinstance(error, PopError) and error.exit_code == 2, error
    return error


@pytest.mark.parametrize("command", ALL)
def test_the_only_open_gate_needs_no_name(root: Root, command: str) -> None:
    """The answer is written, its file is printed, and without a daemon that is said."""
    result = pop(root, command, RUN, "-m", "shorter")
    path = root.current / RUN / "tasks" / "review" / "decision.json"
    assert result.exit_code == 0 and result.stdout == f"{path}\n"
    assert result.stderr == "no daemon is running here: the answer takes effect with the next pop up\n"
    answer = answered(root)
    assert (answer.decision, answer.text, answer.how) == (command, "shorter", "command")
    assert answer.by == owner(os.getuid())


def test_json_tells_the_same(root: Root) -> None:
    """For a program."""
    result = pop(root, "approve", "last", "review", "--json")
    told = json.loads(result.stdout)
    path = str(root.current / RUN / "tasks" / "review" / "decision.json")
    assert told == {"run_id": RUN, "gate": "review", "decision": "approve", "by": owner(os.getuid()), "file": path}


def test_with_several_open_gates_one_must_be_named(root: Root) -> None:
    """By its instance, or by its step where that is clear."""
    for instance in ("loop@2", "each.0", "each.1", "plan+control"):
        opened(root, instance)
    error = refused(root, "approve", RUN)
    assert "5 gates" in error.message and all(
        f"\n    {name}" in error.message for name in ("review", "loop@2", "each.1")
    )
    error = refused(root, "approve", RUN, "each")
    assert "2 gates" in error.message and "review" not in error.message
    assert pop(root, "approve", RUN, "loop").exit_code == 0 and answered(root, "loop@2")
    assert pop(root, "approve", RUN, "plan").exit_code == 0 and answered(root, "plan+control")
    assert pop(root, "approve", RUN, "each.1").exit_code == 0 and answered(root, "each.1")


def test_an_unknown_gate_gets_the_nearest_name(root: Root) -> None:
    """And a step that is no open gate is told as what it is."""
    assert refused(root, "approve", RUN, "reviw").hint == "did you mean 'review'?"
    started = {"event": "step.started", "instance": "draft", "step": "draft", "attempt": 1, "generation": 1}
    journal(root.current / RUN, started)
    assert "it is running" in refused(root, "approve", RUN, "draft").message
    for name in ("../review", "/etc", "", "\x1b[31m"):
        assert refused(root, "approve", RUN, name).code == "gate-not-open"


def test_a_second_answer_hears_who_was_first(root: Root) -> None:
    """Before the daemon has seen the first one, and after."""
    assert pop(root, "reject", RUN, "-m", "too long").exit_code == 0
    error = refused(root, "approve", RUN)
    assert error.code == "already-answered" and "reject, by" in error.message and "too long" in error.message
    told: dict[str, Any] = {
        "by": "anna",
        "how": "command",
        "text": None,
        "edited": [],
        "sha256": "0" * 64,
        "size_bytes": 1,
    }
    journal(root.current / RUN, {"event": "gate.decided", "instance": "review", "decision": "reject", **told})
    assert refused(root, "approve", RUN, "review").code == "already-answered"
    assert "no gate of it is open" in refused(root, "approve", RUN).message


@pytest.mark.parametrize(
    "event, state", [("run.failed", "failed"), ("run.cancelled", "cancelled"), ("run.complete", "complete")]
)
def test_a_run_that_waits_for_nobody_says_so(root: Root, event: str, state: str) -> None:
    """With the next move, where there is one."""
    journal(root.current / RUN, {"event": event, "error": {"error_class": "bug", "message": "x"}})
    for gate in ([], ["review"]):
        error = refused(root, "approve", RUN, *gate)
        assert f"is {state}" in error.message
        assert (error.hint is None) == (state == "complete")


def test_a_run_without_a_readable_journal_is_no_bug(root: Root) -> None:
    """It says what the run is."""
    (root.current / RUN / "events.jsonl").write_bytes(b'{"event": "run.started"}\n')
    assert "no gate of it is open" in refused(root, "approve", RUN).message


def test_changes_need_words(root: Root) -> None:
    """From -m or stdin; where there is no terminal nothing opens an editor."""
    for words in ([], ["-m", "  "], ["-m", "-"]):
        assert "without a text" in refused(root, "request-changes", RUN, *words, given="\n").message
    assert pop(root, "request-changes", RUN, "-m", "-", given="less jargon\nmore pictures\n").exit_code == 0
    assert answered(root).text == "less jargon\nmore pictures"


def test_too_many_words_are_refused(root: Root) -> None:
    """Rather than cut."""
    assert "64 kB" in refused(root, "reject", RUN, "-m", "x" * 65_537).message
    assert "64 kB" in refused(root, "request-changes", RUN, "-m", "-", given="x" * 200_000).message


def test_an_editor_opens_on_a_terminal(root: Root, tmp_path: Path) -> None:
    """It shows the request; what stands above the line is sent."""
    import pty
    import subprocess
    import sys

    editor = tmp_path / "editor.py"
    editor.write_text("import sys; p = sys.argv[1]; t = open(p).read(); open(p, 'w').write('shorter\\n' + t)\n")
    code = (
        "import click\nfrom pathlib import Path\nfrom pop.runs import Run\n"
        "from pop.commands._answering import words_of\n"
        f"print(repr(words_of('request-changes', Run(Path({str(root.current / RUN)!r}), 'current'), 'review', None)))"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "EDITOR": f"{sys.executable} {editor}", "VISUAL": ""}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, env=environment)
    os.close(theirs)
    assert process.wait(60) == 0
    assert "shorter" in os.read(ours, 4096).decode()
    os.close(ours)


def test_an_option_the_gate_does_not_take_is_refused(root: Root) -> None:
    """An order that cannot be carried out can be passed over or refused, not changed."""
    opened(root, "plan+control", kind="control", options=["approve", "reject"])
    error = refused(root, "request-changes", RUN, "plan", "-m", "x")
    assert "no answer here" in error.message and error.hint == "it takes approve or reject"


@pytest.mark.parametrize("command", ALL)
def test_a_broken_edit_is_told_before_the_answer_is_given(root: Root, command: str) -> None:
    """With its line and column; a "no" needs no whole copies."""
    draft = root.current / RUN / "tasks" / "draft"
    draft.mkdir()
    (draft / "output.json").write_text('{"a": 1}')
    gate_dir = opened(root, "second", shown=["draft"])
    (gate_dir / "show" / "draft.json").write_text('{"a": 1,\n}')
    if command == "reject":
        assert pop(root, command, RUN, "second").exit_code == 0
        return
    error = refused(root, command, RUN, "second", "-m", "x")
    assert error.code == "bad-edit" and error.where == "tasks/second/show/draft.json:2:1"
    assert not (gate_dir / "decision.json").exists()


def test_a_dash_in_a_command_is_no_dash_in_a_module() -> None:
    """`pop request-changes` lives in request_changes.py."""
    assert isinstance(cli.pop, cli.LazyGroup)
    assert CliRunner().invoke(pop_group, ["request-changes", "--help"]).exit_code == 0
