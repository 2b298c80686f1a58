"""Orders to a run are files in its folder, written by a command, the dashboard or a person.

``orders/<verb>.json``; the content is optional: ``{"by": str, "reason": str, "budget": {"run_usd": 5}}``. An order that was carried out moves to
``orders/done/``. Several are carried out by age, so that the
newest has the last word; of those that take a run at rest up (`STARTS`) the newest alone that does. They work while the
daemon is down and are carried out when it is back.

| verb   | a run that is active        | a run at rest                                       |
|--------|-----------------------------|-----------------------------------------------------|
| cancel | its workers are ended       | a failed one is journaled as cancelled              |
| retry  | nothing (it is at work)     | failed steps get fresh attempts, failed loops further laps, the run goes on |
| pause  | it starts nothing more      | a waiting one is journaled as paused                |
| resume | it goes on                  | a paused one goes on                                |
| rerun  | refused: pause it first     | what is stale from a step on runs again (see ``pop.rerun``) |
"""

from __future__ import annotations

import contextlib
import getpass
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from pop import events
from pop.errors import PopError
from pop.gatework import find_answer, gate_dir, may_be_answered, problems
from pop.history import RunHistory, read_history
from pop.pipeline_values import budget as budgets
from pop.records import BadJson, dump_json, read_json
from pop.rerun import AT_REST, pipeline_of, rerun_event, resumed_with
from pop.settings import Root
from pop.statuses import lasting, status_of
from pop.store import Disk, NotAFile, mend_tail, read_regular
from pop.waiting import WaitingRuns

log = structlog.get_logger()

VERBS = ("cancel", "pause", "resume", "rerun", "retry")
STARTS = {"resume": ("paused",), "rerun": AT_REST, "retry": ("failed", "cancelled", "running")}  # and from which states
ANSWER = "answer"  # not an order in orders/: somebody answered a gate of a waiting run
AT_ONCE = 500


@dataclass(frozen=True)
class Order:
    run_dir: Path
    verb: str
    by: str
    reason: str | None
    budget: dict[str, float] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    later: tuple[str, ...] = ()  # orders given after it that may take the run up, as it may itself

    @property
    def run_id(self) -> str:
        return self.run_dir.name


