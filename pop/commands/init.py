"""``pop init``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from pop.errors import UsageError, did_you_mean

PLACES = ("pipeline-tasks", "pipeline-pending", "pipeline-current", "pipeline-complete")


def templates() -> list[str]:
    """The names of the packaged templates."""
    folder = files("pop") / "starters"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("_"))


@click.command()
@click.argument("folder", default=".", metavar="[DIR]")
@click.option("--template", default="minimal", show_default=True, help="What to begin with.")
@click.option("--list", "show_list", is_flag=True, help="List the templates.")
def command(folder: str, template: str, show_list: bool) -> None:
    """Make DIR a folder that POP can work in. Files that are there stay as they are."""
    if show_list:
        click.echo("\n".join(templates()))
        return
    if template not in templates():
        raise UsageError(f"no template {template!r}", hint=did_you_mean(template, templates()))
    target = Path(folder)
    source = Path(str(files("pop") / "starters" / template))
    for place in PLACES:
        (target / place).mkdir(parents=True, exist_ok=True)
    for path in sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        _place(path, target / path.relative_to(source))
    where = f"cd {folder} && " if folder != "." else ""
    click.echo(f"try it:  {where}pop run examples/hello.json" if template == "minimal" else f"next:  {where}pop check")


def _place(source: Path, target: Path) -> None:
    if target.exists():
        click.echo(f"kept     {target}", err=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    click.echo(f"created  {target}", err=True)
