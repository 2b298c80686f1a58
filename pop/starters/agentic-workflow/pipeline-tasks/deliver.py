"""Lays the accepted files out as artifacts: code/, the approved plan, and a report of how they came about.

Files that a person edited before the final approval go through the tools once more, and the report says what those say.
"""

from pathlib import Path

from checks import COLUMNS, RULES, SECONDS, check, lay_out
from wording import code, prose
from workflow import code_of


def infer(prompt, ctx):
    tools, verdict = ctx.inputs["tools"], ctx.inputs["verdict"]
    checked, files = code_of(ctx, checked=False), code_of(ctx, checked=True)
    edited = [new["path"] for old, new in zip(checked, files, strict=True) if old["content"] != new["content"]]
    reports = _again(files, ctx) if edited else tools["tools"]
    lay_out(files, ctx.artifact("code"))
    ctx.artifact("plan.md").write_text(ctx.inputs["plan-document"], "utf-8")
    ctx.artifact("report.md").write_text(_report(ctx, verdict, reports, edited, files), "utf-8")
    passed = all(report["passed"] for report in reports)
    if not passed:
        ctx.log.warning("delivered although a tool failed: a person approved it so")
    return {
        "files": [file["path"] for file in files],
        "edited_by_a_person": edited,
        "tools_passed": passed,
        "accepted_by_the_validator": verdict["accepted"],
        "validation_scores": verdict["validation_scores"],
        "open_findings": verdict["findings"],
    }


def _again(files, ctx):
    config, memory = ctx.config, max(256, ctx.letter.limits.memory_mb // 2)
    return check(
        files, Path.cwd() / "workspace", python=config.get("python"), seconds=config.get("seconds", SECONDS),
        memory_mb=memory, rules=config.get("ruff", RULES), columns=config.get("columns", COLUMNS),
    )  # fmt: skip


def _report(ctx, verdict, reports, edited, files):
    title = ctx.inputs["context"]["project"]["title"] or "Delivered code"
    accepted = "accepted by the validator" if verdict["accepted"] else "accepted by a person, not by the validator"
    lines = [f"# {prose(title)}", "", f"{accepted.capitalize()}; run {ctx.run_id}.", "", "## Files", ""]
    lines += [f"- {code(file['path'])}{' (edited by a person at the end)' if file['path'] in edited else ''}" for file in files]
    lines += ["", "## Tools", ""]
    lines += [f"- {one['tool']}: {'passed' if one['passed'] else 'FAILED'} ({prose(one['summary'])})" for one in reports]
    lines += ["", "## Scores", ""]
    lines += [f"- {prose(name)}: {value}" for name, value in verdict["validation_scores"].items()]
    lines += ["", "## What is left", ""]
    lines += [f"- {one['severity']} ({prose(one['source'])}): {prose(one['issue'])}" for one in verdict["findings"]] or ["Nothing."]
    return "\n".join(lines) + "\n"
