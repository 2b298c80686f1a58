"""Rules held against one text, one file or one command's end: what the verdict is, and on what evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Verdict:
    """`evidence`: what was found, in a few words: a size, a line, an error with its place."""

    status: Literal["met", "unmet", "unchecked"]
    evidence: str
