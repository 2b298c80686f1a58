"""`pop iterate plan` inside its run: what is wrong with an assessment or a decomposition, and the proposal it becomes.

The pipeline iterate-plan (planning_tasks/): assess -> questions, a gate where something is open -> decompose. A decomposition is
held to the checker that `pop iterate check` uses, so what comes out can be generated from; the refine loop mends what it finds.
The output of ``decompose`` is ``{"name": str, "workflow": text, "notes": [str], "made_by": str}``, the text is the artifact
workflow.yaml as well.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pop.errors import AttemptFailed, ConfigErrors, PopError, did_you_mean, safe
from pop.recipes.iterate.criteria import parse_one
from pop.recipes.iterate.judging import glob_regex, is_glob
from pop.recipes.iterate.library import WORKFLOW_FILE
from pop.recipes.iterate.rules import CriterionError, Prose
from pop.recipes.iterate.workflow import PLACEHOLDER, load_workflow
from pop.stages import Problem

if TYPE_CHECKING:
    from pop.context import Context

TASK_FILE = "task.md"
WIDTH = 110


# -- assess ------------------------------------------------------------------------------------------------------------


def assessment_problems(output: Any, ctx: Context) -> Iterator[Problem]:
    """Names that the library and the catalogue do not have, and questions that somebody has answered for the person."""
    refuse_embedded(ctx)
    known = {
        "roles": [one["name"] for one in ctx.seed["roles"]],
        "nearest": [one["name"] for one in ctx.seed["catalogue"]],
    }
    for number, role in enumerate(output["roles"]):
        if role not in known["roles"]:
            yield Problem(f"/roles/{number}: no role {role[:80]!r}; {did_you_mean(role, known['roles'])}")
    nearest = output["nearest"]
    if nearest is not None and nearest not in known["nearest"]:
        yield Problem(f"/nearest: no workflow {nearest[:80]!r}; {did_you_mean(nearest, known['nearest'])}, or null")
    for number, question in enumerate(output["questions"]):
        if question["answer"] is not None:
            yield Problem(f"/questions/{number}/answer: it is for a person to answer; null")


def refuse_embedded(ctx: Context) -> None:
    """Raises AttemptFailed: the embedded engine answered, which copies sentences and cannot plan."""
    if any(call.provider == "builtin" for call in ctx.calls):
        hint = "give it a language model (pop models --test), or pop iterate plan TASK --start"
        message = "the embedded engine answered: it is extractive, not a language model, and cannot decompose a task"
        raise AttemptFailed("bad_input", message, hint=hint)


# -- decompose ---------------------------------------------------------------------------------------------------------


def decomposition_problems(output: Any, ctx: Context) -> Iterator[Problem]:
    """All that the workflow checker finds, and what makes a workflow that could not be generated or judged."""
    refuse_embedded(ctx)
    yield from (Problem(text, score=3, fatal=True) for text in workflow_problems(rendered(output, ctx.seed["task"])))
    files = [file["path"] for file in ctx.seed["files"]] if not ctx.seed["more_files"] else None
    for i, iteration in enumerate(output["iterations"]):
        yield from _of_criteria(iteration, f"/iterations/{i}")
        if files is not None:
            yield from _of_targets(iteration, files, f"/iterations/{i}")


def workflow_problems(text: str) -> list[str]:
    """What `pop iterate check` would say of a workflow's text, as sentences with the path of each."""
    with tempfile.TemporaryDirectory(prefix="pop-plan-") as folder:
        path = Path(folder, WORKFLOW_FILE)
        path.write_text(text)
        try:
            load_workflow(path)
        except ConfigErrors as error:
            return [_sentence(problem) for problem in error.problems]
        except PopError as error:
            return [_sentence(error)]
    return []


def _sentence(error: PopError) -> str:
    """Without the file, which the model does not know: ``workflow.iterations[0].name: ...``."""
    place = (error.where or "").partition("  ")[2]
    return ": ".join(part for part in (place, error.message) if part) + (f" ({error.hint})" if error.hint else "")


def _of_criteria(iteration: Mapping[str, Any], place: str) -> Iterator[Problem]:
    judged: list[str] = []
    for number, text in enumerate(iteration["completion_criteria"]):
        try:
            criterion = parse_one(text)
        except CriterionError as error:
            hint = f" ({error.hint})" if error.hint else ""
            yield Problem(f"{place}/completion_criteria/{number}: {error.message}{hint}", score=2, fatal=True)
            continue
        if not all(isinstance(rule, Prose) for rule in criterion.rules):
            judged += criterion.paths or [criterion.command or ""]
    for agent in iteration["agents"]:
        for path in agent["deliverables"]:
            if not any(_same(path, pattern) for pattern in judged):
                yield Problem(f"{place}/completion_criteria: nothing that a program can check is asked of {path!r}")


def _same(path: str, pattern: str) -> bool:
    """Whether a criterion's path, with placeholders or as a glob, speaks of a deliverable's."""
    plain = PLACEHOLDER.sub("x", path)
    return path == pattern or bool(glob_regex(PLACEHOLDER.sub("*", pattern)).fullmatch(plain))


