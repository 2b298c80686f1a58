"""Reads the documents and cuts long ones into parts that fit any model."""

from sources import documents, places, split


def infer(prompt, ctx):
    found = documents(ctx)
    parts = []
    for document in found:
        ranges = places(document["text"])
        pieces = split(document["text"], ranges)
        for number, (line, text) in enumerate(pieces, 1):
            last = line + text.count("\n")
            parts.append(
                {
                    "document": document["id"],
                    "title": document["title"],
                    "part": number,
                    "of": len(pieces),
                    "first_line": line,
                    "places": [place for place in ranges if place["first"] <= last and place["last"] >= line],
                    "text": text,
                }
            )
        ctx.log.info("document read", id=document["id"], characters=len(document["text"]), parts=len(pieces))
    about = [
        {"id": document["id"], "title": document["title"], "characters": len(document["text"])} for document in found
    ]
    return {"documents": about, "parts": parts}


def validate_quality(output, ctx):
    if not output["documents"]:
        from pop.stages import Problem

        yield Problem("the seed brings no documents: put .rst, .md or .txt files beside seed.json", fatal=True)
