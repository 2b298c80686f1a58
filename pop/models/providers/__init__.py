"""What speaks to models: one file and one row each."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from pop.models.request import Answer, ModelRequest

if TYPE_CHECKING:
    from pop.models.catalogue import ModelEntry


class Provider(Protocol):
    """One way of asking. Instances live as long as the gateway and are used by many calls at once."""

    async def answer(self, request: ModelRequest, entry: ModelEntry) -> Answer:
        """Ask once; the gateway bounds the time and asks again.

        Raises:
            ModelError: `curable` when asking again may help.
        """


PROVIDERS: Mapping[str, str] = {
    "openai": "pop.models.providers.openai:OpenAIProvider",
    "builtin": "pop.models.providers.builtin:BuiltinProvider",
}


def open_provider(name: str, environ: Mapping[str, str]) -> Provider:
    """The provider called `name`; it reads its keys from `environ`."""
    module, _, attribute = PROVIDERS[name].partition(":")
    provider: Provider = getattr(import_module(module), attribute)(environ)
    return provider
