"""The folder that `pop iterate generate` writes: whole at first, later file by file, never over what a person edited.

DIR/.generated.json   what was written: the sha256 of each file. One whose sha256 is another was edited: it stays,
                      and the new text goes beside it as <name>.new.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

from pydantic import Field, ValidationError

from pop.errors import PopError, RootError, UsageError
from pop.recipes.iterate.targets import RECORD
from pop.records import BadJson, Record, dump_json, read_json
from pop.store import Disk, NotAFile, contained, read_regular

MAX_BYTES = 100_000_000


class Generated(Record):
    """.generated.json. `base`: the folder the targets were found in, relative to this one where it stands above it.
    `targets`: what `--targets` said. `files`: sha256 by path."""

    schema_version: int = 1
    workflow: str
    source: str
    base: str
    targets: list[str] = Field(default_factory=list)
    created_at: str
    pop_version: str
    files: dict[str, str] = Field(default_factory=dict)

    def base_of(self, folder: Path) -> Path:
        """Where the targets lie, for the generated `folder`."""
        return (folder / self.base).resolve()


@dataclass
class Written:
    """What became of the files: `beside` tells for an edited one where the new text went; `left` were edited, and are
    not made any more."""

    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def base_for(folder: Path, base: Path) -> str:
    """How .generated.json calls the base."""
    inner, outer = folder.resolve(), base.resolve()
    return os.path.relpath(outer, inner) if inner.is_relative_to(outer) else str(outer)


def read_generated(folder: Path) -> Generated | None:
    """The record of a generated folder; None where it is none.

    Raises:
        RootError: The record cannot be read.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return None
    try:
        return Generated.model_validate(read_json(read_regular(path, max_bytes=MAX_BYTES)))
    except (BadJson, NotAFile, ValidationError):
        hint = "without it nobody knows which files were edited: move the folder away, and generate anew"
        raise RootError("cannot be read", where=path, hint=hint, code="bad-record") from None


def check_folder(folder: Path) -> Generated | None:
    """The record of the folder, when it may be written to; None where it is empty or not there.

    Raises:
        UsageError: It is a file, or holds something else.
        RootError: Its record cannot be read.
    """
    if not os.path.lexists(folder):
        return None
    if not folder.is_dir():
        raise UsageError("is no folder", where=f"--output {folder}", hint="name a folder, or none that is there")
    record = read_generated(folder)
    if record is None and any(folder.iterdir()):
        hint = "say with --output where to: a folder that is empty, not there yet, or was generated"
        message = "the folder is not empty, and `pop iterate generate` did not make it"
        raise UsageError(message, where=f"--output {folder}", hint=hint, code="not-ours")
    return record


def write_folder(
    folder: Path, files: Mapping[str, bytes], record: Generated, progress: Callable[[int], None] | None = None
) -> Written:
    """Write the files by their path in the folder, and the record. A new folder appears whole.

    Raises:
        PopError: A path crosses a symbolic link, or somebody else was faster.
    """
    before = check_folder(folder)
    if before is None:
        return _appear(folder, files, record, progress)
    return _update(folder, files, record, before, progress)


def _appear(
    folder: Path, files: Mapping[str, bytes], record: Generated, progress: Callable[[int], None] | None
) -> Written:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name[:40]}.{token_hex(4)}.new"
    done = Written()
    try:
        draft.mkdir()
        for name, data in files.items():
            _put(draft / name, data)
            done.written.append(name)
            if progress:
                progress(len(done.written))
        _put(draft / RECORD, _as_bytes(record, {name: _sha(data) for name, data in files.items()}))
        os.rename(draft, folder)
    except OSError as error:
        if folder.is_dir() and any(folder.iterdir()):
            raise RootError("the folder has been made meanwhile", where=folder, hint="start again") from None
        raise error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return done


def _update(
    folder: Path,
    files: Mapping[str, bytes],
    record: Generated,
    before: Generated,
    progress: Callable[[int], None] | None,
) -> Written:
    paths = {name: _inside(folder, name) for name in files}
    done, known = Written(), dict[str, str]()
    for number, (name, data) in enumerate(files.items()):
        known[name] = new = _sha(data)
        now, then = _sha_of(paths[name]), before.files.get(name)
        if now == new:
            done.unchanged.append(name)
        elif now is None or now == then:
            _put(paths[name], data)
            done.written.append(name)
        elif new == then:  # what generate has to say has not changed since
            done.kept.append(name)
            known |= {other: sha for other, sha in before.files.items() if other.startswith(f"{name}.new")}
        else:
            place = _beside(folder, name, before)
            _put(_inside(folder, place), data)
            known[place] = new
            done.beside[name] = place
        if progress:
            progress(number + 1)
    for name in sorted(set(before.files) - set(known)):
        _forget(folder, name, before.files[name], done)
    _put(folder / RECORD, _as_bytes(record, known))
    return done


def _forget(folder: Path, name: str, then: str, done: Written) -> None:
    """Remove a file that is not made any more, when nobody edited it."""
    path = _inside(folder, name)
    now = _sha_of(path)
    if now is None:
        return
    if now != then:
        done.left.append(name)
        return
    path.unlink()
    done.removed.append(name)
    for above in path.parents:
        if above == folder or any(above.iterdir()):
            return
        above.rmdir()


def _beside(folder: Path, name: str, before: Generated) -> str:
    """Where a new version of an edited file goes: ``<name>.new``, or a number more where that is edited too."""
    names = [f"{name}.new{number if number > 1 else ''}" for number in range(1, 100)]
    for place in names:
        now = _sha_of(_inside(folder, place))
        if now is None or now == before.files.get(place):
            return place
    return f"{name}.new-{token_hex(4)}"


def _inside(folder: Path, name: str) -> Path:
    try:
        return contained(folder, name)
    except NotAFile as error:
        hint = "generate writes only below its folder: move the link away"
        raise RootError(error.message, where=folder, hint=hint, code="outside") from None


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Disk(durable=False).put(path, data, durable=False)
    path.chmod(0o644)


def _as_bytes(record: Generated, files: Mapping[str, str]) -> bytes:
    return dump_json(record.model_copy(update={"files": dict(files)}).model_dump(mode="json"))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha_of(path: Path) -> str | None:
    """Of what is there; None where nothing is. Something that is no file counts as edited."""
    try:
        return _sha(read_regular(path, max_bytes=MAX_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, PopError):
        return ""
