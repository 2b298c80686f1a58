"""The pipelines of a root, read when a seed asks for one and kept while their files stay as they are."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop import __version__
from pop.errors import ConfigError, ConfigErrors, SeedRejected, did_you_mean
from pop.pipeline import Pipeline, load_pipeline
from pop.settings import Root
from pop.store import read_file, root_trouble
from pop.tasks import hash_task, list_tasks
from pop.views import known_views

Signature = tuple[tuple[int, int, int] | None, ...]


class BrokenPipeline(ConfigError):
    """A pipeline cannot be used as it stands; seeds that ask for it wait until it is mended."""

    code = "broken-pipeline"

    def __init__(self, name: str, error: ConfigError) -> None:
        first = error.problems[0] if isinstance(error, ConfigErrors) else error
        super().__init__(first.message, where=first.where, hint=first.hint)
        self.pipeline_name = name
        self._text = str(error)

    def __str__(self) -> str:
        return self._text


@dataclass(frozen=True)
class Shelved:
    """A usable pipeline: its bytes as a run freezes them, and what they mean."""

    data: bytes
    pipeline: Pipeline


class PipelineShelf:
    """Thread-safe."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._shelved: dict[str, tuple[Signature, Shelved]] = {}
        self._broken: dict[str, Signature] = {}
        self._helpers: tuple[Signature, dict[str, str]] = ((), {})
        self._hashes: dict[str, tuple[Signature, dict[str, str]]] = {}

    def take(self, name: str) -> Shelved:
        """The pipeline called `name` as it is now.

        Raises:
            SeedRejected: There is no such pipeline.
            BrokenPipeline: Its file, or the set of tasks, has mistakes.
        """
        with self._lock:
            signature = self._signature(name)
            known = self._shelved.get(name)
            if known and known[0] == signature:
                return known[1]
            shelved = self._read(name, signature)
            self._shelved[name] = (signature, shelved)
            return shelved

    def _read(self, name: str, signature: Signature) -> Shelved:
        path = self._root.pipeline_path(name)
        try:
            data = read_file(path, links=True)
        except FileNotFoundError:
            if name == "default":
                self._broken[name] = signature
                error = ConfigError("pipeline.json is missing", where=path, hint="put it back, or pop init")
                raise BrokenPipeline(name, error) from None
            names = self._root.pipeline_names()
            raise SeedRejected(
                f"no pipeline {name!r}", where="pipelines/", hint=did_you_mean(name, names), code="unknown-pipeline"
            ) from None
        except OSError as error:
            if root_trouble(error):
                raise
            self._broken[name] = signature
            broken = ConfigError(f"cannot be read: {error.strerror}", where=os.path.relpath(path, self._root.path))
            raise BrokenPipeline(name, broken) from None
        try:
            tasks = list_tasks(self._root.tasks)
            where = os.path.relpath(path, self._root.path)
            pipeline = load_pipeline(data, where=where, name=name, known_tasks=tasks, known_views=known_views())
            return Shelved(data, pipeline)
        except ConfigError as error:
            self._broken[name] = signature
            raise BrokenPipeline(name, error) from error

    def _signature(self, name: str) -> Signature:
        paths = (self._root.pipeline_path(name), self._root.tasks, self._root.tasks / "index.json")
        return tuple(_signature_of(path) for path in paths)

    def changed(self, name: str) -> bool:
        """Whether a broken pipeline's files have changed since."""
        with self._lock:
            return self._broken.get(name) != self._signature(name)

    def frozen(self, run_dir: Path, name: str) -> Pipeline:
        """The pipeline a run froze when it was sealed.

        Raises:
            ConfigError: Somebody broke the run's own copy.
        """
        data, place = read_file(run_dir / "pipeline.json"), os.path.relpath(run_dir, self._root.path)
        return load_pipeline(data, where=f"{place}/pipeline.json", name=name)

    def provenance(self, pipeline: Pipeline) -> dict[str, Any]:
        """provenance.json: versions, and the sha256 of every file of every task the pipeline names, and of all modules."""
        tasks = sorted({step.task for step in pipeline.tasks.values()})
        return {
            "pop": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "tasks": {name: self._hash(name) for name in tasks},
            "helpers": self._hash_helpers(),
        }

    def _hash(self, name: str) -> dict[str, str]:
        with self._lock:
            known = self._hashes.get(name)
            if known and known[0] == self._files_signature(known[1]):
                return known[1]
            hashes = hash_task(self._root.tasks, name)
            self._hashes[name] = (self._files_signature(hashes), hashes)
            return hashes

    def _hash_helpers(self) -> dict[str, str]:
        """The sha256 of every Python file of pipeline-tasks/: a task may import any of them."""
        paths = sorted(path for path in self._root.tasks.rglob("*.py") if path.is_file())
        signature = tuple(_signature_of(path) for path in paths)
        with self._lock:
            if self._helpers[0] != signature:
                names = [str(path.relative_to(self._root.tasks)) for path in paths]
                hashes = [hashlib.sha256(read_file(path, links=True)).hexdigest() for path in paths]
                self._helpers = (signature, dict(zip(names, hashes, strict=True)))
            return self._helpers[1]

    def _files_signature(self, hashes: dict[str, str]) -> Signature:
        return (_signature_of(self._root.tasks), *(_signature_of(self._root.tasks / name) for name in sorted(hashes)))


def _signature_of(path: Path) -> tuple[int, int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return (info.st_mtime_ns, info.st_size, info.st_ino)
