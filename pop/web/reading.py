"""Reads files of a root for the API: bounded, contained, and never failing on what somebody wrote by hand."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import orjson
from fastapi import Depends, HTTPException, Request
from fastapi import Path as PathParameter
from pydantic import ValidationError

from pop.errors import PopError, did_you_mean
from pop.records import BadJson, Record, deeper_than, printable, read_json
from pop.runs import Run
from pop.settings import Root
from pop.store import NotAFile, contained, open_regular, read_regular
from pop.web.shapes import File, Problem
from pop.web.site import Site

PREFIX = "/api"
MOST_ROWS = 1000
MOST_NAMES = 1000
PIECE_BYTES = 2**20
MOST_LINE_BYTES = 64 * 2**20
MOST_VALUE_BYTES = 2**20
MOST_DEPTH = 200  # of JSON that is passed on: pydantic writes no more than 255
R = TypeVar("R", bound=Record)


def refuse_unknown_parameters(request: Request) -> None:
    """A parameter that is misspelt would change nothing.

    Raises:
        UnknownParameter: It is none of the route's.
    """
    paths = request.app.openapi()["paths"]
    described = paths.get(PREFIX + request.scope["route"].path_format, {}).get(request.method.lower(), {})
    known = {one["name"] for one in described.get("parameters", ()) if one["in"] == "query"}
    for name in request.query_params:
        if name not in known:
            raise UnknownParameter(f"no parameter {name[:80]!r}", where="query", hint=did_you_mean(name[:80], known))


class UnknownParameter(PopError):
    """It stands in no description."""

    code = "unknown-parameter"


def site_of(request: Request) -> Site:
    """The root that is served."""
    site: Site = request.app.state.site
    return site


ASite = Annotated[Site, Depends(site_of)]


def run_of(site: ASite, run_id: Annotated[str, PathParameter(max_length=200)]) -> Run:
    """The run with exactly this id."""
    return site.run(run_id)


ARun = Annotated[Run, Depends(run_of)]


def relative(root: Root, path: Path) -> str:
    """A path as the API tells it."""
    return printable(os.path.relpath(path, root.path))


def stamp(*paths: Path) -> str:
    """Another text when one of these files changed, or one that lies in one of these folders; the same in every process."""
    found = hashlib.sha256()
    for path in paths:
        for one in [path, *names_in(path)]:
            try:
                info = os.stat(one)
                about = f"{info.st_mtime_ns}.{info.st_size}.{info.st_ino}"
            except OSError:
                about = "-"
            found.update(f"{os.fspath(one)}\0{about}\n".encode("utf-8", "replace"))
    return found.hexdigest()[:12]


def mark_of(run: Run) -> str:
    """Where the run stands: its journal's size, and when its status was written."""
    parts = []
    for name in ("events.jsonl", "tasks-status.json"):
        try:
            info = os.stat(run.path / name)
        except OSError:
            parts.append("-")
        else:
            parts.append(f"{info.st_size:x}" if name == "events.jsonl" else f"{info.st_mtime_ns:x}")
    return "-".join(parts)


def digest(value: Any) -> str:
    """Of what a page shows, by how that is written; the same in every process."""
    return hashlib.sha256(repr(value).encode("utf-8", "replace")).hexdigest()[:12]


def inside(base: Path, name: str) -> Path:
    """A file or folder below a folder, which exists.

    Raises:
        HTTPException: 404: it does not, or the name leads elsewhere.
    """
    try:
        path = contained(base, name)
        if os.path.lexists(path):
            return path
    except (PopError, OSError, ValueError):  # a name that no file can have
        pass
    raise HTTPException(404, f"no file {name[:120]!r}")


def problem(error: PopError) -> Problem:
    return Problem.model_validate(error.to_json())


def names_in(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder by name, without drafts."""
    try:
        with os.scandir(folder) as entries:
            yield from sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)
    except OSError:
        return


def listed(base: Path, folder: Path) -> tuple[list[File], bool]:
    """What lies in a folder, and whether more does than is told."""
    found: list[File] = []
    for entry in names_in(folder):
        if len(found) == MOST_NAMES:
            return found, True
        try:
            info = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder"}
        kind: Any = kinds.get(stat.S_IFMT(info.st_mode), "other")
        path = printable(os.path.relpath(entry.path, base))
        found.append(File(path=path, kind=kind, size=info.st_size, modified_at=info.st_mtime))
    return found, False


def files_below(folder: Path) -> list[str]:
    """The paths of the files below a folder, at most 1,000 of them."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        found += [printable(os.path.relpath(os.path.join(parent, name), folder)) for name in sorted(files)]
        if len(found) >= MOST_NAMES:
            return found[:MOST_NAMES]
    return found


def value_in(path: Path, most: int = MOST_VALUE_BYTES) -> Any:
    """The JSON of a file; None where there is none, or too much of it."""
    try:
        value = read_json(read_regular(path, max_bytes=most))
        return None if deeper_than(value, MOST_DEPTH) else value
    except (OSError, NotAFile, BadJson):
        return None


def record_in(path: Path, kind: type[R]) -> R | None:
    """A record of a file; None where there is none."""
    value = value_in(path)
    try:
        return None if value is None else kind.model_validate(value)
    except ValidationError:
        return None


def records(rows: list[dict[str, Any]], kind: type[R]) -> list[R]:
    """The rows that are such records: people have editors, and files may be of another version."""
    found = []
    for row in rows:
        try:
            found.append(kind.model_validate(row))
        except ValidationError:
            continue
    return found


def lines(path: Path, offset: int = 0, most: int = MOST_ROWS) -> tuple[list[dict[str, Any]], int, int]:
    """JSON objects, one a line, from an offset on; the offset after the last whole line; the file's size.

    A line that is none, or the rest of one where the offset points into its middle, is passed over.
    """
    try:
        fd = open_regular(path, max_bytes=1 << 62)
    except (OSError, NotAFile):
        return [], 0, 0
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        here = file.seek(min(offset, size))
        found: list[dict[str, Any]] = []
        read = 0
        while len(found) < most and read < PIECE_BYTES:
            line = file.readline(MOST_LINE_BYTES)
            if not line.endswith(b"\n"):
                break
            here += len(line)
            read += len(line)
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(row, dict) and not deeper_than(row, MOST_DEPTH):
                found.append(row)
    return found, here, size


def text_in(path: Path, most: int) -> str | None:
    """A text; None where there is none, or too much of it."""
    try:
        return read_regular(path, max_bytes=most).decode("utf-8", "replace")
    except (OSError, NotAFile):
        return None


def pieces(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    """So many bytes, also where the file grows meanwhile; where it was cut off, the answer ends early.

    The file is closed behind the last one, or by itself where nobody came for the first.
    """
    with file:
        file.seek(offset)
        while length > 0 and (piece := file.read(min(length, PIECE_BYTES // 4))):
            length -= len(piece)
            yield piece
