"""What can be checked of a pipeline once all its blocks are known: who waits for whom, and who reads what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pop.errors import ConfigError, did_you_mean
from pop.expressions import Expression
from pop.places import Path, Places
from pop.records import NAME_PATTERN
from pop.steps import ROOT, Block, CyclicNeeds, Each, Gate, Pipeline, Repeat

_NOT_IN_LOOP = "which is neither in the loop nor before it"


@dataclass
class Wiring:
    """Checks one pipeline and collects what is wrong with it, each with its place in reading order."""

    pipeline: Pipeline
    places: Places
    path_of: Mapping[str, Path]
    problems: list[tuple[int, ConfigError]] = field(default_factory=list)

    def check(self) -> bool:
        """False when the steps have no order: then nothing can be said about what they read."""
        if not (self._needs_exist() and self._needs_end()):
            return False
        for block in self.pipeline.blocks.values():
            self._check_reads(block)
            if isinstance(block, Gate):
                self._check_shown(block)
        return True

    def _wrong(self, path: Path, message: str, hint: str | None, code: str) -> None:
        problem = ConfigError(message, where=self.places.of(path), hint=hint, code=code)
        self.problems.append((self.places.order(path), problem))

    def _needs_exist(self) -> bool:
        known = {name for name in self.pipeline.blocks if re.fullmatch(NAME_PATTERN, name)}
        missing = [
            (block.name, n, name)
            for block in self.pipeline.blocks.values()
            for n, name in enumerate(block.needs or ())
            if name not in known
        ]
        for asking, n, name in missing:
            near = did_you_mean(name[:80], known - {asking})
            path = (*self.path_of[asking], "needs", n)
            self._wrong(path, f"no step {name[:80]!r} in this pipeline", near, "unknown-step")
        return not missing

    def _needs_end(self) -> bool:
        try:
            self.pipeline.ancestors(ROOT)
        except CyclicNeeds as error:
            path = (*self.path_of[error.names[0]], "needs")
            message = f"these wait for each other: {' → '.join(error.names)}"
            self._wrong(path, message, "remove one of these `needs`", "cyclic-needs")
            return False
        return True

    def _check_reads(self, block: Block) -> None:
        known = self.pipeline.readable(block.name)
        found = [problem for one in _outside(block) for problem in self._unread(one, known, block)]
        if isinstance(block, Repeat):
            known = self.pipeline.readable(block.body.name)
            for one in filter(None, (block.until, block.score, block.checks)):
                found += self._unread(one, known, block.body, later=_NOT_IN_LOOP)
            found = found or self._ends_elsewhere(block)
        self.problems += [(self.places.order(self.path_of[block.name]), problem) for problem in found]

    def _ends_elsewhere(self, loop: Repeat) -> list[ConfigError]:
        """An `until` that reads steps, and none of the loop, says the same in every lap."""
        until, own = loop.until, [leaf.name for leaf in self.pipeline.leaves[loop.name]]
        if not until.inputs or any(until.reads(name) for name in own) or re.search(r"\blaps?\b", until.text):
            return []
        outside = ", ".join(sorted(until.inputs))
        message = f"`{until.text}` reads only steps outside the loop ({outside}): it is the same in every lap"
        hint = f"read a step of the loop ({', '.join(own[:5])}), or `lap`; a condition of the whole loop is its `when`"
        return [ConfigError(message, where=until.where, hint=hint, code="until-outside")]

    def _unread(self, one: Expression, known: frozenset[str], place: Block, **words: str) -> list[ConfigError]:
        in_loop = steps_around(self.pipeline, place.name) or None  # outside of loops `laps` is an unknown name
        return one.check_inputs(known, self.pipeline.steps, in_loop=in_loop, **words)

    def _check_shown(self, gate: Gate) -> None:
        shown = self.pipeline.readable(gate.name) - {gate.name}
        for n, name in enumerate(gate.show):
            if name in shown:
                continue
            path = (*self.path_of[gate.name], "show", n)
            if name == gate.name:
                self._wrong(path, "a gate cannot show itself", did_you_mean("", shown), "unknown-step")
            elif name in self.pipeline.steps:
                message = f"`show` names step {name!r}, which does not come before the gate"
                self._wrong(path, message, "see `needs`", "unknown-step")
            else:
                near = did_you_mean(name[:80], shown) or "no step comes before this gate"
                self._wrong(path, f"no step {name[:80]!r} comes before this gate", near, "unknown-step")


def steps_around(pipeline: Pipeline, name: str) -> frozenset[str]:
    """The steps of the loops around a step or block: what `laps` may name there."""
    loops = pipeline.repeats[name]
    return frozenset(leaf.name for leaf in pipeline.leaves[loops[0].name]) if loops else frozenset()


def _outside(block: Block) -> Iterator[Expression]:
    """The expressions of a block that are worked out before it begins."""
    if isinstance(block, Each):
        yield block.over
    if block.when:
        yield block.when
