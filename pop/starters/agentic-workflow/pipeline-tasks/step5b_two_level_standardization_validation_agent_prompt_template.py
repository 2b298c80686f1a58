"""Step 5b, the two-level standardization validation of the code: the written standards, and the example code's habits."""

from reviews import counted, review_problems
from workflow import briefing, code_of


def ingest(seed, ctx):
    return briefing(ctx, __file__, "project", "approved_plan", "standards", "examples", "code", "tool_report")


def validate_quality(output, ctx):
    return review_problems(output, code_of(ctx, checked=True))


def finalize(output, ctx):
    return counted(output)
