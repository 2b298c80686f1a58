"""What the globs of an agent match: targets, and deliverables that earlier iterations are going to make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pop.errors import did_you_mean
from pop.recipes.iterate.mistakes import Mistakes
from pop.recipes.iterate.targets import Glob, Inputs, Planned, TargetError, Unit, wrong_glob
from pop.recipes.iterate.workflow import AgentSpec, Iteration, Loaded
from pop.yamlplaces import Keys


@dataclass
class Earlier:
    """The deliverables of the iterations that were planned so far."""

    _of: dict[str, list[Planned]] = field(default_factory=dict)
    _by_target: dict[str, dict[str, list[Planned]]] = field(default_factory=dict)

    def of(self, iteration: str) -> list[Planned]:
        return self._of.get(iteration, [])

    def add(self, iteration: str, planned: Iterable[Planned]) -> None:
        by_target = self._by_target.setdefault(iteration, {})
        for one in planned:
            self._of.setdefault(iteration, []).append(one)
            for target in one.lineage:
                by_target.setdefault(target, []).append(one)

    def read_with(self, unit: Unit, iteration: Iteration) -> list[Planned]:
        """What goes with a unit: the deliverable it stands for, and those made of its targets in a dependency."""
        of_lineage = [
            one
            for target in unit.targets
            for name in iteration.dependencies
            for one in self._by_target.get(name, {}).get(target, ())
        ]
        return [*unit.reads, *of_lineage]

    def tokens_with(self, unit: Unit, iteration: Iteration) -> int:
        return sum(one.tokens for one in self.read_with(unit, iteration))


@dataclass
class Matching:
    """Finds the units of one agent after the other. `used`: every target that anybody gets."""

    loaded: Loaded
    inputs: Inputs
    earlier: Earlier
    mistakes: Mistakes
    used: set[str] = field(default_factory=set)

    def check_given(self) -> None:
        """What `--targets` says must match something."""
        for glob in self.inputs.globs:
            if why := wrong_glob(glob.text):
                self.mistakes.add(TargetError(f"{glob.text!r} {why}", where="--targets"))
                return
        for text in self.inputs.given_without_match():
            near = Inputs(self.inputs.base, skip=self.inputs.skip).near()
            hint = f"there are {near}" if near else "--base DIR says where to look, --sample takes what comes with POP"
            where = f"--targets, in {self.inputs.base}"
            self.mistakes.add(TargetError(f"nothing matches {text!r}", where=where, hint=hint, code="no-targets"))

    def units(self, iteration: Iteration, spec: AgentSpec, keys: Keys) -> list[Unit]:
        """What the globs of a spec match, sorted; where several do, what the first of them captures counts."""
        globs = [(n, Glob(text.removeprefix("!")), text.startswith("!")) for n, text in enumerate(spec.targets)]
        for n, glob, _ in globs:
            if why := wrong_glob(glob.text):
                self.mistakes.at((*keys, "targets", n), f"{glob.text[:80]!r} {why}")
                return []
        left_out = [glob for _, glob, negative in globs if negative]
        found: dict[str, Unit] = {}
        for n, glob, negative in globs:
            if not negative:
                found = {**dict(self._of_glob(iteration, spec, glob, left_out, (*keys, "targets", n))), **found}
        if not found and not self.mistakes:
            hint = "take out one of the !globs"
            self.mistakes.at((*keys, "targets"), "everything that matches is left out again", hint)
        return [found[name] for name in sorted(found)]

    def _of_glob(
        self, iteration: Iteration, spec: AgentSpec, glob: Glob, left_out: Sequence[Glob], keys: Keys
    ) -> Iterator[tuple[str, Unit]]:
        first = glob.text.partition("/")[0]
        if first in self.loaded.workflow.before(iteration.name):
            matched = {
                one.name: (one, captured)
                for one in self.earlier.of(first)
                if (captured := glob.match(one.name)) is not None
            }
            if not matched:
                hint = did_you_mean(glob.text, [one.name for one in self.earlier.of(first)][:50])
                self.mistakes.at(keys, f"no deliverable of {first!r} matches {glob.text[:80]!r}", hint)
            for name, (one, captured) in matched.items():
                if not _any(left_out, name):
                    yield name, Unit(one.reading.path, 0, {**captured, **one.fields}, (), (one,), one.lineage)
            return
        try:
            files = self.inputs.matching(glob)
        except TargetError as error:
            self.mistakes.add(error)
            return
        if not files:
            self._nothing(glob, keys, iteration)
        yield from self._read({name: files[name] for name in files if not _any(left_out, name)}, spec.role)

    def _read(self, files: dict[str, dict[str, str]], role: str) -> Iterator[tuple[str, Unit]]:
        budget = self.loaded.roles[role].token_budget
        for number, (path, captured) in enumerate(files.items()):
            if self.inputs.progress and number % 200 == 0:
                self.inputs.progress("reading targets", number, len(files))
            try:
                target = self.inputs.read(path)
            except TargetError as error:
                self.mistakes.add(error)
                continue
            if target.tokens > budget:
                message = (
                    f"the target {path!r} has about {target.tokens:,} tokens, more than the whole budget of {role}"
                )
                hint = f"split the file, leave it out, or raise token_budget ({budget:,})"
                where = self.inputs.base / path
                self.mistakes.add(TargetError(message, where=where, hint=hint, code="target-too-large"))
            self.used.add(path)
            fields = {**captured, **target.fields}
            yield path, Unit(path, target.tokens, fields, (path,), (), frozenset((path,)), target.trouble)

    def _nothing(self, glob: Glob, keys: Keys, iteration: Iteration) -> None:
        first = glob.text.partition("/")[0]
        shown = repr(glob.text[:80])
        if first in [one.name for one in self.loaded.workflow.iterations]:
            message = f"{shown} names deliverables of {first!r}, which does not go before {iteration.name!r}"
            self.mistakes.at(keys, message, f"dependencies: [{first}]" if first != iteration.name else None)
            return
        near = self.inputs.near()
        hint = f"there are {near}" if near else "there are no files: --base DIR says where to look"
        of = "the targets given" if self.inputs.globs else f"the files below {self.inputs.base}"
        self.mistakes.at(keys, f"nothing matches {shown} among {of}", hint)


def _any(globs: Sequence[Glob], name: str) -> bool:
    return any(glob.match(name) is not None for glob in globs)
