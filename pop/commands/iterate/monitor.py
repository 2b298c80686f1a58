"""``pop iterate monitor``."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from pop.commands._shared import as_json, with_root
from pop.display import COLOURS, MARKS
from pop.durations import seconds
from pop.errors import EXIT_OK, EXIT_RUN_FAILED, EXIT_WAITING, PopError, UsageError
from pop.recipes.iterate.alerts import HOOK_TIMEOUT_S, Hook, hook_argv, tell
from pop.recipes.iterate.deliver import Deliverer
from pop.recipes.iterate.folder import read_folder
from pop.recipes.iterate.launch import recorded, root_of, waiting_seed
from pop.recipes.iterate.manifest import Manifest
from pop.recipes.iterate.monitor import STALL_S, snapshot
from pop.recipes.iterate.sights import Looker, chosen_row, judge_of, of_run, run_of
from pop.recipes.iterate.snapshots import AgentView, Alert, IterationView, Snapshot
from pop.runs import Run, safe
from pop.settings import Root
from pop.store import lock_holder

EVERY_S = 0.3
MOST_ROWS = 40
CLOCK = frozenset({"at", "eta_s", "last_progress_at"})  # what differs in two looks at the same state
STATES = {**MARKS, "stopped": "x"}


@dataclass(frozen=True)
class Watching:
    """How a run is to be followed. `until`: ``agent`` or ``end``."""

    stall_s: float = STALL_S
    until: str = "end"
    once: bool = False
    as_json: bool = False
    on_end: list[str] = field(default_factory=list)
    hook_timeout_s: float = HOOK_TIMEOUT_S


def _duration(_: click.Context, parameter: click.Parameter, given: str) -> float:
    try:
        return seconds(float(given) if given.replace(".", "", 1).isdigit() else given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--{parameter.name} {given!r}: {error}", hint=f"--{parameter.name} 10m") from None


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--run", "asked", metavar="RUN", help="Which run made of DIR (else the newest).")
@click.option("--stall", default="10m", callback=_duration, help="An agent without progress for so long has stalled.")
@click.option("--until", type=click.Choice(["agent", "end"]), default="end", help="Stop when an agent ends or stalls.")
@click.option("--on-end", metavar="COMMAND", help="Run this, without a shell, when an agent ends or stalls.")
@click.option("--on-end-timeout", default="60s", callback=_duration, help="End such a command after so long.")
@click.option("--once", is_flag=True, help="Print what is there and end.")
@as_json
@with_root
def command(
    folder: Path,
    asked: str | None,
    stall: float,
    until: str,
    on_end: str | None,
    on_end_timeout: float,
    once: bool,
    as_json: bool,
    root: str | None,
) -> int:
    """Show how far each agent of a run made of DIR is, bring finished files there, and say who ends and who stands still.

    Exit code 0: it ended well (with --until agent: the agent did; with --once: nothing is wrong so far); 4: it failed;
    5: it waits for a person or, with --until agent or --once, an agent or the run stands still. Alerts are kept in
    DIR/alerts.jsonl, and none is told twice. Before the first run it waits for one, but for --once and --json. The command of --on-end gets the alert as JSON on stdin, and as
    POP_ITERATE_EVENT, _STATE, _STEP, _TEXT ... in its environment.
    """
    chosen = root_of(folder, root or (click.get_current_context().find_root().obj or {}).get("root"))
    manifests = list(read_folder(folder, inputs=False).manifests.values())
    if asked is None:
        _await_run(chosen, folder, patient=not (once or as_json))
    run = run_of(chosen, folder, chosen_row(folder, asked))
    argv = hook_argv(on_end) if on_end is not None else []
    watching = Watching(stall, until, once, as_json, argv, on_end_timeout)
    return follow(chosen, folder, of_run(manifests, run), run, watching)


def _await_run(root: Root, folder: Path, *, patient: bool) -> None:
    """Wait until the seed that was submitted for DIR is a run, or until there is a first run of it at all.

    Raises:
        UsageError: There is none, and we are not to wait.
    """
    said = ""
    while (reason := _not_yet(root, folder)) is not None:
        if not patient:
            raise reason
        if said != (line := f"waiting: {reason.message}; {reason.hint}"):
            said = line
            click.echo(safe(line, 2000, one_line=True), err=True)
        time.sleep(EVERY_S)


def _not_yet(root: Root, folder: Path) -> UsageError | None:
    """Why there is no run of DIR to look at yet, and what would make one; None: there is."""
    seed = waiting_seed(root, folder)
    if seed is not None:
        hint = "pop ls tells why it waits" if lock_holder(root.machine_room) else "no daemon is running here: pop up"
        return UsageError(f"the seed {seed} of {str(folder)!r} is in the queue", hint=hint, code="queued")
    if not recorded(folder):
        return UsageError(f"{str(folder)!r} has not been run yet", hint=f"pop iterate run {folder}", code="not-run")
    return None


def follow(root: Root, folder: Path, manifests: list[Manifest], run: Run, watching: Watching) -> int:
    """Follow a run to its end, or to the next agent's; returns the exit code."""
    with Following(root, folder, manifests, watching) as following:
        while (code := following.look(run)) is None:
            time.sleep(EVERY_S)
            run = run.here()
    return code


