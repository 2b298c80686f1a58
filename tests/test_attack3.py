"""Attacks on the models gateway: midnight, warnings, kills under a budget, lost stores, slow servers, strange networks."""

from __future__ import annotations

import asyncio
import calendar
import json
import os
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pop.models import answerwriter, tries
from pop.models.answers import AnswerStore
from pop.models.calls import CallLine, nano
from pop.models.providers import openai_wire
from pop.models.providers.openai_errors import rate_news
from pop.models.request import ModelError, RateNews
from pop.pipeline_schema import pipeline_schema
from tests.fake_openai import FakeOpenAI, Fault
from tests.living import LivingRoot
from tests.test_cli import pop
from tests.test_openai import CHAT, ask, error_of, raw_server
from tests.test_review3 import Desk, fails
from tests.test_spending import GATHER, KEY, gateway_of, lines, settings_for, up
from tests.test_spending import pop as pop_cost
from tests.test_storm import Desk as GateDesk
from tests.test_storm import play, soon

Make = Callable[..., LivingRoot]
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def desk(tmp_path: Path, fake_openai: FakeOpenAI) -> Iterator[Desk]:
    found = Desk(tmp_path, fake_openai)
    yield found
    found.store.close()


# -- what servers say of their limits --------------------------------------------------------------------------

GEMINI = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaValue": "15"}]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "38.5s"},
        ],
    }
}


@pytest.mark.parametrize("body", [GEMINI, [GEMINI]], ids=["object", "list"])
def test_gemini_says_in_its_body_how_long_to_wait(fake_openai: FakeOpenAI, body: Any) -> None:
    """Its OpenAI-compatible server sends no Retry-After; a header goes before the body where both are there."""
    fault = Fault(status=429, body=json.dumps(body).encode())
    fake_openai.faults = [fault, Fault(429, fault.body, {"retry-after": "2"})]
    error = error_of(fake_openai.base_url)
    assert (error.error_class, error.retry_after_s) == ("rate_limited", 38.5)
    assert error.rate == RateNews(retry_after_s=38.5)
    assert error_of(fake_openai.base_url).retry_after_s == 2.0


@pytest.mark.parametrize(
    "details", ["38s", [None], [{"retryDelay": 38}], [{"retryDelay": "soon"}], {"retryDelay": "3s"}]
)
def test_a_wait_that_is_none_is_passed_over(fake_openai: FakeOpenAI, details: Any) -> None:
    """The router waits as after any other 429."""
    fake_openai.faults = [Fault(status=429, body=json.dumps({"error": {"message": "x", "details": details}}).encode())]
    assert error_of(fake_openai.base_url).retry_after_s is None


@pytest.mark.parametrize(
    ("text", "news"),
    [
        ("limit=100, remaining=5, reset=30", RateNews(100, 5, 30)),
        ('"default";r=50;t=30', RateNews(requests_left=50, requests_reset_s=30)),
        ('"burst";r=9;t=1, "daily";r=0;t=600', RateNews(requests_left=0, requests_reset_s=600)),
        ('"default";r=50;pk=:cHsdsRa894==:', RateNews(requests_left=50)),
        ("remaining=5;w=10", RateNews(requests_left=5)),
        ("", None),
        ("r=-1;t=x", None),
        ("remaining=" + "9" * 30, None),
        ("remaining=1," * 1000, None),
    ],
)
def test_the_one_header_of_the_drafts_is_read(text: str, news: RateNews | None) -> None:
    """`RateLimit:` in its older and its newer form; of several policies the scarcest."""
    assert rate_news({"ratelimit": text} if text else {}) == news


# -- certificates and proxies ----------------------------------------------------------------------------------


