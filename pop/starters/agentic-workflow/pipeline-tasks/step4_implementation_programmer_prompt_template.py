"""Step 4, implementation."""

from checks import file_problems
from workflow import briefing

from pop.stages import Problem


def ingest(seed, ctx):
    return briefing(ctx, __file__, "project", "approved_plan", "examples", "standards")


def validate_quality(output, ctx):
    for problem in file_problems(output["files"]):
        yield Problem(f"/files: {problem}", fatal=True)
