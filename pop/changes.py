"""What is made of a seed's envelope before it is dropped: another pipeline, other models, a recorded run's answers."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from pop.errors import ConfigError, ConfigErrors, PopError, UsageError, did_you_mean
from pop.models.catalogue import Catalogue, UnknownModel
from pop.models.providers.replay import Recording, find_recorded
from pop.records import Seed, dump_json, read_json
from pop.rootcheck import RootCheck
from pop.runs import Run, find_run
from pop.seedtext import envelope_at
from pop.settings import Root, load_settings
from pop.store import lines_of


@dataclass(frozen=True)
class Recorded:
    """A finished run that can be replayed; `model` is the name under which it answers."""

    path: Path
    pipeline: str
    model: str

    @property
    def stem(self) -> str:
        """What its seed was called."""
        try:
            name = str(orjson.loads(next(lines_of(self.path / "events.jsonl"), b""))["seed_file"])
        except (OSError, ValueError, LookupError, TypeError):
            name = ""
        return Path(name).stem or "seed"


@dataclass(frozen=True)
class Changes:
    """What the command line makes of a seed's envelope. `models` may hold ``*``, which stands for every name."""

    pipeline: str | None = None
    models: dict[str, str] = field(default_factory=dict)
    recorded: Recorded | None = None

    def __bool__(self) -> bool:
        return bool(self.pipeline or self.models)

    def write(self, root: Root, seed: Path) -> None:
        """Put them into a seed.json, which gets an envelope where it has none.

        Raises:
            UsageError: The seed asks for another pipeline than the one that was recorded, or nothing asks for a role.
        """
        value = read_json(seed.read_bytes())
        envelope = value if "data" in value else {"data": value}
        envelope = {**envelope, **({"pipeline": self.pipeline} if self.pipeline else {})}
        pipeline = envelope.get("pipeline") or "default"
        if self.recorded:
            self._refuse_another(root, pipeline, self.recorded)
            envelope.pop("id", None)  # it is the recorded run's, which this one stands beside
        check_roles(root, [role for role in self.models if role != "*"], pipeline)
        if self.models:
            envelope["models"] = self._models_of(root, pipeline, envelope.get("models") or {})
        seed.write_bytes(dump_json(envelope))

    def _refuse_another(self, root: Root, pipeline: str, recorded: Recorded) -> None:
        if recorded.pipeline not in root.pipeline_names():
            message = f"the run {recorded.path.name} is of the pipeline {recorded.pipeline!r}, which is not here"
            hint = did_you_mean(recorded.pipeline, root.pipeline_names())
            raise UsageError(message, where="--replay", hint=hint, code="another-pipeline")
        if pipeline != recorded.pipeline:
            message = f"the run {recorded.path.name} is of the pipeline {recorded.pipeline!r}, not of {pipeline!r}"
            hint = f"replay it with -p {recorded.pipeline}, or without a seed"
            raise UsageError(message, where="--replay", hint=hint, code="another-pipeline")

    def _models_of(self, root: Root, pipeline: str, own: dict[str, str]) -> dict[str, str]:
        """Where one model stands for all, the names that seed and pipeline give another meaning are told too."""
        every = self.models.get("*")
        if every is None:
            return {**own, **self.models}
        try:
            renamed = dict(json.loads(root.pipeline_path(pipeline).read_bytes()).get("models") or {})
        except (OSError, ValueError, AttributeError):  # the seed waits until its pipeline is mended
            renamed = {}
        return {"*": every, **dict.fromkeys(renamed, every), **self.models}


