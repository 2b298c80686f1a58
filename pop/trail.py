"""What a worker writes down while it works: the trail, one readable file per stage, the calls, the log.

Everything lies in the attempt's folder and is only ever added to. A stage that changed nothing leaves no file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from pop.events import rfc3339
from pop.models.request import Answer, ModelError, ModelRequest, prompt_hash, request_hash
from pop.records import CallRecord, dump_json

ABRIDGE_BYTES = 16_384
_LINE = orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE


class Trail:
    """The attempt's diary."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stage: str | None = None
        self.round = 0
        self._number = 0
        self._fd = _appender(folder / "trail.jsonl")

    def note(self, event: str, **fields: Any) -> None:
        """Append one line (``records.TrailLine``)."""
        row = {"at": rfc3339(time.time()), "event": event, "stage": self.stage, "round": self.round, **fields}
        os.write(self._fd, _line(row))

    @contextmanager
    def during(self, stage: str, *, quiet: bool = False) -> Iterator[dict[str, Any]]:
        """Note that a stage begins and ends; the caller may add fields (file, problems, score) to what is yielded.

        Args:
            quiet: No begin line, for stages that take no time.
        """
        self.stage = stage
        self._number += 1
        if not quiet:
            self.note("stage.begin")
        began, fields = time.perf_counter(), dict[str, Any]()
        try:
            yield fields
        finally:
            self.note("stage.end", seconds=round(time.perf_counter() - began, 6), **fields)

    def keep(self, value: Any, fields: dict[str, Any], *, whole: bool = False) -> None:
        """Write the stage's file: a text as .md, anything else as .json, abridged unless `whole`."""
        text = isinstance(value, str)
        name = f"{self._number:02d}-{self.stage}.{'md' if text else 'json'}"
        data = (value.rstrip() + "\n").encode("utf-8", "replace") if text else _json(value, whole)
        fd = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        fields["file"] = name

    def call(self, request: ModelRequest, outcome: Answer | ModelError) -> None:
        """Append a model call to calls.jsonl (``records.CallRecord``), also one that failed for good."""
        about = _answered(outcome) if isinstance(outcome, Answer) else _failed(request, outcome)
        row = {
            "at": rfc3339(time.time()),
            "stage": self.stage,
            "asked": request.asked,
            "request_sha256": request_hash(request),
            "prompt_sha256": prompt_hash(request),
            "tries": [one.model_dump() for one in outcome.tries],
            **about,
        }
        self.append("calls.jsonl", row)

    def calls(self) -> list[CallRecord]:
        """The calls written down so far."""
        path = self.folder / "calls.jsonl"
        rows = path.read_bytes().splitlines() if path.exists() else []
        return [CallRecord.model_validate(orjson.loads(row)) for row in rows]

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Append one line to calls.jsonl or log.jsonl."""
        fd = _appender(self.folder / name)
        try:
            os.write(fd, _line(row))
        finally:
            os.close(fd)


class Log:
    """Lines in the attempt's log.jsonl."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    def _line(self, level: str, text: str, fields: dict[str, Any]) -> None:
        row = {"at": rfc3339(time.time()), "level": level, "stage": self._trail.stage, "text": str(text), **fields}
        self._trail.append("log.jsonl", row)

    def info(self, text: str, **fields: Any) -> None:
        self._line("info", text, fields)

    def warning(self, text: str, **fields: Any) -> None:
        self._line("warning", text, fields)

    def error(self, text: str, **fields: Any) -> None:
        self._line("error", text, fields)


_FROM_ANSWER = (
    "key", "model", "provider", "provider_model", "input_tokens", "output_tokens", "cached_input_tokens",
    "reasoning_tokens", "estimated", "cost_usd", "prices", "ms", "cached", "finish_reason", "form", "text", "warnings",
    "note",
)  # fmt: skip


def _answered(answer: Answer) -> dict[str, Any]:
    row = {name: getattr(answer, name) for name in _FROM_ANSWER}
    evidence = answer.extra.get("evidence")  # what the embedded engine found, and where
    return {**row, "evidence": evidence} if evidence else row


def _failed(request: ModelRequest, error: ModelError) -> dict[str, Any]:
    nothing = {"key": "", "provider": "", "provider_model": "", "cost_usd": None, "ms": 0.0, "cached": False}
    about = {"model": request.model, "finish_reason": "error", "error_class": error.error_class, "text": None}
    return {**nothing, **about, "input_tokens": 0, "output_tokens": 0, "note": f"{error.code}: {error.message}"}


def _line(row: Mapping[str, Any]) -> bytes:
    """One line of JSON, whatever a task put into it."""
    try:
        return orjson.dumps(row, default=str, option=_LINE)
    except TypeError:  # half a surrogate pair, an integer beyond 64 bits, a loop
        safe = {key: value if isinstance(value, (int, float)) else repr(value)[:10_000] for key, value in row.items()}
        return json.dumps(safe, default=repr).encode() + b"\n"


def _appender(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _json(value: Any, whole: bool) -> bytes:
    try:
        data = dump_json(value)
    except (TypeError, ValueError):
        data = dump_json(repr(value)[:ABRIDGE_BYTES])
    if whole or len(data) <= ABRIDGE_BYTES:
        return data
    return dump_json(abridge(value))


def abridge(value: Any) -> Any:
    """A large value with its large parts cut, saying so; big inputs stand in full where they came from."""
    if isinstance(value, Mapping):
        return {str(key): abridge(part) for key, part in list(value.items())[:200]}
    if isinstance(value, str) and len(value) > 500:
        return f"{value[:500]}... [{len(value)} characters]"
    if isinstance(value, (list, tuple)):
        rest = [f"... [{len(value)} items]"] if len(value) > 20 else []
        return [*(abridge(part) for part in value[:20]), *rest]
    return value
