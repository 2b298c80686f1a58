"""What every answer of the API is made of, and how errors read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Base of all answers: every key is named, none is added."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class WrongKey(Shape):
    """What does not fit a pipeline's seed schema: `path` leads to it in the seed's data."""

    path: list[str | int]
    message: str
    hint: str | None


class ErrorAbout(Shape):
    """What went wrong: `class` is the kind, `code` says it exactly and is permanent, `hint` is one next move."""

    class_: str = Field(alias="class")
    code: str
    message: str
    where: str | None
    hint: str | None
    wrong: list[WrongKey] | None = None


class Error(Shape):
    """The body of every answer from 400 on."""

    error: ErrorAbout


class Problem(Shape):
    """A mistake that was found."""

    code: str
    message: str
    where: str | None
    hint: str | None
