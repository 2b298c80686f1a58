"""A pipeline as a Mermaid flowchart (``pop graph``), coloured by the states of a run where they are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pop.steps import Block, Each, Gate, Pipeline, Repeat, Task, step_of

_INDENT = "    "
_COLOURS = {
    "done": "fill:#d3f2d9,stroke:#2f7d43,color:#12351c",
    "running": "fill:#d6e6fb,stroke:#2b63a8,color:#10294a",
    "waiting": "fill:#fdf0c8,stroke:#9a7400,color:#3d2e00",
    "failed": "fill:#fbd5d5,stroke:#b02a2a,color:#4a0f0f",
    "skipped": "fill:#eeeeee,stroke:#888888,color:#555555,stroke-dasharray:4 3",
    "stale": "fill:#eeeeee,stroke:#9a7400,color:#555555",
    "cancelled": "fill:#eeeeee,stroke:#b02a2a,color:#555555",
}
_WORST_FIRST = ("failed", "running", "waiting", "cancelled", "stale", "pending")


def mermaid(pipeline: Pipeline, states: Mapping[str, str] | None = None) -> str:
    """The flowchart as text, ending in a newline.

    An arrow leads to a step from each step it directly waits for. `each` and `repeat` blocks and blocks with a condition
    are frames; a dotted arrow leads back from the last steps of a loop to its first ones. Gates are hexagons.

    Args:
        states: State by instance, as in tasks-status.json; the instances of a step are summed up in one node.
    """
    ids = {name: f"s{number}" for number, name in enumerate(pipeline.blocks)}
    counts = by_step(states or {})
    lines = ["flowchart TD", *_nodes(pipeline.root, ids, counts, depth=1)]
    lines += [f"{_INDENT}{ids[before]} --> {ids[after]}" for before, after in edges(pipeline)]
    lines += [f"{_INDENT}{ids[last]} -.->|again| {ids[first]}" for last, first in ways_back(pipeline)]
    lines += _classes(pipeline, ids, counts)
    return "\n".join(lines) + "\n"


def edges(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """Pairs of steps of which the second waits for the first, without those that follow from others."""
    for name in pipeline.steps:
        direct = _direct(pipeline, name)
        yield from ((one, name) for one in pipeline.steps if one in direct)


def _direct(pipeline: Pipeline, name: str) -> set[str]:
    direct: set[str] = set()
    implied: set[str] = set()
    for one in sorted(pipeline.ancestors(name), key=lambda step: -len(pipeline.ancestors(step))):
        if one not in implied:
            direct.add(one)
            implied |= pipeline.ancestors(one)
    return direct


def ways_back(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """For each loop the steps that no step of a lap follows, with those that follow none."""
    for block in pipeline.blocks.values():
        if isinstance(block, Repeat):
            inside = [leaf.name for leaf in pipeline.leaves[block.name]]
            followed = {name for leaf in inside for name in pipeline.ancestors(leaf)}
            firsts = [name for name in inside if not pipeline.ancestors(name) & set(inside)]
            yield from ((last, first) for last in inside if last not in followed for first in firsts)


def _nodes(block: Block, ids: Mapping[str, str], states: Mapping[str, Counter[str]], depth: int) -> Iterator[str]:
    pad = _INDENT * depth
    if isinstance(block, Task | Gate):
        opening, closing = ("{{", "}}") if isinstance(block, Gate) else ("[", "]")
        yield f'{pad}{ids[block.name]}{opening}"{_step_label(block, states.get(block.name))}"{closing}'
        return
    title = _frame_title(block)
    if title:
        yield f'{pad}subgraph {ids[block.name]}["{title}"]'
    for child in block.inner:
        yield from _nodes(child, ids, states, depth + 1 if title else depth)
    if title:
        yield f"{pad}end"


def _step_label(step: Task | Gate, states: Counter[str] | None) -> str:
    parts = [_escaped(step.name)]
    if isinstance(step, Task) and step.task != step.name:
        parts.append(f"<small>{_escaped(step.task)}</small>")
    if step.when:
        parts.append(f"<small>when {_escaped(step.when.text)}</small>")
    if states and states.total() > 1:
        parts.append(f"{states['done']} of {states.total()} done")
    return "<br>".join(parts)


def _frame_title(block: Block) -> str:
    parts = [f"each {_escaped(block.over.text)}"] if isinstance(block, Each) else []
    if isinstance(block, Repeat):
        parts.append(f"repeat until {_escaped(block.until.text)}, at most {block.at_most}")
    if block.when:
        parts.append(f"when {_escaped(block.when.text)}")
    return ", ".join(parts)


def _escaped(text: str) -> str:
    """Text that Mermaid shows as it is, whatever it holds, cut at 80 characters."""
    text = " ".join(text.split())
    text = text if len(text) <= 80 else text[:79] + "…"
    return "".join(one if one.isalnum() or one in " _-.,…" else f"#{ord(one)};" for one in text)


def by_step(states: Mapping[str, str]) -> dict[str, Counter[str]]:
    """How the instances of each step stand."""
    found: dict[str, Counter[str]] = {}
    for instance, state in states.items():
        begun, _, gate = instance.partition("+")  # the gate of an order that cannot be followed
        if not gate or state == "waiting":
            found.setdefault(step_of(begun), Counter())[state] += 1
    return found


def _classes(pipeline: Pipeline, ids: Mapping[str, str], states: Mapping[str, Counter[str]]) -> list[str]:
    shown = {name: summed_up(states[name]) for name in pipeline.blocks if name in states}
    used = [state for state in _COLOURS if state in shown.values()]
    lines = [f"{_INDENT}classDef {state} {_COLOURS[state]}" for state in used]
    for state in used:
        nodes = ",".join(ids[name] for name, its_state in shown.items() if its_state == state)
        lines.append(f"{_INDENT}class {nodes} {state}")
    return lines


def summed_up(states: Counter[str]) -> str:
    """One state for a step: the one a person should see first."""
    worst = next((state for state in _WORST_FIRST if states[state]), None)
    return worst or ("done" if states["done"] else "skipped")
