"""How a run is shown in a terminal: a live table where there is one, plain lines elsewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from pop import events
from pop.gateanswers import answer_of, owner, problem_of
from pop.gatepage import FILES
from pop.runs import Run, safe
from pop.settings import Root
from pop.store import lines_of, lock_holder

MARKS = {
    "pending": "·", "running": "▸", "waiting": "?", "done": "✓", "failed": "✗", "skipped": "-", "stale": "~",
    "cancelled": "x", "unreadable": "!", "queued": "·", "complete": "✓", "paused": "=",
}  # fmt: skip
COLOURS = {
    "running": "cyan",
    "done": "green",
    "complete": "green",
    "failed": "red",
    "cancelled": "red",
    "waiting": "yellow",
}
MOST_ROWS = 30
MOST_REASON = 100  # characters
_HOW_TO = re.compile(r"\S+ waits for an answer")  # a note that is told at more length


class Progress:
    """Shows one run while it goes. `run` is the run it was given last."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.run: Run | None = None
        self._quiet = quiet
        self._live: Any = None
        self._said: dict[str, str] = {}

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=10, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, run: Run) -> None:
        """Show where the run stands now."""
        self.run = run
        if self._quiet:
            return
        status = run.status()
        if self._live:
            self._live.update(table_of(run, status))
            return
        for line in self._news(status):
            print(line, file=sys.stderr, flush=True)

    def _news(self, status: dict[str, Any]) -> Iterator[str]:
        if "" not in self._said:
            self._said[""] = "said"
            yield f"run {status['run_id']}"
            yield from (f"note: {safe(note)}" for note in status.get("notes") or [])
        for name, task in status.get("tasks", {}).items():
            now = f"{task['state']}{task.get('attempt') or ''}"
            if task["state"] == "pending" or self._said.get(name) == now:
                continue
            self._said[name] = now
            yield task_line(name, task)


def task_line(name: str, task: dict[str, Any]) -> str:
    """One step as one line of text."""
    parts = [f"{MARKS.get(task['state'], ' ')} {name:<24} {task['state']:<9}"]
    if task.get("stage"):
        parts.append(f"{task['stage']}")
    if task.get("progress"):
        parts.append(f"{task['progress'][0]:g}/{task['progress'][1]:g}")
    if task.get("seconds") is not None and task["state"] != "running":
        parts.append(f"{task['seconds']:.2f} s")
    if task.get("attempt", 0) > 1:
        parts.append(f"attempt {task['attempt']}")
    if task.get("refinements"):
        parts.append(f"{task['refinements']} refinement(s)")
    if task.get("reason"):
        parts.append(safe(cut(str(task["reason"])), MOST_REASON))
    if task.get("error"):
        parts.append(f"{safe(task['error'].get('error_class'), 40)}: {safe(task['error'].get('message', ''), 160)}")
    return "  ".join(parts)


def cut(text: str, most: int = MOST_REASON) -> str:
    """With a mark where something is left out."""
    return text if len(text) <= most else text[: most - 1] + "…"


def table_of(run: Run, status: dict[str, Any]) -> Any:
    """One run as a rich table."""
    from rich.table import Table
    from rich.text import Text

    usage = status.get("usage") or {}
    title = f"{run.run_id}   {status.get('state')}   {100 * (status.get('progress') or 0):.0f} %"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("", "step", "state", "stage", "time", "attempt", ""):
        table.add_column(heading)
    tasks = list(status.get("tasks", {}).items())
    shown = tasks if len(tasks) <= MOST_ROWS else [row for row in tasks if row[1]["state"] not in ("done", "pending")]
    for name, task in shown[:MOST_ROWS]:
        colour = COLOURS.get(task["state"], "")
        error = task.get("error") or {}
        table.add_row(
            Text(MARKS.get(task["state"], " "), style=colour),
            Text(name),
            Text(task["state"], style=colour),
            Text(task.get("stage") or ""),
            Text(f"{task['seconds']:.1f} s" if task.get("seconds") is not None else ""),
            Text(str(task.get("attempt") or "")),
            Text(safe(error.get("message", ""), 80), style="red"),
        )
    if len(tasks) > len(shown):
        done = sum(1 for _, task in tasks if task["state"] == "done")
        table.caption = f"{done} of {len(tasks)} steps done"
    elif usage.get("calls"):
        table.caption = usage_line(usage)
    return table


