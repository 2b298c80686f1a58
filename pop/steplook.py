"""All of one step that a page shows: its attempts, what each stage kept, calls, problems, what was refined, files.

Like `runlook` it only reads, within limits, and follows no link.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from pop.diaries import beginning, json_lines
from pop.records import BadJson, read_json
from pop.runlook import Decision, Trouble
from pop.runs import Run
from pop.safehtml import Kind, kind_of
from pop.store import NotAFile, contained

MAX_FILE = 2**20  # bytes of one file that are shown
MAX_LOG = 2**17
MAX_STAGES = 400
MAX_CALLS = 500
MAX_FILES = 200


@dataclass(frozen=True)
class Shown:
    """A file, or its beginning. `path` is relative to the run's folder; `size` -1: there is none."""

    name: str
    path: str
    data: bytes
    size: int

    @property
    def kind(self) -> Kind:
        return kind_of(self.name, self.data)

    @property
    def words(self) -> str:
        """As text."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True)
class StageLook:
    """One stage of an attempt, in the order they ran; `file` is what it kept."""

    name: str
    round: int
    seconds: float | None
    problems: list[str]
    score: float | None
    text: str | None
    file: Shown | None


@dataclass(frozen=True)
class Refined:
    """What one refinement changed: the rounds' outputs as texts."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class CallLook:
    """One model call; what its line does not tell, or tells wrongly, is empty."""

    at: str
    stage: str
    asked: str
    model: str
    provider_model: str
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    estimated: bool
    ms: float
    cost_usd: float | None
    cached: bool
    finish_reason: str
    error_class: str
    note: str
    tries: list[str]
    warnings: list[str]
    text: str

    @classmethod
    def of(cls, row: dict[str, Any]) -> CallLook:
        """From a line of calls.jsonl."""

        def text(key: str) -> str:
            return row[key] if isinstance(row.get(key), str) else ""

        def whole(key: str) -> int:
            return row[key] if isinstance(row.get(key), int) else 0

        def real(key: str) -> float | None:
            return float(row[key]) if isinstance(row.get(key), int | float) else None

        def listed(key: str) -> list[Any]:
            return row[key][:5] if isinstance(row.get(key), list) else []

        tries = [
            f"{one.get('model')}: {one.get('error_class')} {one.get('message') or ''}"
            for one in listed("tries")
            if isinstance(one, dict)
        ]
        return cls(
            text("at"), text("stage"), text("asked") or text("model"), text("model"), text("provider_model"),
            whole("input_tokens"), whole("cached_input_tokens"), whole("output_tokens"), row.get("estimated") is True,
            real("ms") or 0.0, real("cost_usd"), row.get("cached") is True, text("finish_reason"), text("error_class"),
            text("note"), tries, [str(one) for one in listed("warnings")],
            text("text"),
        )  # fmt: skip


@dataclass
class GateLook:
    """What a person was asked, and what was said; `decision` None while nobody answered."""

    request: Shown
    decision: Decision | None
    edits: Shown
    shown: list[Shown] = field(default_factory=list)
    problem: str = ""


@dataclass
class StepLook:
    """An instance. `attempt` is the one that is shown, None where there is none."""

    instance: str
    task: dict[str, Any]
    attempts: list[int] = field(default_factory=list)
    attempt: int | None = None
    letter: Shown | None = None
    output: Shown | None = None
    error: Trouble | None = None
    stages: list[StageLook] = field(default_factory=list)
    calls: list[CallLook] = field(default_factory=list)
    more_calls: int = 0
    refined: list[Refined] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rejected: Shown | None = None
    log: str = ""
    stdout: str = ""
    artifacts: list[Shown] = field(default_factory=list)
    more_artifacts: int = 0
    gate: GateLook | None = None

    @property
    def told_by_stages(self) -> bool:
        """Whether the stages' files hold the answers: not of a task that asks by itself, or asks often."""
        kept = sum(1 for stage in self.stages if stage.name in ("infer", "refine") and stage.file)
        return kept >= len(self.calls) + self.more_calls


def instances_of(run: Run) -> set[str]:
    """The instances that have a folder."""
    try:
        with os.scandir(run.path / "tasks") as entries:
            return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    except OSError:
        return set()


def look_into(run: Run, instance: str, task: dict[str, Any], attempt: int | None = None) -> StepLook:
    """Read one instance.

    Args:
        instance: One of `instances_of` the run, or of its status.
        task: What its status tells of it.
        attempt: Which one; the newest.
    """
    look = StepLook(instance, {"state": "pending", "reason": None, **task})
    folder, base = run.step_dir(instance), f"tasks/{instance}"
    look.attempts = [int(path.name) for path in run.attempts(instance) if not path.is_symlink()]
    newest = look.attempts[-1] if look.attempts else None
    chosen = attempt if attempt in look.attempts else newest
    look.letter = _shown(run, f"{base}/letter.json")
    look.output = _shown(run, f"{base}/output.json")
    if chosen is not None:
        look.attempt = chosen
        _read_attempt(run, look, f"{base}/attempts/{chosen}")
    told = _json(run, f"{base}/error.json") if chosen == newest else None
    look.error = Trouble.of(told) or Trouble.of(task.get("error")) or look.error
    files = list(islice(_files(folder / "artifacts", run.path), MAX_FILES + 1))
    look.artifacts = [shown for path in files[:MAX_FILES] if (shown := _shown(run, path, 65_536))]
    look.more_artifacts = max(0, len(files) - MAX_FILES)
    if (folder / "gate.json").is_file():
        look.gate = _gate(run, base)
    return look


