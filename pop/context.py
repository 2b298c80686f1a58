"""``ctx``: everything a stage may know and do. Inputs are read when first looked at."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pop.compression import Compression
from pop.control_orders import Control
from pop.errors import AttemptFailed
from pop.inputs import Inputs
from pop.models.counts import MOST_COUNTS, Counts
from pop.models.request import Answer, Message, ModelError, ModelRequest, prompt_hash
from pop.parsing import Schema, json_schema
from pop.records import CallRecord, Letter
from pop.replies import Call as Call
from pop.replies import Prompt
from pop.replies import Reply as Reply
from pop.store import contained
from pop.trail import Log, Trail


class ModelCaller(Protocol):
    """What asks models for us: the gateway's client."""

    def ask(self, request: ModelRequest) -> Answer:
        """One answer.

        Raises:
            ModelError: With its error class.
        """

    def ask_many(
        self,
        requests: Sequence[ModelRequest],
        *,
        at_once: int | None = None,
        heard: Callable[[int, Answer | ModelError], None] | None = None,
    ) -> list[Answer | ModelError]:
        """Answers in the order of the requests, at most `at_once` open; `heard` is told of each when it comes."""


@runtime_checkable
class _CanCount(Protocol):
    """A caller that can count tokens."""

    def count(self, text: str, model: str, asked: str) -> tuple[int, bool] | None:
        """Tokens, and whether that is exact; None when nobody can say."""


