"""``pop.toml``: models, limits, budgets, concurrency. Everything has a default; the file may be missing.

The root's layout stands here too, so that every part agrees on the names of the folders.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pop.durations import reuse_s
from pop.errors import ConfigError, ConfigErrors, UsageError, did_you_mean
from pop.records import NAME_PATTERN
from pop.tomlplaces import TomlPlaces, find_toml_places

_OF_PIPELINES = frozenset({"recover"})


@dataclass(frozen=True)
class Root:
    """The folder POP works in, and the names inside it (docs/files.md)."""

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "pop.toml"

    @property
    def pipeline_file(self) -> Path:
        return self.path / "pipeline.json"

    @property
    def pipelines(self) -> Path:
        return self.path / "pipelines"

    @property
    def tasks(self) -> Path:
        return self.path / "pipeline-tasks"

    @property
    def pending(self) -> Path:
        return self.path / "pipeline-pending"

    @property
    def rejected(self) -> Path:
        return self.pending / "rejected"

    @property
    def current(self) -> Path:
        return self.path / "pipeline-current"

    @property
    def complete(self) -> Path:
        return self.path / "pipeline-complete"

    @property
    def ledger(self) -> Path:
        return self.complete / "runs.jsonl"

    @property
    def calls(self) -> Path:
        """The ledger of model calls, one file a day."""
        return self.complete / "calls"

    @property
    def machine_room(self) -> Path:
        return self.path / ".pop"

    def pipeline_path(self, name: str | None) -> Path:
        """The file of the pipeline called `name`; None and ``default`` mean pipeline.json."""
        return self.pipeline_file if name in (None, "default") else self.pipelines / f"{name}.json"

    def pipeline_names(self) -> list[str]:
        """The names a seed may ask for, sorted; ``default`` first where pipeline.json stands."""
        stems = {path.stem for path in self.pipelines.glob("*.json")} - {"default"}
        named = sorted(stem for stem in stems if re.fullmatch(NAME_PATTERN, stem))
        return (["default"] if self.pipeline_file.is_file() else []) + named


def find_root(given: str | Path | None = None, *, start: Path | None = None) -> Root:
    """`given`, else ``POP_ROOT``, else the nearest folder upwards that holds pipeline.json and what POP works with.

    A pipeline.json alone may belong to something else, such as a folder that `pop iterate` wrote; where there is nothing
    better it is a root, too.

    Raises:
        UsageError: No root can be found.
    """
    chosen = given or os.environ.get("POP_ROOT")
    if chosen:
        path = Path(chosen).expanduser().resolve()
        if not path.is_dir():
            raise UsageError(f"no folder {str(chosen)!r}", hint=f"create one: pop init {chosen}")
        return Root(path)
    here = (start or Path.cwd()).resolve()
    holders = [folder for folder in (here, *here.parents) if (folder / "pipeline.json").is_file()]
    if not holders:
        raise UsageError(f"no pipeline.json in {here} or above", hint="pop init, or name a folder with --root")
    return Root(next((folder for folder in holders if _is_worked_in(folder)), holders[0]))


def enclosing_root(folder: Path) -> Root | None:
    """The nearest folder from `folder` upwards that is certainly a root: pipeline.json alone makes none."""
    here = folder.resolve()
    found = (one for one in (here, *here.parents) if (one / "pipeline.json").is_file() and _is_worked_in(one))
    return next(map(Root, found), None)


def _is_worked_in(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("pipeline-tasks", "pop.toml", ".pop"))


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Price(_Table):
    """USD per million tokens. `reasoning` tokens are priced as output where nothing else is said; `batch` is the
    share of the price that the provider's batch tariff takes, e.g. 0.5, where the calls go through it."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(default=None, ge=0)
    reasoning: float | None = Field(default=None, ge=0)
    batch: float | None = Field(default=None, gt=0, le=1)


Api = Literal["chat", "responses"]
PerMinute = Annotated[float, Field(gt=0)]


