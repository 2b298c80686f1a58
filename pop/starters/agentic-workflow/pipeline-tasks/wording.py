"""What models wrote, as Markdown in which it reads as it is: no name becomes bold, no text a heading."""

import re

_SPAN = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)")
_NAME = re.compile(r"[^\s`,;:!?\"'()]*[_<>\[\]|\\][^\s`,;:!?\"'()]*")


def prose(text):
    """A text on one line; names with underscores or brackets become code, code that is marked as such stays."""
    line, parts, at = " ".join(text.split()), [], 0
    for span in _SPAN.finditer(line):
        parts += [_marked(line[at : span.start()]), span[0]]
        at = span.end()
    shown = "".join([*parts, _marked(line[at:])])
    return f"\\{shown}" if shown.startswith(("#", ">", "+", "-", "=", "~")) else shown


def paragraphs(text):
    """The same of a longer text, paragraph by paragraph."""
    return "\n\n".join(prose(part) for part in re.split(r"\n\s*\n", text.strip()))


def code(text):
    """A text on one line as a span of code, in as many backticks as it takes."""
    line = " ".join(text.split())
    mark = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{mark}{pad}{line}{pad}{mark}"


def _marked(text):
    return _NAME.sub(_as_code, text.replace("`", "'"))


def _as_code(found):
    name = found[0].rstrip(".")
    return f"`{name}`{found[0][len(name) :]}"
