"""The gateway through a real daemon, the real SDK and a real HTTP server."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from tests.fake_openai import FakeOpenAI, Fault
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]
KEY = "sk-fake-0123456789abcdef"


def settings_for(fake: FakeOpenAI, more: str = "") -> str:
    return f"""
[models]
default = "fake"
[models.fake]
provider = "openai"
model = "fake-1"
base_url = "{fake.base_url}"
api_key_env = "FAKE_KEY"
tries = 3
timeout_s = 5
price = {{ input = 1.0, output = 2.0 }}
{more}
"""


def up(
    make: Make, fake: FakeOpenAI, tasks: dict[str, str], steps: list[Any] | None = None, more: str = ""
) -> LivingRoot:
    pipeline = {"name": "p", "tasks": steps or ["ask"]}
    living = make(pipeline=pipeline, tasks=tasks, settings=settings_for(fake, more))
    living.up(env={"FAKE_KEY": KEY})
    return living


def test_a_prompt_is_rendered_asked_and_accounted_for(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The answer is the output; calls, tokens and cost in the ledger equal what the provider served."""
    living = up(make_living, fake_openai, {"ask.md": "---\nsystem: Be terse.\n---\nAbout {{ seed.topic }}?"})
    living.drop("a.json", {"topic": "files"})
    (row,) = living.wait_complete(1)
    assert living.output(row, "ask") == fake_openai.served[0].text
    assert [m["content"] for m in fake_openai.bodies[0]["messages"]] == ["Be terse.", "About files?"]
    usage = row["usage"]
    assert (usage["calls"], usage["input_tokens"], usage["output_tokens"]) == (1, 4, 4)
    assert usage["cost_usd"] == pytest.approx((4 * 1.0 + 4 * 2.0) / 1e6)
    assert row["models"] == ["fake"]
    assert fake_openai.keys_seen == {KEY}