class Following:
    """Looks at a run again and again, shows what is new, tells alerts and calls the hook. A context manager."""

    def __init__(self, root: Root, folder: Path, manifests: list[Manifest], watching: Watching) -> None:
        self.root, self.folder, self.manifests, self.watching = root, folder, manifests, watching
        self.looker = Looker(root, folder, manifests, judge_of(folder, manifests))
        self.deliverer = Deliverer(root, folder)
        self.shown = _Json() if watching.as_json else _Screen(live=sys.stdout.isatty() and not watching.once)
        self.hook: Hook | None = None
        self.seen: Snapshot | None = None
        self._said: set[str] = set()

    def __enter__(self) -> Following:
        if self.watching.on_end:
            self.hook = Hook(self.watching.on_end, say=self.shown.aside, timeout_s=self.watching.hook_timeout_s)
        self.shown.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.shown.__exit__()
        if self.hook:
            self.hook.close(at_once=kind is not None)

    def look(self, run: Run) -> int | None:
        """Look once; the exit code when there is nothing more to wait for."""
        run = run.here()
        seen = self.seen = self._look(run, self.seen)
        alerts = self._told(seen)
        self.shown.show(seen, alerts)
        if self.hook:
            for alert in alerts:
                if alert.event != "iteration.ended":
                    self.hook.call(alert, {"run_id": seen.run_id, "name": seen.name, "dir": str(self.folder)})
        code = self._over(seen, alerts)
        if code is not None:
            self.shown.close(seen, self.root, run)
        return code

    def _look(self, run: Run, before: Snapshot | None) -> Snapshot:
        status = run.status()
        if status.get("state") == "unreadable" and not run.path.exists():
            run_of(self.root, self.folder, {"run_id": run.run_id})  # removed while we looked: says so
        self._deliver(run)
        sight = self.looker.look(run, status)
        return snapshot(self.manifests, sight, now=time.time(), stall_s=self.watching.stall_s, before=before)

    def _told(self, seen: Snapshot) -> list[Alert]:
        """The alerts that nobody has told yet; where DIR takes no file, those new to this monitor."""
        if self.watching.once:
            return []
        try:
            return tell(self.folder, seen.run_id, seen.at, seen.alerts)
        except OSError as error:
            self._once(f"alerts cannot be kept in {self.folder}: {error.strerror}")
            return seen.alerts

    def _deliver(self, run: Run) -> None:
        """Bring what is finished to DIR; what a person edited there is left alone, and told once."""
        try:
            delivered = self.deliverer.deliver(run)
        except FileNotFoundError:  # it is being accepted, or promoted this very moment
            return
        except (OSError, PopError) as error:
            return self._once(f"nothing can be delivered to {self.folder}: {error}")
        for place, beside in delivered.kept.items():
            self._once(
                f"{place} was edited and stays; " + (f"the new version is {beside}" if beside else "nothing is new")
            )
        for place in delivered.refused:
            self._once(f"{place} leads out of {self.folder}, and was not delivered")

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.shown.aside(line)

    def _over(self, seen: Snapshot, alerts: list[Alert]) -> int | None:
        """The exit code, when it is time to go."""
        about_agents = [alert for alert in alerts if alert.event in ("agent.ended", "agent.stalled")]
        if self.watching.until == "agent" and about_agents and not self.watching.once:
            states = {alert.state for alert in about_agents}
            return (
                EXIT_RUN_FAILED if states & {"failed", "stopped"} else EXIT_WAITING if "stalled" in states else EXIT_OK
            )
        if seen.state in ("failed", "cancelled", "unreadable"):
            return EXIT_RUN_FAILED
        if seen.state == "complete":
            return EXIT_OK
        if self.watching.once:
            stands = seen.stalled or any(agent.stalled for _, agent in seen.agents)
            return EXIT_WAITING if stands or seen.state in ("waiting", "paused") else EXIT_OK
        if seen.state in ("waiting", "paused"):
            from pop.display import is_answered

            run = Run(self.root.current / seen.run_id, "current")
            return None if is_answered(self.root, run, run.status()) else EXIT_WAITING
        if self.watching.until == "agent" and any(alert.event == "run.stalled" for alert in alerts):
            return EXIT_WAITING
        return None