def _of_targets(iteration: Mapping[str, Any], files: list[str], place: str) -> Iterator[Problem]:
    """Globs of an iteration that begins from the files alone, and match none of them."""
    if iteration["dependencies"]:
        return
    for a, agent in enumerate(iteration["agents"]):
        for n, glob in enumerate(agent["targets"]):
            regex = glob_regex(PLACEHOLDER.sub("*", glob.removeprefix("!")))
            if not any(regex.fullmatch(path) for path in files):
                near = (
                    did_you_mean(glob, files) if not is_glob(glob) else 'the files stand above; "**" means all of them'
                )
                yield Problem(
                    f"{place}/agents/{a}/targets/{n}: {glob[:80]!r} matches no file ({near})", score=2, fatal=True
                )


# -- the proposal ------------------------------------------------------------------------------------------------------


def write_proposal(output: Any, ctx: Context) -> dict[str, Any]:
    """The workflow as a text for a person, with what was taken for granted; the artifact workflow.yaml."""
    made_by = next((call.provider_model for call in reversed(ctx.calls)), "a model")
    questions = ctx.inputs.get("assess", {}).get("questions") or []
    answered = ctx.inputs.get("questions")
    text = rendered(output, ctx.seed["task"], run=ctx.run_id, made_by=made_by, asked=_asked(questions, answered))
    ctx.artifact(WORKFLOW_FILE).write_text(text)
    return {"name": output["name"], "workflow": text, "notes": [*output["assumptions"]], "made_by": made_by}


def _asked(questions: Iterable[Mapping[str, Any]], answered: Mapping[str, Any] | None) -> list[str]:
    """The questions with what was answered, as lines."""
    lines = [f"{one['question']} {one['answer'] or '(see the answer below)'}" for one in questions]
    words = (answered or {}).get("text")
    return [*lines, f"answered: {words}"] if words else lines


def rendered(
    output: Mapping[str, Any], task: str, *, run: str = "", made_by: str = "a model", asked: Iterable[str] = ()
) -> str:
    """The YAML of a decomposition, with comments that say what it is and why."""
    from ruamel.yaml import YAML

    head = [
        f"A PROPOSAL by {made_by}: nothing has run, and nothing has been judged by a person. Read it, change what is wrong, then:",
        f"  pop iterate check {output['name']}",
        *([f"Planned by run {run}"] if run else []),
        "",
        *_block("Task", [task]),
        *_block("Asked before", asked),
        *_block("Taken for granted", output["assumptions"]),
        *_block("To look at while it runs", output["watch"]),
        *_block("To compare afterwards", output["learn"]),
    ]
    yaml = YAML(typ="rt")
    yaml.width, yaml.default_flow_style, yaml.allow_unicode = WIDTH, False, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    yaml.dump(_document(output), text)
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + "\n" + text.getvalue()


def _block(title: str, lines: Iterable[str]) -> list[str]:
    """Comments, each text wrapped and marked."""
    import textwrap

    found: list[str] = []
    for line in lines:
        plain = " ".join(safe(line, 4000).split())
        found += textwrap.wrap(plain, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False)
    return [f"{title}:", *found] if found else []


def _document(output: Mapping[str, Any]) -> Any:
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    iterations = CommentedSeq()
    for number, one in enumerate(output["iterations"]):
        agents = [_agent(agent) for agent in one["agents"]]
        about = {"name": one["name"], "goal": _text(one["goal"]), "dependencies": _short(one["dependencies"])}
        iterations.append(
            CommentedMap(
                {**about, "agents": agents, "completion_criteria": [_text(line) for line in one["completion_criteria"]]}
            )
        )
        if why := " ".join(safe(one["why"], 1000).split()):
            iterations.yaml_set_comment_before_after_key(number, before=why, indent=4)
    about = {"name": output["name"], "description": _text(output["description"]), "iterations": iterations}
    document = CommentedMap({"workflow": CommentedMap(about)})
    if output["new_roles"]:
        roles = {
            one["name"]: {
                key: _text(one[key]) if isinstance(one[key], str) else [_text(line) for line in one[key]]
                for key in ("perspective", "responsibilities", "constraints")
                if one[key]
            }
            for one in output["new_roles"]
        }
        document["agent_roles"] = roles
    return document


def _agent(agent: Mapping[str, Any]) -> Any:
    about = {
        "role": agent["role"],
        "targets": _short(agent["targets"]),
        "deliverables": _short(agent["deliverables"]),
        "complexity_per_target": float(agent["complexity_per_target"]),
        "output_tokens": agent["output_tokens"],
    }
    return {**about, **({"instructions": _text(agent["instructions"])} if agent["instructions"].strip() else {})}


def _short(texts: list[str]) -> Any:
    """A list in one line."""
    from ruamel.yaml.comments import CommentedSeq

    found = CommentedSeq(texts)
    found.fa.set_flow_style()
    return found


def _text(text: str) -> Any:
    """Several lines as a block; what a terminal must not see is taken out."""
    from ruamel.yaml.scalarstring import LiteralScalarString

    plain = re.sub(r"[ \t]+$", "", safe(text).replace("\t", "  "), flags=re.MULTILINE).strip()
    return LiteralScalarString(plain + "\n") if "\n" in plain else plain
