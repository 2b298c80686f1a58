"""Which part of a run is to run again when it is taken up from a step: a pure function of the pipeline and the facts.

What stands in a run depends on a step in one of four ways:

| it stands                                            | it depends on the step when                             |
|------------------------------------------------------|---------------------------------------------------------|
| in the same item and lap of all blocks around both   | it begins after the step has ended                      |
| in another item of an `each` around both             | never                                                   |
| in a later lap of a `repeat` around both             | always (in an earlier one: never)                       |
| in the same lap, held back until the lap's verdict   | the verdict depends on the step                         |
| in a further lap of a `repeat` around it alone       | anything in the loop depends on the step                |

The same holds for decisions and counts, by the block they are about. What an instance ordered is withdrawn with it: the
steps it added are gone, those it skipped have their turn, and what depends on either is stale as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field
from functools import cache

from pop.control import block_of
from pop.errors import UsageError, did_you_mean
from pop.history import Ordered, RunHistory
from pop.records import STAGES, dump_json
from pop.steps import At, Each, Pipeline, Repeat, Task, below, instance_name

PARSES_AGAIN = ("parse", "validate_structure", "validate_quality", "finalize")
CONTROL = "+control"  # ends the name of the gate that an invalid order of an instance opens

_INSTANCE = re.compile(
    r"(?P<name>.*?)(?P<items>(?:\.[0-9]{1,9})*)(?:@(?P<laps>[0-9]{1,9}(?:\.[0-9]{1,9})*))?", re.DOTALL
)


class RerunRefused(UsageError):
    """A run cannot be taken up from there."""

    code = "rerun-refused"


@dataclass(frozen=True)
class Place:
    """A block to begin from. Items that are left out stand for all of them, laps for the first."""

    block: str
    items: tuple[int, ...] = ()
    laps: tuple[int, ...] = ()
    stage: str | None = None

    def holds(self, name: str, at: At) -> bool:
        """Whether an instance is meant by it."""
        return (
            name == self.block and at.items[: len(self.items)] == self.items and at.laps[: len(self.laps)] == self.laps
        )


@dataclass(frozen=True)
class Stale:
    """What is to run again.

    `instances` are all of them, those to begin from included; of these, `again` ask anew, `replay` work on the answers
    that were recorded, and `gone` are of steps that were added by an order that holds no longer. `keys` are decisions and counts that hold no longer, `loops` how many laps are kept.
    """

    instances: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    replay: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    loops: Mapping[str, int] = field(default_factory=dict)


def place_of(instance: str) -> tuple[str, At]:
    """The block of an instance, or of a key, and where it stands; that of the instance for its control gate."""
    found = _INSTANCE.fullmatch(instance.removesuffix(CONTROL))
    assert found is not None
    items = tuple(int(item) for item in found["items"].split(".")[1:])
    return found["name"], At(items, tuple(int(lap) for lap in (found["laps"] or "").split(".") if lap))


def stale_of(pipeline: Pipeline, history: RunHistory, from_: Iterable[str]) -> Stale:
    """What is to run again from these steps on.

    Args:
        from_: ``STEP[:STAGE]`` each: a step, an instance of it (``draft.3``, ``revise@2``), or a block with a name.

    Raises:
        RerunRefused: One of them is unknown or never ran.
    """
    places = [_place(pipeline, history, text) for text in from_]
    if not places:
        raise RerunRefused("from which step?", hint="--from STEP")
    inner = [
        Place(block.name, place.items, place.laps, place.stage)
        for place in places
        for block in below(pipeline.blocks[place.block])
    ]
    withdrawn: list[Ordered] = []
    while True:
        reach = _Reach(pipeline, history, inner, withdrawn)
        stale = reach.stale()
        more = [order for order in history.orders if order.instance in set(stale.instances) and order not in withdrawn]
        if not more:
            return stale
        withdrawn += more


class _Reach:
    """How far it goes from the places that are `named`, and from what was ordered in vain."""

    def __init__(
        self, pipeline: Pipeline, history: RunHistory, named: Sequence_[Place], withdrawn: Sequence_[Ordered]
    ) -> None:
        self.pipeline = pipeline
        self.history = history
        self.named = named
        added = [order for order in withdrawn if order.add]
        self.gone = {block.name for order in added for block in below(pipeline.blocks[block_of(order.number)])}
        ordered = [place for order in withdrawn for place in self._skipped_by(order)]
        needy = [Place(block, at.items, at.laps) for block, at in map(place_of, self._in_need())]
        self.places = [*named, *map(Place, sorted(self.gone)), *ordered, *needy]
        self.relation = cache(self._relation)

    def _skipped_by(self, order: Ordered) -> Iterator[Place]:
        for name, instance in self.history.instances.items():
            block, at = place_of(name)
            if instance.state == "skipped" and block in order.skip and instance.reason == order.skip[block]:
                yield Place(block, at.items, at.laps)

    def _in_need(self) -> Iterator[str]:
        """The instances that added steps which speak of some that are gone: they must order them anew."""
        if names := "|".join(map(re.escape, sorted(self.gone))):
            speaks = re.compile(rf'"(?:{names})"|(?:inputs|laps)\.(?:{names})\b')
            for order in self.history.orders:
                if order.add and speaks.search(dump_json(order.add, pretty=False).decode()):
                    yield order.instance

    def stale(self) -> Stale:
        loops = self._loops()
        found = [name for name in self.history.instances if self._is_stale(name, loops)]
        gone = [name for name in found if place_of(name)[0] in self.gone]
        again: list[str] = []
        replay: list[str] = []
        for name in found:
            block, at = place_of(name)
            begun = [place for place in self.named if place.holds(block, at)]
            if self.history.instances[name].state == "skipped" or block in self.gone:  # it asked nothing, or never will
                continue
            if begun and isinstance(self.pipeline.blocks.get(block), Task) and not name.endswith(CONTROL):
                (replay if all(place.stage in PARSES_AGAIN for place in begun) else again).append(name)
        keys = [*self.history.decisions, *self.history.counts]
        dropped = dict.fromkeys(key for key in keys if self._reached(*place_of(key)))
        return Stale(tuple(found), tuple(again), tuple(replay), tuple(gone), tuple(dropped), loops)

    def _is_stale(self, instance: str, loops: Mapping[str, int]) -> bool:
        name, at = place_of(instance)
        if isinstance(self.pipeline.blocks.get(name), Repeat):  # the gate at the end of a loop
            key = instance_name(name, At(at.items, at.laps[:-1]))
            return at.laps[-1] > loops.get(key, at.laps[-1])
        return self._reached(name, at)

    def _reached(self, name: str, at: At) -> bool:
        return name in self.pipeline.blocks and any(self._depends(place, name, at) for place in self.places)

    def _depends(self, place: Place, name: str, at: At) -> bool:
        shared, follows, later = self.relation(place.block, name)
        order = _order(shared, place, at)
        if order:
            return order > 0
        return follows or any(depth < len(at.laps) and at.laps[depth] > 1 for depth in later)

    def _relation(self, begin: str, name: str) -> tuple[tuple[Each | Repeat, ...], bool, tuple[int, ...]]:
        """How `name` depends on `begin`.

        Returns:
            The blocks around both, outermost first; whether it depends in the same item and lap of these; and the
            depths of the loops around `name` alone in whose further laps it does.
        """
        here, there = self.pipeline.around[begin], self.pipeline.around[name]
        count = next((n for n, (a, b) in enumerate(zip(here, there, strict=False)) if a is not b), None)
        shared = here[: min(len(here), len(there)) if count is None else count]
        own = [block for block in self.pipeline.repeats[name] if block not in shared]
        follows = (
            begin == name
            or begin in self.pipeline.ancestors(name)
            or any(isinstance(block, Repeat) and self._held_back(block, begin, name) for block in shared)
            or any(self._reaches(block, begin)[0] and not _decides(self.pipeline, block, name) for block in own)
        )
        depth = len(self.pipeline.repeats[name]) - len(own)
        return shared, follows, tuple(depth + n for n, block in enumerate(own) if self._reaches(block, begin)[1])

    def _reaches(self, repeat: Repeat, begin: str) -> tuple[bool, bool]:
        """Whether the verdict of the first lap depends on a step outside of the loop, and whether anything in it does."""
        after = {leaf.name for leaf in self.pipeline.leaves[repeat.name] if begin in self.pipeline.ancestors(leaf.name)}
        return not after.isdisjoint(self.pipeline.deciding[repeat.name]), bool(after)

    def _held_back(self, repeat: Repeat, begin: str, name: str) -> bool:
        """Whether `name` begins after a verdict that depends on `begin`."""
        return _decides(self.pipeline, repeat, begin) and not _decides(self.pipeline, repeat, name)

    def _loops(self) -> dict[str, int]:
        kept = {key: min(self._laps_kept(key, place) for place in self.places) for key in self.history.loops}
        return {key: laps for key, laps in kept.items() if laps < len(self.history.loops[key].laps)}

    def _laps_kept(self, key: str, place: Place) -> int:
        name, at = place_of(key)
        everything = len(self.history.loops[key].laps)
        repeat = self.pipeline.blocks.get(name)
        if not isinstance(repeat, Repeat):
            return everything
        if repeat not in self.pipeline.around[place.block]:
            if self._depends(place, name, at):
                return 0
            verdict, anything = self._reaches(repeat, place.block)
            if not anything or _order(self.relation(place.block, name)[0], place, at):
                return everything
            return 0 if verdict else 1
        order = _order(self.pipeline.around[name], place, at)
        if order:
            return 0 if order > 0 else everything
        depth = len(self.pipeline.repeats[name])
        lap = place.laps[depth] if depth < len(place.laps) else 1
        return lap - 1 if _decides(self.pipeline, repeat, place.block) else lap


def _order(shared: tuple[Each | Repeat, ...], place: Place, at: At) -> int:
    """Whether `at` lies in a later lap than the place (1), in the same items and laps (0), or elsewhere (-1).

    Steps of an `each` or `repeat` that was skipped as a whole have an instance without its item or lap.
    """
    items, laps = 0, 0
    for block in shared:
        if isinstance(block, Each):
            if items < min(len(place.items), len(at.items)) and place.items[items] != at.items[items]:
                return -1
            items += 1
        else:
            first = place.laps[laps] if laps < len(place.laps) else 1
            if laps < len(at.laps) and at.laps[laps] != first:
                return 1 if at.laps[laps] > first else -1
            laps += 1
    return 0


def _decides(pipeline: Pipeline, repeat: Repeat, name: str) -> bool:
    """Whether the verdict of a lap waits for the block."""
    return any(leaf.name in pipeline.deciding[repeat.name] for leaf in pipeline.leaves[name])


def _place(pipeline: Pipeline, history: RunHistory, text: str) -> Place:
    """What ``STEP[:STAGE]`` means.

    Raises:
        RerunRefused: Nothing, or a step that never ran.
    """
    asked, _, stage = text.partition(":")
    block, at = place_of(asked)
    where = f"--from {text}"
    if block not in pipeline.blocks or block == pipeline.root.name:
        hint = did_you_mean(block[:80], pipeline.steps)
        raise RerunRefused(f"no step {block[:80]!r} in this run", where=where, hint=hint, code="unknown-step")
    if stage and stage not in STAGES:
        hint = did_you_mean(stage[:80], STAGES)
        raise RerunRefused(f"no stage {stage[:80]!r}", where=where, hint=hint, code="unknown-stage")
    place = Place(block, at.items, at.laps, stage or None)
    steps = {leaf.name for leaf in pipeline.leaves[block]}
    if stage and not any(isinstance(leaf, Task) for leaf in pipeline.leaves[block]):
        raise RerunRefused(f"{block!r} is a gate: it has no stages", where=where, hint=f"--from {block}")
    placed = ((name, *place_of(name)) for name in history.instances)
    mine = [(name, at) for name, step, at in placed if step in steps and not name.endswith(CONTROL)]
    meant = [name for name, at in mine if Place(block, place.items, place.laps).holds(block, at)]
    if any(history.instances[name].state != "skipped" for name in meant):
        return place
    ran = [name for name, instance in history.instances.items() if instance.state != "skipped"]
    if meant:
        reason = history.instances[meant[0]].reason
        hint = f"it was skipped: {reason}" if reason else "it was skipped"
        raise RerunRefused(f"{asked!r} never ran", where=where, hint=hint, code="never-ran")
    if mine:
        near = did_you_mean(asked, [name for name, _ in mine])
        raise RerunRefused(f"no instance {asked!r} in this run", where=where, hint=near, code="unknown-instance")
    hint = f"what ran: {', '.join(ran[-10:])}" if ran else "nothing ran yet"
    raise RerunRefused(f"{asked!r} never ran", where=where, hint=hint, code="never-ran")
