"""What a call will use, rather too much, and its price: reserved before it goes, and learnt from the answers."""

from __future__ import annotations

from dataclasses import dataclass

from pop.models.entries import ModelEntry
from pop.models.prices import cost_usd
from pop.models.request import Answer, ModelRequest, Tokens
from pop.models.tokens import TokenCounter, weigh

TYPICAL_OUTPUT = 500.0  # tokens, until a model's own answers say more
MOST_OUTPUT = 200_000  # no server's count of one answer moves the estimate further


@dataclass(frozen=True, slots=True)
class Expected:
    """The tokens of one call, and their price in USD by the price list `prices` (None: nobody knows it)."""

    tokens: Tokens
    cost_usd: float | None
    prices: str | None


class Expectations:
    """By model: its characters per token, and how long its answers are."""

    def __init__(self, tokens: TokenCounter) -> None:
        self._tokens = tokens
        self._typical: dict[str, float] = {}

    def of(self, request: ModelRequest, entry: ModelEntry) -> Expected:
        """What this request will use of this model."""
        text = "".join(message.content for message in request.messages)
        most = request.max_output_tokens or entry.max_output_tokens
        typical = self._typical.get(entry.identity, TYPICAL_OUTPUT)
        tokens = Tokens(
            input_tokens=self._tokens.count(text, entry.model)[0] + 4 * len(request.messages),
            output_tokens=most or int(typical),
            estimated=True,
        )
        return Expected(tokens, *cost_usd(tokens, entry, entry.model))

    def learn(self, request: ModelRequest, entry: ModelEntry, answer: Answer) -> None:
        """The model answered, and counted what it used."""
        before = self._typical.get(entry.identity, TYPICAL_OUTPUT)
        self._typical[entry.identity] = before + 0.1 * (min(answer.output_tokens, MOST_OUTPUT) - before)
        self._tokens.learn(
            entry.model, sum(weigh(message.content) for message in request.messages), answer.input_tokens
        )
