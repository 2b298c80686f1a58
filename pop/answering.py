"""A person's answer to a gate: which gate of a run is meant, the edits of what it shows, the file that is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pop.errors import PopError, UsageError, did_you_mean, safe
from pop.gates import (
    AlreadyAnswered,
    Decision,
    GateNotOpen,
    Opened,
    answer_of,
    check_edits,
    give_answer,
    opened,
    owner,
)
from pop.gateshow import MAX_OUTPUT_BYTES
from pop.history import RunHistory, read_history
from pop.runs import Run
from pop.steps import step_of
from pop.store import Disk, NotAFile, contained, read_regular


def answer_gate(
    run: Run,
    instance: str,
    decision: Decision,
    *,
    text: str | None,
    how: str = "command",
    edits: Mapping[str, bytes] | None = None,
    opening: int | None = None,
) -> tuple[Path, str]:
    """Answer an open gate; returns decision.json and who that was.

    Args:
        instance: As `open_gate_of` found it.
        edits: By the path of a copy in show/ (relative to the run's folder), what is to stand there instead. They are
            laid there before the answer, as by an editor, and taken away again when the answer is refused.
        opening: Which question it answers, where that is known: a gate in a loop asks again.

    Raises:
        AlreadyAnswered: Somebody was first.
        AskedAnew: It asks something else by now.
        BadEdit: An edited copy cannot be taken.
        UsageError: The gate does not take this decision.
    """
    gate_dir, by = run.path / "tasks" / instance, owner(os.getuid())
    about = opened(gate_dir)
    asked_still(about, instance, opening)
    if about and edits and os.path.lexists(gate_dir / "decision.json"):
        raise AlreadyAnswered(instance, answer_of(gate_dir))
    before = _lay(run, {copy.path for copy in about.shown} if about else set(), edits or {})
    try:
        if about and decision != "reject" and not os.path.lexists(gate_dir / "decision.json"):
            check_edits(run.path, gate_dir, about.shown)
        return give_answer(Disk(), gate_dir, decision, by=by, how=how, text=text), by
    except BaseException:
        for path, data in before.items():
            with suppress(OSError):
                Disk().put(path, data)
        raise


class AskedAnew(UsageError):
    """An answer to a question that is not asked any more: another one is."""

    code = "asked-anew"

    def __init__(self, instance: str) -> None:
        hint = "look at it again, and answer then"
        super().__init__(f"{instance} has opened anew since you were asked", hint=hint)


def asked_still(about: Opened | None, instance: str, opening: int | None) -> None:
    """Whether a gate still asks what somebody was asked.

    Raises:
        AskedAnew: It does not.
    """
    if about and opening is not None and about.opening != opening:
        raise AskedAnew(instance)


def _lay(run: Run, shown: set[str], edits: Mapping[str, bytes]) -> dict[Path, bytes]:
    """Put edited copies into their places; returns what stood there.

    Raises:
        UsageError: A path is none of the gate's copies.
    """
    strange = sorted(set(edits) - shown)
    if strange:
        hint = did_you_mean(strange[0][:200], shown)
        raise UsageError(f"the gate shows no {safe(strange[0], 200)!r}", hint=hint, code="bad-edit")
    before: dict[Path, bytes] = {}
    for name, data in edits.items():
        path = contained(run.path, name)
        try:
            there = read_regular(path, max_bytes=MAX_OUTPUT_BYTES)
        except (OSError, NotAFile) as error:
            raise GateNotOpen(f"the copy {name} cannot be edited: {error}", where=name) from None
        if there != data:
            before[path] = there
    for path in before:
        Disk().put(path, edits[os.path.relpath(path, run.path)])
    return before


# -- which gate --------------------------------------------------------------------------------------------------------


def open_gate_of(run: Run, asked: str | None) -> str:
    """The instance that is meant: the only one that is open, or the one that is named.

    Raises:
        UsageError: None is open, several are, or this one is not; says who answered it.
    """
    history = _history(run)
    waiting = [name for name, instance in history.instances.items() if instance.state == "waiting"]
    if asked is not None:
        meant = [name for name in waiting if name == asked] or [name for name in waiting if _called(name, asked)]
        if len(meant) == 1:
            return _of_a_living_run(run, history, meant[0])
        if not meant:
            _refuse_answered(run, asked)
        waiting = meant or waiting
    _of_a_living_run(run, history, "")
    if not waiting:
        hint = f"pop show {run.run_id} tells where it stands"
        raise UsageError(f"{run.run_id} is {history.state}; no gate of it is open", hint=hint, code="gate-not-open")
    if asked is not None and asked not in map(_step_of, waiting):
        state = history.instances[asked].state if asked in history.instances else None
        message = f"{safe(asked, 80)!r} is not open: it is {state}" if state else f"no gate {safe(asked, 80)!r} is open"
        raise UsageError(message, where=run.run_id, hint=did_you_mean(asked, waiting), code="gate-not-open")
    if asked is None and len(waiting) == 1:
        return waiting[0]
    shown = "".join(f"\n    {name}" for name in waiting[:30])
    more = f"\n    and {len(waiting) - 30} more" if len(waiting) > 30 else ""
    raise UsageError(f"{len(waiting)} gates of {run.run_id} are open:{shown}{more}", hint="name the one you mean")


def _history(run: Run) -> RunHistory:
    try:
        return read_history(run.path)
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        if run.here() != run:  # it was promoted while we looked
            return _history(run.here())
        state = run.status().get("state")
        raise UsageError(f"{run.run_id} is {state}; no gate of it is open", code="gate-not-open") from None


def _of_a_living_run(run: Run, history: RunHistory, instance: str) -> str:
    if history.state == "complete":
        raise UsageError(f"{run.run_id} is complete; it waits for nobody", code="gate-not-open")
    if history.state in ("failed", "cancelled"):
        message = f"{run.run_id} is {history.state}; it waits for nobody"
        raise UsageError(message, hint=f"to take it up again: pop retry {run.run_id}", code="gate-not-open")
    return instance


def _step_of(instance: str) -> str:
    return step_of(instance).removesuffix("+control")


def _called(instance: str, asked: str) -> bool:
    return asked in (_step_of(instance), instance.removesuffix("+control"))


def _refuse_answered(run: Run, asked: str) -> None:
    """Of a gate that is no longer open its folder still tells.

    Raises:
        AlreadyAnswered: Says who, when and how.
    """
    try:
        gate_dir: Path = contained(run.path / "tasks", asked)
    except PopError:
        return
    given = answer_of(gate_dir) if opened(gate_dir) else None
    if given:
        raise AlreadyAnswered(asked, given)
