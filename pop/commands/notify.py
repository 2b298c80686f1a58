"""``pop notify``."""

from __future__ import annotations

import time

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import EXIT_OK, EXIT_RUN_FAILED, UsageError, did_you_mean, safe
from pop.hooks import hook_line, hook_row
from pop.settings import NotifySettings


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--test", is_flag=True, help="Tell each of them something now, once.")
@as_json
@with_root
def command(names: tuple[str, ...], test: bool, as_json: bool, root: str | None) -> int:
    """List who is told about runs ([notify.NAME] in pop.toml), what waits to be told, and how the last try went."""
    from pop.settings import load_settings

    chosen = chosen_root(root)
    hooks = load_settings(chosen).notify
    for name in names:
        if name not in hooks:
            hint = did_you_mean(name, hooks) or f"write a [notify.{name}] into pop.toml"
            raise UsageError(f"no [notify.{safe(name, 80)}]", hint=hint, code="unknown-hook")
    asked = {name: hooks[name] for name in names or hooks}
    rows = [{**hook_row(chosen, name, hook), **(_tried(name, hook) if test else {})} for name, hook in asked.items()]
    if as_json:
        print_json({"hooks": rows})
    elif not rows:
        click.echo("nobody is told: write a [notify.NAME] into pop.toml (docs/notifications.md)", err=True)
    for row in [] if as_json else rows:
        click.echo(hook_line(row))
    return EXIT_RUN_FAILED if any(row.get("test", "ok") != "ok" for row in rows) else EXIT_OK


def _tried(name: str, hook: NotifySettings) -> dict[str, str]:
    from pop.events import rfc3339
    from pop.notices import Notice
    from pop.notifier import NotTold, tell

    now = time.time()
    notice = Notice(
        id=f"test:{int(now * 1000)}", kinds=hook.on, at=rfc3339(now), text="This is a test by pop notify --test",
        run_id="test", name="test", pipeline="default", path="",
    )  # fmt: skip
    try:
        tell(name, hook, notice)
    except NotTold as error:
        return {"test": str(error)}
    return {"test": "ok"}
