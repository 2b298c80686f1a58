"""Answers only from a recorded run: its ``tasks/*/attempts/*/calls.jsonl``. No key, no network, no cost.

    [models.again]
    provider = "replay"
    model = "20261121-031502-brief-x7k2"    # a run of this root (any unambiguous beginning), or the path of a run's folder

`pop run --replay RUN` lets every name of a run stand for it. What is answered:

- A question is known by its instance (``draft.0``), the model's name as the task said it, and the prompt's hash: messages,
  schema, temperature and output limit. Other models under the same names change nothing.
- In each generation (attempts up to bad answers) the n-th time it is asked gets the answer to the n-th time there. Attempts
  of one generation are one: what a crash made them ask again was answered from the store, and counts once.
- A question that got an answer in a later attempt of its generation is answered; one that only failed fails in its class.
- Whatever else is asked is ``not-recorded``: bad_input, with what differs from the nearest recorded prompt.

A count of tokens is the one that the instance wrote down then, for the same text and the model's name as the task said it.

Text, finish_reason, tokens, provider and note are as recorded, so that a task sees what it saw; `model` is the replay's own
name, the cost 0, and ``extra["replayed_from"]`` the run.

In memory is where the answers stand, for the 1,000 instances asked last of each of the 8 runs asked last; texts are read when they are asked for.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import orjson

from pop import events
from pop.errors import ERROR_CLASSES, ErrorClass, PopError, did_you_mean, safe
from pop.models.counts import counts_signature, read_counts, text_sha256
from pop.models.providers import Setup
from pop.models.request import Answer, FinishReason, Form, ModelError, ModelRequest, Origin, prompt_hash
from pop.settings import Root
from pop.store import open_regular, read_regular

if TYPE_CHECKING:
    from pop.models.entries import ModelEntry

MAX_LINE_BYTES = 64 * 2**20
MAX_PROMPT_BYTES = 2**20
COMPARED_PROMPTS = 40
INDEXES_KEPT, RECORDINGS_KEPT = 1_000, 8
COUNTS_KEPT = 200_000  # in all instances of a run together
SHOWN_CHARS = 120


class ReplayProvider:
    """See the module."""

    def __init__(self, setup: Setup) -> None:
        self._root = Root(setup.root)
        self._recordings: dict[Path, Recording] = {}
        self._lock = threading.Lock()

    async def answer(self, request: ModelRequest, entry: ModelEntry, origin: Origin, form: Form | None) -> Answer:
        began = time.perf_counter()
        answer = await asyncio.to_thread(self._look_up, request, entry, origin)
        return answer.model_copy(update={"ms": round((time.perf_counter() - began) * 1000, 3)})

    def _look_up(self, request: ModelRequest, entry: ModelEntry, origin: Origin) -> Answer:
        with self._lock:
            try:
                return self._recording(entry.model).answer(request, entry.name, origin)
            except PopError as error:
                if isinstance(error, ModelError):
                    raise
                raise ModelError("bad_input", error.message, where=error.where, hint=error.hint) from None
            except OSError as error:
                raise ModelError("unavailable", f"cannot read the recorded run: {error}") from None

    def _recording(self, asked: str) -> Recording:
        path = find_recorded(self._root, asked)
        recording = self._recordings.pop(path, None) or Recording(path)
        self._recordings[path] = recording
        if len(self._recordings) > RECORDINGS_KEPT:
            del self._recordings[next(iter(self._recordings))]
        return recording

    def counted(self, run: str, instance: str, asked: str, text: str) -> tuple[int, bool] | None:
        """Tokens of a text as an instance of a recorded run counted them, and whether exactly; None when it did not."""
        with self._lock:
            try:
                return self._recording(run).counted(instance, asked, text)
            except (PopError, OSError):
                return None


def find_recorded(root: Root, asked: str) -> Path:
    """The folder of a recorded run: by the id of one of this root, the beginning of one, or a path (from the root).

    Raises:
        PopError: There is none, or more than one.
    """
    if "/" in asked or asked in (".", ".."):
        path = root.path / os.path.expanduser(asked)
        if (path / "events.jsonl").is_file() or (path / "tasks").is_dir():
            return path
        raise PopError(f"no run in the folder {asked!r}", hint="a run's folder holds events.jsonl and tasks/")
    for folder in (root.complete, root.current):
        if (folder / asked / "events.jsonl").is_file():
            return folder / asked
    names = {name: folder for folder in (root.current, root.complete) for name in _names(folder)}
    matches = sorted(name for name in names if name.startswith(asked))
    if len(matches) == 1:
        return names[matches[0]] / matches[0]
    if matches:
        raise PopError(f"{asked!r} fits {len(matches)} runs: {', '.join(matches[-3:])}", hint="give more of the id")
    raise PopError(f"no run {asked!r} to replay", hint=did_you_mean(asked, names) or "pop ls shows them")


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if (folder / name / "events.jsonl").is_file()]
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Place:
    """Where a recorded call stands: `attempt` and the bytes of its line."""

    asked: str
    attempt: int
    offset: int
    size: int
    failed: bool


@dataclass
class Index:
    """The calls of one instance: by generation and prompt, in the order in which they were asked."""

    signature: tuple[Any, ...]
    calls: dict[tuple[int, str], list[Place]] = field(default_factory=dict)
    without_text: int = 0

    @property
    def is_older(self) -> bool:
        """Recorded by a version that kept no answers."""
        return self.without_text > 0 and not self.calls


class Recording:
    """A recorded run. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.resolve().name
        self._indexes: OrderedDict[str, Index] = OrderedDict()
        self._counts: OrderedDict[str, tuple[Any, dict[tuple[str, str], tuple[int, bool]]]] = OrderedDict()
        self._generations: dict[tuple[str, int], int] = {}
        self._journal_signature: tuple[int, ...] = ()

    def answer(self, request: ModelRequest, name: str, origin: Origin) -> Answer:
        """What was answered then.

        Raises:
            ModelError: As then; or ``not-recorded``.
        """
        index = self._index(origin.instance)
        asked, prompt = request.asked or request.model, prompt_hash(request)
        place = _chosen(index.calls.get((origin.generation, prompt), []), asked, origin.n, request)
        if place is None:
            raise self._not_recorded(request, asked, prompt, origin, index)
        row = self._row(origin.instance, place)
        if place.failed:
            raise self._failure(row)
        return _answer(row, name, self.run_id)

    def counted(self, instance: str, asked: str, text: str) -> tuple[int, bool] | None:
        """Tokens as they were first counted then, and whether exactly."""
        if "/" in instance or instance in (".", ".."):
            return None
        attempts = self.path / "tasks" / instance / "attempts"
        signature = counts_signature(attempts)
        known = self._counts.pop(instance, None)
        if known is None or known[0] != signature:
            found: dict[tuple[str, str], tuple[int, bool]] = {}
            for row in read_counts(attempts):
                found.setdefault((row.asked, row.sha256), (row.tokens, row.exact))
            known = (signature, found)
        self._counts[instance] = known
        while len(self._counts) > 1 and sum(len(counts) for _, counts in self._counts.values()) > COUNTS_KEPT:
            self._counts.popitem(last=False)
        return known[1].get((asked, text_sha256(text)))

    def holds_answers(self) -> bool:
        """Whether it can be replayed: its calls were kept with their texts, or there were none."""
        for instance in self._instances():
            index = self._index(instance)
            if index.calls or index.is_older:  # a run is of one version
                return not index.is_older
        return True

    def _instances(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path / "tasks"))
        except FileNotFoundError:
            return []

    # -- the index -----------------------------------------------------------------------------------------------

    def _index(self, instance: str) -> Index:
        files = list(self._files(instance)) if "/" not in instance and instance not in (".", "..") else []
        signature = tuple((attempt, *_signature(path)) for attempt, path in files)
        known = self._indexes.pop(instance, None)
        if known is None or known.signature != signature:
            known = self._read_calls(instance, files, signature)
        self._indexes[instance] = known
        if len(self._indexes) > INDEXES_KEPT:
            self._indexes.popitem(last=False)
        return known

    def _files(self, instance: str) -> Iterator[tuple[int, Path]]:
        """Each attempt's calls.jsonl, oldest first."""
        folder = self.path / "tasks" / instance / "attempts"
        try:
            numbers = sorted(int(name) for name in os.listdir(folder) if name.isascii() and name.isdigit())
        except (FileNotFoundError, NotADirectoryError):
            return
        for number in numbers:
            path = folder / str(number) / "calls.jsonl"
            if path.is_file():
                yield number, path

    def _read_calls(self, instance: str, files: list[tuple[int, Path]], signature: tuple[Any, ...]) -> Index:
        found, generations = Index(signature), self._journal()
        for attempt, path in files:
            generation = generations.get((instance, attempt), 1)
            count: Counter[str] = Counter()
            for offset, size, row in _rows(path):
                prompt = row.get("prompt_sha256")
                failed = bool(row.get("error_class"))
                if not isinstance(prompt, str) or not prompt or not (failed or isinstance(row.get("text"), str)):
                    found.without_text += 1
                    continue
                asked = str(row.get("asked") or row.get("model") or "")
                place = Place(asked, attempt, offset, size, failed)
                _put(found.calls.setdefault((generation, prompt), []), count[prompt], place)
                count[prompt] += 1
        return found

    def _journal(self) -> dict[tuple[str, int], int]:
        """The generation of each attempt, as the run's journal tells."""
        path = self.path / "events.jsonl"
        signature = _signature(path)
        if signature != self._journal_signature:
            self._generations = {}
            for _, _, row in _rows(path, containing=events.STEP_STARTED.encode()):
                instance, attempt, generation = row.get("instance"), row.get("attempt"), row.get("generation")
                if isinstance(instance, str) and isinstance(attempt, int) and isinstance(generation, int):
                    self._generations[instance, attempt] = generation
            self._journal_signature = signature
        return self._generations

    def _row(self, instance: str, place: Place) -> dict[str, Any]:
        path = self.path / "tasks" / instance / "attempts" / str(place.attempt) / "calls.jsonl"
        with os.fdopen(open_regular(path, max_bytes=1 << 62), "rb") as file:
            file.seek(place.offset)
            row: dict[str, Any] = orjson.loads(file.read(place.size))
        return row

    # -- what goes wrong -----------------------------------------------------------------------------------------

    def _failure(self, row: dict[str, Any]) -> ModelError:
        """Its note is ``code: message``."""
        told = re.fullmatch(r"(?s)(?:([a-z][a-z0-9-]*): )?(.+)", str(row.get("note") or "the call failed"))
        code, message = told.groups() if told else (None, "the call failed")
        known = row["error_class"] if row["error_class"] in ERROR_CLASSES else "unavailable"
        message = f"{safe(message, 1000)} (so it was in the run {self.run_id})"
        return ModelError(cast(ErrorClass, known), message, where=f"run {self.run_id}", code=code)

    def _not_recorded(self, request: ModelRequest, asked: str, prompt: str, origin: Origin, index: Index) -> ModelError:
        step = origin.step or origin.instance.partition(".")[0]
        if index.is_older:
            message = f"the run {self.run_id} keeps no answers: it was made by an older version of POP"
            return ModelError("bad_input", message, where=self._where(origin), hint=_RECORD_AGAIN, code="not-recorded")
        why = self._why_not(request, asked, prompt, origin, index)
        message = f"step {step!r} asks the model {asked!r} what the run {self.run_id} did not ask: {why}"
        return ModelError("bad_input", message, where=self._where(origin), hint=_RECORD_AGAIN, code="not-recorded")

    def _where(self, origin: Origin) -> str:
        return f"tasks/{origin.instance} of {self.run_id}"

    def _why_not(self, request: ModelRequest, asked: str, prompt: str, origin: Origin, index: Index) -> str:
        same = [place for (_, known), places in index.calls.items() if known == prompt for place in places]
        mine = [place for place in same if place.asked == asked]
        if mine:
            times = "once" if len(mine) == 1 else f"{len(mine)} times"
            return f"the very same was asked {times} there, and this is once more (generation {origin.generation})"
        if same:
            return f"there it was asked of the model {same[0].asked!r}"
        nearest = self._nearest(request, origin)
        if nearest is None:
            has_it = any(name.partition(".")[0] == origin.instance.partition(".")[0] for name in self._instances())
            known = "kept no prompt to compare this one with" if has_it else "has no such step"
            return f"it {known}; the prompt begins {_cut(_text_of(request), 0)!r}"
        return _difference(*nearest, _text_of(request))

    def _files_of(self, origin: Origin) -> list[Path]:
        """The prompts that the same instance, or else others of its step, kept."""
        step = origin.instance.partition(".")[0]
        others = [name for name in self._instances() if name.partition(".")[0] == step and name != origin.instance]
        found: list[Path] = []
        for name in [origin.instance, *others]:
            found += sorted((self.path / "tasks" / name / "attempts").glob("*/*-prompt.md"))[:COMPARED_PROMPTS]
            if len(found) >= COMPARED_PROMPTS or (name == origin.instance and found):
                break
        return found[:COMPARED_PROMPTS]

    def _nearest(self, request: ModelRequest, origin: Origin) -> tuple[str, str] | None:
        """The place and text of the recorded prompt that shares most lines with this one."""
        wanted = set(_text_of(request).splitlines())
        best: tuple[int, str, str] | None = None
        for path in self._files_of(origin):
            try:
                text = read_regular(path, max_bytes=MAX_PROMPT_BYTES).decode("utf-8", "replace")
            except (OSError, PopError):
                continue
            shared = len(wanted & set(text.splitlines()))
            if best is None or shared > best[0]:
                best = (shared, str(path.relative_to(self.path)), text.rstrip())
        return best[1:] if best else None


