"""``ctx``: everything a stage may know and do. Inputs are read when first looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pop.durations import ANY_AGE_S
from pop.errors import AttemptFailed
from pop.inputs import Inputs
from pop.models.request import Answer, Message, ModelError, ModelRequest
from pop.models.strict import without_nulls
from pop.models.tokens import cut_text, estimate_tokens, split_text, weigh
from pop.parsing import Parsed, Schema, Unparsable, json_schema, model_problems, parse_json, schema_problems
from pop.records import CallRecord, Letter
from pop.store import contained
from pop.trail import Log, Trail

Prompt = str | Sequence[Mapping[str, str]]


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
        heard: Callable[[int], None] | None = None,
    ) -> list[Answer | ModelError]:
        """Answers in the order of the requests, at most `at_once` open; `heard` is told how many have come."""


@runtime_checkable
class _Counts(Protocol):
    """A caller that can count tokens."""

    def count(self, text: str, model: str) -> tuple[int, bool] | None:
        """Tokens, and whether that is exact; None when nobody can say."""


@dataclass(frozen=True)
class Reply:
    """A model's answer."""

    text: str
    answer: Answer
    schema: Schema | None = None

    @property
    def data(self) -> Any:
        """The answer's JSON where a schema was asked for (an instance, where that was a pydantic model), else None.

        Raises:
            AttemptFailed: ``invalid_output`` when the answer holds no JSON or does not fit the schema.
        """
        if self.schema is None:
            return None
        form = json_schema(self.schema)
        try:
            value = self.parsed(form).value
            problems = schema_problems(value, form)
        except Unparsable as error:
            problems = [str(error)]
        if not problems and isinstance(self.schema, type):
            problems = model_problems(value, self.schema)
        if problems:
            asked = f"the answer of {self.answer.model!r} does not have the asked form: {problems[0][:500]}"
            raise AttemptFailed("invalid_output", asked, problems=problems)
        return self.schema.model_validate(value) if isinstance(self.schema, type) else value

    def parsed(self, schema: dict[str, Any]) -> Parsed:
        """The value that the answer holds, unchecked; without the nulls that strict servers write for what is left out.

        Raises:
            Unparsable: It holds none.
        """
        found = parse_json(self.text, schema)
        if self.answer.extra.get("nulls"):
            return replace(found, value=without_nulls(found.value, schema))
        return found

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Call:
    """A model call that has not been made yet, for `Context.gather`.

    Args:
        schema: A JSON Schema, or a pydantic model.
        reuse_s: An answer to the same question may be so many seconds old, whoever asked; None: as the run says.
    """

    prompt: Prompt
    schema: Schema | None = None
    model: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    reuse_s: float | None = None


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
    log: Log = field(init=False)
    _warned: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.log = Log(self.trail)

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
        heard = self._in_hundredths(len(requests)) if progress else None
        self.trail.note("call.begin", text=f"{len(requests)} calls")
        try:
            answers = self._caller().ask_many(requests, at_once=at_once, heard=heard) if requests else []
        finally:
            self.trail.note("call.end")
        for request, answer in zip(requests, answers, strict=True):
            self._record(request, answer)
        return [self._reply_or_failure(answer, call) for answer, call in zip(answers, asked, strict=True)]

    def _in_hundredths(self, total: int) -> Callable[[int], None]:
        """Progress that is told a hundred times at most."""

        def heard(done: int) -> None:
            if done * 100 // total > (done - 1) * 100 // total:
                self.progress(done, total)

        return heard

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

        Exact where the gateway has the model's vocabulary at hand; else an estimate, which the usage seen corrects.
        """
        found = self.caller.count(text, self._meant(model)[1]) if isinstance(self.caller, _Counts) else None
        return found[0] if found else estimate_tokens(text)

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
        work = _Compression(self, max_tokens, model)
        shorter = work.run(text)
        after = self.count_tokens(shorter, model)
        told = f"compressed {before} tokens to {after} (at most {max_tokens}) by {work.calls} calls"
        self.trail.note("note", text=told)
        return shorter

    @property
    def control(self) -> Any:
        """Orders to the own run (add, skip, pause)."""
        raise AttemptFailed("bug", "ctx.control is not part of this version of POP")


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


_COMPRESS = """Condense the document to at most {words} words. Keep names, numbers and claims; invent nothing.

