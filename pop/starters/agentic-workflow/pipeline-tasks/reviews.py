"""What the three validations share: scores and issues must agree, and name what is there."""

THRESHOLDS = {"alignment_score": 9.0, "standardization_score": 8.0, "compatibility_score": 8.0}


def review_problems(output, files=None):
    """Sentences for the validator.

    Args:
        files: Where issues name files and lines: ``[{"path", "content"}]``.
    """
    for name, score in output["validation_scores"].items():
        subject = name.removesuffix("_score")
        severities = [issue["severity"] for issue in output["issues"] if issue["concerns"] == subject]
        if "critical" in severities and score >= THRESHOLDS[name]:
            yield f"/validation_scores/{name}: {score} stands beside a critical issue; it must be below {THRESHOLDS[name]}"
        if not severities and score < THRESHOLDS[name]:
            yield f"/validation_scores/{name}: no issue explains {score}; name what is wrong, or score by the anchors"
    lines = {file["path"]: file["content"].count("\n") + 1 for file in files or ()}
    for number, issue in enumerate(output["issues"] if files is not None else ()):
        if issue["file"] is not None and issue["file"] not in lines:
            yield f"/issues/{number}/file: there is no file {issue['file']!r}; it is one of {', '.join(lines)}, or null"
        elif issue["file"] is not None and (issue["line"] or 1) > lines[issue["file"]]:
            yield f"/issues/{number}/line: {issue['file']} has only {lines[issue['file']]} lines"


def counted(output):
    """The review with its counts: ``critical`` and ``minor``."""
    critical = sum(issue["severity"] == "critical" for issue in output["issues"])
    return {**output, "critical": critical, "minor": len(output["issues"]) - critical}
