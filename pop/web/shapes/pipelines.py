"""What the API tells of pipelines and their tasks."""

from __future__ import annotations

from typing import Any, Literal

from pop.web.shapes.answers import Problem, Shape


class PipelineRow(Shape):
    name: str
    file: str
    description: str | None
    steps: list[str]
    problems: int


class PipelineList(Shape):
    pipelines: list[PipelineRow]


class Step(Shape):
    """A step of a pipeline; a gate has no task. `after` are the steps it directly waits for."""

    name: str
    kind: Literal["task", "gate"]
    task: str | None
    model: str | None
    when: str | None
    inside: list[str]
    after: list[str]


class Block(Shape):
    """What stands around steps."""

    name: str
    kind: Literal["sequence", "parallel", "each", "repeat"]
    inside: str | None
    when: str | None
    over: str | None
    until: str | None
    at_most: int | None


class TaskFile(Shape):
    """A file of a task; `text` null when it is larger than 256 kB or no text."""

    path: str
    text: str | None


class Task(Shape):
    name: str
    kind: str
    files: list[TaskFile]


class PipelineDetail(Shape):
    """`graph` is a Mermaid flowchart; `seed` the JSON Schema of a seed's data.

    `seed_guessed`: the pipeline has none of its own; it is made from what is read, and from examples.
    """

    name: str
    file: str
    document: Any
    description: str | None
    steps: list[Step]
    blocks: list[Block]
    graph: str | None
    tasks: list[Task]
    seed: dict[str, Any]
    seed_guessed: bool
    problems: list[Problem]


class Check(Shape):
    """All mistakes of the root, as `pop check` finds them."""

    ok: bool
    problems: list[Problem]
    notes: list[str]
