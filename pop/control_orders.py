"""``ctx.control``: what a task may order about the rest of its own run. The supervisor checks it (``pop.control``).

The orders of an attempt go into control.json of its folder, and count only when the attempt does.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pop.records import Record, dump_json

MAX_REASON = 2000


class ControlOrders(Record):
    """control.json. `add` are steps as in a pipeline, `skip` reasons by step, `pause` a reason."""

    add: list[Any] = Field(default_factory=list)
    skip: dict[str, str] = Field(default_factory=dict)
    pause: str | None = None


class Control:
    """Collects the orders of one attempt; each method may be called often. See docs/tasks.md."""

    def __init__(self) -> None:
        self.orders = ControlOrders()

    def add(self, *steps: str | dict[str, Any] | list[Any]) -> None:
        """Run these steps, one after the other, behind the outermost block that holds this step.

        Args:
            steps: As they would stand in pipeline.json, with names that are new in the run.

        Raises:
            TypeError: A step has no JSON form.
        """
        for step in steps:
            if not isinstance(step, (str, dict, list)):
                raise TypeError(f"a step is a task's name, an object or a list, not {type(step).__name__}")
            dump_json(step)
        self.orders.add.extend(steps)

    def skip(self, step: str, reason: str) -> None:
        """Do not run a step that has not begun.

        Raises:
            ValueError: The reason is blank.
        """
        self.orders.skip[str(step)] = _reason(reason)

    def pause(self, reason: str) -> None:
        """Let the run rest after this step, until a person says `pop resume`.

        Raises:
            ValueError: The reason is blank.
        """
        self.orders.pause = _reason(reason)

    def __bool__(self) -> bool:
        """Whether anything was ordered."""
        return self.orders != ControlOrders()


def _reason(text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError("say why, in a sentence: the person who reads the run wants to know")
    return text.strip()[:MAX_REASON]
