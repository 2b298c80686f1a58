"""A pipeline as a Mermaid flowchart (``pop graph``), coloured by the states of a run where they are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pop.steps import Block, Each, Pipeline, Task, below, step_of

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

    An arrow leads to a step from each step it directly waits for. `each` blocks and blocks with a condition are frames.

    Args:
        states: State by instance, as in tasks-status.json; the instances of a step are summed up in one node.
    """
    ids = {name: f"s{number}" for number, name in enumerate(pipeline.blocks)}
    by_step = _by_step(states or {})
    lines = ["flowchart TD", *_nodes(pipeline.root, ids, by_step, depth=1)]
    lines += [f"{_INDENT}{ids[before]} --> {ids[after]}" for before, after in edges(pipeline)]
    lines += _classes(pipeline, ids, by_step)
    return "\n".join(lines) + "\n"


def edges(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """Pairs of steps of which the second waits for the first, without those that follow from others."""
    for name in pipeline.tasks:
        direct = _direct(pipeline, name)
        yield from ((one, name) for one in pipeline.tasks if one in direct)


def _direct(pipeline: Pipeline, name: str) -> set[str]:
    direct: set[str] = set()
    implied: set[str] = set()
    for one in sorted(pipeline.ancestors(name), key=lambda step: -len(pipeline.ancestors(step))):
        if one not in implied:
            direct.add(one)
            implied |= pipeline.ancestors(one)
    return direct


def _nodes(block: Block, ids: Mapping[str, str], states: Mapping[str, Counter[str]], depth: int) -> Iterator[str]:
    pad = _INDENT * depth
    if isinstance(block, Task):
        yield f'{pad}{ids[block.name]}["{_step_label(block, states.get(block.name))}"]'
        return
    title = _frame_title(block)
    if title:
        yield f'{pad}subgraph {ids[block.name]}["{title}"]'
    for child in block.inner:
        yield from _nodes(child, ids, states, depth + 1 if title else depth)
    if title:
        yield f"{pad}end"


def _step_label(task: Task, states: Counter[str] | None) -> str:
    parts = [_escaped(task.name)]
    if task.task != task.name:
        parts.append(f"<small>{_escaped(task.task)}</small>")
    if task.when:
        parts.append(f"<small>when {_escaped(task.when.text)}</small>")
    if states and states.total() > 1:
        parts.append(f"{states['done']} of {states.total()} done")
    return "<br>".join(parts)


def _frame_title(block: Block) -> str:
    parts = [f"each {_escaped(block.over.text)}"] if isinstance(block, Each) else []
    if block.when:
        parts.append(f"when {_escaped(block.when.text)}")
    return ", ".join(parts)


def _escaped(text: str) -> str:
    """Text that Mermaid shows as it is, whatever it holds, cut at 80 characters."""
    text = " ".join(text.split())
    text = text if len(text) <= 80 else text[:79] + "…"
    return "".join(one if one.isalnum() or one in " _-.,…" else f"#{ord(one)};" for one in text)


def _by_step(states: Mapping[str, str]) -> dict[str, Counter[str]]:
    by_step: dict[str, Counter[str]] = {}
    for instance, state in states.items():
        step = step_of(instance)
        by_step.setdefault(step, Counter())[state] += 1
    return by_step


def _classes(pipeline: Pipeline, ids: Mapping[str, str], states: Mapping[str, Counter[str]]) -> list[str]:
    shown = {block.name: _summed_up(states[block.name]) for block in below(pipeline.root) if block.name in states}
    used = [state for state in _COLOURS if state in shown.values()]
    lines = [f"{_INDENT}classDef {state} {_COLOURS[state]}" for state in used]
    for state in used:
        nodes = ",".join(ids[name] for name, its_state in shown.items() if its_state == state)
        lines.append(f"{_INDENT}class {nodes} {state}")
    return lines


def _summed_up(states: Counter[str]) -> str:
    worst = next((state for state in _WORST_FIRST if states[state]), None)
    return worst or ("done" if states["done"] else "skipped")
