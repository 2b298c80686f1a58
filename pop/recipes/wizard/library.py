"""The library of components: plain texts of which personas and prompts are put together (docs/components.md).

    <root>/components/personas/<name>.txt       stands before
    pop/recipes/wizard/components/personas/     what comes with the package; likewise protocols/ and constraints/

A root's component hides the packaged one of the same name, and when it is broken it is an error: nobody is to work with
another text than the one he wrote.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Literal, get_args

from pop.errors import ConfigError, PopError, did_you_mean, safe
from pop.store import Disk, NotAFile, read_regular, rename_noreplace

Kind = Literal["personas", "protocols", "constraints"]
Source = Literal["package", "root"]
KINDS: tuple[Kind, ...] = get_args(Kind)

NAME_PATTERN = r"[a-z][a-z0-9_]{0,79}"
NAME_HINT = "lower-case letters, digits and _, at most 80, a letter first"
MAX_BYTES = 64 * 1024
PACKAGED = Path(__file__).parent / "components"

# What neither a person sees nor a model should be told: controls, and marks that turn the direction of the text.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class ComponentError(ConfigError):
    """A component cannot be used as it stands."""

    code = "bad-component"


class MissingComponent(ComponentError):
    """No library has it. The wizard generates it; whoever reads it by name has mistyped."""

    code = "missing-component"


@dataclass(frozen=True)
class Component:
    """One text. `text` has no blank lines around it; `sha256` is that of the file, byte for byte."""

    kind: Kind
    name: str
    text: str
    source: Source
    path: Path
    sha256: str

    @property
    def reference(self) -> str:
        """``personas/meticulous_auditor``."""
        return f"{self.kind}/{self.name}"


def kind_of(text: str) -> Kind | None:
    """The kind that a person means: ``personas``, ``persona``, ``Persona``."""
    return next((kind for kind in KINDS if text.casefold() in (kind, singular(kind))), None)


def singular(kind: Kind) -> str:
    """``persona``, ``protocol``, ``constraint``."""
    return kind.removesuffix("s")


def standard_name(kind: Kind, goal: str) -> str:
    """What a component is called that the map does not name: ``autogen_persona_for_teach_or_explain``."""
    return f"autogen_{singular(kind)}_for_{re.sub('[^a-z0-9]+', '_', goal.lower()).strip('_')}"[:80]


@dataclass(frozen=True)
class Library:
    """The components of a root and those of the package.

    Args:
        root: The folder that may hold ``components/``; None for the packaged ones alone.
    """

    root: Path | None
    packaged: Path = PACKAGED

    @property
    def own(self) -> Path | None:
        """Where a root's own components lie."""
        return self.root / "components" if self.root else None

    def names(self, kind: Kind) -> list[str]:
        """The components of a kind, sorted; those that cannot be read too."""
        found = {
            path.stem
            for _, base in self._bases()
            for path in _entries(base / kind)
            if path.suffix == ".txt" and re.fullmatch(NAME_PATTERN, path.stem)
        }
        return sorted(found)

    def find(self, kind: Kind, name: str) -> Component | None:
        """The component, or None where there is none.

        Raises:
            ComponentError: It is there, and cannot be used; or no component can have that name.
        """
        check_name(kind, name)
        for source, base in self._bases():
            path = base / kind / f"{name}.txt"
            if os.path.lexists(path):
                text, sha256 = _read(path, base)
                return Component(kind, name, text, source, path, sha256)
        return None

    def load(self, kind: Kind, name: str) -> Component:
        """The component.

        Raises:
            MissingComponent: There is none.
            ComponentError: It cannot be used.
        """
        found = self.find(kind, name)
        if found is None:
            where = f"{self.own or self.packaged}/{kind}/"
            hint = self._hint(kind, name)
            raise MissingComponent(f"no {singular(kind)} {name!r}", where=where, hint=hint)
        return found

    def save(self, kind: Kind, name: str, text: str, *, replace: bool = False) -> Path:
        """Put a component into the root's own library, whole or not at all.

        Raises:
            ComponentError: The name or the text is none for a component, or the root has one of that name.
        """
        check_name(kind, name)
        if self.own is None:
            raise ComponentError("there is no root to keep components in", hint="pop init, or --root DIR")
        folder = self.own / kind
        path = folder / f"{name}.txt"
        data = (text.replace("\r\n", "\n").strip() + "\n").encode("utf-8", "surrogatepass")
        _checked(data, path)
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_outside(folder, self.own, path)
        draft = folder / f".{name}.{token_hex(4)}.new"
        try:
            Disk().put(draft, data)
            draft.chmod(0o644)
            (os.replace if replace else rename_noreplace)(draft, path)
        except FileExistsError:
            raise ComponentError(
                "a component of that name is there already", where=path, hint="choose another name, or replace it"
            ) from None
        finally:
            draft.unlink(missing_ok=True)
        return path

    def problems(self) -> list[PopError]:
        """Every component that cannot be used, and every file that nobody would ever read."""
        found: list[PopError] = []
        for kind in KINDS:
            for name in self.names(kind):
                try:
                    self.load(kind, name)
                except PopError as error:
                    found.append(error)
        return found + (list(_strangers(self.own)) if self.own else [])

    def _bases(self) -> list[tuple[Source, Path]]:
        own: list[tuple[Source, Path]] = [("root", self.own)] if self.own else []
        return [*own, ("package", self.packaged)]

    def _hint(self, kind: Kind, name: str) -> str | None:
        other = next((other for other in KINDS if other != kind and name in self.names(other)), None)
        return f"{other}/{name} is there" if other else did_you_mean(name, self.names(kind))


