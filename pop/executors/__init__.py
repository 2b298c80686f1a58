"""Where attempts are executed: one small interface, one row per way of doing it.

An attempt carries everything by value or by file; its result is a folder of files and this short record. The
supervisor alone judges the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol

from pop.records import Limits
from pop.settings import Root, Settings

How = Literal["exited", "signalled", "timeout", "stalled", "cancelled", "flood", "interrupted", "lost"]


@dataclass(frozen=True)
class Attempt:
    """One process that tries a step. `attempt_id` is never used twice."""

    attempt_id: str
    run_id: str
    instance: str
    letter_path: str
    attempt_dir: str
    step_dir: str
    limits: Limits
    gateway: str | None


@dataclass(frozen=True)
class Result:
    """How an attempt ended. `code` or `signal` is set when its process was seen to end."""

    attempt_id: str
    how: How
    code: int | None = None
    signal: int | None = None
    seconds: float = 0.0
    cpu_s: float = 0.0
    max_rss_kb: int = 0


class Executor(Protocol):
    """What the orchestrator needs of an executor; all calls come from its event loop."""

    async def start(self) -> None:
        """Be ready to run attempts soon."""

    async def run(self, attempt: Attempt) -> Result:
        """Run one attempt to its end, bounded by its limits."""

    def cancel(self, attempt_id: str, how: How) -> None:
        """End an attempt; its result says `how`. An unknown id is passed over."""

    async def stop(self) -> None:
        """End everything."""

    @property
    def pid(self) -> int | None:
        """The process that the executor started and waits for itself, if any."""


EXECUTORS = {"local": "pop.executors.local:LocalExecutor"}


def open_executor(root: Root, settings: Settings, name: str = "local") -> Executor:
    """The executor called `name`."""
    module, _, attribute = EXECUTORS[name].partition(":")
    executor: Executor = getattr(import_module(module), attribute)(root, settings)
    return executor
