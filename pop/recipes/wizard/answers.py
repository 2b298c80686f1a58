"""What is answered beforehand: by options of `pop new`, or in a project.yaml."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pop.errors import ConfigError, ConfigErrors, did_you_mean
from pop.recipes.wizard.goals import Ref
from pop.recipes.wizard.library import KINDS, NAME_HINT, NAME_PATTERN, kind_of
from pop.store import NotAFile, read_regular
from pop.yamlplaces import YamlPlaces, read_yaml

CODE = "bad-project-file"
MAX_BYTES = 1_000_000


class Answers(BaseModel):
    """Every key of a project.yaml; what is None is asked, or gets what the wizard recommends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str | None = Field(default=None, description="The project's name, and that of its folder.")
    goal: str | None = Field(default=None, description="A goal's name, alias or number.")
    persona: str | None = Field(default=None, description="A persona of the library, instead of the recommended one.")
    title: str | None = Field(default=None, max_length=120, description="The persona's title.")
    additions: str | None = Field(default=None, max_length=20_000, description="Wishes in the user's own words.")
    describe: dict[str, str] = Field(
        default_factory=dict, description="What missing components are to say, by protocols/NAME or the like."
    )
    model: str | None = Field(default=None, description="The model that writes what is missing.")
    synthesize: bool = Field(default=False, description="Let a model weave the parts into one voice.")
    as_task: str | None = Field(default=None, description="Install the project as a task of this name.")

    def over(self, other: Answers) -> Answers:
        """These answers where they are given, else the other ones."""
        given = {name: value for name, value in self if value not in (None, False, {})}
        return other.model_copy(update={**given, "describe": {**other.describe, **self.describe}})

    def briefs(self) -> dict[Ref, str]:
        """What is said of missing components."""
        return {ref_of(name): " ".join(text.split()) for name, text in self.describe.items()}


def ref_of(text: str) -> Ref:
    """``protocols/code_review_pass``, or with the kind in the singular.

    Raises:
        ConfigError: It is no such name.
    """
    kind_text, _, name = text.partition("/")
    kind = kind_of(kind_text)
    if kind is None:
        hint = did_you_mean(kind_text[:80], KINDS) if name else f"say of which kind it is: protocols/{text[:80]}"
        raise ConfigError(f"no kind of component {kind_text[:80]!r}", hint=hint)
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"{name[:80]!r} is no name of a component", hint=NAME_HINT)
    return Ref(kind, name)


def read_answers(path: Path) -> Answers:
    """The answers of a project.yaml.

    Raises:
        ConfigErrors: Every mistake in it, with line and column.
    """
    try:
        text = read_regular(path, max_bytes=MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigErrors([_mistake("no such file", str(path), "look at the path behind --config")]) from None
    except UnicodeDecodeError as error:
        raise ConfigErrors([_mistake(f"not UTF-8 at byte {error.start}", path.name)]) from None
    except NotAFile as error:
        raise ConfigErrors([_mistake(error.message, str(path))]) from None
    try:
        value, places = read_yaml(text, path.name, CODE, example="name: Django_Model_Auditor")
    except ConfigError as error:
        raise ConfigErrors([error]) from None
    try:
        answers = Answers.model_validate(value)
    except ValidationError as error:
        raise ConfigErrors([places.explain(entry, Answers.model_fields) for entry in error.errors()]) from None
    if wrong := list(_wrong_briefs(answers, places)):
        raise ConfigErrors(wrong)
    return answers


def _mistake(message: str, where: str, hint: str | None = None) -> ConfigError:
    return ConfigError(message, where=where, hint=hint, code=CODE)


def _wrong_briefs(answers: Answers, places: YamlPlaces) -> list[ConfigError]:
    found = []
    for name in answers.describe:
        try:
            ref_of(name)
        except ConfigError as error:
            found.append(places.mistake(error.message, ("describe", name), error.hint, key=True))
    return found