def _read_attempt(run: Run, look: StepLook, base: str) -> None:
    trail = list(islice(json_lines(beginning(run.path / base / "trail.jsonl", 4 * MAX_FILE)[0]), 20_000))
    ended = [line for line in trail if line.get("event") == "stage.end"]
    look.stages = [_stage(run, base, line) for line in ended[:MAX_STAGES]]
    newest = next((line for line in reversed(trail) if line.get("event") in ("stage.begin", "stage.end")), None)
    if newest and newest.get("event") == "stage.begin":  # it goes on
        look.stages.append(_stage(run, base, {**newest, "file": None}))
    calls = list(json_lines(beginning(run.path / base / "calls.jsonl", 16 * MAX_FILE)[0]))
    look.calls = [CallLook.of(row) for row in calls[:MAX_CALLS]]
    look.more_calls = max(0, len(calls) - MAX_CALLS)
    look.refined = list(_refined(look.stages))
    told = _json(run, f"{base}/problems.json")
    look.problems = [str(one) for one in told[:100]] if isinstance(told, list) else []
    look.rejected = _shown(run, f"{base}/rejected.json")
    look.error = Trouble.of(_json(run, f"{base}/error.json"))
    look.log, look.stdout = (_tail(run, f"{base}/{name}") for name in ("log.jsonl", "stdout.txt"))


def _tail(run: Run, path: str) -> str:
    return beginning(run.path / path, MAX_LOG, end=True)[0].decode("utf-8", "replace")


def _stage(run: Run, base: str, line: dict[str, Any]) -> StageLook:
    name, problems, seconds, score = line.get("file"), line.get("problems"), line.get("seconds"), line.get("score")
    file = None
    if isinstance(name, str) and "/" not in name and not name.startswith("."):
        file = _shown(run, f"{base}/{name}")
    return StageLook(
        str(line.get("stage")),
        line["round"] if isinstance(line.get("round"), int) else 0,
        seconds if isinstance(seconds, int | float) else None,
        [str(one) for one in problems[:100]] if isinstance(problems, list) else [],
        score if isinstance(score, int | float) else None,
        line["text"] if isinstance(line.get("text"), str) else None,
        file,
    )


def _refined(stages: list[StageLook]) -> Iterator[Refined]:
    """Each round's output beside that of the round before; its answer where no output could be made of one."""
    rounds: dict[int, Shown] = {}
    for stage in stages:
        if stage.file and stage.name in ("infer", "refine", "parse"):
            rounds[stage.round] = stage.file
    for (a, before), (b, after) in pairwise(sorted(rounds.items())):
        yield Refined(f"round {a} to round {b}", readable(before), readable(after))


def readable(shown: Shown) -> str:
    """A file's text as a person compares it: JSON indented, the texts in it line by line, or sentence by sentence."""
    if not shown.name.endswith(".json") or len(shown.data) < shown.size:
        return shown.words
    try:
        value = read_json(shown.data)
    except BadJson:
        return shown.words
    if isinstance(value, str):
        return value
    return "\n".join(map(_in_lines, json.dumps(value, indent=2, ensure_ascii=False).split("\n")))


LONG_LINE = 160


def _in_lines(line: str) -> str:
    """A line of JSON whose text has line feeds, or is long, as several."""
    inset = " " * (len(line) - len(line.lstrip()) + 2)
    line = re.sub(r"(?<!\\)((?:\\\\)*)\\n(?=.)", rf"\1\\n\n{inset}", line)
    return _SENTENCE.sub(f"\n{inset}", line) if len(line) > LONG_LINE else line


_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z])")


def _gate(run: Run, base: str) -> GateLook:
    about = _json(run, f"{base}/gate.json")
    rows = about.get("shown") if isinstance(about, dict) else None
    paths = [str(row["path"]) for row in rows or [] if isinstance(row, dict) and _inside(row.get("path"), base)]
    decision, problem = _json(run, f"{base}/output.json"), _json(run, f"{base}/decision.problem.json")
    return GateLook(
        _shown(run, f"{base}/request.md") or Shown("request.md", "", b"", -1),
        Decision.of(decision) if isinstance(decision, dict) else None,
        _shown(run, f"{base}/edits.diff") or Shown("edits.diff", "", b"", -1),
        [shown for path in paths[:MAX_FILES] if (shown := _shown(run, path))],
        " ".join(str(problem[key]) for key in ("problem", "hint") if problem.get(key))
        if isinstance(problem, dict)
        else "",
    )


def _inside(path: object, base: str) -> bool:
    return isinstance(path, str) and path.startswith(f"{base}/show/") and ".." not in path.split("/")


def _files(folder: Path, base: Path) -> Iterator[str]:
    """The regular files below a folder, relative to the run's, in order; no links."""
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield os.path.relpath(path, base)


def _shown(run: Run, path: str, most: int = MAX_FILE) -> Shown | None:
    try:
        data, size = beginning(contained(run.path, path), most)
    except NotAFile:
        return None
    return Shown(path.rpartition("/")[2], path, data, size) if size >= 0 else None


def _json(run: Run, path: str) -> Any:
    data, size = beginning(run.path / path, MAX_FILE)
    if size < 0 or size > len(data):
        return None
    try:
        return read_json(data)
    except BadJson:
        return None
