"""``pop check``."""

from __future__ import annotations

from pathlib import Path

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import EXIT_CONFIG, EXIT_OK, PopError
from pop.settings import Root


def problems_of(root: Root) -> tuple[list[PopError], int]:
    """Every mistake in the root's settings, pipelines and tasks; and how many files were looked at."""
    from pop.rootcheck import RootCheck

    look = RootCheck(root)
    return look.problems(), look.looked_at


def wizard_problems(root: Root) -> tuple[list[PopError], int]:
    """Every mistake in the root's own goal map and components, which no run reads; and how many files those are."""
    from pop.errors import ConfigErrors
    from pop.recipes.wizard.goals import FILE, load_goal_map
    from pop.recipes.wizard.library import Library

    found: list[PopError] = []
    own = root.path / FILE
    if own.exists() or own.is_symlink():
        try:
            load_goal_map(root.path)
        except ConfigErrors as error:
            found += error.problems
    library = Library(root.path)
    components = sorted((root.path / "components").glob("*/*.txt"))
    if (root.path / "components").exists():
        found += library.problems()
    return found, len(components) + own.is_file()


@click.command()
@click.argument("seed", required=False, type=click.Path(path_type=Path))
@as_json
@with_root
def command(seed: Path | None, as_json: bool, root: str | None) -> int:
    """Find every mistake in pop.toml, pipelines, tasks, templates, schemas and expressions; with SEED in that too.

    A goal map and components of this folder are looked at as well; pop components check tells more about them.
    """
    from pop.rootcheck import RootCheck

    look = RootCheck(chosen_root(root))
    of_wizard, files = wizard_problems(look.root)
    problems, count = look.problems() + of_wizard, look.looked_at + files
    if seed is not None:
        problems += look.seed_problems(seed)
    unique = list({str(problem): problem for problem in problems}.values())
    notes = look.notes()
    if as_json:
        print_json({"ok": not unique, "problems": [problem.to_json() for problem in unique], "notes": notes})
    else:
        for problem in unique:
            click.echo(str(problem))
        for note in notes:
            click.echo(f"note: {note}", err=True)
        click.echo(
            f"{len(unique)} problem(s)" if unique else f"all is well: {count} files and folders checked", err=True
        )
    return EXIT_CONFIG if unique else EXIT_OK
