"""API keys: from the gateway's environment or its file; taken out of whatever is written.

The file holds ``NAME=value`` lines. It belongs to the user, mode 0600 or stricter, outside the root and outside
everything a worker may write to. It goes before the environment, since a changed file is read again at the next call.

Secrets are taken out *by value*, in these forms: plain, JSON- and HTML-escaped, URL-quoted, base64 (wherever it begins
in the encoded bytes), hexadecimal; also what is left where a text was cut inside of one, from 12 characters of the
secret on. Values of fewer than 8 characters, and words, numbers and paths that stand in any text, are not.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, quote_plus, unquote, urlsplit

from pop.confine import MAX_NEIGHBOURS, landlock_version, names_of, neighbours
from pop.errors import ConfigError
from pop.models.request import Answer, ModelError
from pop.settings import ModelSettings, ProviderSettings, Root, Settings
from pop.store import NotAFile, open_regular

REDACTED = "[redacted]"
MIN_CHARS = 8
PIECE_CHARS = 12
MAX_FILE_BYTES = 2**16
NOTE = "the answer held an API key, which was taken out"
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_WORDS = frozenset(
    """
    anything changeme disabled dummy-key lm-studio no-api-key no-key-required not-needed not-used optional placeholder
    required sk-no-key-required undefined unlimited whatever
    """.split()  # noqa: SIM905
)
_LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*
    (?: "(?P<double>(?:[^"\\]|\\["\\])*)" | '(?P<single>[^']*)' | (?P<plain>[^\s"'#][^\s]*)? )
    \s*(?:(?<=\s)\#.*)?""",
    re.VERBOSE,
)


# -- the file ----------------------------------------------------------------------------------------------------------


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


# -- all keys ----------------------------------------------------------------------------------------------------------


class Keys:
    """The gateway's environment with the file's values, and all secrets it ever knew.

    `environ` stays the same dictionary; `fresh` changes what is in it.

    Raises:
        ConfigError: The file is wrong (`read_keys_file`).
    """

    def __init__(self, environ: Mapping[str, str], keys_file: Path | None = None) -> None:
        self._outer = dict(environ)
        self._file = keys_file
        self._seen: object = self  # no version of the file
        self._in_file: dict[str, str] = {}
        self._names: set[str] = set()
        self._secrets: set[str] = set()
        self._redactor = Redactor(())
        self.problem: ConfigError | None = None
        self.environ: dict[str, str] = {}
        self.fresh()
        if self.problem:
            raise self.problem

    def fresh(self) -> bool:
        """Read the file again when it has changed; True when it has.

        A wrong file leaves everything as it was, and stands in `problem`.
        """
        version = self._version()
        if version == self._seen:
            return False
        self._seen = version
        if self._file is not None:
            try:
                self._in_file = read_keys_file(self._file)
                self.problem = None
            except ConfigError as error:
                self.problem = error
                return False
        self.environ.clear()
        self.environ.update(self._outer | self._in_file)
        self._collect()
        return True

    def _version(self) -> object:
        if self._file is None:
            return None
        try:
            info = os.stat(self._file)
        except OSError:
            return "missing"
        return info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_size

    def source(self, name: str) -> str | None:
        """Where a variable's value comes from: ``the keys file``, ``the environment``, or None."""
        if name in self._in_file:
            return "the keys file"
        return "the environment" if self._outer.get(name) else None

    def also(self, values: Iterable[str]) -> None:
        """Further secrets, e.g. the headers of pop.toml; what is plainly none (a URL, a MIME type, words) is passed over."""
        self._add(part for value in values if not _is_public(value) for part in _parts(value))

    def learn(self, settings: Settings) -> None:
        """All secrets of a pop.toml: values of `headers`, passwords in `base_url`, and the variables of `api_key_env`."""
        models = [one for one in settings.models.values() if not isinstance(one, str)]
        tables: list[ProviderSettings | ModelSettings] = [*settings.providers.values(), *models]
        self._names.update(table.api_key_env for table in tables if table.api_key_env)
        self.also(value for table in tables for value in table.headers.values())
        self._add(found for table in tables if table.base_url for found in _passwords(table.base_url))
        self._collect()

    def _collect(self) -> None:
        for name, value in (*self._outer.items(), *self._in_file.items()):
            if name in self._names or is_secret_name(name):
                self._add([value])
            if "://" in value:
                self._add(_passwords(value))

    def _add(self, values: Iterable[str]) -> None:
        lines = (line for value in values for line in value.splitlines() if not line.startswith("-----"))
        new = {line for line in lines if is_redacted(line)} - self._secrets
        if new:
            self._secrets |= new
            self._redactor = Redactor(self._secrets)

    # -- taking out ------------------------------------------------------------------------------------------------

    def redact(self, text: str) -> str:
        """The text with ``[redacted]`` for each secret."""
        return self._redactor.redact(text)

    def redact_value(self, value: Any) -> Any:
        """The same for all texts in a JSON value, names of objects included."""
        try:
            return self._redactor.redact_value(value)
        except RecursionError:
            return REDACTED

    def redact_answer(self, answer: Answer) -> Answer:
        """An answer that can be stored. One that held a secret itself, not only a try before it, says so in its warnings."""
        tries = [one.model_copy(update={"message": self.redact(one.message)}) for one in answer.tries]
        plain = {name: getattr(answer, name) for name in ("text", "provider_model", "note", "warnings", "extra")}
        clean = {name: self.redact_value(value) for name, value in plain.items()}
        if clean == plain and tries == answer.tries:
            return answer
        extra = clean["extra"] if isinstance(clean["extra"], dict) else {}
        warnings = clean["warnings"] if clean == plain else [*clean["warnings"], NOTE]
        return answer.model_copy(update={**clean, "extra": extra, "warnings": warnings, "tries": tries})

    def redact_error(self, error: ModelError) -> ModelError:
        """The same error without secrets, and without the exceptions it came from."""
        error.message = self.redact(error.message)
        error.where = self.redact(error.where) if error.where else error.where
        error.hint = self.redact(error.hint) if error.hint else error.hint
        error.code = self.redact(error.code)
        error.args = (error.message,)
        error.tries = [one.model_copy(update={"message": self.redact(one.message)}) for one in error.tries]
        error.__cause__ = error.__context__ = None
        return error


