"""Step 6, code refinement: what the programmer changed, laid over the files that were checked."""

from checks import file_problems
from workflow import briefing, code_of

from pop.stages import Problem


def ingest(seed, ctx):
    return briefing(ctx, __file__, "project", "approved_plan", "standards", "code", "findings", "changes")


def validate_quality(output, ctx):
    before = {file["path"]: file["content"] for file in code_of(ctx, checked=True)}
    for path in output["removed"]:
        if path not in before:
            yield Problem(f"/removed: there is no file {path!r}", fatal=True)
    given = [file["path"] for file in output["files"]]
    for path in sorted({path for path in given if given.count(path) > 1}):
        yield Problem(f"/files: {path!r} is given twice", fatal=True)
    for problem in file_problems(_merged(output, ctx)):
        yield Problem(f"/files: {problem}", fatal=True)
    answered = " ".join(one["finding"] for one in output["resolutions"]).replace(",", " ").split()
    for finding in (ctx.inputs["verdict"])["findings"]:
        if finding["id"] not in answered:
            yield f"/resolutions: nothing is said of {finding['id']}"
    if not output["removed"] and all(before.get(file["path"]) == file["content"] for file in output["files"]):
        yield Problem("/files: nothing was changed", score=3)


def finalize(output, ctx):
    """Output: ``{"files": all of them, "changed": [path], "removed": [path], "resolutions", "notes"}``."""
    changed = [file["path"] for file in output["files"]]
    rest = {key: output[key] for key in ("removed", "resolutions", "notes")}
    return {"files": _merged(output, ctx), "changed": changed, **rest}


def _merged(output, ctx):
    files = {file["path"]: file for file in code_of(ctx, checked=True)}
    files |= {file["path"]: file for file in output["files"]}
    return [file for path, file in files.items() if path not in output["removed"]]
