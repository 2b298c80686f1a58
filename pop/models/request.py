"""What is asked of a model and what comes back, as it stands on the wire and in the store."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pop.errors import EXIT_RUN_FAILED, ErrorClass, PopError

FinishReason = Literal["stop", "length", "refusal", "content_filter"]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Message(_Wire):
    role: Literal["system", "user", "assistant"]
    content: str


class ModelRequest(_Wire):
    """One question. `schema` is the JSON Schema the answer must obey."""

    model: str
    messages: list[Message]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    schema_name: str = "output"
    temperature: float | None = None
    max_output_tokens: int | None = None

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


class Answer(_Wire):
    """One answer. `cached` says that it came from the store; `cost_usd` is what it cost when it was made."""

    text: str
    model: str
    provider: str
    provider_model: str
    finish_reason: FinishReason = "stop"
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cost_usd: float | None = None
    ms: float = 0.0
    cached: bool = False
    key: str = ""
    note: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)


class ModelError(PopError):
    """A model could not answer; the class decides what the supervisor does about it.

    Args:
        retry_after_s: What the server asked for, in seconds.
        curable: Asking the same server again may help.
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
    ) -> None:
        super().__init__(message, where=where, hint=hint, code=error_class.replace("_", "-"))
        self.error_class: ErrorClass = error_class
        self.retry_after_s = retry_after_s
        self.curable = curable


def request_hash(request: ModelRequest) -> str:
    """The sha256 of everything that shapes the answer."""
    value = request.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def answer_key(origin: Origin, request_sha256: str) -> str:
    """The name of an answer in the store: run, step folder, generation, request, and the how-manieth.

    The attempt is not part of it: an attempt that follows a crash is answered from the store.
    """
    parts = (origin.run_id, origin.instance, str(origin.generation), request_sha256, str(origin.n))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