class Plain(BaseHTTPRequestHandler):
    """Answers every request, and keeps what it was asked for; as a proxy it refuses to lead anywhere by CONNECT."""

    seen: list[str]

    def do_POST(self) -> None:
        self.seen.append(self.path)
        self.rfile.read(int(self.headers["content-length"]))
        self._send(200, json.dumps(CHAT).encode())

    def do_CONNECT(self) -> None:
        self.seen.append(f"CONNECT {self.path} {self.headers.get('authorization')}")
        self._send(502, b"no way")

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def http_server(tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[str]]]:
    """A port, and what was asked there."""
    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Plain,), {"seen": seen}))
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def own_certificate(tmp_path: Path) -> Path:
    """A self-signed one for this machine, with its key beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    path = tmp_path / "own.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key.pem"), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture
def own_server(own_certificate: Path) -> Iterator[str]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(own_certificate, own_certificate.with_name("key.pem"))
    with http_server(tls) as (port, _):
        yield f"https://127.0.0.1:{port}/v1"


@pytest.fixture
def trust_anew() -> Iterator[None]:
    """What is trusted is read once per process; here around the test."""
    openai_wire._trusted.cache_clear()
    yield
    openai_wire._trusted.cache_clear()


def test_a_certificate_that_nobody_trusts_is_told_and_not_tried_again(own_server: str) -> None:
    """The next model may answer; nothing is billed."""
    error = error_of(own_server)
    assert (error.error_class, error.code, error.curable, error.tokens) == (
        "unavailable",
        "bad-certificate",
        False,
        None,
    )
    assert "self-signed" in error.message and "SSL_CERT_FILE" in (error.hint or "")


def test_the_router_asks_such_a_server_once(desk: Desk, own_server: str) -> None:
    """And then the next model."""
    desk.route(tries=4, providers={"base_url": own_server}, b={"base_url": desk.fake.base_url})
    answer = asyncio.run(desk.ask("either"))
    assert answer.model == "b" and [one.model for one in answer.tries] == ["a"]
    assert fails(desk, "a", "Again?").code == "bad-certificate"


def test_ssl_cert_file_makes_an_own_server_trusted(
    own_server: str, own_certificate: Path, monkeypatch: pytest.MonkeyPatch, trust_anew: None
) -> None:
    """As the hint says."""
    monkeypatch.setenv("SSL_CERT_FILE", str(own_certificate))
    assert ask(own_server).text == "1,233 km"


def test_https_to_a_port_that_speaks_none_says_so() -> None:
    """The commonest mistake with a server of one's own."""
    with http_server() as (port, _):
        error = error_of(f"https://127.0.0.1:{port}/v1")
    assert error.error_class == "unavailable" and error.tokens is None and "http://" in (error.hint or "")


def proxied(monkeypatch: pytest.MonkeyPatch, port: int, **more: str) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in {
        "HTTP_PROXY": f"http://127.0.0.1:{port}",
        "HTTPS_PROXY": f"http://127.0.0.1:{port}",
        **more,
    }.items():
        monkeypatch.setenv(name, value)


def test_proxies_of_the_environment_are_respected(monkeypatch: pytest.MonkeyPatch, fake_openai: FakeOpenAI) -> None:
    """And NO_PROXY."""
    with http_server() as (port, seen):
        proxied(monkeypatch, port, NO_PROXY="127.0.0.1")
        assert ask("http://models.invalid/v1").text == "1,233 km"
        assert ask(fake_openai.base_url).text.startswith("An answer to")
    assert seen == ["http://models.invalid/v1/chat/completions"] and fake_openai.total == 1


def test_a_proxy_that_leads_nowhere_bills_nothing_and_sees_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it refuses or is not there."""
    with http_server() as (port, seen):
        proxied(monkeypatch, port)
        error = error_of("https://models.invalid/v1", key_env="A_KEY")
    assert error.error_class == "unavailable" and error.tokens is None
    assert "502" in error.message and "HTTPS_PROXY" in (error.hint or "")
    assert seen == ["CONNECT models.invalid:443 None"]
    assert error_of("https://models.invalid/v1").tokens is None


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "foo://x"])
def test_a_proxy_that_cannot_be_used_is_no_bug_of_ours(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """Its password is nowhere in the words."""
    proxied(monkeypatch, 9, ALL_PROXY=proxy)
    error = error_of("https://models.invalid/v1")
    assert error.error_class == "bad_input" and "ALL_PROXY" in (error.hint or "") and not error.curable


def test_a_proxy_that_is_down_is_thought_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may be up all the same."""
    proxied(monkeypatch, 9)
    assert "HTTPS_PROXY" in (error_of("https://models.invalid/v1").hint or "")


# -- what the commands say -------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with one prompt that asks a model without a price."""
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    root = tmp_path / "small"
    (root / "pipeline-tasks").mkdir(parents=True)
    (root / "pipeline-tasks" / "ask.md").write_text("Hello {{ seed.n }}?")
    (root / "pipeline.json").write_text('{"tasks": ["ask"]}')
    (root / "pop.toml").write_text(
        '[models.free]\nprovider = "openai"\nmodel = "m"\nbase_url = "http://127.0.0.1:9/v1"\ntries = 1\n'
        '[models]\ndefault = "builtin"\n'
    )
    return root


def seeds_in(root: Path) -> list[str]:
    return [path.name for path in (root / "pipeline-pending").iterdir()]


