"""Answers to a gate: by command, by decision.json, by a file whose name says it. The first one counts.

decision.json is linked to its name, never renamed onto it, so that nobody can replace it. What looks like an answer and
is none is told in decision.problem.json; links, pipes, folders and what somebody may still be writing never count.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import ValidationError

from pop.errors import PopError, UsageError, did_you_mean, safe
from pop.events import rfc3339
from pop.gatepage import FILES
from pop.gateshow import Shown
from pop.records import BadJson, Record, dump_json, read_json
from pop.store import Disk, NotAFile, open_regular, read_regular, rename_noreplace, write_all

Decision = Literal["approve", "reject", "request-changes"]
DECISIONS: tuple[str, ...] = get_args(Decision)
MAX_TEXT_BYTES = 65_536
MAX_DECISION_BYTES = 8 * MAX_TEXT_BYTES  # the text, escaped
STILL_S = 1.0  # how long a file must not have changed to be an answer
PATIENCE_S = 2.0  # how long a decision.json may be half written

_NEAR = re.compile(
    r"(approved?|reject(?:ed)?|changes?|request[-_]changes|decision)((?:\.[a-z]{1,8}){0,2})", re.IGNORECASE
)


class Answer(Record):
    """What a person decided. `how`: ``command``, ``dashboard``, ``decision.json``, ``file APPROVE``, ``timeout``."""

    decision: Decision
    by: str
    at: str
    how: str
    text: str | None = None


class Opened(Record):
    """gate.json: what the gate is about. `sources` are the hashes of the outputs that were copied."""

    schema_version: Literal[1] = 1
    instance: str
    kind: str
    title: str
    opening: int
    options: list[str]
    expires_at: float | None = None
    sources: dict[str, str]
    shown: list[Shown]
    notes: list[str]


class GateNotOpen(UsageError):
    """Nothing is asked there."""

    code = "gate-not-open"


class AlreadyAnswered(UsageError):
    """Somebody was first. `answer` is theirs, where it can be read."""

    code = "already-answered"

    def __init__(self, gate: str, answer: Answer | None) -> None:
        self.answer = answer
        if answer is None:
            hint = "a running daemon sets it aside after two seconds; or remove it, and answer once more"
            super().__init__(f"{gate} has a decision.json that is no answer", hint=hint)
            return
        said = f": {safe(answer.text, 200, one_line=True)}" if answer.text else ""
        by = safe(answer.by, 80, one_line=True)
        super().__init__(f"{gate} was answered already: {answer.decision}, by {by} at {answer.at} ({answer.how}){said}")


class _NoAnswer(Exception):
    """Something that looks like an answer is none; `hint` is the next move."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def opened(gate_dir: Path) -> Opened | None:
    """What the gate in this folder is about; None when it was never opened."""
    try:
        return Opened.model_validate(read_json(read_regular(gate_dir / "gate.json", max_bytes=16 * 2**20)))
    except (OSError, NotAFile, BadJson, ValidationError):
        return None


# -- giving one ------------------------------------------------------------------------------------------------------


def give_answer(disk: Disk, gate_dir: Path, decision: Decision, *, by: str, how: str, text: str | None = None) -> Path:
    """Answer a gate; returns the file that was written. A file that somebody dropped before counts as an answer.

    Raises:
        GateNotOpen: Nothing is asked there.
        AlreadyAnswered: Somebody was first; says who and when.
        UsageError: This gate does not take this decision, or it needs a text, or the text is too long.
    """
    about = opened(gate_dir)
    if about is None:
        raise GateNotOpen(f"{gate_dir.name} is not open", where=gate_dir, hint="pop show tells what a run waits for")
    text = text.strip() or None if text else None
    try:
        _check(decision, text, about.options)
    except _NoAnswer as problem:
        raise UsageError(f"{gate_dir.name}: {problem}", hint=problem.hint) from None
    path = gate_dir / "decision.json"
    answer = Answer(decision=decision, by=by, at=rfc3339(time.time()), how=how, text=text)
    _answer_by_file(disk, gate_dir, about, time.time())
    if not _link(disk, path, answer):
        raise AlreadyAnswered(gate_dir.name, answer_of(gate_dir))
    return path