def write_order(
    disk: Disk,
    run_dir: Path,
    verb: str,
    reason: str | None = None,
    budget: dict[str, float] | None = None,
    *,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Give an order as a person at this machine; returns the file that was written.

    Args:
        budget: With retry: what the run may use up from now on, instead of the seed's and the pipeline's own words.
        more: What else the order says; see ``rerun.read_order``.
    """
    folder = run_dir / "orders"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{verb}.json"
    by = getpass.getuser() if os.environ.get("USER") or os.environ.get("LOGNAME") else f"uid {os.getuid()}"
    about = {"by": by, "reason": reason, "at": events.rfc3339(time.time()), **(more or {})}
    disk.put(path, dump_json({**about, "budget": budget} if budget else about))
    return path


class Orders:
    """Finds orders: in every active run at each look, in runs at rest a bounded number per look, in turn."""

    def __init__(self, root: Root, disk: Disk, waiting: WaitingRuns | None = None) -> None:
        self._root = root
        self._waiting = waiting or WaitingRuns()
        self._disk = disk
        self._next = ""
        self._told: dict[str, list[str]] = {}  # by waiting run, what was meant as an answer and is none

    def find(self, active: set[str]) -> list[Order]:
        try:
            names = os.listdir(self._root.current)
        except FileNotFoundError:  # somebody removed it; it is made again
            return []
        resting = [name for name in names if name not in active and name[0] != "."]
        found: list[Order] = []
        for name in [*active, *self._slice(resting)]:
            found.extend(self._in(self._root.current / name))
            found.extend(self._answers(name))
        return found

    def _answers(self, run_id: str) -> list[Order]:
        """One, when a gate of a waiting run has its answer."""
        run_dir, gates = self._root.current / run_id, self._waiting.gates.get(run_id, [])
        looked = False
        for gate in gates:
            if not may_be_answered(gate_dir(run_dir, gate)):
                continue
            answer = find_answer(self._disk, run_dir, gate)
            if answer:
                self._told.pop(run_id, None)
                return [Order(run_dir, ANSWER, answer.by, answer.text)]
            looked = True
        if looked and (told := problems(run_dir, gates)) != self._told.get(run_id, []):
            self._told[run_id] = told
            try:
                self.show(run_dir, read_history(run_dir))
            except Exception as error:  # somebody damaged it; the others have orders too
                log.error("status.unwritten", run=run_id, error=f"{type(error).__name__}: {error}")
        return []

    def _slice(self, names: list[str]) -> list[str]:
        if len(names) <= AT_ONCE:
            return names
        names.sort()
        after = [name for name in names if name > self._next][:AT_ONCE]
        self._next = after[-1] if len(after) == AT_ONCE else ""
        return after

    def _in(self, run_dir: Path) -> list[Order]:
        try:
            names = os.listdir(run_dir / "orders")
        except OSError:  # none, or a folder that nobody can read orders from
            return []
        given = [verb for verb in VERBS if f"{verb}.json" in names or verb in names]
        orders = [self._read(run_dir, verb) for verb in sorted(given, key=lambda verb: _placed_at(run_dir, verb))]
        starts = [order.verb for order in orders if order.verb in STARTS]
        return [
            replace(order, later=tuple(starts[starts.index(order.verb) + 1 :])) if order.verb in starts else order
            for order in orders
        ]

    def overtaken(self, order: Order) -> str | None:
        """The newest later order that takes this run at rest up; one that does nothing for it overtakes none."""
        if not order.later:
            return None
        try:
            state = read_history(order.run_dir).state
        except FileNotFoundError:
            return None
        return next((verb for verb in reversed(order.later) if state in STARTS[verb]), None)

    def _read(self, run_dir: Path, verb: str) -> Order:
        by, reason, budget, content = "a file", None, dict[str, float](), dict[str, Any]()
        try:
            value = read_json(read_regular(run_dir / "orders" / f"{verb}.json", max_bytes=65536))
            content = {"by": by, **value}
            by, reason = str(value.get("by") or by), value.get("reason") and str(value["reason"])
            budget = budgets("step", "run", "pipeline")(value["budget"]) if value.get("budget") else {}
        except (BadJson, NotAFile, OSError, AttributeError, TypeError, ValueError):
            pass  # the name alone is the order
        return Order(run_dir, verb, by, reason, budget, content)

    def apply_to_resting(self, order: Order) -> bool:
        """Carry out an order to a run nobody works on; returns whether the run is to be taken up again."""
        try:
            mend_tail(order.run_dir / "events.jsonl")
            history = read_history(order.run_dir)
        except FileNotFoundError:
            return False
        about = {"at": events.rfc3339(time.time()), "by": order.by, "reason": order.reason}
        if order.verb == "cancel" and history.state not in ("cancelled", "complete"):
            rows: list[dict[str, Any]] = [{**about, "event": events.RUN_CANCELLED}]
        elif order.verb == "retry" and history.state in STARTS["retry"]:
            again = [name for name, instance in history.instances.items() if instance.state in ("failed", "retry")]
            again += history.failed_loops()
            rows = [{**about, "event": events.RUN_RESUMED, "budget": order.budget, **self._resumed(order, history)}]
            rows += [{"at": about["at"], "event": events.STEP_RESET, "instance": name} for name in again]
        elif order.verb == "pause" and history.state in ("waiting", "running"):
            rows = [{**about, "event": events.RUN_PAUSED}]
        elif order.verb == "resume" and history.state in STARTS["resume"]:
            rows = [{**about, "event": events.RUN_RESUMED, **self._resumed(order, history)}]
        elif order.verb == "rerun":
            rows = self._rerun(order, history)
        else:
            return False
        lines = b"".join(dump_json(row, pretty=False) for row in rows)
        self._disk.append(order.run_dir / "events.jsonl", lines)
        for row in rows:
            history.apply(row)
        self.show(order.run_dir, history)
        return order.verb in ("retry", "resume", "rerun")

    def _resumed(self, order: Order, history: RunHistory) -> dict[str, str]:
        """With which tasks it goes on: what failed by one of them may have been mended."""
        found = resumed_with(self._root, order.run_dir, history)
        if found is None:
            return {}
        self._disk.put(order.run_dir / found[0], found[1])
        return {"provenance": found[0]}

    def _rerun(self, order: Order, history: RunHistory) -> list[dict[str, Any]]:
        """The event of a rerun; its files stand durably before.

        Raises:
            PopError: It cannot be carried out; nothing is done.
        """
        pipeline = pipeline_of(order.run_dir, history)
        event, files = rerun_event(self._root, order.run_dir, pipeline, history, order.content)
        for name, data in files.items():
            self._disk.put(order.run_dir / name, data)
        return [event]

    def show(self, run_dir: Path, history: RunHistory) -> None:
        """The status of a run at rest; what the last one knew of steps that had not begun stays."""
        path = run_dir / "tasks-status.json"
        try:
            before = read_json(read_regular(path, max_bytes=64 * 2**20))
            expected, notes = list(before.get("tasks") or {}), lasting(before.get("notes") or (), history)
        except (BadJson, NotAFile, OSError, AttributeError, TypeError):
            expected, notes = [], []
        now = events.rfc3339(time.time())
        notes += problems(run_dir, history.waiting())
        self._disk.put(path, dump_json(status_of(history, now=now, expected=expected, notes=notes)))

    def file_away(self, order: Order, error: PopError | None = None) -> None:
        """Move a carried-out order to orders/done/, under a name of its own; a refused one with the reason beside it."""
        done: Path | None = order.run_dir / "orders" / "done"
        try:
            (order.run_dir / "orders" / "done").mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError:  # the run was promoted meanwhile, with its orders
            return
        except FileExistsError:  # something that is no folder: the order goes, or it would be carried out for ever
            done = None
        for name in (f"{order.verb}.json", order.verb):
            source = order.run_dir / "orders" / name
            if source.exists() and done is not None:
                number = time.time_ns()
                if error:
                    self._disk.put(done / f"{number}-{order.verb}.problem.json", dump_json(error.to_json()))
                os.rename(source, done / f"{number}-{name}")
            elif source.is_file():
                source.unlink()


def _placed_at(run_dir: Path, verb: str) -> int:
    """When its file came to stand there; a `mv` keeps the file's own time, but not this one."""
    for name in (f"{verb}.json", verb):
        with contextlib.suppress(OSError):
            return os.lstat(run_dir / "orders" / name).st_ctime_ns
    return 0
