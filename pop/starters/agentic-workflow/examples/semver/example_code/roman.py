"""Roman numerals from I to MMMCMXCIX."""

from __future__ import annotations

import re

# thousands, hundreds, tens, ones; each in its subtractive spelling
_NUMERAL = re.compile(r"(M{0,3})(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
_VALUES = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}


def parse(text: str) -> int:
    """The number that a Roman numeral spells.

    Raises:
        ValueError: `text` is no numeral in upper case with the usual subtractions.
    """
    if not text or not _NUMERAL.fullmatch(text):
        raise ValueError(f"{text!r} is no Roman numeral")
    values = [_VALUES[letter] for letter in text]
    signs = [-1 if value < max(values[place:]) else 1 for place, value in enumerate(values)]
    return sum(sign * value for sign, value in zip(signs, values, strict=True))
