"""``pop models``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import EXIT_CONFIG, EXIT_OK, EXIT_RUN_FAILED, PopError, UsageError, did_you_mean, safe
from pop.settings import Root, Settings


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--test", is_flag=True, help="Ask each model something tiny, and tell how it went (it may cost a little)."
)
@as_json
@with_root
def command(names: tuple[str, ...], test: bool, as_json: bool, root: str | None) -> int:
    """List the models a step may ask for: what they stand for, limits, prices, keys.

    With --test each is asked one tiny question, through the gateway of the daemon where one serves this folder.
    """
    from pop.models.catalogue import Catalogue
    from pop.models.described import model_row
    from pop.settings import load_settings

    chosen = chosen_root(root)
    settings = load_settings(chosen)
    environ, wrong_file = _keys(settings)
    catalogue = Catalogue(settings, environ)
    for name in names:
        if name not in catalogue:
            raise UsageError(f"no model {name!r}", hint=did_you_mean(name, catalogue.names), code="unknown-model")
    rows = [model_row(catalogue, name, environ, chosen, settings) for name in names or catalogue.names]
    if wrong_file:
        if test:
            raise wrong_file  # no gateway starts with it
        click.echo(str(wrong_file), err=True)
    results = _test(chosen, rows) if test else {}
    for row in rows:
        row.pop("identity")
        row["test"] = results.get(row["name"])
    if as_json:
        print_json({"models": rows})
    else:
        _show(rows)
    if test:
        failed = any(row["error"] or (row["test"] and row["test"]["error"]) for row in rows)
        return EXIT_RUN_FAILED if failed else EXIT_OK
    return EXIT_CONFIG if wrong_file or any(row["error"] for row in rows) else EXIT_OK


def _test(root: Root, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    from pop.modeltest import ask_each, distinct

    count = len(distinct(rows))
    click.echo(f"asking {count} model{'s' * (count != 1)}", err=True)
    return ask_each(root, rows)


def _keys(settings: Settings) -> tuple[Mapping[str, str], PopError | None]:
    """The environment with the values of the keys file, or without them and with what is wrong with it."""
    from pop.models.keys import Keys
    from pop.models.keysfile import find_keys_file

    try:
        return Keys(os.environ, find_keys_file(settings)).environ, None
    except PopError as error:
        return os.environ, error


def _show(rows: list[dict[str, Any]]) -> None:
    """What a name stands for on a line; below it limits, price and key, and how the test went."""
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        first, *more = _lines(row)
        for title, text in [(row["name"], first), *(("", line) for line in more)]:
            click.echo(f"{safe(title, one_line=True):<{width}}  {safe(text, 400, one_line=True)}")


def _lines(row: dict[str, Any]) -> Iterator[str]:
    error = row["error"]
    if error:
        place = f" ({error['where']})" if error["where"] else ""
        yield f"cannot be used: {error['message']}{place}"
        if error["hint"]:
            yield f"hint: {error['hint']}"
        return
    if row["meaning"]:
        yield row["meaning"]
        return
    if row["provider"] == "command":
        yield f"runs {row['at']}"
    else:
        yield f"{row['model']} at {row['at']}" if row["at"] else f"{row['model']} ({row['provider']})"
    yield ", ".join([*_limits(row), _price(row), *_key(row)])
    if shared := list(_limits(row["shared"])):
        yield f"all models of {row['shared']['name']} together: {', '.join(shared)}"
    if row["test"]:
        from pop.modeltest import in_lines

        yield from in_lines(row["test"], row["provider"])


def _key(row: dict[str, Any]) -> Iterator[str]:
    if key := row["key"]:
        yield f"{key['variable']} is {'set' if key['set'] else 'not set'}"


def _limits(table: dict[str, Any]) -> Iterator[str]:
    from pop.models.described import LIMITS

    for name, unit in zip(LIMITS, ("at once", "requests/min", "tokens/min"), strict=True):
        if table[name]:
            yield f"{table[name]:,.0f} {unit}"


def _price(row: dict[str, Any]) -> str:
    if row["provider"] == "replay" or row["provider"] == "builtin":
        return "free"
    price = row["price"]
    if price:
        return f"${price['input']:g} in, ${price['output']:g} out per 1M tokens"
    return "price: what it says itself" if row["provider"] == "command" else "price unknown"
