"""``pop check``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import EXIT_CONFIG, EXIT_OK, ConfigError, ConfigErrors, PopError
from pop.settings import Root


def problems_of(root: Root) -> tuple[list[PopError], int]:
    """Every mistake in the root's settings, pipelines and tasks; and how many files were looked at."""
    from pop.models.catalogue import Catalogue
    from pop.pipeline import load_pipeline
    from pop.settings import load_settings
    from pop.taskcheck import Use, check_folder, check_task
    from pop.tasks import list_tasks

    found: list[PopError] = []
    settings = None
    try:
        settings = load_settings(root)
        catalogue = Catalogue(settings, os.environ)
        for name in settings.models:
            found += _caught(catalogue.resolve, name)
    except ConfigErrors as error:
        found += error.problems
    except ConfigError as error:
        found.append(error)
    found += check_folder(root.tasks)
    tasks = list_tasks(root.tasks)
    for name in tasks:
        found += check_task(root.tasks, name)
    names = root.pipeline_names()
    if not names:
        found.append(ConfigError("no pipeline.json", where=root.path, hint="pop init"))
    for name in names:
        path = root.pipeline_path(name)
        where = os.path.relpath(path, root.path)
        try:
            pipeline = load_pipeline(path.read_bytes(), where=where, name=name, known_tasks=tasks)
        except ConfigErrors as errors:
            found += errors.problems
            continue
        for step in pipeline.tasks.values():
            use = Use(pipeline.ancestors(step.name), in_each=bool(pipeline.eaches[step.name]))
            found += check_task(root.tasks, step.task, use=use)
        if settings:
            catalogue = Catalogue(settings, os.environ)
            models = {task.model for task in pipeline.tasks.values() if task.model} | set(pipeline.models.values())
            for model in sorted(models):
                found += _caught(catalogue.resolve, model)
    return found, len(tasks) + len(names) + 1


def _caught(work: object, *arguments: object) -> list[PopError]:
    try:
        work(*arguments)  # type: ignore[operator]
    except ConfigErrors as errors:
        return list(errors.problems)
    except ConfigError as error:
        return [error]
    return []


@click.command()
@click.argument("seed", required=False, type=click.Path(path_type=Path))
@as_json
@with_root
def command(seed: Path | None, as_json: bool, root: str | None) -> int:
    """Find every mistake in pop.toml, pipelines, tasks, templates, schemas and expressions; with SEED in that too."""
    chosen = chosen_root(root)
    problems, count = problems_of(chosen)
    if seed is not None:
        problems += _check_seed(chosen, seed)
    unique = list({str(problem): problem for problem in problems}.values())
    if as_json:
        print_json({"ok": not unique, "problems": [problem.to_json() for problem in unique]})
    else:
        for problem in unique:
            click.echo(str(problem))
        click.echo(
            f"{len(unique)} problem(s)" if unique else f"all is well: {count} files and folders checked", err=True
        )
    return EXIT_CONFIG if unique else EXIT_OK


def _check_seed(root: Root, seed: Path) -> list[PopError]:
    from pop.errors import SeedRejected, did_you_mean
    from pop.queue import Incomplete, ignore_lease_breaks, peek
    from pop.settings import SeedSettings

    ignore_lease_breaks()
    try:
        found = peek(seed, SeedSettings(settle_s=0.0))
    except SeedRejected as error:
        return [error]
    except OSError as error:
        return [ConfigError(f"cannot read the seed: {error.strerror}", where=seed)]
    if isinstance(found, Incomplete):
        return [ConfigError(f"not yet a seed: {found.reason}", where=seed)]
    wanted = found.seed.pipeline
    if wanted and wanted not in root.pipeline_names():
        return [ConfigError(f"no pipeline {wanted!r}", where=seed, hint=did_you_mean(wanted, root.pipeline_names()))]
    return []