def keys_of(settings: Settings) -> Mapping[str, str]:
    """This process's environment with the values of the keys file, as far as that can be read."""
    try:
        return Keys(os.environ, find_keys_file(settings)).environ
    except ConfigError:
        return os.environ


def is_secret_name(name: str) -> bool:
    """Whether a variable is taken for a secret by its name."""
    return any(part in name.upper() for part in _SECRET_NAMES)


def is_redacted(value: str) -> bool:
    """Whether a value can be taken out of texts without harm to others: long enough, and no word, number or path."""
    if len(value) < MIN_CHARS or value.lower() in _WORDS or value.isspace():
        return False
    if len(value) < 16:
        with contextlib.suppress(ValueError):
            float(value)
            return False
    if value.startswith(("~/", "./", "../")):
        return False
    return not (value.startswith("/") and os.path.lexists("/" + value.split("/")[1]))


def _is_public(value: str) -> bool:
    """A header's value that is certainly no secret."""
    mime = re.fullmatch(r"[a-z]+/[a-z0-9.+*-]+(\s*[;,].*)?", value)
    words = re.fullmatch(r"[A-Za-z]+([ _.-][A-Za-z]+)*", value) and (" " in value or len(value) < 24)
    url = re.match(r"https?://", value) and not list(_passwords(value))
    return bool(mime or words or url)


def _parts(value: str) -> Iterator[str]:
    """A header's value, and what follows its scheme (``Bearer``); of ``Basic``, what it encodes too."""
    yield value
    scheme, _, rest = value.partition(" ")
    if rest and re.fullmatch(r"[A-Za-z-]+", scheme):
        yield rest.strip()
        if scheme.lower() == "basic":
            with contextlib.suppress(ValueError):
                yield base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]


def _passwords(url: str) -> Iterator[str]:
    with contextlib.suppress(ValueError):
        password = urlsplit(url).password
        if password:
            yield password
            yield unquote(password)


# -- finding secrets ---------------------------------------------------------------------------------------------------


