"""What is answered beforehand: by options of `pop new`, or in a project.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node
from ruamel.yaml.tokens import AliasToken, AnchorToken

from pop.errors import ConfigError, ConfigErrors, did_you_mean
from pop.recipes.wizard.goals import Ref
from pop.recipes.wizard.library import KINDS, NAME_HINT, NAME_PATTERN, kind_of
from pop.store import NotAFile, read_regular

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
    value, node = _loaded(text, path.name)
    try:
        answers = Answers.model_validate({} if value is None else value)
    except ValidationError as error:
        problems = [_explain(entry, node, path.name) for entry in error.errors()]
        raise ConfigErrors(problems) from None
    if wrong := list(_wrong_briefs(answers, node, path.name)):
        raise ConfigErrors(wrong)
    return answers


def _loaded(text: str, file: str) -> tuple[Any, Node | None]:
    """The value, and the nodes that know where everything stands."""
    try:
        for token in YAML(typ="safe", pure=True).scan(text):
            if isinstance(token, AliasToken | AnchorToken):  # a few aliases of aliases fill any memory
                raise ConfigErrors([_mistake("YAML anchors and aliases are not allowed", _at(token.start_mark, file))])
        value = YAML(typ="safe", pure=True).load(text)
        node: Node | None = YAML(typ="safe", pure=True).compose(text)
    except (YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigErrors([_mistake(said, _at(mark, file) if mark else file)]) from None
    if value is not None and not isinstance(value, dict):
        raise ConfigErrors([_mistake("must be `key: value` lines", f"{file}:1:1", "name: Django_Model_Auditor")])
    return value, node


def _at(mark: Any, file: str) -> str:
    return f"{file}:{mark.line + 1}:{mark.column + 1}"


def _place(node: Node | None, keys: tuple[Any, ...], file: str, *, of_key: bool) -> str:
    """``project.yaml:3:7  describe.protocols/x`` of a value, or of the key that leads to it."""
    at = node
    for key in keys:
        if not isinstance(node, MappingNode):
            break
        pair = next(((name, inner) for name, inner in node.value if name.value == str(key)), None)
        if pair is None:
            break
        at, node = (pair[0] if of_key else pair[1]), pair[1]
    place = _at(at.start_mark, file) if at is not None else f"{file}:1:1"
    return f"{place}  {'.'.join(map(str, keys))}" if keys else place


def _mistake(message: str, where: str, hint: str | None = None) -> ConfigError:
    return ConfigError(message, where=where, hint=hint, code="bad-project-file")


def _explain(entry: Mapping[str, Any], node: Node | None, file: str) -> ConfigError:
    keys = tuple(key for key in entry["loc"] if key != "[key]")
    if entry["type"] == "extra_forbidden":
        where = _place(node, keys, file, of_key=True)
        return _mistake(
            f"unknown key {str(keys[-1])[:80]!r}", where, did_you_mean(str(keys[-1])[:80], Answers.model_fields)
        )
    hint = "put it between quotes" if entry["type"] == "string_type" else None
    message = str(entry["msg"]).replace("Input should be", "must be").lower()
    return _mistake(message, _place(node, keys, file, of_key=False), hint)


def _wrong_briefs(answers: Answers, node: Node | None, file: str) -> list[ConfigError]:
    found = []
    for name in answers.describe:
        try:
            ref_of(name)
        except ConfigError as error:
            where = _place(node, ("describe", name), file, of_key=True)
            found.append(_mistake(error.message, where, error.hint))
    return found
