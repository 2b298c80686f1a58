"""``pop web``."""

from __future__ import annotations

import sys
from contextlib import suppress

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

    from pop.queue import ignore_lease_breaks
    from pop.settings import load_settings
    from pop.startup import prepare_root
    from pop.webkeeper import address_of, listen

    chosen = chosen_root(root)
    settings = load_settings(chosen)
    host, port = host or settings.web.host, settings.web.port if port is None else port
    token = settings.web.token or not is_loopback(host)
    if url:
        click.echo(link(chosen, _address_of_running(chosen, host, port), token))
        return
    os.umask(0o077)
    prepare_root(chosen)
    try:
        listening = listen(host, port)
    except OSError as error:
        hint = "another --port; or if that is `pop up` of this folder, `pop web --url` prints a link to it"
        message = f"cannot listen: {(error.strerror or str(error)).lower()}"
        raise RootError(message, where=f"{host}:{port}", hint=hint, code="not-listening") from None
    if not is_loopback(host):
        say(f"warning: other machines can reach {host}, and nothing that is sent is encrypted")
    greet(chosen, address_of(listening), token)
    ignore_lease_breaks()
    from pop.web.server import serve

    serve(chosen, settings, listening, host=host, token=token)


def _address_of_running(root: Root, host: str, port: int) -> str:
    """Where the daemon says that its dashboard is, else where [web] and the options say, if that is this folder's.

    Raises:
        RootError: Nobody serves there, or somebody serves something else, who shall not be sent our token.
    """
    from pop.webkeeper import address_told

    if told := address_told(root):
        return told
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"
    trouble = _not_ours(root, shown, port)
    if trouble:
        hint = "`pop up` or `pop web` serves it; --port says where, if it is another one"
        raise RootError(trouble, where=address, hint=hint, code="not-served")
    return address


def _not_ours(root: Root, host: str, port: int) -> str | None:
    """Why what listens there is not the dashboard of this folder; None if it is."""
    from http.client import HTTPConnection, HTTPException

    from pop.web.app import ROOT_HEADER, cookie_name

    connection = HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/favicon.ico", headers={"Host": f"localhost:{port}"})
        found = connection.getresponse().getheader(ROOT_HEADER)
    except OSError as error:
        return f"no dashboard runs there: {(error.strerror or str(error)).lower()}"
    except HTTPException:
        found = None
    finally:
        connection.close()
    return None if found == cookie_name(root) else "what runs there is not the dashboard of this folder"


def greet(root: Root, address: str, token: bool) -> None:
    """Where to look; the token on a terminal only, never into a file that somebody keeps."""
    if not token or sys.stderr.isatty():
        say(f"dashboard: {link(root, address, token)}")
    else:
        say(f"dashboard: {address}  (pop web --url prints a link that opens it)")


def link(root: Root, address: str, token: bool) -> str:
    """A new link; with a token where one is asked for."""
    from pop.web.keys import Keys

    return f"{address}?token={Keys(root.machine_room).mint()}" if token else address


def say(text: str) -> None:
    with suppress(OSError, ValueError):
        click.echo(text, err=True)
