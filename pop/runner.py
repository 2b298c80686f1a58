"""The inner loop of one attempt: infer, parse, validate; and while that finds problems, critique and refine.

    ingest -> preprocess -> prompt -> infer -> parse -> validate_structure -> validate_quality -> finalize
                                        ^                                        |  problems
                                        +------------- refine <--- critique <----+  at most `refinements` times

The best output so far is kept: fewest structural problems first, then the lowest sum of the problems' scores. The loop
ends early when a round repeats an output it has seen, or two rounds in a row make nothing better. A structure that never fits fails the attempt
(``invalid_output``); problems of quality that remain are recorded in problems.json and the best output is kept, unless
one of them is fatal.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pop.context import Context, ModelCaller, Reply, json_text
from pop.errors import AttemptFailed, ConfigError
from pop.inputs import Inputs, load_seed
from pop.parsing import Unparsable
from pop.records import Letter, dump_json
from pop.stages import Problem, Stages, prompt_text
from pop.tasks import bad_task, load_task
from pop.trail import Trail

DEFAULT_REFINEMENTS = 2
IN_VAIN = 2  # rounds in a row that made nothing better end the loop
KEEPS_THE_BEST = ("refused", "truncated")  # a refinement that fails so leaves a usable output as it is


@dataclass(frozen=True)
class Candidate:
    """An answer, what was made of it, and what is wrong with that."""

    answer: str
    output: Any
    structure: list[Problem]
    quality: list[Problem]
    parsed: bool = True

    @property
    def problems(self) -> list[Problem]:
        return self.structure or self.quality

    @property
    def essence(self) -> Any:
        """What two rounds are compared by: the output, or the answer that none could be made of."""
        return self.output if self.parsed else (self.answer,)

    @property
    def rank(self) -> tuple[bool, float]:
        """Lower is better."""
        return (bool(self.structure), sum(problem.score for problem in self.problems))

    @property
    def blocked(self) -> bool:
        return bool(self.structure) or any(problem.fatal for problem in self.quality)


def run_attempt(letter: Letter, folder: Path, caller: ModelCaller | None) -> None:
    """Work through one letter and leave output.json in `folder`.

    Raises:
        AttemptFailed: With the class that decides what happens next.
        Exception: A bug in the task's own code.
    """
    trail = Trail(folder)
    try:
        task = load_task(Path(letter.tasks_dir), letter.task)
    except ConfigError as error:
        raise bad_task(error) from None
    ctx = Context(
        letter=letter,
        seed=load_seed(letter),
        inputs=Inputs(Path(letter.run_dir), letter.inputs),
        trail=trail,
        caller=caller,
        default_model=letter.model or task.front.model or "default",
        max_output_tokens=task.front.max_output_tokens,
        temperature=task.front.temperature,
    )
    output = _Loop(letter, Stages(task, ctx), trail).run()
    if ctx.control:
        _write(folder, "control.json", dump_json(ctx.control.orders.model_dump()))
    _leave(folder, output)


def _leave(folder: Path, output: Any) -> None:
    if isinstance(output, BaseModel):
        output = output.model_dump(mode="json")
    try:
        data = dump_json(output)
    except (TypeError, ValueError, RecursionError) as error:
        raise AttemptFailed("bug", f"the output has no JSON form: {error}") from None
    if b"null" in data and holds_nan(output):  # the fast writer makes null of it
        raise AttemptFailed("invalid_output", "the output holds a number that is none (NaN or infinite)")
    _write(folder, "output.json", data)


def _write(folder: Path, name: str, data: bytes) -> None:
    draft = folder / f".{name}.tmp"
    draft.write_bytes(data)
    os.rename(draft, folder / name)


def holds_nan(value: Any) -> bool:
    """Whether a number in a JSON value is not a number, or infinite."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(holds_nan(part) for part in value.values())
    return isinstance(value, (list, tuple)) and any(holds_nan(part) for part in value)


