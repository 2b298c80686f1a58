"""A seed as its bytes say it: read and checked before anything is made of it. Where it lies is `queue`'s matter."""

from __future__ import annotations

import codecs
import json
import re

from pydantic import ValidationError
from pydantic_core import from_json

from pop.durations import reuse_s
from pop.errors import SeedRejected, did_you_mean
from pop.events import unix_s
from pop.records import NAME_PATTERN, BadJson, Fork, Seed, read_json

BUDGETS = tuple(f"{scope}_{unit}" for scope in ("step", "run") for unit in ("usd", "tokens", "calls"))


def parse_seed(data: bytes, *, where: object = None) -> Seed:
    """A seed from its bytes: an envelope when there is a ``data`` key, else the whole object is the data.

    Raises:
        SeedRejected: It can never become a run; the message names the key.
    """
    try:
        value = read_json(data, where=where)
    except BadJson as error:
        raise SeedRejected(error.message, where=error.where, hint=error.hint, code=error.code) from None
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")
        raise SeedRejected(f"a seed is a JSON object, this is {kind}", where=where)
    if "data" not in value:
        return Seed(data=value)
    try:
        seed = Seed.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        known = ", ".join(Seed.model_fields)
        hint = f"with a 'data' key a seed is an envelope; its keys are {known}"
        raise SeedRejected(f"{path}: {first['msg'].lower()}", where=where, hint=hint) from None
    _check_envelope(seed, where)
    return seed


def _check_envelope(seed: Seed, where: object) -> None:
    if seed.name is not None:
        _check_name("name", seed.name, where)
    if seed.id is not None:
        _check_name("id", seed.id, where)
    if seed.pipeline is not None and not re.fullmatch(NAME_PATTERN, seed.pipeline):
        raise SeedRejected(f"pipeline: {seed.pipeline[:80]!r} is no pipeline's name", where=where, hint=NAME_PATTERN)
    if seed.fork is not None:
        _check_fork(seed.fork, where)
    unknown = sorted(set(seed.budget or {}) - set(BUDGETS))
    if unknown:
        hint = did_you_mean(unknown[0], BUDGETS)
        raise SeedRejected(f"budget: no budget is called {unknown[0][:80]!r}", where=where, hint=hint)
    for name, amount in (seed.budget or {}).items():
        if not name.endswith("_usd") and amount != int(amount):
            raise SeedRejected(f"budget: {name!r} must be a whole number", where=where)
    try:
        reuse_s(seed.reuse)
    except ValueError as error:
        raise SeedRejected(f"reuse: {error}", where=where) from None
    if seed.not_before is not None:
        try:
            unix_s(seed.not_before)
        except ValueError:
            hint = "write it as 2026-11-21T09:00:00Z"
            raise SeedRejected(f"not_before: {seed.not_before[:80]!r} is no time", where=where, hint=hint) from None


def _check_fork(fork: Fork, where: object) -> None:
    if not re.fullmatch(r"[0-9]{8}-[0-9]{6}-[a-z0-9-]{1,60}", fork.run):
        hint = "its id, as pop ls shows it"
        raise SeedRejected(f"fork.run: {fork.run[:80]!r} is no run's id", where=where, hint=hint)
    for path in fork.set:
        if path.partition(".")[0] == "seed":
            raise SeedRejected(f"fork.set: {path[:80]!r} is the seed's own", where=where, hint="write it into `data`")


def _check_name(key: str, name: str, where: object) -> None:
    if not 1 <= len(name) <= 120:
        raise SeedRejected(f"{key}: {len(name)} characters; between 1 and 120 are allowed", where=where)
    if not name.replace("\u00a0", " ").isprintable():
        raise SeedRejected(f"{key}: holds a control character", where=where)
    if "/" in name or "\\" in name or ".." in name:
        raise SeedRejected(f"{key}: {name!r} holds a slash or '..'", where=where, hint="it is a name, not a path")


def is_a_beginning(data: bytes) -> bool:
    """Whether more bytes could still make this valid JSON."""
    try:
        text, _ = codecs.utf_8_decode(data, "strict", False)
        if not text.strip():
            return True
        from_json(text, allow_partial="trailing-strings", allow_inf_nan=False)
    except (ValueError, RecursionError):
        return False
    return not _holds_a_whole_document(text)


def _holds_a_whole_document(text: str) -> bool:
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        return False
    return True
