"""What a step reads: the seed and the outputs of earlier steps, each loaded when it is first looked at."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pop.errors import AttemptFailed, PopError, did_you_mean
from pop.records import FileRef, InputRef, Letter, read_json
from pop.store import contained, read_regular

MAX_INPUT_BYTES = 64 * 2**20


class NoInput(KeyError):
    """A step that this one cannot read from."""

    def __str__(self) -> str:
        return str(self.args[0])


class Inputs(Mapping[str, Any]):
    """The newest output of every step before this one; ``inputs.my_step`` and ``inputs["my-step"]`` are the same.

    The output of a skipped step is None; that of a step inside an ``each`` is a list, in order.
    """

    def __init__(self, run_dir: Path, refs: Mapping[str, InputRef | None]) -> None:
        self._run_dir = run_dir
        self._refs = dict(refs)
        self._names = {name.replace("-", "_"): name for name in refs}
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        known = name if name in self._refs else self._names.get(str(name).replace("-", "_"))
        if known is None:
            hint = did_you_mean(str(name), self._refs) or "no step comes before this one"
            raise NoInput(f"no input {name!r}: {hint}")
        if known not in self._loaded:
            self._loaded[known] = load_ref(self._run_dir, self._refs[known])
        return self._loaded[known]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except NoInput as error:
            raise AttributeError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def places(self) -> dict[str, Any]:
        """Where each input stands in the run's folder, for the reader of the attempt."""
        return {name: _place(ref) for name, ref in self._refs.items()}


def _place(ref: Any) -> Any:
    if isinstance(ref, list):
        return [_place(one) for one in ref[:20]] + ([f"... [{len(ref)} items]"] if len(ref) > 20 else [])
    return {"$same_as": ref.path} if ref else None


def load_ref(run_dir: Path, ref: Any) -> Any:
    """The document a reference names.

    Raises:
        AttemptFailed: ``bad_input`` when it is gone or not the one that was recorded.
    """
    if ref is None:
        return None
    if isinstance(ref, list):
        return [load_ref(run_dir, one) for one in ref]
    return _load_file(run_dir, ref)


def _load_file(run_dir: Path, ref: FileRef) -> Any:
    data: bytes | None
    try:
        data = read_regular(contained(run_dir, ref.path), max_bytes=MAX_INPUT_BYTES)
    except (OSError, PopError) as error:
        raise AttemptFailed("bad_input", f"cannot read {ref.path}: {error}") from None
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        data = _before_an_edit(run_dir, ref)
    if data is None:
        hint = "somebody changed it after its step was done; pop retry does not undo that"
        raise AttemptFailed("bad_input", f"{ref.path} is not the file that was recorded", hint=hint)
    value = read_json(data, where=ref.path)
    return value[ref.pointer] if ref.pointer is not None else value


def _before_an_edit(run_dir: Path, ref: FileRef) -> bytes | None:
    """The version that was recorded, where a person edited the file at a gate since."""
    folder = run_dir / os.path.dirname(ref.path)
    for path in sorted(folder.glob("output.before-*.json")):
        try:
            data = read_regular(path, max_bytes=MAX_INPUT_BYTES)
        except (OSError, PopError):
            continue
        if hashlib.sha256(data).hexdigest() == ref.sha256:
            return data
    return None


def load_seed(letter: Letter) -> Any:
    """The seed's data: an envelope's ``data``, else the whole object."""
    value = load_ref(Path(letter.run_dir), letter.seed)
    return value["data"] if isinstance(value, dict) and "data" in value else value
