"""pop.toml: read strictly, and every key has an effect."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pop.errors import ConfigErrors, UsageError
from pop.events import unix_s
from pop.settings import Root, Settings, enclosing_root, find_root, load_settings
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]


def read(path: Path, text: str) -> Settings:
    (path / "pop.toml").write_text(text)
    return load_settings(Root(path))


def test_a_missing_file_means_the_defaults(tmp_path: Path) -> None:
    """As does an empty one."""
    assert load_settings(Root(tmp_path)) == read(tmp_path, "") == Settings()


@pytest.mark.parametrize(
    ("text", "line", "says", "hint"),
    [
        ("[worker]\ntimout_s = 1", 2, "unknown key 'timout_s'", "timeout_s"),
        ("\n[workers]\nx = 1", 2, "unknown key 'workers'", "worker"),
        ("[models.big]\nprovider = 'openai'\nbase_ulr = 'x'", 3, "unknown key 'base_ulr'", "base_url"),
        ("[worker]\nattempts = 0", 2, "greater than or equal to 1", None),
        ("[daemon]\ndurability = 'sure'", 2, "should match", None),
        ("[daemon]\nscan_s = 0", 2, "greater than 0", None),
        ("[concurrency]\nworkers = 'many'", 2, "valid integer", None),
        ("[budget]\nrun_usd = inf", 2, "finite", None),
        ("[budget]\nday_tokens = 10.5", 2, "valid integer", None),
        ("[budget.warn]\nstep_calls = nan", 2, "step_calls", None),
        ("[models.a]\nprovider = 'openai'\ntimeout_s = inf", 3, "finite", None),
        ("[models.a]\nprice = {input = inf, output = 1}", 2, "finite", None),
        ("[worker]\ntimeout_s = inf", 2, "finite", None),
        ("[models.a]\ncommand = 'claude -p \"a b\"'", 2, "valid list", '["claude", "-p", "a b"]'),
        ('[models.a]\ncommand = "it\'s"', 2, "valid list", '["it\'s"]'),
        ("[providers.p]\napi_key_env = ''", 2, "name of a variable", "OPENAI_API_KEY"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, line: int, says: str, hint: str | None) -> None:
    """And the nearest known key."""
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, text)
    told = [p for p in caught.value.problems if says in p.message]
    assert told and (told[0].where or "").startswith(f"pop.toml:{line}:")
    assert hint is None or hint in (told[0].hint or "")


@pytest.mark.parametrize("table", ["models.a", "providers.p"])
def test_a_key_in_the_place_of_its_variable_is_not_repeated(tmp_path: Path, table: str) -> None:
    """It was pasted by mistake, and must not end up in a terminal's history or a bug report."""
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, f"[{table}]\napi_key_env = 'sk-abc0123456789'")
    assert "name of the variable that holds the key" in str(caught.value) and "sk-abc" not in str(caught.value)
    assert "pop.toml:2:1" in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Not one after the other."""
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, "[worker]\nattempts = 0\nx = 1\n[daemon]\ny = 2\n")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("data", [b"[models", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_no_toml_is_a_configuration_error(tmp_path: Path, data: bytes) -> None:
    """Exit code 3."""
    (tmp_path / "pop.toml").write_bytes(data)
    with pytest.raises(Exception, match=r"pop\.toml|TOML") as caught:
        load_settings(Root(tmp_path))
    assert getattr(caught.value, "exit_code", None) == 3


def test_the_root_is_found_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The given one, else POP_ROOT, else the nearest folder with a pipeline.json."""
    monkeypatch.delenv("POP_ROOT", raising=False)
    inner, other = tmp_path / "a" / "b", tmp_path / "other"
    inner.mkdir(parents=True)
    other.mkdir()
    with pytest.raises(UsageError, match=r"no pipeline\.json"):
        find_root(start=inner)
    (tmp_path / "a" / "pipeline.json").write_text("{}")
    assert find_root(start=inner).path == tmp_path / "a"
    monkeypatch.setenv("POP_ROOT", str(other))
    assert find_root(start=inner).path == other
    assert find_root(inner).path == inner
    with pytest.raises(UsageError, match="no folder"):
        find_root(tmp_path / "nowhere")


def test_a_pipeline_json_alone_is_a_root_only_where_there_is_no_better_one(tmp_path: Path) -> None:
    """A folder that `pop iterate` wrote holds one too, and is none."""
    inner = tmp_path / "out" / "design"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "pipeline.json").write_text("{}")
    assert find_root(start=inner).path == inner
    assert enclosing_root(inner) is None
    (tmp_path / "pipeline.json").write_text("{}")
    for sign in ("pop.toml", ".pop", "pipeline-tasks"):
        (tmp_path / sign).mkdir()
        assert find_root(start=inner).path == tmp_path
        assert enclosing_root(inner) == Root(tmp_path)
        (tmp_path / sign).rmdir()