<document>
{text}
</document>"""
_SHORTER = "That has about {found} words. Give it again with at most {words} words."
PART_TOKENS = 3000
LEAST_PART_TOKENS = 200  # a part that is too long for a model is halved down to this
LEAST_DIGEST_TOKENS = 60
WORDS_PER_TOKEN = 0.75


class _Compression:
    """One text on its way to `max_tokens`. Texts are cut alike whatever was learnt, so that answers are found again."""

    def __init__(self, ctx: Context, max_tokens: int, model: str | None) -> None:
        self._ctx = ctx
        self._max_tokens = max_tokens
        self._model = model
        self.calls = 0

    def run(self, text: str) -> str:
        """Round upon round; each but the last at least halves the text, or cuts its digests."""
        while parts := [part.strip() for part in split_text(text, PART_TOKENS) if part.strip()]:
            share = max(self._max_tokens // len(parts), LEAST_DIGEST_TOKENS)
            digests = self._digests(parts, share)
            shorter = _joined(digests)
            if self._fits(shorter, self._max_tokens):
                return shorter
            last = len(parts) == 1 or share * len(parts) <= self._max_tokens
            if last or weigh(shorter) > weigh(text) / 2:
                shorter = _joined(self._shortened(parts, digests, share))
            if last:
                return self._cut(shorter, self._max_tokens)
            text = shorter
        return ""

    def _fits(self, text: str, most: int) -> bool:
        return self._ctx.count_tokens(text, self._model) <= most

    def _cut(self, text: str, most: int) -> str:
        return cut_text(text, lambda part: self._fits(part, most))

    def _gather(self, prompts: Sequence[Prompt], share: int) -> list[Reply | AttemptFailed]:
        self.calls += len(prompts)
        limit = self._ctx.max_output_tokens  # of the task, which is about its own answers
        most = max(limit, 4 * share) if limit else None
        calls = [Call(prompt, None, self._model, max_output_tokens=most, reuse_s=ANY_AGE_S) for prompt in prompts]
        return self._ctx.gather_each(calls)

    def _digests(self, parts: Sequence[str], share: int) -> list[str]:
        """One digest for each part; parts that are too long for the model are halved, all of them at once."""
        replies = self._gather([_compress_prompt(part, share) for part in parts], share)
        for reply, part in zip(replies, parts, strict=True):
            if isinstance(reply, AttemptFailed) and not _can_be_halved(reply, part):
                raise reply
        halved = {
            place: split_text(parts[place], estimate_tokens(parts[place]) // 2 + 1)
            for place, reply in enumerate(replies)
            if isinstance(reply, AttemptFailed)
        }
        pieces = [piece for halves in halved.values() for piece in halves]
        below = iter(self._digests(pieces, max(share // 2, LEAST_DIGEST_TOKENS)) if pieces else [])
        return [
            reply.text.strip() if isinstance(reply, Reply) else _joined([next(below) for _ in halved[place]])
            for place, reply in enumerate(replies)
        ]

    def _shortened(self, parts: Sequence[str], digests: Sequence[str], share: int) -> list[str]:
        """The digests longer than their share asked for once more, with the number; then cut at a sentence."""
        found = list(digests)
        long = [place for place, digest in enumerate(digests) if not self._fits(digest, share)]
        prompts = [self._once_more(parts[place], digests[place], share) for place in long]
        for place, reply in zip(long, self._gather(prompts, share), strict=True):
            if isinstance(reply, Reply):
                found[place] = reply.text.strip() or found[place]
            elif reply.error_class not in ("truncated", "refused", "bad_input"):
                raise reply
            if not self._fits(found[place], share):
                tokens = self._ctx.count_tokens(found[place], self._model)
                self._ctx.log.warning("a digest longer than asked was cut", tokens=tokens, at_most=share)
                found[place] = self._cut(found[place], share)
        return found

    def _once_more(self, part: str, digest: str, share: int) -> Prompt:
        words = int(self._ctx.count_tokens(digest, self._model) * WORDS_PER_TOKEN)
        return [
            {"role": "user", "content": _compress_prompt(part, share)},
            {"role": "assistant", "content": digest},
            {"role": "user", "content": _SHORTER.format(found=words, words=int(share * WORDS_PER_TOKEN))},
        ]


def _compress_prompt(part: str, share: int) -> str:
    return _COMPRESS.format(words=int(share * WORDS_PER_TOKEN), text=part)


def _can_be_halved(failure: AttemptFailed, part: str) -> bool:
    return failure.code == "context-length" and estimate_tokens(part) > LEAST_PART_TOKENS


def _joined(digests: Sequence[str]) -> str:
    return "\n\n".join(digest for digest in digests if digest)
