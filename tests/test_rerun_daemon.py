"""Re-runs with a real daemon: what is asked again, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_openai import FakeOpenAI
from tests.living import LivingRoot
from tests.test_cli import pop

Make = Callable[..., LivingRoot]

BROKEN = "def parse(text, ctx):\n    raise ValueError('no parser yet')\n"
FIXED = "def parse(text, ctx):\n    return {'words': len(text.split())}\n"
LENGTH = "def infer(prompt, ctx):\n    return {'n': str(ctx.inputs)}\n"


def settings(fake: FakeOpenAI) -> str:
    return (
        f'[models.default]\nprovider = "openai"\nmodel = "m"\nbase_url = "{fake.base_url}"\n'
        "[worker]\nattempts = 1\n[seeds]\nsettle_s = 0.1\n"
    )


def living_with(make_living: Make, fake: FakeOpenAI, steps: list[Any], parser: str) -> LivingRoot:
    tasks = {
        "count.md": "Say something about {{ seed.topic }}.",
        "count.py": parser,
        "end.py": LENGTH,
    }
    return make_living(pipeline={"tasks": steps}, tasks=tasks, settings=settings(fake))


def rerun(living: LivingRoot, run: str, *arguments: str) -> dict[str, Any]:
    result = pop("rerun", run, *arguments, "--json", root=living.path)
    assert result.returncode == 0, result.stdout + result.stderr
    row: dict[str, Any] = json.loads(result.stdout)
    return row


@pytest.mark.parametrize(
    "steps",
    [
        ["count", "end"],
        [{"each": "seed.parts", "do": "count"}, "end"],
        [{"repeat": ["count"], "until": "lap >= 1", "at_most": 3}, "end"],
    ],
    ids=["plain", "each", "repeat"],
)
def test_a_mended_parser_parses_again_without_a_call(make_living: Make, fake_openai: FakeOpenAI, steps: Any) -> None:
    """In place: the run failed, the parser is mended, the recorded answers are parsed."""
    living = living_with(make_living, fake_openai, steps, BROKEN)
    living.up()
    living.drop("a.json", {"topic": "tides", "parts": [1]})
    living.wait_state("failed")
    asked = fake_openai.total
    assert asked >= 1
    living.task("count.py", FIXED)
    rerun(living, "last", "--from", "count:parse")
    (record,) = living.wait_complete(1)
    assert fake_openai.total == asked and record["usage"]["calls"] == asked


def test_a_complete_run_is_forked_and_parsed_again_without_a_call(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The new run has no call of its own; the old one stays as it was."""
    living = living_with(make_living, fake_openai, ["count", {"task": "count", "name": "again"}, "end"], FIXED)
    living.up()
    living.drop("a.json", {"topic": "tides"})
    (first,) = living.wait_complete(1)
    asked = fake_openai.total
    living.task("count.py", FIXED.replace("words", "terms"))
    row = rerun(living, first["run_id"], "--from", "again:parse")
    assert row["fork"] and Path(row["seed"]).name.startswith("a-fork")
    _, second = living.wait_complete(2)
    assert "terms" in living.output(second, "again") and "words" in living.output(second, "count")
    assert fake_openai.total == asked and second["usage"]["calls"] == 0


def test_from_a_step_on_it_is_asked_again_and_what_is_before_is_kept(
    make_living: Make, fake_openai: FakeOpenAI
) -> None:
    """A new generation for the step; a later one with the same prompt is answered from the store."""
    steps = ["count", {"task": "count", "name": "again"}, {"task": "count", "name": "third"}, "stop"]
    living = living_with(make_living, fake_openai, steps, FIXED)
    living.task("stop.py", "def infer(prompt, ctx):\n    raise ValueError('stop')\n")
    living.up()
    living.drop("a.json", {"topic": "tides"})
    living.wait_state("failed")
    assert fake_openai.total == 3
    living.task("stop.py", LENGTH)
    row = rerun(living, "last", "--from", "again", "-r", "better")
    assert row["stale"] == ["again", "third", "stop"]
    (record,) = living.wait_complete(1)
    assert fake_openai.total == 4
    status = json.loads((living.path / record["path"] / "tasks-status.json").read_bytes())
    assert [status["tasks"][name]["attempt"] for name in ("count", "again", "third", "stop")] == [1, 2, 2, 2]


def test_what_is_set_counts_from_the_step_on(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The seed's new value is asked about; seed.json stays."""
    steps = [{"task": "count", "name": "first"}, "stop", "count"]
    living = living_with(make_living, fake_openai, steps, FIXED)
    living.task(
        "stop.py",
        "def infer(prompt, ctx):\n    if ctx.seed['topic'] == 'tides': raise ValueError('x')\n    return ctx.seed\n",
    )
    living.up()
    living.drop("a.json", {"topic": "tides"})
    living.wait_state("failed")
    rerun(living, "last", "--from", "stop", "--set", "seed.topic=moon")
    (record,) = living.wait_complete(1)
    assert living.output(record, "stop") == {"topic": "moon"}
    assert "moon" in json.dumps(fake_openai.bodies[-1]) and fake_openai.total == 2
    assert json.loads((living.path / record["path"] / "seed.json").read_bytes()) == {"topic": "tides"}


def test_pause_and_resume(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """What is at work ends, nothing new starts; and on it goes."""
    fake_openai.delay_s = 10.0
    living = living_with(make_living, fake_openai, ["count", "end"], FIXED)
    living.up()
    living.drop("a.json", {"topic": "tides"})
    living.wait_state("running")
    assert pop("pause", "last", root=living.path).returncode == 0
    living.wait_state("paused")
    again = pop("pause", "last", root=living.path)
    assert again.returncode == 0 and "paused already" in again.stderr
    assert pop("resume", "last", root=living.path).returncode == 0
    living.wait_complete(1)
    done = pop("pause", "last", root=living.path)
    assert done.returncode == 2 and "is complete" in done.stderr


def test_a_rerun_of_a_run_at_work_is_refused(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """It is to be paused first."""
    fake_openai.delay_s = 30.0
    living = living_with(make_living, fake_openai, ["end", "count"], FIXED)
    living.up()
    living.drop("a.json", {"topic": "tides"})
    living.wait(lambda: living.status()["tasks"]["count"]["state"] == "running", "the call")
    result = pop("rerun", "last", "--from", "end", root=living.path)
    assert result.returncode == 2 and "pop pause" in result.stderr


def test_all_failed_runs_at_once(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """One command, no call; runs it does not fit are told and left."""
    living = living_with(make_living, fake_openai, ["count", "end"], BROKEN)
    living.up()
    for number in range(5):
        living.drop(f"{number}.json", {"topic": f"tides {number}"})
    living.wait(
        lambda: len(living.current()) == 5 and all(living.status(one)["state"] == "failed" for one in living.current()),
        "5",
    )
    asked = fake_openai.total
    living.task("count.py", FIXED)
    result = pop("rerun", "--pipeline", "default", "--from", "count:parse", root=living.path)
    assert result.returncode == 0 and "5 run(s) run again, 0 left" in result.stderr
    living.wait_complete(5)
    assert fake_openai.total == asked
