"""workflow-state.json and decisions.jsonl of the template ``agentic-workflow``: views of its runs' history.

Both are derived from events.jsonl and what the steps gave, whenever the run's status is written, and hold nothing of their
own: delete them, and they come back the same. Each event adds at most one decision, so decisions.jsonl only grows. The steps
are known by the names that the template's pipeline.json gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pop import events
from pop.recipes.agentic_records import (
    CODE_LOOP,
    CONVERGENCE,
    GATES,
    PLAN_LOOP,
    ROLES,
    ActionType,
    Agent,
    Analysis,
    Continuation,
    ConvergenceStatus,
    Criteria,
    DecisionLine,
    DecisionState,
    HumanApprovals,
    NextAction,
    OrchestrationDecision,
    Phase,
    Role,
    Scores,
    StepEntry,
    StepStatus,
    WorkflowState,
    WorkspaceContext,
)
from pop.records import BadJson, dump_json, read_json
from pop.steps import step_of

MAX_OUTPUT_BYTES = 8 * 2**20
AFTER_A_FAILURE: dict[str, StepStatus] = {"fail": "failed", "ask": "waiting"}  # by the action of the event
OPENS_WHEN_CONVERGED = {
    "plan-approval": PLAN_LOOP,
    "final-approval": CODE_LOOP,
}  # a person asks for changes: not any more


def view(run_dir: Path, journal: Sequence[dict[str, Any]], status: dict[str, Any]) -> dict[str, bytes]:
    """The two files, whole."""
    fold = _Fold(run_dir)
    decisions = [line for event in journal for line in fold.apply(event)]
    if status.get("state") == "complete" and fold.phase != "completed":  # the last status goes before the last event
        decisions += fold.apply({"event": events.RUN_COMPLETE, "at": status.get("finished_at") or status["updated_at"]})
    return {
        "workflow-state.json": dump_json(fold.state().model_dump(mode="json")),
        "decisions.jsonl": b"".join(dump_json(line.model_dump(mode="json"), pretty=False) for line in decisions),
    }


@dataclass
class _Entry:
    role: Role
    status: StepStatus
    at: str
    scores: Scores | None = None
    made: bool = False  # an output stands on disk


@dataclass
class _Fold:
    """What is known after some events; `apply` gives the decision that an event is, if it is one."""

    run_dir: Path
    workflow_id: str = ""
    phase: Phase = "phase_1"
    current: str = "context"
    entries: dict[str, _Entry] = field(default_factory=dict)
    approvals: dict[str, bool] = field(default_factory=dict)
    laps: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {PLAN_LOOP: [], CODE_LOOP: []})
    failures: dict[str, str] = field(default_factory=dict)
    gates: dict[str, str] = field(default_factory=dict)  # the kinds of open ones
    passed: set[str] = field(default_factory=set)  # loops whose newest lap was found good, whatever a person says
    workspace: str | None = None

    def apply(self, event: dict[str, Any]) -> Iterator[DecisionLine]:
        self.workflow_id = self.workflow_id or str(event.get("run_id", ""))
        match event.get("event"):
            case events.STEP_STARTED:
                yield from self._started(event)
            case events.STEP_DONE | events.STEP_REUSED:
                self._done(event)
            case events.STEP_ATTEMPT_FAILED:
                self._failed(event)
            case events.LAP_ENDED:
                yield from self._lap_ended(event)
            case events.GATE_OPENED:
                yield self._gate_opened(event)
            case events.GATE_DECIDED:
                yield from self._gate_decided(event)
            case events.RUN_RERUN:
                self._rerun(event)
            case events.STEP_RESET:
                self._reset(event)
            case events.RUN_COMPLETE:
                why = "all steps are done, and the files are delivered"
                line = self._decision(event, why, "complete_workflow", "completed", continues=False)
                self.phase, self.current = "completed", "completed"
                yield line

    # -- events ----------------------------------------------------------------------------------------------------

    def _started(self, event: dict[str, Any]) -> Iterator[DecisionLine]:
        instance = event["instance"]
        role = ROLES.get(step_of(instance))
        why = self.failures.pop(instance, None)
        if role is not None:
            template, agent = role.template, role.agent
            rationale = f"attempt {event['attempt']}: {why}" if why else self._because(role)
            yield self._decision(event, rationale, "invoke_agent", instance, agent=agent, template=template)
            self.entries[instance] = _Entry(role, "in_progress", event["at"])
            self.phase = role.phase
        self.current = instance

    def _because(self, role: Role) -> str:
        loop = {3: PLAN_LOOP, 6: CODE_LOOP}.get(role.number)
        lap = self.laps[loop][-1] if loop and self.laps[loop] else None
        return f"{role.purpose}: {_values_of(lap)}" if lap else role.purpose

    def _done(self, event: dict[str, Any]) -> None:
        instance = event["instance"]
        step = step_of(instance)
        role = ROLES.get(step)
        if step == "tools":
            self.workspace = f"tasks/{instance}/artifacts/code"
        if role is not None:
            self.entries[instance] = _Entry(role, "completed", event["at"], self._scores(instance), made=True)

    def _failed(self, event: dict[str, Any]) -> None:
        instance, error = event["instance"], event.get("error") or {}
        why = event.get("reason") or error.get("error_class", "error")
        self.failures[instance] = f"{why} ({error.get('message', '')})"[:1000]
        if instance in self.entries:
            status = AFTER_A_FAILURE.get(event.get("action", ""), "in_progress")
            self.entries[instance] = _Entry(self.entries[instance].role, status, event["at"])

    def _lap_ended(self, event: dict[str, Any]) -> Iterator[DecisionLine]:
        loop, lap = event["key"], event["lap"]
        if loop not in self.laps:
            return
        laps = self.laps[loop] = [*[one for one in self.laps[loop] if one["lap"] < lap], event]
        ended = event["verdict"] in ("converged", "accepted", "kept")
        if loop == CODE_LOOP:
            scores = self._scores(f"verdict@{lap}")
            status: StepStatus = "waiting" if event["verdict"] == "ask" else "completed"
            self.entries[f"{loop}@{lap}"] = _Entry(CONVERGENCE, status, event["at"], scores, made=True)
            self.current = "step 7"
        elif ended:
            why = f"the plan stands after {len(laps)} laps ({event['verdict']}): {_values_of(event)}"
            yield self._decision(event, why, "transition_phase", "phase_2")
            self.phase, self.current = "phase_2", "phase_2"

    def _gate_opened(self, event: dict[str, Any]) -> DecisionLine:
        instance, kind = event["instance"], event.get("kind", "step")
        self.gates[instance] = kind
        lap = self.laps.get(step_of(instance), [])
        why = {
            "step": f"{step_of(instance)} is a person's decision",
            "loop": f"the loop did not converge, {lap[-1]['reason'] if lap else 'it was ended'}",
            "recovery": f"critical: {self.failures.get(instance, 'the step failed')}",
            "control": "a step gave an order that cannot be carried out",
        }.get(kind, kind)
        self.current = instance
        if kind == "recovery" and instance in self.entries:
            self.entries[instance].status = "waiting"
        if kind == "step" and step_of(instance) in GATES:  # what was approved before is not what is asked about now
            self.approvals[GATES[step_of(instance)][0]] = False
            self.passed |= {loop for gate, loop in OPENS_WHEN_CONVERGED.items() if gate == step_of(instance)}
        scores = (
            self._scores(instance.replace(step, "verdict")) if (step := step_of(instance)) == "final-approval" else None
        )
        action: ActionType = "request_human_approval"
        return self._decision(event, why, action, instance, continues=False, waits_for=instance, scores=scores)

    def _gate_decided(self, event: dict[str, Any]) -> Iterator[DecisionLine]:
        instance, approved = event["instance"], event["decision"] == "approve"
        kind, step = self.gates.pop(instance, "step"), step_of(instance)
        if kind in ("step", "loop") and step in GATES:
            self.approvals[GATES[step][0]] = approved
            if step == "final-approval" and approved:
                self.approvals["code_approved"] = True
            if not approved:
                self.passed.discard(OPENS_WHEN_CONVERGED.get(step, ""))
        if event["decision"] == "reject":
            why = (
                f"{instance} was rejected by {event.get('by') or 'a person'}: {event.get('text') or 'no reason given'}"
            )
            yield self._decision(event, why[:1000], "complete_workflow", "failed", continues=False)
        if kind == "loop" and step in self.laps and self.laps[step]:
            verdict = {"approve": "accepted", "request-changes": "again"}.get(event["decision"], "rejected")
            reason = f"{event.get('by') or 'a person'} decided: {event['decision']}"
            self.laps[step][-1] = {**self.laps[step][-1], "verdict": verdict, "reason": reason}
            if instance in self.entries:
                self.entries[instance].status = "completed"
            if step == PLAN_LOOP and verdict == "accepted":
                yield self._decision(event, f"{reason}; the newest plan counts as it is", "transition_phase", "phase_2")
                self.phase, self.current = "phase_2", "phase_2"

    def _rerun(self, event: dict[str, Any]) -> None:
        for instance in event.get("instances") or ():
            self.entries.pop(instance, None)
            self.failures.pop(instance, None)
            if step_of(instance) in GATES:
                self.approvals[GATES[step_of(instance)][0]] = False
                self.passed.discard(OPENS_WHEN_CONVERGED.get(step_of(instance), ""))
        for loop in self.laps:
            kept = (event.get("loops") or {}).get(loop)
            if kept is not None:
                self.laps[loop] = [one for one in self.laps[loop] if one["lap"] <= kept]
                for name in [name for name in self.entries if step_of(name) == loop]:
                    if int(name.partition("@")[2]) > kept:
                        del self.entries[name]
        self.phase = "phase_2" if self._converged(PLAN_LOOP) else "phase_1"

    def _reset(self, event: dict[str, Any]) -> None:
        entry = self.entries.get(event["instance"])
        if entry is not None and entry.status == "failed":
            entry.status, entry.at = "in_progress", event["at"]

    # -- what is known ---------------------------------------------------------------------------------------------

    def _converged(self, loop: str) -> bool:
        laps = self.laps[loop]
        return loop in self.passed or (bool(laps) and laps[-1]["verdict"] in ("converged", "accepted", "kept"))

    def _output(self, instance: str) -> Any:
        """What a step gave; None while it is not there, or cannot be read."""
        with suppress(OSError, BadJson, ValueError):
            path = self.run_dir / "tasks" / instance / "output.json"
            if path.stat().st_size <= MAX_OUTPUT_BYTES:
                return read_json(path.read_bytes())
        return None

    def _scores(self, instance: str) -> Scores | None:
        output = self._output(instance)
        given = output.get("validation_scores") if isinstance(output, dict) else None
        if not isinstance(given, dict):
            return None
        with suppress(ValueError):
            return Scores.model_validate({name: given.get(name) for name in Scores.model_fields})
        return None

    def _approvals(self) -> HumanApprovals:
        return HumanApprovals(**self.approvals)

    def _decision(
        self,
        event: dict[str, Any],
        why: str,
        action: ActionType,
        target: str,
        *,
        continues: bool = True,
        waits_for: str | None = None,
        agent: Agent | None = None,
        template: str | None = None,
        scores: Scores | None = None,
    ) -> DecisionLine:
        state = DecisionState(
            workflow_id=self.workflow_id,
            current_phase=self.phase,
            current_step=self.current,
            timestamp=event["at"],
            human_approvals=self._approvals(),
        )
        judged = [entry.scores for entry in self.entries.values() if entry.scores is not None]
        decision = OrchestrationDecision(
            current_workflow_state=state,
            analysis=Analysis(decision_rationale=why, validation_scores=scores or (judged[-1] if judged else None)),
            next_action=NextAction(action_type=action, target=target, agent=agent, template=template),
            workflow_continuation=Continuation(continues=continues, waits_for=waits_for),
        )
        return DecisionLine(orchestration_decision=decision)

    def state(self) -> WorkflowState:
        context = self._output("context")
        project = context.get("project", {}) if isinstance(context, dict) else {}
        return WorkflowState(
            workflow_id=self.workflow_id,
            current_phase=self.phase,
            current_step=self.current,
            step_history=[_told(instance, entry) for instance, entry in self.entries.items()],
            convergence_status=ConvergenceStatus(
                phase_1_converged=self._converged(PLAN_LOOP),
                phase_2_converged=self._converged(CODE_LOOP),
                convergence_criteria=self._criteria(),
            ),
            human_approvals=self._approvals(),
            workspace_context=WorkspaceContext(
                developer_type=project.get("developer_type"),
                workspace_path=self.workspace,
                project_context=project.get("context"),
            ),
        )

    def _criteria(self) -> dict[Literal["phase_1", "phase_2"], Criteria]:
        with suppress(OSError, BadJson, ValueError):
            pipeline = read_json((self.run_dir / "pipeline.json").read_bytes())
            loops = {block.get("name"): block for block in pipeline["tasks"] if isinstance(block, dict)}
            phases: tuple[tuple[Literal["phase_1", "phase_2"], str], ...] = (
                ("phase_1", PLAN_LOOP),
                ("phase_2", CODE_LOOP),
            )
            return {phase: self._criteria_of(loops[loop], self.laps[loop]) for phase, loop in phases if loop in loops}
        return {}

    @staticmethod
    def _criteria_of(block: dict[str, Any], laps: list[dict[str, Any]]) -> Criteria:
        last = laps[-1] if laps else {}
        return Criteria(
            until=str(block.get("until")),
            at_most=block.get("at_most", 1),
            laps=len(laps),
            verdict=last.get("verdict"),
            reason=last.get("reason"),
            values=last.get("values") or {},
        )


def _values_of(lap: dict[str, Any]) -> str:
    """What the condition of a loop read: ``alignment_score 6.0, critical 1``; else why the lap ended so."""
    values = [(name.rpartition(".")[2], value) for name, value in (lap.get("values") or {}).items()]
    told = ", ".join(f"{name} {value}" for name, value in values if name != "progress")
    return told[:1000] or str(lap["reason"])


def _told(instance: str, entry: _Entry) -> StepEntry:
    step = instance.replace(CODE_LOOP, "verdict") if entry.role is CONVERGENCE else instance
    return StepEntry(
        step_number=entry.role.number,
        agent=entry.role.agent,
        template=entry.role.template,
        status=entry.status,
        output=f"tasks/{step}/output.json" if entry.made else None,
        timestamp=entry.at,
        validation_scores=entry.scores,
    )
