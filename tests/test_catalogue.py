"""Names of models."""

from __future__ import annotations

from typing import Any

import pytest

from pop.errors import ConfigError
from pop.models.catalogue import Catalogue, UnknownModel, describe_default
from pop.settings import Settings

KEYED = {"OPENAI_API_KEY": "sk-1", "OPENAI_BASE_URL": "http://host/v1", "OPENAI_MODEL": "m-env"}
OWN = {"provider": "openai", "model": "qwen3", "base_url": "http://localhost:1/v1"}


def catalogue(models: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> Catalogue:
    settings = Settings.model_validate({"models": models} if models else {})
    return Catalogue(settings, environ or {})


def test_auto_is_the_embedded_engine_without_a_key_and_the_server_with_one() -> None:
    """OPENAI_BASE_URL and OPENAI_MODEL are respected."""
    (without,) = catalogue().resolve("default")
    assert (without.provider, without.key_env) == ("builtin", None)
    (with_key,) = catalogue(environ=KEYED).resolve("default")
    assert (with_key.provider, with_key.model, with_key.base_url) == ("openai", "m-env", "http://host/v1")
    assert with_key.key_env == "OPENAI_API_KEY"


def test_a_server_of_ones_own_gets_no_key_it_was_not_given() -> None:
    """A base_url gets the key of api_key_env and no other."""
    models = {"local": OWN, "hosted": {**OWN, "api_key_env": "MY_KEY"}, "plain": {"provider": "openai", "model": "m"}}
    found = {name: catalogue(models, KEYED).resolve(name)[0].key_env for name in models}
    assert found == {"local": None, "hosted": "MY_KEY", "plain": "OPENAI_API_KEY"}


def test_a_wrong_address_of_the_environment_is_told_as_one_of_pop_toml_is() -> None:
    """Before the first call, with the variable's name and without a password."""
    with pytest.raises(ConfigError) as caught:
        catalogue(environ={**KEYED, "OPENAI_BASE_URL": "htp://me:secret@host/v1"}).resolve("default")
    assert caught.value.message == "OPENAI_BASE_URL 'htp://host/v1' is no URL"
    assert caught.value.where == "OPENAI_BASE_URL"
    environ = {"OPENAI_BASE_URL": "nonsense"}  # which nobody asks
    assert catalogue({"local": OWN}, environ).resolve("local")[0].base_url == OWN["base_url"]


def test_names_lead_to_names() -> None:
    """Aliases, fallback lists in order, `provider/model` without an entry."""
    models: dict[str, Any] = {
        "default": "careful",
        "careful": {"first": ["local", "openai/gpt-5"]},
        "local": OWN,
    }
    found = catalogue(models).resolve("default")
    assert [(entry.provider, entry.model) for entry in found] == [
        ("openai", "qwen3"), ("openai", "gpt-5"),
    ]  # fmt: skip
    assert {"default", "careful", "local", "auto", "builtin"} <= set(catalogue(models).names)


def test_the_embedded_engine_stands_in_for_no_other_model() -> None:
    """Where another fails, an answer that was copied together would pass for that one's."""
    with pytest.raises(ConfigError, match="stands in for no other"):
        catalogue({"default": "careful", "careful": {"first": ["local", "builtin"]}, "local": OWN}).resolve("default")


@pytest.mark.parametrize(
    ("models", "name", "says", "hint"),
    [
        ({"local": OWN}, "locale", "no model 'locale'", "local"),
        ({"local": OWN}, "oepnai/gpt-5", "no model 'oepnai/gpt-5'", "did you mean 'openai/gpt-5'?"),
        ({"local": OWN}, "opena:a/b", "no model", "did you mean 'openai:a/b'?"),
        ({"a": "b", "b": {"first": ["a"]}}, "a", "a -> b -> a", None),
        ({"a": {"model": "x"}}, "a", "needs `provider`", "openai"),
        ({"a": {"provider": "opnai", "model": "x"}}, "a", "no provider 'opnai'", "openai"),
        ({"a": {"provider": "openai"}}, "a", "needs `model`", None),
        ({"a": {**OWN, "base_url": "localhost:1"}}, "a", "is no URL", "http://"),
    ],
)
def test_a_wrong_entry_is_told(models: dict[str, Any], name: str, says: str, hint: str | None) -> None:
    """With the next move."""
    with pytest.raises(ConfigError) as caught:
        catalogue(models).resolve(name)
    assert says in caught.value.message and (hint is None or hint in (caught.value.hint or ""))
    assert isinstance(caught.value, UnknownModel) == says.startswith("no model")


def test_the_default_is_described_and_the_engine_never_passes_for_a_model() -> None:
    """What is shown wherever results are."""
    assert "extractive, not a language model" in describe_default(Settings(), {})
    assert describe_default(Settings(), KEYED) == "the default model is m-env at http://host/v1"
    broken = Settings.model_validate({"models": {"default": "nowhere"}})
    assert "cannot be used" in describe_default(broken, {})
    keyed = Settings.model_validate(
        {"models": {"default": {"provider": "openai", "model": "m", "base_url": "http://u:p@host/v1?v=1&key=x"}}}
    )
    assert describe_default(keyed, {}) == "the default model is m at http://host/v1?v=...&key=..."


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"options": {"a": 1, "reasoning_effort": "low"}}, True),
        ({"headers": {"x": "y"}, "price": {"input": 1, "output": 1}, "tries": 1}, True),
        ({"options": {"reasoning_effort": "high", "a": 1}}, False),
        ({"temperature": 0.0}, False),
        ({"max_output_tokens": 5}, False),
        ({"api": "responses"}, False),
        ({"model": "other"}, False),
    ],
)
def test_an_answer_is_shared_only_where_it_was_asked_for_in_the_same_way(change: dict[str, Any], same: bool) -> None:
    """Whatever the model is called; what only concerns the way there is not in it."""
    plain = {**OWN, "options": {"reasoning_effort": "low", "a": 1}}
    one, other = (catalogue({"m": table}).resolve("m")[0] for table in (plain, {**plain, **change}))
    assert (one.shared_identity == other.shared_identity) is same
    assert (one.identity == other.identity) is ("model" not in change)
