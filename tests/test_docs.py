"""What exists is documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from pop import events, settings
from pop.commands import COMMANDS
from pop.records import Seed

DOCS = Path(__file__).parent.parent / "docs"
TABLES = [
    settings.ModelSettings, settings.Concurrency, settings.SeedSettings, settings.WorkerSettings, settings.DaemonSettings,
]  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_is_documented(table: type[BaseModel]) -> None:
    """docs/settings.md names each key of pop.toml."""
    text = (DOCS / "settings.md").read_text()
    assert [name for name in table.model_fields if f"`{name}`" not in text] == []


def test_every_event_and_seed_key_is_documented() -> None:
    """docs/files.md names them."""
    text = (DOCS / "files.md").read_text()
    assert [name for name in events.EVENTS if name not in text] == []
    assert [name for name in Seed.model_fields if f"`{name}`" not in text] == []


def test_every_command_is_documented() -> None:
    """docs/cli.md has a row for each."""
    text = (DOCS / "cli.md").read_text()
    assert [name for name in COMMANDS if f"`pop {name}" not in text] == []
