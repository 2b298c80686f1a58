"""What a name of a model stands for: as `pop models` and the dashboard tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pop.errors import PopError
from pop.models.catalogue import Catalogue
from pop.models.entries import ModelEntry, shown_url
from pop.models.prices import price_of
from pop.models.providers.command import PROGRAM_HINT, command_problem
from pop.settings import Root, Settings

LIMITS = ("concurrency", "requests_per_minute", "tokens_per_minute")


def model_row(
    catalogue: Catalogue, name: str, environ: Mapping[str, str], root: Root, settings: Settings
) -> dict[str, Any]:
    """All there is to say about a name; one whose entry is wrong, or leads on, has no model of its own."""
    row: dict[str, Any] = {"name": name, "meaning": catalogue.meaning(name), "error": None, "identity": None}
    try:
        route = catalogue.route(name)
    except PopError as error:
        return {**row, "error": {"message": error.message, "where": error.where, "hint": error.hint}}
    row["route"] = [[entry.name for entry in rung] for rung in route.rungs]
    if row["meaning"]:
        return row
    (entry,) = route.entries
    row |= {"identity": entry.shared_identity, **_about(entry, environ)}
    if problem := command_problem(entry, environ, root.path):
        where = settings.place("models", name, "command")
        row |= {"identity": None, "error": {"message": problem, "where": where, "hint": PROGRAM_HINT}}
    return row


def _about(entry: ModelEntry, environ: Mapping[str, str]) -> dict[str, Any]:
    price = price_of(entry)
    key = None
    if entry.key_env:
        key = {"variable": entry.key_env, "set": bool(environ.get(entry.key_env))}
    return {
        "provider": entry.provider,
        "model": entry.model,
        "at": " ".join(entry.command) or shown_url(entry.base_url or "") or None,
        "key": key,
        **{name: getattr(entry, name) for name in LIMITS},
        "shared": {name: getattr(entry.shared, name) for name in ("name", *LIMITS)},
        "price": price.model_dump(exclude_none=True) if price else None,
        "structured": entry.structured,
    }