class _Loop:
    """One pass through the stages."""

    def __init__(self, letter: Letter, stages: Stages, trail: Trail) -> None:
        self._stages = stages
        self._trail = trail
        self._ctx = stages.ctx
        self._rounds = DEFAULT_REFINEMENTS if letter.refinements is None else letter.refinements

    def run(self) -> Any:
        material = self._prepare()
        prompt = self._prompt(material)
        best = self._first(prompt)
        if best.problems and self._rounds:
            best = self._improve(best, prompt, material)
        self._record_problems(best)
        return self._finalize(best.output)

    def _prepare(self) -> Any:
        with self._trail.during("ingest", quiet=not self._stages.has("ingest")) as fields:
            material = self._stages.ingest()
            if self._stages.has("ingest") or self._stages.task.prompt is not None:
                self._trail.keep(self._sources(material), fields)
        if not self._stages.has("preprocess"):
            self._trail._number += 1
            return material
        with self._trail.during("preprocess") as fields:
            material = self._stages.preprocess(material)
            self._trail.keep(material, fields)
        return material

    def _sources(self, material: Any) -> dict[str, Any]:
        ctx = self._ctx
        sources: dict[str, Any] = {"seed": {"$same_as": ctx.letter.seed.path}, "inputs": ctx.inputs.places()}
        if ctx.letter.has_item:
            sources["item"] = ctx.item
        if ctx.config:
            sources["config"] = ctx.config
        if material is not None:
            sources["material"] = material
        return sources

    def _prompt(self, material: Any) -> Any:
        with self._trail.during("prompt", quiet=not self._stages.has("prompt")) as fields:
            prompt = self._stages.prompt(material)
            if prompt is not None:
                self._trail.keep(prompt_text(prompt), fields)
        return prompt

    def _first(self, prompt: Any) -> Candidate:
        with self._trail.during("infer") as fields:
            answers = self._stages.samples(prompt)
            self._keep_answers(answers, fields)
        candidates = [self._judge(answer) for answer in answers]
        if len(candidates) == 1:
            return candidates[0]
        return self._choose(candidates)

    def _choose(self, candidates: list[Candidate]) -> Candidate:
        """One of several samples, as the task's front matter says; the trail says which, and how many gave the same."""
        how = self._stages.task.front.choose
        taken, votes = choose(candidates, how)
        problems = len(candidates[taken].problems)
        text = f"sample {taken + 1} of {len(candidates)} is taken ({how}): given {votes} times, {problems} problems"
        self._trail.note("note", text=text)
        return candidates[taken]

    def _keep_answers(self, answers: list[Any], fields: dict[str, Any]) -> None:
        texts = [_answer_text(answer) for answer in answers if isinstance(answer, Reply)]
        if texts:
            self._trail.keep("\n\n---\n\n".join(texts), fields)

    def _judge(self, raw: Any) -> Candidate:
        text = raw.text if isinstance(raw, Reply) else raw if isinstance(raw, str) else ""
        try:
            output = self._parse(raw)
        except Unparsable as error:
            return Candidate(text, None, [Problem(str(error), score=float("inf"))], [], parsed=False)
        with self._trail.during("validate_structure", quiet=True) as fields:
            structure = self._stages.validate_structure(output)
            self._keep_problems(structure, fields)
        if structure:
            self._trail._number += 1
            return Candidate(text or json_text_or_repr(output), output, structure, [])
        with self._trail.during("validate_quality", quiet=not self._stages.has("validate_quality")) as fields:
            quality = self._stages.validate_quality(output)
            self._keep_problems(quality, fields)
        return Candidate(text or json_text_or_repr(output), output, [], quality)

    def _parse(self, raw: Any) -> Any:
        with self._trail.during("parse", quiet=not self._stages.has("parse")) as fields:
            try:
                output, found_by = self._stages.parse(raw)
            except Unparsable as error:
                fields["problems"] = [str(error)]
                raise
            fields["text"] = found_by
            if found_by != "as it is":
                self._trail.keep(output, fields)
        return output

    def _keep_problems(self, problems: list[Problem], fields: dict[str, Any]) -> None:
        if problems:
            fields["problems"] = [str(problem) for problem in problems]
            fields["score"] = sum(problem.score for problem in problems)
            self._trail.keep([str(problem) for problem in problems], fields)

    def _improve(self, best: Candidate, prompt: Any, material: Any) -> Candidate:
        current, seen, in_vain = best, [best.essence], 0
        for number in range(1, self._rounds + 1):
            if not self._stages.can_refine or in_vain == IN_VAIN:
                break
            self._trail.round = number
            try:
                current = self._refine(current, prompt, material)
            except AttemptFailed as error:
                if best.blocked or error.error_class not in KEEPS_THE_BEST:
                    raise
                self._trail.note("note", text=f"the best output so far is kept: {error.message[:500]}")
                break
            repeats = current.essence in seen
            seen.append(current.essence)
            in_vain += 1
            if current.rank < best.rank:
                best, in_vain = current, 0
            if not best.problems or repeats:
                break
        return best

    def _refine(self, current: Candidate, prompt: Any, material: Any) -> Candidate:
        with self._trail.during("critique") as fields:
            critique = self._stages.critique(current.output, current.answer, current.problems, prompt, material)
            self._trail.keep(critique, fields)
        with self._trail.during("refine") as fields:
            raw = self._stages.refine(current.output, current.answer, critique, current.problems, prompt, material)
            self._keep_answers([raw], fields)
        return self._judge(raw)

    def _record_problems(self, best: Candidate) -> None:
        """A structure that does not fit, or a fatal problem, ends the attempt; other problems are kept beside it."""
        if not best.problems:
            return
        worst_first = sorted(best.problems, key=lambda problem: not problem.fatal)
        sentences = [f"fatal: {problem}" if problem.fatal else str(problem) for problem in worst_first]
        (self._trail.folder / "problems.json").write_bytes(dump_json(sentences))
        if best.blocked:
            self._keep_rejected(best)
            kind = "does not have the asked form" if best.structure else "is not good enough"
            raise AttemptFailed("invalid_output", f"the output {kind}: {sentences[0][:500]}", problems=sentences)

    def _keep_rejected(self, best: Candidate) -> None:
        """What did not count, for whoever wants to know why (an answer that could not be parsed stands in its stage)."""
        if best.parsed:
            with contextlib.suppress(TypeError, ValueError, RecursionError):
                (self._trail.folder / "rejected.json").write_bytes(dump_json(best.output))

    def _finalize(self, output: Any) -> Any:
        with self._trail.during("finalize", quiet=not self._stages.has("finalize")):
            return self._stages.finalize(output)


