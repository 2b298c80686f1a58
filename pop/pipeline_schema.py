"""The JSON Schema of pipeline.json, for editors (``pop schema pipeline``). ``pop check`` knows more than it can say."""

from __future__ import annotations

from typing import Any

from pop.errors import ErrorClass
from pop.pipeline_values import MAX_LAPS
from pop.records import NAME_PATTERN
from pop.remedies import CURES

_NAME = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
_METASCHEMA = "https://json-schema.org/draft/2020-12/schema"
_DURATION = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?(ms|s|m|h|d)\s*$"},
    ]
}


def _budget(*scopes: str) -> dict[str, Any]:
    names = [f"{scope}_{unit}" for scope in scopes for unit in ("usd", "tokens", "calls")]
    amounts = {name: {"type": "number" if name.endswith("_usd") else "integer", "minimum": 0} for name in names}
    return {"type": "object", "properties": amounts, "additionalProperties": False, "minProperties": 1}


def _recover() -> dict[str, Any]:
    """A table from the classes of errors to what cures them."""
    table = {error_class: _actions(error_class) for error_class, cures in CURES.items() if cures}
    return {"type": "object", "properties": table, "additionalProperties": False}


def _actions(error_class: ErrorClass) -> dict[str, Any]:
    words = sorted(CURES[error_class] - {"model"})
    one: dict[str, Any] = {"enum": words}
    if "model" in CURES[error_class]:
        one = {"anyOf": [one, {"type": "string", "pattern": "^model:.*\\S"}]}
    return {"anyOf": [one, {"type": "array", "minItems": 1, "items": one}]}


_STEPS = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/step"}}
_STEP = {"$ref": "#/$defs/step"}


def _described(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**schema, "description": description}


_EXPRESSION = {"type": "string"}
_ORDER: dict[str, Any] = {
    "name": _described(_NAME, "How this step is called in the run, in `inputs` and in `needs`"),
    "needs": {
        "type": "array", "items": _NAME, "uniqueItems": True,
        "description": "What must have ended first; [] starts at once",
    },
    "when": {"type": "string", "description": "Runs only if this expression is true"},
}  # fmt: skip

_OPTIONS: dict[str, Any] = {
    "task": _described(_NAME, "A task in pipeline-tasks/"),
    "with": {"type": "object", "description": "ctx.config of the task"},
    "model": {"type": "string", "minLength": 1, "description": "A name from [models] in pop.toml"},
    "timeout": _described(_DURATION, "Of one attempt: seconds, or a text like 90s, 5m, 1h"),
    "stall": _described(_DURATION, "An attempt without progress for so long is ended"),
    "attempts": {"type": "integer", "minimum": 1, "maximum": 100},
    "refinements": {"type": "integer", "minimum": 0, "maximum": 100},
    "memory_mb": {"type": "integer", "minimum": 64, "maximum": 10_000_000},
    "output_mb": {"type": "number", "exclusiveMinimum": 0},
    "reuse": {
        "anyOf": [{"type": "boolean"}, _DURATION],
        "description": "Answers of earlier steps and runs to the same question count; a duration is their greatest age",
    },
    "budget": _described(_budget("step"), "What the model calls of this step may use up"),
    "recover": _described(_recover(), "What is done about a failed attempt, by the class of its error"),
}

_LOOP: dict[str, Any] = {
    "repeat": {"anyOf": [_STEPS, _STEP], "description": "The steps of one lap"},
    "until": _described(_EXPRESSION, "The loop has reached its goal when this is true"),
    "at_most": {"type": "integer", "minimum": 1, "maximum": MAX_LAPS, "description": "So many laps"},
    "otherwise": {"enum": ["fail", "ask", "keep-best"], "description": "What follows when the goal is not reached"},
    "score": _described(_EXPRESSION, "A number: the higher, the better the lap"),
    "checks": _described(_EXPRESSION, "While this is false, the goal is not reached, whatever `until` says"),
}

_GATE: dict[str, Any] = {
    "approve": _described(_NAME, "The name of the gate: a step where a person decides"),
    "show": {
        "type": "array", "items": _NAME, "uniqueItems": True,
        "description": "The steps whose outputs are laid before the person",
    },
    "text": {"type": "string", "description": "What the person is to know"},
    "timeout": _described(_DURATION, "How long there is to answer"),
    "on_timeout": {"enum": ["wait", "reject", "approve"], "description": "What happens when the time is over"},
}  # fmt: skip


def _block(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**_ORDER, **properties},
        "required": list(required),
        "additionalProperties": False,
    }


def pipeline_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) that every valid pipeline.json fulfils."""
    task = _block(_OPTIONS)
    del task["required"]
    task["anyOf"] = [{"required": ["task"]}, {"required": ["name"]}]
    gate = _block(_GATE, "approve")
    del gate["properties"]["name"]
    return {
        "$schema": _METASCHEMA,
        "title": "POP pipeline",
        "type": "object",
        "properties": {
            "$schema": {"type": "string"},
            "name": _NAME,
            "description": {"type": "string"},
            "tasks": _STEPS,
            "models": {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}},
            "budget": _described(_budget("step", "run", "pipeline"), "What model calls may use up"),
            "recover": _described(_recover(), "What is done about failed attempts, where a step does not say so"),
            "views": {
                "type": "array",
                "items": {"type": "string"},
                "uniqueItems": True,
                "description": "Further files that are kept in the folder of every run",
            },
            "seed": {"$ref": _METASCHEMA, "type": "object", "description": "The JSON Schema of its seeds' data"},
            "concurrency": {"type": "integer", "minimum": 1, "description": "Attempts of one run at work at once"},
        },
        "required": ["tasks"],
        "additionalProperties": False,
        "$defs": {
            "step": {
                "anyOf": [
                    _described(_NAME, "The name of a task"),
                    _described(_STEPS, "Steps one after the other"),
                    _described(task, "A task with options"),
                    _described(_block({"parallel": _STEPS}, "parallel"), "Steps side by side"),
                    _described(
                        _block({"each": {"type": "string"}, "do": _STEP}, "each", "do"),
                        "A step for each item of a list",
                    ),
                    _described(_block(_LOOP, "repeat", "until", "at_most"), "Steps in laps, until a condition holds"),
                    _described(gate, "A person decides"),
                    _described(_block({"do": _STEP}, "do"), "Steps with a `when` or `needs` of their own"),
                ]
            }
        },
    }