@pytest.mark.parametrize("verb", ["submit", "run"])
@pytest.mark.parametrize("kind", ["file", "stdin", "folder", "zip"])
def test_a_seed_whose_models_cost_nobody_knows_what_is_refused(small: Path, verb: str, kind: str) -> None:
    """By the seed's own models and budget, in whatever form it comes; nothing is left in the queue."""
    text = json.dumps({"data": {"n": 1}, "models": {"default": "free"}, "budget": {"run_usd": 1}})
    (small / "s").mkdir()
    (small / "s" / "seed.json").write_text(text)
    with zipfile.ZipFile(small / "s.zip", "w") as archive:
        archive.writestr("seed.json", text)
    asked = {"file": "s/seed.json", "stdin": "-", "folder": "s", "zip": "s.zip"}[kind]
    asked = asked if asked == "-" else str(small / asked)
    shown = pop(verb, asked, root=small, input=text if kind == "stdin" else None)
    assert shown.returncode == 3 and "nobody knows what 'free' costs" in shown.stderr, shown.stderr
    assert "no-price" in shown.stderr and seeds_in(small) == []
    pop_toml = (small / "pop.toml").read_text()
    (small / "pop.toml").write_text(pop_toml.replace("tries = 1\n", "tries = 1\nprice = { input = 1, output = 2 }\n"))
    if verb == "submit":
        assert pop(verb, asked, root=small, input=text if kind == "stdin" else None).returncode == 0
        assert len(seeds_in(small)) == 1


def test_what_the_command_line_changes_is_looked_at_too(small: Path) -> None:
    """`-m` goes before the seed's own models; a key that the daemon may have is no matter for `pop submit`."""
    toml = (small / "pop.toml").read_text()
    (small / "pop.toml").write_text(
        "[budget]\nday_usd = 1\n" + toml.replace("tries = 1\n", 'tries = 1\napi_key_env = "X"\n')
    )
    text = '{"data": {"n": 1}, "models": {"default": "free"}}'
    assert pop("submit", "-", "-m", "builtin", root=small, input=text).returncode == 0
    refused = pop("submit", "-", "-m", "free", root=small, input='{"n": 1}')
    assert refused.returncode == 3 and "no-price" in refused.stderr and "no-key" not in refused.stderr
    assert "X is not set" in pop("run", "-", "-m", "free", root=small, input='{"n": 1}').stderr


def test_a_seed_on_standard_input_has_its_places(small: Path) -> None:
    """A model that is none is told before the queue gets it."""
    shown = pop("submit", "-", root=small, input='{"data": {"n": 1},\n "models": {"default": "fre"}}')
    assert shown.returncode != 0 and "where: standard input:2:24  models.default" in shown.stderr
    assert "did you mean 'free'?" in shown.stderr and seeds_in(small) == []


def test_the_embedded_engine_is_not_said_to_disobey(small: Path) -> None:
    """A yes or no would be a judgement; and a model that refuses or is cut off did not disobey."""
    shown = pop("models", "--test", "builtin", root=small)
    assert "not obeyed" not in shown.stdout and "judgement, which it refuses" in shown.stdout
    row = json.loads(pop("models", "--test", "builtin", "--json", root=small).stdout)["models"][0]
    assert (row["test"]["obeyed"], row["test"]["finish_reason"]) == (None, "refusal")


def test_a_test_that_was_cut_off_says_so(small: Path, fake_openai: FakeOpenAI) -> None:
    """Reasoning used up what the test allows."""
    toml = (small / "pop.toml").read_text()
    (small / "pop.toml").write_text(toml.replace("http://127.0.0.1:9/v1", fake_openai.base_url))
    fake_openai.faults = [Fault(finish_reason="length")]
    assert "schema: asked for strictly, and cut off at 300 tokens" in pop("models", "--test", "free", root=small).stdout


def test_a_step_s_misspelt_provider_gets_the_nearest(small: Path) -> None:
    """As everywhere else, a name with a provider in it gets a hint with one."""
    (small / "pipeline.json").write_text('{"tasks": [{"task": "ask", "model": "oepnai/gpt-5"}]}')
    shown = pop("check", root=small)
    assert "no model 'oepnai/gpt-5'" in shown.stdout + shown.stderr
    assert "did you mean 'openai/gpt-5'?" in shown.stdout + shown.stderr


def test_the_schema_of_pipelines_wants_whole_tokens_and_calls() -> None:
    """As `pop check` does."""
    amounts = pipeline_schema()["properties"]["budget"]["properties"]
    assert {name: about["type"] for name, about in amounts.items() if name.startswith("run_")} == {
        "run_usd": "number", "run_tokens": "integer", "run_calls": "integer",
    }  # fmt: skip


def test_the_doctor_tells_a_wrong_keys_file_once(small: Path, tmp_path: Path) -> None:
    """And nothing of keys that the file may hold."""
    keys = tmp_path / "keys.env"
    keys.write_text("X=sk-0123456789\n")
    keys.chmod(0o644)
    toml = (small / "pop.toml").read_text().replace("tries = 1\n", 'tries = 1\napi_key_env = "X"\n')
    (small / "pop.toml").write_text(f'[gateway]\nkeys_file = "{keys}"\n{toml}')
    shown = pop("doctor", root=small)
    assert shown.returncode == 3 and shown.stdout.count("mode 0644") == 1 and "X is not set" not in shown.stdout


