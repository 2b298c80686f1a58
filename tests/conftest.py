"""Fixtures shared by the tests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fake_openai import FakeOpenAI
from tests.living import LivingRoot, living_root

for number in (signal.SIGINT, signal.SIGHUP):  # a shell starts what it puts into the background without them, and so
    if signal.getsignal(number) == signal.SIG_IGN:  # would start the daemons and commands under test
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


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
