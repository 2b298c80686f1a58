"""Sets the brief: brief.md for people, brief.json for programs; every claim carries its source sentence."""

import json

from evidence import added, fault, printed
from sources import whole

from pop.stages import Problem


def infer(prompt, ctx):
    inputs, documents = ctx.inputs, whole(ctx.inputs.collect)
    drafts = [section for section in inputs.draft if section]
    sections = [section for section in drafts if section["paragraphs"]]
    steps = [*inputs.condense, inputs.stack, inputs.cluster, *drafts, *([inputs.opening] if inputs.opening else [])]
    brief = {
        "title": ctx.seed.get("title") or "Brief",
        "made_by": added(entry for step in steps for entry in step["made_by"]),
        "characters": _characters(inputs, sections),
        "overview": inputs.opening["claims"] if inputs.opening else [],
        "overview_extractive": bool(inputs.opening and inputs.opening["extractive"]),
        "sections": [{key: section[key] for key in ("heading", "extractive", "paragraphs")} for section in sections],
        "documents": inputs.collect["documents"],
        "left_out": [claim for step in [*drafts, inputs.opening] if step for claim in step["left_out"]],
    }
    _check(brief, documents)
    ctx.artifact("brief.md").write_text(_markdown(brief, documents), "utf-8")
    ctx.artifact("brief.json").write_text(json.dumps(brief, ensure_ascii=False, indent=2) + "\n", "utf-8")
    claims = sum(len(section["paragraphs"]) for section in sections) + len(brief["overview"])
    return {"title": brief["title"], "made_by": _made_by(brief), "sections": len(sections), "claims": claims}


def validate_quality(output, ctx):
    if not output["sections"]:
        yield Problem("no claim could be traced to its source, so there is nothing to publish", fatal=True)


def _check(brief, documents):
    """The last look before print, whatever the steps before have said."""
    for claim in [*brief["overview"], *(one for section in brief["sections"] for one in section["paragraphs"])]:
        found = fault(claim, documents)
        assert found is None, f"a claim without evidence came as far as print: {found}"


def _characters(inputs, sections):
    """How much came in, what was left of it on its way, and how much went to models; refinements are not counted."""
    stack = {document["id"]: len(document["text"]) for document in inputs.stack["documents"]}
    themes = inputs.cluster["themes"]
    told = [one for section in sections for one in section["paragraphs"]]
    given = {
        "condense": sum(
            digest["characters"]["read"] + digest["characters"]["compressed"] for digest in inputs.condense
        ),
        "stack": inputs.stack["characters"]["compressed"],
        "cluster": sum(stack.values()),
        "draft": sum(len(point["quote"]) for theme in themes for point in theme["points"])
        + sum(stack[name] for theme in themes for name in theme["documents"]),
        "opening": sum(len(one["text"]) + len(one["quote"]) for one in told),
    }
    return {
        "came_in": sum(document["characters"] for document in inputs.collect["documents"]),
        "digests": inputs.stack["characters"]["digests"],
        "stack": sum(stack.values()),
        "given_to_models": given,
    }


def _made_by(brief):
    names = [f"{entry['model']} ({entry['note']})" if entry["note"] else entry["model"] for entry in brief["made_by"]]
    return ", ".join(names)


def _markdown(brief, documents):
    notes = []
    lines = [f"# {brief['title']}", "", f"*Made by: {_made_by(brief)}.*", ""]
    if brief["overview"]:
        lines += ["## In short", ""]
        for claim in brief["overview"]:
            whose = f"**{printed(documents[claim['document']]['title'])}.** " if brief["overview_extractive"] else ""
            lines.append(f"- {whose}{_claim(claim, notes)}")
        lines.append("")
    for section in brief["sections"]:
        lines += [f"## {printed(section['heading'])}", ""]
        if section["extractive"]:
            for name, paragraphs in _by_document(section["paragraphs"]):
                told = " ".join(_claim(paragraph, notes) for paragraph in paragraphs)
                whose = f"**{printed(documents[name]['title'])}.** "
                lines += [told if documents[name]["title"] == section["heading"] else f"{whose}{told}", ""]
        else:
            for paragraph in section["paragraphs"]:
                lines += [_claim(paragraph, notes), ""]
    lines += ["## Sources", ""]
    for number, (name, line, quote) in enumerate(notes, 1):
        lines.append(f"{number}. {printed(documents[name]['title'])}, line {line}: “{printed(quote)}”")
    return "\n".join([*lines, "", _how(brief)]) + "\n"


def _claim(claim, notes):
    """A claim with the number of its note; what stood aside in its document says so."""
    note = (claim["document"], claim["line"], claim["quote"])
    if note not in notes:
        notes.append(note)
    aside = f"*From “{printed(claim['aside'])}”:* " if claim.get("aside") else ""
    return f"{aside}{printed(claim['text'])} [{notes.index(note) + 1}]"


def _by_document(paragraphs):
    """Paragraphs of the same document side by side, in the order in which the documents come up."""
    found = {}
    for paragraph in paragraphs:
        found.setdefault(paragraph["document"], []).append(paragraph)
    return found.items()


def _how(brief):
    size = brief["characters"]
    calls = sum(entry["calls"] for entry in brief["made_by"])
    left_out = len(brief["left_out"])
    given = sum(size["given_to_models"].values())
    told = f"*{len(brief['documents'])} documents with {size['came_in']:,} characters were condensed to {size['digests']:,} and "
    told += f"stacked to {size['stack']:,}; in {calls} calls {given:,} characters went to models."
    dropped = f" {left_out} claims without evidence were left out; brief.json lists them." if left_out else ""
    return f"{told}{dropped}*"
