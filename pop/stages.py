"""The ten stages and what each does when a task does not replace it.

| stage              | gets                  | gives              | default                                                |
|--------------------|-----------------------|--------------------|--------------------------------------------------------|
| ingest             | seed                  | material           | the seed and the inputs as they are                    |
| preprocess         | material              | material           | nothing                                                |
| prompt             | material              | text or messages   | renders NAME.md                                        |
| infer              | prompt                | answer             | asks the step's model                                  |
| parse              | answer                | output             | JSON where there is a schema, else the text            |
| validate_structure | output                | problems           | the JSON Schema, the pydantic ``Output``               |
| validate_quality   | output                | problems           | none                                                   |
| critique           | output, problems      | critique           | NAME.critique.md to the model, else the problems       |
| refine             | output, critique      | answer             | NAME.refine.md to the model, else the same talk goes on|
| finalize           | output                | output             | nothing                                                |

`ctx` comes last everywhere. A stage may be ``async def``. Problems are sentences or `Problem`; none means good.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel

from pop.context import Call, Context, Reply, json_text
from pop.errors import AttemptFailed
from pop.parsing import Unparsable, model_problems, parse_json, schema_problems
from pop.tasks import LoadedTask
from pop.templates import Prompt


@dataclass(frozen=True)
class Problem:
    """What is wrong with an output.

    Args:
        text: A sentence for the model and for the reader.
        score: How bad it is; the output with the lowest sum is kept.
        fatal: The step fails when no round gets rid of it (others are recorded and the best output is kept).
    """

    text: str
    score: float = 1.0
    fatal: bool = False

    def __str__(self) -> str:
        return self.text


def call_stage(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a task's stage, whether it is a plain function, a generator, or either of them async."""
    value = function(*arguments)
    if inspect.isasyncgen(value):
        return _in_a_loop(_collect(value))
    if inspect.isawaitable(value):
        return _in_a_loop(_await(value))
    return list(value) if inspect.isgenerator(value) else value


def _in_a_loop(work: Coroutine[Any, Any, Any]) -> Any:
    import asyncio  # 2 MB in every worker, for the few that need it

    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:  # of a TaskGroup
        failed = _first_failure(group)
        if failed is None:
            raise
        raise failed from None


