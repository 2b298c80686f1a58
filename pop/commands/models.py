"""``pop models``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import EXIT_CONFIG, EXIT_OK, EXIT_RUN_FAILED, PopError, UsageError, did_you_mean, safe
from pop.settings import Root, Settings

if TYPE_CHECKING:
    pass

TEST_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean", "description": "true"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TEST_PROMPT = 'This is test %s of the connection.\n\nok: true\n\nAnswer with {"ok": true}.'
TEST_TOKENS = 300  # room for a little reasoning
FORMS = {"strict": "yes, strict", "schema": "yes", "object+schema": "yes, with json_object", "object": "JSON only"}
ASKED = {"strict": "strictly", "schema": "by json_schema", "object+schema": "by json_object", "object": "as JSON"}
ENDINGS = {
    "stop": "and not obeyed",
    "length": f"and cut off at {TEST_TOKENS} tokens",
    "refusal": "and refused",
    "content_filter": "and kept back by a content filter",
}


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
        yield from _tested(row["test"], row["provider"])


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


def _tested(result: dict[str, Any], provider: str) -> Iterator[str]:
    if result["error"]:
        yield f"test: {result['error']['error_class']}: {result['error']['message']}"
        if result["error"]["hint"]:
            yield f"hint: {result['error']['hint']}"
        return
    schema = FORMS.get(result["form"], "in words")
    if not result["obeyed"]:
        schema = f"asked for {ASKED.get(result['form'], 'in words')}, {ENDINGS[result['finish_reason']]}"
    if provider == "builtin" and not result["obeyed"]:
        schema = "filled with what the text says; the yes or no of this test would be a judgement, which it refuses"
    cost = "" if not result["cost_usd"] else f", {result['cost_usd']:.6f} USD"
    yield f"test: {result['ms']:.0f} ms, schema: {schema}{cost}"


# -- asking ----------------------------------------------------------------------------------------------------


def _test(root: Root, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One tiny question to each model, all at once; by name. The same model under two names is asked once."""
    from pop.askmodel import gateway_of
    from pop.models.client import GatewayClient
    from pop.models.request import Message, ModelError, ModelRequest, Origin

    first: dict[str, str] = {}
    for row in rows:
        if row["identity"] is not None:
            first.setdefault(row["identity"], row["name"])
    requests = [
        ModelRequest(
            model=name,
            messages=[Message(role="user", content=TEST_PROMPT % secrets.token_hex(4))],
            schema=TEST_SCHEMA,
            schema_name="test",
            max_output_tokens=TEST_TOKENS,
            reuse_s=0.0,  # never the answer to an earlier test
        )
        for name in first.values()
    ]
    origin = Origin(run_id="pop-models-test", instance=secrets.token_hex(6), generation=1, attempt=1, step="test")
    click.echo(f"asking {len(requests)} model{'s' * (len(requests) != 1)}", err=True)
    with gateway_of(root, "pop models --test") as address:
        answers = GatewayClient(address, origin).ask_many(requests)
    found: dict[str, dict[str, Any]] = {}
    for identity, answer in zip(first, answers, strict=True):
        if isinstance(answer, ModelError):
            error: dict[str, Any] | None = {
                "error_class": answer.error_class,
                "message": answer.message,
                "hint": answer.hint,
            }
            result: dict[str, Any] = dict.fromkeys(("ms", "form", "obeyed", "finish_reason", "cost_usd"))
            result["error"] = error
        else:
            whole = answer.finish_reason == "stop"
            result = {"ms": answer.ms, "form": answer.form, "obeyed": _obeys(answer.text) if whole else None}
            result["finish_reason"] = answer.finish_reason
            result |= {"cost_usd": answer.cost_usd, "error": None}
        found.update({row["name"]: result for row in rows if row["identity"] == identity})
    return found


def _obeys(text: str) -> bool:
    from pop.parsing import Unparsable, parse_json, schema_problems

    try:
        return not schema_problems(parse_json(text, TEST_SCHEMA).value, TEST_SCHEMA)
    except Unparsable:
        return False
