"""What the API tells of a root's health, and takes to keep it well."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictFloat

from pop.web.shapes.answers import Shape
from pop.web.shapes.root import Daemon


class Finding(Shape):
    """One thing about a root. `ok` false: a person should look, and `next_move` says what to do; `blocks`: it keeps POP
    from its work."""

    ok: bool
    about: str
    says: str
    next_move: str | None
    blocks: bool


class Health(Shape):
    version: str
    daemon: Daemon | None
    findings: list[Finding]


class Hook(Shape):
    """Who is told. `target` is the host of an address, or a command without its arguments; `last`: ``{"at", "id", "tries",
    "error"}``."""

    name: str
    on: list[str]
    target: str
    signed: bool
    waiting: int
    last: dict[str, Any] | None


class Hooks(Shape):
    hooks: list[Hook]


class TestBody(Shape):
    """Names of models, as /api/models lists them."""

    __test__ = False

    models: list[Annotated[str, Field(max_length=100)]] = Field(min_length=1, max_length=100)


class TestedModel(Shape):
    """How asking a model went, in lines."""

    name: str
    says: list[str]
    failed: bool


class Tested(Shape):
    models: list[TestedModel]


class GcBody(Shape):
    """`before` is Unix seconds; `archive` keeps each as pipeline-complete/archive/RUN.tar.gz."""

    before: StrictFloat
    failed: StrictBool = False
    archive: StrictBool = False


class OldRuns(Shape):
    """Runs that ended before `before`: with GET those that can be removed, with POST those that were."""

    before: float
    runs: list[str]
    size_bytes: int