def test_the_names_of_pipelines(tmp_path: Path) -> None:
    """`default` is pipeline.json, the others stand in pipelines/."""
    root = Root(tmp_path)
    root.pipelines.mkdir()
    for name in ("b.json", "a.json", ".c.json", "d.txt"):
        (root.pipelines / name).write_text("{}")
    assert root.pipeline_names() == ["a", "b"]
    root.pipeline_file.write_text("{}")
    assert root.pipeline_names() == ["default", "a", "b"]
    assert root.pipeline_path("default") == root.pipeline_path(None) == root.pipeline_file


# -- effects -------------------------------------------------------------------------------------------------------

NAP = "import time\ndef infer(prompt, ctx):\n    time.sleep(0.4)\n    return 1\n"


def overlap(spans: list[tuple[float, float]]) -> int:
    """How many of these spans of time held at once, at most."""
    return max(sum(1 for other in spans if other[0] <= begin < other[1]) for begin, _ in spans)


def spans_of(living: LivingRoot, rows: list[dict[str, Any]], begin: str, end: str) -> list[tuple[float, float]]:
    found = []
    for row in rows:
        journal = living.path / row["path"] / "events.jsonl"
        events = [json.loads(line) for line in journal.read_bytes().splitlines()]
        begins = [unix_s(event["at"]) for event in events if event["event"] == begin]
        ends = [unix_s(event["at"]) for event in events if event["event"] == end]
        found += list(zip(begins, ends, strict=True))
    return found


def serve(
    make_living: Make, settings: str, steps: list[Any], count: int = 1, tasks: dict[str, str] | None = None
) -> Any:
    """`count` seeds through a root; the root and its ledger."""
    living = make_living(pipeline={"name": "p", "tasks": steps}, tasks=tasks or {"nap.py": NAP}, settings=settings)
    for number in range(count):
        living.drop(f"{number}.json", {})
    living.up()
    return living, living.wait_complete(count)


def test_runs_bounds_the_active_runs(make_living: Make) -> None:
    """[concurrency] runs: the others wait in the queue; without it they go side by side."""
    living, rows = serve(make_living, "[concurrency]\nruns = 2\nworkers = 8\n", ["nap"], 5)
    assert overlap(spans_of(living, rows, "run.created", "run.complete")) == 2


def test_workers_bounds_the_attempts(make_living: Make) -> None:
    """[concurrency] workers, over all runs together."""
    naps = {"parallel": [{"task": "nap", "name": f"n{number}"} for number in range(3)]}
    living, rows = serve(make_living, "[concurrency]\nworkers = 2\n", [naps], 2)
    starts = []
    for row in rows:
        for name in ("n0", "n1", "n2"):
            journal = living.path / row["path"] / "events.jsonl"
            events = [json.loads(line) for line in journal.read_bytes().splitlines()]
            one = [unix_s(e["at"]) for e in events if e.get("instance") == name and e["event"] != "step.skipped"]
            starts.append((one[0], one[-1]))
    assert overlap(starts) == 2


