"""The text of a seed where it lies, as a file, a folder or an archive: its JSON, the places in it, and its mistakes with them.

What lies there may be no seed, or go: `text_of` raises OSError, KeyError or one of `BROKEN_ZIP`, `content_of` also BadJson and
UnicodeDecodeError.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pop.errors import PopError, SeedRejected, did_you_mean
from pop.places import Places, find_places
from pop.queue import BROKEN_ZIP, open_archive, read_entry
from pop.records import BadJson, Seed, read_json
from pop.seedcheck import Mistake, SeedMismatch
from pop.seeds import parse_seed


def content_of(path: Path, called: str | None = None) -> tuple[Any, Places]:
    """The JSON of a seed that was found to be one, and the places in it."""
    data, inner = text_of(path)
    return read_json(data), find_places(data.decode(), f"{called or path}{inner}")


def text_of(path: Path) -> tuple[bytes, str]:
    """The bytes of a seed's JSON, and where they lie in it."""
    if path.is_dir():
        return (path / "seed.json").read_bytes(), "/seed.json"
    if path.suffix.lower() == ".zip":
        with open_archive(path) as opened, zipfile.ZipFile(opened) as archive:
            return read_entry(archive, archive.getinfo("seed.json")), "/seed.json"
    return path.read_bytes(), ""


def seed_at(path: Path) -> Seed:
    """A seed in whose file, folder or archive nothing was found wrong.

    Raises:
        SeedRejected: Something is, or it has gone meanwhile.
    """
    try:
        return parse_seed(text_of(path)[0])
    except (*BROKEN_ZIP, KeyError, OSError) as error:
        raise SeedRejected(f"it cannot be read: {error}") from None


def envelope_at(path: Path) -> Seed | None:
    """What the envelope of a seed says; None where there is none, or no seed."""
    try:
        value, _ = content_of(path)
        return Seed.model_validate(value) if isinstance(value, dict) and "data" in value else None
    except (*BROKEN_ZIP, OSError, BadJson, KeyError, UnicodeDecodeError, ValidationError):
        return None


def misfit(mistake: Mistake, places: Places, within: tuple[str, ...]) -> SeedMismatch:
    """One mistake as an error of its own, with line and column."""
    error = SeedMismatch([mistake], where=places.of((*within, *mistake.path)), file="")
    error.message, error.hint = str(mistake), mistake.hint
    return error


def explained(path: Path, error: SeedRejected) -> list[PopError]:
    """A refusal, with line and column where it is about a key of the envelope."""
    if error.code != SeedRejected.code or (path.suffix.lower() == ".zip" and error.where == path.name):
        return [error]  # the second: of an archive that is not to be unpacked
    try:
        value, places = content_of(path)
    except (*BROKEN_ZIP, OSError, BadJson, KeyError, UnicodeDecodeError):
        return [error]
    if not isinstance(value, dict) or "data" not in value:
        return [error]
    try:
        Seed.model_validate(value)
    except ValidationError as found:
        return [_explain(entry, places) for entry in found.errors()]
    key = error.message.partition(":")[0]
    where = places.of((key,)) if key in value else error.where
    return [SeedRejected(error.message, where=where, hint=error.hint, code=error.code)]


def _explain(entry: Mapping[str, Any], places: Places) -> PopError:
    path = tuple(entry["loc"])
    if entry["type"] == "extra_forbidden":
        hint = did_you_mean(str(path[-1])[:80], Seed.model_fields)
        return SeedRejected(f"unknown key {str(path[-1])[:80]!r} in an envelope", where=places.of_key(path), hint=hint)
    dotted = ".".join(str(part) for part in path)
    return SeedRejected(f"{dotted}: {entry['msg'].lower()}", where=places.of(path))


def no_envelope(value: Mapping[str, Any], places: Places) -> Iterator[PopError]:
    """An object that would be an envelope but for a misspelt ``data``."""
    near = [key for key in value if sorted(key.lower()) == sorted("data")] or get_close_matches("data", value, 1, 0.8)
    if near and any(key in value for key in Seed.model_fields if key not in ("name", "id")):
        hint = "did you mean 'data'? without that key the whole object is the data"
        yield SeedRejected(f"unknown key {near[0][:80]!r} in an envelope", where=places.of_key((near[0],)), hint=hint)
