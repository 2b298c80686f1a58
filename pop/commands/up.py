"""``pop up``."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TextIO, cast

import click

from pop.commands._shared import chosen_root, with_root
from pop.errors import PopError
from pop.settings import Root


def configure_logs(root: Root, quiet: bool, told: frozenset[str] = frozenset()) -> None:
    """Plain lines on a terminal or a pipe, and JSON lines in the machine room.

    Args:
        told: Events that somebody else says on this terminal.
    """
    import structlog

    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    level = structlog.make_filtering_bound_logger(30 if quiet else 20)
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ, pad_event_to=14
    )
    structlog.configure(
        processors=[_Journal(str(root.path)), _without(told), _greet(root), stamp, structlog.processors.add_log_level, structlog.processors.format_exc_info,
                    renderer],
        wrapper_class=level,
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _MayBeGone(sys.stderr))),
    )  # fmt: skip


class _MayBeGone:
    """A terminal or a pipe that may go before the daemon does: what it cannot take any more is in the machine room."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        click.echo(text, err=True)


def _without(told: frozenset[str]) -> Any:
    import structlog

    def drop(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if event.get("event") in told:
            raise structlog.DropEvent
        return event

    return drop


def _greet(root: Root) -> Any:
    """Says that POP serves when it does: the daemon's first event comes when it holds the root.

    What is broken is looked for beside the work, which need not wait for it.
    """

    def greet(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if event.get("event") == "daemon.started":
            _say(f"POP serves {root.path}: drop seeds into pipeline-pending/")
            _tell_dashboard(root, event)
            threading.Thread(target=_tell_mistakes, args=(root,), daemon=True).start()
        return event

    return greet


def _tell_dashboard(root: Root, event: MutableMapping[str, Any]) -> None:
    from pop.commands.web import greet
    from pop.settings import load_settings

    if event.get("web"):
        with suppress(OSError, PopError):
            greet(root, str(event["web"]), load_settings(root).web.token)


class _Journal:
    """Keeps every event as one JSON line in ``.pop/log/supervisor.jsonl``; it starts anew at 10 MB."""

    def __init__(self, root_path: str) -> None:
        self._path = os.path.join(root_path, ".pop", "log", "supervisor.jsonl")

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        import time

        from pop.errors import safe
        from pop.records import dump_json

        for key, value in event.items():  # what seeds and tasks say must steer no terminal
            event[key] = "; ".join(map(str, value)) if isinstance(value, list) else value
            if isinstance(event[key], str):
                event[key] = safe(event[key])
        about = {key: value if isinstance(value, (int, float)) else str(value) for key, value in event.items()}
        line = dump_json({"at": time.time(), "level": method, **about}, pretty=False)
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
@click.option("--no-web", is_flag=True, help="Without the dashboard, and its port left free.")
@click.option("--only", metavar="NAME", hidden=True, help="Serve one seed of the queue and end.")
@click.option("--only-run", metavar="RUN", hidden=True, help="Serve one run and end.")
@click.option("--parent", type=int, hidden=True, help="End at once when this process, which started it, ends.")
@click.option("--quiet", is_flag=True, help="Say only what is wrong.")
@with_root
def command(
    no_web: bool, only: str | None, only_run: str | None, parent: int | None, quiet: bool, root: str | None
) -> None:
    """Serve the queue, and the dashboard to whoever opens it, until you stop it.

    Ctrl-C once lets running attempts end, twice interrupts them. It goes on when its terminal is closed: `pop doctor` names
    its process, and `kill` ends it like Ctrl-C. The dashboard costs nothing before somebody connects.
    """
    from pop.daemon import Only, run_daemon
    from pop.executors.process import die_with_parent

    if parent is not None:
        die_with_parent(parent)
    chosen = chosen_root(root)
    what = Only(seed=only, run=only_run) if only or only_run else None
    configure_logs(chosen, quiet, told=frozenset({"run.failed"}) if what else frozenset())  # `pop run` says it
    if quiet and what is None:  # there is no greeting to tell them after
        threading.Thread(target=_tell_mistakes, args=(chosen,), daemon=True).start()
    run_daemon(chosen, only=what, command="pop run" if what else "pop up", web=not no_web)


def _tell_mistakes(root: Root) -> None:
    """What is broken now; it may be mended while the daemon runs."""
    from pop.commands.check import problems_of

    try:
        problems = list(dict.fromkeys(str(problem) for problem in problems_of(root)[0]))
    except OSError as error:
        problems = [f"os-error: cannot look for mistakes: {error}"]
    for problem in problems:
        _say(problem)
    if problems:
        _say("seeds that ask for a broken pipeline wait until it is mended")