def test_env_lets_a_variable_through(make_living: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """[worker] env names it; its neighbour stays out."""
    monkeypatch.setenv("MY_REGION", "north")
    monkeypatch.setenv("MY_OTHER", "x")
    code = "import os\ndef infer(prompt, ctx):\n    return [os.environ.get('MY_REGION'), os.environ.get('MY_OTHER')]\n"
    living, (row,) = serve(make_living, '[worker]\nenv = ["MY_REGION"]\n', ["see"], tasks={"see.py": code})
    assert living.output(row, "see") == ["north", None]


def test_attempts_counts_tries_of_a_step(make_living: Make) -> None:
    """[worker] attempts; a step's own goes before it."""
    code = (
        "import os\ndef infer(prompt, ctx):\n"
        "    if ctx.attempt < {}: os._exit(1)\n    return ctx.attempt\n"
    )  # fmt: skip
    living, (row,) = serve(make_living, "[worker]\nattempts = 3\n", ["die"], tasks={"die.py": code.format(3)})
    assert living.output(row, "die") == 3 and row["attempts"] == 3
    living = make_living(
        "other", pipeline={"name": "p", "tasks": [{"task": "die", "attempts": 2}]},
        tasks={"die.py": code.format(3)}, settings="[worker]\nattempts = 3\n",
    )  # fmt: skip
    living.drop("a.json", {})
    living.up()
    assert living.wait_state("failed")["tasks"]["die"]["attempt"] == 2


def test_output_mb_caps_what_is_kept(make_living: Make) -> None:
    """[worker] output_mb: kept up to it, with a notice; the step goes on."""
    code = "def infer(prompt, ctx):\n    print('x' * 400_000)\n    return 1\n"
    living, (row,) = serve(make_living, "[worker]\noutput_mb = 0.25\n", ["talk"], tasks={"talk.py": code})
    text = (living.path / row["path"] / "tasks" / "talk" / "attempts" / "1" / "stdout.txt").read_bytes()
    assert b"capped at 0.25 MB" in text and 260_000 < len(text) < 263_000


@pytest.mark.parametrize(
    ("setting", "body", "error_class"),
    [
        ("timeout_s = 0.5", "import time; time.sleep(60)", "timeout"),
        ("stall_s = 0.5", "import time; time.sleep(60)", "stalled"),
        ("memory_mb = 150", "x = [bytearray(10_000_000) for _ in range(99)]", "worker_died"),
    ],
)
def test_the_limits_of_a_worker_hold(make_living: Make, setting: str, body: str, error_class: str) -> None:
    """[worker] timeout_s, stall_s, memory_mb."""
    living = make_living(
        pipeline={"name": "p", "tasks": [{"task": "t", "attempts": 1}]},
        tasks={"t.py": f"def infer(prompt, ctx):\n    {body}\n"}, settings=f"[worker]\n{setting}\n",
    )  # fmt: skip
    living.drop("a.json", {})
    living.up()
    assert living.wait_state("failed")["error"]["error_class"] == error_class


COUNTING = """
import os, sys
def counted(real):
    def call(fd):
        with open({log!r}, 'ab', buffering=0) as file:
            file.write(b'%d %s\\n' % (os.getpid(), os.readlink('/proc/self/fd/%d' % fd).encode()))
        return real(fd)
    return call
if 'up' in sys.orig_argv and 'pop' in sys.orig_argv:
    os.fsync, os.fdatasync = counted(os.fsync), counted(os.fdatasync)
"""


def syncs(make_living: Make, tmp_path: Path, durability: str, seed: str) -> list[str]:
    """The paths that a daemon fsyncs while it serves one seed; the calls are counted inside of it."""
    site, log = tmp_path / f"site-{durability}", tmp_path / f"syncs-{durability}"
    site.mkdir()
    log.touch()
    (site / "sitecustomize.py").write_text(COUNTING.format(log=str(log)))
    code = "def infer(prompt, ctx):\n    ctx.artifact('a.txt').write_text('x')\n    return 1\n"
    settings = f'[daemon]\ndurability = "{durability}"\n[seeds]\nsettle_s = 0\n'
    living = make_living(durability, pipeline={"name": "p", "tasks": ["t"]}, tasks={"t.py": code}, settings=settings)
    if seed == "folder":
        (tmp_path / "job").mkdir()
        (tmp_path / "job" / "seed.json").write_text("{}")
        (tmp_path / "job" / "doc.txt").write_text("x")
        os.rename(tmp_path / "job", living.root.pending / "job")
    else:
        living.drop("a.json", {})
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    daemon = living.up(env={"PYTHONPATH": path})
    living.wait_complete(1)
    living.stop(daemon)
    return log.read_text().splitlines()


def test_durability_safe_syncs_every_commit(make_living: Make, tmp_path: Path) -> None:
    """[daemon] durability: journal, output, artifacts, ledger."""
    found = syncs(make_living, tmp_path, "safe", "file")
    for name in ("events.jsonl", "output.json", "a.txt", "runs.jsonl", "promoting", "pipeline-complete"):
        assert any(line.endswith(name) for line in found), name


@pytest.mark.parametrize(
    "seed",
    [
        "file",
        "folder",
    ],
)
def test_durability_fast_syncs_nothing(make_living: Make, tmp_path: Path, seed: str) -> None:
    """The kernel decides when."""
    assert syncs(make_living, tmp_path, "fast", seed) == []


def test_scan_s_is_the_time_between_two_looks(make_living: Make) -> None:
    """[daemon] scan_s with inotify off: nothing is found before the next look is due."""
    living, _ = serve(make_living, "[daemon]\ninotify = false\nscan_s = 3600\n", ["nap"])
    living.drop("b.json", {})
    time.sleep(2.0)
    assert len(living.ledger()) == 1 and (living.root.pending / "b.json").exists()
