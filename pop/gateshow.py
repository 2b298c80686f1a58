"""What a gate lays before a person: copies of outputs and artifacts, and what becomes of copies that were edited.

| file in the gate's folder  | holds                                                                                 |
|----------------------------|---------------------------------------------------------------------------------------|
| show/<instance>.md, .json  | a copy of the output: a text as it is, anything else as indented JSON                  |
| show/<instance>/...        | copies of its artifacts                                                                |
| edited/<n>                 | what is about to replace a file of a step; gone when that was done                     |
| edits.json                 | the edits that were taken, and where the old versions stand                            |
| edits.diff                 | the same for a reader                                                                  |

An old output stays beside the new one as ``output.before-<gate>.json``, an old artifact in
``artifacts.before-<gate>/``. Until the answer is journaled the recorded hash is that of the old version.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from pop.errors import PopError, UsageError, safe
from pop.records import BadJson, Record, dump_json, read_json
from pop.store import Disk, NotAFile, contained, read_regular, remove_tree

MAX_OUTPUT_BYTES = 64 * 2**20
MAX_ARTIFACT_BYTES = 64 * 2**20
MAX_COPIED_BYTES = 256 * 2**20
MAX_ARTIFACTS = 200
MAX_EDITS_BYTES = 2**20
MAX_DIFF_LINES = 2_000  # between the first and the last line that differ
MAX_DIFF_CHARS = 200_000


class Shown(Record):
    """A copy laid before a person. `path` is relative to the run's folder, `sha256` that of the copy."""

    instance: str
    path: str
    sha256: str


class Edit(Record):
    """A file of a step that a person changed. `path` is relative to the run's folder."""

    instance: str
    path: str
    before_sha256: str
    sha256: str


class BadEdit(UsageError):
    """An edited copy cannot become what it is a copy of."""

    code = "bad-edit"


class _Planned(Record):
    """One line of edits.json: the edit, and where the version before it stands, relative to the run's folder."""

    edit: Edit
    kept: str


class _Source(NamedTuple):
    """What a copy is a copy of: `path` relative to the run's folder, its bytes, and those of the copy as it was laid out."""

    path: str
    data: bytes
    copy: bytes
    artifact: bool


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- laying out ----------------------------------------------------------------------------------------------------


def sources_of(run_dir: Path, instances: list[str]) -> dict[str, str]:
    """The hashes of the outputs that stand there now, by instance; one that has none is left out."""
    found = {}
    for instance in instances:
        with contextlib.suppress(OSError, NotAFile):
            found[instance] = sha256_of(_output(run_dir, instance))
    return found


def lay_out(disk: Disk, run_dir: Path, gate_dir: Path, instances: list[str]) -> tuple[list[Shown], list[str]]:
    """Copy outputs and artifacts into ``show/``; returns the copies, and a sentence about each file that has none.

    Whatever an interrupted call left there is replaced.
    """
    show = gate_dir / "show"
    _clear(show)
    show.mkdir(mode=0o700)
    shown, notes, room = list[Shown](), list[str](), MAX_COPIED_BYTES
    for instance in dict.fromkeys(instances):
        try:
            suffix, data = rendered(_output(run_dir, instance))
        except (FileNotFoundError, NotADirectoryError):
            notes.append(f"{instance} has no output")
            continue
        except (NotAFile, BadJson) as error:
            notes.append(f"the output of {instance} cannot be shown: {error.message}")
            continue
        shown.append(_copy(disk, run_dir, show / f"{instance}{suffix}", instance, data))
        for path, info in _artifacts(run_dir / "tasks" / instance / "artifacts"):
            name = os.path.relpath(path, run_dir / "tasks" / instance / "artifacts")
            if info.st_size > min(room, MAX_ARTIFACT_BYTES) or len(shown) - len(instances) >= MAX_ARTIFACTS:
                notes.append(f"not copied, it is too large or one of too many: {os.path.relpath(path, run_dir)}")
                continue
            try:
                data = read_regular(path, max_bytes=MAX_ARTIFACT_BYTES)
                target = contained(show / instance, name)
            except (FileNotFoundError, NotAFile):  # somebody is changing it
                notes.append(f"not copied: {os.path.relpath(path, run_dir)}")
                continue
            room -= len(data)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shown.append(_copy(disk, run_dir, target, instance, data))
    disk.sync_tree(show)
    disk.sync_folder(gate_dir)
    return shown, notes


def rendered(output: bytes) -> tuple[str, bytes]:
    """The suffix and the bytes of an output's copy.

    Raises:
        BadJson: It is no JSON.
    """
    value = read_json(output, where="output.json")
    if isinstance(value, str):
        return ".md", (value if value.endswith("\n") else f"{value}\n").encode()
    return ".json", dump_json(value)


