"""What is asked of a model and what comes back, as it stands on the wire and in the store."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pop.errors import EXIT_RUN_FAILED, ErrorClass, PopError
from pop.records import BudgetLimit

FinishReason = Literal["stop", "length", "refusal", "content_filter"]
# How a schema goes to a server: response_format json_schema (strict, or as it is), json_object with the schema beside
# or in words, or words alone.
Form = Literal["strict", "schema", "object+schema", "object", "prompt"]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Message(_Wire):
    role: Literal["system", "user", "assistant"]
    content: str


class ModelRequest(_Wire):
    """One question. `schema` is the JSON Schema the answer must obey.

    `asked` is the model's name as the task said it, before the run's own `models` gave it another meaning. `reuse_s`
    allows an answer to the same question that is at most so many seconds old, whoever asked. `round` is the round of
    refinement, from 0: a ladder moves up with it. None of these three shapes the answer's hash.
    """

    model: str
    asked: str = ""
    messages: list[Message]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    schema_name: str = "output"
    temperature: float | None = None
    max_output_tokens: int | None = None
    reuse_s: float | None = None
    round: int = 0

    @property
    def text(self) -> str:
        """All user messages as one text."""
        return "\n\n".join(message.content for message in self.messages if message.role == "user")


class Origin(_Wire):
    """Who asks. `n` counts how often this attempt has asked the very same before, from 0."""

    run_id: str
    instance: str
    generation: int
    attempt: int
    n: int = 0
    step: str = ""
    pipeline: str = ""
    budgets: list[BudgetLimit] = Field(default_factory=list)


class Tokens(_Wire):
    """What a provider counts. Cached input is part of the input, reasoning part of the output.

    `estimated`: the provider did not say, and this is our estimate.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False


class Try(_Wire):
    """A request that brought no answer. `billed` says that the provider counts it, or may (then it is estimated)."""

    model: str
    error_class: str
    message: str
    ms: float
    billed: bool = False
    tokens: Tokens = Field(default_factory=Tokens)
    cost_usd: float | None = None


@dataclass(frozen=True)
class RateNews:
    """What a server's headers say about its limits; None where they say nothing. Times in seconds from now."""

    requests_limit: float | None = None
    requests_left: float | None = None
    requests_reset_s: float | None = None
    tokens_limit: float | None = None
    tokens_left: float | None = None
    tokens_reset_s: float | None = None
    retry_after_s: float | None = None


class Answer(Tokens):
    """One answer. `cached` says that it came from the store; `cost_usd` is what it cost when it was made.

    `form` is how the schema was asked for; `prices` names the table and version of the price; `tries` are the requests
    before this one that brought no answer. `rate` is for the gateway alone.
    """

    text: str
    model: str
    provider: str
    provider_model: str
    finish_reason: FinishReason = "stop"
    cost_usd: float | None = None
    prices: str | None = None
    ms: float = 0.0
    cached: bool = False
    key: str = ""
    request_sha256: str = ""
    form: Form | None = None
    note: str | None = None
    warnings: list[str] = Field(default_factory=list)
    tries: list[Try] = Field(default_factory=list)
    extra: dict[str, Any] = Field(default_factory=dict)
    rate: RateNews | None = Field(default=None, exclude=True)


class ModelError(PopError):
    """A model could not answer; the class decides what the supervisor does about it.

    Args:
        retry_after_s: What the server asked for, in seconds.
        curable: Asking the same server again may help.
        code: The permanent code, where it says more than the class (``insufficient-quota``).
        tokens: What the provider counts for it all the same; None: nothing. With `estimated` it may have.
        wrong_form: The server does not know this way of asking for a schema.
        rate: What the server's headers say about its limits.
    """

    exit_code = EXIT_RUN_FAILED

    def __init__(
        self,
        error_class: ErrorClass,
        message: str,
        *,
        where: object = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
        curable: bool = False,
        code: str | None = None,
        tokens: Tokens | None = None,
        wrong_form: bool = False,
        rate: RateNews | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint, code=code or error_class.replace("_", "-"))
        self.error_class: ErrorClass = error_class
        self.retry_after_s = retry_after_s
        self.curable = curable
        self.tokens = tokens
        self.wrong_form = wrong_form
        self.rate = rate
        self.tries: list[Try] = []


def request_hash(request: ModelRequest) -> str:
    """The sha256 of everything that shapes the answer."""
    value = request.model_dump(mode="json", by_alias=True, exclude={"asked", "reuse_s", "round"})
    return _sha256(value)


def prompt_hash(request: ModelRequest) -> str:
    """The same without the model's name: what a replay looks for."""
    value = request.model_dump(mode="json", by_alias=True, exclude={"model", "asked", "reuse_s", "round"})
    return _sha256(value)


def _sha256(value: Any) -> str:
    try:
        data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer beyond 64 bits, in a schema
        data = json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def read_line(line: bytes) -> Any:
    """A line of the wire; integers beyond 64 bits stay exact.

    Raises:
        ValueError: It is no JSON.
    """
    return json.loads(line) if _LONG in line.translate(_DIGITS) else orjson.loads(line)


_LONG = b"0" * 19
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)  # a tenth of what a regular expression takes


def answer_key(origin: Origin, request_sha256: str) -> str:
    """The name of an answer in the store: run, step folder, generation, request, and the how-manieth.

    The attempt is not part of it: an attempt that follows a crash is answered from the store.
    """
    parts = (origin.run_id, origin.instance, str(origin.generation), request_sha256, str(origin.n))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
