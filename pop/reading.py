"""What a move may read: the instances whose outputs it sees, as inputs, lap by lap, and as its item.

Like the planner, it reads no disk: it names instances, and whoever needs their outputs reads these. See the docstrings
for what is seen from inside and from outside of an `each` or a `repeat`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from pop.moves import Expand, Facts, Move
from pop.steps import At, Block, Each, Gate, Pipeline, Repeat, Task, instance_name

References: TypeAlias = "str | list[References] | None"


def inputs_of(pipeline: Pipeline, facts: Facts, move: Move) -> dict[str, References]:
    """The instances whose outputs a move may read, by step, in the order the steps stand in the pipeline.

    Inside an `each`: the same item's instance of the steps beside it. From outside: a list in item order, nested where
    `each` blocks are. None stands for a skipped step, an empty list for an empty `each`.

    Inside a `repeat`: the newest output up to this lap of a step that has ended before the move, up to the lap before
    of the others. From outside: the newest output up to the lap that was kept.
    """
    return _Reader(pipeline, facts, move).inputs()


def laps_of(pipeline: Pipeline, facts: Facts, move: Move) -> dict[str, list[References]]:
    """The outputs of the steps of all loops around a move, lap by lap up to this one.

    The laps are those of the innermost loop around both the step and the move; None stands where a step has none.
    """
    return _Reader(pipeline, facts, move).laps()


class _Reader:
    """Finds outputs, as seen from one move."""

    def __init__(self, pipeline: Pipeline, facts: Facts, move: Move) -> None:
        self.pipeline, self.facts, self.at = pipeline, facts, move.at
        block = pipeline.blocks[move.step]
        inside = isinstance(block, Repeat) and len(move.at.laps) > len(pipeline.repeats[block.name])
        here = block.inner[0].name if inside else block.name  # the end of a lap is looked at from inside of it
        self.around, self.readable = pipeline.around[here], pipeline.readable(here)
        self.before = pipeline.ancestors(here) | (pipeline.deciding[block.name] if inside else frozenset())

    def inputs(self) -> dict[str, References]:
        return {name: self._newest(name) for name in self.pipeline.steps if name in self.readable}

    def laps(self) -> dict[str, list[References]]:
        loops = [one for one in self.around if isinstance(one, Repeat)]
        inside = {leaf.name for leaf in self.pipeline.leaves[loops[0].name]} if loops else ()
        return {name: self._all_laps(name) for name in self.pipeline.steps if name in inside}

    def _newest(self, name: str) -> References:
        path, shared = self._path(name)
        if not shared:
            return self._output(name, path, ())
        for depth in range(shared, 0, -1):
            for lap in range(self._last(name, depth, innermost=depth == shared), 0, -1):
                found = self._output(name, path, (*self.at.laps[: depth - 1], lap))
                if found is not None:
                    return found
        return None

    def _all_laps(self, name: str) -> list[References]:
        path, shared = self._path(name)
        outer, number = self.at.laps[: shared - 1], self.at.laps[shared - 1]
        last = self._last(name, shared, innermost=True)
        found = [self._output(name, path, (*outer, lap)) for lap in range(1, last + 1)]
        return [*found, *[None] * (number - last)]

    def _path(self, name: str) -> tuple[list[Block], int]:
        """The blocks from the outermost one down to the step, and the number of loops around it and the move."""
        loops = sum(1 for one in self.pipeline.repeats[name] if one in self.around)
        return [*self._above(name), self.pipeline.blocks[name]], loops

    def _above(self, name: str) -> Iterator[Block]:
        parent = self.pipeline.parents.get(name)
        if parent is not None:
            yield from self._above(parent.name)
            yield parent

    def _last(self, name: str, depth: int, *, innermost: bool) -> int:
        """The last lap of the loop at this depth of which the output can be seen."""
        return self.at.laps[depth - 1] - (0 if innermost and name in self.before else 1)

    def _output(self, name: str, path: list[Block], laps: tuple[int, ...], at: At = At()) -> References:  # noqa: B008
        """The output of the last block of `path`, in these laps of the outermost loops."""
        block, *inside = path
        key = instance_name(block.name, at)
        if block.when and self.facts.decisions.get(key) is False:
            return None
        if not inside:
            instance = self.facts.instances.get(key)
            return key if instance is not None and instance.state == "done" else None
        if isinstance(block, Each) and block in self.around:
            return self._output(name, inside, laps, at.item(self.at.items[len(at.items)]))
        if isinstance(block, Each):
            count = self.facts.counts.get(key)
            return None if count is None else [self._output(name, inside, laps, at.item(n)) for n in range(count)]
        if isinstance(block, Repeat) and len(at.laps) < len(laps):
            return self._output(name, inside, laps, at.lap(laps[len(at.laps)]))
        if isinstance(block, Repeat):
            return self._kept_output(name, block, inside, at)
        return self._output(name, inside, laps, at)

    def _kept_output(self, name: str, repeat: Repeat, inside: list[Block], at: At) -> References:
        """From outside of an ended loop: the newest output that led to the lap that was kept, or belongs to it."""
        loop = self.facts.loops.get(instance_name(repeat.name, at))
        kept = loop.kept or 0 if loop else 0
        for lap in range(kept if name in self.pipeline.deciding[repeat.name] else kept - 1, 0, -1):
            found = self._output(name, inside, (*at.laps, lap), at.lap(lap))
            if found is not None:
                return found
        return None


def instances_in(pipeline: Pipeline, facts: Facts, block: Block, at: At) -> Iterator[tuple[str, At, str]]:
    """The known instances of the steps in one instance of a block: step, place and name, at the cost of these alone."""
    key = instance_name(block.name, at)
    if isinstance(block, Task | Gate):
        if key in facts.instances:
            yield block.name, at, key
        return
    if isinstance(block, Each):
        inner = [at.item(n) for n in range(facts.counts.get(key, 0))]
    elif isinstance(block, Repeat):
        laps = len(facts.loops[key].laps) if key in facts.loops else 0
        inner = [at.lap(n) for n in range(1, laps + 2)]  # one may have begun that was not judged yet
    else:
        inner = [at]
    if inner != [at]:  # all of it may have been skipped at once
        names = ((leaf.name, at, instance_name(leaf.name, at)) for leaf in pipeline.leaves[block.name])
        yield from (found for found in names if found[2] in facts.instances)
    for place in inner:
        for child in block.inner:
            yield from instances_in(pipeline, facts, child, place)


def item_expressions(pipeline: Pipeline, move: Move) -> tuple[Expand, ...]:
    """What gives a move its `item`: the lists of the `each` blocks around it, outermost first.

    The item is element ``move.at.items[k]`` of list k; the expression of list k sees the element of list k - 1 as `item`.
    Lists are the same for all moves with the same `Expand.key`.
    """
    return tuple(
        Expand(instance_name(each.name, inside := pipeline.at(each.name, move.at)), each.name, each.over, inside)
        for each in pipeline.eaches[move.step]
    )
