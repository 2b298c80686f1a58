"""What speaks to models: one file and one row each; an installed package adds one by the entry point ``pop.providers``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pop.models.request import Answer, Form, ModelRequest, Origin

if TYPE_CHECKING:
    from pop.models.catalogue import ModelEntry


@dataclass(frozen=True)
class Setup:
    """What a provider is made with: the gateway's environment with its keys, and the root's folder."""

    environ: Mapping[str, str]
    root: Path


class Provider(Protocol):
    """One way of asking, made with a `Setup`. Instances live as long as the gateway; many calls use one at once."""

    async def answer(self, request: ModelRequest, entry: ModelEntry, origin: Origin, form: Form | None) -> Answer:
        """Ask once; the gateway bounds the time and asks again.

        Args:
            origin: Who asks.
            form: How to ask for the request's schema; None when there is none, or when the provider has one way only.

        Raises:
            ModelError: `curable` when asking again may help.
        """


@dataclass(frozen=True)
class Kind:
    """A row: where the provider's class is, which keys of ``[models.NAME]`` it must have, and whether it takes forms.

    `local`: no network, nothing to pay, and no other provider's stand-in.
    """

    target: str
    needs: tuple[str, ...] = ("model",)
    forms: bool = False
    local: bool = False


KINDS: Mapping[str, Kind] = {
    "openai": Kind("pop.models.providers.openai:OpenAIProvider", forms=True),
    "command": Kind("pop.models.providers.command:CommandProvider", needs=("command",)),
    "builtin": Kind("pop.models.providers.builtin:BuiltinProvider", needs=(), local=True),
    "replay": Kind("pop.models.providers.replay:ReplayProvider", local=True),
}


@cache
def kinds() -> Mapping[str, Kind]:
    """The rows above and those of installed packages, which cannot take a row's name."""
    found = {point.name: Kind(point.value) for point in entry_points(group="pop.providers")}
    return {**found, **KINDS}


def open_provider(kind: str, setup: Setup) -> Provider:
    """The provider of this kind."""
    module, _, attribute = kinds()[kind].target.partition(":")
    provider: Provider = getattr(import_module(module), attribute)(setup)
    return provider
