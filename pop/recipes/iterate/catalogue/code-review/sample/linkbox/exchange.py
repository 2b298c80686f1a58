"""All links can be taken out as a file and put back in from one.

A CSV file can be edited in between; JSON holds everything that the store knows.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from linkbox.store import Store
from linkbox.titles import fetch_title


def export(store: Store, folder: Path, name: str, form: str = "csv") -> Path:
    """Write all links to a file below the folder; gives its path."""
    target = folder / f"{name}.{form}"
    links = store.all("id")
    if form == "csv":
        with open(target, "w") as out:
            writer = csv.writer(out)
            writer.writerow(["url", "title", "added_by", "added_at", "tags"])
            for link in links:
                writer.writerow([link.url, link.title, link.added_by, link.added_at, " ".join(link.tags)])
    else:
        target.write_text(json.dumps([vars(link) for link in links]))
    return target


def restore(store: Store, source: Path, user: str) -> int:
    """Read links from a CSV file; gives how many were read."""
    count = 0
    with open(source) as file:
        for row in csv.DictReader(file):
            title = row["title"] or fetch_title(row["url"])
            store.add(row["url"], title, user, row["tags"].split(" "))
            count += 1
    return count
