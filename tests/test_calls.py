"""The ledger of model calls: append-only, whole lines, and what is under way beside it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pop.models.calls import CallLine, InFlight, Sum, append_calls, calls_in, day_files, ids_in, nano, usd
from pop.store import Disk

FAST = Disk(durable=False)


def line(number: int | str = 0, **values: Any) -> CallLine:
    base = {"id": f"c{number}", "at": "2026-11-21T03:15:02.123Z", "run_id": "r", "pipeline": "default", "step": "draft",
            "instance": "draft.1", "attempt": 1, "model": "m", "provider": "openai", "provider_model": "m-1",
            "input_tokens": 100, "output_tokens": 10, "cost_usd": 0.001}  # fmt: skip
    return CallLine.model_validate({**base, **values})


def found(path: Path) -> list[str | None]:
    return [call.id if call else None for _, call in calls_in(path)]


def test_a_line_goes_to_the_file_of_its_day_which_others_cannot_read(tmp_path: Path) -> None:
    """The folder is made when it is needed."""
    append_calls(FAST, tmp_path / "calls", [line(1), line(2, at="2026-11-22T00:00:00Z"), line(3)])
    files = day_files(tmp_path / "calls")
    assert [path.name for path in files] == ["2026-11-21.jsonl", "2026-11-22.jsonl"]
    assert [found(path) for path in files] == [["c1", "c3"], ["c2"]]
    assert [stat.S_IMODE(path.stat().st_mode) for path in [*files, files[0].parent]] == [0o600, 0o600, 0o700]
    assert day_files(tmp_path / "calls", since="2026-11-22") == files[1:]
    assert day_files(tmp_path / "calls", until="2026-11-21") == files[:1] and day_files(tmp_path / "none") == []


def test_a_line_torn_by_a_power_cut_is_closed_before_the_next_and_passed_over(tmp_path: Path) -> None:
    """Nothing is cut off: this is about money."""
    (path,) = append_calls(FAST, tmp_path, [line(1)])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    assert found(path) == ["c1"]
    append_calls(FAST, tmp_path, [line(2)])
    assert found(path) == ["c1", None, "c2"] and path.read_bytes().startswith(whole + whole[:40] + b"\n")


def test_lines_that_are_none_of_ours_are_passed_over(tmp_path: Path) -> None:
    """Whatever somebody wrote there; also a line without end."""
    (path,) = append_calls(FAST, tmp_path, [line(1)])
    with path.open("ab") as file:
        file.write(b"\n[]\n{}\nnull\n\xff\xfe\n" + b"[" * 10_000 + b"\n" + b"x" * 200_000 + b"\n")
        file.write(line(2).model_dump_json().replace('"m-1"', '"m-1","more":1').encode() + b"\n")
    append_calls(FAST, tmp_path, [line(3)])
    assert [name for name in found(path) if name] == ["c1", "c3"]
    assert list(ids_in(path)) == ["c1", "c2", "c3"]
    ends = [end for end, _ in calls_in(path)]
    assert ends[-1] == path.stat().st_size and [call.id for _, call in calls_in(path, ends[-2]) if call] == ["c3"]


@pytest.mark.parametrize("wrong", [
    {"at": "../../etc/passwd"}, {"at": "2026-11-21T03:15:02+01:00"}, {"id": "a\nb"}, {"id": ""}, {"input_tokens": -1},
    {"cost_usd": float("nan")}, {"cost_usd": float("inf")}, {"cost_usd": -1.0}, {"output_tokens": 10**30},
])  # fmt: skip
def test_what_could_break_a_file_or_a_sum_is_no_line(wrong: dict[str, Any]) -> None:
    """Its day names a file, its numbers go into a sum."""
    with pytest.raises(ValidationError):
        line(1, **wrong)


def test_what_a_server_calls_itself_is_clipped(tmp_path: Path) -> None:
    """A megabyte, or half a surrogate pair, must not spoil the ledger."""
    append_calls(FAST, tmp_path, [line(1, provider_model="x" * 2**20), line(2, provider_model="a\ud800b\nc")])
    (_, first), (_, second) = calls_in(tmp_path / "2026-11-21.jsonl")
    assert first and len(first.provider_model) == 200 and second and second.provider_model == "a?b\nc"


def test_a_write_that_fails_leaves_no_line_of_any_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines stand there, or none."""
    append_calls(FAST, tmp_path, [line(1)])
    real = Disk.append

    def full(self: Disk, path: Path, data: bytes, *, durable: bool = True) -> None:
        real(self, path, data[: len(data) // 2] if "22" in path.name else data, durable=durable)
        if "22" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Disk, "append", full)
    with pytest.raises(OSError):
        append_calls(FAST, tmp_path, [line(2), line(3, at="2026-11-22T00:00:00Z")])
    monkeypatch.undo()
    assert [found(path) for path in day_files(tmp_path)] == [["c1"], []]


def test_only_what_is_billed_counts() -> None:
    """And a call without a price is told apart."""
    total = Sum()
    for call in (line(1), line(2, billed=False, outcome="rate_limited"), line(3, cost_usd=None, estimated=True)):
        total.add(call)
    assert total == Sum(calls=2, input_tokens=200, output_tokens=20, nano_usd=1_000_000, unpriced=1, estimated=1)
    assert total.tokens == 220


def test_money_adds_up_to_the_last_digit() -> None:
    """Ten times 0.1 is 1."""
    assert usd(sum(nano(0.1) for _ in range(10))) == 1.0 and usd(nano(0.000000001)) == 1e-9


# -- what is under way ---------------------------------------------------------------------------------------------


def test_what_began_and_did_not_end_is_left(tmp_path: Path) -> None:
    """As far as this file knows; the ledger knows the rest."""
    path = tmp_path / "in-flight.jsonl"
    flights = InFlight(path)
    flights.start()
    for number in range(3):
        flights.begin(line(number))
    flights.forget("c1")
    with path.open("ab") as file:
        file.write(b"rubbish\n[]\n3\n" + b'{"id": "torn')
    assert set(InFlight(path).left()) == {"c0", "c2"}
    assert len(flights) == 2 and InFlight(tmp_path / "none").left() == {}


def test_the_file_stays_small_and_keeps_what_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emptied when nothing is open, written anew when something is."""
    monkeypatch.setattr(InFlight, "MAX_BYTES", 10_000)
    path = tmp_path / "in-flight.jsonl"
    flights = InFlight(path)
    flights.start()
    for number in range(500):
        flights.begin(line(number))
        flights.end([f"c{number}"])
        assert path.stat().st_size < 11_000
    flights.begin(line("long"))
    for number in range(500):
        flights.begin(line(number))
        flights.end([f"c{number}"])
        assert path.stat().st_size < 11_000
    assert "clong" in InFlight(path).left()
    flights.close()
    assert path.stat().st_size > 0
    flights.start()
    flights.end(["clong"])
    flights.close()
    assert path.stat().st_size == 0


def test_a_full_disk_is_told_and_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request must not go out; the next one is noted whole."""
    flights = InFlight(tmp_path / "in-flight.jsonl")
    flights.start()
    flights.begin(line(1))

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pop.models.calls.write_all", full)
    with pytest.raises(OSError):
        flights.begin(line(2))
    monkeypatch.undo()
    flights.begin(line(3))
    assert set(InFlight(tmp_path / "in-flight.jsonl").left()) == {"c1", "c3"}
