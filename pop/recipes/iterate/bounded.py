"""What could take for ever, held to limits: regular expressions and schemas in a process of their own, and commands.

A pattern that can only repeat one thing, over a short text, is searched for at once; so are schemas without patterns checked.

A command runs without a shell in a process group that is ended as a whole, however it ends, with an environment without keys.
It may print what it likes: the last `KEPT` bytes are kept. `python -m pop.recipes.iterate.bounded` is the process that searches.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SEARCH_S = 2.0  # of processor time for one search: a pattern that backtracks for ever is a mistake of the criterion
PATIENCE_S = 60.0  # whatever else the machine has to do
SHORT = 10_000  # characters that even a search of quadratic cost is soon through with
_PATTERNS = frozenset({"pattern", "patternProperties", "format", "$ref", "$dynamicRef"})  # what makes a schema search
KEPT = 64 * 1024
GRACE_S = 1.0  # between TERM and KILL
LAST_WORDS_S = 1.0  # for what lies in the pipe of a command that has ended
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


class TooLong(Exception):
    """It did not end in time."""


class Searcher:
    """Searches in a process of its own, which is started when it is first needed and is replaced when it hangs.

    Args:
        limit_s: Processor time for one question.
    """

    def __init__(self, limit_s: float = SEARCH_S) -> None:
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._knows_schemas = False

    def search(self, pattern: str, flags: int, text: str) -> tuple[int, str] | None:
        """The line (from 1) and the words of the first match.

        Raises:
            TooLong: It did not end in time.
        """
        if len(text) <= SHORT and is_plain(pattern):
            return _searched(pattern, flags, text)
        found = self._ask({"pattern": pattern, "flags": flags, "text": text}).get("found")
        return (int(found[0]), str(found[1])) if found else None

    def schema_problems(self, value: Any, schema: dict[str, Any]) -> list[str]:
        """As `parsing.schema_problems` says it; a schema's `pattern` may backtrack for ever as well.

        Raises:
            TooLong: It did not end in time.
        """
        if not _PATTERNS & set(_keys(schema)):
            from pop.parsing import schema_problems

            return schema_problems(value, schema)
        if not self._knows_schemas:  # what it takes to load is not the schema's time
            self._ask({"schema": {}, "value": None}, limit_s=PATIENCE_S)
            self._knows_schemas = True
        return list(self._ask({"schema": schema, "value": value})["problems"])

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            self._process, self._knows_schemas = None, False

    def _ask(self, question: dict[str, Any], limit_s: float | None = None) -> dict[str, Any]:
        process = self._process = self._process or _started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            answer = _line(process, self._limit_s if limit_s is None else limit_s)
        except BrokenPipeError:
            answer = b""
        except TooLong:
            self.close()
            raise
        if not answer:  # out of memory, say
            self.close()
            raise TooLong
        found: dict[str, Any] = json.loads(answer)
        return found


def is_plain(pattern: str) -> bool:
    """Whether it repeats at most one thing, no group, and hardly chooses: then a short text cannot keep it busy."""
    repeats = re.findall(r"[*+{]|(?<!\()\?", pattern)
    return len(repeats) <= 1 and pattern.count("|") <= 3 and not re.search(r"\)\s*[*+{]|\\[1-9]|\(\?P=", pattern)


def _searched(pattern: str, flags: int, text: str) -> tuple[int, str] | None:
    match = re.search(pattern, text, flags)
    return (text.count("\n", 0, match.start()) + 1, match[0][:200]) if match else None


def _keys(schema: Any) -> Iterator[str]:
    """Every key in it, at any depth."""
    if isinstance(schema, dict):
        yield from schema
        schema = list(schema.values())
    for part in schema if isinstance(schema, list) else ():
        yield from _keys(part)


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "pop.recipes.iterate.bounded"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    if _line(process, PATIENCE_S) != b"ready":
        process.kill()
        raise OSError("the process that searches did not start")
    return process


def _line(process: subprocess.Popen[bytes], limit_s: float) -> bytes:
    """One line of what it says, without its end; nothing where it has ended.

    Raises:
        TooLong: It has used that much processor time, or `PATIENCE_S` are over.
    """
    assert process.stdout is not None
    found = b""
    before: float | None = None
    give_up = time.monotonic() + PATIENCE_S
    while not found.endswith(b"\n"):
        if not _ready(process.stdout.fileno(), 0.1):
            used = _used_s(process)  # counted from the first time we had to wait: looking costs more than most searches
            before = used if before is None else before
            if used - before >= limit_s or time.monotonic() >= give_up:
                raise TooLong
            continue
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            return b""
        found += data
    return found[:-1]


def _used_s(process: subprocess.Popen[bytes]) -> float:
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _serve() -> None:
    """Answer questions, a line each, until nobody asks any more."""
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        question = json.loads(line)
        if "schema" in question:
            from pop.parsing import schema_problems

            answer: dict[str, Any] = {"problems": schema_problems(question["value"], question["schema"])}
        else:
            answer = {"found": _searched(question["pattern"], question["flags"], question["text"])}
        print(json.dumps(answer), flush=True)


@dataclass(frozen=True)
class Ended:
    """How a command ended. `code`: None when its time was over, or it could not be started (`said` tells why)."""

    code: int | None
    seconds: float
    said: str
    timed_out: bool = False


def run_command(command: str, folder: Path, within_s: float) -> Ended:
    """Run a command in a folder; what it started has ended when this returns."""
    began = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    try:
        process = subprocess.Popen(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError, IndexError) as error:
        return Ended(None, 0.0, f"it cannot be run: {getattr(error, 'strerror', None) or error}")
    kept = bytearray()
    timed_out = True
    try:
        timed_out = not _until_ended(process, kept, began + within_s)
    finally:
        _end_group(process)
    _drain(process, kept, time.monotonic() + LAST_WORDS_S)
    assert process.stdout is not None
    process.stdout.close()
    said = bytes(kept).decode("utf-8", "replace")
    return Ended(None if timed_out else process.returncode, time.monotonic() - began, said, timed_out)


def _until_ended(process: subprocess.Popen[bytes], kept: bytearray, until: float) -> bool:
    """Whether it ended in time; reads meanwhile."""
    assert process.stdout is not None
    open_still = True
    while process.poll() is None:
        left = until - time.monotonic()
        if left <= 0:
            return False
        if open_still:
            open_still = _read(process.stdout.fileno(), kept, min(left, 0.05))
        else:
            time.sleep(min(left, 0.01))
    return True


def _drain(process: subprocess.Popen[bytes], kept: bytearray, until: float) -> None:
    """What is still in the pipe; somebody who left the group may hold it open."""
    assert process.stdout is not None
    while time.monotonic() < until and _read(process.stdout.fileno(), kept, 0.0):
        if not _ready(process.stdout.fileno(), 0.0):
            return


def _read(descriptor: int, kept: bytearray, wait_s: float) -> bool:
    """Whether more may come."""
    if not _ready(descriptor, wait_s):
        return True
    data = os.read(descriptor, 1 << 16)
    kept += data
    del kept[:-KEPT]
    return bool(data)


def _ready(descriptor: int, wait_s: float) -> bool:
    poll = select.poll()  # select(2) knows no descriptor above 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """TERM, a second, KILL for what is left of the group, and reap its leader."""
    give_up = time.monotonic() + GRACE_S
    there = _signal(process.pid, signal.SIGTERM)
    while there and time.monotonic() < give_up:
        time.sleep(0.01)
        process.poll()
        there = _signal(process.pid, 0)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    _serve()