def _output(run_dir: Path, instance: str) -> bytes:
    return read_regular(contained(run_dir, f"tasks/{instance}/output.json"), max_bytes=MAX_OUTPUT_BYTES)


def _copy(disk: Disk, run_dir: Path, target: Path, instance: str, data: bytes) -> Shown:
    disk.put(target, data, durable=False)  # the whole folder is made durable at the end
    return Shown(instance=instance, path=os.path.relpath(target, run_dir), sha256=sha256_of(data))


def _artifacts(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The regular files below a folder whose names can be written down, in order."""
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            info = os.lstat(path)
            relative = os.path.relpath(path, folder)
            if stat.S_ISREG(info.st_mode) and relative.isprintable() and not name.startswith("."):
                yield path, info


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


# -- taking edits --------------------------------------------------------------------------------------------------


def take_edits(disk: Disk, run_dir: Path, gate_dir: Path, shown: list[Shown], gate: str) -> list[Edit]:
    """Let edited copies become the outputs and artifacts they are copies of; the old versions stay.

    Repeatable: what is to change is written down first (edits.json), so that a copy that is edited once more after a
    crash changes nothing. A copy that was deleted counts as not edited.

    Raises:
        BadEdit: An edited output is no JSON, or the original has changed meanwhile. Then nothing was changed.
    """
    try:
        planned = _read_plan(gate_dir)
        if planned is None:
            planned = _plan(disk, run_dir, gate_dir, shown, gate)
        for number, one in enumerate(planned):
            _apply(disk, run_dir, gate_dir / "edited" / str(number), one)
    except (BadJson, NotAFile, ValidationError) as error:
        raise BadEdit("edits.json cannot be carried out", where=gate_dir, hint=f"remove it: {error}") from None
    except OSError as error:
        if error.errno not in _IN_THE_WAY:
            raise
        raise BadEdit(f"an edit cannot be put in its place: {error.strerror}", where=error.filename2) from None
    with contextlib.suppress(OSError):
        (gate_dir / "edited").rmdir()
    return [one.edit for one in planned]


_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY)


def _read_plan(gate_dir: Path) -> list[_Planned] | None:
    try:
        rows = read_json(read_regular(gate_dir / "edits.json", max_bytes=MAX_EDITS_BYTES))
    except FileNotFoundError:
        return None
    return TypeAdapter(list[_Planned]).validate_python(rows)


def check_edits(run_dir: Path, gate_dir: Path, shown: list[Shown]) -> None:
    """Tell a person who is about to answer that an edit cannot be taken, before they have answered.

    Raises:
        BadEdit: See `take_edits`.
    """
    for _ in _edited(run_dir, gate_dir, shown):
        pass


def _plan(disk: Disk, run_dir: Path, gate_dir: Path, shown: list[Shown], gate: str) -> list[_Planned]:
    planned, staged, diffs = list[_Planned](), list[bytes](), list[str]()
    for copy, source, data in _edited(run_dir, gate_dir, shown):
        before = sha256_of(source.data)
        edit = Edit(instance=copy.instance, path=source.path, before_sha256=before, sha256=sha256_of(data))
        planned.append(_Planned(edit=edit, kept=_kept(run_dir, source, copy.instance, gate)))
        staged.append(data)
        diffs.append(diff(source.path, source.copy, data if source.artifact else rendered(data)[1]))
    if planned:
        _write_plan(disk, gate_dir, planned, staged, "".join(diffs))
    return planned


def _edited(run_dir: Path, gate_dir: Path, shown: list[Shown]) -> Iterator[tuple[Shown, _Source, bytes]]:
    """The copies that were edited, what they are copies of, and what that becomes."""
    for copy in shown:
        edited = _read_copy(run_dir, copy)
        if edited is None or sha256_of(edited) == copy.sha256:
            continue
        source = _source_of(run_dir, gate_dir, copy)
        data = _as_original(copy, source, edited)
        if data != (source.data if source.artifact else dump_json(read_json(source.data))):  # not its layout alone
            yield copy, source, data


def _read_copy(run_dir: Path, copy: Shown) -> bytes | None:
    try:
        return read_regular(contained(run_dir, copy.path), max_bytes=MAX_OUTPUT_BYTES)
    except FileNotFoundError:
        return None
    except NotAFile as error:
        hint = "put a plain file there, or delete it to leave the original as it is"
        raise BadEdit(f"the copy cannot be taken: {error.message}", where=copy.path, hint=hint) from None


def _source_of(run_dir: Path, gate_dir: Path, copy: Shown) -> _Source:
    """The original of a copy, which must still be what the copy was made from."""
    inside = os.path.relpath(copy.path, f"tasks/{gate_dir.name}/show/{copy.instance}")
    artifact = not inside.startswith("..")
    path = f"tasks/{copy.instance}/" + (f"artifacts/{inside}" if artifact else "output.json")
    try:
        data = read_regular(contained(run_dir, path), max_bytes=MAX_OUTPUT_BYTES)
        laid = data if artifact else rendered(data)[1]
    except (OSError, PopError) as error:
        raise BadEdit(f"the original cannot be read: {error}", where=path) from None
    if sha256_of(laid) != copy.sha256:
        hint = f"delete {copy.path} to take what stands in {path} now"
        raise BadEdit("the original has changed since it was copied", where=path, hint=hint)
    return _Source(path, data, laid, artifact)


def _as_original(copy: Shown, source: _Source, edited: bytes) -> bytes:
    """What an edited copy becomes.

    Raises:
        BadEdit: It is no JSON, or no UTF-8.
    """
    if source.artifact:
        return edited
    try:
        if copy.path.endswith(".json"):
            return dump_json(read_json(edited, where=copy.path))
        text = edited.decode("utf-8-sig")
    except BadJson as error:
        hint = f"{error.hint or 'mend it'}, or delete the copy to leave the output as it is; then answer once more"
        raise BadEdit(f"the edited copy is {error.message}", where=error.where, hint=hint) from None
    except UnicodeDecodeError as error:
        message = f"the edited copy is not UTF-8: byte {edited[error.start]:#04x} at offset {error.start}"
        raise BadEdit(message, where=copy.path, hint="save it as UTF-8, then answer once more") from None
    if not str(read_json(source.data)).endswith("\n"):
        text = text.removesuffix("\n")
    return dump_json(text)


def _kept(run_dir: Path, source: _Source, instance: str, gate: str) -> str:
    """Where the old version goes: a name that is free, or holds it already."""
    folder, inside = f"tasks/{instance}", source.path.removeprefix(f"tasks/{instance}/artifacts/")
    number = 1
    while True:
        mark = gate if number == 1 else f"{gate}-{number}"
        name = (
            f"{folder}/artifacts.before-{mark}/{inside}" if source.artifact else f"{folder}/output.before-{mark}.json"
        )
        try:
            if read_regular(run_dir / name, max_bytes=MAX_OUTPUT_BYTES) == source.data:
                return name
        except FileNotFoundError:
            return name
        except (OSError, NotAFile):
            pass
        number += 1


def _write_plan(disk: Disk, gate_dir: Path, planned: list[_Planned], staged: list[bytes], text: str) -> None:
    folder = gate_dir / "edited"
    _clear(folder)
    folder.mkdir(mode=0o700)
    for number, data in enumerate(staged):
        disk.put(folder / str(number), data, folder=False)
    disk.sync_folder(folder)
    disk.put(gate_dir / "edits.diff", text.encode(), folder=False)
    disk.put(gate_dir / "edits.json", dump_json([one.model_dump() for one in planned]))


def _apply(disk: Disk, run_dir: Path, staged: Path, one: _Planned) -> None:
    if not staged.exists():  # it has its place already
        return
    source, kept = contained(run_dir, one.edit.path), contained(run_dir, one.kept)
    _make_parents(disk, kept.parent)
    with contextlib.suppress(FileExistsError, FileNotFoundError):  # kept already; somebody removed the original
        os.link(source, kept)
    disk.sync_folder(kept.parent)  # before the rename, so that no power cut takes both versions
    os.rename(staged, source)
    disk.sync_folder(source.parent)


def _make_parents(disk: Disk, folder: Path) -> None:
    if not folder.is_dir():
        _make_parents(disk, folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        disk.sync_folder(folder.parent)


def diff(path: str, before: bytes, after: bytes) -> str:
    """A unified diff for a reader; where the two are no texts, or differ at length, a sentence instead."""
    try:
        old, new = (safe(data.decode("utf-8"), len(data)).split("\n") for data in (before, after))
    except UnicodeDecodeError:
        return f"{path}: {len(before)} bytes before, {len(after)} after\n"
    head = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    most = min(len(old), len(new)) - head
    tail = next((n for n in range(most) if old[-1 - n] != new[-1 - n]), most)
    if max(len(old), len(new)) - head - tail > MAX_DIFF_LINES:
        return f"{path}: too much for a diff: {len(old)} lines before, {len(new)} after\n"
    start, old_end, new_end = max(0, head - 3), len(old) - tail + 3, len(new) - tail + 3
    lines = difflib.unified_diff(old[start:old_end], new[start:new_end], f"{path} (before)", path, lineterm="")
    text = "\n".join(_moved(line, start) for line in lines)
    if len(text) > MAX_DIFF_CHARS:
        return f"{text[:MAX_DIFF_CHARS]}\n... the rest is cut\n"
    return f"{text}\n"


def _moved(line: str, by: int) -> str:
    """A line of a diff of texts whose first `by` lines were left out."""
    if not line.startswith("@@ "):
        return line
    return re.sub(r"([-+])(\d+)", lambda match: f"{match[1]}{int(match[2]) + by}", line)
