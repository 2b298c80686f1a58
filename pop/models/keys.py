"""API keys: from the gateway's environment or its file (`keysfile`); taken out of whatever is written (`redaction`).

The file goes before the environment, since a changed file is read again at the next call. Secrets are taken out *by value*.
Values of fewer than 8 characters, and words, numbers and paths that stand in any text, are not.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from pop.errors import ConfigError
from pop.models.keysfile import find_keys_file, read_keys_file
from pop.models.redaction import REDACTED, Redactor
from pop.models.request import Answer, ModelError
from pop.settings import ModelSettings, ProviderSettings, Settings

MIN_CHARS = 8
NOTE = "the answer held an API key, which was taken out"
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_WORDS = frozenset(
    """
    anything changeme disabled dummy-key lm-studio no-api-key no-key-required not-needed not-used optional placeholder
    required sk-no-key-required undefined unlimited whatever
    """.split()  # noqa: SIM905
)


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
        """All secrets of a pop.toml: values of `headers`, passwords and keys in `base_url`, and the variables of `api_key_env`."""
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


_OF_A_KEY = re.compile("key|token|secret|sig|pass", re.IGNORECASE)


def _passwords(url: str) -> Iterator[str]:
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        pairs = [pair.partition("=")[::2] for pair in parts.query.split("&")]
        for secret in (parts.password, *(value for name, value in pairs if _OF_A_KEY.search(name))):
            if secret:
                yield secret
                yield unquote(secret)


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