def test_a_missing_key_names_the_keys_file() -> None:
    """Where `pop check` does, too."""
    assert "keys file" in (fails_without_key().hint or "")


def fails_without_key() -> ModelError:
    with pytest.raises(ModelError) as caught:
        ask("http://127.0.0.1:9/v1", key_env="NOT_THERE")
    return caught.value


# -- midnight --------------------------------------------------------------------------------------------------


class Clock:
    """The `time` module of the tries and the clock of its budgets, with a day that the test says."""

    def __init__(self, desk: GateDesk, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = calendar.timegm((2026, 11, 21, 23, 59, 59))
        self.perf_counter, self.monotonic = time.perf_counter, time.monotonic
        monkeypatch.setattr(tries, "time", self)
        desk.router._tries._budgets._clock = self.time

    def time(self) -> float:
        return float(self.now)

    def strike(self) -> None:
        """It is the next day."""
        self.now += 2


def days(desk: GateDesk) -> list[int]:
    return [desk.store.totals(("day", f"2026-11-{day}")).calls for day in (21, 22)]


def test_a_call_over_midnight_counts_on_one_day_for_budget_and_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reserved before midnight and answered after it: the new day's budget is not overshot by it."""

    async def work() -> None:
        desk = GateDesk(tmp_path, {"budget": {"day_calls": 1}})
        clock = Clock(desk, monkeypatch)
        before = desk.ask("before", "r")
        await soon(lambda: desk.calls == 1)
        clock.strike()
        after = desk.ask("after", "r")
        await soon(lambda: desk.calls == 2 or after.done())
        desk.gate.set()
        await asyncio.gather(before, after, return_exceptions=True)
        with pytest.raises(ModelError):
            await desk.ask("one more", "r")
        told = days(desk)
        desk.store.close()
        assert max(told) <= 1 and sum(told) == desk.calls

    play(work())


def test_who_waits_for_room_over_midnight_gets_the_new_day_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Yesterday's reservation stands in nobody's way, and who was refused yesterday is asked for today."""

    async def work() -> None:
        desk = GateDesk(tmp_path, {"budget": {"day_tokens": 600}})
        clock = Clock(desk, monkeypatch)
        first, second = desk.ask("one", "r"), desk.ask("two", "r")
        await soon(lambda: desk.calls == 1)
        await asyncio.sleep(0.05)
        assert desk.calls == 1 and not second.done()
        clock.strike()
        desk.gate.set()
        await asyncio.gather(first, second)
        assert sum(days(desk)) == desk.calls == 2
        desk.store.close()

    play(work())


def test_a_day_that_is_used_up_ends_at_midnight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of a pipeline; a run's budget does not."""

    async def work() -> None:
        desk = GateDesk(tmp_path, {"budget": {"day_calls": 1, "pipeline_calls": 1, "run_calls": 2}})
        desk.gate.set()
        clock = Clock(desk, monkeypatch)
        await desk.ask("one", "r")
        with pytest.raises(ModelError, match="pipeline_calls = 1"):
            await desk.ask("two", "r")
        clock.strike()
        await desk.ask("two", "r")
        clock.now += 86400
        with pytest.raises(ModelError, match="run_calls = 2"):
            await desk.ask("three", "r")
        assert days(desk) == [1, 1]
        desk.store.close()

    play(work())


def test_what_a_killed_gateway_left_over_midnight_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the day on which it was sent; the next gateway finds the ledger's line of the day on which it ended, too."""

    async def work() -> None:
        desk = GateDesk(tmp_path)
        clock = Clock(desk, monkeypatch)
        asked = [desk.ask("one", "r"), desk.ask("two", "r")]
        await soon(lambda: desk.calls == 2)
        in_flight = (tmp_path / "in-flight.jsonl").read_bytes()
        clock.strike()
        desk.gate.set()
        await asyncio.gather(*asked)
        desk.store.close()
        (tmp_path / "in-flight.jsonl").write_bytes(in_flight)  # as a kill just before it is emptied leaves it
        again = GateDesk(tmp_path)
        assert sum(days(again)) == 2
        again.store.close()

    play(work())


# -- budgets and warnings under kills --------------------------------------------------------------------------

MANY = "def infer(prompt, ctx):\n    return list(range({count}))\n"
USD = "price = { input = 1000.0, output = 2000.0 }\nmax_output_tokens = 8\nconcurrency = 6\n"


def usages(living: LivingRoot) -> dict[str, float]:
    """What status or runs.jsonl say of all runs."""
    rows = [row["usage"] for row in living.ledger()] + [living.status(path)["usage"] for path in living.current()]
    return {"calls": sum(row["calls"] for row in rows), "nano": sum(nano(row["cost_usd"]) for row in rows)}


def of_ledger(living: LivingRoot) -> dict[str, float]:
    rows = [line for line in lines(living) if line["billed"]]
    return {"calls": len(rows), "nano": sum(nano(row["cost_usd"]) for row in rows)}


def of_cost(living: LivingRoot) -> dict[str, float]:
    total = json.loads(pop_cost(living, "cost", "--json").stdout)["total"]
    return {"calls": total["calls"], "nano": nano(total["cost_usd"])}


def warned(run_dir: Path) -> list[str]:
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_bytes().splitlines()]
    return [event["text"] for event in events if event["event"] == "budget.warning"]


