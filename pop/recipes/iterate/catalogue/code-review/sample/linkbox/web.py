"""A WSGI application shows the box in a browser and takes new links.

Reading is for everybody. Whoever changes something has to know the token of the box.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from linkbox.exchange import export
from linkbox.search import search
from linkbox.store import Store
from linkbox.titles import fetch_title

TOKEN = os.environ.get("LINKBOX_TOKEN", "letmein")
Start = Callable[[str, list[tuple[str, str]]], Any]


class App:
    """Routes: GET /?q=, GET /all?order=, GET /go?id=, POST /add, POST /remove, POST /export."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.folder = folder

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        ask = {name: values[0] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
        if method == "POST":
            size = int(environ.get("CONTENT_LENGTH") or 0)
            ask |= json.loads(environ["wsgi.input"].read(size))
            if ask.get("token") != TOKEN:
                start("403 Forbidden", [])
                return [b"wrong token " + str(ask.get("token")).encode()]
        match method, path:
            case "GET", "/":
                return self._page(start, search(self.store, ask.get("q", "")))
            case "GET", "/all":
                return self._page(start, self.store.all(ask.get("order", "title")))
            case "GET", "/go":
                start("302 Found", [("Location", self.store.visit(int(ask["id"])))])
                return []
            case "POST", "/add":
                title = ask.get("title") or fetch_title(ask["url"])
                number = self.store.add(ask["url"], title, ask.get("user", "?"), ask.get("tags", "").split(","))
                return self._json(start, {"id": number})
            case "POST", "/remove":
                self.store.remove(int(ask["id"]))
                return self._json(start, {})
            case "POST", "/export":
                return self._json(start, {"file": str(export(self.store, self.folder, ask["name"]))})
        start("404 Not Found", [])
        return []

    def _json(self, start: Start, value: dict[str, Any]) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(value).encode()]

    def _page(self, start: Start, links: list[Any]) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/html")])
        rows = "".join(f'<li><a href="/go?id={one.id}">{one.title}</a> {" ".join(one.tags)}</li>' for one in links)
        return [f"<ul>{rows}</ul>".encode()]
