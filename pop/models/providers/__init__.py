"""What speaks to models: one file and one row each; an installed package adds one by the entry point ``pop.providers``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pop.errors import ConfigError, safe
from pop.models.request import Answer, Form, ModelRequest, Origin

if TYPE_CHECKING:
    from pop.models.entries import ModelEntry

GROUP = "pop.providers"


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

    `takes`: the keys of ``[models.NAME]`` and ``[providers.NAME]`` that have an effect (None: all). `ours`: names that
    `options` cannot set, since the answer would not be read. `local`: no network, nothing to pay, and no other provider's stand-in.
    """

    target: str
    needs: tuple[str, ...] = ("model",)
    takes: frozenset[str] | None = None
    ours: frozenset[str] = frozenset()
    forms: bool = False
    local: bool = False


_GATEWAYS = frozenset(  # what the gateway itself looks at, whoever answers
    {"provider", "kind", "model", "concurrency", "requests_per_minute", "tokens_per_minute", "price", "timeout_s"}
    | {"tries", "reuse"}
)

KINDS: Mapping[str, Kind] = {
    "openai": Kind(
        "pop.models.providers.openai:OpenAIProvider",
        forms=True,
        ours=frozenset({"model", "messages", "input", "stream"}),
    ),
    "command": Kind(
        "pop.models.providers.command:CommandProvider",
        needs=("command",),
        takes=_GATEWAYS | {"command", "api_key_env"},
    ),
    "builtin": Kind("pop.models.providers.builtin:BuiltinProvider", needs=(), takes=_GATEWAYS, local=True),
    "replay": Kind("pop.models.providers.replay:ReplayProvider", takes=_GATEWAYS, local=True),
}


class BrokenProvider(ConfigError):
    """What an installed package calls a provider is none."""

    code = "broken-provider"


@cache
def kinds() -> Mapping[str, Kind]:
    """The rows above and those of installed packages, which cannot take a row's name."""
    found = {point.name: Kind(point.value) for point in _installed()}
    return {**found, **KINDS}


def _installed() -> list[EntryPoint]:
    try:
        return list(entry_points(group=GROUP))
    except Exception:  # one damaged package among all that are installed: the others count
        return [point for package in distributions() for point in _points_of(package)]


def _points_of(package: Distribution) -> list[EntryPoint]:
    try:
        return [point for point in package.entry_points if point.group == GROUP]
    except Exception:
        return []


def load_provider(kind: str) -> Callable[[Setup], Provider]:
    """The class of this kind, imported; nothing is made of it.

    Raises:
        BrokenProvider: An installed package names what cannot be imported, or what is no provider.
    """
    target = kinds()[kind].target
    try:
        found: Callable[[Setup], Provider] = EntryPoint(kind, target, GROUP).load()
    except (Exception, SystemExit) as error:
        raise _broken(kind, f"{type(error).__name__}: {error}") from error
    if not callable(getattr(found, "answer", None)):
        raise _broken(kind, f"{target} has no method `answer`")
    return found


def open_provider(kind: str, setup: Setup) -> Provider:
    """The provider of this kind; raises as `load_provider`, also when it cannot be made."""
    made = load_provider(kind)
    try:
        return made(setup)
    except (Exception, SystemExit) as error:
        if kind in KINDS:
            raise
        raise _broken(kind, f"{type(error).__name__}: {error}") from error


def _broken(kind: str, why: str) -> BrokenProvider:
    where = f"entry point {GROUP}: {kind} = {kinds()[kind].target}"
    hint = "mend or remove the package that brings it"
    return BrokenProvider(f"the provider {kind!r} cannot be used: {safe(why, 500)}", where=where, hint=hint)
