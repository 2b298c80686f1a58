"""Checks what a task orders about the rest of its run, and works added steps into the pipeline.

An order is taken whole or not at all. What was taken stands in the ``step.done`` of the step that gave it, so it is there
when the step is, and a restart that replays the journal builds the same pipeline again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from pop.control_orders import ControlOrders
from pop.errors import ConfigErrors, PopError, did_you_mean
from pop.history import RunHistory
from pop.pipeline import Block, Each, Parallel, Pipeline, load_pipeline
from pop.pipeline import Sequence as Steps
from pop.records import NAME_PATTERN, dump_json, read_json
from pop.steps import Gate, Repeat, step_of

MAX_ADDED = 100  # steps added to one run, by all its tasks together
MAX_SHOWN = 20  # mistakes in one message


class ControlRefused(PopError):
    """An order of a task cannot be carried out; nothing of it was."""

    code = "bad-control"


class Addition(NamedTuple):
    """Steps as they would stand in a pipeline, and the step that ordered them.

    `number` names the block they stand in, ``added[0]``: other additions may be withdrawn, and this one keeps it.
    """

    after: str
    steps: Sequence[Any]
    number: int


def additions(history: RunHistory) -> list[Addition]:
    """Those that hold, in the order they came."""
    return [Addition(step_of(order.instance), order.add, order.number) for order in history.orders if order.add]


def block_of(number: int) -> str:
    """The name of the block in which the steps of an addition stand."""
    return f"added[{number}]"


@dataclass(frozen=True)
class Checked:
    """Orders that can be carried out."""

    added: list[Any] = field(default_factory=list)
    skips: dict[str, str] = field(default_factory=dict)
    pause: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``step.done`` carries it under `control`."""
        return {"add": self.added, "skip": self.skips, "pause": self.pause}


def extended(
    data: bytes,
    added: Sequence[Addition],
    *,
    where: str,
    name: str,
    known_tasks: Collection[str] | None = None,
) -> Pipeline:
    """The pipeline of a run with the steps its tasks have added.

    Blocks without a name keep the names they have in the frozen file, whatever is added before them, since the journal
    knows them by these.

    Args:
        data: pipeline.json as the run froze it.
        added: In the order they were journaled.

    Raises:
        ConfigErrors: The steps do not fit; nothing of them is taken.
    """
    frozen = load_pipeline(data, where=where, name=name)
    if not added:
        return frozen
    groups = [[index] for index in range(len(frozen.root.inner))]  # numbers below 0: additions, -1 the first
    home = {leaf.name: place for place, block in enumerate(frozen.root.inner) for leaf in frozen.leaves[block.name]}
    document = read_json(data, where=where)
    tasks = list(document["tasks"])
    for number, addition in enumerate(added):
        if addition.after not in home:
            raise ConfigErrors([])
        groups[home[addition.after]].append(-1 - number)
        home |= dict.fromkeys(_named_in(addition.steps), home[addition.after])
    order = [entry for group in groups for entry in group]
    document["tasks"] = [tasks[entry] if entry >= 0 else {"do": list(added[-1 - entry].steps)} for entry in order]
    whole = load_pipeline(dump_json(document), where=where, name=name, known_tasks=known_tasks)
    blocks = [
        frozen.root.inner[entry]
        if entry >= 0
        else _renamed(block, f"tasks[{place}]", block_of(added[-1 - entry].number))
        for place, (entry, block) in enumerate(zip(order, whole.root.inner, strict=True))
    ]
    return replace(frozen, root=replace(frozen.root, inner=tuple(blocks)))


def _named_in(steps: Any) -> set[str]:
    """Every name that a step below has, or may have."""
    if isinstance(steps, str):
        return {steps}
    if isinstance(steps, Mapping):
        own = {steps[key] for key in ("name", "task", "approve") if isinstance(steps.get(key), str)}
        return own.union(*(_named_in(steps[key]) for key in ("do", "parallel", "repeat") if key in steps))
    return set().union(*map(_named_in, steps)) if isinstance(steps, Sequence) else set()


def _renamed(block: Block, prefix: str, new: str) -> Block:
    """The block with the places among its names moved."""
    name = block.name if re.fullmatch(NAME_PATTERN, block.name) else new + block.name.removeprefix(prefix)
    match block:
        case Steps() | Parallel():
            return replace(block, name=name, inner=tuple(_renamed(child, prefix, new) for child in block.inner))
        case Each():
            return replace(block, name=name, do=_renamed(block.do, prefix, new))
        case Repeat():
            body = _renamed(block.body, prefix, new)
            assert isinstance(body, Steps)
            return replace(block, name=name, body=body)
    return block


def check(
    data: bytes,
    before: Sequence[Addition],
    history: RunHistory,
    ordering: str,
    document: bytes,
    *,
    name: str,
    known_tasks: Collection[str],
) -> Checked:
    """The orders of a task, when all of them can be carried out.

    Args:
        data: pipeline.json as the run froze it.
        before: What was added to the run before.
        ordering: The step that orders.
        document: control.json.
        known_tasks: The tasks that exist.

    Raises:
        ControlRefused: With every mistake.
    """
    try:
        orders = ControlOrders.model_validate(read_json(document, where="control.json"))
    except ValidationError as error:
        raise ControlRefused("its control.json has not the form of one", where=_first(error)) from None
    except PopError as error:
        raise ControlRefused(error.message, where=error.where, hint=error.hint) from None
    number = 1 + max((one.number for one in before), default=-1)
    added = [*before, Addition(ordering, orders.add, number)] if orders.add else list(before)
    try:
        pipeline = extended(data, added, where="pipeline with the added steps", name=name, known_tasks=known_tasks)
    except ConfigErrors as errors:
        raise _refused(errors) from None
    frozen = len(load_pipeline(data, where="pipeline.json", name=name).steps)
    if len(pipeline.steps) - frozen > MAX_ADDED:
        count = len(pipeline.steps) - frozen
        raise ControlRefused(f"{count} steps added to one run are too many (at most {MAX_ADDED})")
    for step in orders.skip:
        _check_skip(pipeline, history, step)
    return Checked(orders.add, orders.skip, orders.pause)


def _check_skip(pipeline: Pipeline, history: RunHistory, step: str) -> None:
    if step not in pipeline.steps:
        raise ControlRefused(f"it skips an unknown step {step[:80]!r}", hint=did_you_mean(step[:80], pipeline.steps))
    if isinstance(pipeline.steps[step], Gate):
        raise ControlRefused(f"it skips the gate {step!r}: that is for a person to decide", hint=f"pop approve {step}")
    begun = next((i for i, known in history.instances.items() if step_of(i) == step and known.state != "stale"), None)
    if begun:
        raise ControlRefused(f"it skips {step!r}, which has begun ({begun} is {history.instances[begun].state})")


def _first(error: ValidationError) -> str:
    about = error.errors()[0]
    return f"control.json  {'.'.join(map(str, about['loc']))}: {about['msg']}"


def _refused(errors: ConfigErrors) -> ControlRefused:
    found = [
        f"{problem.message} ({problem.where})" if problem.where else problem.message for problem in errors.problems
    ]
    more = [f"and {len(found) - MAX_SHOWN} more"] if len(found) > MAX_SHOWN else []
    message = "; ".join([*found[:MAX_SHOWN], *more]) or "the step that orders is not in the pipeline"
    hint = next((problem.hint for problem in errors.problems if problem.hint), None)
    return ControlRefused(f"the added steps do not fit: {message}", hint=hint)


__all__ = ["MAX_ADDED", "Addition", "Checked", "ControlRefused", "additions", "block_of", "check", "extended"]
