"""``pop models``."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.errors import EXIT_CONFIG, EXIT_OK, EXIT_RUN_FAILED, PopError, UsageError, did_you_mean
from pop.settings import Root, Settings

if TYPE_CHECKING:
    from pop.models.catalogue import Catalogue, ModelEntry

TEST_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean", "description": "true"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TEST_PROMPT = 'This is a test of the connection.\n\nok: true\n\nAnswer with {"ok": true}.'
TEST_TOKENS = 300  # room for a little reasoning
FORMS = {"strict": "yes, strict", "schema": "yes", "object+schema": "yes, with json_object", "object": "JSON only"}


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
    from pop.models.keys import keys_of
    from pop.settings import load_settings

    chosen = chosen_root(root)
    settings = load_settings(chosen)
    environ = keys_of(settings)
    catalogue = Catalogue(settings, environ)
    for name in names:
        if name not in catalogue:
            raise UsageError(f"no model {name!r}", hint=did_you_mean(name, catalogue.names), code="unknown-model")
    rows = [_row(catalogue, name, environ) for name in names or catalogue.names]
    results = _test(chosen, settings, rows) if test else {}
    for row in rows:
        row.pop("identity")
        row["test"] = results.get(row["name"])
    if as_json:
        print_json({"models": [row if test else {**row, "test": None} for row in rows]})
    else:
        _show(rows, test)
    if test:
        failed = any(result["error"] for result in results.values())
        return EXIT_RUN_FAILED if failed else EXIT_OK
    return EXIT_CONFIG if any(row["error"] for row in rows) else EXIT_OK


def _row(catalogue: Catalogue, name: str, environ: Any) -> dict[str, Any]:
    """All there is to say about a name; one whose entry is wrong, or leads on, has no model of its own."""
    row: dict[str, Any] = {"name": name, "meaning": catalogue.meaning(name), "error": None, "identity": None}
    try:
        route = catalogue.route(name)
    except PopError as error:
        return {**row, "error": {"message": error.message, "where": error.where, "hint": error.hint}}
    row["route"] = [[entry.name for entry in rung] for rung in route.rungs]
    if row["meaning"]:
        return row
    (entry,) = route.entries
    return {**row, "identity": entry.identity, **_about(entry, environ)}


def _about(entry: ModelEntry, environ: Any) -> dict[str, Any]:
    from pop.models.catalogue import without_password
    from pop.models.prices import price_of

    price = price_of(entry)
    key = None
    if entry.key_env:
        key = {"variable": entry.key_env, "set": bool(environ.get(entry.key_env))}
    return {
        "provider": entry.provider,
        "model": entry.model,
        "at": " ".join(entry.command) or without_password(entry.base_url or "") or None,
        "key": key,
        "concurrency": entry.concurrency,
        "requests_per_minute": entry.requests_per_minute,
        "tokens_per_minute": entry.tokens_per_minute,
        "price": price.model_dump(exclude_none=True) if price else None,
        "structured": entry.structured,
    }


def _show(rows: list[dict[str, Any]], test: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "stands for", "key", "limits", "USD per 1M in/out", *(["test"] if test else [])):
        table.add_column(title, overflow="fold")
    for row in rows:
        cells = [row["name"], _stands_for(row), _key(row), _limits(row), _price(row)]
        table.add_row(*cells, *([_tested(row["test"])] if test else []))
    Console(highlight=False, soft_wrap=not sys.stdout.isatty(), markup=False).print(table)
    for row in rows:
        if row["error"]:
            click.echo(f"{row['name']}: {row['error']['message']} ({row['error']['where']})", err=True)


def _stands_for(row: dict[str, Any]) -> str:
    if row["error"]:
        return "cannot be used"
    if row["meaning"]:
        return str(row["meaning"])
    return f"{row['model']} at {row['at']}" if row["at"] else f"{row['model']} ({row['provider']})"


def _key(row: dict[str, Any]) -> str:
    key = row.get("key")
    if key is None:
        return "-"
    return f"{key['variable']} {'set' if key['set'] else 'missing'}"


def _limits(row: dict[str, Any]) -> str:
    if "concurrency" not in row:
        return "-"
    parts = [f"{row['concurrency']} at once"]
    for name, unit in (("requests_per_minute", "requests/min"), ("tokens_per_minute", "tokens/min")):
        if row[name]:
            parts.append(f"{row[name]:,.0f} {unit}")
    return ", ".join(parts)


def _price(row: dict[str, Any]) -> str:
    if "provider" not in row:
        return "-"
    price = row["price"]
    return f"{price['input']:g} / {price['output']:g}" if price else "unknown"


def _tested(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    if result["error"]:
        return f"{result['error']['error_class']}: {result['error']['message'][:160]}"
    cost = "" if not result["cost_usd"] else f", {result['cost_usd']:.6f} USD"
    return f"{result['ms']:.0f} ms, schema: {FORMS.get(result['form'], 'in words')}{cost}"


# -- asking ----------------------------------------------------------------------------------------------------


def _test(root: Root, settings: Settings, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One tiny question to each model, all at once; by name. The same model under two names is asked once."""
    from pop.models.client import GatewayClient
    from pop.models.request import Message, ModelError, ModelRequest, Origin

    first: dict[str, str] = {}
    for row in rows:
        if row["identity"] is not None:
            first.setdefault(row["identity"], row["name"])
    requests = [
        ModelRequest(
            model=name,
            messages=[Message(role="user", content=TEST_PROMPT)],
            schema=TEST_SCHEMA,
            schema_name="test",
            max_output_tokens=TEST_TOKENS,
        )
        for name in first.values()
    ]
    origin = Origin(run_id="pop-models-test", instance=secrets.token_hex(6), generation=1, attempt=1, step="test")
    click.echo(f"asking {len(requests)} models", err=True)
    with _gateway(root) as address:
        answers = GatewayClient(address, origin).ask_many(requests)
    found: dict[str, dict[str, Any]] = {}
    for identity, answer in zip(first, answers, strict=True):
        if isinstance(answer, ModelError):
            error: dict[str, Any] | None = {
                "error_class": answer.error_class,
                "message": answer.message,
                "hint": answer.hint,
            }
            result: dict[str, Any] = {"ms": None, "form": None, "cost_usd": None, "error": error}
        else:
            result = {"ms": answer.ms, "form": answer.form, "cost_usd": answer.cost_usd, "error": None}
        found.update({row["name"]: result for row in rows if row["identity"] == identity})
    return found


@contextmanager
def _gateway(root: Root) -> Iterator[str]:
    """The socket of the daemon's gateway, or of one started for this alone, which holds the root meanwhile."""
    from pop.gatekeeper import socket_path
    from pop.store import hold_root, lock_holder

    if lock_holder(root.machine_room):
        yield str(socket_path(root))
        return
    root.machine_room.mkdir(mode=0o700, exist_ok=True)
    with hold_root(root.machine_room, "pop models --test"), tempfile.TemporaryDirectory(prefix="pop-") as folder:
        address = Path(folder) / "gateway.sock"
        command = [sys.executable, "-P", "-m", "pop.models.gateway", "--root", str(root.path), "--socket", str(address)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root.path
        ) as process:
            assert process.stdin and process.stdout
            try:
                if process.stdout.readline().strip() != b"ready":
                    raise PopError("the gateway did not start", hint="pop doctor", code="no-gateway")
                yield str(address)
            finally:
                process.stdin.close()
