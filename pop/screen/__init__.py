"""`pop watch` on a terminal: one look at the files makes a scene (`look`), `paint` lays it out, `window` shows it and takes keys."""

from __future__ import annotations

import os
import sys

from pop.runs import Run
from pop.settings import Root


def is_terminal() -> bool:
    """Whether there is a terminal on which a full screen can be shown, and keys can be read."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


def watch(root: Root, run: Run | None = None) -> bool:
    """Show everything in a folder, or one run until it ends or waits for a person.

    Returns:
        Whether that is over, as asked for: the run came to its end, or somebody left the view of everything by `q`.
    """
    from pop.screen.window import Window

    return Window(root, run).show()
