"""Costs as comma-separated values: `pop cost --csv`, the dashboard's link and the API."""

from __future__ import annotations

import csv
import io

from pop.costs import figures
from pop.errors import safe
from pop.models.calls import Sum

COLUMNS = (
    "calls", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cost_usd", "estimated_calls",
    "unpriced_calls",
)  # fmt: skip


def csv_of(by: str, rows: list[tuple[str, Sum]]) -> str:
    """A line of names, then one for each row, without the total."""
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow([by, *COLUMNS])
    for name, part in rows:
        row = {**figures(part), "cost_usd": all_digits(part.nano_usd)}
        writer.writerow([_harmless(name), *(row[column] for column in COLUMNS)])
    return sheet.getvalue()


def _harmless(cell: str) -> str:
    """A cell that a spreadsheet would take for a formula begins with an apostrophe instead."""
    shown = safe(cell, one_line=True)
    return f"'{shown}" if shown.lstrip().startswith(("=", "+", "-", "@")) else shown


def all_digits(nano_usd: int) -> str:
    """All digits there are, and at least four: ``0.0012``, ``0.000000025``."""
    whole, part = divmod(nano_usd, 10**9)
    digits = f"{part:09d}"
    return f"{whole}.{digits[:4]}{digits[4:].rstrip('0')}"
