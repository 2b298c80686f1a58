"""Mistakes collected on the way, so that a person sees all of them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from pop.errors import ConfigError, ConfigErrors
from pop.yamlplaces import Keys, YamlPlaces

AT_MOST = 20


@dataclass
class Mistakes:
    """What is wrong, each once, in the order it was found. `places`: of the workflow's file."""

    places: YamlPlaces
    found: dict[str, ConfigError] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, error: ConfigError) -> None:
        self.found.setdefault(str(error), error)

    def at(self, keys: Keys, message: str, hint: str | None = None, *, key: bool = False) -> None:
        """One at a place of the workflow's file."""
        self.add(self.places.mistake(message, keys, hint, key=key))

    def stop(self) -> None:
        """Raises:
        ConfigErrors: There are some.
        """
        if not self.found:
            return
        listed = list(self.found.values())
        if len(listed) > AT_MOST:
            more = ConfigError(f"and {len(listed) - AT_MOST + 1:,} more like these", code=listed[-1].code)
            listed = [*listed[: AT_MOST - 1], more]
        raise ConfigErrors(listed)
