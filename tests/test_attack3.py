"""Attacks on the models gateway: midnight, warnings, kills under a budget, lost stores, slow servers, strange networks."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pop.models.providers import openai_wire
from pop.models.providers.openai_errors import rate_news
from pop.models.request import ModelError, RateNews
from pop.pipeline_schema import pipeline_schema
from tests.fake_openai import FakeOpenAI, Fault
from tests.living import LivingRoot
from tests.test_cli import pop
from tests.test_openai import CHAT, ask, error_of
from tests.test_review3 import Desk, fails

Make = Callable[..., LivingRoot]


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
