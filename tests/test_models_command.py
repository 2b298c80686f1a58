"""`pop models` and `pop ls --models`: what people see of the models of a root, and what is wrong with them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from pop.commands.ls import _show_lanes
from tests.fake_openai import FakeOpenAI, Fault
from tests.test_cli import pop


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    root = tmp_path / "root"
    root.mkdir()
    (root / "pipeline.json").write_text('{"name": "x", "tasks": []}')
    return root


def models(root: Path, settings: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (root / "pop.toml").write_text(settings)
    return pop("models", *arguments, root=root)


def server(fake: FakeOpenAI, name: str = "fast", more: str = "") -> str:
    return f'[models.{name}]\nprovider = "openai"\nmodel = "m"\nbase_url = "{fake.base_url}"\n{more}\n'


def command(name: str, *words: str) -> str:
    return f'[models.{name}]\nprovider = "command"\ncommand = {json.dumps(words)}\ntries = 1\n'


def test_two_lines_tell_what_a_name_stands_for(root: Path, fake_openai: FakeOpenAI) -> None:
    """Whole words at any width: no table that folds addresses."""
    limits = "requests_per_minute = 500\ntokens_per_minute = 200_000\nprice = { input = 1, output = 2.5 }\n"
    keyed = '[models.large]\nprovider = "openai"\nmodel = "gpt-5"\n'
    shown = models(root, server(fake_openai, more=limits) + keyed + command("agent", "cat", "-"))
    assert shown.returncode == 0
    assert f"fast     m at {fake_openai.base_url}\n" in shown.stdout
    wanted = "         64 at once, 500 requests/min, 200,000 tokens/min, $1 in, $2.5 out per 1M tokens\n"
    assert wanted in shown.stdout
    assert "OPENAI_API_KEY is not set" in shown.stdout and "agent    runs cat -\n" in shown.stdout


def test_the_limits_of_all_models_of_a_provider_are_shown_too(root: Path) -> None:
    """They hold beside the model's own."""
    provider = '[providers.hub]\nbase_url = "http://h/v1"\nconcurrency = 8\ntokens_per_minute = 90_000\n'
    settings = provider + '[models.fast]\nprovider = "hub"\nmodel = "m"\n'
    shown = models(root, settings, "fast")
    assert "      64 at once, price unknown\n" in shown.stdout
    assert "      all models of hub http://h/v1 together: 8 at once, 90,000 tokens/min\n" in shown.stdout
    (row,) = json.loads(models(root, settings, "fast", "--json").stdout)["models"]
    assert (row["shared"]["concurrency"], row["shared"]["requests_per_minute"]) == (8, None)


def test_a_test_asks_each_time_also_where_answers_are_used_again(root: Path, fake_openai: FakeOpenAI) -> None:
    """Or it would tell how it once was."""
    for _ in range(2):
        assert models(root, server(fake_openai, more="reuse = true"), "--test", "fast").returncode == 0
    first, second = (body["messages"] for body in fake_openai.bodies)
    assert first != second


def test_what_cannot_be_used_comes_with_its_place_and_the_next_move(root: Path) -> None:
    """A program that is not there too; and `--test` does not pass over it."""
    settings = '[models]\ndefault = "fsat"\n[models.fast]\nprovider = "builtin"\n' + command("agent", "no-such-program")
    shown = models(root, settings)
    assert shown.returncode == 3
    assert "cannot be used: no model 'fsat' (pop.toml:2:1  models.default)" in shown.stdout
    assert "hint: did you mean 'fast'?" in shown.stdout
    assert "hint: correct `command`" in shown.stdout
    assert "there is no program 'no-such-program'" in shown.stdout and "models.agent.command" in shown.stdout
    assert models(root, settings, "--test", "agent").returncode == 4


def test_a_wrong_keys_file_is_told(root: Path, tmp_path: Path) -> None:
    """Not that keys are missing; and no gateway is started with it."""
    keys = tmp_path / "keys.env"
    keys.write_text("OPENAI_API_KEY=sk-0123456789\n")
    keys.chmod(stat.S_IRUSR | stat.S_IRGRP)
    settings = f'[gateway]\nkeys_file = "{keys}"\n'
    shown = models(root, settings)
    assert shown.returncode == 3 and "mode 0440" in shown.stderr and str(keys) in shown.stderr
    tested = models(root, settings, "--test")
    assert tested.returncode == 3 and "mode 0440" in tested.stderr and "asking" not in tested.stderr


def test_a_test_says_whether_the_schema_was_obeyed(root: Path, fake_openai: FakeOpenAI) -> None:
    """An answer alone does not make a model fit for a step with a schema."""
    good, bad = command("good", "echo", '{"ok": true}'), command("bad", "echo", "Certainly!")
    shown = models(root, server(fake_openai) + good + bad, "--test", "fast", "good", "bad", "--json")
    tested = {row["name"]: row["test"] for row in json.loads(shown.stdout)["models"]}
    assert {name: test["obeyed"] for name, test in tested.items()} == {"fast": True, "good": True, "bad": False}
    assert tested["fast"]["form"] == "strict" and shown.returncode == 0
    assert "in words, and not obeyed" in models(root, bad, "--test", "bad").stdout


def test_a_failed_test_gives_the_next_move_and_nothing_steers_the_terminal(root: Path, fake_openai: FakeOpenAI) -> None:
    """A server's and a program's words are shown without what is no text."""
    fake_openai.faults = [Fault(status=401, body=b'{"error": {"message": "no\\u001b[31m key"}}')]
    shown = models(root, server(fake_openai), "--test", "fast")
    assert shown.returncode == 4 and "test: auth: HTTP 401" in shown.stdout and "hint: " in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "asking 1 model\n" in shown.stderr


def test_figures_stand_beside_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    """And a replay that is over is no model that somebody asks."""
    idle = {"in_flight": 0, "waiting": 0, "window": 64, "requests_per_minute": 0, "tokens_per_minute": 0, "paused_s": 0}
    unlimited = {"concurrency": 64, "requests_per_minute": None, "tokens_per_minute": None}
    busy = {**idle, "in_flight": 2, "waiting": 7, "requests_per_minute": 4, "paused_s": 12.2}
    _show_lanes(
        {
            "lanes": {
                "model fast": {**busy, "limits": {**unlimited, "requests_per_minute": 500}},
                "model replay:20261121-031502-a-aaaa": {**idle, "limits": unlimited},
            },
            "circuits": {"openai http://h/v1": "open"},
        }
    )
    told = capsys.readouterr()
    assert told.out == (
        "            in flight  waiting  at once  requests/min  tokens/min  pauses\n"
        "model fast          2        7       64      4 of 500           0    12 s\n"
    )
    assert "its circuit is open" in told.err