def more_came(fake: FakeOpenAI, count: int) -> bool:
    return len(fake.bodies) > count


def under_kills(living: LivingRoot, fake: FakeOpenAI, kills: int) -> None:
    """The gateway ends again and again while calls are under way."""
    for _ in range(kills):
        seen = len(fake.bodies)
        living.wait(partial(more_came, fake, seen + 7), "calls")
        gateway_of(living.daemons[0]).kill()
        if living.current() and living.status()["state"] != "running":
            return


@pytest.mark.timeout(180)
def test_kills_of_the_gateway_do_not_overshoot_a_budget(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Under load: the ledger stays below the budget by its own count, every sum agrees, and a larger budget ends the run."""
    fake_openai.delay_s = 0.15
    budget_usd = 2.0
    tasks = {"list.py": MANY.format(count=160), "ask.md": "Say {{ item }} of many, in some words that count as tokens."}
    steps = ["list", {"each": "inputs.list", "do": {"task": "ask", "attempts": 5}}]
    settings = settings_for(
        fake_openai, more=USD, tables="[concurrency]\nworkers = 12\n[budget.warn]\nrun_usd = 0.5\nrun_calls = 5\n"
    )
    living = make_living(pipeline={"name": "p", "tasks": steps}, tasks=tasks, settings=settings)
    living.up(env={"FAKE_KEY": KEY})
    living.drop("a.json", {"data": {}, "budget": {"run_usd": budget_usd}})
    under_kills(living, fake_openai, 4)
    error = living.wait_state("failed")["error"]
    assert error["error_class"] == "budget" and "run_usd" in error["message"]
    run_dir = living.current()[0]
    living.wait(lambda: usages(living) == of_ledger(living), f"{usages(living)} is not {of_ledger(living)}", 15)
    spent = of_ledger(living)
    assert spent == of_cost(living)
    a_call_usd = 0.06  # 8 tokens out, and the prompt
    assert budget_usd - 2 * a_call_usd < spent["nano"] / 1e9 <= budget_usd + 6 * a_call_usd
    lost = sum(line["outcome"] == "lost" for line in lines(living))
    assert lost and fake_openai.total <= spent["calls"] <= fake_openai.total + lost
    told = warned(run_dir)
    assert sorted(text.split(" = ")[0].rsplit(" ", 1)[1] for text in told) == ["run_calls", "run_usd"]

    assert pop_cost(living, "retry", "last", "--budget", "run_usd=1000").returncode == 0
    (row,) = living.wait_complete(1)
    assert usages(living) == of_ledger(living) == of_cost(living)
    answers = sum(line["outcome"] == "answer" for line in lines(living))
    assert 160 <= answers <= 160 + 4 * 6  # a line whose answer a kill kept from the store: paid for, and asked again
    assert warned(living.path / row["path"]) == told


@pytest.mark.timeout(120)
def test_no_warning_is_lost_with_a_gateway(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Many runs at once go beyond, gateways end meanwhile: each run is warned of its own budgets once, the day once."""
    fake_openai.delay_s = 0.1
    tasks = {"ask.py": GATHER.format(count=12)}
    tables = "[concurrency]\nworkers = 8\n[budget.warn]\nrun_calls = 6\nstep_tokens = 40\nday_calls = 10\n"
    living = up(
        make_living,
        fake_openai,
        tasks,
        steps=[{"task": "ask", "attempts": 6}],
        tables=tables,
        more="concurrency = 12\n",
    )
    for number in range(8):
        living.drop(f"{number}.json", {"n": number})
    under_kills(living, fake_openai, 3)
    rows = living.wait_complete(8)
    told = [warned(living.path / row["path"]) for row in rows]
    for one in told:
        assert sum("run_calls" in text for text in one) == 1 and sum("step_tokens" in text for text in one) == 1
        assert len(set(one)) == len(one)
    assert any("day_calls" in text for one in told for text in one)
    for row, one in zip(rows, told, strict=True):
        notes = json.loads((living.path / row["path"] / "tasks-status.json").read_bytes())["notes"]
        assert set(one) <= set(notes)


# -- reuse -----------------------------------------------------------------------------------------------------


def aged(desk: Desk, seconds: float) -> None:
    with sqlite3.connect(desk._root / ".pop" / "answers.db") as database:
        database.execute("UPDATE answers SET stored_at = stored_at - ?", (seconds,))


def test_an_answer_ages_from_when_it_was_paid_for(desk: Desk) -> None:
    """Being reused makes it no younger; what is asked anew in its stead is."""

    async def work() -> list[str]:
        texts = [(await desk.ask(run="a", reuse_s=3600.0)).text]
        aged(desk, 3000)
        texts.append((await desk.ask(run="b", reuse_s=3600.0)).text)
        aged(desk, 1000)
        texts.append((await desk.ask(run="c", reuse_s=3600.0)).text)
        texts.append((await desk.ask(run="b", reuse_s=3600.0)).text)
        texts.append((await desk.ask(run="d", reuse_s=3600.0)).text)
        texts.append((await desk.ask(run="e", reuse_s=1e-9)).text)
        return texts

    desk.fake.answers = ["old", "new", "newest"]
    assert asyncio.run(work()) == ["old", "old", "new", "old", "new", "newest"]


def test_who_asks_after_a_model_was_changed_joins_no_question_to_the_old_one(tmp_path: Path) -> None:
    """Nor is the old one's answer, which comes later, taken for the new one's."""

    async def work() -> None:
        desk = GateDesk(tmp_path)
        old = desk.ask("same", "a")
        await soon(lambda: desk.calls == 1)
        desk.configure(model="m-2")
        new, joins = desk.ask("same", "b"), desk.ask("same", "c")
        await soon(lambda: desk.calls == 2)
        desk.gate.set()
        await asyncio.gather(old, new, joins)
        assert (await desk.ask("same", "d")).cached and desk.calls == 2
        desk.configure(temperature=0.5)
        assert not (await desk.ask("same", "e")).cached
        desk.configure()
        assert (await desk.ask("same", "f")).cached and desk.calls == 3
        desk.store.close()

    play(work())


# -- a store in trouble ----------------------------------------------------------------------------------------


def test_a_store_that_another_program_locks_is_waited_for(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Somebody looks at answers.db with a tool that holds it for some seconds; nothing is asked twice."""
    living = up(make_living, fake_openai, {"ask.md": "Hello {{ seed.n }}?"})
    living.drop("warm.json", {"n": 0})
    living.wait_complete(1)
    database = sqlite3.connect(living.root.machine_room / "answers.db", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    living.drop("a.json", {"n": 1})
    living.wait(lambda: fake_openai.total == 2, "the call")
    time.sleep(2.0)
    assert len(living.ledger()) == 1
    database.execute("COMMIT")
    database.close()
    rows = living.wait_complete(2)
    assert fake_openai.total == 2 and [row["usage"]["calls"] for row in rows] == [1, 1]


def test_a_machine_room_that_is_deleted_under_a_daemon(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The call under way is not made twice, what comes later is served, and the ledger and the day's budget forget nothing."""
    fake_openai.delay_s = 3.0
    living = up(make_living, fake_openai, {"ask.md": "Hello {{ seed.n }}?"}, tables="[budget]\nday_calls = 3\n")
    living.drop("0.json", {"n": 0})
    living.wait(lambda: len(fake_openai.bodies) == 1, "the call")
    shutil.rmtree(living.root.machine_room)
    (row,) = living.wait_complete(1)
    assert fake_openai.total == len(lines(living)) == row["usage"]["calls"] == 1
    fake_openai.delay_s = 0.0
    for number in (1, 2):
        living.drop(f"{number}.json", {"n": number})
        living.wait_complete(number + 1)
    living.drop("3.json", {"n": 3})
    assert "day_calls = 3" in living.wait_state("failed")["error"]["message"]
    assert fake_openai.total == len(lines(living)) == 3 and living.log().count("gateway.died") == 1


def test_a_folder_in_the_place_of_the_store(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The doctor says why no model answers; once it is gone the run goes on, and nothing was used up."""
    living = make_living(pipeline={"tasks": ["ask"]}, tasks={"ask.md": "Hi?"}, settings=settings_for(fake_openai))
    (living.root.machine_room / "answers.db").mkdir(parents=True)
    living.up(env={"FAKE_KEY": KEY})
    living.drop("a.json", {"n": 0})
    living.wait(lambda: "gateway.died" in living.log(), "the gateway's end")
    assert "unable to open database file" in living.log()
    shown = pop_cost(living, "doctor")
    assert shown.returncode == 3 and "! gateway" in shown.stdout and "unable to open database file" in shown.stdout
    (living.root.machine_room / "answers.db").rmdir()
    (row,) = living.wait_complete(1)
    assert fake_openai.total == 1 and row["usage"]["calls"] == 1
    assert "! gateway" not in pop_cost(living, "doctor").stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=False).returncode
    ):
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_store_without_room_spends_nothing_more(small_disk: Path, fake_openai: FakeOpenAI) -> None:
    """What was answered when the room ended is in the ledger afterwards; nobody is asked while there is none."""
    desk = Desk(small_disk, fake_openai)
    fake_openai.answers = ["x" * 200_000 for _ in range(40)]

    async def work() -> None:
        errors = 0
        for number in range(40):
            try:
                await desk.ask(text=f"{number}?")
            except ModelError as error:
                assert error.error_class == "unavailable" and "store of answers" in error.message
                errors += 1
        sent = len(fake_openai.bodies)
        assert errors > 10 and sent < 40
        subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
        await desk.ask(text="There is room again?")
        assert len(desk.lines()) == len(fake_openai.bodies) == sent + 1 == desk.store.totals(("run", "r")).calls

    asyncio.run(work())
    desk.store.close()


def locked(desk: Desk) -> sqlite3.Connection:
    """Another program holds the store, for longer than the gateway waits."""
    desk.store._writer._db.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(desk._root / ".pop" / "answers.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other


def warnings_in(path: Path) -> list[str]:
    with sqlite3.connect(path) as database:
        return [text for (text,) in database.execute("SELECT text FROM warnings ORDER BY at")]


def test_what_was_paid_while_the_store_was_locked_counts_once(desk: Desk) -> None:
    """Who asks is told why there is no answer; its line is in the sums when the lock is gone."""

    async def work() -> None:
        await desk.ask(text="warm")
        other = locked(desk)
        with pytest.raises(ModelError, match="store of answers") as caught:
            await desk.ask(text="one")
        assert caught.value.error_class == "unavailable" and "locked" in caught.value.message
        other.execute("ROLLBACK")
        other.close()
        await desk.ask(text="two")
        assert len(desk.lines()) == len(desk.fake.bodies) == desk.store.totals(("run", "r")).calls == 3

    asyncio.run(work())


def test_nothing_more_is_spent_while_no_answer_can_be_stored(desk: Desk) -> None:
    """As it is while the ledger finds no room: the first answer that is lost stops the next calls."""

    async def work() -> int:
        await desk.ask(text="warm")
        other = locked(desk)
        for number in range(4):
            with pytest.raises(ModelError):
                await desk.ask(text=f"{number}")
        other.execute("ROLLBACK")
        other.close()
        return len(desk.fake.bodies)

    assert asyncio.run(work()) <= 2


def test_an_answer_that_was_paid_while_the_store_was_locked_is_not_paid_again(desk: Desk) -> None:
    """The next attempt, which asks the same, finds it; so does who may reuse it."""

    async def work() -> None:
        await desk.ask(text="warm")
        other = locked(desk)
        with pytest.raises(ModelError):
            await desk.ask(text="one")
        with pytest.raises(ModelError, match="store of answers"):
            await desk.ask(text="one")
        other.execute("ROLLBACK")
        other.close()
        assert (await desk.ask(text="one")).cached
        assert (await desk.ask(text="one", run="other", reuse_s=3600.0)).cached
        assert len(desk.fake.bodies) == len(desk.lines()) == 2

    asyncio.run(work())


def test_what_was_paid_while_the_store_was_locked_is_written_though_nobody_asks(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store tries again by itself, and at its end."""
    monkeypatch.setattr(answerwriter, "RETRY_S", 0.05)

    async def work() -> None:
        await desk.ask(text="warm")
        other = locked(desk)
        with pytest.raises(ModelError):
            await desk.ask(text="one")
        other.execute("ROLLBACK")
        other.close()
        await soon(lambda: not desk.store.is_behind)
        other = locked(desk)
        with pytest.raises(ModelError):
            await desk.ask(text="two")
        other.execute("ROLLBACK")
        other.close()

    asyncio.run(work())
    desk.store.close()
    with sqlite3.connect(desk._root / ".pop" / "answers.db") as database:
        assert database.execute("SELECT count(*), (SELECT sum(calls) FROM spent) FROM answers").fetchone() == (3, 3)


def test_of_answers_that_cannot_be_stored_only_so_many_are_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those under way when the store failed; what is beyond is paid for and asked again."""
    monkeypatch.setattr(answerwriter, "MAX_KEPT_BYTES", 2000)
    desk.fake.delay_s = 0.3

    async def work() -> None:
        other = locked(desk)
        await asyncio.gather(*(desk.ask(text=f"{n}") for n in range(20)), return_exceptions=True)
        kept = list(desk.store._writer._kept)
        assert 1 <= len(kept) < 20
        other.execute("ROLLBACK")
        other.close()
        await desk.store.ready()
        assert all(desk.store.get(key) for key in kept)
        assert desk.store.totals(("run", "r")).calls == 20

    asyncio.run(work())


def test_a_warning_that_could_not_be_written_is_not_lost(desk: Desk) -> None:
    """It comes with the next line that can be."""
    desk.route(budget={"warn": {"run_calls": 1}})

    async def work() -> None:
        await desk.ask(text="warm")
        other = locked(desk)
        with pytest.raises(ModelError):
            await desk.ask(text="beyond")
        other.execute("ROLLBACK")
        other.close()
        await desk.ask(text="further")

    asyncio.run(work())
    desk.store.close()
    assert len(warnings_in(desk._root / ".pop" / "answers.db")) == 1


def test_a_raised_warning_warns_again(tmp_path: Path) -> None:
    """Its words are others: it is another budget."""

    async def work() -> list[str]:
        desk = GateDesk(tmp_path, {"budget": {"warn": {"run_calls": 1}}})
        desk.gate.set()
        for number in range(6):
            if number == 3:
                desk.configure({"budget": {"warn": {"run_calls": 4}}})
            await desk.ask(f"{number}", "r")
        desk.store.close()
        return warnings_in(tmp_path / "answers.db")

    found = asyncio.run(work())
    assert [text.partition(" = ")[2][0] for text in found] == ["1", "4"]


# -- slow servers, impatient people ----------------------------------------------------------------------------


def drop_by_drop(connection: socket.socket) -> None:
    """A byte each 0.2 s: each of them comes in time, the whole never."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n")
    for byte in b"{" + b" " * 4998:
        connection.sendall(bytes([byte]))
        time.sleep(0.2)


def test_a_server_that_drips_ends_at_the_deadline_of_all_tries(desk: Desk) -> None:
    """Once `timeout_s`, whatever `tries` says; counted by estimate, and the next model is asked."""
    with raw_server(drop_by_drop) as base_url:
        price = {"input": 1.0, "output": 1.0}
        desk.route(
            tries=4, timeout_s=1.0, price=price, providers={"base_url": base_url}, b={"base_url": desk.fake.base_url}
        )
        began = time.monotonic()
        answer = asyncio.run(desk.ask("either"))
        assert time.monotonic() - began < 2.0
    assert answer.model == "b" and [one.billed for one in answer.tries] == [True]
    assert desk.store.totals(("run", "r")).calls == 2


def test_sigterm_twice_during_a_call_forgets_neither_its_answer_nor_its_cost(
    make_living: Make, fake_openai: FakeOpenAI
) -> None:
    """The daemon ends at once; what the gateway heard within its patience is the next daemon's."""
    fake_openai.delay_s = 2.0
    living = up(make_living, fake_openai, {"ask.md": "Hello?"}, more=USD)
    living.drop("a.json", {})
    living.wait(lambda: len(fake_openai.bodies) == 1, "the call")
    began = time.monotonic()
    for _ in range(2):
        living.daemons[0].send_signal(signal.SIGTERM)
        time.sleep(0.2)
    living.daemons[0].wait(20)
    assert time.monotonic() - began < 8
    living.up(env={"FAKE_KEY": KEY})
    (row,) = living.wait_complete(1)
    assert fake_openai.total == 1 and row["usage"]["calls"] == len(lines(living)) == 1
    assert usages(living) == of_ledger(living)


def test_a_replay_that_a_killed_gateway_left_open_counts_for_nothing(tmp_path: Path) -> None:
    """It would have cost nothing."""
    line = CallLine(id="x", at="2026-11-21T10:00:00Z", run_id="r", model="replay:r0", provider="replay", cost_usd=0.0)
    store = AnswerStore(tmp_path / "answers.db", calls=tmp_path / "calls", durable=False)
    store.begin(line)
    left = (tmp_path / "in-flight.jsonl").read_bytes()
    store.forget("x")
    store.close()
    (tmp_path / "in-flight.jsonl").write_bytes(left)
    again = AnswerStore(tmp_path / "answers.db", calls=tmp_path / "calls", durable=False)
    calls = again.totals(("run", "r")).calls
    again.close()
    assert calls == 0


def test_the_example_of_the_readme_holds(small: Path) -> None:
    """Every model in it has a price, so its budgets can be kept; each command of it exists."""
    section = (REPOSITORY / "README.md").read_text().partition("## Many models")[2].partition("## Read on")[0]
    rows = [line[4:] for line in section.splitlines() if line.startswith("    ") or not line]
    (small / "pop.toml").write_text("\n".join(row for row in rows if not row.startswith("pop ")))
    listed = {row["name"]: row for row in json.loads(pop("models", "--json", root=small).stdout)["models"]}
    assert listed["default"]["meaning"] == "alias of thrifty" and listed["thrifty"]["meaning"] == "first: fast, large"
    assert listed["fast"]["price"] and listed["large"]["price"]
    commands = [row.partition("#")[0].split()[1:] for row in rows if row.startswith("pop ")]
    assert [words[0] for words in commands] == ["models", "run", "run", "cost"]
    assert pop(*commands[-1], root=small).returncode == 0