def _first_failure(group: BaseExceptionGroup[BaseException]) -> AttemptFailed | None:
    for error in group.exceptions:
        inner = _first_failure(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(inner, AttemptFailed):
            return inner
    return None


async def _await(value: Any) -> Any:
    return await value


async def _collect(value: Any) -> list[Any]:
    return [entry async for entry in value]


def as_problems(found: Any) -> list[Problem]:
    """What a validator returned, as a list of problems.

    Raises:
        TypeError: It is neither None, a sentence, a problem, nor a list of those.
    """
    if found is None or found is True:
        return []
    if isinstance(found, (str, Problem)):
        found = [found]
    if not isinstance(found, Iterable) or isinstance(found, Mapping):
        raise TypeError(f"a validator gives sentences (or nothing when all is well), not {type(found).__name__}")
    return [entry if isinstance(entry, Problem) else Problem(str(entry)) for entry in found]


class Stages:
    """The stages of one task: its own where it has them, the defaults elsewhere."""

    def __init__(self, task: LoadedTask, ctx: Context) -> None:
        self.task = task
        self.ctx = ctx

    def has(self, name: str) -> bool:
        """Whether the task brings this stage itself."""
        return name in self.task.stages

    def _own(self, name: str, *arguments: Any) -> Any:
        return call_stage(self.task.stages[name], *arguments, self.ctx)

    def ingest(self) -> Any:
        return self._own("ingest", self.ctx.seed) if self.has("ingest") else None

    def preprocess(self, material: Any) -> Any:
        return self._own("preprocess", material) if self.has("preprocess") else material

    def prompt(self, material: Any) -> Any:
        """Messages or a text; None for a task without words."""
        if self.has("prompt"):
            return self._own("prompt", material)
        if self.task.prompt is None:
            return None
        names = self.names(material)
        text = self.task.prompt.render(names) + self._earlier_problems() + self._changes()
        messages = [{"role": "user", "content": text}]
        if self.task.system:
            messages.insert(0, {"role": "system", "content": self.task.system.render(names)})
        return messages

    def _earlier_problems(self) -> str:
        """An attempt that follows bad answers is told what was wrong with them."""
        problems = self.ctx.letter.problems
        if not problems or self._told_by_itself("problems_before"):
            return ""
        return f"\n\nAn earlier answer to this was not accepted. Avoid its mistakes:\n{_listed(problems)}"

    def _changes(self) -> str:
        """What persons asked for at a gate, unless the task says it in its own words."""
        changes = self.ctx.changes
        if not changes or self._told_by_itself("changes"):
            return ""
        return f"\n\nA person has looked at an earlier result and asks for these changes:\n{_listed(changes)}"

    def _told_by_itself(self, name: str) -> bool:
        return any(one.reads(name) for one in (self.task.prompt, self.task.system) if one)

    def names(self, material: Any, **more: Any) -> dict[str, Any]:
        """What a template can name."""
        ctx = self.ctx
        names = {
            "seed": ctx.seed,
            "inputs": ctx.inputs,
            "item": ctx.item,
            "lap": ctx.lap,
            "laps": ctx.laps,
            "config": ctx.config,
            "material": material,
            "run_id": ctx.run_id,
            "step": ctx.step,
            "attempt": ctx.attempt,
            "problems_before": ctx.letter.problems,
            "changes": ctx.changes,
        }
        added = {str(key): value for key, value in material.items()} if isinstance(material, Mapping) else {}
        return {**names, **added, **more}

    def infer(self, prompt: Any) -> Any:
        """One answer: a `Reply` of a model, or whatever the task's own code gives."""
        if self.has("infer"):
            return self._own("infer", prompt)
        return self.ctx.ask(self._call(prompt))

    def samples(self, prompt: Any) -> list[Any]:
        """As many answers as the task asks for, at once; those that failed are left out while one came back.

        Raises:
            AttemptFailed: The first failure, when all failed.
        """
        count = self.task.front.samples
        if count == 1 or self.has("infer"):
            return [self.infer(prompt)]
        replies = self.ctx.gather_each([self._call(prompt)] * count)
        whole = [reply for reply in replies if isinstance(reply, Reply)]
        if not whole:
            raise next(reply for reply in replies if isinstance(reply, AttemptFailed))
        return whole

    def _call(self, prompt: Any) -> Call:
        return Call(prompt, schema=self.task.schema)

    def parse(self, raw: Any) -> tuple[Any, str]:
        """The output and how it was found (``parsing``'s table, or ``as it is``).

        Raises:
            Unparsable: There is a schema and the text holds no JSON.
        """
        text = raw.text if isinstance(raw, Reply) else raw
        if self.has("parse"):
            return self._own("parse", text), "parse()"
        if isinstance(text, str) and self.task.schema is not None:
            found = raw.parsed(self.task.schema) if isinstance(raw, Reply) else parse_json(text, self.task.schema)
            return found.value, found.found_by
        return (text.strip() if isinstance(raw, Reply) else self._plain(text)), "as it is"

    def _plain(self, output: Any) -> Any:
        """What the task's own code gave, as JSON has it where a schema will look at it."""
        if isinstance(output, BaseModel):
            return output.model_dump(mode="json")
        if self.task.schema is None:
            return output
        try:
            return orjson.loads(orjson.dumps(output))
        except TypeError:  # an integer beyond 64 bits, a key that is no text, or nothing that JSON knows
            with suppress(TypeError, ValueError, RecursionError):
                return json.loads(json.dumps(output))
            return output

    def validate_structure(self, output: Any) -> list[Problem]:
        if self.has("validate_structure"):
            return as_problems(self._own("validate_structure", output))
        found: list[str] = []
        if self.task.schema is not None:
            found += schema_problems(output, self.task.schema)
        if self.task.output_model is not None and not found:
            found += model_problems(output, self.task.output_model)
        return as_problems(found)

    def validate_quality(self, output: Any) -> list[Problem]:
        return as_problems(self._own("validate_quality", output)) if self.has("validate_quality") else []

    def critique(self, output: Any, answer: str, problems: list[Problem], prompt: Any, material: Any) -> str:
        if self.has("critique"):
            return json_text(self._own("critique", output, problems))
        listed = "\n".join(f"- {problem}" for problem in problems)
        if self.task.critique is None:
            return listed
        names = self.names(
            material,
            output=output,
            problems=[str(problem) for problem in problems],
            critique=listed,
            answer=answer,
            prompt=prompt_text(prompt),
        )
        return self.ctx.ask(Call(self.task.critique.render(names))).text

    @property
    def can_refine(self) -> bool:
        own = self.has("refine") or self.task.refine is not None
        return own or (self.task.prompt is not None and not self.has("infer"))

    def refine(
        self, output: Any, answer: str, critique: str, problems: list[Problem], prompt: Any, material: Any
    ) -> Any:
        if self.has("refine"):
            return self._own("refine", output, critique)
        if self.task.refine is not None:
            names = self.names(
                material,
                output=output,
                problems=[str(problem) for problem in problems],
                critique=critique,
                answer=answer,
                prompt=prompt_text(prompt),
            )
            return self.ctx.ask(self._call(self._with_system(self.task.refine, names)))
        talk = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        again = f"Your answer has these problems:\n{critique}\n\nGive the whole answer again, without them."
        return self.ctx.ask(
            self._call([*talk, {"role": "assistant", "content": answer}, {"role": "user", "content": again}])
        )

    def _with_system(self, template: Prompt, names: dict[str, Any]) -> list[dict[str, str]]:
        messages = [{"role": "user", "content": template.render(names)}]
        if self.task.system:
            messages.insert(0, {"role": "system", "content": self.task.system.render(names)})
        return messages

    def finalize(self, output: Any) -> Any:
        if self.has("finalize"):
            return self._own("finalize", output)
        return output


def _listed(sentences: Iterable[str]) -> str:
    return "\n".join("- " + str(one).strip().replace("\n", "\n  ") for one in sentences)


def prompt_text(prompt: Any) -> str:
    """A prompt as one readable text."""
    if isinstance(prompt, str) or prompt is None:
        return prompt or ""
    if isinstance(prompt, list) and all(isinstance(message, Mapping) and "content" in message for message in prompt):
        if len(prompt) == 1:
            return str(prompt[0]["content"])
        return "\n\n".join(f"## {message.get('role', 'user')}\n\n{message['content']}" for message in prompt)
    return json_text(prompt)


__all__ = ["Problem", "Stages", "Unparsable", "as_problems", "call_stage", "prompt_text"]
