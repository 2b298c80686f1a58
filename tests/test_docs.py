"""What exists is documented, in the table where a reader looks for it; and what is documented exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from pop import events, settings
from pop.commands import COMMANDS
from pop.records import Seed

DOCS = Path(__file__).parent.parent / "docs"
TABLES: dict[str, type[BaseModel]] = {
    "[models] and [models.NAME]": settings.ModelSettings,
    "[providers.NAME]": settings.ProviderSettings,
    "[budget] and [budget.warn]": settings.BudgetSettings,
    "[gateway]": settings.GatewaySettings,
    "[concurrency]": settings.Concurrency,
    "[seeds]": settings.SeedSettings,
    "[worker]": settings.WorkerSettings,
    "[daemon]": settings.DaemonSettings,
    "[notify.NAME]": settings.NotifySettings,
    "[web]": settings.WebSettings,
}


def section(page: str, heading: str) -> str:
    """What stands below a heading of a page, up to the next one."""
    parts = re.split(r"^#+ (.+)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[heading]


def first_cells(text: str) -> list[str]:
    """The first cell of every row of the tables in a text, headings left out."""
    rows = re.findall(r"^\| (.*?) +\|", text.replace(r"\|", "/"), flags=re.MULTILINE)
    return [name for row in rows if row.startswith("`") for name in re.findall(r"`([^`]+)`", row)]


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells behind the first one, by that one."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.replace(r"\|", "/").strip("|").split("|")]
            found[cells[0].strip("`")] = cells[1:]
    return found


@pytest.mark.parametrize("heading", TABLES)
def test_every_setting_is_documented_in_its_table(heading: str) -> None:
    """docs/settings.md names each key of pop.toml below the heading of its table, and no key that is not there."""
    documented = set(first_cells(section("settings.md", heading)))
    documented -= {"default"} if "models" in heading else set()
    assert documented == set(TABLES[heading].model_fields)


def test_every_table_of_the_settings_has_its_heading() -> None:
    """And no heading is left over."""
    headings = re.findall(r"^## (.+)$", (DOCS / "settings.md").read_text(), flags=re.MULTILINE)
    assert headings == list(TABLES)
    assert {re.match(r"\[(\w+)", heading)[1] for heading in headings} == set(settings.Settings.model_fields)  # type: ignore[index]


@pytest.mark.parametrize("heading", TABLES)
def test_documented_defaults_are_the_defaults(heading: str) -> None:
    """A number, a text or a truth value in the default column is what a missing key means."""
    model = TABLES[heading]
    for name, (said, *_) in rows_of(section("settings.md", heading)).items():
        if not re.fullmatch(r'`?("\w+"|[\d.]+|true|false)`?', said) or name not in model.model_fields:
            continue
        default = model.model_fields[name].get_default(call_default_factory=True)
        told = said.strip('`"')
        assert told in (str(default).lower(), f"{default:g}" if isinstance(default, float) else ""), name


def test_every_key_of_a_seed_is_documented_in_its_table() -> None:
    """docs/files.md, below Seeds."""
    assert set(first_cells(section("files.md", "Seeds"))) == set(Seed.model_fields)


def test_every_event_is_documented_where_the_run_is() -> None:
    """docs/files.md, in the sentence that begins with `Events`."""
    sentence = re.search(r"^Events: (.+?)`\.", section("files.md", "A run"), flags=re.MULTILINE | re.DOTALL)
    assert sentence and set(sentence[1].strip("`").split()) == set(events.EVENTS)


def test_every_command_has_a_row() -> None:
    """docs/cli.md has one for each, in the order of `pop --help`."""
    rows = first_cells((DOCS / "cli.md").read_text())
    assert [row.split()[1] for row in rows] == list(COMMANDS)
