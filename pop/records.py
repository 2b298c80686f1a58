"""What stands on disk and on the wire, and how JSON is read and written.

Every document another process or a person may read has its shape here as a pydantic model. ``read_json`` is the one
strict reader (hostile data), ``dump_json`` the one writer.

| model        | file                                             | writer       |
|--------------|--------------------------------------------------|--------------|
| Seed         | seed.json (envelope or bare data)                | a person     |
| Letter       | tasks/<instance>/letter.json                     | supervisor   |
| ErrorRecord  | error.json, "error" in status and events         | worker / supervisor |
| Status       | tasks-status.json                                | supervisor   |
| RunRecord    | record.json and one line of runs.jsonl           | supervisor   |
| TrailLine    | attempts/<n>/trail.jsonl                         | worker       |
| CallRecord   | attempts/<n>/calls.jsonl                         | worker       |
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

from pop.errors import ErrorClass, PopError

STAGES = (
    "ingest", "preprocess", "prompt", "infer", "parse",
    "validate_structure", "validate_quality", "critique", "refine", "finalize",
)  # fmt: skip

NAME_PATTERN = r"[a-z][a-z0-9_-]{0,63}"  # steps, tasks, pipelines, models
MAX_DEPTH = 200  # nesting of any JSON document POP accepts


class BadJson(PopError):
    """A text is not the JSON that POP accepts."""

    code = "bad-json"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise BadJson(f"the key {name[:80]!r} stands twice in one object")
            seen.add(name)
    return value


def _no_constant(text: str) -> Any:
    raise BadJson(f"{text} is not a JSON number")


def _exact_int(text: str) -> int:
    if len(text) > 1000:
        raise BadJson(f"a number of {len(text)} digits is too long (at most 1000)")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadJson(f"the number {text[:40]} is too large")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_exact_int, parse_float=_finite
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(data: bytes | str, *, where: object = None) -> Any:
    """Parse strictly: UTF-8 without BOM, no duplicate keys, no NaN or infinity, exact integers, depth <= 200.

    Args:
        data: The whole document; bytes must be UTF-8.
        where: The file's name, for the error.

    Raises:
        BadJson: With line and column where they are known.
    """
    try:
        return _read_json(data)
    except BadJson as error:
        error.where = error.where or (str(where) if where is not None else None)
        raise
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}:{error.colno}" if where is not None else f"line {error.lineno}:{error.colno}"
        raise BadJson(f"not valid JSON: {error.msg.lower()}", where=place) from None
    except RecursionError:
        raise BadJson(f"nested more than {MAX_DEPTH} deep", where=where) from None


def _read_json(data: bytes | str) -> Any:
    if isinstance(data, bytes):
        if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            raise BadJson("starts with a byte order mark", hint="save it as UTF-8 without BOM")
        try:
            data = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadJson(f"not UTF-8: byte {data[error.start]:#04x} at offset {error.start}") from None
    value = _DECODER.decode(data)
    if deeper_than(value, MAX_DEPTH):
        raise BadJson(f"nested more than {MAX_DEPTH} deep")
    if _SURROGATE.search(data):
        _refuse_lone_surrogates(value)
    return value


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadJson("a text holds half of a surrogate pair (\\ud800 to \\udfff)") from None


def deeper_than(value: Any, limit: int) -> bool:
    """Whether lists and objects stand in each other more often than that."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def dump_json(value: Any, *, pretty: bool = True) -> bytes:
    """UTF-8 JSON ending in a newline; `pretty` indents by two, else it is one line.

    Raises:
        TypeError: `value` holds something JSON has no word for (orjson turns NaN into null).
    """
    options = orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if pretty else 0)
    try:
        return orjson.dumps(value, option=options)
    except TypeError:  # integers beyond 64 bits
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2 if pretty else None)
        return text.encode("utf-8") + b"\n"


