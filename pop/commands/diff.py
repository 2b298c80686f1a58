"""``pop diff``: two runs side by side."""

from __future__ import annotations

from typing import Any

import click

from pop.commands._shared import as_json, chosen_root, print_json, with_root
from pop.compare import Pair, Side, compare, unified
from pop.display import dollars
from pop.errors import UsageError, did_you_mean, safe
from pop.records import Usage
from pop.runs import Run, find_run
from pop.stale import place_of

COLOURS = {"+": "green", "-": "red", "@": "cyan"}
HEADINGS = ("step", "output", "prompt", "state", "calls", "tokens", "USD", "seconds", "models")


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--step", metavar="STEP", help="Only this step, or one instance of it.")
@click.option("--full", is_flag=True, help="Every line that differs.")
@as_json
@with_root
def command(a: str, b: str, step: str | None, full: bool, as_json: bool, root: str | None) -> None:
    """Compare the runs A and B step by step: outputs, prompts, models, calls, tokens, cost and time."""
    here = chosen_root(root)
    runs = find_run(here, a), find_run(here, b)
    pairs = compare(*runs, step)
    if step and not pairs:
        known = {place_of(pair.name)[0] for pair in compare(*runs)}
        raise UsageError(f"neither run has a step {step!r}", hint=did_you_mean(step, known), code="unknown-step")
    if as_json:
        print_json(_as_json(runs, pairs, full))
        return
    _show(runs, pairs, full)


def _as_json(runs: tuple[Run, Run], pairs: list[Pair], full: bool) -> dict[str, Any]:
    steps = [
        {
            "step": pair.name,
            "output": pair.output,
            "prompt": pair.prompt,
            "a": pair.a.to_json() if pair.a else None,
            "b": pair.b.to_json() if pair.b else None,
            "output_diff": _lines(pair, "output", full),
            "prompt_diff": _lines(pair, "prompt", full),
        }
        for pair in pairs
    ]
    totals = {name: _total([side for side in sides if side]).to_json() for name, sides in _sides(pairs).items()}
    return {"a": runs[0].run_id, "b": runs[1].run_id, "steps": steps, "totals": totals}


def _sides(pairs: list[Pair]) -> dict[str, list[Side | None]]:
    return {"a": [pair.a for pair in pairs], "b": [pair.b for pair in pairs]}


def _total(sides: list[Side]) -> Side:
    usage = Usage()
    for side in sides:
        usage = usage.plus(side.usage)
    models = tuple(dict.fromkeys(model for side in sides for model in side.models))
    return Side("", usage, round(sum(side.seconds or 0.0 for side in sides), 3), models)


def _lines(pair: Pair, what: str, full: bool) -> list[str]:
    if getattr(pair, what) != "different":
        return []
    texts = (getattr(pair.a, what), getattr(pair.b, what))
    return unified(*texts, (f"a/{pair.name}/{what}", f"b/{pair.name}/{what}"), full=full)


def _show(runs: tuple[Run, Run], pairs: list[Pair], full: bool) -> None:
    for letter, run in zip("ab", runs, strict=True):
        status = run.status()
        click.echo(f"{letter}: {run.run_id}   {safe(status.get('pipeline') or '?')}   {status.get('state')}")
    totals = {name: _total([side for side in sides if side]) for name, sides in _sides(pairs).items()}
    rows = [_row(pair.name, pair.output, pair.prompt, pair.a, pair.b) for pair in pairs]
    rows.append(_row("total", "", "", totals["a"], totals["b"]))
    widths = [max(len(line[column]) for line in [HEADINGS, *rows]) for column in range(len(HEADINGS))]
    for cells in [HEADINGS, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    for pair in pairs:
        for what in ("output", "prompt"):
            for line in _lines(pair, what, full):
                click.secho(safe(line, 2000), fg=COLOURS.get(line[:1]))


def _row(name: str, output: str, prompt: str, a: Side | None, b: Side | None) -> tuple[str, ...]:
    cells = [_cells(side) for side in (a, b)]
    return (name, output, prompt, *(one if one == two else f"{one} | {two}" for one, two in zip(*cells, strict=True)))


def _cells(side: Side | None) -> tuple[str, ...]:
    if side is None:
        return ("-",) * 6
    usage = side.usage
    calls = f"{usage.calls}" + (f"+{usage.cached_calls}" if usage.cached_calls else "")
    usd = dollars(usage.cost_usd) + ("+?" if usage.unpriced_calls else "")
    seconds = "" if side.seconds is None else f"{side.seconds:.2f}"
    tokens = f"{usage.input_tokens + usage.output_tokens:,}"
    return (side.state, calls, tokens, usd, seconds, ", ".join(safe(model, 60) for model in side.models))
