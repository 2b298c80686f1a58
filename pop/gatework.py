"""Opens gates and carries out their answers: files first, then the events that make them count.

| gate          | opened when                                   | approve           | request-changes              | reject        |
|---------------|-----------------------------------------------|-------------------|------------------------------|---------------|
| step          | its turn has come                             | done              | done; in a loop its words go to the further laps, else what it showed runs again | failed |
| loop          | a lap's verdict is ``ask``                    | the newest lap counts | further laps             | failed        |
| recovery      | an attempt failed and its table says ``ask``  | fresh attempts    | the same, with the words     | failed        |
| control       | a task's orders cannot be carried out         | on without them   | -                            | failed        |

All of it may be done again after a crash: what was written is found or written alike, and nothing counts before its event.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from pop import events, gates
from pop.errors import UsageError
from pop.gates import Answer, BadEdit, Edit, Shown
from pop.history import CONTROL, RunHistory
from pop.letters import loop_keys
from pop.loopwork import at_of
from pop.moves import Expire, Open
from pop.pipeline import Pipeline
from pop.reading import inputs_of
from pop.stale import Stale, stale_of
from pop.statuses import MOST_TOLD
from pop.steps import At, Block, Gate, Repeat, Sequence, Task, instance_name, step_of
from pop.store import Disk

BY_HAND = frozenset({"APPROVE", "REJECT", "CHANGES.md", "decision.json"})
TIMEOUT = "timeout"  # how an answer came that nobody gave; the copies are not looked at then
FRESH_S = 5.0  # a folder that changed so lately is looked at closely, whatever lies in it
ANY = ["approve", "request-changes", "reject"]


def gate_dir(run_dir: Path, instance: str) -> Path:
    return run_dir / "tasks" / instance


# -- opening ---------------------------------------------------------------------------------------------------------


def open_gate(
    disk: Disk, run_dir: Path, pipeline: Pipeline, history: RunHistory, move: Open, *, again: bool = False
) -> dict[str, Any]:
    """Ask what the planner says is to be asked; returns the event.

    Args:
        again: It is open; lay out its files once more, for somebody removed them.
    """
    block = pipeline.blocks[move.step]
    if isinstance(block, Repeat):
        key = instance_name(block.name, pipeline.at(block.name, move.at))
        why = f"{block.name} has not come to its end by itself: {history.loops[key].laps[-1].reason}"
        shown = _shown(pipeline, history, move, [leaf.name for leaf in pipeline.leaves[block.name]])
        return _ask(disk, run_dir, history, move.instance, kind="loop", key=key, why=why, shown=shown)
    assert isinstance(block, Gate)
    keys = loop_keys(pipeline, block.name, move.at)
    steps = list(block.show) or _steps_before(pipeline, block)
    return _ask(
        disk,
        run_dir,
        history,
        move.instance,
        kind="step",
        key=keys[-1] if keys else None,
        why=block.text or "",
        shown=_shown(pipeline, history, move, steps),
        options=ANY if keys or from_where(pipeline, history, block.name, move.at) else ["approve", "reject"],
        expires_at=round(time.time() + block.timeout_s, 3) if block.timeout_s else None,
        on_timeout=block.on_timeout,
        again=again,
    )


def open_beside(disk: Disk, run_dir: Path, history: RunHistory, instance: str) -> dict[str, Any]:
    """Ask about a failed attempt, or about an order that cannot be carried out; returns the event."""
    kind = history.unopened[instance]
    error = history.instances[instance].error or {}
    options = ["approve", "reject"] if kind == "control" else ANY
    shown = [instance.removesuffix(CONTROL)] if kind == "control" else []
    why = str(error.get("message") or "")
    return _ask(disk, run_dir, history, instance, kind=kind, key=None, why=why, shown=shown, options=options)


def _ask(
    disk: Disk,
    run_dir: Path,
    history: RunHistory,
    instance: str,
    *,
    kind: str,
    key: str | None,
    why: str,
    shown: list[str],
    options: list[str] | None = None,
    expires_at: float | None = None,
    on_timeout: str = "wait",
    again: bool = False,
) -> dict[str, Any]:
    known = history.instances.get(instance)
    opening = (known.opening if known else 0) + (not again)
    copies = gates.open_gate(
        disk,
        run_dir,
        instance,
        kind=kind,
        title="",
        why=why,
        shown=shown,
        options=options or ANY,
        opening=opening,
        expires_at=expires_at,
        on_timeout=on_timeout,
    )
    return {
        "event": events.GATE_OPENED,
        "instance": instance,
        "kind": kind,
        "key": key,
        "opening": opening,
        "expires_at": expires_at if on_timeout != "wait" else None,
        "shown": [copy.model_dump() for copy in copies],
    }


def _shown(pipeline: Pipeline, history: RunHistory, move: Open, steps: list[str]) -> list[str]:
    """The instances of these steps whose outputs the gate can read."""
    readable = inputs_of(pipeline, history, move)
    return [
        instance
        for step in steps
        if isinstance(pipeline.steps.get(step), Task)
        for instance in _flat(readable.get(step))
    ]


def _flat(references: Any) -> Iterator[str]:
    if isinstance(references, str):
        yield references
    for one in references if isinstance(references, list) else ():
        yield from _flat(one)


def _steps_before(pipeline: Pipeline, block: Block) -> list[str]:
    """The tasks that a gate waits for directly; where these are gates, the tasks those wait for."""
    before = _blocks_before(pipeline, block)
    tasks = [leaf.name for one in before for leaf in pipeline.leaves[one.name] if isinstance(leaf, Task)]
    return tasks or [name for one in before for name in _steps_before(pipeline, one)]


def _blocks_before(pipeline: Pipeline, block: Block) -> tuple[Block, ...]:
    if block.needs is not None:
        return pipeline.waits[block.name]
    parent = pipeline.parents.get(block.name)
    if parent is None:
        return ()
    if isinstance(parent, Sequence):
        place = [child.name for child in parent.inner].index(block.name)
        if place:
            return (parent.inner[place - 1],)
    return _blocks_before(pipeline, parent)


def from_where(pipeline: Pipeline, history: RunHistory, gate: str, at: At) -> list[str]:
    """From which instances the run goes once more when changes are asked for at a gate that stands in no loop."""
    block = pipeline.steps[gate]
    assert isinstance(block, Gate)
    return _shown(pipeline, history, Open("", gate, at), list(block.show) or _steps_before(pipeline, block))


# -- answers ---------------------------------------------------------------------------------------------------------


def may_be_answered(folder: Path) -> bool:
    """Whether it is worth a closer look; costs no more than to list the folder."""
    try:
        return not BY_HAND.isdisjoint(os.listdir(folder)) or time.time() - folder.stat().st_mtime < FRESH_S
    except OSError:
        return False


def find_answer(disk: Disk, run_dir: Path, instance: str) -> Answer | None:
    folder = gate_dir(run_dir, instance)
    return gates.find_answer(disk, folder, time.time()) if may_be_answered(folder) else None


def expire(disk: Disk, run_dir: Path, pipeline: Pipeline, history: RunHistory, move: Expire) -> Answer | None:
    """The answer of the gate's timeout, unless somebody was first."""
    folder = gate_dir(run_dir, move.instance)
    with contextlib.suppress(gates.AlreadyAnswered):
        try:
            gates.give_answer(disk, folder, move.answer, by=TIMEOUT, how=TIMEOUT)
        except gates.AlreadyAnswered:
            raise
        except UsageError:  # somebody removed gate.json, or wrote another one
            gate = Open(move.instance, step_of(move.instance), at_of(move.instance))
            open_gate(disk, run_dir, pipeline, history, gate, again=True)
            gates.give_answer(disk, folder, move.answer, by=TIMEOUT, how=TIMEOUT)
    return gates.find_answer(disk, folder, time.time())


