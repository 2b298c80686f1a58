"""Links are kept in SQLite, with their tags in a table of their own.

A box has one store, which all requests share. An address is kept once, whoever adds it again.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS links (id INTEGER PRIMARY KEY, url TEXT, title TEXT, added_by TEXT, added_at TEXT, visits INTEGER);
CREATE TABLE IF NOT EXISTS tags (link_id INTEGER, tag TEXT);
"""


@dataclass(frozen=True)
class Link:
    """A link as it is shown."""

    id: int
    url: str
    title: str
    added_by: str
    added_at: str
    visits: int
    tags: tuple[str, ...]


class Store:
    """All links of one box."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.executescript(SCHEMA)

    def add(self, url: str, title: str, user: str, tags: list[str]) -> int:
        """Keep a link, unless it is there already; gives its number."""
        for link in self.all():
            if link.url == url:
                return link.id
        now = datetime.now().isoformat()
        cursor = self._db.execute(
            "INSERT INTO links (url, title, added_by, added_at, visits) VALUES (?, ?, ?, ?, 0)", (url, title, user, now)
        )
        self._db.commit()
        number = int(cursor.lastrowid or 0)
        for tag in tags:
            self._db.execute("INSERT INTO tags (link_id, tag) VALUES (?, ?)", (number, tag.lower()))
        self._db.commit()
        return number

    def all(self, order: str = "added_at DESC") -> list[Link]:
        """Every link, in this order."""
        rows = self._db.execute(f"SELECT id, url, title, added_by, added_at, visits FROM links ORDER BY {order}")
        return [
            Link(number, url, title, user, at, visits, self.tags_of(number))
            for number, url, title, user, at, visits in rows.fetchall()
        ]

    def tags_of(self, number: int) -> tuple[str, ...]:
        """The tags of a link."""
        rows = self._db.execute("SELECT tag FROM tags WHERE link_id = ?", (number,))
        return tuple(sorted(row[0] for row in rows))

    def visit(self, number: int) -> str:
        """Count a visit; gives the address to go to."""
        url, visits = self._db.execute("SELECT url, visits FROM links WHERE id = ?", (number,)).fetchone()
        self._db.execute("UPDATE links SET visits = ? WHERE id = ?", (visits + 1, number))
        self._db.commit()
        return str(url)

    def remove(self, number: int) -> None:
        """Forget a link."""
        self._db.execute("DELETE FROM links WHERE id = ?", (number,))
        self._db.commit()