def usage_line(usage: dict[str, Any]) -> str:
    """What model calls came to: ``3 model calls, 6 tokens in, 12 out, $0.00003``."""
    calls, stored = usage.get("calls", 0), usage.get("cached_calls", 0)
    parts = [f"{calls} model call{'s' * (calls != 1)}" + (f" and {stored} answered from the store" if stored else "")]
    parts += [f"{usage.get('input_tokens', 0):,} tokens in", f"{usage.get('output_tokens', 0):,} out"]
    cost, unpriced = usage.get("cost_usd", 0.0), usage.get("unpriced_calls", 0)
    if not unpriced:
        parts.append(dollars(cost))
    elif unpriced < calls:
        parts.append(f"{dollars(cost)} and {unpriced} of unknown price")
    else:
        parts.append("price unknown")
    if usage.get("estimated_calls"):
        parts.append(f"{usage['estimated_calls']} estimated")
    return ", ".join(parts)


def dollars(usd: float) -> str:
    """``$0.0021``, and more digits where four would show nothing: ``$0.00003``; nothing spent is ``$0``."""
    if not usd:
        return "$0"
    return f"${usd:.4f}" if usd >= 0.001 else "$" + f"{usd:.9f}".rstrip("0")


def closing_lines(root: Root, run: Run, status: dict[str, Any]) -> Iterator[str]:
    """What is said when a run has ended: where the result lies, or what went wrong and what to do."""
    path = run.path.relative_to(root.path)
    state = status.get("state")
    if state == "complete":
        done = [name for name, task in status["tasks"].items() if task["state"] == "done"]
        yield f"{MARKS['complete']} complete   {path}"
        yield from (f"note       {safe(note)}" for note in status.get("notes") or [])
        if done:
            last = f"{path}/tasks/{done[-1]}"
            yield f"output     {last}/output.json"
            artifacts = root.path / last / "artifacts"
            if artifacts.is_dir():
                yield from (f"artifact   {last}/artifacts/{safe(p.name)}" for p in sorted(artifacts.iterdir()))
        return
    yield f"{MARKS.get(str(state), ' ')} {state}   {path}"
    error = error_of(status)
    if error:
        yield f"error      {safe(error.get('error_class'), 40)}: {safe(error.get('message', ''), 2000)}"
        if error.get("where"):
            yield f"where      {safe(error['where'])}"
        if error.get("hint") and error.get("hint") != next_move(root, run, status):
            yield f"hint       {safe(error['hint'])}"
        if error.get("instance"):
            attempt = f"attempts/{error['attempt']}/" if error.get("attempt") else ""  # a gate has none
            yield f"look at    {path}/tasks/{error['instance']}/{attempt}"
    yield from (f"note       {safe(note, 500)}" for note in status.get("notes") or [] if not _HOW_TO.match(note))
    if state in ("waiting", "paused"):
        yield from _how_to_go_on(root, run, status)
    if state == "cancelled":
        about = run.cancelled_by()
        yield f"cancelled  {by_whom(about.get('by'), about.get('reason'))}"
    for order in run.waiting_orders():
        yield f"order      {order} waits to be carried out, by the daemon that serves this folder (pop up)"
    if state in ("failed", "cancelled") and "retry" not in run.waiting_orders():
        yield f"next       {next_move(root, run, status)}"


def _how_to_go_on(root: Root, run: Run, status: dict[str, Any]) -> Iterator[str]:
    """What a person can do about a run that waits for one."""
    gates, served = open_gates(status), lock_holder(root.machine_room) is not None
    for gate in gates[:10]:
        folder = run.step_dir(gate).relative_to(root.path)
        given, problem = answer_of(run.step_dir(gate)), problem_of(run.step_dir(gate))
        if given:
            taken = "the daemon takes it" if served else "it takes effect with the next pop up"
            yield f"answered   {gate}: {given.decision} by {safe(given.by, 80)}; {taken}"
            continue
        yield f"asks       {folder}/request.md"
        yield f"answer     pop approve {run.run_id} {gate}   (or reject, request-changes; or touch {folder}/APPROVE)"
        if problem:
            yield f"no answer  {safe(problem.get('problem'), 300)}: {safe(problem.get('hint') or 'answer once more', 300)}"
    if len(gates) > 10:
        yield f"           and {len(gates) - 10} more gates"
    if status.get("state") == "paused":
        yield f"paused     {paused_by(run)}"
        yield f"next       pop resume {run.run_id}"
    elif not served:
        yield "note       no daemon is running here: an answer takes effect with the next pop up"


