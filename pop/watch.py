"""Hints from the kernel that something happened in pipeline-pending/. A hint saves waiting; the scan is the truth.

One folder is watched, and it is watched anew when somebody replaced it (the kernel follows the old one). When no
watch can be had (limits, odd file systems) the scan alone does the work.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import structlog
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

if sys.platform == "linux":
    from watchdog.observers.inotify import InotifyEmitter, InotifyObserver
    from watchdog.observers.inotify_c import InotifyConstants, Mask

log = structlog.get_logger()


class _Handler(FileSystemEventHandler):
    """Passes the names of changed entries to the event loop. An exception here would end watchdog's thread."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop, hint: Callable[[str], None]) -> None:
        self._folder = os.fsencode(folder)
        self._loop = loop
        self._hint = hint

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in ("created", "moved", "closed"):
            return
        path = os.fsencode(event.dest_path if event.event_type == "moved" else event.src_path)
        if os.path.dirname(path) != self._folder:
            return
        try:
            self._loop.call_soon_threadsafe(self._hint, os.fsdecode(os.path.basename(path)))
        except RuntimeError:  # the loop has closed: the daemon is going down
            return


if sys.platform == "linux":

    class _ArrivalsEmitter(InotifyEmitter):
        """Asks the kernel for arrivals only.

        Each claim moves a seed out of the folder. watchdog holds such an event for half a second, in case the other
        half of a rename follows, and everything behind it waits too.
        """

        def get_event_mask_from_filter(self) -> Mask:
            kinds = (InotifyConstants.IN_MOVED_TO, InotifyConstants.IN_CREATE, InotifyConstants.IN_CLOSE_WRITE)
            return Mask(kinds[0] | kinds[1] | kinds[2] | InotifyConstants.IN_DELETE_SELF)

    class _ArrivalsObserver(InotifyObserver):
        def __init__(self) -> None:
            super().__init__()
            self._emitter_class = _ArrivalsEmitter


def _observer() -> BaseObserver:
    return _ArrivalsObserver() if sys.platform == "linux" else Observer()


class Watch:
    """Watches one folder; call `check` with every scan, `stop` at the end."""

    def __init__(self, folder: Path, hint: Callable[[str], None]) -> None:
        self._folder = folder
        self._handler = _Handler(folder, asyncio.get_running_loop(), hint)
        self._observer: BaseObserver | None = None
        self._held: int | None = None  # the watched folder, kept open so that its inode number is not used again
        self.check()

    def check(self) -> bool:
        """Watch anew when the folder is not the one that is watched; whether that was so."""
        self._folder.mkdir(exist_ok=True)
        if self._held is not None and os.path.samestat(os.fstat(self._held), os.stat(self._folder)):
            return False
        self.stop()
        self._held = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        observer = _observer()
        observer.daemon = True
        try:
            observer.schedule(self._handler, str(self._folder))
            observer.start()
        except OSError as error:
            log.warning("watch.unavailable", error=str(error))
            return True
        self._observer = observer
        return True

    def stop(self) -> None:
        if self._observer:
            self._observer.stop()
            self._observer.join(2.0)
            self._observer = None
        if self._held is not None:
            os.close(self._held)
            self._held = None