def choose(candidates: Sequence[Candidate], how: str) -> tuple[int, int]:
    """Which candidate is taken, from 0, and how many candidates have its output.

    ``best``: the lowest rank, then the most votes. ``majority``: the most votes among those without structural
    problems (among all, when each has some), then the lowest rank. The first one goes before its equals.
    """
    given = [canonical(candidate.essence) for candidate in candidates]
    votes = [given.count(one) for one in given]
    sound = [place for place, candidate in enumerate(candidates) if not candidate.structure]
    if how == "majority" and sound:
        taken = min(sound, key=lambda place: (-votes[place], candidates[place].rank))
    else:
        taken = min(range(len(given)), key=lambda place: (candidates[place].rank, -votes[place]))
    return taken, votes[taken]


def canonical(value: Any) -> str:
    """One text for all ways of writing a JSON value: keys in order, 2.0 as 2; for anything else its repr."""
    try:
        return json.dumps(_plain_numbers(value), sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_numbers(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_numbers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _answer_text(reply: Reply) -> str:
    note = f"> {reply.answer.model}: {reply.answer.note}\n\n" if reply.answer.note else ""
    return note + reply.text


def json_text_or_repr(value: Any) -> str:
    """A value as text, whatever it is."""
    try:
        return json_text(value)
    except (TypeError, ValueError):
        return repr(value)[:10_000]
