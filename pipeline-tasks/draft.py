"""A section is scored by a program: every paragraph must rest on a quote that its source really holds."""

from pop.stages import Problem

from sources import squeezed


def _point_of(paragraph, ctx):
    wanted = squeezed(paragraph["quote"])
    for point in ctx.item["points"]:
        if point["document"] == paragraph["source"] and wanted and wanted in squeezed(point["quote"]):
            return point
    return None


def validate_quality(output, ctx):
    seen = set()
    for number, paragraph in enumerate(output["paragraphs"]):
        if _point_of(paragraph, ctx) is None:
            yield Problem(f"/paragraphs/{number}: the quote is not one of {paragraph['source']!r}'s", score=3)
        if paragraph["text"] in seen:
            yield Problem(f"/paragraphs/{number}: says the same as an earlier paragraph", score=2)
        seen.add(paragraph["text"])
    least = min(2, len(ctx.item["points"]))
    if len(output["paragraphs"]) < least:
        yield Problem(f"/paragraphs: {len(output['paragraphs'])} are too few, write at least {least}", score=1)


def finalize(output, ctx):
    kept = []
    for paragraph in output["paragraphs"]:
        point = _point_of(paragraph, ctx)
        if point is not None:
            kept.append({**paragraph, "quote": point["quote"], "line": point["line"]})
    return {"title": ctx.item["title"], "heading": output["heading"], "paragraphs": kept}
