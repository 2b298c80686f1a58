"""Step 3, plan revision."""

from plans import plan_problems
from workflow import briefing


def ingest(seed, ctx):
    return briefing(ctx, __file__, "project", "requirements", "standards", "plan", "review", "changes")


def validate_quality(output, ctx):
    yield from plan_problems(output)
    issues = ctx.inputs["validate-plan"]["issues"]
    if len(output["resolutions"]) < len(issues):
        yield f"/resolutions: {len(issues)} issues were named, and {len(output['resolutions'])} are answered"
