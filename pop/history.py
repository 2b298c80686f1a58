"""What has happened in a run, folded from its journal; and the status file as a view of it.

``RunHistory`` is what the planner reads as its facts. It changes only through `apply`, one event after the other, so
that a restart that replays ``events.jsonl`` knows what the daemon knew.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pop import events
from pop.instances import Instance as Instance
from pop.instances import Lap as Lap
from pop.instances import Loop as Loop
from pop.records import Usage, objects_in
from pop.store import read_file

MOST_BYTES = 2**30  # of a journal; 200,000 instances write a third of it
CONTROL = "+control"  # ends the name of the gate that an invalid order of an instance opens
NEW_GENERATION = frozenset({"invalid_output", "refused", "truncated"})  # bad answers: the next attempt asks afresh


class Ordered(NamedTuple):
    """What an instance ordered about the rest of its run; `number` names the blocks of the steps it added."""

    instance: str
    number: int
    add: list[Any]
    skip: dict[str, str]


@dataclass
class RunHistory:
    """The facts of one run. See the table above; `decisions` and `counts` are the planner's."""

    instances: dict[str, Instance] = field(default_factory=dict)
    decisions: dict[str, bool] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    loops: dict[str, Loop] = field(default_factory=dict)
    skips: dict[str, str] = field(default_factory=dict)
    held: bool = False
    paused: bool = False
    created: dict[str, Any] = field(default_factory=dict)
    started_at: str | None = None
    finished_at: str | None = None
    state: str = "queued"
    cancelled: bool = False
    error: dict[str, Any] | None = None
    usage: Usage = field(default_factory=Usage)
    attempts: int = 0
    models: dict[str, None] = field(default_factory=dict)
    budget: dict[str, float] = field(default_factory=dict)  # raised by a person for this run
    warnings: list[str] = field(default_factory=list)  # soft budgets that were passed
    orders: list[Ordered] = field(default_factory=list)  # of tasks, those that hold
    changes: list[tuple[str, str]] = field(default_factory=list)  # what persons asked for: of a loop, step or instance
    unopened: dict[str, str] = field(default_factory=dict)  # gates that are to be opened beside the pipeline's: kinds
    reruns: int = 0
    seed: dict[str, str] | None = None  # path and sha256 of the newest one, after a rerun that set something
    pipeline: dict[str, str] | None = None
    models_asked: dict[str, str] = field(default_factory=dict)  # by a rerun

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event of the journal into account; an unknown one (a newer POP's) is passed over."""
        handler = _HANDLERS.get(event["event"])
        if handler:
            handler(self, event)

    def instance(self, name: str) -> Instance:
        return self.instances.setdefault(name, Instance(state="retry"))

    def waiting(self) -> list[str]:
        """The instances a person is asked about, in the order they came."""
        return [name for name, instance in self.instances.items() if instance.state == "waiting"]

    def failed_loops(self) -> list[str]:
        return [key for key, loop in self.loops.items() if loop.laps and loop.laps[-1].verdict == "failed"]

    def seed_file(self) -> tuple[str, str]:
        """Path and sha256 of the seed that counts."""
        return ("seed.json", self.created["seed_sha256"]) if not self.seed else (self.seed["path"], self.seed["sha256"])


def _run_created(run: RunHistory, event: dict[str, Any]) -> None:
    run.created = event


def _run_started(run: RunHistory, event: dict[str, Any]) -> None:
    run.started_at = run.started_at or event["at"]
    run.state = "running"
    _rest(run)


def _step_started(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    instance.state = "running"
    instance.attempts += 1
    instance.started = event["attempt"]
    instance.generation = event["generation"]
    instance.started_at = instance.started_at or event["at"]
    instance.not_before, instance.live = None, {}
    run.attempts += 1


def _step_done(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    instance.state = "done"
    instance.error = None
    instance.sha256 = event["sha256"]
    instance.refinements = event.get("refinements", 0)
    _end_attempt(run, instance, event)
    if event.get("control"):
        _obey(run, event)
    if event.get("control_error"):
        _ask(run, event["instance"] + CONTROL, "control")
        run.instances[event["instance"] + CONTROL].error = event["control_error"]
        run.held = True
    _rest(run)


def _obey(run: RunHistory, event: dict[str, Any]) -> None:
    """What a task ordered, checked when its step was committed; a fork tells the number the order had."""
    control = event["control"]
    number = control.get("number", 1 + max((order.number for order in run.orders if order.add), default=-1))
    _hold(run, withdrawn={event["instance"]})
    run.orders.append(Ordered(event["instance"], number, control.get("add") or [], control.get("skip") or {}))
    run.skips.update(control.get("skip") or {})
    run.paused = run.paused or control.get("pause") is not None


def _hold(run: RunHistory, *, withdrawn: Collection[str]) -> None:
    """Which orders hold: not those of the instances that are to run again."""
    run.orders = [order for order in run.orders if order.instance not in withdrawn]
    run.skips = {step: reason for order in run.orders for step, reason in order.skip.items()}


def _ask(run: RunHistory, name: str, kind: str) -> None:
    """A gate beside the pipeline's is due; the instance waits from now on, whether it is open yet or not."""
    instance = run.instance(name)
    instance.state, instance.kind, instance.expires_at = "waiting", kind, None
    run.unopened[name] = kind


def _rest(run: RunHistory) -> None:
    """A paused run is at rest once nothing of it runs."""
    if (
        run.paused
        and run.state in ("running", "waiting")
        and not any(i.state == "running" for i in run.instances.values())
    ):
        run.state = "paused"


def _step_attempt_failed(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    instance.error = event["error"]
    instance.state = "failed" if event["action"] == "fail" else "retry"
    if event["action"] == "ask":
        _ask(run, event["instance"], "recovery")
    instance.not_before = event.get("not_before")
    instance.more_time = event.get("more_time", instance.more_time)
    instance.model = event.get("model") or instance.model
    if event["error"]["error_class"] == "interrupted":
        instance.attempts -= 1
        instance.interruptions += 1
    else:
        instance.failures += 1
        instance.problems = list(event["error"].get("problems") or ()) if event.get("corrected", True) else []
    if event["error"]["error_class"] in NEW_GENERATION:
        instance.generation += 1
    _end_attempt(run, instance, event)
    _rest(run)


def _end_attempt(run: RunHistory, instance: Instance, event: dict[str, Any]) -> None:
    run.models.update(dict.fromkeys(event.get("models") or ()))
    instance.finished_at = event["at"]
    instance.seconds = round((instance.seconds or 0.0) + (event.get("seconds") or 0.0), 6)
    _count(run, instance, event)


def _count(run: RunHistory, instance: Instance, event: dict[str, Any]) -> None:
    if event.get("usage"):
        used = Usage.model_validate(event["usage"])
        before = Usage.model_validate(instance.usage) if instance.usage else Usage()
        instance.usage = before.plus(used).model_dump()
        run.usage = run.usage.plus(used)


def _usage_late(run: RunHistory, event: dict[str, Any]) -> None:
    _count(run, run.instance(event["instance"]), event)


def _budget_warning(run: RunHistory, event: dict[str, Any]) -> None:
    run.warnings.append(event["text"])


def _step_skipped(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    instance.state, instance.reason = "skipped", event["reason"]


def _step_reset(run: RunHistory, event: dict[str, Any]) -> None:
    if event["instance"] in run.loops:
        run.loops[event["instance"]].go_on()
    else:
        run.instance(event["instance"]).afresh()
        if event["instance"].endswith(CONTROL):
            _ask(run, event["instance"], "control")
            run.held = True


def _step_reused(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    instance.state, instance.sha256, instance.error = "done", event["sha256"], None
    instance.reason = f"reused from {str(event.get('from')).partition('/')[0]}"
    if event.get("control"):
        _obey(run, event)


def _gate_opened(run: RunHistory, event: dict[str, Any]) -> None:
    instance = run.instance(event["instance"])
    instance.state, instance.kind, instance.key = "waiting", event["kind"], event.get("key")
    instance.opening, instance.shown = event["opening"], event["shown"]
    instance.expires_at, instance.decision = event["expires_at"], None
    instance.patience_s = event["expires_at"] and event["expires_at"] - events.unix_s(event["at"])
    instance.started_at = instance.started_at or event["at"]
    run.held = run.held or event["kind"] == "control"
    run.unopened.pop(event["instance"], None)


def _gate_decided(run: RunHistory, event: dict[str, Any]) -> None:
    name, decision = event["instance"], event["decision"]
    instance = run.instance(name)
    instance.decision, instance.finished_at, instance.expires_at = decision, event["at"], None
    for edit in event.get("edited") or ():
        if edit["path"] == f"tasks/{edit['instance']}/output.json":
            run.instance(edit["instance"]).sha256 = edit["sha256"]
    if decision == "request-changes":
        run.changes.append((instance.key or name, event["text"]))
    if instance.kind == "control":
        others = (other for other in run.instances.values() if other is not instance and other.state == "waiting")
        run.held = any(other.kind == "control" for other in others)
    if decision == "request-changes" and instance.kind == "step" and instance.key is None:
        return  # it stays open until the `run.rerun` that comes with this counts: half an answer is none
    if decision == "reject":
        instance.be_rejected(name, event)
    elif instance.kind == "recovery":
        instance.afresh()
    else:
        instance.state, instance.error, instance.sha256 = "done", None, event.get("sha256")
        if instance.kind == "loop" and instance.key in run.loops:
            loop = run.loops[instance.key]
            loop.go_on() if decision == "request-changes" else loop.accept()


def _lap_ended(run: RunHistory, event: dict[str, Any]) -> None:
    loop = run.loops.setdefault(event["key"], Loop())
    score = event.get("score")
    lap = Lap(event["verdict"], score, event.get("checks") is not False, event["sha256"], event.get("reason", ""),
              event.get("values") or {})  # fmt: skip
    loop.laps[event["lap"] - 1 :] = [lap]
    loop.kept = event.get("kept")
    if event.get("granted"):
        loop.since = event["lap"]


def _run_waiting(run: RunHistory, event: dict[str, Any]) -> None:
    run.state = "waiting"


def _run_paused(run: RunHistory, event: dict[str, Any]) -> None:
    run.paused = True
    _rest(run)


def _run_rerun(run: RunHistory, event: dict[str, Any]) -> None:
    """What became stale keeps what it cost and its attempts' numbers; it is as if it had not begun."""
    for name in event.get("instances") or ():
        run.unopened.pop(name, None)
        if name.endswith(CONTROL):
            run.instances.pop(name, None)
        else:
            run.instance(name).forget()
    for name in event.get("gone") or ():
        run.instances.pop(name, None)
    _hold(run, withdrawn=set(event.get("instances") or ()))
    for name in event.get("again") or ():
        run.instance(name).generation += 1
    for name in event.get("replay") or ():
        _answer_as_before(run, run.instance(name), (event.get("asked") or {}).get(name) or {})
    for name in event.get("reset") or ():
        _step_reset(run, {"instance": name})
    for key in event.get("keys") or ():
        run.decisions.pop(key, None)
        run.counts.pop(key, None)
    for key, laps in (event.get("loops") or {}).items():
        if laps and key in run.loops:
            run.loops[key].begin_again_after(laps)
        else:
            run.loops.pop(key, None)
    run.seed, run.pipeline = event.get("seed") or run.seed, event.get("pipeline") or run.pipeline
    run.models_asked.update(event.get("models") or {})
    run.changes.extend((key, text) for key, text in (event.get("changes") or {}).items())
    run.reruns += 1
    run.held = any(i.kind == "control" and i.state == "waiting" for i in run.instances.values())
    run.state, run.cancelled, run.error, run.finished_at = "running", False, None, None
    run.paused = run.paused and "gate" in event


def _answer_as_before(run: RunHistory, instance: Instance, asked: dict[str, Any]) -> None:
    """Recorded answers: they are known by the run, the generation and the words of the attempt that got them."""
    instance.models = {"*": f"replay:{asked.get('run') or run.created['run_id']}"}
    instance.generation = asked.get("generation") or instance.generation
    instance.model = asked.get("model")
    instance.problems = asked.get("problems")


def _when_decided(run: RunHistory, event: dict[str, Any]) -> None:
    run.decisions[event["key"]] = event["value"]


def _each_expanded(run: RunHistory, event: dict[str, Any]) -> None:
    run.counts[event["key"]] = event["count"]


def _run_cancelled(run: RunHistory, event: dict[str, Any]) -> None:
    run.cancelled, run.state, run.finished_at = True, "cancelled", event["at"]


def _run_failed(run: RunHistory, event: dict[str, Any]) -> None:
    run.state, run.error, run.finished_at = "failed", event["error"], event["at"]


def _run_resumed(run: RunHistory, event: dict[str, Any]) -> None:
    run.state, run.cancelled, run.paused, run.error, run.finished_at = "running", False, False, None, None
    run.budget.update(event.get("budget") or {})


def _run_complete(run: RunHistory, event: dict[str, Any]) -> None:
    run.state, run.finished_at = "complete", event["at"]


_HANDLERS = {
    events.RUN_CREATED: _run_created,
    events.RUN_STARTED: _run_started,
    events.STEP_STARTED: _step_started,
    events.STEP_DONE: _step_done,
    events.STEP_ATTEMPT_FAILED: _step_attempt_failed,
    events.STEP_SKIPPED: _step_skipped,
    events.STEP_RESET: _step_reset,
    events.WHEN_DECIDED: _when_decided,
    events.EACH_EXPANDED: _each_expanded,
    events.GATE_OPENED: _gate_opened,
    events.GATE_DECIDED: _gate_decided,
    events.LAP_ENDED: _lap_ended,
    events.STEP_REUSED: _step_reused,
    events.RUN_WAITING: _run_waiting,
    events.RUN_PAUSED: _run_paused,
    events.RUN_RERUN: _run_rerun,
    events.USAGE_LATE: _usage_late,
    events.BUDGET_WARNING: _budget_warning,
    events.RUN_CANCELLED: _run_cancelled,
    events.RUN_FAILED: _run_failed,
    events.RUN_RESUMED: _run_resumed,
    events.RUN_COMPLETE: _run_complete,
}


def read_history(run_dir: Path) -> RunHistory:
    """Replay a run's journal; a torn last line (a crash during its append) is passed over.

    Raises:
        FileNotFoundError: The run was never sealed.
        OSError: It is no file that can be read whole.
    """
    history = RunHistory()
    for event in objects_in(read_file(run_dir / "events.jsonl", max_bytes=MOST_BYTES).split(b"\n")):
        if "event" in event:
            history.apply(event)
    return history