class _Json:
    """One snapshot per line, whenever more has changed than the clock."""

    def __init__(self) -> None:
        self._said: Any = None

    def __enter__(self) -> _Json:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, seen: Snapshot, alerts: list[Alert]) -> None:
        from dataclasses import asdict

        from pop.records import dump_json

        value = {**seen.to_json(), "alerts": [asdict(alert) for alert in alerts]}
        kept = _without_clock(value)
        if kept != self._said or alerts:
            click.echo(dump_json(value, pretty=False).decode(), nl=False)
            sys.stdout.flush()
        self._said = {**kept, "alerts": []}

    def aside(self, line: str) -> None:
        click.echo(line, err=True)

    def close(self, seen: Snapshot, root: Root, run: Run) -> None:
        pass


def _without_clock(value: Any) -> Any:
    """A snapshot without what changes by itself."""
    if isinstance(value, dict):
        return {key: _without_clock(inner) for key, inner in value.items() if key not in CLOCK}
    return [_without_clock(one) for one in value] if isinstance(value, list) else value


class _Screen:
    """A live table on a terminal; lines of what is new elsewhere. Alerts are lines in both."""

    def __init__(self, *, live: bool) -> None:
        self._want_live = live
        self._live: Any = None
        self._said: dict[str, str] = {}

    def __enter__(self) -> _Screen:
        if self._want_live:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def show(self, seen: Snapshot, alerts: list[Alert]) -> None:
        if self._live:
            self._live.update(_table(seen))
        else:
            for line in self._news(seen):
                click.echo(line)
        for alert in alerts:
            self._say(f"{_mark(alert)} {_clock(seen.at)}  {safe(alert.text, 400, one_line=True)}")
            for problem in alert.problems[:5]:
                self._say(f"    ! {safe(problem, 300, one_line=True)}")
        sys.stdout.flush()

    def _news(self, seen: Snapshot) -> list[str]:
        lines = []
        if "" not in self._said:
            self._said[""] = "said"
            lines.append(f"run {seen.run_id}   {seen.state}")
            if not seen.daemon and seen.state in ("queued", "running"):
                lines.append("note: no daemon is running here; pop up serves it")
        for iteration, agent in seen.agents:
            now = f"{agent.state} {agent.done} {agent.lap} {agent.stalled} {len(agent.problems)}"
            if agent.state != "pending" and self._said.get(agent.step) != now:
                self._said[agent.step] = now
                lines.append(_line(iteration, agent))
        return lines

    def _say(self, line: str) -> None:
        if self._live:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(line)

    def aside(self, line: str) -> None:
        if self._live:
            self._say(line)
        else:
            click.echo(safe(line, 2000), err=True)

    def close(self, seen: Snapshot, root: Root, run: Run) -> None:
        """What is said at the end: the whole table's last picture as lines, where the run lies, and the next move."""
        if self._live:
            self.__exit__()
            for iteration, agent in seen.agents:
                click.echo(_line(iteration, agent))
        for iteration in seen.iterations:
            if iteration.met is not None:
                click.echo(f"  {iteration.name:<24} {iteration.met} of {iteration.criteria} criteria met")
        click.echo(f"{STATES.get(seen.state, ' ')} {seen.state}   {run.here().path.relative_to(root.path)}")
        if seen.error:
            click.echo(f"error      {safe(seen.error, 2000)}")
        if seen.waiting_for:
            click.echo(f"waits for  {safe(seen.waiting_for, 300)}: pop show {seen.run_id} tells how to answer")


