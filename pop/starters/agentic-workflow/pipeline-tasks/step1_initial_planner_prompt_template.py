"""Step 1, the initial plan."""

from plans import plan_problems
from workflow import briefing


def ingest(seed, ctx):
    return briefing(ctx, __file__, "project", "requirements", "documentation", "examples", "standards")


def validate_quality(output, ctx):
    return plan_problems(output)
