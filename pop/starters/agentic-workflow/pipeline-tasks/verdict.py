"""Step 5, the verdict: the tools outrank the validator. What a tool found stands first, and no score stays above its cap.

| tool that failed  | caps                                                     |
|-------------------|----------------------------------------------------------|
| compile           | alignment 3.0, standardization 3.0, compatibility 3.0    |
| pytest            | alignment 6.0, compatibility 6.0                         |
| ruff              | standardization 6.0                                      |

Accepted: every tool passes, no critical finding, at most ``with.minor_issues`` (2) minor ones.
"""

CAPS = {
    "compile": {"alignment_score": 3.0, "standardization_score": 3.0, "compatibility_score": 3.0},
    "pytest": {"alignment_score": 6.0, "compatibility_score": 6.0},
    "ruff": {"standardization_score": 6.0},
}


def infer(prompt, ctx):
    tools, review, standards = (ctx.inputs[name] for name in ("tools", "validate-code", "validate-standards"))
    given = {**standards["validation_scores"], **review["validation_scores"]}
    scores, overridden = _capped(given, tools["tools"])
    findings = [*_of_tools(tools["tools"]), *_of_model("5a", review), *_of_model("5b", standards)]
    findings = [{"id": f"F{number}", **one} for number, one in enumerate(findings, 1)]
    critical = sum(one["severity"] == "critical" for one in findings)
    minor = len(findings) - critical
    accepted = tools["passed"] and critical == 0 and minor <= ctx.config.get("minor_issues", 2)
    return {
        "accepted": accepted,
        "tools_passed": tools["passed"],
        "critical": critical,
        "minor": minor,
        "validation_scores": scores,
        "model_scores": given,
        "overridden": overridden,
        "progress": 1000.0 * len(ctx.letter.changes) - 10.0 * critical - minor,  # a person's words begin a new count
        "persons_words": len(ctx.letter.changes),
        "summaries": {"tools": _told(tools["tools"]), "5a": review["summary"], "5b": standards["summary"]},
        "findings": findings,
    }


def _capped(given, reports):
    scores, overridden = dict(given), []
    for report in reports:
        for name, most in CAPS[report["tool"]].items() if not report["passed"] else ():
            if scores[name] > most:
                because = f"{report['tool']} failed: {report['summary']}"
                overridden.append({"score": name, "model": given[name], "now": most, "because": because})
                scores[name] = most
    return scores, overridden


def _of_tools(reports):
    for report in reports:
        severity = "minor" if report["tool"] == "ruff" else "critical"
        for one in report["findings"]:
            issue = {"file": one["file"], "line": one["line"], "issue": f"[{one['code']}] {one['message']}"}
            yield {"source": report["tool"], "severity": severity, "concerns": "tools", **issue, "suggestion": None}


def _of_model(source, review):
    for one in review["issues"]:
        yield {"source": source, **one}


def _told(reports):
    return "; ".join(f"{one['tool']} {'passed' if one['passed'] else 'FAILED'} ({one['summary']})" for one in reports)
