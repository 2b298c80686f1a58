"""``pop components``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import EXIT_CONFIG, EXIT_OK, EXIT_RUN_FAILED, ConfigErrors, PopError, UsageError, did_you_mean, safe

if TYPE_CHECKING:
    from pop.recipes.wizard.goals import GoalMap, Ref
    from pop.recipes.wizard.library import Component, Kind, Library


class Actions(click.Group):
    """Hints at the nearest action."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            hint = did_you_mean(args[0], self.commands) if args and not args[0].startswith("-") else None
            said = f"{hint[0].upper()}{hint[1:]}" if hint else ""
            raise click.UsageError(f"{error.message} {said}".strip(), ctx) from None


@click.group(cls=Actions, invoke_without_command=True)
@as_json
@with_root
@click.pass_context
def command(ctx: click.Context, as_json: bool, root: str | None) -> int:
    """List, show, check and generate the components of which `pop new` makes personas and prompts.

    A root's own components/ and goal_map.json stand before those that come with POP; without a root those are all.
    """
    if root:
        ctx.ensure_object(dict)["root"] = root
    return _list(None, as_json) if ctx.invoked_subcommand is None else EXIT_OK


@command.command("list")
@click.argument("kind", required=False)
@as_json
@with_root
def list_command(kind: str | None, as_json: bool, root: str | None) -> int:
    """List the components of KIND (personas, protocols or constraints), or all, and the goals that ask for them."""
    return _list(kind, _json_asked(as_json), root)


@command.command("show")
@click.argument("name")
@as_json
@with_root
def show_command(name: str, as_json: bool, root: str | None) -> int:
    """Print the component NAME; where two kinds have it, say which: personas/NAME."""
    library, goals = _both(root)
    found = _named(library, name)
    users = _users(goals).get(found.reference, [])
    if _json_asked(as_json):
        print_json({**_row(found, users), "text": found.text})
        return EXIT_OK
    click.echo(f"{found.reference} ({_origin(found)}), for {', '.join(users) or 'no goal by itself'}", err=True)
    click.echo(found.text)
    return EXIT_OK


@command.command("check")
@as_json
@with_root
def check_command(as_json: bool, root: str | None) -> int:
    """Find every mistake in the goal map and the components, and what `pop new` would have to generate."""
    from pop.recipes.wizard.goals import load_goal_map
    from pop.recipes.wizard.library import KINDS, Library

    folder = _root(root)
    library, problems, missing = Library(folder), list[PopError](), list[dict[str, Any]]()
    try:
        goals = load_goal_map(folder)
        missing = [_missing(library, ref, users) for ref, users in goals.users().items() if _lacks(library, ref)]
    except ConfigErrors as error:
        goals = None
        problems += error.problems
    problems += library.problems()
    count = sum(len(library.names(kind)) for kind in KINDS)
    if _json_asked(as_json):
        about = {"goal_map": str(goals.path) if goals else None, "components": count, "missing": missing}
        print_json({"ok": not problems, "problems": [problem.to_json() for problem in problems], **about})
        return EXIT_CONFIG if problems else EXIT_OK
    for problem in problems:
        click.echo(str(problem))
    for one in missing:
        near = f"; {one['hint']}" if one["hint"] else ""
        click.echo(f"missing, would be generated: {one['component']}, for {', '.join(one['goals'])}{near}")
    well = f"all is well: {count} components, {len(goals.goals)} goals in {goals.path}" if goals else ""
    click.echo(f"{len(problems)} problem(s)" if problems else well, err=True)
    return EXIT_CONFIG if problems else EXIT_OK


@command.command("generate")
@click.argument("names", metavar="[KIND/NAME]...", nargs=-1)
@click.option("--goal", help="The goal it is for; else the first one that names it.")
@click.option("--describe", metavar="TEXT", help="What it is to say, in a line.")
@click.option("--model", "-m", metavar="MODEL", help="The model that writes it.")
@as_json
@with_root
def generate_command(
    names: tuple[str, ...], goal: str | None, describe: str | None, model: str | None, as_json: bool, root: str | None
) -> int:
    """Let a model write components that are missing: those named, else all that the goal map names.

    What a model wrote is kept in components/; what it did not write is told, and exits with 4.
    """
    from pop.recipes.wizard import generate
    from pop.recipes.wizard.answers import ref_of
    from pop.recipes.wizard.goals import load_goal_map
    from pop.recipes.wizard.library import Library

    chosen = chosen_root(root)
    goals, library = load_goal_map(chosen.path), Library(chosen.path)
    users = goals.users()
    refs = list(map(ref_of, names)) or [ref for ref in users if _lacks(library, ref)]
    for ref in refs:
        if not _lacks(library, ref):
            raise UsageError(f"{ref} is there already", hint="edit it, or remove it first", code="component-is-there")
    asked = goals.find(goal) if goal else None
    if model:
        generate.check_model(chosen, model)
    wishes = []
    for ref in refs:
        used = asked or (goals.find(users[ref][0]) if ref in users else None)
        if used is None:
            raise UsageError(f"no goal names {ref}", hint="say which it is for: --goal NAME", code="unknown-goal")
        wishes.append(generate.Wish(ref, used, " ".join((describe or "").split())))
    parts = generate.Writer(chosen, library, model or "default").write(wishes)
    saved = [str(path.relative_to(chosen.path)) for path in generate.save(library, parts)]
    left = [{"component": str(part.ref), "why": part.why} for part in parts if part.origin != "generated"]
    if _json_asked(as_json):
        print_json({"generated": saved, "missing": left})
    else:
        for line in saved:
            click.echo(line)
        for part in parts:
            if part.origin != "generated":
                click.echo(f"{part.ref} was not written: {safe(part.why, one_line=True)}", err=True)
        if not parts:
            click.echo("nothing is missing", err=True)
    return EXIT_RUN_FAILED if left else EXIT_OK


