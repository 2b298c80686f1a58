"""request.md: what a person is asked, why, what to look at, and how to answer.

All that a model, a task or a seed wrote stands in fences longer than any in it, without what could steer a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pop.errors import PopError, safe
from pop.events import GATE_DECIDED, LAP_ENDED, RUN_CREATED, STEP_ATTEMPT_FAILED, STEP_DONE, rfc3339
from pop.gateshow import Shown
from pop.records import BadJson, read_json
from pop.store import contained, lines_of, open_regular

GLANCE_LINES = 60
GLANCE_BYTES = 16_384
MAX_GLANCES = 20
LINE_CHARS = 200
MAX_LINE_BYTES = 2**20
CONTROL_MARK = "+control"

TITLES = {
    "step": "Approve {name}?",
    "loop": "Is {name} good enough?",
    "recovery": "{name} failed: what now?",
    "control": "{name} gave an order that cannot be carried out",
}
MEANS: dict[str, dict[str, str]] = {
    "step": {
        "approve": "the run goes on",
        "request-changes": "the work is done again with your words: in a loop by its next lap, else by the steps shown here",
        "reject": "the run fails; pop retry takes it up again",
    },
    "loop": {
        "approve": "the newest lap counts, as it is",
        "request-changes": "further laps, with your words in their prompts",
        "reject": "the run fails; pop retry takes it up again",
    },
    "recovery": {
        "approve": "fresh attempts",
        "request-changes": "fresh attempts, with your words in their prompts",
        "reject": "it stays failed, and the run fails",
    },
    "control": {
        "approve": "the run goes on as if the order had not been given",
        "reject": "the step fails, and the run with it",
    },
}
FILES = {"approve": "APPROVE", "reject": "REJECT", "request-changes": "CHANGES.md"}
AFTER = {
    "wait": "after that it still waits",
    "reject": "after that it counts as rejected",
    "approve": "after that it counts as approved, with the copies as they were",
}


@dataclass(frozen=True)
class Request:
    """What the page tells. `why` are the pipeline's own words for a gate that is a step, POP's sentence for others."""

    run_dir: Path
    instance: str
    kind: str
    title: str
    why: str
    shown: Sequence[Shown]
    options: Sequence[str]
    opening: int = 1
    expires_at: float | None = None
    on_timeout: str = "wait"
    notes: Sequence[str] = ()
    journal: Journal = field(default_factory=lambda: Journal())


@dataclass
class Journal:
    """What a run's journal says that a person wants to know at this gate."""

    created: Mapping[str, Any] = field(default_factory=dict)
    laps: list[Mapping[str, Any]] = field(default_factory=list)
    failure: Mapping[str, Any] | None = None
    failures: int = 0
    refusal: Mapping[str, Any] | str | None = None  # of what a task ordered
    before: Mapping[str, Any] | None = None  # the answer to an earlier opening


def loop_key(instance: str) -> str:
    """The key of the loop whose gate this is: ``review-loop`` of ``review-loop@5``, ``inner@2`` of ``inner@2.3``."""
    name, mark, laps = instance.partition("@")
    outer = laps.rpartition(".")[0]
    return f"{name}{mark}{outer}" if outer else name


def read_journal(run_dir: Path, instance: str, *, whole: bool = True) -> Journal:
    """What events.jsonl says about this gate; what cannot be read is left out.

    Args:
        whole: False reads the first line only, which tells what the run is.
    """
    found, key, asked = Journal(), loop_key(instance), instance.removesuffix(CONTROL_MARK)
    needles = [f'"{name}"'.encode() for name in (RUN_CREATED, instance, key, asked)]
    try:
        for line in islice(lines_of(run_dir / "events.jsonl"), None if whole else 1):
            if any(needle in line for needle in needles):
                with suppress(BadJson, LookupError, TypeError, AttributeError):
                    _note(found, read_json(line), instance, key, asked)
    except OSError:
        pass
    return found


