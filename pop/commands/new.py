"""``pop new``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError, safe

if TYPE_CHECKING:
    from pop.recipes.wizard.flow import Made
    from pop.recipes.wizard.goals import Goal, GoalMap
    from pop.recipes.wizard.terminal import Terminal


@click.command()
@click.option("--name", help="The project's name; its folder is output/NAME.")
@click.option("--goal", help="A goal by name, alias or number.")
@click.option("--persona", metavar="NAME", help="A persona of the library, instead of the recommended one.")
@click.option("--title", help="The persona's title.")
@click.option("--additions", metavar="TEXT", help="Wishes in your own words.")
@click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="Answers from a YAML file; options go before it."
)
@click.option("--model", "-m", metavar="NAME", help="The model that writes what is missing.")
@click.option("--synthesize", is_flag=True, help="Let a model weave the parts into one voice; the plain text stays.")
@click.option("--as-task", metavar="NAME", help="Install it as a task too, with a pipeline that runs it.")
@click.option(
    "--request",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="With --as-task: the first request, from a text file.",
)
@click.option("--yes", "-y", is_flag=True, help="Take what is recommended, and make an existing project anew.")
@click.option("--no-input", is_flag=True, help="Ask nothing.")
@click.option("--plain", is_flag=True, help="Numbered lines instead of menus.")
@click.option("--list", "show_list", is_flag=True, help="List the goals.")
@as_json
@with_root
def command(
    name: str | None,
    goal: str | None,
    persona: str | None,
    title: str | None,
    additions: str | None,
    config: Path | None,
    model: str | None,
    synthesize: bool,
    as_task: str | None,
    request: Path | None,
    yes: bool,
    no_input: bool,
    plain: bool,
    show_list: bool,
    as_json: bool,
    root: str | None,
) -> int:
    """Turn a goal into a persona and a prompt, asking a few questions; with --json nothing is asked."""
    from pop.recipes.wizard.answers import Answers, read_answers
    from pop.recipes.wizard.flow import Conversation, Declined
    from pop.recipes.wizard.goals import load_goal_map

    if show_list:
        _list(load_goal_map(_root_or_none(root)), as_json)
        return EXIT_OK
    chosen = chosen_root(root)
    given = Answers(name=name, goal=goal, persona=persona, title=title, additions=additions, model=model,
                    synthesize=synthesize, as_task=as_task)  # fmt: skip
    if config:
        given = given.over(read_answers(config))
    if request and not given.as_task:
        raise UsageError("--request goes with --as-task", hint="--as-task NAME")
    goal_map = load_goal_map(chosen.path)
    terminal = _terminal(yes=yes, silent=no_input or as_json, plain=plain)
    try:
        text = _text_of(request) if request else None
        made = Conversation(chosen, goal_map, terminal, given, text).run()
    except Declined:
        click.echo("nothing was written", err=True)
        return EXIT_OK
    except KeyboardInterrupt:
        click.echo("\nnothing was written", err=True)
        return EXIT_INTERRUPTED
    print_json(_summary(made, chosen.path)) if as_json else _tell(made, chosen.path, bool(request))
    return EXIT_OK


def _terminal(*, yes: bool, silent: bool, plain: bool) -> Terminal:
    from pop.recipes.wizard.terminal import Agreeing, Menus, Plain, Silent, is_terminal

    if silent:
        return Silent(lambda text: click.echo(text, err=True), agree=yes)
    terminal = Plain() if plain or not is_terminal() else Menus()
    return Agreeing(terminal) if yes else terminal


def _root_or_none(given: str | None) -> Path | None:
    """The packaged goals can be listed anywhere."""
    try:
        return chosen_root(given).path
    except UsageError:
        if given or (click.get_current_context().find_root().obj or {}).get("root"):
            raise
        return None


def _text_of(path: Path) -> str:
    from pop.store import read_regular

    try:
        return read_regular(path, max_bytes=1_000_000).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", where=path) from None


def _list(goal_map: GoalMap, as_json: bool) -> None:
    if as_json:
        print_json({"goals": [_goal(goal_map, goal) for goal in goal_map.goals], "path": str(goal_map.path)})
        return
    width = max(len(goal.name) for goal in goal_map.goals)
    for group, goals in goal_map.groups.items():
        click.echo(safe(group, one_line=True))
        for goal in goals:
            click.echo(safe(f"  {goal_map.number(goal):>2}. {goal.name:<{width}}  {goal.purpose}", one_line=True))


def _goal(goal_map: GoalMap, goal: Goal) -> dict[str, Any]:
    return {
        "number": goal_map.number(goal),
        "name": goal.name,
        "group": goal.group,
        "purpose": goal.purpose,
        "aliases": list(goal.aliases),
        "persona": goal.persona,
        "protocols": list(goal.protocols),
        "constraints": list(goal.constraints),
    }


def _summary(made: Made, root: Path) -> dict[str, Any]:
    return {
        "project": made.project.name,
        "path": str(made.project.folder),
        "goal": made.choice.goal.name,
        "persona": made.choice.persona,
        "title": made.choice.title,
        "files": [str(path.relative_to(root)) for path in made.files],
        "components": [{"kind": p.ref.kind, "name": p.ref.name, "source": p.origin} for p in made.parts],
        "generated": [str(path.relative_to(root)) for path in made.components],
        "todo": [{"component": str(part.ref), "why": part.why} for part in made.todo],
        "not_woven": made.woven,
        "task": made.task,
    }


def _tell(made: Made, root: Path, requested: bool) -> None:
    click.echo()
    click.echo("Written:")
    for path in [*made.files, *made.components]:
        click.echo(safe(f"  {path.relative_to(root)}", one_line=True))
    if made.todo:
        click.echo(f"Still to be written: {', '.join(str(part.ref) for part in made.todo)} (see TODO.md)")
    if made.task:
        seed = next(path for path in made.files if path.name.startswith("request"))
        name = seed.relative_to(root)
        click.echo(f"Try it: {'' if requested else f'put a request into {name}, then '}pop run {name}")
