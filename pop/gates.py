"""Gates: places where a run waits for a person. Files ask, files answer; the first answer counts.

| file in tasks/<gate>/     | what it is                                                             | writer      |
|---------------------------|------------------------------------------------------------------------|-------------|
| show/                     | copies of what is to be judged (pop/gateshow.py)                       | supervisor  |
| request.md                | what is asked, for a person (pop/gatepage.py)                          | supervisor  |
| gate.json                 | the same for programs; written last: with it the gate is open          | supervisor  |
| APPROVE REJECT CHANGES.md | an answer by hand; counts when it was not changed for a second         | a person    |
| decision.json             | the answer that counts: linked to this name, so never replaced         | anybody     |
| decision.problem.json     | why something that looks like an answer is none                        | supervisor  |
| decision.invalid-<n>.json | what stood in decision.json and was none                               | supervisor  |
| output.json               | the answer as later steps read it                                      | supervisor  |
| answers/<n>/              | all of this from the n-th opening                                      | supervisor  |

Every function may be repeated after a crash and comes to the same end.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from pop.gateanswers import AlreadyAnswered as AlreadyAnswered
from pop.gateanswers import Answer as Answer
from pop.gateanswers import Decision as Decision
from pop.gateanswers import GateNotOpen as GateNotOpen
from pop.gateanswers import Opened as Opened
from pop.gateanswers import answer_of as answer_of
from pop.gateanswers import find_answer as find_answer
from pop.gateanswers import give_answer as give_answer
from pop.gateanswers import opened as opened
from pop.gateanswers import owner as owner
from pop.gateanswers import problem_of as problem_of
from pop.gateanswers import set_aside as set_aside
from pop.gatepage import Request, page, read_journal
from pop.gateshow import BadEdit as BadEdit
from pop.gateshow import Edit as Edit
from pop.gateshow import Shown as Shown
from pop.gateshow import check_edits as check_edits
from pop.gateshow import lay_out, sha256_of, sources_of
from pop.gateshow import take_edits as take_edits
from pop.records import dump_json
from pop.store import Disk, rename_noreplace

KINDS = ("step", "loop", "recovery", "control")
_OF_AN_OPENING = re.compile(
    r"request\.md|gate\.json|show|edited|edits\.(json|diff)|decision(\.[^/]*)?\.json"
    r"|(APPROVE|REJECT|CHANGES\.md)(\.invalid-\d+)?"
)


def open_gate(
    disk: Disk,
    run_dir: Path,
    instance: str,
    *,
    kind: str,
    title: str,
    why: str,
    shown: list[str],
    options: list[str],
    opening: int,
    expires_at: float | None,
    on_timeout: str = "wait",
) -> list[Shown]:
    """Lay out what a person is to judge, and ask. A repeated call keeps the copies, and an answer that has come.

    Args:
        kind: ``step``, ``loop``, ``recovery`` or ``control``.
        title: A line, or "" for one that fits the kind.
        why: The pipeline's words for a step; for the others a sentence. Laps, errors and refused orders are told
            from the journal.
        shown: Instances whose outputs and artifacts are copied; one without an output is named and left out.
        options: The decisions that this gate takes.
        opening: From 1. The files of an earlier opening move to ``answers/<n>/``.
        expires_at: Unix time, or None.
    """
    gate_dir = run_dir / "tasks" / instance
    _make_folder(disk, gate_dir)
    before = _kept(disk, gate_dir, opening, kind)
    sources = sources_of(run_dir, shown)
    if before and before.sources == sources:
        copies, notes = before.shown, before.notes
    else:
        copies, notes = lay_out(disk, run_dir, gate_dir, shown)
    request = Request(
        run_dir=run_dir, instance=instance, kind=kind, title=title, why=why, shown=copies, options=options,
        opening=opening, expires_at=expires_at, on_timeout=on_timeout, notes=notes,
        journal=read_journal(run_dir, instance, whole=kind != "step" or opening > 1),
    )  # fmt: skip
    disk.put(gate_dir / "request.md", page(request).encode("utf-8", "replace"))
    about = Opened(
        instance=instance, kind=kind, title=title, opening=opening, options=options, expires_at=expires_at,
        sources=sources, shown=copies, notes=notes,
    )  # fmt: skip
    disk.put(gate_dir / "gate.json", dump_json(about.model_dump()))
    return copies


def _kept(disk: Disk, gate_dir: Path, opening: int, kind: str) -> Opened | None:
    """What an earlier call laid out for this very opening, if any; the files of an earlier opening are put away."""
    before = opened(gate_dir)
    if before and before.opening != opening:
        _put_away(disk, gate_dir, before.opening, kind)
        return None
    if before is None and opening > 1 and not (gate_dir / "answers" / str(opening - 1) / "gate.json").exists():
        _put_away(disk, gate_dir, opening - 1, kind)  # somebody removed gate.json: an old answer must not count again
    return before


def _make_folder(disk: Disk, gate_dir: Path) -> None:
    for folder in (gate_dir.parent, gate_dir):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
            disk.sync_folder(folder.parent)


def _put_away(disk: Disk, gate_dir: Path, number: int, kind: str) -> None:
    """Move the files of an opening to answers/<n>/. gate.json there says that this is over."""
    folder = gate_dir / "answers" / str(number)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk.sync_folder(folder.parent)
    disk.sync_folder(gate_dir)
    names = [name for name in sorted(os.listdir(gate_dir)) if _OF_AN_OPENING.fullmatch(name) and name != "gate.json"]
    if kind != "recovery" and os.path.lexists(gate_dir / "output.json"):  # else it is the task's own
        names.append("output.json")
    for name in names:
        _move(gate_dir / name, folder / name)
    disk.sync_folder(folder)
    disk.sync_folder(gate_dir)
    if os.path.lexists(gate_dir / "gate.json"):
        _move(gate_dir / "gate.json", folder / "gate.json")
        disk.sync_folder(folder)
        disk.sync_folder(gate_dir)
    else:
        disk.put(folder / "gate.json", b"{}\n")


def _move(source: Path, target: Path) -> None:
    """Rename onto a name that is free."""
    free, number = target, 1
    while True:
        try:
            return rename_noreplace(source, free)
        except FileExistsError:
            number += 1
            free = target.with_name(f"{target.name}-{number}")


def write_output(disk: Disk, gate_dir: Path, answer: Answer, edits: list[Edit]) -> tuple[str, int]:
    """Write output.json, which later steps read; returns its sha256 and its size in bytes.

    Not for the kind ``recovery``, whose folder is that of a task with an output of its own.
    """
    data = dump_json({**answer.model_dump(), "edited": [edit.path for edit in edits]})
    disk.put(gate_dir / "output.json", data)
    return sha256_of(data), len(data)