class Redactor:
    """Looks for each form of each secret by its first and its last piece, and from there for as much as is there."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in forms_of(secret)}
        self._heads = {(head, whole) for whole, head, _ in forms}
        self._tails = {(tail, whole) for whole, head, tail in forms if head != whole}

    def redact(self, text: str) -> str:
        spans = sorted([*self._from_heads(text), *self._from_tails(text)])
        if not spans:
            return text
        parts: list[str] = []
        at = 0
        for start, end in spans:
            if start > at or not parts:
                parts += [text[at:start], REDACTED]
            at = max(at, end)
        return "".join([*parts, text[at:]])

    def _from_heads(self, text: str) -> Iterator[tuple[int, int]]:
        for head, whole in self._heads:
            start = text.find(head)
            while start >= 0:
                end = start + _shared(whole, text[start : start + len(whole)])
                yield start, end
                start = text.find(head, end)

    def _from_tails(self, text: str) -> Iterator[tuple[int, int]]:
        for tail, whole in self._tails:
            found = text.find(tail)
            while found >= 0:
                end = found + len(tail)
                before = text[max(0, end - len(whole)) : end]
                yield end - _shared(whole[::-1], before[::-1]), end
                found = text.find(tail, end)

    def redact_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, Mapping):
            return {self.redact_value(name): self.redact_value(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.redact_value(inner) for inner in value]
        return value


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginning on."""
    if one == other:
        return len(one)
    return next(
        (number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, (one, other)))
    )


def forms_of(secret: str) -> set[tuple[str, str, str]]:
    """Every way a secret may stand in a text: ``(whole, first piece, last piece)``.

    The pieces hold at least 12 of its characters; those of a short secret are the whole.
    """
    found = set()
    for encode in _ENCODINGS:
        whole = encode(secret)
        head, tail = encode(secret[:PIECE_CHARS]), encode(secret[-PIECE_CHARS:])
        if len(secret) <= PIECE_CHARS or not (whole.startswith(head) and whole.endswith(tail)):
            head = tail = whole
        found.add((whole, head, tail))
    for alphabet in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            found.update(_in_base64(secret.encode("utf-8", "surrogatepass"), shift, alphabet))
    return found


def _json(ascii_only: bool, times: int = 1) -> Callable[[str], str]:
    def encode(text: str) -> str:
        for _ in range(times):
            text = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        return text

    return encode


def _percent(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _lower(text: str) -> str:
    return re.sub(r"%..", lambda match: match[0].lower(), text)


_ENCODINGS: tuple[Callable[[str], str], ...] = (
    str,
    _json(True),
    _json(False),
    _json(True, 2),
    lambda text: _json(False)(text).replace("/", "\\/"),
    lambda text: "".join(f"\\u{ord(character):04x}" for character in text),
    html.escape,
    lambda text: html.escape(text, quote=False),
    _percent,
    lambda text: _lower(_percent(text)),
    lambda text: quote(text, safe="/", errors="replace"),
    lambda text: quote_plus(text, errors="replace"),
    lambda text: _lower(quote_plus(text, errors="replace")),
    lambda text: text.encode("utf-8", "surrogatepass").hex(),
    lambda text: text.encode("utf-8", "surrogatepass").hex().upper(),
)


def _in_base64(secret: bytes, shift: int, encode: Callable[[bytes], bytes]) -> Iterator[tuple[str, str, str]]:
    """What base64 makes of it after `shift` other bytes, whatever those are and whatever follows; URL-quoted too."""

    def core(part: bytes, shift: int) -> str:
        text = encode(b"\0" * shift + part).decode().rstrip("=")
        return text[(0, 2, 3)[shift] : len(text) - (1 if (shift + len(part)) % 3 else 0)]

    cut = max(0, len(secret) - PIECE_CHARS)
    plain = core(secret, shift), core(secret[:PIECE_CHARS], shift), core(secret[cut:], (shift + cut) % 3)
    for whole, head, tail in {plain, (_percent(plain[0]), _percent(plain[1]), _percent(plain[2]))}:
        yield (whole, head, tail) if cut else (whole, whole, whole)


# -- logs --------------------------------------------------------------------------------------------------------------


def redacting(keys: Keys) -> Callable[[Any, str, Any], Any]:
    """A processor for structlog, the last before the renderer (and after ``format_exc_info``), or after it."""

    def process(_: Any, __: str, event: Any) -> Any:
        if isinstance(event, str):
            return keys.redact(event)
        return keys.redact_value({name: _loggable(value) for name, value in dict(event).items()})

    return process


def _loggable(value: Any) -> Any:
    """What a renderer would make texts of is made one here."""
    return value if isinstance(value, (str, int, float, type(None), list, tuple, dict)) else repr(value)


class RedactingStream:
    """A text stream; what is written at once is redacted as one: for standard error, where Python and libraries print on their own."""

    def __init__(self, keys: Keys, stream: TextIO) -> None:
        self._keys = keys
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(self._keys.redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
