"""The provider `replay` (under work)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pop.models.providers import Setup
from pop.models.request import Answer, Form, ModelError, ModelRequest, Origin

if TYPE_CHECKING:
    from pop.models.catalogue import ModelEntry


class ReplayProvider:
    """See the module."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    async def answer(self, request: ModelRequest, entry: ModelEntry, origin: Origin, form: Form | None) -> Answer:
        raise ModelError("bug", "under work")
