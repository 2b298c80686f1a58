"""The models of a root by name: entries of pop.toml, aliases, fallback lists, ladders, ``provider/model`` names, ``auto``.

``auto`` is the OpenAI-compatible server of the environment when OPENAI_API_KEY is set, else the embedded engine; which
of them it is, is said wherever results are shown. A provider that fails is never replaced by the embedded engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from pop.errors import ConfigError, did_you_mean
from pop.models.entries import ModelEntry, Shared, shown_url, without_password
from pop.models.providers import KINDS, kinds
from pop.settings import ModelSettings, ProviderSettings, Settings

OPENAI_MODEL = "gpt-5-mini"
EMBEDDED_NOTE = "extractive, not a language model"
LISTS = ("first", "ladder")
_DIRECT = re.compile(r"([^/:]+)([/:])(.+)")
_NOT_DIRECT = frozenset({"builtin", "command"})


@dataclass(frozen=True)
class Route:
    """What a name stands for: rungs of a ladder, each a list of models of which the next is asked when one fails."""

    rungs: tuple[tuple[ModelEntry, ...], ...]

    def rung(self, number: int) -> tuple[ModelEntry, ...]:
        """The models for the `number`-th round, from 0; after the last rung, the last."""
        return self.rungs[min(max(number, 0), len(self.rungs) - 1)]

    @property
    def entries(self) -> list[ModelEntry]:
        """All models, in the order in which they may be asked."""
        return [entry for rung in self.rungs for entry in rung]


class UnknownModel(ConfigError):
    """A name that no catalogue entry has."""

    code = "unknown-model"


class Catalogue:
    """Resolves names. Built from pop.toml and the environment it is resolved in."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._models = {"default": "auto", **settings.models}
        self._environ = environ
        self._routes: dict[str, Route] = {}

    @property
    def names(self) -> list[str]:
        """What a step may ask for, sorted."""
        return sorted({*self._models, "builtin", "auto"})

    def __contains__(self, name: object) -> bool:
        """Whether a step may ask for it, ``provider/model`` included."""
        return name in self.names or self._direct(str(name)) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def meaning(self, name: str) -> str:
        """What the entry says, shortly: ``first: large, local``; ``alias of large``; else the model itself."""
        entry = self._models.get(name)
        if isinstance(entry, str):
            return f"alias of {entry}"
        if isinstance(entry, ModelSettings):
            for kind in LISTS:
                if getattr(entry, kind):
                    return f"{kind}: {', '.join(getattr(entry, kind))}"
        return ""

    def near(self, name: str) -> str | None:
        """The hint for a name that is none: the nearest one, also ``openai/gpt-5`` for ``oepnai/gpt-5``."""
        match = _DIRECT.fullmatch(name)
        providers = sorted({*self._settings.providers, *kinds()} - _NOT_DIRECT)
        close = get_close_matches(match[1], providers, 1) if match else []
        return f"did you mean '{close[0]}{match[2]}{match[3]}'?" if match and close else did_you_mean(name, self.names)

    def route(self, name: str) -> Route:
        """What a name stands for.

        Raises:
            UnknownModel: No entry has this name.
            ConfigError: The entry is wrong, or names go round in a circle.
        """
        found = self._routes.get(name)
        if found is None:
            found = self._routes[name] = Route(self._rungs(name, ()))
        return found

    def resolve(self, name: str) -> list[ModelEntry]:
        """All models behind a name, in order; raises as `route`."""
        return self.route(name).entries

    def _rungs(self, name: str, seen: tuple[str, ...]) -> tuple[tuple[ModelEntry, ...], ...]:
        where = self._settings.place("models", *seen[-1:], *self._list_of(seen))
        if name in seen:
            raise ConfigError(f"models go round in a circle: {' -> '.join([*seen, name])}", where=where)
        entry = self._models.get(name)
        if isinstance(entry, str):
            return self._rungs(entry, (*seen, name))
        if isinstance(entry, ModelSettings) and (entry.ladder is not None or entry.first is not None):
            return self._of_list(name, entry, (*seen, name))
        if isinstance(entry, ModelSettings):
            return ((self._entry(name, entry),),)
        if name == "auto":
            return ((self._auto(),),)
        if name == "builtin":
            return ((ModelEntry("builtin", "builtin", "extractive-1"),),)
        direct = self._direct(name)
        if direct is not None:
            return ((self._entry(name, ModelSettings(provider=direct[0], model=direct[1])),),)
        raise UnknownModel(f"no model {name!r}", where=where, hint=self.near(name))

    def _of_list(self, name: str, entry: ModelSettings, seen: tuple[str, ...]) -> tuple[tuple[ModelEntry, ...], ...]:
        kind = "ladder" if entry.ladder is not None else "first"
        where = self._settings.place("models", name, kind)
        names = entry.ladder if entry.ladder is not None else entry.first
        given = [key for key in entry.model_fields_set if key != kind]
        if given:
            message = f"`{kind}` names other models, so `{given[0]}` would mean nothing here"
            raise ConfigError(message, where=self._settings.place("models", name, given[0]), hint="set it there")
        if not names:
            raise ConfigError(f"`{kind}` is empty", where=where, hint="name at least one model")
        found = [self._rungs(other, seen) for other in names]
        if kind == "ladder":
            return tuple(rung for rungs in found for rung in rungs)
        if any(len(rungs) > 1 for rungs in found):
            hint = "a ladder may hold fallback lists, not the other way round"
            raise ConfigError("`first` names a ladder", where=where, hint=hint)
        flat = [one for rungs in found for one in rungs[0]]
        if any(kinds()[one.provider].local for one in flat[1:]):
            message = "the embedded engine stands in for no other model: it would answer where that one fails"
            raise ConfigError(message, where=where, hint="leave it out of `first`; choose it openly, by its own name")
        return (tuple(flat),)

    def _list_of(self, seen: tuple[str, ...]) -> list[str]:
        asking = self._models.get(seen[-1]) if seen else None
        return [kind for kind in LISTS if getattr(asking, kind, None)]

    def _direct(self, name: str) -> tuple[str, str] | None:
        """Provider and model of a name like ``openai/gpt-5`` or ``openai:gpt-5``."""
        match = _DIRECT.fullmatch(name)
        if match is None:
            return None
        provider = match[1]
        known = provider in self._settings.providers or provider in KINDS or provider in kinds()
        return (provider, match[3]) if known and provider not in _NOT_DIRECT else None

    def _entry(self, name: str, settings: ModelSettings) -> ModelEntry:
        def place(*key: str) -> str:
            return self._settings.place("models", name, *key)

        if settings.provider is None:
            hint = f"one of: {', '.join([*self._settings.providers, *kinds()])}"
            raise ConfigError("needs `provider`, or `first`, or `ladder`", where=place(), hint=hint)
        shared = self._provider(settings.provider, place("provider"))
        self._check_keys(settings, shared.kind, place)
        self._check_needs(settings, shared.kind, place)
        base_url, key_env = self._endpoint(settings, shared, place)
        return ModelEntry(
            name=name,
            provider=shared.kind,
            model=settings.model or (settings.command or ["extractive-1"])[0],
            base_url=base_url,
            key_env=key_env,
            headers={**shared.headers, **settings.headers},
            api=settings.api or shared.api or "chat",
            command=tuple(settings.command or ()),
            options=settings.options,
            concurrency=settings.concurrency,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            shared=Shared(
                name=settings.provider if base_url is None else f"{settings.provider} {without_password(base_url)}",
                concurrency=shared.concurrency,
                requests_per_minute=shared.requests_per_minute,
                tokens_per_minute=shared.tokens_per_minute,
            ),
            price=settings.price,
            temperature=settings.temperature,
            max_output_tokens=settings.max_output_tokens,
            timeout_s=settings.timeout_s,
            tries=settings.tries,
            structured=settings.structured,
            reuse_s=settings.reuse,
        )

    def _endpoint(
        self, settings: ModelSettings, shared: ProviderSettings, place: Callable[..., str]
    ) -> tuple[str | None, str | None]:
        """Where the server is, and which variable holds its key; those of the environment where pop.toml says neither."""
        assert settings.provider is not None
        base_url = settings.base_url or shared.base_url
        self._check_url(base_url, place("base_url") if settings.base_url else self._place_of(settings.provider))
        key_env = settings.api_key_env or shared.api_key_env
        if shared.kind == "openai":
            key_env = key_env or ("OPENAI_API_KEY" if base_url is None else None)
            if base_url is None and (base_url := self._environ.get("OPENAI_BASE_URL") or None):
                self._check_url(base_url, "OPENAI_BASE_URL", "OPENAI_BASE_URL")
        return base_url, key_env

    def _check_needs(self, settings: ModelSettings, kind: str, place: Callable[..., str]) -> None:
        """What this kind cannot do without; and a program where it runs none."""
        for need in kinds()[kind].needs:
            if not getattr(settings, need):
                what = {"model": "what the server calls it", "command": "the program and its arguments"}.get(need, need)
                raise ConfigError(f"needs `{need}`: {what}", where=place())
        if settings.command is not None and kind != "command":
            hint = 'provider = "command" runs a program'
            raise ConfigError(f"`command` means nothing to {settings.provider!r}", where=place("command"), hint=hint)

    def _check_keys(self, settings: ModelSettings, kind: str, place: Callable[..., str]) -> None:
        """Keys that nobody would read for this kind are mistakes, not passed over; so are options that are none."""
        takes, ours = kinds()[kind].takes, kinds()[kind].ours
        provider = settings.provider or ""
        shared = self._settings.providers.get(provider)
        if takes is not None:
            for key in sorted((shared.model_fields_set if shared else set()) - takes):
                raise _idle(key, kind, self._settings.place("providers", provider, key))
            for key in sorted(settings.model_fields_set - takes):
                raise _idle(key, kind, place(key))
        for key, value in settings.options.items():
            if key in ours:
                hint = "`model` stands beside `options`" if key == "model" else "take it out"
                raise ConfigError(
                    f"`options` cannot set `{key}`, which is POP's own", where=place("options", key), hint=hint
                )
            if kinds()[kind].forms and not _is_json(value):
                message = f"`options` holds what JSON cannot say: {value!r:.80}"
                raise ConfigError(message, where=place("options", key), hint="a text or a finite number")

    def _provider(self, name: str, where: str) -> ProviderSettings:
        """The table of ``[providers.NAME]``, or what a kind of this name is by itself."""
        table = self._settings.providers.get(name)
        if table is None:
            if name not in kinds():
                known = [*self._settings.providers, *kinds()]
                raise ConfigError(f"no provider {name!r}", where=where, hint=did_you_mean(name, known))
            return ProviderSettings(kind=name)
        if "kind" not in table.model_fields_set and name in kinds():
            table = table.model_copy(update={"kind": name})
        if table.kind not in kinds():
            where = self._settings.place("providers", name, "kind")
            raise ConfigError(
                f"no kind of provider {table.kind!r}", where=where, hint=did_you_mean(table.kind, kinds())
            )
        return table

    def _place_of(self, provider: str) -> str:
        return self._settings.place("providers", provider, "base_url")

    def _check_url(self, url: str | None, where: str, name: str = "base_url") -> None:
        if url is None:
            return
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good:
            raise ConfigError(f"{name} {shown_url(url)!r} is no URL", where=where, hint="http://localhost:11434/v1")

    def _auto(self) -> ModelEntry:
        if self._environ.get("OPENAI_API_KEY"):
            model = self._environ.get("OPENAI_MODEL") or OPENAI_MODEL
            return self._entry("auto", ModelSettings(provider="openai", model=model))
        return ModelEntry("builtin", "builtin", "extractive-1")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _idle(key: str, kind: str, where: str) -> ConfigError:
    message = f"`{key}` means nothing to a model of the kind {kind!r}"
    hint = 'provider = "command" runs a program' if key == "command" else "take it out"
    return ConfigError(message, where=where, hint=hint)


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
    url = shown_url(first.base_url) if first.base_url else "the OpenAI API"
    at = " ".join(first.command) if first.provider == "command" else url
    return f"the default model is {first.model} at {at}{behind}"
