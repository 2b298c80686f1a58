"""A section is scored by a program: every paragraph must rest on a quote that its source really holds."""

from evidence import LEAST_WORDS, extractive, fault, makers, says_what, squeezed, strangers
from sources import whole

from pop.stages import Problem


def _point_of(paragraph, ctx):
    """The point whose quote the paragraph copied: whole, or six words and more of it."""
    wanted = squeezed(paragraph["quote"])
    for point in ctx.item["points"]:
        there = squeezed(point["quote"])
        enough = wanted == there or (len(wanted.split()) >= LEAST_WORDS and f" {wanted} " in f" {there} ")
        if point["document"] == paragraph["source"] and enough:
            return point
    return None


def _fault(paragraph, ctx, documents):
    point = _point_of(paragraph, ctx)
    if point is None:
        return (
            f"the quote is not one of {paragraph['source']!r}'s, whole and word for word: {paragraph['quote'][:200]!r}"
        )
    return fault({**point, "text": paragraph["text"]}, documents)


def validate_quality(output, ctx):
    documents, seen = whole(ctx.inputs.collect), set()
    for number, paragraph in enumerate(output["paragraphs"]):
        found = _fault(paragraph, ctx, documents)
        if found:
            yield Problem(f"/paragraphs/{number}: {found}", score=3)
        if paragraph["text"] in seen:
            yield Problem(f"/paragraphs/{number}: says the same as an earlier paragraph", score=2)
        seen.add(paragraph["text"])
    if _strange_numbers(output["heading"], ctx, documents):
        yield Problem("/heading: its numbers are not in the documents", score=1)
    least = min(2, len(ctx.item["points"]))
    if len(output["paragraphs"]) < least:
        yield Problem(f"/paragraphs: {len(output['paragraphs'])} are too few, write at least {least}", score=1)


def finalize(output, ctx):
    documents, by_copying, kept, left_out = whole(ctx.inputs.collect), extractive(ctx), [], []
    for paragraph in output["paragraphs"]:
        found = _fault(paragraph, ctx, documents)
        if found:
            left_out.append({**paragraph, "why": found})
            continue
        point = _point_of(paragraph, ctx)
        one = _as_told(point, point["point"] if by_copying else paragraph["text"])
        if one not in kept:
            kept.append(one)
    if by_copying:
        kept = _introduced(kept, ctx.item["points"])
    heading = output["heading"]
    if kept and (by_copying or _strange_numbers(heading, ctx, documents)):
        heading = _named_after(kept, documents)
    about = {"title": ctx.item["title"], "heading": heading, "extractive": by_copying}
    return {**about, "paragraphs": kept, "left_out": left_out, "made_by": makers(ctx)}


def _as_told(point, text):
    return {"text": text, **{key: point[key] for key in ("quote", "document", "line", "lead", "aside")}}


def _introduced(paragraphs, points):
    """Copied sentences in the order of their sources, each document's beginning with what it says it is there for."""
    for name in {paragraph["document"] for paragraph in paragraphs}:
        leads = [point for point in points if point["document"] == name and point["lead"]]
        first = next((point for point in leads if says_what(point["point"])), None)
        if first and first["quote"] not in [paragraph["quote"] for paragraph in paragraphs]:
            paragraphs = [*paragraphs, _as_told(first, first["point"])]
    return sorted(paragraphs, key=lambda paragraph: (paragraph["document"], paragraph["line"]))


def _strange_numbers(heading, ctx, documents):
    """A heading's capitals say nothing, so only its numbers are looked for."""
    named = [documents[name] for name in ctx.item["documents"]]
    together = {key: "\n".join(document[key] for document in named) for key in ("title", "text")}
    return strangers(heading.lower(), together)


def _named_after(paragraphs, documents):
    """What a section is called when its own heading is none: the titles of the documents it rests on most."""
    names = [paragraph["document"] for paragraph in paragraphs]
    most = sorted(dict.fromkeys(names), key=lambda name: (-names.count(name), names.index(name)))[:3]
    titles = [documents[name]["title"].split(": ")[0] for name in most]
    short = [title.split(", ", 1)[1] if title.startswith("PEP ") and ", " in title else title for title in titles]
    return "; ".join(dict.fromkeys(short))