def _variable(name: str) -> str:
    """The message never repeats what was given: it may be the key itself."""
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        hint = 'give the name of the variable that holds the key, e.g. "OPENAI_API_KEY", not the key'
        raise PydanticCustomError("variable", "must be the name of a variable", {"hint": hint})
    return name


Variable = Annotated[str, AfterValidator(_variable)]


class ProviderSettings(_Table):
    """One entry of ``[providers.<name>]``: what several models of one server share.

    `kind` is what speaks to it; the limits hold for all its models together.
    """

    kind: str = "openai"
    base_url: str | None = None
    api_key_env: Variable | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    api: Api | None = None
    concurrency: int | None = Field(default=None, ge=1)
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None


FORMS = ("strict", "schema", "object+schema", "object", "prompt")


def _form(value: Any) -> str | None:
    """How a schema is asked for; true and false are ``strict`` and ``prompt``."""
    found = {True: "strict", False: "prompt"}[value] if isinstance(value, bool) else value
    if found is not None and found not in FORMS:
        raise ValueError(f"must be one of {', '.join(FORMS)}, or true or false")
    return found


def _reuse(value: Any) -> float | None:
    return reuse_s(value)


class ModelSettings(_Table):
    """One entry of ``[models.<name>]``.

    `timeout_s` bounds one call with all its tries; `tries` counts the tries inside the gateway. `structured` says how
    a schema is asked for (None: it is found out, and remembered). `reuse` is true, or the greatest age as a text
    (``7d``), or false; as a number, seconds. It is kept in seconds, false as 0.0.
    """

    provider: str | None = None
    model: str | None = None
    first: list[str] | None = None
    ladder: list[str] | None = None
    base_url: str | None = None
    api_key_env: Variable | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    api: Api | None = None
    command: list[str] | None = Field(default=None, min_length=1)
    concurrency: int = Field(default=64, ge=1)
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    price: Price | None = None
    temperature: float | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)  # further parameters, sent as they are
    timeout_s: float = Field(default=120.0, gt=0)
    tries: int = Field(default=4, ge=1)
    structured: Annotated[Any, AfterValidator(_form), WithJsonSchema({"enum": [True, False, *FORMS]})] = None
    reuse: Annotated[Any, AfterValidator(_reuse), WithJsonSchema({"type": ["boolean", "string"]})] = None


Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class BudgetTable(_Table):
    """How much may be spent: USD, tokens (input and output) and calls; per step, run, pipeline and day, and day (UTC)."""

    step_usd: Amount | None = None
    step_tokens: Count | None = None
    step_calls: Count | None = None
    run_usd: Amount | None = None
    run_tokens: Count | None = None
    run_calls: Count | None = None
    pipeline_usd: Amount | None = None
    pipeline_tokens: Count | None = None
    pipeline_calls: Count | None = None
    day_usd: Amount | None = None
    day_tokens: Count | None = None
    day_calls: Count | None = None


class BudgetSettings(BudgetTable):
    """``[budget]``: nothing goes beyond these; ``[budget.warn]``: beyond these a warning is given, and work goes on."""

    warn: BudgetTable = Field(default_factory=BudgetTable)


class Concurrency(_Table):
    runs: int = Field(default=100, ge=1)
    workers: int = Field(default_factory=lambda: max(4, 2 * (os.cpu_count() or 1)), ge=1)


class SeedSettings(_Table):
    """What may be dropped. Mebibytes and counts; `ratio` bounds the expansion of a zip file."""

    max_mb: float = Field(default=32.0, gt=0)
    max_files: int = Field(default=1000, ge=1)
    max_files_mb: float = Field(default=256.0, gt=0)
    max_ratio: float = Field(default=100.0, gt=1)
    settle_s: float = Field(default=1.0, ge=0)


def _existing_folder(text: str) -> str:
    path = os.path.expanduser(text)
    if "\0" in path or not os.path.isabs(path) or not os.path.isdir(path):
        raise ValueError("name an existing folder by its absolute path, or from ~")
    return path


