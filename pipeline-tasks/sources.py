"""What the tasks of *brief* share: reading the documents, and finding a quote in its source."""

import re

PART_CHARS = 14_000


def documents(ctx):
    """The seed's documents: files that came with it, and inline ``documents: [{title, text}]``."""
    found = []
    if ctx.files:
        for path in sorted(p for p in ctx.files.rglob("*") if p.suffix in (".rst", ".md", ".txt")):
            text = path.read_text("utf-8", errors="replace")
            found.append({"id": path.stem, "title": title_of(text, path), "text": text})
    for number, document in enumerate(ctx.seed.get("documents", []), 1):
        name = document.get("id") or f"document-{number}"
        found.append({"id": name, "title": document.get("title") or name, "text": document["text"]})
    return found


def title_of(text, path):
    """A document's own title: a Title field, a first heading, else the file's name."""
    field = re.search(r"^Title:\s*(.+)$", text, re.MULTILINE)
    number = re.search(r"^PEP:\s*(\d+)$", text, re.MULTILINE)
    if field:
        return f"PEP {number[1]}, {field[1].strip()}" if number else field[1].strip()
    heading = re.search(r"^#\s+(.+)$|^(\S.*)\n[=#*-]{4,}$", text, re.MULTILINE)
    return (heading[1] or heading[2]).strip() if heading else path.stem


def split(text):
    """A text in parts of about PART_CHARS characters, cut at blank lines, each with its first line's number."""
    parts, lines, first, size = [], [], 1, 0
    for number, line in enumerate(text.splitlines(), 1):
        if size > PART_CHARS and not line.strip():
            parts.append((first, "\n".join(lines)))
            lines, first, size = [], number, 0
        lines.append(line)
        size += len(line) + 1
    return [*parts, (first, "\n".join(lines))] if "".join(lines).strip() else parts


def squeezed(text):
    """Runs of white space as one blank: a quote may cross a line's end."""
    return " ".join(text.split())


def line_of(quote, text):
    """The line of `text` on which `quote` begins, or None when it does not stand there word for word."""
    wanted = squeezed(quote)
    if not wanted or wanted not in squeezed(text):
        return None
    pattern = r"\s+".join(re.escape(word) for word in wanted.split())
    match = re.search(pattern, text)
    return text.count("\n", 0, match.start()) + 1 if match else None