def test_a_schema_is_asked_for_and_obeyed(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """NAME.schema.json goes with the request, and its value is the output."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tasks = {"ask.md": "How many?", "ask.schema.json": json.dumps(schema)}
    living = up(make_living, fake_openai, tasks)
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert living.output(row, "ask") == {"n": 1}
    wanted = fake_openai.bodies[0]["response_format"]["json_schema"]
    assert wanted["strict"] is True and wanted["schema"] == {**schema, "additionalProperties": False}


def test_a_bad_structure_is_asked_again_with_the_validators_words(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The talk goes on with the JSON pointers of what was wrong; prose around the JSON is no problem."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    fake_openai.answers = ['{"n": "many"}', 'Here you are:\n```json\n{"n": 7}\n```\nGood luck!']
    living = up(make_living, fake_openai, {"ask.md": "How many?", "ask.schema.json": json.dumps(schema)})
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert living.output(row, "ask") == {"n": 7}
    assert row["refinements"] == 1
    assert "/n:" in fake_openai.bodies[1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, body=b"oops"),
        Fault(status=429, body=b"{}", headers={"retry-after": "0"}),
        Fault(close=True),
        Fault(body=b"<html>hello</html>", headers={"content-type": "text/html"}),
        Fault(body=b"null"),
        Fault(body=b"[1]"),
        Fault(body=b'{"choices": []}'),
        Fault(body=b"[" * 50_000),
        Fault(body=b'{"choices": [{"n": ' + b"9" * 5000 + b"}]}"),
        Fault(body=b"\xff\xfe"),
    ],
    ids=["500", "429", "cut", "html", "null", "list", "no choices", "deep", "huge integer", "no UTF-8"],
)
def test_a_passing_fault_is_cured_by_asking_again(make_living: Make, fake_openai: FakeOpenAI, fault: Fault) -> None:
    """Whatever comes back instead of an answer, the gateway lives and asks again."""
    fake_openai.faults = [fault]
    living = up(make_living, fake_openai, {"ask.md": "Hello?"})
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert row["attempts"] == 1


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [
        (Fault(status=401, body=b'{"error": {"message": "bad key %s"}}' % KEY.encode()), "auth"),
        (Fault(status=404, body=b'{"error": {"message": "no such model"}}'), "bad_input"),
        (
            Fault(status=429, body=b'{"error": {"message": "pay", "code": "insufficient_quota"}}'),
            "budget",
        ),
        (Fault(refusal="I will not."), "refused"),
    ],
    ids=["401", "404", "quota", "refusal"],
)
def test_a_lasting_fault_fails_the_step_with_its_class(
    make_living: Make, fake_openai: FakeOpenAI, fault: Fault, error_class: str
) -> None:
    """It is not tried again in vain, and no key stands in what was written."""
    fake_openai.faults = [fault] * 20
    living = up(make_living, fake_openai, {"ask.md": "Hello?"})
    living.drop("a.json", {})
    status = living.wait_state("failed")
    assert status["error"]["error_class"] == error_class
    assert len(fake_openai.bodies) == 1
    for path in living.path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_an_answer_that_was_cut_off_is_tried_afresh(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """`length` is looked at before parsing; the next attempt is a new generation and asks again."""
    fake_openai.faults = [Fault(finish_reason="length")]
    living = up(make_living, fake_openai, {"ask.md": "Hello?"})
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert row["attempts"] == 2 and fake_openai.total == 2


def test_a_missing_key_says_which_and_for_what(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The error names the variable and the model, before anything is sent."""
    living = make_living(
        pipeline={"name": "p", "tasks": ["ask"]}, tasks={"ask.md": "Hi?"}, settings=settings_for(fake_openai)
    )
    living.up()
    living.drop("a.json", {})
    status = living.wait_state("failed")
    assert status["error"]["error_class"] == "auth" and "FAKE_KEY" in status["error"]["message"]
    assert fake_openai.bodies == []


def test_many_calls_at_once_stay_within_the_models_limit(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """ctx.gather asks for all; the gateway lets `concurrency` of them through; two samples are two calls."""
    fake_openai.delay_s = 0.05
    code = (
        "def infer(prompt, ctx):\n    return [r.text for r in ctx.gather(['same'] * 5 + [str(n) for n in range(15)])]\n"
    )
    living = up(make_living, fake_openai, {"ask.py": code}, more="concurrency = 4")
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert len(living.output(row, "ask")) == 20 and fake_openai.total == 20
    assert fake_openai.most_at_once <= 4
    assert row["usage"]["calls"] == 20


def test_the_next_model_is_asked_when_the_first_is_down(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """A fallback list goes on with what another model can cure."""
    more = """
[models.dead]
provider = "openai"
model = "x"
base_url = "http://127.0.0.1:9/v1"
api_key_env = "FAKE_KEY"
tries = 1
[models.both]
first = ["dead", "fake"]
"""
    living = up(make_living, fake_openai, {"ask.md": "Hi?"}, steps=[{"task": "ask", "model": "both"}], more=more)
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert row["models"] == ["fake"]


def test_a_seeds_budget_stops_the_run(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Here before its first call, which is larger; an unknown budget is refused with the seed."""
    living = up(make_living, fake_openai, {"ask.md": "Hi?", "more.md": "More?"}, steps=["ask", "more"])
    living.drop("a.json", {"data": {}, "budget": {"run_tokens": 3}})
    status = living.wait_state("failed")
    assert status["error"]["error_class"] == "budget" and "run_tokens" in status["error"]["message"]
    assert fake_openai.total == 0
    living.drop("b.json", {"data": {}, "budget": {"run_euros": 3}})
    living.wait(lambda: (living.root.rejected / "b.json.reason.json").exists(), "the refusal")


def test_workers_see_no_key(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The worker's environment is an allow-list."""
    code = "import os\ndef infer(prompt, ctx):\n    return sorted(os.environ)\n"
    living = up(make_living, fake_openai, {"ask.py": code})
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert not [name for name in living.output(row, "ask") if "KEY" in name]


def ask(living: LivingRoot, number: int = 1) -> dict[str, Any]:
    """One more seed through the root; its line of the ledger."""
    living.drop(f"{number}.json", {})
    return living.wait_complete(number)[-1]


def test_headers_of_a_model_go_with_each_request(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """`headers` of pop.toml, beside the key."""
    more = 'headers = { "X-Team" = "letters", "x-route" = "eu" }'
    ask(up(make_living, fake_openai, {"ask.md": "Hello?"}, more=more))
    sent = fake_openai.headers[0]
    assert (sent["x-team"], sent["x-route"], sent["authorization"]) == ("letters", "eu", f"Bearer {KEY}")


def test_temperature_and_length_come_from_the_nearest_place(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """A call's own, else the task's, else the model's; a temperature of 0 is one."""
    call = "def infer(prompt, ctx):\n    return ctx.model()('x', temperature=0.5, max_output_tokens=9).text\n"
    tasks = {
        "plain.md": "?",
        "front.md": "---\ntemperature: 0\nmax_output_tokens: 30\n---\n?",
        "call.md": "---\ntemperature: 0\nmax_output_tokens: 30\n---\n?",
        "call.py": call,
    }
    more = "temperature = 0.9\nmax_output_tokens = 70"
    ask(up(make_living, fake_openai, tasks, steps=["plain", "front", "call"], more=more))
    sent = [(body["temperature"], body["max_completion_tokens"]) for body in fake_openai.bodies]
    assert sent == [(0.9, 70), (0, 30), (0.5, 9)]


def test_without_settings_the_server_decides(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Neither a temperature nor a length nor a form is sent that nobody asked for."""
    ask(up(make_living, fake_openai, {"ask.md": "Hello?"}))
    assert set(fake_openai.bodies[0]) == {"model", "messages"}


def test_a_server_without_structured_answers_is_told_the_schema_in_words(
    make_living: Make, fake_openai: FakeOpenAI
) -> None:
    """`structured = false`: no response_format, the schema stands in the prompt, and the answer is held to it."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    fake_openai.answers = ['{"n": 5}']
    tasks = {"ask.md": "How many?", "ask.schema.json": json.dumps(schema)}
    living = up(make_living, fake_openai, tasks, more="structured = false")
    assert living.output(ask(living), "ask") == {"n": 5}
    body = fake_openai.bodies[0]
    assert "response_format" not in body and json.dumps(schema) in body["messages"][-1]["content"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_when_is_asked_then(make_living: Make, fake_openai: FakeOpenAI, status: int) -> None:
    """Retry-After is kept; without it the first wait is at most a second."""
    fake_openai.faults = [Fault(status=status, body=b"{}", headers={"retry-after": "1.7"})]
    ask(up(make_living, fake_openai, {"ask.md": "Hello?"}))
    first, second = fake_openai.arrivals
    assert second - first > 1.65


def test_a_wait_longer_than_the_call_may_take_ends_it(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """`timeout_s` bounds one call with all its tries, whatever Retry-After asks for."""
    fake_openai.faults = [Fault(status=429, body=b"{}", headers={"retry-after": "3600"})] * 9
    steps = [{"task": "ask", "attempts": 1}]
    living = up(make_living, fake_openai, {"ask.md": "?"}, steps=steps, more="")
    (living.path / "pop.toml").write_text(
        (living.path / "pop.toml").read_text().replace("timeout_s = 5", "timeout_s = 1")
    )
    living.drop("a.json", {})
    assert living.wait_state("failed", patience_s=15)["error"]["error_class"] == "rate_limited"
    assert len(fake_openai.bodies) == 1


def test_tries_are_counted(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The gateway asks `tries` times and not once more."""
    fake_openai.faults = [Fault(status=500, body=b"no", headers={"retry-after": "0"})] * 9
    living = up(make_living, fake_openai, {"ask.md": "?"}, steps=[{"task": "ask", "attempts": 1}])
    living.drop("a.json", {})
    assert living.wait_state("failed")["error"]["error_class"] == "unavailable"
    assert len(fake_openai.bodies) == 3


def test_an_edited_pop_toml_counts_for_the_next_call(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Without a restart; while it is broken, what was known before goes on counting."""
    living = up(make_living, fake_openai, {"ask.md": "?"})
    ask(living)
    good = living.root.settings_file.read_text()
    for number, text in enumerate([good.replace("fake-1", "fake-2"), "[models", good.replace("fake-1", "fake-3")], 2):
        living.root.settings_file.write_text(text)
        ask(living, number)
    assert [body["model"] for body in fake_openai.bodies] == ["fake-1", "fake-2", "fake-2", "fake-3"]


def test_an_answer_is_stored_before_the_step_goes_on(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The store holds it under the key that calls.jsonl names."""
    living = up(make_living, fake_openai, {"ask.md": "?"})
    row = ask(living)
    attempt = living.path / row["path"] / "tasks" / "ask" / "attempts" / "1"
    key = json.loads((attempt / "calls.jsonl").read_bytes())["key"]
    with sqlite3.connect(living.root.machine_room / "answers.db") as store:
        (text,) = store.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
    assert json.loads(text)["text"] == living.output(row, "ask")