def objects_in(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines of a .jsonl file; a line that is none, or torn, is passed over."""
    for line in lines:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(value, dict):
            yield value


def printable(name: str) -> str:
    """A file name for JSON, a log and people: control characters and bytes that are no UTF-8 are shown as escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class Record(BaseModel):
    """Base of all records: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Usage(Record):
    """What model calls cost. `calls` are the requests a provider counts, the failed ones it billed included.

    `cached_calls` were answered from the store. `cost_usd` leaves out the calls whose price nobody knows,
    `unpriced_calls`; `estimated_calls` are those of which the provider did not say what it counted.
    """

    calls: int = 0
    cached_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unpriced_calls: int = 0
    estimated_calls: int = 0

    def plus(self, other: Usage) -> Usage:
        """The sum, field by field."""
        return Usage(
            calls=self.calls + other.calls,
            cached_calls=self.cached_calls + other.cached_calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_usd=round(self.cost_usd + other.cost_usd, 9),
            unpriced_calls=self.unpriced_calls + other.unpriced_calls,
            estimated_calls=self.estimated_calls + other.estimated_calls,
        )

    def minus(self, other: Usage) -> Usage:
        """What it is beyond the other, field by field and never below zero; `cached_calls` are left out."""
        less = {name: max(0, getattr(self, name) - getattr(other, name)) for name in Usage.model_fields}
        return Usage(**{**less, "cost_usd": round(less["cost_usd"], 9), "cached_calls": 0})


class ErrorRecord(Record):
    """Why an attempt, a step or a run ended badly.

    `error_class` decides what happens next; `problems` are the validators' sentences.
    """

    error_class: ErrorClass
    code: str = "error"
    message: str
    where: str | None = None
    hint: str | None = None
    stage: str | None = None
    instance: str | None = None
    attempt: int | None = None
    problems: list[str] = Field(default_factory=list)
    traceback: str | None = None


class Seed(Record):
    """A seed with a ``data`` key is this envelope; any other object is the data itself."""

    data: Any
    name: str | None = None
    pipeline: str | None = None
    priority: int = Field(default=0, ge=-1000, le=1000, strict=True)
    not_before: str | None = None
    id: str | None = None
    budget: dict[str, Annotated[float, Field(ge=0)]] | None = None
    models: dict[str, str] | None = None
    reuse: bool | str | None = None
    fork: Fork | None = None


class Fork(Record):
    """A seed that begins where another run stands: what is not `stale` there is taken over. See ``pop rerun --fork``."""

    run: str
    from_: list[str] = Field(alias="from", min_length=1)
    set: dict[str, Any] = Field(default_factory=dict)
    models: dict[str, str] = Field(default_factory=dict)


class BudgetLimit(Record):
    """One budget that holds for a call: e.g. ``run_usd``, and who set it (``seed``, ``pipeline.json``, ``pop.toml``)."""

    name: str
    limit: float
    source: str
    soft: bool = False


class FileRef(Record):
    """A JSON document in the run's folder.

    `path` is relative to the run's folder, `pointer` names one top-level key inside it (None: the whole document).
    """

    path: str
    sha256: str
    pointer: str | None = None


# The outputs of an `each` come back as a list in item order; None stands for a skipped item.
InputRef = TypeAliasType("InputRef", "FileRef | list[InputRef | None]")


class Limits(Record):
    """What one attempt may use up. Seconds, mebibytes."""

    timeout_s: float = 600.0
    stall_s: float = 300.0
    memory_mb: int = 1024
    output_mb: float = 4.0  # kept of stdout and stderr together


class Letter(Record):
    """The whole order to a worker.

    Files are named by path and hash, everything else stands here by value. `attempt_id` is never used twice.
    `config` is the step's ``with``. `deadline_at` (Unix time), `run_name` and `item_index` are for the reader.
    """

    schema_version: Literal[1] = 1
    run_id: str
    run_name: str
    instance: str
    step: str
    task: str
    tasks_dir: str
    run_dir: str
    attempt: int
    attempt_id: str
    generation: int
    seed: FileRef
    files_dir: str | None = None
    inputs: dict[str, InputRef | None] = Field(default_factory=dict)
    has_item: bool = False
    item: Any = None
    item_index: int | None = None
    lap: int | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None
    models: dict[str, str] = Field(default_factory=dict)  # "*" stands for every name
    reuse_s: float | None = None
    budgets: list[BudgetLimit] = Field(default_factory=list)
    pipeline: str = ""
    refinements: int | None = None
    limits: Limits = Field(default_factory=Limits)
    deadline_at: float
    gateway: str | None = None
    problems: list[str] = Field(default_factory=list)  # of the previous attempt, else of the previous lap
    laps: dict[str, list[InputRef | None]] = Field(default_factory=dict)  # all outputs of the steps of the loops around
    changes: list[str] = Field(default_factory=list)  # what persons asked to be done otherwise, newest last


class TrailLine(Record):
    """One line of trail.jsonl: something began or ended inside an attempt.

    `event` is ``stage.begin``, ``stage.end``, ``call.begin``, ``call.end``, ``progress`` or ``note``.
    """

    at: str
    event: str
    stage: str | None = None
    round: int = 0
    seconds: float | None = None
    file: str | None = None
    problems: list[str] | None = None
    score: float | None = None
    done: float | None = None
    total: float | None = None
    text: str | None = None


class CallRecord(Record):
    """One line of calls.jsonl: a model call as the worker saw it, with its answer, so that it can be replayed.

    `key` names the stored answer, `request_sha256` what was asked, `prompt_sha256` the same without the model's name,
    and `asked` the model's name as the task said it. `tries` brought no answer; one that failed for good has an
    `error_class` and no text.
    """

    at: str
    stage: str | None
    key: str
    model: str
    provider: str
    provider_model: str
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost_usd: float | None
    prices: str | None = None
    ms: float
    cached: bool
    finish_reason: str
    asked: str = ""
    request_sha256: str = ""
    prompt_sha256: str = ""
    form: str | None = None
    text: str | None = None
    error_class: str | None = None
    tries: list[dict[str, Any]] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    note: str | None = None
    evidence: list[dict[str, Any]] | None = None  # of the embedded engine: pointer, quote, document, line


class TaskStatus(Record):
    """One instance inside tasks-status.json."""

    state: Literal["pending", "running", "waiting", "done", "failed", "skipped", "stale", "cancelled"]
    stage: str | None = None
    attempt: int = 0
    refinements: int = 0
    started_at: str | None = None
    finished_at: str | None = None
    seconds: float | None = None
    usage: Usage = Field(default_factory=Usage)
    error: ErrorRecord | None = None
    progress: list[float] | None = None  # [done, total] as the task said by ctx.progress
    reason: str | None = None  # why it was skipped, or that it was reused from another run


class Status(Record):
    """tasks-status.json. Times RFC 3339 UTC, durations in seconds, money in USD."""

    schema_version: Literal[1] = 1
    run_id: str
    name: str
    pipeline: str
    state: Literal["queued", "running", "waiting", "paused", "failed", "cancelled", "complete"]
    created_at: str
    started_at: str | None = None
    updated_at: str
    finished_at: str | None = None
    progress: float = 0.0
    current: list[str] = Field(default_factory=list)
    waiting_for: str | None = None
    pausing: bool = False  # it was paused, and what is at work has not ended yet
    error: ErrorRecord | None = None
    notes: list[str] = Field(default_factory=list)  # e.g. that the embedded engine is in use
    usage: Usage = Field(default_factory=Usage)
    tasks: dict[str, TaskStatus] = Field(default_factory=dict)


class RunRecord(Record):
    """One line of runs.jsonl, and record.json in the run's folder."""

    run_id: str
    name: str
    pipeline: str
    state: Literal["complete"] = "complete"
    created_at: str
    started_at: str
    finished_at: str
    seconds: float
    tasks: list[str]
    attempts: int
    refinements: int
    usage: Usage
    models: list[str]
    seed_sha256: str
    pipeline_sha256: str
    outputs: dict[str, str]
    path: str