@dataclass
class Context:
    """What a stage gets last. See docs/tasks.md."""

    letter: Letter
    seed: Any
    inputs: Inputs
    trail: Trail
    caller: ModelCaller | None
    default_model: str = "default"
    max_output_tokens: int | None = None
    temperature: float | None = None
    control: Control = field(default_factory=Control)
    log: Log = field(init=False)
    _warned: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.log = Log(self.trail)

    @cached_property
    def _counts(self) -> Counts:
        told = f"after {MOST_COUNTS} counts of tokens, further ones are plain estimates"
        return Counts(self.trail.folder, self.trail.append, lambda: self.trail.note("note", text=told))

    @property
    def item(self) -> Any:
        return self.letter.item

    @property
    def config(self) -> dict[str, Any]:
        return self.letter.config

    @property
    def lap(self) -> int | None:
        return self.letter.lap

    @property
    def run_id(self) -> str:
        return self.letter.run_id

    @property
    def step(self) -> str:
        return self.letter.step

    @property
    def attempt(self) -> int:
        return self.letter.attempt

    @property
    def files(self) -> Path | None:
        """The folder of what came with the seed, or None when it came alone. Read only."""
        return Path(self.letter.files_dir) if self.letter.files_dir else None

    def artifact(self, name: str) -> Path:
        """A path for a file the step produces; its folders are made, and it stays inside the step's artifacts/.

        Raises:
            NotAFile: The name is no plain relative path.
        """
        base = self.trail.folder / "artifacts"
        base.mkdir(exist_ok=True)
        path = contained(base, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def progress(self, done: float, total: float) -> None:
        """Say how far the work is; also tells the daemon that the attempt is alive."""
        self.trail.note("progress", done=done, total=total)

    def model(self, name: str | None = None) -> _Model:
        """A model to call: ``ctx.model("large")("Say hello")``."""
        return _Model(self, name)

    @property
    def calls(self) -> list[CallRecord]:
        """The model calls of this attempt so far, as they stand in calls.jsonl."""
        return self.trail.calls()

    def gather(
        self,
        calls: Sequence[Prompt | Call],
        *,
        model: str | None = None,
        schema: Schema | None = None,
        at_once: int | None = None,
        progress: bool = False,
    ) -> list[Reply]:
        """Ask for many answers; they come in the order of the calls.

        Args:
            at_once: So many calls are open at a time; None: all, and the gateway bounds them.
            progress: Say by `Context.progress` how many have been answered.

        Raises:
            AttemptFailed: The first call that failed, after all have ended.
        """
        replies = []
        for reply in self.gather_each(calls, model=model, schema=schema, at_once=at_once, progress=progress):
            if isinstance(reply, AttemptFailed):
                raise reply
            replies.append(reply)
        return replies

    def gather_each(
        self,
        calls: Sequence[Prompt | Call],
        *,
        model: str | None = None,
        schema: Schema | None = None,
        at_once: int | None = None,
        progress: bool = False,
    ) -> list[Reply | AttemptFailed]:
        """Like `gather`, with the failure in the place of every call that failed.

        Raises:
            ValueError: `at_once` is below 1.
        """
        if at_once is not None and at_once < 1:
            raise ValueError(f"at_once must be at least 1, not {at_once}")
        asked = [call if isinstance(call, Call) else Call(call, schema, model) for call in calls]
        requests = [self._request(call) for call in asked]
        diary = _InTurn(requests, self._record)
        done = 0

        def heard(place: int, outcome: Answer | ModelError) -> None:
            nonlocal done
            done += 1
            diary.heard(place, outcome)
            if progress and done * 100 // len(requests) > (done - 1) * 100 // len(requests):
                self.progress(done, len(requests))

        self.trail.note("call.begin", text=f"{len(requests)} calls")
        try:
            answers = self._caller().ask_many(requests, at_once=at_once, heard=heard) if requests else []
        finally:
            self.trail.note("call.end")
        return [self._reply_or_failure(answer, call) for answer, call in zip(answers, asked, strict=True)]

    def _reply_or_failure(self, answer: Answer | ModelError, call: Call) -> Reply | AttemptFailed:
        if isinstance(answer, ModelError):
            return _as_failure(answer)
        try:
            return self._reply(answer, call)
        except AttemptFailed as error:
            return error

    def ask(self, call: Call) -> Reply:
        """One model call.

        Raises:
            AttemptFailed: The model could not be asked, refused, or was cut off.
        """
        request = self._request(call)
        self.trail.note("call.begin", text=request.model)
        try:
            answer = self._caller().ask(request)
        except ModelError as error:
            self._record(request, error)
            raise _as_failure(error) from None
        finally:
            self.trail.note("call.end")
        self._record(request, answer)
        return self._reply(answer, call)

    def _caller(self) -> ModelCaller:
        if self.caller is None:
            raise AttemptFailed("unavailable", "there is no gateway to ask models through")
        return self.caller

    def _meant(self, name: str | None) -> tuple[str, str]:
        """A model as it was asked for, and as the run's own `models` have it; ``*`` there stands for every name."""
        asked = name or self.default_model
        return asked, self.letter.models.get(asked, self.letter.models.get("*", asked))

    def _request(self, call: Call) -> ModelRequest:
        asked, model = self._meant(call.model)
        messages: Any = call.prompt
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
            raise TypeError('a prompt is a text or a list of {"role": ..., "content": ...}')
        return ModelRequest(
            model=model,
            asked=asked,
            messages=[Message.model_validate(dict(message)) for message in messages],
            schema=json_schema(call.schema) if call.schema is not None else None,
            schema_name=self.letter.task,
            temperature=call.temperature if call.temperature is not None else self.temperature,
            max_output_tokens=call.max_output_tokens or self.max_output_tokens,
            reuse_s=call.reuse_s if call.reuse_s is not None else self.letter.reuse_s,
            round=self.trail.round,
        )

    def _record(self, request: ModelRequest, outcome: Answer | ModelError) -> None:
        self.trail.call(request, outcome)
        for warning in outcome.warnings if isinstance(outcome, Answer) else ():
            if warning not in self._warned:
                self._warned.add(warning)
                self.log.warning(warning, model=request.asked)

    def _reply(self, answer: Answer, call: Call) -> Reply:
        if answer.finish_reason == "length":
            raise AttemptFailed(
                "truncated",
                f"the answer of {answer.model!r} was cut off at its output limit",
                hint="raise max_output_tokens (of the front matter or the call), or ask for less",
            )
        if answer.finish_reason in ("refusal", "content_filter"):
            raise AttemptFailed(
                "refused",
                f"{answer.model!r} declined: {answer.text[:500] or answer.finish_reason}",
                hint="say in the prompt what the text is for, or name another model",
                problems=[answer.text],
            )
        return Reply(answer.text, answer, call.schema)

    def count_tokens(self, text: str, model: str | None = None) -> int:
        """How many tokens a text has for a model.

        Exact where the gateway has the model's vocabulary at hand; else an estimate, which the usage seen corrects. What
        this instance has counted once, it counts alike in each of its attempts and in a replay.
        """
        ask = self.caller.count if isinstance(self.caller, _CanCount) else None
        return self._counts.count(text, *self._meant(model), ask)

    def compress(self, text: str, max_tokens: int, *, model: str | None = None) -> str:
        """Condense a text to at most `max_tokens`, as `count_tokens` counts: its parts side by side, then the digests.

        A text that fits comes back as it is. An answer to the same part is used again, whoever asked for it and when.

        Raises:
            ValueError: `max_tokens` is below 1.
            AttemptFailed: A call failed; a part too long for the model is halved before.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
        before = self.count_tokens(text, model)
        if before <= max_tokens:
            return text
        work = Compression(self, max_tokens, model)
        shorter = work.run(text)
        after = self.count_tokens(shorter, model)
        told = f"compressed {before} tokens to {after} (at most {max_tokens}) by {work.calls} calls"
        self.trail.note("note", text=told)
        return shorter

    @cached_property
    def laps(self) -> Inputs:
        """All outputs of the steps of the loops around, lap by lap: ``ctx.laps.review[-1]``."""
        return Inputs(Path(self.letter.run_dir), self.letter.laps)

    @property
    def changes(self) -> list[str]:
        """What persons asked to be done otherwise, the newest last."""
        return self.letter.changes


class _InTurn:
    """Writes answers down as they come; of equal prompts in the order in which they were asked, by which they are known."""

    def __init__(
        self, requests: Sequence[ModelRequest], write: Callable[[ModelRequest, Answer | ModelError], None]
    ) -> None:
        self._requests = requests
        self._write = write
        self._prompts = [prompt_hash(request) for request in requests]
        self._open: dict[str, deque[int]] = {}
        for place, prompt in enumerate(self._prompts):
            self._open.setdefault(prompt, deque()).append(place)
        self._held: dict[int, Answer | ModelError] = {}

    def heard(self, place: int, outcome: Answer | ModelError) -> None:
        self._held[place] = outcome
        line = self._open[self._prompts[place]]
        while line and line[0] in self._held:
            first = line.popleft()
            self._write(self._requests[first], self._held.pop(first))


@dataclass(frozen=True)
class _Model:
    """A model by its name, callable."""

    ctx: Context
    name: str | None

    def __call__(
        self,
        prompt: Prompt,
        schema: Schema | None = None,
        *,
        temperature: float | None = None,
        max_output_tokens: int | None = None,
    ) -> Reply:
        return self.ctx.ask(Call(prompt, schema, self.name, temperature, max_output_tokens))


def _as_failure(error: ModelError) -> AttemptFailed:
    hint = error.hint
    if error.code == "context-length":
        hint = hint or "shorten the prompt, e.g. with ctx.compress(text, max_tokens)"
    failure = AttemptFailed(error.error_class, error.message, where=error.where, hint=hint)
    failure.code = error.code
    return failure


def json_text(value: Any) -> str:
    """A value as a person reads it in a prompt."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
