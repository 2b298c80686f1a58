"""Step 2, plan validation."""

from reviews import counted, review_problems
from workflow import briefing


def ingest(seed, ctx):
    return briefing(ctx, __file__, "project", "requirements", "standards", "plan", "earlier_review", "changes")


def validate_quality(output, ctx):
    return review_problems(output)


def finalize(output, ctx):
    """With `progress`, by which the loop sees that revisions lead nowhere; a person's words begin a new count."""
    review = counted(output)
    progress = sum(output["validation_scores"].values()) - 10.0 * review["critical"]
    return {**review, "progress": round(progress + 1000.0 * len(ctx.letter.changes), 3)}
