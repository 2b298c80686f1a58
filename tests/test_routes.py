"""Fallback lists, ladders, providers: what a name of pop.toml stands for, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from pop.errors import ConfigError
from pop.models.catalogue import Catalogue
from pop.models.providers import KINDS
from pop.settings import ModelSettings, ProviderSettings, Settings

LOCAL = {"provider": "openai", "model": "qwen3", "base_url": "http://localhost:1/v1"}
AGENT = {"provider": "command", "command": ["cat"]}
MODELS: dict[str, Any] = {
    "small": LOCAL,
    "middle": {**LOCAL, "model": "qwen3:32b"},
    "large": {"provider": "openai", "model": "gpt-5"},
    "either": {"first": ["large", "middle"]},
    "climb": {"ladder": ["small", "either", "large"]},
    "judge": "climb",
}


def catalogue(models: dict[str, Any], **tables: Any) -> Catalogue:
    return Catalogue(Settings.model_validate({"models": models, **tables}), {})


def names(found: Catalogue, name: str) -> list[list[str]]:
    return [[entry.name for entry in rung] for rung in found.route(name).rungs]


def test_a_name_is_a_model_a_list_or_a_ladder_of_those() -> None:
    """An alias is what it leads to; a rung of a ladder may be a fallback list."""
    found = catalogue(MODELS)
    assert names(found, "small") == [["small"]]
    assert names(found, "either") == [["large", "middle"]]
    assert names(found, "judge") == [["small"], ["large", "middle"], ["large"]]


def test_a_ladder_ends_at_its_last_rung() -> None:
    """Round after round moves up, and stays there."""
    route = catalogue(MODELS).route("climb")
    assert [route.rung(number)[0].name for number in (-1, 0, 1, 2, 3, 99)] == [
        "small", "small", "large", "large", "large", "large",
    ]  # fmt: skip


def test_what_a_kind_takes_are_settings() -> None:
    """No name in a row is misspelt."""
    known = {*ModelSettings.model_fields, *ProviderSettings.model_fields}
    assert [kind.takes - known for kind in KINDS.values() if kind.takes is not None] == [set()] * 3


def test_a_program_takes_all_that_has_an_effect_on_it() -> None:
    """Limits, its key, its name, a price, and those it shares with others."""
    table = {**AGENT, "provider": "p", "model": "m", "api_key_env": "K", "price": {"input": 1, "output": 1}, "tries": 2}
    limits = {"concurrency": 2, "requests_per_minute": 3, "tokens_per_minute": 4}
    found = catalogue({"a": {**table, **limits}}, providers={"p": {"kind": "command", "api_key_env": "L", **limits}})
    assert found.resolve("a")[0].key_env == "K"


@pytest.mark.parametrize("name", ["openai/gpt-5", "openai:gpt-5", "openai/org/model:tag"])
def test_a_provider_and_a_model_are_a_name(name: str) -> None:
    """Both signs; only the first one parts them."""
    (entry,) = catalogue(MODELS).resolve(name)
    assert (entry.provider, entry.model) == ("openai", name[7:])


def test_a_provider_of_ones_own_is_shared_by_its_models() -> None:
    """Server, key, headers and limits; a model's own words stand before them."""
    providers = {
        "router": {
            "base_url": "https://router.example/v1",
            "api_key_env": "ROUTER_KEY",
            "headers": {"x-a": "1", "x-b": "2"},
            "requests_per_minute": 60,
            "concurrency": 4,
        }
    }
    models = {"one": {"provider": "router", "model": "m", "headers": {"x-b": "3"}, "concurrency": 2}}
    found = catalogue(models, providers=providers)
    (one,), (direct,) = found.resolve("one"), found.resolve("router/m2")
    assert (one.base_url, one.key_env, one.provider) == ("https://router.example/v1", "ROUTER_KEY", "openai")
    assert dict(one.headers) == {"x-a": "1", "x-b": "3"}
    assert one.shared == direct.shared and one.shared.requests_per_minute == 60 and one.concurrency == 2
    assert (direct.model, direct.key_env) == ("m2", "ROUTER_KEY")


def test_a_providers_table_gets_no_key_it_was_not_given() -> None:
    """The default key belongs to OpenAI's own host."""
    found = catalogue({"one": {"provider": "mine", "model": "m"}}, providers={"mine": {"base_url": "http://h/v1"}})
    assert found.resolve("one")[0].key_env is None


def test_the_same_model_under_two_names_is_one_identity() -> None:
    """What `reuse` and what is learnt go by; another server is another model."""
    models = {"a": LOCAL, "b": LOCAL, "c": {**LOCAL, "base_url": "http://localhost:2/v1"}}
    found = {name: catalogue(models).resolve(name)[0].identity for name in models}
    assert found["a"] == found["b"] != found["c"]


