"""Step 5a, the two-level validation of the code: does it do what was asked, and does it work."""

from reviews import counted, review_problems
from workflow import briefing, code_of


def ingest(seed, ctx):
    names = ("project", "approved_plan", "requirements", "code", "tool_report", "earlier_findings", "changes")
    return briefing(ctx, __file__, *names)


def validate_quality(output, ctx):
    return review_problems(output, code_of(ctx, checked=True))


def finalize(output, ctx):
    return counted(output)