def _note(found: Journal, row: Mapping[str, Any], instance: str, key: str, asked: str) -> None:
    event = row["event"]
    if event == RUN_CREATED:
        found.created = row
    elif event == LAP_ENDED and row["key"] == key:
        found.laps = [*(lap for lap in found.laps if lap.get("lap", 0) < row["lap"]), row]  # a rerun counts anew
    elif event == STEP_ATTEMPT_FAILED and row["instance"] == asked:
        found.failure, found.failures = row["error"], found.failures + 1
    elif event == STEP_DONE and row["instance"] == asked:
        found.refusal = row.get("control_error")
    elif event == GATE_DECIDED and row["instance"] == instance:
        found.before = row


# -- the page ------------------------------------------------------------------------------------------------------


def page(request: Request) -> str:
    """The whole of request.md."""
    return "\n".join(_lines(request)).rstrip("\n") + "\n"


def _lines(request: Request) -> Iterator[str]:
    title = request.title or TITLES.get(request.kind, "{name}").format(name=request.instance)
    yield f"# {inline(title)}"
    yield ""
    yield from _which(request)
    yield ""
    yield from _why(request)
    if request.shown or request.notes:
        yield from _shown(request)
    yield from _how(request)


def _which(request: Request) -> Iterator[str]:
    created = request.journal.created
    seed = created.get("seed_file") or created.get("name")
    parts = [f"The run {code(request.run_dir.name)}"]
    if created.get("pipeline"):
        parts.append(f"of the pipeline {code(created['pipeline'])}")
    if seed:
        parts.append(f"from the seed {code(seed)}")
    yield f"{' '.join(parts)} waits for a person at {code(request.instance)}."


def _why(request: Request) -> Iterator[str]:
    journal = request.journal
    yield "## Why it waits"
    yield ""
    if request.why and request.kind == "step":
        yield from (f"> {line}".rstrip() for line in safe(request.why).split("\n"))
        yield ""
    elif request.why:
        yield from fenced(request.why)
    elif request.kind == "step":
        yield "The pipeline asks for a person's word at this place."
        yield ""
    if request.kind == "loop" and journal.laps:
        yield f"{len(journal.laps)} lap{'s' * (len(journal.laps) != 1)} so far:"
        yield ""
        yield from fenced("\n".join(map(lap_line, journal.laps[-50:])))
    if request.kind == "recovery" and journal.failure:
        yield f"{journal.failures} attempt{'s' * (journal.failures != 1)} failed; the newest error:"
        yield ""
        yield from fenced("\n".join(_failure(journal.failure)))
    if request.kind == "control" and journal.refusal:
        yield f"Nothing of what {code(request.instance.removesuffix(CONTROL_MARK))} ordered was done:"
        yield ""
        wrong = journal.refusal
        yield from fenced("\n".join(_failure(wrong)) if isinstance(wrong, Mapping) else str(wrong))
    if journal.before:
        by, decision = safe(journal.before.get("by") or "?", 80, one_line=True), journal.before.get("decision")
        yield f"This is opening {request.opening} of this gate. The answer before, {code(decision)} by {code(by)}:"
        yield ""
        yield from fenced(str(journal.before.get("text") or "(no words)"))


def lap_line(row: Mapping[str, Any]) -> str:
    """A lap as a person reads it: ``lap 2   score 3.0   checks failed   <reason>``."""
    score, checks = row.get("score"), row.get("checks")
    parts = [f"lap {row.get('lap')}"]
    if score is not None:
        parts.append(f"score {score}")
    if checks is not None:
        parts.append("checks passed" if checks else "checks failed")
    values = row.get("values")
    if isinstance(values, dict) and score is None:
        parts += [f"{name} = {value}" for name, value in list(values.items())[:5]]
    parts.append(f"{row.get('reason') or row.get('verdict') or ''}")
    return safe("   ".join(map(str, parts)), 400, one_line=True)


def _failure(error: Mapping[str, Any]) -> Iterator[str]:
    yield f"{error.get('error_class')}: {error.get('message')}"
    for name in ("where", "hint"):
        if error.get(name):
            yield f"{name}: {error[name]}"
    problems = [str(problem) for problem in error.get("problems") or []]
    yield from (f"- {problem}" for problem in problems[:20])
    if len(problems) > 20:
        yield f"... and {len(problems) - 20} more"


# -- what to look at -----------------------------------------------------------------------------------------------


