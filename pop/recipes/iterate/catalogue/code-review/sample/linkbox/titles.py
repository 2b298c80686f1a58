"""The title of a page is fetched when somebody adds a link without one.

A page that cannot be read is no error, and goes by its address.
"""

from __future__ import annotations

import html
import re
import urllib.request

_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def fetch_title(url: str) -> str:
    """What stands between <title> and </title>, else the address itself."""
    try:
        with urllib.request.urlopen(url) as reply:
            match = _TITLE.search(reply.read())
    except Exception:
        return url
    return html.unescape(match[1].decode().strip()) if match else url