class WorkerSettings(_Table):
    """Defaults of one attempt.

    `env` names further environment variables a worker may see (never keys). With `confine` the kernel lets it write
    only into its attempt's folder, the temporary folder and the folders of `write`.
    """

    timeout_s: float = Field(default=600.0, gt=0)
    stall_s: float = Field(default=300.0, gt=0)
    memory_mb: int = Field(default=1024, ge=64)
    output_mb: float = Field(default=4.0, gt=0)
    attempts: int = Field(default=2, ge=1)
    env: list[str] = Field(default_factory=list)
    confine: bool = True
    write: list[Annotated[str, AfterValidator(_existing_folder)]] = Field(default_factory=list)


class DaemonSettings(_Table):
    """`durability` ``safe`` fsyncs every commit; ``fast`` leaves it to the kernel (a power cut may lose seconds)."""

    scan_s: float = Field(default=1.0, gt=0)
    drain_s: float = Field(default=15.0, ge=0)
    durability: str = Field(default="safe", pattern="^(safe|fast)$")
    inotify: bool = True


class GatewaySettings(_Table):
    """`keys_file` holds ``NAME=value`` lines that only the gateway reads, beside its environment.

    `processes` beside it speak to providers, when one processor is not enough; 0: the gateway does it itself.
    """

    keys_file: str | None = None
    processes: int = Field(default=0, ge=0, le=64)


NoticeKind = Literal["finished", "failed", "waiting", "budget"]