def _shown(request: Request) -> Iterator[str]:
    yield "## What to look at"
    yield ""
    if request.shown:
        yield "Copies; you may edit them before you approve, and the run goes on with what they say then."
        yield ""
    for number, copy in enumerate(request.shown):
        inside = copy.path.removeprefix(f"tasks/{request.instance}/")
        size, text, more = glance(request.run_dir, copy.path)
        yield f"{code(inside)}, {size_of(size)}, of {code(copy.instance)}{'' if text is not None else ': no text'}"
        yield ""
        if text is not None and number < MAX_GLANCES:
            yield from fenced(text, "json" if inside.endswith(".json") else "text")
            if more:
                yield "The rest is in the file."
                yield ""
    for note in request.notes:
        yield f"- {code(note)}"
    if request.notes:
        yield ""


def glance(run_dir: Path, path: str) -> tuple[int, str | None, bool]:
    """The size in bytes of a file, the beginning of its text (None: it is none), and whether there is more."""
    try:
        fd = open_regular(contained(run_dir, path), max_bytes=2**40)
    except (OSError, PopError):
        return 0, None, False
    with open(fd, "rb") as file:
        data = file.read(GLANCE_BYTES)
        size = max(len(data), file.seek(0, 2))
    try:
        text = data.decode("utf-8", "strict" if size == len(data) else "ignore")
    except UnicodeDecodeError:
        return size, None, False
    if "\0" in text:
        return size, None, False
    lines = safe(text).rstrip("\n").split("\n")
    short = [line if len(line) <= LINE_CHARS else f"{line[:LINE_CHARS]} ..." for line in lines[:GLANCE_LINES]]
    more = size > len(data) or len(lines) > GLANCE_LINES or any(len(line) > LINE_CHARS for line in lines)
    return size, "\n".join(short), more


# -- how to answer -------------------------------------------------------------------------------------------------


def _how(request: Request) -> Iterator[str]:
    means = MEANS.get(request.kind, MEANS["step"])
    yield "## How to answer"
    yield ""
    for option in request.options:
        yield f"- **{option}**: {means.get(option, 'as it says')}"
    yield ""
    yield "With a command, anywhere in the folder POP works in:"
    yield ""
    for option in request.options:
        words = "" if option == "approve" else ' -m "..."'
        yield f"    pop {option} {request.run_dir.name} {request.instance}{words}"
    yield ""
    yield f"Or with a file here, in {code(f'tasks/{request.instance}/')}; it counts when nobody has changed it for a second:"
    yield ""
    for option in request.options:
        need = {"approve": "may be empty", "reject": "may hold your reason"}.get(
            option, "holds what is to be otherwise"
        )
        yield f"- {code(FILES.get(option, option))}, which {need}"
    yield ""
    yield 'Or with `decision.json`, which holds `{"decision": "approve"}`, and if you like a `text` and your name as `by`.'
    yield ""
    yield "The first answer counts. " + _until(request)


def _until(request: Request) -> str:
    if request.expires_at is None:
        return "It waits until somebody answers; meanwhile it holds no process and costs nothing."
    return f"It waits until {rfc3339(request.expires_at)}; {AFTER.get(request.on_timeout, AFTER['wait'])}."


# -- foreign text in Markdown --------------------------------------------------------------------------------------


def fenced(text: str, language: str = "text") -> Iterator[str]:
    """Text in a fence that is longer than any run of backticks in it, and an empty line."""
    shown = safe(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    yield f"{fence}{language}"
    yield shown
    yield fence
    yield ""


def code(text: object) -> str:
    """Text as a span of code, in as many backticks as it takes."""
    shown = safe(text, 300, one_line=True)
    mark = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{mark}{pad}{shown}{pad}{mark}"


def inline(text: object) -> str:
    """One line of text in which nothing means anything to Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|!~&])", r"\\\1", safe(text, 300, one_line=True))


def size_of(size_bytes: int) -> str:
    if size_bytes < 1024:
        return f"{size_bytes} bytes"
    return f"{size_bytes / 1024:.1f} kB" if size_bytes < 2**20 else f"{size_bytes / 2**20:.1f} MB"
