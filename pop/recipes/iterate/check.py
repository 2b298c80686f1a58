"""The step that holds an iteration's deliverables to its criteria (task iterate-check): programs judge, no model is asked.

The deliverables of this lap are laid out in the step's artifacts/, and COMPLETION_CRITERIA.md is checked there. Output:

    {"met": bool, "met_count": int, "unmet_count": int, "unchecked_count": int,
     "criteria": [{"text", "path", "rule", "status": "met" | "unmet" | "unchecked", "evidence"}, ...],
     "unmet_paths": {path: [problem, ...]}}

`met` is about everything a rule understands. A deliverable that no agent has made is not met.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pop.errors import AttemptFailed, PopError
from pop.recipes.iterate.criteria import Report, check, parse, with_planned
from pop.recipes.iterate.manifest import CRITERIA, seed_key
from pop.store import contained, read_regular

if TYPE_CHECKING:
    from pop.context import Context

MAX_BYTES = 10_000_000


def infer(prompt: Any, ctx: Context) -> dict[str, Any]:
    """Check what the agents of the iteration made in this lap."""
    iteration = str(ctx.config["iteration"])
    given = _given(ctx, iteration)
    planned = [path for path, _ in _made(ctx, iteration)]
    criteria = with_planned(_criteria(given), planned)
    folder = ctx.artifact("nothing").parent
    for path, text in _made(ctx, iteration):
        if text is not None:
            ctx.artifact(path).write_bytes(text.encode("utf-8", "replace"))
    report = check(criteria, folder, schemas=given)
    return as_output(report)


def as_output(report: Report) -> dict[str, Any]:
    """See the module."""
    return {**report.model_dump(), "unmet_paths": report.unmet_paths}


def _given(ctx: Context, iteration: str) -> Path:
    """What the seed brought for the iteration: its criteria, and the schemas they name."""
    if ctx.files is None:
        hint = "pop iterate run DIR submits a whole folder"
        raise AttemptFailed("bad_input", "the seed came without the files of its iterations", hint=hint)
    return contained(ctx.files, iteration)


def _criteria(given: Path) -> list[Any]:
    try:
        text = read_regular(given / CRITERIA, max_bytes=MAX_BYTES).decode("utf-8-sig")
        return parse(text, f"{given.name}/{CRITERIA}")
    except (OSError, ValueError, PopError) as error:
        hint = "mend it, then pop iterate run DIR once more"
        raise AttemptFailed("bad_input", f"the criteria cannot be read: {error}", where=CRITERIA, hint=hint) from None


def _made(ctx: Context, iteration: str) -> Iterator[tuple[str, str | None]]:
    """Each planned path of the iteration with its text; None where no agent has made it."""
    for step, owner in ctx.seed["steps"].items():
        if owner != iteration:
            continue
        planned = ctx.seed["agents"].get(seed_key(step)) or []
        results = ctx.inputs.get(step) or []
        for index, deliverable in enumerate(planned):
            result = results[index] if index < len(results) else None
            text = result.get("text") if isinstance(result, dict) else None
            yield deliverable["path"], text if isinstance(text, str) else None
