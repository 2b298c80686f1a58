"""A point counts only when its quote stands in the document, word for word."""

from sources import line_of


def validate_quality(output, ctx):
    for number, point in enumerate(output["points"]):
        if line_of(point["quote"], ctx.item["text"]) is None:
            yield f"/points/{number}/quote does not stand in the document word for word: {point['quote'][:200]!r}"


def finalize(output, ctx):
    kept = []
    for point in output["points"]:
        line = line_of(point["quote"], ctx.item["text"])
        if line is not None:
            place = {"document": ctx.item["document"], "line": ctx.item["first_line"] + line - 1}
            kept.append({**point, **place})
    dropped = len(output["points"]) - len(kept)
    if dropped:
        ctx.log.warning("points without a source were dropped", dropped=dropped)
    about = {key: ctx.item[key] for key in ("document", "title", "part", "of")}
    return {**about, "summary": output["summary"], "points": kept}