_RECORD_AGAIN = "run it once without --replay to record it anew, or undo the change of the prompt"


def _rows(path: Path, *, containing: bytes = b"") -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Offset, size and content of each line that is a JSON object; torn and overlong ones are passed over."""
    try:
        file = os.fdopen(open_regular(path, max_bytes=1 << 62), "rb")
    except (FileNotFoundError, PopError):  # it is a link, say: a task may have made it
        return
    with file:
        offset = 0
        while line := file.readline(MAX_LINE_BYTES):
            if containing in line and line.endswith(b"\n"):
                try:
                    row = orjson.loads(line)
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    yield offset, len(line), row
            offset += len(line)


def _signature(path: Path) -> tuple[int, ...]:
    try:
        info = os.stat(path)
    except OSError:
        return ()
    return (info.st_mtime_ns, info.st_size, info.st_ino)


def _put(places: list[Place], number: int, place: Place) -> None:
    """The `number`-th asking; an answer counts more than a failure, and the first answer most."""
    if number >= len(places):
        places.append(place)
    elif places[number].failed and not place.failed:
        places[number] = place


def _chosen(places: list[Place], asked: str, n: int, request: ModelRequest) -> Place | None:
    """The n-th asking.

    A worker counts by prompt and model. Where one name stands for all models, the count goes over all names.
    """
    overridden = bool(request.asked) and request.asked != request.model
    if overridden and n < len(places) and places[n].asked == asked:
        return places[n]
    own = [place for place in places if place.asked == asked]
    return own[n] if n < len(own) else None


def _answer(row: dict[str, Any], name: str, run_id: str) -> Answer:
    finish, form, extra = row.get("finish_reason"), row.get("form"), {"replayed_from": run_id}
    if row.get("evidence"):
        extra["evidence"] = row["evidence"]
    return Answer(
        text=row["text"],
        model=name,
        provider=str(row.get("provider") or "replay"),
        provider_model=str(row.get("provider_model") or name),
        finish_reason=finish if finish in get_args(FinishReason) else "stop",
        input_tokens=_count(row, "input_tokens"),
        output_tokens=_count(row, "output_tokens"),
        cached_input_tokens=_count(row, "cached_input_tokens"),
        reasoning_tokens=_count(row, "reasoning_tokens"),
        estimated=row.get("estimated") is True,
        cost_usd=0.0,
        prices="replay",
        form=form if form in get_args(Form) else None,
        note=row["note"] if isinstance(row.get("note"), str) else None,
        extra=extra,
    )


def _count(row: dict[str, Any], name: str) -> int:
    value = row.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _text_of(request: ModelRequest) -> str:
    """A prompt as the worker keeps it in 03-prompt.md."""
    if len(request.messages) == 1:
        return request.messages[0].content.rstrip()
    return "\n\n".join(f"## {message.role}\n\n{message.content}" for message in request.messages).rstrip()


def _difference(place: str, recorded: str, now: str) -> str:
    """The first line in which two prompts differ."""
    for number, (then, here) in enumerate(zip_longest(recorded.splitlines(), now.splitlines()), 1):
        if then != here:
            column = _same_up_to(then or "", here or "")
            before = "the prompt ended before it" if then is None else repr(_cut(then, column))
            after = "the prompt ends before it" if here is None else repr(_cut(here, column))
            return f"line {number} of {place} was {before}, now {after}"
    return f"the words are those of {place}, but the schema, the temperature or max_output_tokens changed"


def _same_up_to(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _cut(line: str, column: int) -> str:
    """A line around the column where it differs."""
    start = max(0, column - 40)
    part = safe(line[start : start + SHOWN_CHARS], one_line=True)
    return ("..." if start else "") + part + ("..." if len(line) > start + SHOWN_CHARS else "")
