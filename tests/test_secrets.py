"""No API key reaches a file: a run that fails in every possible way, and then the whole root is searched."""

from __future__ import annotations

import base64
import html
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from tests.fake_openai import FakeOpenAI, Fault
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]
KEY = 'sk-proj-Zq/7+x"T\\v&4-0123456789-aBcDeFgHiJ'
HEADER = "team-secret-9876543210"


def traces(secret: str) -> Iterator[bytes]:
    """What a file must not hold: the secret in each form, and pieces that a cut may have left."""
    forms = [
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(json.dumps(secret))[3:-3],
        html.escape(secret),
        quote(secret, safe=""),
        quote(secret, safe="").lower(),
        quote_plus(secret),
        secret.encode().hex(),
        secret.encode().hex().upper(),
    ]
    for form in forms:
        yield form.encode()
    yield secret[:12].encode()
    yield secret[-12:].encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            yield encode(b"\0" * before + secret.encode())[4:-4]


def found_in(root: Path, *secrets: str) -> list[str]:
    """Every file below the root that holds a trace, with the trace."""
    wanted = [trace for secret in secrets for trace in traces(secret)]
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != "pop.toml":  # where the header was written by hand
            data = path.read_bytes()
            found += [f"{path.relative_to(root)}: {trace!r}" for trace in wanted if trace in data]
    return found


def settings_for(fake: FakeOpenAI) -> str:
    return f"""
[models]
default = "fake"
[models.fake]
provider = "openai"
model = "fake-1"
base_url = "{fake.base_url}"
api_key_env = "FAKE"
tries = 1
timeout_s = 5
headers = {{ "X-Team" = "{HEADER}" }}
[models.refused]
provider = "openai"
model = "fake-2"
base_url = "http://me:{HEADER}@127.0.0.1:9/v1"
api_key_env = "FAKE"
tries = 1
"""


def wrong(body: str | bytes, status: int = 200, kind: str = "application/json", **more: str) -> Fault:
    data = body if isinstance(body, bytes) else body.encode()
    return Fault(status=status, body=data, headers={"content-type": kind, **more})


def completion(content: str, **more: object) -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **more})


def error(message: str, **more: object) -> str:
    return json.dumps({"error": {"message": message, "type": "x", "code": None, **more}})


B64 = base64.b64encode(f"user:{KEY}".encode()).decode()
MISDEEDS: dict[str, Fault] = {
    "401 with the key": wrong(error(f"Incorrect API key provided: {KEY}."), 401),
    "403 with the header": wrong(error(f"team {HEADER} may not, nor {quote(KEY, safe='')}"), 403),
    "404 with the key": wrong(error(f"no model for {KEY}", code=KEY, param=KEY), 404),
    "429 without quota": wrong(error(f"{KEY} has no credit", code="insufficient_quota"), 429),
    "500 as HTML": wrong(f"<h1>{html.escape(KEY)}</h1><pre>Authorization: Bearer {KEY}</pre>", 500, "text/html"),
    "503 as plain text": wrong(f"Bearer {KEY}", 503, "text/plain", **{"x-echo": quote(KEY), "retry-after": "0"}),
    "400 with base64": wrong(error(f"Basic {B64}"), 400),
    "400 cut inside the key": wrong(f'{{"error": {{"message": "your key {KEY[:25]}', 400),
    "400 at the end of a long text": wrong(error("x" * 470 + KEY), 400),
    "400 that begins inside the key": wrong(error(KEY[15:] + " is wrong"), 400),
    "400 with hex": wrong(error(KEY.encode().hex()), 400),
    "400 as JSON in JSON": wrong(error(json.dumps({"sent": {"authorization": KEY}})), 400),
    "an answer that is cut": wrong(completion(KEY)[:140]),
    "an answer that is no JSON": wrong(f"{KEY} is not JSON"),
    "an answer without choices": wrong(json.dumps({"choices": [], "echo": KEY, "object": KEY})),
    "a refusal": wrong(completion("x").replace('"content": "x"', f'"content": null, "refusal": {json.dumps(KEY)}')),
    "an odd finish": wrong(completion(KEY).replace('"stop"', json.dumps(KEY))),
    "an answer that holds it": wrong(completion(f"Your key is {KEY}, or {HEADER}, or {B64}.", model=KEY)),
    "an answer with it as JSON": wrong(completion(json.dumps({"key": KEY, KEY: [HEADER]}))),
}


