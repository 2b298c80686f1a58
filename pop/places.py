"""Where the values and keys of a JSON text stand, so that an error can point at the right line and column.

The text was already accepted by ``records.read_json``; this scan only adds the places.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import PurePath

Path = tuple[str | int, ...]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def shown(file: PurePath) -> str:
    """How errors call a file of a folder of the root: ``pipeline-tasks/summarise.md``."""
    return f"{file.parent.name}/{file.name}"


@dataclass
class Places:
    """Offsets of values and keys by their path from the root, e.g. ``("tasks", 2, "task")``."""

    file: str
    values: dict[Path, int] = field(default_factory=dict)
    keys: dict[Path, int] = field(default_factory=dict)
    line_starts: list[int] = field(default_factory=list)

    def of(self, path: Path) -> str:
        """``file:line:column  tasks[2].task`` of the value at `path`; the nearest parent's when it is missing."""
        return self._describe(self._offset(path), path)

    def of_key(self, path: Path) -> str:
        """The same for the key that leads to the value at `path`."""
        return self._describe(self.keys.get(path, self._offset(path)), path)

    def order(self, path: Path) -> int:
        """A number by which errors can be sorted into reading order."""
        return self._offset(path)

    def _offset(self, path: Path) -> int:
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, 0)

    def _describe(self, offset: int, path: Path) -> str:
        line = bisect_right(self.line_starts, offset)
        place = f"{self.file}:{line}:{offset - self.line_starts[line - 1] + 1}"
        return f"{place}  {json_path(path)}" if path else place


def json_path(path: Path) -> str:
    """A path as people write it: ``tasks[2].with["odd key"]``."""
    parts: list[str] = []
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif _PLAIN_KEY.fullmatch(part):
            parts.append(f".{part}")
        else:
            parts.append(f"[{json.dumps(part[:80], ensure_ascii=False)}]")
    return "".join(parts).removeprefix(".")


def find_places(text: str, file: str) -> Places:
    """Scan a JSON document that is known to be valid.

    Args:
        file: What the places call the document, e.g. ``pipeline.json``.
    """
    places = Places(file, line_starts=[0, *(match.end() for match in re.finditer("\n", text))])
    path: list[str | int] = []  # of the value that comes next
    in_object: list[bool] = []
    key_comes = False
    for token in _TOKEN.finditer(text):
        word = token.group()
        if key_comes and word[0] == '"':
            path[-1] = json.loads(word)
            places.keys[tuple(path)] = token.start()
            key_comes = False
        elif word == ",":
            key_comes = in_object[-1]
            if not key_comes:
                path[-1] = int(path[-1]) + 1
        elif word in "]}":
            path.pop()
            in_object.pop()
            key_comes = False
        elif word != ":":
            places.values[tuple(path)] = token.start()
            if word in "[{":
                key_comes = word == "{"
                in_object.append(key_comes)
                path.append("" if key_comes else 0)
    return places
