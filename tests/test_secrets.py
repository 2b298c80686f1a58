"""API keys: what is told of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fake_openai import FakeOpenAI
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]
KEY = 'sk-proj-Zq/7+x"T\\v&4-0123456789-aBcDeFgHiJ'
HEADER = "team-secret-9876543210"


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