def _webhook(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", text):
        raise ValueError("must begin with http:// or https://, and hold no user or password")
    return text


class NotifySettings(_Table):
    """``[notify.NAME]``: whom to tell about runs. Either `command`, a program with its words, which gets the notice as JSON
    on its standard input; or `url`, to which it is posted, signed with the secret in the variable `secret_env`.

    Attributes:
        on: What about: runs that are finished, have failed, wait for a person, or met a budget.
        pipelines: Of these pipelines alone; empty: of all.
        env: Further variables of the daemon's environment that `command` may see.
        timeout_s: For one try, of at most `tries`.
    """

    on: list[NoticeKind] = Field(default=["finished", "failed", "waiting", "budget"], min_length=1)
    command: list[str] | None = Field(default=None, min_length=1)
    url: Annotated[str, AfterValidator(_webhook)] | None = None
    secret_env: Variable | None = None
    pipelines: list[str] = Field(default_factory=list)
    env: list[Variable] = Field(default_factory=list)
    timeout_s: float = Field(default=10.0, gt=0, le=300)
    tries: int = Field(default=8, ge=1, le=20)

    @model_validator(mode="after")
    def _one_way(self) -> NotifySettings:
        if (self.command is None) == (self.url is None):
            raise ValueError("give either `command` or `url`")
        if self.secret_env and not self.url:
            raise ValueError("`secret_env` signs what goes to a `url`")
        return self


def _address(text: str) -> str:
    if text != "localhost":
        ipaddress.ip_address(text)
    return text


class WebSettings(_Table):
    """The dashboard. Whoever can connect has to have a link once, unless `token` is false, which only loopback may be."""

    host: Annotated[str, AfterValidator(_address)] = "127.0.0.1"
    port: int = Field(default=7670, ge=0, le=65535)
    token: bool = True

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @model_validator(mode="after")
    def _demand_a_token(self) -> WebSettings:
        if not self.token and not self.is_loopback:
            raise ValueError("token = false is for loopback alone: other machines can reach this host")
        return self


def is_loopback(host: str) -> bool:
    """Whether an address (or ``localhost``) can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _auto() -> dict[str, ModelSettings | str]:
    return {"default": "auto"}


class Settings(_Table):
    """pop.toml as a whole."""

    models: dict[str, ModelSettings | str] = Field(default_factory=_auto)
    providers: dict[str, ProviderSettings] = Field(default_factory=dict)
    budget: BudgetSettings = Field(default_factory=BudgetSettings)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    concurrency: Concurrency = Field(default_factory=Concurrency)
    seeds: SeedSettings = Field(default_factory=SeedSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    daemon: DaemonSettings = Field(default_factory=DaemonSettings)
    notify: dict[str, NotifySettings] = Field(default_factory=dict)
    web: WebSettings = Field(default_factory=WebSettings)
    _places: TomlPlaces = PrivateAttr(default_factory=lambda: TomlPlaces("pop.toml"))

    def place(self, *path: str) -> str:
        """Where a key of pop.toml stands, e.g. ``pop.toml:4:9  models.large``."""
        return self._places.of(*path)


_NAMED: dict[str, type[BaseModel]] = {
    "models": ModelSettings,
    "providers": ProviderSettings,
    "notify": NotifySettings,
}


def load_settings(root: Root) -> Settings:
    """Read pop.toml; a missing file means all defaults.

    Raises:
        ConfigErrors: Every mistake, each with its place and the nearest known key.
    """
    try:
        text = root.settings_file.read_text("utf-8")
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=root.settings_file) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}", where="pop.toml") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _no_toml(str(error), text) from None
    places = find_toml_places(text, "pop.toml")
    try:
        settings = Settings.model_validate(table)
    except ValidationError as error:
        raise ConfigErrors(_explain(entry, places) for entry in _meant(error.errors())) from None
    settings._places = places
    return settings


def _no_toml(message: str, text: str) -> ConfigError:
    place = re.search(r" \(at line (\d+), column (\d+)\)", message)
    rows = text.splitlines() or [""]
    line, column = place.groups() if place else (len(rows), len(rows[-1]) + 1)
    message = re.sub(r" \(at .*\)$", "", message)
    return ConfigError(f"not valid TOML: {message[:1].lower()}{message[1:]}", where=f"pop.toml:{line}:{column}")


def _explain(entry: Any, places: TomlPlaces) -> ConfigError:
    path = tuple(str(part) for part in entry["loc"] if part not in ("ModelSettings", "str"))
    where = places.of(*path)
    if entry["type"] != "extra_forbidden":
        return ConfigError(f"{'.'.join(path)}: {entry['msg'].lower()}", where=where, hint=_hint(entry, path[-1]))
    if path[-1] in _OF_PIPELINES:
        above = "write it at the top of pipeline.json, or in a step (docs/pipelines.md)"
        return ConfigError(f"`{path[-1]}` belongs into a pipeline", where=where, hint=above)
    hint = did_you_mean(path[-1], _known_keys(list(path[:-1])))
    return ConfigError(f"unknown key {path[-1]!r}", where=where, hint=hint)


def _hint(entry: Any, key: str) -> str | None:
    if entry["type"] == "list_type" and key == "command" and isinstance(entry["input"], str):
        try:
            words = shlex.split(entry["input"])
        except ValueError:  # an open quote
            words = entry["input"].split()
        return f"a list of words, no shell: {json.dumps(words, ensure_ascii=False)}"
    hint = entry.get("ctx", {}).get("hint")
    return str(hint) if hint else None


def _meant(entries: Iterable[Any]) -> list[Any]:
    """Without mistakes that only follow from others: a key that is missing because it is misspelt beside."""
    found = [entry for entry in entries if _is_meant(entry)]
    unknown = {entry["loc"] for entry in found if entry["type"] == "extra_forbidden"}
    misspelt = {
        (*loc[:-1], near) for loc in unknown for near in get_close_matches(loc[-1], _known_keys(list(loc[:-1])))
    }
    return [entry for entry in found if entry["type"] != "missing" or entry["loc"] not in misspelt]


def _is_meant(entry: Any) -> bool:
    """A model is a text or a table; a mistake in one of them is not told for the other too."""
    location, given = entry["loc"], entry["input"]
    if location[0] == "models" and len(location) == 3 and location[2] == "str":
        return not isinstance(given, dict)
    return not (location[0] == "models" and location[2:] == ("ModelSettings",))


def _known_keys(path: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in path:
        if model is Settings and part in _NAMED:
            model = _NAMED[part]
        elif part == "price":
            model = Price
        elif part in model.model_fields:
            inner = model.model_fields[part].annotation
            model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    return list(model.model_fields)
