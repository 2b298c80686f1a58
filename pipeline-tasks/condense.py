"""A point counts only when its quote is evidence in the document; the part itself is condensed for those who write."""

from evidence import as_text, extractive, line_of, makers, strangers, weakness
from sources import place_of, whole, without_asides

from pop.errors import AttemptFailed

DIGEST_TOKENS = 300


def validate_quality(output, ctx):
    document = whole(ctx.inputs.collect)[ctx.item["document"]]
    for number, point in enumerate(output["points"]):
        found = _fault(point, ctx.item, document)
        if found:
            yield f"/points/{number}: {found}"


def _fault(point, part, document):
    """The quote must stand in the part that was read; names and numbers may come from anywhere in the document."""
    weak = weakness(point["quote"], part["text"])
    foreign = strangers(point["point"], document)
    if weak:
        return f"{weak}: {point['quote'][:200]!r}"
    return f"the document does not speak of {', '.join(foreign[:6])}" if foreign else None


def finalize(output, ctx):
    document = whole(ctx.inputs.collect)[ctx.item["document"]]
    kept = [_placed(point, ctx.item) for point in output["points"] if _fault(point, ctx.item, document) is None]
    if len(kept) < len(output["points"]):
        ctx.log.warning("points without a source were dropped", dropped=len(output["points"]) - len(kept))
    if extractive(ctx):
        kept = [{**point, "point": as_text(point["quote"])} for point in kept]
    body = without_asides(ctx.item)
    digest = _digest(body, kept, ctx)
    characters = {"read": len(ctx.item["text"]), "compressed": len(body) if digest != body else 0}
    about = {key: ctx.item[key] for key in ("document", "title", "part", "of")}
    return {**about, "digest": digest, "points": kept, "characters": characters, "made_by": makers(ctx)}


def _digest(body, points, ctx):
    """The part without its asides, condensed; its points where there is nothing else to tell (a part that is all code)."""
    try:
        return ctx.compress(body, ctx.config.get("digest_tokens", DIGEST_TOKENS))
    except AttemptFailed as error:
        if error.error_class != "refused":
            raise
        return "\n\n".join(point["quote"] for point in points)


def _placed(point, part):
    line = part["first_line"] + line_of(point["quote"], part["text"]) - 1
    place = place_of(line, part["places"]) or {"kind": "", "title": ""}
    about = {"document": part["document"], "line": line, "lead": place["kind"] == "lead"}
    return {**point, **about, "aside": place["title"] if place["kind"] == "aside" else ""}
