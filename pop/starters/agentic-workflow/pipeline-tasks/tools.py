"""Step 5, the deterministic tools: the newest files are laid out, compiled, read by ruff and tested by pytest.

Artifacts: code/ (the files as they were checked) and report.md. Output: {"passed", "tools", "files", "network", "report"}.
"""

import hashlib
from pathlib import Path

from checks import COLUMNS, RULES, SECONDS, check, lay_out, network
from workflow import code_of


def infer(prompt, ctx):
    files, config = code_of(ctx, checked=False), ctx.config
    room = Path.cwd() / "workspace"
    memory = max(256, ctx.letter.limits.memory_mb // 2)
    reports = check(
        files, room, python=config.get("python"), seconds=config.get("seconds", SECONDS), memory_mb=memory,
        rules=config.get("ruff", RULES), columns=config.get("columns", COLUMNS),
    )  # fmt: skip
    lay_out(files, ctx.artifact("code"))
    report = _markdown(reports)
    ctx.artifact("report.md").write_text(report, "utf-8")
    return {
        "passed": all(report["passed"] for report in reports),
        "tools": reports,
        "files": [_about(file) for file in files],
        "network": network(),
        "report": report,
    }


def _about(file):
    return {
        "path": file["path"],
        "lines": file["content"].count("\n"),
        "sha256": hashlib.sha256(file["content"].encode("utf-8", "replace")).hexdigest(),
    }


def _markdown(reports):
    lines = ["# What the tools say", ""]
    for report in reports:
        lines += [f"## {report['tool']}: {'passed' if report['passed'] else 'FAILED'} ({report['summary']})", ""]
        for one in report["findings"]:
            place = f"{one['file']}:{one['line']}: " if one["file"] else ""
            lines += [f"- {place}[{one['code']}] {one['message']}".replace("\n", "\n      ")]
        lines += [""] if report["findings"] else []
    return "\n".join(lines)