def _list(asked: str | None, as_json: bool, root: str | None = None) -> int:
    from pop.recipes.wizard.library import KINDS, kind_of

    kind = kind_of(asked) if asked else None
    if asked and kind is None:
        raise UsageError(f"no kind of component {asked[:80]!r}", hint=did_you_mean(asked[:80], KINDS))
    library, goals = _both(root)
    users = _users(goals)
    rows = [
        _looked_at(library, one, name, users.get(f"{one}/{name}", []))
        for one in ([kind] if kind else KINDS)
        for name in library.names(one)
    ]
    if as_json:
        print_json({"components": rows})
    else:
        _table(rows)
    return EXIT_CONFIG if any(row["error"] for row in rows) else EXIT_OK


def _table(rows: list[dict[str, Any]]) -> None:
    """The kinds as headings, below them name, where it comes from, and the goals; what is wrong with it instead."""
    width = max((len(row["name"]) for row in rows), default=0)
    heading = None
    for row in rows:
        if row["kind"] != heading:
            click.echo(("\n" if heading else "") + row["kind"])
            heading = row["kind"]
        goals = ", ".join(row["goals"])
        said = f"cannot be used: {row['error']['message']}" if row["error"] else f"{row['source']:<7}  {goals}"
        click.echo(f"  {row['name']:<{width}}  {said}".rstrip())


def _looked_at(library: Library, kind: Kind, name: str, users: list[str]) -> dict[str, Any]:
    try:
        return {**_row(library.load(kind, name), users), "error": None}
    except PopError as error:
        return {"kind": kind, "name": name, "source": None, "path": None, "sha256": None, "words": 0, "goals": users,
                "error": error.to_json()}  # fmt: skip


def _row(component: Component, users: list[str]) -> dict[str, Any]:
    return {
        "kind": component.kind,
        "name": component.name,
        "source": component.source,
        "path": str(component.path),
        "sha256": component.sha256,
        "words": len(component.text.split()),
        "goals": users,
    }


def _named(library: Library, asked: str) -> Component:
    """The component that a person means.

    Raises:
        UsageError: There is none, or two kinds have one.
        ComponentError: It cannot be used.
    """
    from pop.recipes.wizard.library import KINDS, MissingComponent, kind_of

    of, slash, name = asked.removesuffix(".txt").rpartition("/")
    given = kind_of(of)
    if slash and given is None:
        raise UsageError(f"no kind of component {of[:80]!r}", hint=did_you_mean(of[:80], KINDS))
    having = [kind for kind in ([given] if given else KINDS) if name in library.names(kind)]
    if len(having) > 1:
        hint = "say which: " + ", ".join(f"{kind}/{name}" for kind in having)
        raise UsageError(f"{len(having)} kinds have a component {name!r}", hint=hint)
    if having:
        return library.load(having[0], name)
    if given:
        try:
            return library.load(given, name)
        except MissingComponent as error:
            raise UsageError(error.message, where=error.where, hint=error.hint, code=error.code) from None
    every = [name for kind in KINDS for name in library.names(kind)]
    shown = safe(name, 100, one_line=True)
    raise UsageError(f"no component {shown!r}", hint=did_you_mean(name[:100], every), code="missing-component")


def _missing(library: Library, ref: Ref, users: list[str]) -> dict[str, Any]:
    hint = did_you_mean(ref.name, library.names(ref.kind))
    near = hint if hint and hint.startswith("did") else None
    return {"component": str(ref), "kind": ref.kind, "name": ref.name, "goals": users, "hint": near}


def _lacks(library: Library, ref: Ref) -> bool:
    return ref.name not in library.names(ref.kind)


def _users(goals: GoalMap | None) -> dict[str, list[str]]:
    return {str(ref): users for ref, users in goals.users().items()} if goals else {}


def _both(root: str | None) -> tuple[Library, GoalMap | None]:
    """The library, and the goal map; a broken one is said, and hinders nobody from reading components."""
    from pop.recipes.wizard.goals import load_goal_map
    from pop.recipes.wizard.library import Library

    folder = _root(root)
    try:
        goals = load_goal_map(folder)
    except ConfigErrors as error:
        goals = None
        click.echo(str(error), err=True)
    return Library(folder), goals


def _origin(component: Component) -> str:
    return "comes with POP" if component.source == "package" else str(component.path)


def _json_asked(as_json: bool) -> bool:
    """Before the action's name or behind it."""
    parent = click.get_current_context().parent
    return as_json or bool(parent and parent.params.get("as_json"))


def _root(given: str | None) -> Path | None:
    """The folder of the root, or None where none was named and none is found.

    Raises:
        UsageError: The named one is not there.
    """
    import os

    named = given or (click.get_current_context().find_root().obj or {}).get("root") or os.environ.get("POP_ROOT")
    try:
        return chosen_root(given).path
    except UsageError:
        if named:
            raise
        return None
