"""What a pipeline certainly reads of its seed, and whether its own seed schema has that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pop.errors import ConfigError
from pop.expressions import Expression
from pop.pipeline import Each, Pipeline, Task
from pop.taskcheck import check_task_against_schema, seed_keys
from pop.templatecheck import Template, excluded_by


def excluded_keys(folder: Path, pipeline: Pipeline) -> Iterator[ConfigError]:
    """Keys that are read in any case, and that no seed of this pipeline can have.

    Args:
        folder: Of the tasks.
    """
    if pipeline.seed is None:
        return
    for task in _certain_tasks(pipeline):
        yield from check_task_against_schema(folder, task, pipeline.seed)
    for expression in certain_expressions(pipeline):
        template = Template("{{ " + expression.text + " }}", Path(pipeline.name))
        for problem in excluded_by(template, pipeline.seed):
            message = f"`{expression.text}`: {problem.message.removeprefix('template: ')}"
            yield ConfigError(message, where=expression.where, hint=problem.hint, code="bad-expression")


def keys_not_required(folder: Path, pipeline: Pipeline) -> Iterator[str]:
    """Sentences about keys that prompts read in any case, and that the schema lets a seed leave out."""
    schema = pipeline.seed or {}
    known, given = schema.get("properties", {}), schema.get("required", [])
    required = given if isinstance(given, list) else []  # draft 3 has it beside the key
    for task in _certain_tasks(pipeline):
        for key, certain in seed_keys(folder, task).items():
            if certain and key in known and key not in required:
                what = f"task {task!r} reads seed.{key} in any case"
                lacks = f"the seed schema of pipeline {pipeline.name!r} does not require it"
                yield f"{what}, and {lacks}: add it to `required`, or read {{{{ seed.{key} | default(...) }}}}"


def _certain_tasks(pipeline: Pipeline) -> Iterator[str]:
    blocks = (pipeline.blocks[name] for name in unconditional(pipeline))
    yield from dict.fromkeys(block.task for block in blocks if isinstance(block, Task))


def unconditional(pipeline: Pipeline) -> Iterator[str]:
    """The blocks with no `when` on or around them that do not wait for a lap's verdict: a good first lap skips those."""
    held_back = frozenset().union(*pipeline.held_back.values())
    sure: set[str] = set()
    for name, block in pipeline.blocks.items():
        around = pipeline.parents.get(name)
        if block.when is None and name not in held_back and (around is None or around.name in sure):
            sure.add(name)
            yield name


def certain_expressions(pipeline: Pipeline) -> Iterator[Expression]:
    """Those of `when` and `each` that are worked out in any case."""
    sure = set(unconditional(pipeline))
    for name, block in pipeline.blocks.items():
        around = pipeline.parents.get(name)
        over = block.over if isinstance(block, Each) and name in sure else None
        when = block.when if around is None or around.name in sure else None
        yield from (one for one in (when, over) if one)
