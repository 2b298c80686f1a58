"""`pop cost`: sums of the ledger of calls, told as a table, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pop.cli import pop as pop_group
from pop.models.calls import append_calls
from pop.store import Disk
from tests.test_calls import line
from tests.test_cli import pop


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with calls of two days, two runs and two models; one is estimated, one unpriced, one was not billed."""
    (tmp_path / "pipeline.json").write_text("{}")
    first, second = "20261121-031502-a-aaaa", "20261122-031502-b-bbbb"
    calls = [
        line(1, run_id=first, cost_usd=0.1),
        line(2, run_id=first, cost_usd=0.2, cached_input_tokens=50),
        line(3, run_id=first, model="large", cost_usd=0.000000001, estimated=True, outcome="lost"),
        line(4, run_id=second, at="2026-11-22T03:15:02Z", step="check", cost_usd=None),
        line(5, run_id=second, at="2026-11-22T03:15:02Z", billed=False, outcome="rate_limited"),
    ]
    append_calls(Disk(durable=False), tmp_path / "pipeline-complete" / "calls", calls)
    return tmp_path


def cost(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(pop_group, ["cost", *arguments, "--root", str(root)], catch_exceptions=True)


def told(root: Path, *arguments: str) -> dict[str, Any]:
    result = cost(root, "--json", *arguments)
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_the_table_shows_what_is_estimated_or_has_no_price(root: Path) -> None:
    """And a line with the total, to the last digit."""
    shown = cost(root)
    assert shown.stdout == (
        "model  calls  tok in  cached  tok out          USD\n"
        "m          3     300      50       30       0.3000  1 unpriced\n"
        "large      1     100       0       10  0.000000001  1 est.\n"
        "total      4     400      50       40  0.300000001  1 est., 1 unpriced\n"
    )
    assert "[models.NAME]" in shown.stderr and "est.:" in shown.stderr


@pytest.mark.parametrize(
    ("by", "rows"),
    [
        ("model", {"m": 3, "large": 1}),
        ("run", {"20261121-031502-a-aaaa": 3, "20261122-031502-b-bbbb": 1}),
        ("step", {"default/draft": 3, "default/check": 1}),
        ("day", {"2026-11-21": 3, "2026-11-22": 1}),
        ("pipeline", {"default": 4}),
    ],
)
def test_calls_are_added_up_by_what_is_asked(root: Path, by: str, rows: dict[str, int]) -> None:
    """However they are cut, the total is the same."""
    value = told(root, "--by", by)
    assert {row[by]: row["calls"] for row in value["rows"]} == rows
    assert value["total"] == {
        "calls": 4, "input_tokens": 400, "cached_input_tokens": 50, "output_tokens": 40, "reasoning_tokens": 0,
        "cost_usd": 0.300000001, "estimated_calls": 1, "unpriced_calls": 1,
    }  # fmt: skip
    assert round(sum(row["cost_usd"] for row in value["rows"]), 9) == value["total"]["cost_usd"]


@pytest.mark.parametrize(
    ("arguments", "calls"),
    [
        (["--since", "2026-11-22"], 1), (["--until", "2026-11-21"], 3), (["--since", "2027-01-01"], 0),
        (["--run", "20261121"], 3), (["--run", "20261122-031502-b-bbbb"], 1),
        (["--run", "20261121", "--since", "2026-11-22", "--until", "2026-11-22"], None),
    ],
)  # fmt: skip
def test_days_and_runs_can_be_chosen(root: Path, arguments: list[str], calls: int | None) -> None:
    """Both days count; a run is known by its calls when its folder is gone."""
    if calls is None:
        assert cost(root, *arguments).exception
    else:
        assert told(root, *arguments)["total"]["calls"] == calls


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "tomorrow"], "is no day"), (["--run", "2026"], "fits 2 runs"), (["--run", "nowhere"], "no run"),
        (["--since", "2026-11-22", "--until", "2026-11-21"], "is after"), (["--csv", "--json"], "choose one"),
    ],
)  # fmt: skip
def test_a_wrong_question_is_told(root: Path, arguments: list[str], says: str) -> None:
    """Used wrongly: 2."""
    result = pop("cost", *arguments, root=root)
    assert result.returncode == 2 and says in result.stderr


