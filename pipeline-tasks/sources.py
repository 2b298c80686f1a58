"""What the tasks of *brief* share: reading the documents, and finding a quote in its source."""

import re
from collections import Counter

from pop.errors import AttemptFailed

PART_CHARS = 14_000


def documents(ctx):
    """The seed's documents: files that came with it, and inline ``documents: [{title, text}]``; no id stands twice."""
    found = [*_files(ctx.files), *_inline(ctx.seed.get("documents", []))]
    seen = set()
    for document in found:
        if document["id"] in seen:
            raise AttemptFailed("bad_input", f"two documents are called {document['id']!r}: a claim could not name its source")
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


