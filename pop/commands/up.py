"""``pop up``."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from typing import Any

import click

from pop.commands._shared import chosen_root, with_root


def configure_logs(root_path: str, quiet: bool) -> None:
    """Plain lines on a terminal or a pipe, and JSON lines in the machine room."""
    import structlog

    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    level = structlog.make_filtering_bound_logger(30 if quiet else 20)
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ, pad_event_to=14
    )
    structlog.configure(
        processors=[_Journal(root_path), stamp, structlog.processors.add_log_level, structlog.processors.format_exc_info,
                    renderer],
        wrapper_class=level,
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )  # fmt: skip


class _Journal:
    """Keeps every event as one JSON line in ``.pop/log/supervisor.jsonl``; it starts anew at 10 MB."""

    def __init__(self, root_path: str) -> None:
        self._path = os.path.join(root_path, ".pop", "log", "supervisor.jsonl")

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        import time

        import orjson

        line = orjson.dumps({"at": time.time(), "level": method, **event}, default=str) + b"\n"
        try:
            if os.path.getsize(self._path) > 10_000_000:
                os.replace(self._path, self._path + ".1")
        except OSError:
            pass
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        except OSError:
            pass
        return event


@click.command()
@click.option("--no-web", is_flag=True, help="Without the dashboard (it comes with a later version).")
@click.option("--only", metavar="NAME", hidden=True, help="Serve one seed of the queue and end.")
@click.option("--only-run", metavar="RUN", hidden=True, help="Serve one run and end.")
@click.option("--quiet", is_flag=True, help="Say only what is wrong.")
@with_root
def command(no_web: bool, only: str | None, only_run: str | None, quiet: bool, root: str | None) -> None:
    """Serve the queue until you stop it: Ctrl-C once lets running attempts end, twice interrupts them."""
    from pop.daemon import Only, run_daemon

    chosen = chosen_root(root)
    configure_logs(str(chosen.path), quiet)
    what = Only(seed=only, run=only_run) if only or only_run else None
    if not quiet:
        click.echo(f"POP serves {chosen.path}: drop seeds into {chosen.pending.name}/", err=True)
    run_daemon(chosen, only=what, command="pop run" if what else "pop up")
