"""What a pipeline is made of, and who waits for whom.

| block    | meaning                                                    | ended when                        |
|----------|------------------------------------------------------------|-----------------------------------|
| Task     | one task, run by attempts                                  | its instance is done or skipped   |
| Sequence | an entry starts when those before it, or its needs, ended  | all entries have ended            |
| Parallel | all entries start at once, or when their needs ended       | all entries have ended            |
| Each     | `do` once per item of a list                               | it has ended for every item       |
| Repeat   | its body again and again, one lap after the other          | a lap's verdict ends it           |
| Gate     | a person decides                                           | it was answered, or skipped       |

Tasks and gates are the steps. Every block has a name that is unique in its pipeline: the given one, or its place
(``tasks[2]``). An instance of a block is named ``<name>[.<item>...][@<lap>[.<lap>...]]``, items counted from 0, laps
from 1, outermost first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, NamedTuple, TypeAlias

from pop.errors import ErrorClass
from pop.expressions import Expression
from pop.records import NAME_PATTERN


class At(NamedTuple):
    """Which instance of a block: the items of the `each` and the laps of the `repeat` blocks around it, outermost first."""

    items: tuple[int, ...] = ()
    laps: tuple[int, ...] = ()

    def item(self, number: int) -> At:
        """The item inside, counted from 0."""
        return At((*self.items, number), self.laps)

    def lap(self, number: int) -> At:
        """The lap inside, counted from 1."""
        return At(self.items, (*self.laps, number))


Remedy = Literal["retry", "retry-longer", "retry-corrected", "model", "ask", "fail"]


class Action(NamedTuple):
    """What is done about a failed attempt; `model` is the name of the other one to ask."""

    do: Remedy
    model: str | None = None


ROOT = "."  # the name of the outermost block; no step can be called so


@dataclass(frozen=True)
class Task:
    """A step: the smallest block. Seconds and mebibytes; None leaves a limit to pop.toml, the model to the task."""

    name: str
    task: str
    needs: tuple[str, ...] | None = None
    when: Expression | None = None
    with_: Mapping[str, Any] = field(default_factory=dict, hash=False)
    model: str | None = None
    timeout_s: float | None = None
    stall_s: float | None = None
    attempts: int | None = None
    refinements: int | None = None
    memory_mb: int | None = None
    output_mb: float | None = None
    reuse_s: float | None = None
    budget: Mapping[str, float] = field(default_factory=dict, hash=False)
    recover: Mapping[ErrorClass, tuple[Action, ...]] = field(default_factory=dict, hash=False)

    @property
    def inner(self) -> tuple[Block, ...]:
        return ()


@dataclass(frozen=True)
class Gate:
    """A step where a person decides; it holds no process. `show` names the steps whose outputs are laid before them.

    Its output is ``{"decision", "by", "at", "how", "text", "edited"}``.
    """

    name: str
    show: tuple[str, ...] = ()
    text: str | None = None
    timeout_s: float | None = None
    on_timeout: Literal["wait", "reject", "approve"] = "wait"
    needs: tuple[str, ...] | None = None
    when: Expression | None = None

    @property
    def inner(self) -> tuple[Block, ...]:
        return ()


@dataclass(frozen=True)
class Sequence:
    """Entries one after the other, unless their `needs` say otherwise."""

    name: str
    inner: tuple[Block, ...]
    needs: tuple[str, ...] | None = None
    when: Expression | None = None


@dataclass(frozen=True)
class Parallel:
    """Entries side by side, unless their `needs` say otherwise."""

    name: str
    inner: tuple[Block, ...]
    needs: tuple[str, ...] | None = None
    when: Expression | None = None


@dataclass(frozen=True)
class Each:
    """`do` once per item of the list that `over` gives."""

    name: str
    over: Expression
    do: Block
    needs: tuple[str, ...] | None = None
    when: Expression | None = None

    @property
    def inner(self) -> tuple[Block, ...]:
        return (self.do,)


@dataclass(frozen=True)
class Repeat:
    """The body in laps, at most `at_most` of them, until the condition holds.

    `until` is looked at once in every lap: as soon as the steps of the body that it reads have ended. What of the body
    does not lead there runs after a "no", on the way to the next lap. `checks` are deterministic: while they are false
    the condition cannot hold, and no score makes up for them.
    """

    name: str
    body: Sequence
    until: Expression
    at_most: int
    otherwise: Literal["fail", "ask", "keep-best"] = "fail"
    score: Expression | None = None
    checks: Expression | None = None
    needs: tuple[str, ...] | None = None
    when: Expression | None = None

    @property
    def inner(self) -> tuple[Block, ...]:
        return (self.body,)


Block: TypeAlias = Task | Gate | Sequence | Parallel | Each | Repeat


class CyclicNeeds(Exception):
    """Blocks wait for each other in a circle; `names` is the circle, first and last alike."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(" -> ".join(names))
        self.names = names


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A checked pipeline.

    `seed` is the JSON Schema of what expressions and prompts call `seed`, where the pipeline has one. `models` replaces names of models for its runs; `concurrency` is the number of attempts of one run that may be at
    work at once (None: as many as the daemon has places for).
    """

    name: str
    description: str
    root: Sequence
    models: Mapping[str, str] = field(default_factory=dict)
    concurrency: int | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    recover: Mapping[ErrorClass, tuple[Action, ...]] = field(default_factory=dict)
    views: tuple[str, ...] = ()
    seed: Mapping[str, Any] | None = None

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """Every block by name, outer ones first, in the order they stand."""
        return {block.name: block for block in below(self.root)}

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks by name, in the order they stand."""
        return {name: block for name, block in self.blocks.items() if isinstance(block, Task)}

    @cached_property
    def steps(self) -> dict[str, Task | Gate]:
        """Tasks and gates by name, in the order they stand."""
        return {name: block for name, block in self.blocks.items() if isinstance(block, Task | Gate)}

    @cached_property
    def parents(self) -> dict[str, Block]:
        """The block around each block but the root."""
        return {child.name: block for block in self.blocks.values() for child in block.inner}

    @cached_property
    def around(self) -> dict[str, tuple[Each | Repeat, ...]]:
        """The `each` and `repeat` blocks around each block, outermost first; a block is not around itself."""
        around: dict[str, tuple[Each | Repeat, ...]] = {self.root.name: ()}
        for block in self.blocks.values():
            inside = (*around[block.name], block) if isinstance(block, Each | Repeat) else around[block.name]
            around.update((child.name, inside) for child in block.inner)
        return around

    @cached_property
    def eaches(self) -> dict[str, tuple[Each, ...]]:
        """The `each` blocks among those."""
        return {name: tuple(one for one in around if isinstance(one, Each)) for name, around in self.around.items()}

    @cached_property
    def repeats(self) -> dict[str, tuple[Repeat, ...]]:
        """The `repeat` blocks among those."""
        return {name: tuple(one for one in around if isinstance(one, Repeat)) for name, around in self.around.items()}

    def at(self, name: str, inside: At) -> At:
        """Which instance of the block `name` is around, or beside, what stands at `inside`."""
        return At(inside.items[: len(self.eaches[name])], inside.laps[: len(self.repeats[name])])

    @cached_property
    def waits(self) -> dict[str, tuple[Block, ...]]:
        """What the blocks with `needs` wait for: a step inside an `each` or a `repeat` stands for the whole of it when
        asked for from outside."""
        return {
            block.name: tuple(self.seen_from(block.name, self.blocks[name]) for name in block.needs)
            for block in self.blocks.values()
            if block.needs is not None
        }

    def seen_from(self, asking: str, block: Block) -> Block:
        """The block itself, or the outermost `each` or `repeat` around it that is not around the block `asking`."""
        around = self.around[asking]
        return next((outer for outer in self.around[block.name] if outer not in around), block)

    @cached_property
    def leaves(self) -> dict[str, tuple[Task | Gate, ...]]:
        """The steps in each block."""
        found: dict[str, tuple[Task | Gate, ...]] = {}
        for block in reversed(self.blocks.values()):
            inner = tuple(leaf for child in block.inner for leaf in found[child.name])
            found[block.name] = (block,) if isinstance(block, Task | Gate) else inner
        return found

    @cached_property
    def deciding(self) -> dict[str, frozenset[str]]:
        """For each `repeat` the steps that must have ended in a lap before its condition is looked at: those it reads,
        and what leads to them; all, when it reads none of the body."""
        return {block.name: self._deciding(block) for block in self.blocks.values() if isinstance(block, Repeat)}

    def _deciding(self, repeat: Repeat) -> frozenset[str]:
        inside = frozenset(leaf.name for leaf in self.leaves[repeat.name])
        conditions = [one for one in (repeat.until, repeat.score, repeat.checks) if one is not None]
        new = {name for name in inside if any(condition.reads(name) for condition in conditions)}
        found: set[str] = set()
        while new - found:
            found |= new
            units = [self.seen_from(repeat.body.name, self.blocks[name]) for name in new]
            new = {leaf.name for unit in units for leaf in self.leaves[unit.name]}
            new |= {earlier for name in new for earlier in self.ancestors(name) & inside}
        return frozenset(found) or inside

    @cached_property
    def units(self) -> dict[str, tuple[Block, ...]]:
        """What of the body of each `repeat` must have ended before its condition is looked at: deciding steps, and
        the `each` and `repeat` blocks that hold some, as wholes."""
        return {
            name: tuple({
                unit.name: unit
                for leaf in self.leaves[name]
                if leaf.name in deciding
                for unit in [self.seen_from(self._body(name), leaf)]
            }.values())
            for name, deciding in self.deciding.items()
        }  # fmt: skip

    @cached_property
    def held_back(self) -> dict[str, frozenset[str]]:
        """For each `repeat` the blocks of its body that wait for a lap's verdict."""
        return {
            name: frozenset(
                block.name
                for block in below(self.blocks[self._body(name)])
                if deciding.isdisjoint(leaf.name for leaf in self.leaves[block.name])
            )
            for name, deciding in self.deciding.items()
        }

    def _body(self, repeat: str) -> str:
        return self.blocks[repeat].inner[0].name

    def readable(self, name: str) -> frozenset[str]:
        """The steps whose outputs the step or block `name` may read: its ancestors, and all steps of the loops around
        it, itself too, whose outputs of earlier laps it sees. For the condition of a `repeat`, ask for its body."""
        loops = self.repeats[name]
        return (
            self.ancestors(name).union(leaf.name for leaf in self.leaves[loops[0].name])
            if loops
            else self.ancestors(name)
        )

    def ancestors(self, name: str) -> frozenset[str]:
        """The steps that have ended, or were skipped, whenever the step or block `name` begins.

        Raises:
            CyclicNeeds: Some blocks wait for each other.
        """
        return self._ancestors[name]

    @cached_property
    def _ancestors(self) -> dict[str, frozenset[str]]:
        before = dict(self._moments())
        try:
            order = list(TopologicalSorter(before).static_order())
        except CycleError as error:
            raise CyclicNeeds(self._circle(error.args[1])) from None
        ended: dict[_Moment, frozenset[str]] = {}
        for moment in order:
            what, name = moment
            itself = frozenset({name}) if what == "end" and name in self.steps else frozenset()
            ended[moment] = itself.union(*(ended[earlier] for earlier in before.get(moment, ())))
        return {name: ended["begin", name] for name in self.blocks}

    def _moments(self) -> Iterator[tuple[_Moment, list[_Moment]]]:
        """The beginning and the end of every block, each with the moments that must lie before it. ``through`` a
        block in a sequence: it and all entries before it have ended."""
        for name, block in self.blocks.items():
            begin: list[_Moment] = [("begin", self.parents[name].name)] if name in self.parents else []
            yield ("begin", name), begin + [("end", needed.name) for needed in self.waits.get(name, ())]
            yield ("end", name), [("begin", name), *(("end", child.name) for child in block.inner)]
        for block in self.blocks.values():
            if isinstance(block, Sequence):
                yield from self._chain(block)

    def _chain(self, block: Sequence) -> Iterator[tuple[_Moment, list[_Moment]]]:
        through: list[_Moment] = []
        for child in block.inner:
            if child.needs is None:
                yield ("begin", child.name), [("begin", block.name), *through]
            yield ("through", child.name), [("end", child.name), *through]
            through = [("through", child.name)]

    def _circle(self, moments: list[_Moment]) -> list[str]:
        """The blocks with a given name in a circle, each waiting for the next, beginning with one that has `needs`."""
        begun = dict.fromkeys(name for what, name in reversed(moments[1:]) if what == "begin")
        named = [name for name in begun if self.blocks[name].needs is not None or re.fullmatch(NAME_PATTERN, name)]
        first = next(n for n, name in enumerate(named) if self.blocks[name].needs is not None)
        return [*named[first:], *named[:first], named[first]]


_Moment: TypeAlias = tuple[str, str]


def below(block: Block) -> Iterator[Block]:
    """The block itself and every block in it, outer ones first, in the order they stand."""
    yield block
    for child in block.inner:
        yield from below(child)


def instance_name(name: str, at: At = At()) -> str:  # noqa: B008 - it is immutable
    """``<name>[.<item>...][@<lap>[.<lap>...]]``: the folder of an instance of a step, and the key of a decision about a
    block."""
    dotted = ".".join((name, *map(str, at.items))) if at.items else name
    return f"{dotted}@{'.'.join(map(str, at.laps))}" if at.laps else dotted


def step_of(instance: str) -> str:
    """The name of the step, or block, of an instance."""
    return instance.partition("@")[0].partition(".")[0]
