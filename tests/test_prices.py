"""What a call cost: by pop.toml, by the packaged table for hosts it knows, else nobody knows."""

from __future__ import annotations

from typing import Any

import genai_prices
import pytest

from pop.models.entries import ModelEntry
from pop.models.prices import cost_usd, price_of
from pop.models.request import Tokens
from pop.settings import Price

TABLE = f"genai-prices {genai_prices.__version__}"
MILLION = 1_000_000


def entry(
    price: Price | None = None, *, model: str = "gpt-4o-mini", provider: str = "openai", **values: Any
) -> ModelEntry:
    return ModelEntry("m", provider, model, price=price, **values)


def by_package(tokens: Tokens, model: str, url: str, **context: str) -> float:
    used = genai_prices.Usage(
        input_tokens=tokens.input_tokens,
        cache_read_tokens=tokens.cached_input_tokens,
        output_tokens=tokens.output_tokens,
        output_reasoning_tokens=tokens.reasoning_tokens,
    )
    found = genai_prices.calc_price(used, model_ref=model, provider_api_url=url, price_context=context or None)
    return float(found.total_price)


@pytest.mark.parametrize(
    ("price", "cost"),
    [
        (Price(input=1.0, output=4.0), 3.0),
        (Price(input=1.0, output=4.0, cached_input=0.5), 2.8),
        (Price(input=1.0, output=4.0, reasoning=10.0), 3.6),
        (Price(input=1.0, output=4.0, batch=0.5), 1.5),
        (Price(input=0, output=0), 0.0),
    ],
)
def test_a_price_of_pop_toml_counts(price: Price, cost: float) -> None:
    """USD per million tokens; cached input and reasoning cost their own price, or that of what they are part of."""
    used = Tokens(input_tokens=MILLION, cached_input_tokens=400_000, output_tokens=500_000, reasoning_tokens=100_000)
    assert cost_usd(used, entry(price)) == (cost, "pop.toml")
    assert cost_usd(used, entry(price, base_url="http://localhost:1/v1")) == (cost, "pop.toml")


def test_a_server_that_counts_oddly_never_makes_a_cost_negative() -> None:
    """More cached than asked, more reasoning than answered; with either table."""
    used = Tokens(input_tokens=10, cached_input_tokens=1000, output_tokens=10, reasoning_tokens=1000)
    assert cost_usd(used, entry(Price(input=1.0, output=1.0, cached_input=0.0, reasoning=0.0)))[0] == 0.0
    assert 0 < (cost_usd(used, entry())[0] or 0) < 0.001


@pytest.mark.parametrize(
    ("url", "model"),
    [
        (None, "gpt-4o-mini"), (None, "gpt-5-mini-2025-08-07"), ("https://api.openai.com/v1", "gpt-4o-mini"),
        ("https://openrouter.ai/api/v1", "openai/gpt-5-mini"), ("https://api.deepseek.com", "deepseek-chat"),
        ("https://api.mistral.ai/v1", "mistral-small-latest"), ("https://api.anthropic.com/v1/", "claude-sonnet-4-5"),
        ("https://generativelanguage.googleapis.com/v1beta/openai/", "gemini-2.5-pro"),
    ],
)  # fmt: skip
def test_hosts_that_the_table_knows_are_priced_by_it(url: str | None, model: str) -> None:
    """As the package itself works it out, with tiers and cached input; the table's version is told."""
    for size in (1, 1000):
        used = Tokens(
            input_tokens=300 * size, cached_input_tokens=100 * size, output_tokens=20 * size, reasoning_tokens=10 * size
        )
        cost, table = cost_usd(used, entry(model=model, base_url=url), model)
        assert cost == round(by_package(used, model, url or "https://api.openai.com/v1"), 9) and table == TABLE


def test_a_servers_tariff_is_taken_into_account() -> None:
    """`service_tier` in the options of a model."""
    used, url = Tokens(input_tokens=1000, output_tokens=1000), "https://api.openai.com/v1"
    slow = entry(model="gpt-5-mini", options={"service_tier": "flex"})
    cost = cost_usd(used, slow)[0]
    assert cost == round(by_package(used, "gpt-5-mini", url, service_tier="flex"), 9)
    assert cost < (cost_usd(used, entry(model="gpt-5-mini"))[0] or 0)


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://10.0.0.7:8000/v1", "https://models.example.org/v1"])
def test_the_price_of_somebody_elses_server_is_unknown(url: str) -> None:
    """Whatever its models are called."""
    assert (
        cost_usd(Tokens(input_tokens=1), entry(base_url=url)) == (None, None) and price_of(entry(base_url=url)) is None
    )


def test_what_runs_here_costs_nothing_and_a_program_nobody_knows() -> None:
    """The embedded engine and a replay; a command may pay somebody."""
    used = Tokens(input_tokens=MILLION, output_tokens=MILLION)
    assert [cost_usd(used, entry(provider=kind)) for kind in ("builtin", "replay", "command")] == [
        (0.0, None), (0.0, None), (None, None),
    ]  # fmt: skip


def test_a_model_the_table_lacks_is_priced_as_the_one_that_was_asked() -> None:
    """A server may call itself anything."""
    used = Tokens(input_tokens=1000)
    assert cost_usd(used, entry(), "nobody-knows") == cost_usd(used, entry()) != (None, None)
    assert cost_usd(used, entry(model="nobody-knows"), "nobody-knows") == (None, None)


def test_the_price_per_million_can_be_shown() -> None:
    """For the list of models."""
    own = Price(input=1.0, output=4.0)
    assert price_of(entry(own)) is own and price_of(entry(provider="builtin")) == Price(input=0, output=0)
    assert price_of(entry(model="gpt-5-mini")) == Price(input=0.25, output=2.0, cached_input=0.025)
    tiered = price_of(entry(model="gemini-2.5-pro", base_url="https://generativelanguage.googleapis.com"))
    assert tiered and tiered.input == 1.25
    assert price_of(entry(model="nobody-knows")) is None and price_of(entry(provider="command")) is None
