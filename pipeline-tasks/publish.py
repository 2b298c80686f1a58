"""Sets the brief: brief.md for people, brief.json for programs; every claim carries its source sentence."""

import json


def infer(prompt, ctx):
    reply = ctx.model()(prompt)
    titles = {document["id"]: document["title"] for document in ctx.inputs.collect["documents"]}
    sections = [section for section in ctx.inputs.draft if section and section["paragraphs"]]
    brief = {
        "title": ctx.seed.get("title") or "Brief",
        "made_by": reply.answer.note or f"{reply.answer.provider_model}",
        "overview": reply.text.strip(),
        "sections": sections,
        "documents": [{"id": name, "title": title} for name, title in titles.items()],
    }
    ctx.artifact("brief.md").write_text(_markdown(brief, titles), "utf-8")
    ctx.artifact("brief.json").write_text(json.dumps(brief, ensure_ascii=False, indent=2) + "\n", "utf-8")
    claims = sum(len(section["paragraphs"]) for section in sections)
    return {"title": brief["title"], "made_by": brief["made_by"], "sections": len(sections), "claims": claims}


def validate_quality(output, ctx):
    if not output["claims"]:
        from pop.stages import Problem

        yield Problem("no claim could be traced to its source, so there is nothing to publish", fatal=True)


def _markdown(brief, titles):
    lines = [f"# {brief['title']}", "", f"*Made by: {brief['made_by']}.*", "", _code(brief["overview"]), ""]
    notes = []
    for section in brief["sections"]:
        lines += [f"## {section['heading']}", ""]
        for source, paragraphs in _by_source(section["paragraphs"]):
            sentences = []
            for paragraph in paragraphs:
                notes.append((source, paragraph))
                sentences.append(f"{_code(paragraph['text'])} [{len(notes)}]")
            lines += [f"**{titles.get(source, source)}.** " + " ".join(sentences), ""]
    lines += ["## Sources", ""]
    for number, (source, paragraph) in enumerate(notes, 1):
        lines.append(f"{number}. {titles.get(source, source)}, line {paragraph['line']}: “{_code(paragraph['quote'])}”")
    return "\n".join(lines) + "\n"


def _by_source(paragraphs):
    """Paragraphs of the same document side by side, in the order in which the documents come up."""
    found = {}
    for paragraph in paragraphs:
        found.setdefault(paragraph["source"], []).append(paragraph)
    return found.items()


def _code(text):
    return text.replace("``", "`")