def check_name(kind: Kind, name: str) -> None:
    """Raises:
    ComponentError: No component can be called that.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ComponentError(f"{safe(name, 100, one_line=True)!r} is no name for a {singular(kind)}", hint=NAME_HINT)


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without what editors and systems leave there."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name[-1] != "~")
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: Path, base: Path) -> tuple[str, str]:
    """The text of a component, and the sha256 of its file."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise ComponentError("a symbolic link that leads nowhere", where=path, hint="remove it, or mend it") from None
    _refuse_outside(real, base, path)
    try:
        if real.is_file():
            _refuse_large(real.stat().st_size, path)
        data = read_regular(real, max_bytes=MAX_BYTES)
    except NotAFile as error:
        raise ComponentError(f"a component must be a text file: {error.message}", where=path) from None
    except OSError as error:
        raise ComponentError(f"cannot be read: {(error.strerror or str(error)).lower()}", where=path) from None
    return _checked(data, path), hashlib.sha256(data).hexdigest()


def _refuse_outside(real: Path, base: Path, path: Path) -> None:
    if not real.resolve().is_relative_to(base.resolve()):
        hint = "put a copy there instead of the link"
        raise ComponentError(f"leads out of the library {base}", where=path, hint=hint)


def _refuse_large(size_bytes: int, path: Path) -> None:
    if size_bytes > MAX_BYTES:
        hint = "a component is a few paragraphs: split it, or shorten it"
        raise ComponentError(f"{size_bytes} bytes are too many (at most {MAX_BYTES})", where=path, hint=hint)


def _checked(data: bytes, path: Path) -> str:
    """The text of the bytes.

    Raises:
        ComponentError: They are too many, empty, binary, or no UTF-8.
    """
    _refuse_large(len(data), path)
    if b"\x00" in data:
        raise ComponentError("binary, not text", where=path, hint="save it as plain text in UTF-8")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte {data[error.start]:#04x} at offset {error.start}"
        raise ComponentError(message, where=path, hint="save it as plain text in UTF-8") from None
    if unseen := _UNSEEN.search(text):
        line, column = text.count("\n", 0, unseen.start()) + 1, unseen.start() - text.rfind("\n", 0, unseen.start())
        message = f"holds a character that nobody sees: U+{ord(unseen.group()):04X}"
        raise ComponentError(message, where=f"{path}:{line}:{column}", hint="remove it")
    if not text.strip():
        raise ComponentError("empty", where=path, hint="write its text, or remove it")
    return text.strip()


def _strangers(own: Path) -> Iterator[ComponentError]:
    """What lies in a root's components/ under names that no reader looks for."""
    if own.exists() and not own.is_dir():
        yield ComponentError("must be a folder", where=own)
    for folder in _entries(own):
        if folder.is_dir() and folder.name not in KINDS:
            hint = did_you_mean(folder.name, KINDS)
            yield ComponentError("no kind of component", where=folder, hint=hint)
        elif folder.name in KINDS and not folder.is_dir():
            yield ComponentError("must be a folder", where=folder)
        elif folder.suffix == ".txt":
            yield ComponentError("lies in no kind's folder", where=folder, hint=f"put it into {KINDS[0]}/, or another")
    for kind in KINDS:
        for path in _entries(own / kind):
            if path.suffix != ".txt":
                yield ComponentError("no component: its name does not end in .txt", where=path)
            elif not re.fullmatch(NAME_PATTERN, path.stem):
                yield ComponentError(f"no name for a {singular(kind)}", where=path, hint=NAME_HINT)