def _mark(alert: Alert) -> str:
    return "!" if alert.problems else STATES.get(alert.state, "!")


def _clock(at: str) -> str:
    return f"{at[11:19]}Z"


def _line(iteration: IterationView, agent: AgentView) -> str:
    """An agent as one line of text."""
    lap = f"  lap {agent.lap}/{iteration.rounds}" if agent.lap > 1 else ""
    parts = [f"{STATES.get(agent.state, ' ')} {agent.step:<32} {agent.state:<8} {agent.done}/{agent.total}{lap}"]
    parts += [_size(agent.bytes)] if agent.bytes else []
    parts += [f"{agent.tokens:,} tokens"] if agent.tokens else []
    parts += [agent.stage] if agent.stage else []
    parts += [f"{agent.seconds:.1f} s"] if agent.seconds else []
    parts += [f"about {_span(agent.eta_s)} left"] if agent.eta_s else []
    parts += ["STALLED"] if agent.stalled else []
    parts += [f"{len(agent.problems)} problem(s)"] if agent.problems else []
    parts += [safe(agent.error, 160, one_line=True)] if agent.error else []
    return "  ".join(parts)


def _size(count: int) -> str:
    return f"{count} B" if count < 1000 else f"{count / 1000:.1f} KB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def _span(span_s: float | None) -> str:
    """Seconds as a person reads them; a question mark where nobody knows."""
    if span_s is None:
        return "?"
    if span_s < 90:
        return f"{span_s:.0f} s"
    return f"{span_s / 60:.0f} min" if span_s < 5400 else f"{span_s / 3600:.1f} h"


def _table(seen: Snapshot) -> Any:
    from rich.table import Table
    from rich.text import Text

    left = f"   about {_span(seen.eta_s)} left" if seen.eta_s is not None and seen.state == "running" else ""
    title = f"{seen.run_id}   {seen.state}   {100 * seen.progress:.0f} %{left}"
    if not seen.daemon and seen.state in ("queued", "running"):
        title += "   no daemon is running here: pop up"
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for heading in ("", "agent", "state", "made", "size", "tokens", "stage", "left", ""):
        table.add_column(heading)
    rows = seen.agents
    if len(rows) > MOST_ROWS:
        rows = [row for row in rows if row[1].state not in ("done", "pending") or row[1].problems]
    last = ""
    for iteration, agent in rows[:MOST_ROWS]:
        if iteration.name != last:
            last = iteration.name
            met = "" if iteration.met is None else f"{iteration.met}/{iteration.criteria} met"
            style = COLOURS.get(iteration.state, "")
            about = f"lap {iteration.lap} of {iteration.rounds}" if iteration.state != "pending" else ""
            head = Text(f"{iteration.name}", style="bold")
            table.add_row("", head, Text(iteration.state, style=style), about, "", "", "", "", met)
        colour = "yellow" if agent.stalled else COLOURS.get(agent.state, "")
        about = "; ".join(filter(None, [
            "stalled" if agent.stalled else "",
            f"{len(agent.problems)} problem(s)" if agent.problems else "",
            safe(agent.error or "", 60, one_line=True),
        ]))  # fmt: skip
        table.add_row(
            Text(STATES.get(agent.state, " "), style=colour),
            Text(agent.step),
            Text(agent.state, style=colour),
            f"{agent.done}/{agent.total}",
            _size(agent.bytes) if agent.bytes else "",
            f"{agent.tokens:,}" if agent.tokens else "",
            Text(safe(agent.stage or "", 20, one_line=True)),
            _span(agent.eta_s) if agent.state == "running" else "",
            Text(about, style="red" if agent.problems or agent.error else "yellow"),
        )
    if len(seen.agents) > len(rows[:MOST_ROWS]):
        table.caption = f"{len(seen.agents) - len(rows[:MOST_ROWS])} more agents, done or not begun"
    return table
