"""What the tests of the wizard share: a root whose map names a component that no library has, and a server for it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pexpect

from tests.fake_openai import FakeOpenAI
from tests.test_cli import REPOSITORY

GOAL = "HARDEN_A_SERVICE"
MISSING = "constraints/least_privilege"
GOOD = (
    "You give every process, key and account the least it needs for its work, and nothing for later. "
    "Where more is asked for, you name what would become reachable by it, and propose the narrower way."
)
MAP = {
    "extends": "package",
    "goals": {
        GOAL: {
            "group": "Technical & Execution",
            "purpose": "Make a running service harder to break into.",
            "persona": "meticulous_auditor",
            "protocols": ["code_review_pass"],
            "constraints": ["least_privilege"],
        }
    },
}


def make_root(folder: Path, settings: str = "", goal_map: dict[str, Any] | None = None) -> Path:
    """A root as `pop init` makes it, as far as the wizard is concerned."""
    folder.mkdir()
    (folder / "pipeline.json").write_text('{"name": "x", "tasks": ["greet"]}')
    (folder / "pipeline-tasks").mkdir()
    (folder / "pipeline-tasks" / "greet.md").write_text("Hello.\n")
    if settings:
        (folder / "pop.toml").write_text(settings)
    if goal_map:
        (folder / "goal_map.json").write_text(json.dumps(goal_map, indent=2))
    return folder


def server(fake: FakeOpenAI, more: str = "tries = 1") -> str:
    """Settings under which everything is asked of the fake server."""
    return f'[models.default]\nprovider = "openai"\nmodel = "m"\nbase_url = "{fake.base_url}"\n{more}\n'


def environment(**more: str) -> dict[str, str]:
    """Without keys of this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "POP_"))}
    return {**kept, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "120", **more}


def talk(root: Path, *arguments: str, program: tuple[str, ...] = ("-m", "pop"), **more: str) -> pexpect.spawn[str]:
    """The wizard in a real terminal of 120 columns."""
    command = [*program, *(["--root", str(root)] if program[0] == "-m" else []), *arguments]
    environ = environment(**more)
    environ.pop("COLUMNS")
    return pexpect.spawn(
        sys.executable, command, encoding="utf-8", dimensions=(60, 120), env=environ, timeout=30, cwd=str(REPOSITORY)
    )


def ended(child: pexpect.spawn[str]) -> int:
    """The exit code of a talk that is over."""
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus is not None, child.signalstatus
    return child.exitstatus


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of a root but the machine room's and the ledger of calls."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not {".pop", "calls"} & set(path.relative_to(root).parts)
    }
