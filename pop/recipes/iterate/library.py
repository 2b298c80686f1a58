"""What comes with POP: roles, templates and the catalogue of workflows; and where a root keeps workflows of its own.

pop/recipes/iterate/roles/<role>.yaml                a role: perspective, responsibilities, budget
pop/recipes/iterate/templates/<role>.md.j2           its prompt, where it deserves one; else default.md.j2
pop/recipes/iterate/catalogue/<name>/workflow.yaml   a complete workflow, with templates/ and a sample/
<root>/workflows/<name>/workflow.yaml                stands before
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pop.errors import ConfigError, ConfigErrors, UsageError, did_you_mean, safe
from pop.recipes.iterate.manifest import Format
from pop.store import NotAFile, read_regular
from pop.yamlplaces import YamlPlaces, read_yaml

PACKAGED = Path(__file__).parent
ROLES, TEMPLATES, CATALOGUE = PACKAGED / "roles", PACKAGED / "templates", PACKAGED / "catalogue"
WORKFLOWS, WORKFLOW_FILE, SAMPLE = "workflows", "workflow.yaml", "sample"
ROLE_PATTERN = r"[a-z][a-z0-9_-]{0,31}"
MAX_BYTES = 1_000_000

Line = Annotated[str, Field(min_length=1, max_length=2000)]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Source = Literal["root", "package"]


class RoleSpec(BaseModel):
    """A role as it is written: in roles/<role>.yaml, or below `agent_roles` of a workflow, where it may say less."""

    model_config = ConfigDict(extra="forbid", strict=True)

    perspective: Text | None = Field(default=None, description="Who it is and how it looks at the work, in a sentence.")
    responsibilities: list[Line] | None = Field(default=None, description="What it answers for.")
    capabilities: list[Line] | None = Field(default=None, description="What it can do.")
    constraints: list[Line] | None = Field(default=None, description="What it must not do.")
    token_budget: int | None = Field(
        default=None, gt=0, le=1_000_000_000, description="Tokens one agent may use up in a run, prompts and answers."
    )
    complexity_threshold: float | None = Field(
        default=None, gt=0, le=1e6, allow_inf_nan=False, description="How much complexity one agent takes on."
    )
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="A model of pop.toml; else the default one."
    )
    output_format: Format | None = Field(default=None, description="Of deliverables whose ending does not say.")


class Role(BaseModel):
    """A role with everything said. `known`: whether the library has it."""

    model_config = ConfigDict(frozen=True)

    name: str
    perspective: str
    responsibilities: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    token_budget: int = 60_000
    complexity_threshold: float = 8.0
    model: str | None = None
    output_format: Format = "markdown"


@dataclass(frozen=True)
class Entry:
    """A workflow that can be named: its file, and whether a root or the package has it."""

    name: str
    path: Path
    source: Source

    @property
    def sample(self) -> Path | None:
        """The folder with its sample input."""
        folder = self.path.parent / SAMPLE
        return folder if folder.is_dir() else None


def role_names() -> list[str]:
    """The roles of the library, sorted."""
    return sorted(path.stem for path in ROLES.glob("*.yaml"))


def load_role(name: str) -> Role:
    """A role of the library.

    Raises:
        ConfigErrors: Its file has mistakes.
        UsageError: There is none of that name.
    """
    if name not in role_names():
        shown = safe(name, 80, one_line=True)
        raise UsageError(f"no role {shown!r}", hint=did_you_mean(shown, role_names()), code="unknown-role")
    path = ROLES / f"{name}.yaml"
    value, places = read_yaml_file(path, "bad-role", example="perspective: You are ...")
    try:
        spec = RoleSpec.model_validate(value)
    except ValidationError as error:
        raise ConfigErrors([places.explain(entry, RoleSpec.model_fields) for entry in error.errors()]) from None
    if spec.perspective is None:
        raise ConfigErrors([places.mistake("`perspective` is missing", ())])
    return merged(name, None, spec)


def merged(name: str, of_library: Role | None, spec: RoleSpec) -> Role:
    """The library's role with what a workflow says differently; the perspective must come from one of them."""
    base: dict[str, Any] = of_library.model_dump() if of_library else {"perspective": ""}
    return Role.model_validate({**base, **spec.model_dump(exclude_none=True), "name": name})


def library_template(role: str) -> Path:
    """The packaged template of a role, else the one for all."""
    own = TEMPLATES / f"{role}.md.j2"
    return own if own.is_file() else TEMPLATES / "default.md.j2"


def catalogue(root: Path | None) -> list[Entry]:
    """Every workflow that can be named; a root's own hides the packaged one of the same name."""
    found: dict[str, Entry] = {}
    bases: list[tuple[Source, Path]] = [("package", CATALOGUE)]
    bases += [("root", root / WORKFLOWS)] if root else []
    for source, base in bases:
        for path in sorted(base.glob(f"*/{WORKFLOW_FILE}")):
            found[path.parent.name] = Entry(path.parent.name, path, source)
    return [found[name] for name in sorted(found)]


def find_workflow(given: str, root: Path | None) -> Entry:
    """A workflow by name, else by the path of its file or folder.

    Raises:
        UsageError: There is none.
    """
    known = {entry.name: entry for entry in catalogue(root)}
    if given in known:
        return known[given]
    path = Path(given).expanduser()
    path = path / WORKFLOW_FILE if path.is_dir() else path
    if path.is_file():
        return Entry(path.parent.name, path, "root")
    shown = safe(given, 200, one_line=True)
    if os.sep in given or given.endswith((".yaml", ".yml")):
        raise UsageError(f"no workflow file {shown!r}", hint="look at the path, or give a name: pop iterate list")
    hint = did_you_mean(shown, known) or "name a YAML file"
    raise UsageError(f"no workflow {shown!r}", hint=hint, code="unknown-workflow")


def read_yaml_file(path: Path, code: str, *, example: str) -> tuple[dict[str, Any], YamlPlaces]:
    """The mapping in a YAML file, and where everything in it stands.

    Raises:
        ConfigErrors: It cannot be read.
    """
    try:
        text = read_regular(path.resolve(), max_bytes=MAX_BYTES).decode("utf-8-sig")
        return read_yaml(text, str(path), code, example=example)
    except UnicodeDecodeError as error:
        raise ConfigErrors([ConfigError(f"not UTF-8 at byte {error.start}", where=path, code=code)]) from None
    except NotAFile as error:
        raise ConfigErrors([ConfigError(error.message, where=path, code=code)]) from None
    except FileNotFoundError:
        raise ConfigErrors([ConfigError("no such file", where=path, code=code)]) from None
    except ConfigError as error:
        raise ConfigErrors([error]) from None
