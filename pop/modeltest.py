"""Asks models one tiny question each, and tells how that went: `pop models --test`, and the dashboard."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from pop.askmodel import gateway_of
from pop.models.client import GatewayClient
from pop.models.request import Message, ModelError, ModelRequest, Origin
from pop.parsing import Unparsable, parse_json, schema_problems
from pop.settings import Root

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


def distinct(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Of rows of `described.model_row` those that have a model of their own: its identity, and the first name it has."""
    first: dict[str, str] = {}
    for row in rows:
        if row["identity"] is not None:
            first.setdefault(row["identity"], row["name"])
    return first


def ask_each(root: Root, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One tiny question to each model, all at once; by name. The same model under two names is asked once."""
    first = distinct(rows)
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
    try:
        return not schema_problems(parse_json(text, TEST_SCHEMA).value, TEST_SCHEMA)
    except Unparsable:
        return False


def in_lines(result: dict[str, Any], provider: str) -> Iterator[str]:
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
