"""An installed package adds a provider; a broken one breaks nothing else."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pop.models.catalogue import Catalogue
from pop.models.providers import BrokenProvider, Setup, kinds, load_provider, open_provider
from pop.models.request import Message, ModelRequest, Origin
from pop.settings import Settings
from tests.test_cli import pop

PROVIDER = """
from pop.models.request import Answer

class Parrot:
    def __init__(self, setup):
        self.word = setup.environ.get("PARROT", "hello")

    async def answer(self, request, entry, origin, form):
        text = f"{self.word} {request.text}"
        return Answer(text=text, model=entry.name, provider="parrot", provider_model=entry.model, cost_usd=0.0)

class Mute:
    def __init__(self, setup):
        pass

class Moody(Parrot):
    def __init__(self, setup):
        raise RuntimeError("not today \\x1b[31m")

    async def answer(self, request, entry, origin, form):
        pass
"""
ORIGIN = Origin(run_id="r", instance="ask", generation=1, attempt=1)
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package the way pip leaves one, here and for processes started from here."""
    site = tmp_path / "site"

    def installed(points: str, name: str = "parrots", code: str = PROVIDER) -> Path:
        about = site / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (site / f"{name}.py").write_text(code)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(points)
        importlib.invalidate_caches()
        kinds.cache_clear()
        return site

    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    yield installed
    kinds.cache_clear()
    sys.modules.pop("parrots", None)


def test_a_package_adds_a_provider(install: Install, tmp_path: Path) -> None:
    """Models may name it in pop.toml and directly; it is asked like any other."""
    install("[pop.providers]\nparrot = parrots:Parrot\n")
    models = {"bird": {"provider": "parrot", "model": "grey"}, "flock": {"first": ["bird", "parrot/green"]}}
    catalogue = Catalogue(Settings.model_validate({"models": models}), {})
    found = catalogue.resolve("flock")
    assert [(entry.provider, entry.model) for entry in found] == [("parrot", "grey"), ("parrot", "green")]
    assert "parrot:blue" in catalogue
    provider = open_provider("parrot", Setup({"PARROT": "ahoy"}, tmp_path))
    request = ModelRequest(model="bird", messages=[Message(role="user", content="you")])
    assert asyncio.run(provider.answer(request, found[0], ORIGIN, None)).text == "ahoy you"


def test_a_package_cannot_take_a_name_of_ours(install: Install, tmp_path: Path) -> None:
    """`openai` stays what it is."""
    install("[pop.providers]\nopenai = parrots:Parrot\nreplay = parrots:Parrot\n")
    assert type(open_provider("openai", Setup({}, tmp_path))).__module__.startswith("pop.")
    assert kinds()["replay"].local


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("parrots:Parot", "AttributeError: module 'parrots' has no attribute 'Parot'"),
        ("parots:Parrot", "ModuleNotFoundError: No module named 'parots'"),
        ("parrots", "parrots has no method `answer`"),
        ("parrots:Mute", "parrots:Mute has no method `answer`"),
        ("parrots:Moody", "RuntimeError: not today \ufffd[31m"),
        ("quitters:X", "SystemExit: bye"),
        (":", "cannot be used: "),
    ],
)
def test_a_broken_entry_point_is_a_clear_error(install: Install, tmp_path: Path, target: str, why: str) -> None:
    """With the entry point's place; listing providers and models goes on."""
    site = install(f"[pop.providers]\nbad = {target}\nparrot = parrots:Parrot\n")
    (site / "quitters.py").write_text("raise SystemExit('bye')")
    with pytest.raises(BrokenProvider) as caught:
        open_provider("bad", Setup({}, tmp_path))
    assert why in caught.value.message and caught.value.message.startswith("the provider 'bad' cannot be used: ")
    assert caught.value.where == f"entry point pop.providers: bad = {target}" and caught.value.hint
    assert load_provider("parrot").__name__ == "Parrot"


def test_a_damaged_package_hides_no_other(install: Install) -> None:
    """Its entry points cannot be read at all."""
    site = install("[pop.providers]\nparrot = parrots:Parrot\n")
    damaged = site / "damaged-1.0.dist-info"
    damaged.mkdir()
    (damaged / "METADATA").write_bytes(b"\xff")
    (damaged / "entry_points.txt").write_bytes(b"\xff\xfe[pop.providers]\nnot a line")
    kinds.cache_clear()
    assert {"parrot", "openai", "builtin"} <= set(kinds())


def test_commands_go_on_beside_a_broken_package(install: Install, tmp_path: Path) -> None:
    """check and ls say nothing of what no model uses; a run that uses the good one works, through the whole engine."""
    install("[pop.providers]\nparrot = parrots:Parrot\nbad = parots:Parrot\n")
    root = tmp_path / "root"
    assert pop("init", root).returncode == 0
    (root / "pop.toml").write_text('[models.default]\nprovider = "parrot"\nmodel = "grey"\n')
    for command in (["check"], ["ls"], ["doctor"]):
        assert pop(*command, root=root).returncode == 0
    ran = pop("run", "-q", root / "examples" / "hello.json", root=root)
    assert ran.returncode == 0, ran.stderr
    (answer,) = root.glob("pipeline-complete/*/tasks/summarise/attempts/1/*-infer.md")
    assert answer.read_text().startswith("hello ")
    (root / "pop.toml").write_text('[models.default]\nprovider = "bad"\nmodel = "grey"\n')
    ran = pop("run", "-q", root / "examples" / "hello.json", root=root)
    assert ran.returncode in (3, 4) and "No module named 'parots'" in ran.stderr + ran.stdout + "".join(
        path.read_text() for path in root.glob("pipeline-current/*/tasks/*/error.json")
    )