def changes_of(
    root: Root, models: Iterable[str] = (), replay: str | None = None, pipeline: str | None = None
) -> Changes:
    """What ``-p``, ``-m`` and ``--replay`` ask for, looked at before anything is spent.

    Raises:
        UsageError: A model, a role or a run that is not there, or both ``-m`` and ``--replay``.
    """
    given = list(models)
    if replay is not None and given:
        hint = "-m runs it anew with another model; --replay asks none"
        raise UsageError("-m and --replay do not go together", hint=hint)
    if replay is not None:
        found = recorded_run(root, replay)
        return Changes(pipeline, {"*": found.model}, found)
    chosen: dict[str, str] = {}
    for text in given:
        match = re.fullmatch(r"(?:([^/:=]+)=)?(.+)", text)
        role, name = (match[1] or "*", match[2]) if match else ("*", text)
        if role in chosen:
            about = "for every name" if role == "*" else f"for {role!r}"
            hint = "-m NAME once for all, and -m ROLE=NAME for each that is to differ"
            raise UsageError(f"-m says twice which model to ask {about}", where=f"-m {text}", hint=hint)
        _check_model(root, text, name)
        chosen[role] = name
    return Changes(pipeline, chosen)


def _check_model(root: Root, text: str, name: str) -> None:
    try:
        Catalogue(load_settings(root), os.environ).route(name)
    except UnknownModel as error:
        raise UsageError(error.message, where=f"-m {text}", hint=error.hint, code=error.code) from None


def check_roles(root: Root, roles: list[str], pipeline: str, *, where: str = "-m") -> None:
    """A role that nothing asks for would change nothing.

    Raises:
        UsageError: It says `where` that role was given.
    """
    if not roles:
        return
    envelope = {"data": {}, "models": dict.fromkeys(roles, "builtin"), "pipeline": pipeline}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(envelope, file)
        file.flush()
        for problem in RootCheck(root).envelope_problems(Path(file.name)):
            raise UsageError(problem.message, where=where, hint=problem.hint, code=problem.code)


def refuse_without_models(root: Root, seed: Path, *, keys: bool = False, codes: frozenset[str] | None = None) -> None:
    """What the models of a seed's run lack: programs, runs to replay, prices under a budget in USD, keys.

    Args:
        seed: As the queue will get it, with what the command line says; a file, or a folder with seed.json.
        keys: Whether the daemon is our own: then a key that is missing here is missing there.
        codes: Which of these to tell (else all).

    Raises:
        ConfigErrors: All of it.
    """
    look = RootCheck(root)
    envelope = envelope_at(seed) or Seed(data=None)
    name = envelope.pipeline or "default"
    read = look.pipelines.get(name)
    if read is None or read.pipeline is None:
        return
    models = envelope.models or {}
    missing = look.asked_problems(name, models, envelope.budget)
    missing += look.missing_keys(read.pipeline, models) if keys else []
    unique = {str(problem): problem for problem in missing if isinstance(problem, ConfigError)}
    told = [problem for problem in unique.values() if codes is None or problem.code in codes]
    if told:
        raise ConfigErrors(told)


def recorded_run(root: Root, asked: str) -> Recorded:
    """A finished run by id, prefix, name, ``last`` or path.

    Raises:
        UsageError: There is none, it is not finished, or it kept no answers.
    """
    if "/" in asked:
        try:
            run = Run(find_recorded(root, os.path.abspath(os.path.expanduser(asked))).resolve(), "complete")
        except PopError as error:
            raise UsageError(f"no run in the folder {asked!r}", where="--replay", hint=error.hint) from None
    else:
        run = find_run(root, asked)
    status = run.status()
    if status.get("state") != "complete":
        hint = f"pop retry {run.run_id}, or pop run its seed again; then replay it"
        raise UsageError(
            f"the run {run.run_id} is not finished: it is {status.get('state')}", where="--replay", hint=hint
        )
    if not Recording(run.path).holds_answers():
        message = f"the run {run.run_id} keeps no answers: it was made by an older version of POP"
        raise UsageError(message, where="--replay", hint="run its seed once more to record it", code="not-recorded")
    ours = run.path.resolve().parent in (root.complete.resolve(), root.current.resolve())
    return Recorded(run.path, str(status.get("pipeline") or "default"), f"replay:{run.run_id if ours else run.path}")
