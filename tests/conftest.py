"""Fixtures shared by the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fake_openai import FakeOpenAI
from tests.living import LivingRoot, living_root


@pytest.fixture
def make_living(tmp_path: Path) -> Iterator[Callable[..., LivingRoot]]:
    """Makes roots with real daemons, which end with the test."""
    with ExitStack() as stack:

        def make(name: str = "root", **about: Any) -> LivingRoot:
            return stack.enter_context(living_root(tmp_path / name, **about))

        yield make


@pytest.fixture
def fake_openai() -> Iterator[FakeOpenAI]:
    """A provider of our own that counts what it served."""
    fake = FakeOpenAI()
    yield fake
    fake.close()
