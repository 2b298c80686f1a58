"""What a call cost: by the price in pop.toml, else by the packaged table of well-known hosts, else unknown.

Sums are whole billionths of a USD (`calls.nano`), so a cost has at most nine digits behind the point.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any

from pop.models.entries import ModelEntry
from pop.models.providers import kinds
from pop.models.request import Tokens
from pop.settings import Price

OPENAI_URL = "https://api.openai.com/v1"
_MILLION = 1_000_000
_PLACES = 9
# What the table calls the four things that are counted here; it prices many more that no answer of ours holds.
_INPUT, _OUTPUT, _CACHED, _REASONING = "input_mtok", "output_mtok", "cache_read_mtok", "output_reasoning_mtok"


def cost_usd(tokens: Tokens, entry: ModelEntry, provider_model: str | None = None) -> tuple[float | None, str | None]:
    """USD, and the name of the table with its version; (None, None) when nobody knows the price.

    Engines that run here cost nothing. Other people's servers are known by their address: a server of one's own is not,
    whatever its models are called.

    Args:
        provider_model: What the server says answered, such as a dated name; the entry's own where the table lacks it.
    """
    if entry.price is not None:
        return _by_price(tokens, entry.price), "pop.toml"
    if kinds()[entry.provider].local:
        return 0.0, None
    for name in dict.fromkeys((provider_model or entry.model, entry.model)):
        cost = _by_table(tokens, entry, name)
        if cost is not None:
            return cost, _table_name()
    return None, None


def price_of(entry: ModelEntry) -> Price | None:
    """USD per million tokens as far as one line can say it (the lowest tier, now); None when nobody knows."""
    if entry.price is not None:
        return entry.price
    if kinds()[entry.provider].local:
        return Price(input=0.0, output=0.0)
    found = _in_table(_url_of(entry), entry.model)
    prices = _now(found) if found is not None else None
    return _as_price(prices, any_tier=True) if prices is not None else None


def warm() -> None:
    """Load the table (0.2 s and more) before the first call needs it."""
    _in_table(OPENAI_URL, "gpt-5-mini")


def _by_price(tokens: Tokens, price: Price) -> float:
    """A server may count oddly: what is part of something is never more than it."""
    cached = min(tokens.cached_input_tokens, tokens.input_tokens)
    reasoning = min(tokens.reasoning_tokens, tokens.output_tokens)
    each = (
        (tokens.input_tokens - cached, price.input),
        (cached, price.input if price.cached_input is None else price.cached_input),
        (tokens.output_tokens - reasoning, price.output),
        (reasoning, price.output if price.reasoning is None else price.reasoning),
    )
    total = sum(count * _decimal(rate) for count, rate in each if count)
    share = _decimal(price.batch) if price.batch is not None else 1
    return round(float(total * share / _MILLION), _PLACES)


@lru_cache(maxsize=1000)
def _decimal(rate: float) -> Decimal:
    """As it was written."""
    return Decimal(repr(rate))


def _url_of(entry: ModelEntry) -> str | None:
    if entry.provider == "openai" and entry.base_url is None:
        return OPENAI_URL
    return entry.base_url


@cache
def _table_name() -> str:
    import genai_prices

    return f"genai-prices {genai_prices.__version__}"


@lru_cache(maxsize=1000)
def _in_table(url: str | None, model: str) -> Any:
    """The table's model at this address, or None."""
    if url is None:
        return None
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider_model(model, None, None, url)[1]
    except (LookupError, ValueError):
        return None


def _by_table(tokens: Tokens, entry: ModelEntry, model: str) -> float | None:
    found = _in_table(_url_of(entry), model)
    if found is None:
        return None
    tier = entry.options.get("service_tier")
    if isinstance(tier, str) and found.price_variants:
        return _by_package(tokens, entry, model, {"service_tier": tier})
    price = _plain_price(_url_of(entry), model)
    return _by_price(tokens, price) if price is not None else _by_package(tokens, entry, model, None)


@lru_cache(maxsize=1000)
def _plain_price(url: str | None, model: str) -> Price | None:
    """The price of a model whose price depends on nothing: 80 us a call less than asking the package."""
    found = _in_table(url, model)
    return None if found is None or isinstance(found.prices, list) else _as_price(found.prices, any_tier=False)


def _as_price(prices: Any, *, any_tier: bool) -> Price | None:
    rates: dict[str, float | None] = {}
    for key in (_INPUT, _OUTPUT, _CACHED, _REASONING):
        value = getattr(prices, key, None)
        if value is not None and not isinstance(value, Decimal):
            if not any_tier:
                return None
            value = value.base
        rates[key] = None if value is None else float(value)
    if rates[_INPUT] is None or rates[_OUTPUT] is None:
        return None
    return Price(
        input=rates[_INPUT], output=rates[_OUTPUT], cached_input=rates[_CACHED], reasoning=rates[_REASONING]
    )  # fmt: skip


def _now(found: Any) -> Any:
    return found.get_prices(datetime.now(UTC))


def _by_package(tokens: Tokens, entry: ModelEntry, model: str, context: dict[str, str] | None) -> float | None:
    """Prices by tier, by the hour, by the tariff: as the package works them out."""
    from genai_prices import Usage, calc_price

    cached = min(tokens.cached_input_tokens, tokens.input_tokens)
    reasoning = min(tokens.reasoning_tokens, tokens.output_tokens)
    used = Usage(
        input_tokens=tokens.input_tokens,
        cache_read_tokens=cached,
        output_tokens=tokens.output_tokens,
        output_reasoning_tokens=reasoning,
    )
    try:
        found = calc_price(used, model_ref=model, provider_api_url=_url_of(entry), price_context=context)
    except (LookupError, ValueError):
        return None
    return round(float(found.total_price), _PLACES)
