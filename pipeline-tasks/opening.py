"""The opening is held to the same rule as the sections: every claim names the quote it rests on."""

from evidence import as_text, extractive, fault, line_of, makers, says_what
from sources import place_of, whole

from pop.stages import Problem


def ingest(seed, ctx):
    """The sections and their quotes; what stood aside in its document is no matter for an opening."""
    sections = [section for section in ctx.inputs.draft if section and section["paragraphs"]]
    return {"sections": sections, "quotes": [quote for section in sections for quote in _quotes(section)]}


def _quotes(section):
    """A section's quotes; of copied sentences, which do not build on each other, only the first of each document."""
    own = [paragraph for paragraph in section["paragraphs"] if not paragraph["aside"]]
    if section["extractive"]:
        first = {}
        for paragraph in sorted(own, key=lambda paragraph: (not paragraph["lead"], not says_what(paragraph["text"]))):
            first.setdefault(paragraph["document"], paragraph)
        own = list(first.values())
    return [{"document": paragraph["document"], "quote": paragraph["quote"]} for paragraph in own]


def validate_quality(output, ctx):
    documents, seen = whole(ctx.inputs.collect), set()
    for number, claim in enumerate(output["claims"]):
        found = fault(claim, documents)
        if found:
            yield Problem(f"/claims/{number}: {found}", score=3)
        elif _placed(claim, documents)["aside"]:
            yield Problem(f"/claims/{number}: was discussed, not adopted: that is no matter for an opening", score=1)
        if claim["text"] in seen:
            yield Problem(f"/claims/{number}: says the same as an earlier claim", score=2)
        seen.add(claim["text"])


def finalize(output, ctx):
    documents, kept, left_out = whole(ctx.inputs.collect), [], []
    for claim in output["claims"]:
        found = fault(claim, documents)
        if found:
            left_out.append({**claim, "why": found})
            continue
        text = as_text(claim["quote"]) if extractive(ctx) else claim["text"]
        kept.append({**claim, "text": text, **_placed(claim, documents)})
    return {"extractive": extractive(ctx), "claims": kept, "left_out": left_out, "made_by": makers(ctx)}


def _placed(claim, documents):
    document = documents[claim["document"]]
    line = line_of(claim["quote"], document["text"])
    place = place_of(line, document["places"])
    return {"line": line, "aside": place["title"] if place and place["kind"] == "aside" else ""}
