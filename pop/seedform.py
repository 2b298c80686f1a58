"""What a pipeline's seed must or may hold, as a JSON Schema: the pipeline's own, or a guess where it has none.

| what is known                                        | from where                                                        |
|------------------------------------------------------|-------------------------------------------------------------------|
| a key is needed                                      | a prompt of a step that runs in any case reads it in any case      |
| a key may be there                                   | another prompt, an expression or Python reads it; an example has it |
| its type, and a value to begin with                  | examples/ of the root, and the newest finished runs               |

A guess is a help for writing, never a check: a seed with other keys is as good as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pop.errors import PopError
from pop.estimates import finished_runs
from pop.expressions import Expression
from pop.rootcheck import RootCheck
from pop.seedreads import unconditional
from pop.seeds import parse_seed
from pop.settings import Root
from pop.steps import Block
from pop.store import NotAFile, read_regular
from pop.taskcheck import seed_keys

MOST_EXAMPLES = 20
MOST_BYTES = 256 * 1024
_IN_EXPRESSION = re.compile(r"\bseed(?:\.([A-Za-z_]\w*)|\[\s*['\"]([^'\"]{1,80})['\"]\s*\])")


def own_schema(look: RootCheck, name: str) -> dict[str, Any] | None:
    """What the pipeline itself says that its seeds hold."""
    read = look.pipelines.get(name)
    return dict(read.pipeline.seed) if read and read.pipeline and read.pipeline.seed is not None else None


def seed_schema(look: RootCheck, name: str) -> dict[str, Any]:
    """The pipeline's own, else ``{"type": "object", "properties": {key: {"type", "description", "examples"}}, "required": [key]}``.

    Args:
        look: At the root, as it stands.
        name: Of the pipeline; one that is broken or not there has no keys but those of examples.
    """
    own = own_schema(look, name)
    if own is not None:
        return own
    read = look.pipelines.get(name)
    needed, known = _keys_of(look, name), dict[str, dict[str, Any]]()
    examples = list(_examples(look.root, name))
    for key in dict.fromkeys([*needed, *(key for example in examples for key in example)]):
        values = [example[key] for example in examples if key in example]
        known[key] = {"type": _type_of(values[0])} if values else {"type": "string"}
        known[key] |= {"examples": values[:1]} if values else {}
        if key not in needed:
            known[key]["description"] = "an example has it"
        elif not needed[key]:
            known[key]["description"] = "not read in every run"
    schema: dict[str, Any] = {"type": "object", "properties": known}
    if read and read.pipeline:
        schema["title"] = read.pipeline.name
    return {**schema, "required": [key for key, certain in needed.items() if certain]}


def _keys_of(look: RootCheck, name: str) -> dict[str, bool]:
    """The keys that are read, and whether in any case."""
    read = look.pipelines.get(name)
    if read is None or read.pipeline is None:
        return {}
    pipeline, found = read.pipeline, dict[str, bool]()
    sure = set(unconditional(pipeline))
    for block_name, block in pipeline.blocks.items():
        keys: dict[str, bool] = {}
        if block_name in pipeline.tasks:
            keys = seed_keys(look.root.tasks, pipeline.tasks[block_name].task)
        for text in _texts(block):
            keys |= {key: keys.get(key, False) for key in _in_expression(text)}
        for key, certain in keys.items():
            found[key] = found.get(key, False) or (certain and block_name in sure)
    return found


def _texts(block: Block) -> Iterator[str]:
    """The expressions of a block that may read the seed."""
    found = [block.when, getattr(block, "over", None), getattr(block, "until", None), getattr(block, "score", None)]
    yield from (one.text for one in found if isinstance(one, Expression))


def _in_expression(text: str) -> Iterator[str]:
    yield from (match[1] or match[2] for match in _IN_EXPRESSION.finditer(text))


def _examples(root: Root, name: str) -> Iterator[dict[str, Any]]:
    """The data of seeds for this pipeline: examples first, then what was run last."""
    folder = root.path / "examples"
    paths = sorted([*folder.glob("*.json"), *folder.glob("*/seed.json")])[:MOST_EXAMPLES]
    paths += [run.path / "seed.json" for run in finished_runs(root, name)[:MOST_EXAMPLES]]
    for path in paths:
        try:
            seed = parse_seed(read_regular(path, max_bytes=MOST_BYTES))
        except (OSError, NotAFile, PopError):
            continue
        if (seed.pipeline or "default") == name and isinstance(seed.data, dict):
            yield seed.data


def _type_of(value: Any) -> str:
    names = {bool: "boolean", str: "string", dict: "object", list: "array", type(None): "null"}
    return names.get(type(value), "number")
