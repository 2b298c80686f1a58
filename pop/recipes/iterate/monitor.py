"""Where a run of iterations stands: one pure function from what was seen to a snapshot, and from two snapshots to alerts.

What is read and told stands in `snapshots`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pop.events import rfc3339, unix_s
from pop.recipes.iterate.manifest import Agent, Manifest, check_step, rounds_step
from pop.recipes.iterate.snapshots import (
    ENDED,
    OVER,
    AgentState,
    AgentView,
    Alert,
    Found,
    IterationView,
    Sight,
    Signs,
    Snapshot,
    Work,
    works_of,
)

STALL_S = 600.0
MOST_PROBLEMS = 20


def snapshot(
    manifests: Sequence[Manifest],
    sight: Sight,
    *,
    now: float,
    stall_s: float = STALL_S,
    before: Snapshot | None = None,
) -> Snapshot:
    """Where the run stands.

    Args:
        manifests: Those of the iterations that run, in their order.
        now: Unix time in seconds.
        before: The previous snapshot: what it told is not told again by `alerts`.
    """
    works, status = works_of(sight.status), sight.status
    pace = _pace(manifests, works, status, now)
    needed = {name for one in manifests if _has_begun(one, works) for name in one.dependencies}
    iterations = [
        _Iteration(manifest, works, sight, now, stall_s, pace, manifest.iteration in needed).view()
        for manifest in manifests
    ]
    state = str(status.get("state"))
    error = (status.get("error") or {}).get("message")
    made = Snapshot(
        run_id=str(status.get("run_id")),
        name=str(status.get("name")),
        state=state,
        at=rfc3339(now),
        daemon=sight.daemon,
        stalled=_nothing_moves(iterations, status, sight, now, stall_s),
        progress=_progress(iterations, state),
        eta_s=pace.rest_s if state == "running" else None,
        waiting_for=status.get("waiting_for"),
        error=str(error) if error else None,
        iterations=iterations,
    )
    known = {alert.key for alert in alerts_of(before)} if before else set()
    return replace(made, alerts=[alert for alert in alerts_of(made) if alert.key not in known])


@dataclass(frozen=True)
class _Pace:
    """Expected tokens per second: of one deliverable at work, and of the whole run beside the clock."""

    per_work: float | None
    rest_s: float | None


def _pace(manifests: Sequence[Manifest], works: Mapping[str, Any], status: Mapping[str, Any], now: float) -> _Pace:
    done_tokens = busy_s = rest = 0.0
    for manifest in manifests:
        lap = _lap_of(manifest, works)
        for agent in manifest.agents:
            for index, deliverable in enumerate(agent.deliverables):
                size = deliverable.tokens or 1
                laps = works.get(agent.step, {})
                if _state(laps, lap, index) not in ("done", "skipped"):
                    rest += size
                for those in laps.values():
                    work = those.get(index)
                    if work and work.state == "done" and _asked(work.task):
                        done_tokens += size
                        busy_s += work.task.get("seconds") or 0.0
    started = status.get("started_at")
    elapsed = now - unix_s(started) if started else 0.0
    if not done_tokens:
        return _Pace(None, 0.0 if not rest else None)
    return _Pace(done_tokens / busy_s if busy_s else None, round(rest * max(elapsed, 0.0) / done_tokens, 1))


def _asked(task: Mapping[str, Any]) -> bool:
    """Whether a model was asked for it; what is handed on unchanged in a later lap says nothing about time."""
    usage = task.get("usage") or {}
    return bool(usage.get("calls") or usage.get("cached_calls"))


def _state(laps: Mapping[int, Mapping[int, Work]], lap: int, index: int) -> str:
    work = laps.get(lap, {}).get(index)
    return work.state if work else "pending"


def _lap_of(manifest: Manifest, works: Mapping[str, Mapping[int, Mapping[int, Work]]]) -> int:
    """The newest lap of an iteration in which something has begun."""
    steps = [*(agent.step for agent in manifest.agents), check_step(manifest.iteration)]
    begun = [lap for step in steps for lap, those in works.get(step, {}).items() if any(map(_begun, those.values()))]
    return max(begun, default=1)


def _has_begun(manifest: Manifest, works: Mapping[str, Mapping[int, Mapping[int, Work]]]) -> bool:
    return any(
        _begun(work)
        for agent in manifest.agents
        for those in works.get(agent.step, {}).values()
        for work in those.values()
    )


def _begun(work: Work) -> bool:
    return work.state != "pending" or bool(work.task.get("attempt"))


@dataclass(frozen=True)
class _Iteration:
    """One iteration while its view is made."""

    manifest: Manifest
    works: Mapping[str, Mapping[int, Mapping[int, Work]]]
    sight: Sight
    now: float
    stall_s: float
    pace: _Pace
    gone_beyond: bool = False  # an iteration that depends on it has begun

    @property
    def _loop(self) -> str:
        return rounds_step(self.manifest.iteration)

    @property
    def run_state(self) -> str:
        return str(self.sight.status.get("state"))

    def view(self) -> IterationView:
        lap = _lap_of(self.manifest, self.works)
        agents = [self._agent(agent, lap) for agent in self.manifest.agents]
        check = self.sight.checks.get(self.manifest.iteration) or {}
        told = check.get("criteria")
        return IterationView(
            name=self.manifest.iteration,
            state=self._state(agents, lap),
            lap=lap,
            rounds=self.manifest.rounds,
            met=check.get("met_count"),
            criteria=len(told) if isinstance(told, list) else None,
            agents=agents,
        )

    def _state(self, agents: list[AgentView], lap: int) -> AgentState:
        """An iteration is over when its check is and no further lap comes: the run has gone on, or has ended."""
        states = {agent.state for agent in agents}
        check = self.works.get(check_step(self.manifest.iteration), {}).get(lap, {}).get(0)
        if "failed" in states or (check and check.state == "failed") or self._loop in self.sight.failed_loops:
            return "failed"
        if "waiting" in states or self._gate_open():
            return "waiting"
        if check and check.state == "done":
            met = (self.sight.checks.get(self.manifest.iteration) or {}).get("met")
            if met or lap >= self.manifest.rounds or self.run_state == "complete" or self.gone_beyond:
                return "done"
        if self.run_state in OVER and states != {"pending"}:
            return "done" if self.run_state == "complete" else "stopped"
        return "pending" if states == {"pending"} else "running"

    def _gate_open(self) -> bool:
        """Whether a person is asked about the loop."""
        gates = self.works.get(self._loop, {})
        return any(work.state == "waiting" for those in gates.values() for work in those.values())

    def _agent(self, agent: Agent, lap: int) -> AgentView:
        laps = self.works.get(agent.step, {})
        present = [laps.get(lap, {}).get(index) for index in range(len(agent.deliverables))]
        every = [work for those in laps.values() for work in those.values()]
        running = [work for work in present if work and work.state == "running"]
        state = self._agent_state(present)
        progress_at = self._progress_at(every)
        silent = progress_at is not None and self.now - progress_at > self.stall_s
        live = [self.sight.signs.get(work.instance, Signs()) for work in running]
        usages = [work.task.get("usage") or {} for work in every]
        errors = [str(work.task["error"].get("message")) for work in present if work and work.task.get("error")]
        files = [self.sight.found.get((self.manifest.iteration, one.path)) for one in agent.deliverables]
        stages = sorted({str(work.task["stage"]) for work in running if work.task.get("stage")})
        ended = [str(work.task["finished_at"]) for work in present if work and work.task.get("finished_at")]
        return AgentView(
            step=agent.step,
            role=agent.role,
            state=state,
            lap=lap,
            done=sum(1 for work in present if work and work.state in ("done", "skipped")),
            total=len(agent.deliverables),
            bytes=sum(file.bytes for file in files if file),
            calls=sum(one.get("calls", 0) for one in usages) + sum(sign.calls for sign in live),
            tokens=sum(map(_tokens, usages)) + sum(sign.tokens for sign in live),
            cost_usd=round(sum(one.get("cost_usd", 0.0) for one in usages) + sum(sign.cost_usd for sign in live), 9),
            stage=", ".join(stages) or None,
            seconds=round(sum(work.task.get("seconds") or 0.0 for work in every), 3),
            eta_s=self._eta_s(agent, present, len(running), state),
            last_progress_at=rfc3339(progress_at) if progress_at is not None else None,
            stalled=silent and state == "running" and self.run_state in ("running", "queued"),
            problems=self._problems(agent, files),
            error=errors[0] if errors else None,
            ended_at=max(ended, default=None) if state in ENDED else None,
        )

    def _agent_state(self, present: Sequence[Work | None]) -> AgentState:
        states = [work.state if work else "pending" for work in present]
        begun = any(work and _begun(work) for work in present)
        if "failed" in states:
            return "failed"
        if "waiting" in states:
            return "waiting"
        if all(state in ("done", "skipped") for state in states):
            return "done"
        if self.run_state in OVER:
            return "stopped" if begun and set(states) != {"cancelled"} else "pending"
        return "running" if begun else "pending"

    def _progress_at(self, works: Iterable[Work]) -> float | None:
        """Unix seconds of the newest sign of life of any of its deliverables."""
        times: list[float] = []
        for work in works:
            told = [work.task.get("started_at"), work.task.get("finished_at")]
            times += [unix_s(str(time)) for time in told if time]
            sign = self.sight.signs.get(work.instance)
            if sign and sign.at is not None:
                times.append(sign.at)
        return max(times, default=None)

    def _eta_s(self, agent: Agent, present: Sequence[Work | None], at_once: int, state: AgentState) -> float | None:
        """What its deliverables that are missing are expected to take, as many at once as now."""
        if state in ENDED:
            return 0.0
        rest = [
            (deliverable, work)
            for deliverable, work in zip(agent.deliverables, present, strict=True)
            if not work or work.state not in ("done", "skipped")
        ]
        speed = self._speed(agent) or self.pace.per_work
        if speed is None or state == "waiting" or self.run_state not in ("running", "queued"):
            return None
        return round(sum((one.tokens or 1) for one, _ in rest) / speed / max(1, at_once), 1)

    def _speed(self, agent: Agent) -> float | None:
        """Expected tokens of its finished deliverables per second of work on them."""
        tokens = seconds = 0.0
        for those in self.works.get(agent.step, {}).values():
            for index, work in those.items():
                if work.state == "done" and _asked(work.task) and index < len(agent.deliverables):
                    tokens += agent.deliverables[index].tokens or 1
                    seconds += work.task.get("seconds") or 0.0
        return tokens / seconds if tokens and seconds else None

    def _problems(self, agent: Agent, files: Sequence[Found | None]) -> list[str]:
        """Criteria that deliverables which are there do not meet."""
        told = [
            f"{deliverable.path}: {problem}"
            for deliverable, file in zip(agent.deliverables, files, strict=True)
            if file
            for problem in file.problems
        ]
        more = [f"and {len(told) - MOST_PROBLEMS} more"] if len(told) > MOST_PROBLEMS else []
        return told[:MOST_PROBLEMS] + more


def _tokens(usage: Mapping[str, Any]) -> int:
    return int(usage.get("input_tokens", 0)) + int(usage.get("output_tokens", 0))


def _progress(iterations: Sequence[IterationView], state: str) -> float:
    """The share of deliverables that are there, each iteration in its newest lap."""
    if state == "complete":
        return 1.0
    agents = [agent for iteration in iterations for agent in iteration.agents]
    total = sum(agent.total for agent in agents)
    return round(sum(agent.done for agent in agents) / total, 4) if total else 0.0


def _nothing_moves(
    iterations: Sequence[IterationView], status: Mapping[str, Any], sight: Sight, now: float, stall_s: float
) -> bool:
    """Whether the run is to go on and nothing in it has moved since `stall_s`, its checks included."""
    if status.get("state") not in ("queued", "running"):
        return False
    times = [sign.at for sign in sight.signs.values() if sign.at is not None]
    told = [status.get("started_at"), status.get("created_at")]
    told += [task.get(key) for task in (status.get("tasks") or {}).values() for key in ("started_at", "finished_at")]
    told += [agent.last_progress_at for iteration in iterations for agent in iteration.agents]
    times += [unix_s(str(time)) for time in told if time]
    return bool(times) and now - max(times) > stall_s


def alerts_of(seen: Snapshot) -> list[Alert]:
    """All that holds now and that a person may want to hear of once."""
    found = [alert for iteration, agent in seen.agents for alert in _of_agent(seen, iteration, agent)]
    for iteration in seen.iterations:
        if iteration.state in ENDED:
            ended = max((agent.ended_at or "" for agent in iteration.agents), default="")
            met = "" if iteration.met is None else f", {iteration.met} of {iteration.criteria} criteria met"
            text = f"iteration {iteration.name} {_ended(iteration.state)} in lap {iteration.lap}{met}"
            key = f"iteration.ended:{iteration.name}:{iteration.state}:{iteration.lap}:{ended}"
            found.append(
                Alert("iteration.ended", key, iteration.state, text, iteration=iteration.name, lap=iteration.lap)
            )
    if seen.state in ("waiting", "paused"):
        about = f" for {seen.waiting_for}" if seen.waiting_for else ""
        key = f"run.waiting:{seen.state}:{seen.waiting_for}:{_newest(seen)}"
        found.append(Alert("run.waiting", key, seen.state, f"the run is {seen.state}{about}: pop show {seen.run_id}"))
    if seen.stalled:
        why = "nothing has moved" if seen.daemon else "no daemon is running here: pop up"
        found.append(Alert("run.stalled", f"run.stalled:{_newest(seen)}", "stalled", f"the run stands still: {why}"))
    if seen.state in OVER:
        text = f"the run is {seen.state}" + (f": {seen.error}" if seen.error else "")
        key = f"run.ended:{seen.state}:{_newest(seen)}"
        found.append(Alert("run.ended", key, seen.state, text, error=seen.error))
    return found


def _newest(seen: Snapshot) -> str:
    return max((agent.last_progress_at or "" for _, agent in seen.agents), default="")


def _ended(state: str) -> str:
    return {"done": "is done", "failed": "failed", "stopped": "was stopped"}[state]


def _of_agent(seen: Snapshot, iteration: IterationView, agent: AgentView) -> list[Alert]:
    about: dict[str, Any] = {
        "iteration": iteration.name, "step": agent.step, "role": agent.role, "lap": agent.lap,
        "done": agent.done, "total": agent.total, "problems": agent.problems, "error": agent.error,
    }  # fmt: skip
    if agent.state in ENDED:
        parts = [f"{agent.step} {_ended(agent.state)}: {agent.done} of {agent.total} in lap {agent.lap}"]
        parts += [f"criteria not met: {len(agent.problems)}"] if agent.problems else []
        parts += [agent.error] if agent.error else []
        key = f"agent.ended:{agent.step}:{agent.state}:{agent.lap}:{agent.ended_at}"
        return [Alert("agent.ended", key, agent.state, "; ".join(parts), **about)]
    if agent.stalled:
        why = "" if seen.daemon else "; no daemon is running here: pop up"
        text = f"{agent.step} has stalled: no progress since {agent.last_progress_at}{why}"
        return [
            Alert("agent.stalled", f"agent.stalled:{agent.step}:{agent.last_progress_at}", "stalled", text, **about)
        ]
    return []
