"""``pop init``."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import click
from click.core import ParameterSource

from pop.commands._shared import as_json, print_json, with_root
from pop.errors import UsageError, did_you_mean

PLACES = ("pipeline-tasks", "pipeline-pending", "pipeline-current", "pipeline-complete")
BRIEF = ("pipeline.json", "pop.toml", "pipeline-tasks", "examples/brief")  # of the repository; see pyproject.toml


def templates() -> dict[str, dict[str, Path]]:
    """The files of each template by their place in a new root."""
    folder = Path(str(files("pop") / "starters"))
    found = {entry.name: _below(entry, entry) for entry in sorted(folder.iterdir()) if entry.is_dir()}
    repository = Path(str(files("pop"))).parent
    if "brief" not in found and (repository / "examples" / "brief" / "seed.json").is_file():
        parts = [_below(repository / part, repository) for part in BRIEF]
        found["brief"] = {place: path for part in parts for place, path in part.items()}
    return {name: found[name] for name in sorted(found) if not name.startswith(("_", "."))}


def _below(top: Path, base: Path) -> dict[str, Path]:
    paths = [top] if top.is_file() else sorted(top.rglob("*"))
    return {str(path.relative_to(base)): path for path in paths if path.is_file() and "__pycache__" not in path.parts}


@click.command()
@click.argument("folder", required=False, metavar="[DIR]")
@click.option("--template", default="minimal", show_default=True, help="What to begin with.")
@click.option("--list", "show_list", is_flag=True, help="List the templates.")
@as_json
@with_root
def command(folder: str | None, template: str, show_list: bool, as_json: bool, root: str | None) -> None:
    """Make DIR (else --root, else this folder) a folder that POP can work in. Files that are there stay as they are."""
    known = templates()
    if show_list:
        print_json(list(known)) if as_json else click.echo("\n".join(known))
        return
    if template not in known:
        raise UsageError(f"no template {template!r}", hint=did_you_mean(template, known))
    asked = (click.get_current_context().find_root().obj or {}).get("root")
    target = Path(folder or root or asked or ".")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{str(target)!r} is a file", hint="name a folder; it is made where it is missing")
    for place in PLACES:
        (target / place).mkdir(parents=True, exist_ok=True)
    if (target / "pipeline.json").exists() and click.get_current_context().get_parameter_source(
        "template"
    ) == ParameterSource.DEFAULT:
        click.echo(
            f"kept     {target / 'pipeline.json'}: it is a project already, so only its folders were made", err=True
        )
        if as_json:
            print_json({"path": str(target.resolve()), "files": {}})
        return
    done = {place: _place(path, target / place) for place, path in known[template].items()}
    if as_json:
        print_json({"path": str(target.resolve()), "files": done})
        return
    where = f"cd {target} && " if str(target) != "." else ""
    click.echo(f"try it:  {where}pop run {_example(known[template])}")


def _example(places: Iterable[str]) -> str:
    """The first seed among a template's examples: a file, or a folder with a seed.json."""
    seeds = sorted(place for place in places if place.startswith("examples/") and place.endswith(".json"))
    return (seeds or ["SEED"])[0].removesuffix("/seed.json")


def _place(source: Path, target: Path) -> str:
    if target.exists():
        click.echo(f"kept     {target}", err=True)
        return "kept"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    click.echo(f"created  {target}", err=True)
    return "created"