def problems(run_dir: Path, waiting: Iterable[str]) -> list[str]:
    """Sentences about what was meant as an answer and is none."""
    first = islice(waiting, MOST_TOLD)
    return [_problem(name, about) for name in first if (about := gates.problem_of(gate_dir(run_dir, name)))]


def _problem(gate: str, about: dict[str, Any]) -> str:
    hint = f"; {about['hint']}" if about.get("hint") else ""
    return f"{gate} got an answer that is none: {about.get('file')}: {about.get('problem')}{hint}"


def redone(pipeline: Pipeline, history: RunHistory, instance: str, answer: Answer) -> tuple[list[str], Stale] | None:
    """What is to run again because of an answer, and from where; None when nothing is."""
    known = history.instances[instance]
    if answer.decision != "request-changes" or known.kind != "step" or known.key is not None:
        return None
    from_ = from_where(pipeline, history, step_of(instance), at_of(instance))
    return from_, stale_of(pipeline, history, from_)


def decide(
    disk: Disk, run_dir: Path, pipeline: Pipeline, history: RunHistory, instance: str, answer: Answer
) -> list[dict[str, Any]]:
    """The files of an answer, and the events that make it count; none when it cannot be carried out: it is set aside."""
    known, folder = history.instances[instance], gate_dir(run_dir, instance)
    edits: list[Edit] = []
    if answer.decision != "reject" and answer.how != TIMEOUT and known.kind in ("step", "loop"):
        shown = [Shown.model_validate(copy) for copy in known.shown]
        try:
            edits = gates.take_edits(disk, run_dir, folder, shown, instance)
        except BadEdit as error:
            gates.set_aside(disk, folder, error)
            return []
    sha256, size_bytes = (None, 0) if known.kind == "recovery" else gates.write_output(disk, folder, answer, edits)
    decided = {
        "event": events.GATE_DECIDED,
        "instance": instance,
        "decision": answer.decision,
        "by": answer.by,
        "how": answer.how,
        "text": answer.text,
        "edited": [edit.model_dump() for edit in edits],
        "sha256": sha256,
        "size_bytes": size_bytes,
    }
    again = redone(pipeline, history, instance, answer)
    if again is None:
        return [decided]
    rerun = _rerun(instance, answer, *again)
    return [rerun] if known.decision else [decided, rerun]  # a crash may have left the first of the two


def _rerun(gate: str, answer: Answer, from_: list[str], stale: Stale) -> dict[str, Any]:
    return {
        "event": events.RUN_RERUN,
        "gate": gate,
        "by": answer.by,
        "reason": f"changes were asked for at {gate}",
        "from": from_,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(stale).items()},
        "seed": None,
        "pipeline": None,
        "models": {},
        "changes": dict.fromkeys(from_, answer.text),
    }
