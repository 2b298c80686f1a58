"""Condensing a text to a number of tokens: its parts side by side, then the digests.

What is asked is decided by the plain estimate of tokens, whatever the gateway has learnt meanwhile, so that the same text
makes the same prompts and stored answers are found again. The gateway's count decides whether the result fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pop.durations import ANY_AGE_S
from pop.errors import AttemptFailed
from pop.models.tokens import cut_text, estimate_tokens, split_text, weigh
from pop.replies import Call, Prompt, Reply
from pop.trail import Log

_COMPRESS = """Condense the document to at most {words} words. Keep names, numbers and claims; invent nothing.

<document>
{text}
</document>"""
_SHORTER = "That has about {found} words. Give it again with at most {words} words."
PART_TOKENS = 3000
LEAST_PART_TOKENS = 200  # a part that is too long for a model is halved down to this
LEAST_DIGEST_TOKENS = 60
WORDS_PER_TOKEN = 0.75


class Asker(Protocol):
    """What condensing takes of a stage's context."""

    log: Log
    max_output_tokens: int | None

    def count_tokens(self, text: str, model: str | None = None) -> int: ...

    def gather_each(self, calls: Sequence[Prompt | Call]) -> list[Reply | AttemptFailed]: ...


class Compression:
    """One text on its way to `max_tokens`."""

    def __init__(self, ctx: Asker, max_tokens: int, model: str | None) -> None:
        self._ctx = ctx
        self._max_tokens = max_tokens
        self._model = model
        self.calls = 0

    def run(self, text: str) -> str:
        """Round upon round; each but the last at least halves the text, or cuts its digests."""
        while parts := [part.strip() for part in split_text(text, PART_TOKENS) if part.strip()]:
            share = max(self._max_tokens // len(parts), LEAST_DIGEST_TOKENS)
            digests = self._digests(parts, share)
            shorter = _joined(digests)
            fits = estimate_tokens(shorter) <= self._max_tokens
            last = fits or len(parts) == 1 or share * len(parts) <= self._max_tokens
            if not fits and (last or weigh(shorter) > weigh(text) / 2):
                digests = self._shortened(parts, digests, share)
                shorter = _joined(digests)
            if last:
                return self._fitting(parts, digests, shorter, share)
            text = shorter
        return ""

    def _fitting(self, parts: Sequence[str], digests: Sequence[str], shorter: str, share: int) -> str:
        """The digests, as the gateway counts them: a model that needs more tokens than estimated gets fewer words."""
        found = self._count(shorter)
        if found > self._max_tokens and estimate_tokens(shorter) <= self._max_tokens:
            share = max(1, share * self._max_tokens // found)
            shorter = _joined(self._shortened(parts, digests, share))
            found = self._count(shorter)
        if found > self._max_tokens:
            self._say_it_was_cut(found, self._max_tokens)
        return cut_text(shorter, lambda part: self._count(part) <= self._max_tokens)

    def _count(self, text: str) -> int:
        return self._ctx.count_tokens(text, self._model)

    def _say_it_was_cut(self, tokens: int, most: int) -> None:
        self._ctx.log.warning("a digest longer than asked was cut", tokens=tokens, at_most=most)

    def _gather(self, prompts: Sequence[Prompt], share: int) -> list[Reply | AttemptFailed]:
        self.calls += len(prompts)
        limit = self._ctx.max_output_tokens  # of the task, which is about its own answers
        most = max(limit, 4 * share) if limit else None
        calls = [Call(prompt, None, self._model, max_output_tokens=most, reuse_s=ANY_AGE_S) for prompt in prompts]
        return self._ctx.gather_each(calls)

    def _digests(self, parts: Sequence[str], share: int) -> list[str]:
        """One digest for each part; parts that are too long for the model are halved, all of them at once."""
        replies = self._gather([_compress_prompt(part, share) for part in parts], share)
        for reply, part in zip(replies, parts, strict=True):
            if isinstance(reply, AttemptFailed) and not _can_be_halved(reply, part):
                raise reply
        halved = {
            place: split_text(parts[place], estimate_tokens(parts[place]) // 2 + 1)
            for place, reply in enumerate(replies)
            if isinstance(reply, AttemptFailed)
        }
        pieces = [piece for halves in halved.values() for piece in halves]
        below = iter(self._digests(pieces, max(share // 2, LEAST_DIGEST_TOKENS)) if pieces else [])
        return [
            reply.text.strip() if isinstance(reply, Reply) else _joined([next(below) for _ in halved[place]])
            for place, reply in enumerate(replies)
        ]

    def _shortened(self, parts: Sequence[str], digests: Sequence[str], share: int) -> list[str]:
        """The digests longer than their share asked for once more, with the number; then cut at a sentence."""
        found = list(digests)
        long = [place for place, digest in enumerate(digests) if estimate_tokens(digest) > share]
        prompts = [self._once_more(parts[place], digests[place], share) for place in long]
        for place, reply in zip(long, self._gather(prompts, share), strict=True):
            if isinstance(reply, Reply):
                found[place] = reply.text.strip() or found[place]
            elif reply.error_class not in ("truncated", "refused", "bad_input"):
                raise reply
            tokens = estimate_tokens(found[place])
            if tokens > share:
                self._say_it_was_cut(tokens, share)
                found[place] = cut_text(found[place], lambda text: estimate_tokens(text) <= share)
        return found

    def _once_more(self, part: str, digest: str, share: int) -> Prompt:
        words = int(estimate_tokens(digest) * WORDS_PER_TOKEN)
        return [
            {"role": "user", "content": _compress_prompt(part, share)},
            {"role": "assistant", "content": digest},
            {"role": "user", "content": _SHORTER.format(found=words, words=int(share * WORDS_PER_TOKEN))},
        ]


def _compress_prompt(part: str, share: int) -> str:
    return _COMPRESS.format(words=int(share * WORDS_PER_TOKEN), text=part)


def _can_be_halved(failure: AttemptFailed, part: str) -> bool:
    return failure.code == "context-length" and estimate_tokens(part) > LEAST_PART_TOKENS


def _joined(digests: Sequence[str]) -> str:
    return "\n\n".join(digest for digest in digests if digest)
