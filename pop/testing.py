"""Any finished run as a test of its pipeline (docs/testing.md).

from pop.testing import replay_run

def test_the_brief_still_comes_out():
    replay_run("recorded/20261121-031502-brief-x7k2", root=".").assert_same_outputs()
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pop.settings import Root

SHOWN_DIFFERENCES = 10
SHOWN_CHARS = 160
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_KEYS_FILE = re.compile(r"^\s*(gateway\s*\.\s*)?keys_file\s*=.*$", re.MULTILINE)
_LEFT_OUT = ("POP_", "OPENAI_")


class _Nothing:
    def __repr__(self) -> str:
        return "(nothing)"


NOTHING = _Nothing()


@dataclass(frozen=True)
class Difference:
    """One place in which two outputs differ: ``draft.0/paragraphs/2/text``."""

    path: str
    recorded: Any
    now: Any

    def __str__(self) -> str:
        recorded, now = _shown(self.recorded, self.now)
        return f"  {self.path}\n    recorded  {recorded}\n    now       {now}"


@dataclass(frozen=True)
class Replayed:
    """What became of a replay.

    `outputs` are the values of ``tasks/*/output.json`` by instance (``collect``, ``draft.0``), `expected` those of the
    recorded run; `status` is tasks-status.json; `run_dir` lies in a temporary root that goes with this object, unless
    `replay_run` was told where to put it.
    """

    run_dir: Path
    status: dict[str, Any]
    outputs: dict[str, Any]
    expected: dict[str, Any]
    _folder: Any = field(default=None, repr=False)

    def differences(self, ignore: Iterable[str] = ()) -> list[Difference]:
        """Where the outputs differ from the recorded ones.

        Args:
            ignore: Places that may differ, with ``*`` for anything: ``publish``, ``draft.*/seconds``.
        """
        patterns = [ignore] if isinstance(ignore, str) else list(ignore)
        found = _differences("", self.expected, self.outputs)
        return [one for one in found if not any(_covers(pattern, one.path) for pattern in patterns)]

    def assert_same_outputs(self, ignore: Iterable[str] = ()) -> None:
        """Raises:
        AssertionError: The run did not complete, or an output differs; with the first ten places, both sides.
        """
        __tracebackhide__ = True
        if self.status.get("state") != "complete":
            raise AssertionError(f"the replay ended as {self.status.get('state')}{_error_of(self.status)}")
        found = self.differences(ignore)
        if found:
            shown = "\n".join(str(one) for one in found[:SHOWN_DIFFERENCES])
            more = f"\n  and {len(found) - SHOWN_DIFFERENCES} more" if len(found) > SHOWN_DIFFERENCES else ""
            raise AssertionError(f"{len(found)} place(s) differ from the recorded run:\n{shown}{more}")


def replay_run(
    run_dir: Path | str, root: Path | str, *, timeout_s: float = 120.0, into: Path | None = None
) -> Replayed:
    """Run the pipeline as it stands in `root` on a recorded run's own seed, with that run's answers.

    Tasks, pipelines and pop.toml (without its `keys_file`) are copied; a real daemon works on the copy, without any key.

    Args:
        run_dir: The folder of a finished run, wherever it lies.
        into: An empty folder for the copy and its run (else a temporary one).

    Raises:
        AssertionError: It could not be started (a broken pipeline, a run that kept no answers), or took longer
            than `timeout_s`.
    """
    recorded = Path(run_dir).expanduser().resolve()
    folder = None if into is not None else tempfile.TemporaryDirectory(prefix="pop-replayed-")
    copy = Path(folder.name if folder else str(into))
    _copy(Root(Path(root).expanduser().resolve()), Root(copy))
    command = [sys.executable, "-P", "-m", "pop", "--root", str(copy), "run", "--replay", str(recorded), "--json"]
    try:
        ran = subprocess.run(
            command, cwd=copy, env=_environment(copy), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stderr or b"").decode(errors="replace")
        raise AssertionError(f"the replay took longer than {timeout_s:g} s\n{said}") from None
    try:
        status = json.loads(ran.stdout)
        path = Path(status.pop("path"))
    except (ValueError, KeyError):
        raise AssertionError(
            ran.stderr.decode(errors="replace").strip() or f"pop ended with {ran.returncode}"
        ) from None
    return Replayed(path, status, _outputs(path), _outputs(recorded), folder)


def _copy(source: Root, target: Root) -> None:
    """What a run is made from."""
    target.path.mkdir(parents=True, exist_ok=True)
    if source.pipeline_file.is_file():
        shutil.copyfile(source.pipeline_file, target.pipeline_file)
    if source.settings_file.is_file():
        text = source.settings_file.read_text("utf-8")
        target.settings_file.write_text(_KEYS_FILE.sub("", text), "utf-8")
    for folder in (source.tasks, source.pipelines):
        if folder.is_dir():
            shutil.copytree(folder, target.path / folder.name, ignore=shutil.ignore_patterns("__pycache__"))


def _environment(root: Path) -> dict[str, str]:
    """Ours, without keys, without the user's keys file, and without what would lead elsewhere."""
    found = {
        name: value for name, value in os.environ.items() if not _SECRET.search(name) and not name.startswith(_LEFT_OUT)
    }
    own = str(Path(__file__).parent.parent)
    found["XDG_CONFIG_HOME"] = str(root / ".config")
    return {**found, "PYTHONPATH": os.pathsep.join(filter(None, [own, found.get("PYTHONPATH")]))}


def _outputs(run_dir: Path) -> dict[str, Any]:
    paths = sorted(run_dir.glob("tasks/*/output.json"))
    return {path.parent.name: json.loads(path.read_bytes()) for path in paths}


def _error_of(status: dict[str, Any]) -> str:
    error = status.get("error") or {}
    words = [str(error[key]) for key in ("message", "where", "hint") if error.get(key)]
    return "".join(f"\n  {word}" for word in words)


def _differences(path: str, then: Any, now: Any) -> Iterator[Difference]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            inner = f"{path}/{key}" if path else str(key)
            yield from _differences(inner, then.get(key, NOTHING), now.get(key, NOTHING))
    elif isinstance(then, list) and isinstance(now, list):
        for number in range(max(len(then), len(now))):
            pair = [values[number] if number < len(values) else NOTHING for values in (then, now)]
            yield from _differences(f"{path}/{number}", *pair)
    elif then != now or isinstance(then, bool) != isinstance(now, bool):
        yield Difference(path, then, now)


def _covers(pattern: str, path: str) -> bool:
    """Whether a place lies at, or below, what the pattern names; ``draft`` names all items of an ``each`` too."""
    parts, wanted = path.split("/"), pattern.split("/")
    if len(wanted) > len(parts):
        return False
    first = parts[0] if "." in wanted[0] else parts[0].partition(".")[0]
    return all(fnmatchcase(part, want) for part, want in zip([first, *parts[1:]], wanted, strict=False))


def _shown(*values: Any) -> list[str]:
    """Both sides, cut around the first character that differs."""
    texts = [repr(one) if one is NOTHING else json.dumps(one, ensure_ascii=False) for one in values]
    pairs = enumerate(zip(*texts, strict=False))
    column = next((at for at, pair in pairs if len(set(pair)) > 1), min(map(len, texts)))
    start = max(0, column - SHOWN_CHARS // 2) if max(map(len, texts)) > SHOWN_CHARS else 0
    cut = [text[start : start + SHOWN_CHARS] + ("..." if len(text) > start + SHOWN_CHARS else "") for text in texts]
    return [("..." if start else "") + text for text in cut]
