"""The design of the template ``agentic-workflow``, its steps with their roles, and the records of the two files it asks for.

``workflow-state.json`` is a `WorkflowState`, each line of ``decisions.jsonl`` a `DecisionLine`; `agentic_workflow` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field

from pop.records import Record

PLAN_LOOP, CODE_LOOP = "plan-loop", "code-loop"

Agent = Literal["planner", "validator", "programmer", "tools", "orchestrator"]
Phase = Literal["phase_1", "phase_2", "completed"]
StepStatus = Literal["in_progress", "waiting", "completed", "failed", "skipped"]
ActionType = Literal["invoke_agent", "transition_phase", "request_human_approval", "complete_workflow"]


class Role(NamedTuple):
    """A step of the design: its number, who takes it, and the template it uses."""

    number: int
    agent: Agent
    template: str | None
    phase: Phase
    purpose: str


_P1: Phase = "phase_1"
_P2: Phase = "phase_2"
ROLES: Mapping[str, Role] = {
    "plan": Role(1, "planner", "step1_initial_planner_prompt_template.md", _P1, "the requirements need a plan"),
    "validate-plan": Role(
        2, "validator", "step2_plan_validation_validator_prompt_template.md", _P1, "the newest plan is to be judged"
    ),
    "revise-plan": Role(
        3, "planner", "step3_plan_revision_planner_prompt_template.md", _P1, "the plan is not accepted yet"
    ),
    "implement": Role(
        4,
        "programmer",
        "step4_implementation_programmer_prompt_template.md",
        _P2,
        "the approved plan is to be carried out",
    ),
    "tools": Role(5, "tools", None, _P2, "the newest files are to be compiled, linted and tested"),
    "validate-code": Role(
        5, "validator", "step5a_two_level_validation_agent_prompt_template.md", _P2, "the newest files are to be judged"
    ),
    "validate-standards": Role(
        5,
        "validator",
        "step5b_two_level_standardization_validation_agent_prompt_template.md",
        _P2,
        "the newest files are to be held to the standards",
    ),
    "refine-code": Role(
        6, "programmer", "step6_code_refinement_programmer_prompt_template.md", _P2, "the code is not accepted yet"
    ),
}
CONVERGENCE = Role(7, "orchestrator", None, _P2, "whether the code is accepted")
GATES: Mapping[str, tuple[str, Phase]] = {
    "plan-approval": ("plan_approved", _P1),
    PLAN_LOOP: ("plan_approved", _P1),
    "code-review": ("code_approved", _P2),
    CODE_LOOP: ("code_approved", _P2),
    "final-approval": ("final_approved", _P2),
}


class Scores(Record):
    """What a validation gave, from 0 to 10; null where it is not about that."""

    alignment_score: float | None = Field(default=None, ge=0, le=10)
    standardization_score: float | None = Field(default=None, ge=0, le=10)
    compatibility_score: float | None = Field(default=None, ge=0, le=10)


class StepEntry(Record):
    """One step that was begun. `output` is a file's place in the run's folder, `timestamp` when this status began."""

    step_number: int = Field(ge=1, le=7)
    agent: Agent
    template: str | None
    status: StepStatus
    output: str | None
    timestamp: str
    validation_scores: Scores | None


class Criteria(Record):
    """When a phase has converged: its condition, how often it may be tried, and what the newest lap gave."""

    until: str
    at_most: int
    laps: int
    verdict: str | None = None
    reason: str | None = None
    values: dict[str, Any] = Field(default_factory=dict)


class ConvergenceStatus(Record):
    phase_1_converged: bool
    phase_2_converged: bool
    convergence_criteria: dict[Literal["phase_1", "phase_2"], Criteria]


class HumanApprovals(Record):
    plan_approved: bool = False
    code_approved: bool = False
    final_approved: bool = False


class WorkspaceContext(Record):
    """`workspace_path`: the folder of the newest files that were checked, in the run's folder."""

    developer_type: str | None = None
    workspace_path: str | None = None
    project_context: str | None = None


class WorkflowState(Record):
    """workflow-state.json. Times RFC 3339 UTC."""

    workflow_id: str
    current_phase: Phase
    current_step: str
    step_history: list[StepEntry]
    convergence_status: ConvergenceStatus
    human_approvals: HumanApprovals
    workspace_context: WorkspaceContext


class DecisionState(Record):
    workflow_id: str
    current_phase: Phase
    current_step: str
    timestamp: str
    human_approvals: HumanApprovals


class Analysis(Record):
    decision_rationale: str
    validation_scores: Scores | None = None


class NextAction(Record):
    """What is done next. `target`: the step, gate or phase; `agent` and `template` where one is invoked."""

    action_type: ActionType
    target: str
    agent: Agent | None = None
    template: str | None = None


class Continuation(Record):
    """`continues`: whether it goes on without a person."""

    continues: bool
    waits_for: str | None = None


class OrchestrationDecision(Record):
    current_workflow_state: DecisionState
    analysis: Analysis
    next_action: NextAction
    workflow_continuation: Continuation


class DecisionLine(Record):
    """One line of decisions.jsonl."""

    orchestration_decision: OrchestrationDecision


def workflow_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schemas of the two files (of the second, of one line), as ``pop schema`` prints them."""
    return {
        "workflow-state": WorkflowState.model_json_schema(),
        "orchestration-decision": DecisionLine.model_json_schema(),
    }
