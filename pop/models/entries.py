"""One model that can be asked, with all that pop.toml and its provider say of it. Which name stands for which: `catalogue`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pop.settings import Price


@dataclass(frozen=True)
class Shared:
    """What all models of one endpoint share: its limits, of which None is none."""

    name: str
    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True)
class ModelEntry:
    """One model that can be asked. `provider` is its kind; `key_env` names the variable with the key."""

    name: str
    provider: str
    model: str
    base_url: str | None = None
    key_env: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    api: str = "chat"
    command: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 64
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    shared: Shared = Shared("")
    price: Price | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    timeout_s: float = 120.0
    tries: int = 4
    structured: str | None = None
    reuse_s: float | None = None

    @cached_property
    def identity(self) -> str:
        """What answers: the same identity under two names is the same model."""
        return "\0".join((self.provider, without_password(self.base_url or ""), self.model, *self.command))

    @cached_property
    def shared_identity(self) -> str:
        """What answers, and how it is asked: under the same one an earlier answer may be used again (`reuse`).

        Without `headers`, which hold secrets and change who pays, not what is asked.
        """
        how = (self.options, self.temperature, self.max_output_tokens, self.api)
        return f"{self.identity}\0{json.dumps(how, sort_keys=True, default=str)}"


def without_password(url: str) -> str:
    """A URL as it may be shown: without a user's name and password in it."""
    return re.sub(r"(?<=//)[^/?#@]*@", "", url, count=1)


def shown_url(url: str) -> str:
    """As `without_password`, and without the values of its query, where some servers take a key."""
    return re.sub(r"(?<==)[^&#]+", "...", without_password(url))
