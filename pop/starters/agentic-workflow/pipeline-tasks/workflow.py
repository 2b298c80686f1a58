"""What the steps of the workflow share: who takes which step, and what each step is given to read.

| step                 | agent      | is given                                                                        |
|----------------------|------------|---------------------------------------------------------------------------------|
| 1 plan               | planner    | project, requirements, documentation, examples, standards                        |
| 2 validate-plan      | validator  | project, requirements, standards, plan, earlier_review, changes                  |
| 3 revise-plan        | planner    | project, requirements, standards, plan, review, changes                          |
| 4 implement          | programmer | project, approved_plan, examples, standards                                      |
| 5a validate-code     | validator  | project, approved_plan, requirements, code, tool_report, earlier_findings, changes |
| 5b validate-standards| validator  | project, approved_plan, standards, examples, code, tool_report                   |
| 6 refine-code        | programmer | project, approved_plan, standards, code, findings, changes                       |

A template says whose it is in a comment, ``{# agent: planner #}``; the step in pipeline.json says who takes it, ``"with":
{"agent": "planner"}``. Where they differ, nothing is asked of anybody.
"""

import json
import re
from pathlib import Path

from pop.errors import AttemptFailed
from pop.store import contained, read_regular

AGENTS = ("planner", "validator", "programmer")
MAX_FILE_BYTES = 200_000
_AGENT = re.compile(r"\{#\s*agent:\s*([\w-]+)\s*#\}")
_TAG = re.compile(r"<(?=/(?:document|file|plan|review|findings|report|changes)\b)", re.IGNORECASE)


# -- agents ------------------------------------------------------------------------------------------------------------


def agent_of(template):
    """The agent that a template is written for."""
    found = _AGENT.search(template.read_text("utf-8"))
    if found is None or found[1] not in AGENTS:
        hint = "write {# agent: planner #} (or validator, programmer) above its text"
        raise _wrong(f"{template.name} does not say whose it is", f"pipeline-tasks/{template.name}", hint)
    return found[1]


def check_agent(template, asked, step):
    """Fails when another agent than the template's is to take a step."""
    wanted = agent_of(template)
    if asked != wanted:
        said = f"the agent {asked!r}" if asked else "no agent"
        message = f"the step {step!r} is given to {said}, but {template.name} is written for the {wanted}"
        raise _wrong(message, "pipeline.json", f'write "with": {{"agent": "{wanted}"}} for this step')


def check_all_agents(tasks_dir, document):
    """Every step of a pipeline against the template it uses: a wrong agent is told before anything is spent."""
    index = json.loads((tasks_dir / "index.json").read_text("utf-8")) if (tasks_dir / "index.json").is_file() else {}
    for step in _steps(document.get("tasks")):
        task = step.get("task", step.get("name"))
        template = tasks_dir / f"{index.get(task, task)}.md"
        if template.is_file() and _AGENT.search(template.read_text("utf-8")):
            check_agent(template, (step.get("with") or {}).get("agent"), step.get("name", task))


def _steps(block):
    """Every step of a pipeline that runs a task, wherever it stands."""
    if isinstance(block, str):
        yield {"task": block}
    elif isinstance(block, list):
        for inner in block:
            yield from _steps(inner)
    elif isinstance(block, dict):
        inner = [block[key] for key in ("do", "parallel", "repeat") if key in block]
        yield from _steps(inner) if inner else [] if "approve" in block else [block]


def _wrong(message, where, hint=None):
    return AttemptFailed("bad_input", message, where=where, hint=hint)


# -- what a step is given ----------------------------------------------------------------------------------------------


def briefing(ctx, file, *names):
    """The names a template can read: `role`, and those in the table above that are asked for; nothing else."""
    template = Path(file).with_suffix(".md")
    check_agent(template, ctx.config.get("agent"), ctx.step)
    role = Path(ctx.letter.tasks_dir) / "roles" / f"{ctx.config['agent']}.md"
    if not role.is_file():
        raise _wrong(f"there is no role for the {ctx.config['agent']}", f"pipeline-tasks/roles/{role.name}")
    return {"role": role.read_text("utf-8").strip(), **{name: _PARTS[name](ctx) for name in names}}


def newest(ctx, *steps):
    """The output of the first of these steps that has one."""
    return next((ctx.inputs[name] for name in steps if ctx.inputs.get(name) is not None), None)


def code_of(ctx, *, checked):
    """The newest files, ``[{"path", "content"}]``.

    Args:
        checked: As the tools saw them, or as a person who looked at them then left them (gates show copies that may be
            edited); else as the programmer gave them.
    """
    files = (newest(ctx, "refine-code", "implement") or {"files": []})["files"]
    if not checked:
        return files
    return [{**file, "content": _as_left(ctx, file)} for file in files]


def _as_left(ctx, file):
    seen = ctx.letter.inputs.get("tools")
    if seen is None:
        return file["content"]
    path = contained(Path(ctx.letter.run_dir), f"{Path(seen.path).parent}/artifacts/code/{file['path']}")
    if not path.is_file():
        return file["content"]
    return read_regular(path, max_bytes=MAX_FILE_BYTES).decode("utf-8", "replace")


def fenced(text):
    """A text that goes into a prompt between tags, without tags of its own that could end them."""
    return _TAG.sub("&lt;", text)


def _text(kind):
    return lambda ctx: fenced(ctx.inputs["context"][kind]["text"])


def _plan(ctx):
    return fenced(json.dumps(newest(ctx, "revise-plan", "plan"), ensure_ascii=False, indent=1))


def _review(ctx):
    found = ctx.inputs.get("validate-plan")
    return None if found is None else {"scores": found["validation_scores"], "issues": found["issues"]}


def _code(ctx):
    return [{**file, "content": fenced(file["content"])} for file in code_of(ctx, checked=True)]


def _findings(ctx):
    found = (ctx.inputs.get("verdict") or {"findings": []})["findings"]
    return [{key: fenced(value) if isinstance(value, str) else value for key, value in one.items()} for one in found]


def _changes(ctx):
    return [fenced(text) for text in ctx.letter.changes]


_PARTS = {
    "project": lambda ctx: ctx.inputs["context"]["project"],
    "requirements": _text("requirements"),
    "documentation": _text("documentation"),
    "examples": _text("examples"),
    "standards": _text("standards"),
    "plan": _plan,
    "review": _review,
    "earlier_review": _review,
    "approved_plan": lambda ctx: fenced(ctx.inputs["plan-document"]),
    "code": _code,
    "tool_report": lambda ctx: fenced(ctx.inputs["tools"]["report"]),
    "findings": _findings,
    "earlier_findings": _findings,
    "changes": _changes,
}