def test_the_ledger_may_be_empty(tmp_path: Path) -> None:
    """Then it says so."""
    (tmp_path / "pipeline.json").write_text("{}")
    shown = cost(tmp_path)
    assert (shown.stdout, shown.stderr, shown.exit_code) == ("", "no model calls\n", 0)
    assert told(tmp_path)["rows"] == [] and len(cost(tmp_path, "--csv").stdout.splitlines()) == 1


def test_csv_holds_no_formula(root: Path) -> None:
    """A model may be called anything; cells with commas and quotes are quoted."""
    names = ["=1+1", "+a", "-b", "@c", 'x,"y"', "a\nb\tc", "\t=2"]
    calls = [line(f"x{n}", model=name, cost_usd=0.5) for n, name in enumerate(names)]
    append_calls(Disk(durable=False), root / "pipeline-complete" / "calls", calls)
    rows = list(csv.DictReader(io.StringIO(cost(root, "--csv").stdout)))
    found = {row["model"] for row in rows}
    assert {"'=1+1", "'+a", "'-b", "'@c", 'x,"y"', "a⏎b c"} <= found
    assert not any(name.lstrip().startswith(("=", "+", "-", "@")) for name in found)
    assert {row["cost_usd"] for row in rows} == {"0.5000", "0.3000", "0.000000001"}


def test_lines_that_cannot_be_read_are_left_out_and_told(root: Path) -> None:
    """Torn by a power cut, or none of ours."""
    with (root / "pipeline-complete" / "calls" / "2026-11-21.jsonl").open("ab") as file:
        file.write(b"rubbish\n" + b'{"id": "torn')
    assert told(root)["total"]["calls"] == 4 and told(root)["passed_over"] == 1
    assert "1 line(s) of the ledger could not be read" in cost(root).stderr


def test_a_name_cannot_steer_the_terminal(root: Path) -> None:
    """Model names come from servers and seeds."""
    append_calls(Disk(durable=False), root / "pipeline-complete" / "calls", [line("e", model="\x1b[31mred\nnext")])
    assert "\x1b" not in cost(root).stdout and len(cost(root).stdout.splitlines()) == 5


def test_it_needs_nothing_but_the_ledger(root: Path) -> None:
    """No daemon, no `.pop`; and it leaves nothing behind."""
    result: subprocess.CompletedProcess[str] = pop("cost", "--by", "day", root=root)
    assert result.returncode == 0 and "2026-11-22" in result.stdout
    assert sorted(path.name for path in root.iterdir()) == ["pipeline-complete", "pipeline.json"]


def test_calls_of_no_pipeline_have_a_name(tmp_path: Path) -> None:
    """`pop models --test` asks outside of any: its rows were ``/test`` and nothing."""
    (tmp_path / "pipeline.json").write_text("{}")
    calls = [line(1, run_id="pop-models-test", pipeline="", step="test", cost_usd=0.1)]
    append_calls(Disk(durable=False), tmp_path / "pipeline-complete" / "calls", calls)
    assert told(tmp_path, "--by", "step")["rows"][0]["step"] == "pop-models-test/test"
    assert told(tmp_path, "--by", "pipeline")["rows"][0]["pipeline"] == "pop-models-test"


def test_a_column_of_zeros_is_left_out(tmp_path: Path) -> None:
    """So that a table of runs fits into 80 columns."""
    (tmp_path / "pipeline.json").write_text("{}")
    run_id = "20261121-031502-hello-aaaa"
    calls = [line(n, run_id=run_id, cost_usd=None if n % 2 else 0.1, estimated=True) for n in range(40)]
    append_calls(Disk(durable=False), tmp_path / "pipeline-complete" / "calls", calls)
    shown = cost(tmp_path, "--by", "run").stdout
    assert "cached" not in shown and "40 est., 20 unpriced" in shown
    assert max(map(len, shown.splitlines())) <= 80
