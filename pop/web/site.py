"""What every page and every route of the API works with: one root, its settings, its index, its figures, its streams."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from fastapi import HTTPException

from pop.runindex import RunIndex
from pop.runs import Run
from pop.settings import Root, Settings
from pop.web.figures import FigureBook
from pop.web.live import Live

NAV = (
    ("/", "Board"),
    ("/gates", "Waiting"),
    ("/new", "New seed"),
    ("/pipelines", "Pipelines"),
    ("/costs", "Costs"),
    ("/compare", "Compare"),
    ("/health", "Health"),
)
LOOK_S = 0.5  # at most, for one look at what changed
LOOK_AGAIN_S = 0.35


@dataclass
class Site:
    """What pages work with: ``request.app.state.site``."""

    root: Root
    settings: Settings
    live: Live
    index: RunIndex
    figures: FigureBook
    nav: tuple[tuple[str, str], ...] = NAV
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "look"))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _looking: Future[str] | None = None
    _looked_at: float = 0.0

    @property
    def name(self) -> str:
        """What the root is called on a page."""
        return self.root.path.name or str(self.root.path)

    def look(self, patience_s: float) -> None:
        """See what is new on the disk, if that takes no longer; else pages show what was known, and are told by events."""
        if self._looking is None or self._looking.done():
            if self._looking is not None and time.monotonic() - self._looked_at < LOOK_AGAIN_S:
                return
            self._looking = self._thread.submit(self.look_now)
        with contextlib.suppress(TimeoutError):
            self._looking.result(patience_s)

    def look_now(self) -> str:
        """The mark of index and figures, as they are now, or were half a look ago."""
        with self._lock:
            if time.monotonic() - self._looked_at >= LOOK_AGAIN_S:
                self.index.refresh(LOOK_S)
                self.figures.look()
                self._looked_at = time.monotonic()
        return self.mark()

    def mark(self) -> str:
        return f"{self.index.mark()}-{self.figures.mark()}"

    def close(self) -> None:
        self.live.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.index.close()

    def run(self, run_id: str) -> Run:
        """The run with exactly this id, in pipeline-current/ or pipeline-complete/.

        Raises:
            HTTPException: 404: there is none.
        """
        if re.fullmatch(r"\d{8}-\d{6}-[A-Za-z0-9._-]{1,120}", run_id):
            for place, folder in (("current", self.root.current), ("complete", self.root.complete)):
                path = folder / run_id
                if path.is_dir() and not path.is_symlink():
                    return Run(path, place)
        raise HTTPException(404, f"no run {run_id[:120]!r}")
