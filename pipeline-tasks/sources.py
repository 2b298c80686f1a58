"""What the tasks of *brief* share about documents: reading them, cutting them, and what their sections are."""

import re
from collections import Counter

from pop.errors import AttemptFailed

PART_CHARS = 11_000
_LEAD = re.compile(r"(executive )?(abstract|summary|introduction|overview|in short|tl;?dr)( and \w+)?", re.IGNORECASE)
_ASIDE = re.compile(  # whole titles: a report on alternative energy, or a history of Rome, speaks of its own matter
    r"(previously )?rejected( \w+){0,3}|.* rejected (ideas|options|alternatives|proposals)|(other )?alternatives( considered)?"
    r"|alternative (\w+ )?(approach|approaches|proposals?|ideas?|designs?|solutions?|spellings?|options)"
    r"|(withdrawn|deferred)( \w+){0,2}|((un)?resolved|open)? ?(issues?|questions?)|(backwards?|backwards? and forwards?)[ -]compatibility"
    r"|([\w-]+ )?discussions?|(\w+ )?pronouncements?|q ?& ?a|faqs?|frequently (asked questions|raised objections)"
    r"|(common )?(objections|criticisms)|design considerations|(then )?why not .*|specification changes .*|(.* )?revisions"
    r"|((revision|version|change|document) )?history|change ?log|author's notes?|acknowledge?ments?"
    r"|(footnotes and )?references|see also|further reading",
    re.IGNORECASE,
)


def documents(ctx):
    """The seed's documents: files that came with it, and inline ``documents: [{title, text}]``; no id stands twice."""
    found = [*_files(ctx.files), *_inline(ctx.seed.get("documents", []))]
    seen = set()
    for document in found:
        if document["id"] in seen:
            raise AttemptFailed(
                "bad_input", f"two documents are called {document['id']!r}: a claim could not name its source"
            )
        seen.add(document["id"])
    return found


def _files(folder):
    """Each file is called by its stem, or by its whole path below files/ where another has the same stem."""
    if not folder:
        return
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".rst", ".md", ".txt") and path.is_file())
    stems = Counter(path.stem for path in paths)
    for path in paths:
        text = path.read_text("utf-8", errors="replace")
        name = path.stem if stems[path.stem] == 1 else path.relative_to(folder).as_posix()
        yield {"id": name, "title": title_of(text, path), "text": text}


def _inline(given):
    if not isinstance(given, list):
        raise AttemptFailed("bad_input", 'seed.documents must be a list of {"title", "text"}')
    for number, document in enumerate(given, 1):
        if not isinstance(document, dict) or not isinstance(document.get("text"), str):
            raise AttemptFailed("bad_input", f'seed.documents[{number - 1}] must be an object with a "text"')
        name = str(document.get("id") or f"document-{number}")
        yield {"id": name, "title": str(document.get("title") or name), "text": document["text"]}


def title_of(text, path):
    """A document's own title: a Title field, a first heading, else the file's name."""
    field = re.search(r"^Title:\s*(.+)$", text, re.MULTILINE)
    number = re.search(r"^PEP:\s*(\d+)$", text, re.MULTILINE)
    if field:
        return f"PEP {number[1]}, {field[1].strip()}" if number else field[1].strip()
    heading = re.search(r"^#\s+(.+)$|^(\S.*)\n[=#*-]{4,}$", text, re.MULTILINE)
    return (heading[1] or heading[2]).strip() if heading else path.stem


def split(text, ranges=()):
    """A text in parts of about PART_CHARS characters, cut at blank lines, each with its first line's number.

    A long text's section that leads is a part of its own: what it says must not be lost among the rest.
    """
    cuts = {place["last"] for place in ranges if place["kind"] == "lead" and len(text) > PART_CHARS}
    parts, lines, first, size = [], [], 1, 0
    for number, line in enumerate(text.splitlines(), 1):
        if (size > PART_CHARS and not line.strip()) or number - 1 in cuts:
            parts.append((first, "\n".join(lines)))
            lines, first, size = [], number, 0
        lines.append(line)
        size += len(line) + 1
    return [*parts, (first, "\n".join(lines))] if "".join(lines).strip() else parts


def whole(collected):
    """The documents of `collect` put together again: ``{id: {"title": str, "text": str, "places": [...]}}``."""
    found = {}
    for document in collected["documents"]:
        parts = [part for part in collected["parts"] if part["document"] == document["id"]]
        ranges = [place for part in parts for place in part["places"]]
        text = "\n".join(part["text"] for part in parts)
        found[document["id"]] = {"title": document["title"], "text": text, "places": ranges}
    return found


def headings(text):
    """The headings of reST or Markdown in order: ``[(line, level, title)]``, lines from 1, levels from 1."""
    found, styles, fenced = [], [], False
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            fenced = not fenced
        marks = re.match(r"(#{1,6})\s+(\S.*)", line)
        below = lines[number] if number < len(lines) else ""
        if fenced or not line.strip() or line[0].isspace():
            continue
        if marks:
            found.append((number, len(marks[1]), marks[2].strip("# ")))
        elif re.fullmatch(r"([=~^\"'`#*+.:_-])\1{2,}\s*", below) and not re.fullmatch(r"(\W)\1{2,}\s*", line):
            if below[0] not in styles:
                styles.append(below[0])
            found.append((number, styles.index(below[0]) + 1, line.strip()))
    return found


def places(text):
    """Sections that lead or stand aside, with all below them: ``[{"kind", "title", "first", "last"}]``.

    "lead" tells what the document is about. "aside" speaks of what was rejected, asked or changed: its sentences are not
    what the document proposes.
    """
    found = headings(text)
    ranges = []
    for at, (line, level, title) in enumerate(found):
        kind = "aside" if _ASIDE.fullmatch(title) else "lead" if _LEAD.fullmatch(title) else None
        if kind and not (ranges and ranges[-1]["last"] >= line):
            last = next((below[0] - 1 for below in found[at + 1 :] if below[1] <= level), text.count("\n") + 1)
            ranges.append({"kind": kind, "title": title, "first": line, "last": last})
    return ranges


def place_of(line, ranges):
    """The range a line stands in, or None."""
    return next((place for place in ranges if place["first"] <= line <= place["last"]), None)


def without_asides(part):
    """A part's text without the sections that stand aside."""
    numbered = enumerate(part["text"].splitlines(), part["first_line"])
    asides = [place for place in part["places"] if place["kind"] == "aside"]
    return "\n".join(line for number, line in numbered if place_of(number, asides) is None)