def test_a_run_that_fails_in_every_way_leaves_no_key_in_any_file(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """Status, journal, errors, calls, trails, logs, the store of answers and the machine room are searched."""
    pipeline = {"name": "p", "tasks": [{"task": "ask", "attempts": 1, "model": "fake"}]}
    task = "def infer(prompt, ctx):\n    r = ctx.model(ctx.seed['model'])('Hello?')\n    print(r)\n    return r.text\n"
    living = make_living(pipeline=pipeline, tasks={"ask.py": task}, settings=settings_for(fake_openai))
    daemon = living.up(env={"FAKE": KEY})
    for number, (name, fault) in enumerate(MISDEEDS.items(), 1):
        fake_openai.faults = [fault]
        living.drop(f"{number}.json", {"name": name, "model": "fake"})
        living.wait(partial(has_ended, living, number), name)
    living.drop("last.json", {"model": "refused"})
    living.wait(partial(has_ended, living, len(MISDEEDS) + 1), "a model that cannot be reached")
    assert len(fake_openai.bodies) == len(MISDEEDS) and fake_openai.keys_seen == {KEY}
    assert living.stop(daemon) == 0
    for words in ("ls", "show last", "doctor", "logs last --trail"):
        line = [sys.executable, "-m", "pop", "--root", str(living.path), *words.split()]
        done = subprocess.run(line, capture_output=True, env={**os.environ, "FAKE": KEY})
        assert not [trace for secret in (KEY, HEADER) for trace in traces(secret) if trace in done.stdout + done.stderr]
    found = found_in(living.path, KEY, HEADER)
    assert not found, "\n".join(found)
    told = "".join(path.read_text() for path in living.path.rglob("error.json"))
    assert told.count("[redacted]") >= 10


def has_ended(living: LivingRoot, count: int) -> bool:
    return count == len(living.ledger()) + len(
        [run for run in living.current() if living.status(run)["state"] == "failed"]
    )


def test_an_answer_with_the_key_is_stored_and_handed_out_without_it(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """It stays what it was otherwise: JSON stays JSON."""
    pipeline = {"name": "p", "tasks": ["ask"]}
    fake_openai.answers = [json.dumps({"key": KEY, "n": 5})]
    tasks = {"ask.md": "Hello?", "ask.schema.json": '{"type": "object"}'}
    living = make_living(pipeline=pipeline, tasks=tasks, settings=settings_for(fake_openai))
    living.up(env={"FAKE": KEY})
    living.drop("a.json", {})
    assert living.output(living.wait_complete(1)[0], "ask") == {"key": "[redacted]", "n": 5}
    assert not found_in(living.path, KEY)


def test_keys_of_the_keys_file_are_used_and_redacted(
    make_living: Make, fake_openai: FakeOpenAI, tmp_path: Path
) -> None:
    """A changed file counts for the next call."""
    home = tmp_path / "config" / "pop"
    home.mkdir(parents=True)
    (tmp_path / "temp").mkdir()
    pipeline = {"name": "p", "tasks": ["ask"]}
    living = make_living(pipeline=pipeline, tasks={"ask.md": "?"}, settings=settings_for(fake_openai))
    keys = [KEY, "sk-second-0123456789"]
    for number, key in enumerate(keys, 1):
        (home / "keys.env").write_text(f"FAKE='{key}'\n")
        (home / "keys.env").chmod(0o600)
        if number == 1:
            living.up(env={"XDG_CONFIG_HOME": str(tmp_path / "config"), "TMPDIR": str(tmp_path / "temp")})
        fake_openai.answers = [f"Your key is {key}."]
        living.drop(f"{number}.json", {})
        assert living.output(living.wait_complete(number)[-1], "ask") == "Your key is [redacted]."
    assert fake_openai.keys_seen == set(keys)
    assert not found_in(living.path, *keys)


# -- pop doctor --------------------------------------------------------------------------------------------------------


@pytest.fixture
def doctor(make_living: Make, fake_openai: FakeOpenAI, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs ``pop doctor`` with an environment; the exit code and what it says."""
    living = make_living(pipeline={"name": "p", "tasks": ["ask"]}, tasks={"ask.md": "?"}, settings="")
    (tmp_path / "temp").mkdir()

    def run(settings: str | None = None, **env: str) -> tuple[int, str]:
        (living.path / "pop.toml").write_text(settings or settings_for(fake_openai))
        outer = {name: value for name, value in os.environ.items() if name not in ("OPENAI_API_KEY", "XDG_CONFIG_HOME")}
        outer |= {"TMPDIR": str(tmp_path / "temp"), "HOME": str(tmp_path), **env}
        line = [sys.executable, "-m", "pop", "--root", str(living.path), "doctor"]
        done = subprocess.run(line, capture_output=True, text=True, env=outer)
        assert KEY not in done.stdout + done.stderr and done.stderr == ""
        return done.returncode, done.stdout

    return run


def test_doctor_says_which_key_is_missing_for_which_model(doctor: Callable[..., tuple[int, str]]) -> None:
    """And where it came from when it is there; short ones are not taken out of texts, which it says."""
    code, said = doctor()
    assert code == 0 and "! keys      FAKE is not set; models fake, refused" in said and "export FAKE=..." in said
    assert "✓ keys      FAKE comes from the environment; models fake, refused" in doctor(FAKE=KEY)[1]
    assert "too short or too plain to be taken out of logs" in doctor(FAKE="x1")[1]
    assert "keys" not in doctor(settings="[worker]\nattempts = 1\n")[1].replace("read no keys", "")


def test_doctor_tells_of_the_keys_file(doctor: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """Its mode, its mistakes with the place and never the value, and whether tasks can read it."""
    from pop.confine import landlock_version

    path = tmp_path / ".config" / "pop" / "keys.env"
    path.parent.mkdir(parents=True)
    path.write_text(f"FAKE='{KEY}'\n")
    path.chmod(0o600)
    code, said = doctor()
    assert code == 0 and "FAKE comes from the keys file; models fake, refused" in said
    if landlock_version():
        assert f"{path}, mode 0600; tasks cannot read it (Landlock)" in said
    code, said = doctor(settings="[worker]\nconfine = false\n")
    assert f"! keys      {path}: tasks run as you and can read it" in said
    path.write_text(f"FAKE={KEY} {KEY}\n")
    code, said = doctor()
    assert code == 3 and f"not a NAME=value line ({path}:1)" in said
    path.chmod(0o644)
    code, said = doctor()
    assert code == 3 and "the keys file has mode 0644" in said and f"chmod 600 {path}" in said
    path.chmod(0o600)
    path.write_text(f"FAKE='{KEY}'\n")
    code, said = doctor(TMPDIR=str(tmp_path / ".config"))
    assert code == 3 and "the keys file lies where tasks may write" in said
