"""What an answer cost: by the price in pop.toml, else by the packaged table, else unknown."""

from __future__ import annotations

from pop.models.catalogue import ModelEntry
from pop.models.request import Answer

MILLION = 1_000_000


def cost_usd(answer: Answer, entry: ModelEntry) -> float | None:
    """USD, or None when nobody knows the price. The embedded engine costs nothing."""
    if entry.provider == "builtin":
        return 0.0
    if entry.price is not None:
        cached = min(answer.cached_input_tokens, answer.input_tokens)
        cached_price = entry.price.cached_input if entry.price.cached_input is not None else entry.price.input
        paid = (answer.input_tokens - cached) * entry.price.input + cached * cached_price
        return round((paid + answer.output_tokens * entry.price.output) / MILLION, 9)
    return _by_table(answer, entry)


def _by_table(answer: Answer, entry: ModelEntry) -> float | None:
    if entry.base_url is not None:  # somebody else's server, whatever its models are called
        return None
    from genai_prices import Usage, calc_price  # takes 0.7 s, so only when it is asked for

    usage = Usage(
        input_tokens=answer.input_tokens,
        cache_read_tokens=answer.cached_input_tokens,
        output_tokens=answer.output_tokens,
    )
    try:
        return float(calc_price(usage, model_ref=answer.provider_model, provider_id="openai").total_price)
    except LookupError:
        return None
