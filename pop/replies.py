"""A model call that a task makes, and the reply it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pop.errors import AttemptFailed
from pop.models.request import Answer
from pop.models.strict import without_nulls
from pop.parsing import Parsed, Schema, Unparsable, json_schema, model_problems, parse_json, schema_problems

Prompt = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """A model's answer."""

    text: str
    answer: Answer
    schema: Schema | None = None

    @property
    def data(self) -> Any:
        """The answer's JSON where a schema was asked for (an instance, where that was a pydantic model), else None.

        Raises:
            AttemptFailed: ``invalid_output`` when the answer holds no JSON or does not fit the schema.
        """
        if self.schema is None:
            return None
        form = json_schema(self.schema)
        try:
            value = self.parsed(form).value
            problems = schema_problems(value, form)
        except Unparsable as error:
            problems = [str(error)]
        if not problems and isinstance(self.schema, type):
            problems = model_problems(value, self.schema)
        if problems:
            asked = f"the answer of {self.answer.model!r} does not have the asked form: {problems[0][:500]}"
            raise AttemptFailed("invalid_output", asked, problems=problems)
        return self.schema.model_validate(value) if isinstance(self.schema, type) else value

    def parsed(self, schema: dict[str, Any]) -> Parsed:
        """The value that the answer holds, unchecked; without the nulls that strict servers write for what is left out.

        Raises:
            Unparsable: It holds none.
        """
        found = parse_json(self.text, schema)
        if self.answer.extra.get("nulls"):
            return replace(found, value=without_nulls(found.value, schema))
        return found

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Call:
    """A model call that has not been made yet, for `Context.gather`.

    Args:
        schema: A JSON Schema, or a pydantic model.
        reuse_s: An answer to the same question may be so many seconds old, whoever asked; None: as the run says.
    """

    prompt: Prompt
    schema: Schema | None = None
    model: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    reuse_s: float | None = None
