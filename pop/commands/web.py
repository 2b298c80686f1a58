"""``pop web``."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import click

from pop.commands._shared import chosen_root, with_root
from pop.errors import RootError
from pop.settings import Root, is_loopback


@click.command()
@click.option("--host", metavar="ADDRESS", help="Listen here instead of 127.0.0.1; a link is then always asked for.")
@click.option("--port", type=click.IntRange(0, 65535), help="Instead of [web] port; 0 is any that is free.")
@click.option("--url", is_flag=True, help="Print a new link to the dashboard that runs already, and end.")
@with_root
def command(host: str | None, port: int | None, url: bool, root: str | None) -> None:
    """Serve the dashboard until Ctrl-C, beside `pop up` or without it."""
    import os

    from pop.settings import load_settings
    from pop.startup import prepare_root
    from pop.web.keys import Keys

    chosen = chosen_root(root)
    settings = load_settings(chosen)
    web = settings.web
    host, port = host or web.host, web.port if port is None else port
    token = web.token or not is_loopback(host)
    if url:
        click.echo(link(address_of(host, port), Keys(chosen.machine_room).mint() if token else None))
        return
    os.umask(0o077)
    prepare_root(chosen)
    from pop.web.server import listen, serve

    try:
        listening = listen(host, port)
    except OSError as error:
        hint = "if that is `pop up` of this folder, `pop web --url` prints a link to it; else --port, or [web] port in pop.toml"
        raise RootError(
            f"cannot listen: {(error.strerror or str(error)).lower()}", where=f"{host}:{port}", hint=hint
        ) from None
    greet(chosen, listening.getsockname()[:2], host, token)
    serve(chosen, settings, listening, host=host, token=token)


def greet(root: Root, address: Any, host: str, token: bool) -> None:
    """Where to look; the token only on a terminal, never into a file that somebody keeps."""
    from pop.web.keys import Keys

    if not is_loopback(host):
        say(f"warning: {host} can be reached from other machines, and what is sent is not encrypted")
    plain = address_of(*address)
    if not token:
        say(f"dashboard: {plain}  (without a link: [web] token = false)")
    elif sys.stderr.isatty():
        say(f"dashboard: {link(plain, Keys(root.machine_room).mint())}")
    else:
        say(f"dashboard: {plain}  (pop web --url prints a link that opens it)")


def address_of(host: str, port: int) -> str:
    """As a browser wants it."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/"


def link(address: str, token: str | None) -> str:
    return f"{address}?token={token}" if token else address


def say(text: str) -> None:
    with suppress(OSError, ValueError):
        click.echo(text, err=True)
