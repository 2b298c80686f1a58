"""The file of API keys: ``NAME=value`` lines that only the gateway reads.

It belongs to the user, mode 0600 or stricter, outside the root and outside everything a worker may write to.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from pop.confine import MAX_NEIGHBOURS, landlock_version, names_of, neighbours
from pop.errors import ConfigError
from pop.settings import Root, Settings
from pop.store import NotAFile, open_regular

MAX_FILE_BYTES = 2**16
_LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*
    (?: "(?P<double>(?:[^"\\]|\\["\\])*)" | '(?P<single>[^']*)' | (?P<plain>[^\s"'#][^\s]*)? )
    \s*(?:(?<=\s)\#.*)?""",
    re.VERBOSE,
)


def find_keys_file(settings: Settings, environ: Mapping[str, str] | None = None) -> Path | None:
    """``[gateway] keys_file``, else ``~/.config/pop/keys.env`` where it exists.

    Raises:
        ConfigError: The setting is no absolute path.
    """
    environ = os.environ if environ is None else environ
    given = settings.gateway.keys_file
    if given is not None:
        path = Path(os.path.expanduser(given))
        if not path.is_absolute() or "\0" in given:
            where = settings.place("gateway", "keys_file")
            raise ConfigError(f"keys_file {given!r} is no absolute path", where=where, hint="~/.config/pop/keys.env")
        return path
    config = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    default = Path(config, "pop", "keys.env")
    return default if default.is_absolute() and os.path.lexists(default) else None


def read_keys_file(path: Path) -> dict[str, str]:
    """The file's values by name.

    Raises:
        ConfigError: It is missing, not the user's alone, or a line is no ``NAME=value``; never shows a value.
    """
    try:
        fd = open_regular(os.path.realpath(path), max_bytes=MAX_FILE_BYTES)
    except FileNotFoundError:
        hint = f"(umask 077; echo NAME=value > {path}), or take keys_file out of pop.toml"
        raise ConfigError("no keys file", where=path, hint=hint) from None
    except NotAFile as error:
        raise ConfigError(f"the keys file is {error.message}", where=path, hint="NAME=value lines") from None
    except OSError as error:
        raise ConfigError(f"the keys file cannot be read: {error.strerror}", where=path) from None
    with os.fdopen(fd, "rb") as file:
        _check_owner(path, os.fstat(fd))
        data = file.read()
    try:
        return _parsed(data.decode("utf-8-sig"), path)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("not UTF-8", where=f"{path}:{line}", hint="save it as UTF-8") from None


def _check_owner(path: Path, info: os.stat_result) -> None:
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid != os.geteuid():
        raise ConfigError("the keys file belongs to somebody else", where=path, hint=f"chown {os.geteuid()} {path}")
    if mode & ~0o600:
        raise ConfigError(f"the keys file has mode {mode:04o}", where=path, hint=f"chmod 600 {path}")
    if info.st_nlink > 1:
        hint = f"cp {path} {path}.new && mv {path}.new {path}"
        raise ConfigError("the keys file has a second name (a hard link)", where=path, hint=hint)


def _parsed(text: str, path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        where = f"{path}:{number}"
        if match is None or not line.replace("\t", " ").isprintable():
            hint = "quote a value with spaces, quotes or a leading #" if "=" in line else "NAME=value"
            raise ConfigError("not a NAME=value line", where=where, hint=hint)
        name, double = match["name"], match["double"]
        value = re.sub(r"\\(.)", r"\1", double) if double is not None else match["single"] or match["plain"] or ""
        if not value:
            raise ConfigError(f"{name} has no value", where=where, hint="write one, or take the line out")
        if name in found:
            raise ConfigError(f"{name} stands there twice", where=where, hint="keep one of them")
        found[name] = value
    return found


def paths_to_hide(root: Root, settings: Settings, writable: Iterable[str]) -> list[str]:
    """The paths a worker must not read: all names of the keys file; [] without one, or where workers are not confined.

    Args:
        writable: Folders that workers may write to.

    Raises:
        ConfigError: The keys file is wrong, or lies where it cannot be kept from workers.
    """
    path = find_keys_file(settings)
    if path is None:
        return []
    read_keys_file(path)
    for name in {os.path.abspath(path), os.path.realpath(path)}:
        for folder, what in [
            (str(root.path), "inside the root"),
            *((one, "where tasks may write") for one in writable),
        ]:
            if _is_inside(name, folder):
                hint = f"move it, e.g. to ~/.config/pop/keys.env: {folder} is no place for it"
                raise ConfigError(f"the keys file lies {what}", where=path, hint=hint)
    if not settings.worker.confine or not landlock_version():
        return []
    names = names_of(str(path))
    for folder, count in neighbours(names).items():
        if count > MAX_NEIGHBOURS:
            message = f"{count} entries of {folder} lie beside the way to the keys file, more than {MAX_NEIGHBOURS}"
            raise ConfigError(message, where=path, hint="move it, e.g. to ~/.config/pop/keys.env")
    return names


def _is_inside(path: str, folder: str) -> bool:
    real = os.path.realpath(folder)
    return any(os.path.commonpath([path, one]) == one for one in (real, os.path.abspath(folder)))
