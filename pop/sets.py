"""Values changed on the way into a re-run: ``seed.a.b=...`` and ``STEP.with.k=...``; nothing is made up on the way but a key of `with`.

| path                                               | must be there already                          |
|----------------------------------------------------|------------------------------------------------|
| ``seed.<key or number>...``                        | yes                                            |
| ``STEP.with.<key>``                                | the step; the key may be new                   |
| ``STEP.with.<key>.<key or number>...``             | yes                                            |
| ``STEP.model .timeout .attempts .refinements``     | the step                                       |
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pop.errors import UsageError, did_you_mean
from pop.records import BadJson, read_json

SETTABLE = ("with", "model", "timeout", "attempts", "refinements")
_INNER = ("parallel", "repeat", "do")


class UnknownPath(UsageError):
    """There is nothing at the path that is to be set."""

    code = "unknown-path"


def read_sets(texts: tuple[str, ...]) -> dict[str, Any]:
    """``--set PATH=VALUE`` as a person writes it: a value that is no JSON is a text.

    Raises:
        UsageError: There is no ``=`` in it, or a path stands twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise UsageError("what is to be set, and to what?", where=f"--set {text}", hint="--set seed.topic=tides")
        if path.strip() in found:
            raise UsageError(f"{path.strip()!r} is set twice", where=f"--set {text}")
        try:
            found[path.strip()] = read_json(value)
        except BadJson:
            found[path.strip()] = value
    return found


def apply_set(seed_data: Any, pipeline_doc: Any, sets: Mapping[str, Any]) -> tuple[Any, Any]:
    """The seed's data and the pipeline with other values in them; the given ones stay as they are.

    Raises:
        UnknownPath: A path leads nowhere, with the nearest key; nothing is set then.
    """
    seed_data, pipeline_doc = copy.deepcopy(seed_data), copy.deepcopy(pipeline_doc)
    for path, value in sets.items():
        first, *keys = path.split(".")
        if first == "seed":
            if not keys:
                raise UnknownPath("which key of the seed?", where=f"--set {path}", hint=_near("", seed_data))
            _put(seed_data, keys, value, path, "the seed")
        else:
            _set_step(pipeline_doc, first, keys, value, path)
    return seed_data, pipeline_doc


def _set_step(document: Any, name: str, keys: list[str], value: Any, path: str) -> None:
    steps = {step: (parent, key) for parent, key, step in _steps(document, "tasks")}
    if name not in steps:
        hint = did_you_mean(name[:80], ["seed", *steps])
        raise UnknownPath(f"no step {name[:80]!r} in the pipeline", where=f"--set {path}", hint=hint)
    if not keys or keys[0] not in SETTABLE or (keys[0] == "with") != (len(keys) > 1):
        hint = f"{name}.with.KEY, or {', '.join(f'{name}.{key}' for key in SETTABLE[1:])}"
        raise UnknownPath(f"{path!r} cannot be set", where=f"--set {path}", hint=hint)
    parent, key = steps[name]
    if isinstance(parent[key], str):
        parent[key] = {"task": parent[key]}
    step = parent[key]
    if keys[0] == "with":
        given = step["with"] = step.get("with") or {}
        if len(keys) == 2 and isinstance(given, dict):
            given[keys[1]] = value
        else:
            _put(given, keys[1:], value, path, f"`with` of {name!r}")
    else:
        step[keys[0]] = value


def _put(holder: Any, keys: list[str], value: Any, path: str, what: str) -> None:
    for at, key in enumerate(keys):
        index: Any = int(key) if isinstance(holder, list) and key.isdecimal() and len(key) < 10 else key
        there = index in holder if isinstance(holder, dict) else isinstance(index, int) and index < len(holder)
        if not there:
            place = ".".join([what, *keys[:at]])
            raise UnknownPath(f"{place} holds no {key[:80]!r}", where=f"--set {path}", hint=_near(key, holder))
        if at == len(keys) - 1:
            holder[index] = value
        else:
            holder = holder[index]


def _near(key: str, holder: Any) -> str | None:
    if isinstance(holder, list):
        return f"its items are 0 to {len(holder) - 1}" if holder else "it is an empty list"
    if isinstance(holder, dict):
        return did_you_mean(key[:80], holder) or "it is empty"
    return "it is a single value"


def _steps(holder: Any, key: Any) -> Iterator[tuple[Any, Any, str]]:
    """Where each task stands in a pipeline's document: ``holder[key]``, and its step's name."""
    entry = holder.get(key) if isinstance(holder, dict) else holder[key]
    if isinstance(entry, str):
        yield holder, key, entry
    elif isinstance(entry, list):
        for number in range(len(entry)):
            yield from _steps(entry, number)
    elif isinstance(entry, dict) and any(inner in entry for inner in _INNER):
        for inner in _INNER:
            if inner in entry:
                yield from _steps(entry, inner)
    elif isinstance(entry, dict) and isinstance(name := entry.get("name", entry.get("task")), str):
        yield holder, key, name
