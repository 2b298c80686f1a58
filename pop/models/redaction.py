"""Takes secrets out of texts by their value, in whichever form they stand there.

The forms are: plain, JSON- and HTML-escaped, URL-quoted, base64 (wherever it begins in the encoded bytes), hexadecimal; also
what is left where a text was cut inside of one, from 12 characters of the secret on.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

REDACTED = "[redacted]"
PIECE_CHARS = 12


class Redactor:
    """Looks for each form of each secret by its first and its last piece, and from there for as much as is there."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in forms_of(secret)}
        self._heads = {(head, whole) for whole, head, _ in forms}
        self._tails = {(tail, whole) for whole, head, tail in forms if head != whole}

    def redact(self, text: str) -> str:
        spans = sorted([*self._from_heads(text), *self._from_tails(text)])
        if not spans:
            return text
        parts: list[str] = []
        at = 0
        for start, end in spans:
            if start > at or not parts:
                parts += [text[at:start], REDACTED]
            at = max(at, end)
        return "".join([*parts, text[at:]])

    def _from_heads(self, text: str) -> Iterator[tuple[int, int]]:
        for head, whole in self._heads:
            start = text.find(head)
            while start >= 0:
                end = start + _shared(whole, text[start : start + len(whole)])
                yield start, end
                start = text.find(head, end)

    def _from_tails(self, text: str) -> Iterator[tuple[int, int]]:
        for tail, whole in self._tails:
            found = text.find(tail)
            while found >= 0:
                end = found + len(tail)
                before = text[max(0, end - len(whole)) : end]
                yield end - _shared(whole[::-1], before[::-1]), end
                found = text.find(tail, end)

    def redact_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, Mapping):
            return {self.redact_value(name): self.redact_value(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.redact_value(inner) for inner in value]
        return value


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginning on."""
    if one == other:
        return len(one)
    return next(
        (number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, (one, other)))
    )


def forms_of(secret: str) -> set[tuple[str, str, str]]:
    """Every way a secret may stand in a text: ``(whole, first piece, last piece)``.

    The pieces hold at least 12 of its characters; those of a short secret are the whole.
    """
    found = set()
    for encode in _ENCODINGS:
        whole = encode(secret)
        head, tail = encode(secret[:PIECE_CHARS]), encode(secret[-PIECE_CHARS:])
        if len(secret) <= PIECE_CHARS or not (whole.startswith(head) and whole.endswith(tail)):
            head = tail = whole
        found.add((whole, head, tail))
    for alphabet in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            found.update(_in_base64(secret.encode("utf-8", "surrogatepass"), shift, alphabet))
    return found


def _json(ascii_only: bool, times: int = 1) -> Callable[[str], str]:
    def encode(text: str) -> str:
        for _ in range(times):
            text = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        return text

    return encode


def _percent(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _lower(text: str) -> str:
    return re.sub(r"%..", lambda match: match[0].lower(), text)


_ENCODINGS: tuple[Callable[[str], str], ...] = (
    str,
    _json(True),
    _json(False),
    _json(True, 2),
    lambda text: _json(False)(text).replace("/", "\\/"),
    lambda text: "".join(f"\\u{ord(character):04x}" for character in text),
    html.escape,
    lambda text: html.escape(text, quote=False),
    _percent,
    lambda text: _lower(_percent(text)),
    lambda text: quote(text, safe="/", errors="replace"),
    lambda text: quote_plus(text, errors="replace"),
    lambda text: _lower(quote_plus(text, errors="replace")),
    lambda text: text.encode("utf-8", "surrogatepass").hex(),
    lambda text: text.encode("utf-8", "surrogatepass").hex().upper(),
)


def _in_base64(secret: bytes, shift: int, encode: Callable[[bytes], bytes]) -> Iterator[tuple[str, str, str]]:
    """What base64 makes of it after `shift` other bytes, whatever those are and whatever follows; URL-quoted too."""

    def core(part: bytes, shift: int) -> str:
        text = encode(b"\0" * shift + part).decode().rstrip("=")
        return text[(0, 2, 3)[shift] : len(text) - (1 if (shift + len(part)) % 3 else 0)]

    cut = max(0, len(secret) - PIECE_CHARS)
    plain = core(secret, shift), core(secret[:PIECE_CHARS], shift), core(secret[cut:], (shift + cut) % 3)
    for whole, head, tail in {plain, (_percent(plain[0]), _percent(plain[1]), _percent(plain[2]))}:
        yield (whole, head, tail) if cut else (whole, whole, whole)