@pytest.mark.parametrize(
    ("models", "tables", "name", "says"),
    [
        ({"a": {"ladder": []}}, {}, "a", "`ladder` is empty"),
        ({"a": {"first": []}}, {}, "a", "`first` is empty"),
        ({"a": {"ladder": ["b"]}, "b": {"first": ["a"]}}, {}, "a", "a -> b -> a"),
        ({"a": {"ladder": ["small"], "model": "x"}, "small": LOCAL}, {}, "a", "`model` would mean nothing"),
        ({"a": {"ladder": ["small"], "first": ["small"]}, "small": LOCAL}, {}, "a", "`first` would mean nothing"),
        ({"a": {"first": ["c"]}, "c": {"ladder": ["small", "small"]}, "small": LOCAL}, {}, "a", "names a ladder"),
        ({"a": {"ladder": ["smal"]}, "small": LOCAL}, {}, "a", "no model 'smal'"),
        ({"a": {"provider": "command"}}, {}, "a", "needs `command`"),
        ({"a": {**LOCAL, "command": ["x"]}}, {}, "a", "means nothing to 'openai'"),
        ({"a": {"provider": "p", "model": "m"}}, {"providers": {"p": {"kind": "opnai"}}}, "a", "no kind of provider"),
        ({"a": {"provider": "p", "model": "m"}}, {"providers": {"p": {"base_url": "x"}}}, "a", "is no URL"),
        ({"a": {**LOCAL, "base_url": "http://"}}, {}, "a", "is no URL"),
        ({"a": {**LOCAL, "base_url": "http://h:port/v1"}}, {}, "a", "is no URL"),
        ({"a": {"provider": "replay"}}, {}, "a", "needs `model`"),
        ({"a": {**AGENT, "temperature": 0.5}}, {}, "a", "`temperature` means nothing to a model of the kind 'command'"),
        ({"a": {**AGENT, "headers": {}}}, {}, "a", "`headers` means nothing"),
        ({"a": {**AGENT, "structured": True}}, {}, "a", "`structured` means nothing"),
        ({"a": {"provider": "builtin", "max_output_tokens": 5}}, {}, "a", "of the kind 'builtin'"),
        ({"a": {"provider": "builtin", "options": {"x": 1}}}, {}, "a", "`options` means nothing"),
        ({"a": {"provider": "builtin", "command": ["x"]}}, {}, "a", "`command` means nothing"),
        ({"a": {"provider": "replay", "model": "x", "api": "chat"}}, {}, "a", "of the kind 'replay'"),
        (
            {"a": {**AGENT, "provider": "p"}},
            {"providers": {"p": {"kind": "command", "base_url": "x"}}},
            "a",
            "`base_url` means",
        ),
        ({"a": {**LOCAL, "options": {"n": 1, "stream": True}}}, {}, "a", "`options` cannot set `stream`"),
        ({"a": {**LOCAL, "options": {"model": "y"}}}, {}, "a", "`options` cannot set `model`"),
        ({"a": {**LOCAL, "options": {"top_p": float("nan")}}}, {}, "a", "what JSON cannot say: nan"),
    ],
)
def test_mistakes_are_told_before_anything_is_spent(
    models: dict[str, Any], tables: dict[str, Any], name: str, says: str
) -> None:
    """With the place in pop.toml and, where there is one, the nearest name."""
    with pytest.raises(ConfigError) as caught:
        catalogue(models, **tables).route(name)
    assert says in caught.value.message and "pop.toml" in str(caught.value.where)


@pytest.mark.parametrize(
    "table",
    [
        {"concurrency": 0},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -5},
        {"timeout_s": 0},
        {"tries": 0},
        {"structured": "perhaps"},
        {"reuse": "sometimes"},
        {"price": {"input": -1, "output": 1}},
        {"price": {"input": float("inf"), "output": 1}},
        {"timeout_s": float("inf")},
        {"temperature": float("nan")},
        {"requests_per_minute": float("inf")},
        {"api_key_env": "sk-abcdef"},
    ],
)
def test_impossible_settings_are_refused(table: dict[str, Any]) -> None:
    """Limits of nothing, and words that mean nothing."""
    with pytest.raises(ValueError, match=next(iter(table))):
        Settings.model_validate({"models": {"a": {**LOCAL, **table}}})


def test_reuse_is_an_age() -> None:
    """True is any, false is never, a text is a duration."""
    found = [Settings.model_validate({"models": {"a": {**LOCAL, "reuse": value}}}) for value in (True, False, "7d")]
    ages = [settings.models["a"].reuse for settings in found]  # type: ignore[union-attr]
    assert ages[0] > 1e9 and ages[1] == 0.0 and ages[2] == 7 * 86400
