"""Fixtures shared by the tests."""

from __future__ import annotations

import os
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


# Files with tests that take long by themselves, the longest first. A worker begins with one of them: none is left for the end.
LONG = (
    "test_kills", "test_flow_attack", "test_browser", "test_iterate_run", "test_agentic_workflow", "test_daemon",
    "test_iterate_plan", "test_storm", "test_flow_kills", "test_replay", "test_spending", "test_hostile",
    "test_iterate_monitor", "test_attack3", "test_wizard_generate", "test_iterate_catalogue",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every worker starts with an equal share of the collection, in order, and takes from the others' ends later.

    So each share begins with long files; the others keep their order behind them.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path.stem, []).append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for number, name in enumerate(name for name in LONG if name in files):
        shares[number % workers] += files.pop(name)
    others = [item for file in files.values() for item in file]
    most = len(items) // workers
    for share in shares:
        room = max(0, most - len(share))
        share += others[:room]
        others = others[room:]
    items[:] = [item for share in shares for item in share] + others


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
