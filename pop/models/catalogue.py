"""The models of a root by name: entries of pop.toml, aliases, fallback lists, ``provider/model`` names, and ``auto``.

``auto`` is the OpenAI-compatible server of the environment when OPENAI_API_KEY is set, else the embedded engine; which
of them it is, is said wherever results are shown. A provider that fails is never replaced by the embedded engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pop.errors import ConfigError, did_you_mean
from pop.models.providers import PROVIDERS
from pop.settings import ModelSettings, Price, Settings

OPENAI_MODEL = "gpt-5-mini"
EMBEDDED_NOTE = "extractive, not a language model"


@dataclass(frozen=True)
class ModelEntry:
    """One model that can be asked. `key_env` names the environment variable with the key."""

    name: str
    provider: str
    model: str
    base_url: str | None = None
    key_env: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 64
    price: Price | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    timeout_s: float = 120.0
    tries: int = 4
    structured: bool = True


class UnknownModel(ConfigError):
    """A name that no catalogue entry has."""

    code = "unknown-model"


class Catalogue:
    """Resolves names. Built from pop.toml and the environment it is resolved in."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._models = {"default": "auto", **settings.models}
        self._environ = environ

    @property
    def names(self) -> list[str]:
        """What a step may ask for, sorted."""
        return sorted({*self._models, "builtin", "auto"})

    def __contains__(self, name: object) -> bool:
        """Whether a step may ask for it, ``provider/model`` included."""
        provider, slash, _ = str(name).partition("/")
        return name in self.names or bool(slash and provider in PROVIDERS)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def resolve(self, name: str) -> list[ModelEntry]:
        """The models behind a name, in the order in which they are to be tried.

        Raises:
            UnknownModel: No entry has this name.
            ConfigError: The entry is wrong, or names go round in a circle.
        """
        return self._resolve(name, ())

    def _resolve(self, name: str, seen: tuple[str, ...]) -> list[ModelEntry]:
        where = self._settings.place("models", *seen[-1:], *(["first"] if self._is_list(seen) else []))
        if name in seen:
            raise ConfigError(f"models go round in a circle: {' -> '.join([*seen, name])}", where=where)
        entry = self._models.get(name)
        if isinstance(entry, str):
            return self._resolve(entry, (*seen, name))
        if isinstance(entry, ModelSettings):
            if entry.first:
                found = [one for other in entry.first for one in self._resolve(other, (*seen, name))]
                if any(one.provider == "builtin" for one in found[1:]):
                    message = "the embedded engine stands in for no other model: it would answer where that one fails"
                    hint = "leave it out of `first`; choose it openly, by its own name"
                    raise ConfigError(message, where=f"pop.toml  models.{name}.first", hint=hint)
                return found
            return [self._entry(name, entry)]
        if name == "auto":
            return [self._auto()]
        if name == "builtin":
            return [ModelEntry("builtin", "builtin", "extractive-1")]
        provider, slash, model = name.partition("/")
        if slash and provider in PROVIDERS:
            return [self._entry(name, ModelSettings(provider=provider, model=model))]
        raise UnknownModel(f"no model {name!r}", where=where, hint=did_you_mean(name, self.names))

    def _is_list(self, seen: tuple[str, ...]) -> bool:
        asking = self._models.get(seen[-1]) if seen else None
        return isinstance(asking, ModelSettings)

    def _entry(self, name: str, settings: ModelSettings) -> ModelEntry:
        where = self._settings.place("models", name)
        if settings.provider is None:
            raise ConfigError("needs `provider`, or `first`", where=where, hint=f"one of: {', '.join(PROVIDERS)}")
        if settings.provider not in PROVIDERS:
            hint = did_you_mean(settings.provider, PROVIDERS)
            where = self._settings.place("models", name, "provider")
            raise ConfigError(f"no provider {settings.provider!r}", where=where, hint=hint)
        if settings.provider != "builtin" and not settings.model:
            raise ConfigError("needs `model`: what the server calls it", where=where)
        base_url = settings.base_url
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            where = self._settings.place("models", name, "base_url")
            raise ConfigError(f"base_url {base_url!r} is no URL", where=where, hint="http://localhost:11434/v1")
        own_host = base_url is None
        return ModelEntry(
            name=name,
            provider=settings.provider,
            model=settings.model or "extractive-1",
            base_url=base_url or self._environ.get("OPENAI_BASE_URL") or None,
            key_env=settings.api_key_env or ("OPENAI_API_KEY" if own_host else None),
            headers=settings.headers,
            concurrency=settings.concurrency,
            price=settings.price,
            temperature=settings.temperature,
            max_output_tokens=settings.max_output_tokens,
            timeout_s=settings.timeout_s,
            tries=settings.tries,
            structured=settings.structured,
        )

    def _auto(self) -> ModelEntry:
        if self._environ.get("OPENAI_API_KEY"):
            model = self._environ.get("OPENAI_MODEL") or OPENAI_MODEL
            return self._entry("auto", ModelSettings(provider="openai", model=model))
        return ModelEntry("builtin", "builtin", "extractive-1")


def describe_default(settings: Settings, environ: Mapping[str, str]) -> str:
    """A sentence on which model answers when a task asks for none."""
    try:
        first, *more = Catalogue(settings, environ).resolve("default")
    except ConfigError as error:
        return f"the default model cannot be used: {error.message}"
    if first.provider == "builtin":
        why = "" if settings.models.get("default") == "builtin" else "; set OPENAI_API_KEY, or name a model in pop.toml"
        return f"the default model is the embedded engine ({EMBEDDED_NOTE}){why}"
    behind = f", then {', '.join(entry.name for entry in more)}" if more else ""
    return f"the default model is {first.model} at {first.base_url or 'the OpenAI API'}{behind}"