def _check(decision: str, text: str | None, options: list[str]) -> None:
    if decision not in options:
        raise _NoAnswer(f"{decision} is no answer here", f"it takes {' or '.join(options)}")
    if decision == "request-changes" and not (text and text.strip()):
        raise _NoAnswer("request-changes without a text", "say what is to be done otherwise")
    if text and len(text.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        raise _NoAnswer(f"a text of more than {MAX_TEXT_BYTES // 1024} kB", "say it in fewer words")


def _link(disk: Disk, path: Path, answer: Answer) -> bool:
    """Give the answer its fixed name; False when that is taken."""
    draft = path.with_name(f".decision.{os.getpid()}.{secrets.token_hex(8)}.tmp")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(fd, dump_json(answer.model_dump()))
            disk.sync(fd)
        finally:
            os.close(fd)
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
    finally:
        draft.unlink(missing_ok=True)
    disk.sync_folder(path.parent)
    return True


def answer_of(gate_dir: Path) -> Answer | None:
    """The answer that stands in decision.json; None when there is none, or what stands there is none."""
    with contextlib.suppress(OSError, _NoAnswer):
        return _decision(gate_dir, list(DECISIONS))
    return None


# -- finding an answer ---------------------------------------------------------------------------------------------


def find_answer(disk: Disk, gate_dir: Path, now: float) -> Answer | None:
    """The answer that has come, or None. Only the supervisor calls it.

    A file made by hand becomes decision.json first. A decision.json that is none is set aside, after two seconds in
    which it may be half written; decision.problem.json tells why. Links, pipes and folders never count.
    """
    about = opened(gate_dir)
    options = about.options if about else list(DECISIONS)
    for _ in range(2):
        try:
            answer = _decision(gate_dir, options)
        except FileNotFoundError:
            if not _answer_by_file(disk, gate_dir, about, now, told=True):
                return None
            continue
        except (OSError, _NoAnswer) as problem:
            _refuse(disk, gate_dir, problem, now)
            return None
        (gate_dir / "decision.problem.json").unlink(missing_ok=True)
        return answer
    return None


def _decision(gate_dir: Path, options: list[str]) -> Answer:
    """decision.json, whoever wrote it.

    Raises:
        FileNotFoundError: There is none.
        _NoAnswer: It is no answer to this gate.
    """
    try:
        data, info = _read(gate_dir / "decision.json", MAX_DECISION_BYTES)
        value = read_json(data)
    except (NotAFile, BadJson) as error:
        raise _NoAnswer(error.message, error.hint or _EXAMPLE) from None
    if not isinstance(value, dict):
        raise _NoAnswer("it holds no JSON object", _EXAMPLE)
    unknown = sorted(set(value) - set(Answer.model_fields))
    if unknown:
        raise _NoAnswer(f"the key {unknown[0][:80]!r} is unknown", did_you_mean(unknown[0], Answer.model_fields))
    decision = value.get("decision")
    if decision not in DECISIONS:
        hint = did_you_mean(decision[:80].lower(), DECISIONS) if isinstance(decision, str) else _EXAMPLE
        raise _NoAnswer(f"no decision {str(decision)[:80]!r}" if decision else "it holds no decision", hint)
    given = {name: text for name, text in value.items() if text is not None}
    known = {"by": owner(info.st_uid), "at": rfc3339(info.st_mtime), "how": "decision.json"}
    try:
        answer = Answer.model_validate({**known, **given}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise _NoAnswer(f"{first['loc'][0]}: {first['msg'].lower()}", _EXAMPLE) from None
    _check(answer.decision, answer.text, options)
    return answer


_EXAMPLE = 'e.g. {"decision": "approve"}'


def _refuse(disk: Disk, gate_dir: Path, problem: Exception, now: float) -> None:
    """Set aside a decision.json that is no answer, unless somebody may still write it."""
    path = gate_dir / "decision.json"
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISREG(info.st_mode) and abs(now - info.st_mtime) < PATIENCE_S:
        return
    reason = (problem.strerror or str(problem)) if isinstance(problem, OSError) else str(problem)
    _tell(disk, gate_dir, "decision.json", reason, getattr(problem, "hint", None), _free(path).name)
    aside = _aside(path)
    if os.lstat(aside).st_ino != info.st_ino:  # another one took its place at the last instant
        with contextlib.suppress(OSError):
            os.link(aside, path, follow_symlinks=False)
            aside.unlink()


def set_aside(disk: Disk, gate_dir: Path, error: PopError) -> None:
    """Undo an answer that cannot be carried out (an edited copy that is no JSON): the gate stays open.

    The file that a person made moves away first, or it would be the next answer.
    """
    answer, path = answer_of(gate_dir), gate_dir / "decision.json"
    name = answer.how.removeprefix("file ") if answer and answer.how.startswith("file ") else path.name
    said = error.message + (f" ({error.where})" if error.where else "")
    _tell(disk, gate_dir, name, said, error.hint, _free(path).name)
    if name in FILES.values() and os.path.lexists(gate_dir / name):
        _aside(gate_dir / name)
    if os.path.lexists(path):
        _aside(path)
    disk.sync_folder(gate_dir)


def _free(path: Path) -> Path:
    """``<stem>.invalid-<n><suffix>``, the first that is free."""
    stem, suffix = (path.stem, path.suffix) if path.suffix == ".json" else (path.name, "")
    number = 1
    while os.path.lexists(path.with_name(f"{stem}.invalid-{number}{suffix}")):
        number += 1
    return path.with_name(f"{stem}.invalid-{number}{suffix}")


def _aside(path: Path) -> Path:
    """Move something to a name that says it counts for nothing."""
    while True:
        target = _free(path)
        with contextlib.suppress(FileExistsError):
            rename_noreplace(path, target)
            return target


def _tell(disk: Disk, gate_dir: Path, name: str, problem: str, hint: str | None, aside: str | None = None) -> None:
    """Write decision.problem.json, when it does not stand there yet."""
    told = {"file": name, "problem": safe(problem, 2000), "hint": hint, "set_aside": aside}
    data, path = dump_json(told), gate_dir / "decision.problem.json"
    try:
        if read_regular(path, max_bytes=MAX_TEXT_BYTES) == data:
            return
    except (OSError, NotAFile):
        pass
    if path.is_dir() and not path.is_symlink():
        _aside(path)
    disk.put(path, data)


def problem_of(gate_dir: Path) -> dict[str, Any] | None:
    """``{"file", "problem", "hint", "set_aside"}``: what is wrong with an answer somebody tried to give, or None."""
    try:
        value = read_json(read_regular(gate_dir / "decision.problem.json", max_bytes=MAX_TEXT_BYTES))
    except (OSError, NotAFile, BadJson):
        return None
    return value if isinstance(value, dict) else None


# -- answers by file -----------------------------------------------------------------------------------------------


class _File(NamedTuple):
    mtime_ns: int
    decision: Decision
    name: str
    text: str | None
    by: str


def _answer_by_file(disk: Disk, gate_dir: Path, about: Opened | None, now: float, *, told: bool = False) -> bool:
    """Turn the oldest of APPROVE, REJECT and CHANGES.md into decision.json; returns whether there is one now.

    Args:
        told: Write down what is wrong with a file that looks like an answer.
    """
    options = about.options if about else list(DECISIONS)
    found, problems = list[_File](), list[tuple[str, _NoAnswer]]()
    for decision, name in _ANSWERS:
        try:
            file = _file(gate_dir, decision, name, now)
            if file:
                _check(decision, file.text, options)
                found.append(file)
        except FileNotFoundError:
            continue
        except (OSError, _NoAnswer) as error:
            problem = error if isinstance(error, _NoAnswer) else _NoAnswer(error.strerror or "cannot be read")
            problems.append((name, problem))
    if not found:
        if told:
            for name, problem in [*problems, *_near_misses(gate_dir)][:1]:
                _tell(disk, gate_dir, name, str(problem), problem.hint)
        return False
    first = min(found, key=lambda file: file.mtime_ns)  # of equals the most careful, which stands first
    answer = Answer(
        decision=first.decision,
        by=first.by,
        at=rfc3339(first.mtime_ns / 1e9),
        how=f"file {first.name}",
        text=first.text,
    )
    _link(disk, gate_dir / "decision.json", answer)
    return True


# The most careful first.
_ANSWERS: tuple[tuple[Decision, str], ...] = (
    ("reject", "REJECT"),
    ("request-changes", "CHANGES.md"),
    ("approve", "APPROVE"),
)


def _file(gate_dir: Path, decision: Decision, name: str, now: float) -> _File | None:
    """An answer by hand; None while somebody may be at it."""
    try:
        data, info = _read(gate_dir / name, MAX_TEXT_BYTES)
    except NotAFile as error:
        raise _NoAnswer(error.message, "put a plain file there") from None
    if -PATIENCE_S < now - info.st_mtime < STILL_S:
        return None
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise _NoAnswer("it is not UTF-8", "save it as UTF-8") from None
    return _File(info.st_mtime_ns, decision, name, text or None, owner(info.st_uid))


def _near_misses(gate_dir: Path) -> Iterator[tuple[str, _NoAnswer]]:
    """Files whose names are almost those of an answer."""
    try:
        names = sorted(os.listdir(gate_dir))
    except OSError:  # somebody removed it
        return
    for name in names:
        match = _NEAR.fullmatch(name)
        if not match or name in FILES.values() or name.startswith(("decision.problem", "decision.invalid")):
            continue
        word = match[1].lower()
        meant = "decision.json" if word == "decision" else FILES[_meant(word)]
        yield name, _NoAnswer(f"a file called {safe(name, 80)} is no answer", f"rename it to {meant}")


def _meant(word: str) -> str:
    """``approved`` means approve, ``changes`` means request-changes."""
    return "approve" if word.startswith("approve") else "reject" if word.startswith("reject") else "request-changes"


def _read(path: Path, max_bytes: int) -> tuple[bytes, os.stat_result]:
    try:
        fd = open_regular(path, max_bytes=max_bytes)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, a device
            raise NotAFile("a special file", where=path) from None
        raise
    with os.fdopen(fd, "rb") as file:
        return file.read(max_bytes), os.fstat(fd)


def owner(uid: int) -> str:
    """The name of a user, or ``uid 1000``."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
