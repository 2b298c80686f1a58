"""Where the keys of a TOML text stand. ``tomllib`` does not say; this scan reads headers and the keys at line starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_PART = r'(?:[A-Za-z0-9_-]+|"[^"]*"|\'[^\']*\')'
_ASSIGN = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")


@dataclass
class TomlPlaces:
    """Line and column of each key, by its path from the top."""

    file: str
    keys: dict[tuple[str, ...], tuple[int, int]] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)

    def of(self, *path: str) -> str:
        """``pop.toml:3:1  models.large.provider``; the nearest parent's place when the key itself is not found."""
        known = path
        while known and known not in self.keys:
            known = known[:-1]
        dotted = ".".join(path)
        if not known:
            return f"{self.file}  {dotted}" if path else self.file
        line, column = self.keys[known]
        return f"{self.file}:{line}:{self._inside(line, column, path[len(known) :])}  {dotted}"

    def _inside(self, line: int, column: int, rest: tuple[str, ...]) -> int:
        """The column of a key inside an inline table that begins on this line."""
        for part in rest:
            match = re.compile(rf"[{{,]\s*(\"?){re.escape(part)}\1\s*=").search(self.rows[line - 1], column - 1)
            if match is None:
                break
            column = match.start() + len(match[0]) - len(match[0][1:].lstrip()) + 1
        return column


def find_toml_places(text: str, file: str) -> TomlPlaces:
    """Scan a TOML document that is known to be valid."""
    places = TomlPlaces(file, rows=text.splitlines())
    table: tuple[str, ...] = ()
    quote = ""
    for number, row in enumerate(places.rows, 1):
        if quote:
            quote = "" if quote in row else quote
            continue
        if header := _HEADER.match(row):
            table = _parts(header[1])
            _add(places, table, number, header.start(1) + 1)
        elif assign := _ASSIGN.match(row):
            _add(places, (*table, *_parts(assign[1])), number, assign.start(1) + 1)
            quote = next((mark for mark in ('"""', "'''") if row.count(mark) == 1), "")
    return places


def _add(places: TomlPlaces, path: tuple[str, ...], line: int, column: int) -> None:
    for length in range(1, len(path) + 1):
        places.keys.setdefault(path[:length], (line, column))


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))
