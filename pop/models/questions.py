"""Further questions to the gateway, asked by the supervisor and by commands (the table in `gateway`)."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

PATIENCE_S = 2.0
MAX_BYTES = 2**24


async def ask_gateway(address: str | None, question: dict[str, Any], patience_s: float = PATIENCE_S) -> Any:
    """The answer to one question, e.g. ``{"figures": True}``; None when the gateway gives none in time."""
    if address is None:
        return None
    try:
        async with asyncio.timeout(patience_s):
            reader, writer = await asyncio.open_unix_connection(address, limit=MAX_BYTES)
            try:
                writer.write(orjson.dumps({"id": 1, **question}) + b"\n")
                return orjson.loads(await reader.readline()).get(next(iter(question)))
            finally:
                writer.close()
    except (OSError, ValueError, AttributeError):  # a TimeoutError is an OSError
        return None
