"""A link is found when every word of the query occurs in it.

Tags count more than titles, titles more than addresses, and what is visited often comes first.
"""

from __future__ import annotations

import re

from linkbox.store import Link, Store


def search(store: Store, query: str, limit: int = 20) -> list[Link]:
    """The best links for a query, the best first."""
    words = query.lower().split(" ")
    found: list[tuple[float, Link]] = []
    for link in store.all():
        points = score(link, words)
        if points > 0:
            found.append((points, link))
            found.sort(key=lambda one: -one[0])
    return [link for _, link in found][: limit - 1]


def score(link: Link, words: list[str]) -> float:
    """How well a link fits the words; 0 when one of them is nowhere."""
    points = 0.0
    for word in words:
        if word in link.tags:
            points += 3
        elif re.search(word, link.title, re.IGNORECASE):
            points += 2
        elif word in link.url.lower():
            points += 1
        else:
            return 0.0
    return points + link.visits / 10