def open_gates(status: dict[str, Any]) -> list[str]:
    """The instances at which a run waits for a person."""
    return [name for name, task in status.get("tasks", {}).items() if task["state"] == "waiting"]


def is_answered(root: Root, run: Run, status: dict[str, Any]) -> bool:
    """Whether a run that waits has an answer already that its daemon is about to take."""
    given = status.get("state") == "waiting" and any(_has_answer(run.step_dir(gate)) for gate in open_gates(status))
    return given and lock_holder(root.machine_room) is not None


def _has_answer(gate_dir: Path) -> bool:
    """A decision, or a file that becomes one when it has stood still for a second."""
    refused = (problem_of(gate_dir) or {}).get("file")
    return answer_of(gate_dir) is not None or any(
        (gate_dir / name).is_file() and name != refused for name in FILES.values()
    )


def paused_by(run: Run) -> str:
    """Who lets a run rest, and why, as far as its journal tells: ``by step triage: have a look first``."""
    try:
        lines = [line for line in lines_of(run.path / "events.jsonl") if b"pause" in line]
    except OSError:
        lines = []
    for line in reversed(lines):
        try:
            event = orjson.loads(line)
            if event.get("event") == events.RUN_PAUSED:
                return by_whom(event.get("by"), event.get("reason"))
            if event.get("event") == events.STEP_DONE and (event.get("control") or {}).get("pause") is not None:
                return by_whom(f"step {event['instance']}", event["control"]["pause"])
        except (ValueError, TypeError, AttributeError, LookupError):
            continue
    return by_whom(None, None)


def by_whom(who: object, why: object) -> str:
    """``by ann: too long``, of an order or an answer."""
    name = str(who or "?")
    if name.startswith("uid ") and name[4:].isdigit():  # so orders tell it; gates tell the name
        name = owner(int(name[4:]))
    return f"by {safe(name, 80, one_line=True)}: {safe(why or 'no reason given', 2000)}"


def again_line(run: Run, status: dict[str, Any]) -> str | None:
    """How a run that has ended is taken up from one of its steps; None when it has not, or that is ordered already."""
    state, orders = status.get("state"), run.waiting_orders()
    if state == "complete":
        return f"again      pop rerun {run.run_id} --from STEP   (a new run, which shares what lies before STEP)"
    if state != "failed" or {"retry", "rerun"} & set(orders):
        return None
    failed = str(error_of(status).get("instance"))
    known = failed in status.get("tasks", {}) and not failed.endswith("+control")
    step = failed if known else "STEP"
    return f"or         pop rerun {run.run_id} --from {step}   (what lies before {'it' if known else step} is kept)"


def error_of(status: dict[str, Any]) -> dict[str, Any]:
    """A status that somebody damaged may hold anything."""
    error = status.get("error")
    return error if isinstance(error, dict) else {}


def next_move(root: Root, run: Run, status: dict[str, Any]) -> str:
    """What a person can do about a run that failed or was cancelled."""
    error = error_of(status)
    if status.get("state") == "cancelled":
        return f"pop retry {run.run_id}"
    if error.get("error_class") == "budget" and error.get("hint") and "pop retry" in error["hint"]:
        return str(error["hint"]).replace("RUN", run.run_id)
    if not error.get("instance") and "pipeline.json" in str(error.get("where")):  # a `when` or an `each`
        own = run.path.relative_to(root.path) / "pipeline.json"
        return f"a run keeps its own pipeline: mend {own}, then pop retry {run.run_id}; or mend yours and drop the seed again"
    return f"mend it, then: pop retry {run.run_id}"
