"""Forms that may be sent twice: each carries a mark, and what it did is done once and shown again.

A form that was changed on the way back (another text, another file) is another act.

The marks are kept in memory, the newest thousand. After a restart of the server a form that is sent again is a new act:
orders are the same files, an answer is told that it was given already, and a seed is another seed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData, UploadFile

from pop.errors import UsageError

KEPT = 1000


@dataclass(frozen=True)
class DoneRow:
    """What an act upon many things came to for one of them: its file, or why there is none."""

    name: str
    address: str | None
    file: str | None
    note: str | None = None
    failed: bool = False


@dataclass(frozen=True)
class Done:
    """What an act came to: a sentence, the file it wrote (relative to the root) or what it did to each, and where to go on."""

    title: str
    file: str | None
    note: str | None = None
    links: tuple[tuple[str, str], ...] = ()
    rows: tuple[DoneRow, ...] = ()


@dataclass
class _Mark:
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: Done | None = None


class Marks:
    """What was done, by the mark of its form and what it held."""

    def __init__(self) -> None:
        self._marks: OrderedDict[str, _Mark] = OrderedDict()
        self._lock = threading.Lock()

    def do(self, name: str, act: Callable[[], Done]) -> str:
        """Do it, unless that was done; returns where it is shown. What fails may be tried again."""
        with self._lock:
            mark = self._marks.setdefault(name, _Mark())
            self._marks.move_to_end(name)
            while len(self._marks) > KEPT:
                self._marks.popitem(last=False)
        with mark.lock:  # the second of two at once waits for the first
            mark.done = mark.done or act()
        return f"/acted/{name}"

    def done(self, name: str) -> Done | None:
        mark = self._marks.get(name)
        return mark.done if mark else None


_MARKS = "marks"


def marks_of(request: Request) -> Marks:
    """The marks of a server."""
    state = request.app.state
    if not hasattr(state, _MARKS):
        setattr(state, _MARKS, Marks())
    found: Marks = state.marks
    return found


def new_mark() -> str:
    return secrets.token_hex(8)


def done_once(request: Request, fields: Fields, act: Callable[[], Done]) -> RedirectResponse:
    """The answer to a form: where what it did is shown.

    Raises:
        UsageError: The form has no mark.
    """
    mark = fields.one("once")
    if not re.fullmatch("[0-9a-f]{16}", mark):
        raise UsageError("this form has no mark", where="once", hint="reload the page, then send it again")
    return RedirectResponse(marks_of(request).do(f"{mark}{fields.digest()}", act), 303)


class Fields:
    """The fields of a form, as texts, with the line ends of files."""

    def __init__(self, form: FormData) -> None:
        self._form = form

    def one(self, name: str) -> str:
        """The text of a field; "" where there is none."""
        return next(iter(self.all(name)), "")

    def all(self, name: str) -> list[str]:
        """The texts of a field that stands several times."""
        return [value.replace("\r\n", "\n") for value in self._form.getlist(name) if isinstance(value, str)]

    def with_prefix(self, prefix: str) -> dict[str, str]:
        """The fields whose names begin so, without that beginning."""
        return {name.removeprefix(prefix): self.one(name) for name in self._form if name.startswith(prefix)}

    def files(self, name: str) -> list[UploadFile]:
        """The files of a field."""
        found = [value for value in self._form.getlist(name) if isinstance(value, UploadFile)]
        return [value for value in found if value.filename]

    def digest(self) -> str:
        """Of all that was filled in and sent along."""
        found = hashlib.sha256()
        for name, value in self._form.multi_items():
            if isinstance(value, str):
                found.update(f"{name}={len(value)}:{value}\n".encode("utf-8", "replace"))
                continue
            found.update(f"{name}={value.filename}:".encode("utf-8", "replace"))
            while piece := value.file.read(2**20):
                found.update(piece)
            value.file.seek(0)
        return found.hexdigest()[:16]


async def posted(request: Request) -> Any:
    """The fields of a form that was sent; for small ones (the guard bounds them)."""
    async with request.form(max_files=1, max_fields=2000) as form:
        yield Fields(form)
